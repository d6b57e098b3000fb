"""Training steps: one, and compiled dispatches of many."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ndsm_jax import parallel
from ndsm_jax.conditions import dropped, joined
from ndsm_jax.experiment import Experiment
from ndsm_jax.noising import NoisedBatch
from ndsm_jax.optimisation import averaged, descend
from ndsm_jax.training.state import (
    STREAM_DROPOUT,
    STREAM_NOISE,
    STREAM_PROBES,
    STREAM_STEPS,
    TrainState,
)


def train_step(
    experiment: Experiment, state: TrainState, key: Array, batch: NoisedBatch
) -> tuple[TrainState, dict[str, Array]]:
    """One step of 2405.15625, Algorithm 1, for any objective: (state, metrics) from noised data.

    The key is that of the step. A network that leaves out activations leaves out the same ones in
    all of the scores of a theta-update, so that their differences are of one network.

    The theta-update uses eps(t) of the state. For an objective with a control variate, the products
    of per-sample gradients, at the updated theta as in the paper, update it every
    `Estimator.period` steps, and give an estimate of one sample's gradient variance (NaN
    otherwise); nothing is left out there.
    """
    model, control = experiment.model, experiment.control
    eps = control.eps(state.control, batch.t)
    dropout = jax.random.fold_in(key, STREAM_DROPOUT)

    def terms(params: Any, batch: NoisedBatch, dropout: Array | None = None) -> tuple[Array, Array]:
        score = model.bind(params, batch.condition, dropout)
        loss, control = experiment.objective.terms(score, batch)
        return loss, jnp.zeros_like(loss) if control is None else control

    def mean_loss(params: Any) -> Array:
        loss, control = terms(params, batch, dropout)
        return jnp.mean(loss + eps * control)

    optimiser = experiment.optimiser
    done = descend(mean_loss, state.params, state.opt_state, optimiser.transform)
    ema, *others = (
        averaged(average, done.params, decay, state.step)
        for average, decay in zip((state.ema, *state.others), optimiser.ema_decays, strict=True)
    )

    def update_control(_: None) -> tuple[Any, Array]:
        probes = jax.random.fold_in(key, STREAM_PROBES)
        products = experiment.estimator.products(probes, terms, done.params, batch)
        return control.update(state.control, batch.t, products), products.gradient_variance(eps)

    control_state, variance = state.control, jnp.float32(jnp.nan)
    if experiment.objective.controlled:
        control_state, variance = jax.lax.cond(
            (state.step + 1) % experiment.estimator.period == 0,
            update_control,
            lambda _: (control_state, variance),
            None,
        )
    metrics = {
        "loss": done.loss,
        "grad_norm": optax.global_norm(done.gradient),
        "grad_variance": variance,
        "eps_mean": jnp.mean(eps),
        "eps_max": jnp.max(jnp.abs(eps)),
    }
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=done.params,
        ema=ema,
        others=tuple(others),
        opt_state=done.moments,
        control=control_state,
    )
    return state, metrics


METRICS = ("loss", "grad_norm", "grad_variance", "eps_mean", "eps_max")
"""What `train_step` measures, one scalar each."""

MAX_AHEAD = 64
"""Minibatches noised in one dispatch at most: beyond, there is no latency left to save."""


def noised(experiment: Experiment, key: Array, x: Array, condition: Any = None) -> NoisedBatch:
    """Prepared data [B, m], entered into their frame and noised: `NoisedBatch`, [B, k] states.

    They are augmented first, if the experiment does. With the condition [B, ...] that the network
    is told, of a share `Experiment.dropout` of the items nothing.
    """
    if experiment.augment is not None:
        key, augment_key = jax.random.split(key)
        x = experiment.augment(augment_key, x)
    # A frame that draws nothing leaves the key to the noise.
    frame_key, key = jax.random.split(key) if experiment.frame.random else (key, key)
    y, of_frame = experiment.frame.enter(frame_key, x)
    if condition is not None and experiment.dropout:
        key, drop_key = jax.random.split(key)
        condition = dropped(drop_key, condition, experiment.dropout)
    batch = experiment.noising(key, y)
    condition = jax.tree.map(lambda c: c[:, None], joined(of_frame, condition))
    return dataclasses.replace(batch, condition=condition)


def noised_shapes(experiment: Experiment, width: int, batch_size: int) -> NoisedBatch:
    """`noised` of prepared data [batch_size, width], as shapes and types."""
    x = jax.ShapeDtypeStruct((batch_size, width), np.float32)
    condition = jax.tree.map(
        lambda c: jax.ShapeDtypeStruct((batch_size, *c.shape[1:]), c.dtype),
        experiment.model.condition,
    )
    key = jax.random.key(0)
    return jax.eval_shape(lambda x, c: noised(experiment, key, x, c), x, condition)


def minibatches_ahead(experiment: Experiment, x: np.ndarray, batch_size: int, mb: float) -> int:
    """How many minibatches of prepared data x [N, m] are noised in one dispatch: what `mb` hold."""
    batch = noised_shapes(experiment, x.shape[1], batch_size)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return int(np.clip(mb * 1e6 / size, 1, MAX_AHEAD))


NoiseFn = Callable[..., NoisedBatch]


def make_noise(seed: int, *, stream: int = STREAM_STEPS) -> NoiseFn:
    """Compiles (experiment, x [A, B, m], step) -> NoisedBatch of fields [A, ...].

    x are the minibatches of prepared data of A steps, from `step` on. A fourth argument is what the
    network is told of them, a pytree of [A, B, ...].

    Noising does not depend on theta, so that all of them are noised at once: on a GPU, and for
    small states, its cost is latency. Each has the key of its own step.
    """
    root = parallel.replicated(jax.random.fold_in(jax.random.key(seed), stream))
    return partial(_noise_to(parallel.by_rows(1)), root)


# Compiled once for all trainings of experiments that differ in arrays, seeds and data alone.
@functools.cache
def _noise_to(where: Any) -> Callable[..., NoisedBatch]:
    return jax.jit(_noise, out_shardings=where)


def _noise(
    root: Array,
    experiment: Experiment,
    x: Array,
    step: Array,
    condition: Any = None,
) -> NoisedBatch:
    steps = step + jnp.arange(x.shape[0])
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(root, n), STREAM_NOISE))
    return jax.vmap(partial(noised, experiment))(keys(steps), x, condition)


DispatchFn = Callable[
    [TrainState, Experiment, NoisedBatch, int, int], tuple[TrainState, dict[str, Any]]
]


def make_dispatch(seed: int, *, on_host: bool = False, where: Any = None) -> DispatchFn:
    """Compiles (state, experiment, noised [A, ...], first, num) -> (state, metrics [A]).

    Runs `num` training steps on the minibatches from `first` on, without returning to the host.
    Both are arguments of the loop, so any number of steps runs the same code: one trace, and
    results that do not depend on how a run was cut into dispatches. The state is donated. The
    experiment's arrays are arguments, not constants of the program.

    With `on_host` the steps are called from the host, one by one: see `steps_on_host`. `where` is
    the place of the state's arrays on several devices, `parallel.shardings` of it.
    """
    root = parallel.replicated(jax.random.fold_in(jax.random.key(seed), STREAM_STEPS))
    leaves, structure = jax.tree.flatten(where)
    compiled = _compiled(_step if on_host else _run, structure, tuple(leaves))
    return partial(_one_by_one, compiled, root) if on_host else partial(compiled, root)


@functools.cache
def _compiled(function: Callable[..., Any], structure: Any, leaves: tuple[Any, ...]) -> Any:
    state, metrics = jax.tree.unflatten(structure, leaves), parallel.everywhere()
    return jax.jit(function, donate_argnums=1, out_shardings=(state, metrics))


def _step(
    root: Array, state: TrainState, experiment: Experiment, ahead: NoisedBatch, index: Array
) -> Any:
    batch = jax.tree.map(lambda x: x[index], ahead)
    return train_step(experiment, state, jax.random.fold_in(root, state.step), batch)


def _run(
    root: Array,
    state: TrainState,
    experiment: Experiment,
    ahead: NoisedBatch,
    first: Array,
    num: Array,
) -> Any:
    def body(i: Array, carry: Any) -> Any:
        state, metrics = carry
        state, now = _step(root, state, experiment, ahead, first + i)
        return state, {name: metrics[name].at[i].set(now[name]) for name in METRICS}

    metrics = {name: jnp.full(ahead.t.shape[0], jnp.nan, jnp.float32) for name in METRICS}
    return jax.lax.fori_loop(0, num, body, (state, metrics))


def _one_by_one(
    step: Callable[..., Any],
    root: Array,
    state: TrainState,
    experiment: Experiment,
    ahead: NoisedBatch,
    first: int,
    num: int,
) -> Any:
    done = []
    for index in range(first, first + num):
        state, now = step(root, state, experiment, ahead, index)
        done.append(now)
    return state, {name: jnp.stack([now[name] for now in done]) for name in METRICS}


def steps_on_host(network: Any) -> bool:
    """Whether a network's training steps are best called from the host.

    Convolutional networks on the CPU: XLA compiles the weight gradient of a convolution some thirty
    times slower inside a loop (jax issue 12868), and their steps are long enough not to mind. For
    the same reason their control variate wants the estimator probes, not exact. A network says so
    by an attribute `convolutional`.
    """
    return getattr(network, "convolutional", False) and jax.default_backend() == "cpu"
