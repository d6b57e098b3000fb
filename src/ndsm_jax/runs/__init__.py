"""Runs: folders with checkpoints, metrics and pictures, for trainings of any kind."""

from ndsm_jax.runs.checkpoints import Checkpoints, Restored, read_host
from ndsm_jax.runs.lock import locked
from ndsm_jax.runs.loop import NonFiniteError
from ndsm_jax.runs.run import Run, differences, fingerprint, has_checkpoints, in_words
from ndsm_jax.runs.writers import (
    MetricWriter,
    aside,
    check_output,
    json_text,
    read_metrics,
    replace_file,
)

__all__ = [
    "Checkpoints",
    "MetricWriter",
    "NonFiniteError",
    "Restored",
    "Run",
    "aside",
    "check_output",
    "differences",
    "fingerprint",
    "has_checkpoints",
    "in_words",
    "json_text",
    "locked",
    "read_host",
    "read_metrics",
    "replace_file",
]
