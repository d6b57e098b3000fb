"""What changes in training, and the streams of randomness."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.experiment import Experiment

# Streams folded into a root key: of a training's seed the first two, of samples' seed the others.
STREAM_INIT, STREAM_STEPS, STREAM_SAMPLES, STREAM_PRIOR, STREAM_PICTURE = range(5)
# Streams folded into a step's key.
STREAM_NOISE, STREAM_PROBES = range(2)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "params", "ema", "opt_state", "control"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that changes in training; with experiment, data and seed it determines the rest of it.

    Attributes:
      step: steps done (int32 scalar).
      params: theta.
      ema: running average of theta, started at theta.
      opt_state: of theta.
      control: state of the control variate (phi and its optimiser, or the closed form's sums).
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    control: Any


def init_state(experiment: Experiment, *, seed: int) -> TrainState:
    """The state before the first step, a function of the seed alone."""
    key = jax.random.fold_in(jax.random.key(seed), STREAM_INIT)
    key_params, key_control = jax.random.split(key)
    params = experiment.model.init(key_params)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # its own buffers, as both are donated
        opt_state=experiment.optimiser.transform.init(params),
        control=experiment.control.init(key_control),
    )
