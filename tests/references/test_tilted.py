"""Tilted references against mixtures, quadrature in one and two dimensions, and Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from ndsm_jax import likelihood, references

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-2.0, 0.0], [1.0, 1.0], [1.5, -2.0]])
VARIANCES = np.array([0.3, 0.2, 0.5])
BASE = references.mixture(WEIGHTS, MEANS, VARIANCES)
ALPHA = np.array([3.0, 0.5, 0.7])


def peptide(y):
    """U(phi, psi) = U(-phi, -psi), period 2 pi: a mirror pair of basins."""
    return 2 * jnp.cos(2 * y[0]) + 1.5 * jnp.cos(y[0] - y[1]) - 0.5 * jnp.cos(y[1])


@jax.jit
def tilt_hessians(law, x):
    return jax.vmap(jax.hessian(law.log_tilt))(x)


def torus_grid(n=200):
    axis = (np.arange(n) + 0.5) * 2 * np.pi / n - np.pi
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def peptide_base():
    samples = references.rejection_samples(
        jax.random.key(3), peptide, low=[-np.pi] * 2, high=[np.pi] * 2, num=50_000
    )
    return references.energy(peptide, samples)


def test_tilt_by_responsibilities_is_the_mixture_with_other_weights(rng):
    """eta sum_k alpha_k r_k = sum_k alpha_k w_k N_k, exactly."""
    law = references.tilted(BASE, BASE, ALPHA)
    expected = references.mixture(ALPHA * WEIGHTS, MEANS, VARIANCES)
    y = jnp.asarray(2 * rng.normal(size=(5, 2, 2)), jnp.float32)
    constant = np.log(ALPHA @ WEIGHTS)
    np.testing.assert_allclose(law.log_prob(y) - constant, expected.log_prob(y), atol=2e-5)
    np.testing.assert_allclose(law.score(y), expected.score(y), rtol=1e-4, atol=1e-4)
    draws = law.sample(jax.random.key(0), (200, 100)).reshape(-1, 2)
    assert_mean(expected.responsibilities(draws), ALPHA * WEIGHTS / (ALPHA @ WEIGHTS))
    mean = ALPHA * WEIGHTS / (ALPHA @ WEIGHTS) @ MEANS
    assert_mean(draws, mean)
    assert isinstance(law, references.Reference)
    assert law.dim == 2
    assert law.typical_variance() == BASE.typical_variance()


def test_fit_by_responsibilities_finds_the_other_weights():
    """From draws of the reweighted mixture: weights within 4.5 standard errors of the shares."""
    wanted = np.array([0.5, 0.1, 0.4])
    data = references.mixture(wanted, MEANS, VARIANCES).sample(jax.random.key(5), (5000,))
    law, report = references.fit_tilt(BASE, data, BASE, key=jax.random.key(6))
    found = np.asarray(law.weights) * WEIGHTS
    np.testing.assert_allclose(found, wanted, atol=4.5 * np.sqrt(0.25 / 5000))
    np.testing.assert_allclose(report.base_shares, WEIGHTS, atol=0.01)
    assert report.residual < 1e-6
    assert 0 < report.standard_error < 5e-3
    assert "3 states" in str(report)


def test_equal_weights_leave_the_density_of_the_base():
    """Whatever they are: log_prob at 0 and 1 is that of N(0, 1) in closed form."""
    states = references.centres([[-1.0], [1.0]], 0.5)
    law = references.tilted(references.standard_normal(1), states, [3.0, 3.0])
    assert law.normalised
    expected = -0.5 * np.log(2 * np.pi) - np.array([0.0, 0.5])
    np.testing.assert_allclose(law.log_prob(jnp.array([[0.0], [1.0]])), expected, atol=1e-6)


def test_only_weights_of_unit_mass_have_a_constant(peptide_base):
    """Those of a fit, or equal ones; and none over a base without a constant."""
    states = references.centres([[-2.0, 1.0], [2.0, -1.0]], 1.0, period=2 * np.pi)
    data = np.asarray(BASE.sample(jax.random.key(0), (200,)))
    fitted, _ = references.fit_tilt(BASE, data, states, key=jax.random.key(1), num=4096)
    uneven = references.tilted(BASE, states, [1.0, 2.0])
    assert fitted.normalised
    assert not uneven.normalised
    assert not references.tilted(uneven, states, [1.0, 1.0]).normalised
    assert not references.tilted(peptide_base, states, [1.0, 1.0]).normalised
    with pytest.raises(ValueError, match="Tilted lacks its constant"):
        likelihood.check_normalised(uneven)


@pytest.mark.parametrize("period", [None, 2 * np.pi])
def test_score_is_the_gradient(period, rng):
    states = references.centres(MEANS, 0.6, period=period)
    law = references.tilted(BASE, states, ALPHA)
    y = jnp.asarray(2 * rng.normal(size=(10, 2)), jnp.float32)
    expected = jax.jit(jax.vmap(jax.grad(law.log_prob)))(y)
    np.testing.assert_allclose(law.score(y), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(law.score(y[0]), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states.responsibilities(y).sum(axis=-1), 1.0, rtol=1e-5)


def test_centres_are_the_responsibilities_of_equal_spheres(rng):
    """A different code for the same function: equal weights, variance h^2."""
    equal = references.mixture(np.ones(3), MEANS, np.full(3, 0.36))
    y = jnp.asarray(rng.normal(size=(4, 2, 2)), jnp.float32)
    got = references.centres(MEANS, 0.6).responsibilities(y)
    np.testing.assert_allclose(got, equal.responsibilities(y), atol=1e-5)
    periodic = references.centres(MEANS, 0.6, period=2 * np.pi)
    shifted = y + jnp.array([[[2 * np.pi, -4 * np.pi]]], jnp.float32)
    got = periodic.responsibilities(y)
    np.testing.assert_allclose(got, periodic.responsibilities(shifted), atol=1e-4)
    long = references.centres(MEANS, 0.6, period=1000.0)
    np.testing.assert_allclose(long.responsibilities(y), equal.responsibilities(y), atol=1e-3)


def test_fitted_tilt_in_one_dimension_by_quadrature():
    """Normaliser 1 and the data's shares, within 5 standard errors of the fit's draws."""
    base = references.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.2, 0.2])
    states = references.centres([[-1.0], [1.0]], 0.5)
    x = np.linspace(-6, 6, 20_001)[:, None].astype(np.float32)
    data = references.mixture([0.8, 0.2], [[-1.1], [0.9]], [0.2, 0.2]).sample(
        jax.random.key(0), (1000,)
    )
    law, report = references.fit_tilt(base, data, states, key=jax.random.key(1))
    density = np.exp(np.asarray(law.log_prob(x), np.float64))
    assert np.trapezoid(density, x[:, 0]) == pytest.approx(1.0, abs=5 * report.standard_error)
    r = np.asarray(states.responsibilities(x), np.float64)
    shares = np.trapezoid(density[:, None] * r, x[:, 0], axis=0)
    np.testing.assert_allclose(shares, report.shares, atol=5 * report.standard_error)
    np.testing.assert_allclose(report.shares, states.responsibilities(data).mean(axis=0), atol=1e-5)
    assert abs(report.shares[0] - report.base_shares[0]) > 0.2  # a case with content
    draws = law.sample(jax.random.key(2), (20_000,))
    bias = 5 * report.standard_error
    assert_mean(states.responsibilities(draws), report.shares, bias=bias)


def test_fitted_tilt_of_a_torus_by_quadrature(peptide_base):
    """A mirror-symmetric energy takes the data's 75 % of right-handed states."""
    grid = torus_grid()
    boltzmann = np.exp(-np.asarray(jax.vmap(peptide)(grid), np.float64))
    states = references.metastable_states(
        np.asarray(peptide_base.samples[:5000]), 2, period=2 * np.pi
    )
    r = np.asarray(states.responsibilities(grid), np.float64)
    truth = boltzmann * (r @ [0.75, 0.25])
    index = np.random.default_rng(0).choice(len(grid), 2000, p=truth / truth.sum())
    law, report = references.fit_tilt(peptide_base, grid[index], states, key=jax.random.key(1))
    density = np.exp(np.asarray(law.log_prob(grid), np.float64))
    shares = density @ r / density.sum()
    # Two sources: the fit's draws, and the 50,000 samples that they are drawn from again.
    error = np.hypot(report.standard_error, report.standard_error * np.sqrt(65_536 / 50_000))
    np.testing.assert_allclose(shares, report.shares, atol=5 * error)
    assert abs(report.shares[0] - report.base_shares[0]) > 0.1
    assert report.acceptance > 0.5


