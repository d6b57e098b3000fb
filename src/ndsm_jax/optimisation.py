"""One update of parameters, for score networks, eps networks, autoencoders and classifiers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ndsm_jax.checks import COUNT, arguments, number, whole


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


OWN = "own"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(),
    meta_fields=("transform", "ema_decays", "name"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How a score network's parameters move (all static).

    Attributes:
      transform: of the gradient.
      ema_decays: of the averages of the parameters, per step. Samples are made with the first one,
        unless the best is chosen on held-out data (`training.HeldOut`).
      name: what it is and with which numbers, by which a resumed run knows its own; `OWN`: by what
        the transform does.

    Raises ValueError for averages that are none.
    """

    transform: optax.GradientTransformation
    ema_decays: tuple[float, ...] = (0.999,)
    name: str = OWN

    def __post_init__(self) -> None:
        decays = self.ema_decays
        if not isinstance(decays, tuple) or not decays or not all(0 <= d < 1 for d in decays):
            raise ValueError(
                f"Optimiser: ema_decays={decays!r} has to be a tuple of numbers from 0 to below 1"
            )


def _dimensions(params: Any) -> Any:
    """Which axes of a kernel are those of a matrix [inputs, outputs]; None: of no matrix."""

    def of(path: Any, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        if leaf.ndim < 2 or getattr(path[-1], "key", None) != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(of, params)


def muon(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Momentum made orthogonal for kernels, as matrices [inputs, outputs] (Jordan et al., 2024).

    NAdamW for the rest. The orthogonal step is scaled to the root mean square of Adam's, 0.2
    (2502.16982), so that both have one learning rate.
    """
    return optax.contrib.muon(
        learning_rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=_dimensions,
        consistent_rms=0.2,
    )


OPTIMISERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "muon": muon,
}
"""Learning rate, and a weight decay where the signature has one, to an optimiser."""

LEARNING_RATES = ("constant", "cosine", "inverse_sqrt")
"""The learning rate after the warm-up: its peak; down to 0; EDM2's (2312.02696, Section 2.3)."""


def learning_rates(
    kind: str, peak: float, *, warmup: int = 0, updates: int = 0, start: int = 1000
) -> optax.Schedule:
    """The learning rate of update n = 0, 1, ...: it rises linearly over `warmup` of them, and then

    constant: stays at the peak; cosine: peak (1 + cos(pi m / M)) / 2 with m = n - warmup and
    M = updates - warmup; inverse_sqrt: peak / sqrt(max(n / start, 1)), which needs no end.

    Raises:
      ValueError: an unknown kind, or a cosine without an end after the warm-up.
    """
    if kind not in LEARNING_RATES:
        raise ValueError(f"optimizer.schedule={kind!r}: choose one of {', '.join(LEARNING_RATES)}")
    if kind == "cosine" and updates <= warmup:
        raise ValueError(
            f"optimizer.schedule='cosine': {updates} updates do not outlast a warm-up of {warmup};"
            " give more (steps) or lower optimizer.warmup_steps"
        )
    if kind == "cosine":
        after = optax.cosine_decay_schedule(peak, updates - warmup)
    elif kind == "inverse_sqrt":
        after = lambda m: peak / jnp.sqrt(jnp.maximum((m + warmup) / start, 1.0))  # noqa: E731
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


@arguments(
    learning_rate=number(low=0),
    weight_decay=number(low=0),
    steps=whole(),
    warmup_steps=whole(),
    decay_start=COUNT,
    clip_norm=number(low=0),
    accumulate=COUNT,
)
def make_optimiser(
    name: str = "adam",
    learning_rate: float = 1e-3,
    *,
    weight_decay: float = 0.0,
    schedule: str = "constant",
    steps: int = 0,
    warmup_steps: int = 0,
    decay_start: int = 1000,
    clip_norm: float = 0.0,
    accumulate: int = 1,
    ema_decay: float | Sequence[float] = 0.999,
) -> Optimiser:
    """An optimiser with what a score network usually needs.

    Args:
      name: a key of `OPTIMISERS`.
      learning_rate: at its peak.
      weight_decay: every update takes this share of the learning rate from all parameters, biases
        and scales included: towards a network that is zero, and a residual score that is that of
        the reference.
      schedule: see `LEARNING_RATES`.
      steps: training steps in all, after which a cosine ends.
      warmup_steps: optimiser updates over which the learning rate rises linearly.
      decay_start: updates after which inverse_sqrt falls.
      clip_norm: largest global norm of the gradient; 0: any.
      accumulate: training steps whose gradients are averaged into one update.
      ema_decay: of the average of the parameters, or of several, see `Optimiser`.

    Raises:
      ValueError: an unknown name, a weight decay that it does not have, numbers out of range, more
        steps to an update than there are, or as `learning_rates`.
    """
    if 0 < steps < accumulate:
        raise ValueError(
            f"optimizer.accumulate={accumulate} steps make an update, and there are {steps}: lower"
            " it, or take more steps"
        )
    return _made(
        name,
        learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        steps=steps,
        warmup_steps=warmup_steps,
        decay_start=decay_start,
        clip_norm=clip_norm,
        accumulate=accumulate,
        ema_decays=tuple(ema_decay) if isinstance(ema_decay, Sequence) else (ema_decay,),
    )


@functools.cache  # so that equal optimisers are the same, to compiled code
def _made(
    name: str,
    learning_rate: float,
    *,
    weight_decay: float,
    schedule: str,
    steps: int,
    warmup_steps: int,
    decay_start: int,
    clip_norm: float,
    accumulate: int,
    ema_decays: tuple[float, ...],
) -> Optimiser:
    """See `make_optimiser`."""
    if name not in OPTIMISERS:
        raise ValueError(f"optimizer.name={name!r}: choose one of {', '.join(OPTIMISERS)}")
    decays = "weight_decay" in inspect.signature(OPTIMISERS[name]).parameters
    if weight_decay and not decays:
        raise ValueError(
            f"optimizer.weight_decay={weight_decay} has no effect with optimizer.name={name!r};"
            " choose adamw"
        )
    rate = learning_rates(
        schedule,
        learning_rate,
        warmup=warmup_steps,
        updates=max(1, steps // accumulate),
        start=decay_start,
    )
    rule = OPTIMISERS[name](rate, **({"weight_decay": weight_decay} if decays else {}))
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    transform = optax.chain(clip, rule)
    if accumulate > 1:
        transform = optax.MultiSteps(transform, accumulate).gradient_transformation()
    end = steps if schedule == "cosine" else 0
    course = (learning_rate, weight_decay, schedule, end, warmup_steps, decay_start)
    numbers = (*course, clip_norm, accumulate)
    return Optimiser(transform=transform, ema_decays=ema_decays, name=f"{name}{numbers}")


adam = functools.partial(make_optimiser, "adam")
"""The default."""
