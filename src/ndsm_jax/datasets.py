"""Data sets: 2-D toys, torsion angles, digits, MNIST, and a user's own arrays or images.

`load(name, ...)` returns a `Dataset` of flat float32 states, split into train and test. It reads
local files only and never downloads. A loader in `DATASETS` returns raw items; checking, splitting,
subsetting, scaling and flattening then happen once, in `load`, in the same way for every data set.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import hashlib
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndsm_jax.boltzmann import TorsionModel, radii

MIN_SAMPLES = 10
TOY_SAMPLES = 10_000

# Names of independent random streams: default_rng([seed, stream]).
_TRAIN, _TEST, _SPLIT, _TRAIN_SIZE, _TEST_SIZE = 0, 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set in memory. States are flat; `shape` is the shape of one item before flattening."""

    name: str
    train: np.ndarray  # [N, d] float32
    test: np.ndarray  # [M, d] float32, held out
    train_labels: np.ndarray | None  # [N] int32, class or mode index
    test_labels: np.ndarray | None  # [M] int32
    shape: tuple[int, ...]  # (2,), (8, 8, 1), (28, 28, 1), ...
    value_range: tuple[float, float] | None  # (-1, 1) for scaled images, None for unbounded data
    source: str  # origin, licence and citation in one line

    @property
    def dim(self) -> int:
        """Dimension d of a flat state."""
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether items have shape (height, width, channels)."""
        return len(self.shape) == 3

    @property
    def num_classes(self) -> int:
        """One more than the largest label (so it fits `bincount`); 0 when there are no labels."""
        labels = [a for a in (self.train_labels, self.test_labels) if a is not None]
        return 1 + max((int(a.max()) for a in labels), default=-1)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the shapes and bytes of train, test and their labels."""
        sha = hashlib.sha256()
        for array in (self.train, self.test, self.train_labels, self.test_labels):
            sha.update(repr(None if array is None else array.shape).encode())
            if array is not None:
                sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


class Samples(NamedTuple):
    """Items [N, ...] with optional integer labels [N]."""

    x: np.ndarray
    labels: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> Samples:
        """The items (and labels) at `indices`."""
        return Samples(self.x[indices], None if self.labels is None else self.labels[indices])


