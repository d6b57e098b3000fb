"""How much depends on the Gaussian mixture? One factor at a time, on two data sets.

The ablation that 2405.15625 lacks: number of components, kind of covariance, samples used for the
fit, start of the fit, and weights that are wrong. Process, prior and parameterisation of the score
change with the mixture; network, objective (path-space DSM), batches and steps stay. Every metric
stands beside its floor (real training data) and the value of the prior alone, which shows what the
network mends.

Explicit Euler steps are stable only below the smallest variance of the mixture. Where the usual
number of steps does not do, it is doubled until it does; where even MAX_STEPS of noising do not,
the level is reported as too stiff and not trained. "+ 0.01" adds that to all variances, in place of
1e-4.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import config as config_module
from ndsm_jax import plots
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import fit
from ndsm_jax.datasets import Dataset
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import Changes, Row, Study, load_config, over_seeds, seeded
from studies import CONFIGS

Levels = dict[str, dict[str, Any]]  # level -> changes of the section `mixture`; {}: the base
Score = dict[str, dict[str, Any]]  # metric -> value, floor, prior and error
Scores = dict[str, list[Score]]  # level -> one a seed

RINGS: dict[str, Levels] = {
    "power of the weights": {
        f"{p:g}": {"weight_power": p} if p != 1 else {} for p in (0.0, 1.0, 2.0)
    },
    "covariance": {
        "tied_spherical": {"covariance": "tied_spherical"},
        "spherical": {},
        "diag": {"covariance": "diag"},
        "low_rank": {"covariance": "low_rank", "rank": 1},
        "full": {"covariance": "full"},
        "diag + 0.01": {"covariance": "diag", "min_covariance": 0.01},
        "low_rank + 0.01": {"covariance": "low_rank", "rank": 1, "min_covariance": 0.01},
        "full + 0.01": {"covariance": "full", "min_covariance": 0.01},
    },
    "start of the fit": {
        "k-means, best of 4": {},
        "k-means": {"num_inits": 1},
        "samples": {"num_inits": 1, "init": "random_from_data"},
        "random": {"num_inits": 1, "init": "random"},
    },
    "samples of the fit": {
        "20": {"subset": 20},
        "20 + 0.01": {"subset": 20, "min_covariance": 0.01},
        "100": {"subset": 100},
        "all": {},
    },
    "components": {str(k): {"num_components": k} if k != 4 else {} for k in (1, 2, 4, 8, 16, 50)},
}
DIGITS: dict[str, Levels] = {
    "power of the weights": {
        f"{p:g}": {"weight_power": p} if p != 1 else {} for p in (0.0, 1.0, 2.0)
    },
    "covariance": {
        "tied_spherical": {"covariance": "tied_spherical"},
        "spherical": {},
        "low_rank": {"covariance": "low_rank", "rank": 4},
        "diag": {"covariance": "diag"},
        "full": {"covariance": "full"},
    },
    "start of the fit": {
        "k-means, best of 4": {},
        "samples": {"num_inits": 1, "init": "random_from_data"},
        "random": {"num_inits": 1, "init": "random"},
    },
    "samples of the fit": {
        "100 + 0.01": {"subset": 100, "min_covariance": 0.01},
        "400": {"subset": 400},
        "400 + 0.01": {"subset": 400, "min_covariance": 0.01},
        "all": {},
    },
    "components": {str(k): {"num_components": k} if k != 50 else {} for k in (1, 10, 50, 200)},
}
NOISING_STEPS, SAMPLE_STEPS = 150, 40
"""Before they are doubled. Were they left open, stiff mixtures would be mended, not reported."""

BASES: dict[str, tuple[str, Changes, dict[str, Levels]]] = {
    "rings_and_bars": (
        "gm2d",
        {
            "objective": {"name": "path_dsm"},
            "noising": {"steps": NOISING_STEPS},
            "sample": {"num": 5000, "chunk": 5000, "steps": SAMPLE_STEPS},
        },
        RINGS,
    ),
    "digits": (
        "digits",
        {"noising": {"steps": NOISING_STEPS}, "sample": {"num": 2000, "steps": SAMPLE_STEPS}},
        DIGITS,
    ),
}
"""Data set -> config file, changes, and factors."""

QUIET = {"picture_every": 0, "tensorboard": False, "checkpoint_every": 3000}

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": (0,),
        "factors": {
            "rings_and_bars": {
                "power of the weights": {p: RINGS["power of the weights"][p] for p in ("0", "1")},
            }
        },
        "changes": {
            "rings_and_bars": {
                **config_module.SMOKE,
                "data": {"num_train": 400},
                "train": config_module.SMOKE["train"] | QUIET,
            }
        },
        "max_points": 200,
    },
    "cpu": {
        "seeds": (0, 1, 2),
        "factors": {"rings_and_bars": RINGS, "digits": DIGITS},
        "changes": {
            "rings_and_bars": {"train": QUIET | {"steps": 2000}},
            "digits": {"train": QUIET | {"steps": 1000}},
        },
        "max_points": 1000,
    },
    "full": {
        "seeds": (0, 1, 2, 3, 4),
        "factors": {"rings_and_bars": RINGS, "digits": DIGITS},
        "changes": {
            "rings_and_bars": {"train": {"steps": 20_000}, "sample": {"num": 10_000}},
            "digits": {"train": {"steps": 20_000}, "sample": {"num": 5000}},
        },
        "max_points": 5000,
    },
}

MAX_STEPS = 1200
STEPS = "noising steps"
LOG_LIKELIHOOD = "held-out log-likelihood"  # of the mixture, nats per sample
METRICS = {
    "rings_and_bars": ("mode_tv", "support_distance", "sliced_wasserstein", "energy_distance"),
    "digits": ("mode_tv", "nearest_train", "sliced_wasserstein", "energy_distance"),
}


def reproduce(study: Study) -> None:
    """Trains every level, seed by seed, and writes the results after each seed."""
    scale = SCALES[study.scale]
    metrics: dict[str, Any] = {}
    scores: dict[str, Scores] = {name: collections.defaultdict(list) for name in BASES}
    for seed in scale["seeds"]:
        for name, factors in scale["factors"].items():
            file, base, _ = BASES[name]
            for key, changes in _distinct(factors).items():
                config = load_config(
                    CONFIGS / f"{file}.py", "", base, scale["changes"][name], {"mixture": changes}
                )
                config = seeded(config, seed)
                dataset = load_data(config)
                stable, fit = _kept_fit(study, f"{name}_{key}_s{seed}", config, dataset)
                if stable is not None:
                    run = study.run(f"{name}_{key}_s{seed}", stable, dataset)
                    fit |= study.scores(run, dataset, max_points=scale["max_points"])
                scores[name][key].append(fit)
            metrics[name] = _report(study, name, factors, scores[name])
            study.metrics(metrics)


def _key(changes: dict[str, Any]) -> str:
    return "_".join(f"{name}-{value}" for name, value in changes.items()) or "base"


def _distinct(factors: dict[str, Levels]) -> dict[str, dict[str, Any]]:
    return {_key(changes): changes for levels in factors.values() for changes in levels.values()}


def _kept_fit(
    study: Study, name: str, config: Config, dataset: Dataset
) -> tuple[Config | None, Score]:
    """`_fit`, done once: large mixtures take longer to fit than to resume from."""

    def measure() -> dict[str, Any]:
        stable, score = _fit(config, dataset)
        steps = None if stable is None else [stable.noising.steps, stable.sample.steps]
        return {"score": score, "steps": steps}

    of = {"config": config.to_dict(), "data": dataset.digest}
    kept = study.part(f"fit_{name}", of, measure)
    if kept["steps"] is None:
        return None, kept["score"]
    return _with_steps(config, *kept["steps"]), kept["score"]


def _with_steps(config: Config, noising: int, sample: int) -> Config:
    return dataclasses.replace(
        config,
        noising=dataclasses.replace(config.noising, steps=noising),
        sample=dataclasses.replace(config.sample, steps=sample),
    )


def _fit(config: Config, dataset: Dataset) -> tuple[Config | None, Score]:
    """Fits the mixture, and finds the steps that it needs.

    Returns: the config with as many steps as the mixture needs, None where MAX_STEPS are too few,
      and what is known without training.
    """
    parts = fit(config, dataset)
    held_out = jnp.asarray(parts.frame.prepare(dataset.test))
    log_prob = jax.lax.map(parts.reference.log_prob, held_out, batch_size=1024)
    score = {LOG_LIKELIHOOD: {"value": float(log_prob.mean())}}
    while config.noising.steps <= MAX_STEPS:
        try:
            build(config, dataset.shape, parts)
            return config, score | {STEPS: {"value": config.noising.steps}}
        except ValueError as error:
            if "stiffness" not in str(error):
                raise
        config = _with_steps(config, 2 * config.noising.steps, 2 * config.sample.steps)
    return None, score


def _report(
    study: Study,
    name: str,
    factors: dict[str, Levels],
    scores: Scores,
) -> dict[str, Any]:
    """A table a factor and one figure; returns what metrics.json keeps of them."""
    panels: dict[str, Any] = {}
    lines: dict[str, dict[str, float]] = {}
    kept: dict[str, Any] = {}
    columns = METRICS[name]
    for factor, levels in factors.items():
        by_level = {level: scores[_key(changes)] for level, changes in levels.items()}
        trained = {level: [r for r in results if STEPS in r] for level, results in by_level.items()}
        trained = {level: results for level, results in trained.items() if results}
        floors = [r for results in trained.values() for r in results]
        floor = {c: float(np.mean([r[c]["floor"] for r in floors])) for c in columns}
        rows: list[Row] = [
            {factor: level} | _row(results, trained.get(level, []), columns)
            for level, results in by_level.items()
        ]
        rows.append({factor: "floor"} | {_title(c): value for c, value in floor.items()})
        study.table(
            f"{name}_{factor.replace(' ', '_')}",
            rows,
            title=f"{name}, {factor}; mean ± standard error over"
            f" {max(map(len, by_level.values()))} seeds; in brackets: the prior alone",
        )
        kept[factor] = by_level
        for c in columns:
            title = f"{factor}: {_title(c)}"
            panels[title] = {
                series: {level: [r[c][of] for r in results] for level, results in trained.items()}
                for series, of in (("samples", "value"), ("prior alone", "prior"))
            }
            lines[title] = {"floor": floor[c]}
    study.figure(name, plots.levels_figure(panels, lines=lines, columns=len(columns)))
    return kept


def _row(fitted: list[Score], trained: list[Score], columns: tuple[str, ...]) -> dict[str, str]:
    row = {_title(c): "" for c in columns} | {STEPS: "too stiff"}
    if trained:
        values = over_seeds([{c: r[c]["value"] for c in columns} for r in trained])
        prior = over_seeds([{c: r[c]["prior"] for c in columns} for r in trained])
        steps = sorted({int(r[STEPS]["value"]) for r in trained})
        row = {_title(c): f"{values[c]} ({prior[c].split(' ')[0]})" for c in columns}
        row[STEPS] = ", ".join(map(str, steps))
    return row | over_seeds([{LOG_LIKELIHOOD: r[LOG_LIKELIHOOD]["value"]} for r in fitted])


def _title(metric: str) -> str:
    return metric.replace("_", " ").replace("tv", "total variation")
