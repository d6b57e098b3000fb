"""Brownian motion of angles: its kernel, its targets, its law at the horizon, its reverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import linear_maps, noising, processes, references, sampling
from ndsm_jax.integrators import step_sizes, time_grid
from ndsm_jax.processes.linear import UNIFORM

# --- the score of the wrapped normal law, in float64 ---


def score_by_images(x, std, period):
    """-sum_k w_k (x + k P) / s^2 over k = -60, ..., 60."""
    images = x[..., None] + period * np.arange(-60, 61)
    log_w = -0.5 * (images / std) ** 2
    w = np.exp(log_w - log_w.max(axis=-1, keepdims=True))
    return -(w * images).sum(axis=-1) / w.sum(axis=-1) / std**2


def score_by_harmonics(x, std, period):
    """d/dx log(1 + 2 sum_m exp(-(m w s)^2 / 2) cos(m w x)), w = 2 pi / P, m = 1, ..., 60."""
    w = 2 * np.pi / period * np.arange(1, 61)
    q = 2 * np.exp(-0.5 * (w * std) ** 2)
    phase = w * x[..., None]
    return -(q * w * np.sin(phase)).sum(axis=-1) / (1 + (q * np.cos(phase)).sum(axis=-1))


@pytest.mark.parametrize("period", [2 * np.pi, 1.0, 360.0])
@pytest.mark.parametrize(
    ("noise", "exact"),
    [
        *((r, score_by_images) for r in (1e-3, 0.01, 0.1, 0.3, 0.398, 0.4, 0.6)),
        *((r, score_by_harmonics) for r in (0.3, 0.398, 0.4, 0.6, 0.8, 1.5)),
    ],
)
def test_the_score_of_the_kernel_is_the_sum_over_images_and_that_over_harmonics(
    noise, exact, period
):
    """From 0.001 to 1.5 periods of noise, over several turns; each sum where it converges.

    Within 1e-5 of the largest score at that noise, however small it is, and what the rounding of
    x / P makes of the slope, which is large half a period from the mean.
    """
    x = (np.linspace(-2.3, 2.3, 2001) * period).astype(np.float32)
    std = np.float32(noise * period)
    found = linear_maps.wrapped_score(jnp.asarray(x)[:, None], jnp.full(len(x), std), period)
    expected = exact(np.float64(x), float(std), period)
    rounding = 4 * np.finfo(np.float32).eps * period
    slope = np.abs(exact(x + rounding, float(std), period) - expected)
    error = np.abs(np.asarray(found)[:, 0] - expected)
    assert np.all(error < 1e-5 * np.abs(expected).max() + slope)


# --- a density on the circle, with two harmonics ---

A, B, PHI, PSI = 0.5, 0.45, 0.8, -0.6
PROCESS = processes.wrapped(1)
BROWNIAN = processes.langevin(references.uniform_torus(1))


def law(x, std, lib=np):
    """Density of x_0 + std z modulo 2 pi, and its derivative: harmonic m by exp(-(m std)^2 / 2).

    (1 + A cos(x - PHI) + B cos(2 x - PSI)) / (2 pi) at std = 0: from 0.05 to 1.95 over 2 pi.
    """
    first, second = A * lib.exp(-0.5 * std**2), B * lib.exp(-2 * std**2)
    value = 1 + first * lib.cos(x - PHI) + second * lib.cos(2 * x - PSI)
    slope = -first * lib.sin(x - PHI) - 2 * second * lib.sin(2 * x - PSI)
    return value / (2 * np.pi), slope / (2 * np.pi)


def cdf(x):
    """From -pi."""

    def integral(x):
        return x + A * np.sin(x - PHI) + B / 2 * np.sin(2 * x - PSI)

    return (integral(x) - integral(-np.pi)) / (2 * np.pi)


def score_at(std, y):
    value, slope = law(y[..., 0], std, jnp)
    return (slope / value)[..., None]


def wrapped_score(y, t):
    return score_at(PROCESS.kernel(t).root.value, y)


def brownian_score(y, t):
    return score_at(jnp.sqrt(2 * t), y)


def test_the_law_of_these_tests_is_a_convolution():
    """Over the covering space, by the trapezoidal rule."""
    x, far = np.linspace(-3, 3, 7), np.linspace(-20, 20, 40_001)
    kernel = scipy.stats.norm.pdf(x[:, None] - far, scale=0.7)
    expected = kernel @ law(far, 0.0)[0] * (far[1] - far[0])
    np.testing.assert_allclose(law(x, 0.7)[0], expected, rtol=1e-6)


def test_both_targets_have_one_conditional_mean_and_that_of_the_kernel_less_variance():
    """E[f(y) (T - score)] = 0 for periodic f, of 40,000 states, within 4.5 standard errors.

    The target -z / s of the covering space and the wrapped kernel's, against the exact score.
    """
    points = np.linspace(-np.pi, np.pi, 20_001)
    u = np.random.default_rng(0).uniform(size=(10_000, 1))
    x0 = jnp.asarray(np.interp(u, cdf(points), points), jnp.float32)
    noise = noising.exact_kernel(PROCESS, 40)
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(1), x0)
    std = np.asarray(PROCESS.kernel(batch.t).root.value, np.float64)
    y, root_weight = np.float64(batch.y)[..., 0], np.sqrt(np.float64(batch.weight))
    value, slope = law(y, std)
    targets = (batch.score_target[..., 0], -(y - np.asarray(x0)) / std**2)
    late, early = std > 1.5, std < 0.3
    for target in targets:
        residual = root_weight * (np.asarray(target) - slope / value)
        f = [g(m * y) for m in (1, 2) for g in (np.cos, np.sin)]
        f += [g(y) * late for g in (np.cos, np.sin)] + [np.ones_like(y)]
        # The four states of a data point are not independent: means over them.
        assert_mean(np.stack([(g * residual).mean(axis=1) for g in f], axis=1), 0.0)
    squares = [np.square(root_weight * np.asarray(target)) for target in targets]
    assert squares[0][late].mean() < 0.3 * squares[1][late].mean()
    assert squares[0][early].mean() == pytest.approx(squares[1][early].mean(), rel=1e-4)


def test_the_denoised_state_is_the_posterior_mean_in_the_covering_space():
    """E[x_0 | x] of x_0 with the periodic density on all of R, by the trapezoidal rule; a period on
    it is a period on."""
    x = np.linspace(-3, 3, 9)
    far = np.linspace(-30, 30, 60_001)
    for t in (0.3, 0.6, 0.9):
        std = float(PROCESS.kernel(jnp.float32(t)).root.value)
        weights = scipy.stats.norm.pdf(x[:, None] - far, scale=std) * law(far, 0.0)[0]
        expected = (weights @ far / weights.sum(axis=1))[:, None]
        for turns in (0, 3):
            states = jnp.asarray(x[:, None] + 2 * np.pi * turns, jnp.float32)
            found = sampling.denoise(wrapped_score, PROCESS, states, jnp.float32(t))
            np.testing.assert_allclose(found - 2 * np.pi * turns, expected, atol=2e-5)


# --- clock and horizon ---


@pytest.mark.parametrize("period", [2 * np.pi, 1.0])
def test_the_clock_is_log_s_squared_and_saturates_at_the_uniform_variance(period):
    process = processes.wrapped(2, period=period, sigma_min=0.002 * period, horizon=3.0)
    sigma_max, uniform = UNIFORM * period, period**2 / 12
    t = np.array([1e-3, 0.03, 0.4, 1.7, 3.0])
    s2 = (0.002 * period) ** 2 * ((sigma_max / (0.002 * period)) ** (2 * t / 3) - 1)
    t = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(process.kernel(t).root.value, np.sqrt(s2), rtol=2e-5)
    np.testing.assert_allclose(process.clock.time(t), np.log(s2), atol=1e-4)
    np.testing.assert_allclose(process.clock.variance(t), uniform * s2 / (uniform + s2), rtol=2e-4)
    np.testing.assert_allclose(process.clock.signal(t) ** 2, uniform / (uniform + s2), rtol=1e-5)
    # What the noise adds is the diffusion's: d s^2 / dt = g^2.
    slope = jax.vmap(jax.grad(lambda t: process.kernel(t).root.value ** 2))(t)
    np.testing.assert_allclose(process.diffusion(t) ** 2, slope, rtol=1e-4)
    eta, sigma = step_sizes(process, t, t / 9, integrator="auto")
    np.testing.assert_allclose(eta, t / 9)
    np.testing.assert_allclose(sigma**2, slope * t / 9, rtol=1e-4)
    with pytest.raises(ValueError, match="runs on a torus"):
        step_sizes(process, t, t / 9, integrator="exponential")
    grid = time_grid(process, 30)
    steps = np.diff(np.log(np.asarray(process.kernel(jnp.asarray(grid[1:])).root.value)))
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)


def test_the_law_at_the_horizon_is_uniform_to_the_stated_precision():
    """The density of the kernel at T over that of the uniform law, by the sum over images."""
    std = float(PROCESS.kernel(PROCESS.horizon).root.value)
    assert std == pytest.approx(UNIFORM * 2 * np.pi, rel=1e-4)
    x = np.linspace(-np.pi, np.pi, 101)[:, None] + 2 * np.pi * np.arange(-20, 21)
    ratio = 2 * np.pi * scipy.stats.norm.pdf(x, scale=std).sum(axis=1)
    assert 6e-6 < np.abs(ratio - 1).max() < 7e-6


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="wrapped: period=-1"):
        processes.wrapped(2, period=-1.0)
    with pytest.raises(ValueError, match=r"process\.sigma_max=1\.0 must be larger than .*=2\.0"):
        processes.wrapped(2, sigma_min=2.0, sigma_max=1.0)


# --- samples ---

SAMPLERS = {
    "reverse_sde": {},
    "multistep_sde": {},
    "heun_flow": {},
    "multistep_flow": {},
    "adaptive_flow": {},
    "annealed_langevin": {"langevin_steps": 10},
}


def check(process, score, name, steps):
    """10,000 samples by the exact score, from the uniform law on a cell, modulo 2 pi: the
    Kolmogorov-Smirnov test, of which 1 seed in 1,000 would fail. Its resolution is 0.02 in the
    distribution function; that of the start is 0.12 off."""
    sampler = sampling.SAMPLERS[name](**SAMPLERS[name])
    grid = time_grid(process, steps, smallest_variance=1e-4)
    x = sampling.sample(
        jax.random.key(5), score, process, 10_000, grid=grid, sampler=sampler, chunk=10_000
    )
    x = (np.float64(x[:, 0]) + np.pi) % (2 * np.pi) - np.pi
    assert scipy.stats.kstest(x, cdf).pvalue > 1e-3, name
    assert scipy.stats.kstest(x, scipy.stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue < 1e-9


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_the_wrapped_process_have_the_density(name):
    check(PROCESS, wrapped_score, name, 60)


@pytest.mark.parametrize("name", ["reverse_sde", "multistep_sde", "multistep_flow"])
def test_so_have_those_of_langevin_dynamics_towards_the_uniform_law(name):
    """Which has no kernel: Brownian motion simulated, s^2 = 2 t."""
    check(BROWNIAN, brownian_score, name, 100)
