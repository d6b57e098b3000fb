"""The study of conditioning at smoke scale: everything appears, and again from what is kept."""

import importlib
import json

import numpy as np
import pytest

from ndsm_jax.reports.study import Study

study_module = importlib.import_module("studies.conditioning")


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    study_module.reproduce(study)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    methods = set(study_module.SCALES["smoke"]["methods"])
    assert len(metrics["posteriors"]) == 4
    for rows in metrics["posteriors"].values():
        assert set(rows) == {"exact draws", *methods}
        for values in rows.values():
            assert set(values) == set(study_module.COLUMNS)
            assert np.isfinite(list(values.values())).all()
    assert methods < set(metrics["digits"])
    kept = sorted((tmp_path / "completions").glob("*.npy"))
    assert len(kept) == 1 + len(methods)
    for path in kept:
        x = np.load(path)
        assert x.shape == (2, 8, 64)
        # The lower half is that of the digits, so the same in all completions.
        np.testing.assert_array_equal(x[:, :, 32:], np.load(kept[0])[:, :, 32:])
    for name in ("posteriors", "digits"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = [path.stat().st_mtime_ns for path in kept]
    study_module.reproduce(study)
    assert [path.stat().st_mtime_ns for path in kept] == written
