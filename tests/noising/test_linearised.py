"""Local-DSM: the linearised Gaussian, its schedules, and the targets of its windows."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from conftest import assert_mean

from ndsm_jax import noising, processes, references
from ndsm_jax.experiment import experiment
from ndsm_jax.integrators import local_kernel, simulate, time_grid
from ndsm_jax.noising.linearised import linear_step, mean_error
from ndsm_jax.objectives import OBJECTIVES, dsm

KEY = jax.random.key(0)
TWO = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])


def covariance(root, like):
    """L L^T of a root [..., d], in float64."""
    columns = [root.mv(jnp.broadcast_to(e, like.shape)) for e in jnp.eye(like.shape[-1])]
    matrix = np.stack([np.asarray(c, np.float64) for c in columns], axis=-1)
    return matrix @ np.swapaxes(matrix, -1, -2)


def assert_same_law(actual, mean, cov, like, tolerance=2e-5):
    """Means, and covariances in units of their own diagonals."""
    np.testing.assert_allclose(actual.mean, mean, rtol=tolerance, atol=tolerance)
    std = np.sqrt(np.diagonal(cov, axis1=-2, axis2=-1))
    error = (covariance(actual.root, like) - cov) / std[..., None] / std[..., None, :]
    np.testing.assert_allclose(error, np.zeros_like(error), atol=tolerance)


def at(y, s, h):
    return jnp.full(y.shape[:-1], s, jnp.float32), jnp.full(y.shape[:-1], h, jnp.float32)


@jax.jit
def law(linearised, process, y, s, h):
    return linearised(process, y, s, h)


@jax.jit
def noised(noise, key, x0):
    return noise(key, x0)


# --- one step of a linear drift ---


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 10.0])
def test_linear_step_is_the_block_exponential_and_the_quadrature(scale, rng):
    """In float32 to 1e-4 of every covariance's own scale, against both in float64."""
    noisy = np.array([0.0, 1, 1, 0])
    a = (rng.normal(size=(4, 4)) - 2.5 * np.eye(4)) * scale
    f = rng.normal(size=4)
    mean, cov = jax.jit(linear_step)(jnp.float32(a), jnp.float32(f), jnp.float32(noisy))
    a, f = np.asarray(a, np.float32).astype(float), np.asarray(f, np.float32).astype(float)
    block = np.block([[a, np.diag(noisy)], [np.zeros((4, 4)), -a.T]])
    block = scipy.linalg.expm(block)
    van_loan = block[:4, 4:] @ block[:4, :4].T
    flow = lambda u: scipy.linalg.expm(a * u)  # noqa: E731
    integral = scipy.integrate.quad_vec(lambda u: flow(u) * noisy @ flow(u).T, 0, 1, epsrel=1e-10)[
        0
    ]
    std = np.sqrt(np.diag(integral))
    units = np.outer(std, std)
    if scale < 10:  # it has e^{-A}, with which it loses the small entries even in float64
        np.testing.assert_allclose(van_loan / units, integral / units, atol=1e-6)
    np.testing.assert_allclose(cov / units, integral / units, atol=1e-4)
    expected = scipy.integrate.quad_vec(lambda u: flow(u) @ f, 0, 1, epsrel=1e-10)[0]
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_step_in_which_deviations_more_than_double_has_a_smaller_matrix():
    """tr(e^{2 A}) <= d + 3: 0.4 as it is; of 200 its 2^-9, in both of the dimensions that expand.

    Of a saddle an eighth, e^{5.4} being too much. Noise that gets through A alone still does.
    """
    for rate, used in ((0.4, 0.4), (200.0, 200 / 2**9)):
        mean, cov = linear_step(rate * jnp.eye(2), jnp.ones(2), jnp.ones(2))
        np.testing.assert_allclose(mean, np.full(2, np.expm1(used) / used), rtol=1e-5)
        np.testing.assert_allclose(cov, np.expm1(2 * used) / (2 * used) * np.eye(2), rtol=1e-5)
    saddle, noisy = np.array([[0.0, 1.0], [30.0, -0.1]]), np.array([0.0, 1.0])
    _, cov = linear_step(jnp.float32(saddle), jnp.zeros(2), jnp.float32(noisy))
    block = scipy.linalg.expm(
        np.block([[saddle, np.diag(noisy)], [np.zeros((2, 2)), -saddle.T]]) / 8
    )
    np.testing.assert_allclose(cov, 8 * block[:2, 2:] @ block[:2, :2].T, rtol=1e-4)


