"""The same data in other units: what a user's own files give, whatever their shift and scale.

Rings and bars in the plane, written as an array file times 1e3, plus 1e4, with features of unlike
units, and a thousandth of their size at 1e4; the 8 x 8 digits times 65535, as 16-bit images are.
Each is trained through `data.name=array`, whose frame is standardised, with all other settings the
same. The first row of each table is what the others are to equal: data as they are. Last come
rings and bars by their name, in no frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax.config import SMOKE, Config
from ndsm_jax.datasets import Dataset, load
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import Changes, Study, load_config, over_seeds, seeded, slug
from studies import CONFIGS


@dataclasses.dataclass(frozen=True)
class Units:
    """x -> scale x + shift, feature by feature."""

    scale: tuple[float, ...] = (1.0,)
    shift: float = 0.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float64) * self.scale + self.shift


AS_THEY_ARE = "as they are"
BY_NAME = "by name, in no frame"
PLANE: Mapping[str, Units] = {
    AS_THEY_ARE: Units(),
    "times 1e3": Units((1e3,)),
    "plus 1e4": Units(shift=1e4),
    "features of 1 and 1e3": Units((1.0, 1e3)),
    "times 1e-3, plus 1e4": Units((1e-3,), 1e4),
    "times 1e6": Units((1e6,)),
    "features of 1e-6 and 1e6": Units((1e-6, 1e6)),
}
DIGITS: Mapping[str, Units] = {AS_THEY_ARE: Units(), "times 65535": Units((65535.0,))}
DATA: Mapping[str, tuple[str, Mapping[str, Units]]] = {
    "rings_and_bars": ("gm2d.py", PLANE),
    "digits": ("digits.py", DIGITS),
}
"""A data set, its config file, and the units in which it is written."""

SCALES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "data": ("rings_and_bars",),
        "rows": (AS_THEY_ARE, "features of 1e-6 and 1e6"),
        "seeds": 1,
        "changes": {**SMOKE, "mixture": {**SMOKE["mixture"], "num_components": 3}},
    },
    "cpu": {
        "data": tuple(DATA),
        "rows": (*PLANE, *DIGITS, BY_NAME),
        "seeds": 3,
        "changes": {"train": {"steps": 1500}, "sample": {"num": 2000}},
    },
    "full": {
        "data": tuple(DATA),
        "rows": (*PLANE, *DIGITS, BY_NAME),
        "seeds": 5,
        "changes": {"sample": {"num": 5000}},
    },
}
SMALL: Changes = {
    "mixture": {"num_components": 20, "num_inits": 1},
    "network": {"width": 64, "depth": 3},
    "train": {"batch_size": 64},
}
"""Of the digits: units are what is compared, and both rows have these settings."""

METRICS = ("two_sample_accuracy", "energy_distance", "recall", "finite_fraction")
MAX_POINTS = 2000


def reproduce(study: Study) -> None:
    """All runs, data set by data set; tables and metrics.json after each."""
    scale = SCALES[study.scale]
    results: dict[str, Any] = {}
    for data in scale["data"]:
        names = [name for name in DATA[data][1] if name in scale["rows"]]
        if BY_NAME in scale["rows"] and data == "rings_and_bars":
            names.append(BY_NAME)
        found = {
            name: [measure(study, data, name, seed) for seed in range(scale["seeds"])]
            for name in names
        }
        _show(study, data, found)
        results[data] = found
        study.metrics(results)


def measure(study: Study, data: str, name: str, seed: int) -> dict[str, dict[str, float]]:
    """Metric -> {value, floor, prior} of data in one of their units, trained first if need be."""
    config = seeded(_config(study, data, name), seed)
    dataset = load_data(config)
    run = study.run(f"{data}_{slug(name)}_{seed}", config, dataset)
    scores = study.scores(run, dataset, max_points=MAX_POINTS)
    return {key: scores[key] for key in METRICS}


def _config(study: Study, data: str, name: str) -> Config:
    file, units = DATA[data]
    where: Changes = {"data": {"name": data}}
    if name != BY_NAME:
        path = study.root / "data" / f"{data}_{slug(name)}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, load(data, num_train=0), units[name])
        where = {"data": {"name": "array", "dir": str(path)}}
    defaults: Changes = {
        "train": {"select": "held_out", "picture_every": 0, "tensorboard": False},
        "network": {"parameterisation": "local"},
    }
    small = SMALL if data == "digits" and study.scale != "full" else {}
    return load_config(CONFIGS / file, "", defaults, small, where, SCALES[study.scale]["changes"])


def _write(path: Any, dataset: Dataset, units: Units) -> None:
    """An array file of both splits in some units: images [N, H, W], other items [N, d]."""
    shape = dataset.shape[:2] if dataset.is_image else dataset.shape
    train, test = (units(x).reshape(-1, *shape) for x in (dataset.train, dataset.test))
    np.savez(path, x=train, test=test)


def _show(study: Study, data: str, found: Mapping[str, list[dict[str, dict[str, float]]]]) -> None:
    def row(column: str, scores: list[dict[str, dict[str, float]]]) -> dict[str, str]:
        return over_seeds([{key: score[key][column] for key in METRICS} for score in scores])

    first = found[AS_THEY_ARE]
    rows = [{"units": name} | row("value", scores) for name, scores in found.items()]
    rows.append({"units": "the mixture alone"} | row("prior", first))
    rows.append({"units": "training data (floor)"} | row("floor", first))
    study.table(data, rows, title=f"{data}, seeds: {len(first)}")
