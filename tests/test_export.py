"""One file that JAX alone runs, against the library; parameters as safetensors; the card."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import scipy.stats

import ndsm_jax
from ndsm_jax import NDSM, columns, export
from ndsm_jax.config import Config
from ndsm_jax.datasets import DATASETS
from ndsm_jax.datasets.licences import LICENCES, licence_of
from tests.training.tiny_runs import run, tiny

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "export.md").read_text()
SEED = 3


def archive(model, folder, name="model.zip", **options):
    """The programs of a model, written and read."""
    path = folder / name
    made = export.programs(model, platforms=("cpu",))
    export.write(path, model, made, card=lambda use: f"# card\n\n{use}\n", **options)
    return export.read(path)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose data lie far from zero, on their scale: float32 has none of their digits."""
    folder = tmp_path_factory.mktemp("export")
    x = np.random.default_rng(0).normal(size=(120, 2)) * [300.0, 0.02] + [5e9, 1.0]
    np.save(folder / "x.npy", x)
    config = tiny(data={"name": "array", "dir": str(folder / "x.npy"), "num_train": 0})
    run(dataclasses.replace(config, data=dataclasses.replace(config.data, num_test=0)), folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ndsm_jax.load(folder)


@pytest.fixture(scope="module")
def programs(model, folder):
    return archive(model, folder)


# Steps of float32 multiply rounding by about the number of steps; 24 of them in units of the scale.
ROUNDING = 2e-6


@pytest.mark.parametrize("num", [1, 3, 17])
def test_samples_are_those_of_the_library_for_any_batch(model, programs, num):
    expected = model.sample(num, seed=SEED)
    found = programs["sample"](SEED, range(num))
    assert found.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * 300)
    assert np.ptp(model.sample(17, seed=SEED)[:, 0]) > 300  # and not one value


def test_samples_go_on_where_a_batch_ended(model, programs):
    expected = model.sample(6, seed=SEED)[3:]
    np.testing.assert_allclose(programs["sample"](SEED, [3, 4, 5]), expected, atol=ROUNDING * 300)


def test_samples_of_components(model, programs):
    components = np.array([2, 0, 1, 1])
    log_weights = np.where(np.eye(3), 0.0, -np.inf)[components]
    found = programs["sample_from"](SEED, range(4), log_weights)
    expected = model.sample(4, seed=SEED, components=components)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * 300)


def test_score_and_density_are_those_of_the_library(model, programs):
    y = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    t = np.linspace(0.1, 0.9, 5) * float(model.experiment.process.horizon)
    expected = model.score(y, t)
    np.testing.assert_allclose(programs["score"](y, t), expected, rtol=1e-5, atol=1e-5)
    x = model.sample(5, seed=SEED)
    found = programs["log_prob"](x, 0)
    np.testing.assert_allclose(found, model.log_prob(x), atol=2e-5)
    x[1, 0] = np.nan
    assert np.isnan(programs["log_prob"](x, 0)).tolist() == [False, True, False, False, False]


