"""Path-space targets: the identity against quadrature, closed forms, and Stein's identity."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from ndsm_jax import noising, processes, references
from ndsm_jax.integrators import INTEGRATORS, step_sizes, time_grid, uniform_grid

PRIOR = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])


def windows(process, grid, *, k=1, integrator="euler", **options):
    """Path-space noising that draws every grid point equally often."""
    options |= {"k": k, "integrator": integrator, "simulation": "full"}
    times = noising.time_law(process.clock, grid, kind="uniform")
    return noising.path_windows(process, grid, times=times, **options)


def draw(noise, x0, seed=0):
    return jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(seed), x0)


def user(drift, diffusion, dim, horizon=0.6):
    return processes.process(
        drift, diffusion, references.standard_normal(dim, 0.4), horizon=horizon
    )


def double_well(y, t):
    return (y - y**3) * (1 + t[..., None])


def growing(t):
    return 0.6 + t


def swirl(y, t):
    """A drift that is no gradient: its Jacobian is not symmetric."""
    turned = jnp.stack([-(y[..., 1] ** 2), 2 * y[..., 0]], axis=-1)
    return turned - y - 0.3 * y**3


def constant(t):
    return jnp.full_like(t, 1.2)


PROCESSES = {
    "two modes": processes.langevin(
        references.mixture([0.3, 0.7], [[-1.0], [1.0]], [0.15, 0.25]), horizon=0.6
    ),
    "double well, time-dependent noise": user(double_well, growing, 1),
    "swirl": user(swirl, constant, 2),
}
STEPS = 6


def chain_scores(process, grid, starts, axis, stationary=None):
    """Scores of the chains' law from one of the starts [S, d], by quadrature on axis^d, in float64.

    p_{n+1}(y') = int p_n(y) N(y'; mu_n(y), sigma_n^2 I) dy, and so for the kernel's derivative.
    Steps are Euler's or, of a start with a stationary variance [S], exponential with its rate.
    Returns, for each n >= 1, an array [len(axis)] * d + [d].
    """
    laws = [
        chain_law(process, grid, x0, axis, s)
        for x0, s in zip(starts, stationary or [None] * len(starts), strict=True)
    ]
    scores = []
    for of_all in zip(*laws, strict=True):
        density, gradient = (sum(parts) for parts in zip(*of_all, strict=True))
        score = gradient / np.maximum(density, 1e-300)[:, None]
        scores.append(score.reshape(*[len(axis)] * len(starts[0]), -1))
    return scores


def chain_law(process, grid, x0, axis, stationary):
    """(density, its gradient) of one start at each n >= 1, on the points of axis^d."""
    dim = len(x0)
    points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    cell = (axis[1] - axis[0]) ** dim
    mass, at = np.ones(1), np.asarray(x0, np.float64)[None]
    law = []
    for t, t_next in itertools.pairwise(grid):
        time = jnp.full(len(at), t, jnp.float32)
        drift = np.asarray(process.drift(jnp.asarray(at, jnp.float32), time), np.float64)
        eta = h = float(t_next) - float(t)
        variance = float(process.diffusion(jnp.float32(t))) ** 2 * h
        if stationary is not None:  # of Langevin dynamics
            eta = stationary * -np.expm1(-h / stationary)
            variance = stationary * -np.expm1(-2 * h / stationary)
        gap = points[:, None] - (at + eta * drift)[None]
        kernel = np.exp(-0.5 * (gap**2).sum(-1) / variance) / (2 * np.pi * variance) ** (dim / 2)
        density = kernel @ mass
        gradient = np.einsum("ij,ijd,j->id", kernel, -gap / variance, mass)
        law.append((density, gradient))
        mass, at = density * cell, points
    return law


@pytest.mark.parametrize("weights", noising.PATH_WEIGHTS)
@pytest.mark.parametrize("name", [*PROCESSES, "two modes, exponential"])
def test_the_conditional_mean_of_the_target_is_the_score(name, weights):
    """E[(T_n - score_n(Y_n)) f(Y_n)] = 0 for bumps f, with the score of the chain by quadrature.

    60,000 paths of 6 steps; windows of the whole path and of about half of it. Within 4.5 standard
    errors plus 0.01 for the bilinear interpolation of the score. Exponential steps are those of the
    mode that a path starts in, in which half of the paths differ, and the score is that of all.
    """
    import scipy.interpolate

    process = PROCESSES[name.removesuffix(", exponential")]
    grid = uniform_grid(0.6, STEPS)
    dim = process.dim
    starts, rates, options = np.array([[0.3, -0.2]])[:, :dim], None, {"weights": weights}
    if name.endswith("exponential"):
        starts, rates = np.array([[-0.2], [0.3]]), [0.15, 0.25]
        options["integrator"] = "exponential"
    axis = np.linspace(-4, 4, 400 if dim == 1 else 56)
    scores = chain_scores(process, grid, starts, axis, rates)
    for window in (0.0, 0.3):
        noise = windows(process, grid, window=window, **options)
        batch = draw(noise, jnp.tile(jnp.asarray(starts, jnp.float32), (60_000 // len(starts), 1)))
        y, target = np.asarray(batch.y[:, 0], np.float64), np.asarray(batch.score_target[:, 0])
        index = np.searchsorted(grid, np.asarray(batch.t[:, 0]) - 1e-6)
        assert set(index) == set(range(1, STEPS + 1))
        error = np.empty_like(y)
        for n in range(1, STEPS + 1):
            here = index == n
            score = scipy.interpolate.RegularGridInterpolator(
                [axis] * dim, scores[n - 1], method="cubic", bounds_error=False, fill_value=None
            )
            error[here] = target[here] - score(y[here])
        bumps = np.exp(-2 * (y[:, :1] - np.array([-1.0, 0.0, 0.5, 1.0])) ** 2)
        late = (index >= 4)[:, None]
        for test_function in (bumps, bumps * late, np.sin(2 * y.sum(1, keepdims=True))):
            products = error[:, :, None] * test_function[:, None, :]
            assert_mean(products.reshape(len(y), -1), 0.0, bias=0.01)


def chain_kernel(process, grid, rate, integrator):
    """a_n and v_n of Y' = (1 - eta a(t)) Y + sigma Z, in float64."""
    t, h = jnp.asarray(grid[:-1]), jnp.asarray(np.diff(grid))
    sizes = step_sizes(process, t, h, integrator=integrator)
    eta, sigma = (np.asarray(a, np.float64) for a in sizes)
    scale, variance = [1.0], [0.0]
    for e, s, a in zip(eta, sigma, np.asarray(rate(t), np.float64), strict=True):
        scale.append(scale[-1] * (1 - e * a))
        variance.append(variance[-1] * (1 - e * a) ** 2 + s**2)
    return np.array(scale), np.array(variance)


