"""Local-DSM beside its rivals: 2407.07998, Figures 2 to 4, and its images with another prior.

Three parts. The error of the local mean, of windows of a fixed length and of those that are chosen,
against means of finely simulated paths (Figure 2). Curves in the plane after as many steps of ISM,
of local-DSM and of our other objectives, with references that are mixtures and others (Figures 3
and 4). Colour images noised to a logistic law, where the paper has CIFAR-10, beside the tuned
linear process. Network, minibatch, sampler and number of steps are the same within a table.

Of the paper we had no more than its abstract and captions; data, network and references are ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import evaluation, plots
from ndsm_jax.config import SMOKE
from ndsm_jax.datasets import Dataset
from ndsm_jax.integrators import broadcast_time, forward_step, simulate
from ndsm_jax.launch import fitted, load_data
from ndsm_jax.noising import LinearisedWindows
from ndsm_jax.processes import Process
from ndsm_jax.reports.study import Changes, Run, Study, load_config, over_seeds, seeded, slug
from studies import CONFIGS, low_dimensional

# --- the error of the local mean ---

LAWS: Mapping[str, Changes] = {
    "4 round components": {"mixture": {"num_components": 4}},
    "8 components of full covariance": {
        "mixture": {"num_components": 8, "covariance": "full", "min_covariance": 0.01}
    },
    "logistic": {"reference": {"name": "logistic"}},
}
"""References fitted to the rings, whose Langevin dynamics is linearised."""

SCHEDULES: Mapping[str, Changes] = {
    "gap 0.05": {"noising": {"schedule": "gap", "gap": 0.05}},
    "tolerance 0.1": {"noising": {"tolerance": 0.1}},
    "tolerance 0.02": {"noising": {"tolerance": 0.02}},
    "tolerance 0.005": {"noising": {"tolerance": 0.005}},
}

# --- curves in the plane ---

LOCAL: Changes = {"objective": {"name": "local_dsm"}}
ISM: Changes = {"objective": {"name": "ism"}}
PATH: Changes = {"objective": {"name": "path_dsm"}}
LOGISTIC: Changes = {"reference": {"name": "logistic"}}
STUDENT_T: Changes = {"reference": {"name": "student_t", "degrees": 3.0}}
SCALED: Changes = {"network": {"parameterisation": "scaled"}}

METHODS: Mapping[str, Changes] = {
    "ISM": ISM,
    "local-DSM": LOCAL,
    "local-DSM, gap 0.05": {**LOCAL, **SCHEDULES["gap 0.05"]},
    "local-DSM, perceptual": {**LOCAL, "noising": {"weight": "perceptual"}},
    "NDSM": {"objective": {"name": "ndsm"}},
    "NDSM-CV": {"objective": {"name": "ndsm_cv"}},
    "path-space DSM": PATH,
    "logistic: ISM": {**ISM, **LOGISTIC},
    "logistic: local-DSM": {**LOCAL, **LOGISTIC},
    "Student-t: ISM": {**ISM, **STUDENT_T},
    "Student-t: local-DSM": {**LOCAL, **STUDENT_T},
    "not residual: ISM": {**ISM, **SCALED},
    "not residual: local-DSM": {**LOCAL, **SCALED},
}
"""What is changed in configs/gm2d.py. The reference is a mixture of four where none is named, the
score that of the reference plus the network's but for the last two."""

# --- colour images ---

IMAGES: Mapping[str, tuple[str, Changes]] = {
    "logistic: ISM": ("", ISM),
    "logistic: local-DSM": ("", {}),
    "logistic: local-DSM, perceptual": ("", {"noising": {"weight": "perceptual"}}),
    "logistic: path-space DSM": ("", PATH),
    "VP + DSM, tuned": ("vp_standardised", {}),
}
"""Variant of configs/colour32.py, and what is changed in it."""