@pytest.mark.parametrize(("rate", "used"), [(2.0, 1), (2.2, 2)])
def test_directions_that_contract_make_room_for_one_that_expands(rate, used):
    """63 of rate -3: up to e^rate = sqrt(67) A is as it is, above it is halved."""
    matrix = jnp.diag(jnp.asarray([rate] + [-3.0] * 63))
    mean, cov = linear_step(matrix, jnp.ones(64), jnp.ones(64))
    rates = np.diagonal(matrix) / used
    np.testing.assert_allclose(mean, np.expm1(rates) / rates, rtol=1e-4)
    np.testing.assert_allclose(np.diagonal(cov), np.expm1(2 * rates) / (2 * rates), rtol=1e-4)


# --- the Gaussian of a process ---

LINEAR = {
    "ou": processes.ornstein_uhlenbeck(3, variance=0.5),
    "critically damped": processes.critically_damped(2),
    "variance exploding": processes.variance_exploding(2, sigma_max=3.0),
}


@pytest.mark.parametrize("h", [1e-4, 1e-2, 0.3, 1.0])
@pytest.mark.parametrize("name", LINEAR)
def test_it_is_the_kernel_of_a_linear_drift(name, h, rng):
    process = LINEAR[name]
    y = jnp.float32(rng.normal(size=(5, process.dim)))
    kernel = process.kernel(jnp.full(5, h))
    local = law(noising.linearise(process), process, y, *at(y, 0.0, h))
    assert_same_law(local, kernel.scale.mv(y), covariance(kernel.root, y), y)


@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
@pytest.mark.parametrize(("s", "h"), [(0.0, 1e-3), (0.2, 0.5), (0.0, 1.0)])
def test_it_is_the_kernel_of_variance_preserving_noise(jacobian, s, h, rng):
    """a(t) / a(s) and the rest of the variance, though the rate depends on time."""
    process = processes.variance_preserving(2, beta_max=8.0)
    known = dataclasses.replace(process.known, elementwise=True)
    process = dataclasses.replace(process, known=known)
    y = jnp.float32(rng.normal(size=(4, 2)))
    decay = [float(process.clock.decay(jnp.float32(t))) for t in (s, s + h)]
    x = decay[1] - decay[0]
    local = noising.linearise(process, jacobian=jacobian)(process, y, *at(y, s, h))
    cov = np.broadcast_to(-np.expm1(-x) * np.eye(2), (4, 2, 2))
    assert_same_law(local, np.exp(-0.5 * x) * y, cov, y)


def mixtures(kind, rng, dim=12):
    means = rng.normal(size=(3, dim))
    if kind == "low_rank":
        directions = np.linalg.qr(rng.normal(size=(3, dim, 2)))[0]
        spread = references.LowRank(np.array([0.3, 0.5, 0.4]), directions, np.full((3, 2), 0.9))
        return references.mixture([1.0, 2.0, 1.0], means, spread, covariance=kind)
    variances = 0.5 if kind == "tied_spherical" else np.array([0.3, 0.5, 0.4])
    return references.mixture([1.0, 2.0, 1.0], means, variances, covariance=kind)


