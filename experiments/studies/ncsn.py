"""Noise levels on MNIST: the experiments of a student report on NCSN, and a prior that needs none.

NCSN with five ladders of noise levels from sigma_1 = 30 to 0.01, each with its own training at its
own levels; the geometric one from sigma_1 = 1; and path-space DSM, which starts in a mixture fitted
to the images, and component-wise linear dynamics with the same prior. U-Net, minibatch and number
of steps are the same. Measured are the FID by our evaluator, whose values are not those of
Inception, and the shares of the classes with their confidence intervals: how many intervals hold a
tenth, as the report counts, and how many hold the share of the data.

`full` samples as published (200 levels of 100 steps, epsilon = 2e-5 with alpha / 2). `cpu` has as
many levels and fewer steps at each, of the length that fits a geometric ladder. Both have the
preconditioning of 2206.00364: in 3,000 steps a network that sees noise of 30 as it is learns
nothing. `--only` takes patterns of the runs' folders, such as ncsn__*, and shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax import plots
from ndsm_jax.clock import LADDERS, ladder
from ndsm_jax.config import EDM, SMOKE, Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import evaluator
from ndsm_jax.reports.study import Changes, Run, Study, chosen, load_config, slug
from ndsm_jax.sampling.noise_levels import coverage
from studies import CONFIGS, mnist

SMALLEST = 0.01
FEW, MANY = 1.0, 30.0


def _levels(kind: str, largest: float) -> Changes:
    return {
        "process": {"sigma_max": largest},
        "sample": {"grid": kind, "smallest_variance": (SMALLEST / largest) ** 2},
    }


METHODS: Mapping[str, tuple[str, Changes]] = {
    **{f"NCSN, {kind}": ("ncsn", _levels(kind, MANY)) for kind in LADDERS},
    "NCSN, geometric, sigma_1 = 1": ("ncsn", _levels("geometric", FEW)),
    "path-space DSM, mixture": ("", {}),
    "component-wise OU + DSM, mixture": ("component_ou", {}),
}
"""Name -> variant of configs/mnist.py, and changes of it."""

SHARED: Changes = {"noising": {"k": 1}}
SCALES: Mapping[str, Mapping[str, Any]] = {
    # changes of all runs, and of NCSN's
    "smoke": {
        "methods": ("NCSN, geometric", "NCSN, sigmoid", "path-space DSM, mixture"),
        "changes": SMOKE
        | {
            "data": {"num_train": 300, "num_test": 200},
            "mixture": {"num_components": 3, "subset": 300, "num_inits": 1},
            "sample": {"num": 64, "chunk": 64, "steps": 10, "smallest_variance": 0.02},
        },
        "ncsn": {"sample": {"steps": 6, "langevin_steps": 1}},
    },
    "cpu": {
        "methods": tuple(METHODS),
        "changes": {
            "network": {"widths": (16, 32, 64), "time_features": 64},
            "train": {"steps": 3000, "log_every": 20, "checkpoint_every": 200, "picture_every": 0},
            "optimizer": {"warmup_steps": 100},
            "sample": {"num": 300, "chunk": 300},
        },
        "ncsn": {**EDM, "sample": {"steps": 200, "langevin_steps": 5}},
    },
    "full": {
        "methods": tuple(METHODS),
        "changes": {
            "network": {"widths": (16, 32, 64), "time_features": 64},
            "train": {"steps": 30_000},
            "optimizer": {"warmup_steps": 100},
            "sample": {"num": 1000},
        },
        "ncsn": {**EDM, "sample": {"steps": 200, "langevin_steps": 100, "langevin_length": 0.1}},
    },
}
SHOWN = 64
SHOWN_COLUMNS = ("FID", "IS", "classes, TV", "intervals with a tenth", "with the data's share")
"""Of samples that have not diverged."""
CONFIDENCE = 0.95


def reproduce(study: Study, *, only: str = "") -> None:
    """All runs; tables, figures and metrics.json, written anew after each.

    Raises:
      ValueError: patterns of `only` of which one matches nothing.
    """
    scale = SCALES[study.scale]
    methods = chosen({slug(m): m for m in scale["methods"]}, only)
    everything = mnist.load(_config(study, "NCSN, geometric").data)
    if only:
        for method in methods:
            study.run(slug(method), _config(study, method), everything)
        return
    _ladders(study)
    classifier = evaluator(everything)
    runs: dict[str, Run] = {}
    results: dict[str, dict[str, Any]] = {}
    for method in scale["methods"]:
        runs[method] = study.run(slug(method), _config(study, method), everything)
        inside = runs[method].within(mnist.OUTSIDE)
        results[method] = {"outside": float(np.mean(~inside)), **runs[method].facts}
        if inside.sum() >= mnist.MIN_COUNT:
            report = mnist.fid(study, runs[method], everything, classifier)
            for name in ("fid", "inception_score", "class_tv", "histogram"):
                results[method] |= {name: report[name]["value"]}
                results[method] |= {f"{name}_floor": report[name]["floor"]}
            results[method]["count"] = report["count"]
        _show(study, runs, results, everything)
        study.metrics(results)


def _config(study: Study, method: str) -> Config:
    variant, own = METHODS[method]
    scale = SCALES[study.scale]
    where: Changes = {"data": {"dir": study.data_dir}}
    levels: Changes = scale["ncsn"] if variant == "ncsn" else {}
    quiet: Changes = {"train": {"picture_every": 0, "tensorboard": False}}
    return load_config(
        CONFIGS / "mnist.py", variant, SHARED, scale["changes"], quiet, where, levels, own
    )


def _ladders(study: Study) -> None:
    """The ladders, and how their neighbouring levels cover each other in 784 dimensions."""
    for num, largest in ((10, FEW), (200, MANY)):
        made = {kind: ladder(kind, num, largest=largest, smallest=SMALLEST) for kind in LADDERS}
        covered = {kind: (levels, coverage(levels, 784)) for kind, levels in made.items()}
        study.figure(f"ladders_{num}", plots.ladder_figure(covered))


def shares(histogram: list[int], count: int) -> list[tuple[float, float, float]]:
    """Share of each class, with the ends of Wilson's interval of `CONFIDENCE`."""
    from scipy.stats import binomtest

    found = []
    for hits in histogram:
        ends = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
        found.append((hits / count, float(ends.low), float(ends.high)))
    return found


