"""What a visit in training changes of a data point, with the key of its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Augment = Callable[[Array, Array], Array]
"""(key, prepared data [B, m]) -> [B, m]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirrored:
    """Images, each mirrored left to right with probability 1/2.

    Of a law p(x) it trains the model of (p(x) + p(mirror image of x)) / 2.

    Attributes:
      shape: of an image, (height, width, channels).
    """

    shape: tuple[int, int, int]

    def __call__(self, key: Array, x: Array) -> Array:
        """Flat images [B, H W C] -> [B, H W C]."""
        images = x.reshape(-1, *self.shape)
        chosen = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        return jnp.where(chosen, images[:, :, ::-1], images).reshape(x.shape)
