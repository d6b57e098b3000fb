"""Noise levels and step sizes of annealed Langevin sampling, by the techniques of NCSNv2.

Song and Ermon, "Improved techniques for training score-based generative models" (2006.09011).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ndsm_jax.checks import COUNT, DIMENSIONS, POSITIVE, Needs, arguments, check, number, whole

MAX_ITEMS = 2000

FEWEST_DIMENSIONS = 5
"""In which neighbouring levels may overlap by half: sqrt(2 d) > 3."""


def _decrease(levels: Any) -> bool:
    try:
        levels = np.asarray(levels, np.float64)
    except (ValueError, TypeError, OverflowError):
        return False
    positive = levels.ndim == 1 and len(levels) > 1 and np.isfinite(levels).all()
    return bool(positive and (np.diff(levels) < 0).all() and levels[-1] > 0)


LEVELS = Needs("decreasing positive levels [L], L >= 2", _decrease)


@arguments(x="finite numbers [N, d]", max_items=whole(2))
def largest_distance(x: np.ndarray, *, max_items: int = MAX_ITEMS) -> float:
    """Largest distance between two of the items x [N, d], the sigma_1 of Technique 1.

    Of at most `max_items` of them, a seeded choice: the cost grows with their square.

    Raises:
      ValueError: one item alone.
    """
    from scipy.spatial.distance import pdist

    check("noise_levels.largest_distance: the number of items", len(x), whole(2))
    order = np.random.default_rng(0).permutation(len(x))[:max_items]
    return float(pdist(np.asarray(x, np.float64)[order]).max())


@arguments(levels=LEVELS, dim=DIMENSIONS)
def coverage(levels: np.ndarray, dim: int) -> np.ndarray:
    """How much of the noise at a level lies where that of the level before lies: [L] -> [L - 1].

    By Proposition 2 the norm of noise at level i is nearly N(sqrt(d) sigma_i, sigma_i^2 / 2). The
    probability that it is within three standard deviations of the mean norm at level i - 1 is

        Phi(sqrt(2 d) (gamma - 1) + 3 gamma) - Phi(sqrt(2 d) (gamma - 1) - 3 gamma),

    gamma = sigma_{i-1} / sigma_i. Where it is near 0, Langevin dynamics at level i start where the
    score of level i was never trained.

    Args:
      levels: sigma_1 > ... > sigma_L, as of `clock.ladder`.
      dim: d.
    """
    levels = np.asarray(levels, np.float64)
    return _coverage(levels[:-1] / levels[1:], dim)


def _coverage(gamma: np.ndarray, dim: int) -> np.ndarray:
    from scipy.stats import norm

    shift = math.sqrt(2 * dim) * (gamma - 1)
    return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma)


@arguments(dim=DIMENSIONS)
def level_ratio(dim: int) -> float:
    """gamma = sigma_{i-1} / sigma_i of neighbouring levels, by Technique 2: `coverage` is 1/2.

    Raises:
      ValueError: fewer than 5 dimensions, where the equation has no solution.
    """
    from scipy.optimize import brentq

    if dim < FEWEST_DIMENSIONS:
        raise ValueError(
            f"level_ratio: no solution in {dim} dimensions, at least {FEWEST_DIMENSIONS} are needed"
        )

    root = math.sqrt(2 * dim)

    def excess(gamma: float) -> float:
        return float(_coverage(np.array([gamma]), dim)[0]) - 0.5

    high = 2 * root / (root - 3)  # twice where the second argument is 0
    return float(brentq(excess, 1.0, high))


@arguments(sigma_min=POSITIVE, sigma_max=POSITIVE, dim=DIMENSIONS)
def num_levels(sigma_min: float, sigma_max: float, dim: int) -> int:
    """Number of geometric levels from sigma_max to sigma_min whose ratio is `level_ratio`.

    Raises:
      ValueError: sigma_max is not above sigma_min, and as `level_ratio`.
    """
    check("noise_levels.num_levels: sigma_max", sigma_max, number(above=float(sigma_min)))
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(level_ratio(dim)))


@arguments(gamma=number(low=1), repeats=COUNT)
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
