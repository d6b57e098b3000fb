"""Gaussian mixtures: the reference measure, the drift and the prior of the noising process.

`GaussianMixture` is a frozen pytree. Its functions take states `y [..., d]` with any leading batch
shape. They are written for one state and batched with `jnp.vectorize`, so a line is an equation.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

COVARIANCES = ("spherical", "tied_spherical", "diag", "tied", "full", "low_rank")
INITS = ("kmeans", "k-means++", "random", "random_from_data")

_SUBSPACE_ITERATIONS = 8  # per M-step of a low-rank fit


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

    def component_log_prob(self, y: Array) -> Array:
        """log N(y; mu_k, Sigma_k) of every component: [..., d] -> [..., K]."""
        return _batched(_component_log_prob, "(d)->(k)", self, y)

    def log_prob(self, y: Array) -> Array:
        """log eta*(y): [..., d] -> [...]. A log-sum-exp: nothing underflows in high dimension."""
        return jax.nn.logsumexp(self._log_joint(y), axis=-1)

    def responsibilities(self, y: Array) -> Array:
        """r_k(y) = P(component k | y): [..., d] -> [..., K]."""
        return jax.nn.softmax(self._log_joint(y), axis=-1)

    def score(self, y: Array) -> Array:
        """grad log eta*(y) = -sum_k r_k(y) Sigma_k^{-1} (y - mu_k): [..., d] -> [..., d].

        It is minus grad V in the noising dynamics of 2405.15625, Eq. 3.
        """
        return _batched(_score, "(d)->(d)", self, y)

    def score_hvp(self, y: Array, v: Array) -> tuple[Array, Array]:
        """Score at y, and Hessian of log eta* at y times v: two [..., d] -> two [..., d].

        With g_k = -Sigma_k^{-1} (y - mu_k) and gbar = sum_k r_k g_k the score is gbar and the
        Hessian, sum_k r_k (g_k g_k^T - Sigma_k^{-1}) - gbar gbar^T, is symmetric: its product is
        the derivative of the score along v, which shares the responsibilities with the score.
        """
        return jax.jvp(self.score, (jnp.asarray(y),), (jnp.asarray(v),))

    def hvp(self, y: Array, v: Array) -> Array:
        """Hessian of log eta* at y times v: [..., d], [..., d] -> [..., d]. See `score_hvp`."""
        return self.score_hvp(y, v)[1]

    def most_likely(self, y: Array) -> Array:
        """Index of the component with the largest responsibility: [..., d] -> integers [...]."""
        return _batched(_most_likely, "(d)->()", self, y)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws from eta*: [*shape, d]."""
        key_component, key_noise = jax.random.split(key)
        index = jax.random.categorical(key_component, self.log_weights, shape=shape)
        noise = jax.random.normal(key_noise, (*shape, self.dim), self.means.dtype)
        return self.sample_component(index, noise)

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

    def standardise(self, index: Array, y: Array) -> Array:
        """Sigma_k^{-1/2} (y - mu_k) for component indices [...]: the inverse of `sample_component`.

        States [..., d] to the coordinates in which component k is N(0, I): [..., d].
        """
        return _batched(_standardise, "(),(d)->(d)", self, index, y)

    def component_variances(self) -> Array:
        """Mean variance per dimension of each component, tr(Sigma_k) / d: [K]."""
        squares = self.factor**2
        if self.direction_std is not None:
            rank = self.direction_std.shape[1]
            trace = (self.dim - rank) * squares[:, 0] + (self.direction_std**2).sum(axis=1)
            return trace / self.dim
        per_component = squares.mean(axis=1) if self.elementwise else squares.sum((1, 2)) / self.dim
        return jnp.broadcast_to(per_component, (self.num_components,))

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


def _low_rank_mahalanobis(m: GaussianMixture, y: Array) -> Array:
    """|U_k^T x|^2 / lambda_k + |x - U_k U_k^T x|^2 / s_k^2 with x = y - mu_k: [d] -> [K]."""
    assert m.direction_std is not None  # for the type checker, here and below
    difference = y[None, :] - m.means
    along = jnp.einsum("kdq,kd->kq", m.directions, difference)
    across = difference - jnp.einsum("kdq,kq->kd", m.directions, along)
    squares = jnp.sum((across * m.precision_factor) ** 2, axis=1)
    return squares + jnp.sum((along / m.direction_std) ** 2, axis=1)


def _most_likely(m: GaussianMixture, y: Array) -> Array:
    return jnp.argmax(_log_odds(m, y))


