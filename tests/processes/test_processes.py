"""Processes against closed forms, quadrature, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from conftest import assert_mean

from ndsm_jax import likelihood, processes, references, sampling
from ndsm_jax.clock import Clock, time_coordinate
from ndsm_jax.integrators import clock_grid, simulate, uniform_grid


def two_modes():
    return references.mixture([0.3, 0.7], [[-1.0], [1.0]], [0.1, 0.2])


LINEAR = {
    "ou": processes.ornstein_uhlenbeck(2, variance=0.5, horizon=1.5),
    "vp": processes.variance_preserving(2),
    "sub_vp": processes.sub_variance_preserving(2),
    "line": processes.straight_line(2),
    "ve": processes.variance_exploding(2, sigma_min=0.1, sigma_max=3.0, horizon=2.0),
}


def scale_and_std(process, t):
    """a and s of a kernel N(a y_0, s^2 I): [...] each."""
    kernel = process.kernel(t)
    return kernel.scale.value, kernel.root.value


@pytest.mark.parametrize("name", LINEAR)
def test_linear_kernels_solve_their_moment_equations(name):
    """m' = b(m), v' = 2 (db/dy) v + g^2, integrated by SciPy from the drift and diffusion alone."""
    process = LINEAR[name]
    slope = lambda t: float(process.drift(jnp.ones(2), jnp.float32(t))[0])  # noqa: E731

    def moments(t, x):
        return [
            slope(t) * x[0],
            2 * slope(t) * x[1] + float(process.diffusion(jnp.float32(t))) ** 2,
        ]

    times = np.array([0.01, 0.2, 0.9]) * process.horizon
    solution = scipy.integrate.solve_ivp(
        moments, (0, process.horizon), [1.0, 0.0], t_eval=times, rtol=1e-6, atol=1e-11
    )
    scale, std = scale_and_std(process, jnp.asarray(times, jnp.float32))
    np.testing.assert_allclose(scale, solution.y[0], rtol=1e-3)
    np.testing.assert_allclose(std**2, solution.y[1], rtol=1e-3)
    np.testing.assert_allclose(
        process.clock.variance(jnp.asarray(times, jnp.float32)), std**2, rtol=1e-5
    )


@pytest.mark.parametrize("name", LINEAR)
def test_euler_paths_have_the_kernel_moments(name):
    """20,000 paths of 400 steps; the Euler bias at these steps is below 0.02."""
    process = LINEAR[name]
    y0 = jnp.broadcast_to(jnp.array([1.0, -0.5]), (20_000, 2))
    grid = uniform_grid(0.5 * process.horizon, 400)
    y = simulate(jax.random.key(0), process, y0, grid)[-1]
    scale, std = scale_and_std(process, jnp.float32(grid[-1]))
    assert_mean(y, scale * y0[0], bias=0.01)
    assert_mean((y - scale * y0) ** 2, np.full(2, std**2), bias=0.02)


def test_ve_levels_are_geometric():
    """Ten equal steps of the clock have one ratio of std; v(t) is exact down to the smallest."""
    process = processes.variance_exploding(2, sigma_min=0.01, sigma_max=50.0)
    t = np.geomspace(1e-6, 1, 20)
    exact = 0.01**2 * np.expm1(2 * t * np.log(5000))
    np.testing.assert_allclose(
        process.clock.variance(jnp.asarray(t, jnp.float32)), exact, rtol=1e-4
    )
    grid = clock_grid(process, 10, smallest_variance=1e-7)
    std = np.asarray(process.clock.std(jnp.asarray(grid[1:])), np.float64)
    np.testing.assert_allclose(std[1:] / std[:-1], 1e7 ** (1 / 18), rtol=1e-3)


def test_ve_with_the_default_grids_has_the_datas_law_and_density():
    """N(1/2, 0.3^2 I) by its exact score; a share of v(T) = 2500 would end at a variance of 2.5."""
    process = processes.variance_exploding(2)

    def score(y, t):
        return (0.5 - y) / (0.09 + process.clock.variance(t))[..., None]

    y = sampling.sample(jax.random.key(0), score, process, 2000, grid=40, chunk=2000)
    assert_mean(y, np.full(2, 0.5))
    assert_mean((y - 0.5) ** 2, np.full(2, 0.09), bias=1e-3)
    x = 0.5 + 0.3 * np.random.default_rng(0).normal(size=(50, 2))
    found = likelihood.log_prob(jax.random.key(1), score, process, x).value
    exact = -0.5 * ((x - 0.5) ** 2).sum(axis=1) / 0.09 - np.log(2 * np.pi * 0.09)
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_vp_has_the_levels_of_ddpm():
    """beta_i from 1e-4 to 0.02 in 1,000 steps (2006.11239, Section 4), cumulated by NumPy."""
    process = processes.variance_preserving(2)
    scale = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    ours = process.kernel(jnp.arange(1, 1001) / 1000).scale.value
    np.testing.assert_allclose(ours, scale, atol=2e-3)


def test_vp_matches_the_published_noise_schedule():
    """B(1) = 10.05 for beta from 0.1 to 20: a(1) = exp(-5.025)."""
    scale, std = scale_and_std(LINEAR["vp"], jnp.float32(1.0))
    assert float(scale) == pytest.approx(np.exp(-5.025), rel=1e-4)
    assert float(std) == pytest.approx(np.sqrt(1 - np.exp(-10.05)), rel=1e-6)


def test_langevin_leaves_the_mixture_invariant_up_to_its_step_bias():
    """Moments after 1 time unit at two step sizes.

    The Euler chain of OU with rate a has variance sigma^2 / (1 - a h / 2): relative bias a h / 2,
    which for rates 10 and 5 and h = 0.005 is 0.025 and 0.0125 of the component variances.
    """
    process = processes.langevin(two_modes(), horizon=1.0)
    y0 = process.reference.sample(jax.random.key(1), (40_000,))
    y = simulate(jax.random.key(2), process, y0, uniform_grid(1.0, 200))[-1]
    mean = 0.3 * -1.0 + 0.7 * 1.0
    second = 0.3 * (1 + 0.1) + 0.7 * (1 + 0.2)
    assert_mean(y, [mean], bias=0.005)
    assert_mean(y**2, [second], bias=0.025 * 0.3 * 0.1 + 0.0125 * 0.7 * 0.2 + 0.002)
    assert_mean(y > 0, [0.3 * 0.00078 + 0.7 * 0.98733], bias=0.005)


def test_langevin_relaxes_within_a_component_as_its_clock_says():
    """One component: v(t) is the exact kernel variance of the process."""
    prior = references.standard_normal(1, 0.3)
    process = processes.langevin(prior)
    linear = processes.ornstein_uhlenbeck(1, variance=0.3)
    t = jnp.linspace(0.01, 1, 7)
    np.testing.assert_allclose(
        process.clock.variance(t), linear.kernel(t).root.value ** 2, rtol=1e-6
    )
    assert process.horizon == pytest.approx(4 * 0.3)
    y = jnp.linspace(-2, 2, 7)[:, None]
    np.testing.assert_allclose(process.drift(y, t), linear.drift(y, t), rtol=1e-6)


def test_clock_is_the_log_signal_to_noise_ratio():
    t = jnp.linspace(0.01, 1, 9)
    expected = np.log(np.expm1(0.1 * np.asarray(t) + 0.5 * 19.9 * np.asarray(t) ** 2))
    np.testing.assert_allclose(LINEAR["vp"].clock.time(t), expected, rtol=2e-3, atol=2e-3)
    assert np.isfinite(LINEAR["vp"].clock.time(jnp.float32(0.0)))
    # Long after v has saturated in float32 the clock goes on: x + log(saturation).
    late = processes.ornstein_uhlenbeck(1, variance=0.5, horizon=20.0)
    expected = 4 * np.array([10.0, 20.0]) + np.log(0.5)
    np.testing.assert_allclose(late.clock.time(jnp.array([10.0, 20.0])), expected, rtol=1e-6)


def test_time_coordinates_span_minus_one_to_one():
    process = LINEAR["ou"]
    clock = time_coordinate(process.clock, process.horizon, "clock", first=1e-3)
    t = jnp.array([0.0, 1e-3, 0.1, process.horizon])
    c = np.asarray(clock(t))
    np.testing.assert_allclose(c[[0, 1, 3]], [-1, -1, 1], atol=1e-5)
    assert -1 < c[2] < 1
    with pytest.raises(ValueError, match=r"network\.time"):
        time_coordinate(process.clock, process.horizon, "tea", first=1e-3)
    linear = time_coordinate(process.clock, process.horizon, "time", first=1e-3)
    np.testing.assert_allclose(linear(t), 2 * t / process.horizon - 1, atol=1e-6)


def test_reverse_drift_and_probability_flow_on_a_stationary_process():
    """With the exact stationary score the flow stands still; reverse and forward SDE agree."""
    process = processes.langevin(two_modes())
    score = lambda y, t: process.reference.score(y)  # noqa: E731
    y, t = jnp.linspace(-2, 2, 9)[:, None], jnp.full(9, 0.1)
    np.testing.assert_allclose(processes.probability_flow(process, score)(y, t), 0, atol=1e-5)
    expected = process.drift(y, t)
    np.testing.assert_allclose(processes.reverse_drift(process, score)(y, t), expected, rtol=1e-5)


def test_process_takes_any_drift():
    swirl = lambda y, t: jnp.stack([-y[..., 1], y[..., 0]], -1) - y  # noqa: E731
    process = processes.process(
        swirl, lambda t: 1.0 + t, references.standard_normal(2), horizon=2.0, name="swirl"
    )
    y = simulate(jax.random.key(0), process, jnp.ones((3, 2)), uniform_grid(2.0, 50))
    assert y.shape == (51, 3, 2)
    assert np.isfinite(y).all()
    assert float(process.clock.variance(jnp.float32(1e-4))) == pytest.approx(1e-4, rel=1e-3)
    own = Clock(decay=lambda t: t, saturation=jnp.float32(2.0))
    clocked = processes.process(swirl, jnp.ones_like, process.reference, horizon=1.0, clock=own)
    assert float(clocked.clock.variance(jnp.float32(0.5))) == pytest.approx(2 * -np.expm1(-0.5))
    with pytest.raises(TypeError, match="saturation"):
        Clock(decay=lambda t: t)
    with pytest.raises(ValueError, match=r"horizon=-1\.0: a number > 0"):
        processes.process(swirl, jnp.ones_like, process.reference, horizon=-1.0)


@pytest.mark.parametrize(
    "number", [2, 2.0, np.float32(2), np.float64(2), np.array(2.0), jnp.float32(2), np.int64(2)]
)
def test_a_diffusion_is_a_number_of_any_kind(number):
    reference = references.standard_normal(2)
    made = processes.process(lambda y, t: -y, number, reference, horizon=1.0)
    np.testing.assert_array_equal(made.diffusion(jnp.zeros(3)), np.full(3, 2, np.float32))


@pytest.mark.parametrize("number", [0.0, np.float32(-1), np.inf, np.array(np.nan), np.ones(2), "2"])
def test_other_diffusions_are_refused(number):
    reference = references.standard_normal(2)
    with pytest.raises(ValueError, match=r"diffusion=.*number > 0"):
        processes.process(lambda y, t: -y, number, reference, horizon=1.0)
