"""Objectives: (score_fn, NoisedBatch) -> per-sample loss [B, k].

`score_fn(y [..., d], t [...]) -> [..., d]` is any callable; the parameters are already bound.
Losses differ from 1/2 weight |s - grad log p_t|^2 by terms without gradient in expectation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
from jax import Array

from ndsm_jax.noising import NoisedBatch
from ndsm_jax.sde import ScoreFn


def dsm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Denoising score matching, weight/2 |s(y, t) - target|^2 (Vincent 2011): [B, k]."""
    assert batch.score_target is not None
    residual = score_fn(batch.y, batch.t) - batch.score_target
    return 0.5 * batch.weight * jnp.sum(residual**2, axis=-1)


def ndsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, Array]:
    """The NDSM loss L and its control variate W, both weighted and [B, k].

    2405.15625, Eq. 9 and 20: L = 1/2 |s(y)|^2 + z . (s(y) - s(mu)) / sigma and
    W = s(mu) . z / sigma, both scores at the time t of y. E[W] = 0, as mu is independent of z. The
    two evaluations are one call of the network on the stacked states.
    """
    assert batch.mu is not None
    assert batch.z is not None
    assert batch.sigma is not None
    score, score_mu = score_fn(jnp.stack([batch.y, batch.mu]), jnp.stack([batch.t, batch.t]))
    z = batch.z / batch.sigma[..., None]
    loss = 0.5 * jnp.sum(score**2, axis=-1) + jnp.sum(z * (score - score_mu), axis=-1)
    return batch.weight * loss, batch.weight * jnp.sum(z * score_mu, axis=-1)


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
      needs: the fields of NoisedBatch that it reads beyond y, t and weight.
    """

    name: str
    terms: Callable[[ScoreFn, NoisedBatch], tuple[Array, Array | None]]
    needs: frozenset[str]


_LOCAL_STEP = frozenset({"mu", "z", "sigma"})

OBJECTIVES = {
    "dsm": Objective(
        name="dsm", terms=lambda s, b: (dsm(s, b), None), needs=frozenset({"score_target"})
    ),
    "ndsm": Objective(name="ndsm", terms=lambda s, b: (ndsm(s, b), None), needs=_LOCAL_STEP),
    "ndsm_cv": Objective(name="ndsm_cv", terms=ndsm_terms, needs=_LOCAL_STEP),
}


def check_fields(objective: Objective, provides: Iterable[str], process: str) -> None:
    """Raises ValueError when a process cannot give a field that the objective reads."""
    missing = sorted(objective.needs - set(provides))
    if missing:
        fitting = [o.name for o in OBJECTIVES.values() if o.needs <= set(provides)]
        raise ValueError(
            f"objective.name={objective.name!r} needs {', '.join(missing)}, which the noising of"
            f" process {process!r} cannot give; choose one of {', '.join(fitting)}"
        )
