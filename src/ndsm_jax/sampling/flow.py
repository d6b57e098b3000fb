"""Samplers that solve the probability-flow ODE. Derivations, measurements: docs/samplers.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax import checks
from ndsm_jax.checks import COUNT, POSITIVE, number
from ndsm_jax.clock import Clock
from ndsm_jax.integrators import broadcast_time, heun_step
from ndsm_jax.processes.process import Process, ScoreFn, probability_flow
from ndsm_jax.sampling.kernel import noised
from ndsm_jax.sampling.sampler import Sampler, extrapolation, normals


def churned(
    keys: Array, process: Process, x: Array, n: Array, t: Array, length: Array
) -> tuple[Array, Array]:
    """Noised again before step n, from t to t + length, see `noised`.

    The churn of 2206.00364, Algorithm 2, for any process: for `variance_exploding` noise is added,
    as there. It keeps the marginal law, whatever the score (but for the Euler error where no kernel
    is known), so that the flow that follows starts a little earlier from states that have forgotten
    some of the errors made so far.

    Returns:
      The states [B, d] and their time t + length (a scalar).
    """
    z = normals(keys, n, process.noise_dim, x.dtype)
    return noised(process, x, t, t + length, z), t + length


class Heun(NamedTuple):
    """x [B, d] and the time before the last step (a scalar)."""

    x: Array
    last_t: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunFlow(Sampler):
    """Heun's method on the probability-flow ODE, two evaluations a step.

    Attributes:
      churn: before each step but the first, this fraction of the step before is undone by
        `churned`. 0 costs nothing.
    """

    churn: float = 0.0

    def __post_init__(self) -> None:
        checks.fields(self, churn=number(low=0, high=1))

    def init(self, process: Process, x: Array, t: Array) -> Heun:
        """See `Sampler`."""
        return Heun(x, t)

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Heun,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Heun:
        """See `Sampler`."""
        x, start = state.x, t
        if self.churn:
            x, start = churned(keys, process, x, n, t, self.churn * (state.last_t - t))
        velocity = probability_flow(process, score)
        x = heun_step(velocity, x, broadcast_time(start, x), broadcast_time(t_next, x))
        return Heun(x, t)

    def evaluations(self, num_steps: int) -> int:
        """Two a step, and one to denoise."""
        return 2 * (num_steps - 1) + 1

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """The forward step of the churn."""
        return self.churn * longest


class MultistepFlowState(NamedTuple):
    """x [B, d]; the last F [B, d] and the clock where it was found; the time before the step."""

    x: Array
    last: Array
    last_clock: Array
    last_t: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultistepFlow(Sampler):
    """Second-order multistep on the probability-flow ODE in the clock, one evaluation a step.

    Adams-Bashforth for dX/dc = (dX/dt) / c'(t), c = `Clock.time`:

        x <- x + h F~,    F~ = F + h / (2 h_last) (F - F_last),    F = velocity / c'(t),

    with h the decrease of c. Equal clock steps leave F nearly linear: early in noising it is half
    the distance to the denoised state, late it relaxes at the process's own rate. The first step is
    of first order. Stable for h < 2 (10 steps on the default grid). A change of variable alone, so
    it serves any process.

    Attributes:
      churn: as of `HeunFlow`.
    """

    churn: float = 0.0

    def __post_init__(self) -> None:
        checks.fields(self, churn=number(low=0, high=1))

    def init(self, process: Process, x: Array, t: Array) -> MultistepFlowState:
        """See `Sampler`."""
        return MultistepFlowState(x, jnp.zeros_like(x), process.clock.time(t), t)

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: MultistepFlowState,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> MultistepFlowState:
        """See `Sampler`."""
        x, last, last_clock, last_t = state
        start = t
        if self.churn:
            x, start = churned(keys, process, x, n, t, self.churn * (last_t - t))
        clock, rate = jax.jvp(process.clock.time, (start,), (jnp.ones_like(start),))
        new = probability_flow(process, score)(x, broadcast_time(start, x)) / rate
        h = clock - process.clock.time(t_next)
        weight = extrapolation(h, last_clock - clock)
        return MultistepFlowState(x + h * (new + weight * (new - last)), new, clock, t)

    def evaluations(self, num_steps: int) -> int:
        """One a step."""
        return num_steps

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """The forward step of the churn."""
        return self.churn * longest


class Adaptive(NamedTuple):
    """x [B, d] and the evaluations of the score so far [B]."""

    x: Array
    evaluations: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveFlow(Sampler):
    """Tsit5 with error control on the probability-flow ODE in log t, by diffrax; keys not used.

    Of the grid only its ends and its number of steps count, which sets the first step. Every sample
    has its own steps; a chunk runs until its last one is done. One evaluation, and six a step
    tried.

    Attributes:
      rtol, atol: relative and absolute tolerance, as those of diffrax's PIDController, in units of
        x.
      parts: the first step tried is this part of the way in log t; None: the grid's steps.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    parts: int | None = None
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.fields(self, rtol=POSITIVE, atol=POSITIVE, parts=COUNT)

    def check(self, process: Process) -> None:
        """Raises ValueError where diffrax is not installed."""
        check_diffrax()

    def plan(self, process: Process, times: Array) -> tuple[Sampler, Array]:
        """One step from end to end."""
        planned = dataclasses.replace(self, parts=self.parts or times.shape[0] - 1)
        return planned, jnp.stack([times[0], times[-1]])

    def init(self, process: Process, x: Array, t: Array) -> Adaptive:
        """See `Sampler`."""
        return Adaptive(x, jnp.zeros(x.shape[:1], jnp.int32))

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Adaptive,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Adaptive:
        """See `Sampler`. All rows that it is given have the same steps: the driver gives one."""
        velocity = probability_flow(process, score)

        def slope(log_t: Array, x: Array) -> Array:
            t = jnp.exp(log_t)
            return -t * velocity(x, broadcast_time(t, x))

        start, end = jnp.log(t), jnp.log(t_next)
        x, steps = solve_adaptively(
            slope,
            state.x,
            start=start,
            end=end,
            first_step=(end - start) / (self.parts or 1),
            rtol=self.rtol,
            atol=self.atol,
        )
        return Adaptive(x, state.evaluations + 1 + 6 * steps)

    def evaluations(self, num_steps: int) -> None:
        """Known only when it is done."""
        return None


