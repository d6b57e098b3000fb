"""Currents, transport and entropy rates against Gaussian laws whose score is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import currents, processes, references
from ndsm_jax.integrators import uniform_grid


def linear_drift(matrix, y, t):
    return jnp.einsum("ij,...j->...i", matrix, y)


def linear(matrix, g, noisy=None):
    """dy = matrix y dt + g E dW."""
    dim = len(matrix)
    return processes.process(
        Partial(linear_drift, jnp.float32(matrix)),
        g,
        references.standard_normal(dim),
        horizon=2.0,
        noisy=noisy,
    )


def covariance(matrix, noise, start, t):
    """S(t) of dS/dt = F S + S F^T + noise, by one matrix exponential (Van Loan 1978)."""
    dim = len(matrix)
    blocks = scipy.linalg.expm(t * np.block([[-matrix, noise], [np.zeros((dim, dim)), matrix.T]]))
    a = blocks[dim:, dim:].T
    return a @ start @ a.T + a @ blocks[:dim, dim:]


def gaussian_score(process, stationary, start, propagator):
    """The exact u(y, t) of a linear process from N(0, start), by its covariance

    S(t) = S_inf + M(t) (S_0 - S_inf) M(t)^T, M(t) = e^{F t} the propagator.
    """
    stationary, start = jnp.float32(stationary), jnp.float32(start)

    def one(y, t):
        m = propagator(t)
        spread = stationary + m @ (start - stationary) @ m.T
        return process.project(-jnp.linalg.solve(spread, y))

    return jnp.vectorize(one, signature="(d),()->(r)")


K, OMEGA, D = 0.8, 1.7, 0.6
ROTATION = -np.array([[K, OMEGA], [-OMEGA, K]])
ROTATING = linear(ROTATION, (2 * D) ** 0.5)
DAMPED = processes.critically_damped(1)
DAMPING = 4 * np.array([[0, 4.0], [-1, -4.0]])


def rotating_score(start):
    def propagator(t):
        c, s = jnp.cos(OMEGA * t), jnp.sin(OMEGA * t)
        return jnp.exp(-K * t) * jnp.array([[c, -s], [s, c]])

    return gaussian_score(ROTATING, D / K * np.eye(2), start, propagator)


def damped_score(start):
    def propagator(t):
        return DAMPED.kernel(t).scale.matrix

    return gaussian_score(DAMPED, np.diag([1, 0.25]), start, propagator)


def relaxing_score(process, start):
    eye = np.eye(process.dim)
    return gaussian_score(process, eye, start * eye, lambda t: jnp.exp(-t) * jnp.float32(eye))


def test_the_current_of_a_relaxing_gaussian(rng):
    """OU from N(0, s^2): s(t)^2 = 1 + (s^2 - 1) e^{-2t}, v = y d log s / dt, j = p v."""
    process, start, t = processes.ornstein_uhlenbeck(2), 0.3, 0.4
    variance = 1 + (start - 1) * np.exp(-2 * t)
    growth = -(start - 1) * np.exp(-2 * t) / variance
    y = rng.normal(size=(20, 2))
    score = relaxing_score(process, start)
    args = (jnp.float32(y), jnp.full(20, t))
    np.testing.assert_allclose(
        currents.velocity(process, score)(*args), growth * y, rtol=1e-4, atol=1e-5
    )
    density = scipy.stats.multivariate_normal(np.zeros(2), variance).pdf(y)
    flow = currents.current(process, score, jnp.log(jnp.float32(density)), *args)
    np.testing.assert_allclose(flow, density[:, None] * growth * y, rtol=1e-4, atol=1e-6)


def test_the_current_of_a_rotating_steady_state(rng):
    """v = -omega J y whatever the trap and the noise, on the stationary N(0, D / k I)."""
    y = jnp.float32(rng.normal(size=(20, 2)))
    found = currents.velocity(ROTATING, lambda y, t: -K / D * y)(y, jnp.zeros(20))
    expected = -OMEGA * np.stack([y[:, 1], -y[:, 0]], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


CASES = {
    "rotating": (ROTATING, ROTATION, rotating_score),
    "critically damped": (DAMPED, DAMPING, damped_score),
}


@pytest.mark.parametrize("name", CASES)
def test_transport_moves_a_gaussian_to_a_gaussian(name):
    """Of a linear flow every state is a linear map of its start: M(t) with M S_0 M^T = S(t), and
    log p_t is that of scipy's normal law; 200 Heun steps to t = 1, to 1e-3."""
    process, matrix, exact_score = CASES[name]
    start = np.array([[0.5, 0.1], [0.1, 0.3]])
    g = float(process.diffusion(jnp.float32(0)))
    noise = g**2 * np.diag(process.spread(jnp.ones(process.noise_dim)))
    score, grid = exact_score(start), uniform_grid(1.0, 200)
    y0 = np.concatenate([np.eye(2), [[0.7, -1.1]]])
    log_prob = scipy.stats.multivariate_normal(np.zeros(2), start).logpdf(y0)
    moved = jax.jit(lambda y, p: currents.transport(process, score, y, grid, log_prob=p))(
        jnp.float32(y0), jnp.float32(log_prob)
    )
    assert moved.y.shape == (201, 3, 2)
    np.testing.assert_array_equal(moved.y[0], np.float32(y0))
    for n in (100, 200):
        exact = covariance(matrix, noise, start, n / 200)
        m = np.asarray(moved.y[n, :2], np.float64).T
        np.testing.assert_allclose(m @ start @ m.T, exact, atol=1e-3)
        expected = scipy.stats.multivariate_normal(np.zeros(2), exact).logpdf(moved.y[n])
        np.testing.assert_allclose(moved.log_prob[n], expected, atol=2e-3)
    alone = jax.jit(lambda y: currents.transport(process, score, y, grid))(jnp.float32(y0))
    assert alone.log_prob is None
    np.testing.assert_allclose(alone.y, moved.y, rtol=1e-5, atol=1e-5)


