"""Objectives: (score_fn, NoisedBatch) -> per-sample loss [B, k].

`score_fn(y [..., d], t [...]) -> [..., d]` is any callable; the parameters are already bound.
Losses differ from 1/2 weight |s - grad log p_t|^2 by terms without gradient in expectation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ndsm_jax import checks, derivatives
from ndsm_jax.checks import arguments, function, one_of
from ndsm_jax.linear_maps import embed
from ndsm_jax.noising import NoisedBatch
from ndsm_jax.processes.process import Process, ScoreFn, noisy_from_the_start


@arguments(score_fn=function(2), batch=NoisedBatch)
def dsm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Denoising score matching, weight/2 |s(y, t) - target|^2: [B, k].

    With a root L in the batch it is weight/2 |L^T E (s - target)|^2. For the target of a kernel see
    Vincent (2011); any target with E[target | y] = grad log p_t(y) has the same minimiser, that of
    a path (docs/path_space.md) too.
    """
    residual = _scored(score_fn, batch)(batch.y, batch.t) - batch.score_target
    if batch.root is not None:
        residual = batch.root.mv_t(embed(residual, batch.noisy, batch.y.shape[-1]))
    return 0.5 * batch.weight * jnp.sum(residual**2, axis=-1)


@arguments(score_fn=function(2), batch=NoisedBatch)
def divergence(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, Array]:
    """The score s(y, t) [B, k, r] and its divergence tr(E^T J_s(y, t)^T) [B, k], or an estimate.

    With a probe v in the batch, v . J_s E v (Hutchinson): one derivative along a direction.
    Otherwise exactly, by r of them.
    """

    score_fn = _scored(score_fn, batch)
    return derivatives.divergence(
        lambda y: score_fn(y, batch.t), batch.y, probe=batch.probe, noisy=batch.noisy
    )


