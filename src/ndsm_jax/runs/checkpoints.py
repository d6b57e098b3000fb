"""Checkpoints that are verified when read: the only module that imports orbax.

Orbax writes a step asynchronously and atomically, but keeps no checksum of the array data, casts a
wrong dtype silently and raises many kinds of exception for a damaged step. So every step carries a
*manifest* beside the state, a JSON item with

    format        of the manifest
    host          the caller's JSON-able facts (config, package versions, data-set facts)
    leaves        {leaf path: "dtype[shape]"} of the state
    keys          {leaf path: generator} of the typed keys, which are stored as their uint32 data
    state_crc32   CRC32 over path, dtype, shape and bytes of every leaf
    crc32         CRC32 of the entries above, as canonical JSON

Orbax is given NumPy arrays only. The manifest is read first. It separates the two ways a step can
fail to load: a *damaged* step is skipped for an older one, a state of *another shape* (a different
config) is an error at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ndsm_jax import parallel

logger = logging.getLogger(__name__)

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A verified checkpoint.

    Attributes:
      step: the step it was saved at.
      state: the state, in the structure and on the devices of `like`.
      host: the JSON facts saved with it.
      skipped: newer steps that were damaged, newest first, each with the reason.
    """

    step: int
    state: PyTree
    host: dict[str, Any]
    skipped: list[tuple[int, str]]


