"""Linear measurements of points: what is known of them, exactly or up to Gaussian noise.

`given` for coordinates, of which every row may have its own, and `linear` for any A x + noise.
Both are `Measurement`s: readings in orthonormal directions with independent noise each. A reading
that is missing has infinite variance, so that rows with different gaps are arrays of one shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from ndsm_jax.checks import COUNT, SHAPE, arguments


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "variance", "directions"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Readings V x + N(0, diag(variance)) of n points x [n, d], V with orthonormal rows.

    Built by `given` or `linear`, in float64; compiled code has it in float32.

    Attributes:
      value: what was read [n, m]; 0 where nothing was.
      variance: of the noise [n, m]; 0: exact, infinity: nothing was read.
      directions: V, [m, d] or one a row [n, m, d]; None: the coordinates, m = d.
    """

    value: Any
    variance: Any
    directions: Any = None

    def __len__(self) -> int:
        return self.value.shape[0]

    @property
    def dim(self) -> int:
        """d."""
        return (self.value if self.directions is None else self.directions).shape[-1]

    def readings(self, x: Array) -> Array:
        """V x: [n, ..., d] -> [n, ..., m]; of one point alone, [..., d] -> [..., m]."""
        return self._product("md,d->m", x)

    def spread(self, r: Array) -> Array:
        """V^T r: [n, ..., m] -> [n, ..., d], and likewise."""
        return self._product("md,m->d", r)

    def _product(self, subscripts: str, x: Array) -> Array:
        if self.directions is None:
            return x
        v, vector, result = subscripts.replace("->", ",").split(",")
        rows = "n" if self.directions.ndim == 3 else ""
        full = f"{rows}{v},{rows}...{vector}->{rows}...{result}"
        return jnp.einsum(full, self.directions, x, precision="highest")

    def by_rows(self, function: Callable[..., Any], *args: Any, batch: int | None = None) -> Any:
        """function(measurement, *args) row by row, args with leading axis n; traceable by JAX.

        The function gets a measurement of one point, value [m]. All rows at once, or `batch` of
        them at a time in bounded memory.
        """
        own = self.directions is not None and self.directions.ndim == 3

        def row(parts: Any) -> Any:
            value, variance, directions, args = parts
            v = directions if own else self.directions
            return function(Measurement(value=value, variance=variance, directions=v), *args)

        parts = (self.value, self.variance, self.directions if own else None, args)
        if batch is None:
            return jax.vmap(row)(parts)
        return jax.lax.map(row, parts, batch_size=batch)

    def rows(self, take: Callable[[Any], Any]) -> Measurement:
        """With `take` applied to all arrays whose leading axis is that of the points."""
        own = self.directions is not None and self.directions.ndim == 3
        return Measurement(
            value=take(self.value),
            variance=take(self.variance),
            directions=take(self.directions) if own else self.directions,
        )

    def of(self, num: int) -> Measurement:
        """Of `num` points: itself, or the one row that it has for all of them.

        Raises:
          ValueError: it has another number of rows.
        """
        if len(self) not in (1, num):
            raise ValueError(f"measurement: {len(self)} rows for {num} samples; give one, or {num}")
        return self if len(self) == num else self.rows(lambda a: np.repeat(a, num, axis=0))

    def put(self, x: np.ndarray) -> np.ndarray:
        """Points [n, d] with the coordinates that are exactly given as they were."""
        if self.directions is not None:
            return x
        return np.where(self.variance == 0, self.value, x)

    def seen_from(self, linear: np.ndarray, shift: np.ndarray) -> Measurement:
        """The same measurement of states y, with x = linear y + shift.

        Args:
          linear: on the diagonal, [d] or [n, d], or a matrix [d, e] or [n, d, e].
          shift: [d] or [n, d].

        Raises:
          ValueError: see `linear`.
        """
        linear, shift = (np.asarray(a, np.float64) for a in (linear, shift))
        diagonal = linear.ndim == shift.ndim
        if self.directions is None and diagonal:
            # What a coordinate that stays where it is reads says nothing of its state.
            read = np.isfinite(self.variance) & (linear != 0)
            scale = np.where(linear != 0, linear, 1.0)
            return Measurement(
                value=np.where(read, (self.value - shift) / scale, 0.0),
                variance=np.where(read, self.variance / scale**2, np.inf),
            )
        v = np.eye(self.dim) if self.directions is None else self.directions
        matrix = v * linear[..., None, :] if diagonal else v @ linear
        offset = np.einsum("...md,...d->...m", v, shift)
        return _orthonormal(matrix, self.value - offset, self.variance, None)


@arguments(x="numbers [...]", noise="finite numbers [...]")
def given(x: ArrayLike, *, noise: ArrayLike = 0.0) -> Measurement:
    """Coordinates of points x [n, d] (or of one, [d]); NaN where a coordinate is not known.

    Args:
      x: the points.
      noise: standard deviation of an error in them, any shape that fits that of x; 0: none.

    Raises:
      ValueError: infinite values, or noise that is negative or not finite.
    """
    x = np.atleast_2d(np.asarray(x, np.float64))
    read = ~np.isnan(x)
    variance = _variance(noise, x.shape)
    return Measurement(value=_values(x), variance=np.where(read, variance, np.inf))


