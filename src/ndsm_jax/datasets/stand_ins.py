"""Laws of the shape of two tables that density estimators are compared on, with known densities.

POWER (6 columns of a household's electricity) and MINIBOONE (43 of particle events) are what
1705.07057 and its successors report, and their densities are not known. These laws have as many
columns, and what makes each of the two hard; their mean log density at held-out rows is what no
estimator exceeds but by chance.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
from scipy import stats
from scipy.special import expit, logsumexp

Array = np.ndarray


class Law(Protocol):
    """A law of rows, in float64."""

    @property
    def dim(self) -> int:
        """D, columns of a row."""

    def sample(self, rng: np.random.Generator, num: int) -> Array:
        """Independent rows [num, D]."""

    def log_density(self, x: Array) -> Array:
        """Log density of rows [n, D]: [n]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerLike:
    """A household's electricity: the time of day, and each further column given those before it.

    The columns are the time, uniform on (0, 1); the logarithm of active power, of people asleep or
    awake; reactive power; voltage, which falls with power; current, nearly a function of the three;
    and one circuit, off or on. Each but the first is one of two normals, whose means, deviations
    and shares depend on what came before, periodically on the time. So there is a sharp edge, there
    are thin sheets, and modes that come and go.
    """

    dim = 6

    def sample(self, rng: np.random.Generator, num: int) -> Array:
        """See `Law`."""
        x = np.zeros((num, self.dim))
        x[:, 0] = rng.uniform(size=num)
        for i in range(1, self.dim):
            share, means, deviations = _given_before(i, x)
            second = rng.uniform(size=num) < share
            x[:, i] = rng.normal(
                np.where(second, *means[::-1]), np.where(second, *deviations[::-1])
            )
        return x

    def log_density(self, x: Array) -> Array:
        """See `Law`."""
        x = np.asarray(x, np.float64)
        total = stats.uniform.logpdf(x[:, 0])
        for i in range(1, self.dim):
            share, means, deviations = _given_before(i, x)
            parts = stats.norm.logpdf(x[:, i], means, deviations)
            total = total + logsumexp(parts, b=np.stack([1 - share, share]), axis=0)
        return total


def _given_before(i: int, x: Array) -> tuple[Array, Array, Array]:
    """Column i given those before: share of the second normal [n], means, deviations [2, n]."""
    turn, power = 2 * np.pi * x[:, 0], np.exp(x[:, 1])
    if i == 1:
        share = expit(0.5 - 2.5 * np.cos(turn) - 1.5 * np.cos(2 * turn))
        means, deviations = (-1.2, 0.4 + 0.5 * np.sin(2 * turn)), (0.15, 0.45)
    elif i == 2:
        share = expit(1.5 * x[:, 1])
        means, deviations = (0.1, 0.3 + 0.1 * power), (0.03, 0.05 + 0.04 * power)
    elif i == 3:
        share, mean = np.array(0.2), 0.4 * np.cos(turn + 1) - 0.15 * power
        means, deviations = (mean, mean), (0.2, 0.5)
    elif i == 4:
        share, mean = np.array(0.3), np.hypot(power, x[:, 2]) * (1 - 0.1 * x[:, 3])
        means, deviations = (mean, mean), (0.03, 0.1)
    else:
        share = expit(2 * x[:, 1] + np.sin(turn))
        means, deviations = (0.0, 0.6 * power), (0.05, 0.1 + 0.05 * power)
    columns = [np.broadcast_to(a, len(x)) for a in (share, *means, *deviations)]
    return columns[0], np.stack(columns[1:3]), np.stack(columns[3:])


DEGREES = 5.0
"""Of freedom of Student's laws, whose tails all columns have."""

BEND = 0.8
"""How far the second of two columns follows the hyperbola sqrt(1 + z^2) of the first."""

SKEW = 0.6
"""Of x = z + SKEW sqrt(1 + z^2), whose tails are as 1 + SKEW to 1 - SKEW."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinibooneLike:
    """Events of two kinds, heavy-tailed, correlated, bent and skewed.

    z is a mixture of two Student laws, each of a few factors and of noise in each column. Then
    every second column is shifted by a function of the one before it, and every third is made skew
    by a monotone map, so that the density is known. The factors are drawn once, by the seed.

    Attributes:
      dim: D.
      factors: of each kind.
      seed: of their loadings.
    """

    dim: int = 43
    factors: int = 6
    seed: int = 0

    shares = (0.72, 0.28)  # background and signal of the real one

    @functools.cached_property
    def kinds(self) -> tuple[Any, Any]:
        """The Student laws of z."""
        rng = np.random.default_rng(self.seed)
        laws = []
        for distance in (0.0, 1.5):
            loadings = rng.normal(size=(self.dim, self.factors)) / self.factors**0.5
            noise = rng.uniform(0.05, 0.5, size=self.dim)
            centre = distance * rng.normal(size=self.dim) / self.dim**0.5
            shape = loadings @ loadings.T + np.diag(noise**2)
            laws.append(stats.multivariate_t(centre, shape, df=DEGREES))
        return laws[0], laws[1]

    def sample(self, rng: np.random.Generator, num: int) -> Array:
        """See `Law`."""
        second = rng.uniform(size=num) < self.shares[1]
        x = np.empty((num, self.dim))
        for rows, law in zip((~second, second), self.kinds, strict=True):
            x[rows] = law.rvs(rows.sum(), random_state=rng).reshape(-1, self.dim)
        x[:, 1::2] += _bend(x[:, 0:-1:2])
        x[:, ::3] += SKEW * np.sqrt(1 + x[:, ::3] ** 2)
        return x

    def log_density(self, x: Array) -> Array:
        """See `Law`."""
        z = np.array(x, np.float64)
        skewed = z[:, ::3]
        plain = (skewed - SKEW * np.sqrt(skewed**2 + 1 - SKEW**2)) / (1 - SKEW**2)
        log_det = -np.log1p(SKEW * plain / np.sqrt(1 + plain**2)).sum(axis=1)
        z[:, ::3] = plain
        z[:, 1::2] -= _bend(z[:, 0:-1:2])
        parts = np.stack([law.logpdf(z) for law in self.kinds])
        return logsumexp(parts, b=np.array(self.shares)[:, None], axis=0) + log_det


def _bend(z: Array) -> Array:
    return BEND * np.sqrt(1 + z**2)


STAND_INS: dict[str, Law] = {"power": PowerLike(), "miniboone": MinibooneLike()}
