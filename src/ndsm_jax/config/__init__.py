"""Configs: what an option is, presets, and the assembly of an experiment from both."""

from ndsm_jax.config.effect import check_effect, has_effect, reference
from ndsm_jax.config.presets import BASELINES, EDM, PAPER, PAPER_IMAGES, SMOKE, TABLE, UNET, variant
from ndsm_jax.config.sections import (
    AUTOENCODERS,
    Config,
    DataConfig,
    TrainConfig,
    check_key,
    default,
)

__all__ = [
    "AUTOENCODERS",
    "BASELINES",
    "EDM",
    "PAPER",
    "PAPER_IMAGES",
    "SMOKE",
    "TABLE",
    "UNET",
    "Config",
    "DataConfig",
    "TrainConfig",
    "check_effect",
    "check_key",
    "default",
    "has_effect",
    "reference",
    "variant",
]