def rates(process, score, y, t, odd=()):
    found = jax.jit(lambda y, t: currents.entropy_rates(process, score, y, t, odd=odd))(
        jnp.float32(y), jnp.full(len(y), t)
    )
    return currents.EntropyRates(*(np.asarray(a, np.float64) for a in found))


def draws(rng, spread, num=20_000):
    return rng.normal(size=(num, len(spread))) @ np.linalg.cholesky(spread).T


def test_entropy_production_of_a_relaxing_gaussian(rng):
    """OU in one dimension, g^2 / 2 = 1, variance q(t): total = (q - 1)^2 / q, system = q' / (2 q),
    medium = q - 1, each within 4.5 standard errors of 20,000 draws; total is never negative."""
    process, start, t = processes.ornstein_uhlenbeck(1), 0.2, 0.3
    q = 1 + (start - 1) * np.exp(-2 * t)
    score = relaxing_score(process, start)
    found = rates(process, score, draws(rng, [[q]]), t)
    assert (found.total >= 0).all()
    assert_mean(found.total, (q - 1) ** 2 / q)
    assert_mean(found.system, (1 - q) / q)
    assert_mean(found.medium, q - 1)
    # Per state: |y'|^2 for v = y (1 - q) / q.
    y = np.linspace(-1, 1, 5)[:, None]
    np.testing.assert_allclose(
        rates(process, score, y, t).total, (y[:, 0] * (1 - q) / q) ** 2, rtol=1e-3, atol=1e-6
    )


