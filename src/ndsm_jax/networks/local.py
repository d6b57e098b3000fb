"""Local coordinates: the network sees a state as the state's own component of a mixture does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.networks.precondition import Coordinate, Precondition, Residual
from ndsm_jax.networks.tells import Tells, prior_mean, takes_told
from ndsm_jax.processes.process import Process
from ndsm_jax.references.mixtures import GaussianMixture


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("variances", "directions", "along", "log_variance"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectra:
    """The covariances of a mixture by their eigenvalues, so that functions of them are at hand:

    f(Sigma_k) = diag f(variances_k) + U_k diag(f(along_k) - f(variances_k)) U_k^T.

    Attributes:
      variances: of the coordinates, [K, d or 1]; s_k^2 where there are directions, [K, 1].
      directions, along: U_k, orthonormal, [K, d, q], and the variances along them, [K, q]; or None.
      log_variance: log det(Sigma_k) / d, [K].
    """

    variances: Array
    directions: Array | None
    along: Array | None
    log_variance: Array


def spectra(mixture: GaussianMixture) -> Spectra:
    """Those of a mixture, found in float64 on the host."""
    factor = np.asarray(mixture.factor, np.float64)
    directions = along = None
    if mixture.elementwise:
        variances = factor**2
    elif mixture.directions is None:
        directions, along = mixture.principal_axes()
        variances = np.exp(np.log(along).mean(axis=1, keepdims=True))
    else:
        directions = np.asarray(mixture.directions, np.float64)
        along, variances = np.asarray(mixture.direction_std, np.float64) ** 2, factor**2
    k, dim = mixture.means.shape
    logs = np.log(variances).mean(axis=1)
    if along is not None:
        logs = logs + (np.log(along) - np.log(variances)).sum(axis=1) / dim

    def every(a: np.ndarray) -> Array:
        return jnp.asarray(np.broadcast_to(a, (k, *a.shape[1:])), jnp.float32)

    return Spectra(
        variances=every(variances),
        directions=None if directions is None else every(directions),
        along=None if along is None else every(along),
        log_variance=every(logs),
    )


def averaged(
    of: Spectra, f: Callable[[Array], Array], r: Array, y: Array, means: Array | None = None
) -> Array:
    """sum_k r_k f(Sigma_k) (y - mu_k), mu = 0 where none are given: [..., K], [..., d] -> [..., d].

    f maps variances [..., K, m] elementwise. In full float32 also where a device would multiply
    with fewer digits: the difference may be far smaller than y and the means.
    """

    def every(a: Array) -> Array:
        return jnp.broadcast_to(a, (*y.shape[:-1], *a.shape))

    with jax.default_matmul_precision("highest"):
        base = r[..., None] * f(every(of.variances))
        total = base.sum(axis=-2) * y
        if means is not None:
            isotropic = base.shape[-1] == 1  # then a product with the means needs no [..., K, d]
            total -= base[..., 0] @ means if isotropic else jnp.sum(base * every(means), axis=-2)
        if of.directions is None or of.along is None:
            return total
        along = jnp.einsum("kdq,...d->...kq", of.directions, y)
        if means is not None:
            along -= every(jnp.einsum("kdq,kd->kq", of.directions, means))
        along *= r[..., None] * f(every(of.along)) - base
        return total + jnp.einsum("kdq,...kq->...d", of.directions, along)


RELAXED = 8.0
"""The decay x of a component beyond which its scales stay as they are: exp(-RELAXED / 2) is left.

