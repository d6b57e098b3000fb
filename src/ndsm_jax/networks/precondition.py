"""Preconditioning: what a network sees of a state and its time, and how its output is a score.

One small class each, without parameters of its own. A new one has `inputs`, `score` and `weight`,
and a name in `networks.PRECONDITIONS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.clock import loss_weight
from ndsm_jax.networks.tells import Tells
from ndsm_jax.processes.process import Process

Coordinate = Callable[[Array], Array]
"""t [...] -> [-1, 1], see `clock.time_coordinate`."""


class Precondition(Protocol):
    """What stands between a network and a score; a frozen dataclass and a pytree."""

    @property
    def starts_at_zero(self) -> bool:
        """Whether a network whose output is zero is a good start."""

    @property
    def tells(self) -> Tells | None:
        """What the network is told beside what it sees, or None."""

    def inputs(self, y: Array, t: Array) -> tuple[Array, Array]:
        """What the network sees of y [n, d] and t [n]: a state [n, d], a time [n] in [-1, 1]."""

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """From the network's output [..., r] at y [..., d], t [...] to the score [..., r]."""

    def weight(self, y: Array, t: Array) -> Array:
        """The loss weight that goes with it, [..., d], [...] -> [...]."""


@partial(jax.tree_util.register_dataclass, data_fields=("process", "coordinate"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Raw:
    """s = net, as published in 2405.15625, with weight 1."""

    process: Process
    coordinate: Coordinate
    starts_at_zero = False

    @property
    def tells(self) -> Tells | None:
        """See `Precondition`."""
        return None

    def inputs(self, y: Array, t: Array) -> tuple[Array, Array]:
        """See `Precondition`."""
        return y, self.coordinate(t)

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        return output

    def weight(self, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        return loss_weight(self.process.clock, "unit")(y, t)


@partial(jax.tree_util.register_dataclass, data_fields=("process", "coordinate"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(Raw):
    """s = net / std(t): the third technique of 2006.09011 and, up to the sign, the noise that
    2006.11239 predicts. Weight v(t)."""

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        return output / self.process.clock.std(t)[..., None]

    def weight(self, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        return loss_weight(self.process.clock, "variance")(y, t)


@partial(jax.tree_util.register_dataclass, data_fields=("process", "coordinate"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual(Scaled):
    """s = grad log reference(y) + net / std(t), exact in the far tails and as t -> T.

    For Langevin noising the probability-flow velocity is then net / std(t). Weight v(t).
    """

    starts_at_zero = True

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        reference = self.process.project(self.process.reference.score(y))
        return reference + output / self.process.clock.std(t)[..., None]


@partial(jax.tree_util.register_dataclass, data_fields=("process", "coordinate"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edm(Residual):
    """s = grad log reference(y) + a(t) net / std(t), a = exp(-decay / 2), weight v / a^2.

    For data of mean 0 and variance 1 and a variance-preserving kernel the network's target,
    std x - a z, then has variance 1 at every time, and weight 1; that is the preconditioning of
    2206.00364, Table 1, written for the score.
    """

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        output = output / self.process.clock.std(t)[..., None]
        output = output * self.process.clock.signal(t)[..., None]
        return self.process.project(self.process.reference.score(y)) + output

    def weight(self, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        return loss_weight(self.process.clock, "edm")(y, t)


@partial(jax.tree_util.register_dataclass, data_fields=("process", "coordinate"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(Raw):
    """The network is the velocity dY/dt = b - g^2 E u / 2 of the probability flow, as in flow
    matching (2210.02747), in the coordinates that noise drives: u = 2 (E^T b - net) / g^2.

    Weight g^4 / 4: that of the score's squared error with which the velocity's has weight 1. For
    `processes.straight_line` the loss is then |net - (z - x)|^2 / 2.
    """

    starts_at_zero = True

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        drift = self.process.project(self.process.drift(y, t))
        return 2 * (drift - output) / self.process.diffusion(t)[..., None] ** 2

    def weight(self, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        return self.process.diffusion(t) ** 4 / 4


def _weight(precondition: Precondition, y: Array, t: Array) -> Array:
    return precondition.weight(y, t)


def weight_of(precondition: Precondition) -> Callable[[Array, Array], Array]:
    """`Precondition.weight` as a pytree, for the constructors of noising."""
    return Partial(_weight, precondition)
