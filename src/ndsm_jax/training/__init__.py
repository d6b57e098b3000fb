"""Training of score networks, and samples of them: functions of an `Experiment`."""

from ndsm_jax.training.draw import draw, draw_components, draw_prior
from ndsm_jax.training.state import STREAM_PICTURE, TrainState, init_state
from ndsm_jax.training.step import (
    METRICS,
    make_dispatch,
    make_noise,
    minibatches_ahead,
    noised,
    steps_on_host,
    train_step,
)
from ndsm_jax.training.train import default_run, train

__all__ = [
    "METRICS",
    "STREAM_PICTURE",
    "TrainState",
    "default_run",
    "draw",
    "draw_components",
    "draw_prior",
    "init_state",
    "make_dispatch",
    "make_noise",
    "minibatches_ahead",
    "noised",
    "steps_on_host",
    "train",
    "train_step",
]
