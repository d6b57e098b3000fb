"""The loop around a training that takes no time: whatever happens to it, what it leaves is the
same, byte by byte, as that of a training to which nothing happened."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ndsm_jax.runs import Run, loop, read_metrics
from tests.runs.test_writers import read_events

# Of orbax's and TensorStore's threads, where their files were taken away.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LAST = 40


def picture(state: Any) -> np.ndarray:
    return np.full((2, 2, 3), int(state["step"]), np.uint8)


def look(state: Any) -> Any:
    return state, {"looked": float(state["sum"][0])}, False


def train(
    folder: pathlib.Path, *, last: int = LAST, at: dict[int, Any] | None = None, **options: Any
) -> Any:
    """Forty steps of a sum of random numbers; `at` a step something else is done."""
    settings = {"log_every": 7, "checkpoint_every": 5, "picture_every": 10} | options
    run = Run(folder=folder, facts={"kind": "sum"}, **settings)

    def one(step: int, state: Any) -> tuple[Any, Any]:
        if at and step in at:
            at[step]()
        value = np.random.default_rng(step).normal()
        metrics = {"loss": value, "rare": np.nan if step % 3 else value, "huge": value * 1e30}
        return {"sum": state["sum"] + value, "step": np.int32(step + 1)}, metrics

    start = {"sum": np.zeros(3), "step": np.int32(0)}
    restored = run.resume(start)
    state = start if restored is None else restored.state
    return loop.run(
        state,
        loop.one_by_one(one),
        run,
        first=int(state["step"]),
        last=last,
        remedy="None.",
        picture=picture,
        look=look,
        look_every=10,
        progress=False,
    )


def left(folder: pathlib.Path) -> dict[str, Any]:
    """What a run left: its lines but for the speed, TensorBoard's points as it shows them, and
    its pictures."""
    rows = [
        {k: v for k, v in row.items() if k != "steps_per_second"} for row in read_metrics(folder)
    ]
    points: dict[tuple[str, int], Any] = {}
    for event in read_events(folder / "tensorboard"):
        if event.session_log.status == 1:
            points = {key: value for key, value in points.items() if key[1] < event.step}
        for value in event.summary.value:
            assert (value.tag, event.step) not in points
            points[value.tag, event.step] = value.simple_value
    points = {key: value for key, value in points.items() if key[0] != "steps_per_second"}
    images = {p.name: p.read_bytes() for p in sorted((folder / "images").rglob("*.png"))}
    return {"rows": json.dumps(rows), "points": points, "images": images}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    state = train(folder)
    found = left(folder)
    rows = json.loads(found["rows"])
    assert [row["step"] for row in rows] == [0, 7, 10, 14, 20, 21, 28, 30, 35, 40]
    assert list(found["images"]) == [f"{step:08d}.png" for step in (10, 20, 30, 40)]
    assert len(found["points"]) == sum(len(row) - 1 for row in rows) + 4
    return state, found


def assert_same(state: Any, folder: pathlib.Path, whole: Any) -> None:
    np.testing.assert_array_equal(state["sum"], whole[0]["sum"])
    assert left(folder) == whole[1]
    assert not (folder / ".lock").exists()


@pytest.fixture
def no_nohup() -> Iterator[None]:
    """The tests may run under nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_what_is_left_in_the_end_is_the_same(number, tmp_path, whole, no_nohup):
    """At a step that is of no interval, then at one that is of all but the lines."""
    before = signal.getsignal(number)
    for step in (17, 29):
        with pytest.raises(loop.Interrupted, match=signal.Signals(number).name) as raised:
            train(tmp_path, at={step: lambda: os.kill(os.getpid(), number)})
        assert raised.value.number == number
        assert isinstance(raised.value, KeyboardInterrupt)
        assert signal.getsignal(number) == before
    assert_same(train(tmp_path), tmp_path, whole)


def test_an_ignored_signal_stays_ignored(tmp_path, whole):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        state = train(tmp_path, at={17: lambda: os.kill(os.getpid(), signal.SIGHUP)})
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same(state, tmp_path, whole)


KILLED = """
import os, pathlib, signal, sys
from tests.runs.test_loop import train
step = int(sys.argv[2])
train(pathlib.Path(sys.argv[1]), at={step: lambda: os.kill(os.getpid(), signal.SIGKILL)})
"""


def test_after_kills_what_is_left_is_the_same(tmp_path, whole):
    root = pathlib.Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    for step in (3, 31):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(step)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        assert (tmp_path / ".lock").exists()
    assert_same(train(tmp_path), tmp_path, whole)


@pytest.mark.parametrize("step", [18, LAST - 1])
def test_a_folder_that_vanishes_ends_the_training(step, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="was deleted or moved while it was written to"):
        train(folder, at={step: lambda: folder.rename(tmp_path / "moved")})
    assert not (folder / "metrics.jsonl").exists()


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path, whole):
    found: list[BaseException] = []

    def second() -> None:
        import threading

        def one() -> None:
            try:
                train(tmp_path)
            except ValueError as error:
                found.append(error)

        thread = threading.Thread(target=one)
        thread.start()
        thread.join()

    state = train(tmp_path, at={17: second})
    assert "is being written by process" in str(found[0])
    assert_same(state, tmp_path, whole)


FULL = """
import pathlib, resource, sys
from tests.runs.test_loop import LAST, train
# No file may grow beyond this: what a full disk is to a process, without one.
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
train(pathlib.Path(sys.argv[1]), at={17: limit})
"""


def test_a_full_disk_is_one_error_and_the_last_checkpoint_is_good(tmp_path, whole):
    root = pathlib.Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    full = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    said = [line for line in full.stderr.splitlines() if line.startswith("OSError:")]
    assert any("File too large" in line for line in said)
    assert_same(train(tmp_path), tmp_path, whole)


def test_a_picture_that_fails_is_no_end(tmp_path, monkeypatch, caplog):
    def broken(state: Any) -> np.ndarray:
        raise ZeroDivisionError("no axis")

    monkeypatch.setattr(sys.modules[__name__], "picture", broken)
    with caplog.at_level("WARNING", logger="ndsm_jax"):
        train(tmp_path)
    assert "no picture of step 10: ZeroDivisionError: no axis" in caplog.text
    assert len(read_metrics(tmp_path)) == 10


@pytest.mark.parametrize("name", ["x [v1]", "a*", "b?", "c\\d"])
def test_a_name_that_checkpoints_do_not_survive_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints cannot be kept below a folder with"):
        train(tmp_path / name)
