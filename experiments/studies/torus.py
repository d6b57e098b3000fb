"""Torsion angles on the torus, from 30 samples to 10,000: what an approximate energy is worth.

Not in 2405.15625. The data are those of the study `boltzmann`, as angles. A nonlinear process
noises towards an energy that is exactly mirror-symmetric and whose barriers and wells are 25 % off,
tilted to the data's shares of its wells; no linear process can be told of it. Beside it are a
wrapped process towards the uniform law, the tuned linear process of the study `boltzmann` in four
dimensions, and the tilted energy alone. All have one MLP of 64 x 4, on sines and cosines, one
number of steps and one batch size, and the average of the parameters that had the least loss on a
tenth of the training samples (at least 20, at most a third), which none of them sees otherwise.

Samples are compared with the exact density; beside them stand as many exact draws (the floor), and
the training samples themselves. Each seed has its own training data. The last table is of the
reference alone: how right an energy has to be, for shares from 100 samples.
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import numpy as np

from ndsm_jax import plots
from ndsm_jax.config.parts import fit
from ndsm_jax.datasets.boltzmann import TorsionModel, angle_counts
from ndsm_jax.evaluation.boltzmann import torsion_scores
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
from studies import CONFIGS, boltzmann

ENERGY = "path DSM, approximate energy"
METHODS: dict[str, tuple[str, str]] = {
    ENERGY: ("torsion_angles.py", ""),
    "wrapped variance exploding": ("torsion_angles.py", "wrapped"),
    "OU + DSM in 4-D, tuned": ("torsion.py", "vp_standardised"),
}
"""Name -> config file and its variant."""

ALONE = "the energy alone"
FLOORS = ("exact draws", "training samples")

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "methods": (ENERGY,),
        "sizes": (30,),
        "seeds": (0,),
        "errors": (0.25,),
        "changes": boltzmann.SCALES["smoke"]["changes"],
    },
    "cpu": {
        "methods": tuple(METHODS),
        "sizes": (30, 100, 300, 1000, 10_000),
        "seeds": (0, 1, 2),
        "errors": (0.0, 0.1, 0.2, 0.25, 0.3),
        "changes": {"train": {"steps": 2000, "tensorboard": False}},
    },
    "full": {
        "methods": tuple(METHODS),
        "sizes": (30, 100, 300, 1000, 10_000),
        "seeds": (0, 1, 2, 3, 4),
        "errors": (0.0, 0.1, 0.2, 0.25, 0.3),
        "changes": {"train": {"steps": 20_000}, "sample": {"num": 100_000}},
    },
}
SELECTED: Changes = {"train": {"select": "held_out"}}

BINS = 24
SHARES_OF = 100
"""Training samples whose shares the energies of the last table are tilted to."""

COLUMNS = {
    "kl": "divergence of the binned angles, nats",
    "tv": "total variation of the same bins",
    "mirror_error": "F(right) - F(left): error, kT",
    "basin_error": "free energies of basins: rms, kT",
    "energy_error": "mean energy: error, kT",
}
FIGURE = ("kl", "mirror_error", "basin_error")
LOGARITHMIC = (COLUMNS["kl"], COLUMNS["basin_error"])

Scores = dict[int, dict[str, list[dict[str, float]]]]  # size -> row -> one dict a seed


def reproduce(study: Study) -> None:
    """Trains all methods, seed by seed, and writes the results after each seed."""
    scale, model = SCALES[study.scale], TorsionModel()
    scores: Scores = {n: collections.defaultdict(list) for n in scale["sizes"]}
    errors: dict[float, list[float]] = collections.defaultdict(list)
    surfaces = {"exact": -np.log(model.bin_probabilities(BINS))}
    for seed in scale["seeds"]:
        for size in scale["sizes"]:
            rows = scores[size]
            drawn: dict[str, np.ndarray] = {}
            for name in scale["methods"]:
                file, variant = METHODS[name]
                of: Changes = {"data": {"num_train": size, "seed": seed}}
                config = load_config(CONFIGS / file, variant, scale["changes"], SELECTED, of)
                config = seeded(config, seed)
                dataset = load_data(config)
                run = study.run(f"{slug(name)}_n{size}_s{seed}", config, dataset)
                drawn[name] = run.samples
                rows[name].append(
                    _scores(model, run.samples) | {"kept_step": run.kept_step} | dict(run.facts)
                )
                if name == ENERGY:
                    drawn[ALONE] = np.load(run.folder / "prior.npy", allow_pickle=False)
                    rows[ALONE].append(_scores(model, drawn[ALONE]))
                    angles = dataset.train
            exact = model.sample_angles(np.random.default_rng([seed, 1]), config.sample.num)
            rows["exact draws"].append(_scores(model, exact))
            rows["training samples"].append(_scores(model, angles))
            if seed == scale["seeds"][0] and size == scale["sizes"][:2][-1]:
                shown = {f"the {size:,} training samples": angles} | drawn
                surfaces |= {name: _surface(y) for name, y in shown.items()}
        for error in scale["errors"]:
            errors[error].append(_alone(study, model, error, seed))
        _report(study, scores, errors)
        study.figure("surfaces", plots.surfaces_figure(surfaces))


def _scores(model: TorsionModel, y: np.ndarray) -> dict[str, float]:
    found = torsion_scores(model, y, bins=BINS)
    return {name: found[name] for name in COLUMNS}


def _alone(study: Study, model: TorsionModel, error: float, seed: int) -> float:
    """Divergence of an energy that is so much off, tilted to the shares of `SHARES_OF` samples."""
    of: Changes = {
        "data": {"num_train": SHARES_OF, "seed": seed},
        "reference": {"options": f"error={error}"},
    }
    config = load_config(CONFIGS / "torsion_angles.py", "", SCALES[study.scale]["changes"], of)

    def measure() -> dict[str, float]:
        reference = fit(config, load_data(config)).reference
        draws = reference.sample(jax.random.key(seed), (config.sample.num,))
        return {"kl": _scores(model, np.asarray(draws))["kl"]}

    settings = {"reference": config.to_dict()["reference"], "seed": seed, "of": SHARES_OF}
    return study.part(f"alone_{slug(str(error))}_s{seed}", settings, measure)["kl"]


def _surface(y: np.ndarray) -> np.ndarray:
    counts = angle_counts(y, BINS)
    with np.errstate(divide="ignore"):
        return -np.log(counts / counts.sum())


def _report(study: Study, scores: Scores, errors: dict[float, list[float]]) -> None:
    for size, rows in scores.items():
        table = []
        for name, results in rows.items():
            found = over_seeds([{c: r[c] for c in COLUMNS} for r in results])
            steps = [r.get("kept_step") for r in results]
            kept = {} if None in steps else {"kept step": ", ".join(map(str, steps))}
            table.append({"": name} | {c.replace("_", " "): v for c, v in found.items()} | kept)
        study.table(
            f"torus_n{size}",
            sorted(table, key=lambda row: "kept step" not in row),
            title=f"{size} training samples; mean ± standard error over"
            f" {len(rows['exact draws'])} seeds. Errors in kT, divergences in nats.",
        )
    study.table(
        "energies",
        [{"error": f"{e:.0%}", "kl": mean_and_error(values)} for e, values in errors.items()],
        title=f"The energy alone, by the error of its terms, with shares of {SHARES_OF} samples.",
    )
    first = next(iter(scores.values()))
    names = [name for name in first if name not in FLOORS]
    panels = {
        COLUMNS[metric]: {
            name: {f"{size:,}": [r[metric] for r in scores[size][name]] for size in scores}
            for name in names
        }
        for metric in FIGURE
    }
    lines = {
        COLUMNS[metric]: {"exact draws": float(np.mean([r[metric] for r in first["exact draws"]]))}
        for metric in FIGURE
    }
    study.figure("torus", plots.levels_figure(panels, lines=lines, log=LOGARITHMIC))
    study.metrics(
        {
            "scores": {str(size): rows for size, rows in scores.items()},
            "energies": {str(error): values for error, values in errors.items()},
        }
    )
