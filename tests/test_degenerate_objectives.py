"""Objectives where noise drives some coordinates alone: linear dynamics, Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from conftest import assert_mean

from ndsm_jax import noising, objectives, processes, references
from ndsm_jax.clock import loss_weight
from ndsm_jax.processes import Known

MEAN = np.array([0.6, -0.3])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.3]])
SAMPLES = 20_000


def kalman_drift(y, t):
    """A damped position and a velocity that is pulled to the position."""
    x, v = y[..., 0], y[..., 1]
    return jnp.stack([v - 0.5 * x, -x - v], axis=-1)


DAMPED = processes.critically_damped(1)
PROCESSES = {
    "critically damped, no kernel": dataclasses.replace(DAMPED, known=Known()),
    "tracking": processes.process(
        kalman_drift,
        lambda t: jnp.full_like(t, 0.9),
        references.standard_normal(2, 0.4),
        horizon=1.5,
        noisy=(1,),
    ),
    "noise in the first": processes.process(
        lambda y, t: kalman_drift(y[..., ::-1], t)[..., ::-1],
        lambda t: 0.5 + t,
        references.standard_normal(2, 0.4),
        horizon=1.5,
        noisy=(0,),
    ),
}
STEPS = 120


def data():
    """Draws of N(MEAN, COVARIANCE), [SAMPLES, 2]."""
    z = np.random.default_rng(5).normal(size=(SAMPLES, 2))
    return jnp.asarray(MEAN + z @ np.linalg.cholesky(COVARIANCE).T, jnp.float32)


def at_interval(process, grid, interval):
    """A law of times that always draws one interval of a grid."""
    cdf = (np.arange(len(grid)) > interval).astype(np.float32)
    return noising.TimeLaw(grid=jnp.asarray(grid), cdf=jnp.asarray(cdf))


def uniform(process, steps=STEPS):
    return np.linspace(0, float(process.horizon), steps + 1, dtype=np.float32)


def local_batch(process, interval):
    """An NDSM batch at the end of one interval of the grid, [SAMPLES, 1]."""
    grid = uniform(process)
    noise = noising.local_steps(
        process,
        grid,
        k=1,
        simulation="full",
        loss_step=float(grid[1]),
        times=at_interval(process, grid, interval),
        weight=loss_weight(process.clock, "unit"),
    )
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(0), data())
    np.testing.assert_allclose(batch.t, grid[interval + 1], rtol=1e-5)
    return batch


def dynamics(process):
    """F and E of dY = F Y dt + g E dW."""
    at_zero = jax.jacfwd(lambda y: process.drift(y, jnp.float32(0)))(jnp.zeros(2))
    return np.asarray(at_zero, np.float64), np.eye(2)[:, list(process.noisy)]


def chain_law(process, interval, steps=STEPS):
    """Mean and covariance of the Euler chain after an interval, by the recursion in float64."""
    f, e = dynamics(process)
    mean, spread = MEAN, COVARIANCE
    grid = uniform(process, steps)[: interval + 2].astype(np.float64)
    for t, h in zip(grid[:-1], np.diff(grid), strict=True):
        step = np.eye(2) + h * f
        g = float(process.diffusion(jnp.float32(t)))
        mean, spread = step @ mean, step @ spread @ step.T + g**2 * h * e @ e.T
    return mean, spread


def exact_coefficients(mean, spread, e):
    """theta of E^T grad log p(y) = theta . (y, 1): [3], for noise in one coordinate."""
    a = -(e.T @ np.linalg.inv(spread))[0]
    return np.append(a, -a @ mean)


def linear_score(theta):
    """u(y) = theta . (y, 1), [..., 2] -> [..., 1]."""
    return lambda y, t: (y @ theta[:2] + theta[2])[..., None]


def minimiser(loss, batch):
    """The theta that minimises a loss quadratic in it, and its standard errors: [3] each.

    By the delta method, H^{-1} Cov(residual) H^{-1} / n.
    """

    def each(theta):
        return loss(linear_score(theta), batch)[:, 0]

    zero = jnp.zeros(3)
    slope = np.asarray(jax.jit(jax.jacfwd(each))(zero), np.float64)
    curvature = np.asarray(jax.jit(jax.jacfwd(jax.jacfwd(each)))(zero), np.float64)
    inverse = np.linalg.inv(curvature.mean(axis=0))
    best = -inverse @ slope.mean(axis=0)
    residual = slope + curvature @ best
    spread = inverse @ np.cov(residual.T) @ inverse / len(residual)
    return best, np.sqrt(np.diag(spread))


@pytest.mark.parametrize("interval", [9, 50, 110])
@pytest.mark.parametrize("name", PROCESSES)
def test_ndsm_is_minimised_by_the_exact_score(name, interval):
    """The best linear score, by the loss's own gradient and Hessian, on 20,000 simulated paths.

    Within 4.5 standard errors, of at most 6 % of the coefficients' size, of E^T grad log p of the
    chain.
    """
    process = PROCESSES[name]
    batch = local_batch(process, interval)
    assert batch.score_target.shape == (SAMPLES, 1, 1)
    assert batch.noisy == process.noisy
    exact = exact_coefficients(*chain_law(process, interval), dynamics(process)[1])
    best, error = minimiser(objectives.ndsm, batch)
    assert error.max() < 0.06 * np.linalg.norm(exact)
    assert (np.abs(best - exact) < 4.5 * error).all()
    # With the control variate the minimiser is the same, for any eps.
    best, error = minimiser(lambda s, b: objectives.ndsm_cv(s, b, jnp.ones_like(b.t)), batch)
    assert (np.abs(best - exact) < 4.5 * error).all()


def test_the_chains_score_tends_to_that_of_the_process():
    """Coefficients of the chain's score against those of dY = F Y dt + g E dW, its covariance by
    Van Loan's matrix exponential: within 11 % at 120 steps, and of order one in the step."""
    for name in ("critically damped, no kernel", "tracking"):
        process = PROCESSES[name]
        f, e = dynamics(process)
        t = 0.7 * float(process.horizon)
        noise = float(process.diffusion(jnp.float32(0))) ** 2 * e @ e.T
        blocks = scipy.linalg.expm(t * np.block([[-f, noise], [np.zeros((2, 2)), f.T]]))
        a = blocks[2:, 2:].T
        limit = exact_coefficients(a @ MEAN, a @ COVARIANCE @ a.T + a @ blocks[:2, 2:], e)
        errors = []
        for steps in (120, 480):
            law = chain_law(process, int(0.7 * steps) - 1, steps)
            errors.append(np.linalg.norm(exact_coefficients(*law, e) - limit))
        assert errors[0] < 0.11 * np.linalg.norm(limit)
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def perturbations(exact):
    """Scores beside the exact one."""
    steps = 0.25 * np.linalg.norm(exact[:2]) * np.eye(3)
    return [*(exact + steps), *(exact - steps), 1.2 * exact, 0.8 * exact]


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("name", PROCESSES)
def test_ism_is_least_at_the_exact_score(name, probed):
    """Paired differences of the loss to that at the exact score, 20,000 states: positive by more
    than 4.5 standard errors, and E |u - u*|^2 / 2 of the exact Gaussian within 4.5.

    Only the derivatives along the noise count: u does not see those along the other coordinate.
    """
    process = PROCESSES[name]
    batch, (mean, spread), (_, e) = (
        local_batch(process, 50),
        chain_law(process, 50),
        dynamics(process),
    )
    if probed:
        signs = jax.random.rademacher(jax.random.key(2), batch.score_target.shape, jnp.float32)
        batch = dataclasses.replace(batch, probe=signs)
    exact = exact_coefficients(mean, spread, e)
    second = np.block(
        [[spread + np.outer(mean, mean), mean[:, None]], [mean[None], np.ones((1, 1))]]
    )

    @jax.jit
    def loss(theta, batch):
        return objectives.ism(linear_score(theta), batch)[:, 0]

    at_exact = np.asarray(loss(jnp.float32(exact), batch), np.float64)
    for theta in perturbations(exact):
        difference = np.asarray(loss(jnp.float32(theta), batch), np.float64) - at_exact
        assert difference.mean() > 4.5 * difference.std() / SAMPLES**0.5
        change = theta - exact
        assert_mean(difference, 0.5 * change @ second @ change)
    # By the equation: the divergence of a linear score is its coefficient along the noise.
    score = np.asarray(batch.y[:, 0]) @ exact[:2] + exact[2]
    expected = 0.5 * score**2 + (exact[:2] @ e)[0]
    np.testing.assert_allclose(at_exact, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.01, 0.1, 0.6])