class Checkpoints:
    """The checkpoints of one run, in `directory/<step>`. A context manager that closes on leaving.

    Nothing is created, cleaned or deleted before the first `save`, so a run that is still training
    can be opened for reading.

    Args:
      directory: folder of the run's checkpoints.
      keep: how many of the last saved steps to keep.

    Raises:
      ValueError: if `keep` is less than 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def save(self, step: int, state: PyTree, host: dict[str, Any]) -> None:
        """Saves `state` and `host` at `step`; the files are written in the background.

        Several processes (`parallel`) all call it, and all see the directory.

        The state's bytes are copied before the call returns, so its buffers may be donated
        afterwards. An error of the background write is raised by the next `save`, `wait` or
        `close`. A damaged checkpoint of the same step is replaced; a good one of the same state is
        kept as it is.

        Args:
          step: the training step.
          state: a pytree of arrays and typed keys. A Python scalar is stored as JAX would trace it
            (int32, float32).
          host: a dict that JSON can hold. It comes back as JSON gives it: tuples as lists, keys as
            strings.

        Raises:
          ValueError: if `host` is not JSON, a leaf is not an array, `step` already holds a good
            checkpoint of another state, or the directory's name has a character of `UNFIT`.
          OSError: the files could not be written, or those of the directory's first checkpoint not
            be read back.
        """
        self.wait()
        first = not self.steps()
        specs = _leaf_specs(state)
        # On a CPU these are views, not copies: orbax copies them once, before its `save` returns.
        arrays = _numbered(jax.tree.map(_to_numpy, parallel.fetched(state)))
        manifest = _make_manifest(
            host=host,
            leaves=specs,
            keys=_key_generators(state),
            state_crc32=_crc32(specs, arrays),
        )
        manager = self._open_for_writing()
        if step in self.steps():
            if _holds_same_state(self.directory / str(step), manifest, arrays):
                logger.debug("step %d is already saved in %s", step, self.directory)
                return
            logger.warning("replacing the damaged step %d in %s", step, self.directory)
            manager.delete(step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            manifest=ocp.args.JsonSave(manifest),
        )
        # force: orbax otherwise refuses a step older than its newest one, without an exception.
        # That is the case after resuming from behind a damaged step.
        with _told(self.directory):
            manager.save(step, args=items, force=True)
        if first:
            self.wait()
            self._read_back(step, manifest, arrays)

    def _read_back(self, step: int, manifest: dict[str, Any], arrays: PyTree) -> None:
        """Raises OSError where a step that was just saved cannot be read."""
        try:
            if _holds_same_state(self.directory / str(step), manifest, arrays):
                return
            why = "it is not what was written"
        except ValueError as error:
            why = str(error)
        raise OSError(
            f"{self.directory}: the first checkpoint cannot be read back ({why}); choose a folder"
            " on another file system"
        )

    def restore(self, like: PyTree, step: int | None = None) -> Restored:
        """Reads the newest good checkpoint, or that of `step`, into the structure of `like`.

        Every byte is checked against the CRC32 taken when it was saved. Damaged steps are skipped
        with a warning. Nothing is skipped when `step` is given.

        Args:
          like: the state's structure: concrete, or abstract (`jax.eval_shape`). Arrays come back
            with the sharding of their counterpart, on the default device where it has none; NumPy
            arrays and Python scalars come back as such.
          step: the step to read; the newest good one by default.

        Raises:
          FileNotFoundError: if there is no checkpoint, or none of `step`.
          ValueError: if every candidate is damaged, or if the newest undamaged one holds a state
            of another structure, shape or dtype than `like`.
        """
        self.wait()
        specs, template = _leaf_specs(like), _numbered(jax.tree.map(_empty_numpy, like))
        skipped: list[tuple[int, str]] = []
        for candidate in _candidates(self.directory, step):
            path = self.directory / str(candidate)
            try:
                manifest = _read_manifest(path)
                _check_same_leaves(path, manifest["leaves"], specs)
                arrays = _read_arrays(path, manifest, template)
            except _DamagedError as error:
                logger.warning("checkpoint step %d skipped: %s", candidate, error)
                skipped.append((candidate, str(error)))
                continue
            placed = [
                _place_like(leaf, array, manifest["keys"].get(name))
                for name, leaf, array in zip(
                    specs, jax.tree.leaves(like), arrays.values(), strict=True
                )
            ]
            state = jax.tree.unflatten(jax.tree.structure(like), placed)
            if skipped:
                untrained = ", which is from before any training" if candidate == 0 else ""
                logger.warning("checkpoint step %d is read%s", candidate, untrained)
            return Restored(step=candidate, state=state, host=manifest["host"], skipped=skipped)
        raise _all_damaged(self.directory, skipped)

    def steps(self) -> list[int]:
        """The steps on disk in increasing order, damaged ones included."""
        return _steps(self.directory)

    def wait(self) -> None:
        """Blocks until the save in progress is on disk. Raises its error if it failed."""
        if self._manager is not None:
            with _told(self.directory):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress and releases orbax's threads."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with _told(self.directory):
                manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # the error that there is says more
            self.close()

    def _open_for_writing(self) -> ocp.CheckpointManager:
        if self._manager is None:
            check_name(self.directory)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(n=self._keep),
                cleanup_tmp_directories=True,
                # Reading every step's metadata at start would fail on a damaged one.
                lightweight_initialize=True,
            )
            with _told(self.directory):
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager


UNFIT = "*?[\\"
"""Characters that orbax takes for a pattern: checkpoints below a folder of such a name hold nothing
(`etils.epath` globs the whole path)."""


def check_name(folder: str | os.PathLike[str]) -> None:
    """Raises ValueError where checkpoints cannot be kept in a folder of this name."""
    path = str(pathlib.Path(folder).absolute())
    found = sorted(set(UNFIT) & set(path))
    if found:
        raise ValueError(
            f"{path}: checkpoints cannot be kept below a folder with {' or '.join(found)} in its"
            " name; choose another --workdir (folder)"
        )


@contextlib.contextmanager
def _told(directory: pathlib.Path) -> Iterator[None]:
    """Errors of writing as one OSError: orbax raises many kinds, of many lines."""
    try:
        yield
    except Exception as error:
        of_system = re.search(r"([^:]+) \[os_error_code", str(error))
        why = of_system[1].strip() if of_system else _summary(error)
        raise OSError(
            f"{directory}: a checkpoint could not be written: {why}. The last good one is kept;"
            " make room there, or the folder writable, and start the same command again"
        ) from error


def read_host(directory: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """Reads the `host` facts of the newest readable step, or of `step`, without reading any array.

    With them the shapes can be known before `like` is built.

    Raises:
      FileNotFoundError: if there is no checkpoint, or none of `step`.
      ValueError: if every candidate is damaged.
    """
    directory = pathlib.Path(directory).absolute()
    skipped: list[tuple[int, str]] = []
    for candidate in _candidates(directory, step):
        try:
            return _read_manifest(directory / str(candidate))["host"]
        except _DamagedError as error:
            skipped.append((candidate, str(error)))
    raise _all_damaged(directory, skipped)


def shapes_as_saved(directory: str | os.PathLike[str], like: PyTree, part: str) -> PyTree:
    """like[part] in the shapes of the newest readable checkpoint, where it has its leaves.

    For parts whose structure is known and whose sizes are not. NumPy leaves stay NumPy.
    """
    saved = _saved_leaves(directory)

    def sized(path: Any, leaf: Any) -> Any:
        spec = saved.get(f"{jax.tree_util.keystr(path)}")
        if spec is None or _is_python_scalar(leaf):
            return leaf
        dtype, _, text = spec.partition("[")
        shape = tuple(json.loads(f"[{text}"))
        if isinstance(leaf, np.ndarray):
            return np.zeros(shape, dtype)
        return jax.ShapeDtypeStruct(shape, dtype)

    return jax.tree_util.tree_map_with_path(sized, {part: like[part]})[part]


def is_saved(directory: str | os.PathLike[str], part: str, name: str) -> bool:
    """Whether the newest readable checkpoint has an array of this name in a part."""
    return f"['{part}']['{name}']" in _saved_leaves(directory)


def fits(directory: str | os.PathLike[str], like: PyTree) -> bool:
    """Whether the newest readable checkpoint has the arrays of `like`, by name, type and shape."""
    return _saved_leaves(directory) == _leaf_specs(like)


def _saved_leaves(directory: str | os.PathLike[str]) -> Mapping[str, str]:
    """Path of each leaf of the newest readable checkpoint -> its type and shape."""
    directory = pathlib.Path(directory).absolute()
    for candidate in _candidates(directory, None):
        try:
            return _read_manifest(directory / str(candidate))["leaves"]
        except _DamagedError:
            continue
    return {}


class _DamagedError(Exception):
    """A step that cannot be read back as it was written."""


def _steps(directory: pathlib.Path) -> list[int]:
    # Orbax writes to "<step>.orbax-checkpoint-tmp..." and renames when done.
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _candidates(directory: pathlib.Path, step: int | None) -> list[int]:
    """The steps to try, in order of preference."""
    steps = _steps(directory)
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}: train first, or correct the path")
    if step is None:
        return steps[::-1]
    if step not in steps:
        raise FileNotFoundError(f"no checkpoint of step {step} in {directory}: it has {steps}")
    return [step]


def _all_damaged(directory: pathlib.Path, skipped: list[tuple[int, str]]) -> ValueError:
    reasons = "".join(f"\n  step {step}: {reason}" for step, reason in skipped)
    return ValueError(
        f"no usable checkpoint in {directory}: restore it from a copy or start in a new directory."
        f"{reasons}"
    )


# --- the state as named leaves ---


def _numbered(state: PyTree) -> dict[str, Any]:
    """The leaves by their number, in order: orbax knows fewer kinds of nodes than JAX."""
    leaves = jax.tree.leaves(state)
    return {f"{i:06d}": leaf for i, leaf in enumerate(leaves)}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _is_python_scalar(leaf: Any) -> bool:
    return type(leaf) in (bool, int, float)  # not isinstance: np.float64 is a float


def _leaf_specs(state: PyTree) -> dict[str, str]:
    """{leaf path: "dtype[shape]"}, for concrete and abstract leaves alike."""
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = jnp.asarray(leaf) if _is_python_scalar(leaf) else leaf
        name = jax.tree_util.keystr(path)
        if not hasattr(array, "dtype"):
            raise ValueError(
                f"state{name} is a {type(leaf).__name__}, not an array: put it into host, or mark "
                "the field as static"
            )
        specs[name] = f"{array.dtype}{list(array.shape)}"
    return specs


def _key_generators(state: PyTree) -> dict[str, str]:
    """{leaf path: generator} of the typed keys, such as "threefry2x32"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(p): str(jax.random.key_impl(k)) for p, k in leaves if _is_key(k)}


