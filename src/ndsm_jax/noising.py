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
        mass = sum(part / part.sum() for part in parts)
    else:
        raise ValueError(f"noising.times={kind!r}: choose one of {', '.join(TIME_LAWS)}")
    cdf = np.concatenate([[0.0], np.cumsum(mass) / np.sum(mass)])
    return TimeLaw(
        grid=jnp.asarray(grid, jnp.float32),
        cdf=jnp.asarray(cdf, jnp.float32),
        stratified=stratified,
    )


def loss_weight(sde: SDE, t: Array, kind: str) -> Array:
    """`variance`: v(t), which preconditions the score's 1/v scale away; `unit`: 1, as published."""
    return sde.variance(t) if kind == "variance" else jnp.ones_like(t)


@partial(
    jax.tree_util.register_dataclass, data_fields=("sde", "times"), meta_fields=("k", "weight")
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactKernel:
    """Noising of a linear process in one draw from its kernel, y = a(t) x_0 + s(t) z.

    Fills every field: the target is -z / s (Vincent 2011; 2011.13456, Eq. 7), and the whole kernel
    counts as the local Gaussian step, mu = a x_0, sigma = s.
    """

    sde: SDE
    times: TimeLaw
    k: int = 1
    weight: str = "variance"
    provides: ClassVar[frozenset[str]] = frozenset({"score_target", "mu", "z", "sigma"})

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        assert self.sde.kernel is not None
        key_time, key_noise = jax.random.split(key)
        batch, dim = x0.shape
        t = self.times.time(self.times.quantiles(key_time, batch, self.k))
        t = jnp.maximum(t, self.times.grid[1])
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
    data_fields=("sde", "times", "loss_steps"),
    meta_fields=("k", "weight"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedPaths:
    """Noising of any process by simulation (2405.15625, Algorithm 2 and Remark 3.1).

    One Euler-Maruyama path a data point runs over the grid. At k random grid points it is left by
    one more step, of its own length, whose mean, normal and size (mu, z, sigma) enter the loss.
    Only the k states are kept, never the path.

    Attributes:
      loss_steps: length of the last step from each grid point [n], time units.
    """

    sde: SDE
    times: TimeLaw
    loss_steps: Array
    k: int = 1
    weight: str = "variance"
    provides: ClassVar[frozenset[str]] = frozenset({"mu", "z", "sigma"})

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        key_time, key_path, key_step = jax.random.split(key, 3)
        batch, dim = x0.shape
        grid = self.times.grid
        index = self.times.index(self.times.quantiles(key_time, batch, self.k))

        def step(
            carry: tuple[Array, Array], n: Array, t: Array, t_next: Array
        ) -> tuple[tuple[Array, Array], None]:
            y, kept = carry
            z = jax.random.normal(jax.random.fold_in(key_path, n), y.shape, y.dtype)
            h = broadcast_time(t_next - t, y)
            y = euler_maruyama_step(self.sde, y, broadcast_time(t, y), h, z)
            return (y, jnp.where((index == n + 1)[..., None], y[:, None, :], kept)), None

        start = jnp.broadcast_to(x0[:, None, :], (batch, self.k, dim))
        # The last interval's start is the last state a loss step can leave from.
        (_, kept), _ = scan_grid(step, (x0, start), grid[:-1])
        h = self.loss_steps[index]
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


def loss_steps(sde: SDE, grid: np.ndarray, *, fixed: float = 0.0, fraction: float = 0.0) -> Array:
    """Length of the loss step from each grid point [n], time units.

    `fixed`: the same everywhere, as published (1e-3). `fraction`: the step that adds this fraction
    of the variance v(t) already there (of v(t_1) at t = 0), but never more than the longest step
    of the grid, so that its Euler error stays that of the simulation.

    Raises:
      ValueError: not exactly one of the two positive.
    """
    if (fixed > 0) == (fraction > 0) or min(fixed, fraction) < 0:
        raise ValueError(
            "set exactly one of noising.loss_step (time units) and noising.loss_fraction to a"
            f" positive value, got {fixed} and {fraction}"
        )
    starts = jnp.asarray(grid[:-1], jnp.float32)
    if fixed:
        return jnp.full_like(starts, fixed)
    v = sde.variance(jnp.maximum(starts, grid[1]))
    return jnp.minimum(fraction * v / sde.diffusion(starts) ** 2, float(np.max(np.diff(grid))))
