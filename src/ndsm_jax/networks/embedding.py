"""Features of the time coordinate, of conditions, and of angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import COUNT, POSITIVE, arguments


class GaussianFourierFeatures(nn.Module):
    """[n] -> [n, size]: cos and sin of 2 pi w c, fixed w ~ N(0, scale^2) (2006.10739, Section 5).

    The frequencies are drawn once, from `seed`, and are no parameters.
    """

    size: int
    scale: float
    seed: int = 0

    @nn.compact
    def __call__(self, c: Array) -> Array:
        if self.size < 2:
            raise ValueError(
                f"network.time_features={self.size}: at least 2 are needed, a cosine and a sine (or"
                " 0 for mlp, which appends the time)"
            )
        frequencies = self.scale * jax.random.normal(jax.random.key(self.seed), (1, self.size // 2))
        phase = 2 * jnp.pi * c[:, None] * frequencies
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class ConditionEmbedding(nn.Module):
    """A condition, see `conditions`, as features [n, size], the sum of those of its leaves.

    They are added to those of the time, as 2105.05233 has it. Integers [n] have an embedding a
    class, and one of no class; floats [n, c] go through a linear map, and have a vector of their
    own where one of them says nothing.

    Attributes:
      size: of the features.
      classes: how many; only integers need it.
    """

    size: int
    classes: int = 0

    @nn.compact
    def __call__(self, condition: Any) -> Array:
        leaves = jax.tree.leaves(condition)
        widths = [leaf[0].size for leaf in leaves]
        parts = [self._of(leaf, widths[:i].count(widths[i])) for i, leaf in enumerate(leaves)]
        return jnp.sum(jnp.stack(parts), axis=0)

    def _of(self, leaf: Array, before: int) -> Array:
        """Of a leaf after `before` others as wide."""
        unit = nn.initializers.normal(1.0)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            if not self.classes or leaf.ndim != 1:
                raise ValueError(
                    f"condition: integers of shape {list(leaf.shape)} for a network of"
                    f" {self.classes} classes; give the network classes=..., and each kind of label"
                    " a leaf [N] of its own"
                )
            row = jnp.where(leaf < 0, self.classes, leaf)
            return nn.Embed(self.classes + 1, self.size, embedding_init=unit)(row)
        rows = leaf.reshape(len(leaf), -1)
        says = jnp.isfinite(rows).all(axis=-1, keepdims=True)
        name = f"nothing_{rows.shape[-1]}" + (f"_{before}" if before else "")
        nothing = self.param(name, unit, (1, self.size))
        return jnp.where(says, nn.Dense(self.size)(jnp.where(says, rows, 0.0)), nothing)


class TimeEmbedding(nn.Module):
    """Times [n], and a condition or None, as features [n, 4 size] for every block of a network.

    Gaussian Fourier features, dense, swish, dense; the condition is added, embedded, and then the
    last swish (2105.05233, 2212.09748). In float32.

    Attributes:
      size, scale: of the Fourier features.
      classes: see `ConditionEmbedding`.
    """

    size: int
    scale: float
    classes: int = 0

    @nn.compact
    def __call__(self, c: Array, condition: Any = None) -> Array:
        time = nn.Dense(4 * self.size)(GaussianFourierFeatures(self.size, self.scale)(c))
        time = nn.Dense(4 * self.size)(nn.swish(time))
        if condition is not None:
            time = time + ConditionEmbedding(4 * self.size, self.classes)(condition)
        return nn.swish(time)


def as_images(shape: tuple[int, int, int], y: Array, told: Array | None) -> Array:
    """States [n, h w c m], and what a network is told of them, as images [n, h, w, channels]."""
    images = y.reshape(y.shape[0], *shape[:2], -1)
    if told is None:
        return images
    return jnp.concatenate([images, told.reshape(y.shape[0], *shape[:2], -1)], axis=-1)


Features = Callable[[Array], Array]
"""y [n, d] -> [n, e], what a network sees in the place of a state."""


def _harmonics(period: Array, orders: Array, y: Array) -> Array:
    turns = y / period
    turns = turns - jnp.round(turns)  # states run far in the covering space
    phase = 2 * jnp.pi * turns[..., None] * orders[None, None, :]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1).reshape(len(y), -1)


@arguments(period=POSITIVE, number=COUNT)
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
    orders = jnp.arange(1, number + 1, dtype=jnp.float32)
    return Partial(_harmonics, jnp.float32(period), orders)
