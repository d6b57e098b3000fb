"""Quality against the number of training items: by what factor fewer data ours needs.

Not in 2405.15625. Path-space DSM of mixture Langevin noising in local coordinates, beside the two
tuned linear baselines: 2410.19149's dynamics of every component, and one Gaussian (variance
preserving) on standardised data with EDM's preconditioning. All have the same network, minibatch,
sampler and largest number of steps, and the average of the parameters with the least loss on
held-out training items. The mixture has as many components as the config file says, and at most one
for ten items. On few images there are also rows of ours with dropout and weight decay, and of all
three with small shifts.

Every seed has training items of its own. Samples are compared with 2,000 held-out items, however
few were trained on, and beside them stand as many real items that nothing has seen (the floor),
what sampling starts from, the mixture alone, and the training items, drawn again and again: what so
few of them say of the distribution. MNIST's FID is to all 60,000 images.

A cell is a data set, a number of items, a method and a seed, and one file in parts/; `--only` takes
patterns of their names, such as `mnist-300-*`. The last table has, for every baseline, its number
of items over what ours needs for the same quality, interpolated between its own means (log-log).

Torsion angles, where an energy that is approximately right is the reference: the study `torus`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ndsm_jax import plots
from ndsm_jax.config import SMOKE, Config
from ndsm_jax.config.effect import has_effect
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import evaluator, fid_report
from ndsm_jax.launch import restore
from ndsm_jax.reports.measure import measure
from ndsm_jax.reports.study import (
    Changes,
    Run,
    Study,
    chosen,
    load_config,
    mean_and_error,
    seeded,
    slug,
    with_error,
)
from studies import CONFIGS, LOCAL, mnist

OURS, COMPONENTS, GAUSSIAN = "path-space DSM", "component-wise OU", "one Gaussian, tuned"
ONE: Changes = {"mixture": {"num_components": 1}}
SHIFTS: Changes = {"data": {"shifts": 1}}
METHODS: Mapping[str, tuple[str, Changes]] = {
    OURS: ("", LOCAL),
    COMPONENTS: ("component_ou", {}),
    GAUSSIAN: ("vp_standardised", ONE),
    f"{OURS}, dropout": ("", {**LOCAL, "network": {**LOCAL["network"], "dropout": 0.1}}),
    f"{OURS}, weight decay": ("", {**LOCAL, "optimizer": {"name": "adamw", "weight_decay": 1.0}}),
    f"{OURS}, shifts": ("", {**LOCAL, **SHIFTS}),
    f"{COMPONENTS}, shifts": ("component_ou", SHIFTS),
    f"{GAUSSIAN}, shifts": ("vp_standardised", {**ONE, **SHIFTS}),
}
"""Variant of the config file, and changes of it; the first three on all data."""
COMPARED = (OURS, COMPONENTS, GAUSSIAN)
ALONE, AGAIN, FLOOR = "the mixture alone", "the training items again", "real data (floor)"
BESIDE = {ALONE: "prior", AGAIN: "again", FLOOR: "floor"}
"""Row -> side of a score of ours; these rows need no training of their own."""
ITEMS_A_COMPONENT = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a data set, at a scale.

    Attributes:
      items: numbers of training items, 0 for all.
      seeds: of all sizes up to `repeated`, one above.
      repeated: see `seeds`.
      regularised: sizes that the rows beyond `COMPARED` are measured at.
    """

    items: Sequence[int]
    seeds: int = 3
    repeated: int = 3000
    regularised: Sequence[int] = ()


DATA: Mapping[str, tuple[str, Changes, Sequence[str]]] = {
    "rings_and_bars": (
        "gm2d.py",
        {"objective": {"name": "path_dsm"}, "sample": {"num": 2000}},
        ("energy_distance", "sliced_wasserstein", "two_sample_accuracy", "recall", "mode_tv"),
    ),
    "mnist": (
        "mnist.py",
        {
            **mnist.SCALES["cpu"]["changes"],
            "train": {"picture_every": 0, "tensorboard": False},
            # 40 as there, more where a component of few images is too narrow for as many.
            "sample": mnist.SAMPLER | {"num": 2000, "steps": 0},
        },
        ("fid", "recall", "energy_distance", "two_sample_accuracy", "nearest_train"),
    ),
}
"""Config file, what is changed in it, and the columns; the first three are drawn."""