def test_dsm_targets_have_the_score_as_conditional_mean(t):
    """The regression of the kernel's targets on y, 20,000 draws: E^T grad log p_t of the exact
    Gaussian within 4.5 standard errors, and no bump of y left in the residual. NDSM on the same
    batch, with mu = A x_0, has the same minimiser."""
    noise = noising.exact_kernel(
        DAMPED,
        np.array([0, t, 2.0], np.float32),
        k=1,
        first=t,
        times=noising.TimeLaw(grid=jnp.array([0.0, t]), cdf=jnp.array([0.0, 1.0])),
        weight=loss_weight(DAMPED.clock, "unit"),
    )
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(3), data())
    np.testing.assert_allclose(batch.t, t, rtol=1e-6)
    assert batch.score_target.shape == (SAMPLES, 1, 1)
    kernel = DAMPED.kernel(jnp.float32(t))
    a, root = (np.asarray(m.matrix, np.float64) for m in (kernel.scale, kernel.root))
    mean, spread = a @ MEAN, a @ COVARIANCE @ a.T + root @ root.T
    exact = exact_coefficients(mean, spread, np.array([[0.0], [1.0]]))
    for loss in (objectives.dsm, objectives.ndsm):
        best, error = minimiser(loss, batch)
        assert (np.abs(best - exact) < 4.5 * error).all()
    y, target = np.asarray(batch.y[:, 0], np.float64), np.asarray(batch.score_target[:, 0, 0])
    residual = target - y @ exact[:2] - exact[2]
    bumps = [np.sin(3 * y[:, 0]), np.cos(2 * y[:, 1]), np.tanh(y[:, 0] - y[:, 1])]
    assert_mean(residual[:, None] * np.stack(bumps, axis=1), np.zeros(3))
    # Given x_0 the target is -E^T Sigma^{-1} (y - mu): the score of the kernel alone.
    away = np.asarray(batch.y - batch.mu, np.float64)[:, 0]
    pull = -(away @ np.linalg.inv(root @ root.T))[:, 1]
    np.testing.assert_allclose(target, pull, rtol=2e-2, atol=2e-3 * np.abs(pull).max())


