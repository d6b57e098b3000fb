"""Several runs as one study: runs that resume; tables, figures and metrics in one folder.

ROOT/runs/NAME/       a training: checkpoints, samples.npy, run.json, scores.json
ROOT/parts/NAME.json  any other measurement that is kept
ROOT/figures/*.png    ROOT/tables/*.md    ROOT/metrics.json
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import logging
import math
import pathlib
import platform
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from ndsm_jax import plots
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.frames import Frame
from ndsm_jax.launch import launch, restore
from ndsm_jax.reports.measure import drawn, measure
from ndsm_jax.runs import json_text, locked, read_metrics, replace_file

logger = logging.getLogger("ndsm_jax.studies")

SCALES = ("smoke", "cpu", "full")

Changes = Mapping[str, Mapping[str, Any]]
Row = Mapping[str, Any]
T = TypeVar("T")


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def load_config(file: str | pathlib.Path, variant: str, *changes: Changes) -> Config:
    """The config file's variant with nested changes, later ones last.

    Where train.select, network.parameterisation and noising.integrator are open, they are `last`,
    `residual` and `euler`, not what is best for a method: studies compare methods at one length of
    training, on all of the data. Local coordinates come with their own steps, see `studies.LOCAL`.

    Raises:
      ValueError: an unknown key, or a value out of range.
    """
    tree = runpy.run_path(str(file))["get_config"](variant)
    for change in changes:
        tree.update(change)
    if tree.train.select == "auto":
        tree.train.select = "last"
    if tree.network.parameterisation == "auto":
        tree.network.parameterisation = "residual"
    if tree.noising.integrator == "auto":
        tree.noising.integrator = "euler"
    return Config.from_dict(tree)


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def chosen(named: Mapping[str, T], only: str) -> list[T]:
    """What has a name that matches one of the patterns of `--only`, in its order; '': all.

    Raises:
      ValueError: a pattern that matches no name.
    """
    patterns = only.split(",") if only else ["*"]
    for pattern in patterns:
        if not fnmatch.filter(named, pattern):
            raise ValueError(
                f"--only={pattern}: there is no such part; one is {next(iter(named))}, and * stands"
                " for anything"
            )
    return [x for name, x in named.items() if any(fnmatch.fnmatch(name, p) for p in patterns)]


def seeded(config: Config, seed: int) -> Config:
    """The config with `seed` for mixture, training and samples; the data stay the same."""
    return dataclasses.replace(
        config,
        mixture=dataclasses.replace(config.mixture, seed=seed),
        train=dataclasses.replace(config.train, seed=seed),
        sample=dataclasses.replace(config.sample, seed=seed),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training.

    Attributes:
      folder: where it is kept.
      samples: [n, d].
      facts: steps, train_seconds (in the steps themselves, over all resumptions) and
        sample_seconds.
    """

    folder: pathlib.Path
    samples: np.ndarray
    facts: Mapping[str, float]

    @property
    def kept_step(self) -> int:
        """After how many steps the average was taken that samples are made with, where the run
        selects one."""
        return int(
            [row for row in read_metrics(self.folder) if "kept_step" in row][-1]["kept_step"]
        )

    def within(self, limit: float) -> np.ndarray:
        """Whether every coordinate of a sample is finite and of magnitude less than limit, [n]."""
        # A comparison with NaN is false.
        return np.all(np.abs(self.samples) < limit, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One experiment at one scale, and the folder that it writes.

    Attributes:
      scale: one of `SCALES`.
      root: the folder.
      data_dir: folder of MNIST's IDX files, '' for that of tensorflow-datasets.
      progress: whether to show progress bars.
    """

    scale: str
    root: pathlib.Path
    data_dir: str = ""
    progress: bool = True

    def run(
        self, name: str, config: Config, dataset: Dataset, *, frame: Frame | None = None
    ) -> Run:
        """Trains and draws `sample.num` samples, or goes on where an earlier call stopped.

        Args:
          name: of its folder.
          config: the experiment.
          dataset: its data.
          frame: see `config.parts.fit`.

        Raises:
          ValueError: the folder of that name holds a run of other settings or other data.
        """
        folder = self.root / "runs" / name
        done = folder / "run.json"
        samples = folder / "samples.npy"
        if done.exists():
            read = json.loads(done.read_text())
            same = Config.from_dict(read["config"]) == config
            if not same or read["digest"] != dataset.digest:
                raise ValueError(
                    f"{folder} holds a run of other settings; delete it or choose another --workdir"
                )
            return Run(
                folder=folder, samples=np.load(samples, allow_pickle=False), facts=read["facts"]
            )
        logger.info("run %s", name)
        with locked(folder):
            launch(config, dataset, folder, frame=frame, progress=self.progress)
            # A finished training is resumed whatever its sample section was.
            made = drawn(
                restore(folder, sample=dataclasses.asdict(config.sample)), progress=self.progress
            )
            np.save(samples, made.samples)
            np.save(folder / "prior.npy", made.prior)
            numbers = {
                "steps": config.train.steps,
                "train_seconds": train_seconds(folder),
                "sample_seconds": made.seconds,
            }
            facts = {"config": config.to_dict(), "digest": dataset.digest, "facts": numbers}
            _write(done, facts)
        return Run(folder=folder, samples=made.samples, facts=numbers)

    def scores(
        self, run: Run, dataset: Dataset, *, classifier: Any = None, max_points: int = 5000
    ) -> dict[str, dict[str, float]]:
        """`measure` of a run: name -> {value, floor, prior, error}, kept in scores.json."""
        path = run.folder / "scores.json"
        key = [None if classifier is None else classifier.digest, max_points]
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["of"] == key:
                return kept["metrics"]
        result = measure(
            restore(run.folder),
            run.samples,
            np.load(run.folder / "prior.npy", allow_pickle=False),
            dataset,
            classifier=classifier,
            max_points=max_points,
        )
        _write(path, {"of": key} | result)
        return result["metrics"]

    def part(
        self, name: str, of: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What `measure` returned, kept in parts/NAME.json with what it is `of`.

        Raises:
          ValueError: the file there is of something else.
        """
        values = self.kept(name, of)
        if values is None:
            values = measure()
            _write(self._part(name), {"of": _plain(of), "values": values})
        return values

    def kept(self, name: str, of: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `part` has kept under this name, None before it was measured.

        Raises:
          ValueError: the file there is of something else.
        """
        path = self._part(name)
        if not path.exists():
            return None
        read = json.loads(path.read_text())
        if read["of"] != _plain(of):
            raise ValueError(f"{path} is of other settings; delete it or choose another --workdir")
        return read["values"]

    def found(self, cells: Iterable[N], of: Callable[[N], Mapping[str, Any]]) -> dict[N, Any]:
        """Those of the cells (by their `name`) that `part` has kept, with what it has.

        Raises:
          ValueError: as `kept`.
        """
        kept = {cell: self.kept(cell.name, of(cell)) for cell in cells}
        return {cell: values for cell, values in kept.items() if values is not None}

    def _part(self, name: str) -> pathlib.Path:
        return self.root / "parts" / f"{name}.json"

    def figure(self, name: str, figure: Any) -> None:
        """Writes figures/NAME.png."""
        path = self.root / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plots.png(figure))

    def table(self, name: str, rows: Sequence[Row], *, title: str) -> None:
        """Writes rows as tables/NAME.md, columns by the keys of the first."""
        path = self.root / "tables" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"{title}\n\n{markdown(rows)}\n"
        path.write_text(text)
        print(f"\n{text}")

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Writes metrics.json: the values, with the device and versions they were measured on.

        null stands for what could not be measured, as the samples had diverged.
        """
        facts = {
            "scale": self.scale,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "python": platform.python_version(),
        }
        text = json_text(facts | dict(values))
        replace_file(self.root / "metrics.json", text.encode())


def _plain(tree: Mapping[str, Any]) -> Any:
    """As it is read again."""
    return json.loads(json.dumps(dict(tree)))


def _write(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """For this module to read again: NaN stays NaN."""
    replace_file(path, f"{json.dumps(tree, indent=2)}\n".encode())


def train_seconds(folder: pathlib.Path) -> float:
    """Seconds in training steps, over all resumptions, from the run's metrics.jsonl."""
    rows = [row for row in read_metrics(folder) if "steps_per_second" in row]
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(sum(n / row["steps_per_second"] for n, row in zip(steps, rows, strict=True)))


def over_seeds(results: Sequence[Row]) -> dict[str, str]:
    """Mean of each number over runs, and its standard error where there are several."""
    return {key: mean_and_error([result[key] for result in results]) for key in results[0]}


def mean_and_error(values: Sequence[float]) -> str:
    """'mean ± standard error', as many decimals as give the error two digits; nan: not measurable.

    The mean alone, in four digits, of one value or of equal ones.
    """
    x = np.asarray([np.nan if value is None else value for value in values], np.float64)
    mean = float(x.mean())
    error = float(x.std(ddof=1)) / len(x) ** 0.5 if len(x) > 1 else 0.0
    if not error > 1e-12 * abs(mean):  # rounding in the mean of equal values
        return f"{mean:.4g}"
    return with_error(mean, error)


def with_error(mean: float, error: float, *, sign: str = "") -> str:
    """'mean ± error', as many decimals as give the error two digits; `sign` '+' shows a plus."""
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:{sign},.{decimals}f} ± {error:,.{decimals}f}"


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
