"""The study of coordinates at smoke scale."""

import importlib
import json

import pytest

from ndsm_jax.reports.study import Study

study_module = importlib.import_module("studies.coordinates")


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    study_module.reproduce(study)
    scale = study_module.SCALES["smoke"]
    measured = json.loads((tmp_path / "metrics.json").read_text())["digits"]
    assert set(measured) == set(scale["methods"])
    for seeds in measured.values():
        assert len(seeds) == scale["seeds"]
        assert all(0 <= seeds[0]["recall"][of] <= 1 for of in ("value", "floor", "prior"))
    text = (tmp_path / "tables" / "digits.md").read_text()
    rows = (*scale["methods"], "the mixture alone", "held-out data (floor)")
    assert all(f"| {row} |" in text for row in rows)
    assert (tmp_path / "figures" / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_every_cell_has_a_config():
    """Of all scales: no key is unknown, and methods differ in what they are named for."""
    study = Study(scale="cpu", root=None, progress=False)
    for data in study_module.DATA:
        kinds = {
            method: study_module._config(study, data, method).network.parameterisation
            for method in study_module.METHODS
        }
        assert kinds["path-space DSM, local coordinates"] == "local"
        assert kinds["component-wise OU + DSM"] == "edm"
        assert kinds["path-space DSM, residual"] == "residual"
