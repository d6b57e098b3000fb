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
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Frame
from ndsm_jax.guidance import Reconstruction
from ndsm_jax.measurements import Measurement
from ndsm_jax.references import conditional
from ndsm_jax.sampling import Sampler, check_components, sample, start_components
from ndsm_jax.training.state import STREAM_PRIOR, STREAM_SAMPLES, TrainState

logger = logging.getLogger(__name__)


def draw(
    experiment: Experiment,
    state: TrainState,
    num: int,
    *,
    seed: int = 0,
    components: np.ndarray | None = None,
    measurement: Measurement | None = None,
    guidance: Callable[..., Sampler] = Reconstruction,
    ema: bool = True,
    chunk: int = 500,
    stream: int = STREAM_SAMPLES,
    progress: bool = True,
) -> np.ndarray:
    """`num` samples [num, D] of a trained model, in the coordinates of the data.

    With a measurement they are samples given it, and coordinates that it has exactly are exact. A
    frame of components draws each sample's component given its measurement, by the mixture.

    Args:
      experiment: its parts.
      state: of its training.
      num: how many.
      seed: of the samples; sample i depends on it, i and its component alone.
      components: of the mixture to start from, integers [num]; by default those of
        `draw_components`.
      measurement: what is known of the samples, in the coordinates of the data; one row a sample,
        or one for all. See `measurements.given` and `measurements.linear`.
      guidance: how samples are drawn given it, a constructor from `guidance`, with its options:
        `functools.partial(Twisted, particles=64)`.
      ema: whether to use the average of the parameters.
      chunk: samples (particles) in memory at a time.
      stream: of randomness.
      progress: whether to show a progress bar, and to log the evaluations of the network.

    Raises:
      ValueError: components where there are none, or that do not exist; num or chunk below 1; a
        measurement that is not of the data, that the frame cannot translate, or that the guidance
        does not serve.
    """
    mixture = experiment.components
    if components is not None and mixture is None:
        raise ValueError(
            f"samples of process {experiment.process.name!r} start from a reference that has no"
            " components"
        )
    frame, sampler = experiment.frame, experiment.sampler
    in_frame = frames.component_mixture(frame) is not None
    if measurement is not None:
        measurement = _checked(frame, measurement).of(num)
    if in_frame and components is None:
        log_weights = None
        if measurement is not None and mixture is not None:
            outer = frames.outside(frame).measured(measurement, None)
            log_weights = conditional(mixture, outer).log_weights
        components = draw_components(
            experiment, num, seed=seed, log_weights=log_weights, stream=stream
        )
    if in_frame:
        assert mixture is not None
        check_components(np.asarray(components), num, mixture.num_components)
    if measurement is not None:
        sampler = guidance(sampler=sampler, measurement=frame.measured(measurement, components))
    counts: list[float] = []
    with tqdm(total=num, desc="sampling", unit=" samples", disable=not progress) as bar:

        def on_chunk(done: int, evaluations: float) -> None:
            counts.append(evaluations)
            bar.update(done - bar.n)

        y = sample(
            jax.random.fold_in(jax.random.key(seed), stream),
            experiment.model.bind(state.chosen if ema else state.params),
            experiment.process,
            num,
            grid=experiment.sample_grid,
            sampler=sampler,
            components=None if in_frame else components,
            condition=jnp.asarray(components, jnp.int32) if in_frame else None,
            chunk=chunk,
            on_chunk=on_chunk,
        )
    if progress:
        name = type(sampler).__name__
        logger.info("%s: %.4g evaluations of the score a sample", name, np.mean(counts))
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


def draw_components(
    experiment: Experiment,
    num: int,
    *,
    seed: int = 0,
    log_weights: np.ndarray | None = None,
    stream: int = STREAM_SAMPLES,
) -> np.ndarray:
    """Components [num] from which `draw` starts; by `log_weights` [K] or [num, K] if given.

    Raises:
      ValueError: the samples start from a reference without components.
    """
    mixture = experiment.components
    if mixture is None:
        raise ValueError(
            f"the reference of process {experiment.process.name!r} has no components to choose from"
        )
    weights = mixture.log_weights if log_weights is None else jnp.asarray(log_weights)
    key = jax.random.fold_in(jax.random.key(seed), stream)
    index = jnp.arange(num, dtype=jnp.uint32)
    return np.asarray(start_components(key, index, weights))


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
