"""Evaluation of a run: facts, refusals, the command to reproduce it."""

import dataclasses
import json
import pathlib
import re
import runpy
import shlex
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from ndsm_jax import evaluation, frames, plots, references
from ndsm_jax.config import Config, check_effect
from ndsm_jax.config.effect import has_effect
from ndsm_jax.datasets import Dataset, load
from ndsm_jax.evaluation.neighbours import neighbour_gap_errors
from ndsm_jax.evaluation.suite import expected_total_variation, total_variation_error
from ndsm_jax.reports import measure, report
from tests.training.tiny_runs import run, tiny


@pytest.mark.slow
def test_report_of_data_without_labels(tmp_path, rng):
    """Any array; no classifier, modes from k-means; other data are refused."""
    path = tmp_path / "x.npy"
    np.save(path, rng.normal(size=(300, 3)).astype(np.float32))
    config = tiny(
        data={"name": "array", "dir": str(path), "num_train": 0, "num_test": 0},
        evaluate={"likelihood_points": 20},
    )
    run(config, tmp_path / "run")
    result = report.evaluate_run(tmp_path / "run", num=60, progress=False)
    assert result.metrics["finite_fraction"]["value"] == 1
    assert "inception_score" not in result.metrics
    table = result.table().splitlines()
    assert table[0].split() == ["metric", "samples", "floor", "prior", "better"]
    # Then an empty line, and the agreement of samples with their component; there are no classes.
    assert table[1 + len(result.metrics)] == ""
    (at,) = (i for i, line in enumerate(table) if line.split()[:3] == ["agreement:", "0", "labels"])
    assert table[at + 1].split()[0] == "component"
    said = report.made_worse(result.metrics), report.copied(result.metrics, result.compared)
    assert [line for line in table[at + 2 :] if line] == [sentence for sentence in said if sentence]
    assert "where they started" in result.report_path.read_text()
    _check_likelihood(result, table)

    np.save(path, rng.normal(size=(300, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="the data differ"):
        report.evaluate_run(tmp_path / "run", num=60, progress=False)


def _check_likelihood(result, table):
    """Of 20 items, in the metrics, in the page and in the text."""
    rows = result.likelihood["rows"]
    assert list(rows) == list(evaluation.LIKELIHOODS)
    assert json.loads(result.metrics_path.read_text())["likelihood"]["rows"] == rows
    assert rows["prior"]["gain"] == 0
    for name in ("model", "model, bound"):  # after 8 steps about the mixture that they start from
        assert abs(rows[name]["gain"]) < 1
    page = result.report_path.read_text().partition("Likelihood of held-out items")[2]
    assert evaluation.LIKELIHOODS["mixture by BIC"] in page
    assert "bits" not in page.partition("</table>")[0]
    at = next(i for i, line in enumerate(table) if line.startswith("held-out log p"))
    assert table[at].split()[-4:] == ["value", "se", "gain", "gain_se"]
    assert [line.split("  ")[0] for line in table[at + 1 : at + 6]] == list(rows)


@pytest.mark.slow
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
    with pytest.raises(FloatingPointError, match="of 50 samples 50 are not finite"):
        result.check()


def test_metrics_are_kept_whatever_a_picture_does(tmp_path, caplog):
    run(tiny(), tmp_path)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING", logger="ndsm_jax"):
        patch.setattr(plots, "panels", lambda *a, **k: 1 / 0)
        patch.setattr(plots, "modes_figure", lambda *a, **k: 1 / 0)
        result = report.evaluate_run(tmp_path, num=20, how={"max_points": 50}, progress=False)
    result.check()
    assert "no picture of samples: ZeroDivisionError" in caplog.text
    assert json.loads(result.metrics_path.read_text())["metrics"].keys() == result.metrics.keys()
    page = result.report_path.read_text()
    assert page.count("data:image/png") == 3  # the curves, eps and the components
    assert not (tmp_path / "evaluation" / "samples.png").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.glob(".*lock"))


def test_what_training_made_worse_is_said_in_a_sentence():
    """Digits of a residual score; and rings at their floor, whose prior has all of the recall."""
    digits = {
        "recall": metric(0.546, 0.975, 0.752, better="higher"),
        "energy_distance": metric(0.0208, 0.014, 0.0219, error=0.001),
        "nearest_train": metric(9.0, 2.0, 3.0, better="target"),
        "mmd2": metric(9.0, 0.0, 1.0),
        "mode_tv": metric(None, 0.1, 0.1),
    }
    expected = "Training made it worse: the prior alone is nearer to the data in recall (0.546, the"
    assert report.made_worse(digits) == f"{expected} prior 0.752)."
    rings = {"recall": metric(0.9888, 0.991, 0.9994, better="higher")}
    assert report.made_worse(rings) == ""


def metric(value, floor, prior, *, error=None, better="lower"):
    return {"value": value, "floor": floor, "prior": prior, "error": error, "better": better}


@pytest.mark.parametrize(("error", "said"), [(0.0075, True), (0.0095, False)])
def test_worse_is_more_than_two_standard_errors(error, said):
    """MNIST, 14,000 images: 0.0165 above the mixture, below a floor that is mostly bias."""
    found = {"energy_distance": metric(0.0542, 0.022, 0.0377, error=error)}
    assert (report.made_worse(found) != "") == said


@pytest.mark.parametrize("dim", [2, 20])
def test_what_is_chance_alone_is_not_called_worse(rng, dim):
    """100 times samples, prior, real and held-out items of one law; of a normal, two standard
    errors leave 2.3 % in each of two metrics."""
    distances = {
        "energy_distance": (evaluation.energy_distance, evaluation.energy_gap_error),
        "sliced_wasserstein": (
            partial(evaluation.sliced_wasserstein, num_projections=64),
            partial(evaluation.sliced_gap_error, num_projections=64),
        ),
    }
    called = 0
    for _ in range(100):
        x, z, real, y = rng.normal(size=(4, 150, dim))
        found = {
            name: metric(*(distance(a, y) for a in (x, real, z)), error=error(x, z, y))
            for name, (distance, error) in distances.items()
        }
        called += report.made_worse(found) != ""
    assert called <= 8


@pytest.mark.parametrize("num", [20, 150])
def test_chance_among_neighbours_is_not_called_worse(rng, num):
    """As above, of five metrics whose errors are above the truth; they depend on one another."""
    called = 0
    for _ in range(100):
        x, z, real, y = rng.normal(size=(4, num, 3))
        scores = [evaluation.precision_recall_density_coverage(y, a) for a in (x, real, z)]
        errors = neighbour_gap_errors(y, x, z)
        found = {
            name: metric(*(s[name] for s in scores), error=errors[name], better="higher")
            for name in errors
        }
        called += report.made_worse(found) != ""
    assert called <= 10


@pytest.mark.parametrize("modes", [2, 4, 10])
@pytest.mark.parametrize("moved", [0.0, 0.05])
def test_chance_in_the_modes_is_not_called_worse(rng, modes, moved):
    """1,000 pairs of 2,000 draws of one law, the data's or one off by `moved`: as above 2.3 %,
    standard error 0.5 %."""
    data = np.full(modes, 1 / modes)
    law = data + np.array([moved, -moved, *[0.0] * (modes - 2)])
    floor, called = expected_total_variation(data, 2000), 0
    for _ in range(1000):
        x, z = rng.multinomial(2000, law, size=2) / 2000
        error = np.hypot(*(total_variation_error(f, data, 2000) for f in (x, z)))
        value, prior = (evaluation.total_variation(f, data) for f in (x, z))
        called += report.made_worse({"mode_tv": metric(value, floor, prior, error=error)}) != ""
    assert called <= 40


def test_copies_are_told_in_a_sentence():
    """By three standard errors of two shares of 400: 0.10 and 0.05 are 2.7 apart, 0.11 and 0.05
    3.1."""
    for share, told in ((0.10, False), (0.11, True)):
        metrics = {"memorised_fraction": {"value": share, "floor": 0.05}}
        assert ("11% of the samples are nearly copies" in report.copied(metrics, 400)) == told
        assert bool(report.copied(metrics, 400)) == told
    assert report.copied({"memorised_fraction": {"value": None, "floor": 0.1}}, 400) == ""


def test_missing_run_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        report.evaluate_run(tmp_path)


def test_reproduce_command_holds_every_changed_key():
    config = Config.from_dict(
        {"train": {"steps": 7}, "network": {"name": "unet", "widths": (4, 8)}}
    )
    text = report.reproduce_command(config)
    assert "--config.train.steps=7" in text
    assert "--config.network.widths='(4, 8)'" in text
    assert text.count("--config.") == 3


def variants():
    for path in sorted(pathlib.Path("configs").glob("*.py")):
        with pytest.raises(ValueError, match="choose one of") as error:
            runpy.run_path(str(path))["get_config"]("?")
        names = re.findall(r"\w+", str(error.value).partition("one of")[2])
        assert "smoke" in names
        yield from ((path.stem, name) for name in ["", *names])


def own_options(config):
    """With functions of one's own, whose options hold quotes and commas."""
    own = {
        "name": "it's; touch P; $(x)/mine.py:f",
        "options": "force=3.0, word='x y', values=[1, 2]",
    }
    return Config.from_dict(config.to_dict() | {"data": own, "process": own})


@pytest.mark.parametrize(("file", "variant"), [*variants(), ("default", "own")])
def test_reproduce_command_is_accepted_and_makes_the_same_config(file, variant, monkeypatch):
    """What the command line's own parser makes of it, in every key that is read."""
    name = "" if variant == "own" else variant
    config = Config.from_dict(runpy.run_path(f"configs/{file}.py")["get_config"](name))
    config = own_options(config) if variant == "own" else config
    train = report.reproduce_command(config).replace("\\\n", " ").splitlines()[0]
    words = [w for w in shlex.split(train)[1:] if not w.startswith("--workdir")]
    monkeypatch.setattr(sys, "argv", words)  # where the flag of a config finds its overrides
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True)
    values(words)
    made = Config.from_dict(flag.value)
    check_effect(made, config_flags.get_override_values(values["config"]))
    tree, again = config.to_dict(), made.to_dict()
    for section, keys in tree.items():
        for key in keys:
            if has_effect(config, f"{section}.{key}"):
                assert again[section][key] == tree[section][key], f"{section}.{key}"
    latent = config.autoencoder.kind != "none"
    assert words[0] == f"experiments/{'train_latent' if latent else 'train'}.py"


