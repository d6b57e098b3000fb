"""Evaluation of a run: samples, metrics, pictures, and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import evaluation, plots
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import Experiment, load_run_data
from ndsm_jax.training import TrainState, draw, draw_components, draw_prior, restore
from ndsm_jax.writers import json_text, read_metrics

logger = logging.getLogger(__name__)

AGREEMENT_COLUMNS = ("value", "se", "chance", "prior", "data")
STARTED_ROWS = 10
STARTED_COLUMNS = 12
CURVES = ("loss", "grad_norm", "grad_variance", "eps_mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate_run` made: the metrics, and where they and the report are.

    `conditioning` is what `evaluation.agreement` returns, for priors of several components.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    conditioning: Mapping[str, Any] | None
    metrics_path: pathlib.Path
    report_path: pathlib.Path

    def table(self) -> str:
        """The metrics as aligned text, each beside its real-against-real floor and the prior's.

        Below them the agreement of samples with where they started, if it was measured.
        """
        scores = metrics_table(self.metrics)
        if self.conditioning is None:
            return scores
        shares = [(f"agreement: {self.conditioning['labels']} labels", *AGREEMENT_COLUMNS)]
        shares += [
            (name, *(_number(row[key]) for key in AGREEMENT_COLUMNS))
            for name, row in self.conditioning["agreement"].items()
        ]
        return scores + "\n\n" + aligned(shares)


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of `evaluation.evaluate` as aligned text."""
    rows = [("metric", "samples", "floor", "prior", "better")]
    rows += [
        (name, *(_number(m[key]) for key in ("value", "floor", "prior")), m["better"])
        for name, m in metrics.items()
    ]
    return aligned(rows)


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
    data_dir: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Samples the newest checkpoint of a run and evaluates it against its data.

    Writes metrics.json, report.html and the pictures' folder evaluation/ into workdir.

    Args:
      workdir: folder of the run.
      num: number of samples; the config's sample.num by default.
      data_dir: replaces the config's data.dir.
      progress: whether to show progress bars.

    Raises:
      FileNotFoundError: no checkpoint, or the data are not there.
      ValueError: damaged checkpoints, or data that differ from those of the training.
    """
    experiment, state, host = restore(workdir)
    config = experiment.config
    dataset = load_run_data(config, host, data_dir=data_dir)

    num = num or config.sample.num
    starts = None
    if experiment.sde.prior.num_components > 1:
        starts = evaluation.Starts(
            prior=experiment.sde.prior,
            components=draw_components(experiment, num),
            labels_per_class=config.evaluate.labels_per_class,
        )
    start = time.perf_counter()
    samples = draw(experiment, state, num, progress=progress)
    seconds = time.perf_counter() - start
    prior = draw_prior(experiment, num)
    classifier = evaluation.evaluator_if_labelled(dataset, seed=config.evaluate.seed)
    logger.info("measuring %d samples against the data ...", num)
    result = evaluation.evaluate(
        samples,
        prior,
        dataset,
        classifier=classifier,
        starts=starts,
        seed=config.evaluate.seed,
        max_points=config.evaluate.max_points,
    )
    facts = {
        "data": f"{dataset.name}: {len(dataset.train)} training, {len(dataset.test)} held-out"
        f" items; {dataset.source}",
        "process": f"{experiment.sde.name}, horizon {float(experiment.sde.horizon):.4g}",
        "objective": _objective_text(config),
        "training": f"{int(state.step)} steps, seed {config.train.seed}",
        "sampling": f"{num} samples, {config.sample.sampler}, {config.sample.steps} steps,"
        f" seed {config.sample.seed}, {seconds:.1f} s",
        "classifier": "none"
        if classifier is None
        else f"{classifier.name}, test accuracy {classifier.test_accuracy:.4f}",
        "device": jax.devices()[0].device_kind,
    }
    pictures = _pictures(workdir, experiment, state, dataset, samples, prior, starts, result)
    metrics_path, report_path = workdir / "metrics.json", workdir / "report.html"
    metrics_path.write_text(json_text({"facts": facts, **result}))
    report_path.write_text(_page(workdir, config, host, facts, result, pictures), encoding="utf-8")
    return Evaluation(
        metrics=result["metrics"],
        conditioning=result.get("conditioning"),
        metrics_path=metrics_path,
        report_path=report_path,
    )


def _objective_text(config: Config) -> str:
    name = config.objective.name
    return f"{name}, eps {config.control_variate.kind}" if name == "ndsm_cv" else name


def _pictures(
    workdir: pathlib.Path,
    experiment: Experiment,
    state: TrainState,
    dataset: Dataset,
    samples: np.ndarray,
    prior: np.ndarray,
    starts: evaluation.Starts | None,
    result: Mapping[str, Any],
) -> dict[str, bytes]:
    """PNG pictures by name, also written to workdir/evaluation/."""
    shown = 100 if dataset.is_image else 4000
    # Held-out items may be sorted by class.
    test = np.random.default_rng(experiment.config.evaluate.seed).permutation(dataset.test)
    sets = {"data (held out)": test, "samples": samples, "prior": prior}
    modes = result["modes"]
    figures = {
        "samples": plots.panels({k: x[:shown] for k, x in sets.items()}, dataset.shape),
        "modes": plots.modes_figure(
            modes["labels"], {k: modes[k] for k in ("data", "samples", "prior")}
        ),
        "curves": plots.curves_figure(read_metrics(workdir), CURVES),
    }
    if dataset.is_image:
        first = samples[:12]
        nearest = dataset.train[evaluation.nearest_distances(first, dataset.train)[1]]
        figures["neighbours"] = plots.neighbours_figure(first, nearest, dataset.shape)
    if starts is not None and result["conditioning"] is not None:
        rows = _started(starts, samples, result["conditioning"]["classes"])
        figures["conditioning"] = plots.rows_figure(rows, dataset.shape, columns=STARTED_COLUMNS)
    if experiment.objective.controlled:
        figures["eps"] = plots.eps_figure({"eps": eps_curve(experiment, state)})
    pictures = {name: plots.png(figure) for name, figure in figures.items()}
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    for name, content in pictures.items():
        (folder / f"{name}.png").write_bytes(content)
    return pictures


def eps_curve(experiment: Experiment, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
    """Times from the last of sampling to the horizon, and eps(t) of the control variate: [200]."""
    t = jnp.geomspace(experiment.sample_grid[1], experiment.sde.horizon, 200)
    return np.asarray(t), np.asarray(experiment.control.eps(state.control, t))


def _started(
    starts: evaluation.Starts, samples: np.ndarray, classes: Sequence[int] | None
) -> dict[str, np.ndarray]:
    """Samples by the component that they started from: the heaviest components, by class."""
    heaviest = np.argsort(-starts.prior.log_weights)[:STARTED_ROWS]
    by_class = sorted(heaviest.tolist(), key=lambda k: (classes[k] if classes else 0, k))
    return {
        f"component {k}" + (f": class {classes[k]}" if classes else ""): samples[
            starts.components == k
        ]
        for k in by_class
    }


def _page(
    workdir: pathlib.Path,
    config: Config,
    host: Mapping[str, Any],
    facts: Mapping[str, str],
    result: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> str:
    import jinja2

    source = importlib.resources.files("ndsm_jax").joinpath("report.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        source
    )
    embedded = dict.fromkeys(("neighbours", "conditioning", "eps"))
    embedded |= {
        name: "data:image/png;base64," + base64.b64encode(content).decode()
        for name, content in pictures.items()
    }
    rows = [
        {"name": name, "better": m["better"], "what": m["what"]}
        | {key: _number(m[key]) for key in ("value", "floor", "prior")}
        for name, m in result["metrics"].items()
    ]
    mixture = workdir / "mixture.txt"
    return template.render(
        title=f"{config.data.name}: {config.process.name} + {config.objective.name}",
        facts=facts,
        metrics=rows,
        conditioning=result.get("conditioning"),
        agreement=[
            {"name": name, "what": row["what"]}
            | {key: _number(row[key]) for key in AGREEMENT_COLUMNS}
            for name, row in (result.get("conditioning") or {"agreement": {}})["agreement"].items()
        ],
        counts=", ".join(f"{value} {name}" for name, value in result["counts"].items()),
        pictures=embedded,
        mixture=mixture.read_text() if mixture.exists() else "",
        command=reproduce_command(config),
        config=json.dumps({"config": host["config"], "versions": host["versions"]}, indent=2),
    )


def reproduce_command(config: Config) -> str:
    """The commands that repeat a run: its config file's nearest relative, and every changed key."""
    defaults = Config().to_dict()
    changed = [
        f"--config.{section}.{key}={_flag(value)}"
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if value != defaults[section][key]
    ]
    train = [
        "python experiments/train.py --config=configs/default.py --workdir=runs/again",
        *changed,
    ]
    return " \\\n    ".join(train) + "\npython experiments/evaluate.py --workdir=runs/again"


def _flag(value: Any) -> str:
    return f"'{value}'" if isinstance(value, tuple | str) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
