"""The latent study at its smallest scale."""

import json

import pytest
from studies import latent

from ndsm_jax.reports.study import Study


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    with pytest.raises(ValueError, match="--only=vae_flow_0: there is no such part; one is vae_ou"):
        latent.reproduce(study, only="vae_flow_0")
    latent.reproduce(study, only="vae_ou*")
    part = tmp_path / "parts" / "ou___dsm_0.json"
    alone = json.loads(part.read_text())["values"]
    assert not (tmp_path / "metrics.json").exists()
    latent.reproduce(study)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    results = metrics["results"]
    assert {"OU + DSM", latent.START, latent.JOINT, "held-out images"} <= set(results)
    assert {name: results["OU + DSM"][0][name] for name in alone} == alone
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
