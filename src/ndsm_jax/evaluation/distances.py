"""Two-sample statistics between point clouds x [n, d] and y [m, d].

They see the points themselves, so they notice noise and texture that classifier features do not.
All but the unbiased MMD depend on the sample sizes: compare numbers computed with equal sizes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ndsm_jax.checks import COUNT, POSITIVE, SEEDS, arguments, whole

Array = np.ndarray


@arguments(x="finite numbers [n, e]", y="finite numbers [m, e]", num_projections=COUNT, seed=SEEDS)
def sliced_wasserstein(x: Array, y: Array, *, num_projections: int = 512, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015), by Monte Carlo over directions.

    SW_2^2 = E_theta W_2^2(theta.x, theta.y) with theta uniform on the sphere. Each one-dimensional
    W_2^2 is the integral of the squared difference of the two quantile functions, exact for unequal
    sizes too: both are constant between the merged levels {i / n} and {j / m}.
    """
    x, y = _as_pair(x, y)
    directions = _directions(x.shape[1], num_projections, seed)
    return _root_mean_wasserstein(x @ directions, y @ directions)


def _directions(dim: int, num: int, seed: int) -> Array:
    """On the sphere, [dim, num]."""
    directions = np.random.default_rng(seed).normal(size=(dim, num))
    return directions / np.linalg.norm(directions, axis=0)


def _root_mean_wasserstein(x: Array, y: Array) -> float:
    """Root mean square of the 2-Wasserstein distances of the columns of x [n, l] and y [m, l]."""
    n, m = len(x), len(y)
    # Levels in units of 1 / (n m), so that merging them is integer arithmetic.
    levels = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    mass = np.diff(levels, prepend=0) / (n * m)
    px = np.sort(x, axis=0)[(levels - 1) // m]
    py = np.sort(y, axis=0)[(levels - 1) // n]
    return math.sqrt(np.mean(mass @ (px - py) ** 2))


@arguments(x="finite numbers [n, e]", y="finite numbers [m, e]")
def energy_distance(x: Array, y: Array) -> float:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013).

    The V-statistic: the zero distances of a point to itself are counted, so it is never negative
    and is biased upwards by O(1/n + 1/m). It is the square of `scipy.stats.energy_distance`.
    """
    x, y = _as_pair(x, y)

    def mean(a: Array, b: Array) -> float:
        return _pair_sum(a, b, np.sqrt) / (len(a) * len(b))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@arguments(x="finite numbers [n, e]", z="finite numbers [p, e]", y="finite numbers [m, e]")
def energy_gap_error(x: Array, z: Array, y: Array) -> float:
    """Standard error of energy_distance(x, y) - energy_distance(z, y), all three independent draws.

    The spread of the first-order terms of the V-statistics (Hoeffding's decomposition; van der
    Vaart 1998, ch. 12), of which y's are shared: 2 (E|x_i - Y| - E|x_i - X|), of z likewise, and
    2 (E|X - y_j| - E|Z - y_j|). Where all three have one law these terms vanish, and what is left
    of them is above the true error, by up to twice.
    """
    (x, y), (z, _) = _as_pair(x, y), _as_pair(z, y)

    def means(a: Array, b: Array) -> Array:
        return _row_sums(a, b, np.sqrt) / len(b)

    terms = (
        means(x, y) - means(x, x),
        means(z, y) - means(z, z),
        means(y, x) - means(y, z),
    )
    return 2 * math.sqrt(sum(np.var(term) / len(term) for term in terms))


@arguments(
    x="finite numbers [n, e]",
    z="finite numbers [p, e]",
    y="finite numbers [m, e]",
    blocks=whole(2),
    num_projections=COUNT,
    seed=SEEDS,
)
def sliced_gap_error(
    x: Array, z: Array, y: Array, *, blocks: int = 10, num_projections: int = 512, seed: int = 0
) -> float:
    """Standard error of sliced_wasserstein(x, y) - sliced_wasserstein(z, y), independent draws.

    The jackknife that leaves out one of `blocks` blocks of all three at a time (Shao & Tu 1995,
    ch. 2), for the given directions.

    Raises ValueError for fewer points than blocks.
    """
    (x, y), (z, _) = _as_pair(x, y), _as_pair(z, y)
    if (fewest := min(map(len, (x, z, y)))) < blocks:
        raise ValueError(f"sliced_gap_error: {blocks} blocks of {fewest} points.")
    directions = _directions(x.shape[1], num_projections, seed)
    rng = np.random.default_rng(seed)
    projected = [rng.permutation(points) @ directions for points in (x, z, y)]

    def gap(left_out: int) -> float:
        a, b, c = (points[np.arange(len(points)) % blocks != left_out] for points in projected)
        return _root_mean_wasserstein(a, c) - _root_mean_wasserstein(b, c)

    return math.sqrt((blocks - 1) * np.var([gap(i) for i in range(blocks)]))


@arguments(x="finite numbers [n, e]", max_points=whole(2), seed=SEEDS)
def median_distance(x: Array, *, max_points: int = 2000, seed: int = 0) -> float:
    """Median distance between distinct points of x (of a random subset): the usual bandwidth."""
    from scipy.spatial.distance import pdist

    if len(x) < 2:
        raise ValueError("median_distance: two points are needed, and there are fewer")
    if len(x) > max_points:
        x = x[np.random.default_rng(seed).choice(len(x), max_points, replace=False)]
    return float(np.median(pdist(x)))


@arguments(x="finite numbers [n, e]", y="finite numbers [m, e]", bandwidth=POSITIVE)
def mmd(x: Array, y: Array, *, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3); may be negative.

    Kernel exp(-|x - y|^2 / (2 h^2)); h defaults to the median distance of the pooled points. Give
    the same `bandwidth` to every call whose results are to be compared. Needs two points a side.
    """
    x, y = _as_pair(x, y)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"mmd: two points a side are needed, and there are {n} and {m}")
    h = median_distance(np.concatenate([x, y])) if bandwidth is None else bandwidth
    if h <= 0:
        raise ValueError(f"mmd: the bandwidth must be positive, got {h}; give one explicitly.")

    def kernel(squared: Array) -> Array:
        return np.exp(-squared / (2 * h**2))

    within_x = (_pair_sum(x, x, kernel) - n) / (n * (n - 1))
    within_y = (_pair_sum(y, y, kernel) - m) / (m * (m - 1))
    return within_x + within_y - 2 * _pair_sum(x, y, kernel) / (n * m)


