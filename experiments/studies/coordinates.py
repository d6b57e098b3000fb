"""The coordinates that a network sees: the state itself, or those of the state's own component.

Path-space DSM of mixture Langevin noising with three preconditionings, and 2410.19149's linear
dynamics of every component, whose network sees the component's coordinates and is told its mean:
in the plane, on the 8 x 8 digits, on MNIST with all and with few images and as few steps as a first
try has. Network, minibatch, number of steps and sampler are the same within a table; beside every
row are held-out data, and the mixture alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from ndsm_jax import plots
from ndsm_jax.config import SMOKE, Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import ImageClassifier, evaluator, evaluator_if_labelled
from ndsm_jax.reports.study import (
    Changes,
    Run,
    Study,
    chosen,
    load_config,
    over_seeds,
    seeded,
    slug,
)
from studies import CONFIGS, LOCAL, mnist

RESIDUAL: Changes = {"network": {"parameterisation": "residual"}}
METHODS: Mapping[str, tuple[str, Changes]] = {
    "path-space DSM, residual": ("", RESIDUAL),
    "path-space DSM, residual, told the mean": (
        "",
        {"network": {**RESIDUAL["network"], "prior_mean": True}},
    ),
    "path-space DSM, local coordinates": ("", LOCAL),
    "component-wise OU + DSM": ("component_ou", {}),
}
"""Variant of the config file, and changes of it."""

PATH: Changes = {"objective": {"name": "path_dsm"}}
MNIST: Changes = {"data": {"name": "mnist"}, **mnist.SCALES["cpu"]["changes"]}
K_200: Changes = {"mixture": {"num_components": 200, "num_inits": 1}}
SHORT: Changes = {
    "data": {"num_train": 8000},
    "mixture": {"num_components": 30},
    "optimizer": {"warmup_steps": 30},
}


def _mnist(num_train: int, steps: int, *more: Changes) -> tuple[str, tuple[Changes, ...]]:
    length: Changes = {"data": {"num_train": num_train}, "train": {"steps": steps}}
    return "mnist.py", (MNIST, length, *more)


DATA: Mapping[str, tuple[str, tuple[Changes, ...]]] = {
    "rings and bars": ("gm2d.py", (PATH,)),
    "digits": ("digits.py", ()),
    "MNIST, 60,000, K = 50": _mnist(0, 1500),
    "MNIST, 60,000, K = 200": _mnist(0, 1500, K_200),
    "MNIST, 6,000, K = 50": _mnist(6000, 1500),
    "MNIST, 6,000, K = 200": _mnist(6000, 1500, K_200),
    "MNIST, 8,000, K = 30, 300 steps": _mnist(0, 300, SHORT),
}
"""A config file and what is changed in it."""

SCALES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "data": ("digits",),
        "methods": ("path-space DSM, local coordinates", "component-wise OU + DSM"),
        "seeds": 1,
        "changes": {**SMOKE, "mixture": {**SMOKE["mixture"], "num_components": 3}},
    },
    "cpu": {"data": tuple(DATA), "methods": tuple(METHODS), "seeds": 3, "changes": {}},
    "full": {
        "data": tuple(name for name in DATA if name.startswith("MNIST, 6")),
        "methods": ("path-space DSM, local coordinates", "component-wise OU + DSM"),
        "seeds": 3,
        "changes": {"train": {"steps": 4000, "log_every": 200, "checkpoint_every": 2000}},
    },
}

METRICS = {
    "frechet_distance": "Frechet",
    "sliced_wasserstein": "sliced Wasserstein",
    "support_distance": "support",
    "recall": "recall",
    "energy_distance": "energy distance",
    "two_sample_accuracy": "two-sample accuracy",
    "nearest_train": "nearest",
}
FID = {"fid": "FID", "inception_score": "IS", "class_tv": "classes, TV"}
SHOWN = 64
MAX_POINTS = 2000


def reproduce(study: Study, *, only: str = "") -> None:
    """All runs, data set by data set; tables, figures and metrics.json after each.

    Of `only` those whose name matches one of these patterns, such as mnist*_0, nothing is shown.

    Raises:
      ValueError: patterns of which one matches nothing.
    """
    scale = SCALES[study.scale]
    cells = {
        _name(*cell): cell
        for cell in itertools.product(scale["data"], scale["methods"], range(scale["seeds"]))
    }
    if only:
        for cell in chosen(cells, only):
            measure(study, *cell)
        return
    results: dict[str, Any] = {}
    for data in scale["data"]:
        measured = {
            method: [measure(study, data, method, seed) for seed in range(scale["seeds"])]
            for method in scale["methods"]
        }
        runs = {method: train(study, data, method, 0) for method in scale["methods"]}
        _show(study, data, runs, measured)
        results[data] = measured
        study.metrics(results)


def _name(data: str, method: str, seed: int) -> str:
    """Of a run's folder, and what `--only` is compared with."""
    return f"{slug(data)}_{slug(method)}_{seed}"


