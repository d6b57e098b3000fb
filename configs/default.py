"""The defaults, to be changed from the command line; the base of every other file.

  python experiments/train.py --config=configs/default.py --workdir=runs/own \\
      --config.data.name=array --config.data.dir=my_samples.npy
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' or 'smoke'."""
    return config.variant(config.default(), variant)
