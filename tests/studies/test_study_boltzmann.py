"""The study of torsion angles at smoke scale: everything appears, and again from what is kept."""

import importlib
import json

import numpy as np
import pytest

from ndsm_jax.evaluation.boltzmann import BOLTZMANN_METRICS
from ndsm_jax.reports.study import Study

reproduce = importlib.import_module("studies.boltzmann").reproduce


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    reproduce(study)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = metrics["scores"]["200"]
    assert set(rows) == {"path DSM", "exact draws", "training samples"}
    for results in rows.values():
        assert len(results) == 1
        assert set(BOLTZMANN_METRICS) <= set(results[0])
        assert np.isfinite(list(results[0].values())).all()
    assert (
        abs(rows["exact draws"][0]["mirror_error"]) < 4 * rows["exact draws"][0]["mirror_error_se"]
    )
    assert np.isclose(sum(metrics["exact"]["basin_probabilities"]), 1)
    table = (tmp_path / "tables" / "torsion_n200.md").read_text()
    assert "path DSM" in table
    for name in ("torsion", "surfaces"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted((tmp_path / "runs").rglob("samples.npy"))
    assert len(runs) == 1
    written = [run.stat().st_mtime_ns for run in runs]
    reproduce(study)
    assert [run.stat().st_mtime_ns for run in runs] == written
