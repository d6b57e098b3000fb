"""IDX files, the format of MNIST: read no further than their headers say."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ndsm_jax.datasets.files import check_memory
from ndsm_jax.datasets.stored import STATE_BYTES

SURPLUS = 1 << 20
"""Bytes beyond the end of an IDX file that are still counted."""


def parse_idx(content: bytes, *, name: str) -> np.ndarray:
    """Decode an IDX file of unsigned bytes: 0, 0, 8, rank, big-endian uint32 sizes, values.

    Args:
      content: the decompressed file.
      name: how to name the file in messages.

    Returns: uint8 array of the shape in the header (read-only).

    Raises:
      ValueError: wrong magic number, truncated content, or bytes after the end.
    """
    shape = _idx_shape(content)
    if shape is None:
        raise ValueError(
            f"{name}: not an IDX file of unsigned bytes (header {content[:4].hex(' ')})."
        )
    start = 4 + 4 * len(shape)
    missing = start + math.prod(shape) - len(content)
    if missing:
        problem = (
            f"truncated: {missing} bytes missing" if missing > 0 else f"{-missing} bytes too long"
        )
        raise ValueError(f"{name}: {problem} for IDX shape {shape}; fetch the file again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if it is gzip (by its content: names are often wrong).

    No more of it than an IDX header announces, and `SURPLUS`: a few bytes may inflate to terabytes.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else path.open("rb") as stream:
            content = stream.read(4)
            if len(content) == 4:
                content += stream.read(4 * content[3])
            wanted = math.prod(_idx_shape(content) or [0]) + SURPLUS
            check_memory(wanted * (1 + STATE_BYTES), str(path))
            return content + stream.read(wanted)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: corrupted gzip ({error}); fetch the file again.") from error


def _idx_shape(content: bytes) -> list[int] | None:
    """The shape in an IDX header, or None where there is no such header."""
    rank = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\x00\x00\x08" or rank == 0 or len(content) < 4 + 4 * rank:
        return None
    return [int(size) for size in np.frombuffer(content, ">u4", count=rank, offset=4)]


def find_idx(root: Path, stem: str, *, key: str = "data.dir") -> Path:
    """The IDX file of the name `stem`, with `-` or `.` before `idx`, plain or gzip.

    key: how to name the setting of the folder `root` in messages.

    Raises:
      FileNotFoundError: there is none.
    """
    names = [s + suffix for s in (stem, stem.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"{key}={str(root)!r} has no {' or '.join(names)}; "
        f"set {key} to a folder with all four IDX files."
    )
