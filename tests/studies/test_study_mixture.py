"""The ablation of the mixture at smoke scale, and what it does with stiff mixtures."""

import importlib
import json

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture as ScikitMixture

from ndsm_jax.config import Config
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import Study

mixture = importlib.import_module("studies.mixture")


@pytest.mark.slow
def test_smoke(tmp_path):
    mixture.reproduce(Study(scale="smoke", root=tmp_path, progress=False))
    kept = json.loads((tmp_path / "metrics.json").read_text())["rings_and_bars"]
    for levels in kept.values():
        for (scores,) in levels.values():
            for metric in mixture.METRICS["rings_and_bars"]:
                assert np.isfinite([scores[metric][c] for c in ("value", "floor", "prior")]).all()
    # Equal weights are 0.15 + 0.05 too low for two modes, and the prior is drawn with them.
    prior = kept["power of the weights"]["0"][0]["mode_tv"]["prior"]
    assert prior > kept["power of the weights"]["1"][0]["mode_tv"]["prior"]
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert (tmp_path / "figures" / "rings_and_bars.png").read_bytes().startswith(b"\x89PNG")
    assert "floor" in (tmp_path / "tables" / "rings_and_bars_power_of_the_weights.md").read_text()


@pytest.mark.parametrize(
    ("min_covariance", "steps"), [(1e-4, None), (0.01, (300, 80))], ids=["stiff", "raised"]
)
def test_steps_are_doubled_until_they_are_stable(min_covariance, steps):
    config = Config.from_dict(
        {
            "data": {"name": "rings_and_bars", "num_train": 500, "num_test": 50},
            "mixture": {
                "num_components": 4,
                "covariance": "full",
                "min_covariance": min_covariance,
                "num_inits": 1,
            },
            "noising": {"steps": mixture.NOISING_STEPS},
            "sample": {"steps": mixture.SAMPLE_STEPS},
        }
    )
    dataset = load_data(config)
    stable, score = mixture._fit(config, dataset)
    assert (stable and (stable.noising.steps, stable.sample.steps)) == steps
    expected = ScikitMixture(
        4, reg_covar=min_covariance, random_state=0, n_init=1, max_iter=200
    ).fit(dataset.train[np.random.default_rng(0).permutation(500)])
    found = score["held-out log-likelihood"]["value"]
    assert np.isclose(found, expected.score(dataset.test), rtol=1e-3)


def test_levels_are_valid_and_the_base_is_run_once():
    for name, (_, _, factors) in mixture.BASES.items():
        for changes in mixture._distinct(factors).values():
            Config.from_dict({"mixture": changes})
        assert list(mixture._distinct(factors).values()).count({}) == 1, name
