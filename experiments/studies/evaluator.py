"""What the evaluator sees: held-out images, spoilt in ten ways, against the training images.

Frechet distance and inception score in the evaluator's features stand beside measures of the pixels
themselves. All sets have the same count; strength 0 is the floor. `smoke` takes the 8 x 8 digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from ndsm_jax import datasets, evaluation, plots
from ndsm_jax.evaluation.reference import subset
from ndsm_jax.reports.study import Study

Array = np.ndarray
Spoil = Callable[["Images", float], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the study.

    Attributes:
      data: name of the data set.
      count: images in every set; half the held-out images, so that classes can be left out.
      pixel_count: of them, those compared in pixels (the cost is quadratic).
      every: which strengths of each way, from the greatest down: 1 all, 2 every second.
    """

    data: str
    count: int
    pixel_count: int
    every: int


SCALES = {
    "smoke": Scale(data="digits", count=150, pixel_count=60, every=5),
    "cpu": Scale(data="mnist", count=5000, pixel_count=1000, every=2),
    "full": Scale(data="mnist", count=5000, pixel_count=5000, every=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Held-out images to choose from and to spoil, and the training images.

    Attributes:
      x: [m, d] held-out images in a fixed random order.
      labels: [m] their classes.
      train: [n, d].
      shape: of one image.
      count: how many are wanted.
    """

    x: Array
    labels: Array
    train: Array
    shape: tuple[int, ...]
    count: int

    @property
    def first(self) -> Array:
        """The images that are spoilt, [count, d]."""
        return self.x[: self.count]


def noise(images: Images, strength: float) -> Array:
    """Gaussian noise of that standard deviation; black to white is 2."""
    x = images.first
    return x + strength * np.random.default_rng(1).normal(size=x.shape)


def dust(images: Images, strength: float) -> Array:
    """A share of the pixels replaced by uniform grey levels."""
    x, rng = images.first, np.random.default_rng(2)
    return np.where(rng.uniform(size=x.shape) < strength, rng.uniform(-1, 1, size=x.shape), x)


def blur(images: Images, strength: float) -> Array:
    """Gaussian blur of that width in pixels."""
    x = images.first.reshape(-1, *images.shape)
    return ndimage.gaussian_filter(x, (0, strength, strength, 0)).reshape(len(x), -1)


def shift(images: Images, strength: float) -> Array:
    """All images moved to the right by whole pixels, black behind them."""
    x = images.first.reshape(-1, *images.shape)
    return ndimage.shift(x, (0, 0, strength, 0), order=0, cval=-1.0).reshape(len(x), -1)


def rotation(images: Images, strength: float) -> Array:
    """All images turned by that many degrees."""
    x = images.first.reshape(-1, *images.shape)
    turned = ndimage.rotate(x, strength, axes=(1, 2), reshape=False, order=1, cval=-1.0)
    return turned.reshape(len(x), -1)


def contrast(images: Images, strength: float) -> Array:
    """Ink fainter by that share."""
    return (1 - strength) * (images.first + 1) - 1


def missing(images: Images, strength: float) -> Array:
    """The last classes left out, that many of them."""
    kept = images.labels < images.labels.max() + 1 - strength
    return images.x[kept][: images.count]


def imbalance(images: Images, strength: float) -> Array:
    """Half the classes more frequent by that share, half less."""
    classes = int(images.labels.max()) + 1
    signs = np.where(np.arange(classes) < classes // 2, 1, -1)
    sizes = np.rint(images.count / classes * (1 + strength * signs)).astype(int)
    chosen = [np.flatnonzero(images.labels == c)[: sizes[c]] for c in range(classes)]
    return images.x[np.concatenate(chosen)]


def repeats(images: Images, strength: float) -> Array:
    """Only so many different images (a share of the count), repeated."""
    kept = max(2, round(images.count * (1 - strength)))
    return images.x[np.arange(images.count) % kept]


def copies(images: Images, strength: float) -> Array:
    """A share replaced by copies of training images."""
    copied = round(images.count * strength)
    chosen = np.random.default_rng(3).choice(len(images.train), copied, replace=False)
    return np.concatenate([images.train[chosen], images.first[copied:]])


SPOILS: Mapping[str, tuple[Spoil, Sequence[float], str]] = {
    "noise": (noise, (0.05, 0.1, 0.2, 0.3, 0.5), "standard deviation"),
    "dust": (dust, (0.005, 0.01, 0.02, 0.05, 0.1), "share of pixels"),
    "blur": (blur, (0.3, 0.5, 0.75, 1.0, 1.5), "width, pixels"),
    "shift": (shift, (1, 2, 3, 4, 5), "pixels"),
    "rotation": (rotation, (5, 10, 15, 20, 30), "degrees"),
    "contrast": (contrast, (0.05, 0.1, 0.2, 0.4, 0.6), "share of ink lost"),
    "missing": (missing, (1, 2, 3, 4, 5), "classes left out"),
    "imbalance": (imbalance, (0.1, 0.25, 0.5, 0.75, 0.9), "excess of half the classes"),
    "repeats": (repeats, (0.5, 0.8, 0.9, 0.98, 0.99), "share that repeats others"),
    "copies": (copies, (0.1, 0.25, 0.5, 0.75, 1.0), "share of training images"),
}
"""Name -> (function, strengths, unit of the strength)."""

MEASURES = {
    "fid": "FID",
    "inception_score": "inception score",
    "class_tv": "class TV",
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced W2",
    "two_sample_accuracy": "two-sample accuracy",
    "nearest_train": "distance to training set",
}
FEATURE_MEASURES = 3
IN_FIGURE = ("fid", "energy_distance", "sliced_wasserstein", "nearest_train")


def reproduce(study: Study) -> None:
    """Table, figures and metrics of every way and strength."""
    scale = SCALES[study.scale]
    directory = study.data_dir if scale.data == "mnist" else ""
    dataset = datasets.load(scale.data, dir=directory)
    classifier = evaluation.evaluator(dataset, progress=study.progress)
    order = np.random.default_rng(0).permutation(len(dataset.test))
    assert dataset.test_labels is not None  # `evaluator` has refused data without
    images = Images(
        x=dataset.test[order],
        labels=dataset.test_labels[order],
        train=dataset.train,
        shape=dataset.shape,
        count=scale.count,
    )
    folder = study.root / "statistics"

    rows: list[dict[str, Any]] = []
    for name, strength, x in _sets(images, scale.every):
        of = {"data": dataset.digest, "count": scale.count, "strength": strength}
        part = f"{name}_{strength:g}"
        pixels = study.part(
            f"pixels_{part}",
            of | {"pixel_count": scale.pixel_count},
            partial(_in_pixels, x, dataset.train, scale.pixel_count),
        )
        features = study.part(
            f"features_{part}",
            of | {"evaluator": classifier.digest},
            partial(evaluation.fid_report, x, dataset, classifier, folder=folder),
        )
        values = {key: features[key]["value"] for key in list(MEASURES)[:FEATURE_MEASURES]}
        rows.append({"spoilt by": name, "strength": strength} | values | pixels)
    floors = study.part(
        "floor_of_all",
        {"data": dataset.digest, "evaluator": classifier.digest},
        partial(evaluation.fid_report, dataset.test, dataset, classifier, folder=folder),
    )
    title = (
        f"{scale.count} held-out images against the training split; evaluator {classifier.name}, "
        f"test accuracy {classifier.test_accuracy:.4f}; pixel measures on {scale.pixel_count}"
    )
    study.table("sensitivity", [_readable(row) for row in rows], title=title)
    responses = {
        name: _response(rows[0], [row for row in rows if row["spoilt by"] == name], label)
        for name, (_, _, label) in SPOILS.items()
    }
    study.figure("sensitivity", plots.responses_figure(responses))
    shown = {
        f"{name} {spoilt[-1]:g}": function(images, spoilt[-1])[:12]
        for name, (function, spoilt, _) in SPOILS.items()
    }
    study.figure("images", plots.rows_figure(shown, dataset.shape, columns=12))
    study.metrics(
        {
            "evaluator": {
                "name": classifier.name,
                "digest": classifier.digest,
                "test_accuracy": classifier.test_accuracy,
            },
            "count": scale.count,
            "pixel_count": scale.pixel_count,
            "floor_of_all_held_out": floors,
            "rows": rows,
        }
    )


def _sets(images: Images, every: int) -> Iterator[tuple[str, float, Array]]:
    """(name, strength, images [count, d]) of all that is measured, the unspoilt ones first."""
    yield "nothing", 0.0, images.first
    for name, (function, levels, _) in SPOILS.items():
        for strength in levels[::-every][::-1]:
            yield name, strength, function(images, strength).astype(np.float32)


def _in_pixels(x: Array, train: Array, count: int) -> dict[str, float]:
    """Pixel measures of `count` images of x [n, d] against as many of the training images."""
    x, y = subset(x, count), subset(train, count)
    return {
        "energy_distance": evaluation.energy_distance(x, y),
        "sliced_wasserstein": evaluation.sliced_wasserstein(x, y),
        "two_sample_accuracy": evaluation.two_sample_accuracy(x, y).value,
        "nearest_train": float(evaluation.nearest_distances(x, train)[0].mean()),
    }


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {MEASURES.get(key, key): value for key, value in row.items()}


def _response(floor: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], label: str) -> Any:
    points = [floor, *rows]
    return plots.Response(
        label=label,
        x=[point["strength"] for point in points],
        ratios={MEASURES[key]: [point[key] / floor[key] for point in points] for key in IN_FIGURE},
        accuracy=[point["two_sample_accuracy"] for point in points],
    )
