"""Fits of Gaussian mixtures to data by expectation-maximisation."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from ndsm_jax.checks import COUNT, SEEDS, arguments, number, one_of, whole
from ndsm_jax.references import em
from ndsm_jax.references.choosing import CRITERIA, KINDS, LADDER, choose
from ndsm_jax.references.choosing import SUBSET as CHOICE_SUBSET
from ndsm_jax.references.mixtures import COVARIANCES, GaussianMixture, LowRank, check_rank, mixture
from ndsm_jax.rows import Rows, Stored

INITS = ("kmeans", "k-means++", "random", "random_from_data")
AUTO = "auto"
"""The kind of covariance that `choose` finds."""

SOLVERS = ("auto", "scikit-learn", "jax")

LARGE = 2e7
"""N d K from which `auto` takes JAX: there scikit-learn takes longer than programs to compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitReport:
    """What `fit` did: sizes, EM convergence, the mixture's shape, and how well it holds out."""

    solver: str
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
                f" EM ({self.solver}) {state} in {self.iterations} iterations,",
                f"  log-likelihood per sample {self.log_likelihood:.3f}"
                + (f" (held out {held_out:.3f})" if held_out is not None else ""),
                *rows,
            ]
        )


@arguments(
    data="finite numbers [N, d]",
    num_components=whole(0, 100_000),
    covariance=one_of((*COVARIANCES, AUTO)),
    rank=COUNT,
    subset=whole(0),
    num_inits=COUNT,
    init=one_of(INITS),
    min_covariance=number(low=0),
    max_iterations=COUNT,
    solver=one_of(SOLVERS),
    criterion=one_of(CRITERIA),
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
    solver: str = "auto",
    criterion: str = "bic",
    seed: int = 0,
    start: GaussianMixture | None = None,
) -> tuple[GaussianMixture, FitReport]:
    """Fits a mixture by expectation-maximisation, the preprocessing of 2405.15625.

    The samples that a `subset` leaves over measure the held-out likelihood. scikit-learn has
    neither `tied_spherical`, whose M-step pools the variances, nor `low_rank`, mixtures of
    probabilistic PCA (Tipping and Bishop 1999); see `em`.

    Args:
      data: samples [N, d], finite. Those in a file, mapped by `numpy.load` or
        `rows.Stored`, are read in blocks, once an iteration, by the solver jax; of stored ones as
        many measure the held-out likelihood as are used.
      num_components: K; 0: as `choose` finds it for this kind of covariance (for tied_spherical
        and low_rank for spherical).
      covariance: one of `COVARIANCES`; auto: as `choose` finds it.
      rank: q, the directions of a `low_rank` component, less than d; other kinds ignore it.
      subset: number of samples used, chosen at random; 0 means all.
      num_inits: starts, the best likelihood wins; by jax that of some of the samples, see `em.fit`.
      init: what EM starts from, one of `INITS` (scikit-learn's init_params): clusters of k-means,
        its seeds alone, random responsibilities, or random samples as means.
      min_covariance: added to every variance (or diagonal), in squared units of the data.
      max_iterations: of EM, per start.
      solver: one of `SOLVERS`: scikit-learn, in float64; jax, in float32 in blocks on all devices;
        auto: see `solver_for`.
      criterion: that chooses K where it is 0, one of `CRITERIA`.
      seed: of subset and starts.
      start: a mixture of the same kind and size to start from, in place of k-means.

    Returns:
      The mixture and a `FitReport`.

    Raises:
      ValueError: fewer than two samples a component, for tied and full fewer than d + K, as every
        covariance is singular then; a rank that does not fit, NaN in the data, or a solver that
        has not this kind of covariance.
      FloatingPointError: numbers too large for float32.
    """
    stored = isinstance(data, Stored)
    rows = data if stored else np.asarray(data)
    num, dim = rows.shape
    if covariance == "low_rank":
        check_rank(rank, dim)
    size = min(subset, num) if subset else num
    check_samples(size, dim, num_components, covariance, criterion)
    order = np.random.default_rng(seed).permutation(num)
    if num_components == 0 or covariance == AUTO:
        kinds = None if covariance == AUTO else (covariance if covariance in KINDS else KINDS[0],)
        chosen = choose(
            _taken(rows, order[: min(size, CHOICE_SUBSET)]),
            covariances=kinds,
            numbers=(num_components,) if num_components else LADDER,
            min_covariance=min_covariance,
            criterion=criterion,
            seed=seed,
        )
        num_components = chosen.num_components
        covariance = chosen.covariance if covariance == AUTO else covariance
        check_samples(size, dim, num_components, covariance)
    if start is not None and (start.means.shape, start.covariance) != (
        (num_components, dim),
        covariance,
    ):
        raise ValueError(
            f"references.fit: start has means {list(start.means.shape)} and {start.covariance}"
            f" covariances, and {[num_components, dim]} and {covariance} are fitted; give a mixture"
            " of the same kind and size"
        )
    used = em.blocks(rows, np.sort(order[:size]) if size < num else None)
    solver = solver_for(size, dim, num_components, covariance, solver)
    if solver == "jax":
        run = em.fit(
            used,
            num_components,
            covariance=covariance,
            rank=rank,
            num_inits=num_inits,
            init=init,
            min_covariance=min_covariance,
            max_iterations=max_iterations,
            seed=seed,
            first=None if start is None else _estimate(start, used.centre),
        )
        estimate, iterations, converged = run.estimate, len(run.log_likelihoods), run.converged
    else:
        model = _scikit_mixture(
            _taken(rows, order[:size]),
            num_components,
            covariance_type=covariance,
            n_init=num_inits,
            init_params=init,
            reg_covar=float(min_covariance),
            max_iter=max_iterations,
            random_state=seed,
            **({} if start is None else _start_values(start)),
        )
        estimate = em.Estimate(model.weights_, model.means_ - used.centre, model.covariances_)
        iterations, converged = model.n_iter_, model.converged_
    weights, means, covariances = estimate
    fitted = mixture(weights, means + used.centre, covariances, covariance=covariance)
    held_out = None
    if size < num:
        others = order[size : 2 * size if stored else None]
        left_over = em.blocks(rows, np.sort(others), used.centre)
        held_out = em.mean_log_likelihood(left_over, covariance, estimate)
    report = FitReport(
        solver=solver,
        num_samples=size,
        iterations=int(iterations),
        converged=bool(converged),
        log_likelihood=em.mean_log_likelihood(used, covariance, estimate),
        held_out_log_likelihood=held_out,
        weights=tuple(float(w) for w in weights),
        variances=tuple(float(v) for v in fitted.component_variances()),
    )
    return fitted, report


