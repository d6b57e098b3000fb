"""Studies: runs that resume, tables, and each experiment at smoke scale."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from studies import CONFIGS, low_dimensional, mnist

from ndsm_jax import plots
from ndsm_jax.config import SMOKE
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import fit, stand_in
from ndsm_jax.launch import load_data
from ndsm_jax.reports import study
from ndsm_jax.reports.study import Study

TINY = SMOKE | {
    "train": SMOKE["train"] | {"picture_every": 0, "tensorboard": False},
    "sample": {"num": 50, "steps": 30},
    "evaluate": {"max_points": 50},
}


@pytest.fixture(scope="module")
def config():
    return study.load_config(CONFIGS / "gm2d.py", "ou", TINY, {"data": {"num_train": 200}})


def make(root) -> Study:
    return Study(scale="smoke", root=root, progress=False)


def test_a_run_is_trained_once(tmp_path, config, monkeypatch):
    dataset = load_data(config)
    first = make(tmp_path).run("a", config, dataset)
    assert first.samples.shape == (50, 2)
    assert first.facts["steps"] == 20
    assert first.facts["train_seconds"] > 0
    monkeypatch.setattr(study, "launch", None)  # would raise
    again = make(tmp_path).run("a", config, dataset)
    np.testing.assert_array_equal(again.samples, first.samples)
    assert again.facts == first.facts

    scores = make(tmp_path).scores(first, dataset)
    assert scores["finite_fraction"]["floor"] == 1
    monkeypatch.setattr(study, "measure", None)
    assert make(tmp_path).scores(again, dataset) == scores
    with pytest.raises(ValueError, match="other settings"):
        make(tmp_path).run("a", study.seeded(config, 1), dataset)


def test_a_finished_training_is_sampled_as_the_config_says(tmp_path, config):
    """As a run of the new sample section from the start, which may differ on resumption."""
    dataset = load_data(config)
    first = make(tmp_path / "a").run("a", config, dataset)
    (first.folder / "run.json").unlink()
    sample = dataclasses.replace(config.sample, seed=7)
    changed = dataclasses.replace(config, sample=sample)
    again = make(tmp_path / "a").run("a", changed, dataset)
    fresh = make(tmp_path / "b").run("a", changed, dataset)
    np.testing.assert_array_equal(again.samples, fresh.samples)
    assert not np.array_equal(again.samples, first.samples)


def test_an_interrupted_run_goes_on_bitwise(tmp_path, config):
    dataset = load_data(config)
    whole = make(tmp_path / "whole").run("a", config, dataset)
    half = make(tmp_path / "half").run("a", config, dataset)
    (half.folder / "run.json").unlink()
    shutil.rmtree(half.folder / "checkpoints" / "20")
    again = make(tmp_path / "half").run("a", config, dataset)
    np.testing.assert_array_equal(again.samples, whole.samples)


def test_seeds_change_all_but_the_data(config):
    seeded = study.seeded(config, 7)
    assert (seeded.train.seed, seeded.sample.seed, seeded.mixture.seed) == (7, 7, 7)
    assert seeded.data == config.data


def test_standard_error():
    """Of 1, 2, 3: deviation 1, so 1 / sqrt(3)."""
    assert study.mean_and_error([1.0, 2.0, 3.0]) == "2.00 ± 0.58"
    assert study.mean_and_error([0.0812, 0.0799, 0.0871]) == "0.0827 ± 0.0022"
    assert study.mean_and_error([4100.0, 5100.0, 5500.0]) == "4,900 ± 416"
    assert study.mean_and_error([0.1, 0.1, 0.1]) == "0.1"
    assert study.mean_and_error([np.nan, 1.0]) == "nan"
    assert study.mean_and_error([2.0]) == "2"
    rows = [{"a": 1.0, "b": 0.5}, {"a": 3.0, "b": 0.5}]
    assert study.over_seeds(rows) == {"a": "2.0 ± 1.0", "b": "0.5"}


def test_table_is_markdown(tmp_path):
    rows = [{"name": "x", "value": 1.23456}, {"name": "y", "value": None}]
    make(tmp_path).table("t", rows, title="Title")
    text = (tmp_path / "tables" / "t.md").read_text()
    assert text == "Title\n\n| name | value |\n| --- | --- |\n| x | 1.235 |\n| y |  |\n"


def test_a_series_has_one_colour_in_all_panels():
    """One that the first panel lacks, and those after it."""
    panels = {"FID": ("ours", "floor"), "recall": ("ours", "mixture", "floor")}
    figure = plots.levels_figure(
        {title: {name: {"100": [1.0, 2.0]} for name in names} for title, names in panels.items()}
    )
    colours: dict[str, set[str]] = {}
    for axis in figure.axes:
        for drawn in axis.containers:
            colours.setdefault(drawn.get_label(), set()).add(drawn.lines[0].get_color())
    assert list(map(len, colours.values())) == [1, 1, 1]
    assert len(set.union(*colours.values())) == 3


def test_metrics_are_json_even_where_a_method_diverged(tmp_path):
    make(tmp_path).metrics({"a": [float("nan"), 1.0], "b": {"c": float("inf")}})
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read["a"] == [None, 1.0]
    assert read["b"] == {"c": None}
    assert read["scale"] == "smoke"


@pytest.mark.slow
def test_low_dimensional(tmp_path):
    low_dimensional.reproduce(make(tmp_path))
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {"arcs_10", "arcs_10_eps", "loss_step"}
    read = json.loads((tmp_path / "metrics.json").read_text())
    methods = low_dimensional.SCALES["smoke"]["methods"]
    assert list(read["arcs_10"]) == list(methods)
    ours = read["arcs_10"][methods[-1]][0]
    assert ours["finite"] == 1
    assert 0.016 < ours["support distance"] < 0.4
    table = (tmp_path / "tables" / "arcs_10.md").read_text()
    assert all(method in table for method in methods)
    sweep = (tmp_path / "tables" / "loss_step.md").read_text()
    assert "| 0.01 |" in sweep
    assert "| 0.001 |" in sweep


@pytest.mark.parametrize("scale", ["smoke", pytest.param("cpu", marks=pytest.mark.slow), "full"])
def test_every_run_of_every_scale_has_a_config_that_builds(tmp_path, scale):
    """Of the two studies with most runs; contradicting settings show in `build`."""
    one = Study(scale=scale, root=tmp_path)
    configs = [
        (mnist._config(one, num, method), (28, 28, 1))
        for num, _, methods in mnist.SCALES[scale]["compared"]
        for method in methods
    ]
    low = low_dimensional.SCALES[scale]
    configs += [
        (low_dimensional._config(name, steps, method, low["changes"]), (2,))
        for name, steps, _ in low["compared"]
        for method in low["methods"]
    ]
    for config, shape in dict.fromkeys(configs):
        build(config, shape, stand_in(config, shape))


def test_every_loss_step_of_the_sweep_is_stable():
    """Explicit Euler is checked against the fitted mixture, so an abstract one won't do."""
    scale = low_dimensional.SCALES["cpu"]
    _, seeds, loss_steps = scale["sweep"]
    configs = [low_dimensional._sweep_config(scale, loss_step) for loss_step in loss_steps]
    dataset = load_data(configs[0])
    for seed in range(seeds):
        parts = fit(study.seeded(configs[0], seed), dataset)
        for config in configs:
            build(study.seeded(config, seed), dataset.shape, parts)
