"""The contract of a reference measure: what the process starts from in reverse."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jax import Array


@runtime_checkable
class Reference(Protocol):
    """A law with a known score on R^d: law at the horizon, and often what the drift is made of.

    A frozen dataclass that is a pytree, so that a compiled step takes it as an argument. Whatever
    else a reference can (components, responsibilities, a quotient) is the Gaussian mixture's own.
    """

    @property
    def dim(self) -> int:
        """d."""

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Independent draws [*shape, d]; traceable by JAX."""

    def log_prob(self, y: Array) -> Array:
        """Log density, [..., d] -> [...].

        A reference for which it is known up to a constant only has an attribute `normalised` that
        is false, see `Energy`: a likelihood is then refused. One that is made of others asks
        `has_constant` of them.
        """

    def score(self, y: Array) -> Array:
        """grad log density: [..., d] -> [..., d]."""

    def typical_variance(self) -> Array:
        """sigma^2, a scalar: the variance per dimension within a mode, which sets the clock."""

    def stiffness(self) -> float:
        """Largest curvature of -log density, 1 / variance: what explicit steps must resolve."""


def has_constant(reference: Reference) -> bool:
    """Whether `log_prob` has its constant: a law of which it is not known says so, see there."""
    return bool(getattr(reference, "normalised", True))
