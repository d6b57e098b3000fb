"""Gaussian mixtures: the reference measure, the drift and the prior of the noising process.

`GaussianMixture` is a frozen pytree. Its functions take states `y [..., d]` with any leading batch
shape. They are written for one state and batched with `jnp.vectorize`, so a line is an equation.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import checks
from ndsm_jax.checks import DIMENSIONS, KEY, POSITIVE, SHAPE, arguments, number, one_of

COVARIANCES = ("spherical", "tied_spherical", "diag", "tied", "full", "low_rank")

DIRECT = 8
"""Dimensions up to which differences y - mu_k are taken as they are; above, products are."""


class LowRank(NamedTuple):
    """The covariances Sigma_k = U_k diag(lambda_k) U_k^T + s_k^2 (I - U_k U_k^T) of `low_rank`.

    Each is that of a probabilistic PCA (Tipping and Bishop 1999, Neural Computation 11(2)):
    variance lambda_kj along q orthonormal directions, and s_k^2 along all others.

    Attributes:
      variances: s_k^2, shape [K].
      directions: U_k, orthonormal columns, shape [K, d, q] with 1 <= q < d.
      direction_variances: lambda_k, shape [K, q].
    """

    variances: np.ndarray
    directions: np.ndarray
    direction_variances: np.ndarray


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "log_weights",
        "means",
        "factor",
        "precision_factor",
        "directions",
        "direction_std",
    ),
    meta_fields=("covariance",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """eta*(y) = sum_k w_k N(y; mu_k, Sigma_k)  (2405.15625, Eq. 2). Build it with `mixture(...)`.

    Attributes:
      log_weights: log w_k, shape [K].
      means: mu_k, shape [K, d].
      factor: square root of Sigma_k: standard deviations, shape [K or 1, d or 1], for the three
        elementwise kinds, lower Cholesky factors L_k, shape [K or 1, d, d], for `tied` and `full`.
        For `low_rank` s_k, shape [K, 1].
      precision_factor: 1 / factor, respectively L_k^{-T}, so that Sigma_k^{-1} = P_k P_k^T.
      covariance: one of `COVARIANCES` (static).
      directions: U_k, shape [K, d, q], for `low_rank` (see `LowRank`), None for other kinds.
      direction_std: sqrt(lambda_k), shape [K, q], likewise.
    """

    log_weights: Array
    means: Array
    factor: Array
    precision_factor: Array
    covariance: str
    directions: Array | None = None
    direction_std: Array | None = None

    @property
    def num_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    @property
    def elementwise(self) -> bool:
        """Whether every covariance is diagonal, so that no matrix is ever formed."""
        return self.covariance in ("spherical", "tied_spherical", "diag")

    @property
    def isotropic(self) -> bool:
        """Whether every covariance is a multiple of the identity."""
        return self.covariance in ("spherical", "tied_spherical")

    @arguments(y="[..., d]")
    def component_log_prob(self, y: Array) -> Array:
        """log N(y; mu_k, Sigma_k) of every component: [..., d] -> [..., K]."""
        return _batched(_component_log_prob, "(d)->(k)", self, y)

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """log eta*(y): [..., d] -> [...]. A log-sum-exp: nothing underflows in high dimension."""
        return jax.nn.logsumexp(self._log_joint(y), axis=-1)

    @arguments(y="[..., d]")
    def responsibilities(self, y: Array) -> Array:
        """r_k(y) = P(component k | y): [..., d] -> [..., K]."""
        return jax.nn.softmax(self._log_joint(y), axis=-1)

    @arguments(y="[..., d]")
    def log_responsibilities(self, y: Array) -> Array:
        """log r_k(y), finite where r_k(y) underflows: [..., d] -> [..., K]."""
        return jax.nn.log_softmax(self._log_joint(y), axis=-1)

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """grad log eta*(y) = -sum_k r_k(y) Sigma_k^{-1} (y - mu_k): [..., d] -> [..., d].

        It is minus grad V in the noising dynamics of 2405.15625, Eq. 3.

        Of isotropic and low-rank mixtures in more than `DIRECT` dimensions it comes from expanded
        squares, see `_relative_log_prob`: it is then less exact than the gradient of `log_prob`
        where components overlap far from the mean of all. Measured at d = 784, between two of
        them 3 s apart: off by 0.02 % (root mean square) at a distance of 200 s from that mean, by
        0.2 % at 670 s and by 2 % at 2000 s.
        """
        return _batched(_score, "(d)->(d)", self, y)

    @arguments(y="[..., d]", v="[..., d]")
    def score_hvp(self, y: Array, v: Array) -> tuple[Array, Array]:
        """Score at y, and Hessian of log eta* at y times v: two [..., d] -> two [..., d].

        With g_k = -Sigma_k^{-1} (y - mu_k) and gbar = sum_k r_k g_k the score is gbar and the
        Hessian, sum_k r_k (g_k g_k^T - Sigma_k^{-1}) - gbar gbar^T, is symmetric: its product is
        the derivative of the score along v, which shares the responsibilities with the score.
        """
        return jax.jvp(self.score, (jnp.asarray(y),), (jnp.asarray(v),))

    @arguments(y="[..., d]")
    def most_likely(self, y: Array) -> Array:
        """Index of the component with the largest responsibility: [..., d] -> integers [...]."""
        return _batched(_most_likely, "(d)->()", self, y)

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws from eta*: [*shape, d]."""
        key_component, key_noise = jax.random.split(key)
        index = jax.random.categorical(key_component, self.log_weights, shape=shape)
        noise = jax.random.normal(key_noise, (*shape, self.dim), self.means.dtype)
        return self.sample_component(index, noise)

    @arguments(index="integers below K [...]", noise="[..., d]")
    def sample_component(self, index: Array, noise: Array) -> Array:
        """mu_k + Sigma_k^{1/2} noise for given component indices [...] and normals [..., d]."""
        factor = self.factor[jnp.zeros_like(index) if self.factor.shape[0] == 1 else index]
        if self.elementwise:
            return self.means[index] + factor * noise
        if self.directions is not None and self.direction_std is not None:
            # s n + U (sqrt(lambda) - s) U^T n. The mask spares a copy of U_k for every draw.
            along = jnp.einsum("kdq,...d->...kq", self.directions, noise)
            stretch = self.direction_std - self.factor
            chosen = jax.nn.one_hot(index, self.num_components)
            along = jnp.einsum("...k,kq,...kq->...kq", chosen, stretch, along)
            stretched = jnp.einsum("kdq,...kq->...d", self.directions, along)
            return self.means[index] + factor * noise + stretched
        return self.means[index] + jnp.einsum("...ij,...j->...i", factor, noise)

    @arguments(index="integers below K [...]", y="[..., d]")
    def standardise(self, index: Array, y: Array) -> Array:
        """Sigma_k^{-1/2} (y - mu_k) for component indices [...]: the inverse of `sample_component`.

        States [..., d] to the coordinates in which component k is N(0, I): [..., d].
        """
        return _batched(_standardise, "(),(d)->(d)", self, index, y)

    def roots(self) -> np.ndarray:
        """Sigma_k^{1/2} of `sample_component`: its diagonal [K, d], or else matrices [K, d, d].

        In float64, on the host.
        """
        factor = np.asarray(self.factor, np.float64)
        if self.elementwise:
            return np.broadcast_to(factor, self.means.shape)
        if self.directions is None or self.direction_std is None:
            return np.broadcast_to(factor, (self.num_components, *factor.shape[1:]))
        u, std = (np.asarray(a, np.float64) for a in (self.directions, self.direction_std))
        stretched = (u * (std - factor)[:, None, :]) @ np.swapaxes(u, 1, 2)
        return factor[..., None] * np.eye(self.dim) + stretched

    def principal_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal axes and variances along them of `tied` and `full` covariances.

        [K or 1, d, d], columns, and [K or 1, d]. In float64, on the host.
        """
        axes, deviations, _ = np.linalg.svd(np.asarray(self.factor, np.float64))
        return axes, deviations**2

    def component_variances(self) -> Array:
        """Mean variance per dimension of each component, tr(Sigma_k) / d: [K]."""
        squares = self.factor**2
        if self.direction_std is not None:
            rank = self.direction_std.shape[1]
            trace = (self.dim - rank) * squares[:, 0] + (self.direction_std**2).sum(axis=1)
            return trace / self.dim
        per_component = squares.mean(axis=1) if self.elementwise else squares.sum((1, 2)) / self.dim
        return jnp.broadcast_to(per_component, (self.num_components,))

    def log_det_covariances(self) -> Array:
        """log det Sigma_k of each component: [K]."""
        log_normal = self.dim * jnp.log(2 * jnp.pi)
        peaks = jnp.diagonal(self.component_log_prob(self.means))
        return -2 * peaks - log_normal

    def typical_variance(self) -> Array:
        """sigma^2 = sum_k w_k tr(Sigma_k) / d, the scale of the process's own clock (a scalar)."""
        return jnp.exp(self.log_weights) @ self.component_variances()

    def smallest_variance(self) -> float:
        """Smallest variance of any component in any direction: what explicit steps must resolve."""
        factor = np.asarray(self.factor, np.float64)
        if self.elementwise:
            return float(factor.min() ** 2)
        if self.direction_std is not None:
            return float(min(factor.min(), np.asarray(self.direction_std).min())) ** 2
        return float(np.linalg.svd(factor, compute_uv=False).min() ** 2)

    def stiffness(self) -> float:
        """1 / `smallest_variance`, a bound of the curvature of -log eta* within its components."""
        return 1 / self.smallest_variance()

    def _log_joint(self, y: Array) -> Array:
        log_prob = self.component_log_prob(y)
        return log_prob + jnp.broadcast_to(self.log_weights, log_prob.shape)


