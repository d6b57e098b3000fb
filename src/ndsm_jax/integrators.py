"""Time grids, single steps, and the one loop over a grid that everything else uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, KEY, POSITIVE, STEPS, TIMES, arguments, number, one_of
from ndsm_jax.clock import LADDERS, ladder
from ndsm_jax.processes.process import Process

Carry = TypeVar("Carry")


@arguments(horizon=POSITIVE, num_steps=COUNT)
def uniform_grid(horizon: float, num_steps: int) -> np.ndarray:
    """0 = t_0 < ... < t_n = horizon with equal steps: [n + 1] float32, time units."""
    return np.linspace(0, horizon, num_steps + 1, dtype=np.float32)


EDM_RHO = 7.0
"""Exponent of the grid of 2206.00364, Eq. 5."""


@arguments(process=Process, num_steps=STEPS, smallest_variance=number(above=0), rho=POSITIVE)
def clock_grid(
    process: Process, num_steps: int, *, smallest_variance: float, rho: float | None = None
) -> np.ndarray:
    """Grid with equal steps of `Clock.time`, or of a power of it: [n + 1] float32, time units.

    t_0 = 0 and t_n = T; t_1 is where the kernel variance is `smallest_variance` times that at T,
    and from t_1 on the clock advances uniformly, so early steps are geometric in t and late ones
    a fixed fraction of the relaxation time.

    With `rho` it is (s/a)^(1/rho) that advances uniformly, s/a = exp(clock / 2) being the ratio of
    noise to signal (for linear processes exactly: the sigma of 2206.00364, Eq. 5). Steps are then
    shorter while there is little noise and longer while there is much.

    Raises:
      ValueError: fewer than 2 steps, a smallest variance outside (0, 1), or a process whose clock
        does not increase.
    """
    if num_steps < 2 or not 0 < smallest_variance < 1:
        raise ValueError(
            "clock_grid needs num_steps >= 2 and 0 < smallest_variance < 1,"
            f" got {num_steps} and {smallest_variance}"
        )
    horizon = float(process.horizon)
    t = np.geomspace(1e-12, 1.0, 20_000) * horizon
    v = np.asarray(process.clock.variance(jnp.asarray(t, jnp.float32)), np.float64)
    clock = np.asarray(process.clock.time(jnp.asarray(t, jnp.float32)), np.float64)
    if rho is not None:
        # Relative to the end, so that nothing overflows for a long horizon.
        clock = np.exp((clock - clock[-1]) / (2 * rho))
    first = np.interp(smallest_variance * v[-1], v, t)
    # Interpolated in log t, where the clock is smooth at both ends.
    log_t = np.log(t)
    start = np.interp(np.log(first), log_t, clock)
    inner = np.exp(np.interp(np.linspace(start, clock[-1], num_steps), clock, log_t))
    grid = np.concatenate([[0.0, first], inner[1:-1], [horizon]]).astype(np.float32)
    if not np.all(np.diff(grid) > 0):
        raise ValueError(
            f"the clock of {process.name!r} does not increase over its horizon {horizon:g}; lower"
            " process.horizon or the number of steps"
        )
    return grid


def ladder_grid(
    process: Process, num_levels: int, kind: str, *, smallest_variance: float
) -> np.ndarray:
    """0 and the times at which std(t) is at the levels of `clock.ladder`: [L + 1] float32.

    From sqrt(v(T)), at T, down to sqrt(smallest_variance v(T)).

    Raises:
      ValueError: as `clock.ladder`, and levels that the clock cannot tell apart.
    """
    horizon = float(process.horizon)
    t = np.geomspace(1e-12, 1.0, 20_000) * horizon
    v = np.asarray(process.clock.variance(jnp.asarray(t, jnp.float32)), np.float64)
    levels = ladder(kind, num_levels, smallest=smallest_variance**0.5)
    inner = np.exp(np.interp(np.log(levels[:0:-1]), 0.5 * np.log(v / v[-1]), np.log(t)))
    grid = np.concatenate([[0.0], inner, [horizon]]).astype(np.float32)
    if not np.all(np.diff(grid) > 0):
        raise ValueError(
            f"grid {kind!r}: {num_levels} levels of {process.name!r} are nearer than its noise can"
            " resolve near the horizon; take fewer, or the grid clock"
        )
    return grid


SMALLEST_VARIANCE = 1e-3
"""Where a grid's first step ends if nothing else is said, as a share of the data's variance."""

_REMEMBERED = 1e-4
"""Decay at the horizon below which a process has forgotten nothing of the scale of its data."""


def default_smallest_variance(process: Process) -> float:
    """`SMALLEST_VARIANCE` of the data's variance, as the share of v(T) that grids ask for.

    A process that forgets its data ends in noise of their size, v(T), and this is
    `SMALLEST_VARIANCE`. One that only adds noise, a(T) = 1 as in `variance_exploding`, has a v(T)
    that says nothing of them: their variance is taken to be 1, or v(T) where that is less.
    """
    clock, horizon = process.clock, process.horizon
    if float(clock.decay(horizon)) > _REMEMBERED:
        return SMALLEST_VARIANCE
    return SMALLEST_VARIANCE * min(1.0, 1 / float(clock.variance(horizon)))


GRIDS = ("clock", "edm", "uniform", *LADDERS)


@arguments(process=Process, num_steps=STEPS, kind=one_of(GRIDS), smallest_variance=number(above=0))
def time_grid(
    process: Process,
    num_steps: int,
    *,
    kind: str = "clock",
    smallest_variance: float | None = None,
) -> np.ndarray:
    """A grid by name, [num_steps + 1] float32 in time units: `clock_grid`, the same with rho = 7
    (`edm`), `uniform_grid`, or `ladder_grid`.

    smallest_variance: v(t_1) / v(T); None: `default_smallest_variance`.

    Raises:
      ValueError: unknown kind, and as `clock_grid`.
    """
    if kind == "uniform":
        return uniform_grid(float(process.horizon), num_steps)
    if smallest_variance is None:
        smallest_variance = default_smallest_variance(process)
    if kind in LADDERS:
        return ladder_grid(process, num_steps, kind, smallest_variance=smallest_variance)
    rho = EDM_RHO if kind == "edm" else None
    return clock_grid(process, num_steps, smallest_variance=smallest_variance, rho=rho)


MAX_STEPS = 500
"""Steps of a grid that we choose at most."""

ACCURATE = 0.25
"""The `step_ratio` that noising aims at. Explicit steps of a linear drift of rate a noise to the
variance 1 / (1 - a h / 2) times the right one: at the limit of stability twice as much."""


def stiffness(process: Process) -> float:
    """Largest rate of the drift, 1 / time: as known, otherwise that of the reference it noises to.

    For a drift of which nothing is known the second is a guess: right near the horizon, where the
    law is the reference.
    """
    known = process.known.stiffness
    return float(process.reference.stiffness()) if known is None else float(known)


def step_ratio(
    process: Process, grid: np.ndarray, explicit_step: Callable[[float], float] | None = None
) -> float:
    """The longest explicit step of a grid, times the `stiffness`: below 1 it is stable.

    explicit_step: of the longest step, that of an Euler step as stable (`Sampler.explicit_step`).
    """
    longest = float(np.diff(grid).max())
    return (longest if explicit_step is None else explicit_step(longest)) * stiffness(process)


def stable_grid(
    process: Process,
    fewest: int,
    *,
    explicit_step: Callable[[float], float] | None = None,
    make: Callable[[int], np.ndarray] | None = None,
    ratio: float = 1.0,
) -> np.ndarray:
    """The grid of the fewest steps, from `fewest` to `MAX_STEPS`, that are stable: [n + 1].

    Args:
      process: the process.
      fewest: steps in any case.
      explicit_step: see `step_ratio`.
      make: number of steps -> grid; by default `time_grid`.
      ratio: that is aimed at, see `step_ratio`; above 1 / 2 only stable, see `ACCURATE`.
    """
    make = make or (lambda steps: time_grid(process, steps))
    steps, grid = fewest, make(fewest)
    while steps < MAX_STEPS:
        found = step_ratio(process, grid, explicit_step) / ratio
        if found < 1:
            break
        steps = min(MAX_STEPS, int(np.ceil(1.1 * found * steps)))
        grid = make(steps)
    return grid


INTEGRATORS = ("euler", "exponential")
INTEGRATOR_CHOICES = ("auto", *INTEGRATORS)


def chosen_integrator(process: Process, integrator: str) -> str:
    """What `auto` is for a process: exponential for the Langevin dynamics of a mixture, else euler.

    Others are returned as they are.

    Raises:
      ValueError: an unknown one, or `exponential` for a process on a torus, where no drift is
        linear.
    """
    if integrator not in INTEGRATOR_CHOICES:
        raise ValueError(
            f"noising.integrator={integrator!r}: choose one of {', '.join(INTEGRATOR_CHOICES)}"
        )
    if integrator == "exponential" and process.known.period is not None:
        raise ValueError(
            f"noising.integrator='exponential': process {process.name!r} runs on a torus, where no"
            " drift is linear; choose euler, or auto"
        )
    if integrator != "auto":
        return integrator
    return "euler" if process.known.mixture is None else "exponential"


def phi(x: Array) -> Array:
    """phi_1(x) = (e^x - 1) / x, 1 at 0."""
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, jnp.expm1(safe) / safe)


def step_sizes(
    process: Process,
    t: Array,
    h: Array,
    *,
    integrator: str = "euler",
    variance: Array | None = None,
) -> tuple[Array, Array]:
    """(eta, sigma) of one step Y' = Y + eta b(Y, t) + sigma E Z: [...], [...] -> [...], [...].

    `euler` (Euler-Maruyama; 2405.15625, Algorithm 2): eta = h, sigma = g(t) sqrt(h).
    `exponential`: exact for a linear drift of rate a = g(t)^2 / (2 variance),

        eta = (1 - exp(-a h)) / a,    sigma^2 = g(t)^2 (1 - exp(-2 a h)) / (2 a),

    and explicit in what the drift has beyond it (exponential Euler, Lord, Powell & Shardlow 2014,
    Section 10.5). The rate does not depend on the state, so the step stays Gaussian with a scalar
    variance that does not either, and all that is exact for the Euler chain holds for it.

    About a mode of variance S, where the drift has the rate a s^2 / S and not that of the step,
    with s^2 = variance, steps of decay u = a h leave the stationary variance

        S (1 + exp(-u)) / (2 - (1 - exp(-u)) s^2 / S),

    too small where S > s^2, by half at most, and too large where S < s^2. (Euler's, S / (1 - a h
    s^2 / (2 S)), is too large in either.) It vanishes with the steps.

    Args:
      process: the process.
      t, h: time and length of the step.
      integrator: see `chosen_integrator`.
      variance: the stationary one of the mode within which the step is exact, [...]; None: that of
        the process's clock, v(infinity).

    Raises:
      ValueError: as `chosen_integrator`.
    """
    g = process.diffusion(t)
    if chosen_integrator(process, integrator) == "euler":
        return h, g * jnp.sqrt(h)
    variance = process.clock.saturation if variance is None else variance
    decay = g**2 / (2 * variance) * h
    return h * phi(-decay), g * jnp.sqrt(h * phi(-2 * decay))


def local_kernel(
    process: Process,
    y: Array,
    t: Array,
    h: Array,
    *,
    integrator: str = "euler",
    variance: Array | None = None,
) -> tuple[Array, Array]:
    """One step's Gaussian: mu = y + eta b(y, t) [..., d] and sigma [...] (2405.15625, Eq. 6).

    sigma is that of the coordinates that noise drives.

    y [..., d], t and h [...] in time units; integrator and variance as of `step_sizes`.
    """
    eta, sigma = step_sizes(process, t, h, integrator=integrator, variance=variance)
    return y + eta[..., None] * process.drift(y, t), sigma


def forward_step(
    process: Process,
    y: Array,
    t: Array,
    h: Array,
    z: Array,
    *,
    integrator: str = "euler",
    variance: Array | None = None,
) -> Array:
    """Y_{n+1} = mu_n + sigma_n E Z_{n+1} for given standard normals z [..., r]."""
    mu, sigma = local_kernel(process, y, t, h, integrator=integrator, variance=variance)
    return mu + process.spread(sigma[..., None] * z)


def heun_step(
    velocity: Callable[[Array, Array], Array], x: Array, t: Array, t_next: Array
) -> Array:
    """Heun's second-order step of dX/dtau = velocity(X, t), tau = T - t, from t to t_next, be it
    earlier or later."""
    h = (t - t_next)[..., None]
    slope = velocity(x, t)
    return x + 0.5 * h * (slope + velocity(x + h * slope, t_next))


def scan_grid(
    step: Callable[[Carry, Array, Array, Array], tuple[Carry, Any]], carry: Carry, grid: Array
) -> tuple[Carry, Any]:
    """Folds `step(carry, n, t_n, t_{n+1}) -> (carry, output)` over a grid [n + 1], up or down.

    Returns the last carry and the stacked outputs, as `lax.scan` does.
    """
    grid = jnp.asarray(grid)
    steps = (jnp.arange(grid.shape[0] - 1), grid[:-1], grid[1:])
    return jax.lax.scan(lambda c, x: step(c, *x), carry, steps)


@arguments(key=KEY, process=Process, y0="[..., d]", grid=TIMES, integrator=one_of(INTEGRATORS))
def simulate(
    key: Array,
    process: Process,
    y0: Array,
    grid: Array,
    *,
    integrator: str = "euler",
    variance: Array | None = None,
) -> Array:
    """A path of the forward process (2405.15625, Algorithm 2).

    Args:
      key: typed PRNG key; step n uses fold_in(key, n).
      process: the process.
      y0: start [..., d].
      grid: increasing times [n + 1].
      integrator, variance: of `step_sizes`, of each path.

    Returns:
      The whole path [n + 1, ..., d]. (Noising keeps only the states it needs, see `noising`.)
    """

    def step(y: Array, n: Array, t: Array, t_next: Array) -> tuple[Array, Array]:
        shape = (*y.shape[:-1], process.noise_dim)
        z = jax.random.normal(jax.random.fold_in(key, n), shape, y.dtype)
        times = (broadcast_time(t, y), broadcast_time(t_next - t, y))
        y = forward_step(process, y, *times, z, integrator=integrator, variance=variance)
        return y, y

    path = scan_grid(step, y0, grid)[1]
    return jnp.concatenate([y0[None], path])


def broadcast_time(t: Any, y: Array) -> Array:
    """A scalar time as t [...] beside y [..., d]."""
    return jnp.broadcast_to(jnp.asarray(t, y.dtype), y.shape[:-1])
