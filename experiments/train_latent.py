"""Train a score model in the latent space of an autoencoder, and decode samples of it.

  python experiments/train_latent.py --config=configs/latent.py --workdir=runs/latent \\
      --config.data.dir=DIRECTORY_OF_THE_IDX_FILES
  python experiments/train_latent.py --config=configs/latent.py:joint --workdir=runs/latent ...

Trains the autoencoder, a score model of its latents and, with joint.steps, both together; then
writes metrics.json, pictures and report.html. What is finished is kept: the same command
resumes, and `:joint` goes on from the finished run without it.
"""

import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from ndsm_jax import app, latent
from ndsm_jax.launch import load_data
from ndsm_jax.reports.report import evaluate

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, configs/latent.py or configs/latent.py:joint.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
ALLOW_CHANGED_SOURCE = flags.DEFINE_bool(
    "allow_changed_source", False, "Resume although a file named file.py:function has changed."
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    config = app.configured(CONFIG)
    images = load_data(config)
    workdir = pathlib.Path(WORKDIR.value)
    run = latent.train_latent(
        config, images, workdir, allow_changed_source=ALLOW_CHANGED_SOURCE.value
    )
    result = evaluate(run, images, workdir)
    print(result.table())
    print(f"metrics: {result.metrics_path}")
    print(f"report:  {result.report_path}")
    result.check()


if __name__ == "__main__":
    app.run(main)