LINEAR = {
    "one component": (
        processes.langevin(references.mixture([1.0], [[0.0, 0.0, 0.0]], [0.4])),
        lambda t: jnp.full_like(t, 2.5),
    ),
    "OU": (processes.ornstein_uhlenbeck(3, variance=0.4), lambda t: jnp.full_like(t, 2.5)),
    "VP": (processes.variance_preserving(3), lambda t: 0.5 * (0.1 + 19.9 * t)),
}


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", LINEAR)
def test_sinh_weights_reproduce_the_dsm_target_of_a_linear_drift(name, integrator):
    """T_n = -(Y_n - a_n Y_0) / v_n, the chain's own kernel, to float precision (rtol 1e-4)."""
    process, rate = LINEAR[name]
    grid = time_grid(process, 80)
    scale, variance = chain_kernel(process, grid, rate, integrator)
    x0 = jax.random.normal(jax.random.key(1), (60, 3))
    batch = draw(windows(process, grid, k=4, integrator=integrator), x0)
    n = np.searchsorted(grid, np.asarray(batch.t) * (1 - 1e-6))
    expected = -(batch.y - scale[n][..., None] * x0[:, None]) / variance[n][..., None]
    size = 1 / np.sqrt(variance[n])[..., None]
    np.testing.assert_allclose(batch.score_target / size, expected / size, rtol=1e-4, atol=2e-4)


