"""Path-space DSM on the 8 x 8 digits that ship with scikit-learn: minutes on two cores.

python experiments/train.py --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (the demo) or 'smoke' (seconds, to see that everything runs)."""
    c = config.default()
    c.data.name = "digits"
    c.mixture.num_components = 50
    c.optimizer.schedule = "cosine"
    smoke = config.SMOKE | {"data": {"num_train": 500, "num_test": 200}}
    return config.variant(c, variant, smoke=smoke)
