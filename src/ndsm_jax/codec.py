"""Between items and the latent space of an autoencoder, and the frame that this makes."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.frames import Identity
from ndsm_jax.measurements import Measurement
from ndsm_jax.rows import Rows

CHUNK = 1000
"""Items encoded or decoded at a time."""

STREAM_ENCODE = 2
"""Folded into the key of a seed, for draws of the posterior."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "shift", "scale"),
    meta_fields=("network",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """An autoencoder with parameters, in coordinates z = (latent - shift) / scale.

    With the moments of the training data's latents, z has mean 0 and variance 1.

    Attributes:
      network: a `networks.Autoencoder` (static).
      params: of encoder and decoder.
      shift, scale: [latent_dim].
    """

    network: Any
    params: Any
    shift: Array
    scale: Array

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """Items x [B, d] -> mean and standard deviation of z given x, [B, latent_dim] each."""
        mean, std = self.network.apply(self.params, x, method="encode")
        return (mean - self.shift[None, :]) / self.scale[None, :], std / self.scale[None, :]

    def logits(self, z: Array) -> Array:
        """z [B, latent_dim] -> logits of the pixels [B, d]."""
        latent = self.shift[None, :] + self.scale[None, :] * z
        return self.network.apply(self.params, latent, method="decode")

    def decode(self, z: Array) -> Array:
        """z [B, latent_dim] -> mean items [B, d] in [-1, 1]."""
        return jnp.tanh(0.5 * self.logits(z))  # 2 sigmoid(logits) - 1


def standard_codec(network: Any, params: Any) -> Codec:
    """A codec in the network's own coordinates."""
    dim = network.latent_dim
    return Codec(network=network, params=params, shift=jnp.zeros(dim), scale=jnp.ones(dim))


def posterior(codec: Codec, x: Rows) -> tuple[np.ndarray, np.ndarray]:
    """`Codec.posterior` of many items [n, d], in chunks."""
    mean, std = _chunked(_posterior, codec, x)
    return mean, std


def encode(codec: Codec, x: Rows, *, seed: int) -> np.ndarray:
    """Draws z [n, latent_dim] from the posteriors of items x [n, d], a function of the seed."""
    key = jax.random.fold_in(jax.random.key(seed), STREAM_ENCODE)
    mean, std = posterior(codec, x)
    return mean + std * np.asarray(jax.random.normal(key, mean.shape))


def decode(codec: Codec, z: np.ndarray) -> np.ndarray:
    """Mean items [n, d] in [-1, 1] of latents z [n, latent_dim]."""
    return _chunked(_decode, codec, z)[0]


def standardised(codec: Codec, x: np.ndarray, *, seed: int) -> Codec:
    """The codec in coordinates in which draws of `encode` have mean 0 and variance 1 each."""
    z = encode(codec, x, seed=seed)
    return dataclasses.replace(
        codec,
        shift=codec.shift + codec.scale * z.mean(axis=0),
        scale=codec.scale * np.maximum(z.std(axis=0), 1e-6),  # a coordinate may have died
    )


@jax.jit
def _posterior(codec: Codec, x: Array) -> tuple[Array, Array]:
    return codec.posterior(x)


@jax.jit
def _decode(codec: Codec, z: Array) -> tuple[Array]:
    return (codec.decode(z),)


def _chunked(function: Any, codec: Codec, x: Rows) -> tuple[np.ndarray, ...]:
    """The arrays [n, ...] of function(codec, x), in chunks of one size: it compiles once."""
    size = min(CHUNK, len(x))
    parts = []
    for start in range(0, len(x), size):
        rows = np.asarray(x[start : start + size], np.float32)
        parts.append(function(codec, np.pad(rows, ((0, size - len(rows)), (0, 0)))))
    return tuple(np.concatenate(part)[: len(x)] for part in zip(*parts, strict=True))


@partial(jax.tree_util.register_dataclass, data_fields=("codec",), meta_fields=("seed",))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent(Identity):
    """The latent space of an autoencoder: data enter as one draw of their posterior each.

    Attributes:
      codec: a trained one.
      seed: of the draws (static).
    """

    codec: Codec
    seed: int = 0

    @property
    def data_dim(self) -> int:
        """See `frames.Frame`."""
        return self.codec.network.dim

    def prepare(self, x: Rows) -> np.ndarray:
        """See `frames.Frame`; the latents are in memory in any case."""
        return encode(self.codec, x, seed=self.seed)

    def leave(self, y: Any, condition: Any = None) -> Any:
        """See `frames.Frame`."""
        traced = isinstance(y, jax.core.Tracer)
        return self.codec.decode(y) if traced else decode(self.codec, np.asarray(y))

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """Not a change of variables. Raises ValueError."""
        raise ValueError("an autoencoder is no change of variables: latents bound a density only")

    def measured(self, measurement: Measurement, condition: Any = None) -> Measurement:
        """Pixels are no affine function of latents. Raises ValueError."""
        raise ValueError(
            "a measurement of data says nothing linear of the latents of an autoencoder; give one"
            " to a run without (autoencoder.kind=none)"
        )
