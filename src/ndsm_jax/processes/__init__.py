"""Noising processes. A new one is a function here or in a file of one's own that returns a
`Process`; `process` makes one of any drift and diffusion."""

from ndsm_jax.processes.langevin import ISOTROPIC, RELAXATION_TIMES, langevin
from ndsm_jax.processes.linear import (
    critically_damped,
    ornstein_uhlenbeck,
    variance_exploding,
    variance_preserving,
)
from ndsm_jax.processes.process import (
    DriftFn,
    Known,
    Process,
    ScoreFn,
    probability_flow,
    process,
    pull_back,
    reverse_drift,
)

__all__ = [
    "ISOTROPIC",
    "RELAXATION_TIMES",
    "DriftFn",
    "Known",
    "Process",
    "ScoreFn",
    "critically_damped",
    "langevin",
    "ornstein_uhlenbeck",
    "probability_flow",
    "process",
    "pull_back",
    "reverse_drift",
    "variance_exploding",
    "variance_preserving",
]
