"""Given dynamics against NumPy's Euler-Maruyama, stationary laws, exact covariances and scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import likelihood, noising, objectives, processes, references
from ndsm_jax.clock import loss_weight
from ndsm_jax.integrators import uniform_grid

WELLS = processes.double_well(2, barrier=2.0, num=4000)
PROCESSES = {
    "active_swimmer": processes.active_swimmer(gamma=0.3),
    "underdamped": processes.underdamped(WELLS, temperature=0.5, friction=1.5),
    "duffing": processes.duffing(force=0.5, noise=0.4),
    "lorenz63": processes.lorenz63(noise=3.0, unit=10.0),
}


def drift_by_hand(name, y, t):
    """The equations of the docstrings, in float64."""
    x, v = np.split(np.asarray(y, np.float64), 2, axis=-1) if name != "lorenz63" else (None, None)
    if name == "active_swimmer":
        return np.concatenate([v - x**3, -0.3 * v], axis=-1)
    if name == "underdamped":  # U = T 2 (x^2 - 1)^2 of each coordinate, T = 1/2
        return np.concatenate([v, -4 * x * (x**2 - 1) - 1.5 * v], axis=-1)
    if name == "duffing":
        force = 0.5 * np.cos(1.2 * t)
        return np.concatenate([v, force - 0.3 * v + x - x**3], axis=-1)
    a, b, c = np.moveaxis(10 * np.asarray(y, np.float64), -1, 0)
    return np.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], axis=-1) / 10


NOISE = {
    "active_swimmer": (0.6**0.5, [1]),
    "underdamped": (1.5**0.5, [2, 3]),
    "duffing": (0.4, [1]),
    "lorenz63": (0.3, [0, 1, 2]),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_drifts_are_the_equations_and_noise_is_where_it_belongs(name, rng):
    process = PROCESSES[name]
    y, t = rng.normal(size=(3, 4, process.dim)), np.full((3, 4), 0.7)
    drift = jax.jit(lambda p, y, t: p.drift(y, t))(process, jnp.float32(y), jnp.float32(t))
    np.testing.assert_allclose(drift, drift_by_hand(name, y, 0.7), rtol=2e-5, atol=2e-5)
    g, noisy = NOISE[name]
    assert float(process.diffusion(jnp.float32(0.2))) == pytest.approx(g)
    ones = process.spread(jnp.ones(process.noise_dim))
    np.testing.assert_array_equal(np.flatnonzero(ones), noisy)
    assert float(process.horizon) == pytest.approx(
        {"active_swimmer": 10 / 0.3, "underdamped": 10 / 1.5, "duffing": 10 / 0.3}.get(name, 5)
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_simulated_moments_are_those_of_numpys_euler_maruyama(name, rng):
    """4,000 paths of 150 steps each: first and second moments at two times, within 4.5 standard
    errors of their difference."""
    process, paths, steps, horizon = PROCESSES[name], 4000, 150, 1.0
    grid = uniform_grid(horizon, steps)
    centre, spread = (2.0, 0.3) if name == "lorenz63" else (0.5, 0.7)
    g, noisy = NOISE[name]
    y = centre + spread * rng.normal(size=(paths, process.dim))
    expected = []
    for n in range(steps):
        h, kick = horizon / steps, np.zeros(y.shape)
        kick[:, noisy] = g * h**0.5 * rng.normal(size=(paths, len(noisy)))
        y = y + h * drift_by_hand(name, y, n * h) + kick
        if n + 1 in (60, steps):
            expected.append(y)
    x0 = centre + spread * rng.normal(size=(paths, process.dim))
    found = noising.states_at(jax.random.key(1), process, jnp.float32(x0), grid, grid[[60, -1]])
    assert found.shape == (2, paths, process.dim)
    for ours, theirs in zip(np.asarray(found, np.float64), expected, strict=True):
        products = [y[:, :, None] * y[:, None, :] for y in (ours, theirs)]
        for a, b in ((ours, theirs), products):
            error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / paths)
            assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4.5 * error).all()


def test_times_off_the_grid_are_refused():
    process, grid, words = (
        PROCESSES["duffing"],
        uniform_grid(1, 10),
        r"times=\[0\.05.*points are \[",
    )
    with pytest.raises(ValueError, match=words):
        noising.states_at(jax.random.key(0), process, jnp.zeros((3, 2)), grid, 0.05)


def test_the_law_of_positions_and_velocities_is_stationary(rng):
    """The Fokker-Planck equation of p = exp(-H / T), by automatic differentiation at 50 states:
    -div b - b . grad log p + g^2 / 2 (Laplacian and square of the gradient of log p along v) = 0.
    """
    process = PROCESSES["underdamped"]
    law, y = process.reference, jnp.float32(rng.normal(size=(50, 4)))

    def one(y):
        jacobian = jax.jacfwd(lambda y: process.drift(y, jnp.float32(0)))(y)
        score, hessian = law.score(y), jax.jacfwd(law.score)(y)
        noise = 0.5 * process.diffusion(jnp.float32(0)) ** 2
        spreading = jnp.trace(hessian[2:, 2:]) + jnp.sum(score[2:] ** 2)
        inflow = -jnp.trace(jacobian) - process.drift(y, jnp.float32(0)) @ score
        return jnp.stack([inflow, noise * spreading]), score - jax.grad(law.log_prob)(y)

    terms, gap = jax.vmap(one)(y)
    np.testing.assert_allclose(terms.sum(axis=1), 0, atol=1e-4 * np.abs(terms).max())
    np.testing.assert_allclose(gap, 0, atol=1e-4)


@pytest.mark.parametrize(
    ("rho", "beta"), [(28.0, 8 / 3), (0.5, 8 / 3), (-10.0, 8 / 3), (-500.0, -1.0), (28.0, 40.0)]
)
def test_lorenz_stiffness_is_what_stable_euler_steps_of_the_origin_need(rho, beta):
    """By the eigenvalues of the drift's Jacobian: |1 + h lambda| = 1 at h = 2 / stiffness."""
    process = processes.lorenz63(rho=rho, beta=beta, unit=5.0)
    jacobian = jax.jacfwd(lambda y: process.drift(y, jnp.zeros(())))(jnp.zeros(3))
    rates = np.linalg.eigvals(np.asarray(jacobian, np.float64))
    rates = rates[rates.real < 0]
    growth = np.abs(1 + 2 / float(process.known.stiffness) * rates).max()
    assert growth == pytest.approx(1.0, abs=1e-5)


