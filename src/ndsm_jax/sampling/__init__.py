"""Samplers: the noising process run backwards from its reference measure.

`sample` draws samples; `reverse` is the loop within it, to be used in compiled code. A sampler is a
small frozen dataclass, see `Sampler`; `SAMPLERS` names those of a config.
"""

from ndsm_jax.sampling.composed import PredictorCorrector, RestartFlow
from ndsm_jax.sampling.driver import (
    SAMPLERS,
    Draws,
    Reversal,
    reverse,
    sample,
    sample_chunk,
    trajectories,
)
from ndsm_jax.sampling.flow import AdaptiveFlow, HeunFlow, MultistepFlow, churned
from ndsm_jax.sampling.kernel import denoise, noised, relaxation_kernel
from ndsm_jax.sampling.langevin import AnnealedLangevin
from ndsm_jax.sampling.reverse import MultistepSDE, ReverseSDE, ancestral, ddim
from ndsm_jax.sampling.sampler import DEGENERATE, Hook, Sampler, State, Step
from ndsm_jax.sampling.start import check_components, sample_keys, start_components, start_states

__all__ = [
    "DEGENERATE",
    "SAMPLERS",
    "AdaptiveFlow",
    "AnnealedLangevin",
    "Draws",
    "HeunFlow",
    "Hook",
    "MultistepFlow",
    "MultistepSDE",
    "PredictorCorrector",
    "RestartFlow",
    "Reversal",
    "ReverseSDE",
    "Sampler",
    "State",
    "Step",
    "ancestral",
    "check_components",
    "churned",
    "ddim",
    "denoise",
    "noised",
    "relaxation_kernel",
    "reverse",
    "sample",
    "sample_chunk",
    "sample_keys",
    "start_components",
    "start_states",
    "trajectories",
]
