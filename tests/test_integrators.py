"""Grids, orders of convergence, and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import integrators, processes, references


def langevin():
    return processes.langevin(references.mixture([0.4, 0.6], [[-1.0], [1.0]], [0.3, 0.4]))


def test_clock_grid_is_geometric_early_and_uniform_late():
    process = langevin()
    grid = integrators.clock_grid(process, 100, smallest_variance=1e-3)
    assert grid[0] == 0
    assert grid[-1] == np.float32(process.horizon)
    assert (np.diff(grid) > 0).all()
    v = np.asarray(process.clock.variance(jnp.asarray(grid)))
    assert v[1] / v[-1] == pytest.approx(1e-3, rel=1e-3)
    ratio = grid[2:10] / grid[1:9]
    np.testing.assert_allclose(ratio, ratio[0], rtol=2e-2)
    late = np.diff(grid)[-10:]
    np.testing.assert_allclose(late, late[0], rtol=2e-2)
    # Exact for this clock: t = sigma^2 / 2 log(1 + exp(clock)), clocks equally spaced.
    s = float(process.clock.saturation)
    clock = np.linspace(*np.log(np.expm1(2 * grid[[1, -1]] / s)), 100)
    np.testing.assert_allclose(grid[1:], s / 2 * np.log1p(np.exp(clock)), rtol=2e-3)


def test_uniform_grid_and_errors():
    grid = integrators.time_grid(langevin(), 10, kind="uniform")
    np.testing.assert_allclose(grid, np.linspace(0, langevin().horizon, 11), rtol=1e-6)
    with pytest.raises(ValueError, match="uniform"):
        integrators.time_grid(langevin(), 10, kind="unifrom")
    with pytest.raises(ValueError, match="num_steps"):
        integrators.clock_grid(langevin(), 1, smallest_variance=1e-3)


def test_a_first_time_is_a_thousandth_of_the_datas_variance():
    """Of v(T) where a process noises to the data's scale; of 1 where it keeps that."""
    for process in (langevin(), processes.variance_preserving(2), processes.wrapped(1)):
        wanted = integrators.clock_grid(process, 40, smallest_variance=1e-3)
        np.testing.assert_array_equal(integrators.time_grid(process, 40), wanted)
    for sigma_max, first in ((50.0, 1e-3), (2000.0, 1e-3), (0.5, 0.25e-3)):
        process = processes.variance_exploding(2, sigma_max=sigma_max)
        for kind in ("clock", "edm", "geometric"):
            grid = integrators.time_grid(process, 40, kind=kind)
            assert float(process.clock.variance(grid[1])) == pytest.approx(first, rel=2e-3)


def test_edm_grid_of_vp_is_that_of_edm():
    """2206.00364, Eq. 5 with rho = 7, in its sigma = s / a and the kernel written out again."""
    process = processes.variance_preserving(2)
    grid = integrators.time_grid(process, 40, kind="edm", smallest_variance=1e-3)
    t = grid[1:].astype(np.float64)
    sigma = np.sqrt(np.expm1(0.1 * t + 0.5 * 19.9 * t**2))
    ends = sigma[[0, -1]] ** (1 / 7)
    np.testing.assert_allclose(sigma, np.linspace(*ends, 40) ** 7, rtol=5e-3)
    assert grid[0] == 0
    assert grid[-1] == 1


def test_clock_grid_of_a_long_horizon():
    """T of 57 relaxation times, where v has long saturated: still increasing, late steps equal."""
    process = processes.langevin(langevin().reference, horizon=20.0)
    grid = integrators.clock_grid(process, 200, smallest_variance=1e-3)
    assert (np.diff(grid) > 0).all()
    np.testing.assert_allclose(np.diff(grid)[-50:], np.diff(grid)[-1], rtol=1e-2)


