"""Path-space DSM on colour images of 32 x 32 pixels, CIFAR-10 or Stanford Cars, mirrored at random.

Prepared once from the original files, without a network (docs/data.md):

  python experiments/prepare.py --dataset=cifar10 --source=FOLDER_OF_THE_ARCHIVE
  python experiments/train.py --config=configs/cifar10.py --workdir=runs/cifar10

  python experiments/prepare.py --dataset=stanford_cars --source=FOLDER_OF_IMAGES --image_size=64
  python experiments/train.py --config=configs/cifar10.py:cars --workdir=runs/cars

Any other prepared set: --config.data.tfds=NAME, with --config.data.image_size=SIDE where its images
are not of the size that is wanted. Grey levels are made continuous, so that densities are of them.
"""

from typing import Any

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (100 epochs, for a GPU), 'cars', 'cars64', a baseline, or 'smoke' (of shapes)."""
    c = config.default()
    c.data.name = "tfds"
    c.data.tfds = "cifar10"
    c.data.frame = "pixels"
    c.data.flips = True
    c.mixture.num_components = 50
    c.mixture.subset = 10_000
    c.mixture.num_inits = 2
    c.update(config.UNET)
    c.network.widths = (64, 128, 256)
    c.train.steps = 78_125
    cars: dict[str, dict[str, Any]] = {
        "data": {"tfds": "stanford_cars", "image_size": 32},
        "train": {"steps": 50_000},
    }
    cars64 = cars | {
        "data": {"tfds": "stanford_cars", "image_size": 64},
        "network": {"widths": (64, 128, 256, 256)},
    }
    smoke = config.SMOKE | {"data": {"name": "colour_shapes", "num_train": 200, "num_test": 100}}
    return config.variant(c, variant, cars=cars, cars64=cars64, smoke=smoke)
