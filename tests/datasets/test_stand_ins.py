"""The laws with known densities: normalised, and those of their draws."""

import numpy as np
import pytest
import scipy.stats

from ndsm_jax.datasets.stand_ins import STAND_INS, MinibooneLike, PowerLike


@pytest.mark.parametrize(("name", "dim"), [("power", 6), ("miniboone", 43)])
def test_rows_are_as_wide_as_the_real_ones(name, dim):
    law = STAND_INS[name]
    x = law.sample(np.random.default_rng(0), 50)
    assert x.shape == (50, dim) == (50, law.dim)
    assert np.isfinite(law.log_density(x)).all()


@pytest.mark.parametrize("law", [PowerLike(), MinibooneLike(dim=4, factors=2)])
def test_the_density_is_that_of_the_draws(law):
    """The share of draws in a box is the integral over it, by uniform points: within four standard
    errors. A wrong constant, a forgotten determinant and a wrong inverse each show."""
    rng = np.random.default_rng(0)
    draws = law.sample(rng, 400_000)
    low, high = np.quantile(draws, [0.2, 0.8], axis=0)
    inside = np.all((draws > low) & (draws < high), axis=1)
    share, error = inside.mean(), inside.std() / len(draws) ** 0.5
    volume = np.prod(high - low)
    values = volume * np.exp(law.log_density(rng.uniform(low, high, size=(200_000, law.dim))))
    error = np.hypot(error, values.std() / len(values) ** 0.5)
    assert error < 0.1 * share
    assert abs(values.mean() - share) < 4 * error


def test_no_density_off_the_day():
    law = PowerLike()
    x = law.sample(np.random.default_rng(0), 10)
    x[:, 0] += 1
    assert (law.log_density(x) == -np.inf).all()


def test_a_column_of_the_second_law_has_the_tails_of_students():
    """The farthest of 20,000 draws lie where those of Student's law with five degrees do."""
    x = MinibooneLike().sample(np.random.default_rng(0), 20_000)
    column = (x[:, 4] - np.median(x[:, 4])) / scipy.stats.iqr(x[:, 4])
    student = scipy.stats.t(df=5)
    expected = student.ppf(0.9995) / (student.ppf(0.75) - student.ppf(0.25))
    assert np.quantile(column, 0.9995) == pytest.approx(expected, rel=0.2)
