"""The training of an experiment's score, resumed bitwise."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import parallel
from ndsm_jax.checks import COUNT, FLAG, POSITIVE, SEEDS, arguments, function, whole
from ndsm_jax.datasets import batch_indices
from ndsm_jax.experiment import Experiment
from ndsm_jax.optimisation import OWN, Optimiser
from ndsm_jax.rows import Rows, Stored
from ndsm_jax.runs import Run, fingerprint, has_checkpoints, in_words, loop
from ndsm_jax.training.ahead import ReadAhead
from ndsm_jax.training.held_out import HeldOut, exhausted, make_look, verdict
from ndsm_jax.training.state import TrainState, init_state
from ndsm_jax.training.step import make_dispatch, make_noise, minibatches_ahead, steps_on_host

logger = logging.getLogger(__name__)

REMEDY = (
    "Lower the learning rate (optimizer.learning_rate), clip the gradient (optimizer.clip_norm), or"
    " raise the first time (noising.smallest_variance); a stiff drift of your own needs more"
    " noising.steps, or a shorter process.horizon"
)


CHECKED, SEEN = 64, 10_000
"""Data points at which the drift is looked at before training; and, of data that are not in memory,
those that are looked at themselves: the others are when they are read."""

UNEVEN, TABLE = 1e4, 64
"""Ratio of the coordinates' standard deviations from which a frame is recommended, where they are
as few as those of a table."""


@arguments(
    experiment=Experiment,
    data="numbers [N, D]",
    steps=whole(0),
    batch_size=COUNT,
    seed=SEEDS,
    held_out=HeldOut,
    state=TrainState,
    donate=FLAG,
    picture=function(1),
    ahead_mb=POSITIVE,
    shard_parameters=FLAG,
    progress=FLAG,
)
def train(
    experiment: Experiment,
    data: Rows,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    condition: Any = None,
    held_out: HeldOut | None = None,
    state: TrainState | None = None,
    donate: bool = False,
    run: Run | pathlib.Path | str | None = None,
    keep: Any = None,
    picture: Callable[[TrainState], np.ndarray] | None = None,
    ahead_mb: float = 4.0,
    shard_parameters: bool = False,
    progress: bool = True,
) -> TrainState:
    """Trains to `steps` on data [N, D], 2405.15625, Algorithm 1, and returns the state.

    With a run, its folder gets checkpoints/, metrics.jsonl, tensorboard/ and images/, and training
    goes on from its newest good checkpoint if there is one: the state is then bitwise that of a
    training that was not interrupted. Ctrl-C and SIGTERM save a checkpoint before they take effect.
    Without one nothing is written.

    Args:
      experiment: its parts.
      data: in their own coordinates; the frame takes them to the process's. Those that are not in
        memory (`rows.Stored`) are read a block of minibatches ahead, and must be finite then.
      steps: to train to, from step 0.
      batch_size: data points a step; each is noised at several times.
      condition: what the network is told of each item, a pytree of arrays [N, ...], see
        `conditions`; None: nothing.
      held_out: data that are not trained on, to measure the loss on and to choose the average of
        the parameters by (`TrainState.chosen`). With `patience` training may stop before `steps`.
      seed: of initialisation, batches and noise.
      state: to go on from, of this experiment, which stays as it is; by default the run's newest,
        or a fresh one.
      donate: whether its arrays may be used up, which saves a copy of them.
      run: a `runs.Run`, or a folder for a run with its defaults.
      keep: a pytree of arrays that the run's checkpoints hold beside the state, such as what was
        fitted to the data.
      picture: of a state, [height, width, 3] uint8, for the run's images.
      ahead_mb: memory for minibatches noised ahead, MB.
      shard_parameters: whether several devices share parameters, averages and moments, see
        `parallel.shardings`; otherwise each has them all.
      progress: whether to show a progress bar.

    Raises:
      loop.NonFiniteError: a loss, a gradient or the state was not finite.
      KeyboardInterrupt: after an interrupt, once the checkpoint is saved.
      ValueError: an empty batch, data that are not finite, a condition that is not that of the
        experiment, or a folder that belongs to another experiment, other data or another seed.
    """
    x = _checked(experiment, data)
    condition = experiment.checked("train", condition, len(x))
    if batch_size < 1:
        raise ValueError(f"train.batch_size={batch_size}: at least 1 is needed")
    parallel.check_divides("train.batch_size", batch_size)
    unseen = None
    if held_out is not None:
        unseen = _check_rows("held-out data", experiment, held_out.data)
        if unseen.shape[1] != x.shape[1]:
            raise ValueError(
                f"train: the held-out data have {unseen.shape[1]} coordinates and the data"
                f" {x.shape[1]}"
            )
        told = experiment.checked("train: held_out", held_out.condition, len(unseen))
        held_out = dataclasses.replace(held_out, condition=told)
    select = held_out is not None and held_out.select
    if run is not None and not isinstance(run, Run):
        run = default_run(
            experiment,
            x,
            run,
            batch_size=batch_size,
            seed=seed,
            held_out=held_out,
            condition=condition,
        )
    given = state is not None
    if given and run is not None and has_checkpoints(run.folder):
        run.check()  # as `resume` does
    if state is None:
        state = init_state(experiment, seed=seed, select=select)
        if run is not None:
            like = {"train": jax.eval_shape(lambda: state), "kept": keep}
            restored = run.resume(like)
            state = state if restored is None else restored.state["train"]
    if select != (state.best is not None):
        raise ValueError(
            "train: the state was made with select="
            f"{state.best is not None}, see init_state, and held_out asks for {select}"
        )
    step = int(state.step)
    if step >= steps or exhausted(state, held_out):
        logger.info("nothing to do: step %d of %d is done", step, steps)
        return state

    if given and not donate:
        state = jax.tree.map(jnp.copy, state)
    where = parallel.shardings(state, spread=shard_parameters)
    experiment = parallel.replicated(experiment)
    noise = make_noise(seed)
    on_host = steps_on_host(experiment.model.network)
    dispatch = make_dispatch(seed, on_host=on_host, where=where)
    # A block of minibatches starts at a multiple of its size, wherever the run was resumed.
    block = minibatches_ahead(experiment, x, batch_size, ahead_mb)
    ahead = None

    source = _Finite(x) if isinstance(x, Stored) else x

    def minibatches(first: int) -> tuple[Any, Any]:
        """Prepared data [A, B, m] of a block of steps, and what the network is told of them."""
        numbers = range(first, first + block)
        rows = np.stack([batch_indices(seed, n, len(x), batch_size) for n in numbers])
        return parallel.gathered((source, condition), rows, axis=1)

    read = ReadAhead(minibatches, every=block, last=steps)

    def advance(step: int, state: TrainState, most: int) -> tuple[TrainState, dict[str, Any]]:
        nonlocal ahead
        first = step % block
        num = min(most, block - first)
        if ahead is None or first == 0:
            items, told = read(step - first)
            ahead = noise(experiment, items, step - first, told)
        # Of what a look has changed, the new leaves are not in their place.
        state = parallel.placed(state, where)
        state, metrics = dispatch(state, experiment, ahead, first, num)
        return state, {name: np.asarray(a)[:num] for name, a in metrics.items()}

    look = None
    if held_out is not None and unseen is not None:
        look = make_look(
            experiment,
            held_out,
            unseen=unseen,
            fitted=x,
            batch_size=batch_size,
            seed=seed,
            condition=condition,
        )
    with read:
        state = loop.run(
            state,
            advance,
            run,
            first=step,
            last=steps,
            remedy=REMEDY,
            pack=lambda state: {"train": state, "kept": keep},
            look=look,
            look_every=held_out.every if held_out is not None else 0,
            picture=picture,
            progress=progress,
        )
    if select:
        logger.info("%s", verdict(state))
    return state


def default_run(
    experiment: Experiment,
    prepared: Rows,
    folder: pathlib.Path | str,
    *,
    batch_size: int,
    seed: int,
    held_out: HeldOut | None = None,
    condition: Any = None,
) -> Run:
    """A run whose checkpoints are resumed by the same experiment, data, batch size and seed alone.

    Sampler and sampling grid are free.
    """
    trained = ("process", "frame", "noising", "model", "control")
    facts: dict[str, Any] = {
        "experiment": {
            **{name: fingerprint(getattr(experiment, name)) for name in trained},
            "objective": fingerprint(experiment.objective),
            "estimator": in_words(experiment.estimator),
            "optimiser": _named(experiment.optimiser),
        },
        "data": fingerprint(prepared),
        "batch_size": batch_size,
        "seed": seed,
        "held_out": None
        if held_out is None
        else [fingerprint(held_out.data), held_out.every, held_out.select],
    }
    if condition is not None:
        unseen = None if held_out is None else held_out.condition
        told = [fingerprint(condition), fingerprint(unseen), experiment.dropout]
        facts["condition"] = told
    if experiment.augment is not None:
        facts["augment"] = fingerprint(experiment.augment)
    return Run(folder=pathlib.Path(folder), facts=facts)


def _named(optimiser: Optimiser) -> list[Any]:
    """What tells an optimiser from others."""
    own = [fingerprint(optimiser.transform)] if optimiser.name == OWN else []
    return [optimiser.name, *optimiser.ema_decays, *own]


def _checked(experiment: Experiment, data: Rows) -> Any:
    """The prepared data [N, m]. Raises ValueError where they are of no use."""
    x = _check_rows("data", experiment, data)
    key, row = jax.random.key(0), jax.ShapeDtypeStruct((1, x.shape[1]), np.float32)
    dim = jax.eval_shape(experiment.frame.enter, key, row)[0].shape[1]
    if dim != experiment.process.dim:
        raise ValueError(
            f"train: the data have {dim} coordinates in their frame, and process"
            f" {experiment.process.name!r} has {experiment.process.dim}"
        )
    y = experiment.frame.enter(key, jnp.asarray(x[:CHECKED]))[0]
    drift = experiment.process.drift(y, jnp.zeros(len(y)))
    if not bool(jnp.all(jnp.isfinite(drift))):
        raise ValueError(
            f"train: the drift of process {experiment.process.name!r} is not finite at the data"
        )
    spread = _seen(x).std(axis=0)
    spread = spread[spread > 0]
    # Of an image's pixels some hardly ever vary, and that is no matter of units.
    if 0 < spread.size <= TABLE and spread.max() > UNEVEN * spread.min():
        logger.warning(
            "the coordinates of the states have standard deviations from %.3g to %.3g: noise is the"
            " same in all of them; a frame takes their units off (frames.standardised, data.frame)",
            spread.min(),
            spread.max(),
        )
    return x


def _check_rows(what: str, experiment: Experiment, data: Rows) -> Any:
    """Prepared rows [N, m]. Raises ValueError for a wrong shape and values that are not finite."""
    data = data if isinstance(data, Stored) else np.asarray(data)
    if data.ndim != 2 or not len(data):
        raise ValueError(f"train: {what} of shape {data.shape}; [N, D] is needed")
    expected = experiment.frame.data_dim
    if expected is not None and data.shape[1] != expected:
        raise ValueError(
            f"train: the {what} have {data.shape[1]} coordinates, and the frame"
            f" {type(experiment.frame).__name__} is of {expected}"
        )
    x = experiment.frame.prepare(data)
    seen = _seen(x)
    _check_finite(what, seen, np.arange(len(seen)), len(x))
    return x


def _seen(x: Rows) -> np.ndarray:
    """Prepared rows that are looked at before training."""
    return x[:SEEN] if isinstance(x, Stored) else np.asarray(x)


@dataclasses.dataclass(frozen=True)
class _Finite:
    """Prepared rows that are not in memory, held to be finite when they are read."""

    rows: Stored

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        found = self.rows[numbers]
        flat = found.reshape(-1, found.shape[-1])
        _check_finite("data", flat, numbers.reshape(-1), len(self.rows))
        return found


def _check_finite(what: str, x: np.ndarray, numbers: np.ndarray, total: int) -> None:
    """Raises ValueError where prepared rows [n, m], of these numbers among all, are not finite."""
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"train: {np.sum(~finite)} of {total} rows of the {what} are not finite, first row"
            f" {numbers[np.argmin(finite)]}; remove or repair them"
        )
