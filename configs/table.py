"""A table of numbers and words in a CSV file, see docs/tables.md.

  python experiments/train.py --config=configs/table.py --workdir=runs/mine \\
      --config.data.dir=my.csv
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' or 'smoke'."""
    c = config.default()
    c.data.name = "table"
    c.mixture.num_components = 8
    c.mixture.min_covariance = 0.01
    c.network.width = 128
    c.network.depth = 4
    c.train.batch_size = 128
    return config.variant(c, variant)
