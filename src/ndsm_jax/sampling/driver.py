"""From the reference back to data: the one loop that drives every sampler, and samples by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax import checks, parallel
from ndsm_jax.checks import COUNT, GRID, KEY, KEYS, SCORE, STEPS, Wanted, arguments, function
from ndsm_jax.integrators import scan_grid, time_grid
from ndsm_jax.processes.process import Process, ScoreFn
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.sampling.composed import PredictorCorrector, RestartFlow
from ndsm_jax.sampling.flow import AdaptiveFlow, HeunFlow, MultistepFlow
from ndsm_jax.sampling.langevin import AnnealedLangevin
from ndsm_jax.sampling.reverse import (
    ReverseSDE,
    ancestral,
    ddim,
    multistep_sde,
)
from ndsm_jax.sampling.sampler import Hook, Sampler, Step, hook_keys
from ndsm_jax.sampling.start import (
    check_components,
    sample_keys,
    start_components,
    start_states,
)

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "reverse_sde": ReverseSDE,
    "multistep_sde": multistep_sde,
    "ancestral": ancestral,
    "ddim": ddim,
    "predictor_corrector": PredictorCorrector,
    "annealed_langevin": AnnealedLangevin,
    "heun_flow": HeunFlow,
    "multistep_flow": MultistepFlow,
    "adaptive_flow": AdaptiveFlow,
    "restart_flow": RestartFlow,
}


class Reversal(NamedTuple):
    """What `reverse` returns.

    Attributes:
      x: states [B, d] at the grid's first positive time.
      evaluations: of the score for a sample, an integer or one a row [B].
      outputs: of the hook, stacked along a leading axis of steps; None without.
      state: of the sampler there, for its `finish`.
    """

    x: Array
    evaluations: Array | int
    outputs: Any
    state: Any


@arguments(
    keys=KEYS,
    score=SCORE,
    process=Process,
    x="[B, d]",
    grid=GRID,
    sampler=Sampler,
    hook=function(2),
)
def reverse(
    keys: Array,
    score: Callable[..., Array],
    process: Process,
    x: Array,
    grid: Array,
    sampler: Sampler,
    *,
    condition: Any = None,
    hook: Hook | None = None,
) -> Reversal:
    """Runs the process backwards from x [B, d] at the grid's last time to its first positive one.

    What is left, the step to 0, is the sampler's `finish`. Traceable by JAX; the one loop of all
    samplers.

    Args:
      keys: typed keys [B]; row i is driven by keys[i] alone.
      score: u(y [B, d], t [B]) -> [B, r], or u(y, t, condition) where a condition is given.
      process: the noising process.
      x: the start.
      grid: increasing times [n + 1] from 0.
      sampler: one that serves the process, see `Sampler.check`.
      condition: a pytree of arrays with leading axis B, aligned with the rows of x.
      hook: called after every step, see `Hook`.

    Raises:
      ValueError: a sampler that needs to be planned outside of compiled code, see `Sampler.plan`.
    """
    grid = jnp.asarray(grid, x.dtype)
    sampler, times = sampler.plan(process, jnp.flip(grid[1:]))

    def step(state: Any, n: Array, t: Array, t_next: Array) -> tuple[Any, Any]:
        state = _advance(sampler, process, score, condition, keys, state, n, t, t_next)
        if hook is None:
            return state, None
        x, output = hook(state.x, Step(n, t_next, hook_keys(keys, n), condition))
        return state._replace(x=x), output

    state, outputs = scan_grid(step, sampler.init(process, x, times[0]), times)
    count = sampler.evaluations(grid.shape[0] - 1)
    return Reversal(state.x, state.evaluations if count is None else count - 1, outputs, state)


def _bound(process: Process, score: Callable[..., Array], condition: Any) -> ScoreFn:
    score = checks.score("sampling", score, process.noise_dim)
    return score if condition is None else lambda y, t: score(y, t, condition)


def _advance(
    sampler: Sampler,
    process: Process,
    score: Callable[..., Array],
    condition: Any,
    keys: Array,
    state: Any,
    *step: Array,
) -> Any:
    """One step of all rows together, or row by row where they choose their own."""
    if not sampler.by_row:
        return sampler.step(process, _bound(process, score, condition), keys, state, *step)

    def row(one: Any) -> Any:
        keys, state, condition = jax.tree.map(lambda a: a[None], one)
        state = sampler.step(process, _bound(process, score, condition), keys, state, *step)
        return jax.tree.map(lambda a: a[0], state)

    return jax.vmap(row)((keys, state, condition))


class Draws(NamedTuple):
    """A chunk of samples.

    Attributes:
      x: the samples [B / particles, d].
      evaluations: of the score for a row, denoising included, in the mean (a scalar).
      start: the states [B, d] at the horizon from which they come.
      outputs: of the hook, as `Reversal`.
    """

    x: Array
    evaluations: Array
    start: Array
    outputs: Any


@jax.jit
def sample_chunk(
    root: Array,
    index: Array,
    start: Array | None,
    score: Callable[..., Array],
    process: Process,
    grid: Array,
    sampler: Sampler,
    condition: Any = None,
    hook: Hook | None = None,
) -> Draws:
    """Rows number `index` [B] of the stream `root`, on an increasing grid [n + 1] from 0.

    From the reference at T (the components `start` [B] of a mixture, by the sampler's
    `start_log_weights` if None) to the first positive time of the grid by the sampler, then to 0 by
    its `finish`.

    `score` and `hook` are `jax.tree_util.Partial`s, and the sampler is planned; otherwise as
    `reverse`. `sample` sees to all this.
    """
    paths = jax.vmap(partial(sample_keys, root))(index)[2]
    reference = process.reference
    if start is None and isinstance(reference, GaussianMixture):
        start = start_components(root, index, sampler.start_log_weights(reference))
    x = start_states(root, index, reference, start)
    run = reverse(paths, score, process, x, grid, sampler, condition=condition, hook=hook)
    count = 1 + jnp.mean(jnp.asarray(run.evaluations, jnp.float32))
    done = sampler.finish(process, _bound(process, score, condition), paths, run.state, grid[1])
    return Draws(done, count, x, run.outputs)


_DRAWN: dict[str, Wanted] = {
    "key": KEY,
    "score": SCORE,
    "process": Process,
    "num": COUNT,
    "grid": (GRID, STEPS),
    "sampler": Sampler,
    "components": "integers [...]",
    "chunk": COUNT,
}
"""What the arguments of `sample` and `trajectories` have to be."""


@arguments(**_DRAWN, hook=function(2), on_chunk=function(2))
def sample(
    key: Array,
    score: Callable[..., Array],
    process: Process,
    num: int,
    *,
    grid: int | np.ndarray | Array,
    sampler: Sampler | None = None,
    components: np.ndarray | None = None,
    condition: Any = None,
    chunk: int = 500,
    hook: Hook | None = None,
    on_chunk: Callable[[int, float], None] | None = None,
) -> np.ndarray:
    """Draws `num` samples, `chunk` at a time in bounded memory: [num, d] float32.

    Sample i depends on `key`, i, its component and its condition alone, not on `num` or `chunk` (up
    to rounding).

    Args:
      key: typed PRNG key.
      score: u(y [B, d], t [B]) -> [B, r], an approximation of E^T grad log p_t (the score, where
        noise drives every coordinate); a `ScoreModel.bind(params)`, or any function. Where a
        condition is given, u(y, t, condition) with the rows of the condition beside those of y.
        `jax.tree_util.Partial`s over their arrays are not compiled anew for other values.
      process: the noising process.
      num: number of samples.
      grid: increasing times [n + 1] from 0, see `integrators.time_grid`; or n, the number of steps
        of the default one.
      sampler: `ReverseSDE()` if None.
      components: components of a mixture reference to start from, integers [num]; drawn by their
        weights if None. Their choice conditions the samples, see docs/conditioning.md.
      condition: a pytree of arrays with leading axis num.
      chunk: rows in memory at a time, `Sampler.particles` a sample.
      hook: called after every step, see `sampler.Hook`; its outputs are dropped here.
      on_chunk: called with the number of samples done so far and the mean number of evaluations of
        the score for a sample of the last chunk.

    Raises:
      ValueError: num or chunk less than 1, a sampler that does not serve the process, components
        that do not exist, or a condition of another length.
    """
    done: list[np.ndarray] = []
    for draws, size in _chunks(
        key, score, process, num, grid, sampler, components, condition, chunk, hook
    ):
        done.append(parallel.fetched(draws.x)[:size])
        if on_chunk is not None:
            on_chunk(sum(map(len, done)), float(draws.evaluations))
    return np.concatenate(done)


@arguments(**_DRAWN)
def trajectories(
    key: Array,
    score: Callable[..., Array],
    process: Process,
    num: int,
    *,
    grid: int | np.ndarray | Array,
    sampler: Sampler | None = None,
    components: np.ndarray | None = None,
    condition: Any = None,
    chunk: int = 500,
) -> np.ndarray:
    """Samples with the states that they went through: [num, n + 1, d], arguments as of `sample`.

    In the order of the run: from the reference, at every time of the grid downwards, to the sample
    at 0, which is that of `sample`. (`AdaptiveFlow` has the ends of its one solve only,
    `AnnealedLangevin` one state more, its start being at the first level too, and `RestartFlow`
    goes up and down.)
    """
    paths: list[np.ndarray] = []
    for draws, size in _chunks(
        key, score, process, num, grid, sampler, components, condition, chunk, _record
    ):
        start, between, end = parallel.fetched((draws.start, draws.outputs, draws.x))
        path = np.concatenate([start[None], between, end[None]])
        paths.append(np.swapaxes(path, 0, 1)[:size])
    return np.concatenate(paths)


def _record(x: Array, step: Step) -> tuple[Array, Array]:
    return x, x


def _chunks(
    key: Array,
    score: Callable[..., Array],
    process: Process,
    num: int,
    grid: int | np.ndarray | Array,
    sampler: Sampler | None,
    components: np.ndarray | None,
    condition: Any,
    chunk: int,
    hook: Hook | None,
) -> Iterator[tuple[Draws, int]]:
    """Chunks of equal size, the last one padded, each with how many of its rows count."""
    sampler = ReverseSDE() if sampler is None else sampler
    sampler.check(process)
    times = time_grid(process, int(grid)) if np.ndim(grid) == 0 else grid
    times = jnp.asarray(times, jnp.float32)
    sampler, _ = sampler.plan(process, jnp.flip(times[1:]))
    copies = sampler.particles
    if copies > 1 and (components is not None or hook is not None):
        raise ValueError(
            f"{type(sampler).__name__}: a sample is one of {copies} particles, which start in"
            " components of their own; components and hooks are for other samplers"
        )
    if components is not None:
        if not isinstance(process.reference, GaussianMixture):
            raise ValueError(
                f"components: the reference of {process.name!r} is a"
                f" {type(process.reference).__name__}, which has none; leave them out"
            )
        check_components(components, num, process.reference.num_components)
        components = np.asarray(components, np.int32)
    for leaf in jax.tree.leaves(condition):
        if np.shape(leaf)[:1] != (num,):
            rows_of = f"{len(leaf)} rows" if np.ndim(leaf) else "a number"
            raise ValueError(f"condition: {rows_of} for {num} samples")
    measurement = sampler.measurement
    if measurement is not None:
        measurement = measurement.of(num)
    chunk = parallel.whole_rows(min(max(1, chunk // copies), num))
    hook = None if hook is None else _partial(hook)
    score, process, times, hook = parallel.replicated((_partial(score), process, times, hook))
    for first in range(0, num, chunk):
        size = min(chunk, num - first)

        def rows(a: Any, first: int = first, size: int = size) -> Any:
            part = np.asarray(a[first : first + size])
            ends = [(0, chunk - size)] + [(0, 0)] * (part.ndim - 1)
            return parallel.spread(np.repeat(np.pad(part, ends, mode="edge"), copies, axis=0))

        if measurement is not None:
            guided: Any = sampler
            # Those of the states, also where JAX would keep 64 bits.
            read = jax.tree.map(lambda a: a.astype(times.dtype), measurement.rows(rows))
            sampler = dataclasses.replace(guided, measurement=read)
        draws = sample_chunk(
            key,
            parallel.spread(np.arange(first * copies, (first + chunk) * copies, dtype=np.uint32)),
            None if components is None else rows(components),
            score,
            process,
            times,
            sampler,
            jax.tree.map(rows, condition),
            hook,
        )
        yield draws, size


def _partial(function: Callable[..., Any]) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)
