"""Noising for path-space denoising score matching: targets from the noise of a whole path."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, FLAG, GRID, KEY, STEPS, arguments, function, number, one_of
from ndsm_jax.clock import loss_weight
from ndsm_jax.integrators import INTEGRATOR_CHOICES, chosen_integrator
from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, Weight, law_on
from ndsm_jax.noising.chain import (
    PATH_WEIGHTS,
    SIMULATIONS,
    Chain,
    Grid,
    Window,
    as_grid,
    make_chain,
    walk,
)
from ndsm_jax.processes.process import Process


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("chain", "process", "times", "starts", "curvature", "weight"),
    meta_fields=("k", "integrator", "weights", "companion"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PathWindows:
    """Noising for path-space denoising score matching (docs/path_space.md, Eq. 3).

    The state at a grid point n is regressed on

        T_n = -sum_j ((c_{j+1} - c_j) Z_{j+1} - eta_j c_j J_b(Y_j)^T Z_{j+1}) / sigma_j

    over the steps j of a window that ends at n, with deterministic weights c from 0 at its start to
    c_n = 1. Then E[T_n | Y_n = y] = grad log p_n(y), exactly for the chain, for any drift.

    Attributes:
      chain: what is simulated, the process itself or its quotient.
      process: the process.
      starts: grid index at which the window of each interval starts, int [n], or None for windows
        from time 0, see `window_starts`.
      curvature: rate of the `sinh` weights, 1 / time; 0: of the component at the window's start.
        (Exponential steps are those of the component at the path's start, wherever a window is.)
      k: times a path (static).
      weight: of the loss, see `clock.loss_weight`.
      integrator: see `integrators.step_sizes` (static).
      weights: `sinh`, optimal for a linear drift of that rate, or `ramp`, its limit for rate 0
        (static).
      companion: whether mu is filled, with the end of the noise-free path from the window's start
        (static). For a window of one step it is the mu of NDSM. In a quotient every window has to
        start at time 0, from where a noise-free path stays in (M, e).
    """

    chain: Chain
    process: Process
    times: TimeLaw
    starts: Array | None
    curvature: Array
    weight: Weight
    k: int = 1
    integrator: str = "euler"
    weights: str = "sinh"
    companion: bool = False

    @arguments(key=KEY, x0="[B, d]")
    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        key_time, key_path = jax.random.split(key)
        interval = self.times.index(self.times.quantiles(key_time, x0.shape[0], self.k))
        stop = interval + 1
        window = Window(
            start=None if self.starts is None else self.starts[interval],
            stop=stop,
            weights=self.weights,
            curvature=self.curvature,
            companion=self.companion,
        )
        y, path = walk(
            key_path,
            self.chain,
            x0,
            stop,
            self.times.grid,
            integrator=self.integrator,
            window=window,
        )
        t = self.times.grid[stop]
        return NoisedBatch(
            y=y,
            t=t,
            weight=self.weight(y, t),
            score_target=path.target,
            mu=path.companion if self.companion else None,
        )


@arguments(grid=GRID, window=number(low=0))
def window_starts(grid: np.ndarray, window: float) -> Array | None:
    """Where the window of each grid interval starts: int [n], or None for windows from time 0.

    The first grid point within `window` time units of the interval's right end, and at least one
    step before it; 0: the whole path.

    Raises:
      ValueError: a negative window.
    """
    intervals = np.arange(len(grid) - 1)
    if window == 0:
        return None
    start = np.searchsorted(grid, grid[1:] - window * (1 + 1e-6), side="left")
    return jnp.asarray(np.minimum(start, intervals))


@arguments(
    process=Process,
    grid=(GRID, STEPS),
    k=COUNT,
    window=number(low=0),
    weights=one_of(PATH_WEIGHTS),
    curvature=number(low=0),
    companion=FLAG,
    simulation=one_of(SIMULATIONS),
    integrator=one_of(INTEGRATOR_CHOICES),
    times=TimeLaw,
    weight=function(2),
)
def path_windows(
    process: Process,
    grid: Grid = 150,
    *,
    k: int = 4,
    window: float = 0.0,
    weights: str = "sinh",
    curvature: float = 0.0,
    companion: bool = False,
    simulation: str = "auto",
    integrator: str = "auto",
    times: TimeLaw | None = None,
    weight: Weight | None = None,
) -> PathWindows:
    """Noising for path-space denoising score matching of any process.

    Args:
      process: the process; all its coordinates are noisy.
      grid: times [n + 1], or a number of steps of the process's clock.
      k: random times a path.
      window: length of a target's window, time units; 0: the whole path.
      weights: one of `PATH_WEIGHTS`.
      curvature: rate of the `sinh` weights, 1 / time; 0: of the mode at the window's start.
      companion: whether the batch has mu, which control variates need.
      simulation: see `make_chain`. A companion of a shorter window than the path needs the whole
        space, and `auto` then takes it.
      integrator: see `integrators.step_sizes` and, of `auto`, `integrators.chosen_integrator`.
      times: law of the times, on the same grid; by default `time_law` of the clock.
      weight: of the loss; v(t) by default.

    Raises:
      ValueError: noise that drives only some coordinates, as the shift of a path would leave their
        range; a companion of a short window in a quotient; a law of the times on another grid; and
        as `make_chain`.
    """
    if process.noisy is not None:
        raise ValueError(
            f"a path-space target needs noise in every coordinate, and that of {process.name!r} is"
            f" in {process.noise_dim} of {process.dim}; choose objective.name from ndsm, ndsm_cv,"
            " ism, or dsm where there is a kernel"
        )
    if companion and window:  # in a quotient its windows start at time 0, see PathWindows
        if simulation == "quotient":
            raise ValueError(
                f"a control variate with noising.window={window} needs noising.simulation='full' or"
                " 'auto'; or set noising.window to 0"
            )
        simulation = "full"
    grid, integrator = as_grid(process, grid), chosen_integrator(process, integrator)
    return PathWindows(
        chain=make_chain(process, grid, kind=simulation, integrator=integrator, paths=k),
        process=process,
        times=law_on(grid, times, process.clock),
        starts=window_starts(grid, window),
        curvature=jnp.float32(curvature),
        weight=weight or loss_weight(process.clock, "variance"),
        k=k,
        integrator=integrator,
        weights=weights,
        companion=companion,
    )
