"""Train a model. The same command resumes an interrupted run.

  python experiments/train.py --config=configs/digits.py --workdir=runs/digits
  python experiments/train.py --config=configs/gm2d.py:smoke --workdir=runs/try --dry_run
  python experiments/train.py --config=configs/digits.py --workdir=runs/ou \\
      --config.process.name=ornstein_uhlenbeck --config.objective.name=dsm
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from ndsm_jax import app
from ndsm_jax.config import Config
from ndsm_jax.experiment import describe, load_data
from ndsm_jax.training import train

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, configs/NAME.py or configs/NAME.py:smoke.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, pictures.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print config and first batch's shapes, then stop.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    config = Config.from_dict(CONFIG.value)
    if config.autoencoder.kind != "none":
        raise ValueError(
            f"autoencoder.kind={config.autoencoder.kind!r}: experiments/train_latent.py trains in a"
            " latent space; use it, or set autoencoder.kind to none"
        )
    dataset = load_data(config)
    if DRY_RUN.value:
        print(config.to_json())
        print(describe(config, dataset))
        return
    if WORKDIR.value is None:
        raise ValueError("--workdir is needed, the folder for checkpoints, metrics and pictures")
    train(config, dataset, WORKDIR.value)
    print(f"trained: {WORKDIR.value}")


if __name__ == "__main__":
    app.run(main)
