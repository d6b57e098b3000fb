"""The phi-gradient three ways, closed forms, and the learned eps."""

from functools import partial
from typing import Any

import chex
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


EPS_NET: Any = EpsNet()


def eps_of(phi, t):
    return EPS_NET.apply(phi, coordinate(t).ravel()).reshape(t.shape)


def naive_equation_22(phi, params, batch):
    """Eq. 22 as written: gradients of each L_i + eps_i W_i minus the mean gradient of L."""
    flat, unravel = ravel_pytree(params)
    eps = eps_of(phi, batch.t).ravel()

    def loss(p):
        return terms(unravel(p), batch)[0].ravel()

    def total(p):
        return loss(p) + eps * terms(unravel(p), batch)[1].ravel()

    mean = jax.jacrev(loss)(flat).mean(axis=0, keepdims=True)
    return jnp.mean(jnp.sum((jax.jacrev(total)(flat) - mean) ** 2, axis=1))


def to_double(tree):
    """In float64, where the same sums in another order agree to 1e-9."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


@pytest.fixture(scope="module")
def equation_22():
    """(phi, value, phi-gradient) of the naive formula, in float64."""
    with jax.enable_x64(True):
        # The last layer starts at zero; move it so that every gradient is non-zero.
        phi = to_double(EPS_NET.init(jax.random.key(1), jnp.zeros(1)))
        phi = jax.tree.map(lambda p: p + 0.1, phi)
        naive = jax.jit(jax.value_and_grad(naive_equation_22))
        return phi, *naive(phi, to_double(PARAMS), to_double(BATCH))


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_exact_phi_gradient_equals_equation_22_as_written(chunk, equation_22):
    phi, value, gradient = equation_22
    with jax.enable_x64(True):
        batch = to_double(BATCH)
        exact = jax.jit(partial(control_variates.exact_products, terms, chunk=chunk))
        products = exact(to_double(PARAMS), batch)

        def quadratic(phi):
            e = eps_of(phi, batch.t)
            return jnp.mean(2 * e * products.cross + e**2 * products.control)

        chex.assert_trees_all_close(jax.grad(quadratic)(phi), gradient, rtol=1e-9, atol=1e-9)
        actual = products.gradient_variance(eps_of(phi, batch.t))
        np.testing.assert_allclose(actual, value, rtol=1e-9)


@pytest.fixture(scope="module")
def exact():
    return jax.jit(partial(control_variates.exact_products, terms))(PARAMS, BATCH)


def test_probe_estimates_agree_within_their_standard_error(exact):
    """2,000 probes one by one; each product's mean within 5 of its standard errors."""
    one = jax.jit(lambda k: control_variates.probe_products(k, terms, PARAMS, BATCH))
    probes = jax.lax.map(one, jax.random.split(jax.random.key(2), 2000), batch_size=100)
    for estimate, value in zip(probes, exact, strict=True):
        error = np.asarray(estimate).std(0) / np.sqrt(2000)
        assert (np.abs(np.asarray(estimate).mean(0) - value) < 5 * error + 1e-5).all()


def test_several_probes_are_the_mean_of_single_ones():
    """With the same directions, differentiated along one by one."""
    key = jax.random.key(3)
    with jax.enable_x64(True):
        params, batch = to_double(PARAMS), to_double(BATCH)
        several = jax.jit(partial(control_variates.probe_products, terms=terms, num_probes=4))
        together = several(key, params=params, batch=batch)
        leaves, treedef = jax.tree.flatten(params)
        along = jax.jit(lambda v: jax.jvp(lambda p: terms(p, batch), (params,), (v,))[1])
        singles = []
        for probe in jax.random.split(key, 4):
            keys = jax.random.split(probe, len(leaves))
            normals = [
                jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)
            ]
            a, b = along(jax.tree.unflatten(treedef, normals))
            a -= a.mean()
            singles.append(np.stack([a * b, b**2, a**2]))
    np.testing.assert_allclose(np.stack(together), np.mean(singles, axis=0), rtol=1e-9)


@pytest.mark.parametrize("num_bins", [1, 3])
@pytest.mark.parametrize("scale", [10.0, -1e3])
def test_optimal_eps_minimises_equation_22_in_every_bin(num_bins, scale, exact):
    """Against a brute-force search over a fine grid of the values allowed, [-1, 1].

    The cross products are scaled: by 10 to have minimisers of order 0.1 to 1, by -1e3 to have
    them below -1.
    """
    exact = exact._replace(cross=scale * exact.cross)
    control = control_variates.Optimal(coordinate=coordinate, num_bins=num_bins)
    state = control.update(control.init(jax.random.key(0)), BATCH.t, exact)
    eps = np.asarray(control.eps(state, BATCH.t))
    bins = np.minimum((np.asarray(BATCH.t) * num_bins).astype(int), num_bins - 1)
    for b in range(num_bins):
        inside = bins == b
        if not inside.any():
            continue
        grid = np.linspace(-1, 1, 2001)
        cross, square = (np.asarray(x)[inside].sum() for x in (exact.cross, exact.control))
        best = grid[np.argmin(2 * grid * cross + grid**2 * square)]
        np.testing.assert_allclose(eps[inside], best, atol=1e-3)


def test_optimal_starts_at_zero_and_averages_with_decay():
    control = control_variates.Optimal(coordinate=coordinate, decay=0.5)
    state = control.init(jax.random.key(0))
    np.testing.assert_array_equal(control.eps(state, BATCH.t), 0)
    ones = jnp.ones_like(BATCH.t)
    for cross in (0.5, 1.0):
        products = control_variates.Products(cross=cross * ones, control=ones, loss=ones)
        state = control.update(state, BATCH.t, products)
    expected = -(0.5 * 0.5 + 1) / (0.5 + 1)
    np.testing.assert_allclose(control.eps(state, BATCH.t), expected, rtol=1e-5)


def test_constant():
    control = control_variates.Constant(value=0.25)
    np.testing.assert_array_equal(control.eps(control.init(jax.random.key(0)), BATCH.t), 0.25)


def test_learned_eps_starts_at_zero_and_finds_the_optimum():
    """A target eps*(t) = 0.5 t: products with cross = -eps* and |B|^2 = 1 are minimised by it."""
    control = control_variates.Learned(
        network=EpsNet(), coordinate=coordinate, optimizer=optax.adam(1e-2)
    )
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
