"""Features of the time coordinate, and of angles."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial


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


Features = Callable[[Array], Array]
"""y [n, d] -> [n, e], what a network sees in the place of a state."""


def _harmonics(period: Array, orders: Array, y: Array) -> Array:
    turns = y / period
    turns = turns - jnp.round(turns)  # states run far in the covering space
    phase = 2 * jnp.pi * turns[..., None] * orders[None, None, :]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1).reshape(len(y), -1)


def harmonics(period: float, number: int = 1) -> Features:
    """cos and sin of 2 pi m y / period for m = 1, ..., H: [n, d] -> [n, 2 H d].

    Whatever is a function of these is periodic; one harmonic tells all angles apart, more of them
    let a network vary faster. Those of one coordinate are neighbours, as the channels of a pixel.

    Args:
      period: of every coordinate.
      number: H.

    Raises:
      ValueError: a period that is not positive, or no harmonic.
    """
    if not (period > 0 and number >= 1):
        raise ValueError(
            f"harmonics: period={period} must be positive, and network.harmonics={number} at least"
            " 1: a network of angles has to be periodic"
        )
    orders = jnp.arange(1, number + 1, dtype=jnp.float32)
    return Partial(_harmonics, jnp.float32(period), orders)