SNIPPET, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ALONE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ndsm_jax", "flax", "optax", "orbax"):
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
{SNIPPET}
path, out = sys.argv[1:]
{USE.replace('"digits.zip"', "path")}
assert images.shape == x.shape == (100, 2)
np.savez(out, x=x, nats=nats)
assert not [name for name in sys.modules if name.split(".")[0] in ("ndsm_jax", "flax", "optax")]
"""


def test_it_runs_with_jax_alone(model, programs, folder):
    """The lines of the documentation, which the file has too, in a process of their own."""
    script, out = folder / "alone.py", folder / "alone.npz"
    script.write_text(ALONE)
    words = [sys.executable, str(script), str(folder / "model.zip"), str(out)]
    result = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    found, expected = np.load(out), model.sample(100, seed=0)
    np.testing.assert_allclose(found["x"], expected, rtol=0, atol=ROUNDING * 300)
    np.testing.assert_allclose(found["nats"], model.log_prob(found["x"]), atol=1e-3)
    with zipfile.ZipFile(folder / "model.zip") as file:
        assert SNIPPET.strip() in file.read("README.md").decode()


def test_a_damaged_or_another_file_is_one_error(programs, folder, tmp_path):
    good, bad = (folder / "model.zip").read_bytes(), tmp_path / "bad.zip"
    middle = len(good) // 2
    other = bytes([good[middle] ^ 0xFF])
    for content in (good[:1000], good[:middle] + other + good[middle + 1 :], b"no archive"):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"no exported model, or a damaged one .*export\.py"):
            export.read(bad)
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr("notes.txt", "another archive")
    with pytest.raises(ValueError, match=r"no exported model.*manifest\.json"):
        export.read(bad)
    with pytest.raises(FileNotFoundError):
        export.read(tmp_path / "none.zip")


def test_what_cannot_be_exported_says_why(folder):
    adaptive = ndsm_jax.load(folder, sample={"sampler": "adaptive_flow"})
    with pytest.raises(ValueError, match=r"sampler='adaptive_flow'.*--sampler=multistep_sde"):
        export.programs(adaptive)
    with pytest.raises(ValueError, match="'gpu' is not one of cpu, cuda, tpu"):
        export.programs(adaptive, platforms=("gpu",))


def test_platforms_are_those_asked_for(model):
    score = export.programs(model).code["score"]
    assert score.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.slow
def test_states_in_a_component_of_a_table(tmp_path):
    """The estimator's default: one number far from zero, one of two decimals, and whole numbers."""
    rng = np.random.default_rng(0)
    table = np.empty((150, 4), object)
    table[:, 0] = rng.normal(size=150) * 1e3 + 1e9
    table[:, 1] = np.round(rng.lognormal(size=150), 2)
    table[:, 2] = rng.integers(0, 50, 150)
    table[:, 3] = np.array(["a", "b", "c"])[rng.integers(0, 3, 150)]
    settings = {"network.width": 8, "network.depth": 1, "network.time_features": 4, "noising.k": 1}
    estimator = NDSM(
        settings=settings, steps=4, batch_size=16, num_components=2, covariance="diag"
    ).fit(table)
    model = estimator.model_
    programs = archive(model, tmp_path)
    expected, found = model.sample(40, seed=SEED), programs["sample"](SEED, range(40))
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=0, atol=1e-2)
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=0, atol=1e-9)
    # Integers and levels enter anywhere in their stretch: two estimates of the same mean.
    x = expected[:30]
    draws = np.stack([programs["log_prob"](x, seed) for seed in range(6)])
    theirs = np.stack([model.log_prob(x, seed=seed) for seed in range(6)])
    error = np.sqrt((draws.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / 6)
    z = (draws.mean(axis=0) - theirs.mean(axis=0)) / error
    assert abs(z.mean()) < 4.5 * (10 / 8 / 30) ** 0.5  # t of 10 degrees: variance 10 / 8
    assert np.abs(z).max() < 6


@pytest.mark.slow
def test_a_network_that_is_told_labels(tmp_path):
    """Guided towards them; where they start is by the class, and of no label by all."""
    told = {"condition": "label", "label_dropout": 0.2}
    run(tiny(network=told, sample={"guidance_scale": 1.5}), tmp_path / "run")
    model = ndsm_jax.load(tmp_path / "run")
    programs, labels = archive(model, tmp_path), np.array([0, 2, 1, 0])
    with zipfile.ZipFile(next(tmp_path.glob("*.zip"))) as file:
        (use,) = re.findall(r"(labels = .*?)```", file.read("README.md").decode(), re.DOTALL)
    names: dict = {"model": programs}
    exec(compile(use, "README.md", "exec"), names)  # as it stands
    assert names["x"].shape == (16, 2)
    assert np.isfinite(names["nats"]).all()
    names = [model.classes[label] for label in labels]
    expected = model.sample(4, seed=SEED, label=names)
    found = programs["sample"](SEED, range(4), labels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    nats = programs["log_prob"](expected, 0, labels)
    np.testing.assert_allclose(nats, model.log_prob(expected, label=names), atol=2e-5)
    nats = programs["log_prob"](expected, 0, np.full(4, -1))
    np.testing.assert_allclose(nats, model.log_prob(expected), atol=2e-5)


def test_frames_are_traced_as_they_are_computed():
    """A column of every kind, in the tails too; by NumPy, and by JAX in float64."""
    rng = np.random.default_rng(0)
    for integer, transform in ((False, "quantile"), (True, "quantile"), (False, "standardised")):
        values = np.round(np.exp(rng.normal(size=400) * 2), 0 if integer else 8) + 1e6
        scale = columns.fit_scale(values, integer=integer, transform=transform)
        y = np.linspace(-7, 7, 101)
        with jax.enable_x64(True):
            there = jax.jit(lambda y: scale.values(y, integer=integer))(y)  # noqa: B023
            found = jax.jit(lambda x: scale.stretches(x, integer=integer))(values)  # noqa: B023
            volume = jax.jit(lambda x: scale.log_volume(x, integer=integer))(values)  # noqa: B023
        np.testing.assert_allclose(there, scale.values(y, integer=integer), rtol=1e-12)
        np.testing.assert_allclose(found, scale.stretches(values, integer=integer), atol=1e-10)
        np.testing.assert_allclose(volume, scale.log_volume(values, integer=integer), atol=1e-9)


def test_entropy_of_a_cut_normal():
    low = np.array([-8.0, -1.0, -0.5, 0.0, 2.0, 4.0])
    high = low + np.array([3.0, 2e-3, 1.0, 6.0, 0.1, 5.0])
    expected = scipy.stats.truncnorm.entropy(low, high)
    np.testing.assert_allclose(columns._cut_normal_entropy(low, high), expected, rtol=1e-6)


def test_parameters_round_trip_bitwise(model, folder, tmp_path):
    path = tmp_path / "model.safetensors"
    export.write_parameters(path, model, card=lambda use: use)
    other = dataclasses.replace(
        model,
        state=dataclasses.replace(
            model.state,
            params=jax.tree.map(lambda a: a + 1, model.state.params),
            ema=jax.tree.map(lambda a: a + 1, model.state.ema),
        ),
    )
    again = export.read_parameters(path, other)
    expected, found = (export.named(export.parameters(m)) for m in (model, again))
    assert list(found) == list(expected)
    assert "network.params.Dense_0.kernel" in found
    assert {"frame.shift", "reference.means"} <= set(found)
    for name, array in expected.items():
        assert (array.dtype, array.shape) == (found[name].dtype, found[name].shape)
        assert array.tobytes() == found[name].tobytes(), name
    np.testing.assert_array_equal(again.sample(3), model.sample(3))

    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata["data_digest"] == model.facts["data"]["digest"]
    assert Config.from_dict(json.loads(metadata["config"])) == model.config
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="no safetensors, or damaged ones"):
        export.read_parameters(path, model)


def test_parameters_of_another_model_are_refused(model, tmp_path):
    from safetensors.numpy import save_file

    arrays = export.named(export.parameters(model))
    arrays["network.params.Dense_0.kernel"] = np.zeros((3, 3), np.float32)
    save_file(arrays, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"another model; 1 arrays differ.*Dense_0\.kernel"):
        export.read_parameters(tmp_path / "other.safetensors", model)


def test_the_command_writes_a_card_with_digest_floors_and_licence(model, folder, capsys):
    metrics = {
        "facts": {"training": "8 steps, seed 0", "sampling": "50 samples"},
        "metrics": {
            "energy_distance": {"value": 0.25, "floor": 0.125, "prior": 0.5, "better": "lower"}
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    script = ROOT / "experiments" / "export.py"
    flags = [f"--workdir={folder}", "--licence=CC0 1.0"]

    def command(*more):
        words = [sys.executable, str(script), *flags, *more]
        return subprocess.run(words, capture_output=True, text=True, cwd=folder)

    result = command("--out=out/model.safetensors")
    assert result.returncode == 0, result.stderr
    card = (folder / "out" / "model.md").read_text()
    assert model.facts["data"]["digest"] in card
    assert "| energy_distance | 0.25 | 0.125 | 0.5 | lower |" in card
    assert "| licence of the data | CC0 1.0 |" in card
    header = card.split("---\n")[1]
    (line,) = [line for line in header.splitlines() if line.startswith("model-index: ")]
    (entry,) = json.loads(line.removeprefix("model-index: "))
    assert entry["results"][0]["metrics"][0]["value"] == 0.25
    result = command("--out=model.pkl")
    assert result.returncode == 1
    assert "error: --out=model.pkl: give FILE.zip" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_card_without_metrics_or_licence_says_so(model):
    from ndsm_jax.reports.card import card

    text = card(model, use="")
    assert "Not evaluated" in text
    assert "| licence of the data | not stated |" in text
    old = {"facts": {"training": "4 steps"}, "metrics": {}}
    text = card(model, use="", metrics=old)
    assert "of another step" in text
    assert "| training | 8 steps, seed 0 |" in text  # its own, not those that were measured


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"facts": "a\n"}', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "has other contents"),
        ('{"facts": {}}', "has other contents"),
        ('{"facts": {}, "metrics": {"mmd2": 0.5}}', "has other contents"),
    ],
)
def test_damaged_metrics_are_one_error_that_names_them(content, message, folder, tmp_path):
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=rf"metrics\.json {message}.*evaluate\.py --workdir="):
        export.export_run(tmp_path, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_what_the_command_may_not_replace(folder, tmp_path):
    """A text that is no card; a folder. Its own card is, and leaves nothing beside it."""
    notes, out = tmp_path / "notes.md", tmp_path / "notes.safetensors"
    notes.write_text("# Mine\n")
    with pytest.raises(ValueError, match=r"notes\.md, which is a text of somebody else's"):
        export.export_run(folder, out)
    (tmp_path / "model.zip").mkdir()
    with pytest.raises(ValueError, match=r"model\.zip is a folder where a file is needed"):
        export.export_run(folder, tmp_path / "model.zip")
    assert notes.read_text() == "# Mine\n"
    assert not out.exists()
    notes.unlink()
    for _ in range(2):
        export.export_run(folder, out, licence="CC0 1.0")
    assert "| licence of the data | CC0 1.0 |" in notes.read_text()
    names = ["model.zip", "notes.md", "notes.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_key_that_nothing_reads_is_refused(folder):
    with pytest.raises(ValueError, match=r"sample\.churn=0\.5 has no effect here"):
        export.export_run(folder, "never.zip", sample={"churn": 0.5})


def test_licences_of_data_that_come_by_name():
    assert set(LICENCES) <= set(DATASETS)
    assert licence_of("digits", "scikit-learn load_digits: ..., CC BY 4.0").name == "CC BY 4.0"
    assert licence_of("mnist", "IDX files other than the original MNIST") is None
    assert licence_of("array", "array file x.npy") is None
    assert licence_of("gaussians", "").name == "none needed"
