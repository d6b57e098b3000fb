"""Fits of Gaussian mixtures to data by expectation-maximisation."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax.checks import COUNT, SEEDS, arguments, number, one_of, whole
from ndsm_jax.references.choosing import choose
from ndsm_jax.references.mixtures import COVARIANCES, GaussianMixture, LowRank, check_rank, mixture
from ndsm_jax.rows import Rows, Stored

INITS = ("kmeans", "k-means++", "random", "random_from_data")

_SUBSPACE_ITERATIONS = 8  # per M-step of a low-rank fit


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


@arguments(
    data="finite numbers [N, d]",
    num_components=whole(0, 100_000),
    covariance=one_of(COVARIANCES),
    rank=COUNT,
    subset=whole(0),
    num_inits=COUNT,
    init=one_of(INITS),
    min_covariance=number(low=0),
    max_iterations=COUNT,
    seed=SEEDS,
    start=GaussianMixture,
)
def fit(
    data: Rows,
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
      data: samples [N, d], finite. Of stored ones (`rows.Stored`) those that are used are read, and
        as many that are left over.
      num_components: K; 0: as `choose` finds it for this kind of covariance (for tied_spherical
        and low_rank, which start from its fit, for spherical).
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
      ValueError: fewer than two samples a component, for tied and full fewer than d + K, as every
        covariance is singular then; a rank that does not fit, or NaN in the data.
    """
    from sklearn.mixture import GaussianMixture as ScikitMixture

    stored = isinstance(data, Stored)
    data = data if stored else np.asarray(data)
    if covariance == "low_rank":
        check_rank(rank, data.shape[1])
    order = np.random.default_rng(seed).permutation(len(data))
    size = min(subset, len(data)) if subset else len(data)
    check_samples(size, data.shape[1], num_components, covariance)
    kind = covariance if covariance in ("diag", "tied", "full") else "spherical"
    used = np.asarray(data[order[:size]], np.float64)
    if num_components == 0:
        num_components = choose(
            used, covariances=(kind,), min_covariance=min_covariance, seed=seed
        ).num_components
        check_samples(size, data.shape[1], num_components, covariance)
    if start is not None and start.means.shape != (num_components, data.shape[1]):
        raise ValueError(
            f"references.fit: start has means {list(start.means.shape)}, and"
            f" {[num_components, data.shape[1]]} are fitted; give a mixture of the same size"
        )
    left_over = data[order[size : 2 * size if stored else None]]
    model = ScikitMixture(
        num_components,
        covariance_type=kind,
        n_init=num_inits,
        init_params=init,
        reg_covar=float(min_covariance),
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


def check_samples(size: int, dim: int, num_components: int, covariance: str) -> None:
    """Raises ValueError for fewer samples than `fit` needs of this dimension; see there."""
    if size < 2 * num_components:
        raise ValueError(
            f"mixture.num_components={num_components} needs at least {2 * num_components} samples"
            f" to fit to, got {size}; lower it to {max(size // 2, 1)}, or raise data.num_train and"
            " mixture.subset if they leave some out"
        )
    fewest = dim + max(num_components, 1)
    # Of the scatter about K means the rank is N - K at most.
    if covariance in ("tied", "full") and size < fewest:
        raise ValueError(
            f"mixture.covariance={covariance!r} in {dim} dimensions needs at least {fewest} samples"
            f" to fit to, got {size}, which leave directions without any spread; choose spherical,"
            " diag or low_rank"
        )


def fit_bytes(num: int, dim: int, num_components: int, covariance: str, rank: int = 8) -> float:
    """Bytes of memory that `fit` takes at its peak for data [num, dim], beside the data.

    In float64: the data, those used and one product of their size; per sample three numbers a
    component; the covariances and their inverse roots, those of the best fit so far, and the
    factors of the mixture. And 200 MB of scikit-learn and of the programs that measure the fit.
    Measured: docs/reliability.md.
    """
    n, d, k = num, dim, num_components
    own = {"full": k * d * d, "tied": d * d, "diag": k * d, "low_rank": 3 * k * d * rank}
    data, responsibilities = 3 * n * d, 3 * n * k
    return 200e6 + 8.0 * (data + responsibilities + 2 * k * d + 6 * own.get(covariance, k))


@arguments(mixture=GaussianMixture, smallest=number(low=0))
def floored(mixture: GaussianMixture, smallest: float) -> GaussianMixture:
    """The mixture with every variance, of every component in every direction, at least `smallest`.

    Eigenvalues of the covariances below it are raised to it; all else stays: weights, means,
    eigenvectors, and components that have none below it. So the stiffness that explicit steps must
    resolve is at most 1 / smallest. A floor relative to the scale of the modes is
    `floored(m, 0.01 * float(m.typical_variance()))`.

    Raises:
      ValueError: a floor that is negative or not finite.
    """
    factor = np.asarray(mixture.factor, np.float64)
    inverse = np.array(mixture.precision_factor, np.float64)
    direction_std = mixture.direction_std
    if mixture.covariance in ("tied", "full"):
        values, vectors = np.linalg.eigh(factor @ factor.transpose(0, 2, 1))
        raised = np.maximum(values, smallest)[:, None, :]
        matrices = (vectors * raised) @ vectors.transpose(0, 2, 1)
        factor = factor.copy()
        for k in np.flatnonzero(values[:, 0] < smallest):
            factor[k] = np.linalg.cholesky(matrices[k])
            inverse[k] = np.linalg.inv(factor[k]).T
    else:
        factor = np.maximum(factor, smallest**0.5)
        inverse = 1 / factor
        if direction_std is not None:
            direction_std = jnp.maximum(direction_std, smallest**0.5)
    return dataclasses.replace(
        mixture,
        factor=jnp.asarray(factor, jnp.float32),
        precision_factor=jnp.asarray(inverse, jnp.float32),
        direction_std=direction_std,
    )


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
