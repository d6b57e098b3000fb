"""Which keys of a config are read, given the others, and the reference of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from ndsm_jax.config.options import PLUGIN, POSITIVE, When, range_text
from ndsm_jax.config.sections import Config, sections, value_of
from ndsm_jax.plugins import is_plugin


def has_effect(config: Config, dotted: str) -> bool:
    """Whether anything reads a key, given the other settings."""
    alternatives = _field(dotted).metadata["when"]
    return not alternatives or any(_holds(config, when) for when in alternatives)


def check_effect(config: Config, keys: Iterable[str]) -> None:
    """Raises ValueError for keys that were set and that nothing reads, with what would read them.

    Args:
      config: all settings.
      keys: dotted keys that somebody has set.
    """
    lines = [
        f"{key}={value_of(config, key)!r} has no effect here, where "
        + " and ".join(f"{k}={value_of(config, k)!r}" for k in _asked(key))
        + f"; it is read with {conditions_text(_field(key).metadata['when'])}. Leave it out, or"
        " change these"
        for key in keys
        if not has_effect(config, key)
    ]
    if lines:
        raise ValueError("\n  ".join(lines))


def conditions_text(alternatives: Iterable[When]) -> str:
    """Where an option has an effect, in words."""
    return "; or ".join(
        " and ".join(_condition_text(key, values) for key, values in when.items())
        for when in alternatives
    )


def _condition_text(key: str, values: tuple[Any, ...]) -> str:
    if values == (POSITIVE,):
        return f"{key} {POSITIVE}"
    return f"{key}={' or '.join(map(str, values))}"


def _holds(config: Config, when: When) -> bool:
    return all(
        has_effect(config, key) and any(_is(value_of(config, key), value) for value in values)
        for key, values in when.items()
    )


def _is(found: Any, wanted: Any) -> bool:
    if wanted == PLUGIN:
        return is_plugin(str(found))
    return found > 0 if wanted == POSITIVE else found == wanted


def _asked(dotted: str) -> list[str]:
    return list(dict.fromkeys(key for when in _field(dotted).metadata["when"] for key in when))


def _field(dotted: str) -> dataclasses.Field[Any]:
    section, _, name = dotted.partition(".")
    return next(f for f in dataclasses.fields(sections()[section]) if f.name == name)


def reference() -> str:
    """A Markdown table of every key, default, range and meaning (docs/configuration.md)."""
    lines = [
        "# Configuration reference",
        "",
        "Made by `python -m ndsm_jax.config`. Override with `--config.section.key=value`. A key"
        " that is set where nothing reads it is an error.",
    ]
    for name, kind in sections().items():
        lines += ["", f"## `{name}`", "", str(kind.__doc__), ""]
        lines += ["| key | default | allowed | read | meaning |", "| --- | --- | --- | --- | --- |"]
        for field in dataclasses.fields(kind):
            meta = field.metadata
            allowed = ", ".join(meta["choices"]) or range_text(meta)
            allowed += f", {PLUGIN}" if meta["plugin"] else ""
            where = conditions_text(meta["when"]) or "always"
            lines.append(
                f"| `{field.name}` | `{field.default!r}` | {allowed} | {where} | {meta['doc']} |"
            )
    return "\n".join(lines) + "\n"
