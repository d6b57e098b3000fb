"""Samples of a run, and how close they are to its data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ndsm_jax import evaluation, frames
from ndsm_jax.codec import Latent
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import ImageClassifier, Starts
from ndsm_jax.frames import Frame
from ndsm_jax.launch import Restored, check_room, draw_as_configured
from ndsm_jax.table_frame import LEVEL_DISTANCE, TableFrame
from ndsm_jax.training import draw_components, draw_labels, draw_prior


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples of a run.

    Attributes:
      samples: [n, D], in the coordinates of the data.
      prior: as many draws of what sampling starts from.
      components: from which the samples started [n]; None where there are none, or one.
      labels: that the network was told [n]; None where it is told none.
      seconds: that the samples took.
    """

    samples: np.ndarray
    prior: np.ndarray
    components: np.ndarray | None
    labels: np.ndarray | None
    seconds: float


def drawn(run: Restored, num: int | None = None, *, progress: bool = True) -> Drawn:
    """`num` samples of a run, sample.num by default, as its config says, and draws of its prior."""
    experiment, seed = run.experiment, run.config.sample.seed
    num = num or run.config.sample.num
    check_room(experiment, num)
    mixture, components, labels = experiment.components, None, None
    if experiment.classes is not None:
        labels = draw_labels(experiment, num, seed=seed)
    if mixture is not None and mixture.num_components > 1:
        components = draw_components(experiment, num, seed=seed, condition=labels)
    start = time.perf_counter()
    samples = draw_as_configured(
        run.config, experiment, run.state, num, condition=labels, progress=progress
    )
    seconds = time.perf_counter() - start
    prior = draw_prior(experiment, num, seed=seed)
    return Drawn(
        samples=samples, prior=prior, components=components, labels=labels, seconds=seconds
    )


def _outer(frame: Frame) -> Frame:
    return frame.outer if isinstance(frame, frames.Chained) else frame


def data_frame(frame: Frame) -> Frame:
    """The part of a frame that takes the units or the period off the data, or the identity."""
    outer = _outer(frame)
    known = isinstance(outer, frames.Standardised | frames.Angles | TableFrame)
    return outer if known else frames.Identity()


def coordinates(frame: Frame) -> tuple[Callable[[np.ndarray], np.ndarray] | None, str]:
    """In which distances between data of a `data_frame` mean something (None: as they are), and
    the units of these."""
    if isinstance(frame, frames.Standardised):
        return frame.prepare, "standard deviations of each feature of the data"
    if isinstance(frame, frames.Angles):
        return frame.on_circles, "chords of circles, one for each angle, as long as its period"
    if isinstance(frame, TableFrame):
        units = "standard deviations of each column, normal scores, and levels of a category"
        return frame.coordinates, f"{units} {LEVEL_DISTANCE:g} apart"
    return None, "of the data"


def completed(frame: Frame, dataset: Dataset) -> Dataset:
    """The data with their missing cells drawn as in training, where they have any."""
    outer = data_frame(frame)
    if not isinstance(outer, TableFrame):
        return dataset
    train, test = (outer.complete(x, seed=i) for i, x in enumerate((dataset.train, dataset.test)))
    return dataclasses.replace(dataset, train=train, test=test)


def measure(
    run: Restored,
    samples: np.ndarray,
    prior: np.ndarray,
    dataset: Dataset,
    *,
    components: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    classifier: ImageClassifier | None = None,
    max_points: int | None = None,
) -> dict[str, Any]:
    """`evaluation.evaluate` of samples of a run, in coordinates in which distances mean something.

    Where the run standardises its data these are the standardised ones, and where the data are
    angles, points on circles: "units" says so. Samples, prior and data are in the data's units; the
    data have no missing cells, see `completed`.

    Of a table there is "table", too: `evaluation.table_scores`.
    """
    c = run.config.evaluate
    frame = data_frame(run.experiment.frame)
    measured_in, units = coordinates(frame)
    starts = None
    mixture = run.experiment.components
    in_frame = frames.states(frame, dataset.train[:1]).shape[1]
    if isinstance(_outer(run.experiment.frame), Latent):  # whose components are not of the data
        mixture = None
    if components is not None and mixture is not None and mixture.dim == in_frame:
        starts = Starts(
            prior=mixture,
            components=components,
            labels_per_class=c.labels_per_class,
            frame=frame,
        )
    result: Mapping[str, Any] = evaluation.evaluate(
        samples,
        prior,
        dataset,
        classifier=classifier,
        coordinates=measured_in,
        starts=starts,
        labels=labels,
        seed=c.seed,
        max_points=max_points or c.max_points,
    )
    if dataset.columns:
        sets = {"value": samples, "floor": dataset.train, "prior": prior}
        scores = evaluation.table_scores(
            dataset.columns, dataset.test, sets, seed=c.seed, max_points=max_points or c.max_points
        )
        result = {**result, "table": scores}
    return {"units": units, **result}
