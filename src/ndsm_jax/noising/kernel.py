"""Noising of linear processes in one draw."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, loss_weight
from ndsm_jax.sde import SDE


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sde", "times", "first"),
    meta_fields=("k", "weight"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactKernel:
    """Noising of a linear process in one draw from its kernel, y = a(t) x_0 + s(t) z.

    The target is -z / s (Vincent 2011; 2011.13456, Eq. 7), and mu = a x_0.

    Attributes:
      first: the smallest time; smaller draws of `times` are raised to it.
    """

    sde: SDE
    times: TimeLaw
    first: Array
    k: int = 1
    weight: str = "variance"

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
        )
