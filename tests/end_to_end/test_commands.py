"""The commands as a user runs them. Commands of one script share a process where they can."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from ndsm_jax.evaluation.evaluator import load
from tests.datasets.dataset_files import small_mnist, write_mnist
from tests.training import tiny_runs

ROOT = pathlib.Path(__file__).parents[2]

IN_ONE_PROCESS = """
import contextlib, importlib, io, json, sys, traceback
from absl.testing import flagsaver
script, commands = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, "experiments")
module, results = importlib.import_module(script), []
for arguments in commands:
    sys.argv, text = [script, *arguments], io.StringIO()
    code = None
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), flagsaver.flagsaver():
        try:
            module.app.run(module.main)
        except SystemExit as stopped:
            code = stopped.code
        except BaseException:
            code = traceback.format_exc()
    # As the interpreter does: a message is printed, and the status is 1.
    said = isinstance(code, str)
    results.append((1 if said else code or 0, text.getvalue() + (code if said else "")))
print("RESULTS" + json.dumps(results))
"""


def command(script: str, *flags: str, status: int = 0) -> str:
    """Runs experiments/SCRIPT and returns what it printed."""
    result = subprocess.run(
        [sys.executable, f"experiments/{script}.py", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == status, output
    assert not status or "Traceback" not in output, output
    return output


def commands(script: str, *many: list[str]) -> list[tuple[int, str]]:
    """Status and output of several commands of one script, one after another in one process."""
    result = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, script, json.dumps(many)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads(result.stdout.partition("RESULTS")[2])
    for status, output in results:
        assert not status or "Traceback" not in output, output
    return results


def succeeded(result: tuple[int, str]) -> str:
    assert result[0] == 0, result[1]
    return result[1]


def refused(result: tuple[int, str]) -> str:
    assert result[0] == 1, result[1]
    return result[1]


# --- the whole life of a run on the digits, in its smoke variant ---


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A trained run of 20 steps, and the flags that made it."""
    folder = tmp_path_factory.mktemp("digits")
    flags = ["--config=configs/digits.py:smoke", f"--workdir={folder}"]
    flags += ["--config.optimizer.schedule=constant", "--config.objective.name=ndsm_cv"]
    assert f"trained: {folder}" in command("train", *flags)
    return folder, flags


def test_sample(digits, tmp_path):
    folder, _ = digits
    workdir, solver = f"--workdir={folder}", ["--sampler=heun_flow", "--steps=8"]
    few = [workdir, "--num=30", *solver, f"--out={tmp_path / 'few_0.25'}"]
    twelve = [workdir, "--num=12", *solver]
    results = commands(
        "sample",
        few,
        [*twelve, "--component=0,4"],
        [*twelve, "--label=3", "--labels_per_class=5"],
        [*twelve, "--component=50"],
        [*twelve, "--label="],
        [*twelve, "config.sample.steps=5"],
        [workdir, "--num=1000000000"],
        [*twelve, f"--given={tmp_path}"],
    )
    for result in results[:3]:
        assert " samples of step " in succeeded(result)
    assert np.load(tmp_path / "few_0.25.npy").shape == (30, 8, 8, 1)
    assert (tmp_path / "few_0.25.png").stat().st_size > 1000
    assert np.load(folder / "samples.npy").shape == (12, 8, 8, 1)
    for result, message in zip(
        results[3:],
        [
            "error: component 50: the reference has 50 components",
            "error: --label= is empty",
            "did you mean --config.sample.steps=5?",
            "error: 1,000,000,000 samples need",
            "there is no such file; a .npy file of numbers is needed",
        ],
        strict=True,
    ):
        assert message in refused(result)


UNREAD = [
    (["--churn=0.5"], "sample.churn=0.5 has no effect here, where sample.sampler='multistep_sde'"),
    (["--guidance_scale=2"], "sample.guidance_scale=2.0 has no effect here"),
    (["--guidance=twisted", "--particles=3"], "--guidance is read with --given"),
    (["--particles=3"], "--particles is read with --given"),
    (["--given=none.npy", "--particles=3"], "--particles is read with --guidance=twisted"),
    (["--pool=2"], "--pool is read with --given"),
    (["--labels_per_class=3"], "--labels_per_class is read with --label"),
    (["--data_dir=/nope"], "--data_dir is read with --label"),
    (["--autoguide_step=3"], "--autoguide_step is read with --autoguide"),
]


