"""Functions of arrays that the host computes in NumPy, and JAX where it traces them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_array(x: Any, dtype: Any = None) -> Any:
    """x as an array of NumPy, of the type if one is given; where JAX traces it, as one of JAX.

    Of float64 a traced one is under `jax.enable_x64` alone.
    """
    if isinstance(x, jax.core.Tracer):
        return x if dtype is None else x.astype(dtype)
    return np.asarray(x, dtype)


def namespace(x: Any) -> Any:
    """jax.numpy for what JAX has or traces, NumPy for all else."""
    return jnp if isinstance(x, jax.Array) else np