def test_positions_and_velocities_are_normalised_where_the_positions_are():
    """An energy has no constant until it is found; then the density's integral is 1."""
    wells = processes.double_well(num=2000)
    with pytest.raises(ValueError, match="Maxwell lacks its constant"):
        likelihood.check_normalised(processes.underdamped(wells).reference)
    proposal = references.mixture([1.0, 1.0], [[-1.0], [1.0]], [0.1, 0.1])
    known, error = references.normalised(jax.random.key(0), wells, proposal)
    law = processes.underdamped(known).reference
    likelihood.check_normalised(law)
    x, v = np.linspace(-3, 3, 301), np.linspace(-6, 6, 301)
    y = np.stack(np.meshgrid(x, v, indexing="ij"), axis=-1).astype(np.float32)
    density = np.exp(np.asarray(law.log_prob(y), np.float64))
    mass = np.trapezoid(np.trapezoid(density, v, axis=1), x)
    assert mass == pytest.approx(1.0, abs=4.5 * error + 1e-4)


def test_the_double_well_is_sampled_as_its_density(rng):
    """Second and fourth moments of positions and the second one of velocities, 10,000 draws of the
    4,000 positions, against quadrature; standard errors are those of the 4,000."""
    law = PROCESSES["underdamped"].reference
    y = np.asarray(law.sample(jax.random.key(2), (10_000,)), np.float64)
    weight = lambda x: np.exp(-2 * (x**2 - 1) ** 2)  # noqa: E731
    total = scipy.integrate.quad(weight, -4, 4)[0]
    for power in (1, 2, 4):
        exact = scipy.integrate.quad(lambda x: x**power * weight(x), -4, 4)[0] / total  # noqa: B023
        assert_mean(np.asarray(WELLS.samples, np.float64) ** power, np.full(2, exact))
        assert_mean(y[:4000, :2] ** power, np.full(2, exact))
    assert_mean(y[:, 2:] ** 2, np.full(2, 0.5))
    assert law.dim == 4
    assert float(law.typical_variance()) == pytest.approx(
        (float(WELLS.typical_variance()) + 0.5) / 2
    )
    assert law.stiffness() == max(WELLS.stiffness(), 2)


