"""From data and a key to a `NoisedBatch`, one file a way of noising."""

from ndsm_jax.noising.batch import (
    TIME_LAWS,
    WEIGHTS,
    NoisedBatch,
    NoisingFn,
    Probed,
    TimeLaw,
    loss_weight,
    time_law,
)
from ndsm_jax.noising.dispatch import Dispatched
from ndsm_jax.noising.kernel import ExactKernel
from ndsm_jax.noising.paths import (
    PATH_WEIGHTS,
    SIMULATIONS,
    FullSpace,
    LocalSteps,
    PathWindows,
    loss_steps,
    make_chain,
    window_starts,
)
from ndsm_jax.noising.quotient import Quotient, TiedQuotient

__all__ = [
    "PATH_WEIGHTS",
    "SIMULATIONS",
    "TIME_LAWS",
    "WEIGHTS",
    "Dispatched",
    "ExactKernel",
    "FullSpace",
    "LocalSteps",
    "NoisedBatch",
    "NoisingFn",
    "PathWindows",
    "Probed",
    "Quotient",
    "TiedQuotient",
    "TimeLaw",
    "loss_steps",
    "loss_weight",
    "make_chain",
    "time_law",
    "window_starts",
]
