"""The contract between noising and objectives, and the law of the training times.

A noising function maps data and a key to a `NoisedBatch` and knows nothing of the network.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.sde import SDE


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("y", "t", "weight", "score_target", "mu", "component", "probe"),
    meta_fields=("noises",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisedBatch:
    """Noised states, k to a data point, with what the objectives need.

    Attributes:
      y: states [B, k, d].
      t: their times [B, k], time units.
      weight: loss weight [B, k].
      score_target: T with E[T | y] = grad log p_t(y): [B, k, d].
      mu: a state with E[T | mu] = 0, from which the noise in T moved on to y: [B, k, d]. For one
        Gaussian step, y = mu + sigma z and T = -z / sigma. None where no objective asked for it.
      component: component of the prior whose process noised the state, int32 [B, k], for an SDE
        that is `standardised`, otherwise None.
      probe: random directions of mean 0 and covariance I, independent of y: [B, k, d], for
        estimates of a divergence, otherwise None.
      noises: how many consecutive states share one mu (static; divides k).
    """

    y: Array
    t: Array
    weight: Array
    score_target: Array
    mu: Array | None = None
    component: Array | None = None
    probe: Array | None = None
    noises: int = 1


TIME_LAWS = ("clock", "uniform")
WEIGHTS = ("variance", "edm", "unit")


@partial(jax.tree_util.register_dataclass, data_fields=("grid", "cdf"), meta_fields=("stratified",))
@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeLaw:
    """The law of training times, by its distribution function at the points of a grid.

    Attributes:
      grid: increasing times [n + 1], time units.
      cdf: P(time <= grid): [n + 1], from 0 to 1.
      stratified: whether the B k quantiles of a batch are spread evenly (static).
    """

    grid: Array
    cdf: Array
    stratified: bool = True

    def quantiles(self, key: Array, batch: int, k: int) -> Array:
        """U [batch, k], each uniform on [0, 1).

        Stratified, the batch is one shifted lattice, (i + j B) / (k B) + U mod 1 (low-discrepancy
        times, 2107.00630, App. I.1), which keeps each path's k times far apart as well.
        """
        if not self.stratified:
            return jax.random.uniform(key, (batch, k))
        lattice = np.arange(batch)[:, None] + batch * np.arange(k)[None, :]
        points = jnp.asarray(lattice / (batch * k), jnp.float32)
        return (points + jax.random.uniform(key, (1, 1))) % 1.0

    def index(self, u: Array) -> Array:
        """The grid interval i with cdf_i <= u < cdf_{i+1}: [...] -> int [...]."""
        index = jnp.searchsorted(self.cdf, u.ravel(), side="right").reshape(u.shape) - 1
        return jnp.clip(index, 0, self.grid.shape[0] - 2)

    def time(self, u: Array) -> Array:
        """Quantile function, linear between grid points: [...] -> [...] in time units."""
        return jnp.interp(u, self.cdf, self.grid)


class NoisingFn(Protocol):
    """A way of noising: a frozen dataclass that maps a key and data to a `NoisedBatch`."""

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
    def times(self) -> TimeLaw:
        """The law of the training times."""
        return self.noising.times

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch."""
        key_noise, key_probe = jax.random.split(key)
        batch = self.noising(key_noise, x0)
        probe = jax.random.rademacher(key_probe, batch.y.shape, batch.y.dtype)
        return dataclasses.replace(batch, probe=probe)


def time_law(
    sde: SDE, grid: np.ndarray, *, kind: str = "clock", stratified: bool = True
) -> TimeLaw:
    """Law of training times on a grid [n + 1].

    `uniform`: uniform in t, as 2405.15625, Algorithm 1, draws it on a uniform grid. `clock`: an
    equal mixture of uniform in log v(t), where fine structure is lost, and uniform in the
    process's clock, which goes on where v has saturated but modes still relax.

    Raises:
      ValueError: unknown kind.
    """
    if kind == "uniform":
        mass = np.diff(np.asarray(grid, np.float64))
    elif kind == "clock":
        t = jnp.asarray(grid[1:], jnp.float32)
        log_v = np.log(np.asarray(sde.variance(t), np.float64))
        clock = np.asarray(sde.clock(t), np.float64)
        parts = [np.diff(a, prepend=2 * a[0] - a[1]) for a in (log_v, clock)]
        mass = parts[0] / parts[0].sum() + parts[1] / parts[1].sum()
    else:
        raise ValueError(f"noising.times={kind!r}: choose one of {', '.join(TIME_LAWS)}")
    cdf = np.concatenate([[0.0], np.cumsum(mass) / np.sum(mass)])
    return TimeLaw(
        grid=jnp.asarray(grid, jnp.float32),
        cdf=jnp.asarray(cdf, jnp.float32),
        stratified=stratified,
    )


def loss_weight(sde: SDE, t: Array, kind: str) -> Array:
    """`variance`: v(t), which preconditions the score's 1/v scale away; `unit`: 1, as published;
    `edm`: v / a^2, a = exp(-decay / 2), that of 2206.00364, Eq. 8 and Table 1: with the `edm`
    parameterisation the network's own squared error has weight 1 at every time.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"noising.weight={kind!r}: choose one of {', '.join(WEIGHTS)}")
    if kind == "unit":
        return jnp.ones_like(t)
    variance = sde.variance(t)
    return variance if kind == "variance" else variance * jnp.exp(sde.decay(t))
