"""Torsion angles with a broken mirror symmetry and an exact density (ndsm_jax.boltzmann).

The variant 'paper' takes NDSM-CV and its settings from 2405.15625, and 'ou' its baseline,
OU + DSM, both as in gm2d.py. The exact kernel's grid costs nothing: it is as fine as the sampler's.

  python experiments/train.py --config=configs/torsion.py --workdir=runs/torsion
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (path-space DSM), 'paper', 'ou' or 'smoke'."""
    c = config.default()
    c.data.name = "torsion"
    c.mixture.num_components = 8
    c.network.width = 64
    c.network.depth = 4
    c.network.time_features = 16
    c.train.steps = 5000
    c.train.log_every = 100
    c.train.checkpoint_every = 2500
    c.train.picture_every = 0
    c.sample.num = 5000
    c.sample.chunk = 5000
    ou = config.PAPER | {
        "objective": {"name": "dsm"},
        "process": {"name": "ornstein_uhlenbeck"},
        "noising": config.PAPER["noising"] | {"steps": 1000, "weight": "variance"},
    }
    paper = config.PAPER | {
        "process": {"horizon": 1.0},
        "noising": config.PAPER["noising"] | {"steps": 200},  # short for the smallest variance
    }
    return config.variant(c, variant, paper=paper, ou=ou)