def _to_numpy(leaf: Any) -> np.ndarray:
    if _is_key(leaf):
        return np.asarray(jax.random.key_data(leaf))
    return np.asarray(jnp.asarray(leaf) if _is_python_scalar(leaf) else leaf)


def _empty_numpy(leaf: Any) -> np.ndarray:
    """An uninitialised array of the dtype and shape that `_to_numpy(leaf)` has."""
    like = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    like = jnp.asarray(like) if _is_python_scalar(like) else like
    return np.empty(like.shape, like.dtype)


def _place_like(like: Any, array: np.ndarray, generator: str | None) -> Any:
    """A stored array as the kind of leaf that `like` is; a typed key if it has a `generator`."""
    if _is_python_scalar(like):
        return type(like)(array.item())
    if isinstance(like, np.ndarray | np.generic):
        return array
    leaf: Any = array
    if generator is not None:
        leaf = jax.random.wrap_key_data(jnp.asarray(array), impl=generator)
    default = jax.device_put(np.zeros((), np.int32)).sharding
    return jax.device_put(leaf, getattr(like, "sharding", None) or default)


def _crc32(specs: dict[str, str], arrays: PyTree) -> int:
    """CRC32 over path, dtype and shape, then the bytes, of every leaf."""
    crc = zlib.crc32(_canonical_json(specs))
    for array in jax.tree.leaves(arrays):
        # As uint8 because bfloat16 has no buffer protocol.
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc)
    return crc


