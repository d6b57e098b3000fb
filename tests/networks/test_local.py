"""Local coordinates against NumPy, component-wise processes and exact scores."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import networks, processes, references
from ndsm_jax.clock import time_coordinate
from ndsm_jax.experiment import experiment
from ndsm_jax.networks import PRECONDITIONS
from ndsm_jax.networks.local import RELAXED, averaged, spectra
from ndsm_jax.references import COVARIANCES, LowRank

K, D = 3, 4
RNG = np.random.default_rng(0)
A = RNG.normal(size=(K, D, D))
FULL = A @ A.transpose(0, 2, 1) + 0.3 * np.eye(D)
COVARIANCE = {
    "full": FULL,
    "tied": FULL[0],
    "diag": RNG.uniform(0.1, 2, (K, D)),
    "spherical": np.array([0.5, 1, 2]),
    "tied_spherical": 0.7,
    "low_rank": LowRank(
        np.array([0.3, 0.5, 0.8]),
        np.linalg.qr(RNG.normal(size=(K, D, 2)))[0],
        RNG.uniform(1, 2, (K, 2)),
    ),
}


def precondition(mixture, **more):
    process = processes.langevin(mixture, **more)
    coordinate = time_coordinate(process.clock, process.horizon, "clock", first=1e-3)
    return PRECONDITIONS["local"](process=process, coordinate=coordinate)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_functions_of_covariances(kind):
    """sum_k r_k f(Sigma_k) (y - mu_k), f = 1 / sqrt, and log det / d, by eigh of dense matrices."""
    means = RNG.normal(size=(K, D))
    mixture = references.mixture(np.ones(K), means, COVARIANCE[kind], covariance=kind)
    roots = mixture.roots()
    roots = roots if roots.ndim == 3 else roots[:, :, None] * np.eye(D)
    values, vectors = np.linalg.eigh(roots @ roots.transpose(0, 2, 1))
    inverse = np.einsum("kij,kj,klj->kil", vectors, values**-0.5, vectors)
    y, r = RNG.normal(size=(5, D)), RNG.dirichlet(np.ones(K), size=5)
    of = spectra(mixture)
    found = averaged(of, jax.lax.rsqrt, jnp.float32(r), jnp.float32(y), mixture.means)
    expected = np.einsum("nk,kij,nkj->ni", r, inverse, y[:, None] - means)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of.log_variance, np.log(values).mean(axis=1), rtol=1e-4, atol=1e-6)


def test_one_component_is_edm_while_it_has_not_relaxed():
    """2206.00364, Table 1, in the coordinates (y - mean) / std, its time as the clock has it."""
    mixture = references.mixture([1.0], [[3.0, -1.0]], 4.0, covariance="tied_spherical")
    local = precondition(mixture)
    edm = PRECONDITIONS["edm"](process=local.process, coordinate=local.coordinate)
    t = jnp.float32([0.01, 0.5, 3.0, 7.9])
    assert float(local.process.clock.decay(t[-1])) < RELAXED
    y, output = jnp.float32(RNG.normal(size=(4, 2))), jnp.float32(RNG.normal(size=(4, 2)))
    seen, time = local.inputs(y, t)
    np.testing.assert_allclose(seen, (y - mixture.means) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(time, local.coordinate(t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(local.score(output, y, t), edm.score(output, y, t), rtol=1e-5)
    np.testing.assert_allclose(local.weight(y, t), edm.weight(y, t), rtol=1e-5)
    assert local.tells is None


def test_separated_components_are_component_wise():
    """Each sees what it would alone, with its own clock, and a network's output means the same."""
    means, variances = np.array([[-100.0, 0], [100.0, 0]]), np.array([0.04, 9.0])
    both = precondition(references.mixture([0.5, 0.5], means, variances, covariance="spherical"))
    t, output = jnp.float32([0.003, 0.02]), jnp.float32(RNG.normal(size=(2, 2)))
    for mean, variance in zip(means, variances, strict=True):
        y = jnp.float32(mean + variance**0.5 * RNG.normal(size=(2, 2)))
        seen, _ = both.inputs(y, t)
        expected = (np.asarray(y) - mean) / variance**0.5
        np.testing.assert_allclose(
            seen, (np.asarray(y) - mean) / variance**0.5, rtol=2e-3, atol=2e-4
        )
        x = np.minimum(2 * np.asarray(t) / variance, RELAXED)  # of its own Langevin dynamics
        scale = np.exp(-x / 2) / np.sqrt(variance * (1 - np.exp(-x)))
        residual = both.score(output, y, t) - both.process.reference.score(y)
        np.testing.assert_allclose(residual, scale[:, None] * output, rtol=1e-3, atol=1e-3)
        expected = variance * np.expm1(x)
        np.testing.assert_allclose(both.weight(y, t), expected, rtol=1e-3)
        np.testing.assert_allclose(both.tells(y, None), np.tile(mean, (2, 1)), atol=1e-3)