@pytest.mark.parametrize("period", [None, 2 * np.pi])
@pytest.mark.parametrize("alpha", [[1.0, 1.0], [1.0, 3.0], [1.0, 1e4]])
@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_curvature_of_centres_is_a_bound_but_not_a_loose_one(period, alpha, distance):
    """A line through both centres has the steepest change; a fine grid of second derivatives."""
    states = references.centres([[0.0], [distance]], 0.5, period=period)
    base = references.uniform_torus(1)
    law = references.tilted(base, states, alpha)
    x = jnp.linspace(-np.pi, np.pi, 4001)[:, None]
    largest = float(jnp.abs(tilt_hessians(law, x)).max())
    assert law.stiffness() >= largest - 1e-4
    if alpha[1] == 1e4 and period is None:
        assert law.stiffness() < 1.1 * largest
    if alpha[1] == 1.0:
        assert law.stiffness() == 0.0


def test_stiffness_covers_a_grid_of_hessians():
    """Of the whole law, with either partition, over the region that holds its mass."""
    axis = np.linspace(-4, 4, 61)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    grid = jnp.asarray(grid, jnp.float32)
    narrow = references.mixture(np.ones(3), MEANS, VARIANCES / 2)
    for states in (references.centres(MEANS, 0.8), narrow):
        law = references.tilted(BASE, states, ALPHA)
        hessians = jax.jit(jax.vmap(jax.hessian(law.log_prob)))(grid)
        curvatures = -np.linalg.eigvalsh(np.asarray(hessians))
        inside = np.asarray(BASE.log_prob(grid)) > -8
        assert law.stiffness() >= curvatures[inside].max()
        assert law.stiffness() > BASE.stiffness()


