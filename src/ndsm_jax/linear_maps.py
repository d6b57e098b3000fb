"""Linear maps of states, and the linear Gaussian kernels made of them, on R^n or on a torus.

A map acts on the last axis of `y [..., d]`; its arrays may have any leading shape that fits that of
the states. Four kinds, from cheap to general; everything asks for the methods alone.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import checks
from ndsm_jax.checks import NONE, POSITIVE, Needs, arguments, whole

DIM = whole(0)  # none: what is left of a space where all else is exact
INDICES = ("integers below d [r]", NONE)


@arguments(y="[..., d]", indices=INDICES)
def select(y: Array, indices: tuple[int, ...] | None) -> Array:
    """E^T y, the coordinates `indices` of y; None: all. [..., d] -> [..., r]."""
    return y if indices is None else y[..., np.asarray(indices, int)]


@arguments(u="[..., r]", indices=INDICES, dim=DIM)
def embed(u: Array, indices: tuple[int, ...] | None, dim: int) -> Array:
    """E u, u in the coordinates `indices` and 0 elsewhere: [..., r] -> [..., dim]."""
    if indices is None:
        checks.check("linear_maps.embed: u", u, "[..., d]", d=dim)
        return u
    zero = jnp.zeros((*u.shape[:-1], dim), u.dtype)
    return zero.at[..., np.asarray(indices, int)].set(u)


MAP = Needs("a linear map, such as linear_maps.Scalar", lambda v: hasattr(v, "solve_t"))

# Of a map's own array and what it acts on; it may lack the leading axes. So in `arguments`.
_SCALAR: dict[str, Any] = {"y": "[..., d]", "value": ("[...]", "[]")}
_DIAGONAL: dict[str, Any] = {"y": "[..., d]", "values": ("[..., d]", "[d]")}
_BLOCKS: dict[str, Any] = {"y": "[..., d]", "matrix": ("[..., m, m]", "[m, m]")}
_DENSE: dict[str, Any] = {"y": "[..., d]", "matrix": ("[..., d, d]", "[d, d]")}


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scalar:
    """value I, value [...]."""

    value: Array

    @arguments(**_SCALAR)
    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return _beside(self.value[..., None], y) * y

    @arguments(**_SCALAR)
    def mv_t(self, y: Array) -> Array:
        """M^T y: [..., d] -> [..., d]."""
        return self.mv(y)

    @arguments(**_SCALAR)
    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return y / _beside(self.value[..., None], y)

    @arguments(**_SCALAR)
    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return self.solve(y)

    @arguments(value="[...]", dim=DIM)
    def log_det(self, dim: int) -> Array:
        """log |det M| on states of `dim` dimensions: [...]."""
        return dim * jnp.log(jnp.abs(self.value))


@partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagonal:
    """diag(values), values [..., d]."""

    values: Array

    @arguments(**_DIAGONAL)
    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return _beside(self.values, y) * y

    @arguments(**_DIAGONAL)
    def mv_t(self, y: Array) -> Array:
        """M^T y: [..., d] -> [..., d]."""
        return self.mv(y)

    @arguments(**_DIAGONAL)
    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return y / _beside(self.values, y)

    @arguments(**_DIAGONAL)
    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return self.solve(y)

    @arguments(values="[..., d]", dim=DIM)
    def log_det(self, dim: int) -> Array:
        """log |det M|: [...]."""
        return jnp.log(jnp.abs(self.values)).sum(axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=("matrix",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """matrix x I, matrix [..., m, m]: mixes m blocks of d / m coordinates each.

    y = (y_1, ..., y_m), positions before velocities, say, and (M y)_i = sum_j matrix_ij y_j.
    """

    matrix: Array

    @arguments(**_BLOCKS)
    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return self._apply(self.matrix, y)

    @arguments(**_BLOCKS)
    def mv_t(self, y: Array) -> Array:
        """M^T y: [..., d] -> [..., d]."""
        return self._apply(jnp.swapaxes(self.matrix, -1, -2), y)

    @arguments(**_BLOCKS)
    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return self._apply(jnp.linalg.inv(self.matrix), y)

    @arguments(**_BLOCKS)
    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return self._apply(jnp.swapaxes(jnp.linalg.inv(self.matrix), -1, -2), y)

    @arguments(matrix="[..., m, m]", dim=DIM)
    def log_det(self, dim: int) -> Array:
        """log |det M| on states of `dim` dimensions: [...]."""
        _blocks(self.matrix, "dim", dim)
        return dim // self.matrix.shape[-1] * jnp.linalg.slogdet(self.matrix)[1]

    def _apply(self, matrix: Array, y: Array) -> Array:
        m = matrix.shape[-1]
        _blocks(matrix, "the number of coordinates", y.shape[-1])
        blocks = y.reshape(*y.shape[:-1], m, y.shape[-1] // m)
        mixed = _product("...ij,...jn->...in", matrix, blocks)
        return mixed.reshape(*mixed.shape[:-2], y.shape[-1])


def _blocks(matrix: Array, what: str, dim: int) -> None:
    m = matrix.shape[-1]
    if dim % m:
        raise ValueError(
            f"Blocks: {what}={dim}: a multiple of the number of blocks, {m}, is needed"
        )


@partial(jax.tree_util.register_dataclass, data_fields=("matrix",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """matrix [..., d, d], for small d."""

    matrix: Array

    @arguments(**_DENSE)
    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return _product("...ij,...j->...i", self.matrix, y)

    @arguments(**_DENSE)
    def mv_t(self, y: Array) -> Array:
        """M^T y: [..., d] -> [..., d]."""
        return _product("...ji,...j->...i", self.matrix, y)

    @arguments(**_DENSE)
    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return _product("...ij,...j->...i", jnp.linalg.inv(self.matrix), y)

    @arguments(**_DENSE)
    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return _product("...ji,...j->...i", jnp.linalg.inv(self.matrix), y)

    @arguments(matrix="[..., d, d]", dim=DIM)
    def log_det(self, dim: int) -> Array:
        """log |det M|: [...]."""
        return jnp.linalg.slogdet(self.matrix)[1]


LinearMap = Scalar | Diagonal | Blocks | Dense


def _beside(a: Array, y: Array) -> Array:
    """An array that may lack leading axes of y, with axes of 1 in their place."""
    return a.reshape((1,) * (y.ndim - a.ndim) + a.shape)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    # TF32, the default of recent GPUs, has 10 bits: too few for a kernel's root.
    with jax.numpy_rank_promotion("allow"):  # leading axes broadcast by einsum's own rules
        return jnp.einsum(subscripts, a, b, precision="highest")


@partial(jax.tree_util.register_dataclass, data_fields=("scale", "root"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """The kernel y | x ~ N(A x, L L^T) of a linear process at given times.

    Attributes:
      scale: A.
      root: L, of full rank.
    """

    scale: LinearMap
    root: LinearMap

    @arguments(scale=MAP, root=MAP, x="[..., d]", z="[..., d]")
    def sample(self, x: Array, z: Array) -> tuple[Array, Array]:
        """The mean A x and y = A x + L z, for normals z: [..., d] each."""
        mean = self.scale.mv(x)
        return mean, mean + self.root.mv(z)

    @arguments(root=MAP, z="[..., d]")
    def score(self, z: Array) -> Array:
        """grad_y log N(y; A x, L L^T) at y = A x + L z, -L^{-T} z: [..., d] (Vincent 2011)."""
        return -self.root.solve_t(z)


@arguments(scale="[...]", std="[...]")
def isotropic(scale: Array, std: Array) -> Gaussian:
    """The kernel N(scale x, std^2 I), [...] each."""
    return Gaussian(scale=Scalar(value=scale), root=Scalar(value=std))


@partial(jax.tree_util.register_dataclass, data_fields=("scale", "root", "period"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class WrappedGaussian:
    """The kernel N(x, s^2 I) on a flat torus, in its covering space. Build it with `wrapped`.

    Draws are those of the Gaussian, y = x + s z; the score is that of the law of y modulo the
    period, a sum over images.

    Attributes:
      scale, root: I and s I.
      period: of every coordinate, a scalar.
    """

    scale: Scalar
    root: Scalar
    period: Array

    @arguments(scale=Scalar, root=Scalar, x="[..., d]", z="[..., d]")
    def sample(self, x: Array, z: Array) -> tuple[Array, Array]:
        """The mean x and y = x + s z, for normals z: [..., d] each."""
        return Gaussian(scale=self.scale, root=self.root).sample(x, z)

    @arguments(root=Scalar, period=POSITIVE, z="[..., d]")
    def score(self, z: Array) -> Array:
        """grad_y log sum_k N(y + k P; x, s^2) at y = x + s z, coordinate by coordinate: [..., d].

        That is E[-z' / s] over the images z' = z + k P / s of z, which are all that y modulo P
        leaves open: the target -z / s with the winding number averaged out (Rao-Blackwell).
        """
        return wrapped_score(self.root.mv(z), self.root.value, self.period)


@arguments(std="[...]", period=POSITIVE)
def wrapped(std: Array, period: Array) -> WrappedGaussian:
    """The kernel N(x, std^2 I), std [...], on a torus of a period (a scalar)."""
    return WrappedGaussian(
        scale=Scalar(value=jnp.ones_like(std)), root=Scalar(value=std), period=period
    )


_TURN = (2 * np.pi) ** -0.5
"""Standard deviation in periods at which images and harmonics converge alike."""


@arguments(x="[..., d]", std="[...]", period=POSITIVE)
def wrapped_score(x: Array, std: Array, period: Array) -> Array:
    """Score of the wrapped normal law, d/dx log sum_k exp(-(x + k P)^2 / (2 s^2)), elementwise.

    With u = x / P in [-1/2, 1/2] and r = s / P it is, over five images or by Poisson's summation,

        -1/P  sum_k w_k (u + k) / r^2,    w_k ~ exp(-(u + k)^2 / (2 r^2)),
        -1/P  sum_m 4 pi m q^(m^2) sin(2 pi m u) / (1 + 2 sum_m q^(m^2) cos(2 pi m u)),  m = 1, 2,

    with q = exp(-2 pi^2 r^2) (Jacobi's theta function; Mardia and Jupp 2000, Section 3.5.7). The
    first for r < 1 / sqrt(2 pi), the second above: what either leaves out is below 1e-8 of the sum.

    Args:
      x: deviations [..., d].
      std: s [...].
      period: P, a scalar.
    """
    period = jnp.asarray(period, x.dtype)
    u = x / period
    u = u - jnp.round(u)
    r = std[..., None] / period
    few = jnp.minimum(r, _TURN)[..., None]
    images = jnp.stack([u + k for k in range(-2, 3)], axis=-1)
    weights = jax.nn.softmax(-(images**2) / (2 * few**2), axis=-1)
    by_images = jnp.sum(weights * images, axis=-1) / few[..., 0] ** 2
    q = jnp.exp(-2 * jnp.pi**2 * jnp.maximum(r, _TURN) ** 2)
    angle = 2 * jnp.pi * u
    slope = 4 * jnp.pi * (q * jnp.sin(angle) + 2 * q**4 * jnp.sin(2 * angle))
    by_harmonics = slope / (1 + 2 * (q * jnp.cos(angle) + q**4 * jnp.cos(2 * angle)))
    return -jnp.where(r < _TURN, by_images, by_harmonics) / period
