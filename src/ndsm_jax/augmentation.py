"""What a visit in training changes of a data point, with the key of its step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import COUNT, KEY, Needs, arguments, fields

Augment = Callable[[Array, Array], Array]
"""(key, prepared data [B, m]) -> [B, m]."""


IMAGE = Needs(
    "the shape of an image, (height, width, channels),",
    lambda v: isinstance(v, tuple | list) and len(v) == 3 and all(map(COUNT.holds, v)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirrored:
    """Images, each mirrored left to right with probability 1/2.

    Of a law p(x) it trains the model of (p(x) + p(mirror image of x)) / 2.

    Attributes:
      shape: of an image, (height, width, channels).
    """

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        fields(self, shape=IMAGE)

    @property
    def dim(self) -> int:
        """H W C."""
        return math.prod(self.shape)

    @arguments(key=KEY, x="[B, d]")
    def __call__(self, key: Array, x: Array) -> Array:
        """Flat images [B, H W C] -> [B, H W C]."""
        images = x.reshape(-1, *self.shape)
        chosen = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        return jnp.where(chosen, images[:, :, ::-1], images).reshape(x.shape)
