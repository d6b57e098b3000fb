"""Samplers: the noising process run backwards from the prior."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from ndsm_jax.integrators import broadcast_time, heun_step, scan_grid
from ndsm_jax.sde import SDE, ScoreFn, probability_flow, reverse_drift


def reverse_sde(keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array) -> Array:
    """Reverse Euler-Maruyama (2405.15625, Algorithm 3) down a decreasing grid [n + 1].

    Row i of x [B, d] is driven by keys[i] alone: x <- x + (-b + g^2 s) h + g sqrt(h) z.
    """
    drift = reverse_drift(sde, score)

    def step(x: Array, n: Array, t: Array, t_next: Array) -> tuple[Array, None]:
        t = broadcast_time(t, x)
        h = t - t_next
        z = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), x.shape[1:]))(keys)
        scale = sde.diffusion(t) * jnp.sqrt(h)
        return x + h[:, None] * drift(x, t) + scale[:, None] * z, None

    return scan_grid(step, x, grid)[0]


def heun_flow(keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array) -> Array:
    """Heun's method on the probability-flow ODE down a decreasing grid; keys are not used.

    Two evaluations of the score a step.
    """
    velocity = probability_flow(sde, score)

    def step(x: Array, n: Array, t: Array, t_next: Array) -> tuple[Array, None]:
        return heun_step(velocity, x, broadcast_time(t, x), broadcast_time(t_next, x)), None

    return scan_grid(step, x, grid)[0]


def denoise(score: ScoreFn, sde: SDE, x: Array, t: Array) -> Array:
    """The posterior mean E[Y_0 | Y_t = x], by Tweedie's formula: [B, d] -> [B, d].

    Exact for linear processes, (x + s(t)^2 score) / a(t). For others to first order in t, as one
    step backwards without noise: x - t b + v(t) score.
    """
    t = broadcast_time(t, x)
    if sde.kernel is not None:
        scale, std = sde.kernel(t)
        return (x + std[:, None] ** 2 * score(x, t)) / scale[:, None]
    return x - t[:, None] * sde.drift(x, t) + sde.variance(t)[:, None] * score(x, t)


SAMPLERS: dict[str, Callable[[Array, ScoreFn, SDE, Array, Array], Array]] = {
    "reverse_sde": reverse_sde,
    "heun_flow": heun_flow,
}


def _sample_keys(root: Array, i: Array) -> tuple[Array, Array, Array]:
    """Keys of sample i of the stream `root`: of its component, its place in there, its path."""
    start, path = jax.random.split(jax.random.fold_in(root, i))
    component, noise = jax.random.split(start)
    return component, noise, path


@jax.jit
def start_components(root: Array, index: Array, log_weights: Array) -> Array:
    """Components from which samples number `index` [B] of the stream `root` start: int32 [B].

    Drawn with probabilities softmax(log_weights), log_weights [K] or one row a sample [B, K]. With
    the prior's own `log_weights` they are those that `sample` uses when no components are given.
    """
    log_weights = jnp.broadcast_to(log_weights, (*index.shape, log_weights.shape[-1]))
    keys = jax.vmap(partial(_sample_keys, root))(index)[0]
    return jax.vmap(jax.random.categorical)(keys, log_weights)


@partial(jax.jit, static_argnames=("sampler",))
def sample_chunk(
    root: Array,
    index: Array,
    components: Array,
    score: ScoreFn,
    sde: SDE,
    grid: Array,
    *,
    sampler: str,
) -> Array:
    """Samples number `index` [B] of the stream `root`: [B, d], on an increasing grid [n + 1].

    From `components` [B] of the prior at T to the first time of the grid by `sampler`, then one
    `denoise` step to 0.
    """
    _, noise_keys, path_keys = jax.vmap(partial(_sample_keys, root))(index)
    noise = jax.vmap(lambda key: jax.random.normal(key, (sde.dim,)))(noise_keys)
    x = sde.prior.sample_component(components, noise)
    x = SAMPLERS[sampler](path_keys, score, sde, x, jnp.flip(grid[1:]))
    return denoise(score, sde, x, grid[1])


def sample(
    key: Array,
    score: ScoreFn,
    sde: SDE,
    num: int,
    *,
    grid: np.ndarray,
    sampler: str = "reverse_sde",
    components: np.ndarray | None = None,
    chunk: int = 500,
    progress: bool = False,
) -> np.ndarray:
    """Draws `num` samples, `chunk` at a time in bounded memory: [num, d].

    Sample i depends on `key`, i and its component alone, not on `num` or `chunk` (up to rounding).

    Args:
      key: typed PRNG key.
      score: s(y [B, d], t [B]) -> [B, d]; a `ScoreModel.bind(params)`, or any function.
      sde: the noising process.
      num: number of samples.
      grid: increasing times [n + 1] from 0, see `integrators.time_grid`.
      sampler: a key of `SAMPLERS`.
      components: components of the prior to start from, integers [num]; drawn by their weights
        if None. Their choice conditions the samples, see docs/conditioning.md.
      chunk: samples in memory at a time.
      progress: whether to show a progress bar.

    Raises:
      ValueError: unknown sampler, num or chunk less than 1, or components that do not exist.
    """
    if num < 1 or chunk < 1:
        raise ValueError(f"sample: num and chunk must be at least 1, got {num} and {chunk}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sample.sampler={sampler!r}: choose one of {', '.join(SAMPLERS)}")
    score = score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)
    if components is not None:
        _check_components(components, num, sde.prior.num_components)
    chunk = min(chunk, num)
    times = jnp.asarray(grid)
    done = []
    with tqdm(total=num, desc="sampling", unit=" samples", disable=not progress) as bar:
        for start in range(0, num, chunk):
            index = jnp.arange(start, start + chunk, dtype=jnp.uint32)
            if components is None:
                started = start_components(key, index, sde.prior.log_weights)
            else:
                rest = np.asarray(components[start : start + chunk], np.int32)
                started = jnp.asarray(np.pad(rest, (0, chunk - len(rest))))
            x = sample_chunk(key, index, started, score, sde, times, sampler=sampler)
            done.append(np.asarray(x)[: num - start])
            bar.update(len(done[-1]))
    return np.concatenate(done)


def _check_components(components: np.ndarray, num: int, num_components: int) -> None:
    components = np.asarray(components)
    if components.shape != (num,) or not np.issubdtype(components.dtype, np.integer):
        raise ValueError(
            f"components of shape {components.shape} and type {components.dtype}: one integer for"
            f" each of the {num} samples is needed"
        )
    wrong = components[(components < 0) | (components >= num_components)]
    if wrong.size:
        raise ValueError(
            f"component {wrong[0]}: the prior has {num_components} components, numbered from 0 to"
            f" {num_components - 1}"
        )