def test_several_times_of_a_point_have_the_kernels_of_their_own():
    """k = 3 times of 10,000 points at 0: white noise by the inverse of each time's covariance."""
    noise = noising.exact_kernel(DAMPED, 30, k=3)
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(1), jnp.zeros((10_000, 2)))
    assert batch.y.shape == (10_000, 3, 2)
    root = np.asarray(DAMPED.kernel(batch.t).root.matrix, np.float64)
    z = np.linalg.solve(root, np.asarray(batch.y, np.float64)[..., None])[..., 0]
    assert_mean(z.reshape(-1, 2), np.zeros(2))
    assert_mean((z[..., :, None] * z[..., None, :]).reshape(-1, 2, 2), np.eye(2))
    target = -np.linalg.solve(np.swapaxes(root, -1, -2), z[..., None])[..., 1, 0]
    np.testing.assert_allclose(batch.score_target[..., 0], target, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", PROCESSES)
def test_path_space_targets_are_refused(name):
    process = PROCESSES[name]
    message = r"path-space target needs noise in every coordinate.* in 1 of 2; choose .*ndsm"
    with pytest.raises(ValueError, match=message):
        noising.path_windows(process, 20)
    for objective in ("path_dsm", "path_dsm_cv"):
        with pytest.raises(
            ValueError, match=rf"name='{objective}' needs noise in every coord.*ism"
        ):
            objectives.check_process(objective, process)
    for objective in ("ndsm", "ndsm_cv", "ism"):
        objectives.check_process(objective, process)


@pytest.mark.parametrize(
    ("noisy", "shown"),
    [((), r"\(\)"), ((0, 0), r"\(0, 0\)"), ((2,), r"\(2,\)"), ((-1,), r"\(-1,\)")],
)
def test_noisy_coordinates_that_do_not_exist_are_refused(noisy, shown):
    with pytest.raises(
        ValueError,
        match=rf"noisy={shown}( must be different|: a tuple of) coord",
    ):
        processes.process(
            kalman_drift, jnp.ones_like, references.standard_normal(2), horizon=1.0, noisy=noisy
        )
