"""Every objective on every process that it fits, on four data sets: one table for the family.

Not in 2405.15625. Rows are the processes that a config knows (`config.names.PROCESSES`), each with
the settings of its baseline in docs/baselines.md where it has one, times the objectives
(`objectives.OBJECTIVES`): what is added there is added here. Network, minibatch, number of steps
and the sampler's budget are those of the data set for all rows. What does not apply is said by the
contract (`launch.foreseen`), before anything is fitted. Beside the rows stand real data in the
place of samples (the floor), and the reference of Langevin noising alone, without training.

A cell is a data set, a process, an objective and a seed, and one file in parts/; `--only` takes
patterns of their names, such as `digits-*-dsm-0`. All seeds 0 come first. Every call ends by
writing the tables of the cells that are there, and comparison.md, the page docs/comparison.md with
these tables under its text.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import math
import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ndsm_jax import plots
from ndsm_jax.config import SMOKE, Config
from ndsm_jax.config.assemble import build, resolvable
from ndsm_jax.config.names import PROCESSES
from ndsm_jax.config.parts import Parts, examples, fit
from ndsm_jax.datasets import Dataset
from ndsm_jax.datasets.boltzmann import TorsionModel
from ndsm_jax.evaluation import METRICS, ImageClassifier, evaluator_if_labelled
from ndsm_jax.evaluation.boltzmann import torsion_scores
from ndsm_jax.experiment import Experiment
from ndsm_jax.launch import Restored, foreseen, load_data, train_as_configured
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.reports.measure import drawn, measure
from ndsm_jax.reports.study import (
    Changes,
    Study,
    chosen,
    load_config,
    markdown,
    mean_and_error,
    seeded,
    slug,
)
from ndsm_jax.runs import replace_file
from ndsm_jax.training import TrainState
from studies import CONFIGS

LOCAL: Changes = {
    "process": {"name": "langevin"},
    "network": {"parameterisation": "local"},
}
DEGENERATE: Changes = {
    "process": {"name": "critically_damped"},
    "sample": {"sampler": "reverse_sde"},
}
FIRST = {"smallest_variance": 1e-5}
EXPLODING: Changes = {"noising": FIRST, "sample": FIRST}
"""Of v(T), the largest squared distance in the data: 14 in the plane, 93 of digits. The default's
thousandth would leave noise of deviation 0.12 and 0.3, where the other rows have 0.03."""
ROWS: Mapping[str, tuple[str, Changes]] = {
    "langevin": ("", {"process": {"name": "langevin"}}),
    "langevin, local coordinates": ("", LOCAL),
    "component_ou": ("component_ou", {}),
    "component_ou, one component": ("vp_standardised", {}),
    "component_flow": ("component_flow", {}),
    "straight_line": ("flow_matching", {}),
    "critically_damped": ("", DEGENERATE),
}
"""Variant of a config file and changes of it, where a process has settings of its own."""


def rows() -> dict[str, tuple[str, Changes]]:
    """`ROWS`, and all other processes by their names alone."""
    own = {"variance_exploding": EXPLODING}
    others = {name: {"process": {"name": name}, **own.get(name, {})} for name in PROCESSES}
    return {**ROWS, **{name: ("", made) for name, made in others.items() if name not in ROWS}}


class Data(NamedTuple):
    """A data set: its config file, what is changed in it, and the distance that it is judged by."""

    file: str
    changes: Changes
    distance: str


DATA: Mapping[str, Data] = {
    "rings_and_bars": Data("gm2d.py", {}, "sliced_wasserstein"),
    "arcs": Data("gm2d.py", {"data": {"name": "arcs"}}, "sliced_wasserstein"),
    "digits": Data("digits.py", {}, "frechet_distance"),
    "torsion_angles": Data("torsion_angles.py", {}, "kl"),
}

FINITE, RATE = "finite_fraction", "steps / s"
COLUMNS: Mapping[str, str] = {
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet_distance": "Frechet distance",
    "kl": "divergence, nats",
    "two_sample_accuracy": "two-sample accuracy",
    "mode_tv": "mode TV",
    "recall": "recall",
    FINITE: "finite",
}
BETTER: Mapping[str, str] = {
    **{name: METRICS[name][0] for name in COLUMNS if name in METRICS and name != FINITE},
    "kl": "lower",
    RATE: "higher",
}
"""Of the columns that are a contest: all but the share of samples that is finite."""

ALONE, FLOOR = "the reference alone", "real data (floor)"

QUIET: Changes = {"train": {"picture_every": 0, "tensorboard": False}}
_BUDGET: Changes = {"sample": {"num": 2000, "chunk": 2000}, "evaluate": {"max_points": 2000}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a scale: seeds, changes of every config and of those of a file, and which cells; those
    that are too dear, with the reason."""

    seeds: int
    changes: Changes = dataclasses.field(default_factory=dict)
    of_file: Mapping[str, Changes] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data: Sequence[str] = tuple(DATA)
    rows: Sequence[str] = ()
    objectives: Sequence[str] = tuple(OBJECTIVES)