EQUAL: Changes = {"train": {"picture_every": 0, "tensorboard": False, "select": "last"}}
SHAPES: Changes = {"data": {"name": "colour_shapes"}}
SMALL_UNET: Changes = {
    "network": {"widths": (16, 32, 64), "time_features": 64},
    "optimizer": {"warmup_steps": 50},
}

SCALES: Mapping[str, Mapping[str, Any]] = {
    # of the local mean: intervals, states, pairs of paths, steps; of the plane: (data set, steps,
    # seeds, methods); of images: methods and changes
    "smoke": {
        "mean": (4, 8, 32, 20),
        "laws": ("4 round components",),
        "schedules": ("gap 0.05", "tolerance 0.1"),
        "plane": [("arcs", 10, 1, ("ISM", "local-DSM, perceptual"))],
        "plane_changes": low_dimensional.SMOKE,
        "images": ("logistic: local-DSM",),
        "image_changes": {
            **SMOKE,
            "data": {**SHAPES["data"], "num_train": 60, "num_test": 40},
            "sample": {"num": 40, "chunk": 40, "steps": 10},
        },
    },
    "cpu": {
        "mean": (16, 32, 256, 100),
        "laws": tuple(LAWS),
        "schedules": tuple(SCHEDULES),
        "plane": [("arcs", 20_000, 3, tuple(METHODS))],
        "plane_changes": {"sample": {"num": 5000}},
        "images": tuple(IMAGES),
        "image_changes": {
            **SHAPES,
            **SMALL_UNET,
            "train": {"batch_size": 32, "steps": 400, "log_every": 20, "checkpoint_every": 200},
            "sample": {"num": 300, "chunk": 100},
        },
    },
    "full": {
        "mean": (32, 64, 2048, 400),
        "laws": tuple(LAWS),
        "schedules": tuple(SCHEDULES),
        "plane": [(name, 20_000, 5, tuple(METHODS)) for name in low_dimensional.DATA],
        "plane_changes": {},
        "images": tuple(IMAGES),
        "image_changes": {**SHAPES, "data": {**SHAPES["data"], "num_train": 50_000}},
    },
}


def reproduce(study: Study) -> None:
    """All parts; the runs in the plane seed by seed. Results are written after each."""
    scale = SCALES[study.scale]
    results: dict[str, Any] = {"local_mean": _local_means(study, scale)}
    study.metrics(results)
    results["images"] = _images(study, scale)
    study.metrics(results)
    for seed in range(max(seeds for _, _, seeds, _ in scale["plane"])):
        for name, steps, seeds, methods in scale["plane"]:
            if seed < seeds:
                results[name] = _plane(study, scale, name, steps, seed + 1, methods)
                study.metrics(results)


# --- the error of the local mean ---


@partial(jax.jit, static_argnames=("pairs", "steps"))
def simulated_means(
    key: Array, process: Process, y: Array, s: Array, h: Array, *, pairs: int, steps: int
) -> tuple[Array, Array]:
    """E[Y_{s+h} | Y_s = y] of states y [m, d], and the square of its standard error: [m, d] each.

    By Euler and Maruyama's steps of h / steps. Paths come in pairs of opposite noise, in whose
    means all that is linear cancels.
    """

    def step(n: Array, x: Array) -> Array:
        z = jax.random.normal(jax.random.fold_in(key, n), x.shape[1:])
        t, dt = (broadcast_time(time, x) for time in (s + n * h / steps, h / steps))
        return forward_step(process, x, t, dt, jnp.stack([z, -z]))

    start = jnp.broadcast_to(y, (2, pairs, *y.shape))
    means = jax.lax.fori_loop(0, steps, step, start).mean(axis=0)
    return means.mean(axis=0), means.var(axis=0) / (pairs - 1)


_linearised = jax.jit(lambda noise, y, s, h: noise.linearised(noise.process, y, s, h).mean)


