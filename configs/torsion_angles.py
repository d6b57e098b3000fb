"""Torsion angles as angles: a periodic network, and processes on the torus (docs/angles.md).

The reference is an energy that is mirror-symmetric, and whose barriers and wells are 25 % off, as
those of a force field may be; its four wells get the shares that they have in the data. The variant
'wrapped' noises towards the uniform law instead.

  python experiments/train.py --config=configs/torsion_angles.py --workdir=runs/torsion_angles
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from ndsm_jax import config, references
from ndsm_jax.datasets.boltzmann import EVEN_TERMS, TorsionModel

WRAPPED: dict[str, dict[str, Any]] = {
    "process": {"name": "wrapped"},
    "objective": {"name": "dsm"},
    "reference": {"name": "auto", "reweight": 0},
}

SIGNS = (1, -1, -1, -1, 1)
"""Of the errors. Of all 32 choices they make a reference of about the mean divergence."""


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (path-space DSM of the energy), 'wrapped' or 'smoke'."""
    c = config.default()
    c.data.name = "torsion_angles"
    c.data.frame = "angles"
    c.reference.name = f"{__file__}:approximate_energy"
    c.reference.reweight = 4
    c.network.width = 64
    c.network.depth = 4
    c.network.time_features = 16
    c.train.steps = 5000
    c.train.log_every = 100
    c.train.checkpoint_every = 2500
    c.train.picture_every = 0
    c.sample.num = 5000
    c.sample.chunk = 5000
    return config.variant(c, variant, wrapped=WRAPPED)


def approximate_energy(states: np.ndarray, error: float = 0.25) -> references.Energy:
    """A reference for any data: `TorsionModel` without chirality, its terms c (1 +- error)."""
    terms = tuple(
        (c * (1 + sign * error), m, n) for (c, m, n), sign in zip(EVEN_TERMS, SIGNS, strict=True)
    )
    model = TorsionModel(chirality=0.0, even_terms=terms)
    draws = model.sample_angles(np.random.default_rng(0), 50_000)
    return references.energy(Partial(_energy, jnp.asarray(terms)), draws)


def _energy(terms: jax.Array, angles: jax.Array) -> jax.Array:
    """sum_j c_j cos(m_j phi + n_j psi), in kT, of angles [2]."""
    strength, m, n = terms.T
    return jnp.sum(strength * jnp.cos(m * angles[0] + n * angles[1]))
