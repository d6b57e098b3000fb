"""The commands as a user runs them, each in a process of its own."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from test_datasets import small_mnist, write_mnist

from ndsm_jax.evaluation.evaluator import load

ROOT = pathlib.Path(__file__).parents[2]


def command(script: str, *flags: str, fails: bool = False) -> str:
    """Runs experiments/SCRIPT and returns what it printed."""
    result = subprocess.run(
        [sys.executable, f"experiments/{script}.py", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert (result.returncode != 0) == fails, output
    assert not fails or "Traceback" not in output, output
    return output


def test_train_resume_sample_evaluate(tmp_path):
    """The whole life of a run on the digits, in its smoke variant."""
    run = ["--config=configs/digits.py:smoke", f"--workdir={tmp_path}"]
    run += ["--config.optimizer.schedule=constant", "--config.objective.name=ndsm_cv"]
    assert "trained" in command("train", *run)
    assert "resuming" in command("train", *run, "--config.train.steps=30")
    refused = command("train", *run, "--config.network.width=32", fails=True)
    assert "network.width: 16 in the checkpoint, 32 now" in refused

    flags = ["--num=30", "--sampler=heun_flow", "--steps=8", f"--out={tmp_path / 'few'}"]
    command("sample", f"--workdir={tmp_path}", *flags)
    assert np.load(tmp_path / "few.npy").shape == (30, 8, 8, 1)
    assert (tmp_path / "few.png").stat().st_size > 1000

    flags = [f"--workdir={tmp_path}", "--num=12", "--sampler=heun_flow", "--steps=8"]
    command("sample", *flags, "--component=0,4")
    command("sample", *flags, "--label=3", "--labels_per_class=5")
    refused = command("sample", *flags, "--component=50", fails=True)
    assert "error: component 50: the prior has 50 components" in refused

    output = command("evaluate", f"--workdir={tmp_path}")
    assert "class asked for" in output
    assert f"report:  {tmp_path / 'report.html'}" in output
    result = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("sliced_wasserstein", "frechet_distance", "mode_tv", "nearest_train_ratio"):
        assert {"value", "floor", "prior"} <= set(result["metrics"][name])
    page = (tmp_path / "report.html").read_text()
    for part in (
        "Samples beside data",
        "eps(t)",
        "Nearest training images",
        "where they started",
        "data:image/png",
    ):
        assert part in page
    assert "http" not in page.replace("http-equiv", "").split("<body>")[0]  # self-contained


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.lrr=3"], "error: train.lrr: unknown key"),
        (["--config.train.step=3"], "did you mean 'steps'"),
        (["--config.train.steps=0"], "error: train.steps=0: must be >= 1"),
        (
            ["--config.objective.name=dsm"],
            "error: objective.name='dsm' needs a process with a known kernel",
        ),
        (["--config.data.name=array", "--config.data.dir=none.npy"], "none.npy"),
    ],
)
def test_errors_are_one_line_that_names_the_key(flags, message, tmp_path):
    output = command(
        "train", "--config=configs/digits.py:smoke", f"--workdir={tmp_path}", *flags, fails=True
    )
    assert message in output


def test_dry_run_prints_config_and_shapes_and_writes_nothing(tmp_path):
    workdir = tmp_path / "run"
    output = command("train", "--config=configs/gm2d.py", f"--workdir={workdir}", "--dry_run")
    assert '"rings_and_bars"' in output
    assert "y: float32[50, 5, 2]" in output
    assert not workdir.exists()


def test_nan_data_are_refused_before_anything_is_written(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    flags = ["--config.data.name=array", f"--config.data.dir={tmp_path / 'x.npy'}"]
    workdir = tmp_path / "run"
    output = command(
        "train", "--config=configs/default.py:smoke", f"--workdir={workdir}", *flags, fails=True
    )
    assert "7" in output
    assert not workdir.exists()


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
    command("train", *run)
    command("train", *run, "--config.train.steps=24")
    command("sample", f"--workdir={tmp_path}", "--num=4")
    assert np.load(tmp_path / "samples.npy").shape == (4, 28, 28, 1)


def test_train_evaluator(tmp_path):
    """A training on few images is written and read; in its folder another one is refused."""
    data, out = tmp_path / "data", tmp_path / "evaluator.npz"
    data.mkdir()
    write_mnist(data, small_mnist())
    flags = [f"--data_dir={data}", f"--out={out}", "--batch_size=20", "--width=1"]
    output = command("train_evaluator", *flags, "--epochs=1")
    assert "test accuracy as written" in output
    (sha256,) = re.findall(r"SHA-256 (\w{64})", output)
    assert load(out, sha256=sha256).features(np.zeros((2, 784))).shape == (2, 8)
    assert "another epochs" in command("train_evaluator", *flags, "--epochs=2", fails=True)


def test_latent(tmp_path):
    """A frozen autoencoder; what is refused names the remedy before anything is computed."""
    run = ["--config=configs/latent.py:smoke", f"--workdir={tmp_path}"]
    run += ["--config.data.name=digits", "--config.joint.steps=0", "--config.sample.num=40"]
    refused = command("train_latent", *run, "--config.autoencoder.kind=none", fails=True)
    assert "autoencoder.kind='none': set it to 'vae' or 'ae'" in refused
    assert f"samples and metrics: {tmp_path}" in command("train_latent", *run)
    assert np.load(tmp_path / "samples.npy").shape == (40, 8, 8, 1)
    assert (tmp_path / "samples.png").stat().st_size > 1000
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert {"value", "floor", "prior"} <= set(result["metrics"]["energy_distance"])
    assert np.load(tmp_path / "autoencoder" / "latents.npz")["x"].shape == (500, 4)
    command("sample", f"--workdir={tmp_path / 'score'}", "--num=3")
    refused = command("train", *run[:1], f"--workdir={tmp_path / 'x'}", fails=True)
    assert "experiments/train_latent.py" in refused
