"""Critically damped Langevin dynamics against matrix exponentials, quadrature and recursions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from conftest import assert_mean

from ndsm_jax import processes
from ndsm_jax.integrators import simulate, uniform_grid

CASES = [(0.25, 4.0), (1.0, 1.0), (0.04, 2.0), (9.0, 5.0)]
TIMES = np.array([1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.06, 0.1, 0.3, 0.6, 1.0, 2.0])


def generator(mass, rate):
    """F and G G^T of dy = F y dt + G dW for one position and its velocity (2112.07068, Eq. 5)."""
    friction = 2 * mass**0.5
    return rate * np.array([[0, 1 / mass], [-1, -friction / mass]]), np.diag(
        [0.0, 2 * friction * rate]
    )


def covariance(mass, rate, t):
    """int_0^t e^{F u} G G^T e^{F^T u} du by 12 panels of 20 Gauss-Legendre nodes, in float64.

    All integrands are positive on the diagonal, so that the smallest entries keep their digits.
    """
    f, noise = generator(mass, rate)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    ends = np.linspace(0, t, 13)
    half = 0.5 * np.diff(ends)[:, None]
    u = (ends[:-1, None] + half * (1 + nodes)).ravel()
    a = scipy.linalg.expm(u[:, None, None] * f)
    return np.einsum("n,nij,jk,nlk->il", (half * weights).ravel(), a, noise, a)


def van_loan(mass, rate, t):
    """The same by one exponential of a block matrix (Van Loan 1978)."""
    f, noise = generator(mass, rate)
    blocks = scipy.linalg.expm(t * np.block([[-f, noise], [np.zeros((2, 2)), f.T]]))
    return blocks[2:, 2:].T @ blocks[:2, 2:]


def test_the_two_references_agree():
    for mass, rate in CASES:
        for t in (0.03, 0.3):
            expected = van_loan(mass, rate, t)
            np.testing.assert_allclose(covariance(mass, rate, t), expected, rtol=1e-6)


def test_the_kernel_at_0_is_the_point_itself():
    """Scale 1 and root 0, alone and beside later times, and no NaN in a derivative."""
    kernel = processes.critically_damped(1).kernel
    for t in (jnp.zeros(()), jnp.array([0.0, 0.1])):
        first = jax.tree.map(lambda a: a.reshape(-1, 2, 2)[0], kernel(t))
        np.testing.assert_array_equal(first.scale.matrix, np.eye(2))
        np.testing.assert_array_equal(first.root.matrix, np.zeros((2, 2)))
    found = kernel(jnp.array([0.0, 0.1])).root.matrix[1]
    np.testing.assert_array_equal(found, kernel(jnp.float32(0.1)).root.matrix)
    slopes = jax.jacrev(kernel)(jnp.zeros(()))
    expected = generator(0.25, 4.0)[0]  # of e^(F t)
    np.testing.assert_allclose(slopes.scale.matrix, expected, rtol=1e-6)
    assert np.isfinite(slopes.root.matrix).all()


@pytest.mark.parametrize(("mass", "rate"), CASES)
def test_the_kernel_is_exact_at_all_times(mass, rate):
    """Scale, covariance and what of the position the velocity does not tell, from 1e-5 to 2.

    Relative to the standard deviations, to 2e-5 (float32); the conditional variance of the
    position is a quarter of a difference, and its square root is what targets are divided by.
    """
    process = processes.critically_damped(1, mass=mass, rate=rate)
    kernel = process.kernel(jnp.asarray(TIMES, jnp.float32))
    scale, root = (np.asarray(m.matrix, np.float64) for m in (kernel.scale, kernel.root))
    for i, t in enumerate(np.float32(TIMES).astype(np.float64)):
        expected = scipy.linalg.expm(t * generator(mass, rate)[0])
        units = np.sqrt([1.0, mass])
        np.testing.assert_allclose(
            scale[i] * units / units[:, None], expected * units / units[:, None], atol=1e-6
        )
        exact = covariance(mass, rate, t)
        std = np.sqrt(np.diag(exact))
        correlation = exact / std / std[:, None]
        actual = root[i] @ root[i].T / std / std[:, None]
        np.testing.assert_allclose(actual, correlation, rtol=2e-5, atol=2e-5)
        schur = np.linalg.det(correlation)
        # At small times rho^2 -> 3/4.
        assert t > 1e-3 or schur == pytest.approx(0.25, rel=1e-2)
        actual_schur = (np.linalg.det(root[i]) / std.prod()) ** 2
        np.testing.assert_allclose(actual_schur, schur, rtol=1e-4)


def test_blocks_act_on_positions_and_velocities():
    """Of several positions: every pair (x_i, v_i) by itself, here by the Kronecker product."""
    process = processes.critically_damped(3, mass=0.5, rate=2.0)
    f, _ = generator(0.5, 2.0)
    y = np.random.default_rng(0).normal(size=(4, 6))
    whole = np.kron(f, np.eye(3))
    t = jnp.full(4, 0.3)
    drift = process.drift(jnp.float32(y), t)
    np.testing.assert_allclose(drift, y @ whole.T, rtol=1e-5, atol=1e-5)
    mean, _ = process.kernel(t).sample(jnp.float32(y), jnp.zeros((4, 6)))
    expected = y @ scipy.linalg.expm(0.3 * whole).T
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)
    assert process.noisy == (3, 4, 5)
    assert (process.dim, process.noise_dim) == (6, 3)
    np.testing.assert_array_equal(process.project(jnp.float32(y)), np.float32(y)[:, 3:])
    np.testing.assert_array_equal(process.spread(jnp.ones((1, 3))), [[0, 0, 0, 1, 1, 1]])


@pytest.mark.parametrize(("mass", "rate"), CASES)
def test_the_reference_is_the_stationary_law(mass, rate):
    """F S + S F^T + G G^T = 0 for its covariance S = diag(1, M), to which the kernel tends; at the
    default horizon less than 0.4 % of a deviation is left, in units of S."""
    process = processes.critically_damped(1, mass=mass, rate=rate)
    f, noise = generator(mass, rate)
    stationary = np.diag(np.asarray(process.reference.factor[0], np.float64) ** 2)
    np.testing.assert_allclose(stationary, np.diag([1, mass]), rtol=1e-6)
    np.testing.assert_allclose(f @ stationary + stationary @ f.T + noise, 0, atol=1e-5)
    np.testing.assert_array_equal(process.reference.means, 0)
    late = process.kernel(4 * process.horizon)
    root = np.asarray(late.root.matrix, np.float64)
    np.testing.assert_allclose(root @ root.T, stationary, atol=1e-5)
    np.testing.assert_allclose(late.scale.matrix, 0, atol=1e-5)
    units = np.sqrt([1.0, mass])
    left = scipy.linalg.expm(float(process.horizon) * f) * units / units[:, None]
    assert np.abs(left).max() < 0.004
    # What noise there is: a noise of strength g on the velocities alone, and their clock.
    assert float(process.diffusion(jnp.float32(0.3))) ** 2 == pytest.approx(noise[1, 1])
    t = jnp.linspace(0.01, 1, 5)
    np.testing.assert_allclose(process.clock.decay(t), 2 * rate * t / mass**0.5, rtol=1e-6)


def euler_moments(mass, rate, y0, grid):
    """Mean and covariance of the Euler chain from y0, by the recursion, in float64."""
    f, noise = generator(mass, rate)
    mean, spread = np.asarray(y0, np.float64), np.zeros((2, 2))
    for h in np.diff(grid.astype(np.float64)):
        step = np.eye(2) + h * f
        mean, spread = step @ mean, step @ spread @ step.T + h * noise
    return mean, spread


def test_simulated_paths_have_the_moments_of_the_kernel():
    """10,000 paths of 200 steps to t = 0.3 with noise in the velocities alone: moments within 4.5
    standard errors of the Euler chain's own, and these within 0.01 of the kernel's."""
    process = processes.critically_damped(1)
    grid, y0 = uniform_grid(0.3, 200), np.array([1.0, -0.5])
    start = jnp.broadcast_to(jnp.float32(y0), (10_000, 2))
    path = jax.jit(lambda p: simulate(jax.random.key(0), p, start, jnp.asarray(grid)))(process)
    mean, spread = euler_moments(0.25, 4.0, y0, grid)
    deviation = np.asarray(path[-1], np.float64) - mean
    assert_mean(deviation, np.zeros(2))
    assert_mean(deviation[:, :, None] * deviation[:, None, :], spread)
    kernel = process.kernel(jnp.float32(0.3))
    np.testing.assert_allclose(mean, np.asarray(kernel.scale.matrix) @ y0, atol=0.01)
    root = np.asarray(kernel.root.matrix)
    np.testing.assert_allclose(spread, root @ root.T, atol=0.01)
    # Positions move by the drift alone.
    before, after = np.asarray(path[50]), np.asarray(path[51])
    h = grid[51] - grid[50]
    expected = before[:, 0] + h * 16 * before[:, 1]
    np.testing.assert_allclose(after[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_draws_of_the_kernel_have_the_covariance_of_the_path():
    """20,000 draws at three times, within 4.5 standard errors."""
    process = processes.critically_damped(1, mass=0.5, rate=2.0)
    y0 = np.array([0.3, -1.0])
    for t in (1e-3, 0.1, 1.0):
        kernel = process.kernel(jnp.full(1, t))
        z = jax.random.normal(jax.random.key(1), (20_000, 2))
        start = jnp.broadcast_to(jnp.float32(y0), z.shape)
        _, y = jax.jit(lambda k, x, z: k.sample(x, z))(kernel, start, z)
        exact = covariance(0.5, 2.0, t)
        std = np.sqrt(np.diag(exact))
        mean = scipy.linalg.expm(t * generator(0.5, 2.0)[0]) @ y0
        deviation = (np.asarray(y, np.float64) - mean) / std
        assert_mean(deviation, np.zeros(2), bias=1e-6 / std.min())  # of y in float32
        products = deviation[:, :, None] * deviation[:, None, :]
        assert_mean(products, exact / std / std[:, None], bias=1e-6 / std.min())


def test_what_is_no_process_is_refused():
    for options in ({"mass": 0.0}, {"rate": -1.0}, {"mass": float("nan")}):
        with pytest.raises(ValueError, match=r"critically_damped: .*=.* > 0 "):
            processes.critically_damped(1, **options)
    with pytest.raises(ValueError, match="horizon="):
        processes.critically_damped(1, horizon=-1.0)
    process = processes.critically_damped(1, horizon=3.0)
    assert float(process.horizon) == 3
    assert dataclasses.replace(process, noisy=(0,)).kernel is None
