"""log p(y) of states by the probability flow, and a bound of it by the reverse SDE.

Both take a score function, and know of the process what sampling knows. Equations, accuracy and
what to choose: docs/likelihood.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax import checks, parallel
from ndsm_jax.checks import (
    COUNT,
    GRID,
    KEY,
    SCORE,
    STEPS,
    arguments,
    function,
    number,
    one_of,
    whole,
)
from ndsm_jax.derivatives import divergence
from ndsm_jax.integrators import (
    broadcast_time,
    default_smallest_variance,
    forward_step,
    scan_grid,
    stable_grid,
    step_sizes,
    time_grid,
)
from ndsm_jax.processes.process import (
    Process,
    ScoreFn,
    noisy_from_the_start,
    probability_flow,
)
from ndsm_jax.references.reference import Reference, has_constant
from ndsm_jax.sampling.flow import check_diffrax, solve_adaptively
from ndsm_jax.sampling.sampler import normals

EXACT_DIM = 16
"""Largest d whose divergence is exact where the number of probes is left open."""

DEFAULT_PROBES = 8
"""Probes of the divergence above."""

PROBES: dict[str, Callable[..., Array]] = {
    "rademacher": jax.random.rademacher,
    "gaussian": jax.random.normal,
}
"""Laws of probes, of mean 0 and covariance I."""

_PROBES = 0xFFFFFFFE
"""Stream of a row's probes: no step has this number."""


class LogProb(NamedTuple):
    """Log densities in nats, each with its standard error.

    Attributes:
      value: [...].
      standard_error: of the Monte Carlo part of the value, [...]: 0 where there is none, NaN where
        one draw does not tell. Errors of time steps are not in it.
    """

    value: Any
    standard_error: Any


Start = Callable[[Array, Any], Array]
"""(y [B, d], condition) -> log density [B] of what sampling starts from, given the condition."""


@runtime_checkable
class Method(Protocol):
    """A way to a log density: a frozen dataclass of options, static in compiled code."""

    def check(self, process: Process) -> None:
        """Raises ValueError for a process that it does not serve, or a missing library."""

    def times(self, process: Process, steps: int | None, smallest_variance: float) -> np.ndarray:
        """A grid of so many steps (None: as many as are good), [n + 1] from 0 to T.

        smallest_variance: see `integrators.clock_grid`; at the end of the first step.
        """

    def __call__(
        self,
        keys: Array,
        score: Callable[..., Array],
        process: Process,
        y: Array,
        grid: Array,
        *,
        condition: Any = None,
        start: Start | None = None,
    ) -> LogProb:
        """log p of states y [B, d], [B] each; traceable by JAX. Row i is driven by keys[i] alone.

        The score is that of the grid's first positive time t_1 at all earlier times: a network
        knows nothing of these.
        """


def _log_start(process: Process, start: Start | None, y: Array, condition: Any) -> Array:
    """Log density of states [B, d] at the horizon: [B], of the reference where `start` is None."""
    return process.reference.log_prob(y) if start is None else start(y, condition)


