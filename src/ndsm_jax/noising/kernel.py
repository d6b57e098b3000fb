"""Noising of linear processes in one draw."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.clock import loss_weight
from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, Weight, time_law
from ndsm_jax.noising.chain import Grid, as_grid
from ndsm_jax.processes.process import Process


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("process", "times", "first", "weight"),
    meta_fields=("k",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactKernel:
    """Noising of a linear process in one draw from its kernel, y = A(t) x_0 + L(t) z.

    The target is the score of the kernel, -E^T L^{-T} z (Vincent 2011; 2011.13456, Eq. 7) or, on a
    torus, that of the wrapped one; mu = A x_0. Build it with `exact_kernel`.

    Attributes:
      first: the smallest time; smaller draws of `times` are raised to it.
      k: times a data point (static).
    """

    process: Process
    times: TimeLaw
    first: Array
    weight: Weight
    k: int = 1

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        assert self.process.kernel is not None
        key_time, key_noise = jax.random.split(key)
        batch, dim = x0.shape
        t = self.times.time(self.times.quantiles(key_time, batch, self.k))
        t = jnp.maximum(t, self.first)
        kernel = self.process.kernel(t)
        z = jax.random.normal(key_noise, (batch, self.k, dim), x0.dtype)
        mu, y = kernel.sample(x0[:, None, :], z)
        return NoisedBatch(
            y=y,
            t=t,
            weight=self.weight(y, t),
            score_target=self.process.project(kernel.score(z)),
            mu=mu,
            noisy=self.process.noisy,
        )


def exact_kernel(
    process: Process,
    grid: Grid = 150,
    *,
    k: int = 4,
    times: TimeLaw | None = None,
    first: float | None = None,
    weight: Weight | None = None,
) -> ExactKernel:
    """Noising by the kernel of a linear process, for denoising score matching.

    Args:
      process: with a kernel.
      grid: times [n + 1], or a number of steps of the process's clock.
      k: random times a data point.
      times: their law; by default `time_law` of the clock on the grid.
      first: smallest time; by default the grid's first.
      weight: of the loss; v(t) by default.

    Raises:
      ValueError: a process without a kernel.
    """
    if process.kernel is None:
        raise ValueError(
            f"process {process.name!r} has no kernel to draw from; use noising.path_windows or"
            " noising.local_steps"
        )
    grid = as_grid(process, grid)
    return ExactKernel(
        process=process,
        times=times or time_law(process.clock, grid),
        first=jnp.float32(grid[1] if first is None else first),
        weight=weight or loss_weight(process.clock, "variance"),
        k=k,
    )
