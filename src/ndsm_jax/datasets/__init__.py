"""Data sets: 2-D toys, torsion angles, digits, MNIST, and a user's own arrays, images or function.

`load(name, ...)` returns a `Dataset`. Beside the names here, `boltzmann` has the torsion model, and
`toys` the parameters of the toys.
"""

from ndsm_jax.datasets.batches import batch_indices
from ndsm_jax.datasets.dataset import (
    MAX_MAGNITUDE,
    MIN_SAMPLES,
    Dataset,
    Options,
    Raw,
    Samples,
    stratified_order,
    validate,
)
from ndsm_jax.datasets.idx import parse_idx
from ndsm_jax.datasets.load import DATASETS, load
from ndsm_jax.datasets.mnist import NUM_DIGITS, half_size, is_original, upside_down
from ndsm_jax.datasets.supports import support_distance
from ndsm_jax.datasets.toys import TOYS

__all__ = [
    "DATASETS",
    "MAX_MAGNITUDE",
    "MIN_SAMPLES",
    "NUM_DIGITS",
    "TOYS",
    "Dataset",
    "Options",
    "Raw",
    "Samples",
    "batch_indices",
    "half_size",
    "is_original",
    "load",
    "parse_idx",
    "stratified_order",
    "support_distance",
    "upside_down",
    "validate",
]
