"""The control-variate network eps_phi(t)."""

from __future__ import annotations

import flax.linen as nn
from jax import Array


class EpsNet(nn.Module):
    """[n] -> [n]: fully connected, 3 x 10 ReLU by default (2405.15625, A.2).

    The last layer starts at zero, so training starts from plain NDSM, eps = 0.
    """

    width: int = 10
    depth: int = 3

    @nn.compact
    def __call__(self, c: Array) -> Array:
        x = c[:, None]
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(x)[:, 0]
