"""What the machine has."""

from __future__ import annotations

import math
import pathlib

GROUP = "/sys/fs/cgroup/"
"""Of the control group of this process, on Linux."""

LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Its files of the limit, of what is used and of its parts, in versions 2 and 1; and the name of
the part that is files, which the system forgets where memory is wanted."""


def available_memory() -> float:
    """Bytes of memory of the host that this process can still get.

    What Linux calls available, within the limit of the control group; infinite where neither is
    told.
    """
    available = _value("/proc/meminfo", "MemAvailable:")
    found = math.inf if available is None else 1024.0 * available
    for limit, used, parts, forgotten in LIMITS:
        most, taken = _value(GROUP + limit), _value(GROUP + used)
        if most is None or taken is None:  # no such group, or no limit: "max"
            continue
        free = _value(GROUP + parts, forgotten) or 0.0
        found = min(found, max(0.0, most - taken + free))
    return found


def _value(path: str, name: str = "") -> float | None:
    """The number in a file, or in its line that starts with a name; None where there is none."""
    for line in _text(path).splitlines():
        words = line.split()
        if name and words[:1] == [name]:
            words = words[1:]
        elif name:
            continue
        return float(words[0]) if words and words[0].isdecimal() else None
    return None


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def in_words(size: float) -> str:
    """Bytes as GB or MB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
