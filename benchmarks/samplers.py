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
import numpy as np
from absl import flags
from common import QUICK, SEED, report

from ndsm_jax import app, evaluation
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation.distances import energy_distance
from ndsm_jax.evaluation.features import frechet_distance
from ndsm_jax.frames import component_mixture
from ndsm_jax.integrators import time_grid
from ndsm_jax.launch import Restored, launch, load_data, restore
from ndsm_jax.runs import has_checkpoints
from ndsm_jax.sampling import SAMPLERS, Sampler, sample
from ndsm_jax.training import draw_components

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
COMPARED = ("reverse_sde", "multistep_sde", "ancestral", "heun_flow", "multistep_flow")
"""Samplers whose evaluations their grid says; `annealed_langevin` is for levels of its own."""

QUIET = {"picture_every": 0, "tensorboard": False}
MODEL: dict[str, dict[str, Any]] = {
    "mixture": {"num_components": 50},
    "objective": {"name": "ndsm_cv"},
    "network": {"parameterisation": "residual"},
    "optimizer": {"schedule": "cosine"},
    "train": QUIET,
}
"""configs/digits.py with NDSM-CV and a residual score, as in docs/samplers.md, of --train_steps."""
QUICK_MODEL: dict[str, dict[str, Any]] = {
    "mixture": {"num_inits": 1},
    "objective": {"name": "ndsm"},
    "noising": {"steps": 60},
    "network": {"width": 64, "depth": 2},
    "train": {"steps": 60, "batch_size": 32, **QUIET},
}


def model(workdir: pathlib.Path) -> tuple[Restored, Dataset]:
    """The newest checkpoint of `workdir`, after training it where there is none, and its data."""
    if not has_checkpoints(workdir):
        config = Config.from_dict(QUICK_MODEL if QUICK.value else MODEL)
        changed = dataclasses.replace(config.train, steps=TRAIN_STEPS.value)
        config = config if QUICK.value else dataclasses.replace(config, train=changed)
        launch(config, load_data(config), workdir)
    run = restore(workdir)
    return run, load_data(run.config)


def steps_of(sampler: Sampler, budget: int) -> int:
    """Most grid steps whose evaluations, the denoising one included, are within the budget."""
    return max(n for n in range(1, budget + 1) if (sampler.evaluations(n) or 0) <= budget)


def main(argv: Sequence[str]) -> None:
    quick = QUICK.value
    folder = "runs/benchmarks/samplers" + ("_quick" if quick else "")
    run, dataset = model(pathlib.Path(WORKDIR.value or folder))
    score, process = run.experiment.model.bind(run.state.chosen), run.experiment.process
    num = 400 if quick else NUM.value
    features: Callable[[np.ndarray], np.ndarray] = lambda x: x  # noqa: E731
    if not quick and dataset.is_image and dataset.num_classes:
        features = evaluation.evaluator(dataset, seed=0).features
    held_out = features(dataset.test)
    chunk = min(num, 1000)

    frame, components = run.experiment.frame, None
    if component_mixture(frame) is not None:
        components = draw_components(run.experiment, num, seed=SEED.value)

    def measure(name: str, sampler: Sampler, steps: int) -> dict[str, Any]:
        counts: list[float] = []
        smallest = run.config.sample.smallest_variance
        y = sample(
            jax.random.key(SEED.value),
            score,
            process,
            num,
            grid=time_grid(process, steps, kind=GRID.value, smallest_variance=smallest),
            sampler=sampler,
            condition=components,
            chunk=chunk,
            on_chunk=lambda done, evaluations: counts.append(evaluations),
        )
        x = frame.leave(y, components)
        x = x[np.isfinite(x).all(1)]
        count = sampler.evaluations(steps) or float(np.mean(counts))
        row = {"name": name, "evaluations": count, "finite": len(x) / num}
        if len(x) < num / 2:
            return row
        row["frechet"] = frechet_distance(features(x), held_out)
        row["energy"] = energy_distance(x, dataset.test)
        print(f"{name}: {row['frechet']:.4g}, {row['energy']:.4g}", flush=True)
        return row

    budgets = (40,) if quick else tuple(int(budget) for budget in BUDGETS.value)
    reference_steps = 200 if quick else 2000
    rows = [measure(f"reverse_sde_{reference_steps}", SAMPLERS["reverse_sde"](), reference_steps)]
    alternatives = {name: SAMPLERS[name]() for name in COMPARED}
    alternatives["multistep_flow_churn"] = SAMPLERS["multistep_flow"](churn=CHURN)
    for name, sampler in alternatives.items():
        for budget in budgets:
            rows.append(measure(f"{name}_{budget}", sampler, steps_of(sampler, budget)))
    for rtol in (1e-2,) if quick else (1e-2, 1e-3):
        adaptive = SAMPLERS["adaptive_flow"](rtol=rtol, atol=rtol)
        rows.append(measure(f"adaptive_flow_{rtol:g}", adaptive, 20))
    for row in rows:
        if "frechet" in row:
            row["ratio"] = row["frechet"] / rows[0]["frechet"]
            row["energy_ratio"] = row["energy"] / rows[0]["energy"]
    report(rows, ["name", "evaluations", "ratio", "frechet", "energy_ratio", "energy", "finite"])


if __name__ == "__main__":
    app.run(main)
