"""Noising of any process by simulation: `LocalSteps` for NDSM, `PathWindows` for path-space DSM."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.integrators import (
    broadcast_time,
    forward_step,
    local_kernel,
    scan_grid,
    step_sizes,
)
from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, loss_weight
from ndsm_jax.noising.quotient import Quotient, TiedQuotient, has_quotient, quotient
from ndsm_jax.sde import SDE

PATH_WEIGHTS = ("sinh", "ramp")


@partial(jax.tree_util.register_dataclass, data_fields=("sde",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class FullSpace:
    """The chain as it is: the state of the simulation is the state of the process."""

    sde: SDE

    @property
    def variances(self) -> Array:
        """Mean variances of the prior's components [K]."""
        return self.sde.prior.component_variances()

    def start(self, x0: Array) -> Array:
        """x0 [B, d] -> states [B, d]."""
        return x0

    def draws(self, key: Array, num_steps: int, shape: tuple[int, ...]) -> None:
        """Nothing is drawn ahead: the normals of all steps would not fit into memory."""

    def noise(self, key: Array, n: Array, drawn: None, shape: tuple[int, ...]) -> Array:
        """Step n's normals, [*shape, d]."""
        return jax.random.normal(jax.random.fold_in(key, n), (*shape, self.sde.dim))

    def reframe(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Nothing turns."""
        return y, target

    def lift(
        self, key: Array, x0: Array, index: Array, y: Array, target: Array, companion: Array
    ) -> tuple[Array, Array, Array]:
        """Nothing to do."""
        return y, target, companion


Chain = FullSpace | Quotient | TiedQuotient


class Window(NamedTuple):
    """Over which steps a path-space target is accumulated, and how.

    Attributes:
      start: grid index before the window's first step, [B, k]; None: the path's start.
      stop: grid index after its last step, [B, k].
      weights: one of `PATH_WEIGHTS`.
      curvature: rate of the `sinh` weights, 1 / time; 0: of the component at the window's start.
      companion: whether the window's noise-free path is run beside it.
    """

    start: Array | None
    stop: Array
    weights: str
    curvature: Array
    companion: bool


class PathTarget(NamedTuple):
    """The recursion: target [B, k, D], v and stationary variance [B, k], noise-free path."""

    target: Array
    v: Array
    stationary: Array
    companion: Array


def component_variance(chain: Chain, y: Array) -> Array:
    """Mean variance of the component that most likely made y: [..., D] -> [...]."""
    return chain.variances[chain.sde.prior.most_likely(y)]


def path_step(
    chain: Chain,
    window: Window,
    n: Array,
    t: Array,
    step: tuple[Array, Array],
    z: Array,
    y: Array,
    path: PathTarget,
) -> tuple[Array, PathTarget]:
    """One step (eta, sigma) of the chain from y with normals z, and of the targets on their way.

    Inside its window a target follows (docs/path_space.md, Eq. 5)

        T <- rho T - ((1 - rho) z - eta rho J_b(y)^T z) / sigma,
        rho = (1 - a eta) v / v',    v' = (1 - a eta)^2 v + sigma^2,

    for the rate a of its weights, from T = 0 and v = 0.
    """
    eta, sigma = step
    inside, stationary, companion = n < window.stop, path.stationary, path.companion
    if window.start is not None:
        inside = inside & (window.start <= n)
        entering = window.start == n
        stationary = jnp.where(entering, component_variance(chain, y), stationary)
        companion = jnp.where(entering[..., None], y, companion)
    drift, pulled = chain.sde.drift_vjp(y, broadcast_time(t, y), z)
    # Any weights are right, so that a rate too large for the step may be cut.
    rate = _rate(window, chain.sde.diffusion(t), stationary)
    contraction = jnp.maximum(1 - eta * rate, 0)
    v = contraction**2 * path.v + sigma**2
    rho = (contraction * path.v / v)[..., None]
    target = rho * path.target - ((1 - rho) * z - eta * rho * pulled) / sigma
    y_next, target = chain.reframe(y + eta * drift + sigma * z, target)
    if window.companion:
        moved = companion + eta * chain.sde.drift(companion, broadcast_time(t, companion))
        companion = jnp.where(inside[..., None], moved, companion)
    path = PathTarget(
        target=jnp.where(inside[..., None], target, path.target),
        v=jnp.where(inside, v, path.v),
        stationary=stationary,
        companion=companion,
    )
    return y_next, path


def _rate(window: Window, g: Array, stationary: Array) -> Array:
    """a [B, k] of the weights: 0 for a ramp, else given or that of a stationary variance."""
    if window.weights == "ramp":
        return jnp.zeros_like(stationary)
    given = jnp.broadcast_to(window.curvature, stationary.shape)
    return jnp.where(given > 0, given, g**2 / (2 * stationary))


def walk(
    key: Array,
    chain: Chain,
    x0: Array,
    stop: Array,
    grid: Array,
    *,
    integrator: str,
    window: Window | None = None,
) -> tuple[Array, PathTarget]:
    """Runs the chain from x0 [B, d] over a grid [n + 1] and keeps its states at the indices stop.

    Returns the states [B, k, d] for stop [B, k] and, with a `window`, their targets. No path is
    stored.
    """
    key_draws, key_steps, key_lift = jax.random.split(key, 3)
    # The target's frame differs from time to time, so that each time needs a path of its own.
    own_paths = window is not None and isinstance(chain, Quotient)
    y = jnp.repeat(chain.start(x0)[:, None], stop.shape[1] if own_paths else 1, axis=1)
    drawn: Any = chain.draws(key_draws, grid.shape[0] - 1, y.shape[:2])
    kept = jnp.broadcast_to(y, (*stop.shape, y.shape[-1]))

    def step(
        carry: tuple[Array, Array, PathTarget], n: Array, t: Array, t_next: Array
    ) -> tuple[tuple[Array, Array, PathTarget], None]:
        y, kept, path = carry
        z = chain.noise(key_steps, n, drawn, y.shape[:2])
        if window is None:
            times = (broadcast_time(t, y), broadcast_time(t_next - t, y))
            y = forward_step(chain.sde, y, *times, z, integrator=integrator)
            y, _ = chain.reframe(y, jnp.zeros_like(y))
        else:
            sizes = step_sizes(chain.sde, t, t_next - t, integrator=integrator)
            y, path = path_step(chain, window, n, t, sizes, z, y, path)
        return (y, jnp.where((stop == n + 1)[..., None], y, kept), path), None

    zero = jnp.zeros(stop.shape, x0.dtype)
    stationary = zero
    if window is not None and window.start is None:
        stationary = jnp.broadcast_to(component_variance(chain, y), stop.shape)
    path = PathTarget(target=jnp.zeros_like(kept), v=zero, stationary=stationary, companion=kept)
    _, kept, path = scan_grid(step, (y, kept, path), grid)[0]
    y, target, companion = chain.lift(key_lift, x0, stop, kept, path.target, path.companion)
    return y, path._replace(target=target, companion=companion)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("chain", "sde", "times", "starts", "lengths"),
    meta_fields=("k", "noises", "weight", "integrator"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """Noising for NDSM (2405.15625, Algorithm 2 and Remark 3.1).

    A path a data point runs over the grid. k times, for intervals i of the grid drawn by the time
    law, it is left at an earlier grid point by one more step of its own length, the loss step,
    y = mu + sigma z, which always is taken in the whole space. The target is -z / sigma.

    Attributes:
      chain: what is simulated, the process itself or its quotient.
      sde: the process.
      starts, lengths: of the loss step for each interval, see `loss_steps`: int [n], float [n].
      k: times a path (static).
      noises: normals that share one mu, so that a path gives k noises states (static).
      weight: see `loss_weight` (static).
      integrator: see `integrators.step_sizes` (static).
    """

    chain: Chain
    sde: SDE
    times: TimeLaw
    starts: Array
    lengths: Array
    k: int = 1
    noises: int = 1
    weight: str = "variance"
    integrator: str = "euler"

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k noises] states."""
        key_time, key_path, key_step = jax.random.split(key, 3)
        grid = self.times.grid
        interval = self.times.index(self.times.quantiles(key_time, x0.shape[0], self.k))
        index, h = self.starts[interval], self.lengths[interval]
        # The last interval's start is the last state a loss step can leave from.
        left, _ = walk(key_path, self.chain, x0, index, grid[:-1], integrator=self.integrator)
        mu, sigma = local_kernel(self.sde, left, grid[index], h, integrator=self.integrator)
        mu, sigma, t = (
            jnp.repeat(a, self.noises, axis=1) for a in (mu, sigma[..., None], grid[index] + h)
        )
        z = jax.random.normal(key_step, mu.shape, mu.dtype)
        return NoisedBatch(
            y=mu + sigma * z,
            t=t,
            weight=loss_weight(self.sde, t, self.weight),
            score_target=-z / sigma,
            mu=mu,
            noises=self.noises,
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("chain", "sde", "times", "starts", "curvature"),
    meta_fields=("k", "weight", "integrator", "weights", "companion"),
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
      sde: the process.
      starts: grid index at which the window of each interval starts, int [n], or None for windows
        from time 0, see `window_starts`.
      curvature: rate of the `sinh` weights, 1 / time; 0: of the component at the window's start.
      k: times a path (static).
      weight: see `loss_weight` (static).
      integrator: see `integrators.step_sizes` (static).
      weights: `sinh`, optimal for a linear drift of that rate, or `ramp`, its limit for rate 0
        (static).
      companion: whether mu is filled, with the end of the noise-free path from the window's start
        (static). For a window of one step it is the mu of NDSM. In a quotient every window has to
        start at time 0, from where a noise-free path stays in (M, e).
    """

    chain: Chain
    sde: SDE
    times: TimeLaw
    starts: Array | None
    curvature: Array
    k: int = 1
    weight: str = "variance"
    integrator: str = "euler"
    weights: str = "sinh"
    companion: bool = False

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
            weight=loss_weight(self.sde, t, self.weight),
            score_target=path.target,
            mu=path.companion if self.companion else None,
        )


def loss_steps(
    sde: SDE, grid: np.ndarray, *, fixed: float = 0.0, fraction: float = 0.0
) -> tuple[Array, Array]:
    """Where the loss step of each grid interval starts and how long it is: int [n], float [n].

    `fixed`: from the interval's left end, the same length everywhere, as published (1e-3).
    `fraction`: to the interval's right end tau_i, so that the training times are the grid's. It
    starts at the last grid point s that is early enough for the step to add this fraction of the
    variance already there, v(tau_i) >= (1 + fraction) v(s), but never so early that the step is
    longer than the longest one of the grid: its Euler error stays that of the simulation.

    Raises:
      ValueError: not exactly one of the two positive.
    """
    if (fixed > 0) == (fraction > 0) or min(fixed, fraction) < 0:
        raise ValueError(
            "set exactly one of noising.loss_step (time units) and noising.loss_fraction to a"
            f" positive value, got {fixed} and {fraction}"
        )
    intervals = np.arange(len(grid) - 1)
    if fixed:
        return jnp.asarray(intervals), jnp.full(len(intervals), fixed, jnp.float32)
    v = np.asarray(sde.variance(jnp.asarray(grid, jnp.float32)), np.float64)
    early_enough = np.searchsorted(v, v[1:] / (1 + fraction), side="right") - 1
    longest = np.diff(grid).max() * (1 + 1e-6)
    not_too_early = np.searchsorted(grid, grid[1:] - longest, side="left")
    starts = np.minimum(np.maximum(early_enough, not_too_early), intervals)
    return jnp.asarray(starts), jnp.asarray(grid[1:] - grid[starts], jnp.float32)


def window_starts(grid: np.ndarray, window: float) -> Array | None:
    """Where the window of each grid interval starts: int [n], or None for windows from time 0.

    The first grid point within `window` time units of the interval's right end, and at least one
    step before it; 0: the whole path.

    Raises:
      ValueError: a negative window.
    """
    if window < 0:
        raise ValueError(f"noising.window={window}: a time of at least 0 is needed")
    intervals = np.arange(len(grid) - 1)
    if window == 0:
        return None
    start = np.searchsorted(grid, grid[1:] - window * (1 + 1e-6), side="left")
    return jnp.asarray(np.minimum(start, intervals))


SIMULATIONS = ("auto", "full", "quotient")


def make_chain(
    sde: SDE, grid: np.ndarray, *, kind: str = "auto", integrator: str = "euler", paths: int = 1
) -> Chain:
    """What is simulated: the process (`full`), its `quotient`, or whichever is smaller (`auto`).

    Args:
      sde: the process.
      grid: increasing times [n + 1].
      kind: one of `SIMULATIONS`.
      integrator: see `integrators.step_sizes`.
      paths: how many paths a data point the quotient would need instead of one.

    Raises:
      ValueError: unknown kind, or a process that has no quotient.
    """
    if kind not in SIMULATIONS:
        raise ValueError(f"noising.simulation={kind!r}: choose one of {', '.join(SIMULATIONS)}")
    if kind == "full" or (kind == "auto" and not has_quotient(sde)):
        return FullSpace(sde=sde)
    small = quotient(sde, grid, integrator=integrator)
    rows = paths if isinstance(small, Quotient) else 1
    if kind == "auto" and 2 * rows * small.sde.dim > sde.dim:
        return FullSpace(sde=sde)
    return small