STD = np.array([0.2, 0.4, 0.6])
FAR = 10 * np.random.default_rng(4).normal(size=(3, 12))


def components_apart(dim, covariance):
    """A mixture process of components of several widths, the component of each of 300 starts, and
    these; 60 steps, which is few for the narrowest."""
    variances = STD**2 if covariance == "spherical" else np.tile(STD[:, None] ** 2, (1, dim))
    prior = references.mixture([1 / 3] * 3, FAR[:, :dim], variances, covariance=covariance)
    of = np.arange(300) % 3
    z = np.random.default_rng(5).normal(size=(300, dim))
    x0 = jnp.asarray(FAR[of, :dim] + 0.5 * STD[of, None] * z, jnp.float32)
    return processes.langevin(prior), of, x0


def own_kernel(process, of, x0, t):
    """Mean [300, k, d] and variance [300, k, 1] of Langevin dynamics in a path's own component."""
    mean, s = FAR[of, None, : process.dim], STD[of, None, None] ** 2
    a = np.exp(-np.asarray(t, np.float64)[..., None] / s)
    return mean + a * (np.asarray(x0)[:, None] - mean), s * (1 - a**2)


@pytest.mark.parametrize(
    ("dim", "simulation", "covariance"),
    [(3, "full", "spherical"), (3, "full", "diag"), (12, "quotient", "spherical")],
)
def test_steps_are_exact_in_every_component(dim, simulation, covariance):
    """T = -(Y - mu) / v of the process itself, not of a chain, to float precision and as Euler's
    steps are off by a tenth; states have that kernel's moments within 4.5 standard errors."""
    process, of, x0 = components_apart(dim, covariance)
    error = {}
    for integrator in ("auto", "euler"):
        noise = noising.path_windows(process, 60, k=4, simulation=simulation, integrator=integrator)
        batch = draw(noise, x0)
        mu, v = own_kernel(process, of, x0, batch.t)
        z = (np.asarray(batch.y) - mu) / v**0.5
        error[integrator] = np.asarray(batch.score_target) * v**0.5 + z
        if integrator == "auto":
            # Of a quotient each time has a path of its own; else the four share one.
            flat = z[:, 0].reshape(-1, dim)
            assert_mean(flat, 0.0, bias=1e-4)
            assert_mean(flat**2, 1.0, bias=1e-4)
    assert np.abs(error["auto"]).max() < 2e-3
    assert np.sqrt(np.mean(error["euler"] ** 2)) > 0.05


def test_a_loss_step_is_exact_in_every_component():
    """NDSM's y, the end of a path, has the law of the process in the path's component."""
    process, of, x0 = components_apart(3, "spherical")
    batch = draw(noising.local_steps(process, 60, k=1), x0)
    mu, v = own_kernel(process, of, x0, batch.t)
    z = ((np.asarray(batch.y) - mu) / v**0.5)[:, 0]
    assert_mean(z, 0.0, bias=1e-4)
    assert_mean(z**2, 1.0, bias=1e-4)


