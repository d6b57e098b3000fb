"""From data and a key to a `NoisedBatch`, one file a way of noising, each with a constructor."""

from ndsm_jax.noising.batch import (
    TIME_LAWS,
    NoisedBatch,
    NoisingFn,
    Probed,
    TimeLaw,
    Weight,
    time_law,
)
from ndsm_jax.noising.chain import (
    PATH_WEIGHTS,
    SIMULATIONS,
    FullSpace,
    Grid,
    make_chain,
    relaxing_variance,
    walk,
)
from ndsm_jax.noising.kernel import ExactKernel, exact_kernel, stable_target
from ndsm_jax.noising.linearised import (
    JACOBIANS,
    SCHEDULES,
    LinearisedWindows,
    LocalGaussian,
    controlled_starts,
    linearise,
    linearised_windows,
    num_paths,
)
from ndsm_jax.noising.local import LocalSteps, local_steps, loss_steps
from ndsm_jax.noising.modes import Modes
from ndsm_jax.noising.quotient import Quotient, TiedQuotient
from ndsm_jax.noising.simulated import states_at, with_simulated_reference
from ndsm_jax.noising.windows import PathWindows, path_windows, window_starts

__all__ = [
    "JACOBIANS",
    "PATH_WEIGHTS",
    "SCHEDULES",
    "SIMULATIONS",
    "TIME_LAWS",
    "ExactKernel",
    "FullSpace",
    "Grid",
    "LinearisedWindows",
    "LocalGaussian",
    "LocalSteps",
    "Modes",
    "NoisedBatch",
    "NoisingFn",
    "PathWindows",
    "Probed",
    "Quotient",
    "TiedQuotient",
    "TimeLaw",
    "Weight",
    "controlled_starts",
    "exact_kernel",
    "linearise",
    "linearised_windows",
    "local_steps",
    "loss_steps",
    "make_chain",
    "num_paths",
    "path_windows",
    "relaxing_variance",
    "stable_target",
    "states_at",
    "time_law",
    "walk",
    "window_starts",
    "with_simulated_reference",
]
