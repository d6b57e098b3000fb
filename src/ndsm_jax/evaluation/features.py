"""Scores computed in a classifier's feature or probability space.

A classifier is trained to ignore noise, and its features can: never read these alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ndsm_jax.checks import arguments

Array = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and covariance of a feature cloud.

    Attributes:
      mean: [f] float64.
      covariance: [f, f] float64, unbiased.
      count: number of points that they are of.
    """

    mean: Array
    covariance: Array
    count: int


@arguments(features="finite numbers [n, f]")
def moments(features: Array) -> Moments:
    """Moments of features [n, f]. Raises ValueError for fewer than two rows or no matrix."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"moments needs features [n >= 2, f], got shape {x.shape}.")
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    return Moments(mean=x.mean(0), covariance=covariance, count=len(x))


@arguments(x=(Moments, "finite numbers [n, f]"), y=(Moments, "finite numbers [m, f]"))
def frechet_distance(x: Array | Moments, y: Array | Moments) -> float:
    """Squared Frechet distance between Gaussian fits of two feature clouds (Heusel et al. 2017).

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2}), in float64, of features [n, f] and [m, f] or
    of their moments. The trace of the root is taken of the symmetric form
    (C_x^{1/2} C_y C_x^{1/2})^{1/2}, which has the same eigenvalues, stays real, and allows singular
    covariances. Biased upwards by O(1/n + 1/m). Raises ValueError for fewer than two rows on a side
    or different widths.
    """
    x = x if isinstance(x, Moments) else moments(x)
    y = y if isinstance(y, Moments) else moments(y)
    if x.mean.shape != y.mean.shape:
        raise ValueError(
            f"frechet_distance needs features of one width, got {len(x.mean)} and {len(y.mean)}."
        )
    values, vectors = np.linalg.eigh(x.covariance)
    root_x = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.clip(np.linalg.eigvalsh(root_x @ y.covariance @ root_x), 0, None)
    shift = np.sum((x.mean - y.mean) ** 2)
    trace = np.trace(x.covariance) + np.trace(y.covariance) - 2 * np.sqrt(cross).sum()
    return float(shift + trace)


@arguments(probabilities="finite numbers [n, C]")
def inception_score(probabilities: Array) -> float:
    """exp(E KL(p(c|x) || p(c))) for class probabilities [n, C] (Salimans et al. 2016).

    Between 1 and C: high when every sample is classified with confidence and all classes are used
    equally. One split (the whole sample).
    """
    from scipy.special import rel_entr

    p = np.asarray(probabilities, np.float64)
    return float(np.exp(rel_entr(p, p.mean(0, keepdims=True)).sum(axis=1).mean()))
