"""Path-space DSM on MNIST with a U-Net (the data of 2405.15625, Section 5.1).

  python experiments/train.py --config=configs/mnist.py --workdir=runs/mnist \\
      --config.data.dir=DIRECTORY_OF_THE_IDX_FILES

The variant 'paper' is the published setting (A.3): ten spherical components, T = 2, 2,000 steps of
1e-3, uniform times, raw score. Learning rate and k are not stated there. Its baseline, OU + DSM, is
the variant 'ou'; docs/baselines.md has the others.
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (100 epochs, for a GPU), 'cpu' (2,000 steps), 'paper', a baseline or 'smoke'."""
    c = config.default()
    c.data.name = "mnist"
    c.mixture.num_components = 50
    c.mixture.subset = 10_000
    c.mixture.num_inits = 2
    c.network.name = "unet"
    c.network.time_features = 128
    c.noising.k = 1
    c.train.batch_size = 64
    c.train.steps = 93_750
    c.train.checkpoint_every = 1000
    c.train.picture_every = 5000
    c.optimizer.warmup_steps = 200
    c.optimizer.schedule = "cosine"
    c.sample.num = 10_000
    c.sample.chunk = 250
    cpu = {
        "train": {"steps": 2000, "log_every": 20, "checkpoint_every": 200, "picture_every": 500},
        "sample": {"num": 1000},
        "evaluate": {"max_points": 1000},
    }
    paper = config.PAPER | {
        "control_variate": {"estimator": "probes"},  # exact costs tens of steps for a U-Net
        "mixture": {"num_components": 10},
        "process": {"horizon": 2.0},
        "noising": config.PAPER["noising"] | {"steps": 2000},
        "sample": config.PAPER["sample"] | {"steps": 2000},
    }
    smoke = config.SMOKE | {"data": {"num_train": 500, "num_test": 200}}
    return config.variant(c, variant, cpu=cpu, paper=paper, smoke=smoke)