def _held(process: Process, score: Callable[..., Array], condition: Any, first: Array) -> ScoreFn:
    """The score, given its condition, at times from `first` on; before, that at `first`."""
    score = checks.score("likelihood", score, process.noise_dim)
    more = () if condition is None else (condition,)
    return lambda y, t: score(y, jnp.maximum(t, first), *more)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """log p by the probability flow (2011.13456, Eq. 39).

        log p(x_0) = log eta(x_T) + int_0^T div F(x_t, t) dt,    dx/dt = F = b - g^2 E u / 2,

    the density of what the flow makes of draws from the reference eta, whatever the score u and the
    noise E. The divergence is that of F as a whole: for Langevin noising the reference's part of it
    cancels before anything is summed.

    Steps are those of the classical Runge-Kutta method in sqrt(t), in which the flow leaves a data
    point on a straight line: four evaluations of the score each. The sum over them is compensated
    (Kahan 1965).

    Attributes:
      probes: of the divergence's estimate (Hutchinson; 1810.01367, Section 3.1), one set a row for
        all times; 0: the divergence is exact, by d derivatives; None: that up to `EXACT_DIM`
        dimensions, `DEFAULT_PROBES` above.
      law: of the probes, a key of `PROBES`.
      tolerance: absolute and relative, of the state and of log p, for steps of each row's own with
        error control (Tsit5, by diffrax); None: the steps of the grid.
    """

    probes: int | None = None
    law: str = "rademacher"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        checks.fields(self, probes=whole(0), law=one_of(PROBES), tolerance=number(above=0, high=1))

    def check(self, process: Process) -> None:
        """See `Method`: a reference whose density is known up to a constant is refused."""
        check_normalised(process.reference)
        if self.tolerance is not None:
            check_diffrax()

    def times(self, process: Process, steps: int | None, smallest_variance: float) -> np.ndarray:
        """See `Method`; 40 steps by default."""
        return time_grid(process, steps or 40, smallest_variance=smallest_variance)

    def __call__(
        self,
        keys: Array,
        score: Callable[..., Array],
        process: Process,
        y: Array,
        grid: Array,
        *,
        condition: Any = None,
        start: Start | None = None,
    ) -> LogProb:
        """See `Method`."""
        probes = self._probes(keys, y)
        estimates = 1 if probes is None else probes.shape[1]

        def run(rows: tuple[Array, Array | None, Any]) -> State:
            y, probes, condition = rows
            slope = partial(_slope, process, _held(process, score, condition, grid[1]), probes)
            first = (y, jnp.zeros((y.shape[0], estimates), y.dtype))
            if self.tolerance is None:
                return _fixed_steps(slope, first, jnp.sqrt(grid))
            return _adaptive_steps(slope, first, jnp.sqrt(grid), self.tolerance)

        def row(one: Any) -> Any:
            return jax.tree.map(lambda a: a[0], run(jax.tree.map(lambda a: a[None], one)))

        rows = (y, probes, condition)
        y, total = run(rows) if self.tolerance is None else jax.vmap(row)(rows)
        values = _log_start(process, start, y, condition)[None] + total.T
        return LogProb(values[0], jnp.zeros_like(values[0])) if probes is None else _mean(values)

    def _probes(self, keys: Array, y: Array) -> Array | None:
        """Of states y [B, d], in their precision: [B, p, d], or None for an exact divergence."""
        count, dim = self.probes, y.shape[-1]
        if count is None:
            count = 0 if dim <= EXACT_DIM else DEFAULT_PROBES
        if not count:
            return None

        def draw(key: Array) -> Array:
            return PROBES[self.law](jax.random.fold_in(key, _PROBES), (count, dim), y.dtype)

        return jax.vmap(draw)(keys)


State = tuple[Array, Array]
"""x [B, d] and the integral of the divergence so far, [B, p] estimates of it."""
Slope = Callable[[Array, State], State]
"""(r, state) -> the derivatives by r of both."""


def _slope(process: Process, score: ScoreFn, probes: Array | None, r: Array, state: State) -> State:
    """Derivatives of a `State` by r = sqrt(t), for probes [B, p, d]; without, p is 1."""
    x = state[0]
    t = broadcast_time(r**2, x)

    def flow(x: Array) -> Array:
        return -probability_flow(process, score)(x, t)

    if probes is None:
        velocity, trace = divergence(flow, x)
        trace = trace[:, None]
    else:
        velocity, trace = jax.vmap(
            lambda probe: divergence(flow, x, probe=probe), in_axes=1, out_axes=(None, 1)
        )(probes)
    return 2 * r * velocity, 2 * r * trace


_STAGES = np.array([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]], np.float32)
"""Of the classical Runge-Kutta method: how far along the last slope, and the weight in the sum."""


