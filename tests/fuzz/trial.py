"""One bad input: it is refused by one clear error of a documented type, at once, or it is harmless.

A short form runs with the other tests; `make fuzz` runs the long one and prints the counts.
"""

import collections
import contextlib
import os
import pathlib
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np

import ndsm_jax

LONG = os.environ.get("NDSM_FUZZ") == "long"
"""Whether the long form runs."""

REFUSALS = (ValueError, OSError, FloatingPointError)
"""What `ndsm_jax.app` turns into a line and exit status 1."""

SECONDS, WAITING = 60, 1200
"""Of this process, and of the clock, before which an input is refused or done."""

PACKAGE = pathlib.Path(ndsm_jax.__file__).parent

COUNTS: collections.Counter[tuple[str, str]] = collections.Counter()
"""(family, outcome) -> inputs."""


def examples(short: int, long: int) -> Any:
    """Settings of a test: the same inputs in every run, no limits of hypothesis' own."""
    return hypothesis.settings(
        max_examples=long if LONG else short,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


class Hang(BaseException):
    """Not an error that anything but this file catches."""


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang

    before = [signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def judge(
    family: str, what: str, call: Callable[[], Any], *, finite: bool = True, takes: bool = True
) -> None:
    """Calls and counts. Fails where what happens is no clear refusal and no harmless result.

    Args:
      family: that the input is counted in.
      what: the input, for the message.
      call: with it.
      finite: whether the numbers that it returns have to be.
      takes: whether it may be taken.
    """
    result, found = None, None
    try:
        with alarm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy about an overflow, say, beside the error
            result = call()
    except Hang:
        raise AssertionError(f"{what}: a hang") from None
    except Exception as error:
        found = error
    if found is None:
        assert takes, f"{what}: taken"
        assert not finite or _finite(result), f"{what}: taken, and not all that it gives is finite"
        COUNTS[family, "taken"] += 1
        return
    origin = traceback.extract_tb(found.__traceback__)[-1].filename
    clear = isinstance(found, REFUSALS) and 10 < len(str(found)) < 2000
    ours = pathlib.Path(origin).is_relative_to(PACKAGE)
    assert (clear, ours) == (True, True), f"{what}: {origin}: {found!r}"
    COUNTS[family, "refused"] += 1


def _finite(result: Any) -> bool:
    if isinstance(result, str | bytes) or callable(result):
        return True
    arrays = [a for a in jax.tree.leaves(result) if isinstance(a, np.ndarray | jax.Array | float)]
    real = [a for a in arrays if jnp.issubdtype(getattr(a, "dtype", np.float64), np.floating)]
    return all(np.isfinite(np.asarray(a)).all() for a in real)
