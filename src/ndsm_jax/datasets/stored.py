"""Items that stay in their file, of which rows are read when they are asked for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from ndsm_jax.machine import available_memory
from ndsm_jax.rows import Stored

STATE_BYTES = 8
"""Of a number of a state at most, see `dataset.states`."""

SHARE = 0.5
"""Of the free memory that states may take before their items are left where they are stored."""


def stays(in_memory: str, wanted: float) -> bool:
    """Whether items that want so many bytes of memory stay where they are stored."""
    if in_memory == "auto":
        return wanted > SHARE * available_memory()
    return in_memory == "no"


@dataclasses.dataclass(frozen=True, eq=False)
class FileItems:
    """Items [N, ...] that lie one after the other in a file: the data of a .npy file in C order.

    Rows are read by their place, by system calls and not through a mapping of the file: what was
    read is forgotten, and a file that became shorter is an error and not the end of the process.

    Attributes:
      path: of the file.
      offset: bytes before the first item.
      shape, dtype: of the items.
      stamp: of the file when it was found, see `stamp_of`.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stamp: tuple[int, int]

    @property
    def where(self) -> str:
        """In messages."""
        return str(self.path)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Items of these numbers, which rise or repeat.

        Raises OSError where the file is gone, or is not what it was.
        """
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not found.size:
            return found
        content = found.reshape(-1).view(np.uint8).data
        size = len(content) // len(rows)
        edges = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts = np.concatenate([[0], edges]).tolist()
        lasts = [*edges.tolist(), len(rows)]
        places = (self.offset + rows[firsts].astype(np.int64) * size).tolist()
        parts = [content[i * size : j * size] for i, j in zip(firsts, lasts, strict=True)]
        try:
            with self.path.open("rb", buffering=0) as file:
                # All are asked for first, as a disk is faster at many than at one after another.
                if len(parts) > 1 and hasattr(os, "posix_fadvise"):
                    for place, part in zip(places, parts, strict=True):
                        os.posix_fadvise(file.fileno(), place, len(part), os.POSIX_FADV_WILLNEED)
                for place, part in zip(places, parts, strict=True):
                    _read_at(file, place, part)
                same = stamp_of(file) == self.stamp
        except EOFError:
            same = False
        except OSError as error:
            raise OSError(
                f"{self.path}: cannot be read any more ({error.strerror or error}); put the file"
                " back, and run the same command again to go on"
            ) from error
        if not same:
            raise OSError(
                f"{self.path}: the file was changed while it was in use; put the one back that it"
                " was, and run the same command again to go on"
            )
        return found


def _read_at(file: Any, place: int, content: memoryview) -> None:
    """Fills `content` from a place of a file. Raises EOFError where the file ends before."""
    done = 0
    while done < len(content):
        got = os.preadv(file.fileno(), [content[done:]], place + done)
        if got == 0:
            raise EOFError
        done += got


def stamp_of(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of the last change of an open file."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def placed(items: Any, in_memory: str) -> Any:
    """Items where they are to be: as an array, or `Stored`.

    Those that are `Stored`, or that NumPy maps from a file, need not be read; others are in memory.
    """
    if not isinstance(items, Stored | np.memmap) or items.ndim < 2 or items.dtype.hasobject:
        return items
    if stays(in_memory, float(np.prod(items.shape)) * (items.dtype.itemsize + STATE_BYTES)):
        return items if isinstance(items, Stored) else Stored.of(items)
    return items[:] if isinstance(items, Stored) else np.array(items)
