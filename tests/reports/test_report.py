"""Evaluation of a run: facts, refusals, the command to reproduce it."""

import numpy as np
import pytest

from ndsm_jax import plots
from ndsm_jax.config import Config
from ndsm_jax.reports import measure, report
from tests.training.tiny_runs import run, tiny


def test_report_of_data_without_labels(tmp_path, rng):
    """Any array; no classifier, modes from k-means; other data are refused."""
    path = tmp_path / "x.npy"
    np.save(path, rng.normal(size=(300, 3)).astype(np.float32))
    config = tiny(data={"name": "array", "dir": str(path), "num_train": 0, "num_test": 0})
    run(config, tmp_path / "run")
    result = report.evaluate_run(tmp_path / "run", num=60, progress=False)
    assert result.metrics["finite_fraction"]["value"] == 1
    assert "inception_score" not in result.metrics
    table = result.table().splitlines()
    assert table[0].split() == ["metric", "samples", "floor", "prior", "better"]
    # Then an empty line, and the agreement of samples with their component; there are no classes.
    assert table[1 + len(result.metrics)] == ""
    assert table[-2].split()[:3] == ["agreement:", "0", "labels"]
    assert table[-1].split()[0] == "component"
    assert "where they started" in result.report_path.read_text()

    np.save(path, rng.normal(size=(300, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="the data differ"):
        report.evaluate_run(tmp_path / "run", num=60, progress=False)


def test_a_diverged_model_is_reported_not_hidden(tmp_path):
    """NaN samples: finite_fraction 0, the other metrics empty, and the report still appears."""
    config = tiny()
    run(config, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        diverged = np.full((50, 2), np.nan, np.float32)
        patch.setattr(measure, "draw_as_configured", lambda *a, **k: diverged)
        result = report.evaluate_run(tmp_path, num=50, progress=False)
    assert result.metrics["finite_fraction"]["value"] == 0
    assert result.metrics["sliced_wasserstein"]["value"] is None
    assert result.report_path.exists()


def test_missing_run_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        report.evaluate_run(tmp_path)


def test_reproduce_command_holds_every_changed_key():
    config = Config.from_dict({"train": {"steps": 7}, "network": {"widths": (4, 8)}})
    text = report.reproduce_command(config)
    assert "--config.train.steps=7" in text
    assert "--config.network.widths='(4, 8)'" in text
    assert text.count("--config.") == 2


def test_tile_places_images_row_by_row():
    images = np.stack([np.full(4, -1.0), np.full(4, 1.0), np.full(4, np.nan)])
    canvas = plots.tile(images, (2, 2, 1), columns=2)
    assert canvas.shape == (7, 7)
    assert (canvas[1:3, 1:3] == 0).all()
    assert (canvas[1:3, 4:6] == 1).all()
    assert (canvas[4:6, 1:3] == 0.5).all()


def test_curves_leave_out_what_was_not_measured():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan"), "eps_mean": None}]
    figure = plots.curves_figure(rows, ("loss", "grad_norm"))
    assert [axis.get_title() for axis in figure.axes] == ["loss"]


def test_framed_images_have_a_red_frame():
    """Red fills the gaps around the fourth of nine images, and lies nowhere else."""
    images = np.zeros((9, 16))
    framed = {"a": np.arange(9) == 3}
    figure = plots.panels({"a": images}, (4, 4, 1), framed=framed, size=3.0)
    pixels = plots.render(figure).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=-1) < 80)
    box = figure.axes[0].get_window_extent()
    rows, columns = np.nonzero(red)
    x = (columns - box.x0) / box.width
    y = (rows - (len(pixels) - box.y1)) / box.height
    assert 0.28 < y.min() < 0.37 < 0.62 < y.max() < 0.72  # the second of three rows
    assert x.max() < 0.38  # the first of three columns
    assert not red[int(rows.mean()), int(columns.mean())]
    plain = plots.render(plots.panels({"a": images}, (4, 4, 1), size=3.0)).astype(int)
    assert np.ptp(plain, axis=-1).max() == 0
