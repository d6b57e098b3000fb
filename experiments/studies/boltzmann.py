"""Torsion angles with a broken mirror symmetry: which objective finds the free energies?

Not in 2405.15625, which names approximate symmetries as its aim and has no data set with a known
density. Methods of that paper and ours learn `boltzmann.TorsionModel` from a few and from many
exact draws; all have one network, number of steps and batch size. Their samples are compared with
the exact density: divergence of the binned angles, free energies of the basins, mean energy. Beside
them stand as many exact draws (the floor), and the training samples themselves.

The mirror error is that of F(right) - F(left), which is 1.41 kT, and would be 0 were the symmetry
exact. Each seed has its own training data, so the errors over seeds contain the data's own.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from ndsm_jax import config as config_module
from ndsm_jax import plots
from ndsm_jax.datasets.boltzmann import TorsionModel, angle_counts
from ndsm_jax.evaluation.boltzmann import BOLTZMANN_METRICS, torsion_scores
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import (
    Changes,
    Study,
    load_config,
    mean_and_error,
    over_seeds,
    seeded,
    slug,
)
from studies import CONFIGS

METHODS: dict[str, tuple[str, Changes]] = {
    "OU + DSM, published": ("ou", {}),
    "OU + DSM, tuned": ("vp_standardised", {}),
    "component-wise OU + DSM, tuned": ("component_ou", {}),
    "NDSM-CV": ("", {"objective": {"name": "ndsm_cv"}, "control_variate": {"kind": "optimal"}}),
    "path DSM": ("", {}),
    "path DSM-CV": (
        "",
        {"objective": {"name": "path_dsm_cv"}, "control_variate": {"kind": "optimal"}},
    ),
}
"""Name -> variant of the config and what is changed in it."""

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "methods": ("path DSM",),
        "sizes": (200,),
        "seeds": (0,),
        "changes": {
            **config_module.SMOKE,
            "data": {"num_test": 200},
            "train": config_module.SMOKE["train"] | {"picture_every": 0, "tensorboard": False},
        },
    },
    "cpu": {
        "methods": tuple(METHODS),
        "sizes": (1000, 10_000),
        "seeds": (0, 1, 2),
        "changes": {"train": {"steps": 2000, "tensorboard": False}},
    },
    "full": {
        "methods": tuple(METHODS),
        "sizes": (100, 1000, 10_000),
        "seeds": (0, 1, 2, 3, 4),
        "changes": {"train": {"steps": 20_000}, "sample": {"num": 100_000}},
    },
}

BINS = 24
FIGURE = {
    "kl": "divergence of the binned angles, nats",
    "mirror_error": "F(right) - F(left): error, kT",
    "basin_error": "free energies of basins: rms, kT",
    "energy_error": "mean energy: error, kT",
    "radius_ratio": "distance to the torus / exact",
}

Scores = dict[int, dict[str, list[dict[str, float]]]]  # size -> row -> one dict a seed


def reproduce(study: Study) -> None:
    """Trains all methods, seed by seed, and writes the results after each seed."""
    scale = SCALES[study.scale]
    model = TorsionModel()
    scores: Scores = {n: collections.defaultdict(list) for n in scale["sizes"]}
    surfaces = {"exact": -np.log(model.bin_probabilities(BINS))}
    for seed in scale["seeds"]:
        for size in scale["sizes"]:
            rows = scores[size]
            shown = seed == scale["seeds"][0] and size == scale["sizes"][0]
            for name in scale["methods"]:
                variant, changes = METHODS[name]
                config = load_config(
                    CONFIGS / "torsion.py",
                    variant,
                    scale["changes"],
                    changes,
                    {"data": {"num_train": size, "seed": seed}},
                )
                config = seeded(config, seed)
                dataset = load_data(config)
                run = study.run(f"{slug(name)}_n{size}_s{seed}", config, dataset)
                rows[name].append(torsion_scores(model, run.samples, bins=BINS) | dict(run.facts))
                if shown:
                    surfaces[name] = _surface(run.samples)
            rng = np.random.default_rng([seed, 1])
            rows["exact draws"].append(
                torsion_scores(model, model.sample(rng, config.sample.num)[0], bins=BINS)
            )
            rows["training samples"].append(torsion_scores(model, dataset.train, bins=BINS))
            if shown:
                surfaces[f"the {size:,} training samples"] = _surface(dataset.train)
        _report(study, scores, model)
        study.figure("surfaces", plots.surfaces_figure(surfaces))


def _surface(y: np.ndarray) -> np.ndarray:
    counts = angle_counts(y, BINS)
    with np.errstate(divide="ignore"):
        return -np.log(counts / counts.sum())


def _report(study: Study, scores: Scores, model: TorsionModel) -> None:
    columns = [name for name in BOLTZMANN_METRICS if not name.endswith("_se")]
    for size, rows in scores.items():
        seeds = len(rows["exact draws"])
        table = []
        for name, results in rows.items():
            found = over_seeds([{c: r[c] for c in columns} for r in results])
            table.append({"": name} | {c.replace("_", " "): v for c, v in found.items()})
        study.table(
            f"torsion_n{size}",
            table,
            title=f"{size} training samples; mean ± standard error over {seeds} seeds. Errors in"
            " kT, divergences in nats.",
        )
    sizes = {size: [m for m in rows if "steps" in rows[m][0]] for size, rows in scores.items()}
    panels = {
        title: {
            f"N = {size}": {m: [r[metric] for r in scores[size][m]] for m in methods}
            for size, methods in sizes.items()
        }
        for metric, title in FIGURE.items()
    }
    exact = next(iter(scores.values()))["exact draws"]
    lines = {
        title: {"exact draws": float(np.mean([r[metric] for r in exact]))}
        for metric, title in FIGURE.items()
    }
    study.figure("torsion", plots.levels_figure(panels, lines=lines))
    study.metrics(
        {
            "exact": {
                "basin_probabilities": model.basin_probabilities.tolist(),
                "mean_energy": model.mean_energy,
            },
            "scores": {str(size): rows for size, rows in scores.items()},
            "seconds": {
                str(size): {
                    m: mean_and_error([r["train_seconds"] for r in scores[size][m]])
                    for m in methods
                }
                for size, methods in sizes.items()
            },
        }
    )
