"""Evaluation of a run: samples, metrics, pictures, and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import logging
import math
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import evaluation, guards, parallel, plots
from ndsm_jax.config import Config
from ndsm_jax.config.effect import has_effect
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Chained, Frame
from ndsm_jax.launch import Restored, check_room, load_run_data, restore
from ndsm_jax.reports.likelihood import likelihood
from ndsm_jax.reports.measure import Drawn, completed, drawn, measure
from ndsm_jax.runs import json_text, locked, read_metrics, replace_file
from ndsm_jax.sampling import AnnealedLangevin
from ndsm_jax.sampling.noise_levels import coverage
from ndsm_jax.training import TIME_BINS, TrainState, verdict

logger = logging.getLogger(__name__)

AGREEMENT_COLUMNS = ("value", "se", "chance", "prior", "data")
LABEL_COLUMNS = ("value", "se", "chance", "data")
LIKELIHOOD_COLUMNS = ("value", "se", "gain", "gain_se")
PICTURES = (
    "samples",
    "modes",
    "curves",
    "neighbours",
    "conditioning",
    "eps",
    "levels",
    "associations",
    "pairs",
)
STARTED_ROWS = 10
STARTED_COLUMNS = 12
TABLE_PAIRS = 6
TABLE_COLUMNS = ("value", "floor", "prior")
CURVES = {
    "loss": ("loss", "fitted_loss", "held_out_loss"),
    "held-out loss by time, early to late": tuple(
        f"held_out_loss_{i}" for i in range(1, TIME_BINS + 1)
    ),
    **{name.replace("_", " "): (name,) for name in ("grad_norm", "grad_variance", "eps_mean")},
}
UNCONTROLLED = {title: names for title, names in CURVES.items() if title != "eps mean"}
"""Of objectives without a control variate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate_run` made: the metrics, and where they and the report are.

    `conditioning` is what `evaluation.agreement` returns, for priors of several components;
    `labels` is what `evaluation.label_agreement` does, for networks that are told labels;
    `likelihood` is what `reports.likelihood` does. `check()` raises FloatingPointError where too
    many samples are not finite or far from the data, see `guards.check_samples`.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    compared: int
    conditioning: Mapping[str, Any] | None
    labels: Mapping[str, Any] | None
    likelihood: Mapping[str, Any] | None
    check: Callable[[], None]
    metrics_path: pathlib.Path
    report_path: pathlib.Path

    def table(self) -> str:
        """The metrics as aligned text, each beside its real-against-real floor and the prior's.

        Below them the likelihood of held-out items, and the agreement of samples with where they
        started, if they were measured; last the `sentences`.
        """
        parts = [metrics_table(self.metrics)]
        if likely := _likelihood_rows(self.likelihood):
            names = ("name", *LIKELIHOOD_COLUMNS)
            title = ("held-out log p, nats an item", *LIKELIHOOD_COLUMNS)
            parts.append(aligned([title, *(tuple(row[key] for key in names) for row in likely)]))
        if self.labels is not None:
            title, row = ("label asked for", *LABEL_COLUMNS), _label_row(self.labels)
            parts.append(aligned([title, ("share of samples", *row.values())]))
        if self.conditioning is not None:
            shares = [(f"agreement: {self.conditioning['labels']} labels", *AGREEMENT_COLUMNS)]
            shares += [
                (name, *(number(row[key]) for key in AGREEMENT_COLUMNS))
                for name, row in self.conditioning["agreement"].items()
            ]
            parts.append(aligned(shares))
        return "\n\n".join([*parts, *sentences(self.metrics, self.compared)])


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of `evaluation.evaluate` as aligned text."""
    rows = [("metric", "samples", "floor", "prior", "better")]
    rows += [
        (name, *(number(m[key]) for key in ("value", "floor", "prior")), m["better"])
        for name, m in metrics.items()
    ]
    return aligned(rows)


def sentences(metrics: Mapping[str, Mapping[str, Any]], compared: int) -> list[str]:
    """What a reader has to know of the metrics: `made_worse` and `copied`, where they say any."""
    return list(filter(None, [made_worse(metrics), copied(metrics, compared)]))


CHANCE = 0.1
"""Share of the floor that says nothing, of metrics whose error is not measured."""


def made_worse(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """In which metrics the prior alone is nearer to the data than the samples: a sentence, or ''.

    Nearer by two standard errors of the difference, where `evaluation.evaluate` measures it, else
    by a share of the floor (`CHANCE`); and by a fifth of the samples' distance to the floor.
    Metrics of which neither direction is better are skipped, and mmd2, whose floor is 0.
    """
    worse = []
    for name, m in metrics.items():
        value, floor, prior, error = (m[key] for key in ("value", "floor", "prior", "error"))
        sign = {"lower": 1, "higher": -1}.get(m["better"])
        if sign is None or name == "mmd2" or None in (value, floor, prior):
            continue
        gap, alone = (max(sign * (x - floor), 0.0) for x in (value, prior))
        chance = CHANCE * abs(floor) if error is None else 2 * error
        if gap - alone > max(chance, 0.2 * gap):
            worse.append(f"{name} ({number(value)}, the prior {number(prior)})")
    if not worse:
        return ""
    return f"Training made it worse: the prior alone is nearer to the data in {', '.join(worse)}."


def copied(metrics: Mapping[str, Mapping[str, Any]], compared: int) -> str:
    """Whether more samples are near copies of training items than held-out items are: a sentence.

    '' unless there are more by three standard errors of the difference, of `compared` points each.
    """
    m = metrics["memorised_fraction"]
    value, floor = m["value"], m["floor"]
    if value is None or floor is None:
        return ""
    both = 0.5 * (value + floor)
    if value - floor <= 3 * (2 * both * (1 - both) / compared) ** 0.5:
        return ""
    return (
        f"{value:.0%} of the samples are nearly copies of training items, of held-out items"
        f" {floor:.0%}: fewer steps (train.select=held_out) or more data help."
    )


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of text, numbers to the right, words to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = [all(cell.isalpha() for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 or word else cell.rjust(width)
            for i, (cell, width, word) in enumerate(zip(row, widths, words, strict=True))
        ).rstrip()
        for row in rows
    )


def evaluate_run(
    workdir: pathlib.Path,
    *,
    num: int | None = None,
    sample: Mapping[str, Any] | None = None,
    how: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    allow_changed_source: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Samples the newest checkpoint of a run and evaluates it against its data.

    Writes metrics.json, report.html and the pictures' folder evaluation/ into workdir; of several
    processes (`parallel`), which all call it, the first one does.

    Args:
      workdir: folder of the run.
      num: number of samples; the config's sample.num by default.
      sample: keys of the config's sample section to replace.
      how: keys of its evaluate section, likewise.
      data_dir: replaces the config's data.dir.
      allow_changed_source: whether files of the user's own may have changed since.
      progress: whether to show progress bars.

    Raises:
      FileNotFoundError: no checkpoint, or the data are not there.
      ValueError: damaged checkpoints, data that differ from those of the training, or a folder that
        another process writes such results into.
    """
    run = restore(workdir, sample=sample, evaluate=how, allow_changed_source=allow_changed_source)
    dataset = load_run_data(run.config, run.host, data_dir=data_dir)
    return evaluate(run, dataset, workdir, num=num, progress=progress)


def evaluate(
    run: Restored,
    dataset: Dataset,
    workdir: pathlib.Path,
    *,
    num: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Samples a run and measures them against its data; writes what `evaluate_run` says.

    Args:
      run: the run, of whatever folder.
      dataset: its data.
      workdir: gets the results.
      num: number of samples; sample.num by default.
      progress: whether to show progress bars.

    Raises:
      ValueError: samples that do not fit into memory, or another process writes such results there.
      OSError: the folder cannot be written to.
    """
    with locked(workdir, "evaluate"):
        return _evaluated(run, dataset, workdir, num=num, progress=progress)


def _evaluated(
    run: Restored, dataset: Dataset, workdir: pathlib.Path, *, num: int | None, progress: bool
) -> Evaluation:
    config, experiment = run.config, run.experiment
    check_room(experiment, num or config.sample.num)
    seen = dataset.in_part(config.evaluate.seed)
    likely = likelihood(run, seen)
    dataset = completed(experiment.frame, dataset)
    made = drawn(run, num, progress=progress)
    classifier = evaluation.evaluator_if_labelled(dataset, seed=config.evaluate.seed)
    logger.info("measuring %d samples against the data ...", len(made.samples))
    result = measure(
        run,
        made.samples,
        made.prior,
        dataset,
        components=made.components,
        labels=made.labels,
        classifier=classifier,
    )
    result |= {} if likely is None else {"likelihood": likely}
    facts = {
        "data": f"{dataset.name}: {len(dataset.train)} training, {len(dataset.test)} held-out"
        f" items; {dataset.source}",
        "process": f"{experiment.process.name}, horizon {float(experiment.process.horizon):.4g}, in"
        f" {len(experiment.noising.times.grid) - 1} steps",
        "reference": type(experiment.process.reference).__name__,
        "frame": _frame_text(experiment.frame),
        "objective": _objective_text(config, controlled=experiment.objective.controlled),
        "training": f"{int(run.state.step)} steps, seed {config.train.seed}"
        + ("" if run.state.best is None else f"; {verdict(run.state)}")
        + "".join(
            f"; {c['key']} was {c['before']} until step {c['step']}"
            for c in run.host.get("changes", ())
        ),
        "sampling": f"{len(made.samples)} samples, {config.sample.sampler},"
        f" {len(experiment.sample_grid) - 1} steps, seed {config.sample.seed},"
        f"{_guidance_text(config)} {made.seconds:.1f} s",
        "units of distances": result["units"],
        "classifier": "none"
        if classifier is None
        else f"{classifier.name}, test accuracy {classifier.test_accuracy:.4f}",
        "device": jax.devices()[0].device_kind,
    }
    metrics_path, report_path = workdir / "metrics.json", workdir / "report.html"
    if parallel.is_first():
        replace_file(metrics_path, json_text({"facts": facts, **result}).encode())
        pictures = _pictures(workdir, run, dataset, made, result)
        page = _page(workdir, run, facts, result, pictures)
        replace_file(report_path, page.encode(errors="surrogateescape"))
    return Evaluation(
        metrics=result["metrics"],
        compared=result["counts"]["compared"],
        conditioning=result.get("conditioning"),
        labels=result.get("labels"),
        likelihood=result.get("likelihood"),
        check=partial(guards.check_samples, made.samples, run.host["data"].get("box")),
        metrics_path=metrics_path,
        report_path=report_path,
    )


def _guidance_text(config: Config) -> str:
    c = config.sample
    if c.guidance_scale == 1:
        return ""
    at = f" at v(t) / v(T) from {c.guidance_low:g} to {c.guidance_high:g}"
    everywhere = (c.guidance_low, c.guidance_high) == (0, 1)
    return f" guidance {c.guidance_scale:g}{'' if everywhere else at},"


def _objective_text(config: Config, *, controlled: bool) -> str:
    name = config.objective.name
    return f"{name}, eps {config.control_variate.kind}" if controlled else name


def _frame_text(frame: Frame) -> str:
    """What a frame is, in a word or two."""
    if isinstance(frame, Chained):
        return f"{_frame_text(frame.outer)}, then {_frame_text(frame.inner)}"
    return type(frame).__name__


def _pictures(
    workdir: pathlib.Path,
    run: Restored,
    dataset: Dataset,
    made: Drawn,
    result: Mapping[str, Any],
) -> dict[str, bytes]:
    """PNG pictures by name, also written to workdir/evaluation/."""
    shown = 100 if dataset.is_image else 4000
    # Held-out items may be sorted by class.
    whole, dataset = dataset, dataset.in_part(run.config.evaluate.seed)
    test = np.random.default_rng(run.config.evaluate.seed).permutation(dataset.test)
    sets = {"data (held out)": test, "samples": made.samples, "prior": made.prior}
    modes = result["modes"]
    grey = plots.grey_limits(dataset.test, dataset.value_range)
    figures: dict[str, Callable[[], Any]] = {
        "samples": lambda: (
            plots.marginals_figure(dataset.columns, sets)
            if dataset.columns
            else plots.panels({k: x[:shown] for k, x in sets.items()}, dataset.shape, grey=grey)
        ),
        "modes": lambda: plots.modes_figure(
            modes["labels"], {k: modes[k] for k in ("data", "samples", "prior")}
        ),
        "curves": lambda: plots.curves_figure(
            read_metrics(run.folder),
            CURVES if run.experiment.objective.controlled else UNCONTROLLED,
            kept=None if run.state.best is None else int(run.state.best.step),
        ),
    }
    if dataset.is_image:
        figures["neighbours"] = lambda: _neighbours_figure(whole, made.samples, grey=grey)
    if dataset.columns:
        figures |= _table_figures(dataset, test, made.samples)
    elif made.components is not None and result.get("conditioning") is not None:
        mixture = run.experiment.components
        assert mixture is not None
        weights = np.asarray(mixture.log_weights)
        classes = result["conditioning"]["classes"]
        rows = _started(weights, made.components, made.samples, classes, names=dataset.class_names)
        figures["conditioning"] = lambda: plots.rows_figure(
            rows, dataset.shape, columns=STARTED_COLUMNS, grey=grey
        )
    if isinstance(run.experiment.sampler, AnnealedLangevin):
        figures["levels"] = lambda: plots.ladder_figure(noise_ladder(run.experiment))
    if run.experiment.objective.controlled:
        figures["eps"] = lambda: plots.eps_figure({"eps": eps_curve(run.experiment, run.state)})
    pictures = {}
    for name, figure in figures.items():
        try:
            pictures[name] = plots.png(figure())
        except Exception as error:  # of whatever library draws it; the metrics matter more
            logger.warning("no picture of %s: %s: %s", name, type(error).__name__, error)
            continue
        replace_file(workdir / "evaluation" / f"{name}.png", pictures[name])
    return pictures


def _neighbours_figure(dataset: Dataset, samples: np.ndarray, *, grey: tuple[float, float]) -> Any:
    """Samples above the training images nearest to them."""
    first = samples[np.isfinite(samples).all(axis=1)][:12]
    nearest = dataset.train[evaluation.nearest_distances(first, dataset.train)[1]]
    return plots.neighbours_figure(first, nearest, dataset.shape, grey=grey)


def _table_figures(
    dataset: Dataset, test: np.ndarray, samples: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """How the columns of a table hang together, in held-out rows and in samples."""
    columns, samples = dataset.columns, samples[np.isfinite(samples).all(axis=1)]
    data = evaluation.associations(columns, np.concatenate([dataset.train, test]))
    pairs = evaluation.most_associated(data, TABLE_PAIRS)
    if not len(samples) or not pairs:
        return {}
    found = evaluation.associations(columns, samples)
    matrices = {"data": data, "samples": found, "samples - data": found - data}
    rows = {"data": np.concatenate([test, dataset.train])[: len(samples)], "samples": samples}
    return {
        "associations": lambda: plots.associations_figure([c.name for c in columns], matrices),
        "pairs": lambda: plots.pairs_figure(columns, pairs, rows),
    }


def noise_ladder(experiment: Experiment) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The noise levels at which a run samples [L], and how they cover their neighbours [L - 1]."""
    std = experiment.process.clock.std(jnp.asarray(experiment.sample_grid[:0:-1]))
    levels = np.asarray(std, np.float64)
    return {"this run": (levels, coverage(levels, experiment.process.dim))}


def eps_curve(experiment: Experiment, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
    """Times from the last of sampling to the horizon, and eps(t) of the control variate: [200]."""
    t = jnp.geomspace(experiment.sample_grid[1], experiment.process.horizon, 200)
    return np.asarray(t), np.asarray(experiment.control.eps(state.control, t))


def _started(
    log_weights: np.ndarray,
    components: np.ndarray,
    samples: np.ndarray,
    classes: Sequence[int] | None,
    *,
    names: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Samples by the component that they started from: the heaviest components, by class, whose
    names there are or not."""
    heaviest = np.argsort(-log_weights)[:STARTED_ROWS]
    by_class = sorted(heaviest.tolist(), key=lambda k: (classes[k] if classes else 0, k))
    return {
        f"component {k}"
        + (f": class {names[classes[k]] if names else classes[k]}" if classes else ""): samples[
            components == k
        ]
        for k in by_class
    }


def _page(
    workdir: pathlib.Path,
    run: Restored,
    facts: Mapping[str, str],
    result: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> str:
    import jinja2

    config, host = run.config, run.host
    source = (
        importlib.resources.files("ndsm_jax.reports").joinpath("report.html").read_text("utf-8")
    )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        source
    )
    embedded = dict.fromkeys(PICTURES)
    embedded |= {
        name: "data:image/png;base64," + base64.b64encode(content).decode()
        for name, content in pictures.items()
    }
    rows = [
        {"name": name, "better": m["better"], "what": m["what"]}
        | {key: number(m[key]) for key in ("value", "floor", "prior")}
        for name, m in result["metrics"].items()
    ]
    mixture = run.folder / "mixture.txt"
    return template.render(
        title=f"{config.data.name}: {config.process.name} + {config.objective.name}",
        facts=facts,
        metrics=rows,
        said=sentences(result["metrics"], result["counts"]["compared"]),
        conditioning=result.get("conditioning"),
        agreement=[
            {"name": name, "what": row["what"]}
            | {key: number(row[key]) for key in AGREEMENT_COLUMNS}
            for name, row in (result.get("conditioning") or {"agreement": {}})["agreement"].items()
        ],
        labels=_label_row(result.get("labels")),
        columns=_column_rows(result.get("table")),
        likelihood=result.get("likelihood"),
        likelihoods=_likelihood_rows(result.get("likelihood")),
        counts=", ".join(f"{value} {name}" for name, value in result["counts"].items()),
        pictures=embedded,
        mixture=mixture.read_text() if mixture.exists() else "",
        command=reproduce_command(config),
        config=json.dumps({"config": host["config"], "versions": host["versions"]}, indent=2),
    )


def _label_row(labels: Mapping[str, Any] | None) -> dict[str, str]:
    """How often samples are of the class asked for; empty where none was."""
    return {} if labels is None else {key: number(labels[key]) for key in LABEL_COLUMNS}


def _column_rows(table: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The distances of the columns of a table, and the error of their associations."""
    if table is None:
        return []
    pairs = {"kind": "associations", **table["associations"]}
    rows = {**table["columns"], "all pairs of columns": pairs}
    return [
        {"name": name, "kind": row["kind"]} | {key: number(row[key]) for key in TABLE_COLUMNS}
        for name, row in rows.items()
    ]


def _likelihood_rows(found: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The table of `reports.likelihood`: "bits" and "noise" are empty where there are none."""
    return [
        {"name": name, "what": row["what"], "noise": row.get("noise", "")}
        | {key: number(row.get(key)) for key in (*LIKELIHOOD_COLUMNS, "bits")}
        for name, row in (found or {}).get("rows", {}).items()
    ]


def reproduce_command(config: Config) -> str:
    """The commands that repeat a run: from the defaults, with every changed key that is read."""
    defaults = Config().to_dict()
    changed = [
        f"--config.{section}.{key}={_flag(value)}"
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if value != defaults[section][key] and has_effect(config, f"{section}.{key}")
    ]
    latent = config.autoencoder.kind != "none"
    script = "train_latent" if latent else "train"
    train = [
        f"python experiments/{script}.py --config=configs/default.py --workdir=runs/again",
        *changed,
    ]
    evaluate = "" if latent else "\npython experiments/evaluate.py --workdir=runs/again"
    return " \\\n    ".join(train) + evaluate


def _flag(value: Any) -> str:
    return shlex.quote(str(value))


def number(value: float | None) -> str:
    """Four digits; nothing for what was not measured."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
