"""MNIST with all and with few images: 2405.15625, Tables 1 and 2, Figures 1 and 4.

OU + DSM (variance preserving), NDSM and NDSM-CV as published; then, with preconditioning, own clock
and average of the parameters, NDSM-CV, OU + DSM on standardised data, 2410.19149's linear dynamics
of every component, whose network is told the component's mean, and path-space DSM, without and with
that, with 50, 200 and 400 components. Network, minibatch and number of steps are the same but for
rows that say so.

`full` is as published. `cpu` has a smaller U-Net, fewer steps, and for all methods the sampler of
ours, so that none is held back by the 2,000 evaluations a sample of the published one.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax import plots
from ndsm_jax.config import EDM, SMOKE, Config, DataConfig
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import ImageClassifier, evaluator, fid_report
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import Changes, Run, Study, load_config, over_seeds, seeded
from studies import CONFIGS

TWICE: Changes = {"train": {"steps": 3000}, "sample": {"num": 10_000}}
LONG: Changes = {"train": {"steps": 12_000}, "sample": {"num": 10_000}}
K_200: Changes = {"mixture": {"num_components": 200, "num_inits": 1}}
K_400: Changes = {"mixture": {"num_components": 400, "num_inits": 1, "subset": 20_000}}
TOLD: Changes = {"network": {"prior_mean": True}}
METHODS: Mapping[str, tuple[str, str, Changes]] = {
    "ou": ("OU + DSM", "ou", {}),
    "ndsm": ("NDSM (eps = 0)", "paper", {"objective": {"name": "ndsm"}}),
    "ndsm_cv": ("NDSM-CV", "paper", {}),
    "ndsm_cv_tuned": ("NDSM-CV, our settings", "", {"objective": {"name": "ndsm_cv"}}),
    "vp": ("OU + DSM, tuned", "vp_standardised", {}),
    "vp_edm": ("OU + DSM, tuned, EDM's preconditioning", "vp", EDM),
    "component_ou": ("component-wise OU + DSM, tuned", "component_ou", {}),
    "path_dsm": ("path-space DSM", "", {}),
    "path_dsm_edm": ("path-space DSM, EDM's preconditioning", "", EDM),
    "path_dsm_mean": ("path-space DSM, told the mean", "", TOLD),
    "component_ou_200": ("component-wise OU + DSM, tuned, K = 200", "component_ou", K_200),
    "path_dsm_200": ("path-space DSM, K = 200", "", K_200),
    "path_dsm_200_edm": (
        "path-space DSM, K = 200, EDM's preconditioning",
        "",
        {**K_200, **EDM},
    ),
    "path_dsm_200_mean": ("path-space DSM, K = 200, told the mean", "", {**K_200, **TOLD}),
    "path_dsm_400": ("path-space DSM, K = 400", "", K_400),
    "path_dsm_200_twice": ("path-space DSM, K = 200, 3,000 steps", "", {**K_200, **TWICE}),
    "path_dsm_long": ("path-space DSM, 12,000 steps", "", LONG),
    "path_dsm_200_mean_long": (
        "path-space DSM, K = 200, told the mean, 12,000 steps",
        "",
        {**K_200, **TOLD, **LONG},
    ),
}
"""Folder -> name in tables, variant of configs/mnist.py, changes of it."""

EQUAL = (
    "ou",
    "ndsm",
    "ndsm_cv",
    "ndsm_cv_tuned",
    "vp",
    "vp_edm",
    "component_ou",
    "path_dsm",
    "path_dsm_edm",
    "path_dsm_mean",
    "component_ou_200",
    "path_dsm_200",
    "path_dsm_200_edm",
    "path_dsm_200_mean",
    "path_dsm_400",
)
LONGER = ("path_dsm_200_twice", "path_dsm_long", "path_dsm_200_mean_long")
LOW_DATA = ("ou", "ndsm_cv_tuned", "vp", "component_ou", "path_dsm", "path_dsm_mean")
OUTSIDE = 10.0
"""Samples beyond this many half ranges of grey have diverged: they are counted, and left out."""
MIN_COUNT = 50
"""With fewer samples that have not diverged there is no FID."""

SAMPLER = {"sampler": "multistep_sde", "grid": "clock", "steps": 40, "smallest_variance": 0.02}
SCALES: Mapping[str, Mapping[str, Any]] = {
    # (training images, 0: all; seeds; methods), and the images that FIDs are taken to
    "smoke": {
        "reference": 300,
        "compared": [(300, 1, ("ou", "path_dsm"))],
        "changes": SMOKE
        | {
            "data": {"num_test": 200},
            "mixture": {"num_components": 3, "subset": 300, "num_inits": 1},
            "sample": SAMPLER | {"num": 64, "chunk": 64, "steps": 10},
        },
    },
    "cpu": {
        "reference": 0,
        "compared": [
            (0, 1, (*EQUAL, *LONGER)),
            (6000, 3, LOW_DATA),
            (14_000, 1, LOW_DATA),
        ],
        "changes": {
            "network": {"widths": (16, 32, 64), "time_features": 64},
            "train": {"steps": 1500, "log_every": 20, "checkpoint_every": 100, "picture_every": 0},
            "optimizer": {"warmup_steps": 100},
            "sample": SAMPLER | {"num": 2000},
        },
    },
    "full": {
        "reference": 0,
        "compared": [
            (0, 1, EQUAL),
            (6000, 3, LOW_DATA),
            (14_000, 3, LOW_DATA),
        ],
        "changes": {},
    },
}

METRICS = {
    "energy_distance": "energy distance",
    "nearest_train": "nearest image",
    "two_sample_accuracy": "two-sample accuracy",
    "recall": "recall",
}
SHOWN = 64


def reproduce(study: Study) -> None:
    """All runs, seed by seed; tables, figures and metrics.json are written after each number."""
    compared = SCALES[study.scale]["compared"]
    everything = _dataset(_config(study, SCALES[study.scale]["reference"], "path_dsm"))
    classifier = evaluator(everything)
    results: dict[str, Any] = {}
    for seed in range(max(seeds for _, seeds, _ in compared)):
        for num_train, seeds, methods in compared:
            if seed >= seeds:
                continue
            runs = {m: [_run(study, num_train, m, s) for s in range(seed + 1)] for m in methods}
            name = f"N = {num_train or len(everything.train):,}"
            results[name] = {
                method: [_measure(study, run, num_train, everything, classifier) for run in done]
                for method, done in runs.items()
            }
            _show(study, name, {m: done[0] for m, done in runs.items()}, results[name], everything)
            study.metrics(results)


def _config(study: Study, num_train: int, method: str) -> Config:
    _, variant, own = METHODS[method]
    data: Changes = {"data": {"dir": study.data_dir, "num_train": num_train}}
    scale = SCALES[study.scale]["changes"]
    return load_config(CONFIGS / "mnist.py", variant, scale, data, own)


@functools.lru_cache(maxsize=3)
def load(data: DataConfig) -> Dataset:
    """The data of a section, kept for the next run of the same."""
    return load_data(dataclasses.replace(Config(), data=data))


def _dataset(config: Config) -> Dataset:
    return load(config.data)


def _run(study: Study, num_train: int, method: str, seed: int) -> Run:
    config = seeded(_config(study, num_train, method), seed)
    return study.run(f"{num_train or 'all'}_{method}_{seed}", config, _dataset(config))


def fid(study: Study, run: Run, everything: Dataset, classifier: ImageClassifier) -> dict[str, Any]:
    """`fid_report` of the samples that have not diverged, to all of MNIST."""
    return study.part(
        f"fid_{run.folder.name}",
        {
            "samples": zlib.crc32(run.samples.tobytes()),
            "reference": everything.digest,
            "evaluator": classifier.digest,
        },
        lambda: fid_report(run.samples[run.within(OUTSIDE)], everything, classifier),
    )


def _measure(
    study: Study, run: Run, num_train: int, everything: Dataset, classifier: ImageClassifier
) -> dict[str, Any]:
    """FID to all of MNIST, whatever the run was trained on; all else is as always."""
    inside = run.within(OUTSIDE)
    measured: dict[str, Any] = {"outside": float(np.mean(~inside)), **run.facts}
    if inside.sum() >= MIN_COUNT:
        scores = fid(study, run, everything, classifier)
        for name in ("fid", "inception_score", "class_tv", "histogram"):
            measured |= {name: scores[name]["value"], f"{name}_floor": scores[name]["floor"]}
        measured["count"] = scores["count"]
    dataset = _dataset(_config(study, num_train, "path_dsm"))
    for name, score in study.scores(run, dataset, max_points=2000).items():
        if name in METRICS:
            measured |= {name: score["value"], f"{name}_floor": score["floor"]}
    return measured


COLUMNS = {
    "fid": "FID",
    "inception_score": "IS",
    "class_tv": "classes, TV",
    **METRICS,
    "outside": "diverged",
    "train_seconds": "training s",
    "sample_seconds": "sampling s",
}


def _show(
    study: Study,
    name: str,
    runs: Mapping[str, Run],
    results: Mapping[str, list[dict[str, Any]]],
    everything: Dataset,
) -> None:
    rows: list[dict[str, Any]] = [
        {"method": METHODS[method][0]}
        | over_seeds([{title: r.get(key) for key, title in COLUMNS.items()} for r in done])
        for method, done in results.items()
    ]
    one: Mapping[str, Any] = next((r[0] for r in results.values() if "count" in r[0]), {})
    floor = {title: one.get(f"{key}_floor") for key, title in COLUMNS.items()}
    rows.append({"method": "held-out images (floor)"} | floor)
    seeds, first = len(next(iter(results.values()))), next(iter(runs.values()))
    file = name.replace(" = ", "_").replace(",", "").lower()
    title = (
        f"MNIST, {name} training images, {first.facts['steps']:,} steps of minibatch 64, seeds:"
        f" {seeds}, {len(first.samples):,} samples"
    )
    study.table(file, rows, title=title)
    samples = {METHODS[method][0]: run.samples[:SHOWN] for method, run in runs.items()}
    study.figure(
        file, plots.panels({"held-out": everything.test[:SHOWN], **samples}, everything.shape)
    )
    labels = everything.train_labels
    assert labels is not None
    shares = {"data": np.bincount(labels) / len(labels)}
    shares |= {
        METHODS[method][0]: np.array(done[0]["histogram"]) / done[0]["count"]
        for method, done in results.items()
        if "count" in done[0]
    }
    digits = [str(digit) for digit in range(10)]
    study.figure(f"{file}_classes", plots.shares_figure(digits, shares))