def _batched(function: Any, signature: str, mixture: GaussianMixture, *args: Array) -> Array:
    # TF32, the default of recent GPUs, has 10 bits: too few for exponents in the thousands.
    with jax.default_matmul_precision("highest"):
        return jnp.vectorize(partial(function, mixture), signature=signature)(*args)


def _whiten(m: GaussianMixture, y: Array) -> Array:
    """P_k^T (y - mu_k): [d] -> [K, d]."""
    difference = y[None, :] - m.means
    if m.elementwise:
        return difference * m.precision_factor
    return jnp.einsum("kij,ki->kj", _per_component(m), difference)


def _unwhiten(m: GaussianMixture, whitened: Array) -> Array:
    """P_k w_k: [K, d] -> [K, d]."""
    if m.elementwise:
        return whitened * m.precision_factor
    return jnp.einsum("kij,kj->ki", _per_component(m), whitened)


def _standardise(m: GaussianMixture, index: Array, y: Array) -> Array:
    difference = y - m.means[index]
    precision = m.precision_factor[jnp.zeros_like(index) if len(m.precision_factor) == 1 else index]
    if m.directions is None or m.direction_std is None:
        return difference * precision if m.elementwise else precision.T @ difference
    along = 1 / m.direction_std[index] - precision
    return difference * precision + m.directions[index] @ (
        along * (m.directions[index].T @ difference)
    )


