"""Distances of columns and associations between them, against SciPy and the textbook's formulas."""

import numpy as np
import pytest
from scipy import stats

from ndsm_jax.columns import Column
from ndsm_jax.evaluation import (
    associations,
    column_distances,
    most_associated,
    table_scores,
)

COLUMNS = (
    Column(name="a", kind="numeric", low=-1.0, high=1.0),
    Column(name="b", kind="integer", low=0.0, high=9.0),
    Column(name="c", kind="categorical", levels=("x", "y", "z")),
    Column(name="d", kind="categorical", levels=("n", "y")),
    Column(name="e", kind="numeric", low=1.0, high=1.0),
)


def rows(rng, num: int = 400) -> np.ndarray:
    a = rng.standard_t(2, size=num)
    c = np.digitize(a + rng.normal(size=num), [-0.5, 1])
    d = (rng.random(num) < 0.2 + 0.3 * c).astype(float)
    return np.stack([a, rng.poisson(np.exp(-0.3 * a).clip(0, 20)), c, d, np.ones(num)], axis=1)


def test_associations(rng):
    x = rows(rng)
    a, b, c, d, _ = x.T
    found = associations(COLUMNS, x)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(np.diag(found), [1, 1, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found[0, 1], stats.spearmanr(a, b).statistic)
    assert found[0, 1] < 0
    # The correlation ratio of ranks: variance between levels over all of it.
    ranks = stats.rankdata(a)
    between = sum((c == k).mean() * (ranks[c == k].mean() - ranks.mean()) ** 2 for k in range(3))
    np.testing.assert_allclose(found[0, 2], (between / ranks.var()) ** 0.5)
    # Of a category of two, Cramer's V: the only singular value of the standardised table.
    counts = stats.contingency.crosstab(c, d).count
    cramer = stats.contingency.association(counts, method="cramer")
    np.testing.assert_allclose(found[2, 3], cramer)
    np.testing.assert_allclose(found[4], 0)


def test_distances_of_columns(rng):
    x, y = rows(rng), rows(rng, 300)
    found = column_distances(COLUMNS, x, y)
    np.testing.assert_allclose(found["a"], stats.ks_2samp(x[:, 0], y[:, 0]).statistic)
    shares = [np.bincount(z[:, 2].astype(int), minlength=3) / len(z) for z in (x, y)]
    np.testing.assert_allclose(found["c"], np.abs(shares[0] - shares[1]).sum() / 2)
    assert found["e"] == 0


def test_the_pairs_that_hang_together_most():
    matrix = np.eye(5)
    for (i, j), value in {(0, 1): -0.9, (0, 2): 0.8, (0, 3): 0.7, (3, 4): 0.1}.items():
        matrix[i, j] = matrix[j, i] = value
    assert most_associated(matrix, 3) == [(0, 1), (0, 2), (3, 4)]  # column 0 twice at most
    assert most_associated(matrix, 2, each=1) == [(0, 1), (3, 4)]
    assert most_associated(np.eye(1), 3) == []


def test_scores_of_tables(rng):
    held_out, same = rows(rng), rows(rng, 1000)
    shuffled = rng.permuted(same, axis=0)  # the marginals without what joins them
    diverged = np.full((50, 5), np.nan)
    sets = {"value": same, "floor": held_out, "prior": shuffled, "lost": diverged}
    found = table_scores(COLUMNS, held_out, sets)
    assert found["associations"]["floor"] < 1e-12
    assert found["associations"]["value"] < 0.05 < found["associations"]["prior"]
    assert found["associations"]["lost"] is None
    assert found["columns"]["a"]["lost"] is None
    assert found["columns"]["c"]["kind"] == "categorical"
    assert max(found["columns"][c.name]["value"] for c in COLUMNS) < 0.14  # 1.95 sqrt(2 / 400)
    with pytest.raises(KeyError):
        found["columns"]["f"]
