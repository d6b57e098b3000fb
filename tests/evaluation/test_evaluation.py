"""Scores against closed forms, SciPy, scikit-learn, POT and brute force; the suite on toys."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.stats
from conftest import assert_mean
from scipy.spatial.distance import cdist

from ndsm_jax import evaluation, references, rows
from ndsm_jax.conditioning import PRIOR_COUNT, class_log_weights
from ndsm_jax.datasets import Dataset, load
from ndsm_jax.evaluation import neighbours
from ndsm_jax.evaluation.agreement import _share
from ndsm_jax.evaluation.likelihood import kernel_density
from ndsm_jax.evaluation.neighbours import neighbour_gap_errors, two_nearest
from ndsm_jax.evaluation.suite import expected_total_variation, total_variation_error
from ndsm_jax.rows import Stored


def gaussians(rng, n, m, d):
    """Two clouds of different law."""
    return rng.normal(size=(n, d)), 0.5 + 1.3 * rng.normal(size=(m, d))


# --- distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(50, 50), (60, 35)])
def test_sliced_wasserstein_is_exact_in_one_dimension(rng, n, m):
    x, y = gaussians(rng, n, m, 1)
    expected = ot.wasserstein_1d(x[:, 0], y[:, 0], p=2) ** 0.5
    assert evaluation.sliced_wasserstein(x, y, num_projections=3) == pytest.approx(expected)


def test_sliced_wasserstein_agrees_with_pot(rng):
    x, y = gaussians(rng, 200, 150, 4)
    kwargs = {"n_projections": 4000, "seed": 1}
    expected = ot.sliced_wasserstein_distance(x, y, **kwargs)
    # Two independent sets of 4000 directions: the standard error of the difference is 0.002.
    ours = evaluation.sliced_wasserstein(x, y, num_projections=4000)
    assert ours == pytest.approx(expected, abs=0.01)


def test_sliced_wasserstein_of_gaussians(rng):
    # N(0, I) against N(a, s^2 I): W_2^2(theta) = (theta.a)^2 + (s - 1)^2, mean |a|^2/d + (s - 1)^2.
    d, s, a = 3, 1.5, np.array([1.0, -2.0, 0.5])
    x, y = rng.normal(size=(4000, d)), a + s * rng.normal(size=(4000, d))
    expected = np.sqrt(a @ a / d + (s - 1) ** 2)
    # Standard errors: 0.016 from 1000 directions, about sqrt((1 + s^2) / 4000) = 0.03 from points.
    ours = evaluation.sliced_wasserstein(x, y, num_projections=1000)
    assert ours == pytest.approx(expected, abs=0.13)


def test_energy_distance_agrees_with_scipy_in_one_dimension(rng):
    x, y = gaussians(rng, 70, 45, 1)
    expected = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert evaluation.energy_distance(x, y) == pytest.approx(expected)


def test_energy_distance_brute_force(rng):
    x, y = gaussians(rng, 40, 30, 5)
    expected = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
    assert evaluation.energy_distance(x, y) == pytest.approx(expected)
    assert evaluation.energy_distance(x, x.copy()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("distance", "error"),
    [
        (evaluation.energy_distance, evaluation.energy_gap_error),
        (evaluation.sliced_wasserstein, evaluation.sliced_gap_error),
    ],
)
def test_the_error_of_a_gap_is_its_spread_over_draws(rng, distance, error):
    """200 draws of three laws, in sets of three sizes: a spread known to 5 %."""
    gaps, squared = [], []
    for _ in range(200):
        x, y = gaussians(rng, 60, 100, 3)
        z = -0.4 + 0.8 * rng.normal(size=(80, 3))
        gaps.append(distance(x, y) - distance(z, y))
        squared.append(error(x, z, y) ** 2)
    assert np.sqrt(np.mean(squared)) == pytest.approx(np.std(gaps, ddof=1), rel=0.2)


def test_the_error_of_a_total_variation_is_its_spread_over_draws(rng):
    """2,000 draws of a law far from the fractions: a spread known to 2 %."""
    law, fractions = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    draws = rng.multinomial(400, law, size=2000) / 400
    spread = np.std([evaluation.total_variation(p, fractions) for p in draws])
    assert total_variation_error(law, fractions, 400) == pytest.approx(spread, rel=0.1)


def test_more_blocks_than_points_are_refused(rng):
    x, y = gaussians(rng, 30, 9, 2)
    with pytest.raises(ValueError, match="10 blocks of 9 points"):
        evaluation.sliced_gap_error(x, x, y)


def test_mmd_brute_force_and_default_bandwidth(rng):
    x, y = gaussians(rng, 12, 9, 2)
    pooled = np.concatenate([x, y])
    h = np.median([np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2)])
    assert evaluation.median_distance(pooled) == pytest.approx(h)

    def kernel(a, b):
        return np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * h**2))

    expected = (
        np.mean([kernel(a, b) for a, b in itertools.combinations(x, 2)])
        + np.mean([kernel(a, b) for a, b in itertools.combinations(y, 2)])
        - 2 * np.mean([kernel(a, b) for a in x for b in y])
    )
    assert evaluation.mmd(x, y) == pytest.approx(expected)


def test_mmd_of_gaussians(rng):
    # E k(X, Y) = (1 + 2 / h^2)^{-d/2} exp(-|a|^2 / (2 h^2 + 4)) for X ~ N(0, I), Y ~ N(a, I).
    d, h, a = 3, 1.5, np.array([0.8, 0.0, 0.0])
    expected = 2 * (1 + 2 / h**2) ** (-d / 2) * (1 - np.exp(-a @ a / (2 * h**2 + 4)))
    estimates = [
        evaluation.mmd(rng.normal(size=(100, d)), a + rng.normal(size=(120, d)), bandwidth=h)
        for _ in range(100)
    ]
    error = float(np.std(estimates)) / 10
    assert np.mean(estimates) == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"y=.* e = 2"):
        evaluation.energy_distance(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="bandwidth"):
        evaluation.mmd(np.zeros((5, 2)), np.zeros((5, 2)))


@pytest.mark.parametrize("d", [2, 64])
def test_two_sample_accuracy(rng, d):
    x, y = rng.normal(size=(600, d)), rng.normal(size=(500, d))
    same = evaluation.two_sample_accuracy(x, y)
    assert same.standard_error == pytest.approx(np.sqrt(0.25 / 1000), rel=0.02)  # 0.016
    assert same.value == pytest.approx(0.5, abs=4 * same.standard_error)
    assert evaluation.two_sample_accuracy(x, y + 6 / np.sqrt(d) * 2).value > 0.99
    assert evaluation.two_sample_accuracy(x, 0.1 * y).value > 0.9


def test_two_sample_accuracy_follows_thin_structures_and_ignores_grey_levels(rng):
    ring = rng.normal(size=(3000, 2))
    ring /= np.linalg.norm(ring, axis=1, keepdims=True)
    ring *= 1 + 0.02 * rng.normal(size=(3000, 1))
    noisy = ring[1500:] + 0.1 * rng.normal(size=(1500, 2))
    assert evaluation.two_sample_accuracy(ring[:1500], noisy).value > 0.7
    levels = rng.integers(0, 17, size=(1200, 16)) / 8 - 1
    blurred = levels[600:] + 0.02 * rng.normal(size=(600, 16))
    accuracy = evaluation.two_sample_accuracy(levels[:600], blurred)
    assert accuracy.value == pytest.approx(0.5, abs=4 * accuracy.standard_error)


# --- features -------------------------------------------------------------------------------------


def test_frechet_distance_agrees_with_sqrtm(rng):
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    y = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x + cov_y - 2 * root)
    assert evaluation.frechet_distance(x, y) == pytest.approx(expected)
    assert evaluation.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_allows_singular_covariances(rng):
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))
    assert evaluation.frechet_distance(x, x + 2) == pytest.approx(8 * 4, abs=1e-5)
    with pytest.raises(ValueError, match=r"\[n >= 2, f\]"):
        evaluation.frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match=r"y=.* f = 7"):
        evaluation.frechet_distance(x[:, 1:], x)


def test_inception_score():
    assert evaluation.inception_score(np.eye(5)) == pytest.approx(5)
    assert evaluation.inception_score(np.full((7, 4), 0.25)) == pytest.approx(1)
    # Two points, mean (1/2, 1/2): E KL = log 2 - H(0.9).
    expected = 2 * np.exp(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert evaluation.inception_score(np.array([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(expected)


# --- neighbours -----------------------------------------------------------------------------------


def test_nearest_distances(rng):
    x, y = gaussians(rng, 40, 70, 5)
    distance, index = evaluation.nearest_distances(x, y)
    np.testing.assert_allclose(distance, cdist(x, y).min(axis=1))
    np.testing.assert_array_equal(index, cdist(x, y).argmin(axis=1))


@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_density_coverage_brute_force(rng, k):
    real, fake = gaussians(rng, 60, 80, 3)
    real_radius = np.sort(cdist(real, real), axis=1)[:, k]  # column 0 is the point itself
    fake_radius = np.sort(cdist(fake, fake), axis=1)[:, k]
    in_real = np.array([[np.linalg.norm(r - f) for f in fake] for r in real]) < real_radius[:, None]
    in_fake = cdist(real, fake) < fake_radius
    expected = {
        "precision": np.mean([in_real[:, j].any() for j in range(80)]),
        "recall": np.mean([in_fake[i].any() for i in range(60)]),
        "density": in_real.sum() / (k * 80),
        "coverage": np.mean([in_real[i].any() for i in range(60)]),
    }
    assert evaluation.precision_recall_density_coverage(real, fake, k) == pytest.approx(expected)


@pytest.mark.parametrize("dim", [2, 10])
def test_errors_of_neighbours_are_their_spread_over_draws(rng, dim):
    """100 draws, a spread known to 7 %; of such scores halves say somewhat more."""
    gaps, squared = [], []
    for _ in range(100):
        real, x, z = (s * rng.normal(size=(120, dim)) for s in (1.0, 0.8, 1.1))
        of_x, of_z = (evaluation.precision_recall_density_coverage(real, a) for a in (x, z))
        errors = neighbour_gap_errors(real, x, z)
        gaps.append([of_x[name] - of_z[name] for name in errors])
        squared.append([errors[name] ** 2 for name in errors])
    ratio = np.sqrt(np.mean(squared, axis=0)) / np.std(gaps, axis=0, ddof=1)
    assert (ratio > 0.75).all()
    assert (ratio < 2).all()
    with pytest.raises(ValueError, match="k = 5"):
        neighbour_gap_errors(real[:10], x, z)


def test_errors_of_large_sets_are_those_of_a_part_of_them(rng, monkeypatch):
    real, x, z = (rng.normal(size=(800, 3)) * s for s in (1.0, 0.8, 1.1))
    whole = neighbour_gap_errors(real, x, z)
    monkeypatch.setattr(neighbours, "MOST", 400)
    part = neighbour_gap_errors(real, x, z)
    for name, error in whole.items():  # two spreads of twelve, 21 % each
        assert 0.4 < part[name] / error < 2.5


def test_precision_and_recall_of_a_missing_mode(rng):
    real = np.concatenate([rng.normal(size=(200, 2)), 20 + rng.normal(size=(200, 2))])
    scores = evaluation.precision_recall_density_coverage(real, rng.normal(size=(400, 2)))
    assert scores["precision"] > 0.9
    assert scores["recall"] <= 0.5
    assert scores["coverage"] <= 0.5
    with pytest.raises(ValueError, match="k = 5"):
        evaluation.precision_recall_density_coverage(real[:5], real)


def test_is_memorised():
    train = np.array([[0.0], [1.0], [10.0]])
    points = np.array([[0.0], [0.45], [0.55], [5.4], [5.8], [1.0]])  # radii 0.5, 0.5 and 4.5
    memorised = evaluation.is_memorised(*evaluation.nearest_distances(points, train), train)
    np.testing.assert_array_equal(memorised, [True, True, True, False, True, True])


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64])
def test_neighbours_far_from_the_origin_are_those_near_it(rng, dtype):
    """As |x|^2 - 2 x y + |y|^2 distances would cancel; and integers keep their differences."""
    x, y = (rng.integers(0, 256, size=(n, 4)) for n in (40, 70))
    moved = 0 if dtype == np.uint8 else 2**27
    there = [(a + moved).astype(dtype) for a in (x, y)]
    distance, index = evaluation.nearest_distances(*there)
    np.testing.assert_allclose(distance, cdist(x, y).min(axis=1), rtol=1e-6)
    np.testing.assert_allclose(cdist(x, y)[np.arange(40), index], distance, rtol=1e-6)
    two = np.sort(cdist(x, y), axis=1)[:, :2]
    np.testing.assert_allclose(two_nearest(*there)[0], two, rtol=1e-6)
    scores = [evaluation.precision_recall_density_coverage(*of, 3) for of in (there, (x, y))]
    assert scores[0] == pytest.approx(scores[1])
    energies = [evaluation.energy_distance(*of) for of in (there, (x, y))]
    assert energies[0] == pytest.approx(energies[1], rel=1e-9)


def test_too_few_points_are_one_error(rng):
    one, many = rng.normal(size=(1, 2)), rng.normal(size=(9, 2))
    for call, message in (
        (lambda: evaluation.mmd(one, many, bandwidth=1.0), "mmd: two points a side .* 1 and 9"),
        (lambda: evaluation.median_distance(one), "median_distance: two points"),
        (lambda: evaluation.two_sample_accuracy(many[:2], many), "three points a side .* 2 and 9"),
        (lambda: evaluation.is_memorised(np.zeros(1), np.zeros(1, int), one), "two training items"),
        (lambda: kernel_density(np.ones((70, 2))), "all states are the same"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- suite ----------------------------------------------------------------------------------------


def toy(rng, *, labelled=True, name="toy"):
    """Four Gaussians of standard deviation 0.1 at the corners of a square, equally many of each."""

    def draw(n):
        labels = rng.permutation(n) % 4
        centres = np.stack([labels % 2, labels // 2], axis=1)
        points = (centres + 0.1 * rng.normal(size=(n, 2))).astype(np.float32)
        return points, labels.astype(np.int32) if labelled else None

    (train, train_labels), (test, test_labels) = draw(800), draw(800)
    return Dataset(
        name=name,
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        shape=(2,),
        value_range=None,
        source="test",
    )


def test_suite_orders_sets_as_it_must(rng):
    dataset = toy(rng)
    samples = toy(rng).train + 0.2 * rng.normal(size=(800, 2))
    prior = 0.5 + 0.7 * rng.normal(size=(800, 2))
    result = evaluation.evaluate(samples, prior, dataset)
    json.dumps(result, allow_nan=False)
    assert set(result) == {"metrics", "modes", "counts"}
    metrics = result["metrics"]
    assert set(evaluation.METRICS) - set(metrics) == {
        "frechet_distance",
        "inception_score",
        "support_distance",
    }
    for name in ("sliced_wasserstein", "energy_distance", "mmd2", "two_sample_accuracy"):
        m = metrics[name]
        assert m["floor"] < m["value"] < m["prior"], name
        assert (m["error"] is None) == (name == "mmd2")
    for name in ("precision", "density"):
        m = metrics[name]
        assert m["floor"] > m["value"] > m["prior"], name
    nearest = metrics["nearest_train"]
    assert nearest["floor"] < nearest["value"] < nearest["prior"]
    ratio = nearest["value"] / nearest["floor"]
    assert metrics["nearest_train_ratio"]["value"] == pytest.approx(ratio)
    # The samples' modes are balanced, up to a few points that the noise moves to a neighbour's.
    assert metrics["mode_tv"]["value"] < 3 * metrics["mode_tv"]["floor"]
    assert result["counts"]["compared"] == 800
    assert metrics["finite_fraction"]["value"] == 1
    assert sum(result["modes"]["prior"]) == pytest.approx(1)


def test_suite_finds_copies_missing_modes_and_divergence(rng):
    dataset = toy(rng)
    copies = dataset.train[dataset.train_labels != 3]
    samples = np.concatenate([copies, np.full((20, 2), np.nan), np.full((20, 2), 1e6)])
    result = evaluation.evaluate(samples, dataset.test, dataset, max_points=300)
    metrics, modes = result["metrics"], result["modes"]
    assert metrics["memorised_fraction"]["value"] == 1
    assert metrics["neighbour_ratio"]["value"] < 1e-3 < metrics["neighbour_ratio"]["floor"]
    assert metrics["memorised_fraction"]["floor"] < 0.5
    assert metrics["nearest_train"]["value"] == 0
    assert metrics["finite_fraction"]["value"] == pytest.approx(len(copies) / len(samples))
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert modes["samples"][3] == 0
    assert modes["data"][3] == pytest.approx(np.mean(labels == 3))
    expected = 0.5 * np.abs(np.subtract(modes["samples"], modes["data"])).sum()
    assert metrics["mode_tv"]["value"] == pytest.approx(expected)
    assert result["counts"]["compared"] == 300


def test_suite_survives_samples_that_all_diverged(rng):
    result = evaluation.evaluate(np.full((50, 2), np.inf), rng.normal(size=(50, 2)), toy(rng))
    json.dumps(result, allow_nan=False)
    metrics = result["metrics"]
    assert metrics["finite_fraction"]["value"] == 0
    assert metrics["energy_distance"]["value"] is metrics["energy_distance"]["error"] is None
    assert metrics["energy_distance"]["prior"] > metrics["energy_distance"]["floor"]
    assert result["modes"]["samples"] == [0, 0, 0, 0]


def test_suite_is_reproducible_and_clusters_unlabelled_data(rng):
    dataset = toy(rng, labelled=False)
    args = (rng.normal(size=(100, 2)), rng.normal(size=(100, 2)), dataset)
    result = evaluation.evaluate(*args, seed=3)
    assert result == evaluation.evaluate(*args, seed=3)
    assert len(result["modes"]["labels"]) == 10
    assert sum(result["modes"]["data"]) == pytest.approx(1)


def test_suite_measures_the_distance_to_a_known_support(rng):
    dataset = load("circle8", num_train=300, num_test=300)
    samples = dataset.test + 0.3 * rng.normal(size=(300, 2))
    support = evaluation.evaluate(samples, samples, dataset)["metrics"]["support_distance"]
    assert support["value"] > support["floor"] > 0


def corners() -> references.GaussianMixture:
    """The mixture that `toy` is drawn from: component k is the corner of label k."""
    centres = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    return references.mixture(np.ones(4), centres, np.full(4, 0.01))


def test_agreement_counts_what_was_moved(rng):
    """Samples at the corners, a quarter of them at another corner than the one they started from.

    Then 3/4 agree, with the binomial standard error; by chance a quarter would. The smoothed table
    has (a / 4 + 5) / (a + 5) on the diagonal and (a / 4) / (a + 5) elsewhere.
    """
    components = np.arange(400) % 4
    ends = np.where(np.arange(400) < 100, (components + 1) % 4, components)
    prior = corners()
    samples = np.asarray(prior.means)[ends]
    starts = evaluation.Starts(prior=prior, components=components, labels_per_class=5)
    result = evaluation.agreement(samples, starts, toy(rng), class_of=nearest_corner)
    json.dumps(result, allow_nan=False)
    assert result["labels"] == 20
    assert result["classes"] == [0, 1, 2, 3]
    rows = result["agreement"]
    assert set(rows) == set(evaluation.AGREEMENTS)
    for name in ("component", "class of the component"):
        assert rows[name]["value"] == 0.75
        assert rows[name]["chance"] == pytest.approx(0.25)
        assert rows[name]["se"] == pytest.approx(np.sqrt(0.75 * 0.25 / 399))
        assert rows[name]["prior"] > 0.99
    a = PRIOR_COUNT
    expected = 0.75 * (a / 4 + 5) / (a + 5) + 0.25 * (a / 4) / (a + 5)
    assert rows["class asked for"]["value"] == pytest.approx(expected, rel=1e-4)
    assert rows["class asked for"]["chance"] == pytest.approx(0.25, rel=1e-3)
    assert rows["component"]["data"] is None
    assert rows["class of the component"]["data"] > 0.99


def nearest_corner(x):
    return cdist(x, corners().means).argmin(axis=1)


def test_class_asked_for_is_the_share_of_hits_of_requests(rng):
    """The mean over unconditional samples against requests made one by one.

    Weights and table are uneven, and samples leave their component at random: the class of a sample
    follows `law[k]`. 40,000 requests, P(c) first, then a component from `class_log_weights`.
    """
    table = rng.dirichlet(np.ones(3), size=4)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    law = rng.dirichlet(np.ones(3), size=4)
    prior = references.mixture(weights, np.zeros((4, 1)), np.ones(4))

    def choose(p):
        return (p.cumsum(axis=1) < rng.uniform(size=(len(p), 1))).sum(axis=1)

    components = rng.choice(4, size=40_000, p=weights)
    share = _share(table[components], choose(law[components]))
    asked = rng.choice(3, size=40_000, p=weights @ table)
    of_class = np.stack([np.exp(class_log_weights(prior, table, c)) for c in range(3)])
    hits = choose(law[choose(of_class[asked])]) == asked
    assert_mean(hits, share["value"], bias=4.5 * share["se"])
    exact = np.sum(weights[:, None] * table * law)
    assert share["value"] == pytest.approx(exact, abs=4.5 * share["se"])


def test_suite_adds_the_agreement_of_finite_samples(rng):
    """Diverged samples are left out together with their starts; without labels no class rows."""
    prior, components = corners(), np.arange(60) % 4
    samples = np.asarray(prior.means)[components].copy()
    samples[:7] = np.nan
    starts = evaluation.Starts(prior=prior, components=components, labels_per_class=5)
    for labelled, names in ((True, set(evaluation.AGREEMENTS)), (False, {"component"})):
        result = evaluation.evaluate(
            samples, toy(rng).train, toy(rng, labelled=labelled), starts=starts, max_points=60
        )
        assert set(result["conditioning"]["agreement"]) == names
        assert result["conditioning"]["agreement"]["component"]["value"] == 1
    samples[:] = np.nan
    result = evaluation.evaluate(samples, toy(rng).train, toy(rng), starts=starts, max_points=60)
    assert result["conditioning"] is None


def test_suite_keeps_the_digits_of_its_data(rng):
    """Draws of the law of data that only float64 tells apart are told apart no better."""
    near, x = toy(rng), toy(rng).train
    x = x.astype(np.float64)
    far = dataclasses.replace(
        near, train=near.train.astype(np.float64) + 1e7, test=near.test.astype(np.float64) + 1e7
    )
    there, here = (
        evaluation.evaluate(of, of, data, max_points=200)["metrics"]
        for of, data in ((x + 1e7, far), (x, near))
    )
    for name in ("two_sample_accuracy", "energy_distance", "nearest_train", "recall"):
        assert there[name]["value"] == pytest.approx(here[name]["value"], rel=0.02, abs=0.01)


def test_suite_names_bad_shapes(rng):
    with pytest.raises(ValueError, match=r"samples of shape \(5, 2\)"):
        evaluation.evaluate(np.zeros((5, 2)), np.zeros((50, 2)), toy(rng))
    with pytest.raises(ValueError, match=r"prior_samples of shape \(50, 3\)"):
        evaluation.evaluate(np.zeros((50, 2)), np.zeros((50, 3)), toy(rng))


def test_expected_total_variation(rng):
    p, size = np.array([0.5, 0.3, 0.2, 0.0]), 37
    draws = rng.multinomial(size, p, size=20_000) / size
    variations = 0.5 * np.abs(draws - p).sum(axis=1)
    error = variations.std() / np.sqrt(len(draws))  # 3e-4
    assert expected_total_variation(p, size) == pytest.approx(variations.mean(), abs=4 * error)


# --- classifier -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def classifier(digits):
    return evaluation.train_classifier(digits, seed=0)


def test_classifier_on_digits(digits, classifier):
    assert classifier.test_accuracy >= 0.97
    accuracy = np.mean(classifier.predict(digits.test) == digits.test_labels)
    assert accuracy == pytest.approx(classifier.test_accuracy)
    probabilities = classifier.probabilities(digits.test)
    assert probabilities.shape == (len(digits.test), 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), classifier.predict(digits.test))


def test_classifier_features_do_not_depend_on_the_batch(digits, classifier):
    features = classifier.features(digits.train[:600])
    assert features.shape == (600, 64)
    np.testing.assert_allclose(features[550:560], classifier.features(digits.train[550:560]))


def test_frechet_distance_reacts_to_a_missing_class_and_late_to_noise(rng, digits, classifier):
    """Noise that the two-sample test sees plainly moves the Frechet distance little."""
    held_out, order = digits.test, rng.permutation(len(digits.train))
    real = digits.train[order[: len(held_out)]]
    without_3 = digits.train[order][digits.train_labels[order] != 3][: len(held_out)]
    reference = classifier.features(held_out)

    def frechet(x):
        return evaluation.frechet_distance(classifier.features(x), reference)

    def noisy(scale):
        return real + scale * rng.normal(size=real.shape)

    floor = frechet(real)  # 2.4 with 359 images
    assert frechet(without_3) > 1.8 * floor  # 6.7
    assert frechet(noisy(0.1)) < 1.3 * floor  # 2.6: blind
    assert frechet(noisy(0.3)) > 3 * floor  # 16
    assert evaluation.two_sample_accuracy(noisy(0.2), held_out).value > 0.75  # 0.85


def test_suite_with_a_classifier(rng, digits, classifier):
    prior = digits.train.mean(0) + digits.train.std(0) * rng.normal(size=(300, 64))
    samples = digits.train[:300] + 0.2 * rng.normal(size=(300, 64))
    result = evaluation.evaluate(samples, prior, digits, classifier=classifier)
    json.dumps(result, allow_nan=False)
    frechet = result["metrics"]["frechet_distance"]
    assert frechet["floor"] < frechet["value"] < frechet["prior"]
    assert result["metrics"]["inception_score"]["floor"] > 8
    assert result["modes"]["labels"] == [str(i) for i in range(10)]


@pytest.mark.parametrize(("scale", "shift"), [(2.0**-14, 0.0), (2.0**15, 2.0**15)])
def test_the_classifier_sees_no_units(rng, digits, scale, shift):
    """Powers of two, so that nothing is rounded: bitwise the numbers of the images in [-1, 1]."""

    def in_units(x):
        return scale * x.astype(np.float64) + shift

    other = dataclasses.replace(
        digits, train=in_units(digits.train), test=in_units(digits.test), value_range=None
    )
    trained = [evaluation.train_classifier(of, epochs=2) for of in (digits, other)]
    assert trained[0].value_range == (-1, 1)
    assert trained[1].value_range == (shift - scale, shift + scale)
    assert trained[1].test_accuracy == trained[0].test_accuracy > 0.3
    assert trained[1].digest != trained[0].digest  # of the same weights
    x = digits.train[:300] + np.float32(0.125) * rng.integers(-1, 2, size=(300, 64))
    x = x.astype(np.float32)
    expected, found = (
        evaluation.evaluate(a, b, of, classifier=by, coordinates=np.asarray)
        for a, b, of, by in (
            (x, digits.train, digits, trained[0]),
            (in_units(x), other.train, other, trained[1]),
        )
    )
    assert found["modes"] == expected["modes"]
    for name in ("mode_tv", "frechet_distance", "inception_score"):
        assert found["metrics"][name] == expected["metrics"][name]


def test_classifier_needs_labelled_images(rng, digits):
    with pytest.raises(ValueError, match="labelled images"):
        evaluation.train_classifier(toy(rng))
    half = dataclasses.replace(digits, test_labels=None)
    with pytest.raises(ValueError, match=r"not both splits have labels.*classifier=None"):
        evaluation.train_classifier(half)
    assert evaluation.evaluator_if_labelled(half) is None
    assert evaluation.evaluator_if_labelled(toy(rng)) is None
    small = dataclasses.replace(toy(rng), shape=(2, 1, 1))
    with pytest.raises(
        ValueError, match="images of 4 x 4 pixels or more; data set 'toy' has 2 x 1"
    ):
        evaluation.train_classifier(small)
    assert evaluation.evaluator_if_labelled(small) is None


def test_classifier_takes_colour_images_and_few_steps(rng):
    labels = np.arange(40, dtype=np.int32) % 2
    images = rng.uniform(-1, 1, size=(40, 9, 7, 3)) * 0.1 + (labels[:, None, None, None] - 0.5)
    x = images.reshape(40, -1).astype(np.float32)
    dataset = Dataset(
        name="colour",
        train=x[:30],
        test=x[30:],
        train_labels=labels[:30],
        test_labels=labels[30:],
        shape=(9, 7, 3),
        value_range=(-1, 1),
        source="test",
    )
    assert evaluation.train_classifier(dataset, epochs=30).test_accuracy == 1


# --- data that are not in memory ------------------------------------------------------------------


def test_nearest_items_of_stored_data_are_those_of_arrays(rng, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 200)
    x, y = gaussians(rng, 20, 101, 3)
    y[50] = y[3]  # a tie
    ours, theirs = (evaluation.nearest_distances(x, of) for of in (Stored.of(y), y))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    np.testing.assert_array_equal(ours[1], theirs[1])
    exact = np.sort(cdist(x, y), axis=1)[:, :2]
    for of in (Stored.of(y), y):
        distances, indices = two_nearest(x, of)
        np.testing.assert_allclose(distances, exact, rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(x - y[indices[:, 1]], axis=1), exact[:, 1])
    copies = y[[7, 60, 99]] + 1e-9
    found = evaluation.nearest_distances(copies, Stored.of(y))
    np.testing.assert_array_equal(evaluation.is_memorised(*found, Stored.of(y)), [True] * 3)


def test_the_suite_of_stored_data_is_that_of_arrays(rng, monkeypatch):
    data = load("gaussians", num_train=300, num_test=60)
    samples, prior = data.test + 0.1, rng.normal(size=(50, 2))
    expected = evaluation.evaluate(samples, prior, data)
    monkeypatch.setattr(rows, "BLOCK", 500)
    left = dataclasses.replace(data, train=Stored.of(data.train), test=Stored.of(data.test))
    found = evaluation.evaluate(samples, prior, left)
    assert found["counts"] == expected["counts"]
    for name, row in expected["metrics"].items():
        for key in ("value", "floor", "prior"):
            assert found["metrics"][name][key] == pytest.approx(row[key], rel=1e-5), name
