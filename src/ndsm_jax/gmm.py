"""Gaussian mixtures: the reference measure, the drift and the prior of the noising process.

`GaussianMixture` is a frozen pytree. Its functions take states `y [..., d]` with any leading batch
shape. They are written for one state and batched with `jnp.vectorize`, so a line is an equation.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

COVARIANCES = ("spherical", "tied_spherical", "diag", "tied", "full")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_weights", "means", "factor", "precision_factor"),
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
      precision_factor: 1 / factor, respectively L_k^{-T}, so that Sigma_k^{-1} = U_k U_k^T.
      covariance: one of `COVARIANCES` (static).
    """

    log_weights: Array
    means: Array
    factor: Array
    precision_factor: Array
    covariance: str

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
        return self.means[index] + jnp.einsum("...ij,...j->...i", factor, noise)

    def component_variances(self) -> Array:
        """Mean variance per dimension of each component, tr(Sigma_k) / d: [K]."""
        squares = self.factor**2
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
        return float(np.linalg.svd(factor, compute_uv=False).min() ** 2)

    def _log_joint(self, y: Array) -> Array:
        log_prob = self.component_log_prob(y)
        return log_prob + jnp.broadcast_to(self.log_weights, log_prob.shape)


def _batched(function: Any, signature: str, mixture: GaussianMixture, *args: Array) -> Array:
    # TF32, the default of recent GPUs, has 10 bits: too few for exponents in the thousands.
    with jax.default_matmul_precision("highest"):
        return jnp.vectorize(partial(function, mixture), signature=signature)(*args)


def _whiten(m: GaussianMixture, y: Array) -> Array:
    """U_k^T (y - mu_k): [d] -> [K, d]."""
    difference = y[None, :] - m.means
    if m.elementwise:
        return difference * m.precision_factor
    return jnp.einsum("kij,ki->kj", _per_component(m), difference)


def _unwhiten(m: GaussianMixture, whitened: Array) -> Array:
    """U_k w_k: [K, d] -> [K, d]."""
    if m.elementwise:
        return whitened * m.precision_factor
    return jnp.einsum("kij,kj->ki", _per_component(m), whitened)


def _per_component(m: GaussianMixture) -> Array:
    return jnp.broadcast_to(m.precision_factor, (m.num_components, m.dim, m.dim))


def _component_log_prob(m: GaussianMixture, y: Array) -> Array:
    mahalanobis = jnp.sum(_whiten(m, y) ** 2, axis=-1)
    if m.elementwise:
        log_scale = jnp.broadcast_to(m.precision_factor, m.means.shape)
        log_scale = jnp.log(log_scale).sum(axis=-1)
    else:
        diagonal = jnp.diagonal(m.precision_factor, axis1=1, axis2=2)
        log_scale = jnp.broadcast_to(jnp.log(diagonal).sum(axis=-1), (m.num_components,))
    return log_scale - 0.5 * (mahalanobis + m.dim * jnp.log(2 * jnp.pi))


def _most_likely(m: GaussianMixture, y: Array) -> Array:
    return jnp.argmax(_log_odds(m, y))


def _score(m: GaussianMixture, y: Array) -> Array:
    r = jax.nn.softmax(_log_odds(m, y))
    return _weighted_scores(m, r, y) if m.isotropic else r @ _component_scores(m, y)


def _component_scores(m: GaussianMixture, y: Array) -> Array:
    """g_k = -Sigma_k^{-1} (y - mu_k): [d] -> [K, d]."""
    return -_unwhiten(m, _whiten(m, y))


def _log_odds(m: GaussianMixture, y: Array) -> Array:
    """log w_k N(y; mu_k, Sigma_k) up to a term common to all components: [d] -> [K]."""
    log_prob = _isotropic_log_prob(m, y) if m.isotropic else _component_log_prob(m, y)
    return log_prob + m.log_weights


# Noising spends its time on the scores of isotropic mixtures. These need no [K, d] differences:
# products with the means do, which become matrix products over a batch.


def _precision(m: GaussianMixture) -> Array:
    """1 / s_k^2 of an isotropic mixture: [K]."""
    return jnp.broadcast_to(m.precision_factor[:, 0] ** 2, (m.num_components,))


def _centred(m: GaussianMixture, y: Array) -> tuple[Array, Array]:
    """y [d] and the means [K, d], both less the components' mean: it keeps cancellation small."""
    centre = jnp.mean(m.means, axis=0)
    return y - centre, m.means - centre[None, :]


