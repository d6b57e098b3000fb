"""What the columns of a table are, and the monotone map from the values of one to a coordinate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ndsm_jax.arrays import as_array, namespace

KINDS = ("numeric", "integer", "categorical")

TRANSFORMS = ("auto", "standardised", "quantile")

Level = str | bool | int | float
"""A value of a categorical column."""

DISCRETE = 20
"""A column of at most so many distinct values, each seen `OFTEN` times on average, is discrete."""

OFTEN, SHARE = 10, 0.1
"""A value stands out that holds so many rows, so large a share of them, and `OFTEN` times as many
as the median value does."""

FAR = 2.0
"""Ratio to what normal draws would show from which the farthest value counts as heavy tails."""

RESOLVED = 0.05
"""Deviations that the middle of a column is wide at least, to be seen beside its heavy tails."""

STEP = 0.4
"""Normal scores between two knots of a quantile transform."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table. In the table's matrix it holds numbers, or positions in `levels`.

    Attributes:
      name: of the column.
      kind: one of `KINDS`.
      levels: of a categorical column, in order.
      low, high: the range that its numbers were seen in.
      decimals: of a numeric column, that all of its values have at most, and samples are rounded
        to; None: as many as there are.
      missing: whether cells were missing.
      transform: of numbers to a coordinate, one of `TRANSFORMS`.
    """

    name: str
    kind: str
    levels: tuple[Level, ...] = ()
    low: float = 0.0
    high: float = 0.0
    decimals: int | None = None
    missing: bool = False
    transform: str = "auto"

    @property
    def ordered(self) -> bool:
        """Whether its values are numbers."""
        return self.kind != "categorical"

    @property
    def constant(self) -> bool:
        """Whether it was seen with one value only."""
        return self.low == self.high if self.ordered else len(self.levels) == 1

    @property
    def width(self) -> int:
        """Coordinates of a state that it takes."""
        if self.constant:
            return 0
        return 1 if self.ordered else len(self.levels) - 1

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, the inverse of `from_json`."""
        return dataclasses.asdict(self) | {"levels": list(self.levels)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Column:
        """What `to_json` wrote."""
        return cls(**{**tree, "levels": tuple(tree["levels"])})


class Scale(NamedTuple):
    """A monotone map between the values x of a column and a coordinate y: straight between knots.

    Beyond its ends it goes on as its first and last pieces do, so that nothing is clipped. Where x
    stands still while y goes on, a value has a stretch of y to itself, and leaves as itself from
    anywhere in it. Where y stands still, the values between have no place.

    Attributes:
      x, y: the knots [M], neither of them falling; float64.
      normal: whether y is to be normal; otherwise y = (x - mean) / deviation.
    """

    x: np.ndarray
    y: np.ndarray
    normal: bool

    def stretches(self, values: np.ndarray, *, integer: bool) -> tuple[np.ndarray, np.ndarray]:
        """The stretch of y that each value [n] has: two [n], equal for a value that has a point.

        That of an integer k is the image of (k - 1/2, k + 1/2). A value without a place gets that
        of the nearest one that has.
        """
        values = self._placed(values)
        like = namespace(values)
        x, y = like.asarray(self.x), like.asarray(self.y)
        first = like.searchsorted(x, values, "left").clip(max=len(x) - 1)
        last = like.searchsorted(x, values, "right") - 1
        low, high = (_line(values + half, self.x, self.y) for half in _halves(integer))
        alone = last > first
        return like.where(alone, y[first], low), like.where(alone, y[last], high)

    def values(self, y: np.ndarray, *, integer: bool) -> np.ndarray:
        """Coordinates [n] to values [n]."""
        found = _line(as_array(y, np.float64), self.y, self.x)
        return found.round() if integer else found

    def unseen(self, values: np.ndarray) -> np.ndarray:
        """Which values [n] none of the rows had, of a column whose every value has a stretch.

        [n] bool; missing values count as seen, and so does what rounding to float32 makes of one.
        """
        values = as_array(values, np.float64)
        like, seen = namespace(values), self.x[::2]
        if len(self.x) % 2 or (seen != self.x[1::2]).any():
            return like.zeros(len(values), bool)
        rounding = min(1e-6 * np.abs(seen).max(), 0.25 * np.diff(seen).min(initial=np.inf))
        return like.abs(values - self._placed(values)) > rounding

    def log_volume(self, values: np.ndarray, *, integer: bool) -> np.ndarray:
        """log dy/dx at each value [n]; where it has a stretch, the entropy of its noise there.

        The noise is what `TableFrame` draws: uniform, or, where y is to be normal, the standard
        normal law cut to the stretch. An `unseen` value gets 1 / n of the probability of
        the nearest one, where n rows have been seen: a value that none of them has is rarer.
        """
        from scipy.special import ndtr

        low, high = self.stretches(values, integer=integer)
        placed = self._placed(values)
        like = namespace(placed)
        piece = like.searchsorted(like.asarray(self.x), placed, "right") - 1
        piece = piece.clip(0, len(self.x) - 2)
        wide = high > low
        with np.errstate(divide="ignore"):
            slopes = like.asarray(np.log(np.diff(self.y)) - np.log(np.diff(self.x)))
        high = like.where(wide, high, low + 1.0)  # of the others the entropy is not used
        with np.errstate(divide="ignore"):  # of stretches so far out that they have no mass
            entropy = _cut_normal_entropy(low, high) if self.normal else like.log(high - low)
        found = like.where(wide, entropy, slopes[piece])
        # The first knot of a column of stretches is the normal score of half a row.
        return like.where(self.unseen(values), found + np.log(2 * ndtr(self.y[0])), found)

    def _placed(self, values: np.ndarray) -> np.ndarray:
        """Values that have no place, moved to the nearest that have one; in float64."""
        values = as_array(values, np.float64)
        like = namespace(values)
        x, y = like.asarray(self.x), like.asarray(self.y)
        piece = (like.searchsorted(x, values, "right") - 1).clip(0, len(x) - 2)
        left, right = x[piece], x[piece + 1]
        nearest = like.where(values - left < right - values, left, right)
        values = like.where((y[piece] == y[piece + 1]) & (values > left), nearest, values)
        below = self.x[0] if self.x[0] == self.x[1] else -np.inf
        above = self.x[-1] if self.x[-1] == self.x[-2] else np.inf
        return values.clip(below, above)


def _cut_normal_entropy(low: Any, high: Any) -> Any:
    """Of the standard normal law cut to [low, high], elementwise, in nats.

    log Z + log sqrt(2 pi e) + (low phi(low) - high phi(high)) / (2 Z), Z = Phi(high) - Phi(low). On
    the side of the smaller tail, where Z keeps its digits.
    """
    import scipy.special

    like = namespace(low)
    special = scipy.special if like is np else jax.scipy.special
    low, high = like.where(low > 0, -high, low), like.where(low > 0, -low, high)
    mass = special.ndtr(high) - special.ndtr(low)
    ends = low * like.exp(-0.5 * low**2) - high * like.exp(-0.5 * high**2)
    root = np.sqrt(2 * np.pi)
    return like.log(mass) + np.log(root) + 0.5 + ends / (2 * root * mass)


def _halves(integer: bool) -> tuple[float, float]:
    return (-0.5, 0.5) if integer else (0.0, 0.0)


def _line(at: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Straight pieces through (a, b), continued at both ends: [n]. A piece of no length is flat."""
    like = namespace(at)
    inside = like.interp(at, a, b)
    for end, inner in ((0, 1), (-1, -2)):
        run = a[inner] - a[end]
        slope = (b[inner] - b[end]) / run if run else 0.0
        beyond = like.minimum(at - a[0], 0.0) if end == 0 else like.maximum(at - a[-1], 0.0)
        inside = inside + slope * beyond
    return inside


def fit_scale(values: np.ndarray, *, integer: bool, transform: str = "auto") -> Scale:
    """The map of a column to a coordinate of variance 1, from its values [n], finite.

    Standardised: y = (x - mean) / deviation. Quantile: y is the normal score of the value's rank,
    Phi^{-1}((rank + 1/2) / n), at knots `STEP` apart and at the two outermost values on each side;
    beyond these x goes on with the mean slope of the `OFTEN` outermost. A value that stands out
    (`OFTEN`, `SHARE`), and each value of a `DISCRETE` column, gets the stretch of y whose normal
    probability is its share.

    auto: quantile where values stand out, and where the farthest value lies more than `FAR` times
    as many deviations from the mean as that of as many normal draws.

    Args:
      values: [n].
      integer: whether they are whole numbers, which fill (k - 1/2, k + 1/2).
      transform: one of `TRANSFORMS`.
    """
    values = np.asarray(values, np.float64)
    distinct, counts = np.unique(values, return_counts=True)
    stands_out = _stands_out(counts)
    if transform == "auto":
        quantile = stands_out.any() or _heavy(values)
        transform = "quantile" if quantile else "standardised"
    if transform == "quantile":
        return _quantile_scale(distinct, counts, stands_out, integer)
    mean, deviation = values.mean(), np.hypot(values.std(), 12**-0.5 if integer else 0.0)
    if deviation <= 1e-12 * abs(mean):  # constant, but for the rounding of the mean
        deviation = 1.0
    return Scale(mean + deviation * np.array([-1.0, 1.0]), np.array([-1.0, 1.0]), False)


def _stands_out(counts: np.ndarray) -> np.ndarray:
    """Which of the distinct values get a stretch of y to themselves, [m]."""
    if len(counts) <= DISCRETE and counts.sum() >= OFTEN * len(counts):
        return np.ones(len(counts), bool)
    return counts >= max(OFTEN, SHARE * counts.sum(), OFTEN * np.median(counts))


def _heavy(values: np.ndarray) -> bool:
    from scipy.special import ndtri

    far = np.abs(values - values.mean()).max()
    return bool(far > FAR * ndtri(1 - 0.5 / len(values)) * values.std())


def squeezed(values: np.ndarray) -> bool:
    """Whether heavy tails leave the middle of values [n] less than `RESOLVED` of their deviation.

    The middle is what lies within normal scores of -1 and 1; of values of which one is seen many
    times, that of the others. In a frame that divides by the deviation a model sees a point there.
    """
    values = np.asarray(values, np.float64)
    if not values.std() > 0 or not _heavy(values):
        return False
    return squeezed_by(values, values.std())


def squeezed_by(values: np.ndarray, deviation: float) -> bool:
    """Whether the middle of values [n], see `squeezed`, is less than `RESOLVED` of a deviation."""
    others = values[values != np.median(values)]
    if not len(others):
        return False
    low, high = np.quantile(others, (0.159, 0.841))
    return bool(0 < high - low < 2 * RESOLVED * deviation)


def _quantile_scale(
    distinct: np.ndarray, counts: np.ndarray, stands_out: np.ndarray, integer: bool
) -> Scale:
    from scipy.special import ndtri

    total = counts.sum()
    before = np.cumsum(counts) - counts
    alone = stands_out | np.roll(stands_out, 1)
    alone[0] = True
    knots = []
    for part in np.split(np.arange(len(distinct)), np.flatnonzero(alone)[1:]):
        if stands_out[part[0]]:
            ranks = before[part[0]] + np.array([0.0, counts[part[0]]])
            knots.append((distinct[part].repeat(2), ranks))
        else:
            x, ranks = _run_knots(distinct[part], counts[part], before[part[0]], total, integer)
            knots.append((x, before[part[0]] + ranks))
    x, ranks = (np.concatenate(parts) for parts in zip(*knots, strict=True))
    y = ndtri(np.clip(ranks, 0.5, total - 0.5) / total)
    for end, is_out in ((0, stands_out[0]), (-1, stands_out[-1])):
        if not is_out:
            x, y = _with_tail(x, y, end, np.repeat(distinct, counts))
    return Scale(x, y, True)


def _run_knots(
    distinct: np.ndarray, counts: np.ndarray, before: int, total: int, integer: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Knots of neighbouring values of which none stands out: x, and how many rows lie below."""
    from scipy.special import ndtr, ndtri

    size = counts.sum()
    x = np.repeat(distinct, counts)
    if integer:  # spread over (k - 1/2, k + 1/2)
        order = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
        x += (order + 0.5) / np.repeat(counts, counts) - 0.5
    low, high = ndtri((before + 0.5) / total), ndtri((before + size - 0.5) / total)
    scores = STEP * np.arange(np.ceil(low / STEP), np.floor(high / STEP) + 1)
    inner = total * ndtr(scores) - before - 0.5
    inner = inner[(inner > 2) & (inner < size - 3)]
    inner = inner[np.diff(inner, prepend=0.0) >= 1] if len(inner) else inner
    positions = np.unique(np.concatenate([[0, 1], inner, [size - 2, size - 1]]).clip(0, size - 1))
    at, ranks = np.interp(positions, np.arange(size), x), positions + 0.5
    if integer:
        at = np.concatenate([[distinct[0] - 0.5], at, [distinct[-1] + 0.5]])
        ranks = np.concatenate([[0], ranks, [size]])
    # Of several knots at one value the first counts, and at the last value the last.
    kept = np.diff(at, prepend=-np.inf) > 0
    kept[1:-1] &= at[1:-1] < at[-1]
    kept[-1] = True
    return at[kept], ranks[kept]


def _with_tail(
    x: np.ndarray, y: np.ndarray, end: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A further knot beyond an end, one unit of y away, for the slope of what lies beyond."""
    from scipy.special import ndtri

    count = min(OFTEN, len(rows) - 1)
    inner = count if end == 0 else -1 - count
    score = ndtri((count + 0.5) / len(rows)) - ndtri(0.5 / len(rows))
    slope = abs(rows[inner] - rows[end]) / score or abs(x[-1] - x[0]) / (y[-1] - y[0])
    sign, at = (-1, 0) if end == 0 else (1, len(x))
    return np.insert(x, at, x[end] + sign * slope), np.insert(y, at, y[end] + sign)
