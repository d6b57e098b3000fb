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

GRADES = 16
"""To a unit of the logarithm, to which what was measured is rounded."""


def balanced(
    noise: NoisingFn, precondition: Precondition, excess: Array | None = None
) -> NoisingFn:
    """The same noising with the weight w / max(1, e(c)), c the local time of `Local`, and

        e(c) = E[ w |T - grad log eta*(y)|^2 / d | c ],

    the mean square of what the network is to predict. For data that are as their component it is 1
    in separated components, whose weight w = v / a^2 is EDM's (2206.00364, Table 1). Where
    components overlap, a late target is that of a path which has changed components; divided by
    a = exp(-x / 2) it may be hundreds of times as large, and would be all that the network learns.
    So every local time counts alike, as 2206.00364 wants of the variance of training targets (its
    Appendix B.6); a function of y and t, so that the minimiser stays the score.

    Args:
      noise: of another kind than path windows it is returned as it is.
      precondition: another than `Local` leaves the noising as it is, too.
      excess: log max(1, e), as `target_excess` has measured it; by default it is measured.

    Raises:
      ValueError: as `target_excess`.
    """
    if not isinstance(noise, PathWindows) or not isinstance(precondition, Local):
        return noise
    excess = target_excess(noise, precondition) if excess is None else excess
    if excess is None:
        return noise
    return dataclasses.replace(noise, weight=Partial(_weight, precondition, excess))


def target_excess(noise: NoisingFn, precondition: Precondition) -> Array | None:
    """log max(1, e) of `balanced` in equal bins of the local time, [BINS]; None: nothing to mend.

    That is so for noising of another kind than path windows, another preconditioning, and
    components that are apart. Measured on paths from draws of the reference, deterministic, and
    rounded, so that another machine finds the same. Draws do not see what data say beyond the
    reference: data between two components whose draws are apart have late targets of up to twice
    the size (sklearn's digits), and keep them.

    Raises:
      ValueError: paths that are not finite.
    """
    if not isinstance(noise, PathWindows) or not isinstance(precondition, Local):
        return None
    if apart(precondition.mixture):
        return None
    c, squares = _measured(dataclasses.replace(noise, k=TIMES), precondition)
    if not bool(jnp.all(jnp.isfinite(c)) & jnp.all(jnp.isfinite(squares))):
        steps = len(noise.times.grid) - 1
        raise ValueError(
            f"the paths of process {noise.process.name!r} are not finite in {steps} steps: its"
            " drift is too stiff for them; take more (noising.steps), or a shorter horizon"
            " (process.horizon)"
        )
    excess = np.round(_excess(c, squares) * GRADES) / GRADES
    return jnp.asarray(excess, jnp.float32)


def _paths(mixture: GaussianMixture) -> int:
    """How many: in many dimensions the coordinates average as well, and axes, d x d numbers at each
    state of each path, are to take about the memory of a minibatch's."""
    num = int(np.clip(2**16 // mixture.dim, 64, 1024))
    turned = not mixture.elementwise and mixture.directions is None
    return min(num, max(2**21 // mixture.dim**2, 16)) if turned else num


def apart(mixture: GaussianMixture) -> bool:
    """Whether a draw of the mixture leaves no doubt of its component."""
    y = mixture.sample(jax.random.key(0), (_paths(mixture),))
    doubt = 1 - jnp.max(mixture.responsibilities(y), axis=-1)
    return bool(jnp.mean(doubt) < APART)


@jax.jit
def _measured(noise: PathWindows, precondition: Local) -> tuple[Array, Array]:
    """Local times and weighted squares of the targets of some paths: [P, k] each."""
    key_start, key_path = jax.random.split(jax.random.key(0))
    reference = precondition.mixture
    batch = noise(key_path, reference.sample(key_start, (_paths(reference),)))
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
