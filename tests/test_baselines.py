"""Baselines from training to samples."""

from typing import Any

import numpy as np
import pytest

from ndsm_jax import config, plots
from ndsm_jax.config import Config
from ndsm_jax.datasets import load
from ndsm_jax.launch import draw_as_configured, launch, restore
from ndsm_jax.reports.report import noise_ladder

TINY: dict[str, dict[str, Any]] = {
    "data": {"name": "gaussians", "num_train": 200, "num_test": 50},
    "mixture": {"num_components": 3, "num_inits": 1},
    "network": {"width": 8, "depth": 1, "time_features": 0},
    "train": {"steps": 2, "batch_size": 16, "picture_every": 0, "tensorboard": False},
    "sample": {"steps": 10, "chunk": 16},
}


@pytest.mark.parametrize("name", ["component_ou", "ncsn"])
def test_a_tiny_run_gives_samples(name, tmp_path):
    """Trained, restored from the checkpoint, drawn; component_ou by implicit score matching."""
    tree = config.default()
    tree.update(config.BASELINES[name])
    tree.update(TINY)
    if name == "component_ou":
        tree.objective.name = "ism"
    c = Config.from_dict(tree)
    data = load("gaussians", num_train=200, num_test=50)
    launch(c, data, tmp_path, progress=False)
    made = restore(tmp_path)
    x = draw_as_configured(made.config, made.experiment, made.state, 16, progress=False)
    assert x.shape == (16, 2)
    assert np.all(np.isfinite(x))
    if name == "ncsn":  # sigma(T) is the largest distance between two items, by NumPy
        distances = np.linalg.norm(data.train[:, None] - data.train[None], axis=-1)
        process = made.experiment.process
        variance = process.clock.variance(process.horizon)
        np.testing.assert_allclose(variance, distances.max() ** 2, rtol=1e-3)
        # Training visits the levels of sampling, and the report draws them.
        np.testing.assert_array_equal(
            made.experiment.noising.times.grid, made.experiment.sample_grid
        )
        levels, covered = noise_ladder(made.experiment)["this run"]
        np.testing.assert_allclose(levels[0], distances.max(), rtol=1e-3)
        np.testing.assert_allclose(np.diff(np.log(levels)), np.log(1e-7) / 18, rtol=1e-2)
        lines = plots.ladder_figure({"this run": (levels, covered)}).axes
        np.testing.assert_array_equal(lines[1].lines[0].get_xydata()[:, 1], covered)
