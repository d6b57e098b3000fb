"""The study of noise levels at smoke scale."""

import json
import os

import numpy as np
import pytest
from studies import ncsn

from ndsm_jax.reports.study import Study


@pytest.mark.slow
def test_smoke(tmp_path):
    folder = os.environ.get("NDSM_MNIST_DIR")
    if not folder:
        pytest.skip("NDSM_MNIST_DIR is not set to a folder with the four MNIST files")
    ncsn.reproduce(Study(scale="smoke", root=tmp_path, data_dir=folder, progress=False))
    read = json.loads((tmp_path / "metrics.json").read_text())
    methods = ncsn.SCALES["smoke"]["methods"]
    assert set(methods) <= set(read)
    ours = read["path-space DSM, mixture"]
    assert ours["fid"] > ours["fid_floor"] > 0
    assert sum(ours["histogram"]) == ours["count"] == 64
    table = (tmp_path / "tables" / "ncsn.md").read_text()
    assert all(f"| {method} |" in table for method in methods)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {"ladders_10", "ladders_200", "samples", "classes"}


def test_every_run_has_a_config():
    """Of all scales: no key is unknown, and NCSN trains at the levels that it samples at."""
    for scale in ncsn.SCALES:
        study = Study(scale=scale, root=None, progress=False)
        for method, (variant, _) in ncsn.METHODS.items():
            config = ncsn._config(study, method)
            if variant == "ncsn":
                assert config.noising.times == "levels"
                assert config.sample.grid in method
                largest = config.process.sigma_max
                smallest = largest * config.sample.smallest_variance**0.5
                assert smallest == pytest.approx(0.01)


def test_shares_have_wilson_intervals():
    """Against the closed form (Wilson 1927): centre (k + z^2 / 2) / (n + z^2)."""
    ((share, low, high),) = ncsn.shares([30], 200)
    z, n = 1.959963985, 200
    centre = (30 + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(30 * 170 / n + z**2 / 4)
    np.testing.assert_allclose([share, low, high], [0.15, centre - half, centre + half], rtol=1e-6)
