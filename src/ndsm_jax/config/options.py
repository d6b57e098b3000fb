"""What an option of a config is: a field with type, range, meaning, and where it has an effect."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ndsm_jax.checks import shown
from ndsm_jax.plugins import is_plugin

PLUGIN = "file.py:function"
"""Stands for a name of this form in a condition."""

POSITIVE = "> 0"
"""Stands for any positive number in a condition."""

LONGEST_TEXT, LONGEST_TUPLE = 4096, 64
"""Characters of a word, values of a tuple."""

When = Mapping[str, tuple[Any, ...]]
"""Dotted key -> the values of it with which an option has an effect; all of them must hold."""


def option(
    default: Any,
    doc: str,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    choices: Iterable[str] = (),
    plugin: bool = False,
    when: When | tuple[When, ...] = (),
) -> Any:
    """A dataclass field with its description, its range, and where it has an effect.

    Args:
      default: and thereby the type.
      doc: what it is.
      low, above, high: low <= x <= high, x > above; every number has a bound on either side, far
        from what anybody needs, so that a slip is told and not computed.
      choices: names allowed.
      plugin: whether `path/to/file.py:function` is allowed beside them.
      when: the settings with which something reads it: one `When`, or several of which one must
        hold; always by default.
    """
    metadata = {
        "doc": doc,
        "low": low,
        "above": above,
        "high": high,
        "choices": tuple(choices),
        "plugin": plugin,
        "when": (when,) if isinstance(when, Mapping) else tuple(when),
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the sections: checks every field's type, range and choice.

    Raises:
      ValueError: naming the dotted key, the value and what is allowed.
    """

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config")
        section = re.sub(r"(?<!^)(?=[A-Z])", "_", section).lower()
        for field in dataclasses.fields(self):
            key = f"{section}.{field.name}"
            value = _coerce(key, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
            for item in value if isinstance(value, tuple) else (value,):
                _check_value(key, item, field.metadata)


def _coerce(key: str, value: Any, default: Any) -> Any:
    """The value in the default's type: 1 for a float, a list or one item for a tuple, no other."""
    if isinstance(default, tuple) and not isinstance(value, tuple | list | str):
        value = (value,)
    if isinstance(default, tuple) and isinstance(value, tuple | list):
        if not 1 <= len(value) <= LONGEST_TUPLE:
            raise ValueError(f"{key}: 1 to {LONGEST_TUPLE} values are needed, got {len(value)}")
        return tuple(_coerce(key, item, default[0]) for item in value)
    if isinstance(default, float) and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not type(default):
        wanted, got = type(default).__name__, type(value).__name__
        raise ValueError(f"{key}={shown(value)}: expected {wanted}, got {got}")
    return value


def _check_value(key: str, value: Any, allowed: Mapping[str, Any]) -> None:
    choices = allowed["choices"]
    if isinstance(value, str) and (len(value) > LONGEST_TEXT or not value.isprintable()):
        raise ValueError(
            f"{key}={shown(value)}: at most {LONGEST_TEXT} characters, all of them printable, are"
            " allowed"
        )
    if allowed["plugin"] and is_plugin(str(value)):
        return
    if choices and value not in choices:
        raise ValueError(
            f"{key}={value!r}: choose one of {', '.join(choices)}"
            + (f", or {PLUGIN} of your own" if allowed["plugin"] else "")
            + hint(str(value), choices)
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value!r}: a finite number is needed")
        if value < allowed["low"] or value > allowed["high"] or value <= allowed["above"]:
            raise ValueError(f"{key}={shown(value)}: must be {range_text(allowed)}")


def range_text(allowed: Mapping[str, Any]) -> str:
    """The range of an option in words."""
    parts = []
    if allowed["low"] > -math.inf:
        parts.append(f">= {_number(allowed['low'])}")
    if allowed["above"] > -math.inf:
        parts.append(f"> {_number(allowed['above'])}")
    if allowed["high"] < math.inf:
        parts.append(f"<= {_number(allowed['high'])}")
    return " and ".join(parts)


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def hint(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words, as a question."""
    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
