"""How many components, and of which covariances, by a criterion."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ndsm_jax.checks import COUNT, NONE, SEEDS, arguments, number, one_of, sequence

KINDS = ("spherical", "diag", "tied", "full")
"""Of covariance, scikit-learn's."""

LADDER = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)
"""Numbers of components that are tried."""

RISES = 2
"""A kind of covariance is given up when its criterion has risen so many times in a row."""

CRITERIA = ("bic", "cross_validation")
"""The Bayesian information criterion, or the log likelihood of held-out samples."""

FOLDS = 5
"""Of cross-validation, at most."""

FULL_DIM = 64
"""Most coordinates for which full covariances are tried where the kind is open."""

SUBSET = 20_000
"""Samples that are looked at, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What `choose` found.

    Attributes:
      num_components: K.
      covariance: the kind.
      model: scikit-learn's mixture of them, fitted.
      criteria: what was tried: (kind, K) -> the criterion, the less the better; of
        cross-validation minus twice the log likelihood of all samples, each held out once.
    """

    num_components: int
    covariance: str
    model: Any
    criteria: Mapping[tuple[str, int], float]


def kinds_for(dim: int) -> tuple[str, ...]:
    """The kinds of covariance that are tried in so many dimensions where it is open."""
    return ("spherical", "diag", "full") if dim <= FULL_DIM else ("spherical", "diag")


@arguments(
    data="finite numbers [N, d]",
    covariances=(sequence(one_of(KINDS), f"a tuple of {', '.join(KINDS)}", fewest=1), NONE),
    numbers=sequence(COUNT, "a tuple of whole numbers >= 1", fewest=1),
    num_inits=COUNT,
    min_covariance=number(low=0),
    criterion=one_of(CRITERIA),
    seed=SEEDS,
)
def choose(
    data: np.ndarray,
    *,
    covariances: Sequence[str] | None = None,
    numbers: Sequence[int] = LADDER,
    num_inits: int = 1,
    min_covariance: float = 1e-4,
    criterion: str = "bic",
    seed: int = 0,
) -> Choice:
    """The mixture with the least criterion, by scikit-learn.

    The Bayesian information criterion (Schwarz 1978) is -2 log L + p log N, with p free parameters:
    it looks for the mixture that the data are from. Cross-validation has, in its place, minus twice
    the log likelihood of samples that a fit to the others gives (Smyth 2000): it looks for the best
    density, and takes more components where none is right, at `FOLDS` fits each in place of one.
    What is chosen is fitted to all samples.

    K goes up `numbers` for each kind. A component has at least ten samples and, where covariances
    are matrices, two a dimension: with fewer the likelihood is that of its smallest allowed
    variance.

    Args:
      data: samples [N, d], finite.
      covariances: kinds to choose from, of spherical, diag, tied and full; None: spherical, diag
        and, up to `FULL_DIM` coordinates, full.
      numbers: of components, rising; the first is tried whatever the number of samples.
      num_inits: starts of each fit.
      min_covariance: added to every variance, in squared units of the data.
      criterion: one of `CRITERIA`.
      seed: of subset, folds and starts.

    Raises:
      ValueError: data that are not finite, not [N, d], or fewer than two; fewer than the first
        number of components in a fit, which of cross-validation has four fifths of them.
    """
    from sklearn.mixture import GaussianMixture as ScikitMixture

    data = np.asarray(data, np.float64)
    if data.ndim != 2 or len(data) < 2 or not np.isfinite(data).all():
        raise ValueError(f"choose needs finite samples [N, d], N >= 2, got shape {data.shape}")
    data = data[np.random.default_rng(seed).permutation(len(data))[:SUBSET]]
    fold = np.arange(len(data)) % min(FOLDS, len(data))
    fitted_to = len(data) - (0 if criterion == "bic" else int((fold == 0).sum()))
    if fitted_to < max(2, numbers[0]):
        raise ValueError(
            f"choose: numbers[0]={numbers[0]} components are fitted to {fitted_to} of {len(data)}"
            f" samples by criterion={criterion!r}, and need {max(2, numbers[0])}; give more samples"
            " or fewer components" + ("" if criterion == "bic" else ", or choose bic")
        )
    criteria: dict[tuple[str, int], float] = {}
    best: tuple[float, str, int, ScikitMixture | None] | None = None

    def fitted(kind: str, k: int, rows: np.ndarray) -> ScikitMixture:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that has not converged has a worse value
            return ScikitMixture(
                k,
                covariance_type=kind,
                n_init=num_inits,
                reg_covar=float(min_covariance),
                random_state=seed,
            ).fit(rows)

    enough = len(data) >= data.shape[1] + numbers[0]  # else every full covariance is singular
    for kind in covariances or kinds_for(data.shape[1] if enough else FULL_DIM + 1):
        fewest = max(10, 2 * data.shape[1]) if kind == "full" else 10
        last, rises = np.inf, 0
        for k in (k for k in numbers if k == numbers[0] or k * fewest <= len(data)):
            model = None
            if criterion == "bic":
                model = fitted(kind, k, data)
                value = float(model.bic(data))
            else:
                value = sum(
                    -2
                    * float(fitted(kind, k, data[fold != f]).score_samples(data[fold == f]).sum())
                    for f in range(fold.max() + 1)
                )
            criteria[kind, k] = value
            if best is None or value < best[0]:
                best = value, kind, k, model
            rises = rises + 1 if value > last else 0
            last = value
            if rises == RISES:
                break
    assert best is not None
    _, kind, k, model = best
    return Choice(
        num_components=k,
        covariance=kind,
        model=fitted(kind, k, data) if model is None else model,
        criteria=criteria,
    )