def test_the_networks_target_has_one_size_in_every_component():
    """Data as their components, of std 0.05 and 3: the target std x - a z has variance 1.

    4,000 states a component and time, so that the standard error is 0.022; with the scales of
    the process's own clock it goes over a factor of 70.
    """
    means, std = np.array([[-50.0], [50.0]]), np.array([0.05, 3.0])
    local = precondition(references.mixture([0.5, 0.5], means, std**2, covariance="spherical"))
    edm = PRECONDITIONS["edm"](process=local.process, coordinate=local.coordinate)
    sizes = {"local": [], "edm": []}
    for mean, s in zip(means[:, 0], std, strict=True):
        for x in (0.01, 0.3, 1.0, 3.0):
            x0, z = RNG.normal(size=(2, 4000, 1))
            noise = s * np.sqrt(1 - np.exp(-x))  # of Langevin dynamics in this component
            y = jnp.float32(mean + np.exp(-x / 2) * s * x0 + noise * z)
            t, reference = jnp.full(4000, x * s**2 / 2), local.process.reference.score(y)
            for name, by in (("local", local), ("edm", edm)):
                unit = by.score(jnp.ones_like(y), y, t) - reference
                sizes[name].append(float(jnp.mean(((-z / noise - reference) / unit) ** 2)))
    np.testing.assert_allclose(sizes["local"], 1, atol=4 * 0.022)
    assert max(sizes["edm"]) > 50 * min(sizes["edm"])


def test_scales_stay_where_a_component_has_relaxed():
    local = precondition(references.mixture([1.0], [[0.0]], 1.0, covariance="tied_spherical"))
    y, late = jnp.zeros((2, 1)), jnp.float32([RELAXED / 2, local.process.horizon])
    np.testing.assert_allclose(*local.weight(y, late), rtol=1e-5)
    np.testing.assert_allclose(*local.score(jnp.ones((2, 1)), y, late), rtol=1e-5)


def test_needs_a_mixture_and_noise_everywhere():
    torus = references.UniformTorus(dim=2, period=2 * np.pi)
    other = precondition(references.standard_normal(2)).process
    with pytest.raises(ValueError, match="local' is made of the components of a Gaussian mixture"):
        PRECONDITIONS["local"](
            process=dataclasses.replace(other, reference=torus), coordinate=lambda t: t
        )
    damped = processes.critically_damped(1)
    with pytest.raises(ValueError, match="local' needs noise in all coordinates"):
        PRECONDITIONS["local"](process=damped, coordinate=lambda t: t)


def test_a_network_that_cannot_be_told_keeps_a_residual_score():
    """One of (state, time) works as before; of its third argument `condition` is not the place."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, y, c):
            return nn.Dense(y.shape[-1])(y) + c[:, None]

    class Conditional(nn.Module):
        @nn.compact
        def __call__(self, y, c, condition=None):
            return nn.Dense(y.shape[-1])(y)

    two = references.mixture([0.5, 0.5], [[-1.0, 0], [1.0, 0]], 0.1, covariance="tied_spherical")
    kinds = {
        type(experiment(processes.langevin(two), network=network).model.precondition)
        for network in (Plain(), Conditional())
    }
    assert kinds == {networks.Residual}
    assert isinstance(experiment(processes.langevin(two)).model.precondition, networks.Local)
    made = experiment(processes.langevin(two), network=Plain()).model
    score = made(made.init(jax.random.key(0)), jnp.zeros((5, 2)), jnp.full(5, 0.1))
    assert score.shape == (5, 2)
