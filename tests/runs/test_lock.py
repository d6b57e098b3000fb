"""The lock of a folder, against processes that hold it and that were killed."""

import errno
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest

from ndsm_jax.runs import locked
from ndsm_jax.runs.lock import NAMES

HOLD = """
import runpy, sys, time
locked = runpy.run_path(sys.argv[1])["locked"]
with locked(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run"."""
    module = pathlib.Path(sys.modules[locked.__module__].__file__ or "")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(module), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_it_and_a_killed_one_keeps_nobody_out(holder, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder))} is being written by") as told:
        locked(folder).__enter__()
    assert re.search(rf"process {holder.pid} on \S+, since 20\d\d-\d\d-\d\d \d\d:", str(told.value))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    stale = folder / NAMES["train"]
    assert json.loads(stale.read_text())["pid"] == holder.pid
    with locked(folder):
        assert json.loads(stale.read_text())["pid"] == os.getpid()
    assert not stale.exists()


def test_the_thread_that_holds_it_may_ask_again_and_no_other(tmp_path):
    found: list[str] = []

    def ask() -> None:
        try:
            with locked(tmp_path):
                found.append("held")
        except ValueError as error:
            found.append(str(error))

    with locked(tmp_path), locked(tmp_path), locked(tmp_path, "evaluate"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert (tmp_path / NAMES["train"]).exists()
    assert f"written by process {os.getpid()}" in found[0]
    ask()
    assert found[1] == "held"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_and_stays_where_something_was_written(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x"]


def test_a_folder_that_was_replaced_is_noticed_and_its_new_lock_left_alone(tmp_path):
    with locked(tmp_path / "run") as lock:
        lock.check()
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match="deleted or moved"):
            lock.check()
        (tmp_path / "run").mkdir()
        other = tmp_path / "run" / NAMES["train"]
        other.touch()
        with pytest.raises(FileNotFoundError, match="deleted or moved"):
            lock.check()
    assert other.exists()


def test_a_lock_file_that_its_holder_removed_in_between_is_not_taken(tmp_path, monkeypatch):
    """Between the opening of a file and its lock the holder may end, and another one begin."""
    original, removed = fcntl.flock, []

    def flock(number: int, how: int) -> None:
        if not removed:
            removed.append(number)
            (tmp_path / NAMES["train"]).unlink()
        original(number, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path) as lock:
        lock.check()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, monkeypatch, caplog):
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level("WARNING", logger="ndsm_jax"), locked(tmp_path) as lock:
        lock.check()
    assert "no locks" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/run cannot be written to: Not a directory; choose"):
        locked(tmp_path / "file" / "run").__enter__()

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match="cannot be written to: Read-only file system; choose"):
        locked(tmp_path).__enter__()
