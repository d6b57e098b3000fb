"""The MNIST study at smoke scale."""

import json
import os

import numpy as np
import pytest
from studies import mnist

from ndsm_jax.reports.study import Study


@pytest.mark.slow
def test_smoke(tmp_path):
    folder = os.environ.get("NDSM_MNIST_DIR")
    if not folder:
        pytest.skip("NDSM_MNIST_DIR is not set to a folder with the four MNIST files")
    mnist.reproduce(Study(scale="smoke", root=tmp_path, data_dir=folder, progress=False))
    ((_, _, methods),) = mnist.SCALES["smoke"]["compared"]
    read = json.loads((tmp_path / "metrics.json").read_text())["N = 300"]
    assert list(read) == list(methods)
    ours = read["path_dsm"][0]
    assert ours["fid"] > ours["fid_floor"] > 0
    assert 1 < ours["inception_score"] <= 10
    assert sum(ours["histogram"]) == ours["count"] == 64
    assert ours["outside"] == 0
    table = (tmp_path / "tables" / "n_300.md").read_text()
    assert all(mnist.METHODS[method][0] in table for method in methods)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {"n_300", "n_300_classes"}


def test_diverged_samples_are_counted_and_left_out(tmp_path, monkeypatch):
    samples = np.zeros((62, 4), np.float32)
    samples[0], samples[1] = np.nan, 1e4
    seen = {}

    def report(x, dataset, classifier):
        seen["count"] = len(x)
        raise StopIteration

    monkeypatch.setattr(mnist, "fid_report", report)
    run = mnist.Run(folder=tmp_path, samples=samples, facts={})
    stand_in = type("StandIn", (), {"digest": "0"})()
    study = Study(scale="smoke", root=tmp_path)
    with pytest.raises(StopIteration):
        mnist._measure(study, run, 300, stand_in, stand_in)
    assert seen["count"] == 60
