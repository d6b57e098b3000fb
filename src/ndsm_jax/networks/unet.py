"""Convolutional score network."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import arguments
from ndsm_jax.networks.embedding import ConditionEmbedding, GaussianFourierFeatures


class Block(nn.Module):
    """3 x 3 convolution, GroupNorm, scale and shift by the time, swish.

    [n, h, w, c] and time features [n, e] -> [n, h / strides, w / strides, width]. The time comes
    after the normalisation, which would remove a bias that is constant over the image. The
    convolution of a float32 input is in float32, all else in `dtype`.
    """

    width: int
    strides: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        conv_dtype = jnp.promote_types(x.dtype, self.dtype)
        x = nn.Conv(self.width, (3, 3), strides=self.strides, use_bias=False, dtype=conv_dtype)(x)
        groups = math.gcd(self.width, max(1, self.width // 4))
        x = nn.GroupNorm(num_groups=groups, dtype=self.dtype)(x)
        time = nn.Dense(2 * self.width, dtype=self.dtype)(time)[:, None, None, :]
        scale, shift = jnp.split(time, 2, axis=-1)
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        return drop(nn.swish(x * (1 + scale) + shift))


class UNet(nn.Module):
    """(y [n, d], c [n], told [n, d] or None) -> [n, d] for images: the encoder-decoder of
    2405.15625, A.3. What it is told is an image too, further channels of the input; y may have
    several features a pixel, [n, d m]; and a condition (see `conditions`) is added, embedded, to
    the features of the time.

    One level a width, each half the resolution of the last; the decoder resizes to the size of the
    skip connection and concatenates it. Up-sampling is by resizing, not by transposed
    convolution, whose weight gradient is slow in XLA on the CPU.

    Attributes:
      shape: (height, width, channels) of the image; d is their product.
      widths: channels of each level, from the finest.
      time_features, time_scale: size and frequency scale of the Gaussian Fourier features.
      dropout: rate at the end of every block, where there is a key `dropout`.
      zero_output: whether the last layer starts at zero (right for a residual score).
      dtype: of the hidden layers' arithmetic, see the package.
      classes: of which a condition tells, see `ConditionEmbedding`.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] = (32, 64, 128, 256)
    time_features: int = 128
    time_scale: float = 4.0
    dropout: float = 0.0
    zero_output: bool = False
    dtype: Any = jnp.float32
    classes: int = 0
    convolutional: ClassVar[bool] = True

    @nn.compact
    @arguments(y="[n, e]", c="[n]", told="[n, f]")
    def __call__(
        self, y: Array, c: Array, told: Array | None = None, *, condition: Any = None
    ) -> Array:
        n = y.shape[0]
        time = GaussianFourierFeatures(self.time_features, self.time_scale)(c)
        time = nn.Dense(self.time_features)(time)
        if condition is not None:
            time = time + ConditionEmbedding(self.time_features, self.classes)(condition)
        time = nn.swish(time)
        x = y.reshape(n, *self.shape[:2], -1)
        if told is not None:
            x = jnp.concatenate([x, told.reshape(n, *self.shape)], axis=-1)
        skips = []
        for level, width in enumerate(self.widths):
            strides = 2 if level else 1
            x = Block(width, strides, self.dropout, dtype=self.dtype)(x, time)
            skips.append(x)
        skips.pop()
        for width, skip in zip(self.widths[-2::-1], reversed(skips), strict=True):
            x = nn.Conv(width, (1, 1), dtype=self.dtype)(
                x
            )  # narrow first, while the resolution is low
            x = jax.image.resize(x, skip.shape, "nearest")
            x = Block(width, 1, self.dropout, dtype=self.dtype)(
                jnp.concatenate([x, skip], axis=-1), time
            )
        zero = nn.initializers.zeros
        kernel_init = zero if self.zero_output else nn.initializers.lecun_normal()
        x = nn.Conv(self.shape[2], (3, 3), kernel_init=kernel_init, dtype=jnp.float32)(x)
        return x.reshape(n, -1)
