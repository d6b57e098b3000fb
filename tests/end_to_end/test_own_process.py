"""docs/own_process.md, run as it stands but for the number of steps."""

import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ndsm_jax import launch, processes, references, sampling, training
from ndsm_jax.runs import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_process.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILE, SESSION, OWN, KNOWN, ENERGY, FRAMED = BLOCKS
SMALL = [
    "--config.mixture.subset=500",
    "--config.network.depth=2",
    "--config.train.steps=40",
    "--config.train.checkpoint_every=10",
    "--config.train.log_every=10",
    "--config.train.picture_every=0",
    "--config.train.batch_size=16",
    "--config.sample.num=200",
    "--config.evaluate.max_points=200",
]


def commands():
    """The train and evaluate commands of the page, as arguments, in the repository's scripts."""
    (block,) = re.findall(r"((?:    python experiments/.*\n(?:        .*\n)*)+)", PAGE)
    lines = block.replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line) for line in lines]


def start(arguments, folder):
    command = [sys.executable, str(ROOT / arguments[1]), *arguments[2:]]
    command = [a.replace("configs/gm2d.py", str(ROOT / "configs/gm2d.py")) for a in command]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(arguments, folder):
    process = start(arguments, folder)
    return process.communicate(timeout=600)[0], process.returncode


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the page's training was killed and resumed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "swirl.py").write_text(FILE)
    train, _ = commands()
    process = start([*train, *SMALL, "--config.train.steps=100000"], folder)
    checkpoints = folder / "runs/swirl/checkpoints"
    deadline = time.monotonic() + 300
    while not any(p.name.isdecimal() and int(p.name) >= 10 for p in checkpoints.glob("*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = max(int(p.name) for p in checkpoints.glob("*") if p.name.isdecimal())
    output, code = run([*train, *SMALL, f"--config.train.steps={steps + 20}"], folder)
    assert code == 0, output
    assert f"resuming runs/swirl from step {steps}" in output
    return folder, steps + 20


@pytest.mark.slow
def test_a_killed_training_goes_on(trained, monkeypatch):
    folder, steps = trained
    monkeypatch.chdir(folder)
    run = launch.restore("runs/swirl")
    assert int(run.state.step) == steps
    assert run.experiment.process.name == "swirl"
    assert run.config.process.options == "force=0.5"
    assert [row["step"] for row in read_metrics(folder / "runs/swirl")] == list(
        range(10, steps + 1, 10)
    )


@pytest.mark.slow
def test_it_is_evaluated_and_reported(trained):
    folder, _ = trained
    _, evaluate = commands()
    output, code = run(evaluate, folder)
    assert code == 0, output
    assert "two_sample_accuracy" in output
    assert "swirl" in (folder / "runs/swirl/report.html").read_text()


@pytest.mark.slow
def test_a_changed_file_is_refused_and_allowed(trained):
    folder, steps = trained
    train, evaluate = commands()
    original = (folder / "swirl.py").read_text()
    try:
        (folder / "swirl.py").write_text(original.replace("0.3", "0.4"))
        for command in ([*train, *SMALL, f"--config.train.steps={steps + 20}"], evaluate):
            output, code = run(command, folder)
            assert code == 1
            assert "process.name" in output
            assert "Traceback" not in output
        more = [*train, *SMALL, f"--config.train.steps={steps + 10}", "--allow_changed_source"]
        output, code = run(more, folder)
        assert code == 0, output
    finally:
        (folder / "swirl.py").write_text(original)


@pytest.mark.slow
def test_session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in SESSION.splitlines() if line.strip()]
    assert len(lines) <= 15
    code = SESSION.replace("steps=2000", "steps=20").replace("1000)", "100)")
    names: dict = {}
    exec(compile(code, "own_process.md", "exec"), names)
    assert names["samples"].shape == (100, 2)
    assert np.isfinite(names["samples"]).all()
    assert (tmp_path / "runs/session/metrics.jsonl").exists()
    with pytest.raises(ValueError, match=r"runs/session is a run of training\.train in a Python"):
        launch.restore("runs/session")
    exec(compile(OWN, "own_process.md", "exec"), names)
    own, data = names["own"], names["data"]
    state = training.train(own, data, steps=5, run="runs/huber", progress=False)
    assert np.isfinite(training.draw(own, state, 8, progress=False)).all()
    exec(compile(KNOWN, "own_process.md", "exec"), names)
    exec(compile(FRAMED, "own_process.md", "exec"), names)
    # Again, as after an interrupt, and further.
    exec(compile(code.replace("steps=20", "steps=30"), "own_process.md", "exec"), names)
    assert int(names["state"].step) == 30


def test_an_objective_and_a_sampler_of_ones_own_sample_the_law():
    """The page's sampler, by the exact score of a Gaussian, whose moments are known."""
    reference = references.mixture([1.0], [[1.0, -1.0]], [0.25])
    names: dict = {"process": processes.langevin(reference)}
    exec(compile(OWN, "own_process.md", "exec"), names)
    sampler = names["own"].sampler
    x = sampling.sample(
        jax.random.key(0),
        lambda y, t: reference.score(y),
        names["process"],
        4000,
        grid=300,
        sampler=sampler,
    )
    # Standard errors: 0.008 of a mean, 0.006 of a deviation; steps of 1 / 300 of the horizon.
    np.testing.assert_allclose(x.mean(axis=0), [1.0, -1.0], atol=0.035)
    np.testing.assert_allclose(x.std(axis=0), 0.5, atol=0.03)


def test_energy(monkeypatch):
    pytest.importorskip("blackjax")
    names: dict = {}
    exec(compile(ENERGY.replace("num=4000", "num=400"), "own_process.md", "exec"), names)
    states = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    reference = names["double_well"](states)
    assert reference.dim == 2
