"""A data set, in memory or not: its type, the checks of raw items, seeded splits and subsets."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ndsm_jax.columns import Column
from ndsm_jax.rows import PART_BYTES, Stored, blocks, each, part, read

MIN_SAMPLES = 10
MAX_MAGNITUDE = 1e150
"""Values must be smaller than this in magnitude, so that float64 can hold their squares."""

IN_MEMORY = ("auto", "yes", "no")
"""Where items are kept, see `stored`."""

LAYOUTS = ("auto", "channels_last", "channels_first")
"""Of own arrays of images [N, a, b, c]."""

# Names of independent random streams: default_rng([seed, stream]).
TRAIN, TEST, SPLIT, TRAIN_SIZE, TEST_SIZE, HELD_OUT = range(6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set. States are flat; `shape` is the shape of one item before flattening.

    States are arrays, or `rows.Stored` where they are not in memory (data.in_memory). Their type is
    float32, except that a user's own data (`array`, `file.py:function`) which come in float64 stay
    in float64. Both splits have the same type.

    Attributes:
      name: as given to `load`; for `file.py:function` the name of the function.
      train: states [N, d].
      test: states [M, d], held out.
      train_labels: class or mode index [N], int32.
      test_labels: the same [M].
      shape: (2,), (8, 8, 1), (28, 28, 1), ...
      value_range: (-1, 1) for scaled images, None for unbounded data, in their own units.
      source: origin, licence and citation in one line.
      class_names: what the data call class 0, 1, ...; empty where they number them so themselves.
      columns: what the coordinates are, of a table (`datasets.tables`), whose missing cells are
        NaN; empty for other data.
    """

    name: str
    train: Any
    test: Any
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    shape: tuple[int, ...]
    value_range: tuple[float, float] | None
    source: str
    class_names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()

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
        """How many classes; 0 when there are no labels.

        Where classes have no names, one more than the largest label, so that it fits `bincount`.
        """
        labels = [a for a in (self.train_labels, self.test_labels) if a is not None]
        return len(self.class_names) or 1 + max((int(a.max()) for a in labels), default=-1)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the shapes and bytes of train, test and their labels, and of columns."""
        words = [(c.name, c.kind, c.levels) for c in self.columns]
        sha = hashlib.sha256(repr(words).encode() if words else b"")
        for array in (self.train, self.test, self.train_labels, self.test_labels):
            sha.update(repr(None if array is None else array.shape).encode())
            for _, block in () if array is None else blocks(array):
                sha.update(np.ascontiguousarray(block).data)
        return sha.hexdigest()

    @property
    def is_stored(self) -> bool:
        """Whether some states are not in memory."""
        return isinstance(self.train, Stored) or isinstance(self.test, Stored)

    def in_part(self, seed: int, size: int = PART_BYTES) -> Dataset:
        """The data set with those states that are not in memory replaced by a part of them, read.

        A seeded part of each split with its labels, see `rows.part`, which keeps the order; itself
        where all are in memory.
        """
        if not self.is_stored:
            return self
        splits: dict[str, Any] = {}
        for name, x, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            numbers = part(x, seed, size)
            splits[name] = read(x, numbers)
            splits[f"{name}_labels"] = None if labels is None else read(labels, numbers)
        return dataclasses.replace(self, **splits)


class Samples(NamedTuple):
    """Items [N, ...] with optional labels [N]; an array, or `rows.Stored` that are not read."""

    x: Any
    labels: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> Samples:
        """The items (and labels) at `indices`."""
        labels = None if self.labels is None else self.labels[indices]
        return Samples(self.x.take(indices, axis=0), labels)


class Raw(NamedTuple):
    """What a loader returns: uint8 items, to be scaled, or floats; `load` splits if no `test`."""

    train: Samples
    test: Samples | None = None
    source: str = ""
    value_range: tuple[float, float] | None = None
    columns: tuple[Column, ...] = ()
    class_names: tuple[str, ...] = ()


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
    columns: str
    header: str
    background: str = "white"
    all_frames: bool = False
    layout: str = "auto"
    tfds: str = ""
    in_memory: str = "auto"

    def __post_init__(self) -> None:
        for option, count in (("num_train", self.num_train), ("num_test", self.num_test)):
            if count != 0 and count < MIN_SAMPLES:
                raise ValueError(f"data.{option}={count}: give 0 (all) or at least {MIN_SAMPLES}.")
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(f"data.test_fraction={self.test_fraction}: must be inside (0, 1).")
        if self.layout not in LAYOUTS:
            raise ValueError(f"data.layout={self.layout!r}: choose one of {', '.join(LAYOUTS)}.")
        if self.in_memory not in IN_MEMORY:
            raise ValueError(
                f"data.in_memory={self.in_memory!r}: choose one of {', '.join(IN_MEMORY)}."
            )
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed}: must be 0 or more.")
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels={self.channels}: must be 1 (grey) or 3 (RGB).")
        if self.image_size < 0:
            raise ValueError(
                f"data.image_size={self.image_size}: give 0 (keep) or a side in pixels."
            )


def validate(samples: Samples, *, what: str, missing: bool = False) -> None:
    """Check that items (and labels) can be trained on; constant columns or pixels are fine.

    Args:
      samples: items [N, d], [N, H, W] or [N, H, W, C], uint8 or float, and labels [N], integers of
        any value or strings.
      what: how to name the data in messages.
      missing: whether NaN stands for a missing cell.

    Raises:
      ValueError: wrong rank or type, fewer than `MIN_SAMPLES` items, NaN or Inf,
        values from `MAX_MAGNITUDE` on, all items equal, or labels that do not fit.
    """
    x, labels = samples
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise ValueError(
            f"{what}: shape {x.shape} is not usable; expected [N, d], [N, H, W] or [N, H, W, C]"
            + ("; of N numbers make x[:, None]." if x.ndim == 1 else ".")
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{what}: type {x.dtype} has no known scale; give uint8 (0 to 255) or float values."
        )
    if len(x) < MIN_SAMPLES:
        raise ValueError(f"{what}: {len(x)} samples; at least {MIN_SAMPLES} are needed.")
    if x.dtype != np.uint8:
        _check_values(x, what, missing)
    first = x[:1]
    if all(np.all(block == first) for _, block in blocks(x)):
        raise ValueError(f"{what}: constant, all {len(x)} samples are equal; nothing to learn.")
    if labels is None:
        return
    if labels.ndim != 1 or not _is_class_type(labels.dtype):
        raise ValueError(
            f"{what}: labels must be integers or strings [N], not {labels.dtype} of shape "
            f"{labels.shape}; of one-hot rows take labels.argmax(axis=1)."
        )
    if len(labels) != len(x):
        raise ValueError(f"{what}: {len(labels)} labels for {len(x)} samples.")


def _check_values(x: Any, what: str, missing: bool) -> None:
    """Block by block; a message names the first row and how many there are."""
    not_finite, large = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    double = _is_double(x.dtype)  # others cannot be so large
    for start, block in blocks(x):
        rows = block.reshape(len(block), -1)
        finite = (np.isfinite(rows) | (missing & np.isnan(rows))).all(axis=1)
        not_finite.append(start + np.flatnonzero(~finite))
        if double:
            large.append(start + np.flatnonzero((np.abs(rows) >= MAX_MAGNITUDE).any(axis=1)))
    if (found := np.concatenate(not_finite)).size:
        raise ValueError(
            f"{what}: NaN or Inf in {len(found)} of {len(x)} rows, first in row {found[0]}; remove"
            " or repair these rows."
        )
    if (found := np.concatenate(large)).size:
        raise ValueError(
            f"{what}: values of {MAX_MAGNITUDE:g} or more in {len(found)} of {len(x)} rows, first"
            f" in row {found[0]}; rescale the data, as their variance overflows."
        )


def _is_class_type(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.integer) or dtype.kind in "UT"


def stratified_order(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """A random order [N] of the items whose every prefix has the class fractions of the whole.

    Item r (from 0) of a class of n items comes at (r + 1/2) / n, so prefixes are apportioned as by
    Webster and Sainte-Laguë. Unlike scikit-learn's `StratifiedShuffleSplit` this takes classes of
    one item and prefixes of any length, and shorter subsets lie in longer ones.
    """
    order = rng.permutation(len(labels))
    _, classes, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - first
    return order[np.argsort((rank + 0.5) / sizes[classes], kind="stable")]


def split(
    samples: Samples, test_fraction: float, seed: int, *, what: str
) -> tuple[Samples, Samples]:
    """(train, test) at random, stratified when labelled; each has at least `MIN_SAMPLES` items.

    Raises:
      ValueError: fewer than twice as many.
    """
    if len(samples.x) < 2 * MIN_SAMPLES:
        raise ValueError(
            f"{what}: {len(samples.x)} samples and no test split; {2 * MIN_SAMPLES} are needed, as"
            f" {MIN_SAMPLES} are held out to evaluate on."
        )
    order = _order(samples, np.random.default_rng([seed, SPLIT]))
    num_test = round(test_fraction * len(order))
    num_test = min(max(num_test, MIN_SAMPLES), len(order) - MIN_SAMPLES)
    return samples.take(order[num_test:]), samples.take(order[:num_test])


def hold_out(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, Samples]:
    """The data set without `count` of its training items, and these: [count, d] with their labels.

    At random, stratified when labelled; in the order they had.
    """
    labels = dataset.train_labels
    order = _order(Samples(dataset.train, labels), np.random.default_rng([seed, HELD_OUT]))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    whole = Samples(dataset.train, labels)
    rest = whole.take(kept)
    return dataclasses.replace(dataset, train=rest.x, train_labels=rest.labels), whole.take(held)


def subset(samples: Samples, count: int, rng: np.random.Generator, *, option: str) -> Samples:
    """`count` of the items (0: all) at random, stratified when labelled.

    Raises:
      ValueError: there are fewer; the message names the `option` that asks for them.
    """
    available = len(samples.x)
    if count > available:
        raise ValueError(
            f"{option}={count}: only {available} samples are available; use 0 for all."
        )
    if count in (0, available):
        return samples
    return samples.take(_order(samples, rng)[:count])


def _order(samples: Samples, rng: np.random.Generator) -> np.ndarray:
    if samples.labels is None:
        return rng.permutation(len(samples.x))
    return stratified_order(rng, samples.labels)


def states(x: Any) -> Any:
    """Items [N, ...] to flat states [N, d], a copy: float64 stays so, other types become float32.

    uint8 is scaled from [0, 255] to [-1, 1]. Of stored items when they are read.
    """
    return each(_states, x)


def _states(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    if x.dtype == np.uint8:
        scaled = rows.astype(np.float32, order="C")
        scaled /= 127.5
        scaled -= 1.0
        return scaled
    return rows.astype(np.float64 if _is_double(x.dtype) else np.float32, order="C")


def _is_double(dtype: np.dtype) -> bool:
    return np.finfo(dtype).bits >= 64


def number_classes(
    train: Samples, test: Samples | None, *, what: str
) -> tuple[Samples, Samples | None, tuple[str, ...]]:
    """Labels of any integers or strings as classes 0, ..., C - 1 in sorted order, over both splits.

    Returns: the splits with int32 labels, and the names of the classes, () if the labels were
    0, ..., C - 1 to begin with.

    Raises:
      ValueError: numbers in one split and strings in the other.
    """
    given = [s.labels for s in (train, test) if s is not None and s.labels is not None]
    if len({np.issubdtype(labels.dtype, np.integer) for labels in given}) == 2:
        raise ValueError(
            f"{what}: train labels are {given[0].dtype}, test labels {given[1].dtype}; "
            "make them all integers or all strings."
        )
    # In Python's integers, as NumPy joins int64 and uint64 to float64.
    values = sorted({value for labels in given for value in np.unique(labels).tolist()})
    index = {value: k for k, value in enumerate(values)}

    def numbered(samples: Samples) -> Samples:
        if samples.labels is None:
            return samples
        found, inverse = np.unique(samples.labels, return_inverse=True)
        classes = np.array([index[value] for value in found.tolist()], np.int32)
        return Samples(samples.x, classes[inverse])

    names = () if values == list(range(len(values))) else tuple(map(str, values))
    return numbered(train), None if test is None else numbered(test), names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'? Known: x, y.` for a message about an unknown name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(sorted(known))}."
