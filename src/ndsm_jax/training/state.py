"""What changes in training, and the streams of randomness."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import FLAG, SEEDS, arguments
from ndsm_jax.experiment import Experiment

# Streams folded into a root key: of a training's seed, and of that of samples and densities.
STREAM_INIT, STREAM_STEPS, STREAM_HELD_OUT = 0, 1, 5
STREAM_SAMPLES, STREAM_PRIOR, STREAM_PICTURE, STREAM_LIKELIHOOD = 2, 3, 4, 6
STREAM_LABELS = 7
# Streams folded into a step's key.
STREAM_NOISE, STREAM_PROBES, STREAM_DROPOUT = range(3)


@partial(jax.tree_util.register_dataclass, data_fields=("params", "loss", "step"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The average of the parameters that was best on held-out data, see `training.HeldOut`.

    Attributes:
      params: the average.
      loss: held out (scalar); infinite before the first look.
      step: after which it was the average (int32 scalar).
    """

    params: Any
    loss: Array
    step: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "params", "ema", "others", "opt_state", "control", "best"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that changes in training; with experiment, data and seed it determines the rest of it.

    Attributes:
      step: steps done (int32 scalar).
      params: theta.
      ema: running average of theta, started at theta.
      others: the averages with the further decays of the optimiser.
      opt_state: of theta.
      control: state of the control variate (phi and its optimiser, or the closed form's sums).
      best: the average to sample with, where it is chosen on held-out data; else None.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    control: Any
    others: tuple[Any, ...] = ()
    best: Best | None = None

    @property
    def chosen(self) -> Any:
        """The average of the parameters to sample with: the best one, or the last."""
        return self.ema if self.best is None else self.best.params


@arguments(experiment=Experiment, seed=SEEDS, select=FLAG)
def init_state(experiment: Experiment, *, seed: int, select: bool = False) -> TrainState:
    """The state before the first step, a function of the seed alone.

    select: whether the average to sample with will be chosen on held-out data.
    """
    key = jax.random.fold_in(jax.random.key(seed), STREAM_INIT)
    key_params, key_control = jax.random.split(key)
    params = experiment.model.init(key_params)
    copy = partial(jax.tree.map, jnp.copy)  # buffers of their own, as all are donated
    best = Best(params=copy(params), loss=jnp.float32(jnp.inf), step=jnp.int32(0))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=copy(params),
        others=tuple(copy(params) for _ in experiment.optimiser.ema_decays[1:]),
        opt_state=experiment.optimiser.transform.init(params),
        control=experiment.control.init(key_control),
        best=best if select else None,
    )
