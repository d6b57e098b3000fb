"""Noise levels and step sizes of annealed Langevin sampling, by the techniques of NCSNv2.

Song and Ermon, "Improved techniques for training score-based generative models" (2006.09011).
"""

from __future__ import annotations

import math

import numpy as np

MAX_ITEMS = 2000


def largest_distance(x: np.ndarray, *, max_items: int = MAX_ITEMS) -> float:
    """Largest distance between two of the items x [N, d], the sigma_1 of Technique 1.

    Of at most `max_items` of them, a seeded choice: the cost grows with their square.
    """
    from scipy.spatial.distance import pdist

    order = np.random.default_rng(0).permutation(len(x))[:max_items]
    return float(pdist(np.asarray(x, np.float64)[order]).max())


def level_ratio(dim: int) -> float:
    """gamma = sigma_{i-1} / sigma_i of neighbouring levels, by Technique 2:

        Phi(sqrt(2 d) (gamma - 1) + 3 gamma) - Phi(sqrt(2 d) (gamma - 1) - 3 gamma) = 1/2.

    The norms of the noise at two levels then overlap by half.

    Raises:
      ValueError: fewer than 5 dimensions, where the equation has no solution.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    root = math.sqrt(2 * dim)
    if root <= 3:
        raise ValueError(f"level_ratio: no solution in {dim} dimensions, at least 5 are needed")

    def excess(gamma: float) -> float:
        shift = root * (gamma - 1)
        return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma) - 0.5

    high = 2 * root / (root - 3)  # twice where the second argument is 0
    return float(brentq(excess, 1.0, high))


def num_levels(sigma_min: float, sigma_max: float, dim: int) -> int:
    """Number of geometric levels from sigma_max to sigma_min whose ratio is `level_ratio`."""
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(level_ratio(dim)))


def langevin_step(gamma: float, repeats: int) -> float:
    """r = epsilon / sigma_L^2, the step in units of the level's variance, by Technique 4.

    After `repeats` steps x <- x + r sigma^2 s(x) + sqrt(2 r) sigma z at one level, of ideal scores,
    the variance from the level before, gamma^2 sigma^2, has become rho sigma^2 with

        rho = (1 - r)^(2 T) (gamma^2 - 2 r / (1 - (1 - r)^2)) + 2 r / (1 - (1 - r)^2).

    The r that brings rho closest to 1.
    """
    from scipy.optimize import minimize_scalar

    def rho(r: float) -> float:
        stationary = 1 / (1 - r / 2)
        return (1 - r) ** (2 * repeats) * (gamma**2 - stationary) + stationary

    return float(minimize_scalar(rho, bounds=(1e-6, 1.0), method="bounded").x)
