"""The loop around training steps of any kind: metrics, checkpoints, pictures, interrupts."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ndsm_jax import parallel
from ndsm_jax.runs.checkpoints import read_host
from ndsm_jax.runs.run import WINDOW, Run
from ndsm_jax.runs.writers import Writer

logger = logging.getLogger(__name__)

Advance = Callable[[int, Any, int], tuple[Any, dict[str, np.ndarray]]]
"""(step, state, most) -> (state, metrics [num]) after some num of steps, 1 <= num <= most."""


def one_by_one(step: Callable[[int, Any], tuple[Any, Mapping[str, Any]]]) -> Advance:
    """`Advance` of a function (step, state) -> (state, metrics) that runs a single step.

    For steps long enough not to mind the host between them.
    """

    def advance(first: int, state: Any, most: int) -> tuple[Any, dict[str, np.ndarray]]:
        done = []
        for now in range(first, first + most):
            state, metrics = step(now, state)
            done.append(metrics)
        return state, {name: np.asarray(jnp.stack([m[name] for m in done])) for name in done[0]}

    return advance


class NonFiniteError(FloatingPointError):
    """Training produced a NaN or an infinity; the message names the step and the remedy."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the training, whose checkpoint is saved.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run(
    state: Any,
    advance: Advance,
    run: Run | None,
    *,
    first: int,
    last: int,
    remedy: str,
    pack: Callable[[Any], Any] = lambda state: state,
    look: Callable[[Any], tuple[Any, Mapping[str, float], bool]] | None = None,
    look_every: int = 0,
    picture: Callable[[Any], np.ndarray] | None = None,
    name: str = "training",
    progress: bool = True,
) -> Any:
    """Advances `state` from step `first` to step `last`, and returns it.

    Writes checkpoints, metrics.jsonl, tensorboard/ and images/ into the run's folder as the run
    says, which it locks; without one it just trains. Ctrl-C, SIGTERM and SIGHUP save a checkpoint
    before they take effect.

    What it leaves does not depend on where it was killed or interrupted and resumed: a checkpoint
    holds the sums of the metrics since their last line, and TensorBoard and pictures are on disk
    before it. (steps_per_second is of the steps since the start.)

    Of several processes (`parallel`) the first one writes; a signal to any of them ends all.

    Args:
      state: a pytree; `advance` may donate it.
      advance: runs as many steps as it likes, up to a number; its metrics include "loss".
      run: where and how often to write, or None.
      first, last: steps; nothing is done when first >= last.
      remedy: what to change when a loss is not finite, a sentence.
      pack: what of the state a checkpoint holds.
      look: state -> (state, metrics, stop), before the first step, after the last, and every
        `look_every` steps; where it says stop, that was the last step. A run that is resumed does
        not look again at the step where it starts, unless that is 0.
      picture: of a state, [height, width, 3] uint8; None for no pictures.
      name: of the progress bar.
      progress: whether to show it.

    Raises:
      NonFiniteError: a loss, a gradient or the state was not finite; the last good checkpoint is
        kept.
      Interrupted: a KeyboardInterrupt after a signal, once the checkpoint is saved.
      ValueError: another process writes into the run's folder.
      OSError: the folder cannot be written to, is full, or was deleted.
    """
    if first >= last:
        return state
    step = first
    window = Window()
    clock = Clock()
    log_every = 0 if run is None else run.log_every
    checkpoint_every = 0 if run is None else run.checkpoint_every
    picture_every = 0 if run is None or picture is None else run.picture_every
    looked: dict[str, float] = {}
    shown: dict[str, str] = {}
    stop = False

    def due(every: int) -> bool:
        return every > 0 and (step % every == 0 or step == last or stop)

    def fail(at: int) -> NonFiniteError:
        kept = "" if run is None else "; the last good checkpoint is kept"
        return NonFiniteError(
            f"{name}: loss, gradient or state is not finite at step {at}{kept}. {remedy}"
        )

    def save() -> None:
        if not _is_finite(state):
            raise fail(step)
        if run is not None:
            lock.check()
            writer.flush()
            facts = run.facts | ({WINDOW: window.sums} if window.sums else {})
            checkpoints.save(step, pack(state), facts)

    def log() -> None:
        if run is not None and (window.sums or looked):
            lock.check()
            rate = {"steps_per_second": clock.window_rate()} if window.sums else {}
            writer.write(step, window.means() | rate | looked)
        window.clear()
        looked.clear()

    with contextlib.ExitStack() as stack:
        if run is not None:
            lock = stack.enter_context(run.locked())
            checkpoints = stack.enter_context(run.checkpoints())
            if step in checkpoints.steps():
                window = Window(read_host(run.directory, step).get(WINDOW, {}))
            writer = stack.enter_context(run.writer())
            writer.truncate(step or -1)  # at step 0 there is a look, whose line is written again
        bar = stack.enter_context(
            tqdm(total=last, initial=step, desc=name, unit=" steps", disable=not progress)
        )
        interrupt = stack.enter_context(_DeferredInterrupt())
        if step == 0:
            if look is not None:
                state, found, _ = look(state)
                looked |= found
                log()
            save()
        while step < last and not stop:
            most = min(clock.steps(), last - step)
            for every in (log_every, checkpoint_every, picture_every, look_every):
                most = min(most, _until(step, every))
            most = parallel.least(most)  # clocks of several processes differ
            clock.start()
            state, metrics = advance(step, state, most)
            num = len(metrics["loss"])
            clock.stop(num)
            window.add(metrics)
            if (bad := _first_not_finite(metrics)) is not None:
                log()
                raise fail(step + bad + 1)
            step += num
            bar.update(num)
            shown |= {"loss": f"{metrics['loss'].mean():.4g}"}
            if look is not None and (step % look_every == 0 or step == last):
                state, found, stop = look(state)
                looked |= found
                first_name, value = next(iter(found.items()))
                shown |= {first_name: f"{value:.4g}"}
            bar.set_postfix(shown, refresh=False)
            if looked or due(log_every):
                log()
            if run is not None and picture is not None and due(picture_every):
                _draw(writer, step, picture, state)
            stopped = parallel.largest(interrupt.requested)
            if due(checkpoint_every) or stopped:
                save()
            if stopped:
                if run is not None:
                    checkpoints.wait()
                    logger.warning("interrupted: step %d is saved; the same command resumes", step)
                raise Interrupted(stopped)
        if not checkpoint_every and not _is_finite(state):  # or `save` has looked
            raise fail(step)
        if run is not None:
            checkpoints.wait()
            lock.check()
    return state


