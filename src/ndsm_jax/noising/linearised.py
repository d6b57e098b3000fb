"""Noising for local-DSM: a simulated path, left by the Gaussian of the linearised drift.

Singhal, Goldstein and Ranganath (2407.07998); docs/local_dsm.md derives what is done here.
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

from ndsm_jax.checks import (
    COUNT,
    FLAG,
    FUNCTION,
    GRID,
    KEY,
    POSITIVE,
    STEPS,
    arguments,
    function,
    one_of,
)
from ndsm_jax.clock import loss_weight
from ndsm_jax.integrators import (
    INTEGRATOR_CHOICES,
    INTEGRATORS,
    broadcast_time,
    chosen_integrator,
    phi,
    simulate,
)
from ndsm_jax.linear_maps import Diagonal
from ndsm_jax.noising.batch import NoisedBatch, TimeLaw, Weight, law_on
from ndsm_jax.noising.chain import (
    SIMULATIONS,
    Chain,
    FullSpace,
    Grid,
    as_grid,
    full_space,
    make_chain,
    relaxing_variance,
    walk,
)
from ndsm_jax.noising.quotient import _restrict, outward, subspace
from ndsm_jax.noising.windows import window_starts
from ndsm_jax.processes.process import DriftFn, Process
from ndsm_jax.references.mixtures import GaussianMixture

JACOBIANS = ("auto", "dense", "low_rank", "diagonal")
SCHEDULES = ("controlled", "gap")

DENSE_DIM = 128
"""Largest matrices that `auto` forms, one for every state of a batch."""

# --- one step of a linear drift ---

_ORDER = 8
_NORM = 0.25
"""Taylor series of this order are exact in float32 for matrices of this norm."""

_GROWTH = 2.0
"""The largest factor by which a deviation grows in a window that is linearised as it is, in one
dimension; in more see `linear_step`."""

_product = partial(jnp.matmul, precision="highest")


def _apply(matrix: Array, y: Array) -> Array:
    return _product(matrix, y[..., None])[..., 0]


def _t(matrix: Array) -> Array:
    return jnp.swapaxes(matrix, -1, -2)


def linear_step(matrix: Array, force: Array, noisy: Array) -> tuple[Array, Array]:
    """Mean and covariance, after a unit of time, of dx = (A x + f) dt + E dW from x = 0.

    phi_1(A) f with phi_1(z) = (e^z - 1) / z, and int_0^1 e^{A u} E E^T e^{A^T u} du (Van Loan 1978,
    IEEE Trans. Autom. Control 23(3)). Not by his block exponential, which holds e^{-A} and loses
    what float32 has for a stiff A: Taylor series for 2^-n A, and then, n times, the doubling

        S(2 u) = S(u) + e^{A u} S(u) e^{A^T u},    w(2 u) = w(u) + e^{A u} w(u),

    a sum of positive matrices, with e^{A u} - I in the place of e^{A u}. A covariance that is small
    because noise gets there through A alone is right in its own units, too.

    Where A expands too much for a linearisation to mean anything, tr(e^{2 A}) > d + 3, as in one
    dimension where deviations more than double, 2^-j A takes its place, with the least j that will
    do: at a saddle a linear drift runs away from the two modes that the true one leads to. In more
    dimensions directions that contract make room for one that expands, by up to sqrt(d + 3). The
    target is right for the chain's own law whatever A is, as long as y_s alone decides.

    Args:
      matrix: A [..., d, d].
      force: f [..., d].
      noisy: the diagonal of E E^T, [d].

    Returns:
      [..., d] and [..., d, d].
    """
    norm = jnp.abs(matrix).sum(axis=-1).max(axis=-1)
    doublings = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(norm, 1e-30) / _NORM)), 0, 24)
    scale = 2.0**-doublings
    a, f = matrix * scale[..., None, None], force * scale[..., None]
    terms = (jnp.broadcast_to(jnp.diag(noisy), a.shape), a, f)

    def add(n: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        terms, sums = state
        sums = tuple(map(jnp.add, sums, terms))
        half = _product(a, terms[0])
        grown = (half + _t(half), _product(a, terms[1]), _apply(a, terms[2]))
        return tuple(x / (n + 1) for x in grown), sums

    zeros = tuple(map(jnp.zeros_like, terms))
    _, sums = jax.lax.fori_loop(1, _ORDER + 1, add, (terms, zeros))
    covariance, less_one, mean = sums
    covariance *= scale[..., None, None]

    def double(
        state: tuple[Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array]:
        n, less_one, mean, covariance = state
        moved = covariance + _product(less_one, covariance)
        grown = 2 * less_one + _product(less_one, less_one)
        trace = jnp.sum(2 * jnp.diagonal(grown, axis1=-2, axis2=-1), axis=-1)
        trace += jnp.sum(grown * _t(grown), axis=(-2, -1))  # of e^{2 A} - I
        fits = trace <= _GROWTH**2 - 1
        doubled = (
            grown,
            2 * mean + _apply(less_one, mean),
            covariance + moved + _product(moved, _t(less_one)),
        )
        # Half of A instead: what half the time adds, twice.
        halved = (less_one, 2 * mean, 2 * covariance)

        def choose(double: Array, halve: Array, old: Array) -> Array:
            going, fit = (
                a.reshape(a.shape + (1,) * (old.ndim - a.ndim)) for a in (n < doublings, fits)
            )
            return jnp.where(going, jnp.where(fit, double, halve), old)

        less_one, mean, covariance = map(choose, doubled, halved, state[1:])
        return n + 1, less_one, mean, covariance

    start = (jnp.zeros((), doublings.dtype), less_one, mean, covariance)
    _, _, mean, covariance = jax.lax.while_loop(
        lambda state: state[0] < doublings.max(initial=0), double, start
    )
    return mean, covariance


# --- the Gaussian of a state ---


@partial(jax.tree_util.register_dataclass, data_fields=("std", "lower"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """diag(std) lower: standard deviations [..., d], and a correlation's Cholesky factor.

    Coordinates that no noise reaches have std 0; they are moved by nothing and pull at nothing.
    """

    std: Array
    lower: Array

    def mv(self, z: Array) -> Array:
        """L z: [..., d] -> [..., d]."""
        return self.std * _apply(self.lower, z)

    def mv_t(self, y: Array) -> Array:
        """L^T y: [..., d] -> [..., d]."""
        return _apply(_t(self.lower), self.std * y)

    def solve_t(self, z: Array) -> Array:
        """L^{-T} z: [..., d] -> [..., d]."""
        solved = jax.lax.linalg.triangular_solve(
            self.lower, z[..., None], left_side=True, lower=True, transpose_a=True
        )[..., 0]
        return jnp.where(self.std > 0, solved / jnp.where(self.std > 0, self.std, 1), 0)


def _factor(covariance: Array) -> Factor:
    # In units of its own diagonal, whose condition is all that Cholesky's depends on: no jitter.
    std = jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    safe = jnp.where(std > 0, std, 1)
    eye = jnp.broadcast_to(jnp.eye(std.shape[-1], dtype=std.dtype), covariance.shape)
    correlation = jnp.where(eye > 0, eye, covariance / safe[..., None] / safe[..., None, :])
    return Factor(std=std, lower=jnp.linalg.cholesky(correlation))


@partial(
    jax.tree_util.register_dataclass, data_fields=("std", "basis", "axis", "inner"), meta_fields=()
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarPlusLowRank:
    """std I outside the span of a basis [d, r] and each state's own axis [..., d]; inner in it."""

    std: Array
    basis: Array
    axis: Array
    inner: Factor

    def mv(self, z: Array) -> Array:
        """L z: [..., d] -> [..., d]."""
        return self._split(z, self.std, self.inner.mv)

    def mv_t(self, y: Array) -> Array:
        """L^T y: [..., d] -> [..., d]."""
        return self._split(y, self.std, self.inner.mv_t)

    def solve_t(self, z: Array) -> Array:
        """L^{-T} z: [..., d] -> [..., d]."""
        return self._split(z, 1 / self.std, self.inner.solve_t)

    def _split(self, z: Array, value: Array, inner: Callable[[Array], Array]) -> Array:
        inside = _coordinates(self.basis, self.axis, z)
        outside = z - _whole(self.basis, self.axis, inside)
        return value[..., None] * outside + _whole(self.basis, self.axis, inner(inside))


