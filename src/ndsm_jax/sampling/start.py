"""Where samples start: the keys of a sample, and its state at the horizon."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import KEY, arguments
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.references.reference import Reference


@arguments(root=KEY)
def sample_keys(root: Array, i: Array) -> tuple[Array, Array, Array]:
    """Keys of sample i of the stream `root`: of its component, its place in there, its path."""
    start, path = jax.random.split(jax.random.fold_in(root, i))
    component, noise = jax.random.split(start)
    return component, noise, path


@jax.jit
def start_components(root: Array, index: Array, log_weights: Array) -> Array:
    """Components from which samples number `index` [B] of the stream `root` start: int32 [B].

    Drawn with probabilities softmax(log_weights), log_weights [K] or one row a sample [B, K]. With
    the reference's own `log_weights` they are those that `sample` uses when none are given.
    """
    log_weights = jnp.broadcast_to(log_weights, (*index.shape, log_weights.shape[-1]))
    keys = jax.vmap(partial(sample_keys, root))(index)[0]
    return jax.vmap(jax.random.categorical)(keys, log_weights)


@arguments(root=KEY, index="integers [B]", reference=Reference, components="integers below K [B]")
def start_states(
    root: Array, index: Array, reference: Reference, components: Array | None = None
) -> Array:
    """Samples number `index` [B] of the stream `root` at the horizon, from the reference: [B, d].

    In float32. For a mixture a normal in the components [B], those of `start_components` where
    None; for any other reference its own draws, and there are no components.
    """
    noise = jax.vmap(partial(sample_keys, root))(index)[1]
    if not isinstance(reference, GaussianMixture):
        return jax.vmap(reference.sample)(noise).astype(jnp.float32)
    if components is None:
        components = start_components(root, index, reference.log_weights)
    z = jax.vmap(lambda key: jax.random.normal(key, (reference.dim,), jnp.float32))(noise)
    return reference.sample_component(components, z)


def check_components(components: np.ndarray, num: int, num_components: int) -> None:
    """Raises ValueError unless they are `num` integers, numbers of components."""
    components = np.asarray(components)
    if components.shape != (num,) or not np.issubdtype(components.dtype, np.integer):
        raise ValueError(
            f"components of shape {components.shape} and type {components.dtype}: one integer for"
            f" each of the {num} samples is needed"
        )
    wrong = components[(components < 0) | (components >= num_components)]
    if wrong.size:
        raise ValueError(
            f"component {wrong[0]}: the reference has {num_components} components, numbered from 0"
            f" to {num_components - 1}"
        )