@pytest.mark.parametrize("kind", ["spherical", "tied_spherical", "low_rank"])
def test_scalar_plus_low_rank_is_the_dense_map(kind, rng):
    """States, targets and laws, in a batch, at a component's mean and in the span of the means."""
    mixture = mixtures(kind, rng)
    process = processes.langevin(mixture)
    states = mixture.sample(jax.random.key(0), (2, 4)).at[0, 0].set(mixture.means[0])
    states = states.at[0, 1].set(mixture.means.mean(axis=0))
    low, dense = (noising.linearise(process, jacobian=j) for j in ("low_rank", "dense"))
    assert type(noising.linearise(process)) is type(low)
    for h, y in (
        (1e-3, states),
        (0.01, states),
        (0.5, states[1:]),
    ):  # the saddle grows too much in 0.5, which each map judges by its own dimensions
        z = jax.random.normal(jax.random.key(1), y.shape)
        one, other = (law(f, process, y, *at(y, 0.1, h)) for f in (low, dense))
        cov = covariance(other.root, y)
        assert_same_law(one, other.mean, cov, y)
        # Of the roots, which need not be the same: E z z^T = I, and the score is -Sigma^{-1} L z.
        pull = np.linalg.solve(cov, np.asarray(one.root.mv(z), np.float64)[..., None])[..., 0]
        np.testing.assert_allclose(one.score(z), -pull, rtol=1e-3, atol=1e-3 * np.abs(pull).max())
        length = np.sum(np.asarray(one.root.mv_t(z), np.float64) ** 2, axis=-1)
        np.testing.assert_allclose(length, np.einsum("...i,...ij,...j", z, cov, z), rtol=1e-4)
        pull = np.linalg.solve(cov, np.asarray(other.root.mv(z), np.float64)[..., None])[..., 0]
        np.testing.assert_allclose(other.score(z), -pull, rtol=1e-3, atol=1e-3 * np.abs(pull).max())


@pytest.mark.parametrize("scale", [1e-3, 1e-8])
def test_scalar_plus_low_rank_is_the_dense_map_in_any_units(scale, rng):
    """Of means and deviations near 1e-3 and 1e-8, in units of these."""
    mixture = references.mixture(
        [1.0, 2.0, 1.0], scale * rng.normal(size=(3, 12)), scale**2 * np.array([0.3, 0.5, 0.4])
    )
    process = processes.langevin(mixture)
    y = mixture.sample(jax.random.key(0), (6,))
    low, dense = (
        law(noising.linearise(process, jacobian=j), process, y, *at(y, 0.0, 0.01 * scale**2))
        for j in ("low_rank", "dense")
    )
    np.testing.assert_allclose((low.mean - y) / scale, (dense.mean - y) / scale, atol=1e-4)
    error = (covariance(low.root, y) - covariance(dense.root, y)) / scale**2
    np.testing.assert_allclose(error, np.zeros_like(error), atol=1e-4)


def logistic_process(dim=3):
    process = processes.langevin(references.logistic(dim, scale=np.linspace(0.5, 1.5, dim)))
    known = dataclasses.replace(process.known, elementwise=True)
    return dataclasses.replace(process, known=known)


def test_the_diagonal_is_the_dense_map(rng):
    process = logistic_process()
    y = jnp.float32(rng.normal(size=(6, 3)) * 2)
    diagonal, dense = (noising.linearise(process, jacobian=j) for j in ("auto", "dense"))
    for h in (1e-4, 0.05, 1.0):
        one, other = (law(f, process, y, *at(y, 0.0, h)) for f in (diagonal, dense))
        assert_same_law(one, other.mean, covariance(other.root, y), y)
        z = jnp.float32(rng.normal(size=y.shape))
        np.testing.assert_allclose(one.sample(z), other.sample(z), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.score(z), other.score(z), rtol=1e-4, atol=1e-4)


def test_elementwise_belongs_to_the_drift():
    process = logistic_process()
    other = dataclasses.replace(process, drift=processes.langevin(TWO).drift)
    assert process.known.elementwise
    assert not other.known.elementwise
    kept = dataclasses.replace(process, horizon=jnp.float32(2.0))
    assert kept.known.elementwise
    with pytest.raises(ValueError, match=r"noising\.jacobian='diagonal'"):
        noising.linearise(other, jacobian="diagonal")