SCALES: Mapping[str, Settings] = {
    "smoke": Settings(
        seeds=1,
        changes={**SMOKE, "mixture": {**SMOKE["mixture"], "num_components": 3}},
        data=("rings_and_bars",),
        rows=("langevin", "straight_line"),
        objectives=("dsm", "path_dsm"),
    ),
    "cpu": Settings(
        seeds=3,
        changes=_BUDGET,
        of_file={
            "gm2d.py": {"train": {"steps": 3000}},
            "digits.py": {"train": {"steps": 2000}, "network": {"width": 128, "depth": 4}},
            "torsion_angles.py": {"train": {"steps": 3000}},
        },
        left_out={
            "digits-critically_damped-local_dsm-*": "the covariance of a dense linearisation in 128"
            " dimensions, for 256 states, takes 0.3 s a step"
        },
    ),
    "full": Settings(
        seeds=3,
        changes={"sample": {"num": 10_000}, "evaluate": {"max_points": 5000}},
        of_file={"digits.py": {"train": {"steps": 30_000}}},
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement."""

    data: str
    row: str
    objective: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file, and what `--only` is compared with."""
        return f"{self.data}-{slug(self.row)}-{self.objective}-{self.seed}"


def _names(settings: Settings) -> tuple[str, ...]:
    return tuple(settings.rows or rows())


def cells(settings: Settings) -> Iterator[Cell]:
    """All of a scale: a seed on all data before the next, one fit after the other."""
    names = _names(settings)
    for seed, row, data, objective in itertools.product(
        range(settings.seeds), names, settings.data, settings.objectives
    ):
        yield Cell(data=data, row=row, objective=objective, seed=seed)


def reproduce(study: Study, *, only: str = "") -> None:
    """All cells, or `only` those that match one of these patterns; and what is there, as tables.

    Raises:
      ValueError: patterns of which one matches nothing; a kept cell of other settings.
    """
    settings = SCALES[study.scale]
    everything = {cell.name: cell for cell in cells(settings)}
    left_out = [name for p in settings.left_out for name in fnmatch.filter(everything, p)]
    of = functools.partial(_of, study.scale)
    study.found(everything.values(), of)  # One of other settings is an error now, not after hours.
    fitted = None
    for cell in chosen(everything, only):
        if cell.name not in left_out:
            if fitted != (fitted := (cell.data, cell.row, cell.seed)):
                # XLA keeps several memory maps a program, and Linux allows 65,530 a process.
                jax.clear_caches()
            study.part(cell.name, of(cell), functools.partial(_measured, study, cell))
    _report(study, everything.values())


# --- a cell ---


def _changes(scale: str, cell: Cell) -> tuple[str, str, tuple[Changes, ...]]:
    """Config file, variant, and changes."""
    settings, data, (variant, own) = SCALES[scale], DATA[cell.data], rows()[cell.row]
    objective: Changes = {"objective": {"name": cell.objective}}
    of_file = settings.of_file.get(data.file, {})
    return data.file, variant, (QUIET, data.changes, own, settings.changes, of_file, objective)


def _of(scale: str, cell: Cell) -> dict[str, Any]:
    file, variant, changes = _changes(scale, cell)
    return {"file": file, "variant": variant, "changes": list(changes), "seed": cell.seed}


def config_of(scale: str, cell: Cell) -> Config:
    """The config of a cell."""
    file, variant, changes = _changes(scale, cell)
    return seeded(load_config(CONFIGS / file, variant, *changes), cell.seed)


def _measured(study: Study, cell: Cell) -> dict[str, Any]:
    """Scores and facts of a cell; or why it does not apply, or how its training ended."""
    config, dataset = config_of(study.scale, cell), _dataset(study.scale, cell.data)
    try:
        foreseen(config, dataset, examples(config, dataset))
        parts = resolvable(config, _fitted(study.scale, cell.data, cell.row, cell.seed))
        experiment = build(config, dataset.shape, parts)
    except ValueError as error:
        return {"does not apply": str(error)}
    try:
        state, rate = _trained(config, experiment, dataset)
        run = Restored(
            config=config,
            experiment=experiment,
            state=state,
            parts=parts,
            examples=None,
            shape=dataset.shape,
            host={},
            folder=study.root,
        )
        made = drawn(run, progress=study.progress)
    except FloatingPointError as error:
        return {"failed": str(error)}
    classifier = _classifier(study.scale, cell.data)
    found = measure(run, made.samples, made.prior, dataset, classifier=classifier)["metrics"]
    if DATA[cell.data].distance == "kl":
        found["kl"] = _divergences(made.samples, made.prior, cell.seed)
    sides = ("value", "floor", "prior")
    return {
        "metrics": {k: {s: found[k][s] for s in sides} for k in COLUMNS if k in found},
        RATE: rate,
        "evaluations": experiment.sampler.evaluations(len(experiment.sample_grid) - 1),
        "steps": config.train.steps,
        "samples": len(made.samples),
    }


@functools.cache
def _dataset(scale: str, data: str) -> Dataset:
    row, objective = next(iter(rows())), next(iter(OBJECTIVES))
    return load_data(config_of(scale, Cell(data=data, row=row, objective=objective, seed=0)))


@functools.cache
def _classifier(scale: str, data: str) -> ImageClassifier | None:
    return evaluator_if_labelled(_dataset(scale, data))


@functools.lru_cache(maxsize=1)
def _fitted(scale: str, data: str, row: str, seed: int) -> Parts:
    """Frame, reference and the starts of local-DSM's windows: those of any objective."""
    cell = Cell(data=data, row=row, objective="local_dsm", seed=seed)
    return fit(config_of(scale, cell), _dataset(scale, data))


WARM = 50
"""Steps that are not timed: they are compiled."""


def _trained(config: Config, experiment: Experiment, dataset: Dataset) -> tuple[TrainState, float]:
    """The trained state, and steps a second: of one core on a CPU, whatever else it does."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    first = min(WARM, config.train.steps // 2)
    warm = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=first))
    state = train_as_configured(warm, experiment, dataset, None, progress=False)
    start = clock()
    state = train_as_configured(config, experiment, dataset, None, state=state, progress=False)
    jax.block_until_ready(state)
    return state, (config.train.steps - first) / (clock() - start)


BINS = 24


def _divergences(samples: np.ndarray, prior: np.ndarray, seed: int) -> dict[str, float]:
    """From the exact density, of the bins of the study `torus`; nan where nothing is finite."""
    model = TorsionModel()
    exact = model.sample_angles(np.random.default_rng([seed, 1]), len(samples))
    sets = {"value": samples, "floor": exact, "prior": prior}
    return {
        side: torsion_scores(model, y, bins=BINS)["kl"] if np.isfinite(y).all(1).any() else np.nan
        for side, y in sets.items()
    }


# --- the rule of the tables ---

Name = TypeVar("Name", bound=Hashable)


def best(values: Mapping[Name, Sequence[float]], better: str) -> set[Name]:
    """The names of the best mean, and of those within one standard error of the difference of it.

    Args:
      values: name -> one number a seed; those with a number that is not finite are never best.
      better: "lower" or "higher".

    Of one seed there is no standard error: then equal means alone are ties.
    """
    known = {name: np.asarray(x, float) for name, x in values.items() if np.isfinite(x).all()}
    if not known:
        return set()
    sign = -1.0 if better == "higher" else 1.0
    first = known[min(known, key=lambda name: sign * known[name].mean())]
    behind = {name: sign * (x.mean() - first.mean()) for name, x in known.items()}
    return {name for name, x in known.items() if behind[name] <= _error(x, first)}


def _error(x: np.ndarray, y: np.ndarray) -> float:
    """Standard error of the difference of two means; 0 where one of them is of one number."""
    if min(len(x), len(y)) < 2:
        return 0.0
    return math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))


def shortened(reason: str) -> str:
    """A contract's sentence without its remedies, which are of no use in a table."""
    return reason.partition(";")[0]


# --- report ---

PAGE = CONFIGS.parent / "docs" / "comparison.md"
MARK = "<!-- tables: made by experiments/reproduce.py --experiment=comparison -->"
DIVERGED = "diverged"

Found = Mapping[Cell, Mapping[str, Any]]
Numbers = dict[str, list[float]]
"""Column -> one number a seed."""


def _report(study: Study, everything: Collection[Cell]) -> None:
    """Tables, figure and page of the cells that are there."""
    settings = SCALES[study.scale]
    found = study.found(everything, functools.partial(_of, study.scale))
    text, scores, told_apart = [], {}, {}
    for data in settings.data:
        of_data = {cell: part for cell, part in found.items() if cell.data == data}
        measured = numbers(of_data)
        heading = f"## {data.replace('_', ' ').capitalize()}"
        if not any("metrics" in part for part in of_data.values()):
            text += [heading, "Nothing is measured yet."]
            continue
        title, reasons = _title(of_data), dict[str, str]()
        overview = _overview(study.scale, data, of_data, measured, reasons)
        told_apart[data.replace("_", " ")] = _accuracies(study.scale, measured)
        table = _table(study.scale, measured, _references(of_data))
        study.table(data, table, title=title)
        because = "\n".join(f"- ({letter}) {reason}." for reason, letter in reasons.items())
        text += [heading, title, markdown(overview), because, markdown(table)]
        scores[data] = {f"{row}, {objective}": x for (row, objective), x in measured.items()}
    head = PAGE.read_text().partition(MARK)[0].rstrip() if PAGE.exists() else "# Comparison"
    page = "\n\n".join(filter(None, [head, MARK, *text]))
    replace_file(study.root / PAGE.name, f"{page}\n".encode())
    if told_apart:
        names = settings.objectives, _names(settings)
        study.figure("comparison", plots.scores_figure(*names, told_apart, limits=(0.5, 1.0)))
    study.metrics({"scores": scores})


def numbers(found: Found) -> dict[tuple[str, str], Numbers]:
    """(process, objective) -> what was measured; nan where a training or all samples diverged."""
    measured: dict[tuple[str, str], Numbers] = {}
    for cell, part in found.items():
        if "does not apply" in part:
            continue
        columns = measured.setdefault((cell.row, cell.objective), {})
        of_cell = {key: score["value"] for key, score in part.get("metrics", {}).items()}
        for key, value in {DATA[cell.data].distance: None, **of_cell, RATE: part.get(RATE)}.items():
            columns.setdefault(key, []).append(math.nan if value is None else value)
    return measured


def _references(found: Found) -> dict[str, Numbers]:
    """What stands beside all rows, of the first cell of every seed that noises to the reference."""
    firsts: dict[int, Mapping[str, Any]] = {}
    for cell, part in found.items():
        if cell.row == next(iter(rows())) and "metrics" in part:
            firsts.setdefault(cell.seed, part["metrics"])
    return {
        name: {k: [of[k][side] for of in firsts.values()] for k in COLUMNS if k in of_any}
        for name, side in ((ALONE, "prior"), (FLOOR, "floor"))
        for of_any in [next(iter(firsts.values()), {})]
    }


def _number(values: Sequence[float]) -> str:
    if not values:
        return ""
    return mean_and_error(values) if np.isfinite(values).all() else DIVERGED


def _title(found: Found) -> str:
    facts = [part for part in found.values() if "metrics" in part]
    evaluations = [part["evaluations"] for part in facts]
    few, many = min(evaluations), max(evaluations)
    return (
        f"{facts[0]['steps']:,} steps, {facts[0]['samples']:,} samples of {few}"
        f"{'' if few == many else f' to {many}'} evaluations; mean ± standard error over the seeds"
        " there are. Bold: the best of a column, and what is within a standard error of it."
    )


def _overview(
    scale: str,
    data: str,
    found: Found,
    measured: Mapping[tuple[str, str], Numbers],
    reasons: dict[str, str],
) -> list[dict[str, str]]:
    """The distance by which the data set is judged, and two-sample accuracy; `reasons` gets a
    letter for each."""
    settings, keys = SCALES[scale], (DATA[data].distance, "two_sample_accuracy")
    firsts = {
        key: best({name: x[key] for name, x in measured.items() if key in x}, BETTER[key])
        for key in keys
    }

    def entry(row: str, objective: str) -> str:
        if (row, objective) in measured:
            entries = []
            for key in keys:
                values = measured[row, objective].get(key, [np.nan])
                text = f"{np.mean(values):.3g}" if np.isfinite(values).all() else DIVERGED
                entries.append(f"**{text}**" if (row, objective) in firsts[key] else text)
            return " / ".join(dict.fromkeys(entries))
        cell = Cell(data=data, row=row, objective=objective, seed=0)
        for pattern, reason in settings.left_out.items():
            if fnmatch.fnmatch(cell.name, pattern):
                return f"left out ({lettered(reason)})"
        if reason := shortened(found.get(cell, {}).get("does not apply", "")):
            return f"does not apply ({lettered(reason)})"
        return "not yet"

    def lettered(reason: str) -> str:
        return reasons.setdefault(reason, chr(ord("a") + len(reasons)))

    return [
        {" / ".join(COLUMNS[key] for key in keys): row}
        | {objective: entry(row, objective) for objective in settings.objectives}
        for row in _names(settings)
    ]


def _accuracies(scale: str, measured: Mapping[tuple[str, str], Numbers]) -> np.ndarray:
    """Two-sample accuracies [objectives, processes]; nan where there is none."""
    settings, key = SCALES[scale], "two_sample_accuracy"
    found = {name: np.mean(columns.get(key, [np.nan])) for name, columns in measured.items()}
    return np.array(
        [[found.get((row, o), np.nan) for row in _names(settings)] for o in settings.objectives]
    )


def _table(
    scale: str,
    measured: Mapping[tuple[str, str], Numbers],
    references: Mapping[str, Numbers],
) -> list[dict[str, str]]:
    seeds = SCALES[scale].seeds
    known = {key for columns in measured.values() for key in columns}
    keys = [key for key in (*COLUMNS, RATE) if key in known]
    rivals = {**measured, (ALONE, ""): references[ALONE]}
    firsts = {
        key: best({k: x[key] for k, x in rivals.items() if key in x}, better)
        for key, better in BETTER.items()
    }

    def line(name: tuple[str, str], columns: Numbers, of: str) -> dict[str, str]:
        cells = {"process": name[0], "objective": name[1]}
        for key in keys:
            text = _number(columns.get(key, ()))
            wins = name in firsts.get(key, ())
            cells[COLUMNS.get(key, key)] = f"**{text}**" if wins else text
        return cells | {"seeds": of}

    lines = [
        line(name, columns, f"{len(columns[RATE])} of {seeds}")
        for name, columns in measured.items()
    ]
    return lines + [line((name, ""), columns, "") for name, columns in references.items()]