def test_the_step_of_a_process_is_chosen_by_what_is_known_of_it():
    mixture, other = PROCESSES["two modes"], PROCESSES["swirl"]
    assert noising.path_windows(mixture, 20).integrator == "exponential"
    assert noising.path_windows(other, 20).integrator == "euler"
    assert noising.local_steps(mixture, 20, integrator="euler").integrator == "euler"
    assert noising.linearised_windows(mixture, 20, schedule="gap").integrator == "exponential"
    # A drift of which nothing is known relaxes at the rate of its clock alone.
    unknown = dataclasses.replace(mixture, drift=double_well)
    chain = noising.make_chain(unknown, time_grid(unknown, 20))
    assert chain.modes.relaxing is None
    assert noising.relaxing_variance(chain, jnp.zeros((5, 1)), "exponential") is None
    # Another reference leaves the dynamics as they are.
    noised_to = dataclasses.replace(mixture, reference=references.standard_normal(1, 4.0))
    starts = jnp.asarray([[-1.5], [1.5]])
    found, own = (
        noising.relaxing_variance(noising.make_chain(p, time_grid(p, 20)), starts, "exponential")
        for p in (noised_to, mixture)
    )
    np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_every_axis_of_a_component_has_weights_of_its_own(covariance):
    """T_n = -V_n^-1 (Y_n - A_n Y_0) of the chain of a drift -S^-1 y, variances 0.02 and 0.6."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]]) if covariance == "full" else np.eye(2)
    values = np.array([0.02, 0.6])
    of = (turn * values) @ turn.T if covariance == "full" else values
    process = processes.langevin(
        references.mixture([1.0], np.zeros((1, 2)), [of], covariance=covariance)
    )
    grid = time_grid(process, 200)
    batch = draw(windows(process, grid, k=4), jax.random.normal(jax.random.key(1), (60, 2)))
    x0 = jax.random.normal(jax.random.key(1), (60, 2))
    n = np.searchsorted(grid, np.asarray(batch.t) * (1 - 1e-6))
    along, target = batch.y @ turn, np.asarray(batch.score_target @ turn)
    for axis, value in enumerate(values):
        rates = lambda t, value=value: jnp.full_like(t, 1 / value)  # noqa: E731
        scale, variance = chain_kernel(process, grid, rates, "euler")
        gap = along[..., axis] - scale[n] * (x0 @ turn)[:, None, axis]
        size = 1 / np.sqrt(variance[n])
        np.testing.assert_allclose(
            target[..., axis] / size, -gap / variance[n] / size, rtol=1e-3, atol=1e-3
        )


def test_exponential_steps_are_exact_for_the_process_of_one_component():
    """a_n and v_n of the chain are those of the exact kernel, however long its steps."""
    process, rate = LINEAR["OU"]
    grid = time_grid(process, 6)
    scale, variance = chain_kernel(process, grid, rate, "exponential")
    exact = process.kernel(jnp.asarray(grid))
    np.testing.assert_allclose(scale, exact.scale.value, rtol=1e-4)
    np.testing.assert_allclose(variance[1:], np.asarray(exact.root.value)[1:] ** 2, rtol=1e-4)


def test_a_window_of_one_step_is_ndsm():
    """Then T = -z / sigma, and mu of the noise-free companion is the Gaussian step's mean."""
    process = processes.langevin(PRIOR)
    grid = time_grid(process, 40)
    batch = draw(windows(process, grid, window=1e-9, k=3, companion=True), jnp.ones((50, 2)))
    n = np.searchsorted(grid, np.asarray(batch.t) * (1 - 1e-6))
    variance = 2 * (grid[n] - grid[n - 1])[..., None]
    np.testing.assert_allclose(
        batch.score_target * variance, -(batch.y - batch.mu), rtol=1e-4, atol=1e-5
    )
    # mu is one Euler step from the path: its distance from y is the noise alone.
    assert_mean(((batch.y - batch.mu) ** 2 / variance).reshape(-1, 2), np.ones(2))


@pytest.mark.parametrize("options", [{"window": 0.2}, {"weights": "ramp"}, {"curvature": 1.0}])
def test_stein_identity_and_the_companion(options):
    """E[T f(Y)] = -E[grad f(Y)] and E[T s(mu)] = 0 over 40,000 stationary paths, all times at once.

    The first is the score's defining property tested without knowing it.
    """
    process = processes.langevin(PRIOR)
    grid = time_grid(process, 40)
    x0 = PRIOR.sample(jax.random.key(5), (40_000,))
    batch = draw(windows(process, grid, companion=True, **options), x0)
    y, target, mu = (np.asarray(a[:, 0]) for a in (batch.y, batch.score_target, batch.mu))
    f, gradient = np.sin(y), np.cos(y)
    assert_mean(target * f + gradient, np.zeros(2))
    assert_mean(target[:, :1] * f[:, 1:], 0.0)
    for control in (np.tanh(mu), mu[:, ::-1]):
        assert_mean(target * control, np.zeros(2))