def _show(
    study: Study,
    runs: Mapping[str, Run],
    results: Mapping[str, Mapping[str, Any]],
    everything: Dataset,
) -> None:
    labels = everything.train_labels
    assert labels is not None
    of_data = np.bincount(labels, minlength=everything.num_classes) / len(labels)
    rows, drawn = [], {}
    for method, result in results.items():
        row: dict[str, Any] = {"method": method} | dict.fromkeys(SHOWN_COLUMNS)
        if "count" in result:
            found = shares(result["histogram"], result["count"])
            drawn[method] = found
            row |= {"FID": result["fid"], "IS": result["inception_score"]}
            row |= {"classes, TV": result["class_tv"]}
            tenth = 1 / everything.num_classes
            row["intervals with a tenth"] = sum(low <= tenth <= high for _, low, high in found)
            within = zip(found, of_data, strict=True)
            row["with the data's share"] = sum(low <= p <= high for (_, low, high), p in within)
        row |= {"diverged": result["outside"], "sampling s": result["sample_seconds"]}
        rows.append(row)
    one: Mapping[str, Any] = next((r for r in results.values() if "count" in r), {})
    floor = {"FID": "fid_floor", "IS": "inception_score_floor", "classes, TV": "class_tv_floor"}
    rows.append({"method": "held-out images (floor)"} | {k: one.get(v) for k, v in floor.items()})
    first = next(iter(runs.values()))
    title = f"MNIST, {first.facts['steps']:,} steps, {len(first.samples):,} samples"
    study.table("ncsn", rows, title=title)
    samples = {method: run.samples[:SHOWN] for method, run in runs.items()}
    panels = {"held-out": everything.test[:SHOWN], **samples}
    study.figure("samples", plots.panels(panels, everything.shape))
    if drawn:
        names = [str(k) for k in range(everything.num_classes)]
        study.figure("classes", plots.intervals_figure(names, drawn, of_data))
