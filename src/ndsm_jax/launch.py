"""From a config and data to a run in a folder, and back from the folder."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import __version__, datasets, guards, parallel, plots
from ndsm_jax.columns import Column
from ndsm_jax.config import Config, check_effect, check_key
from ndsm_jax.config.assemble import build, measured, resolvable
from ndsm_jax.config.effect import has_effect
from ndsm_jax.config.own import sources
from ndsm_jax.config.parts import (
    Parts,
    check_data,
    check_samples,
    check_sizes,
    check_structure,
    examples,
    fit,
    fit_size,
    stand_in,
    told_labels,
)
from ndsm_jax.config.sections import value_of
from ndsm_jax.contrast import Contrast, Score, unconditional
from ndsm_jax.datasets import Dataset
from ndsm_jax.datasets.dataset import hold_out
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Frame
from ndsm_jax.guidance import Reconstruction
from ndsm_jax.machine import in_words
from ndsm_jax.measurements import Measurement
from ndsm_jax.networks.balance import BINS
from ndsm_jax.references import AUTO, GaussianMixture
from ndsm_jax.runs import (
    Checkpoints,
    NonFiniteError,
    Run,
    fingerprint,
    has_checkpoints,
    read_host,
    replace_file,
)
from ndsm_jax.runs.checkpoints import check_name, fits, is_saved, shapes_as_saved
from ndsm_jax.sampling import Sampler
from ndsm_jax.training import (
    MINIBATCHES,
    STREAM_PICTURE,
    HeldOut,
    TrainState,
    draw,
    init_state,
    memory,
    noised_shapes,
    train,
)

logger = logging.getLogger(__name__)

PICTURE_SAMPLES = 64
"""Samples in an interim picture of images; four times as many points in the plane."""

EXAMPLES_FILE = "examples.npy"
"""In a run's folder: some states, for a reference of the user's own."""

FREE = frozenset(
    [
        "versions",
        "changes",
        "data.source",
        "data.name",
        "data.box",
        "config.data.dir",
        "config.data.in_memory",
        "config.sample",
        "config.evaluate",
        "config.train.steps",
        "config.train.patience",
        "config.train.log_every",
        "config.train.checkpoint_every",
        "config.train.keep",
        "config.train.picture_every",
        "config.train.tensorboard",
        "config.train.shard_parameters",
    ]
)
"""Facts that may differ from those of the run that is resumed."""

ALLOWABLE = ("optimizer", "noising", "process", "objective", "control_variate")
"""Sections whose keys may be allowed to differ: what is fitted and held out stays what it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A run, read back from its folder.

    Attributes:
      config: of the run.
      experiment, state: of its newest good checkpoint.
      parts: what was fitted, of the same.
      examples: some states, see `config.parts.examples`.
      shape: of an item of the data.
      host: the facts recorded with it.
      folder: that has its metrics.
    """

    config: Config
    experiment: Experiment
    state: TrainState
    parts: Parts
    examples: np.ndarray | None
    shape: tuple[int, ...]
    host: dict[str, Any]
    folder: pathlib.Path


def load_data(config: Config) -> Dataset:
    """The data set of the config, checked (see `datasets.load` for the errors)."""
    options = dataclasses.asdict(config.data)
    del options["frame"], options["flips"], options["shifts"]
    return datasets.load(**options)


def load_run_data(
    config: Config, host: Mapping[str, Any], *, data_dir: str | None = None
) -> Dataset:
    """The data that a run was trained on, from `data_dir` in place of data.dir if given.

    Args:
      config: of the run.
      host: what `restore` says of its checkpoint.
      data_dir: where the data are now.

    Raises:
      FileNotFoundError: the data are not there.
      ValueError: the data differ from those of the training.
    """
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    dataset = load_data(config)
    if dataset.digest != host["data"]["digest"]:
        raise ValueError(
            "the data differ from those this run was trained on; give the right --data_dir"
        )
    return dataset


def launch(
    config: Config,
    dataset: Dataset,
    folder: str | pathlib.Path,
    *,
    frame: Frame | None = None,
    allow_changed_source: bool = False,
    allow_changed: Sequence[str] = (),
    progress: bool = True,
) -> TrainState:
    """Trains to train.steps, resuming from the newest good checkpoint in folder if there is one.

    Where the average to sample with is chosen on held-out items (train.select), neither the fit nor
    the training sees these.

    Writes checkpoints/, metrics.jsonl, tensorboard/, images/, config.json and, when a mixture is
    fitted, mixture.txt; the folder is locked meanwhile. Ctrl-C, SIGTERM and SIGHUP save a
    checkpoint before they take effect.

    Args:
      config: the experiment.
      dataset: its data.
      folder: of the run.
      frame: see `config.parts.fit`.
      allow_changed_source: whether a run may go on with another content of a file of the user's
        own (`process.name=path/to/file.py:function` and the like).
      allow_changed: dotted config keys of the sections `ALLOWABLE` whose values may differ from
        those of the run that is resumed, as a learning rate after a divergence. Checkpoints record
        what was changed at which step.
      progress: whether to show progress bars.

    Raises:
      loop.NonFiniteError: a loss, a gradient or the state was not finite.
      KeyboardInterrupt: after an interrupt, once the checkpoint is saved.
      ValueError: the folder belongs to another experiment, cannot be written to, or is being
        written by another process.
      OSError: the disk is full, or the folder was deleted.
    """
    folder = pathlib.Path(folder)
    _check_folder(folder)
    _check_allowable(allow_changed)
    run = make_run(config, dataset, folder, allow_changed_source=allow_changed_source)
    with run.locked():
        return _launch(
            config,
            dataset,
            run,
            frame=frame,
            allow_changed_source=allow_changed_source,
            allow_changed=allow_changed,
            progress=progress,
        )


def _launch(
    config: Config,
    dataset: Dataset,
    run: Run,
    *,
    frame: Frame | None,
    allow_changed_source: bool,
    allow_changed: Sequence[str],
    progress: bool,
) -> TrainState:
    """`launch` in a folder that is locked."""
    folder, c = run.folder, config.train
    whole = dataset
    dataset, held = set_aside(config, whole)
    if has_checkpoints(folder):
        host = checked_host(read_host(run.directory), folder)
        _check_sources(config, folder, host, allowed=allow_changed_source)
        changes = _allowed_changes(run, host, allow_changed)
        allowed = [f"config.{change['key']}" for change in changes]
        dataclasses.replace(run, free=run.free.union(allowed)).check()
        if changes and not _has_arrays(config, folder, run.facts["data"]):
            raise ValueError(
                f"--allow_changed={','.join(change['key'] for change in changes)}: with the new"
                f" values a training has other arrays than the checkpoints in {folder}; restore"
                " these settings, or choose another --workdir (folder)"
            )
        parts, experiment, state, host = _restore(config, folder, run.facts["data"])
        changes = [{"step": int(state.step)} | change for change in changes]
        if changes := [*host.get("changes", ()), *changes]:
            run = dataclasses.replace(
                run, facts=run.facts | {"changes": changes}, free=run.free.union(allowed)
            )
        logger.info("resuming %s from step %d", folder, int(state.step))
    else:
        check_data(config, whole)
        check_patience(config, len(whole.train))
        if takes_shifts(config, dataset):
            logger.info(
                "%d training images are few: if one moved by a pixel is as good, data.shifts=1 lets"
                " samples vary more and keeps them nearer to the data",
                len(dataset.train),
            )
        parts, experiment = fitted(config, dataset, frame=frame)
        some = examples(config, dataset, frame)
        if some is not None and parallel.is_first():
            np.save(folder / EXAMPLES_FILE, some)
        state = init_state(experiment, seed=c.seed, select=held is not None)
        if parts.report is not None:
            logger.info("%s", parts.report)
            if parallel.is_first():
                replace_file(folder / "mixture.txt", f"{parts.report}\n".encode())
    if int(state.step) < c.steps and parallel.is_first():
        replace_file(folder / "config.json", f"{json.dumps(run.facts, indent=2)}\n".encode())
    try:
        return train_as_configured(
            config,
            experiment,
            dataset,
            held,
            state=state,
            run=run,
            keep=_arrays(parts),
            picture=lambda state: _picture(config, experiment, state, whole),
            progress=progress,
        )
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error}. In the same folder, from the last good checkpoint:"
            " --allow_changed=optimizer.learning_rate with the new value"
        ) from error


def _check_allowable(keys: Sequence[str]) -> None:
    """Raises ValueError for keys that may not be allowed to differ."""
    for key in keys:
        check_key(key)
        section, _, name = key.partition(".")
        if section not in ALLOWABLE:
            raise ValueError(
                f"--allow_changed={key}: only keys of the sections {', '.join(ALLOWABLE)} can"
                " change within a run; choose another --workdir (folder)"
            )
        if not name:
            names = [field.name for field in dataclasses.fields(getattr(Config(), section))]
            raise ValueError(
                f"--allow_changed={key}: name a key of this section, {section}.KEY; one of"
                f" {', '.join(names)}"
            )


def _allowed_changes(
    run: Run, host: Mapping[str, Any], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """{"key", "before", "now"} of those of the keys whose values differ from the checkpoint's."""
    before = _config_of(host)
    now = Config.from_dict(run.facts["config"])
    found = {key: (value_of(before, key), value_of(now, key)) for key in keys}
    return [
        {"key": key, "before": old, "now": new} for key, (old, new) in found.items() if old != new
    ]