def _isotropic_log_prob(m: GaussianMixture, y: Array) -> Array:
    """As `_component_log_prob`, with |y - mu_k|^2 expanded and the common constant left out.

    Centring keeps the cancellation to about |y|^2 / s^2 float32 units in the last place, far below
    1 in the responsibilities' exponents.
    """
    offset, means = _centred(m, y)
    squares = jnp.sum(offset**2) - 2 * (means @ offset) + jnp.sum(means**2, axis=1)
    precision = _precision(m)
    return 0.5 * (m.dim * jnp.log(precision) - squares * precision)


def _weighted_scores(m: GaussianMixture, weights: Array, y: Array) -> Array:
    """sum_k weights_k (mu_k - y) / s_k^2 of an isotropic mixture: [K], [d] -> [d]."""
    offset, means = _centred(m, y)
    rate = weights * _precision(m)
    return rate @ means - rate.sum() * offset


def mixture(
    weights: Any, means: Any, covariances: Any, *, covariance: str = "spherical"
) -> GaussianMixture:
    """Builds a mixture; the factors are computed once, in float64, and stored in float32.

    Args:
      weights: w_k > 0, normalised here, shape [K].
      means: mu_k, shape [K, d].
      covariances: spherical [K]; tied_spherical a scalar; diag [K, d]; tied [d, d]; full [K, d, d].
      covariance: one of `COVARIANCES`.

    Raises:
      ValueError: unknown kind, shapes that do not fit, weights that are not positive, or a
        covariance that is not positive definite.
    """
    if covariance not in COVARIANCES:
        raise ValueError(
            f"mixture.covariance={covariance!r}: choose one of {', '.join(COVARIANCES)}"
        )
    weights, means, covariances = (np.asarray(a, np.float64) for a in (weights, means, covariances))
    if means.ndim != 2 or weights.shape != means.shape[:1]:
        raise ValueError(
            f"a mixture needs weights [K] and means [K, d], got {weights.shape}, {means.shape}"
        )
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
    if not (np.all(np.isfinite(weights)) and np.all(weights > 0)):
        raise ValueError("the weights of a mixture must be finite and positive")
    if covariance in ("tied", "full"):
        try:
            factor = np.linalg.cholesky(covariances.reshape(-1, d, d))
        except np.linalg.LinAlgError as error:
            raise ValueError(
                "a covariance is not positive definite; raise mixture.min_covariance"
            ) from error
        precision_factor = np.linalg.inv(factor).transpose(0, 2, 1)
    else:
        variances = covariances.reshape(-1, d if covariance == "diag" else 1)
        if not np.all(variances > 0):
            raise ValueError("a variance is not positive; raise mixture.min_covariance")
        factor = np.sqrt(variances)
        precision_factor = 1 / factor
    arrays = (np.log(weights / weights.sum()), means, factor, precision_factor)
    names = ("log_weights", "means", "factor", "precision_factor")
    leaves = {n: jnp.asarray(a, jnp.float32) for n, a in zip(names, arrays, strict=True)}
    return GaussianMixture(**leaves, covariance=covariance)


def standard_normal(dim: int, variance: float = 1.0) -> GaussianMixture:
    """N(0, variance I) as a mixture of one: the prior of the linear processes."""
    return mixture([1.0], np.zeros((1, dim)), variance, covariance="tied_spherical")


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
    subset: int = 0,
    num_inits: int = 4,
    min_covariance: float = 1e-4,
    max_iterations: int = 200,
    seed: int = 0,
) -> tuple[GaussianMixture, FitReport]:
    """Fits a mixture by expectation-maximisation (scikit-learn), the preprocessing of 2405.15625.

    The samples that a `subset` leaves over measure the held-out likelihood. `tied_spherical`, which
    scikit-learn does not have, starts from its spherical fit and repeats: its E-step, then the
    M-step with the pooled variance sum_k w_k sigma_k^2.

    Args:
      data: samples [N, d], finite.
      num_components: K.
      covariance: one of `COVARIANCES`.
      subset: number of samples used, chosen at random; 0 means all.
      num_inits: k-means starts, the best likelihood wins.
      min_covariance: added to every variance (or diagonal), in squared units of the data.
      max_iterations: of EM, per start.
      seed: of subset and starts.

    Returns:
      The mixture and a `FitReport`.

    Raises:
      ValueError: fewer than two samples a component, or NaN in the data.
    """
    from sklearn.mixture import GaussianMixture as ScikitMixture

    data = np.asarray(data, np.float64)
    if data.ndim != 2 or not np.all(np.isfinite(data)):
        raise ValueError(f"mixture.fit needs finite data [N, d], got shape {data.shape} or NaN")
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
        covariance_type="spherical" if covariance == "tied_spherical" else covariance,
        n_init=num_inits,
        reg_covar=min_covariance,
        max_iter=max_iterations,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # non-convergence is reported below
        model.fit(used)
    if covariance == "tied_spherical":
        _pool_variances(model, used, min_covariance, max_iterations)
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