That of the typical component at the default horizon: narrower ones have noised to themselves long
before, and their signal would go on to fall as exp(-x / 2), by which the network's output is
divided.
"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("process", "coordinate", "mixture", "spectra"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Residual):
    """EDM's preconditioning (2206.00364, Table 1) in the coordinates and the time of the component
    that a state is in: s = grad log eta*(y) + sum_k r_k(y) a_k / sqrt(v_k) net.

    A component of variance sigma_k^2 relaxes as the process's clock, of the typical variance
    sigma^2, says of the local time t_k = t sigma^2 / sigma_k^2: a_k = a(t_k), and
    v_k = sigma_k^2 v(t_k) / sigma^2. The network sees sum_k r_k Sigma_k^{-1/2} (y - mu_k), the
    clock's coordinate of the mean log t_k, and is told sum_k r_k mu_k. Of covariances that are not
    isotropic every eigenvalue has its own t_k. The weight is v / a^2 of the mean log variance, so
    that the network's error counts alike in every component at every time; where components
    overlap, it is to be `balanced`.

    With one component, or separated ones, it is the component-wise process of 2410.19149 with that
    preconditioning; where components overlap it stays one smooth model.
    """

    mixture: GaussianMixture
    spectra: Spectra

    @property
    def tells(self) -> Tells | None:
        """The mean of the state's component, which the coordinates no longer say."""
        return None if self.mixture.num_components == 1 else prior_mean(self.mixture)

    def inputs(self, y: Array, t: Array) -> tuple[Array, Array]:
        """See `Precondition`."""
        r = self.mixture.responsibilities(y)
        # Off a common centre, which keeps the cancellation small
        centre = self.mixture.means.mean(axis=0, keepdims=True)
        z = averaged(self.spectra, jax.lax.rsqrt, r, y - centre, self.mixture.means - centre)
        return z, self.coordinate(self._local(t, self._log_variance(r)))

    def time(self, y: Array, t: Array) -> Array:
        """The time that a network sees of `inputs`, in [-1, 1]: [..., d], [...] -> [...]."""
        r = self.mixture.responsibilities(y)
        return self.coordinate(self._local(t, self._log_variance(r)))

    def score(self, output: Array, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        clock, r = self.process.clock, self.mixture.responsibilities(y)

        def scale(variances: Array) -> Array:
            local = self._local(t[..., None, None], jnp.log(variances))
            share = clock.std(local) / jnp.sqrt(clock.saturation)
            return clock.signal(local) / (share * jnp.sqrt(variances))

        return self.process.reference.score(y) + averaged(self.spectra, scale, r, output)

    def weight(self, y: Array, t: Array) -> Array:
        """See `Precondition`."""
        clock, r = self.process.clock, self.mixture.responsibilities(y)
        log_variance = self._log_variance(r)
        local = self._local(t, log_variance)
        share = clock.variance(local) / clock.saturation
        return share * jnp.exp(log_variance + clock.decay(local))

    def _log_variance(self, r: Array) -> Array:
        return r @ self.spectra.log_variance

    def _local(self, t: Array, log_variance: Array) -> Array:
        """The time that has passed for a mode of this variance, until it has relaxed."""
        clock, horizon = self.process.clock, self.process.horizon
        relaxed = horizon * jnp.minimum(1, RELAXED / clock.decay(horizon))
        return jnp.minimum(t * jnp.exp(jnp.log(clock.saturation) - log_variance), relaxed)


def fitting(*, process: Process, coordinate: Coordinate) -> Precondition:
    """`Local` where there are several components, and noise in all coordinates; else `Residual`."""
    several = isinstance(process.reference, GaussianMixture) and len(process.reference.means) > 1
    kind = local if several and process.noisy is None else Residual
    return kind(process=process, coordinate=coordinate)


def suited(precondition: Precondition, network: Any) -> Precondition:
    """The precondition, or `Residual` in the place of a `Local` that the network cannot be told of.

    Without the mean of its component a state in local coordinates could be that of any.
    """
    if not isinstance(precondition, Local) or precondition.tells is None or takes_told(network):
        return precondition
    return Residual(process=precondition.process, coordinate=precondition.coordinate)


def local(*, process: Process, coordinate: Coordinate) -> Local:
    """`Local` of a process whose reference is a Gaussian mixture.

    Raises:
      ValueError: another reference, or noise in some coordinates only.
    """
    mixture = process.reference
    if not isinstance(mixture, GaussianMixture):
        raise ValueError(
            "network.parameterisation='local' is made of the components of a Gaussian mixture, and"
            f" the reference of process {process.name!r} is a {type(mixture).__name__}; choose"
            " residual"
        )
    if process.noisy is not None:
        raise ValueError(
            "network.parameterisation='local' needs noise in all coordinates, which process"
            f" {process.name!r} does not have; choose residual"
        )
    return Local(process=process, coordinate=coordinate, mixture=mixture, spectra=spectra(mixture))
