"""Langevin dynamics of a reference measure: the nonlinear process of the NDSM paper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import POSITIVE, arguments
from ndsm_jax.clock import relaxing
from ndsm_jax.processes.process import Known, Process, checked_horizon
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.references.others import Logistic, UniformTorus
from ndsm_jax.references.reference import Reference

RELAXATION_TIMES = 4.0
"""Default horizon of Langevin noising, in units of the reference's typical variance."""

ISOTROPIC = ("spherical", "tied_spherical", "low_rank")
"""Covariances that are isotropic outside a small subspace."""


def _drift(reference: Reference, y: Array, t: Array) -> Array:
    return reference.score(y)


def _mixture_vjp(mixture: GaussianMixture, y: Array, t: Array, v: Array) -> tuple[Array, Array]:
    return mixture.score_hvp(y, v)  # the Hessian is symmetric


def _score_vjp(reference: Reference, y: Array, t: Array, v: Array) -> tuple[Array, Array]:
    # The Hessian is symmetric: forward mode does, which is cheaper than reverse.
    return jax.jvp(reference.score, (y,), (v,))


def sqrt_two(t: Array) -> Array:
    """g = sqrt(2): [...] -> [...]."""
    return jnp.full_like(t, 2**0.5)


@arguments(reference=Reference, horizon=POSITIVE)
def langevin(reference: Reference, *, horizon: float | None = None) -> Process:
    """Overdamped Langevin dynamics of a reference measure (2405.15625, Eq. 3).

    b = grad log eta*(y), g = sqrt(2). The clock is the variance kernel of the typical component,
    v(t) = sigma^2 (1 - exp(-2 t / sigma^2)); the default horizon is `RELAXATION_TIMES` sigma^2.
    The dynamics of a mixture that is isotropic outside a small subspace have a quotient.
    """
    sigma_squared = jnp.asarray(reference.typical_variance())
    mixture = reference if isinstance(reference, GaussianMixture) else None
    known = Known(
        drift_vjp=Partial(_score_vjp if mixture is None else _mixture_vjp, reference),
        stiffness=jnp.float32(reference.stiffness()),
        mixture=mixture,
        quotient=mixture if mixture is not None and mixture.covariance in ISOTROPIC else None,
        elementwise=isinstance(reference, Logistic),
        period=reference.period if isinstance(reference, UniformTorus) else None,
    )
    return Process(
        name="langevin",
        drift=Partial(_drift, reference),
        diffusion=Partial(sqrt_two),
        reference=reference,
        clock=relaxing(sigma_squared),
        horizon=checked_horizon(horizon, RELAXATION_TIMES * float(sigma_squared)),
        known=known,
    )