@arguments(score_fn=function(2), batch=NoisedBatch)
def ism(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Implicit score matching, weight (1/2 |s(y, t)|^2 + div s(y, t)): [B, k].

    Hyvarinen (2005, JMLR 6), Eq. 4. It needs states and times alone, whatever the process. With the
    estimate of the divergence (see `divergence`) it is sliced score matching with variance
    reduction (1905.07088, Eq. 8).
    """
    _check_scalar_weight(batch)
    score, trace = divergence(score_fn, batch)
    return batch.weight * (0.5 * jnp.sum(score**2, axis=-1) + trace)


@arguments(score_fn=function(2), batch=NoisedBatch)
def ssm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Sliced score matching, weight (1/2 (v . s)^2 + v . J_s v) for a probe v: [B, k].

    1905.07088, Eq. 7. Its expectation over v is that of `ism`, whose first term is exact; only the
    projection v . s is asked for.

    Raises:
      ValueError: a batch without a probe, see `noising.Probed`.
    """
    _check_scalar_weight(batch)
    probe = _probe("ssm", batch)
    score, trace = divergence(score_fn, batch)
    return batch.weight * (0.5 * jnp.sum(probe * score, axis=-1) ** 2 + trace)


FD_STEP = 1e-3
"""Of `fd_ssm`, units of the state: small beside the least noise, large beside float32 rounding."""


@arguments(score_fn=function(2), batch=NoisedBatch)
def fd_ssm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Finite-difference sliced score matching for a probe v: [B, k].

    With s+- = s(y +- h v), h = `FD_STEP`,

        weight ( 1/8 |s+ + s-|^2 + v . (s+ - s-) / (2 h) ),

    `ism` with a probe up to O(h^2), by two evaluations and no derivative by the state (2007.03317,
    whose losses are of the log density, written for a score).

    Raises:
      ValueError: a batch without a probe, see `noising.Probed`.
    """
    _check_scalar_weight(batch)
    probe = _probe("fd_ssm", batch)
    step = FD_STEP * embed(probe, batch.noisy, batch.y.shape[-1])
    score_fn = _scored(score_fn, batch)
    ahead, behind = (score_fn(batch.y + sign * step, batch.t) for sign in (1, -1))
    trace = jnp.sum(probe * (ahead - behind), axis=-1) / (2 * FD_STEP)
    return batch.weight * (jnp.sum((ahead + behind) ** 2, axis=-1) / 8 + trace)


def _probe(name: str, batch: NoisedBatch) -> Array:
    if batch.probe is None:
        raise ValueError(
            f"objective.name={name!r}: the batch has no probe; noise with"
            " noising.Probed(noising=...)"
        )
    return batch.probe


def _scored(score_fn: ScoreFn, batch: NoisedBatch) -> ScoreFn:
    """A score that is held to the shape of the target, against which another would broadcast."""
    return checks.score("objectives", score_fn, batch.score_target.shape[-1])


def _check_scalar_weight(batch: NoisedBatch) -> None:
    if batch.root is not None:
        raise ValueError(
            "the losses of ndsm, ndsm_cv, path_dsm_cv, ism, ssm and fd_ssm are weighted by a"
            " number, not by a matrix: perceptual=True of noising.linearised_windows is for"
            " objective.name=local_dsm"
        )


@arguments(score_fn=function(2), batch=NoisedBatch)
def ndsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, Array]:
    """The NDSM loss L and its control variate W, both weighted and [B, k].

    2405.15625, Eq. 9 and 20, with the target T = -z / sigma of one Gaussian step y = mu + sigma z:
    L = 1/2 |s(y)|^2 - T . (s(y) - s(mu)) and W = -T . s(mu), both scores at the time t of y.
    E[W] = 0, as E[T | mu] = 0; so T and mu may as well be those of a path's window. Both scores are
    one call of the network on all states; states that share one mu share its evaluation.
    """
    if batch.mu is None:
        raise ValueError(
            "objectives: the losses of ndsm, ndsm_cv and path_dsm_cv need mu beside y, which this"
            " batch does not have; make it with companion=True of noising.path_windows, or with"
            " noising.local_steps or noising.exact_kernel"
        )
    _check_scalar_weight(batch)
    k, n = batch.t.shape[1], batch.noises
    score = _scored(score_fn, batch)(
        jnp.concatenate([batch.y, batch.mu[:, ::n]], axis=1),
        jnp.concatenate([batch.t, batch.t[:, ::n]], axis=1),
    )
    score, score_mu = score[:, :k], jnp.repeat(score[:, k:], n, axis=1)
    target = batch.score_target
    loss = 0.5 * jnp.sum(score**2, axis=-1) - jnp.sum(target * (score - score_mu), axis=-1)
    return batch.weight * loss, -batch.weight * jnp.sum(target * score_mu, axis=-1)


@arguments(score_fn=function(2), batch=NoisedBatch)
def ndsm(score_fn: ScoreFn, batch: NoisedBatch) -> Array:
    """Nonlinear denoising score matching (2405.15625, Theorem 3.1, Eq. 9): [B, k]."""
    return ndsm_terms(score_fn, batch)[0]


@arguments(score_fn=function(2), batch=NoisedBatch, eps="[...]")
def ndsm_cv(score_fn: ScoreFn, batch: NoisedBatch, eps: Array) -> Array:
    """NDSM with a control variate, L + eps(t) W (2405.15625, Theorem 3.2, Eq. 19): [B, k].

    eps [B, k] must not depend on y, mu or z. eps = 0 is `ndsm`; eps = 1 undoes the cancellation of
    the singular term, whose variance grows like 1 / sigma^2.
    """
    loss, control = ndsm_terms(score_fn, batch)
    return loss + eps * control


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss, and what it needs of the noising: one of `OBJECTIVES`, or of one's own.

    Attributes:
      terms: (score_fn, batch) -> (loss [B, k], control variate [B, k] or None).
      noising: what it regresses on: the `kernel` of a linear process, a `local` step, a
        `linearised` window, or a `path`; `state` if on nothing, but for the noised state.
      controlled: whether there is a control variate, for which the noising has to give mu.
      probe_from: number of noisy coordinates from which it takes a probe; None: never.
    """

    terms: Callable[[ScoreFn, NoisedBatch], tuple[Array, Array | None]]
    noising: str
    controlled: bool = False
    probe_from: int | None = None

    @property
    def averages(self) -> bool:
        """Whether its targets may be averaged over a minibatch: it needs no mu, see
        `noising.stable_target`."""
        return self.noising in ("kernel", "local") and not self.controlled


def _dsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    return dsm(score_fn, batch), None


def _ism_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    return ism(score_fn, batch), None


def _ssm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    return ssm(score_fn, batch), None


def _fd_ssm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    return fd_ssm(score_fn, batch), None


def _ndsm_terms(score_fn: ScoreFn, batch: NoisedBatch) -> tuple[Array, None]:
    # An average over paths has a mean given mu, so that nothing cancels at mu: it is regressed on.
    return (dsm if batch.mu is None else ndsm)(score_fn, batch), None


EXACT_DIVERGENCE_DIM = 16
"""Largest d whose divergence ism computes exactly; above, it takes a probe."""

OBJECTIVES = {
    "dsm": Objective(terms=_dsm_terms, noising="kernel"),
    "ism": Objective(terms=_ism_terms, noising="state", probe_from=EXACT_DIVERGENCE_DIM + 1),
    "ssm": Objective(terms=_ssm_terms, noising="state", probe_from=1),
    "fd_ssm": Objective(terms=_fd_ssm_terms, noising="state", probe_from=1),
    "path_dsm": Objective(terms=_dsm_terms, noising="path"),
    "local_dsm": Objective(terms=_dsm_terms, noising="linearised"),
    "path_dsm_cv": Objective(terms=ndsm_terms, noising="path", controlled=True),
    "ndsm": Objective(terms=_ndsm_terms, noising="local"),
    "ndsm_cv": Objective(terms=ndsm_terms, noising="local", controlled=True),
}


def named(objective: str | Objective) -> tuple[str, Objective]:
    """An objective, or that of a name, with what messages call it."""
    if isinstance(objective, Objective):
        return "own", objective
    return objective, OBJECTIVES[objective]


@arguments(objective=(one_of(OBJECTIVES), Objective), process=Process)
def check_process(objective: str | Objective, process: Process) -> None:
    """Raises ValueError when an objective, or that of a name, needs what the process cannot give.

    A kernel; or, for targets of a path, noise in every coordinate from the start.
    """
    name, kind = named(objective)

    def serves(objective: Objective) -> bool:
        if objective.noising == "kernel":
            return process.kernel is not None
        whole = process.noisy is None and noisy_from_the_start(process)
        return objective.noising != "path" or whole

    if not serves(kind):
        lacking = "noise from t = 0 on" if process.noisy is None else "noise in every coordinate"
        if kind.noising == "kernel":
            lacking = "a process with a known kernel"
        fitting = [n for n, o in OBJECTIVES.items() if serves(o)]
        raise ValueError(
            f"objective.name={name!r} needs {lacking}, and process {process.name!r} does not have"
            f" it; choose one of {', '.join(fitting)}"
        )
