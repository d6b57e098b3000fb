"""Noising for NDSM: a simulated path, left by one more Gaussian step."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, FLAG, GRID, KEY, STEPS, arguments, function, number, one_of
from ndsm_jax.clock import Clock, loss_weight
from ndsm_jax.integrators import INTEGRATOR_CHOICES, chosen_integrator, local_kernel
from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, Weight, law_on
from ndsm_jax.noising.chain import (
    SIMULATIONS,
    Chain,
    Grid,
    as_grid,
    make_chain,
    relaxing_variance,
    walk,
)
from ndsm_jax.noising.kernel import stable_target
from ndsm_jax.processes.process import Process


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("chain", "process", "times", "starts", "lengths", "weight"),
    meta_fields=("k", "noises", "integrator", "stable"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """Noising for NDSM (2405.15625, Algorithm 2 and Remark 3.1).

    A path a data point runs over the grid. k times, for intervals i of the grid drawn by the time
    law, it is left at an earlier grid point by one more step of its own length, the loss step,
    y = mu + sigma E z, which always is taken in the whole space. The target is -z / sigma.

    Attributes:
      chain: what is simulated, the process itself or its quotient.
      process: the process.
      starts, lengths: of the loss step for each interval, see `loss_steps`: int [n], float [n].
      k: times a path (static).
      noises: normals that share one mu, so that a path gives k noises states (static).
      weight: of the loss, see `clock.loss_weight`.
      integrator: see `integrators.step_sizes` (static).
      stable: whether all paths have the same k times, and targets are averaged over the paths
        (2302.00670): `stable_target` of the local kernels N(mu_i, sigma^2 I), which have one width:
        an exponential loss step is then that of the process's clock, not of the path's own
        component (static).
    """

    chain: Chain
    process: Process
    times: TimeLaw
    starts: Array
    lengths: Array
    weight: Weight
    k: int = 1
    noises: int = 1
    integrator: str = "euler"
    stable: bool = False

    @arguments(key=KEY, x0="[B, d]")
    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k noises] states."""
        key_time, key_path, key_step = jax.random.split(key, 3)
        grid = self.times.grid
        times = 1 if self.stable else len(x0)
        interval = self.times.index(self.times.quantiles(key_time, times, self.k))
        interval = jnp.broadcast_to(interval, (len(x0), self.k))
        index, h = self.starts[interval], self.lengths[interval]
        # The last interval's start is the last state a loss step can leave from.
        left, _ = walk(key_path, self.chain, x0, index, grid[:-1], integrator=self.integrator)
        by: Any = {"integrator": self.integrator}
        if not self.stable:  # else the kernels of all paths are of one width
            start = self.chain.start(x0)[:, None]
            by["variance"] = relaxing_variance(self.chain, start, self.integrator)
        mu, sigma = local_kernel(self.process, left, grid[index], h, **by)
        centres = mu
        mu, sigma, t = (
            jnp.repeat(a, self.noises, axis=1) for a in (mu, sigma[..., None], grid[index] + h)
        )
        z = jax.random.normal(key_step, (*t.shape, self.process.noise_dim), mu.dtype)
        y = mu + self.process.spread(sigma * z)
        return NoisedBatch(
            y=y,
            t=t,
            weight=self.weight(y, t),
            score_target=self._averaged(centres, z, sigma[..., 0]) if self.stable else -z / sigma,
            mu=None if self.stable else mu,
            noises=self.noises,
            noisy=self.process.noisy,
        )

    def _averaged(self, mu: Array, z: Array, sigma: Array) -> Array:
        """`stable_target` time by time: mu [B, k, d], z [B, k noises, d], sigma [B, k noises]."""
        batch, k, dim = mu.shape
        z_of = z.reshape(batch, k, self.noises, dim)
        sigma_of = sigma.reshape(batch, k, self.noises)
        averaged = jax.vmap(stable_target, in_axes=1, out_axes=1)
        return averaged(mu, z_of, jnp.ones_like(sigma_of), sigma_of).reshape(z.shape)


@arguments(clock=Clock, grid=GRID, fixed=number(), fraction=number())
def loss_steps(
    clock: Clock, grid: np.ndarray, *, fixed: float = 0.0, fraction: float = 0.0
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
    v = np.asarray(clock.variance(jnp.asarray(grid, jnp.float32)), np.float64)
    early_enough = np.searchsorted(v, v[1:] / (1 + fraction), side="right") - 1
    longest = np.diff(grid).max() * (1 + 1e-6)
    not_too_early = np.searchsorted(grid, grid[1:] - longest, side="left")
    starts = np.minimum(np.maximum(early_enough, not_too_early), intervals)
    return jnp.asarray(starts), jnp.asarray(grid[1:] - grid[starts], jnp.float32)


@arguments(
    process=Process,
    grid=(GRID, STEPS),
    k=COUNT,
    noises=COUNT,
    loss_step=number(),
    loss_fraction=number(),
    simulation=one_of(SIMULATIONS),
    integrator=one_of(INTEGRATOR_CHOICES),
    times=TimeLaw,
    weight=function(2),
    stable=FLAG,
)
def local_steps(
    process: Process,
    grid: Grid = 150,
    *,
    k: int = 4,
    noises: int = 1,
    loss_step: float = 0.0,
    loss_fraction: float = 2.0,
    simulation: str = "auto",
    integrator: str = "auto",
    times: TimeLaw | None = None,
    weight: Weight | None = None,
    stable: bool = False,
) -> LocalSteps:
    """Noising for NDSM of any process, also where only some coordinates are noisy.

    Args:
      process: the process.
      grid: times [n + 1], or a number of steps of the process's clock.
      k: random times a path.
      noises: normals that share one mu.
      loss_step, loss_fraction: see `loss_steps`; a positive step switches the fraction off.
      simulation: see `make_chain`.
      integrator: see `integrators.step_sizes` and, of `auto`, `integrators.chosen_integrator`.
      times: law of the times, on the same grid; by default `time_law` of the clock.
      weight: of the loss; v(t) by default.
      stable: see `LocalSteps`; for objectives that need no mu, and items that are conditional on
        the same.

    Raises:
      ValueError: a law of the times on another grid; stable targets where noise drives only some
        coordinates; and as `loss_steps` and `make_chain`.
    """
    if stable and process.noisy is not None:
        raise ValueError(
            "noising.stable averages over paths whose noise is in every coordinate, and that of"
            f" {process.name!r} is in {process.noise_dim} of {process.dim}; set it to false"
        )
    grid, integrator = as_grid(process, grid), chosen_integrator(process, integrator)
    starts, lengths = loss_steps(
        process.clock, grid, fixed=loss_step, fraction=0.0 if loss_step > 0 else loss_fraction
    )
    return LocalSteps(
        chain=make_chain(process, grid, kind=simulation, integrator=integrator),
        process=process,
        times=law_on(grid, times, process.clock),
        starts=starts,
        lengths=lengths,
        weight=weight or loss_weight(process.clock, "variance"),
        k=k,
        noises=noises,
        integrator=integrator,
        stable=stable,
    )