def test_entropy_production_of_a_rotating_steady_state(rng):
    """2 omega^2 / k, all of it given to the surroundings: 20,000 draws, 4.5 standard errors.

    v = -omega J y and E |y|^2 = 2 D / k, so that E |v|^2 / D = 2 omega^2 / k.
    """
    found = rates(ROTATING, lambda y, t: -K / D * y, draws(rng, D / K * np.eye(2)), 0.0)
    assert_mean(found.total, 2 * OMEGA**2 / K)
    assert_mean(found.medium, 2 * OMEGA**2 / K)
    assert_mean(found.system, 0.0)


def test_total_entropy_production_on_the_way_to_a_rotating_steady_state(rng):
    """Trace formulas of a Gaussian S(t): with A = F + D S^{-1}, total = tr(A S A^T) / D and system
    = tr F + D tr S^{-1} = d/dt log det S / 2, here by a difference quotient."""
    start, t, h = np.array([[0.2, 0.05], [0.05, 1.5]]), 0.5, 1e-3
    spread = covariance(ROTATION, 2 * D * np.eye(2), start, t)
    found = rates(ROTATING, rotating_score(start), draws(rng, spread), t)
    a = ROTATION + D * np.linalg.inv(spread)
    assert_mean(found.total, np.trace(a @ spread @ a.T) / D)
    ends = [covariance(ROTATION, 2 * D * np.eye(2), start, t + s * h) for s in (-1, 1)]
    log_dets = [np.linalg.slogdet(s)[1] for s in ends]
    assert_mean(found.system, (log_dets[1] - log_dets[0]) / (4 * h))
    assert_mean(found.total - found.system - found.medium, 0.0)


def test_equilibrium_with_inertia_produces_no_entropy():
    """Kinetic Langevin dynamics of a double well in its stationary law: total is zero state by
    state with odd velocities, and infinite when velocities count as even."""
    process = processes.underdamped(
        processes.double_well(1, num=2000), temperature=0.5, friction=1.5
    )
    y = np.asarray(process.reference.sample(jax.random.key(0), (20_000,)))
    law = process.reference

    def score(y, t):
        return process.project(law.score(y))

    found = rates(process, score, y, 0.0, odd=(1,))
    np.testing.assert_allclose(found.total, 0, atol=1e-5)
    assert_mean(found.system, 0.0)
    assert_mean(found.medium, 0.0)
    even = rates(process, score, y[:10], 0.0)
    assert np.isinf(even.total).all()
    assert np.isinf(even.medium).all()
    assert np.isfinite(even.system).all()
    reverse = currents.reversed_drift(process, (1,))(jnp.float32(y[:5]), jnp.zeros(5))
    x, v = y[:5, :1], y[:5, 1:]
    force = 0.5 * np.asarray(law.positions.score(jnp.float32(x)))
    np.testing.assert_allclose(reverse, np.concatenate([-v, -force - 1.5 * v], 1), rtol=1e-4)


def test_relaxation_with_inertia_dissipates_the_free_energy(rng):
    """Critically damped dynamics at M = 1/4 from N(0, S_0): total = -dF/dt over the temperature,
    F = E|x|^2 / 2 + E|v|^2 / (2 M) - log det S / 2 with S(t) by the matrix exponential, within 4.5
    standard errors of 20,000 draws. The medium's part is heat, Gamma / M (E|v|^2 / M - 1) rate."""
    start, t, h, noise = np.diag([0.2, 0.9]), 0.15, 1e-4, np.diag([0.0, 8.0])

    def free_energy(t):
        s = covariance(DAMPING, noise, start, t)
        return 0.5 * s[0, 0] + 2 * s[1, 1] - 0.5 * np.linalg.slogdet(s)[1]

    spread = covariance(DAMPING, noise, start, t)
    found = rates(DAMPED, damped_score(start), draws(rng, spread), t, odd=(1,))
    assert_mean(found.total, -(free_energy(t + h) - free_energy(t - h)) / (2 * h))
    assert_mean(found.medium, 16 * (4 * spread[1, 1] - 1))
    assert_mean(found.total - found.system - found.medium, 0.0)
