"""Noise levels against the numbers of NCSNv2 and against simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.stats import norm

from ndsm_jax import noising, processes, sampling
from ndsm_jax.clock import LADDERS, ladder
from ndsm_jax.integrators import time_grid
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


def test_coverage_is_the_share_of_norms_in_the_shell_of_the_level_before(rng):
    """Against norms of normals by NumPy, d = 200: 20,000 draws, 4.5 standard errors, and 0.03 for
    the normal approximation. None where levels are far apart, all where they are one."""
    levels, dim = np.array([1.2, 1.1, 1.0, 0.5, 0.4999]), 200
    covered = noise_levels.coverage(levels, dim)
    for before, level, value in zip(levels, levels[1:], covered, strict=False):
        norms = level * np.linalg.norm(rng.normal(size=(20_000, dim)), axis=1)
        inside = np.abs(norms - np.sqrt(dim) * before) < 3 * before / np.sqrt(2)
        assert_mean(inside, value, bias=0.03)
    assert covered[2] < 1e-6
    assert covered[3] > 0.99


def test_epsilon_of_cifars_levels():
    """232 levels from 50 to 0.01 and 5 steps at each: 6.18e-6 by this equation."""
    step = noise_levels.langevin_step(5000 ** (1 / 231), 5)
    assert step * 0.01**2 == pytest.approx(6.18e-6, abs=0.01e-6)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("geometric", lambda k: 0.01 ** (k / 9)),
        ("linear", lambda k: 1 - 0.11 * k),
        ("cosine", lambda k: np.cos(k / (1.0064 * 9) * np.pi / 2)),
        ("squared_cosine", lambda k: np.cos(k / (1.068 * 9) * np.pi / 2) ** 2),
        ("sigmoid", lambda k: -1 / (1 + np.exp(-(-7.2 + 1.6 * k) - 2.5)) + 1.009),
    ],
)
def test_ladders_have_the_published_constants(kind, formula):
    """Ten levels from 1 to 0.01; the sigmoid's constants are given with three digits."""
    levels = ladder(kind, 10, smallest=0.01)
    np.testing.assert_allclose(levels, formula(np.arange(10)), atol=2e-3)
    np.testing.assert_allclose(levels[[0, -1]], [1, 0.01], rtol=1e-12)
    assert np.all(np.diff(ladder(kind, 50, largest=30.0, smallest=0.01)) < 0)


@pytest.mark.parametrize("kind", LADDERS)
def test_grids_of_levels_and_training_at_them(kind):
    """The noise of a process at its grid is the ladder; training visits each level as often."""
    process = processes.variance_exploding(2, sigma_min=0.01, sigma_max=30.0)
    grid = time_grid(process, 12, kind=kind, smallest_variance=1e-6)
    expected = ladder(kind, 12, largest=30.0, smallest=0.03)
    std = np.asarray(process.clock.std(jnp.asarray(grid[1:])))
    np.testing.assert_allclose(std[::-1], expected, rtol=2e-3)
    law = noising.time_law(process.clock, grid, kind="levels")
    times = np.asarray(law.time(law.quantiles(jax.random.key(0), 60, 4)))
    visited, counts = np.unique(times, return_counts=True)
    np.testing.assert_array_equal(visited, grid[1:])
    assert counts.min() >= 19
    assert counts.max() <= 21


@pytest.mark.parametrize(("num", "smallest"), [(1, 0.1), (10, 0.0), (10, 2.0)])
def test_ladders_that_do_not_descend_are_refused(num, smallest):
    with pytest.raises(ValueError, match="levels from 1 to"):
        ladder("cosine", num, smallest=smallest)


def test_large_initial_noise_recovers_the_weights_of_separated_modes():
    """Modes at -4 and 4 of width 0.3, weights 0.2 and 0.8, and their exact score (the point of
    annealing: a score near one mode knows nothing of weights).

    From sigma_1 = 20 the share is right to 4.5 standard errors of 4,000 samples (0.0063) and 0.02
    of bias. From sigma_1 = 1 it is that of the starts N(0, 1) above the point where both modes pull
    alike, -1.09 log(4) / 8: Phi(0.19) = 0.575, whatever comes after.
    """

    def score(y, t, process):
        v = 0.09 + process.clock.variance(t)[:, None]
        r = jax.nn.sigmoid(jnp.log(4.0) + 8 * y[:, :1] / v)
        mean = jnp.concatenate([8 * r - 4, jnp.zeros_like(r)], axis=1)
        return (mean - y) / v

    shares = {}
    for sigma in (20.0, 1.0):
        process = processes.variance_exploding(2, sigma_min=0.01, sigma_max=sigma)
        grid = time_grid(process, 60, kind="geometric", smallest_variance=(0.1 / sigma) ** 2)
        x = sampling.sample(
            jax.random.key(0),
            jax.tree_util.Partial(lambda process, y, t: score(y, t, process), process),
            process,
            4000,
            grid=grid,
            sampler=sampling.AnnealedLangevin(langevin_steps=10),
            chunk=4000,
        )
        shares[sigma] = x[:, 0] > 0
    assert_mean(shares[20.0], 0.8, bias=0.02)
    assert_mean(shares[1.0], norm.cdf(1.09 * np.log(4) / 8), bias=0.03)


def test_the_number_of_levels_is_found_from_the_dimensions():
    sampler = sampling.AnnealedLangevin()
    assert sampler.levels(784, (0.01 / 30) ** 2) == noise_levels.num_levels(0.01, 30.0, 784)
    assert sampler.levels(2, 1e-6) is None
    assert sampling.MultistepSDE().levels(784, 1e-6) is None
