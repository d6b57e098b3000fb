"""What a config names by `path/to/file.py:function`, called and checked; keys that a call takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ndsm_jax import plugins
from ndsm_jax.config.sections import Config, value_of

PLUGIN_KEYS = ("data.name", "reference.name", "process.name", "network.name")
"""Keys that take `path/to/file.py:function`."""


def checked(section: str, name: str, value: Any, kind: Any, wanted: str, dim: int | None) -> Any:
    """What a function of the user's returned, if it is of the right kind and dimension.

    Args:
      section: of the config; its key `name` names the function.
      name: `path/to/file.py:function`.
      value: what it returned.
      kind: the type that it must be of, which `wanted` describes.
      dim: d that it must have; None: not checked.

    Raises:
      ValueError: it is something else.
    """
    if not isinstance(value, kind):
        raise ValueError(
            f"{section}.name={name!r} returned a {type(value).__name__}; {wanted} is needed"
        )
    if dim is not None and value.dim != dim:
        raise ValueError(
            f"{section}.name={name!r} is of {value.dim} dimensions; {dim} are needed, those of the"
            " data in their frame"
        )
    return value


def taken(make: Callable[..., Any], section: Any) -> dict[str, Any]:
    """The keys of a section that a constructor takes; a horizon of 0 is its own default."""
    taken = inspect.signature(make).parameters
    options = {key: value for key, value in vars(section).items() if key in taken}
    if "horizon" in options:
        options["horizon"] = options["horizon"] or None
    return options


def sources(config: Config) -> dict[str, str]:
    """Dotted key -> SHA-256 of the file of the user's own that it names."""
    named = {key: value_of(config, key) for key in PLUGIN_KEYS}
    return {
        key: plugins.digest(name, key=key) for key, name in named.items() if plugins.is_plugin(name)
    }
