"""The study of the denoising autoencoder at smoke scale."""

import importlib
import json

import pytest

from ndsm_jax.reports.study import Study

study_module = importlib.import_module("studies.score_matching")


@pytest.mark.slow
def test_smoke(tmp_path):
    """Score and energy agree whatever the training; table and picture are there."""
    study_module.reproduce(Study(scale="smoke", root=tmp_path, progress=False))
    rows = json.loads((tmp_path / "metrics.json").read_text())["energies"]
    assert [row["noise"] for row in rows] == list(study_module.NOISES)
    assert all(row["largest |s + grad E|"] < 1e-3 for row in rows)
    assert (tmp_path / "figures" / "energies.png").read_bytes().startswith(b"\x89PNG")
