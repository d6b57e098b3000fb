"""Draw samples from a trained model: samples.npy and samples.png in the run's folder.

Of a table, samples.csv, too, with its names and levels.

python experiments/sample.py --workdir=runs/digits --num=100
python experiments/sample.py --workdir=runs/digits --sampler=multistep_sde --steps=40
python experiments/sample.py --workdir=runs/digits --component=3,7
python experiments/sample.py --workdir=runs/digits --label=0,1,2
python experiments/sample.py --workdir=runs/told --label=3 --guidance_scale=2
python experiments/sample.py --workdir=runs/told --guidance_scale=2 --autoguide=runs/small
python experiments/sample.py --workdir=runs/digits --given=partial.npy --num=20
python experiments/sample.py --workdir=runs/digits --given=coarse.npy --pool=2 --guidance=twisted

Samples that are not finite or far from the data are counted; where they are more than a tenth,
nothing is written.

Sample i is of the i-th of the labels given, taken in turn, or starts from the i-th component, or
completes the i-th item of --given. A run that was trained with network.condition=label is told the
label; another one starts in a component of the class, found by a few labels. How:
docs/conditional.md, docs/conditioning.md, docs/guidance.md.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ndsm_jax import app, conditioning, frames, guards, measurements, plots
from ndsm_jax.contrast import Score
from ndsm_jax.datasets import tables
from ndsm_jax.datasets.dataset import states
from ndsm_jax.datasets.files import read_npy
from ndsm_jax.guidance import GUIDANCES
from ndsm_jax.launch import (
    Restored,
    check_replaced,
    check_room,
    columns_of,
    draw_as_configured,
    labels_of,
    load_run_data,
    restore,
    weaker_score,
)
from ndsm_jax.measurements import Measurement
from ndsm_jax.runs import aside, check_output, replace_file
from ndsm_jax.sampling import SAMPLERS, Sampler
from ndsm_jax.table_frame import TableFrame
from ndsm_jax.training import draw_components

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.", required=True)
NUM = flags.DEFINE_integer("num", 100, "Number of samples.", lower_bound=1)
SAMPLER = flags.DEFINE_enum("sampler", None, list(SAMPLERS), "Sampler; default: the run's config.")
STEPS = flags.DEFINE_integer("steps", None, "Grid steps; default: the run's config.", lower_bound=3)
CHURN = flags.DEFINE_float("churn", None, "sample.churn; default: the run's config.")
SEED = flags.DEFINE_integer("seed", None, "Seed; default: the run's config.", lower_bound=0)
COMPONENT = flags.DEFINE_list("component", [], "Components of the prior to start from: 3 or 3,7.")
LABEL = flags.DEFINE_list("label", [], "Classes of the samples, in turn: 0,1 or words.")
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "sample.guidance_scale; default: the run's config.", lower_bound=0
)
GUIDANCE_LOW = flags.DEFINE_float(
    "guidance_low", None, "sample.guidance_low; default: the run's config."
)
GUIDANCE_HIGH = flags.DEFINE_float(
    "guidance_high", None, "sample.guidance_high; default: the run's config."
)
AUTOGUIDE = flags.DEFINE_string(
    "autoguide", None, "Folder of a weaker run, away from whose score --guidance_scale guides."
)
AUTOGUIDE_STEP = flags.DEFINE_integer(
    "autoguide_step",
    None,
    "Of the weaker run's checkpoint; default: the newest.",
    lower_bound=0,
)
LABELS_PER_CLASS = flags.DEFINE_integer(
    "labels_per_class",
    None,
    "Training labels that name components for --label, per class on average; default: the run's"
    " config.",
    lower_bound=1,
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "For --label, where the data are now.")
GIVEN = flags.DEFINE_string(
    "given",
    None,
    "What is known of the samples: a .npy file of items in the units of samples.npy, NaN where it"
    " is not known; images may be uint8, 0 to 255.",
)
POOL = flags.DEFINE_integer(
    "pool", 1, "Pixels of --given are means of blocks of this many by as many.", lower_bound=1
)
NOISE = flags.DEFINE_float("noise", 0.0, "Standard deviation of an error in --given.")
GUIDANCE = flags.DEFINE_enum(
    "guidance", "reconstruction", list(GUIDANCES), "How samples are drawn given --given."
)
PARTICLES = flags.DEFINE_integer(
    "particles", 16, "Of each sample, for --guidance=twisted.", lower_bound=1
)
ALLOW_CHANGED_SOURCE = flags.DEFINE_bool(
    "allow_changed_source", False, "Go on although a file named file.py:function has changed."
)
OUT = flags.DEFINE_string(
    "out", None, "Output path, to which .npy and .png are added; default: WORKDIR/samples."
)


class Asked(NamedTuple):
    """What samples are asked for.

    Attributes:
      components: to start from [num], or None.
      condition: labels that the network is told [num], or None.
      names: of the things asked for.
    """

    components: np.ndarray | None = None
    condition: np.ndarray | None = None
    names: Sequence[str] = ()


def asked(run: Restored, num: int) -> Asked:
    """Components to start from or labels to tell the network, as the run has them."""
    component = _integers("component", COMPONENT.value)
    if component and LABEL.value:
        raise ValueError("give --component or --label, not both")
    if component:
        names = [f"component {k}" for k in component]
        return Asked(components=np.resize(component, num), names=names)
    if not LABEL.value:
        return Asked()
    names = [f"class {word.strip()}" for word in LABEL.value]
    if run.experiment.classes is None:
        return Asked(components=_components_of_labels(run, num), names=names)
    if LABELS_PER_CLASS.value is not None or DATA_DIR.value is not None:
        raise ValueError(
            "--labels_per_class and --data_dir name the components of runs whose network is told no"
            " labels, and that of this run is; leave them out"
        )
    labels = labels_of(run.host["data"], LABEL.value)
    return Asked(condition=np.resize(np.array(labels, np.int32), num), names=names)


def _components_of_labels(run: Restored, num: int) -> np.ndarray:
    """Components [num] of the classes asked for, named by a few labels of the data."""
    evaluate, prior = run.config.evaluate, run.experiment.components
    if prior is None:
        raise ValueError("--label needs a run whose samples start in components of a mixture")
    dataset = load_run_data(run.config, run.host, data_dir=DATA_DIR.value)
    frame = frames.outside(run.experiment.frame)
    if isinstance(frame, TableFrame):  # which prepares no states, but what they are drawn of
        within = frames.states(frame, dataset.train, by_item=True)
    else:
        within = frame.prepare(dataset.train)
    states = dataclasses.replace(dataset, train=within)
    if prior.dim != states.train.shape[1]:
        raise ValueError(
            f"--label={','.join(LABEL.value)}: labels cannot choose among the components of this"
            f" run, whose states have {prior.dim} dimensions and the data {states.train.shape[1]}"
            f" (process.name={run.config.process.name!r}); give --component"
        )
    per_class = LABELS_PER_CLASS.value or evaluate.labels_per_class
    table, _ = conditioning.sparse_class_table(
        prior, states, per_class=per_class, seed=evaluate.seed
    )
    label = _classes(LABEL.value, dataset.class_names)
    log_weights = np.stack([conditioning.class_log_weights(prior, table, c) for c in label])
    log_weights = log_weights[np.arange(num) % len(label)]
    return draw_components(
        run.experiment, num, seed=run.config.sample.seed, log_weights=log_weights
    )


def weaker(run: Restored) -> Score | None:
    """The score of --autoguide, or None."""
    if AUTOGUIDE.value is None:
        return None
    if run.config.sample.guidance_scale == 1:
        raise ValueError(
            "--autoguide guides away from a weaker run by --guidance_scale, which is 1, off; give"
            " --guidance_scale=2, say"
        )
    other = restore(
        AUTOGUIDE.value,
        step=AUTOGUIDE_STEP.value,
        allow_changed_source=ALLOW_CHANGED_SOURCE.value,
    )
    return weaker_score(run.config, run.experiment, other.experiment, other.state)


def _pooled(shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of --pool. Raises ValueError where it does not fit the items."""
    try:
        return measurements.mean_pooling(shape, POOL.value)
    except ValueError as error:
        fitting = math.gcd(*shape[:2]) if len(shape) == 3 else 1
        numbers = [str(n) for n in range(2, fitting + 1) if fitting % n == 0]
        remedy = f"choose one of {', '.join(numbers)}" if numbers else "leave it out"
        raise ValueError(f"--pool={POOL.value}: {error}; {remedy}") from error