def _per_component(m: GaussianMixture) -> Array:
    return jnp.broadcast_to(m.precision_factor, (m.num_components, m.dim, m.dim))


def _component_log_prob(m: GaussianMixture, y: Array) -> Array:
    if m.directions is not None:
        mahalanobis, log_scale = _low_rank_mahalanobis(m, y), _log_scale(m)
    elif m.elementwise:
        mahalanobis = jnp.sum(_whiten(m, y) ** 2, axis=-1)
        log_scale = jnp.broadcast_to(m.precision_factor, m.means.shape)
        log_scale = jnp.log(log_scale).sum(axis=-1)
    else:
        mahalanobis = jnp.sum(_whiten(m, y) ** 2, axis=-1)
        diagonal = jnp.diagonal(m.precision_factor, axis1=1, axis2=2)
        log_scale = jnp.broadcast_to(jnp.log(diagonal).sum(axis=-1), (m.num_components,))
    return log_scale - 0.5 * (mahalanobis + m.dim * jnp.log(2 * jnp.pi))


def _along_and_across(m: GaussianMixture, y: Array) -> tuple[Array, Array]:
    """U_k^T x and x - U_k U_k^T x with x = y - mu_k: [d] -> [K, q], [K, d]."""
    difference = y[None, :] - m.means
    along = jnp.einsum("kdq,kd->kq", m.directions, difference)
    return along, difference - jnp.einsum("kdq,kq->kd", m.directions, along)


def _low_rank_mahalanobis(m: GaussianMixture, y: Array) -> Array:
    """|U_k^T x|^2 / lambda_k + |x - U_k U_k^T x|^2 / s_k^2 with x = y - mu_k: [d] -> [K]."""
    assert m.direction_std is not None  # for the type checker, here and below
    along, across = _along_and_across(m, y)
    squares = jnp.sum((across * m.precision_factor) ** 2, axis=1)
    return squares + jnp.sum((along / m.direction_std) ** 2, axis=1)