class Accuracy(NamedTuple):
    """An accuracy and its binomial standard error."""

    value: float
    standard_error: float


@arguments(x="finite numbers [n, e]", y="finite numbers [m, e]", seed=SEEDS, max_points=whole(3))
def two_sample_accuracy(x: Array, y: Array, *, seed: int = 0, max_points: int = 1500) -> Accuracy:
    """Three-fold accuracy of a classifier told to separate x from y (Lopez-Paz & Oquab 2017).

    0.5 when the laws agree (as far as the classifier can tell), 1 when they are disjoint. The sets
    are balanced by subsampling, to `max_points` each at most. The classifier is a Gaussian-kernel
    SVM on whitened principal components (99 % of the variance; whitening makes faint noise and blur
    visible), whose bandwidth is a typical distance to the tenth neighbour, so that it follows thin
    structures in low dimension. Unlike trees it ignores differences far below that scale, such as
    the exact grey levels of quantised images, which no continuous model reproduces.
    """
    from sklearn.decomposition import PCA
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import NearestNeighbors
    from sklearn.svm import SVC

    x, y = _as_pair(x, y)
    size = min(len(x), len(y), max_points)
    if size < 3:
        raise ValueError(
            f"two_sample_accuracy: three points a side are needed, and there are {len(x)} and"
            f" {len(y)}"
        )
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.permutation(x)[:size], rng.permutation(y)[:size]])
    side = np.repeat([0, 1], size)
    correct = 0
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    for train, test in folds.split(points, side):
        pca = PCA(0.99, whiten=True, svd_solver="covariance_eigh").fit(points[train])
        z = pca.transform(points[train])
        neighbours = NearestNeighbors(n_neighbors=min(10, len(z) - 1)).fit(z)
        radii = neighbours.kneighbors()[0][:, -1]
        # Radii are zero where a collapsed model repeats one point.
        bandwidth = np.median(radii[radii > 0]) if np.any(radii > 0) else 1.0
        svm = SVC(C=10, gamma=1 / (2 * bandwidth**2)).fit(z, side[train])
        correct += np.sum(svm.predict(pca.transform(points[test])) == side[test])
    value = float(correct / (2 * size))
    return Accuracy(value, math.sqrt(value * (1 - value) / (2 * size)))


def _as_pair(x: Array, y: Array) -> tuple[Array, Array]:
    """Both as float64 [., d], about the mean of y: far from 0 the distances between them would be
    differences of large squares. Raises ValueError when they are not point clouds of one dimension.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected x [n, d] and y [m, d], got shapes {x.shape} and {y.shape}.")
    centre = y.mean(axis=0)
    return x - centre, y - centre


def _pair_sum(x: Array, y: Array, function: Callable[[Array], Array]) -> float:
    """Sum of function(|x_i - y_j|^2) over all pairs."""
    return float(_row_sums(x, y, function).sum())


def _row_sums(x: Array, y: Array, function: Callable[[Array], Array]) -> Array:
    """sum_j function(|x_i - y_j|^2), [n], in chunks of bounded memory."""
    from sklearn.metrics import pairwise_distances_chunked

    def reduce(squared: Array, start: int) -> Array:
        return function(squared).sum(axis=1)

    chunks = pairwise_distances_chunked(
        x, y, metric="euclidean", squared=True, reduce_func=reduce, working_memory=256
    )
    return np.concatenate(list(chunks))


@arguments(p="finite numbers [...]", q="finite numbers [...]")
def total_variation(p: Array, q: Array) -> float:
    """Half the sum of |p - q| for two laws on the same classes."""
    return 0.5 * float(np.abs(np.asarray(p) - np.asarray(q)).sum())