def measured(run: Restored, num: int) -> tuple[Measurement | None, np.ndarray | None]:
    """What --given says of the samples, one row each, and its items as a picture shows them [m, D].

    Pixels that are not known are shown as the lowest value of those that are.
    """
    if GIVEN.value is None:
        return None, None
    if COMPONENT.value or (LABEL.value and run.experiment.classes is None):
        raise ValueError("give --given, or --component or --label: each chooses the components")
    matrix = _pooled(run.shape) if POOL.value > 1 else None
    items = _items(run, _numbers(pathlib.Path(GIVEN.value)))[:num]
    _check_range(run, items)
    rows = items[np.arange(num) % len(items)]
    shown = np.where(np.isnan(items), np.nanmin(items), items)
    if matrix is None:
        return measurements.given(rows, noise=NOISE.value), shown
    known = measurements.linear(matrix, rows, noise=NOISE.value)
    return known, shown @ matrix * POOL.value**2


def _items(run: Restored, array: np.ndarray) -> np.ndarray:
    """The items of --given as states are [n, D], float64: scaled and laid out as data of a run are.

    uint8 is scaled where the data of the run are images of a range, and is numbers elsewhere.
    """
    shape, what = run.shape, ""
    if POOL.value > 1:
        shape = (shape[0] // POOL.value, shape[1] // POOL.value, shape[2])
        what = f", means of blocks of {POOL.value} x {POOL.value} pixels"
    width = int(np.prod(shape))
    is_one = int(np.prod(array.shape[1:])) != width
    items = array[None] if is_one else np.atleast_1d(array)
    first = (shape[-1], *shape[:-1])
    is_image = len(shape) == 3 and items.ndim == 4
    if (
        (is_one and array.size != width)
        or (is_image and items.shape[1:] not in (shape, first))
        or np.isnan(items).all()
    ):
        raise ValueError(
            f"--given={GIVEN.value}: an array [n, {width}] is needed{what}, or of items of shape"
            f" {shape}, not all of it NaN; got shape {array.shape}"
        )
    is_last = items.shape[1:] == shape and (
        first != shape or run.config.data.layout != "channels_first"
    )
    if is_image and not is_last:
        items = np.moveaxis(items, 1, -1)
    scaled = items.dtype == np.uint8 and run.host["data"]["value_range"] is not None
    return (states(items) if scaled else items.reshape(-1, width)).astype(np.float64)


def _check_range(run: Restored, items: np.ndarray) -> None:
    """Raises ValueError for items as far from the data as `guards.check_samples` lets no sample."""
    box = run.host["data"].get("box")
    if box is None:
        return
    middle = 0.5 * np.add(box["low"], box["high"])
    _, far = guards.astray(np.where(np.isnan(items), middle, items), box)
    if far > guards.SHARE * len(items):
        raise ValueError(
            f"--given={GIVEN.value}: {far} of its {len(items)} items are more than {guards.BOXES}"
            f" times the data's range away from them: values from {np.nanmin(items):g} to"
            f" {np.nanmax(items):g}, and those of the data are from {min(box['low']):g} to"
            f" {max(box['high']):g}; give them in the units of the data, images as uint8 (0 to 255)"
            " or as floats"
        )


def _numbers(path: pathlib.Path) -> np.ndarray:
    """The array of a .npy file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--given={path}: there is no such file; a .npy file of numbers is needed, as"
            " numpy.save writes it"
        )
    array = read_npy(path)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"--given={path}: numbers are needed, and it holds {array.dtype}")
    return array


def guidance() -> Callable[..., Sampler]:
    """The way of sampling given --given."""
    options = {"particles": PARTICLES.value} if GUIDANCE.value == "twisted" else {}
    return partial(GUIDANCES[GUIDANCE.value], **options)


def _classes(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """Numbers of the classes that are asked for, by the data's own names where they have any."""
    if not names:
        return _integers("label", words)
    try:
        return [list(names).index(word.strip()) for word in words]
    except ValueError:
        raise ValueError(f"--label={','.join(words)}: the classes are {', '.join(names)}") from None


def _integers(flag: str, values: Sequence[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(f"--{flag}={','.join(values)}: whole numbers are needed") from None


READ_WITH = {
    "pool": "given",
    "noise": "given",
    "guidance": "given",
    "particles": "given",
    "labels_per_class": "label",
    "data_dir": "label",
    "autoguide_step": "autoguide",
}
"""Flags -> those without which nothing reads them."""


def check_flags() -> None:
    """Raises ValueError for flags that were given and that nothing reads."""
    for name, other in READ_WITH.items():
        if flags.FLAGS[name].present and not flags.FLAGS[other].value:
            raise ValueError(f"--{name} is read with --{other}; give it too, or leave --{name} out")
    if flags.FLAGS["particles"].present and GUIDANCE.value != "twisted":
        raise ValueError("--particles is read with --guidance=twisted; leave it out, or give that")


def outputs(run: Restored) -> list[pathlib.Path]:
    """The paths that --out names, .npy and .png, of a table .csv, too; all can be written."""
    out = (OUT.value or f"{WORKDIR.value}/samples").removesuffix(".npy")
    suffixes = (".npy", ".png", *([".csv"] if columns_of(run.host["data"]) else []))
    paths = [pathlib.Path(f"{out}{suffix}") for suffix in suffixes]
    for path in paths:
        check_output(path)
    return paths


def main(argv: Sequence[str]) -> None:
    check_flags()
    flag_values: dict[str, Any] = {
        "sampler": SAMPLER.value,
        "steps": STEPS.value,
        "churn": CHURN.value,
        "seed": SEED.value,
        "guidance_scale": GUIDANCE_SCALE.value,
        "guidance_low": GUIDANCE_LOW.value,
        "guidance_high": GUIDANCE_HIGH.value,
    }
    changes = {key: value for key, value in flag_values.items() if value is not None}
    # What --autoguide guides needs no label, which the config's guidance is read with.
    guided = {key for key in changes if AUTOGUIDE.value and key.startswith("guidance_")}
    asked_for = {key: value for key, value in changes.items() if key not in guided}
    check_replaced(WORKDIR.value, sample=asked_for)
    run = restore(WORKDIR.value, sample=changes, allow_changed_source=ALLOW_CHANGED_SOURCE.value)
    check_room(run.experiment, NUM.value)
    npy, png, *csv = outputs(run)
    known, items = measured(run, NUM.value)
    components, condition, names = asked(run, NUM.value)
    x = draw_as_configured(
        run.config,
        run.experiment,
        run.state,
        NUM.value,
        components=components,
        condition=condition,
        measurement=known,
        guidance=guidance(),
        weaker=weaker(run),
    )
    guards.check_samples(x, run.host["data"].get("box"))
    of_table = columns_of(run.host["data"])
    limits = run.host["data"]["value_range"]
    grey = plots.grey_limits(x, limits and tuple(limits))
    if of_table:
        picture = plots.marginals_figure(of_table, {"samples": x})
    elif items is not None and len(run.shape) == 3:
        completed = {
            f"no. {i + 1}": x[i * len(items) : (i + 1) * len(items)]
            for i in range(min(8, len(x) // len(items)))
        }
        columns = min(20, len(items))
        picture = plots.rows_figure(
            {"given": items} | completed, run.shape, columns=columns, grey=grey
        )
    elif names:
        rows = {name: x[i :: len(names)] for i, name in enumerate(names[: len(x)])}
        columns = min(20, -(-len(x) // len(rows)))
        picture = plots.rows_figure(rows, run.shape, columns=columns, grey=grey)
    else:
        picture = plots.panels({"samples": x[:400]}, run.shape, size=6.0, grey=grey)
    with aside(npy) as part, part.open("wb") as file:
        np.save(file, x.reshape(-1, *run.shape))
    for path in csv:
        with aside(path) as part:
            tables.write(part, of_table, x)
    replace_file(png, plots.png(picture))
    written = ", ".join(map(str, [npy, *csv]))
    print(f"{len(x)} samples of step {int(run.state.step)}: {written}, picture: {png}")


if __name__ == "__main__":
    app.run(main)
