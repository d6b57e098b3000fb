"""Arrays in a user's own files of NumPy, read without pickle and within memory, or left there."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ndsm_jax.datasets.dataset import Options, Raw, Samples
from ndsm_jax.datasets.stored import STATE_BYTES, FileItems, stamp_of, stays
from ndsm_jax.machine import available_memory, in_words
from ndsm_jax.rows import Stored

LABELS = ("labels", "y", "test_labels")
"""Arrays of a .npz file that are in memory always."""

# What a damaged or hostile file of NumPy raises, much of it by its header.
_READ_ERRORS = (
    OSError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError, TypeError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def array(options: Options) -> Raw:
    """The .npy or .npz file `options.dir`, see `from_arrays`; a lone array may have any name.

    Items that are large beside the memory stay in the file, as `options.in_memory` says.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, arrays larger than memory that cannot stay in the file, or arrays
        whose part cannot be told.
    """
    path = Path(options.dir).expanduser()
    if path.suffix in (".npy", ".npz") and not path.is_file():
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: no file {path} (a relative path starts from {Path.cwd()})."
        )
    if path.suffix not in (".npy", ".npz"):
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: data.name='array' needs the path of a .npy or .npz file;"
            " of a CSV file data.name=table, of a folder of images data.name=folder."
        )
    source = f"array file {path.name}"
    if path.suffix == ".npy":
        x = read_npy(path, in_memory=options.in_memory)
        return from_arrays({"x": x}, where=str(path), source=source)
    return from_arrays(_Members(path, options.in_memory), where=str(path), source=source)


def from_arrays(arrays: Mapping[str, Any], *, where: str, source: str) -> Raw:
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


class _Members(Mapping[str, Any]):
    """The arrays of a .npz file, each read when it is looked up; items may stay there."""

    def __init__(self, path: Path, in_memory: str):
        self.path, self.in_memory = path, in_memory
        try:
            with zipfile.ZipFile(path) as file:
                self.infos = {one.filename: one for one in file.infolist()}
        except _READ_ERRORS as error:
            raise _unreadable(path, error) from error

    def __contains__(self, name: object) -> bool:  # without reading it
        return f"{name}.npy" in self.infos

    def __getitem__(self, name: str) -> Any:
        info, where = self.infos[f"{name}.npy"], f"{self.path}, {name!r}"
        in_memory = "yes" if name in LABELS else self.in_memory
        try:
            with zipfile.ZipFile(self.path) as file, file.open(info) as member:
                stored = info.compress_type == zipfile.ZIP_STORED
                place = _member_place(self.path, info) if stored else None
                return _read(member, info.file_size, where, self.path, place, in_memory)
        except _Refused:
            raise
        except _READ_ERRORS as error:
            raise _unreadable(self.path, error) from error

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(".npy") for name in self.infos if name.endswith(".npy"))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _member_place(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member that is not compressed starts in a zip file (APPNOTE.TXT, 4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


def read_npy(path: Path, *, in_memory: str = "yes") -> Any:
    """The array of a .npy file; `Stored` where its items stay there.

    Raises:
      ValueError: a damaged file, Python objects, or an array larger than memory.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size, str(path), path, 0, in_memory)
    except _Refused:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


class _Refused(ValueError):
    """An array that is not read, in words of ours."""


def _read(
    file: IO[bytes], size: int, where: str, path: Path, place: int | None, in_memory: str
) -> Any:
    """The array that a stream of `size` bytes declares, once that is known to fit, or `Stored`.

    place: of the stream's first byte in the file at `path`; None: it is compressed.
    """
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:  # (3, 0) is of fields with names
        raise ValueError(f"format {version} of NumPy is of no plain numbers")
    shape, fortran, dtype = header(file)
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
    wanted = declared + math.prod(shape) * STATE_BYTES
    if len(shape) > 1 and stays(in_memory, wanted):
        why_not = "is compressed" if place is None else "is in Fortran's order" if fortran else ""
        if not why_not:
            assert place is not None
            with path.open("rb") as whole:
                stamp = stamp_of(whole)
            return Stored.of(FileItems(path, place + file.tell(), shape, dtype, stamp))
        if in_memory == "no" or wanted > available_memory():
            raise _Refused(
                f"{where}: needs {in_words(wanted)} of memory as states, and {why_not}, so that"
                " single rows cannot be read (data.in_memory); write it by numpy.save, of"
                " numpy.ascontiguousarray(x)"
            )
    check_memory(wanted, where)
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
