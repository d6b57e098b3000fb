"""The latent study at its smallest scale."""

import json

import pytest
from studies import latent

from ndsm_jax.reports.study import Study


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    latent.reproduce(study)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    results = metrics["results"]
    assert {"OU + DSM", latent.START, latent.JOINT, "held-out images"} <= set(results)
    held_out = results["held-out images"][0]
    # Reconstructions cannot be nearer to the data than held-out data, nor draws of the prior.
    for name in ("their reconstructions, vae", "mixture prior, decoded"):
        assert results[name][0]["FID"] > held_out["FID"]
    assert results["OU + DSM"][0]["evaluations"] == 200
    assert metrics["autoencoder_train_seconds"]["vae"] > 0
    table = (tmp_path / "tables" / "latent.md").read_text()
    assert latent.JOINT in table
    assert (tmp_path / "figures" / "samples.png").stat().st_size > 1000
    before = {p: p.stat().st_mtime for p in tmp_path.glob("runs/*/run.json")}
    assert len(before) == 2