# --- the manifest ---

FORMAT = 1
"""Of manifests; raised when older versions would not understand. The first ones have no number."""

FIELDS = {"host": dict, "leaves": dict, "keys": dict, "state_crc32": int}


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _make_manifest(
    *,
    host: dict[str, Any],
    leaves: dict[str, str],
    keys: dict[str, str],
    state_crc32: int,
) -> dict[str, Any]:
    try:
        host = json.loads(json.dumps(host))
    except (TypeError, ValueError) as error:
        raise ValueError(f"host must hold only what JSON can: {error}") from error
    manifest = {
        "format": FORMAT,
        "host": host,
        "leaves": leaves,
        "keys": keys,
        "state_crc32": state_crc32,
    }
    return {**manifest, "crc32": zlib.crc32(_canonical_json(manifest))}


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of the step in `path`, verified. Raises _DamagedError."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            manifest = checkpointer.restore(path / "manifest")
        expected = manifest.pop("crc32")
        written = manifest.get("format", FORMAT)
    except Exception as error:  # orbax and json raise many kinds, bare Exception among them
        raise _DamagedError(f"manifest unreadable ({_summary(error)})") from error
    if zlib.crc32(_canonical_json(manifest)) != expected:
        raise _DamagedError("manifest does not match its CRC32")
    if written != FORMAT:
        raise ValueError(
            f"the checkpoint {path} has format {written}, and this version of ndsm_jax reads format"
            f" {FORMAT}: read it with the version that wrote it, or a later one"
        )
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise _DamagedError(f"manifest has no {name}")
    return manifest


def _summary(error: Exception) -> str:
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:200]}"


# --- the state ---


def _check_same_leaves(path: pathlib.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises ValueError, naming up to eight leaves, if two states differ in structure."""
    if saved == wanted:
        return
    names = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
    lines = [
        f"\n  {name}: {saved.get(name, 'absent')} in the checkpoint, "
        f"{wanted.get(name, 'absent')} now"
        for name in names[:8]
    ]
    more = f"\n  and {len(names) - 8} more" if len(names) > 8 else ""
    raise ValueError(
        f"the config differs from the one the checkpoint {path} was made with: use that config "
        f"(it is saved with the checkpoint) or a new directory.{''.join(lines)}{more}"
    )


def _read_arrays(path: pathlib.Path, manifest: dict[str, Any], template: PyTree) -> PyTree:
    """The arrays of the step in `path`, verified. Raises _DamagedError."""
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(path / "state", args=ocp.args.StandardRestore(template))
    except Exception as error:  # orbax raises many kinds, bare Exception among them
        raise _DamagedError(f"state unreadable ({_summary(error)})") from error
    if _crc32(manifest["leaves"], arrays) != manifest["state_crc32"]:
        raise _DamagedError("state does not match its CRC32")
    return arrays


def _holds_same_state(path: pathlib.Path, manifest: dict[str, Any], arrays: PyTree) -> bool:
    """Whether the step in `path` is good and holds the state of `manifest`; False if damaged.

    Raises ValueError if it is good and holds another state.
    """
    try:
        existing = _read_manifest(path)
        _check_same_leaves(path, existing["leaves"], manifest["leaves"])
        _read_arrays(path, existing, template=arrays)
    except _DamagedError:
        return False
    if existing["state_crc32"] != manifest["state_crc32"]:
        raise ValueError(
            f"{path} already holds a checkpoint of another state: resume from it, or save to a new "
            "directory"
        )
    return True
