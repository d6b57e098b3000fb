"""Scores computed in a classifier's feature or probability space.

A classifier is trained to ignore noise, and its features can: never read these alone.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def frechet_distance(features_x: Array, features_y: Array) -> float:
    """Squared Frechet distance between Gaussian fits of two feature clouds (Heusel et al. 2017).

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2}), features [n, f] and [m, f], in float64. The
    trace of the root is taken of the symmetric form (C_x^{1/2} C_y C_x^{1/2})^{1/2}, which has the
    same eigenvalues, stays real, and allows singular covariances. Biased upwards by O(1/n + 1/m).
    Raises ValueError for fewer than two rows on a side or different widths.
    """
    x, y = np.asarray(features_x, np.float64), np.asarray(features_y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"frechet_distance needs features [n >= 2, f] and [m >= 2, f], "
            f"got shapes {x.shape} and {y.shape}."
        )
    cov_x = np.atleast_2d(np.cov(x, rowvar=False))
    cov_y = np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(cov_x)
    root_x = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.clip(np.linalg.eigvalsh(root_x @ cov_y @ root_x), 0, None)
    shift = np.sum((x.mean(0) - y.mean(0)) ** 2)
    return float(shift + np.trace(cov_x) + np.trace(cov_y) - 2 * np.sqrt(cross).sum())


def inception_score(probabilities: Array) -> float:
    """exp(E KL(p(c|x) || p(c))) for class probabilities [n, C] (Salimans et al. 2016).

    Between 1 and C: high when every sample is classified with confidence and all classes are used
    equally. One split (the whole sample).
    """
    from scipy.special import rel_entr

    p = np.asarray(probabilities, np.float64)
    return float(np.exp(rel_entr(p, p.mean(0, keepdims=True)).sum(axis=1).mean()))
