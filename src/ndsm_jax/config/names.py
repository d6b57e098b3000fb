"""Names in a config and what they stand for, where the package itself has no dict of them."""

from __future__ import annotations

from collections.abc import Callable

from ndsm_jax import processes
from ndsm_jax.processes import Process

PROCESSES: dict[str, Callable[..., Process]] = {
    "langevin": processes.langevin,
    "component_ou": processes.ornstein_uhlenbeck,
    "ornstein_uhlenbeck": processes.ornstein_uhlenbeck,
    "variance_preserving": processes.variance_preserving,
    "variance_exploding": processes.variance_exploding,
    "critically_damped": processes.critically_damped,
}
"""A constructor that takes a `reference`, or the `dim` of the data, and keys of the section process
by their names. `component_ou` runs in the coordinates of components, see `frames.OfComponent`."""

REFERENCES = ("auto", "mixture", "student_t", "logistic", "uniform_torus")

DATA_FRAMES = ("auto", "identity", "standardised", "shared", "angles", "pixels")