def _score(m: GaussianMixture, y: Array) -> Array:
    r = jax.nn.softmax(_log_odds(m, y))
    return _weighted_scores(m, r, y) if _by_products(m) else -(r @ _unwhiten(m, _whiten(m, y)))


def _log_odds(m: GaussianMixture, y: Array) -> Array:
    """log w_k N(y; mu_k, Sigma_k) up to a term common to all components: [d] -> [K]."""
    log_prob = _relative_log_prob(m, y) if _by_products(m) else _component_log_prob(m, y)
    return log_prob + m.log_weights


# Noising spends its time on scores. Those of isotropic and low-rank mixtures need no [K, d]
# differences: products with means and directions do, which a batch turns into matrix products.


def _by_products(m: GaussianMixture) -> bool:
    return m.isotropic or m.directions is not None


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

    Centring keeps the cancellation to about |y|^2 / s^2 float32 units in the last place, far below
    1 in the responsibilities' exponents.
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
    if covariance not in COVARIANCES:
        raise ValueError(
            f"mixture.covariance={covariance!r}: choose one of {', '.join(COVARIANCES)}"
        )
    weights, means = (np.asarray(a, np.float64) for a in (weights, means))
    if means.ndim != 2 or weights.shape != means.shape[:1]:
        raise ValueError(
            f"a mixture needs weights [K] and means [K, d], got {weights.shape}, {means.shape}"
        )
    if not (np.all(np.isfinite(weights)) and np.all(weights > 0)):
        raise ValueError("the weights of a mixture must be finite and positive")
    leaves = {"log_weights": np.log(weights / weights.sum()), "means": means}
    if covariance == "low_rank":
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
    _check_rank(q, d)
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


def _check_rank(rank: int, dim: int) -> None:
    if not 1 <= rank < dim:
        raise ValueError(
            f"mixture.rank={rank} must be at least 1 and less than the {dim} dimensions of the"
            " data; lower it, or choose mixture.covariance=full"
        )


def _standard_deviations(variances: np.ndarray) -> np.ndarray:
    if not np.all(variances > 0):
        raise ValueError("a variance is not positive; raise mixture.min_covariance")
    return np.sqrt(variances)


def standard_normal(dim: int, variance: float = 1.0) -> GaussianMixture:
    """N(0, variance I) as a mixture of one: the prior of the linear processes."""
    return mixture([1.0], np.zeros((1, dim)), variance, covariance="tied_spherical")


