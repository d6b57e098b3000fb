"""Names in a config and their constructors, where the package itself has no dict of them.

A constructor gets the keys of its section that its signature names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ndsm_jax import processes, references
from ndsm_jax.processes import Process
from ndsm_jax.references import Reference

PROCESSES: dict[str, Callable[..., Process]] = {
    "langevin": processes.langevin,
    "component_ou": processes.ornstein_uhlenbeck,
    "ornstein_uhlenbeck": processes.ornstein_uhlenbeck,
    "variance_preserving": processes.variance_preserving,
    "variance_exploding": processes.variance_exploding,
    "critically_damped": processes.critically_damped,
}
"""Of a `reference`, or of the `dim` of the data. `component_ou` runs in the coordinates of
components, see `frames.OfComponent`."""


def _uniform_torus(states: np.ndarray, *, period: float) -> Reference:
    return references.uniform_torus(states.shape[1], period=period)


FITS: dict[str, Callable[..., Reference]] = {
    "student_t": references.fit_student_t,
    "logistic": references.fit_logistic,
    "uniform_torus": _uniform_torus,
}
"""References other than a mixture, fitted to states [N, d]."""

REFERENCES = ("auto", "mixture", *FITS)

DATA_FRAMES = ("auto", "identity", "standardised", "shared", "angles", "pixels")
