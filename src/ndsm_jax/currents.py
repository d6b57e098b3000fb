"""Probability currents and entropy production from a score (docs/physics.md has the derivations).

Of dY = b(Y, t) dt + g(t) E dW with the law p_t and u = E^T grad log p_t; D = g^2 / 2. The score is
any callable u(y [..., d], t [...]) -> [..., r], learned or exact.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import checks
from ndsm_jax.checks import SCORE, TIMES, arguments
from ndsm_jax.derivatives import divergence
from ndsm_jax.integrators import broadcast_time, heun_step, scan_grid
from ndsm_jax.processes.process import DriftFn, Process, ScoreFn, probability_flow


@arguments(y="[..., d]", t="[...]")
def _velocity(process: Process, score: ScoreFn, y: Array, t: Array) -> Array:
    return -probability_flow(process, score)(y, t)


@arguments(process=Process, score=SCORE)
def velocity(process: Process, score: ScoreFn) -> DriftFn:
    """Velocity of the probability current, v = b - D E u: [..., d], [...] -> [..., d].

    The Fokker-Planck equation is d p / dt = -div(v p) (2206.04642).
    """
    return partial(_velocity, process, score)


@arguments(process=Process, score=SCORE, log_prob="[...]", y="[..., d]", t="[...]")
def current(process: Process, score: ScoreFn, log_prob: Array, y: Array, t: Array) -> Array:
    """The probability current j = p v at states [..., d] with log density log_prob [...]."""
    return jnp.exp(log_prob)[..., None] * velocity(process, score)(y, t)


class Transported(NamedTuple):
    """What `transport` returns.

    Attributes:
      y: the states at all times of the grid [n + 1, ..., d].
      log_prob: log p_t there [n + 1, ...]; None where it was not asked for.
    """

    y: Array
    log_prob: Array | None


@arguments(process=Process, score=SCORE, y0="[..., d]", grid=TIMES, log_prob="[...]")
def transport(
    process: Process,
    score: ScoreFn,
    y0: Array,
    grid: Array | np.ndarray,
    *,
    log_prob: Array | None = None,
) -> Transported:
    """Draws of p_0 moved along dy / dt = v(y, t): draws of p_t, without noise (2206.04642).

    By Heun's method. With log p_0 of the starts, log p_t of the states follows from
    d log p_t(y_t) / dt = -div v (1806.07366, Eq. 8), whose d derivatives are taken one by one.

    Args:
      process: the process.
      score: u at all times of the grid, the first one included.
      y0: draws of p_0 [..., d].
      grid: increasing times [n + 1] from 0.
      log_prob: log p_0(y0) [...], up to a constant that stays one; None: do without.
    """
    flow = probability_flow(process, score)

    def with_density(state: Array, t: Array) -> Array:
        slope, trace = divergence(lambda y: flow(y, t), state[..., :-1])
        return jnp.concatenate([slope, -trace[..., None]], axis=-1)

    def step(state: Array, n: Array, t: Array, t_next: Array) -> tuple[Array, Array]:
        times = (broadcast_time(t, state), broadcast_time(t_next, state))
        state = heun_step(flow if log_prob is None else with_density, state, *times)
        return state, state

    y0 = jnp.asarray(y0)
    start = y0 if log_prob is None else jnp.concatenate([y0, log_prob[..., None]], axis=-1)
    path = jnp.concatenate([start[None], scan_grid(step, start, jnp.asarray(grid))[1]])
    return (
        Transported(path, None) if log_prob is None else Transported(path[..., :-1], path[..., -1])
    )


@arguments(process=Process, odd="integers below d [n]")
def reversed_drift(process: Process, odd: tuple[int, ...] = ()) -> DriftFn:
    """The drift under time reversal, b'_i(y, t) = s_i b_i(s y, t), with s = -1 for odd coordinates.

    (b + b') / 2 is the irreversible part of b and (b - b') / 2 the reversible one (Risken 1989, The
    Fokker-Planck Equation, Section 6.4; 1203.0485).

    Args:
      process: the process.
      odd: coordinates that change sign when time is reversed, as velocities do.
    """
    sign = np.ones(process.dim, np.float32)
    sign[list(odd)] = -1

    @arguments(y=f"[..., {process.dim}]", t="[...]")
    def drift(y: Array, t: Array) -> Array:
        signs = jnp.broadcast_to(jnp.asarray(sign), y.shape)
        return signs * process.drift(signs * y, t)

    return drift


class EntropyRates(NamedTuple):
    """Rates of entropy, 1 / time, in units of Boltzmann's constant: means over y ~ p_t of [...].

    Attributes:
      total: the entropy production rate, of system and surroundings together, never negative.
      system: d/dt of -E log p_t.
      medium: entropy given to the surroundings, heat over temperature; it needs no score.
    """

    total: Array
    system: Array
    medium: Array


@arguments(process=Process, score=SCORE, y="[..., d]", t="[...]", odd="integers below d [n]")
def entropy_rates(
    process: Process, score: ScoreFn, y: Array, t: Array, *, odd: tuple[int, ...] = ()
) -> EntropyRates:
    """Entropy rates at states y [..., d] and times t [...]; average each over draws of p_t.

    With b_i and b_r the irreversible and the reversible part of the drift (`reversed_drift`)

        total  = |b_i - D E u|^2 / D,    system = div b + D |u|^2,
        medium = |b_i|^2 / D + div b_i - div b_r

    (Seifert 2005, cond-mat/0503686; with odd coordinates Spinney and Ford 2012, 1203.0485).
    For the exact score the mean of the first is the sum of those of the others, by Stein's identity
    E[b_i . u + div b_i] = 0; for a learned one the gap is a measure of its error.

    Where noise does not drive a coordinate and its drift has an irreversible part, a path and its
    reverse exclude each other: total and medium are infinite.

    Args:
      process: the process.
      score: u.
      y, t: states and times.
      odd: coordinates that change sign when time is reversed.
    """
    reverse = reversed_drift(process, odd)
    drift, spreading = divergence(lambda y: process.drift(y, t), y)
    back, back_spreading = divergence(lambda y: reverse(y, t), y)
    irreversible = 0.5 * (drift + back)
    u = checks.score("currents.entropy_rates", score, process.noise_dim)(y, t)
    strength = 0.5 * process.diffusion(t) ** 2
    driven = process.project(irreversible)
    # Of the coordinates without noise, beyond rounding.
    rest = jnp.abs(irreversible - process.spread(driven))
    lost = jnp.any(rest > 1e-5 * (jnp.abs(drift) + jnp.abs(back)), axis=-1)
    force = driven / strength[..., None]
    total = strength * jnp.sum((force - u) ** 2, axis=-1)
    medium = strength * jnp.sum(force**2, axis=-1) + back_spreading
    return EntropyRates(
        total=jnp.where(lost, jnp.inf, total),
        system=spreading + strength * jnp.sum(u**2, axis=-1),
        medium=jnp.where(lost, jnp.inf, medium),
    )
