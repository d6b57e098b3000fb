"""Arrays in a user's own files of NumPy, read without pickle and within memory."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ndsm_jax.datasets.dataset import Options, Raw, Samples
from ndsm_jax.machine import available_memory, in_words

STATE_BYTES = 8
"""Of a number of a state at most, see `dataset.states`."""

# What a damaged or hostile file of NumPy raises, much of it by its header.
_READ_ERRORS = (
    OSError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError, TypeError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def array(options: Options) -> Raw:
    """The .npy or .npz file `options.dir`, see `from_arrays`; a lone array may have any name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, arrays larger than memory, or arrays whose part cannot be told.
    """
    path = Path(options.dir).expanduser()
    if path.suffix in (".npy", ".npz") and not path.is_file():
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: no file {path} (a relative path starts from {Path.cwd()})."
        )
    if path.suffix not in (".npy", ".npz"):
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: data.name='array' needs the path of a .npy or .npz file."
        )
    source = f"array file {path.name}"
    if path.suffix == ".npy":
        return from_arrays({"x": read_npy(path)}, where=str(path), source=source)
    return from_arrays(_Members(path), where=str(path), source=source)


def from_arrays(arrays: Mapping[str, np.ndarray], *, where: str, source: str) -> Raw:
    """Arrays named as in a .npz file: `x` or `data`, `labels` or `y`, `test`, `test_labels`.

    Args:
      arrays: of which all but the first may be absent; other names are ignored, and not looked up.
      where: how to name their origin in messages.
      source: of the result.

    Raises:
      ValueError: no data, or `test_labels` without `test` and `labels`.
    """
    names = {
        part: next((name for name in known if name in arrays), None)
        for part, known in (
            ("x", ("x", "data")),
            ("labels", ("labels", "y")),
            ("test", ("test",)),
            ("test_labels", ("test_labels",)),
        )
    }
    others = [name for name in arrays if name not in names.values()]
    if names["x"] is None and len(others) == 1:
        names["x"] = others[0]
    if names["x"] is None:
        raise ValueError(
            f"{where}: which array holds the data? Name it 'x' or 'data' (found: {sorted(others)})."
        )
    if names["test_labels"] and not (names["test"] and names["labels"]):
        raise ValueError(f"{where}: 'test_labels' needs both 'test' and 'labels'.")
    found = {part: None if name is None else arrays[name] for part, name in names.items()}
    assert found["x"] is not None
    return Raw(
        train=Samples(found["x"], found["labels"]),
        test=None if found["test"] is None else Samples(found["test"], found["test_labels"]),
        source=source,
    )


class _Members(Mapping[str, np.ndarray]):
    """The arrays of a .npz file, each read when it is looked up."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                self.sizes = {one.filename: one.file_size for one in file.infolist()}
        except _READ_ERRORS as error:
            raise _unreadable(path, error) from error

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as file, file.open(f"{name}.npy") as member:
                return _read(member, self.sizes[f"{name}.npy"], f"{self.path}, {name!r}")
        except _Refused:
            raise
        except _READ_ERRORS as error:
            raise _unreadable(self.path, error) from error

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(".npy") for name in self.sizes if name.endswith(".npy"))

    def __len__(self) -> int:
        return len(list(iter(self)))


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
      ValueError: a damaged file, Python objects, or an array larger than memory.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size, str(path))
    except _Refused:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


class _Refused(ValueError):
    """An array that is not read, in words of ours."""


def _read(file: IO[bytes], size: int, where: str) -> np.ndarray:
    """The array that a stream of `size` bytes declares, once that is known to fit."""
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:  # (3, 0) is of fields with names
        raise ValueError(f"format {version} of NumPy is of no plain numbers")
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise _Refused(
            f"{where}: holds Python objects, which are never read (allow_pickle=False), as that"
            " could run a program; save numbers or strings, as by array.astype(float)"
        )
    declared = math.prod(shape) * dtype.itemsize
    if declared > size:
        raise _Refused(
            f"{where}: damaged, as it declares the shape {shape} of {dtype}, {declared:,} bytes,"
            f" and the file has {size:,}; write or fetch it again"
        )
    check_memory(declared + math.prod(shape) * STATE_BYTES, where)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _unreadable(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path}: not a readable {path.suffix} file ({error}).")


def check_memory(wanted: int, where: str) -> None:
    """Raises ValueError where this machine has less memory than the `wanted` bytes."""
    there = available_memory()
    if wanted > there:
        raise ValueError(
            f"{where}: needs {in_words(wanted)} of memory as states, and {in_words(there)} are"
            " free; write fewer items, or smaller ones"
        )
