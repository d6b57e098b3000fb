"""Simulation of a process, in the whole space or in a quotient, with path-space targets."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, TIMES, arguments, one_of
from ndsm_jax.integrators import (
    INTEGRATOR_CHOICES,
    broadcast_time,
    chosen_integrator,
    forward_step,
    scan_grid,
    step_sizes,
    time_grid,
)
from ndsm_jax.noising.modes import Modes, mixture_of, mode_at, modes_of
from ndsm_jax.noising.quotient import Quotient, TiedQuotient, quotient
from ndsm_jax.processes.process import Process, pull_back

PATH_WEIGHTS = ("sinh", "ramp")

Grid = np.ndarray | int
"""Increasing times [n + 1] from 0 to T, or a number of steps of the process's clock."""


def as_grid(process: Process, grid: Grid) -> np.ndarray:
    """The times of a `Grid`: [n + 1] float32."""
    return time_grid(process, int(grid)) if np.ndim(grid) == 0 else np.asarray(grid, np.float32)


@partial(jax.tree_util.register_dataclass, data_fields=("process", "modes"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class FullSpace:
    """The chain as it is: the state of the simulation is the state of the process.

    Attributes:
      process: what is simulated.
      modes: of `mixture_of`, or its reference; None where no targets are wanted.
    """

    process: Process
    modes: Modes | None = None

    def start(self, x0: Array) -> Array:
        """x0 [B, d] -> states [B, d]."""
        return x0

    def draws(self, key: Array, num_steps: int, y: Array) -> None:
        """Nothing is drawn ahead: the normals of all steps would not fit into memory."""

    def noise(self, key: Array, n: Array, drawn: None, y: Array) -> Array:
        """Step n's normals of states y [..., d], in their precision: [..., r]."""
        shape = (*y.shape[:-1], self.process.noise_dim)
        return jax.random.normal(jax.random.fold_in(key, n), shape, y.dtype)

    def reframe(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Nothing turns."""
        return y, target

    def lift(
        self, key: Array, x0: Array, index: Array, y: Array, target: Array, companion: Array
    ) -> tuple[Array, Array, Array]:
        """Nothing to do."""
        return y, target, companion


Chain = FullSpace | Quotient | TiedQuotient


def full_space(process: Process) -> FullSpace:
    """The chain in the whole space, with the modes of `mixture_of`, or one of its reference."""
    mixture = mixture_of(process)
    if mixture is not None:
        relaxing = process.known.mixture is not None
        return FullSpace(process=process, modes=modes_of(mixture, relaxing=relaxing))
    typical = process.reference.typical_variance()
    variances = jnp.broadcast_to(jnp.asarray(typical, jnp.float32), (1, 1))
    return FullSpace(process=process, modes=Modes(variances=variances))


class Window(NamedTuple):
    """Over which steps a path-space target is accumulated, and how.

    Attributes:
      start: grid index before the window's first step, [B, k]; None: the path's start.
      stop: grid index after its last step, [B, k].
      weights: one of `PATH_WEIGHTS`.
      curvature: rate of the `sinh` weights, 1 / time; 0: of the mode at the window's start.
      companion: whether the window's noise-free path is run beside it.
    """

    start: Array | None
    stop: Array
    weights: str
    curvature: Array
    companion: bool


class PathTarget(NamedTuple):
    """The recursion: along the axes of the mode [B, k] target [B, k, D] and v [B, k, m]; the
    noise-free path [B, k, D]."""

    target: Array
    v: Array
    mode: Array
    companion: Array


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
    """One step (eta, sigma) [B, k] of the chain from y with normals z, and of the targets on their
    way.

    Inside its window a target follows (docs/path_space.md, Eq. 5)

        T <- rho T - ((1 - rho) z - eta rho J_b(y)^T z) / sigma,
        rho = (1 - a eta) v / v',    v' = (1 - a eta)^2 v + sigma^2,

    for the rate a of its weights along each axis of the mode at its start, from T = 0 and v = 0.
    """
    eta, sigma = (size[..., None] for size in step)
    inside, mode, companion = n < window.stop, path.mode, path.companion
    assert chain.modes is not None
    if window.start is not None:
        inside = inside & (window.start <= n)
        entering = window.start == n
        mode = jnp.where(entering, mode_at(chain.process, y), mode)
        companion = jnp.where(entering[..., None], y, companion)
    drift, pulled = pull_back(chain.process, y, broadcast_time(t, y), z)
    # Any weights are right, so that a rate too large for the step may be cut.
    rate = _rate(window, chain.process.diffusion(t), chain.modes.variances[mode])
    contraction = jnp.maximum(1 - eta * rate, 0)
    v = contraction**2 * path.v + sigma**2
    rho = contraction * path.v / v
    own, pulled = chain.modes.along(mode, z), chain.modes.along(mode, pulled)
    target = rho * path.target - ((1 - rho) * own - eta * rho * pulled) / sigma
    y_next, target = chain.reframe(y + eta * drift + sigma * z, target)
    if window.companion:
        moved = companion + eta * chain.process.drift(companion, broadcast_time(t, companion))
        companion = jnp.where(inside[..., None], moved, companion)
    path = PathTarget(
        target=jnp.where(inside[..., None], target, path.target),
        v=jnp.where(inside[..., None], v, path.v),
        mode=mode,
        companion=companion,
    )
    return y_next, path


def _rate(window: Window, g: Array, stationary: Array) -> Array:
    """a [B, k, m] of the weights: 0 for a ramp, else given or of the stationary variances."""
    if window.weights == "ramp":
        return jnp.zeros_like(stationary)
    given = jnp.broadcast_to(window.curvature, stationary.shape)
    return jnp.where(given > 0, given, g**2 / (2 * stationary))


def relaxing_variance(chain: Chain, y: Array, integrator: str) -> Array | None:
    """Of the mode that a path starts in, for `step_sizes`: starts [..., r] -> [...], or None.

    It stays that of the path, wherever this goes. The law at a time is then a mixture of those of
    chains of different steps, and so is its score one of theirs: what is exact for one chain is for
    all of them. In a mode of another width, or along an axis of another variance, the step is no
    longer exact; see `step_sizes` for how much is lost.
    """
    if integrator != "exponential" or chain.modes is None or chain.modes.relaxing is None:
        return None
    return chain.modes.relaxing[mode_at(chain.process, y)]


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
    drawn: Any = chain.draws(key_draws, grid.shape[0] - 1, y)
    kept = jnp.broadcast_to(y, (*stop.shape, y.shape[-1]))
    by: Any = {"integrator": integrator, "variance": relaxing_variance(chain, y, integrator)}

    def step(
        carry: tuple[Array, Array, PathTarget], n: Array, t: Array, t_next: Array
    ) -> tuple[tuple[Array, Array, PathTarget], None]:
        y, kept, path = carry
        z = chain.noise(key_steps, n, drawn, y)
        times = (broadcast_time(t, y), broadcast_time(t_next - t, y))
        if window is None:
            y = forward_step(chain.process, y, *times, z, **by)
            y, _ = chain.reframe(y, jnp.zeros_like(y))
        else:
            sizes = step_sizes(chain.process, *times, **by)
            y, path = path_step(chain, window, n, t, sizes, z, y, path)
        return (y, jnp.where((stop == n + 1)[..., None], y, kept), path), None

    mode, axes = jnp.zeros(stop.shape, jnp.int32), 1
    if window is not None:
        assert chain.modes is not None
        axes = chain.modes.variances.shape[1]
        if window.start is None:
            mode = jnp.broadcast_to(mode_at(chain.process, y), stop.shape)
    path = PathTarget(
        target=jnp.zeros_like(kept),
        v=jnp.zeros((*stop.shape, axes), x0.dtype),
        mode=mode,
        companion=kept,
    )
    _, kept, path = scan_grid(step, (y, kept, path), grid)[0]
    target = path.target
    if window is not None and chain.modes is not None:
        target = chain.modes.across(path.mode, target)
    y, target, companion = chain.lift(key_lift, x0, stop, kept, target, path.companion)
    return y, path._replace(target=target, companion=companion)


SIMULATIONS = ("auto", "full", "quotient")


@arguments(
    process=Process,
    grid=TIMES,
    kind=one_of(SIMULATIONS),
    integrator=one_of(INTEGRATOR_CHOICES),
    paths=COUNT,
)
def make_chain(
    process: Process,
    grid: np.ndarray,
    *,
    kind: str = "auto",
    integrator: str = "auto",
    paths: int = 1,
) -> Chain:
    """What is simulated: the process (`full`), its `quotient`, or whichever is smaller (`auto`).

    Args:
      process: the process.
      grid: increasing times [n + 1].
      kind: one of `SIMULATIONS`.
      integrator: see `integrators.step_sizes` and, of `auto`, `integrators.chosen_integrator`.
      paths: how many paths a data point the quotient would need instead of one.

    Raises:
      ValueError: unknown kind, or a process that has no quotient.
    """
    has_quotient = process.known.quotient is not None and process.noisy is None
    if kind == "full" or (kind == "auto" and not has_quotient):
        return full_space(process)
    small = quotient(process, grid, integrator=chosen_integrator(process, integrator))
    rows = paths if isinstance(small, Quotient) else 1
    if kind == "auto" and 2 * rows * small.process.dim > process.dim:
        return full_space(process)
    return small