def constant_drift(y, t):
    return jnp.broadcast_to(jnp.asarray([1.0, -2.0]), y.shape)


@pytest.mark.parametrize("noisy", [None, (1,)])
def test_one_step_with_no_jacobian_is_that_of_ndsm(noisy, rng):
    process = processes.process(constant_drift, 0.7, TWO, horizon=1.0, noisy=noisy)
    y = jnp.float32(rng.normal(size=(5, 2)))
    s, h = at(y, 0.2, 0.03)
    local = law(noising.linearise(process), process, y, s, h)
    mu, sigma = local_kernel(process, y, s, h)
    np.testing.assert_allclose(local.mean, mu, rtol=1e-6)
    z = jnp.float32(rng.normal(size=y.shape))
    noise = process.project(z)
    np.testing.assert_allclose(local.sample(z), mu + process.spread(sigma[:, None] * noise), 1e-5)
    np.testing.assert_allclose(process.project(local.score(z)), -noise / sigma[:, None], 1e-5)


def test_a_short_step_is_that_of_ndsm(rng):
    process = processes.langevin(TWO)
    y = TWO.sample(jax.random.key(0), (50,))
    s, h = at(y, 0.0, 1e-3)
    local = law(noising.linearise(process), process, y, s, h)
    mu, sigma = local_kernel(process, y, s, h)
    np.testing.assert_allclose(local.mean, mu, atol=2e-5)  # h^2 |J b| / 2
    np.testing.assert_allclose(
        covariance(local.root, y),
        np.asarray(sigma[:, None, None] ** 2 * jnp.eye(2)[None]),
        atol=2e-5,
    )


# --- batches ---


@pytest.mark.parametrize("name", ["ou", "critically damped"])
def test_a_window_from_the_data_is_dsm_for_a_linear_drift(name):
    """y and the target against the kernel from x_0, state by state.

    The covariance is that of the kernel, rounded: to 1 % of the largest target of a path, as that
    of the shortest times is nearly singular where positions follow velocities.
    """
    process = LINEAR[name]
    noise = noising.linearised_windows(process, 40, k=3, schedule="gap", gap=1e3)
    assert not np.any(noise.starts)
    x0 = process.reference.sample(jax.random.key(1), (30,))
    batch = noised(noise, jax.random.key(0), x0)
    chex.assert_tree_all_finite(batch)
    kernel = process.kernel(batch.t)
    np.testing.assert_allclose(batch.mu, kernel.scale.mv(x0[:, None]), rtol=1e-4, atol=1e-5)
    deviation = np.asarray(batch.y - batch.mu, np.float64)[..., None]
    cov = covariance(kernel.root, batch.y)
    pull = process.project(jnp.asarray(-np.linalg.solve(cov, deviation)[..., 0], jnp.float32))
    scale = np.abs(pull).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(batch.score_target / scale, pull / scale, atol=1e-2)
    assert batch.noisy == process.noisy
    np.testing.assert_allclose(batch.weight, process.clock.variance(batch.t), rtol=1e-6)


def test_controlled_windows_of_a_linear_drift_start_at_the_data():
    noise = noising.linearised_windows(LINEAR["ou"], 30, tolerance=1e-3)
    assert not np.any(noise.starts)


def rotating(y, t):
    return y @ jnp.asarray([[-1.0, 2.0], [-2.0, -0.5]]).T