# --- what is linear ---

GAMMA = 0.3


def linear_swimmer(trap=0.0):
    """The swimmer with -trap x in the place of -x^3."""

    def drift(trap, y, t):
        x, v = jnp.split(y, 2, axis=-1)
        return jnp.concatenate([v - trap * x, -GAMMA * v], axis=-1)

    return dataclasses.replace(PROCESSES["active_swimmer"], drift=Partial(drift, trap))


def matrices(trap):
    return np.array([[-trap, 1.0], [0.0, -GAMMA]]), np.diag([0.0, 2 * GAMMA])


def exact_law(trap, t, mean, covariance):
    """Mean and covariance at t, by scipy's matrix exponential (Van Loan 1978)."""
    f, noise = matrices(trap)
    blocks = scipy.linalg.expm(t * np.block([[-f, noise], [np.zeros((2, 2)), f.T]]))
    a = blocks[2:, 2:].T
    return a @ mean, a @ covariance @ a.T + a @ blocks[:2, 2:]


def root_covariance(root):
    """L L^T, in float64."""
    columns = jnp.stack([root.mv(e) for e in jnp.eye(2)], axis=-1)
    matrix = np.asarray(columns, np.float64)
    return matrix @ matrix.T


@pytest.mark.parametrize("h", [1e-3, 0.1, 2.0])
def test_the_linear_part_has_the_exact_covariance(h):
    """Of the swimmer without a trap, from a point, in units of its standard deviations to 2e-5; and
    that of the swimmer itself at x = 0, whose linearisation this is."""
    y, s = jnp.array([0.0, -1.2]), jnp.float32(0)
    mean, covariance = exact_law(0.0, h, np.asarray(y), np.zeros((2, 2)))
    std = np.sqrt(np.diag(covariance))
    for process in (linear_swimmer(), PROCESSES["active_swimmer"]):
        local = jax.jit(lambda p, y, s, h: noising.linearise(p)(p, y, s, h))(
            process, y, s, jnp.float32(h)
        )
        np.testing.assert_allclose(local.mean, mean, atol=2e-5)
        found = root_covariance(local.root)
        np.testing.assert_allclose(
            found / std / std[:, None], covariance / std / std[:, None], atol=2e-5
        )


def test_a_long_window_has_the_stationary_covariance():
    """F S + S F^T + G G^T = 0 by scipy's Lyapunov solver, for a harmonic trap and for critically
    damped dynamics, whose reference it is."""
    damped = processes.critically_damped(1, mass=0.5, rate=2.0)
    friction = 2 * 0.5**0.5
    f = 2 * np.array([[0, 2.0], [-1, -2 * friction]])
    cases = [
        (linear_swimmer(0.7), *matrices(0.7)),
        (damped, f, np.diag([0.0, 4 * friction])),
    ]
    for process, f, noise in cases:
        local = noising.linearise(process)(process, jnp.ones(2), jnp.float32(0), jnp.float32(100))
        exact = scipy.linalg.solve_continuous_lyapunov(f, -noise)
        np.testing.assert_allclose(root_covariance(local.root), exact, atol=1e-4)
        np.testing.assert_allclose(local.mean, 0, atol=1e-4)
    np.testing.assert_allclose(exact, np.diag([1, 0.5]), atol=1e-12)


MEAN, COVARIANCE = np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.6]])


def noisings(process, grid):
    """NDSM's and local-DSM's, all at the end of the grid."""
    cdf = jnp.asarray(np.arange(len(grid)) == len(grid) - 1, jnp.float32)
    times = noising.TimeLaw(grid=jnp.asarray(grid), cdf=cdf)
    options = {"k": 1, "times": times, "weight": loss_weight(process.clock, "unit")}
    step = float(grid[1])
    return {
        "ndsm": noising.local_steps(process, grid, loss_step=step, **options),
        "local_dsm": noising.linearised_windows(process, grid, schedule="gap", gap=0.3, **options),
    }


