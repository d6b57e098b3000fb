"""Mixtures against SciPy, automatic differentiation, and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import assert_mean
from sklearn.mixture import GaussianMixture as ScikitMixture

from ndsm_jax import gmm

K, D = 4, 3
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])


def covariances(kind: str, rng: np.random.Generator) -> np.ndarray:
    a = rng.normal(size=(K, D, D)) * 0.3
    full = a @ a.transpose(0, 2, 1) + 0.2 * np.eye(D)
    return {
        "spherical": rng.uniform(0.1, 0.6, K),
        "tied_spherical": np.float64(0.3),
        "diag": rng.uniform(0.1, 0.6, (K, D)),
        "tied": full[0],
        "full": full,
    }[kind]


def dense(kind: str, c: np.ndarray, k: int) -> np.ndarray:
    """Covariance matrix of component k, written out."""
    return {
        "spherical": lambda: c[k] * np.eye(D),
        "tied_spherical": lambda: c * np.eye(D),
        "diag": lambda: np.diag(c[k]),
        "tied": lambda: c,
        "full": lambda: c[k],
    }[kind]()


@pytest.fixture(params=gmm.COVARIANCES)
def case(request, rng):
    means = rng.normal(size=(K, D))
    c = covariances(request.param, rng)
    mixture = gmm.mixture(WEIGHTS, means, c, covariance=request.param)
    components = [
        scipy.stats.multivariate_normal(means[k], dense(request.param, c, k)) for k in range(K)
    ]
    return mixture, components, rng.normal(size=(5, 2, D)).astype(np.float32)


def test_log_prob_and_responsibilities_match_scipy(case):
    mixture, components, y = case
    joint = np.stack([np.log(w) + p.logpdf(y) for w, p in zip(WEIGHTS, components, strict=True)])
    expected = np.logaddexp.reduce(joint, axis=0)
    np.testing.assert_allclose(mixture.log_prob(y), expected, rtol=2e-5, atol=2e-5)
    r = np.moveaxis(np.exp(joint - expected), 0, -1)
    np.testing.assert_allclose(mixture.responsibilities(y), r, atol=1e-5)


def test_score_and_hvp_match_autodiff(case, rng):
    mixture, _, y = case
    y = y.reshape(-1, D)
    v = rng.normal(size=y.shape).astype(np.float32)
    score, hvp = mixture.score_hvp(y, v)
    np.testing.assert_array_equal(mixture.hvp(y, v), hvp)
    expected = jax.vmap(jax.grad(mixture.log_prob))(y)
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixture.score(y), expected, rtol=1e-4, atol=1e-4)
    hessian = jax.vmap(jax.hessian(mixture.log_prob))(y)
    np.testing.assert_allclose(hvp, np.einsum("nij,nj->ni", hessian, v), rtol=1e-4, atol=3e-4)


def dense_score_hvp(mixture, y, v):
    """Score and Hessian product of a spherical mixture at one y, in float64 with dense matrices."""
    weights, means, variances = (
        np.asarray(a, np.float64)
        for a in (jnp.exp(mixture.log_weights), mixture.means, mixture.component_variances())
    )
    joint = -0.5 * ((y - means) ** 2).sum(1) / variances - 0.5 * y.size * np.log(variances)
    r = scipy.special.softmax(joint + np.log(weights))
    g = (means - y) / variances[:, None]
    hessian = (g.T * r) @ g - np.outer(r @ g, r @ g) - (r / variances).sum() * np.eye(y.size)
    return r @ g, hessian @ v


@pytest.mark.parametrize("equal", [True, False])
def test_score_hvp_with_separated_means_in_high_dimension(equal, rng):
    """Twenty standard deviations and more between means; states at, between and outside them."""
    dim = 784
    means = 3.0 + 0.2 * rng.normal(size=(5, dim))
    variances = np.full(5, 0.06) if equal else np.linspace(0.05, 0.07, 5)
    mixture = gmm.mixture(np.ones(5), means, variances)
    noise, apart = np.sqrt(variances[1]) * rng.normal(size=dim), means[2] - means[3]
    across = noise - (noise @ apart) / (apart @ apart) * apart
    y = np.stack([means[1] + noise, 0.5 * (means[2] + means[3]) + across, 2 * means[0]])
    y = y.astype(np.float32)
    v = rng.normal(size=y.shape).astype(np.float32)
    v[1] += apart  # the direction of largest curvature
    y64, v64 = y.astype(np.float64), v.astype(np.float64)
    expected = [dense_score_hvp(mixture, y64[i], v64[i]) for i in range(len(y))]
    for got, *want in zip(mixture.score_hvp(y, v), *expected, strict=True):
        error = np.linalg.norm(got - np.stack(want), axis=-1) / np.linalg.norm(want, axis=-1)
        np.testing.assert_array_less(error, [2e-6, 1e-3, 2e-6])


def test_most_likely_component(case):
    mixture, _, y = case
    expected = np.argmax(mixture.responsibilities(y), axis=-1)
    np.testing.assert_array_equal(mixture.most_likely(y), expected)
    assert mixture.most_likely(y[0, 0]).shape == ()


def test_samples_have_the_mixture_moments(case):
    mixture, components, _ = case
    x = np.asarray(mixture.sample(jax.random.key(1), (200, 100))).reshape(-1, D)
    mean = sum(w * p.mean for w, p in zip(WEIGHTS, components, strict=True))
    second = sum(
        w * (p.cov + np.outer(p.mean, p.mean)) for w, p in zip(WEIGHTS, components, strict=True)
    )
    assert_mean(x, mean)
    assert_mean(x[:, :, None] * x[:, None, :], second)


def test_component_variances(case):
    mixture, components, _ = case
    expected = [np.trace(p.cov) / D for p in components]
    np.testing.assert_allclose(mixture.component_variances(), expected, rtol=1e-5)
    np.testing.assert_allclose(mixture.typical_variance(), WEIGHTS @ expected, rtol=1e-5)


def test_mixture_is_a_pytree_argument_of_jit(case):
    mixture, _, y = case
    np.testing.assert_allclose(
        jax.jit(lambda m, x: m.score(x))(mixture, y), mixture.score(y), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dim", [784, 12_288])
def test_float32_is_stable_in_high_dimension(dim, rng):
    """Densities around exp(+-10^4) neither underflow nor lose the responsibilities."""
    means = 0.05 * rng.normal(size=(3, dim))
    variances = np.array([0.05, 0.06, 0.07])
    mixture = gmm.mixture(np.ones(3), means, variances)
    y = (means[1] + np.sqrt(0.055) * rng.normal(size=dim)).astype(np.float32)
    joint = -0.5 * ((y - means) ** 2).sum(1) / variances - 0.5 * dim * np.log(2 * np.pi * variances)
    expected = np.logaddexp.reduce(joint) - np.log(3)
    assert abs(expected) > 10
    np.testing.assert_allclose(mixture.log_prob(y), expected, rtol=1e-5)
    r = np.exp(joint - np.logaddexp.reduce(joint))
    np.testing.assert_allclose(mixture.responsibilities(y), r, atol=5e-3)
    far = jnp.full(dim, 100.0)
    assert np.isfinite(mixture.log_prob(far))
    assert np.isfinite(mixture.score(far)).all()


def blobs(rng, n=3000):
    labels = rng.choice(3, n, p=[0.2, 0.3, 0.5])
    means = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 1]])
    return means[labels] + np.sqrt(0.25) * rng.normal(size=(n, 3)), means


@pytest.mark.parametrize("kind", gmm.COVARIANCES)
def test_fit_recovers_known_mixtures(kind, rng):
    """Three separated blobs of variance 0.25: means within 4.5 of their standard errors."""
    data, means = blobs(rng)
    mixture, report = gmm.fit(data, 3, covariance=kind, num_inits=2, min_covariance=1e-6)
    order = [int(np.argmin(((np.asarray(mixture.means) - m) ** 2).sum(1))) for m in means]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(
        np.asarray(mixture.means)[order], means, atol=4.5 * np.sqrt(0.25 / 600)
    )
    np.testing.assert_allclose(mixture.component_variances(), 0.25, rtol=0.15)
    assert report.converged
    assert report.num_samples == 3000
    assert "3 components" in str(report)


def test_fit_equals_scikit_learn(rng):
    data, _ = blobs(rng)
    options = {"n_init": 2, "reg_covar": 1e-3, "random_state": 3}
    model = ScikitMixture(3, covariance_type="full", max_iter=200, **options)
    order = np.random.default_rng(3).permutation(len(data))
    expected = model.fit(data[order]).score(data)
    _, report = gmm.fit(data, 3, covariance="full", num_inits=2, min_covariance=1e-3, seed=3)
    assert report.log_likelihood == pytest.approx(expected, rel=1e-5)


def test_tied_spherical_fit_is_a_fixed_point_of_em(rng):
    """One more E- and M-step, written in NumPy, changes nothing; no other variance is likelier."""
    data, _ = blobs(rng)
    data[:, 0] *= 1.5
    mixture, _ = gmm.fit(data, 3, covariance="tied_spherical", min_covariance=1e-9)
    r = np.asarray(mixture.responsibilities(data.astype(np.float32)), np.float64)
    means = r.T @ data / r.sum(0)[:, None]
    variance = (r * ((data[:, None, :] - means) ** 2).sum(-1)).sum() / data.size
    np.testing.assert_allclose(mixture.means, means, atol=1e-3)
    np.testing.assert_allclose(mixture.typical_variance(), variance, rtol=1e-3)
    np.testing.assert_allclose(np.exp(mixture.log_weights), r.mean(0), atol=1e-3)


def test_subset_leaves_a_held_out_likelihood(rng):
    data, _ = blobs(rng)
    _, report = gmm.fit(data, 3, subset=500)
    assert report.num_samples == 500
    assert report.held_out_log_likelihood == pytest.approx(report.log_likelihood, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], np.zeros((1, 2)), np.ones(2)), "shape"),
        (([0.5, 0.5], np.zeros((1, 2)), np.ones(1)), "weights"),
        (([-1.0, 2.0], np.zeros((2, 2)), np.ones(2)), "positive"),
        (([1.0], np.zeros((1, 2)), np.zeros(1)), "min_covariance"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gmm.mixture(*arguments)


def test_bad_fits_are_refused(rng):
    data, _ = blobs(rng, 50)
    with pytest.raises(ValueError, match=r"mixture\.num_components"):
        gmm.fit(data, 40)
    data[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        gmm.fit(data, 3)
    with pytest.raises(ValueError, match="positive definite"):
        gmm.mixture([1.0], np.zeros((1, 2)), -np.eye(2), covariance="tied")
    with pytest.raises(ValueError, match=r"mixture\.covariance"):
        gmm.mixture([1.0], np.zeros((1, 2)), 1.0, covariance="round")
