"""The modes of a reference: how fast, and along which axes, a path relaxes near each of them."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.processes.process import Process
from ndsm_jax.references.mixtures import GaussianMixture


@partial(
    jax.tree_util.register_dataclass, data_fields=("variances", "axes", "relaxing"), meta_fields=()
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Modes:
    """Stationary variances of K modes, each along its own axes.

    Attributes:
      variances: [K, m]; m = 1: the same in all directions.
      axes: orthonormal columns, [K, d, d]; None: the coordinates.
      relaxing: one variance of each mode, [K], with whose rate noise g(t) relaxes there; None where
        the dynamics are not known to be those.
    """

    variances: Array
    axes: Array | None = None
    relaxing: Array | None = None

    def along(self, mode: Array, x: Array) -> Array:
        """Coordinates of x [..., d] along the axes of a mode [...]."""
        return x if self.axes is None else jnp.einsum("...dm,...d->...m", self.axes[mode], x)

    def across(self, mode: Array, x: Array) -> Array:
        """The vectors [..., d] that have these coordinates."""
        return x if self.axes is None else jnp.einsum("...dm,...m->...d", self.axes[mode], x)


def typical_variances(mixture: GaussianMixture) -> Array:
    """Of each component the geometric mean of its variances, which a few wide directions hardly
    move: [K]."""
    return jnp.exp(mixture.log_det_covariances() / mixture.dim)


def modes_of(mixture: GaussianMixture, *, relaxing: bool = False) -> Modes:
    """One a component; of low_rank covariances by the mean variance.

    relaxing: whether the dynamics are the mixture's Langevin dynamics, by `typical_variances`.
    """
    typical = typical_variances(mixture) if relaxing else None
    if mixture.isotropic or mixture.directions is not None:
        return Modes(variances=mixture.component_variances()[:, None], relaxing=typical)
    axes = None
    if mixture.elementwise:
        variances = np.asarray(mixture.factor, np.float64) ** 2
    else:
        found, variances = mixture.principal_axes()
        of_each = np.broadcast_to(found, (mixture.num_components, *found.shape[1:]))
        axes = jnp.asarray(of_each, jnp.float32)
    of_all = np.broadcast_to(variances, mixture.means.shape)
    return Modes(variances=jnp.asarray(of_all, jnp.float32), axes=axes, relaxing=typical)


def mixture_of(process: Process) -> GaussianMixture | None:
    """The mixture whose Langevin dynamics a process is, else one that it noises to, or None.

    A reference may be put in the place of a process's own; its dynamics stay.
    """
    reference = process.reference if process.known.mixture is None else process.known.mixture
    return reference if isinstance(reference, GaussianMixture) else None


def mode_at(process: Process, y: Array) -> Array:
    """The mode about a state of a process, [..., d] -> int32 [...]: its likeliest component."""
    mixture = mixture_of(process)
    if mixture is None:
        return jnp.zeros(y.shape[:-1], jnp.int32)
    return mixture.most_likely(y).astype(jnp.int32)