def _fixed_steps(slope: Slope, start: State, grid: Array) -> State:
    def step(carry: Any, n: Array, r: Array, r_next: Array) -> tuple[Any, None]:
        (x, total, lost), h = carry, r_next - r

        def stage(carry: tuple[State, State], c: Array) -> tuple[tuple[State, State], None]:
            last, summed = carry
            new = slope(r + h * c[0], (x + h * c[0] * last[0], total))
            return (new, jax.tree.map(lambda s, k: s + h * c[1] * k, summed, new)), None

        zeros = jax.tree.map(jnp.zeros_like, (x, total))
        increments = jax.lax.scan(stage, (zeros, zeros), jnp.asarray(_STAGES))[0][1]
        return (x + increments[0], *_add(total, lost, increments[1])), None

    x, total = start
    x, total, _ = scan_grid(step, (x, total, jnp.zeros_like(total)), grid)[0]
    return x, total


def _adaptive_steps(slope: Slope, start: State, grid: Array, tolerance: float) -> State:
    """Of one row: the first step of the grid, where the slope has a kink, and then to its end."""
    return solve_adaptively(
        slope,
        _fixed_steps(slope, start, grid[:2]),
        start=grid[1],
        end=grid[-1],
        first_step=grid[2] - grid[1],
        rtol=tolerance,
        atol=tolerance,
    )[0]


def _add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """total + term, and what rounding added to it: Kahan's summation."""
    term = term - lost
    new = total + term
    return new, (new - total) - term