def _pulls(m: GaussianMixture, y: Array) -> Array:
    """Sigma_k^{-1} (y - mu_k): [d] -> [K, d]."""
    if m.directions is None or m.direction_std is None:
        return _unwhiten(m, _whiten(m, y))
    along, across = _along_and_across(m, y)
    inside = jnp.einsum("kdq,kq->kd", m.directions, along / m.direction_std**2)
    return across * m.precision_factor**2 + inside


def _most_likely(m: GaussianMixture, y: Array) -> Array:
    return jnp.argmax(_log_odds(m, y))


def _score(m: GaussianMixture, y: Array) -> Array:
    r = jax.nn.softmax(_log_odds(m, y))
    return _weighted_scores(m, r, y) if _by_products(m) else -(r @ _pulls(m, y))


def _log_odds(m: GaussianMixture, y: Array) -> Array:
    """log w_k N(y; mu_k, Sigma_k) up to a term common to all components: [d] -> [K]."""
    log_prob = _relative_log_prob(m, y) if _by_products(m) else _component_log_prob(m, y)
    return log_prob + m.log_weights


# Noising spends its time on scores. Those of isotropic and low-rank mixtures need no [K, d]
# differences: products with means and directions do, which a batch turns into matrix products. In
# few dimensions these save next to nothing, and differences are exact.


def _by_products(m: GaussianMixture) -> bool:
    return m.dim > DIRECT and (m.isotropic or m.directions is not None)


def _precision(m: GaussianMixture) -> Array:
    """1 / s_k^2: [K]."""
    return jnp.broadcast_to(m.precision_factor[:, 0] ** 2, (m.num_components,))


def _log_scale(m: GaussianMixture) -> Array:
    """-1/2 log det Sigma_k: [K]."""
    if m.direction_std is None:
        return 0.5 * m.dim * jnp.log(_precision(m))
    rank = m.direction_std.shape[1]
    return 0.5 * (m.dim - rank) * jnp.log(_precision(m)) - jnp.log(m.direction_std).sum(axis=1)


def _centred(m: GaussianMixture, y: Array) -> tuple[Array, Array]:
    """y [d] and the means [K, d], both less the components' mean: it keeps cancellation small."""
    centre = jnp.mean(m.means, axis=0)
    return y - centre, m.means - centre[None, :]


def _along(m: GaussianMixture, offset: Array, means: Array) -> tuple[Array, Array]:
    """p_k = U_k^T (y - mu_k), and what it adds to the precision, 1 / lambda_k - 1 / s_k^2: [K, q].

    From `_centred` values; U_k^T mu_k does not depend on y.
    """
    assert m.direction_std is not None
    along = jnp.einsum("kdq,d->kq", m.directions, offset)
    along -= jnp.einsum("kdq,kd->kq", m.directions, means)
    return along, 1 / m.direction_std**2 - m.precision_factor**2


def _relative_log_prob(m: GaussianMixture, y: Array) -> Array:
    """As `_component_log_prob`, with |y - mu_k|^2 expanded and the common constant left out.

    With y and means about their centre the exponents of the responsibilities are off by about
    6e-8 |y|^2 / s^2: nothing while |y| is below a hundred s, and about 1 at four thousand.
    """
    offset, means = _centred(m, y)
    squares = jnp.sum(offset**2) - 2 * (means @ offset) + jnp.sum(means**2, axis=1)
    mahalanobis = squares * _precision(m)
    if m.directions is not None:
        along, extra = _along(m, offset, means)
        mahalanobis += jnp.sum(extra * along**2, axis=1)
    return _log_scale(m) - 0.5 * mahalanobis


def _weighted_scores(m: GaussianMixture, weights: Array, y: Array) -> Array:
    """sum_k weights_k Sigma_k^{-1} (mu_k - y): [K], [d] -> [d]."""
    offset, means = _centred(m, y)
    rate = weights * _precision(m)
    total = rate @ means - rate.sum() * offset
    if m.directions is not None:
        along, extra = _along(m, offset, means)
        total -= jnp.einsum("kdq,kq->d", m.directions, weights[:, None] * extra * along)
    return total