def test_the_target_has_the_variance_of_its_kernel():
    """Var T = 1 / v_n for the optimal weights, against 1 / (2 h) of a window of one step."""
    process, rate = LINEAR["OU"]
    grid = time_grid(process, 100)
    _, variance = chain_kernel(process, grid, rate, "euler")
    batch = draw(windows(process, grid), jnp.zeros((20_000, 3)))
    n = np.searchsorted(grid, np.asarray(batch.t[:, 0]) * (1 - 1e-6))
    squares = np.asarray(batch.score_target[:, 0]) ** 2 * variance[n][:, None]
    assert_mean(squares, np.ones(3))


def test_windows_from_time_zero_may_be_given_as_none():
    process = processes.langevin(PRIOR)
    noise = windows(process, time_grid(process, 30), k=3, companion=True)
    zeros = dataclasses.replace(noise, starts=jnp.zeros(30, int))
    x0 = PRIOR.sample(jax.random.key(5), (40,))
    left, right = draw(noise, x0), draw(zeros, x0)
    np.testing.assert_allclose(left.score_target, right.score_target, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(left.mu, right.mu, rtol=1e-5, atol=1e-6)


def test_window_starts_are_within_the_window():
    grid = time_grid(processes.langevin(PRIOR), 50)
    starts = np.asarray(noising.window_starts(grid, 0.2))
    ends = grid[1:]
    assert (ends - grid[starts] <= 0.2 * 1.001).all() or (starts == np.arange(50)).all()
    earlier = starts > 0
    assert (ends[earlier] - grid[starts[earlier] - 1] > 0.2).all()
    assert noising.window_starts(grid, 0.0) is None
    np.testing.assert_array_equal(noising.window_starts(grid, 1e-9), np.arange(50))
    with pytest.raises(ValueError, match="window_starts: window="):
        noising.window_starts(grid, -1.0)


def test_a_companion_of_a_short_window_takes_the_whole_space():
    """In a quotient a noise-free path stays in (M, e) from the data on only."""
    process = processes.langevin(references.standard_normal(40))
    make = noising.path_windows
    assert isinstance(make(process, 20, companion=True).chain, noising.TiedQuotient)
    assert isinstance(make(process, 20, window=0.1).chain, noising.TiedQuotient)
    assert isinstance(make(process, 20, window=0.1, companion=True).chain, noising.FullSpace)
    with pytest.raises(ValueError, match=r"noising\.window=0\.1 needs noising\.simulation='full'"):
        make(process, 20, window=0.1, companion=True, simulation="quotient")
    with pytest.raises(ValueError, match="path_windows: weights='flat'"):
        make(process, 20, weights="flat")


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_weak_error_of_the_integrators(integrator):
    """Second moments at T of a two-mode process against the Euler chain with steps of 1e-3.

    20,000 paths each from the same point. The exponential step on a clock grid of 40 steps is
    within 4.5 standard errors plus 0.01; Euler's is allowed 0.03 for its first-order error.
    """
    process = PROCESSES["two modes"]
    x0 = jnp.full((20_000, 1), 0.6)

    def moments(grid, seed, **options):
        noise = windows(process, grid, **options)
        last = jnp.full((20_000, 1), len(grid) - 1)
        walk = jax.jit(
            lambda chain, key, x: noising.walk(
                key, chain, x, last, jnp.asarray(grid), integrator=noise.integrator
            )[0]
        )
        y = np.asarray(walk(noise.chain, jax.random.key(seed), x0)[:, 0])
        return np.concatenate([y, y**2], axis=1)

    reference = moments(uniform_grid(0.6, 600), 0)
    coarse = moments(time_grid(process, 40), 1, integrator=integrator)
    error = np.sqrt(reference.var(0) / len(reference) + coarse.var(0) / len(coarse))
    bias = {"euler": 0.03, "exponential": 0.01}[integrator]
    assert (np.abs(reference.mean(0) - coarse.mean(0)) < 4.5 * error + bias).all()
