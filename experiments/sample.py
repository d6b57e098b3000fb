"""Draw samples from a trained model: samples.npy and samples.png in the run's folder.

python experiments/sample.py --workdir=runs/digits --num=100
python experiments/sample.py --workdir=runs/digits --sampler=multistep_sde --steps=40
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from ndsm_jax import app, plots
from ndsm_jax.sampling import SAMPLERS
from ndsm_jax.training import draw, restore

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.", required=True)
NUM = flags.DEFINE_integer("num", 100, "Number of samples.", lower_bound=1)
SAMPLER = flags.DEFINE_enum("sampler", None, list(SAMPLERS), "Sampler; default: the run's config.")
STEPS = flags.DEFINE_integer("steps", None, "Grid steps; default: the run's config.", lower_bound=3)
CHURN = flags.DEFINE_float("churn", None, "sample.churn; default: the run's config.")
SEED = flags.DEFINE_integer("seed", None, "Seed; default: the run's config.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "Output path without suffix; default: WORKDIR/samples.")


def main(argv: Sequence[str]) -> None:
    flag_values: dict[str, Any] = {
        "sampler": SAMPLER.value,
        "steps": STEPS.value,
        "churn": CHURN.value,
        "seed": SEED.value,
    }
    changes = {key: value for key, value in flag_values.items() if value is not None}
    experiment, state, _ = restore(WORKDIR.value, sample=changes)
    x = draw(experiment, state, NUM.value, progress=True)
    out = pathlib.Path(OUT.value or pathlib.Path(WORKDIR.value) / "samples")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out.with_suffix(".npy"), x.reshape(-1, *experiment.shape))
    picture = plots.panels({"samples": x[:400]}, experiment.shape, size=6.0)
    out.with_suffix(".png").write_bytes(plots.png(picture))
    print(f"{len(x)} samples: {out.with_suffix('.npy')}, picture: {out.with_suffix('.png')}")


if __name__ == "__main__":
    app.run(main)
