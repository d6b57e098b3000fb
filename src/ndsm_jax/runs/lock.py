"""One writer at a time in a folder: a lock that the kernel gives back when its process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from ndsm_jax import parallel

logger = logging.getLogger(__name__)

NAMES = {"train": ".lock", "evaluate": ".evaluate.lock"}
"""Of the lock files: a run can be evaluated while it is trained, as they write other files."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Of file systems that have none, such as some of a network."""

_held: dict[pathlib.Path, tuple[int, Lock]] = {}
"""Locks of this process, with the thread that holds each."""


class Lock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Raises FileNotFoundError where the folder was deleted, moved or replaced since."""


class _Elsewhere:
    """A lock that the first of several processes holds, and checks."""

    def check(self) -> None: ...


class _File:
    """An open file that is locked."""

    def __init__(self, folder: pathlib.Path, path: pathlib.Path, number: int) -> None:
        self._folder, self._path, self._number = folder, path, number

    def check(self) -> None:
        """Raises FileNotFoundError where the folder was deleted, moved or replaced since."""
        if not _is_at(self._number, self._path):
            raise FileNotFoundError(
                f"{self._folder} was deleted or moved while it was written to: what was written"
                " since is lost; leave the folder where it is, and start the same command again"
            )


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], what: str = "train") -> Iterator[Lock]:
    """Holds the lock of a folder, which is made where it is missing.

    An `flock` of FOLDER/.lock, which says who holds it and goes with the file. It ends with the
    process, however that ends, so that a file that was left behind keeps nobody out. On a file
    system without locks there is a warning and no lock. The thread that holds it may ask again. Of
    several processes (`parallel`) the first one holds it for all.

    Args:
      folder: of a run.
      what: that is written there, of `NAMES`.

    Raises:
      ValueError: somebody else holds it; the message says who.
      OSError: the folder cannot be written to.
    """
    if not parallel.is_first():
        yield _Elsewhere()
        return
    folder = pathlib.Path(folder)
    path = folder.resolve() / NAMES[what]
    thread, held = threading.get_ident(), _held.get(path)
    if held is not None and held[0] == thread:
        yield held[1]
        return
    try:
        made = _made(folder)
        number = _acquire(folder, path)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to: {error.strerror}; choose another --workdir (folder)"
        ) from error
    lock = _File(folder, path, number)
    _held[path] = (thread, lock)
    try:
        yield lock
    finally:
        del _held[path]
        if _is_at(number, path):
            path.unlink()
        os.close(number)
        for empty in made:  # where nothing was written
            with contextlib.suppress(OSError):
                empty.rmdir()


def _made(folder: pathlib.Path) -> list[pathlib.Path]:
    """Makes a folder; those that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(folder: pathlib.Path, path: pathlib.Path) -> int:
    """The number of the open file that is locked."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logger.warning(
                    "%s: its file system has no locks; start no second command that writes there",
                    folder,
                )
            else:
                holder = os.pread(number, 4096, 0)
                os.close(number)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise ValueError(
                    f"{folder} is being written by {_in_words(holder)}: wait until it ends, or"
                    " choose another --workdir (folder)"
                ) from None
        if not _is_at(number, path):  # its holder removed it in between
            os.close(number)
            continue
        _clean_after(os.pread(number, 4096, 0), folder)
        os.ftruncate(number, 0)
        os.pwrite(number, _mine(), 0)
        return number


def _clean_after(holder: bytes, folder: pathlib.Path) -> None:
    """Removes what a holder that was killed had not put into its place, see `replace_file`."""
    try:
        left = list(folder.rglob(f"*.{int(json.loads(holder)['pid'])}.tmp"))
    except (ValueError, KeyError, TypeError):
        return
    for path in left:
        path.unlink(missing_ok=True)


def _is_at(number: int, path: pathlib.Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        there, mine = path.stat(), os.fstat(number)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _mine() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _in_words(holder: bytes) -> str:
    """Of the content of a lock file; of one that is being written, that somebody holds it."""
    try:
        of = json.loads(holder)
        return f"process {of['pid']} on {of['host']}, since {of['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
