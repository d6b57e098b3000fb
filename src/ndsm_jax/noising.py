"""From data and a key to a `NoisedBatch`: the contract between noising and objectives.

A noising function knows nothing of the network. It fills the fields that its process can give;
objectives name the fields they need (`objectives.Objective.needs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.integrators import (
    broadcast_time,
    euler_maruyama_kernel,
    euler_maruyama_step,
    scan_grid,
)
from ndsm_jax.sde import SDE


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("y", "t", "weight", "score_target", "mu", "z", "sigma"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisedBatch:
    """Noised states, k to a data point, with what the objectives need. None where not available.

    Attributes:
      y: states [B, k, d].
      t: their times [B, k], time units.
      weight: loss weight [B, k].
      score_target: an unbiased target, E[score_target | y] = grad log p_t(y): [B, k, d].
      mu, z, sigma: the last local Gaussian step, y = mu + sigma z: [B, k, d], [B, k, d], [B, k].
    """

    y: Array
    t: Array
    weight: Array
    score_target: Array | None = None
    mu: Array | None = None
    z: Array | None = None
    sigma: Array | None = None


TIME_LAWS = ("clock", "uniform")
WEIGHTS = ("variance", "unit")


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
    """`variance`: v(t), which preconditions the score's 1/v scale away; `unit`: 1, as published.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"noising.weight={kind!r}: choose one of {', '.join(WEIGHTS)}")
    return sde.variance(t) if kind == "variance" else jnp.ones_like(t)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sde", "times", "first"),
    meta_fields=("k", "weight"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactKernel:
    """Noising of a linear process in one draw from its kernel, y = a(t) x_0 + s(t) z.

    Fills every field: the target is -z / s (Vincent 2011; 2011.13456, Eq. 7), and the whole kernel
    counts as the local Gaussian step, mu = a x_0, sigma = s.

    Attributes:
      first: the smallest time; smaller draws of `times` are raised to it.
    """

    sde: SDE
    times: TimeLaw
    first: Array
    k: int = 1
    weight: str = "variance"
    provides: ClassVar[frozenset[str]] = frozenset({"score_target", "mu", "z", "sigma"})

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        assert self.sde.kernel is not None
        key_time, key_noise = jax.random.split(key)
        batch, dim = x0.shape
        t = self.times.time(self.times.quantiles(key_time, batch, self.k))
        t = jnp.maximum(t, self.first)
        scale, sigma = self.sde.kernel(t)
        z = jax.random.normal(key_noise, (batch, self.k, dim), x0.dtype)
        mu = scale[..., None] * x0[:, None, :]
        return NoisedBatch(
            y=mu + sigma[..., None] * z,
            t=t,
            weight=loss_weight(self.sde, t, self.weight),
            score_target=-z / sigma[..., None],
            mu=mu,
            z=z,
            sigma=sigma,
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sde", "times", "starts", "lengths"),
    meta_fields=("k", "weight"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedPaths:
    """Noising of any process by simulation (2405.15625, Algorithm 2 and Remark 3.1).

    One Euler-Maruyama path a data point runs over the grid. k times, for intervals i of the grid
    drawn by the time law, it is left at an earlier grid point by one more step of its own length,
    the loss step, whose mean, normal and size (mu, z, sigma) enter the loss. Only the k states are
    kept, never the path.

    Attributes:
      starts, lengths: of the loss step for each interval, see `loss_steps`: int [n], float [n].
    """

    sde: SDE
    times: TimeLaw
    starts: Array
    lengths: Array
    k: int = 1
    weight: str = "variance"
    provides: ClassVar[frozenset[str]] = frozenset({"mu", "z", "sigma"})

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        key_time, key_path, key_step = jax.random.split(key, 3)
        batch, dim = x0.shape
        grid = self.times.grid
        interval = self.times.index(self.times.quantiles(key_time, batch, self.k))
        index, h = self.starts[interval], self.lengths[interval]

        def step(
            carry: tuple[Array, Array], n: Array, t: Array, t_next: Array
        ) -> tuple[tuple[Array, Array], None]:
            y, kept = carry
            z = jax.random.normal(jax.random.fold_in(key_path, n), y.shape, y.dtype)
            length = broadcast_time(t_next - t, y)
            y = euler_maruyama_step(self.sde, y, broadcast_time(t, y), length, z)
            return (y, jnp.where((index == n + 1)[..., None], y[:, None, :], kept)), None

        start = jnp.broadcast_to(x0[:, None, :], (batch, self.k, dim))
        # The last interval's start is the last state a loss step can leave from.
        (_, kept), _ = scan_grid(step, (x0, start), grid[:-1])
        mu, sigma = euler_maruyama_kernel(self.sde, kept, grid[index], h)
        z = jax.random.normal(key_step, kept.shape, kept.dtype)
        t = grid[index] + h
        return NoisedBatch(
            y=mu + sigma[..., None] * z,
            t=t,
            weight=loss_weight(self.sde, t, self.weight),
            mu=mu,
            z=z,
            sigma=sigma,
        )


NoisingFn = Callable[[Array, Array], NoisedBatch]


def loss_steps(
    sde: SDE, grid: np.ndarray, *, fixed: float = 0.0, fraction: float = 0.0
) -> tuple[Array, Array]:
    """Where the loss step of each grid interval starts and how long it is: int [n], float [n].

    `fixed`: from the interval's left end, the same length everywhere, as published (1e-3).
    `fraction`: to the interval's right end tau_i, so that the training times are the grid's. It
    starts at the last grid point s that is early enough for the step to add this fraction of the
    variance already there, v(tau_i) >= (1 + fraction) v(s), but never so early that the step is
    longer than the longest one of the grid: its Euler error stays that of the simulation.

    Raises:
      ValueError: not exactly one of the two positive.
    """
    if (fixed > 0) == (fraction > 0) or min(fixed, fraction) < 0:
        raise ValueError(
            "set exactly one of noising.loss_step (time units) and noising.loss_fraction to a"
            f" positive value, got {fixed} and {fraction}"
        )
    intervals = np.arange(len(grid) - 1)
    if fixed:
        return jnp.asarray(intervals), jnp.full(len(intervals), fixed, jnp.float32)
    v = np.asarray(sde.variance(jnp.asarray(grid, jnp.float32)), np.float64)
    early_enough = np.searchsorted(v, v[1:] / (1 + fraction), side="right") - 1
    longest = np.diff(grid).max() * (1 + 1e-6)
    not_too_early = np.searchsorted(grid, grid[1:] - longest, side="left")
    starts = np.minimum(np.maximum(early_enough, not_too_early), intervals)
    return jnp.asarray(starts), jnp.asarray(grid[1:] - grid[starts], jnp.float32)
