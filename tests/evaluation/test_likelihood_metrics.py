"""Densities to compare with, items on levels, and the table."""

import math

import numpy as np
import pytest
import scipy.stats

from ndsm_jax import evaluation
from ndsm_jax.datasets import load
from ndsm_jax.evaluation.likelihood import WIDTHS


def entropy_gap(law, fitted, x):
    """Mean log density of a fit over that of the law that x is from."""
    return np.mean(fitted.score_samples(x) - law.logpdf(x))


def test_a_kernel_density_is_nearly_the_law_of_many_points(rng):
    law = scipy.stats.multivariate_normal([1.0, -2.0], [[1.0, 0.6], [0.6, 0.5]])
    x = law.rvs(4000, random_state=rng)
    fitted = evaluation.kernel_density(x[:3000])
    assert -0.06 < entropy_gap(law, fitted, x[3000:]) < 0
    # The bandwidth is one of 500 points; of six times as many it is 6^(-1/6) of that.
    few = evaluation.kernel_density(x[:500])
    assert fitted.bandwidth < few.bandwidth


def test_the_mixture_by_bic_is_that_of_the_law(rng):
    means = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    x = means[rng.integers(3, size=1500)] + rng.normal(size=(1500, 2))
    fitted = evaluation.mixture_by_bic(x)
    assert fitted.n_components in (2, 4)  # 1, 2, 4, ... are tried
    many = evaluation.mixture_by_bic(rng.normal(size=(300, 101)))
    assert (many.n_components, many.covariance_type) == (1, "spherical")


def test_levels_are_found_where_the_data_lie_on_them():
    digits = load("digits")
    assert evaluation.level_step(digits.train, digits.value_range) == pytest.approx(2 / 16)
    grey = np.random.default_rng(0).integers(256, size=(50, 9)) / 127.5 - 1
    assert evaluation.level_step(grey.astype(np.float32), (-1.0, 1.0)) == pytest.approx(2 / 255)
    assert evaluation.level_step(np.sign(grey), (-1.0, 1.0)) == 2
    assert evaluation.level_step(grey + 1e-3, (-1.0, 1.0)) is None
    assert evaluation.level_step(grey, None) is None


@pytest.mark.parametrize("width", WIDTHS)
def test_noise_stays_on_its_level_and_bounds_its_probability(width):
    """Levels of a normal law: E log p + entropy is below log P, and a wide law's is close to it."""
    step = 0.25
    x = step * np.arange(-12, 13)[:, None] * np.ones(2)
    drawn = [evaluation.within_level(x, step, width, seed=i) for i in range(400)]
    noise = np.concatenate([at - x for at, _ in drawn]).ravel()
    assert np.abs(noise).max() <= step / 2
    law = scipy.stats.norm(scale=1.0)
    value = np.stack([law.logpdf(at).sum(axis=1) + entropy for at, entropy in drawn])
    exact = 2 * np.log(law.cdf(x[:, 0] + step / 2) - law.cdf(x[:, 0] - step / 2))
    gap = exact - value.mean(axis=0)
    error = value.std(axis=0) / 20
    assert np.all(gap > -4.5 * error)
    if math.isinf(width):
        assert np.abs(gap).max() < 4.5 * error.max() + 0.01
    else:
        # Its entropy, against a histogram of the draws.
        shares, edges = np.histogram(noise, 50, (-step / 2, step / 2), density=True)
        shares = shares[shares > 0]
        expected = -np.sum(shares * np.log(shares)) * (edges[1] - edges[0])
        assert drawn[0][1] == pytest.approx(2 * expected, abs=0.02)


def test_gains_are_of_the_same_items(rng):
    """Items differ by much more than the models do: the error of the gain does not see them."""
    items = rng.normal(0, 100, 50)
    excess = 1 + rng.normal(0, 0.1, 50)
    rows = evaluation.compared({"prior": items, "model": items + excess})
    assert rows["model"]["gain"] == pytest.approx(excess.mean())
    assert rows["model"]["gain_se"] == pytest.approx(scipy.stats.sem(excess))
    assert rows["model"]["se"] == pytest.approx(scipy.stats.sem(items + excess))
    assert rows["prior"]["gain"] == rows["prior"]["gain_se"] == 0
    assert set(rows["model"]) == {"value", "se", "gain", "gain_se", "what"}