def solver_for(
    num: int, dim: int, num_components: int, covariance: str, solver: str = "auto"
) -> str:
    """The solver that `fit` takes for samples [num, dim].

    `auto` is scikit-learn for small data, N d K < `LARGE`, where it has this kind of covariance.

    Raises:
      ValueError: scikit-learn for a kind that it has not.
    """
    if solver == "scikit-learn" and covariance not in KINDS:
        raise ValueError(
            f"mixture.solver='scikit-learn' has no {covariance} covariances; set it to auto or jax"
        )
    if solver != "auto":
        return solver
    small = covariance in KINDS and float(num) * dim * num_components < LARGE
    return "scikit-learn" if small else "jax"


def _taken(rows: Any, index: np.ndarray) -> np.ndarray:
    """Rows of these numbers in this order, in float64. They are read in increasing order."""
    order = np.argsort(index)
    found = np.empty((len(index), rows.shape[1]))
    found[order] = rows[index[order]]
    return found


def _scikit_mixture(data: np.ndarray, num_components: int, **options: Any) -> Any:
    """scikit-learn's mixture, fitted."""
    from sklearn.mixture import GaussianMixture as ScikitMixture

    model = ScikitMixture(num_components, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # non-convergence is reported
        return model.fit(data)


def check_samples(
    size: int, dim: int, num_components: int, covariance: str, criterion: str = "bic"
) -> None:
    """Raises ValueError for fewer samples than `fit` needs of this dimension; see there."""
    if num_components == 0 and criterion == "cross_validation" and size < 3:
        raise ValueError(
            "mixture.criterion='cross_validation' needs at least 3 samples, two of which a mixture"
            f" is fitted to, got {size}; set it to bic, or raise data.num_train and mixture.subset"
            " if they leave some out"
        )
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


def fit_bytes(
    num: int,
    dim: int,
    num_components: int,
    covariance: str,
    rank: int = 8,
    solver: str = "scikit-learn",
) -> float:
    """Bytes of memory that `fit` takes at its peak for data [num, dim], beside the data.

    By scikit-learn, in float64: the data, those used and one product of their size; per sample
    three numbers a component; the covariances and their inverse roots, those of the best fit so
    far, and the factors of the mixture; and 20 MB of programs that measure the fit. By jax: the
    rows in float32, or two blocks of them where they are not kept; a block as it is centred in
    float64, or twice the rows that starts are made on and covariances, sums and roots; and 100 MB
    of programs.
    Measured: docs/reliability.md.
    """
    n, d, k = num, dim, num_components
    own = {"full": k * d * d, "tied": d * d, "diag": k * d, "low_rank": 3 * k * d * rank}
    covariances = own.get(covariance, k)
    if solver == "jax":
        block = 20 * min(em.BLOCK, n * d)
        held = 4 * n * d if 4 * n * d <= em.KEPT else 8 * em.BLOCK
        starts = 8 * em.seeded_rows(n, d, k, covariance) * d
        return 100e6 + held + max(block, starts + 8.0 * (3 * k * d + 5.5 * covariances))
    data, responsibilities = 3 * n * d, 3 * n * k
    return 20e6 + 8.0 * (data + responsibilities + 2 * k * d + 6 * covariances)


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
    if m.covariance == "spherical":
        precisions = 1 / np.asarray(m.component_variances(), np.float64)
    elif m.covariance == "diag":
        precisions = np.asarray(m.precision_factor, np.float64) ** 2
    else:
        factor = np.asarray(m.precision_factor, np.float64)
        precisions = factor @ factor.transpose(0, 2, 1)
        precisions = precisions[0] if m.covariance == "tied" else precisions
    weights = np.exp(np.asarray(m.log_weights, np.float64))
    return {
        "weights_init": weights / weights.sum(),
        "means_init": np.asarray(m.means, np.float64),
        "precisions_init": precisions,
    }


def _estimate(m: GaussianMixture, centre: np.ndarray) -> em.Estimate:
    """What EM in JAX takes to start from a mixture."""
    factor = np.asarray(m.factor, np.float64)
    covariances: Any
    if m.covariance == "low_rank":
        directions = np.asarray(m.directions, np.float64)
        along = np.asarray(m.direction_std, np.float64) ** 2
        covariances = LowRank(factor[:, 0] ** 2, directions, along)
    elif m.covariance in ("tied", "full"):
        covariances = factor @ factor.transpose(0, 2, 1)
        covariances = covariances[0] if m.covariance == "tied" else covariances
    else:
        covariances = factor**2 if m.covariance == "diag" else factor[:, 0] ** 2
        covariances = covariances[0] if m.covariance == "tied_spherical" else covariances
    weights = np.exp(np.asarray(m.log_weights, np.float64))
    means = np.asarray(m.means, np.float64) - centre
    return em.Estimate(weights / weights.sum(), means, covariances)
