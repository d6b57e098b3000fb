"""Multi-modal data in the plane: 2405.15625, Figures 2, 3, 7 and 8.

Four data sets of thin support and unequal weights. OU + DSM, NDSM with eps = 1, 0 and learned, all
with the published settings (configs/gm2d.py, variants `ou` and `paper`); then OU + DSM, NDSM-CV and
path-space DSM with ours: own clock, residual score, average of the parameters. Network, minibatch
and number of steps are the same throughout. The loss step of NDSM is swept on the first data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax import plots
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.launch import load_data, restore
from ndsm_jax.reports.report import eps_curve
from ndsm_jax.reports.study import Changes, Run, Study, load_config, over_seeds, seeded, slug
from studies import CONFIGS

METHODS: Mapping[str, tuple[str, Changes]] = {
    "OU + DSM": ("ou", {}),
    "NDSM-CV, eps = 1": ("paper", {"control_variate": {"kind": "constant", "value": 1.0}}),
    "NDSM (eps = 0)": ("paper", {"objective": {"name": "ndsm"}}),
    "NDSM-CV, learned eps": ("paper", {}),
    "OU + DSM, tuned": (
        "",
        {"process": {"name": "ornstein_uhlenbeck"}, "objective": {"name": "dsm"}},
    ),
    "NDSM-CV, our settings": ("", {"objective": {"name": "ndsm_cv"}}),
    "path-space DSM with control variate": ("", {}),
}
DATA = ("rings_and_bars", "rings", "bars", "arcs")
NUM_COMPONENTS = {"bars": 5}  # otherwise 4
METRICS = {
    "support_distance": "support distance",
    "mode_tv": "mode TV",
    "sliced_wasserstein": "sliced Wasserstein",
    "energy_distance": "energy distance",
    "finite_fraction": "finite",
}
MAX_POINTS = 2000  # of pairwise metrics
SMOKE: Changes = {
    "network": {"width": 8, "depth": 1},
    "noising": {"k": 2},
    "data": {"num_train": 500, "num_test": 500},
    "train": {"log_every": 5, "checkpoint_every": 10},
    "sample": {"num": 300, "steps": 100},
}
LOSS_STEPS: Mapping[float, float] = {2e-2: 0.51, 1e-2: 0.31, 1e-3: 0.036, 1e-4: 0.0037}
"""Step that enters the loss -> share of the final variance that it reaches, rounded up: the reverse
process takes its last step from there, as the score is not trained at earlier times. Above 0.0265,
the smallest variance of the mixture, that last step would be unstable."""

SCALES: Mapping[str, Mapping[str, Any]] = {
    # (data set, steps, seeds) of the comparison; steps, seeds and loss steps of the sweep
    "smoke": {
        "methods": ("OU + DSM", "NDSM-CV, learned eps", "path-space DSM with control variate"),
        "compared": [("arcs", 10, 1)],
        "sweep": (10, 1, (1e-2, 1e-3)),
        "changes": SMOKE,
    },
    "cpu": {
        "methods": tuple(METHODS),
        "compared": [*((name, 10_000, 3) for name in DATA), ("rings_and_bars", 50_000, 1)],
        "sweep": (10_000, 3, tuple(LOSS_STEPS)),
        "changes": {"sample": {"num": 5000}},
    },
    "full": {
        "methods": tuple(METHODS),
        "compared": [(name, steps, 3) for steps in (10_000, 50_000) for name in DATA],
        "sweep": (50_000, 3, tuple(LOSS_STEPS)),
        "changes": {},
    },
}


def reproduce(study: Study) -> None:
    """All runs, seed by seed; tables, figures and metrics.json are written after each data set."""
    scale = SCALES[study.scale]
    results: dict[str, Any] = {}
    for seed in range(max(seeds for _, _, seeds in scale["compared"])):
        for name, steps, seeds in scale["compared"]:
            if seed < seeds:
                results[f"{name}_{steps}"] = _compare(study, name, steps, seed + 1)
                study.metrics(results)
    results["loss_step"] = _sweep(study, scale)
    study.metrics(results)


def _config(name: str, steps: int, method: str, *changes: Changes) -> Config:
    variant, own = METHODS[method]
    common: Changes = {
        "data": {"name": name},
        "mixture": {"num_components": NUM_COMPONENTS.get(name, 4)},
        "train": {"steps": steps, "picture_every": 0, "tensorboard": False},
    }
    return load_config(CONFIGS / "gm2d.py", variant, common, own, *changes)


def _run(
    study: Study, name: str, steps: int, method: str, seed: int, *changes: Changes
) -> tuple[Run, Dataset]:
    config = seeded(_config(name, steps, method, *changes), seed)
    dataset = load_data(config)
    return study.run(f"{name}_{steps}_{slug(method)}_{seed}", config, dataset), dataset


def _measured(study: Study, runs: list[Run], dataset: Dataset) -> list[dict[str, float]]:
    scores = [study.scores(run, dataset, max_points=MAX_POINTS) for run in runs]
    return [
        {title: score[key]["value"] for key, title in METRICS.items() if key in score}
        for score in scores
    ]


def _compare(study: Study, name: str, steps: int, seeds: int) -> dict[str, list[dict[str, float]]]:
    """One data set and number of steps: Figure 3 (50,000 steps) or 8 (10,000)."""
    changes, methods = SCALES[study.scale]["changes"], SCALES[study.scale]["methods"]
    pictures: dict[str, np.ndarray] = {}
    eps_of, measured = {}, {}
    for method in methods:
        done = [_run(study, name, steps, method, seed, changes) for seed in range(seeds)]
        runs, dataset = [run for run, _ in done], done[0][1]
        pictures |= {method: runs[0].samples[:4000]}
        measured[method] = _measured(study, runs, dataset)
        if "learned" in method:  # Figure 2
            eps_of = {f"seed {seed}": _eps(run) for seed, run in enumerate(runs)}
    scores = study.scores(runs[0], dataset, max_points=MAX_POINTS)
    floor = {title: scores[key]["floor"] for key, title in METRICS.items() if key in scores}
    rows = [{"method": method} | over_seeds(done) for method, done in measured.items()]
    rows.append({"method": "data (floor)"} | over_seeds([floor]))
    title = f"{name}, {steps:,} steps, seeds: {seeds}, {len(runs[0].samples):,} samples"
    study.table(f"{name}_{steps}", rows, title=title)
    panels = {"data": dataset.test[:4000], **pictures}
    study.figure(f"{name}_{steps}", plots.panels(panels, (2,), size=2.4))
    study.figure(f"{name}_{steps}_eps", plots.eps_figure(eps_of))
    return measured


def _sweep_config(scale: Mapping[str, Any], loss_step: float) -> Config:
    own: Changes = {
        "noising": {"loss_step": loss_step},
        "sample": {"grid": "clock", "smallest_variance": LOSS_STEPS[loss_step]},
    }
    return _config(DATA[0], scale["sweep"][0], "NDSM-CV, learned eps", scale["changes"], own)


def _sweep(study: Study, scale: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Figure 7: the step that enters the loss."""
    steps, seeds, loss_steps = scale["sweep"]
    pictures, measured = {}, {}
    for loss_step in loss_steps:
        config = _sweep_config(scale, loss_step)
        dataset = load_data(config)
        name = f"loss_step_{loss_step:g}_{steps}"
        runs = [study.run(f"{name}_{s}", seeded(config, s), dataset) for s in range(seeds)]
        pictures[f"loss step {loss_step:g}"] = runs[0].samples[:4000]
        measured[f"{loss_step:g}"] = _measured(study, runs, dataset)
    rows = [{"loss step": name} | over_seeds(done) for name, done in measured.items()]
    study.table("loss_step", rows, title=f"{DATA[0]}, NDSM-CV, {steps:,} steps, seeds: {seeds}")
    panels = {"data": dataset.test[:4000], **pictures}
    study.figure("loss_step", plots.panels(panels, (2,), size=2.4))
    return measured


def _eps(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """eps(t) after training."""
    restored = restore(run.folder)
    return eps_curve(restored.experiment, restored.state)
