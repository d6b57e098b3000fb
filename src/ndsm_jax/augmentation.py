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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted:
    """Images, each moved by whole pixels, uniformly from -pixels to pixels down and to the right.

    Of a law p(x) it trains the model of its mean over the (2 pixels + 1)^2 moves. What comes in at
    an edge repeats it.

    Attributes:
      shape: of an image, (height, width, channels).
      pixels: the largest move.
    """

    shape: tuple[int, int, int]
    pixels: int

    def __post_init__(self) -> None:
        fields(self, shape=IMAGE, pixels=COUNT)

    @property
    def dim(self) -> int:
        """H W C."""
        return math.prod(self.shape)

    @arguments(key=KEY, x="[B, d]")
    def __call__(self, key: Array, x: Array) -> Array:
        """Flat images [B, H W C] -> [B, H W C]."""
        moves = jax.random.randint(key, (len(x), 2), -self.pixels, self.pixels + 1)

        def moved(image: Array, move: Array) -> Array:
            down, right = (
                jnp.clip(jnp.arange(size) - step, 0, size - 1)
                for size, step in zip(self.shape[:2], move, strict=True)
            )
            return image[down[:, None], right[None, :]]

        return jax.vmap(moved)(x.reshape(-1, *self.shape), moves).reshape(x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Both:
    """One after the other, each with a key of its own."""

    first: Augment
    second: Augment

    def __call__(self, key: Array, x: Array) -> Array:
        """[B, m] -> [B, m]."""
        keys = jax.random.split(key)
        return self.second(keys[1], self.first(keys[0], x))
