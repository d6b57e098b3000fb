"""Simulated data: 2-D toys, and torsion angles of a molecule; drawn in any number from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ndsm_jax.datasets.boltzmann import TorsionModel, basin
from ndsm_jax.datasets.dataset import TEST, TRAIN, Options, Raw, Samples

TOY_SAMPLES = 10_000


@dataclass(frozen=True)
class _Arc:
    """Part of a circle; a whole one by default. Angles in radians."""

    centre: tuple[float, float]
    radius: float
    start: float = 0.0
    length: float = 2 * math.pi

    def points(self, u: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Points at arc fraction `u` [n], moved outwards by `offset` [n]."""
        angle = self.start + self.length * u
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return self.centre + (self.radius + offset)[:, None] * direction

    def distance(self, points: np.ndarray) -> np.ndarray:
        x, y = (points - self.centre).T
        to_circle = np.abs(np.hypot(x, y) - self.radius)
        inside = (np.arctan2(y, x) - self.start) % (2 * np.pi) <= self.length
        ends = self.points(np.array([0.0, 1.0]), np.zeros(2))
        to_ends = np.linalg.norm(points[:, None] - ends, axis=-1).min(axis=1)
        return np.where(inside, to_circle, to_ends)


@dataclass(frozen=True)
class _Bar:
    start: tuple[float, float]
    end: tuple[float, float]

    def points(self, u: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Points at length fraction `u` [n], moved along the normal by `offset` [n]."""
        along = np.subtract(self.end, self.start)
        normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
        return self.start + u[:, None] * along + offset[:, None] * normal

    def distance(self, points: np.ndarray) -> np.ndarray:
        along = np.subtract(self.end, self.start)
        u = np.clip((points - self.start) @ along / (along @ along), 0.0, 1.0)
        return np.linalg.norm(points - (self.start + u[:, None] * along), axis=-1)


@dataclass(frozen=True)
class Curves:
    """A distribution on plane curves: one mode a curve, uniform along it, noise along its normal.

    The kind of example in Section 4 of 2405.15625: thin support, modes to be balanced. The noise
    has standard deviation 0.02, so the mean distance to the support is 0.02 sqrt(2 / pi) = 0.016.

    Attributes:
      pieces: the curves.
      weights: their probabilities.
    """

    pieces: tuple[_Arc | _Bar, ...]
    weights: tuple[float, ...]

    def __call__(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Points [n, 2] and the indices [n] of their curves."""
        labels = rng.choice(len(self.pieces), size=n, p=self.weights)
        u = rng.random(n)
        offset = CURVES_NOISE * rng.standard_normal(n)
        points = np.empty((n, 2))
        for k, curve in enumerate(self.pieces):
            members = labels == k
            points[members] = curve.points(u[members], offset[members])
        return points, labels

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Distance [n] of points [n, 2] to the nearest curve."""
        return np.min([curve.distance(points) for curve in self.pieces], axis=0)


CURVES_NOISE = 0.02
CURVES = {
    "rings_and_bars": Curves(
        pieces=(
            _Arc(centre=(-1.0, 1.0), radius=0.4),
            _Bar(start=(0.6, 1.0), end=(1.4, 1.0)),
            _Arc(centre=(1.0, -1.0), radius=0.4),
            _Bar(start=(-1.0, -1.4), end=(-1.0, -0.6)),
        ),
        weights=(0.4, 0.3, 0.2, 0.1),
    ),
    "rings": Curves(
        pieces=(
            _Arc(centre=(-0.8, 0.8), radius=0.6),
            _Arc(centre=(0.9, 0.9), radius=0.4),
            _Arc(centre=(0.7, -0.8), radius=0.5),
            _Arc(centre=(-0.9, -0.9), radius=0.3),
        ),
        weights=(0.4, 0.3, 0.2, 0.1),
    ),
    "bars": Curves(
        pieces=(
            _Bar(start=(-1.4, 1.0), end=(-0.6, 1.0)),
            _Bar(start=(1.0, 0.6), end=(1.0, 1.4)),
            _Bar(start=(-1.0, -1.4), end=(-1.0, -0.6)),
            _Bar(start=(0.6, -1.0), end=(1.4, -1.0)),
            _Bar(start=(-0.3, -0.3), end=(0.3, 0.3)),
        ),
        weights=(0.35, 0.25, 0.2, 0.15, 0.05),
    ),
    "arcs": Curves(
        pieces=(
            _Arc(centre=(-0.8, 0.8), radius=0.6, start=0.0, length=math.pi),
            _Arc(centre=(0.8, 0.6), radius=0.6, start=math.pi, length=math.pi),
            _Arc(centre=(-0.8, -0.6), radius=0.6, start=0.5 * math.pi, length=math.pi),
            _Arc(centre=(0.8, -0.9), radius=0.4, start=-0.75 * math.pi, length=1.5 * math.pi),
        ),
        weights=(0.45, 0.3, 0.15, 0.1),
    ),
}

GAUSSIANS_WEIGHTS = (0.5, 0.3, 0.2)
GAUSSIANS_MEANS = np.array([[-1.0, -0.5], [1.0, -0.5], [0.0, 1.2]])
GAUSSIANS_COVARIANCES = np.array(
    [[[0.09, 0.05], [0.05, 0.06]], [[0.05, -0.03], [-0.03, 0.08]], [[0.12, 0.0], [0.0, 0.02]]]
)

CIRCLE8_CENTRES = np.array(
    [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)]
)
CIRCLE8_NOISE = 0.05

MOONS_NOISE = 0.05


def gaussians(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mixture of three correlated Gaussians: `GAUSSIANS_WEIGHTS`, `_MEANS`, `_COVARIANCES`.

    Returns: points [n, 2] and component labels [n].
    """
    labels = rng.choice(len(GAUSSIANS_WEIGHTS), size=n, p=GAUSSIANS_WEIGHTS)
    factors = np.linalg.cholesky(GAUSSIANS_COVARIANCES)[labels]
    noise = np.einsum("nij,nj->ni", factors, rng.standard_normal((n, 2)))
    return GAUSSIANS_MEANS[labels] + noise, labels


def moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's two interleaved half circles, noise 0.05, in its coordinates.

    Returns: points [n, 2] and moon labels [n], exactly half of each (to rounding).
    """
    from sklearn.datasets import make_moons

    points, labels = make_moons(n, noise=MOONS_NOISE, random_state=int(rng.integers(2**31)))
    return points, labels


def circle8(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight equal isotropic Gaussians, standard deviation 0.05, centred on the unit circle.

    Returns: points [n, 2] and component labels [n].
    """
    labels = rng.integers(8, size=n)
    return CIRCLE8_CENTRES[labels] + CIRCLE8_NOISE * rng.standard_normal((n, 2)), labels


def checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on the eight dark unit squares (column + row even) of a 4 x 4 board on [-2, 2]^2.

    Returns: points [n, 2] and square labels [n], counted by rows from the lower left.
    """
    labels = rng.integers(8, size=n)
    row = labels // 2
    column = 2 * (labels % 2) + row % 2
    return np.stack([column, row], axis=-1) - 2.0 + rng.random((n, 2)), labels


Sampler = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
TOYS: dict[str, Sampler] = {
    **CURVES,
    "gaussians": gaussians,
    "moons": moons,
    "circle8": circle8,
    "checkerboard": checkerboard,
}


def toy(name: str, options: Options) -> Raw:
    """Draws of `TOYS[name]`."""
    return _drawn(TOYS[name], f"synthetic 2-D toy {name}", options)


def torsion(options: Options) -> Raw:
    """Draws of the torsion model, with its basins as labels."""
    return _drawn(TorsionModel().sample, "exact draws of boltzmann.TorsionModel()", options)


def torsion_angles(options: Options) -> Raw:
    """The angles of `torsion` alone, [N, 2] in [-pi, pi): of one seed, those of the same states."""

    def angles(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        found = TorsionModel().sample_angles(rng, n)
        return found, basin(found)

    return _drawn(angles, "exact draws of boltzmann.TorsionModel()", options)


def _drawn(sampler: Sampler, source: str, options: Options) -> Raw:
    """Independent draws for training and test, without limit to their number."""

    def draw(count: int, stream: int) -> Samples:
        x, labels = sampler(np.random.default_rng([options.seed, stream]), count)
        return Samples(x.astype(np.float32), labels)

    return Raw(
        train=draw(options.num_train or TOY_SAMPLES, TRAIN),
        test=draw(options.num_test or TOY_SAMPLES, TEST),
        source=source,
    )
