"""Nearest-neighbour scores: fidelity, diversity and memorisation. Euclidean, chunked."""

from __future__ import annotations

import numpy as np

from ndsm_jax.checks import COUNT, SEEDS, arguments
from ndsm_jax.rows import Rows, blocks

Array = np.ndarray


@arguments(x="finite numbers [n, e]", y="finite numbers [m, e]")
def nearest_distances(x: Array, y: Rows) -> tuple[Array, Array]:
    """Distance from each x [n, d] to its nearest y [m, d], and that item's index: ([n], [n]).

    Block by block.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    distance, index = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    centre = _centre(y)
    x = x - centre
    for start, block in blocks(y):
        at, near = pairwise_distances_argmin_min(x, block - centre)
        closer = near < distance
        distance, index = np.where(closer, near, distance), np.where(closer, start + at, index)
    return distance, index


def _centre(x: Rows) -> Array:
    """Where rows [n, d] are, [d]: about it distances do not cancel, as they do far from 0."""
    _, some = next(blocks(x))
    dtype = np.result_type(some.dtype, np.float32)
    return some.mean(axis=0, dtype=np.float64).astype(dtype)


@arguments(real="finite numbers [n, e]", fake="finite numbers [m, e]", k=COUNT)
def precision_recall_density_coverage(real: Array, fake: Array, k: int = 5) -> dict[str, float]:
    """Four scores from balls B(x) that reach to the k-th neighbour within the point's own set.

    precision: share of fake points inside some real ball (Kynkaanniemi et al. 2019);
    recall: share of real points inside some fake ball;
    density: number of real balls that hold a fake point, mean over fake points, divided by k; may
        exceed 1 (Naeem et al. 2020);
    coverage: share of real balls that hold some fake point.

    Shapes [n, d] and [m, d]. Raises ValueError when a set has no k neighbours.
    """
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k = {k} neighbours need more points than {len(real)} and {len(fake)}.")

    centre = _centre(real)
    real, fake = real - centre, fake - centre

    def radii(points: Array) -> Array:
        neighbours = NearestNeighbors(n_neighbors=k).fit(points)
        return neighbours.kneighbors()[0][:, -1]

    real_radii, fake_radii = radii(real), radii(fake)

    def fake_rows(distances: Array, start: int) -> Array:
        return np.sum(distances < real_radii, axis=1)

    def real_rows(distances: Array, start: int) -> tuple[Array, Array]:
        own = real_radii[start : start + len(distances), None]
        return np.any(distances < fake_radii, axis=1), np.any(distances < own, axis=1)

    balls = np.concatenate(list(pairwise_distances_chunked(fake, real, reduce_func=fake_rows)))
    chunks = pairwise_distances_chunked(real, fake, reduce_func=real_rows)
    recalled, covered = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return _shares(balls, recalled, covered, k)


def _shares(balls: Array, recalled: Array, covered: Array, k: int) -> dict[str, float]:
    """The scores, of numbers of real balls that hold each fake point [m], and of which real points
    are in a fake ball, and which of their balls hold a fake point [n]."""
    return {
        "precision": float(np.mean(balls > 0)),
        "recall": float(np.mean(recalled)),
        "density": float(np.mean(balls) / k),
        "coverage": float(np.mean(covered)),
    }


HALVES, MOST = 12, 2000
"""Random halves of which `neighbour_gap_errors` takes the spread, and points of a set there."""


@arguments(
    real="finite numbers [n, e]",
    x="finite numbers [m, e]",
    z="finite numbers [p, e]",
    k=COUNT,
    seed=SEEDS,
)
def neighbour_gap_errors(
    real: Array, x: Array, z: Array, *, k: int = 5, seed: int = 0
) -> dict[str, float]:
    """Standard errors of the four scores of x minus those of z against one real set, all draws.

    The spread over `HALVES` random halves of all three, which is that of the whole as the variance
    goes with 1 / n (delete-d jackknife with d = n / 2, Shao & Tu 1995, Section 2.3). Scores of
    neighbours are no smooth functions, and what it says lies between 0.85 and 1.8 times the truth.
    Of larger sets, of `MOST` of their points, and by the same rule for all of them.

    Raises ValueError when half a set has no k neighbours.
    """
    from sklearn.metrics import pairwise_distances

    if (fewest := min(map(len, (real, x, z)))) // 2 <= k:
        raise ValueError(f"k = {k} neighbours need more points in half a set of {fewest}.")
    rng = np.random.default_rng(seed)
    smaller = min(1.0, MOST / max(map(len, (real, x, z))))
    centre = _centre(real)
    sets = [
        rng.permutation(points)[: max(round(smaller * len(points)), 2 * k + 2)] - centre
        for points in (real, x, z)
    ]
    within = [pairwise_distances(points) for points in sets]
    across = [pairwise_distances(sets[0], points) for points in sets[1:]]

    def radii(distances: Array, half: Array) -> Array:
        return np.partition(distances[np.ix_(half, half)], k, axis=1)[:, k]  # 0: the point itself

    def gaps() -> dict[str, float]:
        halves = [rng.permutation(len(points))[: len(points) // 2] for points in sets]
        real_radii = radii(within[0], halves[0])[:, None]
        scores = []
        for distances, own, half in zip(across, within[1:], halves[1:], strict=True):
            apart = distances[np.ix_(halves[0], half)]
            held = apart < real_radii
            recalled = np.any(apart < radii(own, half), axis=1)
            scores.append(_shares(held.sum(axis=0), recalled, held.any(axis=1), k))
        return {name: scores[0][name] - scores[1][name] for name in scores[0]}

    found = [gaps() for _ in range(HALVES)]
    return {
        name: float(np.std([gap[name] for gap in found], ddof=1)) * smaller**0.5
        for name in found[0]
    }


@arguments(distance="finite numbers [n]", index="integers [n]", train="finite numbers [m, e]")
def is_memorised(distance: Array, index: Array, train: Rows) -> Array:
    """Whether points are closer to a training item than half that item's own nearest neighbour.

    Takes what `nearest_distances(points, train)` returns; [n] booleans. The ratio test of
    memorisation (cf. Yoon et al. 2023): true for copies of (distinct) training items. Chance hits
    are common in low dimension: compare with the share for held-out data.
    """
    if len(train) < 2:
        raise ValueError("is_memorised: two training items are needed, and there are fewer")
    used, inverse = np.unique(index, return_inverse=True)
    # The first neighbour of a training item is itself.
    spacing = two_nearest(train[used], train)[0][:, 1]
    return distance < 0.5 * spacing[inverse]


def two_nearest(x: Array, train: Rows) -> tuple[Array, Array]:
    """Distances from each x [n, d] to its two nearest items of train, and their indices: [n, 2].

    Block by block.
    """
    from sklearn.neighbors import NearestNeighbors

    centre = _centre(train)
    x = x - centre

    distances: Array = np.empty((len(x), 0))
    indices: Array = np.empty((len(x), 0), np.int64)
    for start, block in blocks(train):
        nearest = NearestNeighbors(n_neighbors=min(2, len(block))).fit(block - centre)
        near, at = nearest.kneighbors(x)
        distances = np.concatenate([distances, near], axis=1)
        indices = np.concatenate([indices, start + at], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :2]
        distances, indices = (np.take_along_axis(a, order, axis=1) for a in (distances, indices))
    return distances, indices


def neighbour_ratios(distances: Array) -> Array:
    """Distance to the nearest item over that to the second nearest, of `two_nearest`: [n].

    Near 0 for a copy of one item, near 1 where no item stands out (cf. the ratio test of
    Yoon et al. 2023); 1 where both are 0.
    """
    first, second = distances.T
    return np.divide(first, second, out=np.ones_like(first), where=second > 0)