def _coordinates(basis: Array, axis: Array, y: Array) -> Array:
    """(B^T y, e . y): [..., d] -> [..., r + 1]."""
    along = jnp.sum(axis * y, axis=-1, keepdims=True)
    return jnp.concatenate([_product(y, basis), along], axis=-1)


def _whole(basis: Array, axis: Array, x: Array) -> Array:
    """B p + alpha e of x = (p, alpha): [..., r + 1] -> [..., d]."""
    return _product(x[..., :-1], basis.T) + x[..., -1:] * axis


@partial(jax.tree_util.register_dataclass, data_fields=("mean", "root"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalGaussian:
    """y_t | y_s ~ N(mean, L L^T), of states: mean [..., d] and the root L."""

    mean: Array
    root: Factor | Diagonal | ScalarPlusLowRank

    def sample(self, z: Array) -> Array:
        """mean + L z, for normals z: [..., d] -> [..., d]."""
        return self.mean + self.root.mv(z)

    def score(self, z: Array) -> Array:
        """Its score at mean + L z, -L^{-T} z: [..., d] -> [..., d]."""
        return -self.root.solve_t(z)


# --- linearisations, by what is known of the drift's Jacobian ---


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def _strength(process: Process, s: Array, h: Array) -> Array:
    """int_s^{s+h} g(u)^2 du by Gauss and Legendre's rule of 8 points: [...]."""
    at = jnp.asarray(_NODES, h.dtype).reshape(-1, *(1,) * h.ndim)
    g = process.diffusion(s[None] + 0.5 * h[None] * (1 + at))
    return 0.5 * h * jnp.tensordot(jnp.asarray(_WEIGHTS, h.dtype), g**2, 1)


def _dense_step(
    drift: DriftFn, noisy: Array, y: Array, t: Array, h: Array, strength: Array
) -> LocalGaussian:
    """The Gaussian by the Jacobian's d columns, one derivative each."""

    def along(v: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda y: drift(y, t), (y,), (jnp.broadcast_to(v, y.shape),))

    axes = jnp.eye(y.shape[-1], dtype=y.dtype)
    b, jacobian = jax.vmap(along, out_axes=(None, -1))(axes)
    moved, covariance = linear_step(h[..., None, None] * jacobian, h[..., None] * b, noisy)
    factor = _factor(covariance)
    root = dataclasses.replace(factor, std=jnp.sqrt(strength)[..., None] * factor.std)
    return LocalGaussian(mean=y + moved, root=root)


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseJacobian:
    """Any drift and any noise in few dimensions: O(d^3) a state."""

    def __call__(self, process: Process, y: Array, s: Array, h: Array) -> LocalGaussian:
        """The law at s + h of states y [..., d] at s [...], see `linearise`."""
        noisy = process.spread(jnp.ones(process.noise_dim, y.dtype))
        return _dense_step(process.drift, noisy, y, s + 0.5 * h, h, _strength(process, s, h))


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagonalJacobian:
    """Drifts that act on each coordinate alone, with noise in all: O(d) a state.

    Where a coordinate's deviations would more than double, its rate alone is cut, so that they do
    double: another law than that of `linear_step`, which has one factor 2^-j for all of A.
    """

    def __call__(self, process: Process, y: Array, s: Array, h: Array) -> LocalGaussian:
        """The law at s + h of states y [..., d] at s [...], see `linearise`."""
        t = s + 0.5 * h
        b, jacobian = jax.jvp(lambda y: process.drift(y, t), (y,), (jnp.ones_like(y),))
        x = jnp.minimum(h[..., None] * jacobian, math.log(_GROWTH))  # see `linear_step`
        std = jnp.sqrt(_strength(process, s, h)[..., None] * phi(2 * x))
        return LocalGaussian(mean=y + h[..., None] * phi(x) * b, root=Diagonal(values=std))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("mixture", "centre", "basis"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankJacobian:
    """The score of a mixture that is isotropic outside a small subspace M: O(r d + r^3) a state.

    With y = c + B p + alpha e, e a unit vector orthogonal to M, drift and Jacobian stay within
    span(B, e), where they are those of a mixture in r + 1 dimensions; outside of it the Jacobian is
    the scalar -sum_k r_k(y) / s_k^2.

    Attributes:
      mixture: in r + 1 dimensions, with the responsibilities of the whole.
      centre, basis: c [d], B [d, r] orthonormal.
    """

    mixture: GaussianMixture
    centre: Array
    basis: Array

    def __call__(self, process: Process, y: Array, s: Array, h: Array) -> LocalGaussian:
        """The law at s + h of states y [..., d] at s [...], see `linearise`."""
        offset = y - jnp.broadcast_to(self.centre, y.shape)
        axis = outward(self._outside(offset), offset, self._spare())
        axis = axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)
        small = _coordinates(self.basis, axis, offset)
        strength = _strength(process, s, h)
        noisy = jnp.ones(small.shape[-1], y.dtype)
        inner = _dense_step(lambda x, t: self.mixture.score(x), noisy, small, s, h, strength)
        precision = jnp.broadcast_to(
            self.mixture.precision_factor[:, 0] ** 2, (self.mixture.num_components,)
        )
        rate = -(self.mixture.responsibilities(small) @ precision)
        assert isinstance(inner.root, Factor)
        return LocalGaussian(
            mean=y + _whole(self.basis, axis, inner.mean - small),
            root=ScalarPlusLowRank(
                std=jnp.sqrt(strength * phi(2 * h * rate)),
                basis=self.basis,
                axis=axis,
                inner=inner.root,
            ),
        )

    def _spare(self) -> Array:
        free = 1 - jnp.sum(self.basis**2, axis=1)
        axis = jnp.zeros_like(free).at[jnp.argmax(free)].set(1)
        return self._outside(axis)

    def _outside(self, y: Array) -> Array:
        q = y - _product(_product(y, self.basis), self.basis.T)
        return q - _product(_product(q, self.basis), self.basis.T)


Linearisation = DenseJacobian | DiagonalJacobian | LowRankJacobian


def _low_rank(mixture: GaussianMixture) -> LowRankJacobian | None:
    """None where nothing is outside of M but one direction: a dense matrix is smaller."""
    basis = subspace(mixture)
    dim, rank = basis.shape
    if rank + 1 >= dim:
        return None
    centre = np.asarray(mixture.means, np.float64).mean(axis=0)
    return LowRankJacobian(
        mixture=_restrict(mixture, basis, centre, 1),
        centre=jnp.asarray(centre, jnp.float32),
        basis=jnp.asarray(basis, jnp.float32),
    )


@arguments(process=Process, jacobian=one_of(JACOBIANS))
def linearise(process: Process, *, jacobian: str = "auto") -> Linearisation:
    """The linearised process: (process, y_s [..., d], s [...], h [...]) to the law at s + h.

    With b and J of the drift at y_s, at the time s + h / 2,

        mean = y_s + h phi_1(J h) b,    cov = g^2 int_0^h e^{J u} E E^T e^{J^T u} du,

    and g^2 averaged over the step. Where drift or noise depend on time that is an approximation; it
    is exact without a drift, and for one of `processes.variance_preserving`'s form, -g^2 y / 2 with
    g^2 linear in t.

    Args:
      process: the process.
      jacobian: `dense`, for any in few dimensions; `low_rank`, a scalar plus a few directions, for
        `Known.quotient`; `diagonal`, for `Known.elementwise`; or `auto`, the cheapest of these.

    Raises:
      ValueError: unknown kind, one that the process does not have, or too many dimensions for
        dense matrices.
    """
    all_noisy, mixture = process.noisy is None, process.known.quotient
    if jacobian == "diagonal" or (jacobian == "auto" and process.known.elementwise and all_noisy):
        if not (process.known.elementwise and all_noisy):
            raise ValueError(
                f"noising.jacobian='diagonal': process {process.name!r} is not known to be"
                " elementwise (processes.Known), with noise in every coordinate; choose 'dense'"
            )
        return DiagonalJacobian()
    low = _low_rank(mixture) if mixture is not None and all_noisy else None
    if jacobian == "low_rank" and low is None:
        raise ValueError(
            f"noising.jacobian='low_rank': the drift of {process.name!r} is not known to be the"
            " score of a mixture that is isotropic outside a small subspace; choose 'dense'"
        )
    if low is not None and jacobian != "dense":
        return low
    if jacobian == "auto" and process.dim > DENSE_DIM:
        raise ValueError(
            f"local-DSM needs the Jacobian of the drift of {process.name!r}, {process.dim} x"
            f" {process.dim} for each state, above {DENSE_DIM}: say that the process is elementwise"
            " (processes.Known), choose a mixture.covariance that is isotropic, or objective.name"
            " from path_dsm, ndsm, ism"
        )
    return DenseJacobian()


# --- schedules ---

_PROBES, _STARTS = 2, 24
"""Pairs of signs, and grid points from which windows are tried."""


def num_paths(dim: int) -> int:
    """Of those that windows are chosen on: 128, as what errs most is rare, down to 32 in many
    dimensions, where the coordinates average as well."""
    return min(max(2**13 // dim, 32), 128)


def mean_error(
    key: Array, process: Process, linearised: Linearisation, y: Array, s: Array, h: Array
) -> Array:
    """Squared error of the local mean of windows from y [..., d], s to s + h [...]: [...].

    Twice the difference between the mean of one linearised step and that of two of half the length,
    over the coordinates' root mean square. The half steps are joined by the local noise, in pairs
    +-z of signs, which cancel what is linear: the mean of the second one over z. The leading error,
    h^2 / 4 g^2 tr(D^2 b), has exactly this size. The square is a product of two independent
    estimates: unbiased, and not always positive.
    """
    half = 0.5 * h
    laws = jax.vmap(partial(linearised, process, y, s))(jnp.stack([half, h]))
    middle, one = (jax.tree.map(lambda a, i=i: a[i], laws) for i in range(2))
    signs = jax.random.rademacher(key, (_PROBES, *y.shape), y.dtype)
    moved = jax.vmap(middle.root.mv)(signs)
    start = middle.mean[None, None] + jnp.stack([moved, -moved])
    times = (jnp.broadcast_to(t, start.shape[:-1]) for t in (s + half, half))
    ends = linearised(process, start, *times).mean
    first, second = jnp.mean(ends - one.mean[None, None], axis=0)
    return 4 * jnp.mean(first * second, axis=-1)


@jax.jit
def _window_error(
    process: Process, linearised: Linearisation, paths: Array, s: Array, h: Array
) -> Array:
    """Error of windows from the states paths [n, P, d] at s [n] to s + h, over std(s + h): [n]."""

    def error(of: tuple[Array, Array, Array]) -> Array:
        y, s, h = of
        times = (broadcast_time(s, y), broadcast_time(h, y))
        squares = mean_error(jax.random.key(1), process, linearised, y, *times)
        return jnp.sqrt(jnp.maximum(jnp.mean(squares), 0)) / process.clock.std(s + h)

    return jax.lax.map(error, (paths, s, h), batch_size=4)  # it divides _STARTS: no second loop


@partial(jax.jit, static_argnames="integrator")
def _measured_paths(chain: FullSpace, x0: Array | None, grid: Array, integrator: str) -> Array:
    """Paths from x0, or from draws of the reference, at all grid points but the last: [n, P, d]."""
    process = chain.process
    key_start, key_path = jax.random.split(jax.random.key(0))
    x0 = process.reference.sample(key_start, (num_paths(process.dim),)) if x0 is None else x0
    variance = relaxing_variance(chain, x0, integrator)
    return simulate(key_path, process, x0, grid, integrator=integrator, variance=variance)[:-1]


@arguments(
    process=Process,
    grid=GRID,
    linearised=FUNCTION,
    tolerance=POSITIVE,
    integrator=one_of(INTEGRATORS),
    x0="finite numbers [n, d]",
)
def controlled_starts(
    process: Process,
    grid: np.ndarray,
    linearised: Linearisation,
    *,
    tolerance: float,
    integrator: str = "euler",
    x0: Array | None = None,
) -> Array:
    """Where the window of each grid interval starts, int [n], so that its mean is right.

    The earliest grid point whose window to the interval's right end has a `mean_error` of at most
    `tolerance`, the root of its mean over some paths, in units of the kernel's standard deviation
    sqrt(v(t)) there; at least one step before it. The error is taken to grow with the window, whose
    number of steps is searched by bisection, among 1, 2, 3, 4, 6, 8, 11, ..., from 24 of the grid's
    points, and interpolated between these. Deterministic.

    Args:
      x0: starts of the paths [P, d], best some data: a spherical component's own draws in many
        dimensions are all of one component, where the drift is linear, and data of another shape
        are between several. By default `num_paths` draws from the reference.

    Raises:
      ValueError: a tolerance that is not positive.
    """
    n = len(grid) - 1
    # The chain is built here: modes are found on the host, which traced arrays do not reach.
    paths = _measured_paths(full_space(process), x0, jnp.asarray(grid), integrator)
    steps = np.round(2 ** np.append(np.arange(0, np.log2(n), 0.5), np.log2(n))).astype(int)
    steps = np.unique(steps)
    tried = np.round(np.linspace(0, n - 1, _STARTS)).astype(int)
    low, high = np.zeros(_STARTS, int), np.full(_STARTS, len(steps))
    while np.any(high - low > 1):
        middle = (low + high) // 2
        stop = np.minimum(tried + steps[middle], n)
        times = (jnp.asarray(grid[tried]), jnp.asarray(grid[stop] - grid[tried]))
        right = np.asarray(_window_error(process, linearised, paths[tried], *times)) <= tolerance
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    # A window that the horizon cuts says nothing of a whole one: it is that of the last start whose
    # window is whole.
    whole = tried + steps[low] <= n
    if whole.any():
        low = np.where(whole, low, np.minimum(low, low[np.flatnonzero(whole)[-1]]))
    index = np.arange(n)
    longest = np.floor(np.interp(index, tried, low)).astype(int)
    reach = np.minimum(index + steps[longest], n)
    served = reach[:, None] >= index[None, :] + 1  # [start, interval]
    starts = np.where(served.any(axis=0), served.argmax(axis=0), index)
    return jnp.asarray(np.minimum(starts, index))


# --- noising ---


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("chain", "process", "linearised", "times", "starts", "weight"),
    meta_fields=("k", "integrator", "perceptual"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearisedWindows:
    """Noising for local-DSM (2407.07998).

    A path a data point runs over the grid. k times t, the right ends of intervals drawn by the time
    law, it is left at an earlier grid point s(t) by one Gaussian step of the drift linearised
    there, y_t = m + L z in the whole space. The target is -E^T L^{-T} z, and mu = m. NDSM's step is
    the one with no Jacobian.

    Attributes:
      chain: what is simulated, the process itself or its quotient.
      process: the process.
      linearised: see `linearise`.
      starts: grid index of s(t) for each interval, int [n].
      weight: of the loss, see `clock.loss_weight`.
      k: times a path (static).
      integrator: of the simulation, see `integrators.step_sizes` (static).
      perceptual: whether the batch has the root of the covariance that the window would have from
        y_t (static). Not that of its own window from y_s: given y_t it is correlated with the
        target, and the minimiser would not be the score.
    """

    chain: Chain
    process: Process
    linearised: Linearisation
    times: TimeLaw
    starts: Array
    weight: Weight
    k: int = 1
    integrator: str = "euler"
    perceptual: bool = False

    @arguments(key=KEY, x0="[B, d]")
    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with [B, k] states."""
        key_time, key_path, key_step = jax.random.split(key, 3)
        grid = self.times.grid
        interval = self.times.index(self.times.quantiles(key_time, x0.shape[0], self.k))
        index, t = self.starts[interval], grid[interval + 1]
        # The last interval's start is the last state a window can leave from.
        left, _ = walk(key_path, self.chain, x0, index, grid[:-1], integrator=self.integrator)
        s, h = grid[index], t - grid[index]
        local = self.linearised(self.process, left, s, h)
        z = jax.random.normal(key_step, left.shape, left.dtype)
        y = local.sample(z)
        return NoisedBatch(
            y=y,
            t=t,
            weight=self.weight(y, t),
            score_target=self.process.project(local.score(z)),
            mu=local.mean,
            root=self.linearised(self.process, y, s, h).root if self.perceptual else None,
            noisy=self.process.noisy,
        )


@arguments(
    process=Process,
    grid=(GRID, STEPS),
    k=COUNT,
    schedule=one_of(SCHEDULES),
    gap=POSITIVE,
    tolerance=POSITIVE,
    jacobian=one_of(JACOBIANS),
    simulation=one_of(SIMULATIONS),
    integrator=one_of(INTEGRATOR_CHOICES),
    x0="finite numbers [n, d]",
    times=TimeLaw,
    weight=function(2),
    perceptual=FLAG,
)
def linearised_windows(
    process: Process,
    grid: Grid = 150,
    *,
    k: int = 4,
    schedule: str = "controlled",
    gap: float = 0.05,
    tolerance: float = 0.02,
    jacobian: str = "auto",
    simulation: str = "auto",
    integrator: str = "auto",
    x0: Array | None = None,
    times: TimeLaw | None = None,
    weight: Weight | None = None,
    perceptual: bool = False,
) -> LinearisedWindows:
    """Noising for local-DSM of any process, also where only some coordinates are noisy.

    Args:
      process: the process.
      grid: times [n + 1], or a number of steps of the process's clock.
      k: random times a path.
      schedule: how s(t) is chosen: `controlled`, see `controlled_starts`, or `gap`, the first grid
        point within `gap` of t. Either leaves at least the last step to the linearised drift.
      gap: length of the windows of `gap`, time units.
      tolerance: of `controlled`, on the error of the local mean in units of sqrt(v(t)).
      jacobian: see `linearise`.
      simulation: see `make_chain`.
      integrator: see `integrators.step_sizes` and, of `auto`, `integrators.chosen_integrator`.
      x0: some data [P, d], on whose paths `controlled` measures; by default, on the reference's.
      times: law of the times, on the same grid; by default `time_law` of the clock.
      weight: of the loss; v(t) by default, 1 where it is perceptual.
      perceptual: whether residuals are measured in units of the local covariance,
        |L(y_t)^T E (s - target)|^2, which for a linear drift and E = I is |L^T s + z|^2 (the
        perceptual weighting of 2407.07998; docs/local_dsm.md).

    Raises:
      ValueError: unknown schedule, a gap that is not positive, a law of the times on another grid,
        and as `linearise`,
        `controlled_starts` and `make_chain`.
    """
    grid, integrator = as_grid(process, grid), chosen_integrator(process, integrator)
    linearised = linearise(process, jacobian=jacobian)
    if schedule == "controlled":
        starts = controlled_starts(
            process, grid, linearised, tolerance=tolerance, integrator=integrator, x0=x0
        )
    else:
        found = window_starts(grid, gap)
        assert found is not None  # only 0 has no starts
        starts = found
    return LinearisedWindows(
        chain=make_chain(process, grid, kind=simulation, integrator=integrator),
        process=process,
        linearised=linearised,
        times=law_on(grid, times, process.clock),
        starts=starts,
        weight=weight or loss_weight(process.clock, "unit" if perceptual else "variance"),
        k=k,
        integrator=integrator,
        perceptual=perceptual,
    )
