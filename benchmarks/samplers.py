"""Quality against evaluations of the network, for every sampler and one trained model.

python benchmarks/samplers.py --quick
python benchmarks/samplers.py --out=runs/benchmarks/samplers.json
python benchmarks/samplers.py --workdir=runs/demo

Without a trained run in --workdir a model of the digits is trained there first. Distances are to
the held-out data, `ratio` is the Frechet distance over that of `reverse_sde` with 2,000 evaluations
(200 with --quick) in the same run; all samplers start from the same draws of the prior.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import QUICK, SEED, report

from ndsm_jax import app, evaluation
from ndsm_jax.checkpointing import Checkpoints
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation.distances import energy_distance
from ndsm_jax.evaluation.features import frechet_distance
from ndsm_jax.experiment import Experiment, load_data
from ndsm_jax.integrators import time_grid
from ndsm_jax.sampling import (
    EVALUATIONS_PER_STEP,
    evaluations,
    sample,
    sample_chunk,
    start_components,
)
from ndsm_jax.sde import SDE, ScoreFn
from ndsm_jax.training import TrainState, restore, train

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the model; default: runs/benchmarks/samplers, or samplers_quick."
)
NUM = flags.DEFINE_integer("num", 5000, "Samples of each row; 400 with --quick.", lower_bound=20)
TRAIN_STEPS = flags.DEFINE_integer("train_steps", 1500, "Training steps, where there is no model.")
GRID = flags.DEFINE_enum("grid", "clock", ["clock", "edm"], "Time grid.")
BUDGETS = flags.DEFINE_list(
    "evaluations", ["10", "20", "40", "80", "200"], "Evaluations of each row; 40 with --quick."
)

CHURN = 0.5

QUIET = {"picture_every": 0, "tensorboard": False}
MODEL: dict[str, dict[str, Any]] = {
    "mixture": {"num_components": 50},
    "objective": {"name": "ndsm_cv"},
    "optimizer": {"schedule": "cosine"},
    "train": QUIET,
}
"""configs/digits.py with NDSM-CV, as in docs/samplers.md; --train_steps sets the length."""
QUICK_MODEL: dict[str, dict[str, Any]] = {
    "mixture": {"num_inits": 1},
    "objective": {"name": "ndsm"},
    "noising": {"steps": 60},
    "network": {"width": 64, "depth": 2},
    "train": {"steps": 60, "batch_size": 32, **QUIET},
}


def model(workdir: pathlib.Path) -> tuple[Experiment, TrainState, Dataset]:
    """The newest checkpoint of `workdir`, after training it where there is none."""
    if not Checkpoints(workdir / "checkpoints").steps():
        config = Config.from_dict(QUICK_MODEL if QUICK.value else MODEL)
        changed = dataclasses.replace(config.train, steps=TRAIN_STEPS.value)
        config = config if QUICK.value else dataclasses.replace(config, train=changed)
        train(config, load_data(config), workdir)
    experiment, state, _ = restore(workdir)
    return experiment, state, load_data(experiment.config)


def steps_of(sampler: str, budget: int) -> int:
    """Most grid steps whose evaluations, the denoising one included, are within the budget."""
    return (budget - 1) // EVALUATIONS_PER_STEP[sampler] + 1


def mean_evaluations(score: ScoreFn, sde: SDE, grid: np.ndarray, rtol: float, chunk: int) -> float:
    """Evaluations of `adaptive_flow` for a sample, over the first `chunk`."""
    options = {"rtol": rtol, "atol": rtol}
    key, index = jax.random.key(SEED.value), jnp.arange(chunk, dtype=jnp.uint32)
    started = start_components(key, index, sde.prior.log_weights)
    arguments = (key, index, started, score, sde, jnp.asarray(grid), options)
    return float(sample_chunk(*arguments, sampler="adaptive_flow")[1])


def main(argv: Sequence[str]) -> None:
    quick = QUICK.value
    folder = "runs/benchmarks/samplers" + ("_quick" if quick else "")
    experiment, state, dataset = model(pathlib.Path(WORKDIR.value or folder))
    score, sde = experiment.model.bind(state.ema), experiment.sde
    num = 400 if quick else NUM.value
    features: Callable[[np.ndarray], np.ndarray] = lambda x: x  # noqa: E731
    if not quick and dataset.is_image and dataset.num_classes:
        features = evaluation.evaluator(dataset, seed=0).features
    held_out = features(dataset.test)
    chunk = min(num, 1000)

    def grid(steps: int) -> np.ndarray:
        smallest = experiment.config.sample.smallest_variance
        return time_grid(sde, steps, kind=GRID.value, smallest_variance=smallest)

    def measure(name: str, sampler: str, steps: int, **options: Any) -> dict[str, Any]:
        x = sample(
            jax.random.key(SEED.value),
            score,
            sde,
            num,
            grid=grid(steps),
            sampler=sampler,
            chunk=chunk,
            **options,
        )
        x = x[np.isfinite(x).all(1)]
        row = {"name": name, "evaluations": evaluations(sampler, steps), "finite": len(x) / num}
        if len(x) < num / 2:
            return row
        row["frechet"] = frechet_distance(features(x), held_out)
        row["energy"] = energy_distance(x, dataset.test)
        print(f"{name}: {row['frechet']:.4g}, {row['energy']:.4g}", flush=True)
        return row

    budgets = (40,) if quick else tuple(int(budget) for budget in BUDGETS.value)
    reference_steps = 200 if quick else 2000
    rows = [measure(f"reverse_sde_{reference_steps}", "reverse_sde", reference_steps)]
    for sampler in EVALUATIONS_PER_STEP:
        for budget in budgets:
            rows.append(measure(f"{sampler}_{budget}", sampler, steps_of(sampler, budget)))
    for budget in budgets:
        name = f"multistep_flow_churn_{budget}"
        rows.append(measure(name, "multistep_flow", budget, churn=CHURN))
    for rtol in (1e-2,) if quick else (1e-2, 1e-3):
        row = measure(f"adaptive_flow_{rtol:g}", "adaptive_flow", 20, rtol=rtol, atol=rtol)
        rows.append(row | {"evaluations": mean_evaluations(score, sde, grid(20), rtol, chunk)})
    for row in rows:
        if "frechet" in row:
            row["ratio"] = row["frechet"] / rows[0]["frechet"]
            row["energy_ratio"] = row["energy"] / rows[0]["energy"]
    report(rows, ["name", "evaluations", "ratio", "frechet", "energy_ratio", "energy", "finite"])


if __name__ == "__main__":
    app.run(main)
