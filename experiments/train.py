"""Train a model. The same command resumes an interrupted run.

  python experiments/train.py --config=configs/digits.py --workdir=runs/digits
  python experiments/train.py --config=configs/gm2d.py:smoke --workdir=runs/try --dry_run
  python experiments/train.py --config=configs/digits.py --workdir=runs/ou \\
      --config.process.name=ornstein_uhlenbeck --config.objective.name=dsm
  python experiments/train.py --config=configs/default.py --workdir=runs/own \\
      --config.process.name=my_process.py:swirl --config.process.options=force=2.0

A run that diverged goes on from its last good checkpoint with another learning rate:

  python experiments/train.py --config=configs/digits.py --workdir=runs/digits \\
      --config.optimizer.learning_rate=1e-4 --allow_changed=optimizer.learning_rate

It uses all devices that there are; those of several processes, each started like this one:

  python experiments/train.py --config=configs/mnist.py --workdir=runs/mnist \\
      --coordinator=HOST:1234 --num_processes=2 --process_id=0
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from ndsm_jax import app, parallel
from ndsm_jax.launch import describe, launch, load_data

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, configs/NAME.py or configs/NAME.py:smoke.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, pictures.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print config and first batch's shapes, then stop.")
ALLOW_CHANGED_SOURCE = flags.DEFINE_bool(
    "allow_changed_source", False, "Resume although a file named file.py:function has changed."
)
ALLOW_CHANGED = flags.DEFINE_list(
    "allow_changed",
    [],
    "Config keys that may differ from those of the run that is resumed: optimizer.learning_rate",
)
flags.mark_flag_as_required("config")
app.define_processes()


def main(argv: Sequence[str]) -> None:
    app.join_processes()
    config = app.configured(CONFIG)
    dataset = load_data(config)
    if DRY_RUN.value:
        print(config.to_json())
        print(describe(config, dataset))
        return
    if WORKDIR.value is None:
        raise ValueError("--workdir is needed, the folder for checkpoints, metrics and pictures")
    launch(
        config,
        dataset,
        WORKDIR.value,
        allow_changed_source=ALLOW_CHANGED_SOURCE.value,
        allow_changed=ALLOW_CHANGED.value,
        progress=parallel.is_first(),
    )
    if parallel.is_first():
        print(f"trained: {WORKDIR.value}")


if __name__ == "__main__":
    app.run(main)
