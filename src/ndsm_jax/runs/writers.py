"""Scalars and images of a run: JSON lines and PNG files always, TensorBoard beside them if wanted.

    directory/metrics.jsonl                   one object a line: {"step": 100, "loss": 0.5, ...}
    directory/images/<name>/<step>.png
    directory/tensorboard/                    the same scalars and images (tensorboardX)

JSON has no NaN and no infinity: non-finite values are written as null and read back as NaN.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np

_FILE_NAME = "metrics.jsonl"


class Writer(Protocol):
    """Of the metrics and pictures of a run: a `MetricWriter`, or none."""

    def truncate(self, step: int) -> None: ...

    def write(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def image(self, step: int, name: str, array: np.ndarray) -> None: ...

    def flush(self) -> None: ...


class MetricWriter:
    """Writes the metrics of one run. A context manager: leaving it closes the files.

    An existing `metrics.jsonl` is continued; a last line left half written by a killed run is
    dropped. A resumed run calls `truncate` before it writes.

    Args:
      directory: folder of the run; created if missing.
      tensorboard: also write TensorBoard event files.

    Raises:
      ModuleNotFoundError: if `tensorboard` is asked for and tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], *, tensorboard: bool = True) -> None:
        self._directory = pathlib.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._purge_step: int | None = None
        self._tensorboard: _Events | None = None
        if tensorboard:
            _import_tensorboard()  # fail now rather than at the first write
        self._use_tensorboard = tensorboard
        self._path = self._directory / _FILE_NAME
        _drop_lines_after(self._path, math.inf)
        self._file = self._path.open("a", encoding="utf-8")

    def truncate(self, step: int) -> None:
        """Forgets everything after `step`, the step a run resumes from. Call it before writing.

        The JSON lines are replaced atomically. TensorBoard is told to discard its later events;
        later images stay until they are written again.

        Raises:
          ValueError: if something has been written to TensorBoard already.
        """
        if self._tensorboard is not None:
            raise ValueError("truncate must be called before the first write")
        self._purge_step = step + 1
        self._file.close()
        _drop_lines_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one line of scalars; it survives the process being killed afterwards.

        Args:
          step: the training step.
          scalars: names to numbers: Python, NumPy or JAX, of size one. A JAX value is waited for.

        Raises:
          ValueError: if a value is not a single number, or a name is "step".
        """
        values = {name: _as_number(name, value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _named(self._path):
            self._file.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
            self._file.flush()
        if self._use_tensorboard:
            self._events().scalars(step, values)

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """Writes an image as PNG, and to TensorBoard.

        Args:
          step: the training step.
          name: name of the image; "/" makes subfolders.
          array: [height, width, channels] uint8, with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

        Raises:
          ValueError: if the array has another shape or dtype.
        """
        from PIL import Image

        array = np.asarray(array)
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or array.dtype != np.uint8:
            raise ValueError(
                f"image {name!r} must be uint8 [height, width, 1, 3 or 4], "
                f"got {array.dtype}{list(array.shape)}"
            )
        path = self._directory / "images" / name / f"{step:08d}.png"
        buffer = io.BytesIO()
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
        replace_file(path, buffer.getvalue())
        if self._use_tensorboard:
            self._events().image(step, name, array)

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        with _named(self._path):
            self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self) -> MetricWriter:
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
        with contextlib.suppress(OSError):  # the error that there is says more
            self.close()

    def _events(self) -> _Events:
        # Opened at the first write, because only then is it known whether the run was truncated.
        if self._tensorboard is None:
            self._tensorboard = _Events(self._directory / "tensorboard", self._purge_step)
        return self._tensorboard


class NoWriter:
    """What stands for a `MetricWriter` where another process writes."""

    def truncate(self, step: int) -> None:
        """Nothing."""

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Nothing."""

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


class _Events:
    """An event file of TensorBoard.

    Written in the thread that asks: tensorboardX's own writer leaves it to a thread, whose end on a
    full disk is a hang, and which may be behind when the process is killed.

    Args:
      folder: gets the file; made if missing.
      purge_step: from which on TensorBoard is to forget what earlier files say; None: nothing.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with _named(folder):
            # Files are named by the second, and one of the same name is overwritten.
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            if purge_step is not None:
                self._add(purge_step, session_log={"status": 1})  # START

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        from tensorboardX import summary

        for name, value in values.items():
            self._add(step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """Adds an image [height, width, channels] uint8."""
        from tensorboardX import summary

        self._add(step, summary=summary.image(name, array, dataformats="HWC"))

    def flush(self) -> None:
        """To the disk."""
        with _named(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        with _named(self._folder):
            self._writer.close()

    def _add(self, step: int, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with _named(self._folder):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **fields))


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Names the file in errors of the system that do not: those of writing."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where a file is written before it takes the name of `path`, its folder made where missing.

    What is of that name is replaced when all is on disk, and stays as it is after an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, and its folder where missing, so that it is never seen half written."""
    with aside(path) as temporary:
        temporary.write_bytes(content)


def check_output(path: pathlib.Path) -> None:
    """Makes the folder of a file. Raises ValueError where the file could not be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out: the folder of {path} cannot be made ({error.strerror}); choose another path"
        ) from error
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder where a file is needed; choose another path")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--out: {path.parent} cannot be written to; choose another path")


def json_text(tree: Any) -> str:
    """Indented JSON of dicts, lists and numbers, null for what is not finite."""
    return json.dumps(_finite(tree), indent=2, allow_nan=False) + "\n"


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the lines of `directory/metrics.jsonl` in order; null comes back as NaN.

    A last line without a line break (half written by a run that was killed, or is still running) is
    left out.

    Raises:
      FileNotFoundError: if the directory has no metrics.
      ValueError: if any other line is not a JSON object with a step.
    """
    path = pathlib.Path(directory) / _FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {_FILE_NAME} in {directory}: train first, or correct the path")
    rows = [_parse(path, number, line) for number, line in enumerate(_complete_lines(path), 1)]
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _complete_lines(path: pathlib.Path) -> list[str]:
    # After the last line break comes a half-written line, or nothing. Split as bytes: a cut may
    # fall within a character.
    return [line.decode() for line in path.read_bytes().split(b"\n")[:-1]]


def _parse(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        int(row["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} line {number} is not a JSON object with a step: delete that line"
        ) from error
    return row


def _drop_lines_after(path: pathlib.Path, step: float) -> None:
    """Rewrites `path` atomically without a half-written last line and the lines of later steps."""
    if not path.exists():
        return
    lines = enumerate(_complete_lines(path), 1)
    kept = [line for number, line in lines if _parse(path, number, line)["step"] <= step]
    content = "".join(f"{line}\n" for line in kept).encode()
    if content != path.read_bytes():
        replace_file(path, content)


def _as_number(name: str, value: Any) -> int | float:
    if name == "step":
        raise ValueError('"step" is the name of the step itself: give the scalar another name')
    array = np.asarray(value)
    number = array.item() if array.size == 1 else None
    if not isinstance(number, int | float):
        raise ValueError(f"scalar {name!r} must be a single number, got {value!r}")
    return number


def _import_tensorboard() -> None:
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tensorboardX is not installed: install it, or turn TensorBoard off (tensorboard=False)"
        ) from error
