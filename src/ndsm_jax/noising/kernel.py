"""Noising of linear processes in one draw."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import COUNT, FLAG, KEY, POSITIVE, STEPS, TIMES, arguments, function
from ndsm_jax.clock import loss_weight
from ndsm_jax.linear_maps import Gaussian, Scalar
from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, Weight, time_law
from ndsm_jax.noising.chain import Grid, as_grid
from ndsm_jax.processes.process import Process


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("process", "times", "first", "weight"),
    meta_fields=("k", "stable"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactKernel:
    """Noising of a linear process in one draw from its kernel, y = A(t) x_0 + L(t) z.

    The target is the score of the kernel, -E^T L^{-T} z (Vincent 2011; 2011.13456, Eq. 7) or, on a
    torus, that of the wrapped one; mu = A x_0. Build it with `exact_kernel`.

    Attributes:
      first: the smallest time; smaller draws of `times` are raised to it.
      k: times a data point (static).
      stable: whether targets are averaged over the batch, see `stable_target` (static).
    """

    process: Process
    times: TimeLaw
    first: Array
    weight: Weight
    k: int = 1
    stable: bool = False

    @arguments(key=KEY, x0="[B, d]")
    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        if self.process.kernel is None:
            raise ValueError(
                f"ExactKernel: process {self.process.name!r} has no kernel; see exact_kernel"
            )
        key_time, key_noise = jax.random.split(key)
        batch, dim = x0.shape
        t = self.times.time(self.times.quantiles(key_time, batch, self.k))
        t = jnp.maximum(t, self.first)
        kernel = self.process.kernel(t)
        z = jax.random.normal(key_noise, (batch, self.k, dim), x0.dtype)
        mu, y = kernel.sample(x0[:, None, :], z)
        score = kernel.score(z)
        if self.stable:
            assert isinstance(kernel.scale, Scalar)  # `exact_kernel` has seen to it
            assert isinstance(kernel.root, Scalar)
            score = stable_target(x0, z, kernel.scale.value, kernel.root.value)
        return NoisedBatch(
            y=y,
            t=t,
            weight=self.weight(y, t),
            score_target=self.process.project(score),
            mu=None if self.stable else mu,
            noisy=self.process.noisy,
        )


def stable_target(x: Array, z: Array, scale: Array, std: Array) -> Array:
    """The score of the batch's own noisy law at y = a x + s z: [B, k, d] (2302.00670, Eq. 8).

    Stable targets: the scores of the kernels around all items x_i of the batch, averaged with the
    self-normalised weights w_i ~ N(y; a x_i, s^2 I),

        T = -(y - a sum_i w_i x_i) / s^2 = -(z + (a / s) (x - sum_i w_i x_i)) / s.

    For the whole data that is their exact score; for a batch the variance is that of other batches
    of its size, and there is a bias that vanishes with it.

    Args:
      x: items [B, d], all conditional on the same.
      z: normals [B, k, d].
      scale, std: a and s, [B, k].
    """
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    gram = jnp.einsum("bd,id->bi", centred, centred, precision="highest")
    norms = jnp.diagonal(gram)
    squares = norms[:, None] + norms[None] - 2 * gram
    # An item is at no distance from itself.
    squares = squares * (1 - jnp.eye(len(x), dtype=x.dtype))
    along = jnp.einsum("bkd,id->bki", z, centred, precision="highest")
    own = jnp.einsum("bkd,bd->bk", z, centred, precision="highest")[..., None]
    ratio = (scale / std)[..., None]
    weights = jax.nn.softmax(ratio * (along - own) - 0.5 * ratio**2 * squares[:, None], axis=-1)
    mean = jnp.einsum("bki,id->bkd", weights, centred, precision="highest")
    return -(z + ratio * (centred[:, None] - mean)) / std[..., None]


@arguments(
    process=Process,
    grid=(TIMES, STEPS),
    k=COUNT,
    times=TimeLaw,
    first=POSITIVE,
    weight=function(2),
    stable=FLAG,
)
def exact_kernel(
    process: Process,
    grid: Grid = 150,
    *,
    k: int = 4,
    times: TimeLaw | None = None,
    first: float | None = None,
    weight: Weight | None = None,
    stable: bool = False,
) -> ExactKernel:
    """Noising by the kernel of a linear process, for denoising score matching.

    Args:
      process: with a kernel.
      grid: times [n + 1], or a number of steps of the process's clock.
      k: random times a data point.
      times: their law; by default `time_law` of the clock on the grid.
      first: smallest time; by default the grid's first.
      weight: of the loss; v(t) by default.
      stable: see `stable_target`; for objectives that need no mu, and items that are conditional
        on the same.

    Raises:
      ValueError: a process without a kernel, or stable targets of one whose kernel is not a number
        times I.
    """
    if process.kernel is None:
        raise ValueError(
            f"process {process.name!r} has no kernel to draw from; use noising.path_windows or"
            " noising.local_steps"
        )
    grid = as_grid(process, grid)
    if stable:
        kernel = process.kernel(jnp.asarray(grid[1:]))
        plain = isinstance(kernel, Gaussian) and isinstance(kernel.scale, Scalar)
        if not (plain and isinstance(kernel.root, Scalar)):
            raise ValueError(
                f"noising.stable needs a kernel N(a x, s^2 I), and that of {process.name!r} is"
                " another; set it to false"
            )
    return ExactKernel(
        process=process,
        times=times or time_law(process.clock, grid),
        first=jnp.float32(grid[1] if first is None else first),
        weight=weight or loss_weight(process.clock, "variance"),
        k=k,
        stable=stable,
    )
