"""Noising processes. A new one is a function here or in a file of one's own that returns a
`Process`; `process` makes one of any drift and diffusion."""

from ndsm_jax.processes.langevin import ISOTROPIC, RELAXATION_TIMES, langevin
from ndsm_jax.processes.linear import (
    critically_damped,
    ornstein_uhlenbeck,
    straight_line,
    sub_variance_preserving,
    variance_exploding,
    variance_preserving,
    wrapped,
)
from ndsm_jax.processes.physics import (
    Maxwell,
    active_swimmer,
    double_well,
    duffing,
    lorenz63,
    underdamped,
)
from ndsm_jax.processes.process import (
    DriftFn,
    Known,
    Process,
    ScoreFn,
    noisy_from_the_start,
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
    "Maxwell",
    "Process",
    "ScoreFn",
    "active_swimmer",
    "critically_damped",
    "double_well",
    "duffing",
    "langevin",
    "lorenz63",
    "noisy_from_the_start",
    "ornstein_uhlenbeck",
    "probability_flow",
    "process",
    "pull_back",
    "reverse_drift",
    "straight_line",
    "sub_variance_preserving",
    "underdamped",
    "variance_exploding",
    "variance_preserving",
    "wrapped",
]