@pytest.mark.parametrize("name", ["path_dsm_cv", "ndsm_cv", "path_dsm"])
def test_the_objective_names_its_control_variate(name):
    config = Config.from_dict({"objective": {"name": name}, "control_variate": {"kind": "optimal"}})
    text = report._objective_text(config, controlled=name.endswith("_cv"))
    assert text == (f"{name}, eps optimal" if name.endswith("_cv") else name)


# --- units ---


def as_run(frame, components=None):
    """What `measure` reads of a run."""
    experiment = SimpleNamespace(frame=frame, components=components)
    return SimpleNamespace(config=Config(), experiment=experiment)


def test_units_do_not_change_what_a_classifier_sees(rng):
    """Digits as floats from 0 to 255: a rule on pixels gives what it gives on the data themselves.

    Distances are those of the standardised digits. The mixture's components are its classes.
    """
    digits = load("digits")
    own = dataclasses.replace(
        digits,
        train=127.5 * (digits.train + 1),
        test=127.5 * (digits.test + 1),
        value_range=None,
    )
    frame = frames.standardised(own.train, shared=True)
    states = frame.prepare(own.train)
    means = np.stack([states[digits.train_labels == c].mean(axis=0) for c in range(10)])
    mixture = references.mixture(np.ones(10), means, np.full(10, 0.3))
    weights = rng.normal(size=(64, 10))

    class Rule:
        """Classes and features that depend on the units."""

        def __call__(self, x):
            e = np.exp((x - 100) / 255 @ weights)
            return e / e.sum(axis=1, keepdims=True), np.tanh((x - 100) / 100)[:, :20]

        def predict(self, x):
            return self(x)[0].argmax(axis=1)

    rule, plain = Rule(), evaluation.evaluate
    components = rng.integers(10, size=300)
    noise = rng.normal(size=(300, 64)).astype(np.float32)
    samples = frame.leave(np.asarray(mixture.sample_component(components, noise)))
    prior = own.train[:300]
    result = measure.measure(
        as_run(frame, mixture), samples, prior, own, components=components, classifier=rule
    )
    in_data = plain(samples, prior, own, classifier=rule)
    at = dataclasses.replace(own, train=frame.prepare(own.train), test=frame.prepare(own.test))
    in_frame = plain(frame.prepare(samples), frame.prepare(prior), at)
    assert result["modes"] == in_data["modes"]
    for name in ("mode_tv", "frechet_distance", "inception_score"):
        for column in ("value", "floor", "prior"):
            expected = in_data["metrics"][name][column]
            assert result["metrics"][name][column] == pytest.approx(expected, rel=1e-4), name
    for name in ("sliced_wasserstein", "energy_distance", "nearest_train", "precision"):
        assert result["metrics"][name] == in_frame["metrics"][name]
    rows = result["conditioning"]["agreement"]
    assert rows["component"]["value"] > 0.99  # the mixture is asked in its own coordinates
    classes = rule.predict(samples)
    likeliest = np.asarray(result["conditioning"]["classes"])[components]
    assert rows["class of the component"]["value"] == pytest.approx(np.mean(classes == likeliest))
    # The starting points are what the samples are: 300 draws of the same components.
    chance = np.sqrt(0.5 / 300)
    difference = rows["class of the component"]["prior"] - rows["class of the component"]["value"]
    assert abs(difference) < 4 * chance


