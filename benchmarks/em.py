"""The mixture's fit by scikit-learn and by JAX: seconds an iteration of EM, and of whole fits.

Both solvers take turns. An iteration is timed from the same start, as the difference between fits
of some iterations and of one. Whole fits are those of `references.fit`, with --starts starts, and
say how well they do; by scikit-learn only up to N d K = 5e8. `first_s` is the first fit by JAX in a
process, with compilation. d = 784 is MNIST, from NDSM_MNIST_DIR; d = 2 is clusters.

    python benchmarks/em.py --out=runs/benchmarks/em.json
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import common
import numpy as np
from absl import flags
from sklearn.mixture import GaussianMixture as ScikitMixture

from ndsm_jax import app, references
from ndsm_jax.config import Config
from ndsm_jax.launch import load_data
from ndsm_jax.references import em

WHOLE = flags.DEFINE_bool("whole", True, "Whole fits, too.")
STARTS = flags.DEFINE_integer("starts", 1, "Starts of whole fits.", lower_bound=1)
ONLY = flags.DEFINE_list("only", [], "Names of the settings, if not all.")

MIN_COVARIANCE = 1e-2
LONG = 5e8
"""N d K above which scikit-learn fits nothing as a whole."""

SETTINGS: dict[str, tuple[int, int, int, str]] = {
    "small": (2000, 784, 10, "spherical"),
    "plane": (100_000, 2, 10, "full"),
    "medium": (10_000, 784, 50, "spherical"),
    "diag": (10_000, 784, 50, "diag"),
    "tied": (5_000, 784, 5, "tied"),
    "full": (5_000, 784, 5, "full"),
    "large": (60_000, 784, 50, "spherical"),
    "largest": (60_000, 784, 400, "spherical"),
}
"""Name -> N, d, K and the kind of covariance."""
QUICK = ("small", "plane")


def rows(num: int, dim: int, seed: int) -> np.ndarray:
    if dim == 784:
        folder = os.environ["NDSM_MNIST_DIR"]
        config = Config.from_dict({"data": {"name": "mnist", "dir": folder}})
        return np.asarray(load_data(config).train[:num], np.float32)
    centres = np.random.default_rng(seed).normal(size=(20, dim))
    rng = np.random.default_rng(seed + 1)
    label = rng.integers(20, size=num)
    return (centres[label] + 0.3 * rng.normal(size=(num, dim))).astype(np.float32)


def iterations(x: np.ndarray, num: int, kind: str, more: int) -> dict[str, float]:
    """Seconds an iteration of either solver."""
    data = em.blocks(x)
    means = x[np.random.default_rng(0).choice(len(x), num, replace=False)].astype(np.float64)
    dim, variance = x.shape[1], float(x.var())
    covariances: Any = {
        "spherical": np.full(num, variance),
        "diag": np.full((num, dim), variance),
        "tied": variance * np.eye(dim),
        "full": np.tile(variance * np.eye(dim), (num, 1, 1)),
    }[kind]
    inverse = 1 / covariances if kind in ("spherical", "diag") else covariances / variance**2
    weights = np.full(num, 1 / num)
    first = em.Estimate(weights, means - data.centre, covariances)
    wide = x.astype(np.float64)

    def by_scikit(count: int) -> Any:
        model = ScikitMixture(
            num,
            covariance_type=kind,
            weights_init=weights,
            means_init=means,
            precisions_init=inverse,
            reg_covar=MIN_COVARIANCE,
            tol=0.0,
            max_iter=count,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(wide)

    def by_jax(count: int) -> Any:
        return em.iterate(
            data,
            kind,
            first,
            min_covariance=MIN_COVARIANCE,
            max_iterations=count,
            tolerance=0.0,
        )

    def difference(run: Callable[[int], Any], more: int) -> float:
        seconds = []
        for count in (1, 1 + more):
            start = time.perf_counter()
            run(count)
            seconds.append(time.perf_counter() - start)
        return (seconds[1] - seconds[0]) / more

    by_jax(1)
    # Ours are short: more of them, for the clock.
    found = [(difference(by_scikit, more), difference(by_jax, 8 * more)) for _ in range(3)]
    return {
        "scikit-learn": float(np.median([s for s, _ in found])),
        "jax": float(np.median([j for _, j in found])),
        "ratio": float(np.median([s / j for s, j in found])),
    }


def whole(x: np.ndarray, num: int, kind: str, solver: str) -> tuple[float, references.FitReport]:
    start = time.perf_counter()
    _, report = references.fit(
        x,
        num,
        covariance=kind,
        num_inits=STARTS.value,
        min_covariance=MIN_COVARIANCE,
        solver=solver,
        seed=common.SEED.value,
    )
    return time.perf_counter() - start, report


def main(argv: Sequence[str]) -> None:
    found = []
    for name in ONLY.value or (QUICK if common.QUICK.value else SETTINGS):
        num, dim, k, kind = SETTINGS[name]
        x = rows(num, dim, common.SEED.value)
        row: dict[str, Any] = {"name": f"{num} x {dim}, {k} {kind}"}
        if WHOLE.value:
            row["first_s"], _ = whole(x, k, kind, "jax")
        each = iterations(x, k, kind, more=1 if num * dim * k > LONG else 3)
        row |= {"scikit_ms": 1e3 * each["scikit-learn"], "jax_ms": 1e3 * each["jax"]}
        row["ratio"] = each["ratio"]
        for solver, short in (("jax", "jax"), ("scikit-learn", "scikit")):
            if WHOLE.value and (solver == "jax" or num * dim * k <= LONG):
                seconds, report = whole(x, k, kind, solver)
                row |= {f"{short}_s": seconds, f"{short}_iterations": report.iterations}
                row[f"{short}_log_likelihood"] = report.log_likelihood
        row["whole_ratio"] = row["scikit_s"] / row["jax_s"] if "scikit_s" in row else None
        print(row, flush=True)
        found.append(row)
    columns = (
        "name",
        "first_s",
        "scikit_ms",
        "jax_ms",
        "ratio",
        "scikit_s",
        "jax_s",
        "whole_ratio",
    )
    common.report(found, columns)


if __name__ == "__main__":
    app.run(main)
