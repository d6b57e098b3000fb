"""The conditional law of a mixture against SciPy's densities and the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import measurements, references
from ndsm_jax.references.conditional import innovation, spectrum
from tests.references.test_mixtures import WEIGHTS, K, covariances, dense

D = 3


def written_out(means, sigmas, a, value, noise):
    """Log weights, means and covariances of the components, and the log density of the reading."""
    joint, posterior_means, posterior = [], [], []
    for w, mean, sigma in zip(WEIGHTS, means, sigmas, strict=True):
        c = a @ sigma @ a.T + noise
        gain = sigma @ a.T @ np.linalg.inv(c)
        read = len(value) > 0
        joint.append(
            np.log(w) + (scipy.stats.multivariate_normal(a @ mean, c).logpdf(value) if read else 0)
        )
        posterior_means.append(mean + gain @ (value - a @ mean))
        posterior.append(sigma - gain @ a @ sigma)
    evidence = np.logaddexp.reduce(joint)
    return np.array(joint) - evidence, np.array(posterior_means), np.array(posterior), evidence


@pytest.fixture(params=references.COVARIANCES)
def case(request, rng):
    means, c = rng.normal(size=(K, D)), covariances(request.param, rng)
    sigmas = [dense(request.param, c, k) for k in range(K)]
    return references.mixture(WEIGHTS, means, c, covariance=request.param), means, sigmas


def coordinates(rng):
    """Exact, noisy and missing ones, another choice in each row; nothing at all in the last."""
    x, std = rng.normal(size=(4, D)), rng.choice([0.0, 0.3], size=(4, D))
    x[0, 0] = x[1, 2] = np.nan
    x[3] = np.nan
    rows = []
    for value, s in zip(x, std, strict=True):
        read = ~np.isnan(value)
        rows.append((np.eye(D)[read], value[read], np.diag(s[read] ** 2)))
    return measurements.given(x, noise=std), rows


def sums(rng):
    """Two linear readings with correlated noise, one of them missing in a row."""
    a, value, root = rng.normal(size=(2, D)), rng.normal(size=(3, 2)), rng.normal(size=(2, 2))
    noise = 0.1 * root @ root.T
    value[1, 0] = np.nan
    rows = [(a[r], v[r], noise[np.ix_(r, r)]) for v in value for r in [~np.isnan(v)]]
    return measurements.linear(a, value, covariance=noise), rows


@pytest.mark.parametrize("kind", [coordinates, sums])
def test_it_is_the_one_written_out(case, kind, rng):
    mixture, means, sigmas = case
    measurement, rows = kind(rng)
    law = references.conditional(mixture, measurement)
    found = law.component_means(), law.component_covariances()
    for i, row in enumerate(rows):
        log_weights, of_means, of_covariances, evidence = written_out(means, sigmas, *row)
        np.testing.assert_allclose(law.log_weights[i], log_weights, atol=2e-4)
        # A density of orthonormal readings: that of A x, times |det (A A^T)|^(1/2).
        evidence += 0.5 * np.linalg.slogdet(row[0] @ row[0].T)[1]
        np.testing.assert_allclose(law.log_evidence[i], evidence, atol=2e-4)
        np.testing.assert_allclose(found[0][i], of_means, atol=2e-5)
        np.testing.assert_allclose(found[1][i], of_covariances, atol=2e-5)
        w = np.exp(log_weights)
        mean = w @ of_means
        apart = of_means - mean
        total = np.einsum("k,kij->ij", w, of_covariances) + (w[:, None] * apart).T @ apart
        np.testing.assert_allclose(law.mean()[i], mean, atol=1e-4)
        np.testing.assert_allclose(law.covariance()[i], total, atol=1e-4)


@pytest.mark.parametrize("kind", ["diag", "full", "low_rank"])
def test_draws_have_its_moments_and_exact_readings(kind, rng):
    """4,000 draws of every row: means and second moments within 4.5 standard errors."""
    c = covariances(kind, rng)
    mixture = references.mixture(WEIGHTS, rng.normal(size=(K, D)), c, covariance=kind)
    measurement, _ = coordinates(rng)
    law = references.conditional(mixture, measurement)
    x = np.asarray(law.sample(jax.random.key(0), (4000,)), np.float64)
    mean, covariance = np.asarray(law.mean()), np.asarray(law.covariance())
    apart = x - mean
    assert_mean(x, mean, bias=1e-5)
    assert_mean(apart[..., :, None] * apart[..., None, :], covariance, bias=1e-5)
    exact = measurement.variance == 0
    np.testing.assert_allclose(x[:, exact], np.tile(measurement.value[exact], (4000, 1)), rtol=1e-6)


def test_nearly_collinear_columns_keep_their_digits(rng):
    """Correlations of 1 - 1e-6, one column given exactly: the other follows, to 1e-3 of the little
    that is left (its deviation is 1.4e-3)."""
    covariance = np.array([[[1.0, 1 - 1e-6], [1 - 1e-6, 1.0]]])
    mixture = references.mixture([1.0], np.zeros((1, 2)), covariance, covariance="full")
    law = references.conditional(mixture, measurements.given([2.0, np.nan]))
    np.testing.assert_allclose(law.component_means()[0, 0], [2.0, 2 * (1 - 1e-6)], atol=2e-6)
    x = np.asarray(law.sample(jax.random.key(2), (4000,)))[:, 0, 1]
    left = 1 - (1 - 1e-6) ** 2
    # The standard error of a standard deviation is 1 / sqrt(2 n) of it: 1.1 %.
    np.testing.assert_allclose(x.std(), left**0.5, rtol=0.05)


def test_many_pixels_of_separate_components_do_not_underflow():
    """392 of 784 pixels given, log densities of about -1e5 apart: the weights are 1 and e^-big."""
    means = np.stack([np.zeros(784), np.full(784, 10.0)])
    mixture = references.mixture([0.5, 0.5], means, [0.1, 0.1])
    law = references.conditional(
        mixture, measurements.given(np.r_[np.zeros(392), np.full(392, np.nan)])
    )
    np.testing.assert_allclose(law.log_weights[0], [0.0, -392 * 100 / 0.2], rtol=1e-5)
    expected = np.r_[np.zeros(392), np.zeros(392)]
    np.testing.assert_allclose(law.mean()[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["spherical", "full", "low_rank"])
def test_its_derivative_by_the_difference_is_what_it_says(kind, rng):
    """d log_prob = -C^{-1} difference, written out."""
    c = covariances(kind, rng)
    mixture = references.mixture(WEIGHTS, np.zeros((K, D)), c, covariance=kind)
    measurement = measurements.given(rng.normal(size=D), noise=0.4)
    one = measurement.rows(lambda a: jnp.asarray(a[0], jnp.float32))
    difference = jnp.asarray(rng.normal(size=(K, D)), jnp.float32)
    covariance = spectrum(mixture)
    found = jax.grad(lambda e: innovation(covariance, one, e).log_prob.sum())(difference)
    for k in range(K):
        total = dense(kind, c, k) + 0.16 * np.eye(D)
        np.testing.assert_allclose(
            found[k], -np.linalg.solve(total, difference[k]), rtol=2e-4, atol=2e-5
        )