def test_what_nothing_reads_or_cannot_be_written_is_told_before_a_sample_is_drawn(pictures):
    run, _ = pictures
    taken = run.parent / "taken"
    taken.with_suffix(".png").mkdir()
    base = [f"--workdir={run}", "--num=4"]
    cases = [*UNREAD, ([f"--out={taken}"], "taken.png is a folder where a file is needed")]
    results = commands("sample", *([*base, *flags] for flags, _ in cases))
    for (flags, message), result in zip(cases, results, strict=True):
        assert message in refused(result), flags
    assert not taken.with_suffix(".npy").exists()
    (result,) = commands("evaluate", [base[0], "--guidance_scale=2"])
    assert "sample.guidance_scale=2.0 has no effect here" in refused(result)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run of two steps, and its data: colour images of 8 bits with their channels first."""
    folder = tmp_path_factory.mktemp("pictures")
    x = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4)).astype(np.uint8)
    np.save(folder / "x.npy", x)
    data = {"name": "array", "dir": str(folder / "x.npy"), "num_train": 0, "num_test": 0}
    config = tiny_runs.tiny(data=data, train={"steps": 2})
    tiny_runs.run(config, folder / "run")
    return folder / "run", x


def test_images_that_are_given_are_scaled_as_training_data_are(pictures, tmp_path):
    """Their pixels come back in what is drawn; other units are refused before anything is."""
    folder, x = pictures
    expected = np.moveaxis(x[:2], 1, -1) / 127.5 - 1
    files = {
        "bytes": x[:2],
        "last": np.moveaxis(x[:2], 1, -1),
        "one": x[0],
        "floats": expected,
        "units": x[:2].astype(float),
        "shape": np.moveaxis(x[:2], 1, 2),
    }
    for name, array in files.items():
        np.save(tmp_path / name, array)
    flags = [f"--workdir={folder}", "--num=2"]
    results = commands(
        "sample",
        *([*flags, f"--given={tmp_path / name}.npy", f"--out={tmp_path / f'{name}_drawn'}"]
          for name in files),
    )  # fmt: skip
    for name, result in zip(list(files)[:4], results, strict=False):
        assert " samples of step " in succeeded(result)
        found = np.load(tmp_path / f"{name}_drawn.npy", allow_pickle=False)
        wanted = expected[[0, 0]] if name == "one" else expected
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)
    assert "values from 0 to 255, and those of the data are from -1 to 1" in refused(results[4])
    assert "or of items of shape (4, 4, 3)" in refused(results[5])
    assert not list(tmp_path.glob("units_drawn*"))


def test_evaluate(digits):
    folder, _ = digits
    output = command("evaluate", f"--workdir={folder}")
    assert "class asked for" in output
    assert f"report:  {folder / 'report.html'}" in output
    result = json.loads((folder / "metrics.json").read_text())
    for name in ("sliced_wasserstein", "frechet_distance", "mode_tv", "nearest_train_ratio"):
        assert {"value", "floor", "prior"} <= set(result["metrics"][name])
    page = (folder / "report.html").read_text()
    for part in (
        "Samples beside data",
        "eps(t)",
        "Nearest training images",
        "where they started",
        "data:image/png",
    ):
        assert part in page
    assert "http" not in page.replace("http-equiv", "").split("<body>")[0]  # self-contained


REFUSED = [
    (["--config.train.lrr=3"], "error: train.lrr: unknown key"),
    (["--config.train.step=3"], "did you mean 'steps'"),
    (["--config.train.steps=0"], "error: train.steps=0: must be >= 1"),
    (["config.train.steps=5"], "did you mean --config.train.steps=5?"),
    (["--workdir="], "error: --workdir= is empty"),
    (["--workdir=runs/x [v1]"], "checkpoints cannot be kept below a folder with [ in its name"),
    (["--allow_changed=train.seed"], "only keys of the sections optimizer, noising"),
    (
        ["--config.objective.name=dsm"],
        "error: objective.name='dsm' needs a process with a known kernel",
    ),
    (["--config.data.name=array", "--config.data.dir=none.npy"], "none.npy"),
    (
        ["--config.process.beta_max=3.0"],
        "error: process.beta_max=3.0 has no effect here, where process.name='langevin'; it is read"
        " with process.name=variance_preserving",
    ),
    (
        ["--config.process.name=none.py:swirl"],
        "error: process.name='none.py:swirl': no file none.py",
    ),
]


def test_train_resumes_or_says_why_it_does_not(digits, tmp_path):
    """The same command goes on; errors are one line that names the key, and write nothing."""
    folder, run = digits
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    workdir = tmp_path / "run"
    base = ["--config=configs/digits.py:smoke", f"--workdir={workdir}"]
    resumed, other, dry, nan, latent, *results = commands(
        "train",
        [*run, "--config.train.steps=30"],
        [*run, "--config.network.width=32"],
        ["--config=configs/gm2d.py", f"--workdir={workdir}", "--dry_run"],
        [
            "--config=configs/default.py:smoke",
            f"--workdir={workdir}",
            "--config.data.name=array",
            f"--config.data.dir={tmp_path / 'x.npy'}",
        ],
        ["--config=configs/latent.py:smoke", f"--workdir={workdir}", "--config.data.name=digits"],
        *([*base, *flags] for flags, _ in REFUSED),
    )
    assert f"resuming {folder} from step 20" in succeeded(resumed)
    assert "network.width: 16 in the checkpoint, 32 now" in refused(other)
    assert '"rings_and_bars"' in succeeded(dry)
    assert "y: float32[50, 5, 2]" in dry[1]
    assert "1 of 100 rows, first in row 7" in refused(nan)
    assert "experiments/train_latent.py" in refused(latent)
    for (flags, message), result in zip(REFUSED, results, strict=True):
        assert message in refused(result), flags
    assert not workdir.exists()


def test_a_key_without_effect_ends_the_program_with_status_1(tmp_path):
    """As a user sees it, in a process of its own."""
    workdir = tmp_path / "run"
    flags = [f"--workdir={workdir}", "--config.sample.rtol=1e-4"]
    output = command("train", "--config=configs/digits.py:smoke", *flags, status=1)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "sample.rtol=0.0001 has no effect here" in line
    assert "sample.sampler=adaptive_flow" in line
    assert not workdir.exists()


# --- other runs ---


@pytest.mark.slow
def test_mnist_runs_resumes_and_samples(tmp_path):
    """The U-Net on the real files; a few steps at a small width."""
    directory = os.environ.get("NDSM_MNIST_DIR")
    if not directory:
        pytest.skip("NDSM_MNIST_DIR is not set")
    run = [
        "--config=configs/mnist.py:smoke",
        f"--config.data.dir={directory}",
        f"--workdir={tmp_path}",
        "--config.mixture.num_components=10",
        "--config.train.picture_every=0",
        "--config.optimizer.schedule=constant",
    ]
    results = commands("train", run, [*run, "--config.train.steps=24"])
    assert "trained: " in succeeded(results[0])
    assert "from step 20" in succeeded(results[1])
    command("sample", f"--workdir={tmp_path}", "--num=4")
    assert np.load(tmp_path / "samples.npy").shape == (4, 28, 28, 1)


@pytest.mark.slow
def test_train_evaluator(tmp_path):
    """A training on few images is written and read; in its folder another one is refused."""
    data, out = tmp_path / "data", tmp_path / "evaluator.npz"
    data.mkdir()
    write_mnist(data, small_mnist())
    flags = [f"--data_dir={data}", f"--out={out}", "--batch_size=20", "--width=1"]
    results = commands("train_evaluator", [*flags, "--epochs=1"], [*flags, "--epochs=2"])
    assert "test accuracy as written" in succeeded(results[0])
    (sha256,) = re.findall(r"SHA-256 (\w{64})", results[0][1])
    assert load(out, sha256=sha256).features(np.zeros((2, 784))).shape == (2, 8)
    assert "epochs: 1 in the checkpoint, 2 now" in refused(results[1])


@pytest.mark.slow
def test_latent(tmp_path):
    """A frozen autoencoder; what is refused names the remedy before anything is computed."""
    run = ["--config=configs/latent.py:smoke", f"--workdir={tmp_path}"]
    run += ["--config.data.name=digits", "--config.joint.steps=0", "--config.sample.num=40"]
    none = [*run[:1], f"--workdir={tmp_path / 'none'}", *run[2:3], "--config.autoencoder.kind=none"]
    results = commands("train_latent", none, run)
    assert "autoencoder.kind='none': set it to 'vae' or 'ae'" in refused(results[0])
    assert not (tmp_path / "none").exists()
    output = succeeded(results[1])
    assert f"metrics: {tmp_path / 'metrics.json'}" in output
    assert f"report:  {tmp_path / 'report.html'}" in output
    assert "data:image/png" in (tmp_path / "report.html").read_text()
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert {"value", "floor", "prior"} <= set(result["metrics"]["energy_distance"])
    command("sample", f"--workdir={tmp_path / 'score'}", "--num=3")
    assert np.load(tmp_path / "score" / "samples.npy").shape == (3, 8, 8, 1)
    assert (tmp_path / "score" / "samples.png").stat().st_size > 1000
