"""States of simulated paths at given times, and the law at the horizon where it is not known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import KEY, TIMES, arguments, one_of, whole
from ndsm_jax.clock import driven
from ndsm_jax.noising.chain import Chain, FullSpace, walk
from ndsm_jax.processes.process import Process
from ndsm_jax.references.fitting import fit
from ndsm_jax.references.mixtures import COVARIANCES


@jax.jit
def _walked(key: Array, chain: Chain, x0: Array, index: Array, grid: Array) -> Array:
    stop = jnp.broadcast_to(index, (x0.shape[0], index.shape[0]))
    return jnp.moveaxis(walk(key, chain, x0, stop, grid, integrator="euler")[0], 1, 0)


@arguments(
    key=KEY, process=Process, x0="finite numbers [N, d]", grid=TIMES, times="finite numbers [...]"
)
def states_at(
    key: Array, process: Process, x0: Array, grid: np.ndarray, times: np.ndarray
) -> Array:
    """States of Euler-Maruyama paths from x0 [N, d] at some of a grid's times: [len(times), N, d].

    As `integrators.simulate`, without storing the paths.

    Raises:
      ValueError: a time that is not on the grid.
    """
    grid, times = np.asarray(grid, np.float32), np.atleast_1d(np.asarray(times, np.float32))
    index = np.abs(grid[:, None] - times[None, :]).argmin(axis=0)
    if not np.allclose(grid[index], times, rtol=1e-5, atol=1e-6 * grid[-1]):
        raise ValueError(
            f"states_at: times={times.tolist()} are not all on the grid, whose nearest points are"
            f" {grid[index].tolist()}"
        )
    x0 = jnp.asarray(x0, jnp.float32)
    return _walked(key, FullSpace(process=process), x0, jnp.asarray(index), jnp.asarray(grid))


@arguments(
    key=KEY,
    process=Process,
    x0="finite numbers [N, d]",
    grid=TIMES,
    num_components=whole(0, 100_000),
    covariance=one_of(COVARIANCES),
)
def with_simulated_reference(
    key: Array,
    process: Process,
    x0: Array,
    grid: np.ndarray,
    *,
    num_components: int = 10,
    covariance: str = "full",
) -> Process:
    """The process with a mixture, fitted to simulated end states, as its law at the horizon.

    That is what samples backwards in time start from, and a residual score from. The horizon
    becomes the grid's end, and the clock that of the mixture's typical component
    (`clock.driven`). How close the mixture is to the law is what `references.fit` says of held-out
    states; it is not exact.

    Args:
      key: typed PRNG key of the paths.
      process: the process.
      x0: starts of the paths [N, d].
      grid: increasing times [n + 1] from 0.
      num_components, covariance: see `references.fit`.
    """
    ends = states_at(key, process, x0, grid, grid[-1:])[0]
    law, _ = fit(np.asarray(ends), num_components, covariance=covariance)
    return dataclasses.replace(
        process,
        reference=law,
        clock=driven(process.diffusion, law.typical_variance()),
        horizon=jnp.float32(grid[-1]),
    )