TITLES = {
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "two_sample_accuracy": "two-sample accuracy",
    "mode_tv": "mode TV",
    "fid": "FID",
    "nearest_train": "nearest image",
}
FACTORS = ("energy_distance", "sliced_wasserstein", "fid")
"""Columns that are distances: a number of items can be read off them."""

SCALES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "data": {"rings_and_bars": Sizes(items=(40, 80), seeds=1)},
        "changes": {**SMOKE, "mixture": {**SMOKE["mixture"], "num_components": 3}},
    },
    "cpu": {
        "data": {
            "rings_and_bars": Sizes(items=(30, 100, 300, 1000, 3000, 10_000), repeated=10_000)
        },
        "changes": {"train": {"steps": 5000}},
    },
    "full": {
        "data": {
            "mnist": Sizes(items=(100, 300, 1000, 3000, 14_000, 0), regularised=(100, 300, 1000))
        },
        "changes": {"train": {"steps": 4000, "log_every": 200, "checkpoint_every": 2000}},
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement; of 0 items: of all."""

    data: str
    items: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file, and what `--only` is compared with."""
        return f"{self.data}-{self.items or 'all'}-{slug(self.method)}-{self.seed}"


def cells(scale: str) -> Iterator[Cell]:
    """All of a scale, seed by seed."""
    for data, sizes in SCALES[scale]["data"].items():
        for seed in range(sizes.seeds):
            for items in sizes.items:
                if seed and (items or sizes.repeated + 1) > sizes.repeated:
                    continue
                methods = METHODS if items in sizes.regularised else COMPARED
                for method in methods:
                    yield Cell(data=data, items=items, method=method, seed=seed)


def reproduce(study: Study, *, only: str = "") -> None:
    """All cells, or `only` those that match one of these patterns; and what is there, as tables.

    Raises:
      ValueError: patterns of which one matches nothing; a kept cell of other settings.
    """
    everything = {cell.name: cell for cell in cells(study.scale)}
    of = functools.partial(_of, study)
    study.found(everything.values(), of)  # One of other settings is an error now, not after hours.
    for cell in chosen(everything, only):
        study.part(cell.name, of(cell), functools.partial(_measured, study, cell))
    _report(study)


def config_of(study: Study, cell: Cell) -> Config:
    """The config of a cell."""
    file, changes, _ = DATA[cell.data]
    variant, own = METHODS[cell.method]
    where: Changes = {"data": {"num_train": cell.items, "seed": cell.seed}}
    if file == "mnist.py":
        where = {"data": {**where["data"], "dir": study.data_dir}}
    select: Changes = {"train": {"select": "held_out"}}
    more = SCALES[study.scale]["changes"]
    config = load_config(CONFIGS / file, variant, changes, select, more, where, own)
    mixture = config.mixture
    if cell.items:
        most = max(1, cell.items // ITEMS_A_COMPONENT)
        mixture = dataclasses.replace(mixture, num_components=min(mixture.num_components, most))
    return seeded(dataclasses.replace(config, mixture=mixture), cell.seed)


def _of(study: Study, cell: Cell) -> dict[str, Any]:
    """What differs from the defaults and is read, so that a key of a later version changes no old
    cell."""
    config, defaults = config_of(study, cell), Config().to_dict()
    changed = {
        name: value
        for section, options in config.to_dict().items()
        for key, value in options.items()
        if value != defaults[section][key]
        and key != "dir"
        and has_effect(config, name := f"{section}.{key}")
    }
    return {"config": changed, "judged by": _judge(study, cell).data.num_train}


MANY = 10_000
"""Items of data that are drawn, beside which samples are judged."""


def _judge(study: Study, cell: Cell) -> Config:
    """The config of the data that samples are compared with: held-out items, and for the floor
    others than the training has seen; of MNIST all."""
    config = config_of(study, cell)
    data: dict[str, Any] = {"num_train": 0, "seed": 0}
    if cell.data != "mnist":
        data = {"num_train": MANY, "seed": 1000 + cell.seed}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def _measured(study: Study, cell: Cell) -> dict[str, Any]:
    """Scores of a cell, each with floor and reference, of ours those of the training items too; the
    first seed's samples as a picture."""
    config = config_of(study, cell)
    dataset = mnist.load(config.data)
    run = study.run(cell.name, config, dataset)
    columns = DATA[cell.data][2]
    judge = mnist.load(_judge(study, cell).data)
    prior = np.load(run.folder / "prior.npy", allow_pickle=False)
    restored = restore(run.folder)

    def scores(samples: np.ndarray) -> dict[str, dict[str, float]]:
        measured = measure(restored, samples, prior, judge, max_points=2000)["metrics"]
        found = {key: measured[key] for key in columns if key in measured}
        if "fid" in columns:
            fid = fid_report(samples, judge, evaluator(judge))["fid"]
            found["fid"] = {**fid, "prior": np.nan}
        return found

    found = scores(run.samples)
    if cell.method == OURS:
        rng = np.random.default_rng(cell.seed)
        again = scores(rng.choice(dataset.train, len(run.samples)))
        found = {key: {**x, "again": again[key]["value"]} for key, x in found.items()}
    if "nearest_train" in columns:  # of its own training items
        found["nearest_train"] = study.scores(run, dataset, max_points=2000)["nearest_train"]
    if cell.seed == 0:
        _picture(study, cell, dataset, run, prior)
    return {"metrics": found, "kept step": run.kept_step, "items": len(dataset.train)}


SHOWN = 36


def _picture(study: Study, cell: Cell, dataset: Dataset, run: Run, prior: np.ndarray) -> None:
    shown = SHOWN if dataset.is_image else len(run.samples)
    panels = {"training items": dataset.train, cell.method: run.samples, ALONE: prior}
    figure = plots.panels({name: x[:shown] for name, x in panels.items()}, dataset.shape)
    study.figure(f"samples_{cell.name}", figure)


# --- report ---


def _report(study: Study) -> None:
    """Tables and curves of the cells that are there."""
    found = study.found(cells(study.scale), functools.partial(_of, study))
    metrics: dict[str, Any] = {}
    for data, (_, _, columns) in DATA.items():
        of_data = {cell: part for cell, part in found.items() if cell.data == data}
        if not of_data:
            continue
        values = _values(of_data)
        for items in dict.fromkeys(cell.items for cell in of_data):
            of_size = {name: by[items] for name, by in values.items() if items in by}
            parts = {
                method: [
                    part
                    for cell, part in of_data.items()
                    if (cell.items, cell.method) == (items, method)
                ]
                for method in of_size
            }
            rows = [
                {"": name}
                | {TITLES.get(k, k): mean_and_error(x[k]) for k in columns if k in x}
                | {EXCESS: _excess(parts[name])}
                | {"kept step": ", ".join(str(part["kept step"]) for part in parts[name])}
                for name, x in of_size.items()
            ]
            n = _items(of_data, items)
            seeds = len({cell.seed for cell in of_data if cell.items == items})
            study.table(
                f"{data}_{items or 'all'}",
                rows,
                title=f"{data.replace('_', ' ')}, {n:,} training items, seeds: {seeds}",
            )
        _factors(study, data, of_data)
        drawn = {name: by for name, by in values.items() if name in (*COMPARED, ALONE, AGAIN)}
        panels = {
            TITLES.get(key, key): {
                name: {f"{_items(of_data, n):,}": x[key] for n, x in by.items() if key in x}
                for name, by in drawn.items()
                if any(key in x for x in by.values())
            }
            for key in columns[:3]
        }
        floors = {
            TITLES.get(key, key): {FLOOR: float(np.mean(_floors(of_data, key)))}
            for key in columns[:3]
        }
        logarithmic = tuple(TITLES[key] for key in columns if key in FACTORS)
        if drawn:
            study.figure(data, plots.levels_figure(panels, lines=floors, log=logarithmic))
        metrics[data] = {name: {str(n): x for n, x in by.items()} for name, by in values.items()}
    study.metrics({"scores": metrics})


EXCESS = "energy distance minus its reference's"


def _excess(parts: Sequence[Mapping[str, Any]]) -> str | None:
    """'difference ± standard error' of one method, a part a seed; None if not measured.

    The error is that of drawing samples, not of the training items. The mean of the seeds' errors
    bounds it, as seeds may share held-out items.
    """
    scores = [part["metrics"]["energy_distance"] for part in parts]
    measured = [score for score in scores if score.get("error") is not None]
    if not measured:
        return None
    mean = np.mean([score["value"] - score["prior"] for score in measured])
    return with_error(float(mean), float(np.mean([s["error"] for s in measured])), sign="+")


Values = dict[str, dict[int, dict[str, list[float]]]]
"""Row -> number of items -> column -> one number a seed."""


def _values(found: Mapping[Cell, Mapping[str, Any]]) -> Values:
    values: Values = {}
    for cell, part in found.items():
        rows = {cell.method: "value"}
        if cell.method == OURS:
            rows |= BESIDE
        for row, side in rows.items():
            columns = values.setdefault(row, {}).setdefault(cell.items, {})
            for key, score in part["metrics"].items():
                if score.get(side) is not None and np.isfinite(score[side]):
                    columns.setdefault(key, []).append(score[side])
    last = {name: values.pop(name) for name in BESIDE if name in values}
    return values | last


def _items(found: Mapping[Cell, Mapping[str, Any]], items: int) -> int:
    return next(part["items"] for cell, part in found.items() if cell.items == items)


def _floors(found: Mapping[Cell, Mapping[str, Any]], key: str) -> list[float]:
    return [part["metrics"][key]["floor"] for part in found.values() if key in part["metrics"]]


def _factors(study: Study, data: str, found: Mapping[Cell, Mapping[str, Any]]) -> None:
    """How many times fewer items ours needs for what a baseline has of the items of a row."""
    rows = []
    for baseline in (COMPONENTS, GAUSSIAN):
        values = _values(_paired(found, baseline))
        for key in FACTORS:
            curves = [
                {_items(found, n): float(np.mean(x[key])) for n, x in by.items() if key in x}
                for by in (values.get(OURS, {}), values.get(baseline, {}))
            ]
            if all(curves):
                factors = fewer(*curves)
                rows.append(
                    {"baseline": baseline, "by": TITLES[key]}
                    | {f"its {n:,} items": text for n, text in factors.items()}
                )
    if rows:
        study.table(f"{data}_factors", rows, title="Its items over those that ours needs as well")


def _paired(
    found: Mapping[Cell, Mapping[str, Any]], baseline: str
) -> dict[Cell, Mapping[str, Any]]:
    """Ours and the baseline's, of the training items that both have."""

    def items(method: str) -> set[tuple[int, int]]:
        return {(cell.items, cell.seed) for cell in found if cell.method == method}

    both = items(OURS) & items(baseline)
    return {
        cell: part
        for cell, part in found.items()
        if cell.method in (OURS, baseline) and (cell.items, cell.seed) in both
    }


def fewer(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, str]:
    """Number of items of a baseline -> that number over what ours needs for the same distance.

    Args:
      ours: number of items -> distance; where it rises, the least distance so far.
      theirs: the same of the baseline.

    Between two numbers of items log distance is taken as linear in the log of their number. '>x'
    and '<x' where the distance lies outside of ours: at the fewest items, or beyond the most.
    """
    curve = [(n, ours[n]) for n in sorted(ours)]
    lower = [p for i, p in enumerate(curve) if all(p[1] < before[1] for before in curve[:i])]
    sizes, falling = np.array(lower, np.float64).T
    most = max(ours)
    found = {}
    for n, distance in theirs.items():
        if distance >= falling[0]:
            found[n] = f">{n / sizes[0]:.2g}"
        elif distance < falling[-1]:
            found[n] = f"<{n / most:.2g}"
        else:
            needed = np.exp(np.interp(-np.log(distance), -np.log(falling), np.log(sizes)))
            found[n] = f"{n / needed:.2g}"
    return found
