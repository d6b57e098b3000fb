"""What the benchmarks share: flags, interleaved timing, a table, and results as JSON.

Run them from the repository root, e.g. `python benchmarks/samplers.py --quick`. Each prints a table
and, with --out, writes {"device", "jax", "seed", "command", "quick", "rows": [{"name", ...}]}.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ndsm_jax.config import Config
from ndsm_jax.experiment import Experiment
from ndsm_jax.noising import NoisedBatch
from ndsm_jax.reports.report import aligned
from ndsm_jax.training import (
    TrainState,
    init_state,
    make_dispatch,
    make_noise,
    minibatches_ahead,
    steps_on_host,
)

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
    if not warm:
        for call in alternatives.values():
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


class Timed:
    """The functions that training runs, on the same minibatches over and over.

    Args:
      experiment: what is timed.
      data: at least a minibatch of items [N, D].
      config: says how large a minibatch is, how many are noised at once, and the seed.
      ahead: most minibatches that are noised at once; as many as the config allows by default.
    """

    def __init__(
        self, experiment: Experiment, data: Any, config: Config, *, ahead: int | None = None
    ) -> None:
        c = config.train
        x = experiment.frame.prepare(np.asarray(data))
        own = minibatches_ahead(experiment, x, c.batch_size, config.noising.ahead_mb)
        self.experiment = experiment
        self.ahead = own if ahead is None else min(ahead, own)
        self._seed = c.seed
        self._minibatches = np.tile(x[: c.batch_size], (self.ahead, 1, 1))
        self._noise = make_noise(c.seed)
        on_host = steps_on_host(experiment.model.network)
        self._dispatch = make_dispatch(c.seed, on_host=on_host)

    def noise(self) -> NoisedBatch:
        """Noises `ahead` minibatches."""
        return self._noise(self.experiment, self._minibatches, 0)

    @functools.cached_property
    def noised(self) -> NoisedBatch:
        """Minibatches for `gradient`."""
        return self.noise()

    @functools.cached_property
    def state(self) -> TrainState:
        """Of the training; `gradient` moves it on."""
        return init_state(self.experiment, seed=self._seed)

    def gradient(self, num: int, *, step: int = 0) -> Any:
        """Runs `num` <= `ahead` training steps as if from step number `step`."""
        state = dataclasses.replace(self.state, step=jnp.int32(step))
        self.state, metrics = self._dispatch(state, self.experiment, self.noised, 0, num)
        return metrics


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned text under the columns' names (default: the keys of the first row)."""
    columns = list(rows[0]) if columns is None else columns
    cells = [tuple(_cell(row.get(name)) for name in columns) for row in rows]
    return aligned([tuple(columns), *cells])


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
