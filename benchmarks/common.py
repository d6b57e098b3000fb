"""What the benchmarks share: flags, interleaved timing, a table, and results as JSON.

Run them from the repository root, e.g. `python benchmarks/samplers.py --quick`. Each prints a table
and, with --out, writes {"device", "jax", "seed", "command", "quick", "rows": [{"name", ...}]}.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

QUICK = flags.DEFINE_bool("quick", False, "A small form that takes less than a minute.")
OUT = flags.DEFINE_string("out", None, "File for the results as JSON.")
SEED = flags.DEFINE_integer("seed", 0, "Seed.", lower_bound=0)

Row = Mapping[str, Any]


class Timing(NamedTuple):
    """Median seconds of a call, and the median over rounds of its time over the reference's."""

    seconds: float
    ratio: float


def ratios(
    alternatives: Mapping[str, Callable[[], Any]],
    reference: str,
    *,
    rounds: int = 7,
    warm: bool = False,
) -> dict[str, Timing]:
    """Times alternatives against one of them.

    They are called in turn, round after round, and compared within a round, so that a machine whose
    speed drifts slows all of them alike. One call each beforehand compiles and is not counted.

    Args:
      alternatives: name -> function without arguments; what it returns is waited for.
      reference: the name that the others are compared with.
      rounds: number of rounds.
      warm: whether everything is compiled already.
    """
    for call in () if warm else alternatives.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, call in alternatives.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds[reference])
    return {
        name: Timing(float(np.median(times)), float(np.median(times / base)))
        for name, times in seconds.items()
    }


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned text under the columns' names (default: the keys of the first row)."""
    columns = list(rows[0]) if columns is None else columns
    lines = [list(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Prints the table of `rows`, each with a "name", and writes --out if it is given."""
    print(table(rows, columns))
    if OUT.value is None:
        return
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seed": SEED.value,
        "command": shlex.join(["python", *sys.argv]),
        "quick": QUICK.value,
        "rows": [dict(row) for row in rows],
    }
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    print(f"written: {path}")