def test_euler_maruyama_has_strong_order_one_for_additive_noise():
    """Mean pathwise error against a 16 times finer path of the same Brownian motion, 2,000 paths.

    The fitted slope of log error over log step must be 1 within 0.1; order 1/2 would fail.
    """
    process = langevin()
    fine = 1024
    h = 1.0 / fine
    z = jax.random.normal(jax.random.key(0), (fine, 2000, 1))
    y0 = process.reference.sample(jax.random.key(1), (2000,))

    def run(stride: int) -> jax.Array:
        increments = z.reshape(fine // stride, stride, 2000, 1).sum(1) / stride**0.5

        def step(y, n, t, t_next):
            times = [integrators.broadcast_time(x, y) for x in (t, t_next - t)]
            return integrators.forward_step(process, y, *times, increments[n]), None

        grid = jnp.arange(fine // stride + 1) * (stride * h)
        return jax.jit(lambda y: integrators.scan_grid(step, y, grid)[0])(y0)

    reference = run(1)
    strides = np.array([16, 32, 64])
    errors = [float(jnp.abs(run(s) - reference).mean()) for s in strides]
    slope = np.polyfit(np.log(strides), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


def test_heun_has_order_two():
    """dX/dtau = -(1 + t) X with tau = T - t from t = 1 to 0: X(0) = X(1) exp(-3/2)."""
    velocity = lambda x, t: -(1 + t)[..., None] * x  # noqa: E731
    errors = []
    with jax.enable_x64(True):
        for n in (10, 20, 40):
            grid = jnp.linspace(1.0, 0.0, n + 1)

            def step(x, i, t, t_next):
                times = [integrators.broadcast_time(u, x) for u in (t, t_next)]
                return integrators.heun_step(velocity, x, *times), None

            x = integrators.scan_grid(step, jnp.ones((1, 1), jnp.float64), grid)[0]
            errors.append(abs(float(x[0, 0]) - np.exp(-1.5)))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 2.0, atol=0.15)


def test_simulate_is_the_recursion_with_its_keys():
    """The path rebuilt in NumPy from the same keys."""
    process = processes.ornstein_uhlenbeck(2, variance=0.5, horizon=1.0)
    grid = np.array([0, 0.1, 0.3, 0.35], np.float32)
    key, y0 = jax.random.key(3), np.ones((4, 2), np.float32)
    path = integrators.simulate(key, process, jnp.asarray(y0), grid)
    y = y0
    for n, h in enumerate(np.diff(grid)):
        z = np.asarray(jax.random.normal(jax.random.fold_in(key, n), y.shape))
        y = y - y / 0.5 * h + np.sqrt(2 * h) * z
        np.testing.assert_allclose(path[n + 1], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [0.25, 1.0, 4.0])
def test_exponential_steps_of_another_width(own):
    """The stationary variance about a mode whose width is not the step's: the recursion run to its
    end in NumPy is the docstring's closed form; too small for a wider one, exact for its own."""
    process = processes.ornstein_uhlenbeck(1, variance=own, horizon=1.0)
    h, variance = jnp.asarray(0.3), jnp.asarray(1.0)
    by = {"integrator": "exponential", "variance": variance}
    eta, sigma = (float(x) for x in integrators.step_sizes(process, jnp.asarray(0.0), h, **by))
    g = float(process.diffusion(jnp.asarray(0.0)))
    v = 0.0
    for _ in range(2000):
        v = (1 - eta * g**2 / (2 * own)) ** 2 * v + sigma**2
    u = g**2 / 2 * 0.3
    assert v == pytest.approx(own * (1 + np.exp(-u)) / (2 - (1 - np.exp(-u)) / own), rel=1e-5)
    assert np.sign(round(v / own - 1, 4)) == np.sign(1 - own)


def test_exponential_steps_where_there_is_no_noise():
    """A straight line has g = 0 at its end: the step is Euler's, and finite."""
    process = processes.straight_line(2)
    t, h = jnp.asarray([0.0, 0.5]), jnp.asarray([0.01, 0.02])
    eta, sigma = integrators.step_sizes(process, t, h, integrator="exponential")
    assert np.all(np.isfinite([eta, sigma]))
    still = np.asarray(process.diffusion(t)) == 0
    assert still.any()
    np.testing.assert_array_equal(np.asarray(eta)[still], np.asarray(h)[still])
    np.testing.assert_array_equal(np.asarray(sigma)[still], 0)


def test_exponential_steps_on_a_torus_are_refused():
    process = processes.langevin(references.uniform_torus(2))
    assert integrators.chosen_integrator(process, "auto") == "euler"
    with pytest.raises(ValueError, match=r"noising\.integrator='exponential'.*choose euler"):
        integrators.chosen_integrator(process, "exponential")
