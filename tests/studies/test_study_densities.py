"""The study of held-out densities at smoke scale, and what it does to numbers that repeat."""

import importlib
import json

import numpy as np
import pytest

from ndsm_jax.reports.study import Study

densities = importlib.import_module("studies.densities")


@pytest.mark.slow
def test_smoke(tmp_path):
    """A part at a time, as several processes would; then the results, of what is kept."""
    study = Study(scale="smoke", root=tmp_path, progress=False)
    densities.reproduce(study, only="power_*")
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["power_0.json"]
    assert not (tmp_path / "metrics.json").exists()
    densities.reproduce(study)
    (part,) = json.loads((tmp_path / "metrics.json").read_text())["results"]["power"]
    methods = part["methods"]
    assert set(methods) == set(densities.METHODS)
    values = {name: method["value"] for name, method in methods.items()}
    assert np.isfinite(list(values.values())).all()
    assert methods[densities.MIXTURE]["gain"] == 0
    assert values[densities.EXACT] == max(values.values())
    # Two steps of training at most: ours is hardly more than the mixture that it starts from.
    assert abs(values[densities.OURS] - values[densities.REFERENCE]) < 0.1
    assert densities.FLOW in (tmp_path / "tables" / "densities.md").read_text()
    assert (tmp_path / "figures" / "densities.png").read_bytes().startswith(b"\x89PNG")
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()}
    densities.reproduce(study)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()} == written
    with pytest.raises(ValueError, match="--only=wine_0: there is no such part; one is power_0"):
        densities.reproduce(study, only="power_0,wine_0")


def test_the_splits_hold_out_every_row_once():
    settings = densities.SCALES["cpu"]
    held = np.concatenate([densities._split("wine", i, settings)[1] for i in range(5)])
    assert sorted(held.tolist()) == sorted(densities.rows_of("wine").tolist())


@pytest.mark.parametrize(
    ("column", "step"),
    [([1.5, 2.25, 3.1, 4.7], 0.1), ([10, 20, 35, 40], 10), ([0.1234, 0.2, 0.4567, 0.34567], 1e-4)],
)
def test_the_step_is_that_of_most_values(column, step):
    assert densities.step(np.array(column)) == pytest.approx(step)


def test_no_value_repeats_once_it_has_noise():
    from sklearn.datasets import load_iris

    x, noised = load_iris().data, densities.rows_of("iris")
    assert len(np.unique(noised[:, 0])) == len(x)
    np.testing.assert_allclose(np.round(noised, 1), x, atol=1e-9)
