"""Noise levels against the numbers of NCSNv2 and against simulation."""

import numpy as np
import pytest
from conftest import assert_mean

from ndsm_jax.sampling import noise_levels


def test_largest_distance_is_that_of_all_pairs(rng):
    x = rng.normal(size=(50, 3))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert noise_levels.largest_distance(x) == pytest.approx(distances.max())
    assert noise_levels.largest_distance(x, max_items=10) < distances.max()


def test_levels_of_cifar():
    """2006.09011 uses 232 levels from 50 to 0.01 for the 3,072 dimensions of CIFAR-10, having
    rounded the solution of its equation, and epsilon = 6.2e-6 for 5 steps a level."""
    assert noise_levels.num_levels(0.01, 50.0, 3072) == pytest.approx(232, rel=0.06)
    step = noise_levels.langevin_step(5000 ** (1 / 231), 5)
    assert step * 0.01**2 == pytest.approx(6.2e-6, rel=0.01)


@pytest.mark.parametrize("dim", [5, 64, 784])
def test_neighbouring_levels_overlap_by_half(dim):
    """The norm of the noise at one level, by SciPy's chi law, lies in the mean +- 3 sd (large d) of
    the next level's: the equation says about half. 0.1 is for the normal approximation."""
    from scipy.stats import chi

    gamma = noise_levels.level_ratio(dim)
    low, high = np.sqrt(dim) - 3 / np.sqrt(2), np.sqrt(dim) + 3 / np.sqrt(2)
    overlap = chi(dim).cdf(gamma * high) - chi(dim).cdf(gamma * low)
    assert abs(overlap - 0.5) < 0.1


def test_few_dimensions_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        noise_levels.level_ratio(4)


def test_the_step_brings_the_variance_of_a_level_closest_to_one():
    """Langevin steps on N(0, 1) from N(0, gamma^2): variance by NumPy, against other steps."""
    rng, gamma, repeats = np.random.default_rng(0), 1.1, 5
    start, z = gamma * rng.normal(size=40_000), rng.normal(size=(repeats, 40_000))

    def variance(r):
        x = start
        for n in z:
            x = x - r * x + np.sqrt(2 * r) * n
        return x**2

    best = noise_levels.langevin_step(gamma, repeats)
    exact = (1 - best) ** 10 * (gamma**2 - 1 / (1 - best / 2)) + 1 / (1 - best / 2)
    assert_mean(variance(best), exact)
    for other in (0.4 * best, 2 * best):
        assert variance(other).mean() > variance(best).mean() > 1
