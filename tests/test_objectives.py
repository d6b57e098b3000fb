"""Objectives against the equations, each other, and DSM."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_mean
from jax.flatten_util import ravel_pytree

from ndsm_jax import control_variates, likelihood, noising, objectives, processes, references
from ndsm_jax.clock import loss_weight, time_coordinate
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import stand_in
from ndsm_jax.integrators import time_grid, uniform_grid
from ndsm_jax.networks import EpsNet


def toy_score(theta, y, t):
    """A nonlinear score with three parameters, (y [..., d], t [...]) -> [..., d]."""
    a, b, c = theta
    return -a * y + b * jnp.tanh(y) * t[..., None] + c


THETA = jnp.array([0.7, 0.3, -0.2])


def make_batch(key, shape=(6, 2, 3)) -> noising.NoisedBatch:
    keys = jax.random.split(key, 3)
    mu, z = (jax.random.normal(k, shape) for k in keys[:2])
    sigma = jnp.linspace(0.1, 1.0, shape[0] * shape[1]).reshape(shape[:2])
    t = jax.random.uniform(keys[2], shape[:2])
    y = mu + sigma[..., None] * z
    target = -z / sigma[..., None]
    return noising.NoisedBatch(y=y, t=t, weight=1 + t, score_target=target, mu=mu)


def test_losses_are_the_equations():
    batch = make_batch(jax.random.key(0))
    score = lambda y, t: toy_score(THETA, y, t)  # noqa: E731
    y, mu, target, t, w = (
        np.asarray(a, np.float64)
        for a in (batch.y, batch.mu, batch.score_target, batch.t, batch.weight)
    )
    sigma = np.linalg.norm(y - mu, axis=-1) / np.linalg.norm(target, axis=-1)
    sigma = np.sqrt(sigma)
    z = -target * sigma[..., None]
    s = lambda x: -0.7 * x + 0.3 * np.tanh(x) * t[..., None] - 0.2  # noqa: E731
    control = (s(mu) * z).sum(-1) / sigma
    ndsm = 0.5 * (s(y) ** 2).sum(-1) + (z * (s(y) - s(mu))).sum(-1) / sigma
    dsm = 0.5 * ((s(y) + z / sigma[..., None]) ** 2).sum(-1)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(objectives.ndsm(score, batch), w * ndsm, **close)
    np.testing.assert_allclose(objectives.ndsm_terms(score, batch)[1], w * control, **close)
    np.testing.assert_allclose(objectives.dsm(score, batch), w * dsm, **close)
    eps = jnp.full(t.shape, 0.3)
    np.testing.assert_allclose(
        objectives.ndsm_cv(score, batch, eps), w * (ndsm + 0.3 * control), **close
    )


def test_eps_one_is_dsm_with_the_local_target():
    """L + W = 1/2 |s + z / sigma|^2 - 1/2 |z / sigma|^2: Theorem 3.2 undoes the cancellation."""
    batch = make_batch(jax.random.key(1))
    score = lambda y, t: toy_score(THETA, y, t)  # noqa: E731
    shift = 0.5 * batch.weight * jnp.sum(batch.score_target**2, -1)
    actual = objectives.ndsm_cv(score, batch, jnp.ones_like(batch.t))
    np.testing.assert_allclose(actual, objectives.dsm(score, batch) - shift, rtol=1e-3, atol=1e-3)


def simulate(process, num_steps, x0, *, weight="variance", **loss_step) -> noising.NoisedBatch:
    """Paths from x0 [B, d], one state each; loss_step as in `noising.local_steps`."""
    weight = loss_weight(process.clock, weight)
    noise = noising.local_steps(
        process, num_steps, k=1, simulation="full", weight=weight, **loss_step
    )
    return jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(0), x0)


LANGEVIN = processes.langevin(references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4]))
LOSS_STEP = 0.05
COORDINATE = time_coordinate(LANGEVIN.clock, LANGEVIN.horizon, "clock", first=LOSS_STEP)


def constant_eps(t):
    return jnp.ones_like(t)


def sign_changing_eps(t):
    return jnp.cos(4 * COORDINATE(t))


def binned_eps(t):
    """A closed-form optimum in four bins, of these values."""
    values = jnp.array([0.9, -0.4, 0.1, -0.8])
    control = control_variates.Optimal(coordinate=COORDINATE, num_bins=4)
    return control.eps((-values, jnp.ones(4)), t)


def learned_eps(t):
    """A network whose last layer, which starts at zero, has moved; so have the others."""
    control = control_variates.Learned(
        network=EpsNet(), coordinate=COORDINATE, optimizer=optax.adam(1e-3)
    )
    phi, opt_state = control.init(jax.random.key(2))
    flat, unravel = ravel_pytree(phi)
    moved = flat + 0.5 * jax.random.normal(jax.random.key(3), flat.shape)
    return control.eps((unravel(moved), opt_state), t)


@pytest.fixture(scope="module")
def langevin_control():
    """t, W and its gradient in theta, on 4,000 simulated paths.

    The loss step is long: W has mean zero for any length, and its standard deviation is 1 / sigma.
    """
    x0 = LANGEVIN.reference.sample(jax.random.key(1), (4000,))
    batch = simulate(LANGEVIN, 40, x0, loss_step=LOSS_STEP)

    def control(theta):
        return objectives.ndsm_terms(lambda y, t: toy_score(theta, y, t), batch)[1][:, 0]

    return batch.t[:, 0], control(THETA), jax.jit(jax.jacfwd(control))(THETA)


@pytest.mark.parametrize("eps", [constant_eps, sign_changing_eps, binned_eps, learned_eps])
def test_control_variate_has_mean_zero_in_value_and_gradient(eps, langevin_control):
    """E[eps(t) W] = 0 and E[eps(t) grad W] = 0, as any eps is a function of time alone.

    4,000 simulated paths, within 4.5 standard errors.
    """
    t, control, gradient = langevin_control
    values = eps(t)
    assert float(jnp.abs(values).max()) > 0.3
    assert_mean(values * control, 0.0)
    assert_mean(values[:, None] * gradient, np.zeros(3))


@pytest.mark.parametrize("eps", [0.0, 0.4])
def test_ndsm_has_the_gradient_of_dsm_for_a_linear_drift(eps):
    """E[grad NDSM-CV] on simulated OU paths = E[grad DSM] on the exact kernel at the same times.

    Both are unbiased for the score of the same law up to the Euler bias of the paths (steps of 1/50
    relaxation time: below 1 % of a gradient of order 1); means over 20,000 paths, difference within
    4.5 standard errors plus 0.02.
    """
    process = processes.ornstein_uhlenbeck(2, variance=0.5)
    x0 = jnp.where(jax.random.bernoulli(jax.random.key(9), 0.3, (20_000, 2)), 1.0, -0.5)
    batch = simulate(process, 200, x0, loss_fraction=0.1)
    # The exact kernel at the very times of the paths, so that only the noise differs.
    kernel = process.kernel(batch.t)
    scale, std = kernel.scale.value, kernel.root.value
    z = jax.random.normal(jax.random.key(1), batch.y.shape)
    mu = scale[..., None] * x0[:, None]
    exact = noising.NoisedBatch(
        y=mu + std[..., None] * z, t=batch.t, weight=batch.weight, score_target=-z / std[..., None]
    )

    def per_sample(loss, batch):
        gradient = jax.jacfwd(lambda th: loss(lambda y, t: toy_score(th, y, t), batch)[:, 0])
        return jax.jit(gradient)(THETA)

    ndsm = per_sample(lambda s, b: objectives.ndsm_cv(s, b, jnp.full_like(b.t, eps)), batch)
    dsm = per_sample(objectives.dsm, exact)
    assert_mean(np.asarray(ndsm) - np.asarray(dsm), np.zeros(3), bias=0.02)


def test_ndsm_is_minimised_by_the_true_score():
    """On stationary Langevin noising the score is that of the mixture: c * score is best at c = 1.

    The loss is quadratic in c, so its minimiser is a ratio of two means; its standard error by
    the delta method over 20,000 paths is about 0.01.
    """
    prior = LANGEVIN.reference
    x0 = prior.sample(jax.random.key(1), (20_000,))
    batch = simulate(LANGEVIN, 100, x0, loss_step=1e-3, weight="unit")
    loss = lambda c: objectives.ndsm(lambda y, t: c * prior.score(y), batch)[:, 0]  # noqa: E731
    slope = jax.jit(jax.jacfwd(loss))(0.0)
    curvature = jax.jit(jax.jacfwd(jax.jacfwd(loss)))(0.0)
    best = -float(slope.mean() / curvature.mean())
    residual = np.asarray(slope + best * curvature)
    error = residual.std() / np.sqrt(residual.size) / float(curvature.mean())
    assert error < 0.02
    assert best == pytest.approx(1.0, abs=4.5 * error + 0.02)


def test_states_that_share_one_mu_share_its_evaluation():
    """The loss of shared states is that of separate ones, from k + k / noises evaluations."""
    batch = make_batch(jax.random.key(3), (5, 2, 3))
    batch = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=1), batch)
    z = jax.random.normal(jax.random.key(4), batch.y.shape)
    batch = dataclasses.replace(batch, y=batch.mu + 0.2 * z, score_target=-z / 0.2)
    evaluated = []

    def score(y, t):
        evaluated.append(y.shape)
        return toy_score(THETA, y, t)

    separate = objectives.ndsm_terms(score, batch)
    shared = objectives.ndsm_terms(score, dataclasses.replace(batch, noises=3))
    assert evaluated == [(5, 12, 3), (5, 8, 3)]
    for a, b in zip(separate, shared, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_dsm_needs_a_process_with_a_kernel():
    objectives.check_process("dsm", processes.ornstein_uhlenbeck(2))
    objectives.check_process("path_dsm", LANGEVIN)
    with pytest.raises(ValueError, match=r"name='dsm' needs .*'langevin'.*path_dsm"):
        objectives.check_process("dsm", LANGEVIN)


@pytest.mark.parametrize("process", [processes.straight_line(2), processes.variance_preserving(2)])
def test_targets_of_a_path_need_noise_from_the_start(process):
    """g(0) = 0 on the straight line: its first step has no noise to make a target of."""
    if processes.noisy_from_the_start(process):
        objectives.check_process("path_dsm", process)
        likelihood.Bound().check(process)
        return
    with pytest.raises(ValueError, match=r"'path_dsm' needs noise from t = 0 on.*one of dsm"):
        objectives.check_process("path_dsm", process)
    with pytest.raises(ValueError, match=r"starts at 0; use likelihood\.Flow"):
        likelihood.Bound().check(process)


def test_ism_is_the_equation():
    """1/2 |s|^2 and the divergence of toy_score by hand, weighted; conditional on nothing else."""
    batch = make_batch(jax.random.key(0))
    y, t, w = (np.asarray(a, np.float64) for a in (batch.y, batch.t, batch.weight))
    s = -0.7 * y + 0.3 * np.tanh(y) * t[..., None] - 0.2
    trace = (-0.7 + 0.3 * t[..., None] / np.cosh(y) ** 2).sum(-1)
    actual = objectives.ism(lambda y, t: toy_score(THETA, y, t), batch)
    np.testing.assert_allclose(actual, w * (0.5 * (s**2).sum(-1) + trace), rtol=1e-4, atol=1e-4)


def test_a_probe_estimates_the_divergence():
    """A score whose Jacobian is full, 20,000 random signs at one state."""
    matrix = jax.random.normal(jax.random.key(0), (3, 3))
    y = jnp.broadcast_to(jnp.array([0.3, -0.5, 0.2]), (20_000, 1, 3))
    probe = jax.random.rademacher(jax.random.key(1), y.shape, y.dtype)
    t = jnp.ones(y.shape[:-1])
    batch = noising.NoisedBatch(y=y, t=t, weight=t, score_target=y, probe=probe)
    score, estimates = objectives.divergence(lambda y, t: jnp.tanh(y @ matrix), batch)
    np.testing.assert_allclose(score[0, 0], np.tanh(np.asarray(y[0, 0] @ matrix)), atol=1e-5)
    exact = np.sum((1 - np.asarray(score[0, 0]) ** 2) * np.diag(matrix))
    assert_mean(estimates[:, 0], exact)


def test_ism_and_dsm_have_the_same_gradient_in_expectation():
    """Linear score of noised Gaussian data: paired differences of 20,000 gradients have mean 0."""
    process = processes.ornstein_uhlenbeck(2)
    grid = time_grid(process, 50, smallest_variance=0.02)
    noise = noising.exact_kernel(process, grid, k=1)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (20_000, 2)) + 0.3
    batch = noise(jax.random.key(1), x0)

    def difference(theta):
        score = lambda y, t: toy_score(theta, y, t)  # noqa: E731
        return (objectives.ism(score, batch) - objectives.dsm(score, batch))[:, 0]

    assert_mean(jax.jit(jax.jacfwd(difference))(THETA), np.zeros(3))


def test_sliced_losses_are_exact_ism_in_the_mean_over_all_signs():
    """The eight probes of d = 3 have covariance I exactly, so their mean loss is that of ISM; the
    finite differences are off by O(h^2) and by rounding."""
    batch = make_batch(jax.random.key(4))
    score = lambda y, t: toy_score(THETA, y, t)  # noqa: E731
    exact = objectives.ism(score, batch)
    signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(8, 3)
    for loss, tolerance in ((objectives.ssm, 1e-5), (objectives.fd_ssm, 2e-3)):
        by_probe = [
            loss(
                score,
                dataclasses.replace(
                    batch, probe=jnp.broadcast_to(jnp.asarray(v, jnp.float32), batch.y.shape)
                ),
            )
            for v in signs
        ]
        np.testing.assert_allclose(np.mean(by_probe, axis=0), exact, rtol=tolerance, atol=tolerance)
        with pytest.raises(ValueError, match="has no probe"):
            loss(score, batch)


def test_ism_takes_probes_in_many_dimensions_only():
    for dim, probed in ((16, False), (17, True)):
        config = Config.from_dict({"objective": {"name": "ism"}})
        built = build(config, (dim,), stand_in(config, (dim,)))
        batch = jax.eval_shape(built.noising, jax.random.key(0), jnp.zeros((4, dim)))
        assert (batch.probe is not None) == probed


def test_the_losses_of_ddpm_and_of_dsm_agree(rng):
    """|eps - eps_theta|^2 / 2 (2006.11239, Eq. 14) of VP states, by NumPy, is DSM with weight v."""
    process = processes.variance_preserving(2)
    grid = uniform_grid(1.0, 1000)
    x0 = rng.normal(size=(100, 2)).astype(np.float32)
    batch = noising.exact_kernel(process, grid, k=2)(jax.random.key(0), jnp.asarray(x0))
    eps_theta = lambda y, t: jnp.tanh(y) * (1 + t[..., None])  # noqa: E731
    decay = 0.1 * np.asarray(batch.t, np.float64) + 9.95 * np.asarray(batch.t, np.float64) ** 2
    alpha_bar = np.exp(-decay)[..., None]
    eps = (np.asarray(batch.y) - np.sqrt(alpha_bar) * x0[:, None]) / np.sqrt(1 - alpha_bar)
    expected = 0.5 * ((eps - np.asarray(eps_theta(batch.y, batch.t))) ** 2).sum(-1)
    std = process.clock.std
    loss = objectives.dsm(lambda y, t: -eps_theta(y, t) / std(t)[..., None], batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-3)
