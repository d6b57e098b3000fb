"""GM+NDSM-CV in the plane: two rings and two bars of unequal weights, as 2405.15625, Section 4.

The network, batch and learning rates are the paper's (A.2).

  python experiments/train.py --config=configs/gm2d.py --workdir=runs/gm2d
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (10,000 steps) or 'smoke'."""
    c = config.default()
    c.data.name = "rings_and_bars"
    c.mixture.num_components = 4
    c.network.width = 32
    c.network.depth = 7
    c.network.skip = False
    c.noising.k = 5
    c.train.batch_size = 50
    c.train.steps = 10_000
    c.train.log_every = 100
    c.train.checkpoint_every = 2000
    c.train.picture_every = 2000
    c.sample.num = 10_000
    return config.variant(c, variant)