Solved = TypeVar("Solved")


def solve_adaptively(
    slope: Callable[[Array, Solved], Solved],
    state: Solved,
    *,
    start: Array,
    end: Array,
    first_step: Array,
    rtol: float,
    atol: float,
) -> tuple[Solved, Array]:
    """d state / ds = slope(s, state) from s = start to end, by Tsit5 with error control (diffrax).

    Args:
      slope: of a state, a pytree; evaluated once, and six times a step tried.
      state: at the start; its rows have the same steps.
      start, end: of s, scalars.
      first_step: the first one tried.
      rtol, atol: relative and absolute tolerance, as those of diffrax's PIDController.

    Returns:
      The state at the end, and the number of steps tried.

    Raises:
      ValueError: diffrax is not installed.
    """
    diffrax = check_diffrax()
    with jax.numpy_rank_promotion("allow"):  # diffrax relies on it
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda s, state, args: slope(s, state)),
            diffrax.Tsit5(),
            t0=start,
            t1=end,
            dt0=first_step,
            y0=state,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        )
    return jax.tree.map(lambda a: a[0], solution.ys), solution.stats["num_steps"]


def check_diffrax() -> Any:
    """The module diffrax. Raises ValueError where it is not installed."""
    try:
        import diffrax
    except ImportError as error:
        raise ValueError(
            "steps with error control (sample.sampler='adaptive_flow', likelihood.Flow(tolerance="
            "...)) need diffrax: pip install 'ndsm_jax[diffrax]', or choose others"
        ) from error
    return diffrax