@arguments(
    matrix="finite numbers [m, d]",
    value="numbers [...]",
    noise="finite numbers [...]",
    covariance="finite numbers [m, m]",
)
def linear(
    matrix: ArrayLike,
    value: ArrayLike,
    *,
    noise: ArrayLike = 0.0,
    covariance: ArrayLike | None = None,
) -> Measurement:
    """Measurements value = A x + noise of points x, A [m, d] and value [n, m] (or of one, [m]).

    With A = U S W^T, b = S^-1 U^T value reads W^T x with noise of covariance C = S^-1 U^T R U S^-1,
    and with C = Q diag(variance) Q^T the readings Q^T b are independent. That holds for any R,
    singular or 0.

    Args:
      matrix: A, of independent rows.
      value: NaN where nothing was read.
      noise: its standard deviation, a number or one for each row of A [m]; 0: exact.
      covariance: of the noise, R [m, m], in place of its standard deviation.

    Raises:
      ValueError: shapes that do not fit, rows of A that are not independent, infinite values, noise
        that is negative, or a covariance that is not positive semi-definite.
    """
    matrix, value = np.asarray(matrix, np.float64), np.atleast_2d(np.asarray(value, np.float64))
    if matrix.ndim != 2 or value.shape[1:] != matrix.shape[:1]:
        raise ValueError(
            f"a measurement needs a matrix [m, d] and values [n, m], got {matrix.shape} and"
            f" {value.shape}"
        )
    variance = _variance(noise, value.shape)
    if covariance is not None:
        covariance = np.asarray(covariance, np.float64)
        if covariance.shape != (len(matrix), len(matrix)):
            raise ValueError(
                f"the covariance of {len(matrix)} readings has shape {covariance.shape}"
            )
    read = ~np.isnan(value)
    return _orthonormal(matrix, _values(value), np.where(read, variance, np.inf), covariance)


@arguments(shape=SHAPE, factor=COUNT)
def mean_pooling(shape: tuple[int, ...], factor: int) -> np.ndarray:
    """The matrix that averages blocks of factor x factor pixels of images [H, W, C]: [m, H W C].

    Raises:
      ValueError: not the shape of an image, or sides that are not multiples of the factor.
    """
    if len(shape) != 3 or factor < 1 or shape[0] % factor or shape[1] % factor:
        raise ValueError(f"blocks of {factor} x {factor} pixels do not tile items of shape {shape}")
    height, width = (np.kron(np.eye(s // factor), np.full(factor, 1 / factor)) for s in shape[:2])
    return np.kron(np.kron(height, width), np.eye(shape[2]))


def _values(x: np.ndarray) -> np.ndarray:
    if np.isinf(x).any():
        raise ValueError("a measurement has infinite values; NaN stands for what was not read")
    return np.where(np.isnan(x), 0.0, x)


def _variance(noise: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.asarray(noise, np.float64)
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise ValueError("the noise of a measurement is a standard deviation: 0 or more, finite")
    try:
        return np.broadcast_to(noise**2, shape)
    except ValueError:
        raise ValueError(
            f"measurements: noise of shape {list(noise.shape)} for readings of shape {list(shape)};"
            " give a number, or one a reading"
        ) from None


def _orthonormal(
    matrix: np.ndarray, value: np.ndarray, variance: np.ndarray, covariance: np.ndarray | None
) -> Measurement:
    """The measurement of `linear`, A [m, d] or [n, m, d]; a variance of infinity: nothing read."""
    read = np.isfinite(variance) & (np.abs(matrix).max(axis=-1) > 0)
    if covariance is not None:
        noise = np.broadcast_to(covariance, (*variance.shape, variance.shape[-1]))
    else:
        noise = np.where(read, variance, 0.0)[..., None] * np.eye(variance.shape[-1])
    if (read == read[0]).all() and (noise == noise[0]).all():
        read, noise = read[0], noise[0]  # one decomposition for all rows
    u, s, w = np.linalg.svd(np.where(read[..., None], matrix, 0.0), full_matrices=False)
    kept = s > s.max(axis=-1, keepdims=True) * max(matrix.shape[-2:]) * np.finfo(np.float64).eps
    if (kept.sum(axis=-1) != read.sum(axis=-1)).any():
        raise ValueError(
            "the rows of a measurement's matrix are not independent; average readings of the same"
            " thing, and leave one of them"
        )
    u = np.where(kept[..., None, :], u, 0.0) / np.where(kept, s, 1.0)[..., None, :]
    c = np.swapaxes(u, -1, -2) @ noise @ u
    # What was not read must not mix with what was: it gets a variance apart from all of theirs.
    scale = np.trace(c, axis1=-2, axis2=-1)[..., None]
    apart = np.where(kept, 0.0, 2 * scale + 1)
    c, q = np.linalg.eigh(c + apart[..., None] * np.eye(s.shape[-1]))
    if (c < -1e-9 * scale).any():
        raise ValueError("the covariance of a measurement's noise is not positive semi-definite")
    unread = c > 1.5 * scale + 0.5
    variance = np.where(unread, np.inf, np.where(c > 1e-12 * scale, c, 0.0))
    turned = np.swapaxes(u @ q, -1, -2)
    value = np.einsum("...jm,...m->...j", turned, value)
    return Measurement(
        value=np.where(unread, 0.0, value),
        variance=np.broadcast_to(variance, value.shape),
        directions=np.swapaxes(q, -1, -2) @ w,
    )