@arguments(
    weights="finite numbers [K]",
    means="finite numbers [K, d]",
    covariance=one_of(COVARIANCES),
)
def mixture(
    weights: Any, means: Any, covariances: Any, *, covariance: str = "spherical"
) -> GaussianMixture:
    """Builds a mixture; the factors are computed once, in float64, and stored in float32.

    Args:
      weights: w_k > 0, normalised here, shape [K].
      means: mu_k, shape [K, d].
      covariances: spherical [K]; tied_spherical a scalar; diag [K, d]; tied [d, d]; full [K, d, d];
        low_rank a `LowRank`.
      covariance: one of `COVARIANCES`.

    Raises:
      ValueError: unknown kind, shapes that do not fit, weights that are not positive, a covariance
        that is not positive definite, or directions that are not orthonormal.
    """
    weights, means = (np.asarray(a, np.float64) for a in (weights, means))
    if not (np.all(np.isfinite(weights)) and np.all(weights > 0)):
        raise ValueError("the weights of a mixture must be finite and positive")
    leaves = {"log_weights": np.log(weights / weights.sum()), "means": means}
    of_low_rank = covariance == "low_rank"
    if of_low_rank and not (isinstance(covariances, tuple) and len(covariances) == 3):
        raise ValueError(f"low_rank covariances are a LowRank, got {checks.shown(covariances)}")
    for part in covariances if of_low_rank else [covariances]:
        checks.check("references.mixture: covariances", part, "finite numbers [...]")
    if of_low_rank:
        leaves |= _low_rank_factors(means, LowRank(*covariances))
    else:
        leaves |= _factors(means, np.asarray(covariances, np.float64), covariance)
    leaves = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
    return GaussianMixture(**leaves, covariance=covariance)


def _factors(means: np.ndarray, covariances: np.ndarray, covariance: str) -> dict[str, np.ndarray]:
    k, d = means.shape
    expected = {
        "spherical": (k,),
        "tied_spherical": (),
        "diag": (k, d),
        "tied": (d, d),
        "full": (k, d, d),
    }[covariance]
    if covariances.shape != expected:
        raise ValueError(f"{covariance} covariances have shape {expected}, got {covariances.shape}")
    if covariance in ("tied", "full"):
        try:
            factor = np.linalg.cholesky(covariances.reshape(-1, d, d))
        except np.linalg.LinAlgError as error:
            raise ValueError(
                "a covariance is not positive definite; raise mixture.min_covariance"
            ) from error
        return {"factor": factor, "precision_factor": np.linalg.inv(factor).transpose(0, 2, 1)}
    factor = _standard_deviations(covariances.reshape(-1, d if covariance == "diag" else 1))
    return {"factor": factor, "precision_factor": 1 / factor}


def _low_rank_factors(means: np.ndarray, covariances: LowRank) -> dict[str, np.ndarray]:
    k, d = means.shape
    variances, directions, along = (np.asarray(a, np.float64) for a in covariances)
    q = directions.shape[-1] if directions.ndim else 0
    if (variances.shape, directions.shape, along.shape) != ((k,), (k, d, q), (k, q)):
        raise ValueError(
            f"low_rank covariances have the shapes [{k}], [{k}, {d}, q] and [{k}, q],"
            f" got {variances.shape}, {directions.shape} and {along.shape}"
        )
    check_rank(q, d)
    gram = np.einsum("kdi,kdj->kij", directions, directions)
    if not np.allclose(gram, np.eye(q)[None], atol=1e-4):
        raise ValueError("the directions of a low_rank covariance must be orthonormal")
    factor = _standard_deviations(variances[:, None])
    return {
        "factor": factor,
        "precision_factor": 1 / factor,
        "directions": directions,
        "direction_std": _standard_deviations(along),
    }


def check_rank(rank: int, dim: int) -> None:
    if not 1 <= rank < dim:
        raise ValueError(
            f"mixture.rank={rank} must be at least 1 and less than the {dim} dimensions of the"
            " data; lower it, or choose mixture.covariance=full"
        )


def _standard_deviations(variances: np.ndarray) -> np.ndarray:
    if not np.all(variances > 0):
        raise ValueError("a variance is not positive; raise mixture.min_covariance")
    return np.sqrt(variances)


@arguments(dim=DIMENSIONS, variance=POSITIVE)
def standard_normal(dim: int, variance: float = 1.0) -> GaussianMixture:
    """N(0, variance I) as a mixture of one: the prior of the linear processes."""
    return mixture([1.0], np.zeros((1, dim)), variance, covariance="tied_spherical")


@arguments(mixture=GaussianMixture, power=number())
def reweighted(mixture: GaussianMixture, power: float) -> GaussianMixture:
    """The mixture with weights proportional to w_k^power: 1 leaves them, 0 makes them uniform.

    For studies of mis-specified weights, as components keep their own dynamics.
    """
    log_weights = jax.nn.log_softmax(float(power) * mixture.log_weights)
    return dataclasses.replace(mixture, log_weights=log_weights)
