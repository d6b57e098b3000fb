"""Features of the time coordinate."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class GaussianFourierFeatures(nn.Module):
    """[n] -> [n, size]: cos and sin of 2 pi w c, fixed w ~ N(0, scale^2) (2006.10739, Section 5).

    The frequencies are drawn once, from `seed`, and are no parameters.
    """

    size: int
    scale: float
    seed: int = 0

    @nn.compact
    def __call__(self, c: Array) -> Array:
        frequencies = self.scale * jax.random.normal(jax.random.key(self.seed), (1, self.size // 2))
        phase = 2 * jnp.pi * c[:, None] * frequencies
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