def test_the_distance_to_the_support_is_in_units_of_the_data(rng):
    dataset = load("circle8", num_train=300, num_test=300)
    frame = frames.standardised(dataset.train)
    samples = dataset.train + 0.1 * rng.normal(size=(300, 2))
    found = measure.measure(as_run(frame), samples, dataset.train, dataset)
    expected = evaluation.evaluate(samples, dataset.train, dataset)
    for column in ("value", "floor", "prior"):
        value = found["metrics"]["support_distance"][column]
        assert value == pytest.approx(expected["metrics"]["support_distance"][column], rel=1e-5)


@pytest.mark.parametrize("low", [-np.pi, 0.0, 1.0])
def test_angles_are_compared_on_circles(low, rng):
    """The data themselves are perfect samples in whatever interval they are written."""
    x = np.concatenate([rng.normal(0, 0.3, (400, 2)), rng.normal(3, 0.3, (400, 2))])
    x = rng.permutation((x - low) % (2 * np.pi) + low)
    dataset = Dataset(
        name="array",
        train=x[:400],
        test=x[400:],
        train_labels=None,
        test_labels=None,
        shape=(2,),
        value_range=None,
        source="test",
    )
    frame = frames.Angles()
    result = measure.measure(as_run(frame), frame.leave(x[:400]), x[:400] + 1, dataset)
    assert "circles" in result["units"]
    for name in ("energy_distance", "sliced_wasserstein", "coverage"):
        m = result["metrics"][name]
        assert m["value"] == pytest.approx(m["floor"], rel=1e-6)
    assert result["metrics"]["nearest_train"]["value"] < 1e-6
    assert result["metrics"]["energy_distance"]["prior"] > 0.05


