"""Objectives: (score_fn, NoisedBatch) -> per-sample loss [B, k].

`score_fn(y [..., d], t [...]) -> [..., d]` is any callable; the parameters are already bound.
Losses differ from 1/2 weight |s - grad log p_t|^2 by terms without gradient in expectation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ndsm_jax.noising import NoisedBatch
from ndsm_jax.sde import SDE, ScoreFn


def dsm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Denoising score matching, weight/2 |s(y, t) - target|^2: [B, k].

    For the target of a kernel see Vincent (2011); any target with E[target | y] = grad log p_t(y)
    has the same minimiser, that of a path (docs/path_space.md) too.
    """
    residual = score_fn(batch.y, batch.t) - batch.score_target
    return 0.5 * batch.weight * jnp.sum(residual**2, axis=-1)


def ndsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, Array]:
    """The NDSM loss L and its control variate W, both weighted and [B, k].

    2405.15625, Eq. 9 and 20, with the target T = -z / sigma of one Gaussian step y = mu + sigma z:
    L = 1/2 |s(y)|^2 - T . (s(y) - s(mu)) and W = -T . s(mu), both scores at the time t of y.
    E[W] = 0, as E[T | mu] = 0; so T and mu may as well be those of a path's window. Both scores are
    one call of the network on all states; states that share one mu share its evaluation.
    """
    assert batch.mu is not None
    k, n = batch.t.shape[1], batch.noises
    score = score_fn(
        jnp.concatenate([batch.y, batch.mu[:, ::n]], axis=1),
        jnp.concatenate([batch.t, batch.t[:, ::n]], axis=1),
    )
    score, score_mu = score[:, :k], jnp.repeat(score[:, k:], n, axis=1)
    target = batch.score_target
    loss = 0.5 * jnp.sum(score**2, axis=-1) - jnp.sum(target * (score - score_mu), axis=-1)
    return batch.weight * loss, -batch.weight * jnp.sum(target * score_mu, axis=-1)


def ndsm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Nonlinear denoising score matching (2405.15625, Theorem 3.1, Eq. 9): [B, k]."""
    return ndsm_terms(score_fn, batch)[0]


def ndsm_cv(score_fn: ScoreFn, batch: NoisedBatch, eps: Array) -> Array:
    """NDSM with a control variate, L + eps(t) W (2405.15625, Theorem 3.2, Eq. 19): [B, k].

    eps [B, k] must not depend on y, mu or z. eps = 0 is `ndsm`; eps = 1 undoes the cancellation of
    the singular term, whose variance grows like 1 / sigma^2.
    """
    loss, control = ndsm_terms(score_fn, batch)
    return loss + eps * control


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective by name.

    Attributes:
      terms: (score_fn, batch) -> (loss [B, k], control variate [B, k] or None).
      noising: what it regresses on: the `kernel` of a linear process, a `local` step, or a `path`.
      controlled: whether there is a control variate, for which the noising has to give mu.
    """

    terms: Callable[[ScoreFn, NoisedBatch], tuple[Array, Array | None]]
    noising: str
    controlled: bool = False


def _dsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    return dsm(score_fn, batch), None


def _ndsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    return ndsm(score_fn, batch), None


OBJECTIVES = {
    "dsm": Objective(terms=_dsm_terms, noising="kernel"),
    "path_dsm": Objective(terms=_dsm_terms, noising="path"),
    "path_dsm_cv": Objective(terms=ndsm_terms, noising="path", controlled=True),
    "ndsm": Objective(terms=_ndsm_terms, noising="local"),
    "ndsm_cv": Objective(terms=ndsm_terms, noising="local", controlled=True),
}


def check_process(name: str, sde: SDE) -> None:
    """Raises ValueError when an objective needs the kernel of a process that has none."""
    if OBJECTIVES[name].noising == "kernel" and sde.kernel is None:
        fitting = [n for n, o in OBJECTIVES.items() if o.noising != "kernel"]
        raise ValueError(
            f"objective.name={name!r} needs a process with a known kernel, and {sde.name!r} has"
            f" none; choose one of {', '.join(fitting)}"
        )
