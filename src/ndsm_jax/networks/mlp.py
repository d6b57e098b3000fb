"""Fully connected score network."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import arguments
from ndsm_jax.networks.embedding import ConditionEmbedding, GaussianFourierFeatures


class ScoreMLP(nn.Module):
    """(y [n, d], c [n]) -> [n, r]; 7 x 32 GELU by default (2405.15625, A.2).

    What it is `told` [n, e] is appended to y; a condition (see `conditions`) is added, embedded, to
    the features of the time.

    Attributes:
      width, depth: of the hidden layers.
      time_features: 0 appends c to the input, as published; otherwise that many Gaussian Fourier
        features of c are added, through a dense layer, to every hidden layer.
      time_scale: standard deviation of their frequencies.
      skip: hidden layers after the first are residual and normalised, for deep, wide networks.
      dropout: rate after every hidden layer, where there is a key `dropout`.
      zero_output: whether the last layer starts at zero (right for a residual score).
      dtype: of the hidden layers' arithmetic, see the package.
      outputs: r; 0: that of what the network sees, d.
      classes: of which a condition tells, see `ConditionEmbedding`.
    """

    width: int = 32
    depth: int = 7
    time_features: int = 0
    time_scale: float = 1.0
    skip: bool = False
    dropout: float = 0.0
    zero_output: bool = False
    dtype: Any = jnp.float32
    outputs: int = 0
    classes: int = 0

    @nn.compact
    @arguments(y="[n, e]", c="[n]", told="[n, f]")
    def __call__(
        self, y: Array, c: Array, told: Array | None = None, *, condition: Any = None
    ) -> Array:
        x = y if told is None else jnp.concatenate([y, told], axis=-1)
        parts = []
        if self.time_features:
            fourier = GaussianFourierFeatures(self.time_features, self.time_scale)(c)
            parts.append(nn.Dense(self.width)(fourier))
        else:
            x = jnp.concatenate([x, c[:, None]], axis=-1)
        if condition is not None:
            parts.append(ConditionEmbedding(self.width, self.classes)(condition))
        features = nn.gelu(jnp.sum(jnp.stack(parts), axis=0)) if parts else None
        full = jnp.result_type(y)  # float64 where that is enabled
        hidden = full if self.dtype == jnp.float32 else self.dtype
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        for layer in range(self.depth):
            dtype = hidden if layer else full
            inner = nn.LayerNorm(dtype=dtype)(x) if self.skip and layer else x
            inner = nn.Dense(self.width, dtype=dtype)(inner)
            if features is not None:
                inner = inner + nn.Dense(self.width, use_bias=False, dtype=dtype)(features)
            inner = drop(nn.gelu(inner).astype(hidden))
            x = x + inner if self.skip and layer else inner
        zero = nn.initializers.zeros
        kernel_init = zero if self.zero_output else nn.initializers.lecun_normal()
        return nn.Dense(self.outputs or y.shape[-1], kernel_init=kernel_init, dtype=full)(x)
