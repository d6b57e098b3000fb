"""What a linear measurement says of a draw of a Gaussian mixture: its conditional law, exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import KEY, SHAPE, arguments
from ndsm_jax.measurements import Measurement
from ndsm_jax.references.mixtures import GaussianMixture

ROWS = 256
"""Points whose conditional laws are computed at a time."""


class Spectrum(NamedTuple):
    """The covariances Sigma_k of K components by their eigenvectors.

    Sigma_k = diag(variances_k), or with directions, the orthonormal columns of U_k,
    Sigma_k = U_k diag(along_k) U_k^T + variances_k (I - U_k U_k^T).

    Attributes:
      variances: [K, 1], or [K, d] where each coordinate has its own.
      directions: U_k, [K, d, q]; None: the coordinates. With q = d `variances` mean nothing.
      along: variances along these, [K, q].
    """

    variances: Array
    directions: Array | None = None
    along: Array | None = None

    def map(self, function: Callable[[Array], Array]) -> Spectrum:
        """That of f(Sigma_k), f a function of the eigenvalues."""
        along = None if self.along is None else function(self.along)
        return Spectrum(function(self.variances), self.directions, along)

    def mv(self, x: Array) -> Array:
        """Sigma_k x_k: [K, d] -> [K, d]."""
        if self.directions is None or self.along is None:
            return self.variances * x
        inside = jnp.einsum("kdq,kd->kq", self.directions, x, precision="highest")
        if self.complete:
            return jnp.einsum("kdq,kq->kd", self.directions, self.along * inside)
        inside = (self.along - self.variances) * inside
        return self.variances * x + jnp.einsum("kdq,kq->kd", self.directions, inside)

    @property
    def complete(self) -> bool:
        """Whether the directions span the space."""
        return self.directions is not None and self.directions.shape[1] == self.directions.shape[2]

    def component(self, index: Array) -> Spectrum:
        """That of one component, K = 1."""
        return jax.tree.map(lambda a: a[index][None], self)


def spectrum(mixture: GaussianMixture) -> Spectrum:
    """The spectrum of a mixture's covariances; in time K d^3 where these are matrices."""
    k, squares = mixture.num_components, mixture.factor**2
    if mixture.elementwise:
        return Spectrum(jnp.broadcast_to(squares, (k, squares.shape[1])))
    if mixture.directions is not None and mixture.direction_std is not None:
        return Spectrum(squares, mixture.directions, mixture.direction_std**2)
    # Singular values of the factor: its eigenvalues squared would lose half of the digits.
    u, s, _ = jnp.linalg.svd(mixture.factor)
    u, s = jnp.broadcast_to(u, (k, *u.shape[1:])), jnp.broadcast_to(s, (k, s.shape[1]))
    return Spectrum(jnp.ones((k, 1), s.dtype), u, s**2)


class Innovation(NamedTuple):
    """What a reading of one point says to each of K Gaussians N(mu_k, Sigma_k).

    With C_k = V Sigma_k V^T + diag(variance):

    Attributes:
      log_prob: log N(value; V mu_k, C_k), [K].
      solved: C_k^{-1} (value - V mu_k), [K, m].
    """

    log_prob: Array
    solved: Array


