"""The experiments that `experiments/reproduce.py` knows, one module each.

A module's docstring says what it reproduces; its `reproduce(study)` writes into the study's folder.
"""

import pathlib

from ndsm_jax.reports.study import Changes

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
LOCAL: Changes = {
    "network": {"parameterisation": "local"},
    "noising": {"integrator": "exponential"},
}
"""Local coordinates and their steps, by name: in studies `load_config` leaves no default open."""
