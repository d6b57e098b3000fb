"""Divergences against the traces of Jacobians in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax.derivatives import divergence

MATRIX = np.array([[0.5, 2.0, 0.0], [1.0, -1.5, 3.0], [0.0, 0.7, 0.2]], np.float32)


def function(y):
    """A y + sin(y), row by row: its divergence is tr A + sum cos(y)."""
    return y @ jnp.asarray(MATRIX.T) + jnp.sin(y)


def test_the_exact_divergence_is_the_trace_of_the_jacobian(rng):
    y = rng.normal(size=(4, 5, 3)).astype(np.float32)
    value, trace = divergence(function, jnp.asarray(y))
    np.testing.assert_allclose(value, y @ MATRIX.T + np.sin(y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trace, np.trace(MATRIX) + np.cos(y).sum(axis=-1), rtol=1e-5)


def test_of_some_coordinates_it_is_their_part_of_the_trace(rng):
    y = rng.normal(size=(7, 3)).astype(np.float32)
    noisy = (2, 0)
    _, trace = divergence(lambda y: function(y)[..., np.array(noisy)], jnp.asarray(y), noisy=noisy)
    expected = MATRIX[2, 2] + MATRIX[0, 0] + np.cos(y[:, noisy]).sum(axis=-1)
    np.testing.assert_allclose(trace, expected, rtol=1e-5)


def test_an_estimate_is_the_quadratic_form_of_its_probe(rng):
    y, v = rng.normal(size=(2, 7, 3)).astype(np.float32)
    _, estimate = divergence(function, jnp.asarray(y), probe=jnp.asarray(v))
    expected = np.einsum("ni,ij,nj->n", v, MATRIX, v) + (v**2 * np.cos(y)).sum(axis=-1)
    np.testing.assert_allclose(estimate, expected, rtol=1e-4, atol=1e-5)
    # All unit vectors as probes together are the exact one.
    axes = jnp.broadcast_to(jnp.eye(3)[:, None, :], (3, 7, 3))
    parts = jax.vmap(lambda v: divergence(function, jnp.asarray(y), probe=v)[1])(axes)
    whole = divergence(function, jnp.asarray(y))[1]
    np.testing.assert_allclose(parts.sum(axis=0), whole, rtol=1e-5)
