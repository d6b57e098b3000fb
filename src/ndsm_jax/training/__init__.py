"""Training of score networks, and samples of them: functions of an `Experiment`."""

from ndsm_jax.training import memory
from ndsm_jax.training.draw import draw, draw_components, draw_labels, draw_prior
from ndsm_jax.training.held_out import MINIBATCHES, TIME_BINS, HeldOut, verdict
from ndsm_jax.training.likelihood import (
    check_density,
    log_prob,
    log_prob_of_states,
    prior_log_prob,
)
from ndsm_jax.training.state import STREAM_PICTURE, Best, TrainState, init_state
from ndsm_jax.training.step import (
    METRICS,
    make_dispatch,
    make_noise,
    minibatches_ahead,
    noised,
    noised_shapes,
    steps_on_host,
    train_step,
)
from ndsm_jax.training.train import default_run, train

__all__ = [
    "METRICS",
    "MINIBATCHES",
    "STREAM_PICTURE",
    "TIME_BINS",
    "Best",
    "HeldOut",
    "TrainState",
    "check_density",
    "default_run",
    "draw",
    "draw_components",
    "draw_labels",
    "draw_prior",
    "init_state",
    "log_prob",
    "log_prob_of_states",
    "make_dispatch",
    "make_noise",
    "memory",
    "minibatches_ahead",
    "noised",
    "noised_shapes",
    "prior_log_prob",
    "steps_on_host",
    "train",
    "train_step",
    "verdict",
]
