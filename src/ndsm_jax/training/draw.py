"""Samples of a trained model, in the coordinates of the data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ndsm_jax import frames
from ndsm_jax.checks import CONSTRUCTOR, COUNT, FLAG, SEEDS, arguments
from ndsm_jax.conditions import joined
from ndsm_jax.contrast import Contrast
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Frame
from ndsm_jax.guidance import Reconstruction
from ndsm_jax.measurements import Measurement
from ndsm_jax.references import conditional
from ndsm_jax.sampling import Sampler, check_components, sample, start_components
from ndsm_jax.training.state import STREAM_LABELS, STREAM_PRIOR, STREAM_SAMPLES, TrainState

logger = logging.getLogger(__name__)


@arguments(
    experiment=Experiment,
    state=TrainState,
    num=COUNT,
    seed=SEEDS,
    components="integers [...]",
    guidance=CONSTRUCTOR,
    contrast=Contrast,
    ema=FLAG,
    chunk=COUNT,
    stream=SEEDS,
    progress=FLAG,
)
def draw(
    experiment: Experiment,
    state: TrainState,
    num: int,
    *,
    seed: int = 0,
    components: np.ndarray | None = None,
    condition: Any = None,
    measurement: Measurement | None = None,
    guidance: Callable[..., Sampler] = Reconstruction,
    contrast: Contrast | None = None,
    ema: bool = True,
    chunk: int = 500,
    stream: int = STREAM_SAMPLES,
    progress: bool = True,
) -> np.ndarray:
    """`num` samples [num, D] of a trained model, in the coordinates of the data.

    With a measurement they are samples given it, and coordinates that it has exactly are exact. A
    frame of components draws each sample's component given its measurement, by the mixture.

    Where the network is told labels, each sample has one, of `draw_labels` by default, and starts
    in a component of those in which the training items of its class are.

    Args:
      experiment: its parts.
      state: of its training.
      num: how many.
      seed: of the samples; sample i depends on it, i and its component alone.
      components: of the mixture to start from, integers [num]; by default those of
        `draw_components`.
      condition: what the network is told of each sample, a pytree of [num, ...], see `conditions`.
      measurement: what is known of the samples, in the coordinates of the data; one row a sample,
        or one for all. See `measurements.given` and `measurements.linear`.
      guidance: how samples are drawn given it, a constructor from `guidance`, with its options:
        `functools.partial(Twisted, particles=64)`.
      contrast: guides the samples away from a weaker score: that which is not told the condition,
        or that of another model.
      ema: whether to use the average of the parameters.
      chunk: samples (particles) in memory at a time.
      stream: of randomness.
      progress: whether to show a progress bar, and to log the evaluations of the network.

    Raises:
      ValueError: components where there are none, or that do not exist; num or chunk below 1; a
        condition that is not that of the experiment, or none where it has no labels; a measurement
        that is not of the data, that the frame cannot translate, or that the guidance does not
        serve; a contrast to a score without the condition, where there is none.
    """
    mixture = experiment.components
    if components is not None and mixture is None:
        raise ValueError(
            f"samples of process {experiment.process.name!r} start from a reference that has no"
            " components"
        )
    frame, sampler = experiment.frame, experiment.sampler
    in_frame = frames.component_mixture(frame) is not None
    if mixture is not None and components is not None:
        check_components(np.asarray(components), num, mixture.num_components)
    if measurement is not None:
        measurement = _checked(frame, measurement).of(num)
    contrast = _checked_contrast(experiment, contrast or Contrast())
    if condition is None and experiment.classes is not None:
        condition = draw_labels(experiment, num, seed=seed, components=components, stream=stream)
    condition = experiment.checked("draw", condition, num)
    of_class = _class_log_weights(experiment, condition)
    if components is None and (in_frame or of_class is not None):
        log_weights = of_class
        if measurement is not None and mixture is not None:
            outer = frames.outside(frame).measured(measurement, None)
            log_weights = conditional(mixture, outer).log_weights
            if of_class is not None:  # what is measured tells of the class by the component alone
                log_weights = log_weights + of_class - mixture.log_weights[None]
        components = draw_components(
            experiment, num, seed=seed, log_weights=log_weights, stream=stream
        )
    if measurement is not None:
        sampler = guidance(sampler=sampler, measurement=frame.measured(measurement, components))
        if sampler.particles > 1 and of_class is not None and not in_frame:
            raise ValueError(
                f"{type(sampler).__name__}: particles start in components by the measurement alone,"
                " and samples of a class in those of the class; choose guidance=reconstruction"
            )
    counts: list[float] = []
    with tqdm(total=num, desc="sampling", unit=" samples", disable=not progress) as bar:

        def on_chunk(done: int, evaluations: float) -> None:
            counts.append(evaluations)
            bar.update(done - bar.n)

        y = sample(
            jax.random.fold_in(jax.random.key(seed), stream),
            contrast(
                experiment.model.bind(state.chosen if ema else state.params), experiment.process
            ),
            experiment.process,
            num,
            grid=experiment.sample_grid,
            sampler=sampler,
            components=None if in_frame else components,
            condition=joined(np.asarray(components, np.int32) if in_frame else None, condition),
            chunk=chunk,
            on_chunk=on_chunk,
        )
    if progress:
        name = type(sampler).__name__
        of = "score" if contrast.off else "guided score, which is made of two,"
        logger.info("%s: %.4g evaluations of the %s a sample", name, np.mean(counts), of)
    x = frame.leave(y, components)
    return x if measurement is None else measurement.put(x)


def _checked(frame: Frame, measurement: Measurement) -> Measurement:
    """Raises ValueError for a measurement of points of another width than that of the data."""
    if frame.data_dim not in (None, measurement.dim):
        raise ValueError(
            f"measurement: of {measurement.dim} coordinates, and items of the data have"
            f" {frame.data_dim}"
        )
    return measurement


def _checked_contrast(experiment: Experiment, contrast: Contrast) -> Contrast:
    """Raises ValueError for a contrast to the score without the condition where there is none."""
    if contrast.off or contrast.weaker is not None:
        return contrast
    if experiment.model.condition is None or not experiment.dropout:
        told = "network.label_dropout is 0, so that it was never trained without labels"
        why = "the network is told no labels" if experiment.model.condition is None else told
        raise ValueError(
            f"sample.guidance_scale={contrast.scale:g} guides away from the score without a label,"
            f" and {why}; set it to 1, train with network.condition=label and"
            " network.label_dropout=0.1, or guide away from a weaker model (--autoguide)"
        )
    return contrast


def _class_log_weights(experiment: Experiment, labels: Any) -> jax.Array | None:
    """Log P(component | class) of each sample, [num, K]; None where classes do not say."""
    classes = experiment.classes
    if labels is None or classes is None or classes.log_weights is None:
        return None
    return classes.start_log_weights(labels)


@arguments(experiment=Experiment, num=COUNT, seed=SEEDS)
def draw_labels(
    experiment: Experiment,
    num: int,
    *,
    seed: int = 0,
    components: np.ndarray | None = None,
    stream: int = STREAM_SAMPLES,
) -> np.ndarray:
    """Labels [num] of the samples of `draw`, int32: by the shares of the classes in training.

    components: in which the samples start, by the shares in whose training items then.

    Raises:
      ValueError: there are no classes.
    """
    if experiment.classes is None:
        raise ValueError(
            "draw: the shares of classes are not known; give a condition, or"
            " experiment(..., classes=conditioning.classes(labels, num_classes))"
        )
    log_shares = jnp.log(experiment.classes.shares)
    if components is not None:
        log_shares = experiment.classes.of_components(components)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), STREAM_LABELS)
    return np.asarray(start_components(key, jnp.arange(num, dtype=jnp.uint32), log_shares))


@arguments(experiment=Experiment, num=COUNT, seed=SEEDS)
def draw_components(
    experiment: Experiment,
    num: int,
    *,
    seed: int = 0,
    condition: Any = None,
    log_weights: Any = None,
    stream: int = STREAM_SAMPLES,
) -> np.ndarray:
    """Components [num] from which `draw` starts; by `log_weights` [K] or [num, K] if given.

    condition: labels [num] of the samples, where the network is told labels.

    Raises:
      ValueError: the samples start from a reference without components.
    """
    mixture = experiment.components
    if mixture is None:
        raise ValueError(
            f"the reference of process {experiment.process.name!r} has no components to choose from"
        )
    weights = _class_log_weights(experiment, condition) if log_weights is None else log_weights
    weights = mixture.log_weights if weights is None else jnp.asarray(weights)
    key = jax.random.fold_in(jax.random.key(seed), stream)
    index = jnp.arange(num, dtype=jnp.uint32)
    return np.asarray(start_components(key, index, weights))


@arguments(experiment=Experiment, num=COUNT, seed=SEEDS)
def draw_prior(experiment: Experiment, num: int, *, seed: int = 0) -> np.ndarray:
    """`num` draws [num, D] of the law that sampling starts from, as data."""
    key = jax.random.fold_in(jax.random.key(seed), STREAM_PRIOR)
    mixture = frames.component_mixture(experiment.frame)
    if mixture is None:
        y = np.asarray(experiment.process.reference.sample(key, (num,)))
        return experiment.frame.leave(y, None)
    key_component, key_noise = jax.random.split(key)
    component: Any = jax.random.categorical(key_component, mixture.log_weights, shape=(num,))
    y = np.asarray(jax.random.normal(key_noise, (num, mixture.dim)))
    return experiment.frame.leave(y, np.asarray(component))