class Raw(NamedTuple):
    """What a loader returns: uint8 items, to be scaled, or floats; `load` splits if no `test`."""

    train: Samples
    test: Samples | None
    source: str
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `load`, checked; each loader uses those that concern it."""

    dir: str
    num_train: int
    num_test: int
    test_fraction: float
    seed: int
    channels: int
    image_size: int

    def __post_init__(self) -> None:
        for option, count in (("num_train", self.num_train), ("num_test", self.num_test)):
            if count != 0 and count < MIN_SAMPLES:
                raise ValueError(f"data.{option}={count}: give 0 (all) or at least {MIN_SAMPLES}.")
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(f"data.test_fraction={self.test_fraction}: must be inside (0, 1).")
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed}: must be 0 or more.")
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels={self.channels}: must be 1 (grey) or 3 (RGB).")
        if self.image_size < 0:
            raise ValueError(
                f"data.image_size={self.image_size}: give 0 (keep) or a side in pixels."
            )


def load(
    name: str,
    *,
    dir: str = "",
    num_train: int = 0,
    num_test: int = 0,
    test_fraction: float = 0.2,
    seed: int = 0,
    channels: int = 1,
    image_size: int = 0,
) -> Dataset:
    """Load a data set by name. The result depends on the arguments and the files alone.

    Args:
      name: a key of `DATASETS`.
      dir: for `mnist` and the data made of it the folder with the IDX files, or the data folder of
        tensorflow-datasets ("" for its default); for `array` a .npy or .npz file; for `folder` a
        folder of images.
      num_train: size of the training set; 0 means all (toys: 10,000). A smaller set is a seeded
        subset, stratified when labelled; with one seed, smaller subsets lie in larger ones.
      num_test: the same for the held-out set.
      test_fraction: share held out where the source has no split; stratified when labelled.
      seed: seeds the toys, the sizes of `approx_c2_mnist`, the split and the subsets.
      channels: 1 (grey) or 3 (RGB), for `folder`.
      image_size: side in pixels to which `folder` centre-crops and resizes; 0 keeps the size.

    Raises:
      ValueError: unknown name, option out of range, unusable data (see `validate`), damaged file.
      FileNotFoundError: `dir` is not set, or lacks what the loader needs.
    """
    options = Options(
        dir=dir,
        num_train=num_train,
        num_test=num_test,
        test_fraction=test_fraction,
        seed=seed,
        channels=channels,
        image_size=image_size,
    )
    if name not in DATASETS:
        raise ValueError(f"Unknown data.name={name!r}. {_did_you_mean(name, DATASETS)}")
    raw = DATASETS[name](options)

    validate(raw.train, what=f"{name} data")
    if raw.test is None:
        train, test = _split(raw.train, test_fraction, seed)
    else:
        train, test = raw.train, raw.test
        validate(test, what=f"{name} test data")
        if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
            raise ValueError(
                f"{name}: train items are {train.x.dtype}{list(train.x.shape[1:])}, test items "
                f"{test.x.dtype}{list(test.x.shape[1:])}; make shape and type agree."
            )
    train = _subset(
        train, num_train, np.random.default_rng([seed, _TRAIN]), option="data.num_train"
    )
    test = _subset(test, num_test, np.random.default_rng([seed, _TEST]), option="data.num_test")

    item_shape = train.x.shape[1:]
    return Dataset(
        name=name,
        train=_states(train.x),
        test=_states(test.x),
        train_labels=_labels(train.labels),
        test_labels=_labels(test.labels),
        shape=(*item_shape, 1) if len(item_shape) == 2 else item_shape,
        value_range=(-1.0, 1.0) if train.x.dtype == np.uint8 else raw.value_range,
        source=raw.source,
    )


def validate(samples: Samples, *, what: str) -> None:
    """Check that items (and labels) can be trained on; constant columns or pixels are fine.

    Args:
      samples: items [N, d], [N, H, W] or [N, H, W, C], uint8 or float, and integer labels [N].
      what: how to name the data in messages.

    Raises:
      ValueError: wrong rank or type, channels first, fewer than `MIN_SAMPLES` items, NaN or Inf
        (also after rounding to float32), all items equal, or labels that do not fit.
    """
    x, labels = samples
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise ValueError(
            f"{what}: shape {x.shape} is not usable; expected [N, d], [N, H, W] or [N, H, W, C]."
        )
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise ValueError(
            f"{what}: shape {x.shape} has its channels first; transpose it to [N, H, W, C]."
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{what}: type {x.dtype} has no known scale; give uint8 (0 to 255) or float values."
        )
    if len(x) < MIN_SAMPLES:
        raise ValueError(f"{what}: {len(x)} samples; at least {MIN_SAMPLES} are needed.")
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            finite = np.isfinite(x.astype(np.float32)).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{what}: NaN or Inf in {np.sum(~finite)} of {len(x)} rows, first in row "
                f"{np.argmin(finite)}; remove or repair these rows."
            )
    if np.all(x == x[0]):
        raise ValueError(f"{what}: constant, all {len(x)} samples are equal; nothing to learn.")
    if labels is None:
        return
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{what}: labels must be integers [N], not {labels.dtype} of shape {labels.shape}."
        )
    if len(labels) != len(x):
        raise ValueError(f"{what}: {len(labels)} labels for {len(x)} samples.")
    if labels.min() < 0:
        raise ValueError(f"{what}: negative label {labels.min()}; labels count from 0.")


def stratified_order(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """A random order [N] of the items whose every prefix has the class fractions of the whole.

    Item r (from 0) of a class of n items comes at (r + 1/2) / n, so prefixes are apportioned as by
    Webster and Sainte-Laguë. Unlike scikit-learn's `StratifiedShuffleSplit` this takes classes of
    one item and prefixes of any length, and shorter subsets lie in longer ones.
    """
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position, kind="stable")]


def _order(samples: Samples, rng: np.random.Generator) -> np.ndarray:
    if samples.labels is None:
        return rng.permutation(len(samples.x))
    return stratified_order(rng, samples.labels)


def _split(samples: Samples, test_fraction: float, seed: int) -> tuple[Samples, Samples]:
    order = _order(samples, np.random.default_rng([seed, _SPLIT]))
    num_test = min(max(round(test_fraction * len(order)), 1), len(order) - 1)
    return samples.take(order[num_test:]), samples.take(order[:num_test])


def _subset(samples: Samples, count: int, rng: np.random.Generator, *, option: str) -> Samples:
    available = len(samples.x)
    if count > available:
        raise ValueError(
            f"{option}={count}: only {available} samples are available; use 0 for all."
        )
    if count in (0, available):
        return samples
    return samples.take(_order(samples, rng)[:count])


def _states(x: np.ndarray) -> np.ndarray:
    """Items [N, ...] to flat float32 states [N, d]; uint8 is scaled from [0, 255] to [-1, 1]."""
    states = np.ascontiguousarray(x.reshape(len(x), -1).astype(np.float32))
    if x.dtype == np.uint8:
        states /= 127.5
        states -= 1.0
    return states


def _labels(labels: np.ndarray | None) -> np.ndarray | None:
    return None if labels is None else labels.astype(np.int32)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(sorted(known))}."


# --- 2-D toys -------------------------------------------------------------------------------------


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


def _drawn(sampler: Sampler, source: str, options: Options) -> Raw:
    """Independent draws for training and test, without limit to their number."""

    def draw(count: int, stream: int) -> Samples:
        return Samples(*sampler(np.random.default_rng([options.seed, stream]), count))

    return Raw(
        train=draw(options.num_train or TOY_SAMPLES, _TRAIN),
        test=draw(options.num_test or TOY_SAMPLES, _TEST),
        source=source,
    )


def _toy(name: str, options: Options) -> Raw:
    return _drawn(TOYS[name], f"synthetic 2-D toy {name}", options)


def _torsion(options: Options) -> Raw:
    return _drawn(TorsionModel().sample, "exact draws of boltzmann.TorsionModel()", options)


def _moons_distance(points: np.ndarray) -> np.ndarray:
    def upper_half_circle(p: np.ndarray) -> np.ndarray:
        to_arc = np.abs(np.hypot(p[:, 0], p[:, 1]) - 1.0)
        to_end = np.hypot(np.abs(p[:, 0]) - 1.0, p[:, 1])
        return np.where(p[:, 1] >= 0, to_arc, to_end)

    # The second moon is the first turned by half a turn about (1/2, 1/4).
    return np.minimum(upper_half_circle(points), upper_half_circle(np.array([1.0, 0.5]) - points))


def _circle8_distance(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - CIRCLE8_CENTRES, axis=-1).min(axis=1)


def _torsion_distance(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(radii(points) - 1, axis=-1)


_SUPPORT_DISTANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: curves.distance for name, curves in CURVES.items()},
    "moons": _moons_distance,
    "circle8": _circle8_distance,
    "torsion": _torsion_distance,
}


def support_distance(name: str, points: np.ndarray) -> np.ndarray:
    """Euclidean distance [n] of points [n, d] to the noise-free support of a simulated data set.

    The support is the curves of `CURVES`, two half circles for `moons`, the eight centres for
    `circle8`, and the torus of unit radii for `torsion` (d = 4; 2 otherwise).

    Raises:
      ValueError: for a data set without such a support, or points not of shape [n, d].
    """
    if name not in _SUPPORT_DISTANCES:
        raise ValueError(
            f"No support distance for {name!r}. {_did_you_mean(name, _SUPPORT_DISTANCES)}"
        )
    dim = 4 if name == "torsion" else 2
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"support_distance: points must be [n, {dim}], not {points.shape}.")
    return _SUPPORT_DISTANCES[name](points)


# --- digits ---------------------------------------------------------------------------------------


def _digits(options: Options) -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Raw(
        train=Samples(digits.images / 8.0 - 1.0, digits.target),
        test=None,
        value_range=(-1.0, 1.0),
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits "
        "(Alpaydin and Kaynak 1998), CC BY 4.0",
    )


# --- MNIST ----------------------------------------------------------------------------------------

_MNIST_SOURCE = "MNIST (LeCun, Bottou, Bengio and Haffner 1998), CC BY-SA 3.0"

# Of the decompressed files: a gzip header carries a time stamp, so its bytes vary.
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def parse_idx(content: bytes, *, name: str) -> np.ndarray:
    """Decode an IDX file of unsigned bytes: 0, 0, 8, rank, big-endian uint32 sizes, values.

    Args:
      content: the decompressed file.
      name: how to name the file in messages.

    Returns: uint8 array of the shape in the header (read-only).

    Raises:
      ValueError: wrong magic number, truncated content, or bytes after the end.
    """
    rank = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * rank
    if content[:3] != b"\x00\x00\x08" or rank == 0 or len(content) < start:
        raise ValueError(
            f"{name}: not an IDX file of unsigned bytes (header {content[:4].hex(' ')})."
        )
    shape = [int(size) for size in np.frombuffer(content, ">u4", count=rank, offset=4)]
    missing = start + math.prod(shape) - len(content)
    if missing:
        problem = (
            f"truncated: {missing} bytes missing" if missing > 0 else f"{-missing} bytes too long"
        )
        raise ValueError(f"{name}: {problem} for IDX shape {shape}; fetch the file again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if it is gzip (by its content: names are often wrong)."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: corrupted gzip ({error}); fetch the file again.") from error


def _mnist(options: Options) -> Raw:
    root = Path(options.dir).expanduser()
    if not options.dir or (root / "mnist").is_dir():
        return _mnist_from_tfds(options.dir)
    return _mnist_from_idx(root)


def _find_idx(root: Path, stem: str) -> Path:
    names = [s + suffix for s in (stem, stem.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"data.dir={str(root)!r} has no {' or '.join(names)}; "
        "set data.dir to a folder with all four MNIST files."
    )


def _mnist_from_idx(root: Path) -> Raw:
    arrays, altered = {}, []
    for stem, sha256 in _MNIST_SHA256.items():
        path = _find_idx(root, stem)
        content = _read_bytes(path)
        arrays[stem] = array = parse_idx(content, name=str(path))
        if array.ndim != (3 if "images" in stem else 1):
            raise ValueError(
                f"{path}: IDX shape {array.shape} is not that of MNIST images or labels."
            )
        if hashlib.sha256(content).hexdigest() != sha256:
            altered.append(path.name)
    if altered:
        message = f"Not the original MNIST (SHA-256 of the content differs): {', '.join(altered)}."
        warnings.warn(message, stacklevel=4)  # the caller of `load`
    return Raw(
        train=Samples(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]),
        test=Samples(arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]),
        source="IDX files other than the original MNIST" if altered else _MNIST_SOURCE,
    )


def _mnist_from_tfds(data_dir: str) -> Raw:
    """MNIST as prepared by tensorflow-datasets, read without TensorFlow and without a download."""
    try:
        import tensorflow_datasets as tfds

        train, test = tfds.data_source(
            "mnist", split=["train", "test"], data_dir=data_dir or None, download=False
        )
    # What `data_source` raises for data that are absent, or prepared as TFRecord.
    except (ImportError, KeyError, AssertionError, NotImplementedError) as error:
        raise FileNotFoundError(
            "MNIST not found. Set data.dir to a folder with its four IDX files (plain or gzip), or "
            "prepare 'mnist' of tensorflow-datasets with file_format='array_record' and leave "
            f"data.dir empty or set it to that data folder ({type(error).__name__} in "
            "tensorflow_datasets)."
        ) from error
    return Raw(
        train=_fetch(train), test=_fetch(test), source=f"{_MNIST_SOURCE}, by tensorflow-datasets"
    )


def _fetch(source: Any, block: int = 1000) -> Samples:
    """All of a random-access data source, in blocks: item by item is about four times slower."""
    records = [
        record
        for start in range(0, len(source), block)
        for record in source.__getitems__(range(start, min(start + block, len(source))))
    ]
    images = np.stack([record["image"] for record in records])
    return Samples(images, np.array([record["label"] for record in records]))


NUM_DIGITS = 10


def half_size(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W] uint8, H and W divisible by 4, at half their size in the middle of black.

    Every pixel is the mean of a 2 x 2 block, rounded, halves up.
    """
    _, height, width = images.shape
    rows = images[:, ::2].astype(np.uint16) + images[:, 1::2]
    total = rows[:, :, ::2] + rows[:, :, 1::2]
    margins = ((0, 0), (height // 4, height // 4), (width // 4, width // 4))
    return np.pad(((total + 2) // 4).astype(np.uint8), margins)


def upside_down(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W] turned by 180 degrees."""
    return images[:, ::-1, ::-1]


def _approx_c2_mnist(options: Options) -> Raw:
    """MNIST, each digit with probability 1/2 upside down at half size (2405.15625, Section 5).

    Every combination occurs in the symmetrised law, but only large upright and small upside-down
    digits in the data. Labels are digit + 10 small, so 0 to 9 are large and 10 to 19 small. With
    one data.seed an image of a split has the same size in every subset.
    """
    raw = _mnist(options)

    def transform(split: str, x: np.ndarray, labels: np.ndarray) -> Samples:
        stream = {"train": _TRAIN_SIZE, "test": _TEST_SIZE}[split]
        small = np.random.default_rng([options.seed, stream]).random(len(x)) < 0.5
        images = np.where(small[:, None, None], upside_down(half_size(x)), x)
        return Samples(images, labels + NUM_DIGITS * small)

    return _transformed(raw, transform, "half of it at half size and upside down")


def _mnist_orientations(options: Options) -> Raw:
    """Every MNIST digit large and small, upright and upside down: four items of each.

    Labels are digit + 10 small + 20 upside_down, so that those of `approx_c2_mnist` are 0 to 9 and
    30 to 39. To train a classifier that tells them.
    """

    def transform(split: str, x: np.ndarray, labels: np.ndarray) -> Samples:
        small = half_size(x)
        images = np.concatenate([x, small, upside_down(x), upside_down(small)])
        offsets = np.arange(4)[:, None] * NUM_DIGITS
        return Samples(images, (labels + offsets).ravel())

    return _transformed(_mnist(options), transform, "at two sizes and two orientations")


def _transformed(
    raw: Raw, transform: Callable[[str, np.ndarray, np.ndarray], Samples], what: str
) -> Raw:
    """MNIST with both splits changed by transform(split, images [N, 28, 28], labels int32 [N])."""
    splits = {}
    for split, samples in (("train", raw.train), ("test", raw.test)):
        if samples is None or samples.labels is None or samples.x.shape[1:3] != (28, 28):
            raise ValueError(
                f"The {split} split of MNIST is not of labelled 28 x 28 images; fetch it again."
            )
        images, labels = samples.x.reshape(-1, 28, 28), samples.labels.astype(np.int32)
        if len(images) != len(labels):
            raise ValueError(f"MNIST {split}: {len(labels)} labels for {len(images)} samples.")
        splits[split] = transform(split, images, labels)
    return Raw(train=splits["train"], test=splits["test"], source=f"{raw.source}; {what}")


# --- the user's own data --------------------------------------------------------------------------


def _array(options: Options) -> Raw:
    path = Path(options.dir).expanduser()
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: data.name='array' needs the path of a .npy or .npz file."
        )
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file ({error}).") from error

    x = _pop_first(arrays, "x", "data")
    labels = _pop_first(arrays, "labels", "y")
    test = _pop_first(arrays, "test")
    test_labels = _pop_first(arrays, "test_labels")
    if x is None and len(arrays) == 1:
        _, x = arrays.popitem()
    if x is None:
        raise ValueError(
            f"{path}: which array holds the data? Name it 'x' or 'data' (found: {sorted(arrays)})."
        )
    if test_labels is not None and (test is None or labels is None):
        raise ValueError(f"{path}: 'test_labels' needs both 'test' and 'labels'.")
    return Raw(
        train=Samples(x, labels),
        test=None if test is None else Samples(test, test_labels),
        source=f"array file {path.name}",
    )


def _pop_first(arrays: dict[str, np.ndarray], *names: str) -> np.ndarray | None:
    return next((arrays.pop(name) for name in names if name in arrays), None)


_IMAGE_SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip


def _folder(options: Options) -> Raw:
    root = Path(options.dir).expanduser()
    if not options.dir or not root.is_dir():
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: data.name='folder' needs an existing folder of images."
        )
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in _IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: no images ({' '.join(sorted(_IMAGE_SUFFIXES))}) found."
        )
    classes = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
    names, labels = np.unique(classes, return_inverse=True)
    if "" in names and len(names) > 1:
        raise ValueError(
            f"data.dir={options.dir!r}: images both beside and inside sub-folders, whose names are "
            "class labels; put all images in sub-folders, or none."
        )
    images = [_read_image(path, options.channels, options.image_size) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{path}: size {image.shape[:2]} differs from {images[0].shape[:2]} of "
                f"{paths[0].name}; set data.image_size to resize all images."
            )
    return Raw(
        train=Samples(np.stack(images), None if "" in names else labels),
        test=None,
        source=f"image folder {root.name}",
    )


def _read_image(path: Path, channels: int, size: int) -> np.ndarray:
    """An image as uint8 [H, W, channels], upright by its EXIF tag; an alpha channel is dropped."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    # Pillow reports broken files of some formats as SyntaxError or ValueError.
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: unreadable image ({error}); repair or remove it.") from error
    # Pillow would clip these to 255 without a word.
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{path}: more than 8 bits a channel (mode {image.mode}); convert it to 8."
        )
    image = image.convert("L" if channels == 1 else "RGB")
    if size:
        image = ImageOps.fit(image, (size, size))
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


Loader = Callable[[Options], Raw]
DATASETS: dict[str, Loader] = {
    **{name: functools.partial(_toy, name) for name in TOYS},
    "torsion": _torsion,
    "digits": _digits,
    "mnist": _mnist,
    "approx_c2_mnist": _approx_c2_mnist,
    "mnist_orientations": _mnist_orientations,
    "array": _array,
    "folder": _folder,
}
