"""A transformer of patches of an image."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import arguments
from ndsm_jax.networks.attention import SelfAttention, check_heads
from ndsm_jax.networks.embedding import TimeEmbedding, as_images

ZEROS = nn.initializers.zeros


def patches(images: Array, size: int) -> Array:
    """[n, h, w, c] -> [n, (h / size) (w / size), size^2 c], row by row."""
    n, h, w, c = images.shape
    x = images.reshape(n, h // size, size, w // size, size, c)
    return x.swapaxes(2, 3).reshape(n, -1, size * size * c)


def assembled(x: Array, size: int, sides: tuple[int, int]) -> Array:
    """Images [n, h, w, c] from their `patches`; sides: (h, w)."""
    h, w = sides
    x = x.reshape(x.shape[0], h // size, w // size, size, size, -1)
    return x.swapaxes(2, 3).reshape(x.shape[0], h, w, -1)


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Sines and cosines of row and column, [rows columns, width] (2111.06377, App. A.1).

    A quarter of the width each, of the frequencies 10000^(-4 i / width).
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    phases = np.concatenate([place.reshape(-1, 1) * frequencies for place in (row, column)], axis=1)
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=1).astype(np.float32)


def _modulated(x: Array, shift: Array, scale: Array, dtype: Any) -> Array:
    """A layer normalisation whose scale and shift come from the time (adaLN)."""
    return nn.LayerNorm(use_scale=False, use_bias=False, dtype=dtype)(x) * (1 + scale) + shift


class TransformerBlock(nn.Module):
    """[n, tokens, w] and features of the time [n, e] -> [n, tokens, w] (2212.09748, Figure 3).

    x + gate_1 attention(adaLN(x)), then x + gate_2 mlp(adaLN(x)). Shifts, scales and gates are a
    linear map of the features of the time that starts at zero, so that the block starts as the
    identity (adaLN-Zero).
    """

    head_width: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        width, dtype = x.shape[-1], self.dtype
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        of_time = nn.Dense(6 * width, kernel_init=ZEROS, dtype=dtype, name="time")(time)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(of_time[:, None, :], 6, axis=-1)
        inner = SelfAttention(self.head_width, dtype=dtype)(_modulated(x, shift1, scale1, dtype))
        x = x + gate1 * drop(inner)
        inner = nn.Dense(4 * width, dtype=dtype, name="wide")(_modulated(x, shift2, scale2, dtype))
        return x + gate2 * drop(nn.Dense(width, dtype=dtype, name="narrow")(nn.gelu(inner)))


class DiT(nn.Module):
    """(y [n, d], c [n], told [n, d m] or None) -> [n, d] for images: the diffusion transformer of
    2212.09748 with adaLN-Zero. What it is told, and a condition, it takes as `UNet`.

    All of its work is products of matrices.

    Attributes:
      shape: (height, width, channels) of the image; d is their product.
      patch: side of the patches, which divides those of the image.
      width: of a token, a multiple of 4.
      depth: blocks.
      head_width: channels of a head of the attention.
      dropout: rate at the end of both halves of a block, where there is a key `dropout`.
      time_features, time_scale, zero_output, remat, dtype, classes: as of `ADM`.

    Raises:
      ValueError: patches that do not fill the image, heads that do not fill the width, or a width
        that is no multiple of 4.
    """

    shape: tuple[int, int, int]
    patch: int = 2
    width: int = 256
    depth: int = 5
    head_width: int = 64
    dropout: float = 0.0
    time_features: int = 64
    time_scale: float = 1.0
    zero_output: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    classes: int = 0

    def __post_init__(self) -> None:
        if any(side % self.patch for side in self.shape[:2]):
            raise ValueError(
                f"network.patch={self.patch} does not divide the sides of images of shape"
                f" {self.shape}; choose a common divisor"
            )
        if self.width % 4:
            raise ValueError(
                f"network.width={self.width}: network.name=dit needs a multiple of 4, for the sines"
                " and cosines of rows and columns"
            )
        check_heads("dit", self.width, self.head_width)
        super().__post_init__()

    @nn.compact
    @arguments(y="[n, e]", c="[n]", told="[n, f]")
    def __call__(
        self, y: Array, c: Array, told: Array | None = None, *, condition: Any = None
    ) -> Array:
        embedding = TimeEmbedding(self.time_features, self.time_scale, self.classes)
        time = embedding(c, condition)
        height, width, channels = self.shape
        x = nn.Dense(self.width, name="first")(patches(as_images(self.shape, y, told), self.patch))
        x = x + positions(height // self.patch, width // self.patch, self.width)[None]
        x = x.astype(self.dtype)
        make = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for number in range(self.depth):
            sizes = self.head_width, self.dropout, self.dtype
            x = make(*sizes, name=f"block_{number}")(x, time.astype(self.dtype))
        of_time = nn.Dense(2 * self.width, kernel_init=ZEROS, name="time")(time)
        shift, scale = jnp.split(of_time[:, None, :], 2, axis=-1)
        x = _modulated(x.astype(jnp.float32), shift, scale, jnp.float32)
        kernel_init = ZEROS if self.zero_output else nn.initializers.lecun_normal()
        x = nn.Dense(self.patch**2 * channels, kernel_init=kernel_init, name="last")(x)
        return assembled(x, self.patch, (height, width)).reshape(y.shape[0], -1)