@pytest.mark.parametrize("objective", ["ndsm", "local_dsm"])
def test_the_exact_score_is_the_minimiser_for_the_linear_swimmer(objective, rng):
    """The gradient of the loss at the chain's own score, by the parameters of a linear one: zero
    within 4.5 standard errors, which are below 5 % of the gradient at a score of zero."""
    process, grid, trap = linear_swimmer(0.7), uniform_grid(1.5, 60), 0.7
    noise = noisings(process, grid)[objective]
    x0 = MEAN + rng.normal(size=(40_000, 2)) @ np.linalg.cholesky(COVARIANCE).T
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(4), jnp.float32(x0))
    # The law of the simulated chain, and of its last window, by the recursion in float64.
    f, noise_matrix = matrices(trap)
    last = 59 if objective == "ndsm" else int(noise.starts[-1])
    mean, spread = MEAN, COVARIANCE
    for h in np.diff(grid.astype(np.float64))[:last]:
        step = np.eye(2) + h * f
        mean, spread = step @ mean, step @ spread @ step.T + h * noise_matrix
    if objective == "ndsm":
        step = np.eye(2) + float(grid[1]) * f
        mean, spread = step @ mean, step @ spread @ step.T + float(grid[1]) * noise_matrix
    else:
        mean, spread = exact_law(trap, 1.5 - float(grid[last]), mean, spread)
    slope = -np.linalg.inv(spread)[1]
    exact = np.append(slope, -slope @ mean)

    def losses(theta):
        score = lambda y, t: (y @ theta[:2] + theta[2])[..., None]  # noqa: E731
        return objectives.OBJECTIVES[objective].terms(score, batch)[0][:, 0]

    gradient = jax.jit(jax.jacfwd(losses))
    at_exact = np.asarray(gradient(jnp.float32(exact)), np.float64)
    at_zero = np.asarray(gradient(jnp.zeros(3)), np.float64).mean(axis=0)
    assert_mean(at_exact, np.zeros(3))
    assert at_exact.std(axis=0).max() / len(x0) ** 0.5 < 0.05 * np.linalg.norm(at_zero)


def test_a_simulated_reference_is_fitted_to_the_law_at_the_horizon(rng):
    """One component, of a linear process: the mean and covariance of the exact law within 5 % of
    its size, for 10,000 paths of 300 steps; known capabilities stay."""
    process = linear_swimmer(0.7)
    x0 = MEAN + rng.normal(size=(10_000, 2)) @ np.linalg.cholesky(COVARIANCE).T
    found = noising.with_simulated_reference(
        jax.random.key(5), process, jnp.float32(x0), uniform_grid(2.0, 300), num_components=1
    )
    mean, covariance = exact_law(0.7, 2.0, MEAN, COVARIANCE)
    law = found.reference
    assert isinstance(law, references.GaussianMixture)
    np.testing.assert_allclose(law.means[0], mean, atol=0.05)
    factor = np.asarray(law.factor[0], np.float64)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=0.05)
    assert float(found.horizon) == 2.0
    assert float(found.clock.saturation) == pytest.approx(np.trace(factor @ factor.T) / 2, rel=1e-4)
    assert found.known.stiffness is None  # it was another drift's
    swimmer, grid = PROCESSES["active_swimmer"], uniform_grid(2.0, 300)
    fitted = noising.with_simulated_reference(
        jax.random.key(5), swimmer, jnp.float32(x0[:500]), grid, num_components=2, covariance="diag"
    )
    assert fitted.known.stiffness == swimmer.known.stiffness
    assert fitted.reference.num_components == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: processes.active_swimmer(gamma=-1.0),
            "active_swimmer: gamma=-1.0: a number > 0",
        ),
        (
            lambda: processes.underdamped(WELLS, friction=0.0),
            "underdamped: friction=0.0: a number > 0",
        ),
        (
            lambda: processes.double_well(barrier=-2.0),
            "double_well: barrier=-2.0: a number > 0",
        ),
        (lambda: processes.duffing(damping=0.0), "duffing: damping=0.0: a number > 0"),
        (lambda: processes.lorenz63(unit=0.0), "lorenz63: unit=0.0: a number > 0"),
        (lambda: processes.lorenz63(noise=-1.0), "lorenz63: noise=-1.0"),
        (lambda: processes.duffing(horizon=0.0), "duffing: horizon=0.0"),
    ],
)
def test_what_is_no_process_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