def test_the_perceptual_loss_of_a_linear_drift_is_that_of_its_noise():
    """|L^T s + z|^2 with SciPy's covariance of each window, in float64."""
    process = processes.process(rotating, 0.8, TWO, horizon=1.0)
    noise = noising.linearised_windows(process, 10, schedule="gap", gap=0.3, perceptual=True)
    batch = noised(noise, jax.random.key(0), TWO.sample(jax.random.key(1), (5,)))
    score = lambda y, t: jnp.sin(3 * y) - y  # noqa: E731
    loss = dsm(score, batch)
    a = np.array([[-1.0, 2.0], [-2.0, -0.5]])
    for each in np.ndindex(batch.t.shape):
        y, mu, t = (np.asarray(x[each], np.float64) for x in (batch.y, batch.mu, batch.t))
        grid = np.asarray(noise.times.grid)
        start = grid[np.asarray(noise.starts)[np.searchsorted(grid, t) - 1]]
        block = np.block([[a, 0.64 * np.eye(2)], [np.zeros((2, 2)), -a.T]]) * (t - start)
        block = scipy.linalg.expm(block)
        root = np.linalg.cholesky(block[:2, 2:] @ block[:2, :2].T)
        z = np.linalg.solve(root, y - mu)
        noise_loss = 0.5 * np.sum((root.T @ score(y, t) + z) ** 2)
        np.testing.assert_allclose(loss[each], noise_loss, rtol=1e-3)
    np.testing.assert_array_equal(batch.weight, 1)


def test_a_perceptual_residual_of_degenerate_noise_is_of_the_noisy_coordinates():
    """r^T E^T Sigma E r with the kernel's covariance; and losses without a matrix weight refuse."""
    process = LINEAR["critically damped"]
    noise = noising.linearised_windows(process, 10, schedule="gap", gap=1e3, perceptual=True)
    x0 = process.reference.sample(jax.random.key(1), (5,))
    batch = noised(noise, jax.random.key(0), x0)
    residual = batch.score_target + 1
    zero = dataclasses.replace(batch, score_target=residual)
    loss = dsm(lambda y, t: jnp.zeros((*y.shape[:-1], process.noise_dim)), zero)
    cov = covariance(process.kernel(batch.t).root, batch.y)
    noisy = np.asarray(process.noisy)
    cov = cov[..., noisy[:, None], noisy]
    expected = 0.5 * np.einsum("...i,...ij,...j", residual, cov, residual)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)
    for name in ("ism", "ndsm"):
        with pytest.raises(ValueError, match="perceptual"):
            OBJECTIVES[name].terms(lambda y, t: process.project(y), batch)


def two_modes():
    return processes.langevin(references.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.15, 0.25]))


def density(process, x0_std, grid, mesh):
    """Of Y_t from N(0.1, x0_std^2), by Euler's kernels on a grid and quadrature on a mesh."""
    p = np.exp(-0.5 * ((mesh - 0.1) / x0_std) ** 2) / (x0_std * np.sqrt(2 * np.pi))
    dx = mesh[1] - mesh[0]
    drift = np.asarray(process.drift(jnp.float32(mesh)[:, None], jnp.zeros(len(mesh))))[:, 0]
    for h in np.diff(grid):
        step = np.exp(-((mesh[:, None] - (mesh + h * drift)[None, :]) ** 2) / (4 * h))
        p = step @ p * dx / np.sqrt(4 * np.pi * h)
    return p


