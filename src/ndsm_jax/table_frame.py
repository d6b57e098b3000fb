"""The frame of a table: numbers and categories as one continuous state, and back."""

from __future__ import annotations

import dataclasses
import functools
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import references
from ndsm_jax.arrays import as_array, namespace
from ndsm_jax.columns import Column, Scale, fit_scale
from ndsm_jax.frames import Identity, states
from ndsm_jax.measurements import Measurement, given
from ndsm_jax.references import GaussianMixture
from ndsm_jax.rows import Rows

logger = logging.getLogger(__name__)

LEVEL_DISTANCE = 2.0
"""Between any two levels of a category; a balanced column of two has variance 1."""

LEVEL_NOISE = LEVEL_DISTANCE / 8
"""Deviation of the noise about a level: four of them to the border between two."""

MARGIN = 1e-3
"""Share of a stretch that its noise leaves free at both ends: float32 rounds across a border."""

COMPLETION_ROWS, COMPLETION_ROUNDS, COMPLETION_COMPONENTS = 5000, 15, 5
"""Of the mixture that completes rows: rows of its fit, rounds, and most components."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("knots_x", "knots_y", "first", "normal", "completion"),
    meta_fields=("columns",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TableFrame(Identity):
    """From the rows of a table to states, and back. Build it with `table_frame`.

    Data x [N, D] hold numbers, positions of levels, and NaN for missing cells. A state has the
    coordinates of the columns of numbers, in order, then those of the categories.

    - numeric: y = T(x), a `columns.Scale`. A value that many rows share enters anywhere in its
      stretch of y, anew at each visit.
    - integer: k enters as T(k + u), u uniform in (-1/2, 1/2), and leaves rounded (uniform
      dequantisation, 1511.01844).
    - categorical: L levels are the corners of a regular simplex in L - 1 dimensions,
      `LEVEL_DISTANCE` apart whatever their shares, with Gaussian noise at each visit; the nearest
      corner leaves.
    - a constant column takes no coordinate.

    A row with missing cells is completed at each visit by a draw given its other cells, from a
    Gaussian mixture of the states: right where what is missing depends on the cells that are there
    at most (missing at random), as far as the mixture is right. Samples have no missing cells.

    Attributes:
      columns: static.
      knots_x, knots_y: of the scales of the columns of numbers, one after the other, [M] float64.
      first: index of the first knot of each, and M at the end.
      normal: whether the coordinate of each is to be normal, see `columns.Scale`.
      completion: the mixture, of full covariances; None where no cell is missing.
    """

    columns: tuple[Column, ...]
    knots_x: np.ndarray
    knots_y: np.ndarray
    first: np.ndarray
    normal: np.ndarray
    completion: GaussianMixture | None = None

    random = True

    @property
    def data_dim(self) -> int:
        """See `Frame`."""
        return len(self.columns)

    @property
    def dim(self) -> int:
        """Coordinates d of a state."""
        return sum(column.width for column in self.columns)

    @property
    def blocks(self) -> dict[str, slice]:
        """The coordinates of a state that belong to each column, by its name."""
        order = sorted(self.columns, key=lambda column: not column.ordered)
        ends = np.cumsum([column.width for column in order]).tolist()
        found = {c.name: slice(end - c.width, end) for c, end in zip(order, ends, strict=True)}
        return {column.name: found[column.name] for column in self.columns}

    def prepare(self, x: Rows) -> np.ndarray:
        """See `Frame`: the two ends of each stretch, levels, and which cells are missing.

        Raises:
          ValueError: missing cells, where the table that the frame was fitted to has none; or
            numbers in a category that are no positions of its levels.
        """
        rows = as_array(x)
        self._check_levels(rows)
        if self.completion is None:
            _refuse_missing(rows, "the frame knows none; fit it to a table that has some")
        return self._encoded(rows)

    def enter(self, key: Array, x: Array) -> tuple[Array, Any]:
        """See `Frame`."""
        key_cells, key_levels, key_rows = jax.random.split(key, 3)
        low, high, levels, missing = self._parts(x)
        numbers = _spread(key_cells, low, high, self.normal)
        y = jnp.concatenate([numbers, self._noised(key_levels, levels)], axis=1)
        if self.completion is None:
            return y, None
        draw = jax.vmap(partial(_completed, self.completion))
        y = draw(jax.random.split(key_rows, len(y)), y, ~missing[:, self._column_of])
        # A category that was drawn is one of its levels, with the noise of one that was there.
        levels = jnp.where(missing[:, self._categorical], self._nearest(y), levels)
        noised = self._noised(key_levels, levels)
        return jnp.concatenate([y[:, : len(self._ordered)], noised], axis=1), None

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        y = as_array(y, np.float64)
        like, levels = namespace(y), self._nearest(y)
        x = [like.full(len(y), column.low) for column in self.columns]
        for place, (i, scale) in enumerate(zip(self._ordered, self._scales, strict=True)):
            column = self.columns[i]
            x[i] = scale.values(y[:, place], integer=column.kind == "integer")
            if column.decimals is not None:
                x[i] = x[i].round(column.decimals)
        for place, i in enumerate(self._categorical):
            x[i] = levels[:, place]
        # What diverged has no nearest level.
        finite = [like.isfinite(y[:, self.blocks[c.name]]).all(axis=1) for c in self.columns]
        return like.where(like.stack(finite, axis=1), like.stack(x, axis=1), np.nan)

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`: exactly so for columns of numbers of which each has a point of y.

        Integers, values with a stretch, and levels have a probability, and log p(y) + log_det is an
        unbiased estimate, by the state y of one visit, of a lower bound of its logarithm: log_det
        has the entropies of their noise (variational dequantisation, 1902.00275, Eq. 4).

        Raises:
          ValueError: missing cells, or positions of no level.
        """
        self._check_levels(x)
        _refuse_missing(x, "it has no density thereby; leave it out, or use TableFrame.complete")
        noise = 0.5 * np.log(2 * np.pi * np.e * LEVEL_NOISE**2)
        total = np.full(len(x), noise * (self.dim - len(self._ordered)))
        for i, scale in zip(self._ordered, self._scales, strict=True):
            total = total + scale.log_volume(x[:, i], integer=self.columns[i].kind == "integer")
        return total

    def coordinates(self, x: np.ndarray) -> np.ndarray:
        """Data [n, D] as the middles of what they enter as, [n, d]: distances mean something there.

        The coordinates of missing cells are NaN.
        """
        x = np.asarray(x, np.float64)
        parts = [np.mean(self._stretches(x), axis=0)]
        for i, corners in zip(self._categorical, self._corners, strict=True):
            level = np.nan_to_num(x[:, i]).astype(int)
            parts.append(np.where(np.isnan(x[:, i])[:, None], np.nan, corners[level]))
        return np.concatenate(parts, axis=1)

    def complete(self, x: np.ndarray, *, seed: int = 0) -> np.ndarray:
        """Data [n, D] with their missing cells drawn as at a visit, a function of the seed."""
        missing = np.isnan(x)
        return np.where(missing, self.leave(states(self, x, seed=seed)), x) if missing.any() else x

    def seen(self, x: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """States [n, d] of data [n, D], and which of their coordinates are of cells that are there.

        What the law of the other cells is conditional on; their coordinates are arbitrary.
        """
        alone = dataclasses.replace(self, completion=None)
        y, seen = _entered(alone, jax.random.key(seed), jnp.asarray(self._encoded(x)))
        return np.asarray(y), np.asarray(seen)

    def measured(self, measurement: Measurement, condition: Any = None) -> Measurement:
        """See `Frame`: given cells, exactly; each is somewhere where `seen` puts it.

        Raises:
          ValueError: noisy cells, or sums of them; or positions of no level.
        """
        known = measurement.variance == 0
        if measurement.directions is not None or not (known | np.isinf(measurement.variance)).all():
            raise ValueError("of a table cells can be given, without noise (measurements.given)")
        x = np.where(known, measurement.value, np.nan)
        self._check_levels(x)
        for i, scale in zip(self._ordered, self._scales, strict=True):
            if (unseen := scale.unseen(x[:, i])).any():
                logger.warning(
                    "column %r is given as %g, which no row had: the nearest of its few values is"
                    " taken for it, one of %s",
                    self.columns[i].name,
                    x[unseen.argmax(), i],
                    ", ".join(f"{value:g}" for value in np.unique(scale.x)),
                )
        y, seen = self.seen(x)
        return given(np.where(seen, y, np.nan))

    def _check_levels(self, x: Any) -> None:
        if not isinstance(x, np.ndarray):  # traced, in an exported program
            return
        for i, column in enumerate(self.columns):
            if column.ordered:
                continue
            values = x[~np.isnan(x[:, i]), i]
            bad = values[~np.isin(values, np.arange(len(column.levels)))]
            if bad.size:
                levels = ", ".join(map(str, column.levels[:10]))
                raise ValueError(
                    f"column {column.name!r}: {bad[0]:g} is the position of no level; a matrix of"
                    f" numbers has the positions 0 to {len(column.levels) - 1} of its levels"
                    f" {levels}; give values of the table as lists or a data frame, or encode them"
                    " (datasets.tables.encode)"
                )

    def _encoded(self, x: np.ndarray) -> np.ndarray:
        x = as_array(x, np.float64)
        like, levels = namespace(x), x[:, np.asarray(self._categorical, int)]
        parts = [*self._stretches(x), levels, like.isnan(x)]
        return like.nan_to_num(like.concatenate(parts, axis=1)).astype(np.float32)

    def _stretches(self, x: np.ndarray) -> np.ndarray:
        """The two ends of each number's stretch of y: [2, n, columns of numbers]."""
        ends = [np.zeros((2, len(x), 0))]
        for i, scale in zip(self._ordered, self._scales, strict=True):
            integer = self.columns[i].kind == "integer"
            stretch = scale.stretches(x[:, i], integer=integer)
            ends.append(namespace(x).stack(stretch)[:, :, None])
        return namespace(x).concatenate(ends, axis=2)

    def _parts(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Of prepared data [B, m] lower and upper ends, levels, and which cells are missing."""
        count = len(self._ordered)
        at = np.cumsum([count, count, len(self._categorical)])
        low, high, levels, missing = jnp.split(x, at, axis=1)
        return low, high, levels.astype(jnp.int32), missing > 0

    def _noised(self, key: Array, levels: Array) -> Array:
        """Levels [B, categories] as noised corners, [B, their coordinates]."""
        parts = [jnp.zeros((len(levels), 0))]
        for place, corners in enumerate(self._corners):
            level, key_level = levels[:, place], jax.random.fold_in(key, place)
            at = jnp.asarray(corners, jnp.float32)[level]
            y = at + LEVEL_NOISE * jax.random.normal(key_level, at.shape)
            # Beyond four deviations another level would be nearer.
            right = (y @ jnp.asarray(corners.T, jnp.float32)).argmax(axis=1) == level
            parts.append(jnp.where(right[:, None], y, at))
        return jnp.concatenate(parts, axis=1)

    def _nearest(self, y: Any) -> Any:
        """The level of each category whose corner is nearest to states [n, d]: [n, categories]."""
        blocks = [self.blocks[self.columns[i].name] for i in self._categorical]
        parts = [
            (y[:, block] @ corners.T.astype(y.dtype)).argmax(axis=1)[:, None]
            for block, corners in zip(blocks, self._corners, strict=True)
        ]
        like = namespace(y)
        return like.concatenate([like.zeros((len(y), 0), np.int32), *parts], axis=1)

    @property
    def _scales(self) -> list[Scale]:
        normal = self.normal[: len(self.first) - 1]  # of no column there is one, too
        ends = zip(self.first[:-1], self.first[1:], normal, strict=True)
        return [Scale(self.knots_x[i:j], self.knots_y[i:j], bool(n)) for i, j, n in ends]

    @property
    def _corners(self) -> list[np.ndarray]:
        return [_simplex(len(self.columns[i].levels)) for i in self._categorical]

    @property
    def _ordered(self) -> list[int]:
        return [i for i, c in enumerate(self.columns) if c.ordered and not c.constant]

    @property
    def _categorical(self) -> list[int]:
        return [i for i, c in enumerate(self.columns) if not c.ordered and not c.constant]

    @property
    def _column_of(self) -> np.ndarray:
        """The column that each coordinate of a state belongs to, [d]."""
        order = [*self._ordered, *self._categorical]
        return np.repeat(order, [self.columns[i].width for i in order])


def table_frame(columns: Sequence[Column], x: np.ndarray, *, seed: int = 0) -> TableFrame:
    """The frame of a table, fitted to its rows.

    Args:
      columns: what they are.
      x: rows [N, D], see `TableFrame`.
      seed: of the mixture that completes rows.

    Raises:
      ValueError: all columns are constant, or one has missing cells only.
    """
    columns, x = tuple(columns), np.asarray(x, np.float64)
    if not sum(column.width for column in columns):
        raise ValueError("every column of the table is constant: there is nothing to learn")
    scales = []
    for column, values in zip(columns, x.T, strict=True):
        values = values[~np.isnan(values)]
        if not len(values) and column.width:
            raise ValueError(
                f"column {column.name!r} has no value among the {len(x)} training rows; drop it"
            )
        if column.ordered and not column.constant:
            integer = column.kind == "integer"
            scales.append(fit_scale(values, integer=integer, transform=column.transform))
    frame = TableFrame(
        columns=columns,
        knots_x=_some([scale.x for scale in scales]),
        knots_y=_some([scale.y for scale in scales]),
        first=np.cumsum([0, *(len(scale.x) for scale in scales)]),
        normal=_some([np.array([scale.normal]) for scale in scales]).astype(bool),
    )
    if not any(column.missing for column in columns):
        return frame
    return dataclasses.replace(frame, completion=_fit_completion(frame, x, seed))


def _some(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """All in one, and a zero where there are none: a checkpoint holds no empty arrays."""
    return np.concatenate(arrays) if arrays else np.zeros(1)


def frame_like(columns: Sequence[Column]) -> TableFrame:
    """A frame of the structure of one fitted to a table with these columns, without its rows."""
    columns = tuple(columns)
    count = sum(column.ordered and not column.constant for column in columns)
    frame = TableFrame(
        columns=columns,
        knots_x=_some([np.array([-1.0, 1.0])] * count),
        knots_y=_some([np.array([-1.0, 1.0])] * count),
        first=2 * np.arange(count + 1),
        normal=np.zeros(max(count, 1), bool),
    )
    if not any(column.missing for column in columns):
        return frame
    dim = frame.dim
    normal = references.mixture([1.0], np.zeros((1, dim)), np.eye(dim)[None], covariance="full")
    return dataclasses.replace(frame, completion=normal)


def _fit_completion(frame: TableFrame, x: np.ndarray, seed: int) -> GaussianMixture:
    """A mixture of states of rows with missing cells, by stochastic EM.

    Rows completed by draws from the last mixture, then a fit to them, in turn (Celeux and Diebolt
    1985; the data augmentation of Tanner and Wong 1987); at first every coordinate is drawn by
    itself. Variances get d / n added where rows are few.
    """
    from sklearn.mixture import GaussianMixture as ScikitMixture

    x = x[np.random.default_rng(seed).permutation(len(x))[:COMPLETION_ROWS]]
    y, dim = frame.coordinates(x), frame.dim
    components = int(np.clip(len(x) // (10 * dim), 1, COMPLETION_COMPONENTS))
    mixture = references.mixture(
        np.ones(components),
        np.tile(np.nanmean(y, axis=0), (components, 1)),
        np.tile(np.diag(np.nanvar(y, axis=0) + LEVEL_NOISE**2), (components, 1, 1)),
        covariance="full",
    )
    model = ScikitMixture(
        components,
        reg_covar=max(1e-2, dim / len(x)),
        max_iter=20,
        warm_start=True,
        random_state=seed,
    )
    for i in range(COMPLETION_ROUNDS):
        frame = dataclasses.replace(frame, completion=mixture)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it goes on converging in the next round
            model.fit(states(frame, x, seed=seed + i).astype(np.float64))
        fitted = (model.weights_, model.means_, model.covariances_)
        mixture = references.mixture(*fitted, covariance="full")
    return mixture


def _completed(mixture: GaussianMixture, key: Array, y: Array, seen: Array) -> Array:
    """A state [d] whose coordinates that are not `seen` are a draw given those that are.

    The component by its probability given them; then, of one draw z of it, z_u + S_us S_ss^{-1}
    (y_s - z_s), which has mean and covariance of the conditional law.
    """
    key_component, key_noise = jax.random.split(key)
    covariances = jnp.einsum("kij,klj->kil", mixture.factor, mixture.factor)
    eye = jnp.broadcast_to(jnp.eye(mixture.dim), covariances.shape)
    both = jnp.broadcast_to(seen[:, None] & seen[None, :], covariances.shape)
    roots = jnp.linalg.cholesky(jnp.where(both, covariances, eye))
    offsets = jnp.where(seen[None, :], y[None, :] - mixture.means, 0.0)
    white = jax.scipy.linalg.solve_triangular(roots, offsets[..., None], lower=True)[..., 0]
    log_scales = jnp.log(jnp.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    odds = mixture.log_weights - log_scales - 0.5 * jnp.sum(white**2, axis=1)
    k = jax.random.categorical(key_component, odds)
    z = mixture.sample_component(k, jax.random.normal(key_noise, y.shape))
    gain = jax.scipy.linalg.cho_solve((roots[k], True), jnp.where(seen, y - z, 0.0))
    return jnp.where(seen, y, z + covariances[k] @ gain)


def _spread(key: Array, low: Array, high: Array, normal: Any) -> Array:
    """A draw in each stretch: uniform; where y is to be `normal`, of the normal law cut to it."""
    inset = MARGIN * (high - low)
    low, high = low + inset, high - inset
    uniform = low + jax.random.uniform(key, low.shape) * (high - low)
    # It has no draw in an interval of no length.
    cut = jax.random.truncated_normal(key, low, jnp.maximum(high, low + 1e-6))
    return jnp.where(jnp.asarray(normal)[None, :] & (high > low), cut, uniform)


@functools.cache
def _simplex(corners: int) -> np.ndarray:
    """The corners of a regular simplex about 0, `LEVEL_DISTANCE` apart: [L, L - 1]."""
    from scipy.linalg import helmert

    return helmert(corners).T * (LEVEL_DISTANCE / 2**0.5)


@jax.jit
def _entered(frame: TableFrame, key: Array, x: Array) -> tuple[Array, Array]:
    """States [n, d] of prepared data, and which coordinates belong to cells that are there."""
    missing = frame._parts(x)[3]
    return frame.enter(key, x)[0], ~missing[:, frame._column_of]


def _refuse_missing(x: np.ndarray, remedy: str) -> None:
    if isinstance(x, jax.core.Tracer):  # which is not known yet
        return
    missing = np.isnan(x).any(axis=1)
    if missing.any():
        raise ValueError(
            f"row {missing.argmax()} is one of {missing.sum()} with missing cells: {remedy}"
        )
