"""Train a score model in the latent space of an autoencoder, and decode samples of it.

  python experiments/train_latent.py --config=configs/latent.py --workdir=runs/latent \\
      --config.data.dir=DIRECTORY_OF_THE_IDX_FILES
  python experiments/train_latent.py --config=configs/latent.py:joint --workdir=runs/latent ...

Trains the autoencoder, a score model of its latents and, with joint.steps, both together; then
writes samples.npy, samples.png and metrics.json. What is finished is kept: the same command
resumes, and `:joint` goes on from the finished run without it.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import config_flags

from ndsm_jax import app, evaluation, latent, plots
from ndsm_jax.config import Config
from ndsm_jax.experiment import load_data
from ndsm_jax.report import metrics_table
from ndsm_jax.training import draw, draw_prior
from ndsm_jax.writers import json_text

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, configs/latent.py or configs/latent.py:joint.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    config = Config.from_dict(CONFIG.value)
    images = load_data(config)
    workdir = pathlib.Path(WORKDIR.value)
    model = latent.train_latent(config, images, workdir)
    num = config.sample.num
    x = latent.decode(model.codec, draw(model.experiment, model.state, num, progress=True))
    prior = latent.decode(model.codec, draw_prior(model.experiment, num))
    np.save(workdir / "samples.npy", x.reshape(-1, *images.shape))
    sets = {"data (held out)": images.test, "samples": x, "prior": prior}
    shown = {name: points[:100] for name, points in sets.items()}
    (workdir / "samples.png").write_bytes(plots.png(plots.panels(shown, images.shape)))
    classifier = evaluation.evaluator_if_labelled(images, seed=config.evaluate.seed)
    result = evaluation.evaluate(
        x,
        prior,
        images,
        classifier=classifier,
        seed=config.evaluate.seed,
        max_points=config.evaluate.max_points,
    )
    (workdir / "metrics.json").write_text(json_text(result))
    print(metrics_table(result["metrics"]))
    print(f"samples and metrics: {workdir}")


if __name__ == "__main__":
    app.run(main)
