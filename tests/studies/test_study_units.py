"""The study of units at smoke scale."""

import importlib
import json

import numpy as np
import pytest

from ndsm_jax.reports.study import Study

units = importlib.import_module("studies.units")


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    units.reproduce(study)
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert set(results["rings_and_bars"]) == {units.AS_THEY_ARE, "features of 1e-6 and 1e6"}
    scores = [seeds[0] for seeds in results["rings_and_bars"].values()]
    assert all(score["finite_fraction"]["value"] == 1 for score in scores)
    # The states are the same numbers but for rounding, and so is all that is made of them.
    for key in ("energy_distance", "two_sample_accuracy"):
        first, other = (score[key]["value"] for score in scores)
        np.testing.assert_allclose(other, first, rtol=0.05)
    assert "| features of 1e-6 and 1e6 |" in (tmp_path / "tables/rings_and_bars.md").read_text()


def test_every_row_has_a_config(tmp_path):
    study = Study(scale="cpu", root=tmp_path, progress=False)
    for data, (_, of_data) in units.DATA.items():
        for name in of_data:
            config = units._config(study, data, name)
            assert (config.data.name, config.train.steps) == ("array", 1500)
            with np.load(config.data.dir) as file:
                assert file["x"].dtype == np.float64
