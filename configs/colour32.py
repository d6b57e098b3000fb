"""Local-DSM on colour images of 32 x 32 pixels, noised to a logistic law (2407.07998 on CIFAR-10).

A folder of images, of any sizes, or an array [N, 32, 32, 3] of uint8 in a .npy file:

  python experiments/train.py --config=configs/colour32.py --workdir=runs/colour32 \\
      --config.data.dir=FOLDER_OF_IMAGES
  python experiments/train.py --config=configs/colour32.py --workdir=runs/colour32 \\
      --config.data.name=array --config.data.dir=FILE.npy

The variant 'shapes' needs no data: coloured shapes that `datasets.shapes` draws. The drift of each
pixel is its own, so that a linearised step costs what an Euler step does. A pixel of natural images
hardly differs from another in its spread: one scale for all, so that a dark corner is not stiff.
"""

from typing import Any

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (a GPU), 'shapes' (minutes on a CPU), a baseline, or 'smoke' (of shapes)."""
    c = config.default()
    c.data.name = "folder"
    c.data.channels = 3
    c.data.image_size = 32
    c.reference.name = "logistic"
    c.reference.shared = True
    c.objective.name = "local_dsm"
    c.update(config.UNET)
    c.network.widths = (64, 128, 256)
    shapes: dict[str, dict[str, Any]] = {
        "data": {"name": "colour_shapes"},
        "network": {"widths": (16, 32, 64), "time_features": 64},
        "train": {
            "batch_size": 32,
            "steps": 1500,
            "log_every": 20,
            "checkpoint_every": 250,
            "picture_every": 500,
        },
        "optimizer": {"warmup_steps": 50},
        "sample": {"num": 500},
        "evaluate": {"max_points": 500},
    }
    smoke = config.SMOKE | {"data": {"name": "colour_shapes", "num_train": 200, "num_test": 100}}
    return config.variant(c, variant, shapes=shapes, smoke=smoke)
