"""Densities to compare a model's with, items on levels, and the table of held-out likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax.references import choose

Array = np.ndarray

LIKELIHOODS: dict[str, str] = {
    "model": "the probability flow of the trained score",
    "model, bound": "lower bound for its reverse SDE",
    "prior": "the law that sampling starts from, alone: the row to beat",
    "mixture by BIC": "Gaussian mixture of the size and covariance with the least BIC",
    "kernel density": "Gaussian kernels on training items, bandwidth by cross-validation",
}
"""Rows of the table: name -> what it is."""

KERNELS, BANDWIDTH_ITEMS = 5000, 500
"""Training items, at most, of a kernel density and of the choice of its bandwidth."""

MIXTURE_VALUES = 60_000
"""Numbers in the training items of a mixture, about: seconds for all that are tried."""

MANY = 100
"""Dimensions above which a component's own variance of every coordinate is too many parameters."""

NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Of components that are tried."""


def kernel_density(train: Array, *, seed: int = 0) -> Any:
    """scikit-learn's `KernelDensity` of states [n, d], its bandwidth chosen by their likelihood.

    By 5-fold cross-validation on `BANDWIDTH_ITEMS` of them among 14 multiples of Scott's rule, and
    rescaled to the number of kernels by the rule's n^(-1 / (d + 4)).
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    train = np.random.default_rng(seed).permutation(train)[:KERNELS]
    some = train[:BANDWIDTH_ITEMS]
    rate = -1 / (train.shape[1] + 4)
    scott = some.std(axis=0).mean() * len(some) ** rate
    if not scott > 0:
        raise ValueError("kernel_density: all states are the same, and have no density")
    search = GridSearchCV(KernelDensity(), {"bandwidth": scott * np.geomspace(0.05, 4, 14)}, cv=5)
    bandwidth = search.fit(some).best_params_["bandwidth"]
    return KernelDensity(bandwidth=bandwidth * (len(train) / len(some)) ** rate).fit(train)


def mixture_by_bic(train: Array, *, seed: int = 0) -> Any:
    """scikit-learn's `GaussianMixture` of states [n, d] with the least BIC: `references.choose`.

    Of diagonal or full covariances, above `MANY` dimensions of spherical ones, and on so many
    states as `MIXTURE_VALUES` allow, between 1000 and 3000.
    """
    kinds = ("diag", "full") if train.shape[1] <= MANY else ("spherical",)
    items = int(np.clip(MIXTURE_VALUES / train.shape[1], 1000, 3000))
    train = np.random.default_rng(seed).permutation(train)[:items]
    return choose(train, covariances=kinds, numbers=NUMBERS, seed=seed).model


# --- items on levels: grey values of 8 bits, or fewer ---


def level_step(train: Array, value_range: tuple[float, float] | None) -> float | None:
    """The distance of equal levels on which all items [n, D] lie, at most 256 of them; or None."""
    if value_range is None:
        return None
    low, high = value_range
    values = np.unique(train)
    for levels in range(2, 257):
        at = (values - low) / (high - low) * (levels - 1)
        if np.abs(at - np.round(at)).max() < 1e-3:
            return (high - low) / (levels - 1)
    return None


WIDTHS = (math.inf, 0.3, 0.15)
"""Standard deviations, in levels, of normal noise cut off half a level away; inf: uniform."""


def within_level(x: Array, step: float, width: float, *, seed: int = 0) -> tuple[Array, float]:
    """Items [n, D] with noise q of one of `WIDTHS` on their levels, and its entropy, nats an item.

    log P(level) = log int_level p >= E_q[log p] + entropy for any q on the level (1902.00275,
    Section 3.1). Uniform noise (1511.01844, Section 3.1) suits a smooth density. One that was
    trained on the levels themselves peaks there, and narrow noise bounds its mass more tightly.
    """
    from scipy.stats import truncnorm, uniform

    if math.isinf(width):
        noise = uniform(-step / 2, step)
    else:
        noise = truncnorm(-0.5 / width, 0.5 / width, scale=width * step)
    draws = noise.rvs(x.shape, random_state=np.random.default_rng(seed))
    return x + draws, x.shape[1] * float(noise.entropy())


# --- the table ---


def compared(values: Mapping[str, Array], *, against: str = "prior") -> dict[str, dict[str, Any]]:
    """Means of log densities [n] of the same items, and of their excess over those of one row.

    Returns: {name: {"value", "se", "gain", "gain_se", "what"}}; standard errors are over items, so
      that those of probes and paths, independent from item to item, are in them.
    """
    rows = {}
    for name, value in values.items():
        gain = value - values[against]
        rows[name] = {
            **dict(zip(("value", "se"), _mean(value), strict=True)),
            **dict(zip(("gain", "gain_se"), _mean(gain), strict=True)),
            "what": LIKELIHOODS[name],
        }
    return rows


def _mean(x: Array) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)
