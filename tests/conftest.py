"""Settings of all tests: rank promotion is an error; a helper for statistical tests."""

import os
import pathlib
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, which these take to less than a quarter. Later versions do
# not know the second one, and abort.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Workers share what they compile, not long programs alone.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def assert_mean(samples, expected, *, sigmas: float = 4.5, bias: float = 0.0) -> None:
    """The mean over axis 0 is `expected` within `sigmas` standard errors plus a stated bias."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(axis=0) - np.asarray(expected))
    worst = np.max((deviation - bias) / np.maximum(error, 1e-12))
    assert worst < sigmas, f"{worst:.1f} standard errors (largest error {error.max():.2g})"


def _forget_programs(most: int) -> None:
    """Linux allows a process 65,530 memory maps, XLA takes several for each program, and crashes
    where it gets none."""
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > most:
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """Forgets compiled programs between modules, which share few."""
    yield
    _forget_programs(15_000)


@pytest.fixture(autouse=True)
def _not_too_many_programs() -> Iterator[None]:
    """Forgets them within a module where that has to be."""
    started = time.monotonic()
    yield
    if time.monotonic() - started > 0.5:  # counting thousands of maps takes some time, too
        _forget_programs(40_000)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The counts of the inputs that the fuzzer tried."""
    trial = sys.modules.get("tests.fuzz.trial")
    if trial is None or not trial.COUNTS:
        return
    counts = trial.COUNTS
    rows = [(f, counts[f, "refused"], counts[f, "taken"]) for f in sorted({f for f, _ in counts})]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    terminalreporter.section("inputs tried")
    terminalreporter.write_line(f"{'':32} {'refused':>8} {'taken':>8}")
    for family, refused, taken in rows:
        terminalreporter.write_line(f"{family:32} {refused:8} {taken:8}")
