"""The joint objective of an autoencoder and a score model of its latents (LNDSM, 2512.06615).

The evidence bound of latent score models (2106.05931, Eq. 3), with the cross entropy between the
latents and the score model's law written for any noising process, simulated by Euler steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ndsm_jax.codec import Codec
from ndsm_jax.integrators import local_kernel
from ndsm_jax.noising import FullSpace, TimeLaw, walk
from ndsm_jax.processes import Process, ScoreFn


def reconstruction_loss(logits: Array, x: Array) -> Array:
    """-log p(x | z) of Bernoulli pixels, x [B, d] in [-1, 1]: [B], in nats."""
    return optax.sigmoid_binary_cross_entropy(logits, 0.5 * (x + 1)).sum(axis=-1)


def normal_divergence(mean: Array, std: Array) -> Array:
    """KL(N(mean, std^2) || N(0, 1)), summed over the last axis: [B, m] -> [B], in nats."""
    return (0.5 * (mean**2 + std**2 - 1) - jnp.log(std)).sum(axis=-1)


def normal_entropy(std: Array) -> Array:
    """Entropy of N(., std^2), summed over the last axis: [B, m] -> [B], in nats."""
    return (jnp.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum(axis=-1)


def cross_entropy(
    key: Array, score_fn: ScoreFn, process: Process, times: TimeLaw, z0: Array, *, k: int
) -> Array:
    """An estimate of a bound of -E log p(z_0) under the reverse process of a score: [B], in nats.

    The path-space bound of the Euler chain z' = mu + sigma Z, mu = z + h b(z), sigma = g sqrt(h),
    against its reverse chain, z = z' + h (g^2 s(z') - b(z')) + sigma Z~ from the prior:

        CE = E[-log prior(z_T)] + sum_n h_n E[ |g^2 s(z') - b(z') + b(z)|^2 / (2 g^2)
               + g^2 Z . (s(z') - s(mu)) / sigma - Z . (b(z') - b(mu)) / sigma ].

    The two terms of zero mean, Z . s(mu) / sigma and Z . b(mu) / sigma, whose variance grows like
    1 / h, are subtracted: the removal that 2512.06615 announces. For short steps the bound is the
    entropy of z_0 plus int g^2 / 2 E|s - grad log p_t|^2 plus KL(p_T || prior). It never falls
    below the entropy, however long the steps, so that an encoder gains nothing by their error. k
    steps a path are drawn by the time law.

    It is differentiable in z_0 as well, through the whole path: the terms of b and of the prior
    have no gradient in the score's parameters, but one in the encoder's.

    Args:
      key: typed PRNG key.
      score_fn: s(y [..., m], t [...]) -> [..., m].
      process: the process, of any drift.
      times: law of the training times on the chain's grid.
      z0: latents [B, m].
      k: steps a path.
    """
    key_time, key_path, key_step = jax.random.split(key, 3)
    grid = times.grid
    step = times.index(times.quantiles(key_time, z0.shape[0], k))  # [B, k]
    last = jnp.full((z0.shape[0], 1), grid.shape[0] - 1)
    stops = jnp.concatenate([step, last], axis=1)
    states, _ = walk(key_path, FullSpace(process=process), z0, stops, grid, integrator="euler")
    t, h = grid[step], grid[step + 1] - grid[step]
    mu, sigma = local_kernel(process, states[:, :k], t, h)
    noise = jax.random.normal(key_step, mu.shape, mu.dtype)
    y = mu + sigma[..., None] * noise
    # Both scores are one call of the network.
    both = jnp.concatenate([y, mu], axis=1)
    score, score_mu = jnp.split(score_fn(both, jnp.tile(t + h, (1, 2))), 2, axis=1)
    drift, drift_mu = jnp.split(process.drift(both, jnp.tile(t, (1, 2))), 2, axis=1)
    g2 = (process.diffusion(t) ** 2)[..., None]
    mismatch = g2 * score - drift + process.drift(states[:, :k], t)
    change = g2 * (score - score_mu) - (drift - drift_mu)
    terms = 0.5 * mismatch**2 / g2 + change * noise / sigma[..., None]
    rate = jnp.sum(terms, axis=-1)
    probability = times.cdf[step + 1] - times.cdf[step]
    return jnp.mean(h / probability * rate, axis=1) - process.reference.log_prob(states[:, k])


def joint_terms(
    key: Array,
    codec: Codec,
    score_fn: ScoreFn,
    process: Process,
    times: TimeLaw,
    x: Array,
    *,
    k: int,
) -> dict[str, Array]:
    """The terms of the bound -log p(x) <= reconstruction - entropy + cross_entropy: [B], in nats.

    z_0 = mean + std xi is drawn from the posterior by reparameterisation. 2106.05931, Eq. 3.

    Args:
      key: typed PRNG key.
      codec: its network is variational.
      score_fn, process, times, k: as `cross_entropy`, in the codec's coordinates.
      x: items [B, d] in [-1, 1].
    """
    key_posterior, key_noise = jax.random.split(key)
    mean, std = codec.posterior(x)
    z0 = mean + std * jax.random.normal(key_posterior, mean.shape)
    return {
        "reconstruction": reconstruction_loss(codec.logits(z0), x),
        "entropy": normal_entropy(std),
        "cross_entropy": cross_entropy(key_noise, score_fn, process, times, z0, k=k),
    }
