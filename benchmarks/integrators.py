"""Weak error of the simulation's steps against the Euler chain with steps of 1e-3.

One dimension, two modes, from a point between them. The laws of the chains at several times are
computed by quadrature, not sampled, so the errors are exact to about 1e-5: the largest over
mean, second moment, and the probability of each half-line. `ratio` is relative to Euler-Maruyama
with equally many steps.

    python benchmarks/integrators.py --out=runs/benchmarks/integrators.json
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import common
import jax.numpy as jnp
import numpy as np

from ndsm_jax import app, processes, references
from ndsm_jax.integrators import INTEGRATORS, step_sizes, time_grid, uniform_grid

HORIZON, START, FINE = 0.8, 0.3, 1e-3


def moments(
    process: processes.Process, grid: np.ndarray, integrator: str, points: int
) -> np.ndarray:
    """Mean, second moment and P(Y > 0) of the chain at the horizon, from START, by quadrature."""
    axis = np.linspace(-4, 4, points)
    at, mass = np.array([START]), np.ones(1)
    for t, t_next in itertools.pairwise(grid):
        sizes = step_sizes(process, jnp.float32(t), jnp.float32(t_next - t), integrator=integrator)
        eta, sigma = (float(a) for a in sizes)
        drift = process.drift(jnp.asarray(at[:, None], jnp.float32), jnp.full(len(at), t))
        mean = at + eta * np.asarray(drift, np.float64)[:, 0]
        kernel = np.exp(-0.5 * ((axis[:, None] - mean[None, :]) / sigma) ** 2)
        mass = (kernel / kernel.sum(axis=0)) @ mass
        at = axis
    return np.array([mass @ at, mass @ at**2, mass @ (at > 0)])


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    # A spacing of a few of the smallest sigmas would alias; the finest step has sigma 0.045.
    points = 400 if quick else 1000
    prior = references.mixture([0.3, 0.7], [[-1.0], [1.0]], [0.15, 0.25])
    process = processes.langevin(prior, horizon=HORIZON)
    reference = moments(process, uniform_grid(HORIZON, round(HORIZON / FINE)), "euler", points)
    rows = []
    for steps in (20, 40, 80, 150):
        errors = {}
        for integrator in INTEGRATORS:
            grid = time_grid(process, steps, smallest_variance=1e-2)
            error = np.abs(moments(process, grid, integrator, points) - reference)
            errors[integrator] = float(error.max())
            rows.append(
                {
                    "name": f"{integrator}_{steps}",
                    "ratio": errors[integrator] / errors["euler"],
                    "error": errors[integrator],
                    "mean": float(error[0]),
                    "second_moment": float(error[1]),
                    "half_line": float(error[2]),
                }
            )
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
