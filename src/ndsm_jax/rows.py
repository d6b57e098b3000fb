"""Rows of data, in memory or where they are stored, and what is computed of them block by block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

BLOCK = 2**25
"""Bytes of rows, as they come out, that are worked on at once."""

PART, PART_BYTES = 100_000, 2**28
"""Rows of stored data, and bytes of them, that stand for all where an algorithm needs its data in
memory."""


class Source(Protocol):
    """Items [N, ...] that are read by their numbers, rising or equal, an array of integers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> Any:
        """Of the numbers."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


@runtime_checkable
class Rows(Protocol):
    """Rows [N, ...]: an array of NumPy is some, and so are `Stored` ones.

    Slices and arrays of row numbers give arrays; `take` gives rows, without reading them.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> Any:
        """Of the numbers."""

    @property
    def ndim(self) -> int:
        """Axes."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...

    def take(self, indices: Any, axis: Any = 0) -> Any:
        """The rows of these numbers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Rows of a source that are read, and worked on, when they are asked for.

    Attributes:
      source: where they are.
      shape, dtype: of the rows as they come out.
      index: which items of the source, and in what order, integers [N]; None: all.
      work: functions of items [n, ...] to rows [n, ...], one after the other, that take each row
        by itself.
    """

    source: Source
    shape: tuple[int, ...]
    dtype: np.dtype
    index: np.ndarray | None = None
    work: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()

    @classmethod
    def of(cls, source: Source) -> Stored:
        """All items of a source, as they are."""
        return cls(source, tuple(source.shape), np.dtype(source.dtype))

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The rows of a slice, or of a number or an array of them [...], read: [..., ...]."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        numbers = np.asarray(rows)
        if numbers.ndim != 1:
            return self[numbers.reshape(-1)].reshape(*numbers.shape, *self.shape[1:])
        if not numbers.size:  # of which no function need make anything
            return np.empty((0, *self.shape[1:]), self.dtype)
        if not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)}")
        numbers = np.where(numbers < 0, numbers + len(self), numbers).astype(np.int64)
        items = numbers if self.index is None else self.index[numbers]
        order = np.argsort(items, kind="stable")
        found = self.source[items[order]]
        if (order[1:] < order[:-1]).any():
            sorted_rows, found = found, np.empty_like(found)
            found[order] = sorted_rows
        for function in self.work:
            found = function(found)
        return found

    def take(self, indices: Any, axis: Any = 0) -> Stored:
        """The rows of these numbers [n], which are not read."""
        assert axis == 0
        index = np.asarray(indices) if self.index is None else self.index[indices]
        small = index.astype(np.int32 if self.source.shape[0] < 2**31 else np.int64)
        return dataclasses.replace(self, index=small, shape=(len(small), *self.shape[1:]))

    def then(self, function: Callable[[np.ndarray], np.ndarray]) -> Stored:
        """The rows as a function makes them, which takes each by itself: [n, ...] -> [n, ...]."""
        first = function(self[:1])
        return dataclasses.replace(
            self,
            shape=(len(self), *first.shape[1:]),
            dtype=first.dtype,
            work=(*self.work, function),
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise ValueError(
            f"{getattr(self.source, 'where', 'these data')}: {len(self):,} items that are not in"
            " memory, and this takes all of them at once; set data.in_memory=yes, with fewer items"
            " (data.num_train, data.num_test) where they do not fit"
        )


def each(function: Callable[[np.ndarray], np.ndarray], x: Any) -> Any:
    """function(x), which takes each row by itself; of stored rows when they are read."""
    return x.then(function) if isinstance(x, Stored) else function(x)


def blocks(x: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """The rows in order, about `BLOCK` bytes at a time: the number of the first, and them."""
    num = max(1, BLOCK // _row_bytes(x))
    for start in range(0, len(x), num):
        yield start, x[start : start + num]


def part_size(x: Rows, size: int = PART_BYTES) -> int:
    """How many rows stand for all, see `part`."""
    if not isinstance(x, Stored):
        return len(x)
    return min(len(x), max(1000, min(PART, size // _row_bytes(x))))


def _row_bytes(x: Rows) -> int:
    return max(1, math.prod(x.shape[1:]) * np.dtype(x.dtype).itemsize)


def part(x: Rows, seed: int, size: int = PART_BYTES) -> np.ndarray | None:
    """Numbers of rows, rising, that stand for all of stored ones; None: all, which are in memory.

    At random, a function of the seed; as many as `size` bytes hold, at most `PART`, at least 1000.
    """
    if not isinstance(x, Stored):
        return None
    return np.sort(np.random.default_rng(seed).permutation(len(x))[: part_size(x, size)])


def read(x: Any, numbers: np.ndarray | None) -> np.ndarray:
    """The rows of these numbers; None: x, which is in memory."""
    return x if numbers is None else x[numbers]


def moments(x: Rows, *, shared: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each feature of rows [N, d], float64 [d]; shared: of all, [1].

    In one pass over blocks, whose moments are joined as by Chan, Golub and LeVeque (1983), so that
    values far from zero lose nothing.
    """
    total, mean, squares = 0.0, np.zeros(1), np.zeros(1)
    axis = None if shared else 0
    for _, block in blocks(x):
        values = np.asarray(block, np.float64)
        count = float(values.size if shared else len(values))
        middle = np.atleast_1d(values.mean(axis=axis))
        spread = np.atleast_1d(np.square(values - middle).sum(axis=axis))
        if total == 0:
            total, mean, squares = count, middle, spread
            continue
        step, both = middle - mean, total + count
        mean = mean + step * (count / both)
        squares = squares + spread + step**2 * (total * count / both)
        total = both
    return mean, squares / max(total, 1.0)


def extent(x: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of each feature of rows [N, d], but for NaN: [d], [d]."""
    low = high = x[0]
    for _, block in blocks(x):
        low = np.fmin(low, np.fmin.reduce(block, axis=0))
        high = np.fmax(high, np.fmax.reduce(block, axis=0))
    return low, high
