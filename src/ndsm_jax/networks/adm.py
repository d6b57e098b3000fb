"""The U-Net of ADM and EDM: residual blocks, and self-attention where the resolution is low."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import arguments
from ndsm_jax.networks.attention import SelfAttention, check_heads
from ndsm_jax.networks.embedding import TimeEmbedding, as_images

ZEROS = nn.initializers.zeros


def halved(x: Array) -> Array:
    """Means of 2 x 2 pixels: [n, h, w, c] -> [n, ceil(h / 2), ceil(w / 2), c].

    The border is repeated where a side is odd. A reshape, not a pooling window, whose gradient is
    slow on the CPU.
    """
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(n, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean((2, 4))


def doubled(x: Array, sides: tuple[int, int]) -> Array:
    """Every pixel as 2 x 2, cropped to the sides from which `halved` came."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : sides[0], : sides[1]]


def _norm(x: Array, dtype: Any) -> Array:
    groups = math.gcd(x.shape[-1], min(32, max(1, x.shape[-1] // 4)))
    return nn.GroupNorm(num_groups=groups, dtype=dtype)(x)


class ResidualBlock(nn.Module):
    """[n, h, w, c] and features of the time [n, e] -> [n, h', w', width] (2105.05233, Section 3).

    x + conv(dropout(swish(scale GN(conv(swish(GN(x)))) + shift))), scale and shift by the time
    (adaptive group normalisation), the last convolution starting at zero; then self-attention.

    Attributes:
      width: channels.
      sides: h', w': half those of x, twice those, or the same.
      head_width: of the self-attention; 0: none.
      dropout: rate, where there is a key `dropout`.
      dtype: of the arithmetic.
    """

    width: int
    sides: tuple[int, int]
    head_width: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        def resized(x: Array) -> Array:
            if x.shape[1:3] == self.sides:
                return x
            shrinks = math.prod(x.shape[1:3]) > math.prod(self.sides)
            return halved(x) if shrinks else doubled(x, self.sides)

        inner = resized(nn.swish(_norm(x, self.dtype)))
        inner = _norm(nn.Conv(self.width, (3, 3), dtype=self.dtype)(inner), self.dtype)
        of_time = nn.Dense(2 * self.width, dtype=self.dtype)(time)[:, None, None, :]
        scale, shift = jnp.split(of_time, 2, axis=-1)
        inner = nn.swish(inner * (1 + scale) + shift)
        inner = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(inner)
        inner = nn.Conv(self.width, (3, 3), kernel_init=ZEROS, dtype=self.dtype)(inner)
        x = resized(x)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype)(x)
        x = x + inner
        if self.head_width:
            tokens = _norm(x, self.dtype).reshape(x.shape[0], -1, self.width)
            attention = SelfAttention(self.head_width, kernel_init=ZEROS, dtype=self.dtype)
            x = x + attention(tokens).reshape(x.shape)
        return x


class ADM(nn.Module):
    """(y [n, d], c [n], told [n, d m] or None) -> [n, d] for images: the U-Net of 2105.05233 with
    the arrangement of blocks of 2206.00364, Table 7. What it is told, and a condition, it takes as
    `UNet`.

    One level a width, each half the resolution of the last; changes of resolution are residual
    blocks too. The decoder has one block more a level, and concatenates what the encoder had.

    Attributes:
      shape: (height, width, channels) of the image; d is their product.
      widths: channels of each level, from the finest.
      blocks: residual blocks a level.
      attention: levels whose sides are at most this long attend; 0: none.
      head_width: channels of a head of the attention.
      dropout: rate within the residual blocks, where there is a key `dropout`.
      time_features, time_scale: size and frequency scale of the Gaussian Fourier features.
      zero_output: whether the last layer starts at zero (right for a residual score).
      remat: whether the backward pass computes the inside of the blocks again, to save memory.
      dtype: of the hidden layers' arithmetic, see the package.
      classes: of which a condition tells, see `ConditionEmbedding`.

    Raises:
      ValueError: heads that do not divide the channels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] = (64, 128, 128)
    blocks: int = 2
    attention: int = 16
    head_width: int = 64
    dropout: float = 0.0
    time_features: int = 64
    time_scale: float = 1.0
    zero_output: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    classes: int = 0
    convolutional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for level, width in enumerate(self.widths):
            if self._attends(level):
                check_heads("adm", width, self.head_width)
        super().__post_init__()

    def _sides(self, level: int) -> tuple[int, int]:
        height, width = (-(-side // 2**level) for side in self.shape[:2])
        return height, width

    def _attends(self, level: int) -> bool:
        return max(self._sides(level)) <= self.attention

    @nn.compact
    @arguments(y="[n, e]", c="[n]", told="[n, f]")
    def __call__(
        self, y: Array, c: Array, told: Array | None = None, *, condition: Any = None
    ) -> Array:
        embedding = TimeEmbedding(self.time_features, self.time_scale, self.classes)
        time = embedding(c, condition).astype(self.dtype)
        make = nn.remat(ResidualBlock) if self.remat else ResidualBlock

        def block(x: Array, level: int, name: str, attends: bool = True) -> Array:
            head_width = self.head_width if attends and self._attends(level) else 0
            sizes = self.widths[level], self._sides(level), head_width, self.dropout
            return make(*sizes, dtype=self.dtype, name=f"{name}_{level}")(x, time)

        x = as_images(self.shape, y, told)
        x = nn.Conv(self.widths[0], (3, 3), dtype=jnp.float32, name="first")(x).astype(self.dtype)
        skips, lowest = [x], len(self.widths) - 1
        for level in range(len(self.widths)):
            if level:
                x = block(x, level, "down", attends=False)
                skips.append(x)
            for number in range(self.blocks):
                x = block(x, level, f"encoder{number}")
                skips.append(x)
        x = block(x, lowest, "middle0")
        x = block(x, lowest, "middle1", attends=False)
        for level in reversed(range(len(self.widths))):
            if level < lowest:
                x = block(x, level, "up", attends=False)
            for number in range(self.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), level, f"decoder{number}")
        x = nn.swish(_norm(x.astype(jnp.float32), jnp.float32))
        kernel_init = ZEROS if self.zero_output else nn.initializers.lecun_normal()
        x = nn.Conv(self.shape[2], (3, 3), kernel_init=kernel_init, name="last")(x)
        return x.reshape(y.shape[0], -1)
