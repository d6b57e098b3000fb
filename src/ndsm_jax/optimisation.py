"""One update of parameters, for score networks, eps networks, autoencoders and classifiers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class Descended(NamedTuple):
    """What `descend` did: new parameters and moments; loss, its by-products and gradient before."""

    params: Any
    moments: Any
    loss: Array
    aux: Any
    gradient: Any


def descend(
    loss: Callable[[Any], Any],
    params: Any,
    moments: Any,
    transform: optax.GradientTransformation,
    *,
    has_aux: bool = False,
) -> Descended:
    """One step of an optimiser against the gradient of loss(params).

    Args:
      loss: params -> a scalar, or with `has_aux` (a scalar, by-products).
      params: a pytree.
      moments: the state of the optimiser.
      transform: the optimiser.
      has_aux: as in `jax.grad`.
    """
    value, gradient = jax.value_and_grad(loss, has_aux=has_aux)(params)
    value, aux = value if has_aux else (value, None)
    updates, moments = transform.update(gradient, moments, params)
    params = optax.apply_updates(params, updates)
    return Descended(params=params, moments=moments, loss=value, aux=aux, gradient=gradient)


def averaged(ema: Any, params: Any, decay: float, step: Array) -> Any:
    """The running average of the parameters after a step (from 0): a pytree like params.

    The decay is at most `decay`, and rises to it as (1 + step) / (10 + step): the average forgets
    the initialisation while training is young.
    """
    share = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, 1 - share)


@partial(
    jax.tree_util.register_dataclass, data_fields=(), meta_fields=("transform", "ema_decay", "name")
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How a score network's parameters move (all static).

    Attributes:
      transform: of the gradient.
      ema_decay: of the average of the parameters, per step.
      name: what it is and with which numbers, by which a resumed run knows its own.
    """

    transform: optax.GradientTransformation
    ema_decay: float = 0.999
    name: str = "own"


@functools.cache  # so that equal optimisers are the same, to compiled code
def adam(
    learning_rate: float = 1e-3,
    *,
    cosine_steps: int = 0,
    warmup_steps: int = 0,
    clip_norm: float = 0.0,
    accumulate: int = 1,
    ema_decay: float = 0.999,
) -> Optimiser:
    """Adam with what a score network usually needs.

    Args:
      learning_rate: at its peak.
      cosine_steps: training steps over which it decays to 0 along a cosine; 0: it stays.
      warmup_steps: optimiser updates over which it rises linearly.
      clip_norm: largest global norm of the gradient; 0: any.
      accumulate: training steps whose gradients are averaged into one update.
      ema_decay: of the average of the parameters.
    """
    numbers = (learning_rate, cosine_steps, warmup_steps, clip_norm, accumulate)
    schedule = optax.constant_schedule(learning_rate)
    if cosine_steps:
        updates = max(1, cosine_steps // accumulate)
        schedule = optax.cosine_decay_schedule(learning_rate, max(1, updates - warmup_steps))
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    transform = optax.chain(clip, optax.adam(schedule))
    if accumulate > 1:
        transform = optax.MultiSteps(transform, accumulate).gradient_transformation()
    return Optimiser(transform=transform, ema_decay=ema_decay, name=f"adam{numbers}")