def _mean(values: Array) -> LogProb:
    """Of independent estimates along the first axis."""
    count = values.shape[0]
    error = jnp.std(values, axis=0, ddof=1) / count**0.5 if count > 1 else values[0] + jnp.nan
    return LogProb(jnp.mean(values, axis=0), error)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound of log p by the reverse SDE: E log w over noising paths that start at y.

        w = eta(Y_n) prod_j p(Y_j | Y_{j+1}) / q(Y_{j+1} | Y_j),    E w = p(y).

    q are the noising steps Y_{j+1} = mu(Y_j) + sigma_j Z (`integrators.local_kernel`), exact or
    not, and p those of a reverse SDE of as many steps, whose own density it is that is bounded, for
    any score. With steps to zero the bound is that of 2106.02808, Theorem 3 (and of 2407.07998, for
    nonlinear drifts). As its terms are of one path, its value hardly varies between paths where the
    score is right, and there is no divergence but in

        p(. | Y_{j+1}) = N(m - eta b(m), s^2 I),    m = Y_{j+1} + sigma^2 u(Y_{j+1}),
        log s^2 = log sigma^2 + (sigma^2 div u - 2 eta div b) / d.

    m is the mean of mu(Y_j) = Y_j + eta b(Y_j) given Y_{j+1}, by Tweedie's formula, and s^2 I has
    the determinant of the covariance of Y_j, to first order; div is an estimate by one probe. What
    is lost to steps is in proportion to their length, and to how much the curvature of log p
    differs between directions.

    On a torus steps are Euler's and paths run in the covering space, where eta is periodic. There
    E w = p(y), too: reverse paths from one cell to all images of y are those from all cells to y.

    Attributes:
      paths: independent bounds a state, whose mean is the value.
      importance: paths of each of them, K: E log (w_1 + ... + w_K) / K, which grows with K to log
        p (1509.00519, Theorem 1).
    """

    paths: int = 8
    importance: int = 1

    def __post_init__(self) -> None:
        checks.fields(self, paths=COUNT, importance=COUNT)

    def check(self, process: Process) -> None:
        """See `Method`: noise that drives some coordinates only, or starts at 0, is refused, too.

        Its steps have no density.
        """
        check_normalised(process.reference)
        if process.noisy is not None:
            raise ValueError(
                f"likelihood.Bound needs noise on every coordinate, and that of {process.name!r}"
                f" drives {process.noise_dim} of {process.dim}; use likelihood.Flow"
            )
        if not noisy_from_the_start(process):
            raise ValueError(
                f"likelihood.Bound needs noise from t = 0 on, and that of {process.name!r} starts"
                " at 0; use likelihood.Flow"
            )

    def times(self, process: Process, steps: int | None, smallest_variance: float) -> np.ndarray:
        """See `Method`; 200 steps by default, or more if these were not stable."""

        def make(steps: int) -> np.ndarray:
            return time_grid(process, steps, smallest_variance=smallest_variance)

        return make(steps) if steps else stable_grid(process, 200, make=make)

    def __call__(
        self,
        keys: Array,
        score: Callable[..., Array],
        process: Process,
        y: Array,
        grid: Array,
        *,
        condition: Any = None,
        start: Start | None = None,
    ) -> LogProb:
        """See `Method`."""
        size = self.paths * self.importance
        keys = jax.vmap(partial(jax.random.split, num=size), out_axes=1)(keys).reshape(-1)
        y, condition = jax.tree.map(
            lambda a: jnp.broadcast_to(a[None], (size, *a.shape)).reshape(-1, *a.shape[1:]),
            (y, condition),
        )
        held = _held(process, score, condition, grid[1])

        def step(carry: Any, n: Array, t: Array, t_next: Array) -> tuple[Any, None]:
            y, total, lost = carry
            y, term = _bound_step(keys, held, process, y, n, t, t_next)
            return (y, *_add(total, lost, term)), None

        zeros = jnp.zeros(y.shape[:-1], y.dtype)
        y, total, _ = scan_grid(step, (y, zeros, zeros), grid)[0]
        log_w = _log_start(process, start, y, condition) + total
        log_w = log_w.reshape(self.paths, self.importance, -1)
        return _mean(jax.nn.logsumexp(log_w, axis=1) - math.log(self.importance))


def _bound_step(
    keys: Array,
    score: ScoreFn,
    process: Process,
    y: Array,
    n: Array,
    t: Array,
    t_next: Array,
) -> tuple[Array, Array]:
    """Y_{n+1} [B, d], and log p(Y_n | Y_{n+1}) / q(Y_{n+1} | Y_n) [B]."""
    before, after, h = (broadcast_time(time, y) for time in (t, t_next, t_next - t))
    # On a torus no drift is linear, and exponential steps are refused.
    integrator = "exponential" if process.known.period is None else "euler"
    eta, sigma = step_sizes(process, before, h, integrator=integrator)
    z = normals(keys, n, process.dim, y.dtype)
    new = forward_step(process, y, before, h, z, integrator=integrator)

    def probe(key: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, _PROBES), n)
        return jax.random.rademacher(key, (process.dim,), y.dtype)

    v = jax.vmap(probe)(keys)
    u, of_score = divergence(lambda y: score(y, after), new, probe=v)
    mean = new + sigma[..., None] ** 2 * u
    b, of_drift = divergence(lambda y: process.drift(y, before), mean, probe=v)
    log_ratio = 0.5 * (sigma**2 * of_score - 2 * eta * of_drift) / process.dim  # of s and sigma
    deviation = (y - mean + eta[..., None] * b) / (sigma * jnp.exp(log_ratio))[..., None]
    squares = 0.5 * jnp.sum(z**2 - deviation**2, axis=-1)
    return new, squares - process.dim * log_ratio


def check_normalised(reference: Reference) -> None:
    """Raises ValueError where the constant of a reference's density is not known."""
    if not has_constant(reference):
        raise ValueError(
            f"the log_prob of a {type(reference).__name__} lacks its constant, so that log p is not"
            " known; references.normalised(key, energy, proposal) finds that of the energy it is"
            " made of, and the weights of references.fit_tilt have it"
        )


