"""The experiments that `experiments/reproduce.py` knows, one module each.

A module's docstring says what it reproduces; its `reproduce(study)` writes into the study's folder.
"""

import pathlib

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
