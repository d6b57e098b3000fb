"""The study of local-DSM at smoke scale."""

import json

import numpy as np
import pytest
from studies import local_dsm

from ndsm_jax.reports.study import Study


@pytest.mark.slow
def test_smoke(tmp_path):
    local_dsm.reproduce(Study(scale="smoke", root=tmp_path, progress=False))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for by_schedule in metrics["local_mean"].values():
        for found in by_schedule.values():
            assert len(found["t"]) == len(found["length"]) == len(found["error"]) == 4
            assert np.all(np.asarray(found["length"]) <= np.asarray(found["t"]) * (1 + 1e-5))
    assert set(metrics["arcs"]["measured"]) == {"ISM", "local-DSM, perceptual"}
    images = metrics["images"]["measured"]["logistic: local-DSM"][0]
    assert images["finite"] == 1
    assert images["energy distance"] > metrics["images"]["floor"]["energy distance"]
    for name in ("local_mean", "arcs_10", "images"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "tables" / f"{name}.md").stat().st_size > 100
