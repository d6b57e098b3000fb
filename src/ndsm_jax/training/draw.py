"""Samples of a trained model, in the coordinates of the data."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ndsm_jax import frames
from ndsm_jax.experiment import Experiment
from ndsm_jax.sampling import check_components, sample, start_components
from ndsm_jax.training.state import STREAM_PRIOR, STREAM_SAMPLES, TrainState

logger = logging.getLogger(__name__)


def draw(
    experiment: Experiment,
    state: TrainState,
    num: int,
    *,
    seed: int = 0,
    components: np.ndarray | None = None,
    ema: bool = True,
    chunk: int = 500,
    stream: int = STREAM_SAMPLES,
    progress: bool = True,
) -> np.ndarray:
    """`num` samples [num, D] of a trained model, in the coordinates of the data.

    Args:
      experiment: its parts.
      state: of its training.
      num: how many.
      seed: of the samples; sample i depends on it, i and its component alone.
      components: of the mixture to start from, integers [num]; by default those of
        `draw_components`.
      ema: whether to use the average of the parameters.
      chunk: samples in memory at a time.
      stream: of randomness.
      progress: whether to show a progress bar, and to log the evaluations of the network.

    Raises:
      ValueError: components where there are none, or that do not exist; num or chunk below 1.
    """
    mixture = experiment.components
    if components is not None and mixture is None:
        raise ValueError(
            f"samples of process {experiment.process.name!r} start from a reference that has no"
            " components"
        )
    in_frame = frames.component_mixture(experiment.frame) is not None
    if in_frame and components is None:
        components = draw_components(experiment, num, seed=seed, stream=stream)
    if in_frame:
        assert mixture is not None
        check_components(np.asarray(components), num, mixture.num_components)
    counts: list[float] = []
    with tqdm(total=num, desc="sampling", unit=" samples", disable=not progress) as bar:

        def on_chunk(done: int, evaluations: float) -> None:
            counts.append(evaluations)
            bar.update(done - bar.n)

        y = sample(
            jax.random.fold_in(jax.random.key(seed), stream),
            experiment.model.bind(state.ema if ema else state.params),
            experiment.process,
            num,
            grid=experiment.sample_grid,
            sampler=experiment.sampler,
            components=None if in_frame else components,
            condition=jnp.asarray(components, jnp.int32) if in_frame else None,
            chunk=chunk,
            on_chunk=on_chunk,
        )
    if progress:
        name = type(experiment.sampler).__name__
        logger.info("%s: %.4g evaluations of the score a sample", name, np.mean(counts))
    return experiment.frame.leave(y, components)


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