# --- pictures ---


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-3.0, 5.0)])
def test_grey_spans_the_data(low, high, rng):
    images = rng.uniform(low, high, size=(50, 64))
    images[:, 0], images[:, 1] = low, high
    grey = plots.grey_limits(np.concatenate([images, [np.full(64, np.nan), np.full(64, 1e9)]]))
    assert grey == pytest.approx((low, high))
    canvas = plots.tile(images, (8, 8, 1), 10, grey=grey)
    np.testing.assert_allclose(
        canvas[1:9, 1:9].ravel(), (images[0] - low) / (high - low), atol=1e-5
    )
    assert plots.grey_limits(images, (-1.0, 1.0)) == (-1.0, 1.0)
    for figure in (
        plots.samples_figure(images[:4], (8, 8, 1), reference=images),
        plots.panels({"a": images[:4]}, (8, 8, 1), grey=grey),
        plots.rows_figure({"a": images[:4]}, (8, 8, 1), columns=4, grey=grey),
        plots.neighbours_figure(images[:4], images[4:8], (8, 8, 1), grey=grey),
    ):
        shown = np.asarray(figure.axes[-1].images[0].get_array())
        assert np.std(shown[1:9, 1:9]) > 0.2  # 0.29 of uniform grey


def test_tile_places_images_row_by_row():
    images = np.stack([np.full(4, -1.0), np.full(4, 1.0), np.full(4, np.nan)])
    canvas = plots.tile(images, (2, 2, 1), columns=2)
    assert canvas.shape == (7, 7)
    assert (canvas[1:3, 1:3] == 0).all()
    assert (canvas[1:3, 4:6] == 1).all()
    assert (canvas[4:6, 1:3] == 0.5).all()


def test_the_page_shows_no_picture_that_a_run_may_lack():
    """Each is asked for before it is shown."""
    page = (pathlib.Path(report.__file__).parent / "report.html").read_text()
    shown = re.findall(r'src="{{ pictures\.(\w+) }}"', page)
    assert {"samples", "modes", "curves", "levels"} <= set(shown)
    for name in shown:
        assert page.index(f"{{% if pictures.{name} %}}") < page.index(f'src="{{{{ pictures.{name}')


def test_curves_leave_out_what_was_not_measured():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan"), "eps_mean": None}]
    figure = plots.curves_figure(rows, {"loss": ("loss", "held_out"), "gradient": ("grad_norm",)})
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


def test_values_beyond_the_grey_are_black_or_white():
    """Infinities too, without a warning; of images of one value that value is black."""
    images = np.array([[np.inf], [-np.inf], [300.0], [-1.0]], np.float32)
    canvas = plots.tile(images, (1, 1, 1), 4, grey=(0.0, 0.5))
    np.testing.assert_array_equal(canvas[1, 1::2], [1, 0, 1, 0])
    assert plots.tile(np.full((1, 1), 7.0), (1, 1, 1), 1, grey=(7.0, 7.0))[1, 1] == 0
