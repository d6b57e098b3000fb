"""The study of the torus at smoke scale: everything appears, and again from what is kept."""

import importlib
import json

import numpy as np
import pytest

from ndsm_jax.reports.study import Study

torus = importlib.import_module("studies.torus")


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    torus.reproduce(study)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = metrics["scores"]["30"]
    assert set(rows) == {*torus.SCALES["smoke"]["methods"], torus.ALONE, *torus.FLOORS}
    for results in rows.values():
        assert len(results) == 1
        assert set(torus.COLUMNS) <= set(results[0])
        assert np.isfinite(list(results[0].values())).all()
    # 200 draws fill 576 bins badly; 30 of them worse, an energy that is 25 % off as well.
    assert rows["exact draws"][0]["kl"] < 1.1 * rows[torus.ALONE][0]["kl"]
    assert rows[torus.ALONE][0]["kl"] < rows["training samples"][0]["kl"]
    assert list(metrics["energies"]) == ["0.25"]
    table = (tmp_path / "tables" / "torus_n30.md").read_text()
    assert torus.ENERGY in table
    assert "kept step" in table
    assert "25%" in (tmp_path / "tables" / "energies.md").read_text()
    for name in ("torus", "surfaces"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted((tmp_path / "runs").rglob("samples.npy"))
    assert len(runs) == 1
    written = [run.stat().st_mtime_ns for run in runs]
    torus.reproduce(study)
    assert [run.stat().st_mtime_ns for run in runs] == written
