"""Noising processes dY = b(Y, t) dt + g(t) E dW, what is known of them, and their reverse.

Time t runs from 0 (data) to `horizon`, in the units of the process. The convention is b = + drift
of the forward process throughout; 2405.15625 writes -f for it in its Eq. 1 and + in its text.
A `Process` is a pytree: functions that depend on arrays are `jax.tree_util.Partial`s over them, so
a compiled training step takes the process as an argument and is not retraced for another mixture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike

from ndsm_jax import checks
from ndsm_jax.checks import POSITIVE, SCORE, arguments, function, sequence, whole
from ndsm_jax.clock import Clock, driven
from ndsm_jax.linear_maps import Gaussian, WrappedGaussian, embed, select
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.references.reference import Reference

ScoreFn = Callable[[Array, Array], Array]
"""u(y [..., d], t [...]) -> [..., r], an approximation of E^T grad log p_t(y); r = d for E = I."""

DriftFn = Callable[[Array, Array], Array]
"""b(y [..., d], t [...]) -> [..., d]."""


def as_pytree(function: Any) -> Any:
    """A function as a pytree; a `Partial` over arrays is one already."""
    plain = callable(function) and jax.tree_util.all_leaves([function])
    return Partial(function) if plain else function


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "drift_vjp", "mixture", "quotient", "stiffness"),
    meta_fields=("elementwise", "period"),
    drop_fields=("of",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a process beyond its drift and its noise; None where nothing is.

    Attributes:
      kernel: t [...] -> the Gaussian law of Y_t given Y_0, for linear processes; wrapped, on a
        torus.
      drift_vjp: (y, t, v) -> (b, J_b(y, t)^T v) by a formula, see `pull_back`.
      mixture: the mixture whose Langevin dynamics these are: b its score, g = sqrt(2), all noisy.
      quotient: the mixture, isotropic outside a small subspace, whose score the drift is: the chain
        can then be simulated in a few dimensions (`noising.quotient`).
      stiffness: the largest rate at which the drift contracts, 1 / time. Explicit steps times it
        must stay below 1.
      elementwise: whether each coordinate's drift depends on that coordinate alone (static), so
        that its Jacobian is diagonal.
      period: of every coordinate, where the drift is periodic and the law that on a flat torus, of
        which states run in the covering space (static).
      of: the drift, diffusion and noisy coordinates that it is known of; set by `Process`, carried
        along by `dataclasses.replace`. None for what is new: `Known(...)`.
    """

    kernel: Callable[[Array], Gaussian | WrappedGaussian] | None = None
    drift_vjp: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None
    mixture: GaussianMixture | None = None
    quotient: GaussianMixture | None = None
    stiffness: Array | None = None
    elementwise: bool = False
    period: float | None = None
    of: tuple[Any, ...] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("kernel", "drift_vjp"):
            object.__setattr__(self, name, as_pytree(getattr(self, name)))

    def still_true(self, drift: Any, diffusion: Any, noisy: Any) -> Known:
        """What of it holds for these.

        The kernel and the mixture are of drift and noise, the quotient of drift and noise in all
        directions; the others of the drift alone.
        """
        if self.of is None:
            return dataclasses.replace(self)
        if self.of[0] is not drift:
            return Known()
        lost: dict[str, Any] = {}
        if self.of[1] is not diffusion:
            lost |= {"kernel": None, "mixture": None}
        if self.of[2] != noisy:
            lost |= {"kernel": None, "mixture": None, "quotient": None}
        return dataclasses.replace(self, **lost)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("drift", "diffusion", "reference", "clock", "horizon", "known"),
    meta_fields=("name", "noisy"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A forward noising process, with what reversing it needs.

    Capabilities are in `known` and belong to the very drift and diffusion beside them:
    `dataclasses.replace(process, drift=...)` leaves none of the old drift's behind, and keeps all
    when it changes the horizon. Nothing decides by the name.

    Attributes:
      name: for messages and reports (static).
      drift: b(y [..., d], t [...]) -> [..., d].
      diffusion: g(t [...]) -> [...], positive; at 0 it may be 0 where there is a kernel.
      reference: the law at the horizon, from which the reverse process starts.
      clock: how much noise there is at a time.
      horizon: T, in time units.
      noisy: indices of the coordinates that E selects, those that noise drives (static); None: all.
      known: its capabilities.
    """

    name: str
    drift: DriftFn
    diffusion: Callable[[Array], Array]
    reference: Reference
    clock: Clock
    horizon: Array
    noisy: tuple[int, ...] | None = None
    known: Known = Known()

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            object.__setattr__(self, name, as_pytree(getattr(self, name)))
        of = (self.drift, self.diffusion, self.noisy)
        known = self.known.still_true(*of)
        object.__setattr__(known, "of", of)
        object.__setattr__(self, "known", known)

    @property
    def dim(self) -> int:
        """d."""
        return self.reference.dim

    @property
    def kernel(self) -> Callable[[Array], Gaussian | WrappedGaussian] | None:
        """See `Known`."""
        return self.known.kernel

    @property
    def noise_dim(self) -> int:
        """r, the number of coordinates that noise drives."""
        return self.dim if self.noisy is None else len(self.noisy)

    def spread(self, u: Array) -> Array:
        """E u: [..., r] -> [..., d]."""
        return embed(u, self.noisy, self.dim)

    def project(self, y: Array) -> Array:
        """E^T y: [..., d] -> [..., r]."""
        return select(y, self.noisy)


def noisy_from_the_start(process: Process) -> bool:
    """Whether g(0) > 0: else the first Euler step has no noise, and no density."""
    return bool(process.diffusion(jnp.zeros(())) > 0)


@arguments(process=Process, y="[..., d]", t="[...]", v="[..., d]")
def pull_back(process: Process, y: Array, t: Array, v: Array) -> tuple[Array, Array]:
    """b(y, t) and J_b(y, t)^T v, the drift's Jacobian transposed times v: [..., d] each.

    By the process's formula where it has one, otherwise by `jax.vjp`.
    """
    if process.known.drift_vjp is not None:
        return process.known.drift_vjp(y, t, v)
    drift, pull = jax.vjp(lambda y: process.drift(y, t), y)
    return drift, pull(v)[0]


@arguments(process=Process, score=SCORE)
def reverse_drift(process: Process, score: ScoreFn) -> DriftFn:
    """Drift of the reverse process in tau = T - t, -b(x, t) + g(t)^2 E u(x, t).

    2405.15625, Eq. 1; its noise is g(t) E dW.
    """
    return partial(_backwards, process, score, 1.0)


@arguments(process=Process, score=SCORE)
def probability_flow(process: Process, score: ScoreFn) -> DriftFn:
    """Velocity dX/dtau of the probability-flow ODE, -b + g^2 E u / 2 (2011.13456, Eq. 13)."""
    return partial(_backwards, process, score, 0.5)


def _backwards(process: Process, score: ScoreFn, share: float, x: Array, t: Array) -> Array:
    u = checks.score("processes", score, process.noise_dim)(x, t)
    push = share * process.diffusion(t)[..., None] ** 2 * process.spread(u)
    return -process.drift(x, t) + push


def _constant(g: Array, t: Array) -> Array:
    return jnp.broadcast_to(g, t.shape)


@arguments(
    drift=function(2),
    diffusion=(function(1), POSITIVE),
    reference=Reference,
    horizon=POSITIVE,
    clock=Clock,
    noisy=sequence(whole(), "a tuple of coordinates"),
    known=Known,
    name=str,
)
def process(
    drift: DriftFn,
    diffusion: Callable[[Array], Array] | ArrayLike,
    reference: Reference,
    *,
    horizon: float,
    clock: Clock | None = None,
    noisy: tuple[int, ...] | None = None,
    known: Known | None = None,
    name: str = "own",
) -> Process:
    """Any drift b(y [..., d], t [...]) and diffusion g(t [...]) > 0, noising towards `reference`.

    Functions of arrays that change, such as a fitted mixture, are best `jax.tree_util.Partial`s
    over them: then they are arguments of compiled code, not constants.

    Args:
      drift: b.
      diffusion: g, a function of t or a number.
      reference: the law at the horizon.
      horizon: T, time units.
      clock: the process's own; by default that of the reference's typical mode,
        v(t) = sigma^2 (1 - exp(-g(0)^2 t / sigma^2)).
      noisy: the coordinates that noise drives; None: all.
      known: capabilities of this drift and diffusion, if any.
      name: for messages.

    Raises:
      ValueError: a horizon that is not positive and finite, a drift or a diffusion of the wrong
        shape or over something that is no array, or noisy coordinates that do not exist.
    """
    dim = reference.dim
    if callable(diffusion):
        g: Callable[[Array], Array] = as_pytree(diffusion)
    else:
        number = np.asarray(diffusion)
        if number.ndim or number.dtype.kind not in "iuf" or not 0 < number < math.inf:
            raise ValueError(
                f"process: diffusion={diffusion} must be a function of t, or a positive and finite"
                " number"
            )
        g = Partial(_constant, jnp.float32(number))
    if noisy is not None:
        noisy = tuple(int(i) for i in noisy)
        if not noisy or len(set(noisy)) < len(noisy) or not 0 <= min(noisy) <= max(noisy) < dim:
            raise ValueError(f"process: noisy={noisy} must be different coordinates below {dim}")
    for what, function_ in (("drift", drift), ("diffusion", g)):
        _check_leaves(what, function_)
    y, t = jax.ShapeDtypeStruct((2, 3, dim), jnp.float32), jax.ShapeDtypeStruct((2, 3), jnp.float32)
    _check_shape("drift", drift, (y, t), y)
    _check_shape("diffusion", g, (t,), t)
    return Process(
        name=name,
        drift=drift,
        diffusion=g,
        reference=reference,
        clock=clock or driven(g, reference.typical_variance()),
        horizon=checked_horizon(horizon, horizon),
        noisy=noisy,
        known=known or Known(),
    )


def _check_leaves(what: str, function: Any) -> None:
    for leaf in jax.tree.leaves(function) if isinstance(function, Partial) else ():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            raise ValueError(
                f"process: the {what} is a Partial over {type(leaf).__name__}, which is no array; a"
                " Partial has arrays, pytrees of them and numbers alone: keep what is none, such as"
                " a network, in the function itself (a closure)"
            )


def _check_shape(what: str, function: Any, args: tuple[Any, ...], like: Any) -> None:
    found = jax.eval_shape(function, *args)
    if getattr(found, "shape", None) != like.shape:
        shapes = ", ".join(str(list(a.shape)) for a in args)
        raise ValueError(
            f"process: the {what} maps arrays of shape {shapes} to"
            f" {list(found.shape) if hasattr(found, 'shape') else type(found).__name__};"
            f" {list(like.shape)} is needed (any leading shape must do)"
        )


def checked_horizon(horizon: float | None, default: float) -> Array:
    """T as an array. Raises ValueError unless it is positive and finite."""
    horizon = default if horizon is None else float(horizon)
    if not 0 < horizon < math.inf:
        raise ValueError(f"process.horizon={horizon}: a positive, finite time is needed")
    return jnp.float32(horizon)