def reweighted(mixture: GaussianMixture, power: float) -> GaussianMixture:
    """The mixture with weights proportional to w_k^power: 1 leaves them, 0 makes them uniform.

    For studies of mis-specified weights, as components keep their own dynamics.
    """
    log_weights = jax.nn.log_softmax(power * mixture.log_weights)
    return dataclasses.replace(mixture, log_weights=log_weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitReport:
    """What `fit` did: sizes, EM convergence, the mixture's shape, and how well it holds out."""

    num_samples: int
    iterations: int
    converged: bool
    log_likelihood: float
    held_out_log_likelihood: float | None
    weights: tuple[float, ...]
    variances: tuple[float, ...]

    def __str__(self) -> str:
        rows = [
            f"  {k:>3}  weight {w:.4f}  std {v**0.5:.4f}"
            for k, (w, v) in enumerate(zip(self.weights, self.variances, strict=True))
        ]
        state = "converged" if self.converged else "NOT converged"
        held_out = self.held_out_log_likelihood
        return "\n".join(
            [
                f"Gaussian mixture: {len(self.weights)} components from {self.num_samples} samples,"
                f" EM {state} in {self.iterations} iterations,",
                f"  log-likelihood per sample {self.log_likelihood:.3f}"
                + (f" (held out {held_out:.3f})" if held_out is not None else ""),
                *rows,
            ]
        )


def fit(
    data: np.ndarray,
    num_components: int,
    *,
    covariance: str = "spherical",
    rank: int = 8,
    subset: int = 0,
    num_inits: int = 4,
    init: str = "kmeans",
    min_covariance: float = 1e-4,
    max_iterations: int = 200,
    seed: int = 0,
    start: GaussianMixture | None = None,
) -> tuple[GaussianMixture, FitReport]:
    """Fits a mixture by expectation-maximisation (scikit-learn), the preprocessing of 2405.15625.

    The samples that a `subset` leaves over measure the held-out likelihood. scikit-learn has
    neither `tied_spherical` nor `low_rank`. Both start from its spherical fit and run an EM of
    their own, whose M-step pools the variances to sum_k w_k sigma_k^2, respectively is that of
    mixtures of probabilistic PCA (Tipping and Bishop 1999).

    Args:
      data: samples [N, d], finite.
      num_components: K.
      covariance: one of `COVARIANCES`.
      rank: q, the directions of a `low_rank` component, less than d; other kinds ignore it.
      subset: number of samples used, chosen at random; 0 means all.
      num_inits: starts, the best likelihood wins.
      init: what EM starts from, one of `INITS` (scikit-learn's init_params): clusters of k-means,
        its seeds alone, random responsibilities, or random samples as means.
      min_covariance: added to every variance (or diagonal), in squared units of the data.
      max_iterations: of EM, per start.
      seed: of subset and starts.
      start: a mixture of the same kind and size to start from, in place of k-means.

    Returns:
      The mixture and a `FitReport`.

    Raises:
      ValueError: fewer than two samples a component, a rank that does not fit, or NaN in the data.
    """
    from sklearn.mixture import GaussianMixture as ScikitMixture

    data = np.asarray(data, np.float64)
    if data.ndim != 2 or not np.all(np.isfinite(data)):
        raise ValueError(f"mixture.fit needs finite data [N, d], got shape {data.shape} or NaN")
    if covariance == "low_rank":
        _check_rank(rank, data.shape[1])
    order = np.random.default_rng(seed).permutation(len(data))
    size = min(subset, len(data)) if subset else len(data)
    if size < 2 * num_components:
        raise ValueError(
            f"mixture.num_components={num_components} needs at least {2 * num_components} samples,"
            f" got {size}; lower it or raise mixture.subset"
        )
    used = data[order[:size]]
    left_over = data[order[size:]]
    model = ScikitMixture(
        num_components,
        covariance_type=covariance if covariance in ("diag", "tied", "full") else "spherical",
        n_init=num_inits,
        init_params=init,
        reg_covar=min_covariance,
        max_iter=max_iterations,
        random_state=seed,
        **({} if start is None else _start_values(start)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # non-convergence is reported below
        model.fit(used)
    if covariance == "tied_spherical":
        _pool_variances(model, used, min_covariance, max_iterations)
    if covariance == "low_rank":
        _fit_low_rank(model, used, rank, min_covariance, max_iterations)
    weights = model.weights_
    fitted = mixture(weights, model.means_, model.covariances_, covariance=covariance)

    def mean_log_prob(samples: np.ndarray) -> float:
        chunks = jax.lax.map(fitted.log_prob, jnp.asarray(samples, jnp.float32), batch_size=1024)
        return float(chunks.mean())

    report = FitReport(
        num_samples=size,
        iterations=int(model.n_iter_),
        converged=bool(model.converged_),
        log_likelihood=mean_log_prob(used),
        held_out_log_likelihood=mean_log_prob(left_over) if len(left_over) else None,
        weights=tuple(float(w) for w in weights),
        variances=tuple(float(v) for v in fitted.component_variances()),
    )
    return fitted, report


def _start_values(m: GaussianMixture) -> dict[str, np.ndarray]:
    """What scikit-learn's EM takes to start from a mixture."""
    if m.covariance == "diag":
        precisions = np.asarray(m.precision_factor, np.float64) ** 2
    elif m.covariance in ("tied", "full"):
        factor = np.asarray(m.precision_factor, np.float64)
        precisions = factor @ factor.transpose(0, 2, 1)
        precisions = precisions[0] if m.covariance == "tied" else precisions
    else:  # whose fits start from a spherical one
        precisions = 1 / np.asarray(m.component_variances(), np.float64)
    weights = np.exp(np.asarray(m.log_weights, np.float64))
    return {
        "weights_init": weights / weights.sum(),
        "means_init": np.asarray(m.means, np.float64),
        "precisions_init": precisions,
    }


def _pool_variances(
    model: Any, data: np.ndarray, min_covariance: float, max_iterations: int
) -> None:
    """EM for one variance shared by all components, started from a fitted spherical model.

    Changes the scikit-learn model in place; its covariances_ becomes a scalar.
    """
    num_samples, dim = data.shape
    variance = float(model.weights_ @ model.covariances_)
    model.converged_ = False
    for model.n_iter_ in range(1, max_iterations + 1):
        model.precisions_cholesky_ = np.full(len(model.weights_), variance**-0.5)
        r = model.predict_proba(data)
        counts = r.sum(axis=0)
        model.means_ = r.T @ data / counts[:, None]
        model.weights_ = counts / num_samples
        scatter = np.sum(data**2) - counts @ np.sum(model.means_**2, axis=1)
        previous, variance = variance, scatter / (num_samples * dim) + min_covariance
        model.converged_ = abs(variance - previous) < 1e-6 * variance
        if model.converged_:
            break
    model.covariances_ = variance


def _fit_low_rank(
    model: Any, data: np.ndarray, rank: int, min_covariance: float, max_iterations: int
) -> None:
    """EM for a mixture of probabilistic PCA, started from a fitted spherical model.

    Changes the scikit-learn model in place; its covariances_ becomes a `LowRank`. Converged as in
    scikit-learn: when the log-likelihood per sample gains less than the model's `tol`.
    """
    r = model.predict_proba(data)
    start = np.random.default_rng(0).normal(size=(*model.means_.shape, rank))
    directions = np.linalg.qr(start).Q
    model.converged_ = False
    for model.n_iter_ in range(1, max_iterations + 1):
        model.weights_, model.means_, model.covariances_ = _low_rank_m_step(
            data, r, directions, min_covariance
        )
        log_prob, r = _low_rank_e_step(data, model.weights_, model.means_, model.covariances_)
        directions = model.covariances_.directions
        previous, model.lower_bound_ = model.lower_bound_, float(log_prob.mean())
        model.converged_ = abs(model.lower_bound_ - previous) < model.tol
        if model.converged_:
            break


def _low_rank_m_step(
    data: np.ndarray, r: np.ndarray, directions: np.ndarray, min_covariance: float
) -> tuple[np.ndarray, np.ndarray, LowRank]:
    """Weights, means and covariances from responsibilities r [N, K] and the last U_k [K, d, q].

    The expected log-likelihood is largest where U_k and lambda_k are the leading eigenpairs of the
    covariance S_k weighted by r_k, and s_k^2 the mean of its other eigenvalues (Tipping and Bishop
    1999). Subspace iterations from the last U_k approach them without forming S_k. Each can only
    raise the eigenvalues found (Courant-Fischer), so the likelihood does not fall either, but for
    the min_covariance added to all variances.
    """
    dim, rank = directions.shape[1:]
    counts = r.sum(axis=0) + 10 * np.finfo(r.dtype).eps  # as scikit-learn: no division by zero
    means = r.T @ data / counts[:, None]
    found = []
    for k, basis in enumerate(directions):
        rows = r[:, k] > 1e-12  # in many dimensions most samples belong to one component
        scaled = np.sqrt(r[rows, k] / counts[k])[:, None] * (data[rows] - means[k])
        for _ in range(_SUBSPACE_ITERATIONS):
            basis = np.linalg.qr(scaled.T @ (scaled @ basis)).Q
        eigenvalues, rotation = np.linalg.eigh(basis.T @ (scaled.T @ (scaled @ basis)))
        variance = (np.sum(scaled**2) - eigenvalues.sum()) / (dim - rank)
        variance = max(variance, 0.0) + min_covariance  # below 0 by rounding
        found.append(
            (variance, basis @ rotation, np.maximum(eigenvalues + min_covariance, variance))
        )
    covariances = LowRank(*(np.stack(part) for part in zip(*found, strict=True)))
    return counts / counts.sum(), means, covariances


def _low_rank_e_step(
    data: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: LowRank
) -> tuple[np.ndarray, np.ndarray]:
    """Log density [N] and responsibilities [N, K], in float64: what EM gains may be small."""
    from scipy.special import logsumexp

    variances, directions, direction_variances = covariances
    _, dim, rank = directions.shape
    squares = np.sum(data**2, axis=1)[:, None] - 2 * data @ means.T + np.sum(means**2, axis=1)
    offsets = [data @ u - mean @ u for u, mean in zip(directions, means, strict=True)]
    along = np.stack(offsets, axis=1) ** 2
    mahalanobis = (squares - along.sum(axis=2)) / variances
    mahalanobis += np.sum(along / direction_variances, axis=2)
    log_det = (dim - rank) * np.log(variances) + np.log(direction_variances).sum(axis=1)
    joint = np.log(weights) - 0.5 * (mahalanobis + log_det + dim * np.log(2 * np.pi))
    log_prob = logsumexp(joint, axis=1)
    return log_prob, np.exp(joint - log_prob[:, None])
