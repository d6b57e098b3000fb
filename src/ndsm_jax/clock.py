"""The process's own clock: how much noise there is at a time, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from scipy.special import expit


@partial(jax.tree_util.register_dataclass, data_fields=("decay", "saturation"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """The local kernel variance v(t) = saturation (1 - exp(-x(t))), from which all scales follow.

    Time grids, laws of training times, loss weights and preconditioning ask nothing else of a
    process. For a linear process v is the variance of its kernel.

    Attributes:
      decay: x(t) [...] -> [...], increasing from x(0) = 0.
      saturation: the limit of v(t) for t -> infinity (a scalar).
    """

    decay: Callable[[Array], Array]
    saturation: Array

    def variance(self, t: Array) -> Array:
        """v(t) [...], in squared units of the state."""
        return -self.saturation * jnp.expm1(-self.decay(t))

    def std(self, t: Array) -> Array:
        """sqrt(v(t)) [...]: the scale by which a preconditioned network is divided."""
        return jnp.sqrt(self.variance(t))

    def signal(self, t: Array) -> Array:
        """a(t) = exp(-x(t) / 2) [...], what is left of a deviation within its mode."""
        return jnp.exp(-0.5 * self.decay(t))

    def time(self, t: Array) -> Array:
        """The process's own time, log v(t) - log(1 - v(t) / v(infinity)): [...] -> [...].

        It is minus a log signal-to-noise ratio: equal steps are geometric in t while little noise
        has been added, and uniform in t, a fixed fraction of the relaxation time, once v saturates.
        Written as log(saturation) + x + log(1 - exp(-x)), which is finite for any t > 0.
        """
        x = jnp.maximum(self.decay(t), jnp.finfo(jnp.float32).tiny)
        return jnp.log(self.saturation) + x + jnp.log(-jnp.expm1(-x))

    def rate(self, t: Array) -> Array:
        """x'(t) [...], 1 / time."""
        return jax.jvp(self.decay, (t,), (jnp.ones_like(t),))[1]


def _exponential(variance: Array, t: Array) -> Array:
    return 2 * t / variance


def relaxing(variance: Array) -> Clock:
    """The clock of Langevin dynamics, g = sqrt(2), in a Gaussian mode of this variance:

    v(t) = variance (1 - exp(-2 t / variance)).
    """
    return Clock(decay=Partial(_exponential, variance), saturation=variance)


def _driven(diffusion: Callable[[Array], Array], variance: Array, t: Array) -> Array:
    return diffusion(jnp.zeros_like(t)) ** 2 * t / variance


def driven(diffusion: Callable[[Array], Array], variance: Array) -> Clock:
    """The same for noise of strength g: v(t) = variance (1 - exp(-g(0)^2 t / variance))."""
    return Clock(decay=Partial(_driven, Partial(diffusion), variance), saturation=variance)


def _geometric_ladder(u: np.ndarray, ratio: float) -> np.ndarray:
    return ratio**u


def _linear_ladder(u: np.ndarray, ratio: float) -> np.ndarray:
    return 1 - u * (1 - ratio)


def _cosine_ladder(u: np.ndarray, ratio: float) -> np.ndarray:
    return np.cos(u * np.arccos(ratio))


def _squared_cosine_ladder(u: np.ndarray, ratio: float) -> np.ndarray:
    return np.cos(u * np.arccos(ratio**0.5)) ** 2


SIGMOID_SHIFT, SIGMOID_RANGE = 2.5, 7.2
"""Of the sigmoid ladder: where it falls, and how far it reaches on both sides of 0."""


def _sigmoid_ladder(u: np.ndarray, ratio: float) -> np.ndarray:
    ends = np.array([-SIGMOID_RANGE, SIGMOID_RANGE])
    high, low = expit(-ends - SIGMOID_SHIFT)
    fallen = (expit(-(ends[0] + u * (ends[1] - ends[0])) - SIGMOID_SHIFT) - low) / (high - low)
    return ratio + (1 - ratio) * fallen


LADDERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "geometric": _geometric_ladder,
    "linear": _linear_ladder,
    "cosine": _cosine_ladder,
    "squared_cosine": _squared_cosine_ladder,
    "sigmoid": _sigmoid_ladder,
}


def ladder(kind: str, num_levels: int, *, largest: float = 1.0, smallest: float) -> np.ndarray:
    """Noise levels sigma_1 > ... > sigma_L, from `largest` to `smallest`: [L] float64.

    `geometric` is that of NCSN (1907.05600); `linear`, `cosine` = cos(u c), `squared_cosine` and
    `sigmoid` are even in another scale, u = 0, ..., 1 in equal steps. The constants (c, and the
    sigmoid's shift and range) are such that the ladder ends at `smallest`: for levels from 1 to
    0.01 c = pi / (2 alpha) with alpha = 1.0064, and 1.068 for the squared cosine.

    Raises:
      ValueError: unknown kind, fewer than 2 levels, or levels that do not decrease to above 0.
    """
    if kind not in LADDERS:
        raise ValueError(f"ladder: kind={kind!r}: choose one of {', '.join(LADDERS)}")
    if num_levels < 2 or not 0 < smallest < largest:
        raise ValueError(
            f"ladder: {num_levels} levels from {largest:g} to {smallest:g}: at least 2, from a"
            " larger to a smaller one above 0, are needed"
        )
    return largest * LADDERS[kind](np.linspace(0, 1, num_levels), smallest / largest)


TIME_COORDINATES = ("clock", "time")


def _clock_coordinate(clock: Clock, horizon: Array, first: Array, t: Array) -> Array:
    ends = clock.time(jnp.stack([first, horizon]))
    return jnp.clip(2 * (clock.time(t) - ends[0]) / (ends[1] - ends[0]) - 1, -1, 1)


def _time_coordinate(horizon: Array, t: Array) -> Array:
    return 2 * t / horizon - 1


def time_coordinate(
    clock: Clock, horizon: Array, kind: str, *, first: float
) -> Callable[[Array], Array]:
    """What networks see of the time: a function [0, T] -> [-1, 1].

    `clock`: `Clock.time` between the smallest time `first` and T, so that a tenfold smaller time is
    as visible as a tenfold larger one; `time`: t itself, as published.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in TIME_COORDINATES:
        raise ValueError(f"network.time={kind!r}: choose one of {', '.join(TIME_COORDINATES)}")
    if kind == "time":
        return Partial(_time_coordinate, horizon)
    return Partial(_clock_coordinate, clock, horizon, jnp.float32(first))


WEIGHTS = ("variance", "edm", "unit")


def _variance_weight(clock: Clock, y: Array, t: Array) -> Array:
    return clock.variance(t)


def _edm_weight(clock: Clock, y: Array, t: Array) -> Array:
    return clock.variance(t) * jnp.exp(clock.decay(t))


def _unit_weight(y: Array, t: Array) -> Array:
    return jnp.ones_like(t)


def loss_weight(clock: Clock, kind: str) -> Callable[[Array, Array], Array]:
    """The weight of the loss of a state, (y [..., d], t [...]) -> [...].

    `variance`: v(t), which preconditions the score's 1/v scale away; `unit`: 1, as published;
    `edm`: v / a^2, a = exp(-decay / 2), that of 2206.00364, Eq. 8 and Table 1: with the `edm`
    parameterisation the network's own squared error has weight 1 at every time.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"noising.weight={kind!r}: choose one of {', '.join(WEIGHTS)}")
    if kind == "unit":
        return Partial(_unit_weight)
    return Partial({"variance": _variance_weight, "edm": _edm_weight}[kind], clock)
