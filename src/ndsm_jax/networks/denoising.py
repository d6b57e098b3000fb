"""The denoising autoencoder whose reconstruction is a score: Vincent (2011)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class DenoisingAutoencoder(nn.Module):
    """A tied-weight sigmoid autoencoder r(y) = W^T sigmoid(W y + b) + c, as the score of an energy.

    Its score (r(y) - y) / sigma^2 is minus the gradient of

        E(y) = -( c . y - |y|^2 / 2 + sum_j softplus(W_j . y + b_j) ) / sigma^2,

    and denoising score matching at one noise sigma is its reconstruction error |r(y) - x|^2 over
    2 sigma^4 (Vincent 2011, Neural Computation 23, Section 4.3). As a score network it takes a time
    and does not use it: it is of one level of noise. A unit steps by |W_j| over a width of about
    1 / |W_j|, so data are best in units in which structure finer than 1 does not matter, as sigma.

    Attributes:
      dim: d.
      hidden: rows of W.
      std: sigma.
    """

    dim: int
    hidden: int
    std: float

    def setup(self) -> None:
        spread = nn.initializers.normal(self.hidden**-0.5)
        self.weight = self.param("weight", spread, (self.hidden, self.dim))
        self.bias = self.param("bias", nn.initializers.normal(1.0), (self.hidden,))
        self.centre = self.param("centre", nn.initializers.zeros, (self.dim,))

    def _features(self, y: Array) -> Array:
        return jnp.dot(y, self.weight.T) + jnp.broadcast_to(self.bias, (*y.shape[:-1], self.hidden))

    def reconstruct(self, y: Array) -> Array:
        """r(y): [..., d] -> [..., d]."""
        decoded = jnp.dot(nn.sigmoid(self._features(y)), self.weight)
        return decoded + jnp.broadcast_to(self.centre, y.shape)

    def energy(self, y: Array) -> Array:
        """E(y), up to a constant: [..., d] -> [...]."""
        total = jnp.dot(y, self.centre) - 0.5 * jnp.sum(y**2, axis=-1)
        return -(total + jnp.sum(jax.nn.softplus(self._features(y)), axis=-1)) / self.std**2

    def __call__(self, y: Array, t: Array) -> Array:
        """The score (r(y) - y) / sigma^2: y [n, d], t [n] -> [n, d]."""
        return (self.reconstruct(y) - y) / self.std**2
