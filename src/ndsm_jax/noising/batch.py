"""The contract between noising and objectives, and the law of the training times.

A noising function maps data and a key to a `NoisedBatch` and knows nothing of the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import logit, ndtr

from ndsm_jax.checks import FLAG, KEY, TIMES, arguments, one_of
from ndsm_jax.clock import Clock


class Root(Protocol):
    """A linear map L of states, as `linear_maps` has them; a pytree."""

    def mv_t(self, y: Array) -> Array:
        """L^T y: [..., d] -> [..., d]."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("y", "t", "weight", "score_target", "mu", "condition", "probe", "root"),
    meta_fields=("noises", "noisy"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisedBatch:
    """Noised states, k to a data point, with what the objectives need.

    Attributes:
      y: states [B, k, d].
      t: their times [B, k], time units.
      weight: loss weight [B, k].
      score_target: T with E[T | y] = E^T grad log p_t(y): [B, k, r]; r = d where all are noisy.
      mu: a state with E[T | mu] = 0, from which the noise in T moved on to y: [B, k, d]. For one
        Gaussian step, y = mu + sigma E z and T = -z / sigma. None where no objective asked for it.
      condition: what the score is conditional on, a pytree of arrays [B, 1, ...], the same for all
        states of a data point: from the frame, what the network is told, or `conditions.Both`; None
        where it is on nothing.
      probe: random directions of mean 0 and covariance I, independent of y: [B, k, r], for
        estimates of a divergence, otherwise None.
      root: L(y, t), a linear map of states: a residual r [B, k, r] of the score counts as
        |L^T E r|^2 instead of |r|^2. A function of y and t, or the minimiser would not be the
        score. None: I.
      noises: how many consecutive states share one mu (static; divides k).
      noisy: the coordinates that noise drives, those of the score (static); None: all.
    """

    y: Array
    t: Array
    weight: Array
    score_target: Array
    mu: Array | None = None
    condition: Any = None
    probe: Array | None = None
    root: Root | None = None
    noises: int = 1
    noisy: tuple[int, ...] | None = None


TIME_LAWS = ("clock", "uniform", "logit_normal", "levels")

Weight = Callable[[Array, Array], Array]
"""(y [..., d], t [...]) -> the weight of the loss [...], see `clock.loss_weight`."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("grid", "cdf"),
    meta_fields=("stratified", "discrete"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeLaw:
    """The law of training times, by its distribution function at the points of a grid.

    Attributes:
      grid: increasing times [n + 1], time units.
      cdf: P(time <= grid): [n + 1], from 0 to 1.
      stratified: whether the B k quantiles of a batch are spread evenly (static).
      discrete: whether times are those of the grid, at the ends of its intervals (static).
    """

    grid: Array
    cdf: Array
    stratified: bool = True
    discrete: bool = False

    def quantiles(self, key: Array, batch: int, k: int) -> Array:
        """U [batch, k], each uniform on [0, 1).

        Stratified, the batch is one shifted lattice, (i + j B) / (k B) + U mod 1 (low-discrepancy
        times, 2107.00630, App. I.1), which keeps each path's k times far apart as well.
        """
        if not self.stratified:
            return jax.random.uniform(key, (batch, k), self.cdf.dtype)
        lattice = np.arange(batch)[:, None] + batch * np.arange(k)[None, :]
        points = jnp.asarray(lattice / (batch * k), self.cdf.dtype)
        return (points + jax.random.uniform(key, (1, 1), self.cdf.dtype)) % 1.0

    def index(self, u: Array) -> Array:
        """The grid interval i with cdf_i <= u < cdf_{i+1}: [...] -> int [...]."""
        index = jnp.searchsorted(self.cdf, u.ravel(), side="right").reshape(u.shape) - 1
        return jnp.clip(index, 0, self.grid.shape[0] - 2)

    def time(self, u: Array) -> Array:
        """Quantile function, linear between grid points or discrete: [...] -> [...] time units."""
        if self.discrete:
            return self.grid[self.index(u) + 1]
        return jnp.interp(u, self.cdf, self.grid)


class NoisingFn(Protocol):
    """A way of noising: a frozen dataclass that maps a key and data to a `NoisedBatch`.

    One that has a field `process` is held to that of its experiment.
    """

    @property
    def times(self) -> TimeLaw:
        """The law of the training times."""

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch."""


@partial(jax.tree_util.register_dataclass, data_fields=("noising",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Probed:
    """A way of noising that also draws `NoisedBatch.probe`, random signs."""

    noising: NoisingFn

    @property
    def process(self) -> Any:
        """That of what it wraps, or None."""
        return getattr(self.noising, "process", None)

    @property
    def times(self) -> TimeLaw:
        """The law of the training times."""
        return self.noising.times

    @arguments(key=KEY, x0="[B, d]")
    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch."""
        key_noise, key_probe = jax.random.split(key)
        batch = self.noising(key_noise, x0)
        probe = jax.random.rademacher(key_probe, batch.score_target.shape, batch.y.dtype)
        return dataclasses.replace(batch, probe=probe)


@arguments(clock=Clock, grid=TIMES, kind=one_of(TIME_LAWS), stratified=FLAG)
def time_law(
    clock: Clock, grid: np.ndarray, *, kind: str = "clock", stratified: bool = True
) -> TimeLaw:
    """Law of training times on a grid [n + 1] from 0; of one step, n = 1, all of it is there.

    `uniform`: uniform in t, as 2405.15625, Algorithm 1, draws it on a uniform grid. `clock`: an
    equal mixture of uniform in log v(t), where fine structure is lost, and uniform in the
    process's clock, which goes on where v has saturated but modes still relax. `logit_normal`:
    log(t / (T - t)) is standard normal: the middle of a straight line gets most (2403.03206, 3.1).
    `levels`: the grid's positive times, all as often, as NCSN (1907.05600) draws its noise levels.

    Raises:
      ValueError: unknown kind.
    """
    if kind == "uniform":
        mass = np.diff(np.asarray(grid, np.float64))
    elif kind == "levels" or len(grid) == 2:
        mass = np.ones(len(grid) - 1)
    elif kind == "logit_normal":
        share = np.asarray(grid, np.float64) / float(grid[-1])
        mass = np.diff(ndtr(logit(share)))
    else:
        t = jnp.asarray(grid[1:], jnp.float32)
        log_v = np.log(np.asarray(clock.variance(t), np.float64))
        time = np.asarray(clock.time(t), np.float64)
        parts = [np.diff(a, prepend=2 * a[0] - a[1]) for a in (log_v, time)]
        mass = parts[0] / parts[0].sum() + parts[1] / parts[1].sum()
    cdf = np.concatenate([[0.0], np.cumsum(mass) / np.sum(mass)])
    return TimeLaw(
        grid=jnp.asarray(grid, jnp.float32),
        cdf=jnp.asarray(cdf, jnp.float32),
        stratified=stratified,
        discrete=kind == "levels",
    )


def law_on(grid: np.ndarray, times: TimeLaw | None, clock: Clock) -> TimeLaw:
    """The law `times` of a way of noising on a grid [n + 1]; by default `time_law` of the clock.

    Raises:
      ValueError: a law on another grid, whose intervals would be taken for those of this one.
    """
    if times is None:
        return time_law(clock, grid)
    if not np.array_equal(np.asarray(times.grid), np.asarray(grid, np.float32)):
        raise ValueError(
            f"noising: times is a law on a grid of {len(times.grid) - 1} steps, which is not the"
            f" grid of {len(grid) - 1} steps that is simulated; give both the same grid"
        )
    return times
