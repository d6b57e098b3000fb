"""Samplers with exact scores, where the law of the result is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import gmm, sampling, sde
from ndsm_jax.integrators import time_grid

PROCESS = sde.ornstein_uhlenbeck(2, variance=0.5, horizon=2.5)
GRID = time_grid(PROCESS, 150, smallest_variance=1e-3)
WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
VARIANCES = np.array([0.05, 0.1])


def exact_score(weights, means, variances):
    """Score of OU noising of a spherical mixture: at time t it is again a mixture."""

    def score(y, t):
        scale, std = PROCESS.kernel(t[..., None])
        v = scale**2 * jnp.asarray(variances, jnp.float32)[None] + std**2
        difference = y[:, None, :] - scale[..., None] * jnp.asarray(means, jnp.float32)[None]
        log_joint = (
            jnp.log(jnp.asarray(weights, jnp.float32))[None]
            - 0.5 * jnp.sum(difference**2, -1) / v
            - jnp.log(v)
        )
        r = jax.nn.softmax(log_joint, axis=-1)
        return -jnp.sum((r / v)[..., None] * difference, axis=1)

    return score


@pytest.fixture(params=sampling.SAMPLERS)
def sampler(request):
    return request.param


def draw(sampler, score, *, seed=0, num=8000):
    return sampling.sample(
        jax.random.key(seed), score, PROCESS, num, grid=GRID, sampler=sampler, chunk=4000
    )


def test_gaussian_moments_are_recovered(sampler):
    """N(m, 0.2 I): mean and variance within 4.5 standard errors of 8,000 samples, plus 0.01 for the
    discretisation (5 % of the variance)."""
    mean = np.array([[0.6, -0.4]])
    x = draw(sampler, exact_score([1.0], mean, [0.2]))
    assert_mean(x, mean[0], bias=0.01)
    assert_mean((x - mean) ** 2, [0.2, 0.2], bias=0.01)


def test_mixture_moments_and_fractions_are_recovered(sampler):
    x = draw(sampler, exact_score(WEIGHTS, MEANS, VARIANCES))
    assert_mean(x[:, 0] > 0, WEIGHTS[1], bias=0.005)
    assert_mean(x, WEIGHTS @ MEANS, bias=0.01)
    second = WEIGHTS @ (MEANS**2 + VARIANCES[:, None])
    assert_mean(x**2, second, bias=0.015)


def test_probability_flow_and_reverse_sde_have_the_same_law():
    """Two-sample Kolmogorov-Smirnov statistic of four projections, 8,000 independent samples each.

    It exceeds c = sqrt(-ln(p / 2) / 2) sqrt(2 / n) = 0.035 with probability p = 1e-4 under equal
    laws; 0.01 is allowed for the discretisation of the two.
    """
    score = exact_score(WEIGHTS, MEANS, VARIANCES)
    a, b = draw("reverse_sde", score, seed=0), draw("heun_flow", score, seed=1)
    critical = np.sqrt(-np.log(1e-4 / 2) / 2) * np.sqrt(2 / 8000)
    for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
        assert scipy.stats.ks_2samp(a @ direction, b @ direction).statistic < critical + 0.01


def test_langevin_started_from_its_own_law_stays_there(sampler):
    """Nonlinear noising of stationary data: the exact score is the prior's own."""
    prior = gmm.mixture(WEIGHTS, MEANS, VARIANCES)
    process = sde.mixture_langevin(prior)
    grid = time_grid(process, 200)
    x = sampling.sample(
        jax.random.key(1), process.drift, process, 8000, grid=grid, sampler=sampler, chunk=8000
    )
    assert_mean(x, WEIGHTS @ MEANS, bias=0.01)
    assert_mean(x**2, WEIGHTS @ (MEANS**2 + VARIANCES[:, None]), bias=0.015)


def test_a_sample_depends_on_its_index_alone(sampler):
    score = exact_score(WEIGHTS, MEANS, VARIANCES)
    options = {"grid": GRID, "sampler": sampler}
    whole = sampling.sample(jax.random.key(3), score, PROCESS, 40, chunk=40, **options)
    parts = sampling.sample(jax.random.key(3), score, PROCESS, 40, chunk=16, **options)
    fewer = sampling.sample(jax.random.key(3), score, PROCESS, 18, chunk=5, **options)
    np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole[:18], fewer, rtol=1e-3, atol=1e-4)
    assert not np.allclose(whole[0], whole[1])


def ou_kernel(t):
    return np.exp(-2 * t), np.sqrt(0.5 * (1 - np.exp(-4 * t)))


def vp_kernel(t):
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    return np.exp(-0.5 * integral), np.sqrt(1 - np.exp(-integral))


DATA_MEAN, DATA_VARIANCE = np.array([0.6, -0.4]), 0.2
POINTS = np.array([[0.5, 0.1], [-0.3, 0.8]])


def denoise_gaussian(process, kernel, t):
    """Denoised POINTS under the exact score of noised N(DATA_MEAN, 0.2 I), and E[Y_0 | Y_t]."""
    scale, std = kernel(t)
    variance = scale**2 * DATA_VARIANCE + std**2
    residual = POINTS - scale * DATA_MEAN
    score = lambda y, t: jnp.asarray(-residual / variance, y.dtype)  # noqa: E731
    actual = sampling.denoise(score, process, jnp.asarray(POINTS, jnp.float32), jnp.float32(t))
    return actual, DATA_MEAN + scale * DATA_VARIANCE / variance * residual


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.5])
@pytest.mark.parametrize(
    ("process", "kernel"),
    [(PROCESS, ou_kernel), (sde.variance_preserving(2), vp_kernel)],
    ids=["ornstein_uhlenbeck", "variance_preserving"],
)
def test_denoise_is_the_posterior_mean_of_linear_processes(process, kernel, t):
    """Gaussian data, whose posterior mean has a closed form."""
    np.testing.assert_allclose(*denoise_gaussian(process, kernel, t), atol=1e-4)


@pytest.mark.parametrize("t", [1e-2, 5e-3])
def test_denoise_is_the_posterior_mean_to_first_order_without_a_kernel(t):
    """The same process as Langevin dynamics of a Gaussian.

    The error is t^2 (2 x + 4 score) to leading order, at most 22.4 t^2 at these points; the step
    itself is 5 t and more.
    """
    process = sde.mixture_langevin(PROCESS.prior)
    np.testing.assert_allclose(*denoise_gaussian(process, ou_kernel, t), atol=25 * t**2)


def test_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match=r"sample\.sampler"):
        sampling.sample(jax.random.key(0), PROCESS.drift, PROCESS, 2, grid=GRID, sampler="teleport")
