"""What a noised state says of the point that it came from, and noising further from a state.

For the Langevin dynamics of a mixture component by component, for any other process by its kernel
or, near the state, its clock.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.processes.process import Process
from ndsm_jax.references.conditional import Spectrum, spectrum
from ndsm_jax.sampling.kernel import relaxation_kernel, relaxation_scales
from ndsm_jax.sampling.sampler import normals

SCORE_ERROR = 0.05
"""Relative error of a learned score for which `origin` allows."""


class Typical(NamedTuple):
    """What Y_t says of Y_0 where data are N(m, S), S the clock's saturation (scalars).

    Attributes:
      slope: G = A S / (A^2 S + V), of the mean of Y_0 along Y_t.
      variance: V S / (A^2 S + V), what is left of Y_0's.
      total: A^2 S + V, the variance of Y_t.
      gain: of the mean along the score, see `origin`.
    """

    slope: Array
    variance: Array
    total: Array
    gain: Array


def typical(process: Process, t: Array, *, error: float = SCORE_ERROR) -> Typical:
    """`Typical` for the kernel N(m + A (Y_0 - m), V I) that is, or is near, that of the process."""
    (scale, std), saturation = relaxation_scales(process, t), process.clock.saturation
    variance = std**2
    total = scale**2 * saturation + variance
    return Typical(
        scale * saturation / total,
        variance * saturation / total,
        total,
        scale * variance / (scale**2 + error**2 * variance / saturation),
    )


class Origin(NamedTuple):
    """An approximation of the law of Y_0 given Y_t: a mixture of K Gaussians for each row.

    Attributes:
      log_weights: [B, K].
      means: [B, K, d].
      covariances: those of all rows.
    """

    log_weights: Array
    means: Array
    covariances: Spectrum

    def mean(self) -> Array:
        """Of the whole law, [B, d]."""
        return jnp.einsum("bk,bkd->bd", jnp.exp(self.log_weights), self.means)


def components(process: Process) -> Spectrum | None:
    """The covariances of the mixture of whose Langevin dynamics `origin` makes use, or None."""
    return None if process.known.mixture is None else spectrum(process.known.mixture)


def origin(
    process: Process,
    covariances: Spectrum | None,
    y: Array,
    t: Array,
    score: Array,
    *,
    error: float = SCORE_ERROR,
) -> Origin:
    """The law of Y_0 given Y_t = y [B, d] at a scalar time t, by the score [B, d] there.

    For the kernel N(m + A (Y_0 - m), V) and data that are N(m, S),

        Y_0 | Y_t = y  ~  N(m + G (y - m), V S / (A^2 S + V)),    G = A S / (A^2 S + V),

    and the score is u = -(y - m) / (A^2 S + V). For other data Tweedie's formula adds V / A
    (score - u) to the mean, exactly. Here 1 / A, which multiplies an error of the score as well, is
    replaced by A / (A^2 + error^2 V / S), the linear estimate of least mean square error if the
    score has that relative error; and the covariance is left.

    - Langevin dynamics of a mixture: the components, weighted by their responsibilities at y, with
      S = Sigma_k, A = exp(-t / S) and V = S (1 - A^2), and u the whole mixture's score. Where
      components are apart these are the kernels, and were the data the mixture, this were the law.
    - Others: one component, of `relaxation_kernel` and S the clock's saturation. On a torus, where
      there is no mean to fall back to, m is y itself.

    Args:
      process: that of the score.
      covariances: what `components` finds, once for all times.
      y, t, score: where.
      error: relative error of the score.
    """
    mixture = process.known.mixture
    if mixture is None or covariances is None:
        slope, left, total, gain = typical(process, t, error=error)
        centre = y if process.known.period is not None else relaxation_kernel(process, y, t)[0]
        offset = y - centre
        mean = centre + slope * offset + gain * (score + offset / total)
        certain = jnp.zeros((len(y), 1), y.dtype)
        return Origin(certain, mean[:, None], Spectrum(jnp.reshape(left, (1, 1))))

    def gain_of(s: Array) -> Array:
        a, lost = jnp.exp(-t / s), -jnp.expm1(-2 * t / s)
        return s * lost * a / (a**2 + error**2 * lost)

    def means(y: Array, difference: Array) -> Array:
        kept = covariances.map(lambda s: jnp.exp(-t / s)).mv(y[None] - mixture.means)
        added = covariances.map(gain_of).mv(jnp.broadcast_to(difference, kept.shape))
        return mixture.means + kept + added

    return Origin(
        mixture.log_responsibilities(y),
        jax.vmap(means)(y, score - mixture.score(y)),
        covariances.map(lambda s: _relaxed(s, t)),
    )


def _relaxed(variance: Array, t: Array) -> Array:
    """V(t) of Langevin dynamics in a Gaussian of this variance."""
    return -variance * jnp.expm1(-2 * t / variance)


def noised(
    process: Process,
    covariances: Spectrum | None,
    keys: Array,
    n: Array,
    y: Array,
    start: Array,
    end: Array,
) -> Array:
    """A draw of Y_end given Y_start = y [B, d], at scalar times; noise of step n of the keys [B].

    By the kernel where there is one, for Langevin dynamics of a mixture within a component drawn by
    its responsibility at y, else by the `relaxation_kernel` of the drift at y.
    """
    z = normals(keys, n, process.dim, y.dtype)
    mixture = process.known.mixture
    if mixture is None or covariances is None:
        centre, before, std_before = relaxation_kernel(process, y, start)
        after, std_after = relaxation_scales(process, end)
        ratio = after / before
        std = jnp.sqrt(jnp.maximum(std_after**2 - (ratio * std_before) ** 2, 0.0))
        return centre + ratio * (y - centre) + std * z
    elapsed = end - start

    def row(key: Array, y: Array, z: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, n), 1)  # not that of z
        k = jax.random.categorical(own, mixture.log_responsibilities(y))
        of = covariances.component(k)
        kept = of.map(lambda s: jnp.exp(-elapsed / s)).mv((y - mixture.means[k])[None])
        added = of.map(lambda s: jnp.sqrt(_relaxed(s, elapsed))).mv(z[None])
        return mixture.means[k] + (kept + added)[0]

    return jax.vmap(row)(keys, y, z)