def train_as_configured(
    config: Config, experiment: Experiment, dataset: Dataset, held: HeldOut | None, **more: Any
) -> TrainState:
    """`training.train` on what `set_aside` left, as the section train says, with `more` options; a
    state among them is used up."""
    c = config.train
    return train(
        experiment,
        dataset.train,
        steps=c.steps,
        batch_size=c.batch_size,
        seed=c.seed,
        condition=told_labels(config, dataset),
        held_out=held,
        ahead_mb=config.noising.ahead_mb,
        shard_parameters=c.shard_parameters,
        donate=True,
        **more,
    )


FEW = 10_000
"""Training items below which the average of the parameters is chosen on some that are held out."""

FEWEST_HELD_OUT = 20
"""Items held out at least, unless they are more than a third of all."""


def selects(config: Config, num_train: int) -> bool:
    """Whether the average of the parameters to sample with is chosen on held-out items."""
    kind = config.train.select
    return num_train < FEW if kind == "auto" else kind == "held_out"


def check_patience(config: Config, num_train: int) -> None:
    """Raises ValueError for a patience where so many items have none held out."""
    if config.train.patience and not selects(config, num_train):
        raise ValueError(
            f"train.patience={config.train.patience} has no effect: with {num_train:,} training"
            " items train.select='auto' holds none out; set train.select to held_out"
        )


