"""Encoder and decoder between images, or any flat items, and a latent space."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

LOG_STD_RANGE = (-6.0, 2.0)
"""Bounds of log sigma(x), so that a posterior can neither vanish nor blow up in training."""


class Autoencoder(nn.Module):
    """Fully connected: items [n, d] to a Gaussian posterior of latents, latents to logits [n, d].

    The likelihood of an item is that of independent Bernoulli pixels with these logits
    (1312.6114, App. C.1), grey values read as probabilities.

    Attributes:
      dim: d, of an item.
      latent_dim: of a latent.
      widths: of the encoder's hidden layers; the decoder mirrors them.
      variational: whether sigma(x) is learned (VAE); otherwise the posterior is a point (AE).
    """

    dim: int
    latent_dim: int
    widths: tuple[int, ...] = (512, 256)
    variational: bool = True

    def setup(self) -> None:
        self.encoder_layers = [nn.Dense(width) for width in self.widths]
        self.decoder_layers = [nn.Dense(width) for width in reversed(self.widths)]
        self.to_posterior = nn.Dense((2 if self.variational else 1) * self.latent_dim)
        self.to_logits = nn.Dense(self.dim)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """x [n, d] in [-1, 1] -> mean and standard deviation of z given x, [n, latent_dim] each.

        The standard deviation of a plain autoencoder is 0.
        """
        for layer in self.encoder_layers:
            x = nn.gelu(layer(x))
        x = self.to_posterior(x)
        if not self.variational:
            return x, jnp.zeros_like(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        low, high = LOG_STD_RANGE
        return mean, jnp.exp(low + (high - low) * nn.sigmoid(log_std + 1.0))

    def decode(self, z: Array) -> Array:
        """z [n, latent_dim] -> logits of the pixels [n, d]."""
        for layer in self.decoder_layers:
            z = nn.gelu(layer(z))
        return self.to_logits(z)

    def __call__(self, x: Array) -> Array:
        """Logits of an item's pixels from its own posterior's mean; initialises both halves."""
        return self.decode(self.encode(x)[0])
