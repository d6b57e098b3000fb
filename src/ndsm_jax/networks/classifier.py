"""A small convolutional classifier whose last hidden layer serves as a feature space."""

from __future__ import annotations

import flax.linen as nn
import jax

NUM_FEATURES = 64


def _max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 maximum of [n, h, w, c], odd borders dropped.

    A reshape rather than `nn.max_pool`: the gradient of the windowed maximum is a scatter, which is
    several times slower on CPU.
    """
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


class ImageCNN(nn.Module):
    """(conv 3x3, ReLU, pool) x 2, dense features, dense logits; images of side 4 and above.

    Attributes:
        shape: (height, width, channels) of one image.
        num_classes: number of logits.
        widths: channels of the convolutions.
    """

    shape: tuple[int, int, int]
    num_classes: int
    widths: tuple[int, ...] = (16, 32)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Flat images [n, h * w * c] in [-1, 1] to (logits [n, num_classes], features [n, 64])."""
        x = x.reshape(-1, *self.shape)
        for width in self.widths:
            x = _max_pool(nn.relu(nn.Conv(width, (3, 3))(x)))
        features = nn.relu(nn.Dense(NUM_FEATURES)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(features), features