def train(study: Study, data: str, method: str, seed: int) -> Run:
    """The run of one cell."""
    config = seeded(_config(study, data, method), seed)
    return study.run(_name(data, method, seed), config, _load(config))


def measure(study: Study, data: str, method: str, seed: int) -> dict[str, dict[str, float]]:
    """Name -> {value, floor, prior, error} of one cell, trained first where it is not yet."""
    run, dataset = train(study, data, method, seed), _load(_config(study, data, method))
    is_mnist = dataset.name == "mnist"
    classifier = None if is_mnist else _classifier(dataset)
    scores = study.scores(run, dataset, classifier=classifier, max_points=MAX_POINTS)
    found = {title: scores[key] for key, title in METRICS.items() if key in scores}
    if is_mnist:  # to all of its images
        everything = _load(_config(study, "MNIST, 60,000, K = 50", method))
        fid = mnist.fid(study, run, everything, evaluator(everything))
        found = {title: fid[key] for key, title in FID.items()} | found
    return found


@functools.lru_cache(maxsize=1)
def _classifier(dataset: Dataset) -> ImageClassifier | None:
    return evaluator_if_labelled(dataset)


def _config(study: Study, data: str, method: str) -> Config:
    file, changes = DATA[data]
    variant, own = METHODS[method]
    where: Changes = {"data": {"dir": study.data_dir}} if file == "mnist.py" else {}
    quiet: Changes = {"train": {"picture_every": 0, "tensorboard": False}}
    more = SCALES[study.scale]["changes"]
    return load_config(CONFIGS / file, variant, quiet, *changes, where, own, more)


def _load(config: Config) -> Dataset:
    return mnist.load(config.data)


def _show(
    study: Study,
    data: str,
    runs: Mapping[str, Run],
    measured: Mapping[str, list[dict[str, dict[str, float]]]],
) -> None:
    def row(column: str, scores: list[dict[str, dict[str, float]]]) -> dict[str, str]:
        return over_seeds([{t: score.get(column) for t, score in one.items()} for one in scores])

    rows = [{"method": method} | row("value", scores) for method, scores in measured.items()]
    of_path = [scores for method, scores in measured.items() if method.startswith("path")]
    rows.append({"method": "the mixture alone"} | row("prior", of_path[0]))
    rows.append({"method": "held-out data (floor)"} | row("floor", of_path[0]))
    first = next(iter(runs.values()))
    title = (
        f"{data}, {first.facts['steps']:,} steps, seeds: {len(of_path[0])},"
        f" {len(first.samples):,} samples"
    )
    study.table(slug(data), rows, title=title)
    dataset = _load(_config(study, data, next(iter(runs))))
    shown = SHOWN if dataset.is_image else 4000
    panels = {"held-out data": dataset.test[:shown]}
    panels |= {method: run.samples[:shown] for method, run in runs.items()}
    study.figure(slug(data), plots.panels(panels, dataset.shape))