def innovation(covariances: Spectrum, measurement: Measurement, difference: Array) -> Innovation:
    """The `Innovation` of differences value - V mu_k [K, m], for a measurement of one point.

    To be differentiated by the differences alone, where d log_prob = -solved: no derivative is
    taken of a factorisation.

    Elementwise where V are coordinates or all Sigma_k isotropic; by the Woodbury identity in q
    dimensions for low rank; else from a QR factorisation of a square root of C_k, which does not
    square its condition number.
    """
    read = jnp.isfinite(measurement.variance)
    noise = jnp.where(read, measurement.variance, 1.0)[None]  # [1, m]
    difference = jnp.where(read[None], difference, 0.0)
    fixed = jax.lax.stop_gradient(difference)
    variances, directions, along = covariances
    isotropic = variances.shape[-1] == 1
    if directions is None and (measurement.directions is None or isotropic):
        log_det, solved = _diagonal(read, variances + noise, fixed)
    elif directions is not None and along is not None and not covariances.complete:
        seen = jnp.swapaxes(measurement.readings(jnp.swapaxes(directions, -1, -2)), -1, -2)
        extra = along - variances
        log_det, solved = jax.vmap(partial(_woodbury, read))(variances + noise, seen, extra, fixed)
    else:
        if directions is None or along is None:
            roots = jax.vmap(jnp.diag)(jnp.sqrt(variances))
        else:
            roots = jnp.swapaxes(directions * jnp.sqrt(along)[:, None, :], -1, -2)
        seen = measurement.readings(roots)  # [K, d, m], C_k = seen^T seen + noise
        log_det, solved = jax.vmap(partial(_square_root, read, noise[0]))(seen, fixed)
    squares = jnp.sum(solved * (2 * difference - fixed), axis=-1)  # of derivative 2 solved
    constant = log_det + jnp.log(2 * jnp.pi) * jnp.sum(read)
    return Innovation(-0.5 * (squares + constant), solved)


def _diagonal(read: Array, variances: Array, difference: Array) -> tuple[Array, Array]:
    variances = jnp.where(read[None], variances, 1.0)
    return jnp.sum(jnp.log(variances), axis=-1), difference / variances


def _woodbury(
    read: Array, variances: Array, seen: Array, extra: Array, difference: Array
) -> tuple[Array, Array]:
    """For C = diag(variances [m]) + B diag(extra [q]) B^T, B [m, q]."""
    precision = jnp.where(read, 1 / variances, 0.0)
    weighted = precision[:, None] * seen
    gram = jnp.matmul(seen.T, weighted, precision="highest")
    inner = jnp.eye(len(extra)) + extra[:, None] * gram
    push = jnp.linalg.solve(inner, extra * (weighted.T @ difference))
    log_det = jnp.sum(jnp.where(read, jnp.log(variances), 0.0)) + jnp.linalg.slogdet(inner)[1]
    return log_det, precision * difference - weighted @ push


