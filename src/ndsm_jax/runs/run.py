"""A run: a folder that a training writes and is resumed from."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import pathlib
import re
import sys
import sysconfig
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from ndsm_jax import parallel
from ndsm_jax.rows import Stored, blocks
from ndsm_jax.runs.checkpoints import Checkpoints, Restored, read_host
from ndsm_jax.runs.lock import Lock, locked
from ndsm_jax.runs.writers import MetricWriter, NoWriter, Writer

WINDOW = "metrics_window"
"""In a checkpoint's facts: sums of the metrics since their last line, see `loop.Window`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Where a training writes, how often, and what has to be the same for it to be resumed.

    Attributes:
      folder: gets checkpoints/, metrics.jsonl, tensorboard/ and images/.
      facts: what checkpoints record beside arrays; JSON types.
      free: dotted keys of facts that may differ from those of the run that is resumed; a key stands
        for all below it.
      changeable: whether `launch(..., allow_changed=)` lets these config keys differ.
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
    changeable: Callable[[Sequence[str]], bool] = lambda keys: False
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

    def locked(self) -> AbstractContextManager[Lock]:
        """For as long as the folder is written to, see `lock.locked`."""
        return locked(self.folder)

    def checkpoints(self) -> Checkpoints:
        """To write: a context manager."""
        return Checkpoints(self.directory, keep=self.keep)

    def writer(self) -> AbstractContextManager[Writer]:
        """Of metrics. Of several processes the first one writes."""
        if not parallel.is_first():
            return contextlib.nullcontext(NoWriter())
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
        host = read_host(self.directory)
        try:
            host = self.upgrade(host)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the checkpoints in {self.folder} have other facts than a run of this kind"
                f" ({type(error).__name__}: {error}); choose another --workdir (folder)"
            ) from error
        found = differences(host, self.facts, free=self.free | {WINDOW})
        if found:
            keys = [line.partition(":")[0].removeprefix("config.") for line in found]
            more = f"\nor go on with the new ones: --allow_changed={','.join(keys)}"
            more = more if self.changeable(keys) else ""
            raise ValueError(
                f"the checkpoints in {self.folder} belong to another experiment; choose another"
                " --workdir (folder) or restore these settings:\n  " + "\n  ".join(found) + more
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
    """CRC32 of a pytree: its structure, what its functions do, and the bytes of its arrays.

    What a function does is its code with the code within it, its defaults, what it closes over and
    the globals that it reads, as far as they are the user's: a function or a class of an installed
    package counts by its name. The same in another process, and of the same tree built again.
    """
    leaves, structure = jax.tree.flatten(tree)
    crc = zlib.crc32(in_words(structure).encode())
    words = _Words()
    for text in words.nodes(structure):
        crc = zlib.crc32(text.encode(), crc)
    for leaf in leaves:
        if not isinstance(
            leaf, jax.Array | np.ndarray | np.generic | int | float | complex | Stored
        ):
            crc = zlib.crc32(words(leaf).encode(), crc)
            continue
        array = leaf if isinstance(leaf, Stored) else _on_host(leaf)
        crc = zlib.crc32(f"{array.dtype}{array.shape}".encode(), crc)
        for _, block in blocks(array) if array.ndim else ((0, array),):
            crc = zlib.crc32(np.ascontiguousarray(block).tobytes(), crc)
    return crc


def in_words(value: Any) -> str:
    """A value in words that are the same in another process: no addresses of functions."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _on_host(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


PACKAGE = pathlib.Path(__file__).parents[1]
INSTALLED = tuple(
    pathlib.Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def _origin(module: str | None) -> str:
    """Whose a module is, by its name: `package` (ours), `installed`, or `user`."""
    name = module or ""
    found = (getattr(sys.modules.get(n), "__file__", None) for n in (name, name.split(".")[0]))
    file = next(filter(None, found), None)
    if file is None or name == "__main__":
        return "installed" if name in sys.builtin_module_names else "user"
    path = pathlib.Path(file).resolve()
    if path.is_relative_to(PACKAGE):
        return "package"
    within = any(path.is_relative_to(folder) for folder in INSTALLED)
    return "installed" if within or "site-packages" in path.parts else "user"


_BY_DATACLASS = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}
"""Methods that are often generated, and say no more than the fields of an instance."""


class _Words:
    """What values are and what functions do, as text; remembers what it has seen."""

    def __init__(self) -> None:
        # With the value, whose address then stays its own. None while it is being described.
        self.known: dict[int, tuple[Any, str | None]] = {}

    def __call__(self, value: Any) -> str:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self.known:
            self.known[id(value)] = (value, None)
            text = "\n".join([type(value).__qualname__, *self.parts(value)])
            self.known[id(value)] = (value, hashlib.sha256(text.encode()).hexdigest())
        return self.known[id(value)][1] or "itself"

    def parts(self, value: Any) -> list[str]:
        """Descriptions of all that a value consists of."""
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            if isinstance(value, jax.core.Tracer):
                return [str(value.aval)]
            array = _on_host(value)
            if array.dtype == object:
                return [self(array.tolist())]
            return [str(array.dtype), str(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        if isinstance(value, tuple | list):
            return [self(v) for v in value]
        if isinstance(value, set | frozenset):
            return sorted(self(v) for v in value)
        if isinstance(value, dict):
            return sorted(f"{self(k)}: {self(v)}" for k, v in value.items())
        if isinstance(value, types.CodeType):
            return [value.co_code.hex(), str(value.co_names), *map(self, value.co_consts)]
        if isinstance(value, functools.partial):
            return [self(value.func), self(value.args), self(value.keywords)]
        if isinstance(value, types.MethodType):
            return [self(value.__self__), self(value.__func__)]
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.ModuleType):
            return [value.__name__]
        if isinstance(value, type):
            return self.type(value)
        if hasattr(value, "__wrapped__"):  # such as by jax.jit
            return [self(value.__wrapped__)]
        return self.instance(value)

    def function(self, function: types.FunctionType) -> list[str]:
        """Its name, and what it does beyond what that says."""
        code, origin = function.__code__, _origin(function.__globals__.get("__name__"))
        found = [function.__qualname__]
        found += [self(function.__defaults__), self(function.__kwdefaults__)]
        found += [self(_content(cell)) for cell in function.__closure__ or ()]
        if hasattr(function, "__wrapped__"):
            found.append(self(function.__wrapped__))
        if origin != "installed":
            found.append(self(code))
        if origin == "user":
            found += self.globals(code, function.__globals__)
        return found

    def globals(self, code: types.CodeType, scope: Mapping[str, Any]) -> list[str]:
        """The globals that a code reads; of the user's modules the members that it names."""
        found = []
        for one in _codes(code):
            read = {i.argval for i in dis.get_instructions(one) if i.opname in _READS}
            for name in sorted(read & scope.keys()):
                value = scope[name]
                found.append(f"{name}: {self(value)}")
                if isinstance(value, types.ModuleType) and _origin(value.__name__) == "user":
                    members = sorted(set(one.co_names) & vars(value).keys())
                    found += [f"{name}.{n}: {self(vars(value)[n])}" for n in members]
        return found

    def type(self, cls: type) -> list[str]:
        """Its name; of the user's classes what its methods do, and its constants."""
        found = [f"{cls.__module__}.{cls.__qualname__}"]
        if _origin(cls.__module__) != "user":
            return found
        found = [cls.__qualname__, *map(self, cls.__bases__)]
        for name, member in sorted(vars(cls).items()):
            of = getattr(member, "fget", None) or getattr(member, "__func__", member)
            constant = isinstance(of, int | float | str | tuple | np.ndarray | jax.Array)
            special = name.startswith("__")
            if (isinstance(of, types.FunctionType) and name not in _BY_DATACLASS) or (
                constant and not special
            ):
                found.append(f"{name}: {self(of)}")
        return found

    def instance(self, value: Any) -> list[str]:
        """Of any other type: a pytree, a dataclass, a callable, or an object of the user's."""
        cls = type(value)
        found = [self(cls)]
        if not jax.tree_util.all_leaves([value]):
            leaves, structure = jax.tree.flatten(value)
            return [*found, in_words(structure), *self.nodes(structure), *map(self, leaves)]
        if dataclasses.is_dataclass(value):
            named = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
            return [*found, self(named)]
        if hasattr(value, "__dict__") and (callable(value) or _origin(cls.__module__) == "user"):
            return [*found, self(vars(value))]
        return [*found, in_words(value)]

    def nodes(self, structure: Any) -> list[str]:
        """Of a pytree's structure: the classes of its nodes, with their static fields, in order."""
        data = structure.node_data()
        own = []
        if data is not None and data[0] not in (tuple, list, dict):
            own = [self(data[0]), self(data[1])]
        return own + [text for child in structure.children() for text in self.nodes(child)]


_READS = ("LOAD_GLOBAL", "LOAD_NAME")


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """A code and all codes within it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [code, *(found for c in inner for found in _codes(c))]


def _content(cell: Any) -> Any:
    """Of a cell; None of one that is empty yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