def _draw(writer: Writer, step: int, picture: Callable[[Any], np.ndarray], state: Any) -> None:
    """Writes a picture of the state, which is no reason to end a training."""
    try:
        image = picture(state)
    except Exception as error:  # of whatever library draws it
        logger.warning("no picture of step %d: %s: %s", step, type(error).__name__, error)
        return
    writer.image(step, "samples", image)


class _DeferredInterrupt:
    """Keeps the number of the first SIGINT, SIGTERM or SIGHUP: in the midst of a dispatch the old
    state has been donated and the new one is not there yet, so nothing could be saved. A second one
    acts at once. A SIGHUP that is ignored, as under nohup, stays ignored. Outside the main thread,
    where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, frame: object) -> None:
        self.requested = number
        for caught, handler in self._previous.items():
            signal.signal(caught, handler)


class Clock:
    """Times calls of `advance`, and chooses how many steps one runs, to take about `target`."""

    def __init__(self, target: float = 0.5) -> None:
        self._target = target
        self._num = 1
        self._steps, self._seconds = 0, 0.0

    def steps(self) -> int:
        """How many steps to run."""
        return self._num

    def start(self) -> None:
        """Before them."""
        self._started = time.perf_counter()

    def stop(self, num: int) -> None:
        """After `num` of them."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._steps, self._seconds = self._steps + num, self._seconds + seconds
        # Grows at most fourfold a call: the first ones include compilation.
        self._num = max(1, min(4 * num, round(self._target * num / seconds)))

    def window_rate(self) -> float:
        """Steps a second since the last call, in steps alone."""
        rate = self._steps / max(self._seconds, 1e-9)
        self._steps, self._seconds = 0, 0.0
        return rate


def _until(step: int, every: int) -> int:
    """Steps until the next multiple of `every` (0: never)."""
    return every - step % every if every else 2**31 - 1


class Window:
    """Sums of metrics over the steps since their last line.

    In float64 and in the order of the steps, so that they are the same wherever it was cut.

    Attributes:
      sums: {name: [sum, number of steps where it was measured]}, JSON types.
    """

    def __init__(self, sums: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, list[Any]] = {name: list(of) for name, of in (sums or {}).items()}

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds those of some steps, [num] each; NaN: not measured."""
        for name, x in metrics.items():
            total = self.sums.setdefault(name, [0.0, 0])
            for value in x[~np.isnan(x)].tolist():
                total[0] += value
                total[1] += 1

    def means(self) -> dict[str, float]:
        """Of the metrics that were measured."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}

    def clear(self) -> None:
        """After a line."""
        self.sums.clear()


def _first_not_finite(metrics: Mapping[str, np.ndarray]) -> int | None:
    """Index of the first step whose loss or gradient is not finite."""
    watched = [metrics[name] for name in ("loss", "grad_norm") if name in metrics]
    bad = ~np.all(np.isfinite(watched), axis=0)
    return int(np.argmax(bad)) if bad.any() else None


def _is_finite(state: Any) -> bool:
    # On the host: on the device every shape of a leaf would be a program of its own.
    return all(
        bool(np.isfinite(parallel.fetched(leaf)).all())
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
