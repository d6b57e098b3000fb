"""Frames: from data to the coordinates that the process lives in, and back.

A frame has two ways in, `prepare` once for all data, on the host in float64, and `enter` at every
visit of a data point, compiled and possibly random; and one way out, `leave`. What the data point
and the state must share beyond the state itself, the component it noises in, say, is the
`condition`, on which the score is conditional.

An exported model has its frame within: where JAX traces a row [1, D], in float64
(`jax.enable_x64`), `prepare`, `leave` and `log_det` are compiled, too, outside of components.
"""

from __future__ import annotations

import dataclasses
import zlib
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.arrays import as_array
from ndsm_jax.measurements import Measurement
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.rows import Rows, Stored, each, extent, moments


class Frame(Protocol):
    """From data x [..., D] to states y [..., d], and back. A frozen dataclass and a pytree."""

    @property
    def random(self) -> bool:
        """Whether `enter` uses its key."""

    @property
    def data_dim(self) -> int | None:
        """D; None: any."""

    def prepare(self, x: Rows) -> Any:
        """Data [N, D] -> what `enter` takes, [N, m] float32: all that is the same at each visit.

        Of stored data, see `rows`, when they are read.
        """

    def enter(self, key: Array, x: Array) -> tuple[Array, Any]:
        """Prepared data [B, m] -> states [B, d] and their condition, a pytree of [B, ...]."""

    def leave(self, y: np.ndarray, condition: Any) -> np.ndarray:
        """States [n, d], conditions [n, ...] -> data [n, D], in the precision of the data."""

    def describe(self, condition: Any) -> Array | None:
        """What a network is told of a condition, [..., e]; None: nothing."""

    def log_det(self, x: np.ndarray, condition: Any) -> np.ndarray:
        """log |det dy / dx| at data [n, D]: [n], so that log p(x) = log p(y) + log_det."""

    def measured(self, measurement: Measurement, condition: Any) -> Measurement:
        """What a measurement of data says of their states, given their conditions.

        Raises:
          ValueError: the frame cannot say, as data are no affine function of states.
        """


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """States are the data."""

    random = False

    @property
    def data_dim(self) -> int | None:
        """See `Frame`."""
        return None

    def prepare(self, x: Rows) -> Any:
        """See `Frame`."""
        return each(partial(as_array, dtype=np.float32), x)

    def enter(self, key: Array, x: Array) -> tuple[Array, Any]:
        """See `Frame`."""
        return x, None

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return as_array(y)

    def describe(self, condition: Any) -> Array | None:
        """See `Frame`."""
        return None

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return np.zeros(len(x))

    def measured(self, measurement: Measurement, condition: Any = None) -> Measurement:
        """See `Frame`."""
        return measurement


