"""Path-space DSM on MNIST with a U-Net (the data of 2405.15625, Section 5.1).

  python experiments/train.py --config=configs/mnist.py --workdir=runs/mnist \\
      --config.data.dir=DIRECTORY_OF_THE_IDX_FILES

The variant 'paper' is the published setting (A.3): ten spherical components, T = 2, 2,000 steps of
1e-3, uniform times, raw score. Learning rate and k are not stated there. Its baseline, OU + DSM, is
the variant 'ou'; docs/baselines.md has the others.

The variant 'told' has the best samples here: ADM's U-Net, told the digit of nine training images in
ten, and 200 components (docs/networks.md).
"""

from typing import Any

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (100 epochs, for a GPU), 'cpu' (2,000 steps), 'told', 'paper', a baseline or
    'smoke'."""
    c = config.default()
    c.data.name = "mnist"
    c.mixture.num_components = 50
    c.mixture.subset = 10_000
    c.mixture.num_inits = 2
    c.update(config.UNET)
    cpu = {
        "train": {"steps": 2000, "log_every": 20, "checkpoint_every": 200, "picture_every": 500},
        "sample": {"num": 1000},
        "evaluate": {"max_points": 1000},
    }
    told: dict[str, dict[str, Any]] = {
        "mixture": {"num_components": 200, "num_inits": 1},
        "network": {
            "name": "adm",
            "widths": (32, 64, 64),
            "head_width": 32,
            "condition": "label",
            "label_dropout": 0.1,
        },
        "train": {"steps": 30_000},
    }
    paper = config.PAPER_IMAGES | {"mixture": {"num_components": 10}}
    smoke = config.SMOKE | {"data": {"num_train": 500, "num_test": 200}}
    return config.variant(c, variant, cpu=cpu, told=told, paper=paper, smoke=smoke)