def set_aside(config: Config, dataset: Dataset) -> tuple[Dataset, HeldOut | None]:
    """The data to fit and train on, and those that are held out of both, if any are.

    A share train.held_out, but no more than a look at them takes of small states.
    """
    c, num = config.train, len(dataset.train)
    if not selects(config, num):
        return dataset, None
    share = min(round(c.held_out * num), MINIBATCHES * c.batch_size)
    count = max(1, min(max(share, FEWEST_HELD_OUT), num // 3))
    rest, rows = hold_out(dataset, count, c.seed)
    told = None if told_labels(config, dataset) is None else rows.labels
    return rest, HeldOut(
        data=rows.x[:], condition=told, every=c.held_out_every, patience=c.patience
    )


FEW_IMAGES, SMALL = 1000, 16
"""Small shifts are advised for fewer training images, of no fewer pixels a side."""


def takes_shifts(config: Config, dataset: Dataset) -> bool:
    """Whether small shifts of the training images are likely to help, and are not asked for."""
    large = dataset.is_image and min(dataset.shape[:2]) >= SMALL
    few, c = large and len(dataset.train) < FEW_IMAGES, config.data
    can = has_effect(config, "data.shifts") and c.frame not in ("standardised", "angles")
    return few and can and not c.shifts


MEMORY_REMEDIES = {
    "states": "lower data.num_train",
    "parameters, averages, optimiser": "lower network.width, network.depth or network.widths",
    "gradient": "lower network.width, network.depth or network.widths",
    "activations": "lower train.batch_size, noising.k, control_variate.chunk or network.width",
    "noise ahead": "lower train.batch_size, noising.k or noising.ahead_mb",
}
"""What makes less of what `training.memory` counts."""


def fitted(
    config: Config, dataset: Dataset, *, frame: Frame | None = None
) -> tuple[Parts, Experiment]:
    """What a config asks to be fitted to training data, and the experiment made of it.

    Raises:
      ValueError: settings that contradict one another, or that need more memory than there is,
        before anything is fitted; or that do not fit the data.
    """
    some = examples(config, dataset, frame)
    abstract, _, _ = foreseen(config, dataset, some)
    parts = fit(config, dataset, frame=frame)
    parts = dataclasses.replace(parts, **parallel.agreed(_arrays(parts)))
    parts = resolvable(config, parts)
    if some is not None:
        check_structure(config, abstract.reference, parts.reference)
    return measured(config, dataset.shape, parts)


def foreseen(
    config: Config, dataset: Dataset, some: np.ndarray | None = None
) -> tuple[Parts, Experiment, float]:
    """Stand-ins of what a config asks to be fitted, the experiment made of them, and its bytes.

    Nothing is fitted or trained, and what can be known before is checked.

    Raises:
      ValueError: settings that contradict one another, or that need more memory than there is.
    """
    check_samples(config, dataset)
    num, dim = dataset.train.shape
    check_sizes(config, fit_size(config, dataset.train) if dataset.is_stored else num, dim)
    parts = _stand_in_of(config, dataset, some)
    experiment = build(config, dataset.shape, parts, quiet=True)
    needed = needs(config, dataset, experiment)
    memory.check(needed, memory.available(), MEMORY_REMEDIES)
    return parts, experiment, sum(needed.values())


def needs(config: Config, dataset: Dataset, experiment: Experiment) -> dict[str, float]:
    """Bytes that a training needs, see `training.memory.needed`."""
    return memory.needed(
        experiment,
        0 if dataset.is_stored else len(dataset.train),
        experiment.frame.prepare(dataset.train[:1]).shape[1],
        batch_size=config.train.batch_size,
        ahead_mb=config.noising.ahead_mb,
        select=selects(config, len(dataset.train)),
        shard_parameters=config.train.shard_parameters,
    )


def _stand_in_of(config: Config, dataset: Dataset, some: np.ndarray | None) -> Parts:
    """`stand_in` of data. Raises ValueError where the network is told labels and there are none."""
    labels = told_labels(config, dataset)
    return stand_in(
        config,
        dataset.shape,
        dataset.value_range,
        some,
        dataset.columns,
        0 if labels is None else dataset.num_classes,
    )


def save(
    folder: str | pathlib.Path,
    facts: dict[str, Any],
    parts: Parts,
    state: TrainState,
    *,
    examples: np.ndarray | None = None,
) -> None:
    """Writes a trained state as a run of one checkpoint, for `restore` and the commands.

    Args:
      folder: new, or of a run with the same facts.
      facts: see `facts`.
      parts: what was fitted.
      state: of the training.
      examples: some states, see `config.parts.examples`.

    Raises:
      ValueError: the folder holds another run, or cannot be written to.
    """
    folder = pathlib.Path(folder)
    _check_folder(folder)
    run = Run(folder=folder, facts=facts, free=FREE)
    if has_checkpoints(folder):
        run.check()
    folder.mkdir(parents=True, exist_ok=True)
    if examples is not None:
        np.save(folder / EXAMPLES_FILE, examples)
    (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n")
    with run.locked(), run.checkpoints() as checkpoints:
        checkpoints.save(int(state.step), {"train": state, "kept": _arrays(parts)}, facts)


def _check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError where a run could not write, before anything is computed."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    check_name(folder)
    if not nearest.is_dir():
        raise ValueError(f"--workdir={folder}: {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(
            f"--workdir={folder}: {nearest} cannot be written to; choose another folder, or let"
            f" yourself write there: chmod u+w {shlex.quote(str(nearest))}"
        )
    for name in ("checkpoints", "images", "tensorboard"):
        if (path := folder / name).exists() and not path.is_dir():
            raise ValueError(f"{path} is a file where a folder is needed; move it away")
    for name in ("metrics.jsonl", "config.json", "mixture.txt", EXAMPLES_FILE):
        if (path := folder / name).is_dir():
            raise ValueError(f"{path} is a folder where a file is needed; move it away")


def make_run(
    config: Config,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    allow_changed_source: bool = False,
) -> Run:
    """The run of a config in a folder: facts, what of them may change, how often to write."""
    free = set(FREE)
    if config.optimizer.schedule == "cosine":
        free.discard("config.train.steps")  # the schedule depends on it
    if allow_changed_source:
        free.add("sources")
    c = config.train
    found = facts(config, dataset)
    return Run(
        folder=folder,
        facts=found,
        free=frozenset(free),
        changeable=partial(_changeable, config, folder, found["data"]),
        upgrade=_upgraded,
        log_every=c.log_every,
        checkpoint_every=c.checkpoint_every,
        keep=c.keep,
        picture_every=c.picture_every,
        tensorboard=c.tensorboard,
    )


def _changeable(
    config: Config, folder: pathlib.Path, data: Mapping[str, Any], keys: Sequence[str]
) -> bool:
    """Whether a run can go on with its config's values of keys that differ."""
    if not all(key.split(".")[0] in ALLOWABLE for key in keys):
        return False
    try:
        return _has_arrays(config, folder, data)
    except ValueError:  # of settings that contradict one another
        return False


def facts(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint records beside arrays: config, sources, data, versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"ndsm_jax": __version__, "python": platform.python_version()}
    data: dict[str, Any] = {
        "name": dataset.name,
        "shape": list(dataset.shape),
        "value_range": None if dataset.value_range is None else list(dataset.value_range),
        "digest": dataset.digest,
        "num_train": len(dataset.train),
        "source": dataset.source,
        "box": guards.box(dataset.train, same_units=dataset.is_image),
    }
    if dataset.columns:
        data["columns"] = [column.to_json() for column in dataset.columns]
    if config.network.condition == "label":
        numbers = map(str, range(dataset.num_classes))
        data["classes"] = list(dataset.class_names or numbers)
    return {
        "config": config.to_dict(),
        "sources": sources(config),
        "data": data,
        "versions": versions,
    }


def columns_of(data: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a table, of the facts of a run's data; none of other data."""
    return tuple(map(Column.from_json, data.get("columns", ())))


def labels_of(data: Mapping[str, Any], words: Sequence[Any]) -> list[int]:
    """Numbers of classes by their names in the facts of a run's data, as the data had them.

    Raises:
      ValueError: the network is told no labels, or the data have no such class.
    """
    names = classes_of(data)
    if not names:
        raise ValueError(
            f"label={','.join(map(str, words))[:100]}: the network of this run is told no labels;"
            " train one with network.condition=label, or choose components, as"
            " experiments/sample.py does by a few labels"
        )
    texts = [str(word) if str(word) in names else str(word).strip() for word in words]
    wrong = [text for text in texts if text not in names]
    if wrong:
        raise ValueError(f"label={wrong[0]}: the classes are {', '.join(names)}")
    return [names.index(text) for text in texts]


def classes_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that the network is told, of the facts of a run's data; or none."""
    return tuple(data.get("classes", ()))


def _upgraded(host: dict[str, Any]) -> dict[str, Any]:
    # Settings that were added since have the values that the run had without them.
    data = dict(host["data"])
    if "columns" in data:
        data["columns"] = [column.to_json() for column in columns_of(data)]
    return host | {"config": _config_of(host).to_dict(), "data": data}


def checked_host(host: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """The facts recorded with a checkpoint.

    Raises ValueError where there are not those of a run with a config: checkpoints are no more
    trusted than data are.
    """
    if "experiment" in host and "config" not in host:
        raise ValueError(
            f"{folder} is a run of training.train in a Python session, which has no config: make"
            " its experiment again, give training.train the same folder as run=, and draw from the"
            " state that this returns by training.draw"
        )
    for names, kind in (
        (("config", "sources", "data", "versions", "config.sample", "config.evaluate"), dict),
        (("data.shape",), list),
        (("data.name", "data.digest", "data.source", "versions.ndsm_jax"), str),
        (("data.num_train",), int),
        (("data.value_range",), list | None),
    ):
        for name in names:
            value: Any = host
            for part in name.split("."):
                value = value.get(part, ...) if isinstance(value, Mapping) else ...
            if not isinstance(value, kind):
                raise ValueError(
                    f"{folder}: the checkpoint's facts have no {name}, or one that is no"
                    f" {getattr(kind, '__name__', kind)}; it is not one of experiments/train.py, or"
                    " was changed: restore it from a copy"
                )
    return dict(host)


def _config_of(host: Mapping[str, Any], **sections: Mapping[str, Any] | None) -> Config:
    """The config of a run's facts, with keys of sections replaced.

    Raises ValueError, which names the version that wrote it where that is another one.
    """
    tree = dict(host["config"])
    tree |= {name: tree[name] | dict(keys or {}) for name, keys in sections.items()}
    try:
        return Config.from_dict(tree)
    except ValueError as error:
        written = host["versions"]["ndsm_jax"]
        if written == __version__:
            raise
        raise ValueError(
            f"the run was written by ndsm_jax {written}, and this is ndsm_jax {__version__}:"
            f" {error}. Install ndsm_jax=={written} to read it"
        ) from error


def restore(
    folder: str | pathlib.Path,
    *,
    sample: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    step: int | None = None,
    allow_changed_source: bool = False,
) -> Restored:
    """The experiment, newest good state and recorded facts of a run, without its data.

    Args:
      folder: of the run.
      sample, evaluate: keys of these sections of the config to replace.
      step: of the checkpoint to read; the newest good one by default.
      allow_changed_source: as for `launch`.

    Raises:
      FileNotFoundError: no checkpoint in the folder, or none of the step, or a file of the user's
        own is gone.
      ValueError: every checkpoint is damaged, or a file of the user's own has changed.
    """
    folder = pathlib.Path(folder)
    host = checked_host(read_host(folder / "checkpoints", step), folder)
    config = _config_of(host, sample=sample, evaluate=evaluate)
    shape = tuple(host["data"]["shape"])
    _check_sources(config, folder, host, allowed=allow_changed_source)
    parts, experiment, state, host = _restore(config, folder, host["data"], step)
    return Restored(
        config=config,
        experiment=experiment,
        state=state,
        parts=parts,
        examples=_kept_examples(folder),
        shape=shape,
        host=host,
        folder=folder,
    )


def check_replaced(folder: str | pathlib.Path, **sections: Mapping[str, Any] | None) -> None:
    """Raises ValueError for keys that are to be replaced in a run's config and that nothing reads.

    Args:
      folder: of the run.
      sections: keys of a section with their values, as `restore` takes them.

    Raises:
      FileNotFoundError: no checkpoint in the folder.
      ValueError: such keys, see `check_effect`; or the config that they give is none.
    """
    folder = pathlib.Path(folder)
    host = checked_host(read_host(folder / "checkpoints"), folder)
    config = _config_of(host, **sections)
    check_effect(config, [f"{name}.{key}" for name, keys in sections.items() for key in keys or ()])


def _check_sources(
    config: Config, folder: pathlib.Path, host: Mapping[str, Any], *, allowed: bool
) -> None:
    """Raises ValueError where a file of the user's own is not the one that a run was made with."""
    before = host["sources"]
    changed = [key for key, now in sources(config).items() if before.get(key, now) != now]
    if changed and not allowed:
        names = ", ".join(f"{key}={value_of(config, key)!r}" for key in changed)
        raise ValueError(
            f"{names}: the file has changed since {folder} was trained; restore it, or allow it"
            " with --allow_changed_source"
        )


def _arrays(parts: Parts) -> dict[str, Any]:
    """What a checkpoint keeps of what was fitted."""
    kept = {"frame": parts.frame, "reference": parts.reference}
    names = ("classes", "starts", "excess", "levels")
    some = {name: getattr(parts, name) for name in names}
    return kept | {name: value for name, value in some.items() if value is not None}


def _restore(
    config: Config, folder: pathlib.Path, data: Mapping[str, Any], step: int | None = None
) -> tuple[Parts, Experiment, TrainState, dict[str, Any]]:
    like = _like(config, folder, data)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore(like, step)
    parts, shape = Parts(**restored.state["kept"]), tuple(data["shape"])
    return parts, build(config, shape, parts), restored.state["train"], restored.host


def _has_arrays(config: Config, folder: pathlib.Path, data: Mapping[str, Any]) -> bool:
    """Whether the checkpoints in a folder have the arrays of a training of the config."""
    return fits(folder / "checkpoints", _like(config, folder, data))


def _like(config: Config, folder: pathlib.Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of a training of the config, abstract."""
    shape, limits = tuple(data["shape"]), data["value_range"]
    value_range = None if limits is None else (limits[0], limits[1])
    some, num_classes = _kept_examples(folder), len(classes_of(data))
    directory = folder / "checkpoints"

    def stand_in_of(config: Config) -> Parts:
        return stand_in(config, shape, value_range, some, columns_of(data), num_classes)

    parts = stand_in_of(config)
    c = config.mixture
    if c.num_components == 0 or c.covariance == AUTO:  # the structure depends on what was chosen
        kept = shapes_as_saved(directory, {"kept": _arrays(parts)}, "kept")
        if isinstance(kept["reference"], GaussianMixture):
            chosen: dict[str, Any] = {"num_components": kept["reference"].log_weights.shape[0]}
            if c.covariance == AUTO:
                factor = kept["reference"].factor.shape  # [K, 1], [K, d] or [K, d, d]
                one_number = "spherical" if factor[1] == 1 else "diag"
                chosen["covariance"] = "full" if len(factor) == 3 else one_number
            mixture = dataclasses.replace(c, **chosen)
            parts = stand_in_of(dataclasses.replace(config, mixture=mixture))
    if is_saved(directory, "kept", "excess"):
        parts = dataclasses.replace(parts, excess=jnp.zeros(BINS))
    abstract = build(config, shape, parts, quiet=True)
    select = selects(config, data["num_train"])
    if is_saved(directory, "kept", "levels"):  # on which no other structure depends
        parts = dataclasses.replace(parts, levels=np.zeros(2, np.float32))
    like = {
        "train": jax.eval_shape(lambda: init_state(abstract, seed=0, select=select)),
        "kept": _arrays(parts),
    }
    # What was fitted may have another size: a mixture's K, the draws of an energy.
    like["kept"] = shapes_as_saved(directory, like, "kept")
    return like


def _kept_examples(folder: pathlib.Path) -> np.ndarray | None:
    path = folder / EXAMPLES_FILE
    return np.load(path, allow_pickle=False) if path.exists() else None


def _picture(
    config: Config, experiment: Experiment, state: TrainState, dataset: Dataset
) -> np.ndarray:
    num = PICTURE_SAMPLES if dataset.is_image else 16 * PICTURE_SAMPLES
    x = draw(
        experiment,
        state,
        num,
        seed=config.sample.seed,
        ema=config.sample.ema,
        chunk=num,
        stream=STREAM_PICTURE,
        progress=False,
    )
    if dataset.columns:
        sets = {"data": dataset.test, "samples": x}
        return plots.render(plots.marginals_figure(dataset.columns, sets))
    figure = plots.samples_figure(
        x, dataset.shape, reference=dataset.test[:num], value_range=dataset.value_range
    )
    return plots.render(figure)


def draw_as_configured(
    config: Config,
    experiment: Experiment,
    state: TrainState,
    num: int | None = None,
    *,
    seed: int | None = None,
    components: np.ndarray | None = None,
    condition: Any = None,
    measurement: Measurement | None = None,
    guidance: Callable[..., Sampler] = Reconstruction,
    weaker: Score | None = None,
    progress: bool = True,
) -> np.ndarray:
    """`training.draw` of `num` samples, sample.num by default, as the section sample says.

    seed: in place of sample.seed.
    weaker: in place of the score without the label, see `weaker_score`.
    """
    c = config.sample
    check_room(experiment, num or c.num)
    return draw(
        experiment,
        state,
        num or c.num,
        seed=c.seed if seed is None else seed,
        components=components,
        condition=condition,
        measurement=measurement,
        guidance=guidance,
        contrast=Contrast(
            scale=c.guidance_scale, low=c.guidance_low, high=c.guidance_high, weaker=weaker
        ),
        ema=c.ema,
        chunk=c.chunk,
        progress=progress,
    )


def check_room(experiment: Experiment, num: int) -> None:
    """Raises ValueError where `num` samples do not fit into memory; before any is drawn."""
    guards.check_room(num, experiment.process.dim, experiment.frame.data_dim or 0)


def weaker_score(
    config: Config, experiment: Experiment, weaker: Experiment, state: TrainState
) -> Score:
    """The score of a weaker model of the same process, for autoguidance (2406.02507).

    A weaker model that is told nothing serves one that is told labels, too.

    Args:
      config, experiment: of the model that is guided.
      weaker: of the weaker one: of an earlier step, of a smaller network, of fewer steps.
      state: of its training.

    Raises:
      ValueError: another process or frame, whose states are others; or a weaker model that is told
        what the guided one is not.
    """
    parts = ("process", "frame")
    differ = [n for n in parts if _prints(experiment, n) != _prints(weaker, n)]
    if differ:
        raise ValueError(
            f"autoguidance: {' and '.join(differ)} of the weaker run differ from those of the one"
            " that is guided; train both with the same sections data, mixture, process and train"
        )
    told, weak_told = experiment.model.condition, weaker.model.condition
    if weak_told is not None and (
        told is None or len(experiment.classes or ()) != len(weaker.classes or ())
    ):
        raise ValueError(
            "autoguidance: the weaker run is told labels that the one that is guided is not; train"
            " both with the same network.condition, on the same data"
        )
    score = weaker.model.bind(state.chosen if config.sample.ema else state.params)
    return unconditional(score) if weak_told is None and told is not None else score


def _prints(experiment: Experiment, name: str) -> int:
    return fingerprint(getattr(experiment, name))


def describe(config: Config, dataset: Dataset) -> str:
    """What a dry run prints: data, network, first batch's shapes; nothing is fitted or trained.

    Raises:
      ValueError: as `check_data` and `foreseen`.
    """
    check_data(config, dataset)
    check_patience(config, len(dataset.train))
    parts, experiment, needed = foreseen(config, dataset, examples(config, dataset))
    width = parts.frame.prepare(dataset.train[:1]).shape[1]
    batch = noised_shapes(experiment, width, config.train.batch_size)
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    fields = {name: value for name, value in vars(batch).items() if hasattr(value, "shape")}
    read_from = ", read from there row by row" if dataset.is_stored else ""
    return "\n".join(
        [
            f"data {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} held-out"
            f" items of shape {dataset.shape} ({dataset.source}{read_from})",
            f"network {config.network.name}: {size:,} parameters",
            f"memory: about {in_words(needed)}",
            f"first batch, from x0 {(config.train.batch_size, width)}:",
            *(f"  {name}: {value.dtype}{list(value.shape)}" for name, value in fields.items()),
        ]
    )
