"""The physics study at smoke scale, and what it measures without a model."""

import importlib
import json
import pathlib
import re

import numpy as np
import pytest
import scipy.stats

from ndsm_jax.reports.study import Study

physics = importlib.import_module("studies.physics")


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    physics.reproduce(study)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["results"][physics.SWIMMER]) == {physics.LOCAL, "ISM"}
    for of_system in metrics["results"].values():
        for (found,) in of_system.values():
            assert np.isfinite(list(found["accuracy"].values())).all()
            assert np.isfinite(found["system"]).all()
    assert np.isfinite(metrics["results"][physics.EXACT][physics.LOCAL][0]["total"]).all()
    # The total of a swimmer is infinite, whatever the score: see docs/physics.md.
    assert set(metrics["results"][physics.SWIMMER][physics.LOCAL][0]["total"]) == {None}
    assert "another simulation" in (tmp_path / "tables" / "active_swimmer.md").read_text()
    assert "exact" in (tmp_path / "tables" / "entropy.md").read_text()
    for name in ("samples", "currents", "entropy", "production"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()}
    physics.reproduce(study)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()} == written


def test_the_code_of_the_documentation_runs():
    """As it stands, but for the length of the training."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "physics.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    names: dict = {}
    exec(code.replace("steps=20_000", "steps=2, progress=False"), names)
    assert names["path"].y.shape == (251, 20_000, 2)
    assert names["oscillator"].noise_dim == 1


@pytest.mark.parametrize("dim", [1, 3])
def test_entropies_from_neighbours_are_those_of_normal_laws(dim, rng):
    """4,000 draws: within four standard errors (1.13 for d = 2, Var log p = d / 2 and psi'(4))."""
    root = rng.normal(size=(dim, dim)) + 2 * np.eye(dim)
    x = rng.normal(size=(4000, dim)) @ root.T
    exact = scipy.stats.multivariate_normal(np.zeros(dim), root @ root.T).entropy()
    error = np.sqrt((dim / 2 + scipy.special.polygamma(1, 4)) / len(x))
    assert abs(physics.knn_entropy(x) - exact) < 4 * error


@pytest.mark.slow
def test_the_exact_production_is_the_loss_of_free_energy():
    """From N(0, S_0) to the horizon, where nearly nothing is left: the divergence of N(0, S_0) from
    the stationary N(0, I)."""
    system = physics.SYSTEMS[physics.EXACT]()
    start = np.diag(np.asarray(system.start.factor[0], np.float64) ** 2)
    divergence = 0.5 * (np.trace(start) - 2 - np.linalg.slogdet(start)[1])
    produced = physics._integral(physics.exact_rate(system), system)
    assert produced[0] == 0
    assert produced[-1] == pytest.approx(divergence, rel=2e-3)