@arguments(
    key=KEY,
    score=SCORE,
    process=Process,
    y="finite numbers [n, d]",
    method=Method,
    grid=(GRID, STEPS),
    start=function(2),
    chunk=COUNT,
    on_chunk=function(1),
)
def log_prob(
    key: Array,
    score: Callable[..., Array],
    process: Process,
    y: Any,
    *,
    method: Method | None = None,
    grid: int | np.ndarray | Array | None = None,
    condition: Any = None,
    start: Start | None = None,
    chunk: int = 100,
    on_chunk: Callable[[int], None] | None = None,
) -> LogProb:
    """Log densities of states y [n, d], `chunk` at a time in bounded memory: [n] float64 each.

    What is random in that of row i depends on `key` and i alone.

    Args:
      key: typed PRNG key, of probes or paths.
      score: u(y [B, d], t [B]) -> [B, r], as for `sampling.sample`; u(y, t, condition) where a
        condition is given.
      process: the noising process.
      y: states, finite.
      method: `Flow()` if None.
      grid: increasing times [n + 1] from 0, the first step ending at the smallest time at which the
        score is known; a number of steps; or None: see `Method.times`.
      condition: a pytree of arrays with leading axis n.
      start: where sampling starts given the condition; the process's reference if None.
      chunk: states in memory at a time (times probes, or paths).
      on_chunk: called after each with the number of its states.

    Raises:
      ValueError: a process that the method does not serve, states of another shape or not finite,
        a condition of another length, or a chunk below 1.
    """
    method = method or Flow()
    method.check(process)
    y = np.asarray(y, np.float32)
    if not len(y) or not np.isfinite(y).all():  # in float32, too
        raise ValueError(f"log_prob: y of shape {y.shape}; finite states [n >= 1, d] are needed")
    condition = jax.tree.map(np.asarray, condition)
    for leaf in jax.tree.leaves(condition):
        if np.shape(leaf)[:1] != (len(y),):
            has = f"{len(leaf)} rows" if np.ndim(leaf) else "one number"
            raise ValueError(f"log_prob: condition has {has} for {len(y)} states")
    if grid is None or np.ndim(grid) == 0:
        smallest = default_smallest_variance(process)
        grid = method.times(process, None if grid is None else int(grid), smallest)
    done = [np.zeros((2, 0))]
    chunk = parallel.whole_rows(min(chunk, len(y)))
    score = score if isinstance(score, Partial) else Partial(score)
    start = start if start is None or isinstance(start, Partial) else Partial(start)
    score, process, start = parallel.replicated((score, process, start))
    for first in range(0, len(y), chunk):
        rows = np.minimum(np.arange(first, first + chunk), len(y) - 1)  # the last is padded
        found = _chunk(
            key,
            parallel.spread(rows.astype(np.uint32)),
            parallel.gathered(y, rows),
            score,
            process,
            jnp.asarray(grid, jnp.float32),
            method,
            parallel.gathered(condition, rows),
            start,
        )
        done.append(np.asarray(parallel.fetched(found), np.float64)[:, : len(y) - first])
        if on_chunk is not None:
            on_chunk(min(chunk, len(y) - first))
    return LogProb(*np.concatenate(done, axis=1))


@jax.jit
def _chunk(
    root: Array,
    index: Array,
    y: Array,
    score: Callable[..., Array],
    process: Process,
    grid: Array,
    method: Method,
    condition: Any,
    start: Start | None,
) -> LogProb:
    keys = jax.vmap(partial(jax.random.fold_in, root))(index)
    # TF32, the default of recent GPUs, would leave three digits of a divergence.
    with jax.default_matmul_precision("highest"):
        return method(keys, score, process, y, grid, condition=condition, start=start)


def bits_per_dim(log_prob: Any, dim: int) -> Any:
    """Bits per dimension, -log p / (d log 2), of items on levels, from their log probability.

    `training.log_prob` gives a lower bound of it where the frame draws points of the levels, as
    `frames.Pixels` does; then this is an upper bound, which for 256 equally likely levels is 8.
    """
    return -log_prob / (dim * math.log(2))
