"""Path-space DSM on Approx.-C2-MNIST with a U-Net (2405.15625, Section 5.2, Figures 5 and 6).

  python experiments/train.py --config=configs/approx_c2.py --workdir=runs/approx_c2 \\
      --config.data.dir=DIRECTORY_OF_THE_IDX_FILES

The prior is a mixture of two Gaussians with one shared spherical covariance. The variants 'paper'
(NDSM-CV), 'ou' (variance preserving, DSM) and 'ou_c2' (the same with a C2-symmetrised score) are
the published settings: T = 2 or 1, steps of 1e-3, uniform times, raw score. Learning rate and k are
not stated there. 'vp' is a tuned baseline: the network, clock and average of ours.
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (100 epochs, for a GPU), 'paper', 'ou_c2', a baseline or 'smoke'."""
    c = config.default()
    c.data.name = "approx_c2_mnist"
    c.mixture.num_components = 2
    c.mixture.covariance = "tied_spherical"
    c.mixture.num_inits = 2
    c.update(config.UNET)
    ou_c2 = config.BASELINES["ou"] | {"network": config.PAPER["network"] | {"symmetry": "c2"}}
    smoke = config.SMOKE | {"data": {"num_train": 500, "num_test": 200}}
    return config.variant(c, variant, paper=config.PAPER_IMAGES, ou_c2=ou_c2, smoke=smoke)
