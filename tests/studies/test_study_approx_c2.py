"""The study of Approx.-C2-MNIST: its counts, and all of it at smoke scale."""

import importlib
import json
import os

import numpy as np
import pytest

from ndsm_jax.reports.study import Study

study_module = importlib.import_module("experiments.studies.approx_c2")


def certain(classes: np.ndarray, probability: float = 1.0) -> np.ndarray:
    """Probabilities [n, 40] that give each class `probability` and the rest to another."""
    rows = np.full((len(classes), 40), (1 - probability) / 39)
    rows[np.arange(len(classes)), classes] = probability
    return rows


def test_counts_by_hand():
    """Ten images: a class is digit + 10 small + 20 upside down."""
    classes = np.array([3, 33, 24, 13, 37, 20, 16, 7, 38, 17])
    fakes = [False, False, True, True, False, False, False, False, False, True]
    np.testing.assert_array_equal(study_module.is_fake(classes), fakes)
    probabilities = certain(classes)
    probabilities[2] = certain(classes[2:3], 0.8)[0]  # the large upside-down 4 is not clear
    counts = study_module.counts(probabilities)
    assert counts["large"] == 0.4  # 3, 24, 20 and 7
    assert counts["telling"] == 7
    assert counts["fake"] == pytest.approx(3 / 7)
    assert counts["fake_se"] == pytest.approx(np.sqrt(3 / 7 * 4 / 7 / 7))
    assert counts["clear_fake"] == pytest.approx(2 / 7)
    assert counts["large_upside_down"] == pytest.approx(1 / 7)
    assert counts["small_upright"] == pytest.approx(2 / 7)
    assert study_module.digit_shares(classes)[3] == 0.3


def test_without_telling_digits_there_is_no_share_of_fakes():
    assert np.isnan(study_module.counts(certain(np.array([0, 10, 28])))["fake"])


@pytest.mark.slow
def test_smoke(tmp_path):
    folder = os.environ.get("NDSM_MNIST_DIR")
    if not folder:
        pytest.skip("NDSM_MNIST_DIR is not set to a folder with the four MNIST files")
    study = Study(scale="smoke", root=tmp_path, data_dir=folder, progress=False)
    study_module.reproduce(study)
    methods = study_module.SCALES["smoke"].methods
    names = {study_module.METHODS[method][0] for method in methods} | {"held-out data"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["counts"]) == names
    assert 0 <= metrics["counts"]["path-space DSM"]["large"] <= 1
    assert 0 < metrics["counts"]["held-out data"]["large"] < 1
    assert np.isfinite(list(metrics["frechet_distance"].values())).all()
    for name, run in metrics["runs"].items():  # a raw score of four steps diverges
        assert np.isclose(sum(metrics["digits"][name]), float(run["outside"] < 1))
    for table in ("approx_c2", "digits"):
        text = (tmp_path / "tables" / f"{table}.md").read_text()
        assert all(f"| {name} |" in text for name in names)
    for figure in ("figure_6", "ours"):
        assert (tmp_path / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == len(methods)