def test_targets_have_the_score_as_conditional_mean():
    """1-D, two modes, from N(0.1, 0.2^2) at t = 0.15, with windows of 0.03, against quadrature.

    200,000 states: in 12 bins of y, to 4.5 standard errors (at most 0.03) and 0.12; and their
    regression on the score has slope 1, to 4.5 standard errors (0.005) and 0.01. What is allowed
    beyond the standard errors covers the window's linearisation.

    So does the mean with perceptual weights, which are functions of y. With the covariance of each
    window itself, which is -(y - m) / target, it would be off by 0.5.
    """
    process = two_modes()
    grid = np.linspace(0, 0.15, 61, dtype=np.float32)
    process = dataclasses.replace(process, horizon=jnp.float32(0.15))
    noise = noising.linearised_windows(
        process, grid, k=1, schedule="gap", gap=0.03, perceptual=True, integrator="euler"
    )
    only_last = jnp.zeros(61).at[-1].set(1.0)
    noise = dataclasses.replace(noise, times=dataclasses.replace(noise.times, cdf=only_last))
    x0 = 0.1 + 0.2 * jax.random.normal(jax.random.key(0), (200_000, 1))
    batch = noised(noise, jax.random.key(1), x0)
    np.testing.assert_allclose(batch.t, 0.15, rtol=1e-6)
    mesh = np.linspace(-3, 3, 601)
    p = density(process, 0.2, np.linspace(0, 0.15, 201), mesh)
    np.testing.assert_allclose(np.trapezoid(p, mesh), 1, atol=1e-3)
    score = np.gradient(np.log(p), mesh)
    y, target = (np.asarray(a, np.float64).ravel() for a in (batch.y, batch.score_target))
    expected = np.interp(y, mesh, score)
    weight = np.asarray(batch.root.mv_t(jnp.ones_like(batch.y)), np.float64).ravel() ** 2
    own = -(y - np.asarray(batch.mu, np.float64).ravel()) / target
    off = []
    edges = np.quantile(y, np.linspace(0.02, 0.98, 13))
    for low, high in itertools.pairwise(edges):
        inside = (y > low) & (y < high)
        error = (target - expected)[inside]
        assert_mean(error, 0.0, bias=0.12)
        assert_mean(error * weight[inside] / weight[inside].mean(), 0.0, bias=0.12)
        off.append(np.mean(error * own[inside] / own[inside].mean()))
    assert np.max(np.abs(off)) > 0.5
    assert_mean(target * expected / np.mean(expected**2), 1.0, bias=0.01)


def test_degenerate_noise_and_a_nonlinear_drift_give_finite_targets_of_the_noisy_coordinates():
    """The active swimmer, dx = (-x^3 + v) dt, dv = -gamma v dt + sqrt(2 gamma) dW."""

    def drift(y, t):
        x, v = y[..., :1], y[..., 1:]
        return jnp.concatenate([-(x**3) + v, -0.1 * v], axis=-1)

    swimmer = processes.process(
        drift, 0.2**0.5, references.standard_normal(2), horizon=5.0, noisy=(1,)
    )
    noise = noising.linearised_windows(swimmer, 60)
    batch = noised(noise, jax.random.key(0), jax.random.normal(jax.random.key(1), (200, 2)))
    chex.assert_shape(batch.score_target, (200, 4, 1))
    chex.assert_tree_all_finite(batch)
    assert_mean(batch.score_target.ravel() * np.asarray(swimmer.clock.std(batch.t)).ravel(), 0.0)


# --- schedules ---


def test_the_gap_is_kept():
    process = two_modes()
    grid = time_grid(process, 50)
    noise = noising.linearised_windows(process, grid, schedule="gap", gap=0.1)
    starts = np.asarray(noise.starts)
    length = grid[1:] - grid[starts]
    assert np.all((length <= 0.1 * (1 + 1e-5)) | (starts == np.arange(50)))
    assert np.all((starts == 0) | (grid[1:] - grid[np.maximum(starts - 1, 0)] > 0.1))


def cubic(y, t):
    return -y - jnp.where(t > 0.5, 3.0, 0.0)[..., None] * y**3


def test_windows_are_short_where_the_drift_is_curved():
    """A cubic force is switched on at t = 0.5: until then a window reaches back to the data."""
    process = processes.process(cubic, 1.0, references.standard_normal(1), horizon=1.0)
    grid = np.linspace(0, 1, 41, dtype=np.float32)
    windows = [
        noising.linearised_windows(process, grid, tolerance=tolerance)
        for tolerance in (0.1, 0.02, 0.02)
    ]
    lengths = [grid[1:] - grid[np.asarray(w.starts)] for w in windows]
    np.testing.assert_array_equal(windows[1].starts[:19], np.zeros(19))
    assert lengths[1][25:].max() < 0.15
    assert np.all(lengths[0] >= lengths[1])
    assert lengths[0].mean() > 1.2 * lengths[1].mean()
    np.testing.assert_array_equal(windows[1].starts, windows[2].starts)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})  # It runs long.
