"""Objectives at equal wall time, or at equal steps: the same network, data, process and sampler.

Every objective's step is timed first, in turn with the others; then each is trained, for every
seed, for as many steps as `--seconds` buys (or for `--steps`), and evaluated as
`experiments/evaluate.py` does. Runs are kept under --workdir and resume. `ratio` is a row's metric
over that of the first objective; errors are standard errors over seeds.

    python benchmarks/objectives.py --config=configs/gm2d.py --steps=10000 --seeds=3
    python benchmarks/objectives.py --config=configs/digits.py --seconds=60 --seeds=3
    python benchmarks/objectives.py --config=configs/mnist.py:cpu --seconds=400 --seeds=3 \\
        --config.data.dir=IDX_FOLDER --config.data.num_train=6000
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import common
import numpy as np
from absl import flags
from ml_collections import config_flags

from ndsm_jax import app, evaluation, plots
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import fit
from ndsm_jax.datasets import Dataset
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import Run, Study

CONFIG = config_flags.DEFINE_config_file("config", "configs/gm2d.py", "Experiment.")
OBJECTIVES = flags.DEFINE_list("objectives", ["ndsm_cv", "path_dsm"], "Objectives; first: base.")
SECONDS = flags.DEFINE_float("seconds", 60.0, "Training time for each run.", lower_bound=1.0)
STEPS = flags.DEFINE_integer("steps", 0, "Steps for each run, instead of --seconds.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)
METRIC = flags.DEFINE_string("metric", "energy_distance", "The metric of `ratio`.")
SHOW = flags.DEFINE_list(
    "show",
    [
        "support_distance",
        "frechet_distance",
        "energy_distance",
        "sliced_wasserstein",
        "two_sample_accuracy",
        "nearest_train",
        "recall",
        "mode_tv",
    ],
    "Metrics in the table.",
)
QUICK = {"sample": {"num": 1000}, "evaluate": {"max_points": 1000}, "network": {"depth": 3}}
WORKDIR = flags.DEFINE_string("workdir", "runs/benchmarks/objectives", "Folder of the runs.")


def configured(objective: str, seed: int, steps: int) -> Config:
    """The config of one run."""
    tree: Any = CONFIG.value.copy_and_resolve_references()
    tree.objective.name = objective
    tree.train.seed = seed
    tree.sample.seed = seed
    tree.train.picture_every = 0
    tree.train.tensorboard = False
    if steps:
        tree.train.steps = steps
        tree.train.checkpoint_every = max(1, steps // 4)
        tree.optimizer.warmup_steps = min(tree.optimizer.warmup_steps, steps // 10)
    return Config.from_dict(tree)


def seconds_per_step(configs: dict[str, Config], dataset: Dataset, rounds: int) -> dict[str, float]:
    """Median seconds of a training step of each, noising included, timed in turn."""
    timed: dict[str, common.Timed] = {}
    steps: dict[str, int] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, config in configs.items():
        parts = fit(config, dataset)
        one = common.Timed(build(config, dataset.shape, parts), dataset.train, config)
        timed[name] = one
        steps[name] = min(2, one.ahead) if config.network.name == "unet" else one.ahead
        calls |= {
            f"noise {name}": one.noise,
            f"gradient {name}": partial(one.gradient, steps[name]),
        }
    timings = common.ratios(calls, next(iter(calls)), rounds=rounds)
    return {
        name: timings[f"noise {name}"].seconds / one.ahead
        + timings[f"gradient {name}"].seconds / steps[name]
        for name, one in timed.items()
    }


def measured(run: Run, scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metrics, their floors, time and steps of one run."""
    result = {name: score["value"] for name, score in scores.items()}
    result |= {f"{name}_floor": score["floor"] for name, score in scores.items()}
    return {**result, **run.facts}


def summary(name: str, results: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, and standard errors where there are several."""
    row: dict[str, Any] = {"name": name, "seeds": len(results)}
    for metric in dict.fromkeys(["steps", "train_seconds", METRIC.value, *SHOW.value]):
        if metric in results[0]:
            values = np.array([result[metric] for result in results])
            row[metric] = float(values.mean())
            if len(values) > 1 and metric not in ("steps", "train_seconds"):
                row[f"{metric}_se"] = float(values.std(ddof=1) / len(values) ** 0.5)
            if f"{metric}_floor" in results[0]:
                row[f"{metric}_floor"] = results[0][f"{metric}_floor"]
    return row


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    if quick:
        flags.FLAGS["steps"].value = 300
        CONFIG.value.update(QUICK)
    dataset = load_data(configured(OBJECTIVES.value[0], 0, 0))
    classifier = evaluation.evaluator_if_labelled(dataset)
    steps = dict.fromkeys(OBJECTIVES.value, STEPS.value)
    if not STEPS.value:
        configs = {name: configured(name, 0, 0) for name in OBJECTIVES.value}
        cost = seconds_per_step(configs, dataset, rounds=5)
        steps = {name: int(SECONDS.value / cost[name]) for name in OBJECTIVES.value}
        print(f"steps in {SECONDS.value:g} s: {steps}")
    root = pathlib.Path(WORKDIR.value) / (dataset.name + ("_quick" if quick else ""))
    study = Study(scale="cpu", root=root)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in OBJECTIVES.value}
    sets: dict[str, np.ndarray] = {}
    for seed in range(SEEDS.value):
        for name, done in results.items():
            config = configured(name, seed, steps[name])
            run = study.run(f"{name}_{steps[name]}_{seed}", config, dataset)
            sets.setdefault(name, run.samples[:100])
            points = config.evaluate.max_points
            scores = study.scores(run, dataset, classifier=classifier, max_points=points)
            done.append(measured(run, scores))
    rows = [summary(f"{dataset.name}_{name}", done) for name, done in results.items()]
    for row in rows:
        row["ratio"] = row[METRIC.value] / rows[0][METRIC.value]
    shown = [metric for metric in SHOW.value if metric in rows[0]]
    common.report(rows, ["name", "ratio", "steps", "train_seconds", *shown])
    print("floor: " + ", ".join(f"{name} {rows[0][f'{name}_floor']:.4g}" for name in shown))
    if common.OUT.value:
        picture = plots.panels({"data": dataset.test[:100], **sets}, dataset.shape)
        pathlib.Path(common.OUT.value).with_suffix(".png").write_bytes(plots.png(picture))


if __name__ == "__main__":
    app.run(main)
