"""Linear maps of states, and the linear Gaussian kernels made of them.

A map acts on the last axis of `y [..., d]`; its arrays may have any leading shape that fits that of
the states. Four kinds, from cheap to general; everything asks for the methods alone.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def select(y: Array, indices: tuple[int, ...] | None) -> Array:
    """E^T y, the coordinates `indices` of y; None: all. [..., d] -> [..., r]."""
    return y if indices is None else y[..., np.asarray(indices)]


def embed(u: Array, indices: tuple[int, ...] | None, dim: int) -> Array:
    """E u, u in the coordinates `indices` and 0 elsewhere: [..., r] -> [..., dim]."""
    if indices is None:
        return u
    zero = jnp.zeros((*u.shape[:-1], dim), u.dtype)
    return zero.at[..., np.asarray(indices)].set(u)


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scalar:
    """value I, value [...]."""

    value: Array

    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return self.value[..., None] * y

    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return y / self.value[..., None]

    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return self.solve(y)

    def log_det(self, dim: int) -> Array:
        """log |det M| on states of `dim` dimensions: [...]."""
        return dim * jnp.log(jnp.abs(self.value))


@partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagonal:
    """diag(values), values [..., d]."""

    values: Array

    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return self.values * y

    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return y / self.values

    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return self.solve(y)

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

    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return self._apply(self.matrix, y)

    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return self._apply(jnp.linalg.inv(self.matrix), y)

    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return self._apply(jnp.swapaxes(jnp.linalg.inv(self.matrix), -1, -2), y)

    def log_det(self, dim: int) -> Array:
        """log |det M| on states of `dim` dimensions: [...]."""
        return dim // self.matrix.shape[-1] * jnp.linalg.slogdet(self.matrix)[1]

    def _apply(self, matrix: Array, y: Array) -> Array:
        m = matrix.shape[-1]
        blocks = y.reshape(*y.shape[:-1], m, y.shape[-1] // m)
        mixed = _product("...ij,...jn->...in", matrix, blocks)
        return mixed.reshape(*mixed.shape[:-2], y.shape[-1])


@partial(jax.tree_util.register_dataclass, data_fields=("matrix",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """matrix [..., d, d], for small d."""

    matrix: Array

    def mv(self, y: Array) -> Array:
        """M y: [..., d] -> [..., d]."""
        return _product("...ij,...j->...i", self.matrix, y)

    def solve(self, y: Array) -> Array:
        """M^{-1} y: [..., d] -> [..., d]."""
        return _product("...ij,...j->...i", jnp.linalg.inv(self.matrix), y)

    def solve_t(self, y: Array) -> Array:
        """M^{-T} y: [..., d] -> [..., d]."""
        return _product("...ji,...j->...i", jnp.linalg.inv(self.matrix), y)

    def log_det(self, dim: int) -> Array:
        """log |det M|: [...]."""
        return jnp.linalg.slogdet(self.matrix)[1]


LinearMap = Scalar | Diagonal | Blocks | Dense


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

    def sample(self, x: Array, z: Array) -> tuple[Array, Array]:
        """The mean A x and y = A x + L z, for normals z: [..., d] each."""
        mean = self.scale.mv(x)
        return mean, mean + self.root.mv(z)

    def score(self, z: Array) -> Array:
        """grad_y log N(y; A x, L L^T) at y = A x + L z, -L^{-T} z: [..., d] (Vincent 2011)."""
        return -self.root.solve_t(z)


def isotropic(scale: Array, std: Array) -> Gaussian:
    """The kernel N(scale x, std^2 I), [...] each."""
    return Gaussian(scale=Scalar(value=scale), root=Scalar(value=std))
