"""Fifty kills (-9) of one run at random moments: of its start, fit and first save; of training,
noising, pictures and saves; of its evaluation. In the end it is, bit by bit, the run that was not
killed.

tests/runs/test_loop.py and tests/training/test_training.py have short forms of this.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ndsm_jax.launch import restore
from ndsm_jax.runs import has_checkpoints, read_metrics
from tests.runs.test_loop import left

ROOT = pathlib.Path(__file__).parents[2]
EARLY, TRAINING, LATE = 12, 28, 10
"""Kills before the first checkpoint, in training, and in the evaluation."""

TRAIN = [
    "experiments/train.py",
    "--config=configs/gm2d.py:smoke",
    "--config.train.steps=5000",
    "--config.train.select=held_out",
    "--config.train.held_out_every=150",
    # No multiples of one another: most checkpoints cut a line's window.
    "--config.train.log_every=70",
    "--config.train.checkpoint_every=40",
    "--config.train.picture_every=250",
]
EVALUATE = ["experiments/evaluate.py", "--num=200"]


def start(command: list[str], folder: pathlib.Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command, f"--workdir={folder}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(command: list[str], folder: pathlib.Path) -> float:
    began = time.monotonic()
    assert start(command, folder).wait() == 0
    return time.monotonic() - began


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Whether it was still running."""
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    rng = np.random.default_rng(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(TRAIN, whole)
    duration = finish(EVALUATE, whole)
    early = training = late = 0
    while early < EARLY:
        process = start(TRAIN, killed)
        # Half of them right after the start, half just before and in the first save.
        if early % 2:
            while not (killed / "checkpoints").exists() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0, 10))
        early += kill(process)
    finished = False
    while training < TRAINING and not finished:
        before = lines(killed)
        process = start(TRAIN, killed)
        while lines(killed) <= before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.6))
        finished = not kill(process)
        training += not finished
    finish(TRAIN, killed)
    while early + training + late < EARLY + TRAINING + LATE:
        process = start(EVALUATE, killed)
        time.sleep(rng.uniform(0.2, 1) * duration)
        late += kill(process)
    finish(EVALUATE, killed)

    print(f"kills: {early} early, {training} in training, {late} in the evaluation")
    states = [restore(folder).state for folder in (whole, killed)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    one, other = left(whole), left(killed)
    for name in one:  # not what differs, which may be much
        assert (name, one[name] == other[name]) == (name, True)
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed)]
    for result in results:
        del result["facts"]  # they have seconds
    assert results[0] == results[1]
    names = [sorted(os.listdir(folder)) for folder in (whole, killed)]
    assert names[0] == names[1]


def lines(folder: pathlib.Path) -> int:
    """Step of the last line of the metrics."""
    if not has_checkpoints(folder) or not (folder / "metrics.jsonl").exists():
        return 0
    return max((row["step"] for row in read_metrics(folder)), default=0)