def simulated_mean(process, y, h):
    """E[y_t | y_s] [n, 1] by 4,096 simulated paths in antithetic pairs from each of the states
    [n, 1], and its variance."""
    start = jnp.broadcast_to(y[:, None], (len(y), 4096, 1))

    def step(n, y):
        z = jax.random.normal(jax.random.fold_in(jax.random.key(8), n), (len(y), 2048, 1))
        z = jnp.concatenate([z, -z], axis=1)
        return y + h / 64 * process.reference.score(y) + jnp.sqrt(2 * h / 64) * z

    end = jax.lax.fori_loop(0, 64, step, start)
    pairs = 0.5 * (end[:, :2048] + end[:, 2048:])
    return pairs.mean(axis=1), pairs.var(axis=1) / 2048


def error_of_mean(process, noise, interval, states):
    """Of an interval's window from states [n, 1]: root mean square, less the variance of the
    simulation's own mean, in units of sqrt(v(t))."""
    grid = noise.times.grid
    h = float(grid[interval + 1] - grid[int(noise.starts[interval])])
    local = law(noise.linearised, process, states, *at(states, 0.0, h))
    mean, noise_variance = simulated_mean(process, states, h)
    square = np.mean((local.mean - mean) ** 2 - noise_variance)
    return np.sqrt(max(float(square), 0)) / float(process.clock.std(grid[interval + 1]))


def test_the_error_of_the_local_mean_is_below_the_tolerance():
    """From each of 48 states; allowed is 1.25 times the tolerance, as both are means over few
    states. A fixed gap of 0.2 errs by more than 0.2.
    """
    process = two_modes()
    grid = time_grid(process, 120)
    states = process.reference.sample(jax.random.key(7), (48,))
    for tolerance in (0.05, 0.02):
        noise = noising.linearised_windows(process, grid, tolerance=tolerance)
        worst = max(error_of_mean(process, noise, i, states) for i in (40, 70, 110))
        # Not by windows that are needlessly short, either.
        assert 0.2 * tolerance < worst < 1.25 * tolerance
    fixed = noising.linearised_windows(process, grid, schedule="gap", gap=0.2)
    assert error_of_mean(process, fixed, 70, states) > 0.2


@pytest.mark.parametrize("integrator", ["euler", "auto"])
def test_windows_do_not_depend_on_how_a_mixture_is_written(integrator):
    """One spherical variance as a matrix, as a diagonal and as a full covariance.

    Windows are those of the spherical mixture but for what rounding decides: to one grid point.
    """
    eye = 0.3 * np.eye(2)
    written = {"diag": np.full((2, 2), 0.3), "tied": eye, "full": np.stack([eye, eye])}
    means, starts = [[0.0, 0.0], [2.0, 0.5]], {}
    for kind, variances in {"spherical": np.full(2, 0.3), **written}.items():
        process = processes.langevin(references.mixture([1, 2], means, variances, covariance=kind))
        noise = noising.linearised_windows(process, 24, jacobian="dense", integrator=integrator)
        starts[kind] = np.asarray(noise.starts)
    assert np.any(starts["spherical"] > 0)
    for kind in written:
        np.testing.assert_allclose(starts[kind], starts["spherical"], rtol=0, atol=1)


def test_windows_of_a_linear_drift_of_degenerate_noise_start_at_the_data():
    """Also where the reference is a fitted mixture of full covariances."""
    process = LINEAR["critically damped"]
    law = references.mixture([1.0], np.zeros((1, 4)), np.eye(4)[None], covariance="full")
    fitted = dataclasses.replace(process, reference=law)
    for each in (process, fitted):
        assert not np.any(noising.linearised_windows(each, 24).starts)