def mean_errors(
    noise: LinearisedWindows, paths: Array, intervals: np.ndarray, *, pairs: int, steps: int
) -> dict[str, list[float]]:
    """Of the windows that end with some intervals: t, length, and the error of the local mean.

    The error is a root mean square over paths [n + 1, m, d], in units of sqrt(v(t)); the variance
    of the simulated means is taken off its square.
    """
    grid = noise.times.grid
    found: dict[str, list[float]] = {"t": [], "length": [], "error": []}
    for interval in intervals:
        start = noise.starts[interval]
        y, s, h = paths[start], grid[start], grid[interval + 1] - grid[start]
        local = _linearised(noise, y, broadcast_time(s, y), broadcast_time(h, y))
        key = jax.random.fold_in(jax.random.key(1), interval)
        mean, error = simulated_means(key, noise.process, y, s, h, pairs=pairs, steps=steps)
        square = jnp.maximum(jnp.mean((local - mean) ** 2 - error), 0)
        t = grid[interval + 1]
        row = (t, h, jnp.sqrt(square) / noise.process.clock.std(t))
        for values, value in zip(found.values(), row, strict=True):
            values.append(float(value))
    return found


def _local_means(study: Study, scale: Mapping[str, Any]) -> dict[str, Any]:
    """Figure 2: a fixed gap against the schedules that are chosen, over t."""
    count, states, pairs, steps = scale["mean"]
    results: dict[str, Any] = {}

    def measure(law: str, schedule: str) -> dict[str, Any]:
        data = {"data": {"name": "rings", "num_test": 1000}}
        config = load_config(CONFIGS / "gm2d.py", "", data, LOCAL, LAWS[law], SCHEDULES[schedule])
        dataset = load_data(config)
        start = time.perf_counter()
        noise = fitted(config, dataset)[1].noising
        assert isinstance(noise, LinearisedWindows)
        seconds = time.perf_counter() - start
        grid = noise.times.grid
        x0 = jnp.asarray(dataset.test[:states])
        paths = simulate(jax.random.key(0), noise.process, x0, grid)
        intervals = np.unique(np.linspace(0, len(grid) - 2, count).round().astype(int))
        lengths = np.asarray(grid[1:] - grid[noise.starts])
        return {
            **mean_errors(noise, paths, intervals, pairs=pairs, steps=steps),
            "share": float(np.mean(lengths / np.asarray(grid[1:]))),
            "mean_length": float(lengths.mean()),
            "horizon": float(grid[-1]),
            "seconds": seconds,
        }

    for law in scale["laws"]:
        results[law] = {
            schedule: study.part(
                f"mean_{slug(law)}_{slug(schedule)}",
                {"law": LAWS[law], "schedule": SCHEDULES[schedule], "sizes": scale["mean"]},
                partial(measure, law, schedule),
            )
            for schedule in scale["schedules"]
        }
    rows = [
        {
            "reference": law,
            "horizon": r["horizon"],
            "schedule": schedule,
            "mean window": r["mean_length"],
            "share of [0, t]": r["share"],
            "error, largest": max(r["error"]),
            "error, mean": float(np.mean(r["error"])),
        }
        for law, by_schedule in results.items()
        for schedule, r in by_schedule.items()
    ]
    title = (
        f"Error of the local mean in units of sqrt(v(t)), over {count} times and {states} states,"
        f" against means of {2 * pairs} paths of {steps} steps"
    )
    study.table("local_mean", rows, title=title)
    panels = {
        f"{what}: {law}": {name: (r["t"], r[key]) for name, r in by_schedule.items()}
        for key, what in (("error", "error of the local mean"), ("length", "length of the window"))
        for law, by_schedule in results.items()
    }
    study.figure("local_mean", plots.lines_figure(panels, columns=len(results)))
    return results


# --- curves in the plane ---


