"""The loss weight of local coordinates where components overlap, by measured targets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.networks.local import Local
from ndsm_jax.networks.precondition import Precondition
from ndsm_jax.noising import NoisingFn, PathWindows
from ndsm_jax.references.mixtures import GaussianMixture

BINS = 16
"""Of the local time, within which the size of the targets is taken to be the same."""

TIMES = 8
"""At which each of the measured paths is seen."""

APART = 1e-3
"""Chance of another component than the likeliest one, below which components do not overlap."""


def balanced(noise: NoisingFn, precondition: Precondition) -> NoisingFn:
    """The same noising with the weight w / max(1, e(c)), c the local time of `Local`, and

        e(c) = E[ w |T - grad log eta*(y)|^2 / d | c ],

    the mean square of what the network is to predict. For data that are as their component it is 1
    in separated components, whose weight w = v / a^2 is EDM's (2206.00364, Table 1). Where
    components overlap, a late target is that of a path which has changed components; divided by
    a = exp(-x / 2) it may be hundreds of times as large, and would be all that the network learns.
    So every local time counts alike, as 2206.00364 wants of the variance of training targets (its
    Appendix B.6); a function of y and t, so that the minimiser stays the score.

    Measured on paths from draws of the reference, whose components overlap as those of the data do:
    deterministic, and the same at every restore. Noising of another kind than path windows, another
    preconditioning, or components that are apart: nothing changes.
    """
    if not isinstance(noise, PathWindows) or not isinstance(precondition, Local):
        return noise
    if apart(precondition.mixture):
        return noise
    log_excess = _excess(*_measured(dataclasses.replace(noise, k=TIMES), precondition))
    weight = Partial(_weight, precondition, jnp.asarray(log_excess, jnp.float32))
    return dataclasses.replace(noise, weight=weight)


def _paths(dim: int) -> int:
    """How many: in many dimensions the coordinates average as well."""
    return int(np.clip(2**16 // dim, 64, 1024))


def apart(mixture: GaussianMixture) -> bool:
    """Whether a draw of the mixture leaves no doubt of its component."""
    y = mixture.sample(jax.random.key(0), (_paths(mixture.dim),))
    doubt = 1 - jnp.max(mixture.responsibilities(y), axis=-1)
    return bool(jnp.mean(doubt) < APART)


@jax.jit
def _measured(noise: PathWindows, precondition: Local) -> tuple[Array, Array]:
    """Local times and weighted squares of the targets of some paths: [P, k] each."""
    key_start, key_path = jax.random.split(jax.random.key(0))
    reference = precondition.mixture
    batch = noise(key_path, reference.sample(key_start, (_paths(reference.dim),)))
    square = jnp.mean((batch.score_target - reference.score(batch.y)) ** 2, axis=-1)
    c = precondition.time(batch.y, batch.t)
    return c, precondition.weight(batch.y, batch.t) * square


def _excess(c: Array, squares: Array) -> np.ndarray:
    """log max(1, e) at the centres of the bins, [BINS]; of an empty one that of its neighbours."""
    index = np.clip((np.asarray(c, np.float64).ravel() + 1) / 2 * BINS, 0, BINS - 1).astype(int)
    count = np.bincount(index, minlength=BINS)
    total = np.bincount(index, np.asarray(squares, np.float64).ravel(), minlength=BINS)
    seen = count > 0
    log_mean = np.log(np.maximum(total[seen] / count[seen], 1.0))
    return np.interp(np.arange(BINS), np.flatnonzero(seen), log_mean)


def _weight(precondition: Local, log_excess: Array, y: Array, t: Array) -> Array:
    centres = jnp.asarray((np.arange(BINS) + 0.5) / BINS * 2 - 1, jnp.float32)
    c = precondition.time(y, t)
    excess = jnp.interp(c.ravel(), centres, log_excess).reshape(c.shape)
    return precondition.weight(y, t) * jnp.exp(-excess)
