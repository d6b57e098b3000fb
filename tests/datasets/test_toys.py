"""Toys and supports against closed forms, and the digits against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import cKDTree
from sklearn.datasets import load_digits

from ndsm_jax.datasets import TOYS, load, support_distance, toys
from tests.datasets.dataset_files import sort_rows


@pytest.mark.parametrize("name", sorted(TOYS))
def test_toy_shapes_and_determinism(name: str) -> None:
    data = load(name, num_train=300, num_test=200, seed=1)
    assert data.train.shape == (300, 2)
    assert data.test.shape == (200, 2)
    assert data.train.dtype == np.float32
    assert data.train_labels is not None
    assert data.train_labels.dtype == np.int32
    assert (data.dim, data.is_image, data.value_range) == (2, False, None)
    assert np.abs(data.train).max() < 3.0
    assert load(name, num_train=300, num_test=200, seed=1).digest == data.digest
    assert load(name, num_train=300, num_test=200, seed=2).digest != data.digest
    assert not np.isin(data.train, data.test).all(axis=1).any()


def test_toys_have_ten_thousand_samples_by_default() -> None:
    data = load("circle8")
    assert len(data.train) == len(data.test) == 10_000
    assert data.num_classes == 8


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("rings_and_bars", (0.4, 0.3, 0.2, 0.1)),
        ("gaussians", toys.GAUSSIANS_WEIGHTS),
        ("moons", (0.5, 0.5)),
        ("circle8", (0.125,) * 8),
        ("bars", (0.35, 0.25, 0.2, 0.15, 0.05)),
        ("arcs", (0.45, 0.3, 0.15, 0.1)),
        ("rings", (0.4, 0.3, 0.2, 0.1)),
        ("checkerboard", (0.125,) * 8),
    ],
)
def test_mode_fractions(name: str, weights: tuple[float, ...]) -> None:
    """A fraction of n draws has standard error sqrt(w (1 - w) / n), at most 0.0035 here."""
    n = 20_000
    _, labels = TOYS[name](np.random.default_rng(0), n)
    expected = np.array(weights)
    assert np.isclose(expected.sum(), 1.0)
    error = np.abs(np.bincount(labels, minlength=len(weights)) / n - expected)
    assert np.all(error < 4 * np.sqrt(expected * (1 - expected) / n))


def test_gaussians_have_the_stated_moments() -> None:
    points, labels = TOYS["gaussians"](np.random.default_rng(0), 60_000)
    moments = zip(toys.GAUSSIANS_MEANS, toys.GAUSSIANS_COVARIANCES, strict=True)
    for k, (mean, covariance) in enumerate(moments):
        x = points[labels == k]
        variance = np.diag(covariance)
        assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * np.sqrt(variance / len(x)))
        # Var of a sample covariance of a Gaussian: (C_ii C_jj + C_ij^2) / n.
        error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(x))
        assert np.all(np.abs(np.cov(x.T) - covariance) < 4 * error)


def test_checkerboard_squares_are_dark_and_labelled() -> None:
    points, labels = TOYS["checkerboard"](np.random.default_rng(0), 4000)
    column, row = np.floor(points + 2).astype(int).T
    assert set(column) == set(row) == {0, 1, 2, 3}
    assert np.all((column + row) % 2 == 0)
    assert np.all((row * 4 + column) // 2 == labels)
    assert stats.kstest(points[:, 0] % 1, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", toys.CURVES)
def test_noise_is_half_normal_about_the_curves(name: str) -> None:
    """The offset along the normal is N(0, 0.02^2), so the distance is half normal."""
    points, _ = TOYS[name](np.random.default_rng(0), 20_000)
    distance = support_distance(name, points)
    assert stats.kstest(distance / toys.CURVES_NOISE, "halfnorm").pvalue > 1e-3


def dense_support(name: str) -> np.ndarray:
    """The support written out by hand, as closely spaced points (spacing below 1e-3)."""
    angle = np.linspace(0, 2 * np.pi, 8001)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bar = np.stack([np.linspace(-0.4, 0.4, 2001), np.zeros(2001)], axis=1)
    if name == "circle8":
        return circle[:-1:1000]
    if name == "rings":
        rings = ((-0.8, 0.8, 0.6), (0.9, 0.9, 0.4), (0.7, -0.8, 0.5), (-0.9, -0.9, 0.3))
        return np.concatenate([np.add(r * circle, (x, y)) for x, y, r in rings])
    if name == "bars":
        diagonal = np.repeat(np.linspace(-0.3, 0.3, 2001)[:, None], 2, axis=1)
        upright, level = np.add(bar[:, ::-1], [[1, 1]]), np.add(bar, [[-1, 1]])
        return np.concatenate([level, -level, upright, -upright, diagonal])
    if name == "arcs":
        x, y = circle.T
        return np.concatenate(
            [
                np.add(0.6 * circle[y >= -1e-9], (-0.8, 0.8)),
                np.add(0.6 * circle[y <= 1e-9], (0.8, 0.6)),
                np.add(0.6 * circle[x <= 1e-9], (-0.8, -0.6)),
                np.add(0.4 * circle[x >= -np.sqrt(0.5)], (0.8, -0.9)),
            ]
        )
    if name == "moons":
        upper, lower = circle[circle[:, 1] >= -1e-9], circle[circle[:, 1] <= 1e-9]
        return np.concatenate([upper, np.add(lower, [1.0, 0.5])])
    parts = [0.4 * circle, bar, 0.4 * circle, bar[:, ::-1]]
    middles = [(-1, 1), (1, 1), (1, -1), (-1, -1)]
    return np.concatenate([np.add(x, c) for x, c in zip(parts, middles, strict=True)])


@pytest.mark.parametrize("name", ["rings_and_bars", "rings", "bars", "arcs", "moons", "circle8"])
def test_support_distance_against_dense_sampling(name: str) -> None:
    points = np.random.default_rng(0).uniform(-2.5, 2.5, (5000, 2))
    dense, _ = cKDTree(dense_support(name)).query(points)
    np.testing.assert_allclose(support_distance(name, points), dense, atol=1e-3)


def test_moons_support_is_scikit_learn_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "MOONS_NOISE", None)
    points, _ = TOYS["moons"](np.random.default_rng(0), 500)
    np.testing.assert_allclose(support_distance("moons", points), 0.0, atol=1e-12)


def test_support_distance_closed_forms() -> None:
    points = np.array([[-1.0, 1.0], [1.7, 1.4], [1.0, 0.75], [1.0, -1.5], [-0.7, -1.8]])
    expected = [0.4, 0.5, 0.25, 0.1, 0.5]  # ring centre, bar end, bar side, outside a ring, bar end
    np.testing.assert_allclose(support_distance("rings_and_bars", points), expected, atol=1e-12)
    centre = np.zeros((1, 2))
    np.testing.assert_allclose(support_distance("circle8", centre), [1.0])
    moons = np.array([[0.0, 2.0], [0.0, -2.0], [-1.0, -1.0]])  # outside each moon, and below an end
    expected = [1.0, np.hypot(1.0, 2.5) - 1.0, 1.0]
    np.testing.assert_allclose(support_distance("moons", moons), expected)


def test_support_distance_errors() -> None:
    with pytest.raises(ValueError, match="No support distance for 'checkerboard'"):
        support_distance("checkerboard", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"points must be \[n, 2\]"):
        support_distance("moons", np.zeros(2))


def test_digits_is_a_split_of_scikit_learn() -> None:
    data = load("digits")
    images, labels = load_digits(return_X_y=True)
    assert data.shape == (8, 8, 1)
    assert (data.dim, data.is_image, data.num_classes) == (64, True, 10)
    assert data.value_range == (-1.0, 1.0)
    assert (data.train.min(), data.train.max()) == (-1.0, 1.0)
    assert len(data.test) == round(0.2 * 1797)
    together = np.concatenate([data.train, data.test])
    assert data.train_labels is not None
    assert data.test_labels is not None
    ours = np.column_stack([together, np.concatenate([data.train_labels, data.test_labels])])
    theirs = np.column_stack([images / 8 - 1, labels])
    np.testing.assert_array_equal(sort_rows(ours), sort_rows(theirs))
