"""Rings and bars of unequal weights in the plane, as 2405.15625, Section 4.

Network, batch and learning rates are the paper's (A.2). The variant 'paper' takes the rest from it
as well: NDSM-CV, raw score, uniform times, unit weight, a fixed loss step of 1e-3 and no average;
'ou' is its baseline, DSM for an Ornstein-Uhlenbeck process. Otherwise path-space DSM with a control
variate, whose second evaluation costs little here. The paper does not state its horizon; 1.0 in 100
steps is close to the stated simulation step, 0.00998.

  python experiments/train.py --config=configs/gm2d.py --workdir=runs/gm2d
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (10,000 steps), 'paper', 'ou' and other baselines, or 'smoke'."""
    c = config.default()
    c.data.name = "rings_and_bars"
    c.mixture.num_components = 4
    c.objective.name = "path_dsm_cv"
    c.control_variate.kind = "optimal"
    c.network.width = 32
    c.network.depth = 7
    c.network.skip = False
    c.network.time_features = 0
    c.noising.k = 5
    c.train.batch_size = 50
    c.train.steps = 10_000
    c.train.log_every = 100
    c.train.checkpoint_every = 2000
    c.train.picture_every = 2000
    c.sample.num = 10_000
    paper = config.PAPER | {"process": {"horizon": 1.0}}
    ou = config.PAPER | {
        "process": {"name": "ornstein_uhlenbeck"},
        "objective": {"name": "dsm"},
        "noising": config.PAPER["noising"] | {"steps": 1000, "weight": "variance", "k": 1},
        "train": {"batch_size": 250},
    }
    return config.variant(c, variant, paper=paper, ou=ou)
