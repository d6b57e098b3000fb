"""Samples of a run, and how close they are to its data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax import evaluation, frames
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import ImageClassifier, Starts
from ndsm_jax.frames import Frame
from ndsm_jax.launch import Restored, draw_as_configured
from ndsm_jax.training import draw_components, draw_prior


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples of a run.

    Attributes:
      samples: [n, D], in the coordinates of the data.
      prior: as many draws of what sampling starts from.
      components: from which the samples started [n]; None where there are none, or one.
      seconds: that the samples took.
    """

    samples: np.ndarray
    prior: np.ndarray
    components: np.ndarray | None
    seconds: float


def drawn(run: Restored, num: int | None = None, *, progress: bool = True) -> Drawn:
    """`num` samples of a run, sample.num by default, as its config says, and draws of its prior."""
    experiment, seed = run.experiment, run.config.sample.seed
    num = num or run.config.sample.num
    mixture, components = experiment.components, None
    if mixture is not None and mixture.num_components > 1:
        components = draw_components(experiment, num, seed=seed)
    start = time.perf_counter()
    samples = draw_as_configured(run.config, experiment, run.state, num, progress=progress)
    seconds = time.perf_counter() - start
    prior = draw_prior(experiment, num, seed=seed)
    return Drawn(samples=samples, prior=prior, components=components, seconds=seconds)


def standardising(frame: Frame) -> frames.Standardised | None:
    """The part of a frame that takes the units off the data, or None."""
    outer = frame.outer if isinstance(frame, frames.Chained) else frame
    return outer if isinstance(outer, frames.Standardised) else None


def measure(
    run: Restored,
    samples: np.ndarray,
    prior: np.ndarray,
    dataset: Dataset,
    *,
    components: np.ndarray | None = None,
    classifier: ImageClassifier | None = None,
    max_points: int | None = None,
) -> dict[str, Any]:
    """`evaluation.evaluate` of samples of a run, in coordinates in which distances mean something.

    Where the run standardises its data these are the standardised ones, whatever the units: then
    "units" says so.
    """
    c = run.config.evaluate
    frame = standardising(run.experiment.frame)
    if frame is not None:
        samples, prior = frame.prepare(samples), frame.prepare(prior)
        dataset = dataclasses.replace(
            dataset, train=frame.prepare(dataset.train), test=frame.prepare(dataset.test)
        )
    starts = None
    mixture = run.experiment.components
    if components is not None and mixture is not None and mixture.dim == dataset.dim:
        starts = Starts(prior=mixture, components=components, labels_per_class=c.labels_per_class)
    result: Mapping[str, Any] = evaluation.evaluate(
        samples,
        prior,
        dataset,
        classifier=classifier,
        starts=starts,
        seed=c.seed,
        max_points=max_points or c.max_points,
    )
    units = "of the data" if frame is None else "standard deviations of each feature of the data"
    return {"units": units, **result}
