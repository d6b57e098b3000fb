"""The loss on data that training does not see, and the averaged parameters that it chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import parallel
from ndsm_jax.experiment import Experiment
from ndsm_jax.noising import NoisedBatch
from ndsm_jax.training.state import STREAM_HELD_OUT, Best, TrainState
from ndsm_jax.training.step import make_noise, minibatches_ahead

MINIBATCHES, MEMORY_MB = 8, 64.0
"""Noised minibatches of held-out data that a look takes, and at most so much memory for them."""

TIME_BINS = 4
"""Equally likely parts of the training times, whose losses are logged one by one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Data that training does not see, and what is done with them.

    An average of the parameters is better than another if its loss is less by more than a standard
    error of the mean difference over the items: of two that cannot be told apart it is the earlier,
    which is nearer to the start, where a residual score is that of the reference (the one standard
    error rule of Breiman et al. 1984, Classification and Regression Trees, Section 3.4.3).

    Attributes:
      data: [M, D], in their own coordinates.
      condition: what the network is told of them, a pytree of [M, ...]; None: nothing.
      every: steps between looks; there is one before the first step and one after the last.
      select: whether samples are made with the best average.
      patience: steps without a better one after which training stops; 0: never.
    """

    data: np.ndarray
    every: int = 100
    select: bool = True
    patience: int = 0
    condition: Any = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 0:
            raise ValueError(
                f"HeldOut: every={self.every} must be at least 1 and patience={self.patience} at"
                " least 0 steps"
            )
        if self.patience and not self.select:
            raise ValueError("HeldOut: patience is of the choice of the best average (select=True)")


Look = Callable[[TrainState], tuple[TrainState, dict[str, float], bool]]
"""state -> (state with its best average, what was measured, whether patience is at an end)."""


def make_look(
    experiment: Experiment,
    held: HeldOut,
    *,
    unseen: np.ndarray,
    fitted: np.ndarray,
    batch_size: int,
    seed: int,
    condition: Any = None,
) -> Look:
    """Measures the averages of a state's parameters on held-out data, and keeps the best.

    The data are noised once, as they are (not augmented), with keys of their own: looks differ in
    the parameters alone. As many training items, noised with the same keys, give what the gap is
    measured from. Of more items than `MINIBATCHES` hold, or `MEMORY_MB`, some are taken at random.

    Args:
      experiment: its parts.
      held: what is done with the held-out data.
      unseen, fitted: these and the training data as `Frame.prepare` gives them, [M, m] and [N, m].
      batch_size, seed: of the training.
      condition: what the network is told of the training data, as `HeldOut.condition`.

    Returns: a `Look`. It measures held_out_loss; fitted_loss, the same on training items;
      held_out_loss_1, ... by parts of the training times, from the earliest; and kept_step, that of
      the best average. Of several averages all this is of the one with the least loss, whose decay
      is ema_decay, where one is chosen, and of the first otherwise.

    The first look, at step 0, raises ValueError where the loss of a held-out item is not finite.
    """
    experiment = dataclasses.replace(experiment, augment=None)
    num = min(MINIBATCHES, minibatches_ahead(experiment, unseen, batch_size, MEMORY_MB))
    noise = make_noise(seed, stream=STREAM_HELD_OUT)

    def rows(x: np.ndarray) -> np.ndarray:
        order = np.arange(len(x), dtype=np.int32)
        if len(x) > num * batch_size:  # which may lie sorted, by class
            order = np.random.default_rng([seed, STREAM_HELD_OUT]).permutation(order)
        return np.resize(order, (num, batch_size))

    looked_at = rows(unseen).ravel()

    def noised(x: np.ndarray, condition: Any) -> NoisedBatch:
        items, told = parallel.gathered((x, condition), rows(x), axis=1)
        return noise(experiment, items, 0, told)

    batches = [noised(unseen, held.condition), noised(fitted, condition)]
    times = parallel.fetched(batches[0].t)
    edges = np.quantile(times, np.arange(1, TIME_BINS) / TIME_BINS)
    part = 1 + np.searchsorted(edges, times)
    parts = np.unique(part)  # Of few times some have none.

    def measured(params: Any, which: int) -> np.ndarray:
        """The loss of every state [A, B, k]."""
        losses = parallel.fetched(_losses(experiment, params, batches[which]))
        return losses.astype(np.float64)

    def better(now: np.ndarray, params: Any) -> bool:
        """Whether losses are less than those of other parameters, by more than chance."""
        difference = (now - measured(params, 0)).mean(axis=-1).ravel()
        _, items = np.unique(looked_at, return_inverse=True)
        by_item = np.bincount(items, difference) / np.bincount(items)
        error = by_item.std(ddof=1) / len(by_item) ** 0.5 if len(by_item) > 1 else 0.0
        return bool(by_item.mean() < -error)

    def look(state: TrainState) -> tuple[TrainState, dict[str, float], bool]:
        averages = (state.ema, *state.others)
        losses = [measured(average, 0) for average in averages]
        if not int(state.step) and (bad := ~np.isfinite(losses[0]).all(axis=-1).ravel()).any():
            raise ValueError(
                f"train: the loss of row {looked_at[bad.argmax()]} of the held-out data is not"
                " finite; it lies too far from the others: leave it out"
            )
        least = int(np.argmin([loss.mean() for loss in losses])) if held.select else 0
        loss, average = losses[least], averages[least]
        found = {"held_out_loss": loss.mean(), "fitted_loss": measured(average, 1).mean()}
        if len(averages) > 1:
            found["ema_decay"] = experiment.optimiser.ema_decays[least]
        found |= {f"held_out_loss_{i}": loss[part == i].mean() for i in parts}
        found = {name: float(value) for name, value in found.items()}
        if not held.select:
            return state, found, False
        best = state.best
        assert best is not None
        if not np.isfinite(best.loss) or better(loss, best.params):
            best = Best(
                params=jax.tree.map(jnp.copy, average),  # the state's own buffers are donated
                loss=jnp.float32(loss.mean()),
                step=jnp.int32(int(state.step)),
            )
            state = dataclasses.replace(state, best=best)
        return state, found | {"kept_step": int(best.step)}, exhausted(state, held)

    return look


@jax.jit
def _losses(experiment: Experiment, params: Any, batches: NoisedBatch) -> Array:
    """The loss of every state of A minibatches, [A, B, k]."""

    def one(batch: NoisedBatch) -> Array:
        score = experiment.model.bind(params, batch.condition)
        return experiment.objective.terms(score, batch)[0]

    return jax.lax.map(one, batches)


def exhausted(state: TrainState, held: HeldOut | None) -> bool:
    """Whether a training has gone on for its patience since the best average."""
    if held is None or not held.patience or state.best is None:
        return False
    return int(state.step) - int(state.best.step) >= held.patience


def verdict(state: TrainState) -> str:
    """What was chosen, in a sentence."""
    assert state.best is not None
    step, last = int(state.best.step), int(state.step)
    if step == 0:
        return (
            "held-out data: nothing in the training was better, beyond chance, than the start, a"
            " residual score's reference; that is what samples are made with. More data, or a"
            " smaller learning rate, may help"
        )
    end = "the last" if step == last else f"of {last}"
    return f"held-out data: samples are made with the average of step {step}, {end}"