def test_windows_are_chosen_on_paths_of_the_data():
    """Draws of far components are of one each, where the drift is linear and no window errs. Data
    half way between the components leave it to chance which of them a path goes to.
    """
    process = processes.langevin(references.mixture([0.5, 0.5], [[0.0], [4.0]], [0.25, 0.25]))
    grid = time_grid(process, 120)
    between = 2 + 0.1 * jax.random.normal(jax.random.key(3), (128, 1))
    of_draws = noising.linearised_windows(process, grid, integrator="euler")
    np.testing.assert_array_equal(of_draws.starts, np.zeros(120))
    of_data = noising.linearised_windows(process, grid, x0=between, integrator="euler")
    paths = simulate(KEY, process, between, jnp.asarray(grid))
    for interval in (70, 90, 110):
        left = paths[int(of_data.starts[interval]), :48]
        assert error_of_mean(process, of_data, interval, left) < 2 * 0.02
        assert error_of_mean(process, of_draws, interval, between[:48]) > 1


def test_mean_error_is_the_curvature_of_the_drift():
    """b = -c y^2 / 2 at 0: E[y_t] = -c g^2 h^2 / 4 to leading order, where the linear mean is 0."""

    def drift(y, t):
        return -0.5 * 0.3 * y**2

    process = processes.process(drift, 1.0, references.standard_normal(1), horizon=1.0)
    y = jnp.zeros((3, 1))
    square = mean_error(jax.random.key(0), process, noising.linearise(process), y, *at(y, 0.0, 0.1))
    np.testing.assert_allclose(np.sqrt(square), 0.3 * 0.1**2 / 4, rtol=0.02)


# --- the parts together ---


def test_another_mixture_of_equal_shape_does_not_retrace():
    traces = []

    @jax.jit
    def counted(noise, key, x0):
        traces.append(None)
        return noise(key, x0)

    rng = np.random.default_rng(3)
    for _ in range(2):
        mixture = mixtures("spherical", rng)
        noise = noising.linearised_windows(processes.langevin(mixture), 20, schedule="gap")
        counted(noise, jax.random.key(0), mixture.sample(jax.random.key(1), (5,)))
    assert len(traces) == 1


@pytest.mark.slow
def test_the_quotient_is_simulated_for_many_dimensions(rng):
    """E[T] = 0 and E[T . y] = -d, for the law of y_t is smooth: 2,000 states of 40 dimensions."""
    mixture = mixtures("spherical", rng, dim=40)
    process = processes.langevin(mixture)
    noise = noising.linearised_windows(process, 30, k=2)
    assert isinstance(noise.chain, noising.Quotient)
    assert (
        noising.linearised_windows(process, 30, simulation="full", schedule="gap").chain is not None
    )
    batch = noised(noise, jax.random.key(0), mixture.sample(jax.random.key(1), (1000,)))
    std = np.asarray(process.clock.std(batch.t))[..., None]
    assert_mean((batch.score_target * std).reshape(-1, 40), np.zeros(40))
    moment = np.sum(batch.score_target * (batch.y - batch.mu), axis=-1)
    assert_mean(moment.ravel(), -40.0)


def test_objective_by_name():
    process = processes.langevin(TWO)
    setup = experiment(process, objective="local_dsm")
    assert isinstance(setup.noising, noising.LinearisedWindows)
    batch = noised(setup.noising, jax.random.key(0), TWO.sample(jax.random.key(1), (8,)))
    score = lambda y, t: process.reference.score(y)  # noqa: E731
    loss, control = OBJECTIVES["local_dsm"].terms(score, batch)
    np.testing.assert_array_equal(loss, dsm(score, batch))
    assert control is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "never"}, "schedule="),
        ({"schedule": "gap", "gap": 0.0}, "gap="),
        ({"tolerance": 0.0}, "tolerance="),
        ({"jacobian": "sparse"}, "jacobian="),
        ({"jacobian": "low_rank"}, r"noising\.jacobian='low_rank'"),
        ({"jacobian": "diagonal"}, r"noising\.jacobian='diagonal'"),
    ],
)
def test_errors_name_the_key(changes, words):
    with pytest.raises(ValueError, match=words):
        noising.linearised_windows(processes.langevin(TWO), 10, **changes)


def test_a_large_dense_jacobian_is_refused():
    process = processes.langevin(references.student_t(200, degrees=5.0))
    with pytest.raises(ValueError, match="elementwise"):
        noising.linearise(process)
