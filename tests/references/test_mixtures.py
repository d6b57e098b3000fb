"""Mixtures against SciPy, automatic differentiation, and scikit-learn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import assert_mean
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as ScikitMixture

from ndsm_jax import references
from ndsm_jax.references.mixtures import DIRECT

K, D = 4, 3
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])


def low_rank(k: int, dim: int, rank: int, rng: np.random.Generator) -> references.LowRank:
    directions = np.linalg.qr(rng.normal(size=(k, dim, rank))).Q
    return references.LowRank(
        rng.uniform(0.1, 0.3, k), directions, rng.uniform(0.3, 0.9, (k, rank))
    )


def written_out(c: references.LowRank, k: int) -> np.ndarray:
    """Covariance matrix of component k of a low-rank mixture."""
    u, v = c.directions[k], c.variances[k]
    return (u * (c.direction_variances[k] - v)) @ u.T + v * np.eye(len(u))


def covariances(kind: str, rng: np.random.Generator) -> np.ndarray | references.LowRank:
    a = rng.normal(size=(K, D, D)) * 0.3
    full = a @ a.transpose(0, 2, 1) + 0.2 * np.eye(D)
    return {
        "spherical": rng.uniform(0.1, 0.6, K),
        "tied_spherical": np.float64(0.3),
        "diag": rng.uniform(0.1, 0.6, (K, D)),
        "tied": full[0],
        "full": full,
        "low_rank": low_rank(K, D, 1, rng),
    }[kind]


def dense(kind: str, c: Any, k: int) -> np.ndarray:
    """Covariance matrix of component k, written out."""
    return {
        "spherical": lambda: c[k] * np.eye(D),
        "tied_spherical": lambda: c * np.eye(D),
        "diag": lambda: np.diag(c[k]),
        "tied": lambda: c,
        "full": lambda: c[k],
        "low_rank": lambda: written_out(c, k),
    }[kind]()


@pytest.fixture(params=references.COVARIANCES)
def case(request, rng):
    means = rng.normal(size=(K, D))
    c = covariances(request.param, rng)
    mixture = references.mixture(WEIGHTS, means, c, covariance=request.param)
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


def score_written_out(means, covariances, y):
    """Of components [K] of equal weights, in float64: [n, d]."""
    components = [
        scipy.stats.multivariate_normal(m, c) for m, c in zip(means, covariances, strict=True)
    ]
    log_prob = np.stack([c.logpdf(y).reshape(len(y)) for c in components], axis=1)
    pulls = [
        np.linalg.solve(c, (m - y)[..., None])[..., 0]
        for m, c in zip(means, covariances, strict=True)
    ]
    return np.einsum("nk,knd->nd", scipy.special.softmax(log_prob, axis=1), np.stack(pulls))


@pytest.mark.parametrize("kind", ["spherical", "low_rank"])
@pytest.mark.parametrize("distance", [100.0, 1000.0, 10_000.0])
def test_scores_are_exact_where_components_overlap_far_from_others(kind, distance, rng):
    """Two components 3 s apart, and one at a distance of up to 2e5 s from them."""
    s, dim = 0.1, 2
    means = np.zeros((3, dim), np.float32)
    means[:, 0] = -distance, distance, distance + 3 * s
    of = {
        "spherical": np.full(3, s**2),
        "low_rank": references.LowRank(
            np.full(3, s**2), np.eye(dim)[None, :, 1:].repeat(3, axis=0), np.full((3, 1), 4 * s**2)
        ),
    }[kind]
    matrices = [s**2 * np.eye(dim) if kind == "spherical" else written_out(of, k) for k in range(3)]
    noise = s * rng.normal(size=(50, dim))
    y = (means[1] + np.array([1.5 * s, 0.0]) + noise).astype(np.float32)
    got = references.mixture(np.ones(3), means, of, covariance=kind).score(y)
    expected = score_written_out(means.astype(np.float64), matrices, y.astype(np.float64))
    np.testing.assert_allclose(got, expected, atol=2e-5 / s)


@pytest.mark.parametrize("kind", ["spherical", "low_rank"])
def test_scores_by_products_in_many_dimensions(kind, rng):
    """More than those in which differences are taken: components that overlap, near their mean."""
    dim = DIRECT + 4
    means = rng.normal(size=(K, dim)).astype(np.float32) / 4
    c = {"spherical": rng.uniform(0.1, 0.6, K), "low_rank": low_rank(K, dim, 2, rng)}[kind]
    matrices = [c[k] * np.eye(dim) if kind == "spherical" else written_out(c, k) for k in range(K)]
    y = rng.normal(size=(20, dim)).astype(np.float32)
    mixture = references.mixture(np.ones(K), means, c, covariance=kind)
    expected = score_written_out(means.astype(np.float64), matrices, y.astype(np.float64))
    np.testing.assert_allclose(mixture.score(y), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("equal", [True, False])
def test_score_hvp_with_separated_means_in_high_dimension(equal, rng):
    """Twenty standard deviations and more between means; states at, between and outside them."""
    dim = 784
    means = 3.0 + 0.2 * rng.normal(size=(5, dim))
    variances = np.full(5, 0.06) if equal else np.linspace(0.05, 0.07, 5)
    mixture = references.mixture(np.ones(5), means, variances)
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


def test_standardise_inverts_sample_component(case):
    mixture, _, y = case
    index = jnp.broadcast_to(jnp.arange(y.shape[-2]) % K, y.shape[:-1])
    back = mixture.standardise(index, mixture.sample_component(index, jnp.asarray(y)))
    np.testing.assert_allclose(back, y, atol=1e-4)


def test_component_variances(case):
    mixture, components, _ = case
    expected = [np.trace(p.cov) / D for p in components]
    np.testing.assert_allclose(mixture.component_variances(), expected, rtol=1e-5)
    np.testing.assert_allclose(mixture.typical_variance(), WEIGHTS @ expected, rtol=1e-5)


def test_low_rank_equals_the_full_mixture_of_its_covariances(rng):
    k, dim, rank = 3, 40, 5
    means, c = rng.normal(size=(k, dim)), low_rank(k, dim, rank, rng)
    ours = references.mixture(WEIGHTS[:k], means, c, covariance="low_rank")
    matrices = np.stack([written_out(c, i) for i in range(k)])
    full = references.mixture(WEIGHTS[:k], means, matrices, covariance="full")
    assert max(leaf.size for leaf in jax.tree.leaves(ours)) == k * dim * rank
    middle = means.mean(axis=0) + 0.2 * rng.normal(size=(3, 2, dim))
    y, v = middle.astype(np.float32), rng.normal(size=(3, 2, dim)).astype(np.float32)
    assert float(jnp.max(ours.responsibilities(y), axis=-1).min()) < 0.9  # a case with content
    for name in ("component_log_prob", "log_prob", "responsibilities", "score"):
        got, want = getattr(ours, name)(y), getattr(full, name)(y)
        np.testing.assert_allclose(got, want, rtol=3e-5, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(
        ours.score_hvp(y, v)[1], full.score_hvp(y, v)[1], rtol=1e-3, atol=2e-2
    )
    np.testing.assert_allclose(ours.component_variances(), full.component_variances(), rtol=1e-5)
    assert ours.smallest_variance() == pytest.approx(full.smallest_variance(), rel=1e-4)
    # The square root: unit vectors as noise give its columns.
    for i in range(k):
        root = ours.sample_component(jnp.full(dim, i), jnp.eye(dim)) - ours.means[i][None, :]
        np.testing.assert_allclose(root.T @ root, matrices[i], atol=1e-5)


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
    mixture = references.mixture(np.ones(3), means, variances)
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


@pytest.mark.parametrize("kind", references.COVARIANCES)
def test_fit_recovers_known_mixtures(kind, rng):
    """Three separated blobs of variance 0.25: means within 4.5 of their standard errors."""
    data, means = blobs(rng)
    options = {"rank": 1, "num_inits": 2, "min_covariance": 1e-6}
    mixture, report = references.fit(data, 3, covariance=kind, **options)
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
    _, report = references.fit(data, 3, covariance="full", num_inits=2, min_covariance=1e-3, seed=3)
    assert report.log_likelihood == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("init", references.INITS)
def test_fit_starts_as_scikit_learn_does(init, rng):
    """One iteration from one start: where it starts from is still to be seen."""
    data, _ = blobs(rng)
    options = {"reg_covar": 1e-3, "random_state": 3, "init_params": init, "max_iter": 1}
    model = ScikitMixture(3, covariance_type="spherical", **options)
    with pytest.warns(ConvergenceWarning):
        model.fit(data[np.random.default_rng(3).permutation(len(data))])
    fitted, _ = references.fit(
        data, 3, init=init, num_inits=1, max_iterations=1, min_covariance=1e-3, seed=3
    )
    np.testing.assert_allclose(fitted.means, model.means_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_reweighted(power):
    given = references.mixture(WEIGHTS, np.zeros((K, D)), np.ones(K))
    expected = WEIGHTS**power / np.sum(WEIGHTS**power)
    changed = references.reweighted(given, power)
    np.testing.assert_allclose(np.exp(changed.log_weights), expected, rtol=1e-6)
    assert changed.means is given.means


@pytest.mark.parametrize("kind", references.COVARIANCES)
def test_a_fit_that_starts_from_a_fit_stays_there(kind, rng):
    """In the order of its components, which k-means would not keep."""
    means = np.array([[-3.0, 0, 0, 0], [3, 0, 0, 0], [0, 4, 0, 0]])
    data = means[rng.choice(3, size=600, p=[0.5, 0.3, 0.2])] + 0.5 * rng.normal(size=(600, 4))
    options: dict[str, Any] = {"covariance": kind, "rank": 2, "num_inits": 1}
    first, report = references.fit(data, 3, **options)
    turned = np.roll(np.arange(3), 1)
    shared = first.factor.shape[0] == 1
    start = jax.tree.map(lambda a: a if shared and a.shape[0] == 1 else a[turned], first)
    again, report_again = references.fit(data, 3, start=start, **options)
    np.testing.assert_allclose(again.means, start.means, atol=0.02)
    np.testing.assert_allclose(again.log_weights, start.log_weights, atol=0.01)
    np.testing.assert_allclose(again.component_variances(), start.component_variances(), rtol=0.02)
    assert report_again.log_likelihood > report.log_likelihood - 1e-3


def test_tied_spherical_fit_is_a_fixed_point_of_em(rng):
    """One more E- and M-step, written in NumPy, changes nothing; no other variance is likelier."""
    data, _ = blobs(rng)
    data[:, 0] *= 1.5
    mixture, _ = references.fit(data, 3, covariance="tied_spherical", min_covariance=1e-9)
    r = np.asarray(mixture.responsibilities(data.astype(np.float32)), np.float64)
    means = r.T @ data / r.sum(0)[:, None]
    variance = (r * ((data[:, None, :] - means) ** 2).sum(-1)).sum() / data.size
    np.testing.assert_allclose(mixture.means, means, atol=1e-3)
    np.testing.assert_allclose(mixture.typical_variance(), variance, rtol=1e-3)
    np.testing.assert_allclose(np.exp(mixture.log_weights), r.mean(0), atol=1e-3)


@pytest.fixture(scope="module")
def digits():
    return load_digits().data / 8.0 - 1.0


def test_low_rank_fits_digits_better_than_spherical(digits):
    options = {"num_inits": 1, "subset": 1200, "min_covariance": 1e-3}
    _, spherical = references.fit(digits, 5, **options)
    mixture, report = references.fit(digits, 5, covariance="low_rank", rank=4, **options)
    assert report.converged
    assert report.log_likelihood > spherical.log_likelihood + 5
    assert report.held_out_log_likelihood > spherical.held_out_log_likelihood + 5
    assert mixture.smallest_variance() >= 1e-3
    assert "5 components" in str(report)


def test_low_rank_survives_a_component_of_identical_samples(rng):
    """One without any variance of its own gets min_covariance, whatever its directions."""
    data = np.concatenate([np.full((30, 4), 5.0), rng.normal(size=(200, 4))])
    options = {"covariance": "low_rank", "rank": 2, "min_covariance": 1e-2}
    mixture, _ = references.fit(data, 2, **options)
    assert mixture.smallest_variance() == pytest.approx(1e-2, rel=1e-3)
    assert np.isfinite(mixture.score(data.astype(np.float32))).all()


def test_subset_leaves_a_held_out_likelihood(rng):
    data, _ = blobs(rng)
    _, report = references.fit(data, 3, subset=500)
    assert report.num_samples == 500
    assert report.held_out_log_likelihood == pytest.approx(report.log_likelihood, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], np.zeros((1, 2)), np.ones(2)), "shape"),
        (([0.5, 0.5], np.zeros((1, 2)), np.ones(1)), "K = 2"),
        (([-1.0, 2.0], np.zeros((2, 2)), np.ones(2)), "positive"),
        (([1.0], np.zeros((1, 2)), np.zeros(1)), "min_covariance"),
        (([1.0], np.zeros((1, 2)), ([1.0], np.eye(2)[None], [[1.0, 1.0]])), r"mixture\.rank=2"),
        (([1.0], np.zeros((1, 2)), ([1.0], np.ones((1, 2, 1)), [[1.0]])), "orthonormal"),
        (([1.0], np.zeros((1, 2)), ([1.0], np.ones((1, 2, 1)), [1.0])), "shapes"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    kind = "low_rank" if isinstance(arguments[2], tuple) else "spherical"
    with pytest.raises(ValueError, match=message):
        references.mixture(*arguments, covariance=kind)


@pytest.mark.parametrize("kind", ["tied", "full"])
def test_covariances_that_must_be_singular_are_refused(kind, rng):
    """Of N samples about K means the scatter has rank N - K at most: with d + K it can be d."""
    data = rng.normal(size=(11, 8))
    rank = np.linalg.matrix_rank(data - data.mean(axis=0))
    assert rank == 8
    references.check_samples(9, 8, 1, kind)
    references.check_samples(11, 8, 3, kind)
    for size, num in ((8, 1), (10, 3), (8, 0)):
        with pytest.raises(ValueError, match=rf"mixture\.covariance='{kind}' in 8 dim.* low_rank"):
            references.fit(data[:size], num, covariance=kind)
    references.fit(data[:8], 1, covariance="diag", num_inits=1)


def test_bad_fits_are_refused(rng):
    data, _ = blobs(rng, 50)
    with pytest.raises(ValueError, match=r"mixture\.num_components"):
        references.fit(data, 40)
    with pytest.raises(ValueError, match=r"mixture\.rank=3 .* 3 dimensions"):
        references.fit(data, 2, covariance="low_rank", rank=3)
    data[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        references.fit(data, 3)
    with pytest.raises(ValueError, match="positive definite"):
        references.mixture([1.0], np.zeros((1, 2)), -np.eye(2), covariance="tied")
    with pytest.raises(ValueError, match=r"references\.mixture: covariance='round'"):
        references.mixture([1.0], np.zeros((1, 2)), 1.0, covariance="round")


def matrices(m: references.GaussianMixture) -> np.ndarray:
    """All covariances, from the square roots that unit vectors as noise give: [K, d, d]."""
    rows = [
        m.sample_component(jnp.full(m.dim, k), jnp.eye(m.dim)) - m.means[k][None, :]
        for k in range(m.num_components)
    ]
    roots = np.asarray(jnp.stack(rows), np.float64)
    return roots.transpose(0, 2, 1) @ roots


def test_floored_raises_the_eigenvalues_below_and_no_others(case):
    mixture, _, y = case
    values, vectors = np.linalg.eigh(matrices(mixture))
    smallest = float(np.median(values)) if values.min() < np.median(values) else 2 * values.min()
    low = references.floored(mixture, smallest)
    raised = np.maximum(values, smallest)[:, None, :]
    expected = (vectors * raised) @ vectors.transpose(0, 2, 1)
    np.testing.assert_allclose(matrices(low), expected, atol=3e-6)
    assert low.smallest_variance() == pytest.approx(smallest, rel=1e-5)
    np.testing.assert_array_equal(low.means, mixture.means)
    np.testing.assert_array_equal(low.log_weights, mixture.log_weights)
    # Square root and inverse belong together: the density is that of the raised covariances.
    parts = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(y)
        for w, m, c in zip(WEIGHTS, np.asarray(mixture.means), expected, strict=True)
    ]
    np.testing.assert_allclose(low.log_prob(y), np.logaddexp.reduce(parts), rtol=2e-5, atol=2e-5)


def test_a_floor_below_all_variances_changes_nothing(case):
    mixture, _, _ = case
    low = references.floored(mixture, 0.9 * mixture.smallest_variance())
    for before, after in zip(jax.tree.leaves(mixture), jax.tree.leaves(low), strict=True):
        np.testing.assert_allclose(after, before, rtol=2e-7)


@pytest.mark.parametrize("smallest", [-1.0, np.nan, np.inf])
def test_bad_floors_are_refused(smallest):
    with pytest.raises(ValueError, match="floored: smallest="):
        references.floored(references.standard_normal(2), smallest)
