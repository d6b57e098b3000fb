"""A table of numbers and words in a CSV file, see docs/tables.md.

  python experiments/train.py --config=configs/table.py --workdir=runs/mine \\
      --config.data.dir=my.csv

The settings are those of the estimator `NDSM`: a mixture chosen by a criterion, the noise of each
of its components, and a length of training chosen on held-out rows.
"""

from typing import Any

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '', 'langevin' (noising by the mixture's Langevin dynamics) or 'smoke'."""
    c = config.default()
    c.update(config.TABLE)
    langevin: dict[str, dict[str, Any]] = {
        "mixture": {"num_components": 8, "covariance": "spherical", "min_covariance": 0.01},
        "process": {"name": "langevin"},
        "objective": {"name": "path_dsm"},
        "noising": {"weight": "auto"},
        "network": {"parameterisation": "auto"},
    }
    return config.variant(c, variant, langevin=langevin)
