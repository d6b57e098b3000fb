"""Names in a config and their constructors, where the package itself has no dict of them.

A constructor gets the keys of its section that its signature names.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from ndsm_jax import frames, processes, references
from ndsm_jax.frames import Frame
from ndsm_jax.processes import Process
from ndsm_jax.references import GaussianMixture, Reference

Framed = Process | tuple[Process, Frame]
"""A process, or one with the frame that it needs after that of the data."""


def _component_ou(reference: GaussianMixture, *, horizon: float | None) -> Framed:
    process = processes.ornstein_uhlenbeck(reference.dim, horizon=horizon)
    return process, frames.OfComponent(mixture=reference)


def _component_flow(reference: GaussianMixture, *, horizon: float | None) -> Framed:
    process = processes.straight_line(reference.dim, horizon=horizon)
    return process, frames.OfComponent(mixture=reference)


def _variance_exploding(reference: Reference, *, sigma_min: float, horizon: float | None) -> Framed:
    sigma_max = float(reference.typical_variance()) ** 0.5
    return processes.variance_exploding(
        reference.dim, sigma_min=sigma_min, sigma_max=sigma_max, horizon=horizon
    )


def _critically_damped(dim: int, *, mass: float, rate: float, horizon: float | None) -> Framed:
    process = processes.critically_damped(dim, mass=mass, rate=rate, horizon=horizon)
    return process, frames.Augmented(std=jnp.sqrt(0.04 * jnp.float32(mass)))


PROCESSES: dict[str, Callable[..., Framed]] = {
    "langevin": processes.langevin,
    "component_ou": _component_ou,
    "component_flow": _component_flow,
    "ornstein_uhlenbeck": processes.ornstein_uhlenbeck,
    "variance_preserving": processes.variance_preserving,
    "sub_variance_preserving": processes.sub_variance_preserving,
    "straight_line": processes.straight_line,
    "variance_exploding": _variance_exploding,
    "wrapped": processes.wrapped,
    "critically_damped": _critically_damped,
}
"""Of the `reference`, or of its `dim`."""


IN_COMPONENTS = ("component_ou", "component_flow")
"""Processes that run in the coordinates of a component of the mixture, `frames.OfComponent`."""


NONLINEAR = ("langevin",)
"""Processes that take any reference and are simulated, as those of the user's own are."""


def _uniform_torus(states: np.ndarray) -> Reference:
    return references.uniform_torus(states.shape[1])


FITS: dict[str, Callable[..., Reference]] = {
    "student_t": references.fit_student_t,
    "logistic": references.fit_logistic,
    "uniform_torus": _uniform_torus,
}
"""References other than a mixture, fitted to states [N, d]."""

REFERENCES = ("auto", "mixture", *FITS)

DATA_FRAMES = ("auto", "identity", "standardised", "shared", "angles", "pixels")
