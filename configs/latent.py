"""A score model in the latent space of an autoencoder of MNIST, and both trained together.

  python experiments/train_latent.py --config=configs/latent.py --workdir=runs/latent \\
      --config.data.dir=DIRECTORY_OF_THE_IDX_FILES

The second version of 2405.15625 and 2512.06615; see docs/latent.md. The variant 'ou' is the
published baseline in the same latent space: VP, beta from 0.1 to 20, uniform times, raw score, no
average of the parameters.
"""

from ml_collections import ConfigDict

from ndsm_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """variant: '' (frozen autoencoder, minutes on a CPU), 'joint', 'ou', a baseline, 'smoke'."""
    c = config.default()
    c.data.name = "mnist"
    c.autoencoder.kind = "vae"
    c.mixture.num_components = 20
    c.mixture.subset = 10_000
    c.mixture.num_inits = 1
    c.network.width = 128
    c.network.depth = 4
    c.noising.steps = 100
    # A little ahead of the default here, where components overlap (docs/results/latent.md).
    c.noising.weight = "variance"
    c.optimizer.schedule = "cosine"
    c.train.steps = 5000
    c.train.picture_every = 0
    c.train.checkpoint_every = 2000
    c.sample.num = 10_000
    c.sample.chunk = 1000
    ou = config.BASELINES["ou"] | {
        "noising": config.BASELINES["ou"]["noising"] | {"k": 1},
        "train": {"batch_size": 256},
    }
    smoke = config.SMOKE | {
        "data": {"num_train": 500, "num_test": 200},
        "mixture": config.SMOKE["mixture"] | {"num_components": 5},
        "joint": config.SMOKE["joint"] | {"steps": 10},
    }
    return config.variant(c, variant, joint={"joint": {"steps": 3000}}, ou=ou, smoke=smoke)
