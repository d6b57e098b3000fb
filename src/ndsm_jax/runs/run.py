"""A run: a folder that a training writes and is resumed from."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ndsm_jax.runs.checkpoints import Checkpoints, Restored, read_host
from ndsm_jax.runs.writers import MetricWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Where a training writes, how often, and what has to be the same for it to be resumed.

    Attributes:
      folder: gets checkpoints/, metrics.jsonl, tensorboard/ and images/.
      facts: what checkpoints record beside arrays; JSON types.
      free: dotted keys of facts that may differ from those of the run that is resumed; a key stands
        for all below it.
      upgrade: brings facts that an older version wrote to today's form.
      log_every: steps averaged into one line of metrics.jsonl.
      checkpoint_every: steps between checkpoints.
      keep: checkpoints kept.
      picture_every: steps between pictures; 0: none.
      tensorboard: whether to write TensorBoard events.
    """

    folder: pathlib.Path
    facts: dict[str, Any]
    free: frozenset[str] = frozenset()
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda facts: facts
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 3
    picture_every: int = 0
    tensorboard: bool = True

    @property
    def directory(self) -> pathlib.Path:
        """Of the checkpoints."""
        return self.folder / "checkpoints"

    def checkpoints(self) -> Checkpoints:
        """To write: a context manager."""
        return Checkpoints(self.directory, keep=self.keep)

    def writer(self) -> MetricWriter:
        """Of metrics: a context manager."""
        return MetricWriter(self.folder, tensorboard=self.tensorboard)

    def resume(self, like: Any) -> Restored | None:
        """The newest good checkpoint in the structure of `like`, or None where there is none.

        Raises:
          ValueError: it belongs to another training, see `check`; or all are damaged.
        """
        if not has_checkpoints(self.folder):
            return None
        self.check()
        with Checkpoints(self.directory) as checkpoints:
            return checkpoints.restore(like)

    def check(self) -> None:
        """Raises ValueError, naming the facts that differ, unless the folder's run is this one."""
        found = differences(self.upgrade(read_host(self.directory)), self.facts, free=self.free)
        if found:
            raise ValueError(
                f"the checkpoints in {self.folder} belong to another experiment; choose another"
                " --workdir (folder) or restore these settings:\n  " + "\n  ".join(found)
            )


def has_checkpoints(folder: pathlib.Path) -> bool:
    """Whether a folder holds a run with at least one checkpoint, good or damaged."""
    return bool(Checkpoints(folder / "checkpoints").steps())


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: frozenset[str] = frozenset()
) -> list[str]:
    """Lines 'key: X in the checkpoint, Y now' of the facts that differ, dotted keys, in order."""
    return [
        f"{key}: {before!r} in the checkpoint, {now!r} now"
        for key, before, now in _changed("", old, new)
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def _changed(prefix: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*new, *(name for name in old if name not in new)]
        parts = (
            _changed(f"{prefix}.{name}" if prefix else name, old.get(name), new.get(name))
            for name in names
        )
        return [change for part in parts for change in part]
    # JSON gives tuples back as lists.
    same = list(old) == list(new) if _are_lists(old, new) else old == new
    return [] if same else [(prefix, old, new)]


def _are_lists(*values: Any) -> bool:
    return all(isinstance(value, list | tuple) for value in values)


def fingerprint(tree: Any) -> int:
    """CRC32 of a pytree: its structure, the code of its functions, and the bytes of its arrays.

    The same in another process, for functions that close over nothing but numbers and text.
    """
    leaves, structure = jax.tree.flatten(tree)
    crc = zlib.crc32(in_words(structure).encode())
    for function in _functions(structure):
        crc = zlib.crc32(_code(function).encode(), crc)
    for leaf in leaves:
        array = np.asarray(leaf)
        crc = zlib.crc32(f"{array.dtype}{array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def in_words(value: Any) -> str:
    """A value in words that are the same in another process: no addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _functions(structure: Any) -> list[Any]:
    """The functions of the `Partial`s of a structure, in order."""
    data = structure.node_data()
    own = []
    if data is not None and data[0] is jax.tree_util.Partial:
        own = [data[1][0] if isinstance(data[1], tuple) else data[1]]
    return own + [f for child in structure.children() for f in _functions(child)]


def _code(function: Any) -> str:
    """What a function does, in words: its code, constants, defaults and closed-over values."""
    code = getattr(function, "__code__", None)
    if code is None:
        return in_words(function)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = [*code.co_consts, *(function.__defaults__ or ()), *cells]
    values = [v for v in values if isinstance(v, int | float | str | tuple | type(None))]
    return in_words(f"{code.co_code.hex()} {code.co_names} {values}")