def _square_root(read: Array, noise: Array, seen: Array, difference: Array) -> tuple[Array, Array]:
    """For C = B^T B + diag(noise [m]), B [d, m]; identity where nothing was read."""
    seen = jnp.where(read[None, :], seen, 0.0)
    r = jnp.linalg.qr(jnp.concatenate([seen, jnp.diag(jnp.sqrt(noise))]), mode="r")
    solve = partial(jax.scipy.linalg.solve_triangular, r)
    log_det = 2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r))))
    return log_det, solve(solve(difference, trans=1))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("mixture", "measurement", "covariances", "log_weights", "log_evidence"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditional:
    """The law of n draws of a mixture given a measurement of each: again mixtures, in closed form.

    Component k given the reading r = V x + N(0, R) has, with C_k = V Sigma_k V^T + R,

        log weight   log w_k + log N(r; V mu_k, C_k) + const
        mean         mu_k + Sigma_k V^T C_k^{-1} (r - V mu_k)
        covariance   Sigma_k - Sigma_k V^T C_k^{-1} V Sigma_k.

    Exact readings, R = 0, leave no variance in their directions. Build it with `conditional`.

    Attributes:
      mixture: before the measurement.
      measurement: its n rows.
      covariances: of the mixture.
      log_weights: of the components after it, [n, K].
      log_evidence: log density of the orthonormal readings, [n]; for A x of a `linear` measurement
        subtract log det (A A^T) / 2.
    """

    mixture: GaussianMixture
    measurement: Measurement
    covariances: Spectrum
    log_weights: Array
    log_evidence: Array

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Exact draws of every row: [*shape, n, d].

        A draw x of component k, and a draw of the noise, corrected by what they did not read
        (Matheron's rule): x + Sigma_k V^T C_k^{-1} (r - V x - noise).
        """
        keys = jax.random.split(key, (*shape, len(self.measurement)))
        draws = jax.vmap(partial(_draw, self))(keys.reshape(-1, len(self.measurement)))
        return draws.reshape(*shape, *draws.shape[1:])

    def component_means(self) -> Array:
        """[n, K, d]."""
        return _means(self)

    def component_covariances(self) -> Array:
        """[n, K, d, d], for small d."""
        return _covariances(self)

    def mean(self) -> Array:
        """Of the whole law: [n, d]."""
        return jnp.einsum("nk,nkd->nd", jnp.exp(self.log_weights), _means(self))

    def covariance(self) -> Array:
        """Of the whole law: [n, d, d], for small d."""
        apart = _means(self) - self.mean()[:, None]
        within = jnp.einsum("nk,nkde->nde", jnp.exp(self.log_weights), _covariances(self))
        return within + jnp.einsum("nk,nkd,nke->nde", jnp.exp(self.log_weights), apart, apart)


@arguments(mixture=GaussianMixture, measurement=Measurement)
@jax.jit
def conditional(mixture: GaussianMixture, measurement: Measurement) -> Conditional:
    """The law of draws of `mixture` given a measurement of each, see `Conditional`."""
    covariances = spectrum(mixture)

    def joint(one: Measurement) -> Array:
        difference = one.value[None] - one.readings(mixture.means)
        return innovation(covariances, one, difference).log_prob

    log_joint = measurement.by_rows(joint, batch=ROWS) + mixture.log_weights[None]
    log_evidence = jax.nn.logsumexp(log_joint, axis=-1)
    return Conditional(
        mixture=mixture,
        measurement=measurement,
        covariances=covariances,
        log_weights=log_joint - log_evidence[:, None],
        log_evidence=log_evidence,
    )


def _correct(covariances: Spectrum, one: Measurement, x: Array, read: Array) -> Array:
    """x_k + Sigma_k V^T C_k^{-1} (read_k - V x_k): [K, d] and [K, m] -> [K, d]."""
    solved = innovation(covariances, one, read - one.readings(x)).solved
    return x + covariances.mv(one.spread(solved))


@jax.jit
def _draw(law: Conditional, keys: Array) -> Array:
    def row(one: Measurement, key: Array, log_weights: Array) -> Array:
        key_component, key_normal, key_noise = jax.random.split(key, 3)
        k = jax.random.categorical(key_component, log_weights)
        x = law.mixture.sample_component(k, jax.random.normal(key_normal, (law.mixture.dim,)))
        std = jnp.sqrt(jnp.where(jnp.isfinite(one.variance), one.variance, 0.0))
        read = one.value - std * jax.random.normal(key_noise, std.shape)
        x = _correct(law.covariances.component(k), one, x[None], read[None])[0]
        exact = one.variance == 0  # what rounding left
        return x + one.spread(jnp.where(exact, one.value - one.readings(x), 0.0))

    return law.measurement.by_rows(row, keys, law.log_weights, batch=ROWS)


@jax.jit
def _means(law: Conditional) -> Array:
    def row(one: Measurement) -> Array:
        read = jnp.broadcast_to(one.value, (law.mixture.num_components, len(one.value)))
        return _correct(law.covariances, one, law.mixture.means, read)

    return law.measurement.by_rows(row, batch=ROWS)


@jax.jit
def _covariances(law: Conditional) -> Array:
    def row(one: Measurement) -> Array:
        def column(e: Array) -> Array:
            # What a deviation e turns into, of which its reading 0 says where it is not.
            e = jnp.broadcast_to(e, law.mixture.means.shape)
            before = law.covariances.mv(e)
            zero = jnp.zeros((len(e), len(one.value)))
            return _correct(law.covariances, one, before, zero)

        return jnp.moveaxis(jax.vmap(column)(jnp.eye(law.mixture.dim)), 0, -1)

    return law.measurement.by_rows(row, batch=ROWS)
