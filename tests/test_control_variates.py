"""The phi-gradient three ways, closed forms, and the learned eps."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from test_objectives import make_batch

from ndsm_jax import control_variates, objectives
from ndsm_jax.networks import EpsNet, ScoreMLP

NETWORK: Any = ScoreMLP(width=8, depth=2)
BATCH = make_batch(jax.random.key(5), (6, 2, 3))
PARAMS = NETWORK.init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros(1))


def terms(params, batch):
    def score(y, t):
        return NETWORK.apply(params, y.reshape(-1, 3), t.ravel()).reshape(y.shape)

    return objectives.ndsm_terms(score, batch)


def coordinate(t):
    return 2 * t - 1


def naive_equation_22(phi):
    """Eq. 22 as written: per-sample gradients of L + eps W by a loop, minus the mean of grad L."""
    eps = EPS_NET.apply(phi, coordinate(BATCH.t).ravel())
    flat = lambda tree: ravel_pytree(tree)[0]  # noqa: E731
    gradient = lambda f: jnp.stack(  # noqa: E731
        [flat(jax.grad(lambda p, i=i: f(p, i))(PARAMS)) for i in range(BATCH.t.size)]
    )
    loss = lambda p, i: terms(p, BATCH)[0].ravel()[i]  # noqa: E731
    total = lambda p, i: loss(p, i) + eps[i] * terms(p, BATCH)[1].ravel()[i]  # noqa: E731
    mean = gradient(loss).mean(0, keepdims=True)
    return jnp.mean(jnp.sum((gradient(total) - mean) ** 2, axis=1))


EPS_NET: Any = EpsNet()


def eps_params():
    phi = EPS_NET.init(jax.random.key(1), jnp.zeros(1))
    # The last layer starts at zero; move it so that every gradient is non-zero.
    return jax.tree.map(lambda p: p + 0.1, phi)


@cache
def naive_value_and_gradient():
    return jax.value_and_grad(naive_equation_22)(eps_params())


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_exact_phi_gradient_equals_equation_22_as_written(chunk):
    products = control_variates.exact_products(terms, PARAMS, BATCH, chunk=chunk)

    def quadratic(phi):
        e = EPS_NET.apply(phi, coordinate(BATCH.t).ravel()).reshape(BATCH.t.shape)
        return jnp.mean(2 * e * products.cross + e**2 * products.control)

    phi = eps_params()
    value, naive = naive_value_and_gradient()
    for a, b in zip(jax.tree.leaves(jax.grad(quadratic)(phi)), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max() + 1))
    e = EPS_NET.apply(phi, coordinate(BATCH.t).ravel()).reshape(BATCH.t.shape)
    assert float(products.gradient_variance(e)) == pytest.approx(float(value), rel=1e-3)


def test_probe_estimates_agree_within_their_standard_error():
    """2,000 probes one by one; each product's mean within 5 of its standard errors."""
    exact = control_variates.exact_products(terms, PARAMS, BATCH)
    one = jax.jit(lambda k: control_variates.probe_products(k, terms, PARAMS, BATCH))
    probes = jax.lax.map(one, jax.random.split(jax.random.key(2), 2000), batch_size=100)
    for estimate, value in zip(probes, exact, strict=True):
        error = np.asarray(estimate).std(0) / np.sqrt(2000)
        assert (np.abs(np.asarray(estimate).mean(0) - value) < 5 * error + 1e-5).all()


def test_several_probes_are_the_mean_of_single_ones():
    key = jax.random.key(3)
    together = control_variates.probe_products(key, terms, PARAMS, BATCH, num_probes=4)
    assert together.cross.shape == BATCH.t.shape
    exact = control_variates.exact_products(terms, PARAMS, BATCH)
    assert float(jnp.mean(together.control)) == pytest.approx(
        float(jnp.mean(exact.control)), rel=1.5
    )


@pytest.mark.parametrize("num_bins", [1, 3])
def test_optimal_eps_minimises_equation_22_in_every_bin(num_bins):
    """Against a brute-force search over a fine grid of values of eps."""
    exact = control_variates.exact_products(terms, PARAMS, BATCH)
    control = control_variates.optimal(coordinate, num_bins=num_bins)
    state = control.update(control.init(jax.random.key(0)), BATCH.t, exact)
    eps = np.asarray(control.eps(state, BATCH.t))
    bins = np.minimum((np.asarray(BATCH.t) * num_bins).astype(int), num_bins - 1)
    for b in range(num_bins):
        inside = bins == b
        if not inside.any():
            continue
        grid = np.linspace(-3, 3, 6001)
        cross, square = (np.asarray(x)[inside].sum() for x in (exact.cross, exact.control))
        best = grid[np.argmin(2 * grid * cross + grid**2 * square)]
        np.testing.assert_allclose(eps[inside], best, atol=2e-3)


def test_optimal_starts_at_zero_and_averages_with_decay():
    control = control_variates.optimal(coordinate, decay=0.5)
    state = control.init(jax.random.key(0))
    np.testing.assert_array_equal(control.eps(state, BATCH.t), 0)
    ones = jnp.ones_like(BATCH.t)
    for cross in (1.0, 2.0):
        products = control_variates.Products(cross=cross * ones, control=ones, loss=ones)
        state = control.update(state, BATCH.t, products)
    expected = -(0.5 * 1 + 2) / (0.5 + 1)
    np.testing.assert_allclose(control.eps(state, BATCH.t), expected, rtol=1e-5)


def test_constant():
    control = control_variates.constant(0.25)
    np.testing.assert_array_equal(control.eps(control.init(jax.random.key(0)), BATCH.t), 0.25)


def test_learned_eps_starts_at_zero_and_finds_the_optimum():
    """A target eps*(t) = 0.5 t: products with cross = -eps* and |B|^2 = 1 are minimised by it."""
    control = control_variates.learned(EpsNet(), coordinate, optax.adam(1e-2))
    state = control.init(jax.random.key(0))
    t = jnp.linspace(0, 1, 64)[:, None]
    np.testing.assert_array_equal(control.eps(state, t), 0)
    products = control_variates.Products(
        cross=-0.5 * t, control=jnp.ones_like(t), loss=jnp.ones_like(t)
    )
    update = jax.jit(control.update)
    for _ in range(600):
        state = update(state, t, products)
    np.testing.assert_allclose(control.eps(state, t), 0.5 * t, atol=0.05)
