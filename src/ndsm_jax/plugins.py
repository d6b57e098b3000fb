"""A user's own process, reference, data set or network, named by `path/to/file.py:function`.

A name of this form goes wherever a config has the name of one of ours. The digest of the file's
source is kept with a run's checkpoints, as the function decides what the run is.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import pathlib
import runpy
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plugin:
    """A function of the user's.

    Attributes:
      name: `path/to/file.py:function`, as given.
      function: the function.
      digest: SHA-256 (hex) of the file.
    """

    name: str
    function: Callable[..., Any]
    digest: str


_SCOPES: dict[tuple[pathlib.Path, str], dict[str, Any]] = {}
"""What running a file defined, by its path and SHA-256."""


def is_plugin(name: str) -> bool:
    """Whether a name in a config is `file.py:function` and not one of ours."""
    return ".py:" in name


def digest(name: str, *, key: str) -> str:
    """SHA-256 (hex) of the file of `path/to/file.py:function`. Raises as `load` for the file."""
    return hashlib.sha256(_read(name, key)).hexdigest()


def load(name: str, *, key: str) -> Plugin:
    """Runs the file of `path/to/file.py:function` and returns the function.

    A file is run once, and anew where it has changed: names of one file share its classes.
    The path is relative to the working directory; `~` is the home directory. The file may import
    modules that lie beside it only if Python finds them otherwise (PYTHONPATH).

    Args:
      name: `path/to/file.py:function`.
      key: the dotted config key that has the name, for messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file cannot be run, or has no such function.
    """
    content = _read(name, key)
    path, _, attribute = name.rpartition(":")
    source = pathlib.Path(path).expanduser()
    found = hashlib.sha256(content).hexdigest()
    file = (source.resolve(), found)
    if file not in _SCOPES:
        try:
            _SCOPES[file] = runpy.run_path(str(source))
        except Exception as error:  # whatever the user's file raises
            raise ValueError(
                f"{key}={name!r}: running {path} failed with {type(error).__name__}: {error}"
            ) from error
    scope = _SCOPES[file]
    function = scope.get(attribute)
    if not callable(function):
        functions = [
            word
            for word, value in scope.items()
            if inspect.isfunction(value) and value.__module__ == "<run_path>"
        ]
        raise ValueError(
            f"{key}={name!r}: {path} has no function {attribute!r}; it has"
            f" {', '.join(functions) or 'no functions'}"
        )
    return Plugin(name=name, function=function, digest=found)


def call(section: str, name: str, text: str, *args: Any, **more: Any) -> Any:
    """What the function that a section of the config names makes of `args` and its options.

    Args:
      section: of the config: its keys `name` and `options` are named in messages.
      name: `path/to/file.py:function`.
      text: its options, see `parse_options`; they go before `more`.
      *args: positional arguments.
      **more: keyword arguments that it gets where it has parameters of these names.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file or the function fails, or it cannot be called so.
    """
    function = load(name, key=f"{section}.name").function
    known = inspect.signature(function).parameters
    options = {key: value for key, value in more.items() if key in known}
    options |= parse_options(text, key=f"{section}.options")
    check_options(function, options, key=f"{section}.options", given=len(args))
    try:
        return function(*args, **options)
    except Exception as error:  # whatever the user's function raises
        raise ValueError(
            f"{section}.name={name!r}: the function failed with {type(error).__name__}: {error}"
        ) from error


def _read(name: str, key: str) -> bytes:
    path = pathlib.Path(name.rpartition(":")[0]).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{key}={name!r}: no file {path} (a relative path starts from {pathlib.Path.cwd()})"
        )
    return path.read_bytes()


def parse_options(text: str, *, key: str) -> dict[str, Any]:
    """`'force=10.0, name="x"'` as {'force': 10.0, 'name': 'x'}: Python literals, no expressions.

    Raises:
      ValueError: not of that form, or a value that is no literal.
    """
    try:
        call = ast.parse(f"options({text})", mode="eval").body
        names = [word.arg for word in call.keywords] if isinstance(call, ast.Call) else [None]
        if not isinstance(call, ast.Call) or call.args or None in names:
            raise ValueError("not pairs of a name and a value")
        if len(set(names)) < len(names):
            raise ValueError("a name stands twice")
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{key}={text!r}: give name=value pairs with commas between them, such as"
            " force=10.0,steps=3 (values: numbers, 'words', lists, True, False, None)"
        ) from error


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], *, key: str, given: int = 0
) -> None:
    """Raises ValueError for options that a function does not take, or lacks.

    given: how many positional arguments it is called with beside the options.
    """
    try:
        inspect.signature(function).bind(*[None] * given, **options)
    except TypeError as error:
        raise ValueError(
            f"{key}: {getattr(function, '__name__', function)}{inspect.signature(function)} cannot"
            " be called with"
            f" {dict(options)}: {error}"
        ) from error
