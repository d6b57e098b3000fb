"""Self-attention, of pixels and of patches."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def check_heads(network: str, width: int, head_width: int) -> None:
    """Raises ValueError unless heads of `head_width` channels make up `width`, or one head does."""
    if width > head_width and width % head_width:
        raise ValueError(
            f"network.head_width={head_width} does not divide the {width} channels in which"
            f" network.name={network} attends; choose a divisor of {width}"
        )


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(e)) v in every head, and a dense layer: [n, tokens, w] -> the same.

    Logits and softmax are float32, products of bfloat16 numbers add up in float32.

    Attributes:
      head_width: e, channels of a head, of which there are w / e; at most w.
      kernel_init: of the last layer.
      dtype: of the arithmetic.
    """

    head_width: int
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, tokens, width = x.shape
        head_width = min(self.head_width, width)
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(n, tokens, 3, -1, head_width), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v).reshape(n, tokens, width)
        last = nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="out")
        return last(out)