def _plane(
    study: Study,
    scale: Mapping[str, Any],
    name: str,
    steps: int,
    seeds: int,
    methods: tuple[str, ...],
) -> dict[str, Any]:
    common: Changes = {"data": {"name": name}, "train": {**EQUAL["train"], "steps": steps}}
    runs: dict[str, list[Run]] = {}
    for method in methods:
        config = load_config(
            CONFIGS / "gm2d.py", "", common, scale["plane_changes"], METHODS[method]
        )
        dataset = load_data(config)
        runs[method] = [
            study.run(f"{name}_{steps}_{slug(method)}_{seed}", seeded(config, seed), dataset)
            for seed in range(seeds)
        ]
    measured, floor = {}, {}
    titles = low_dimensional.METRICS
    for method, done in runs.items():
        found = [study.scores(run, dataset, max_points=low_dimensional.MAX_POINTS) for run in done]
        measured[method], floors = (
            [{title: scores[key][column] for key, title in titles.items()} for scores in found]
            for column in ("value", "floor")
        )
        floor = floors[0]
    return _compared(study, f"{name}_{steps}", runs, dataset, measured, floor)


def _compared(
    study: Study,
    name: str,
    runs: Mapping[str, list[Run]],
    dataset: Dataset,
    measured: Mapping[str, list[dict[str, float]]],
    floor: Mapping[str, float],
) -> dict[str, Any]:
    """A table of all runs, and a figure of the first of each method."""
    # The fastest of the seeds: what else the machine does only slows a run down.
    speed = {
        method: max(run.facts["steps"] / run.facts["train_seconds"] for run in done)
        for method, done in runs.items()
    }
    rows = [
        {"method": method} | over_seeds(done) | {"steps a second": f"{speed[method]:.3g}"}
        for method, done in measured.items()
    ]
    rows.append({"method": "data (floor)"} | over_seeds([floor]))
    first = next(iter(runs.values()))
    title = (
        f"{dataset.name}, {first[0].facts['steps']:,} steps, seeds: {len(first)},"
        f" {len(first[0].samples):,} samples"
    )
    study.table(name, rows, title=title)
    shown = 64 if dataset.is_image else 4000
    panels = {"data": dataset.test[:shown]}
    panels |= {method: done[0].samples[:shown] for method, done in runs.items()}
    study.figure(name, plots.panels(panels, dataset.shape, size=2.4))
    return {"measured": measured, "floor": floor, "steps_per_second": speed}


# --- colour images ---


def _images(study: Study, scale: Mapping[str, Any]) -> dict[str, Any]:
    runs: dict[str, list[Run]] = {}
    for method in scale["images"]:
        variant, own = IMAGES[method]
        config = load_config(CONFIGS / "colour32.py", variant, scale["image_changes"], EQUAL, own)
        dataset = load_data(config)
        runs[method] = [study.run(f"images_{slug(method)}", config, dataset)]
    measured = {
        method: [_image_scores(run.samples, dataset) for run in done]
        for method, done in runs.items()
    }
    count = len(next(iter(runs.values()))[0].samples)
    floor = _image_scores(dataset.train[:count], dataset)
    floor["nearest image"] = _nearest(dataset.test, dataset)
    return _compared(study, "images", runs, dataset, measured, floor)


def _image_scores(samples: np.ndarray, dataset: Dataset) -> dict[str, float]:
    """Those of `evaluation.evaluate` that are cheap with thousands of pixels."""
    inside = samples[np.all(np.abs(samples) < 10, axis=1)]
    found = {"finite": len(inside) / len(samples)}
    if len(inside) < 10:
        names = ("energy distance", "precision", "recall", "nearest image")
        return found | dict.fromkeys(names, np.nan)
    shares = evaluation.precision_recall_density_coverage(dataset.test, inside)
    return found | {
        "energy distance": evaluation.energy_distance(inside, dataset.test),
        "precision": shares["precision"],
        "recall": shares["recall"],
        "nearest image": _nearest(inside, dataset),
    }


def _nearest(images: np.ndarray, dataset: Dataset) -> float:
    return float(evaluation.nearest_distances(images, dataset.train)[0].mean())