def test_shares_out_of_reach_are_approached():
    """All data in the middle of one state: the other's weight is the least, its share remains."""
    base = references.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.5, 0.5])
    states = references.centres([[-1.0], [1.0]], 0.7)
    law, report = references.fit_tilt(
        base, np.full((10, 1), -3.0), states, key=jax.random.key(0), num=10_000
    )
    assert report.residual > 0.05
    assert report.weights[1] == pytest.approx(1e-6 * report.weights[0])
    assert np.isfinite(law.score(jnp.array([[-3.0], [3.0], [30.0]]))).all()


def test_tilted_law_is_a_pytree_and_samples_in_jit(peptide_base):
    states = references.centres([[-2.0, 1.0], [2.0, -1.0]], 1.0, period=2 * np.pi)
    law = references.tilted(peptide_base, states, [1.0, 2.0])
    compiled = jax.jit(lambda law, key: law.sample(key, (3, 4)))
    draws = compiled(law, jax.random.key(0))
    assert draws.shape == (3, 4, 2)
    np.testing.assert_array_equal(draws, law.sample(jax.random.key(0), (3, 4)))
    assert law.sample(jax.random.key(0)).shape == (2,)
    again = references.tilted(law, states, [2.0, 1.0])  # a tilt is a base like any other
    y = draws[0]
    np.testing.assert_allclose(
        again.log_prob(y),
        law.log_prob(y) + jnp.log(states.responsibilities(y) @ jnp.array([2.0, 1.0])),
        rtol=1e-5,
    )


def test_metastable_states_are_the_blobs(rng):
    labels = rng.choice(3, 3000, p=WEIGHTS)
    samples = 3 * MEANS[labels] + 0.4 * rng.normal(size=(3000, 2))
    states = references.metastable_states(samples, 3)
    order = [int(np.argmin(((np.asarray(states.positions) - 3 * m) ** 2).sum(1))) for m in MEANS]
    assert sorted(order) == [0, 1, 2]
    found = np.asarray(states.positions)[order]
    np.testing.assert_allclose(found, 3 * MEANS, atol=4.5 * 0.4 / np.sqrt(500))
    assert states.bandwidth == pytest.approx(0.4, rel=4.5 / np.sqrt(2 * 6000))
    assert references.metastable_states(samples, 3, bandwidth=0.7).bandwidth == pytest.approx(0.7)


def test_metastable_states_of_angles_know_the_period(rng):
    """A state across the cell's edge is one state."""
    true = np.array([[3.1, 0.0], [0.0, -3.1]])
    samples = true[rng.integers(0, 2, 2000)] + 0.2 * rng.normal(size=(2000, 2))
    samples = np.mod(samples + np.pi, 2 * np.pi) - np.pi
    states = references.metastable_states(samples, 2, period=2 * np.pi)
    positions = np.asarray(states.positions)
    distance = np.sin((positions[:, None] - true[None]) / 2)
    assert np.abs(distance).max(axis=2).min(axis=1).max() < 0.02
    assert states.bandwidth == pytest.approx(0.2, rel=0.1)
    shares = np.asarray(states.responsibilities(samples.astype(np.float32)))
    assert np.mean(shares.max(axis=1) > 0.99) > 0.99


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: references.tilted(BASE, BASE, [1.0, 2.0]), r"positive weights \[3\]"),
        (lambda: references.tilted(BASE, BASE, [1.0, 2.0, 0.0]), "positive weights"),
        (
            lambda: references.tilted(BASE, references.centres([[0, 0], [9, 9]], 1.0), [1e-9, 1.0]),
            "almost no mass",
        ),
        (
            lambda: references.fit_tilt(
                BASE,
                np.zeros((5, 2)),
                references.centres([[0, 0], [99, 99]], 1.0),
                key=jax.random.key(0),
                num=100,
            ),
            "state 1",
        ),
        (
            lambda: references.fit_tilt(BASE, np.zeros((5, 3)), BASE, key=jax.random.key(0)),
            "d = 2",
        ),
        (lambda: references.centres(np.zeros(3), 1.0), r"\[K, d\]"),
        (lambda: references.centres(np.zeros((1, 2)), 0.0), "bandwidth"),
        (lambda: references.centres(np.zeros((1, 2)), 1.0, period=0.0), "period"),
        (lambda: references.metastable_states(np.zeros((3, 2)), 4), "num=4 of 3"),
        (lambda: references.metastable_states(np.zeros(3), 1), r"\[N, d\]"),
        (lambda: references.metastable_states(np.eye(3), 3), "bandwidth"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
