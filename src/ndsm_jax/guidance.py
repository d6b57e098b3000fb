"""Samples given a linear measurement of them, from a model that was trained without one.

A guidance is a sampler: it runs another one towards a `measurements.Measurement` of each sample.
Equations, what is biased and by how much, and which to choose: docs/guidance.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, arguments, check, fields, number
from ndsm_jax.clock import Clock
from ndsm_jax.integrators import broadcast_time
from ndsm_jax.measurements import Measurement
from ndsm_jax.processes.process import Process, ScoreFn
from ndsm_jax.references.conditional import Spectrum, conditional, innovation
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.sampling.composed import RestartFlow
from ndsm_jax.sampling.kernel import denoise
from ndsm_jax.sampling.origin import (
    SCORE_ERROR,
    Origin,
    components,
    noised,
    origin,
    typical,
)
from ndsm_jax.sampling.sampler import Sampler, hook_keys, normals

IMAGES = 2
"""Images of a reading on either side that count on a torus."""

_LAST = 0xFFFFFFFF
"""Number, among those of steps, of the draw of one particle at the end."""


@arguments(process=Process, measurement=Measurement, law=Origin)
def log_likelihood(process: Process, measurement: Measurement, law: Origin) -> Array:
    """log p(measurement | Y_t) of every row by an `Origin`: [B].

        log sum_k r_k N(value; V D_k, V Cov_k V^T + R)

    For one component that is the likelihood of PiGDM (Song et al. 2023, Eq. 7). On a torus each
    reading is one of all its images.
    """
    n, d = len(measurement), measurement.dim
    check("guidance.log_likelihood: law.means", law.means, "[n, K, d]", n=n, d=d)
    period = process.known.period

    def row(one: Measurement, log_weights: Array, means: Array) -> Array:
        difference = one.value[None] - one.readings(means)
        if period is not None:
            return _wrapped_log_prob(one, difference[0], law.covariances.variances[0], period)
        log_prob = innovation(law.covariances, one, difference).log_prob
        return jax.nn.logsumexp(log_weights + log_prob)

    return measurement.by_rows(row, law.log_weights, law.means)


def _wrapped_log_prob(one: Measurement, difference: Array, variance: Array, period: float) -> Array:
    read = jnp.isfinite(one.variance)
    total = jnp.where(read, one.variance + variance, 1.0)
    nearest = difference - period * jnp.round(difference / period)
    images = jnp.stack([nearest + i * period for i in range(-IMAGES, IMAGES + 1)])
    log_prob = jax.nn.logsumexp(-0.5 * images**2 / total[None], axis=0)
    return jnp.sum(jnp.where(read, log_prob - 0.5 * jnp.log(2 * jnp.pi * total), 0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance(Sampler):
    """What all have in common. Where they start: in the components of the mixture given its
    measurement; where they end: exact readings are exact.

    At the horizon a state has forgotten where it was within its component, but, as far as
    components are apart, not in which: its law given the measurement is the reference's with the
    components' weights given it, in closed form by `references.conditional`.

    Attributes:
      sampler: that runs the process backwards.
      measurement: of the samples, in the coordinates of the process, see `Frame.measured`; one row
        a sample, or one for all.
      covariances: `components` of the process; None: found by `plan`.
    """

    sampler: Sampler
    measurement: Measurement
    covariances: Spectrum | None = None

    def check(self, process: Process) -> None:
        """Refuses degenerate noise, samplers that choose their own steps, and other dimensions."""
        name = type(self).__name__
        fields(self, sampler=Sampler, measurement=Measurement)
        if self.measurement is None:
            raise ValueError(f"{name}: a measurement is needed, see measurements.given")
        self.sampler.check(process)
        if process.noisy is not None:
            raise ValueError(
                f"{name}: what a state says of its origin needs the score in every coordinate, and"
                f" noise drives {process.noise_dim} of {process.dim} in {process.name!r}"
            )
        if self.sampler.by_row:
            raise ValueError(
                f"{name}: rows that choose their own steps cannot be guided; in place of"
                f" {type(self.sampler).__name__} choose another sampler"
            )
        if self.measurement.dim != process.dim:
            raise ValueError(
                f"{name}: a measurement of {self.measurement.dim} coordinates, and process"
                f" {process.name!r} has {process.dim}"
            )
        if process.known.period is not None and self.measurement.directions is not None:
            raise ValueError(f"{name}: of angles only coordinates can be given, not sums of them")

    def plan(self, process: Process, times: Array) -> tuple[Sampler, Array]:
        """That of the sampler, and `components` of the process."""
        sampler, times = self.sampler.plan(process, times)
        found = components(process) if self.covariances is None else self.covariances
        return dataclasses.replace(self, sampler=sampler, covariances=found), times

    def start_log_weights(self, mixture: GaussianMixture) -> Array:
        """Log P(component | measurement), [B, K]."""
        return conditional(mixture, self.measurement).log_weights

    def init(self, process: Process, x: Array, t: Array) -> Any:
        """See `Sampler`."""
        return self.sampler.init(process, x, t)

    def finish(self, process: Process, score: ScoreFn, keys: Array, state: Any, t: Array) -> Array:
        """The denoised state given the measurement: what is left has the clock's variance."""
        x = denoise(score, process, state.x, t)
        return self._given(process, x, typical(process, t).variance)

    def evaluations(self, num_steps: int) -> int | None:
        """See `Sampler`."""
        return self.sampler.evaluations(num_steps)

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """See `Sampler`."""
        return self.sampler.explicit_step(longest, clock)

    def _given(self, process: Process, x: Array, variance: Array) -> Array:
        """The mean of N(x, variance I) given the measurement, [B, d]."""
        difference = self.measurement.value - self.measurement.readings(x)
        if process.known.period is not None:
            difference -= process.known.period * jnp.round(difference / process.known.period)
        gain = variance / (variance + self.measurement.variance)
        gain = jnp.where(self.measurement.variance == 0, 1.0, gain)
        return x + self.measurement.spread(gain * difference)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sampler", "measurement", "covariances"),
    meta_fields=("repeats",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement(Guidance):
    """RePaint (2201.09865, Algorithm 1), for readings without noise.

    After every step the readings are replaced by those of a noised point that has them. Every step
    is taken `repeats` times, from states noised back to its start in between, so that the rest can
    follow what was replaced.

    The noised point is the denoised state with the readings put in. Its noise is that of `noised`;
    for kernels N(a Y_0, s^2 I) this is the paper's Eq. 8a.
    """

    repeats: int = 10

    def __post_init__(self) -> None:
        fields(self, repeats=COUNT)

    def check(self, process: Process) -> None:
        """Refuses noisy readings too, and steps that go up."""
        super().check(process)
        variance = np.asarray(self.measurement.variance)
        if not ((variance == 0) | np.isinf(variance)).all():
            raise ValueError(
                "Replacement puts readings in as they are, and these have noise; choose"
                " Reconstruction or Twisted"
            )
        if isinstance(self.sampler, RestartFlow):
            raise ValueError(
                "Replacement repeats its sampler's steps itself, and RestartFlow's go up as well;"
                " choose the flow alone, or Reconstruction"
            )

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Any,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Any:
        """See `Sampler`."""
        known = jnp.where(self.measurement.variance == 0, 1.0, 0.0)

        def once(i: Array, state: Any) -> Any:
            number = n * self.repeats + i
            own = hook_keys(keys, number)
            y = state.x
            law = origin(process, self.covariances, y, t, score(y, broadcast_time(t, y)))
            state = self.sampler.step(process, score, keys, state, number, t, t_next)
            clean = self._given(process, law.mean(), jnp.zeros(()))
            put = noised(
                process, self.covariances, own, jnp.uint32(0), clean, jnp.zeros_like(t), t_next
            )
            change = known * self.measurement.readings(put - state.x)
            x = state.x + self.measurement.spread(change)
            return state._replace(x=x.astype(y.dtype))  # the process may have 64 bits

        def again(i: Array, before: Any) -> Any:
            after = once(i, before)
            own = hook_keys(keys, n * self.repeats + i)
            back = noised(process, self.covariances, own, jnp.uint32(1), after.x, t_next, t)
            back = back.astype(after.x.dtype)
            return self.sampler.init(process, back, t)  # what it remembers is of another path

        state = jax.lax.fori_loop(0, self.repeats - 1, again, state)
        return once(jnp.asarray(self.repeats - 1), state)

    def evaluations(self, num_steps: int) -> int | None:
        """`repeats` times those of the sampler's steps, and one each where churn moves the state
        before the sampler looks at it."""
        steps = self.sampler.evaluations(num_steps)
        apart = num_steps - 1 if getattr(self.sampler, "churn", 0) else 0
        return None if steps is None else self.repeats * (steps - 1 + apart) + 1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sampler", "measurement", "covariances"),
    meta_fields=("error",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Guidance):
    """Reconstruction guidance: the sampler with the score of the state given the measurement,

        score(y, t) + grad_y log p(measurement | Y_t = y),

    the latter by `log_likelihood`, differentiated through the denoised state, as DPS (2209.14687,
    Eq. 11) has it and PiGDM, whose covariance it has. One evaluation of the score and one
    vector-Jacobian product for each of the sampler's evaluations.

    Attributes:
      error: see `origin`.
    """

    error: float = SCORE_ERROR

    def __post_init__(self) -> None:
        fields(self, error=number(low=0))

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Any,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Any:
        """See `Sampler`."""

        def guided(y: Array, times: Array) -> Array:
            twist = _twist(self, process, score, y, times[0])
            return twist.score + twist.gradient

        return self.sampler.step(process, guided, keys, state, n, t, t_next)


class Twist(NamedTuple):
    """`log_likelihood` at states [B, d]: its value [B] and gradient [B, d], and the score there."""

    log: Array
    gradient: Array
    score: Array


def _twist(guidance: Any, process: Process, score: ScoreFn, y: Array, t: Array) -> Twist:
    def total(y: Array) -> tuple[Array, tuple[Array, Array]]:
        u = score(y, broadcast_time(t, y))
        law = origin(process, guidance.covariances, y, t, u, error=guidance.error)
        log = log_likelihood(process, guidance.measurement, law)
        return jnp.sum(log), (log, u)

    gradient, (log, u) = jax.grad(total, has_aux=True)(y)
    return Twist(log, gradient, u)


class Particles(NamedTuple):
    """The sampler's state, x among it, and log weights [B] that lack the twist at x."""

    x: Array
    inner: Any
    log_weights: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sampler", "measurement", "covariances"),
    meta_fields=("particles", "threshold", "error"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Twisted(Guidance):
    """Twisted sequential Monte Carlo (2306.17775, Algorithm 1): exact as `particles` grow.

    Each sample is one of a population that starts and moves independently, by the sampler's steps
    with the gradient of the twist psi_t = exp `log_likelihood` in the mean. Particles have the
    weights

        w <- w  p(x' | x) psi_t'(x') / ( q(x' | x) psi_t(x) ),

    p the sampler's step and q what was taken, and are resampled (systematically) when their
    effective number falls below a share `threshold`. Any psi > 0 is right that ends in the
    likelihood of the last step; the better it foresees that, the more even the weights.

    The law that is exact in the limit is that of the sampler's own samples, given the measurement.

    Attributes:
      particles: of a sample; each costs what a sample of `Reconstruction` does.
      threshold: share of effective particles below which they are resampled.
      error: see `origin`.
    """

    particles: int = 16
    threshold: float = 0.5
    error: float = SCORE_ERROR

    def __post_init__(self) -> None:
        fields(self, particles=COUNT, threshold=number(low=0, high=1), error=number(low=0))

    def check(self, process: Process) -> None:
        """Refuses samplers whose steps are not Gaussian too."""
        super().check(process)
        if self.sampler.noise(process, process.horizon, process.horizon / 2) is None:
            raise ValueError(
                f"Twisted: the steps of {type(self.sampler).__name__} have no density; choose"
                " reverse_sde, multistep_sde or ancestral"
            )

    def init(self, process: Process, x: Array, t: Array) -> Particles:
        """See `Sampler`: the weight of a start is the reference's density over that of starts."""
        log_weights, reference = jnp.zeros(len(x)), process.reference
        if isinstance(reference, GaussianMixture):
            log_prob = reference.component_log_prob(x)
            before = reference.log_weights[None] + log_prob
            started = self.start_log_weights(reference) + log_prob
            log_weights = jax.nn.logsumexp(before, -1) - jax.nn.logsumexp(started, -1)
        return Particles(x, self.sampler.init(process, x, t), log_weights)

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Particles,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Particles:
        """See `Sampler`."""
        twist = _twist(self, process, score, state.x, t)
        log_weights = state.log_weights + twist.log
        chosen, log_weights = self._resampled(keys, n, log_weights)
        inner, twist = jax.tree.map(lambda a: a[chosen] if a.ndim else a, (state.inner, twist))
        new = self.sampler.step(process, lambda y, t: twist.score, keys, inner, n, t, t_next)
        std = self.sampler.noise(process, t, t_next)
        assert std is not None  # `check` has seen to it
        z = normals(keys, n, process.dim, state.x.dtype)
        # The twist at the end of the step narrows the noise of what was read by this factor.
        ahead, v = typical(process, t_next), self.measurement
        factor = jax.lax.rsqrt(1 + (std * ahead.slope) ** 2 / (ahead.variance + v.variance))
        narrowed = z + v.spread((factor - 1) * v.readings(z))
        moved = std * twist.gradient + narrowed
        x = new.x + std * (moved - z)
        ratio = jnp.sum(jnp.log(factor), axis=-1) + 0.5 * jnp.sum(z**2 - moved**2, axis=-1)
        return Particles(x, new._replace(x=x), log_weights + ratio - twist.log)

    def _resampled(self, keys: Array, n: Array, log_weights: Array) -> tuple[Array, Array]:
        """Which rows go on [B], and with which log weights: each population by its own."""
        log_weights = log_weights.reshape(-1, self.particles)
        mean = jax.nn.logsumexp(log_weights, axis=1, keepdims=True) - jnp.log(self.particles)
        weights = jax.nn.softmax(log_weights, axis=1)
        few = 1 / jnp.sum(weights**2, axis=1) < self.threshold * self.particles
        own = hook_keys(keys[:: self.particles], n)
        first = jax.vmap(jax.random.uniform)(own)[:, None]
        points = (first + jnp.arange(self.particles)[None]) / self.particles
        above = jnp.cumsum(weights, axis=1)
        drawn = jax.vmap(jnp.searchsorted)(above / above[:, -1:], points)
        stay = jnp.broadcast_to(jnp.arange(self.particles)[None], drawn.shape)
        chosen = jnp.where(few[:, None], jnp.minimum(drawn, self.particles - 1), stay)
        chosen += self.particles * jnp.arange(len(chosen))[:, None]
        kept = jnp.where(few[:, None], mean, log_weights)
        return chosen.reshape(-1), kept.reshape(-1)

    def log_evidence(self, process: Process, score: ScoreFn, state: Particles, t: Array) -> Array:
        """log p(measurement) of the sampler's own law, by each population at the last time: [B].

        Its exponential is an unbiased estimate (B is the number of populations).
        """
        log_weights = self._log_weights(process, score, state, t)
        return jax.nn.logsumexp(log_weights, axis=1) - jnp.log(self.particles)

    def finish(
        self, process: Process, score: ScoreFn, keys: Array, state: Particles, t: Array
    ) -> Array:
        """One particle of each population by its weight, finished as by `Guidance`."""
        own = hook_keys(keys[:: self.particles], jnp.uint32(_LAST))
        log_weights = self._log_weights(process, score, state, t)
        index = jax.vmap(jax.random.categorical)(own, log_weights)
        done = super().finish(process, score, keys, state, t)
        return done.reshape(-1, self.particles, process.dim)[jnp.arange(len(index)), index]

    def _log_weights(self, process: Process, score: ScoreFn, state: Particles, t: Array) -> Array:
        twist = _twist(self, process, score, state.x, t)
        return (state.log_weights + twist.log).reshape(-1, self.particles)


GUIDANCES: dict[str, Callable[..., Guidance]] = {
    "replacement": Replacement,
    "reconstruction": Reconstruction,
    "twisted": Twisted,
}