@partial(jax.tree_util.register_dataclass, data_fields=("shift", "scale"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardised(Identity):
    """y = (x - shift) / scale, coordinate by coordinate. Build it with `standardised`.

    Attributes:
      shift, scale: [D] float64, NumPy: data may lie far from zero, on their scale. A scale of 0
        is that of a constant feature, which leaves as the constant.
    """

    shift: np.ndarray
    scale: np.ndarray

    @property
    def data_dim(self) -> int:
        """See `Frame`."""
        return self.shift.shape[0]

    def prepare(self, x: Rows) -> Any:
        """See `Frame`."""
        scale = np.where(self.scale > 0, self.scale, 1.0)

        def scaled(x: Any) -> Any:
            return ((as_array(x, np.float64) - self.shift) / scale).astype(np.float32)

        return each(scaled, x)

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return as_array(y, np.float64) * self.scale + self.shift

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return np.full(len(x), -np.log(self.scale[self.scale > 0]).sum())

    def measured(self, measurement: Measurement, condition: Any = None) -> Measurement:
        """See `Frame`."""
        return measurement.seen_from(self.scale, self.shift)


def standardised(x: Rows, *, shared: bool = False) -> Standardised:
    """The frame in which every feature of the data has mean 0 and variance 1.

    Found in float64, in one pass over blocks of rows. Constant features become 0.

    Args:
      x: data [N, D], finite.
      shared: one shift and one scale for all features, as the pixels of images have.
    """
    x = x if isinstance(x, Stored) else np.asarray(x)
    mean, variance = moments(x, shared=shared)
    shift, scale = np.broadcast_to(mean, x.shape[1:]), np.broadcast_to(variance**0.5, x.shape[1:])
    # Rounding of the mean leaves a constant feature a tiny deviation.
    constant = scale <= 1e-12 * np.abs(shift)
    first = np.asarray(x[0], np.float64)
    return Standardised(
        shift=np.where(constant, first, shift), scale=np.where(constant, 0.0, scale)
    )


@partial(jax.tree_util.register_dataclass, data_fields=("start",), meta_fields=("period",))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Angles(Identity):
    """Coordinates with a period: states run in the covering space from half a period about 0.

    Drift and score are to be periodic; the score at a state is then that of the wrapped law.

    Attributes:
      start: where the interval of one period in which samples leave starts, in periods: [D], or [1]
        for all coordinates; float64, NumPy. `of` finds that of the data.
      period: of all coordinates (static).
    """

    start: np.ndarray = dataclasses.field(default_factory=lambda: np.array([-0.5]))
    period: float = 2 * np.pi

    @classmethod
    def of(cls, x: Rows, *, period: float = 2 * np.pi) -> Angles:
        """The frame from which samples leave as data x [N, D] are written, finite.

        Each coordinate has the interval from -1/2 period that holds it, else the one from the last
        multiple of half a period below it, such as [0, 2 pi). A coordinate that no such interval
        holds, as of a trajectory that was unwrapped, leaves from -1/2 period.
        """
        found = extent(x if isinstance(x, Stored) else np.asarray(x))
        low, high = (np.asarray(edge, np.float64) / period for edge in found)
        start = np.floor(2 * low) / 2
        about_zero = (low >= -0.5) & (high <= 0.5)
        return cls(start=np.where(about_zero | (high > start + 1), -0.5, start), period=period)

    def prepare(self, x: Rows) -> Any:
        """See `Frame`."""
        return each(lambda x: self._wrapped(x, -0.5).astype(np.float32), x)

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return self._wrapped(y, self.start)

    def on_circles(self, x: np.ndarray) -> np.ndarray:
        """Data [N, D] on circles as long as the period: [N, 2 D], whose distances are chords."""
        turns = 2 * np.pi / self.period
        angles = np.asarray(x, np.float64) * turns
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) / turns

    def _wrapped(self, x: np.ndarray, start: np.ndarray | float) -> np.ndarray:
        low = start * self.period
        return (as_array(x, np.float64) - low) % self.period + low


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("levels",))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels(Identity):
    """Grey levels in [-1, 1], made continuous by uniform noise of one level at every visit.

    Uniform dequantisation (Theis et al. 2016, 1511.01844): the density of y bounds the probability
    of the levels. Samples leave rounded to a level.
    """

    levels: int = 256
    random = True

    @property
    def step(self) -> float:
        """Between two levels."""
        return 2 / (self.levels - 1)

    def enter(self, key: Array, x: Array) -> tuple[Array, Any]:
        """See `Frame`."""
        return x + self.step * (jax.random.uniform(key, x.shape) - 0.5), None

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        half = (self.levels - 1) / 2
        return ((as_array(y) + 1) * half).round().clip(0, self.levels - 1) / half - 1

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`: the entropy of the noise.

        Then log p(y) + log_det is, in the mean over y, at most the log probability of the levels.
        """
        return np.full(len(x), np.shape(x)[1] * np.log(self.step))


@partial(jax.tree_util.register_dataclass, data_fields=("mixture",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class OfComponent(Identity):
    """The coordinates y = Sigma_c^{-1/2} (x - mu_c) of a component c of a mixture, N(0, I) there.

    With `processes.ornstein_uhlenbeck` every component c noises linearly towards itself,
    X_t | x ~ N(mu_c + e^-t (x - mu_c), (1 - e^-2t) Sigma_c), in relaxation times of its own: the
    process of 2410.19149. With one component it whitens the data, or standardises them.

    The component is drawn from its posterior P(c | x), anew at each visit. 2410.19149 fixes one
    component for a data point; where the components are far apart that is the same. Where they
    overlap, draws keep p(x | c) smooth, and at a maximum of the likelihood its mean, its variance
    and the fraction of the data in c are those of the mixture, so that the reverse process starts
    with the right weights.

    The condition is the component, int32; a network is told its mean.
    """

    mixture: GaussianMixture
    random = True

    @property
    def data_dim(self) -> int:
        """See `Frame`."""
        return self.mixture.dim

    def enter(self, key: Array, x: Array) -> tuple[Array, Array]:
        """See `Frame`."""
        odds = jnp.log(self.mixture.responsibilities(x))
        component = jax.random.categorical(key, odds).astype(jnp.int32)
        return self.mixture.standardise(component, x), component

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return np.asarray(_leave_component(self.mixture, jnp.asarray(condition), jnp.asarray(y)))

    def describe(self, condition: Array) -> Array:
        """The component's mean, [..., d]."""
        return self.mixture.means[condition]

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        log_dets = np.asarray(self.mixture.log_det_covariances())
        return -0.5 * log_dets[np.asarray(condition)]

    def measured(self, measurement: Measurement, condition: Any = None) -> Measurement:
        """See `Frame`."""
        component = np.asarray(condition)
        return measurement.seen_from(
            self.mixture.roots()[component], np.asarray(self.mixture.means)[component]
        )


@jax.jit
def _leave_component(mixture: GaussianMixture, component: Array, y: Array) -> Array:
    return mixture.sample_component(component, y)


@partial(jax.tree_util.register_dataclass, data_fields=("std",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmented(Identity):
    """y = (x, v): data with velocities v ~ N(0, std^2 I), drawn anew at each visit.

    For processes of positions and velocities, such as `processes.critically_damped` (2112.07068,
    whose std is sqrt(0.04 M)). Samples leave without their velocities.
    """

    std: Array
    random = True

    def enter(self, key: Array, x: Array) -> tuple[Array, Any]:
        """See `Frame`."""
        return jnp.concatenate([x, self.std * jax.random.normal(key, x.shape)], axis=-1), None

    def leave(self, y: np.ndarray, condition: Any = None) -> np.ndarray:
        """See `Frame`."""
        return as_array(y)[..., : np.shape(y)[-1] // 2]

    def log_det(self, x: np.ndarray, condition: Any = None) -> np.ndarray:
        """Not a change of variables. Raises ValueError."""
        raise ValueError("velocities are marginalised out: samples have no density through them")

    def measured(self, measurement: Measurement, condition: Any = None) -> Measurement:
        """See `Frame`."""
        dim = measurement.dim
        return measurement.seen_from(np.eye(dim, 2 * dim), np.zeros(dim))


@partial(jax.tree_util.register_dataclass, data_fields=("outer", "inner"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Chained:
    """`outer`, then `inner`, which has nothing to prepare where `outer` draws."""

    outer: Frame
    inner: Frame

    @property
    def random(self) -> bool:
        """See `Frame`."""
        return self.outer.random or self.inner.random

    @property
    def data_dim(self) -> int | None:
        """See `Frame`."""
        return self.outer.data_dim or self.inner.data_dim

    def prepare(self, x: Rows) -> Any:
        """See `Frame`."""
        x = self.outer.prepare(x)
        return x if self.outer.random else self.inner.prepare(x)

    def enter(self, key: Array, x: Array) -> tuple[Array, Any]:
        """See `Frame`."""
        if self.outer.random:
            key_outer, key = jax.random.split(key)
            x, _ = self.outer.enter(key_outer, x)
        return self.inner.enter(key, x)

    def leave(self, y: np.ndarray, condition: Any) -> np.ndarray:
        """See `Frame`."""
        return self.outer.leave(self.inner.leave(y, condition), None)

    def describe(self, condition: Any) -> Array | None:
        """See `Frame`."""
        return self.inner.describe(condition)

    def log_det(self, x: np.ndarray, condition: Any) -> np.ndarray:
        """See `Frame`."""
        inner = self.inner.log_det(self.outer.prepare(x), condition)
        return self.outer.log_det(x, None) + inner

    def measured(self, measurement: Measurement, condition: Any) -> Measurement:
        """See `Frame`."""
        return self.inner.measured(self.outer.measured(measurement, None), condition)


def chained(outer: Frame, inner: Frame) -> Frame:
    """First `outer`, then `inner`."""
    if type(inner) is Identity:
        return outer
    return inner if type(outer) is Identity else Chained(outer=outer, inner=inner)


def states(frame: Frame, x: Rows, *, seed: int = 0, by_item: bool = False, chunk: int = 500) -> Any:
    """Data [N, D] as the states [N, d] of one visit, a function of the seed; a few at a time.

    With `by_item` what is drawn for an item depends on it and the seed alone, whatever stands
    beside it, so that equal items get equal states. Stored data become stored states, by item.
    """
    if isinstance(x, Stored) and frame.random:
        return x.then(partial(states, frame, seed=seed, by_item=True, chunk=chunk))
    prepared = frame.prepare(x)
    if not frame.random:
        return prepared
    key, padding = jax.random.key(seed), -len(prepared) % chunk
    padded = np.pad(prepared, ((0, padding), (0, 0)))
    parts = padded.reshape(-1, chunk, padded.shape[1])
    if by_item:
        digests = [zlib.crc32(row.tobytes()) for row in np.ascontiguousarray(padded)]
        keys = jax.vmap(partial(jax.random.fold_in, key))(np.array(digests, np.uint32))
        pairs = zip(keys.reshape(-1, chunk), parts, strict=True)
        found = [_enter_each(frame, *pair) for pair in pairs]
    else:
        found = [_enter(frame, jax.random.fold_in(key, i), part) for i, part in enumerate(parts)]
    return np.concatenate(found)[: len(prepared)]


@jax.jit
def _enter(frame: Frame, key: Array, x: Array) -> Array:
    return frame.enter(key, x)[0]


@jax.jit
def _enter_each(frame: Frame, keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key, item: frame.enter(key, item[None])[0][0])(keys, x)


def period(frame: Frame) -> float | None:
    """The period of the coordinates that enter a frame, or None."""
    outer = frame.outer if isinstance(frame, Chained) else frame
    return outer.period if isinstance(outer, Angles) else None


def component_mixture(frame: Frame) -> GaussianMixture | None:
    """The mixture in whose components states live, or None."""
    inner = frame.inner if isinstance(frame, Chained) else frame
    return inner.mixture if isinstance(inner, OfComponent) else None


def outside(frame: Frame) -> Frame:
    """The frame without its component, if states live in one."""
    if component_mixture(frame) is None:
        return frame
    return frame.outer if isinstance(frame, Chained) else Identity()
