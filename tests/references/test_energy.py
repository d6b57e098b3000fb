"""Energies, rejection and NUTS against laws known in closed form or by quadrature."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import references
from ndsm_jax.references.energy import log_uniform

BARRIER = 3.0  # kT


def double_well(y):
    """U = 3 (y_0^2 - 1)^2 + y_0 / 2 + 2 y_1^2: wells of unequal depth, a normal coordinate."""
    return BARRIER * (y[0] ** 2 - 1) ** 2 + 0.5 * y[0] + 2 * y[1] ** 2


def well_in_one(y):
    return BARRIER * (y[0] ** 2 - 1) ** 2 + 0.5 * y[0]


def well_cdf():
    """Distribution function of the first coordinate, by the trapezoidal rule."""
    x = np.linspace(-3, 3, 20_001)
    density = np.exp(-BARRIER * (x**2 - 1) ** 2 - 0.5 * x)
    cumulative = scipy.integrate.cumulative_trapezoid(density, x, initial=0)
    return lambda value: np.interp(value, x, cumulative / cumulative[-1])


def quadratic(matrix, y):
    return 0.5 * y @ matrix @ y


def normal_energy(covariance, n=20_000, seed=0):
    precision = np.linalg.inv(covariance)
    draws = np.random.default_rng(seed).multivariate_normal(np.zeros(len(precision)), covariance, n)
    function = Partial(quadratic, jnp.asarray(precision, jnp.float32))
    return references.energy(function, draws)


def test_energy_of_a_mixture_is_that_mixture(rng):
    mixture = references.mixture([0.3, 0.7], [[-2.0, 0], [2, 1]], [0.09, 0.09])
    samples = mixture.sample(jax.random.key(0), (20_000,))
    law = references.energy(lambda y: -mixture.log_prob(y), samples, dim=2)
    y = jnp.asarray(rng.normal(size=(5, 2, 2)), jnp.float32)
    np.testing.assert_allclose(law.log_prob(y), mixture.log_prob(y), rtol=1e-5)
    np.testing.assert_allclose(law.score(y), mixture.score(y), rtol=1e-4, atol=1e-3)
    # Within the modes, not between them: sd of 1 / mean(chi2) is sqrt(2 / 20,000) = 1 %.
    assert law.typical_variance() == pytest.approx(0.09, rel=0.045)
    assert law.stiffness() == pytest.approx(mixture.stiffness(), rel=1e-3)
    assert isinstance(law, references.Reference)
    assert law.dim == 2


def test_typical_variance_is_the_mean_of_the_coordinates_own():
    """diag: mean of the variances; correlated: of the conditional ones; 1.5 % standard error."""
    assert normal_energy(np.diag([1.0, 0.01])).typical_variance() == pytest.approx(0.505, rel=0.06)
    correlated = np.array([[1.0, 0.8], [0.8, 1.0]])
    expected = np.mean(1 / np.diag(np.linalg.inv(correlated)))
    assert normal_energy(correlated).typical_variance() == pytest.approx(expected, rel=0.06)


def test_flat_energy_has_the_variance_of_its_samples(rng):
    samples = rng.uniform(-np.pi, np.pi, size=(5000, 2))
    law = references.energy(lambda y: 0.0 * jnp.sum(y), samples)
    assert law.typical_variance() == pytest.approx(samples.var(axis=0).mean(), rel=1e-4)
    assert law.stiffness() == 0.0


@pytest.mark.parametrize("dim", [3, 80])
def test_stiffness_of_a_normal_law(dim, rng):
    """3: eigenvalues of the Hessian; 80: power iteration, from below by less than 1 %."""
    a = rng.normal(size=(dim, dim))
    vectors = np.linalg.qr(a).Q
    variances = np.concatenate([[0.01], np.linspace(0.02, 1.0, dim - 1)])
    law = normal_energy((vectors * variances) @ vectors.T, n=50)
    assert law.stiffness() == pytest.approx(100.0, rel=1e-3 if dim == 3 else 0.01)


def test_flat_energy_in_high_dimension_has_no_stiffness(rng):
    assert references.energy(lambda y: 0.0 * y.sum(), rng.normal(size=(9, 70))).stiffness() == 0


def test_stiffness_against_a_grid_of_hessians():
    """The largest curvature where the draws are: U'' grows with y, so the outermost has it."""
    samples = references.rejection_samples(
        jax.random.key(0), double_well, low=[-2, -3], high=[2, 3], num=256
    )
    law = references.energy(double_well, samples)
    outermost = np.abs(np.asarray(samples)[:, 0]).max()
    x = np.linspace(-outermost, outermost, 201)
    largest = np.maximum(np.abs(BARRIER * (12 * x**2 - 4)), 4).max()
    assert law.stiffness() == pytest.approx(largest, rel=1e-3)


def test_bound_arrays_are_leaves_and_jit_takes_the_reference():
    law = normal_energy(np.diag([1.0, 0.5]))
    assert any(leaf.shape == (2, 2) for leaf in jax.tree.leaves(law))
    y = jnp.ones((3, 2))
    compiled = jax.jit(lambda law, y: law.score(y))
    np.testing.assert_allclose(compiled(law, y), -y * jnp.array([[1.0, 2.0]]), rtol=1e-5)
    doubled = jax.tree.map(lambda a: 2 * a, law)
    np.testing.assert_allclose(compiled(doubled, y), -y * jnp.array([[2.0, 4.0]]), rtol=1e-5)
    assert compiled._cache_size() == 1


def test_samples_are_the_given_ones_equally_often():
    given = np.arange(10.0)[:, None]
    law = references.energy(lambda y: 0.5 * jnp.sum(y**2), given)
    draws = np.asarray(law.sample(jax.random.key(1), (100, 100)))
    assert draws.shape == (100, 100, 1)
    counts = np.bincount(draws.astype(int).ravel(), minlength=10)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    assert law.sample(jax.random.key(1)).shape == (1,)


@pytest.mark.parametrize(("function", "dim"), [(well_in_one, 1), (double_well, 2)])
def test_rejection_draws_have_the_law(function, dim):
    """Kolmogorov-Smirnov, 20,000 independent draws."""
    low, high = [-2.5] * dim, [2.5] * dim
    draws = references.rejection_samples(
        jax.random.key(0), function, low=low, high=high, num=20_000
    )
    draws = np.asarray(draws, np.float64)
    assert draws.shape == (20_000, dim)
    assert scipy.stats.kstest(draws[:, 0], well_cdf()).pvalue > 1e-4
    if dim == 2:
        assert scipy.stats.kstest(draws[:, 1], scipy.stats.norm(0, 0.5).cdf).pvalue > 1e-4
        assert_mean(draws[:, 0] * draws[:, 1], 0.0)


def test_rejection_is_a_function_of_the_key():
    options = {"low": [-2.0], "high": [2.0], "num": 50}
    one, again, other = (
        references.rejection_samples(jax.random.key(k), well_in_one, **options) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def spike(y):
    """A well of depth 20 and width 0.01, which a coarse grid and a flat gradient miss."""
    return -20 * jnp.exp(-0.5 * ((y[0] - 0.123) / 0.01) ** 2)


def test_no_uniform_draw_accepts_anything():
    """One of these 2^24 draws is 0; its logarithm is that of half a cell, all others are as is."""
    uniform = np.asarray(jax.random.uniform(jax.random.key(0), (1 << 24,)))
    found = np.asarray(log_uniform(jax.random.key(0), (1 << 24,)))
    zero = uniform == 0
    assert zero.sum() == 1
    np.testing.assert_allclose(found[zero], -24 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found[~zero], np.log(uniform[~zero]), rtol=1e-6)


def test_rejection_finds_a_narrow_well_or_says_that_it_did_not():
    options = {"low": [-1.0], "high": [1.0], "num": 100}
    draws = references.rejection_samples(jax.random.key(0), spike, **options)
    assert np.mean(np.abs(np.asarray(draws) - 0.123) < 0.05) > 0.9
    with pytest.raises(ValueError, match="raise grid_size"):
        references.rejection_samples(jax.random.key(0), spike, **options, grid_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": [-1e6], "high": [1e6]}, "nuts_samples"),
        ({"low": [1.0], "high": [0.0]}, "low < high"),
        ({"low": [-1.0] * 16, "high": [1.0] * 16}, "16 dimensions"),
        ({"low": [-1.0], "high": [1.0], "min_acceptance": 0.9999}, "min_acceptance"),
    ],
)
def test_hopeless_rejection_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        references.rejection_samples(jax.random.key(0), well_in_one, **options, num=10)


def test_rejection_needs_a_finite_energy():
    with pytest.raises(ValueError, match="nowhere finite"):
        references.rejection_samples(
            jax.random.key(0), lambda y: jnp.log(y[0]), low=[-2.0], high=[-1.0], num=10
        )


@pytest.mark.parametrize(
    ("function", "samples", "message"),
    [
        (jnp.sum, np.ones(3), r"\[M, d\]"),
        (jnp.sum, np.full((3, 2), np.nan), "finite samples"),
        (jnp.sum, np.ones((3, 2)), "all the same"),
        (jnp.sum, np.ones((3, 4)), "d = 2"),
        (lambda y: y, np.ones((3, 2)), "sum over"),
        (lambda y: jnp.sum(jnp.log(y)), -np.ones((3, 2)), "not finite at one"),
    ],
)
def test_bad_energies_are_refused(function, samples, message):
    with pytest.raises(ValueError, match=message):
        references.energy(function, samples, dim=2 if samples.shape != (3,) else None)


def test_nuts_of_a_correlated_normal_law():
    """Two chains, 4 steps a draw; bias allowed for what correlation is left: 30 %."""
    pytest.importorskip("blackjax")
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    function = Partial(quadratic, jnp.asarray(np.linalg.inv(covariance), jnp.float32))
    draws = np.asarray(
        references.nuts_samples(
            jax.random.key(0), function, np.zeros((2, 2)), num=2001, warmup=300, thin=4
        )
    )
    assert draws.shape == (2001, 2)
    assert_mean(draws, 0.0, sigmas=4.5 * 1.3)
    assert_mean(draws[:, :, None] * draws[:, None, :], covariance, sigmas=4.5 * 1.3)


def test_nuts_of_a_double_well():
    """One chain crosses a barrier of 3 kT often: shares within a tenth, well widths within 10 %."""
    pytest.importorskip("blackjax")
    draws = references.nuts_samples(
        jax.random.key(1), double_well, jnp.array([1.0, 0.0]), num=2000, warmup=300, thin=4
    )
    x = np.asarray(draws)[:, 0]
    assert np.mean(x < 0) == pytest.approx(well_cdf()(0.0), abs=0.1)
    exact = np.asarray(
        references.rejection_samples(
            jax.random.key(0), double_well, low=[-2, -3], high=[2, 3], num=20_000
        )
    )[:, 0]
    for sign in (-1, 1):
        assert x[sign * x > 0].std() == pytest.approx(exact[sign * exact > 0].std(), rel=0.1)


def test_nuts_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ValueError, match=r"pip install 'ndsm_jax\[nuts\]'"):
        references.nuts_samples(jax.random.key(0), jnp.sum, jnp.zeros(2), num=1)


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (np.zeros(2), {"num": 0}, "num=0: .* >= 1"),
        (np.full(2, np.nan), {"num": 1}, "not finite"),
        (np.zeros((1, 1, 2)), {"num": 1}, "finite starts"),
    ],
)
def test_bad_nuts_arguments_are_refused(start, options, message):
    pytest.importorskip("blackjax")
    with pytest.raises(ValueError, match=message):
        references.nuts_samples(jax.random.key(0), jnp.sum, start, **options)
