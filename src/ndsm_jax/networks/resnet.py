"""ResNet-18 (He et al., 1512.03385) for small images, and its batch norms folded away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-5
STAGES = 4
BLOCKS = 2


class ConvNorm(nn.Module):
    """A convolution and its batch norm, or, folded, one convolution with a bias.

    The norm uses the batch's own moments where the collection "batch_stats" is mutable, as in
    training, and the running ones elsewhere.
    """

    features: int
    kernel: int
    stride: int
    folded: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, strides = (self.kernel, self.kernel), (self.stride, self.stride)
        x = nn.Conv(self.features, size, strides, use_bias=self.folded, name="conv")(x)
        if self.folded:
            return x
        training = self.is_mutable_collection("batch_stats")
        return nn.BatchNorm(
            use_running_average=not training, momentum=0.99, epsilon=EPSILON, name="norm"
        )(x)


class BasicBlock(nn.Module):
    """relu(x + F(x)) with F two 3 x 3 convolutions; a 1 x 1 one on x where the shape changes."""

    features: int
    stride: int
    folded: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(ConvNorm(self.features, 3, self.stride, self.folded, name="first")(x))
        y = ConvNorm(self.features, 3, 1, self.folded, name="second")(y)
        if x.shape != y.shape:
            x = ConvNorm(self.features, 1, self.stride, self.folded, name="skip")(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """3 x 3 stem, four stages of two basic blocks, mean over the image, dense logits.

    The stages have `width`, 2, 4 and 8 times as many channels; those after the first halve the
    image. The published network has width 64, and a 7 x 7 stem and a pooling that large images
    need.

    Attributes:
      shape: (height, width, channels) of one image.
      num_classes: number of logits.
      width: channels of the first stage.
      stem_stride: of the first convolution; 2 takes a quarter of the arithmetic.
      folded: whether the batch norms are folded into the convolutions (see `fold`).
    """

    shape: tuple[int, int, int]
    num_classes: int
    width: int = 64
    stem_stride: int = 1
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Flat images [n, h * w * c] in [-1, 1] to (logits [n, C], features [n, 8 width])."""
        x = x.reshape(-1, *self.shape)
        x = nn.relu(ConvNorm(self.width, 3, self.stem_stride, self.folded, name="stem")(x))
        for stage in range(STAGES):
            for block in range(BLOCKS):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage}_block{block}"
                x = BasicBlock(self.width * 2**stage, stride, self.folded, name=name)(x)
        features = x.mean((1, 2))
        return nn.Dense(self.num_classes, name="logits")(features), features


def fold(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of `ResNet18(folded=True)` that give the outputs of those of `folded=False`.

    A norm (z - m) / sqrt(v + e) * a + b after z = k * x is the convolution with kernel
    k a / sqrt(v + e) and bias b - m a / sqrt(v + e).
    """

    def folded(params: Any, stats: Any) -> Any:
        if "norm" not in params:
            return {
                name: folded(value, stats[name]) if name in stats else value
                for name, value in params.items()
            }
        norm, moments = params["norm"], stats["norm"]
        factor = norm["scale"] / jnp.sqrt(moments["var"] + EPSILON)
        kernel = params["conv"]["kernel"] * factor[None, None, None]
        return {"conv": {"kernel": kernel, "bias": norm["bias"] - moments["mean"] * factor}}

    return {"params": folded(variables["params"], variables["batch_stats"])}
