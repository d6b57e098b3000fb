"""The metrics of torsion angles against SciPy, repeated draws and closed forms."""

import numpy as np
import pytest
from conftest import assert_mean
from scipy import stats

from ndsm_jax.datasets import boltzmann
from ndsm_jax.datasets.boltzmann import TorsionModel
from ndsm_jax.evaluation.boltzmann import (
    BOLTZMANN_METRICS,
    free_energy_difference,
    kl_divergence,
    torsion_scores,
    total_variation,
)

MODEL = TorsionModel()


def test_divergences_match_scipy():
    counts, p = np.array([[4, 0], [1, 5]]), np.array([[0.3, 0.2], [0.1, 0.4]])
    q = counts.ravel() / 10
    assert np.isclose(kl_divergence(counts, p), stats.entropy(q, p.ravel()))
    assert np.isclose(total_variation(counts, p), (0.1 + 0.2 + 0.0 + 0.1) / 2)


def test_divergence_of_exact_draws_is_that_of_the_g_statistic():
    """2 n KL is chi-squared with B - 1 degrees of freedom for large counts."""
    p = np.array([0.1, 0.2, 0.3, 0.4])
    draws = np.random.default_rng(0).multinomial(5000, p, size=2000)
    assert_mean([2 * 5000 * kl_divergence(c, p) for c in draws], 3.0, bias=0.01)


@pytest.mark.parametrize("counts", [[1, 2], [0, 0, 0], [1, 1, 1]])
def test_divergences_refuse_what_does_not_fit(counts):
    with pytest.raises(ValueError, match="counts"):
        kl_divergence(np.array(counts), np.array([0.5, 0.5, 0.0]))


def test_free_energy_difference_and_its_standard_error():
    """Over repeated draws the mean is -log of the ratio and the spread is the standard error."""
    draws = np.random.default_rng(0).multinomial(1000, [0.1, 0.3, 0.6], size=2000)
    estimates = [free_energy_difference(a, b) for a, b, _ in draws]
    values = np.array([e.value for e in estimates])
    assert_mean(values, np.log(3), bias=1e-3)
    mean_se = np.mean([e.standard_error for e in estimates])
    assert np.isclose(values.std(), mean_se, rtol=0.08)  # 5 standard errors of 2000 draws
    assert np.isfinite(free_energy_difference(0, 50).value)
    with pytest.raises(ValueError, match="negative"):
        free_energy_difference(-1, 3)


def test_scores_of_exact_draws_are_within_their_standard_errors():
    y, _ = MODEL.sample(np.random.default_rng(0), 20_000)
    scores = torsion_scores(MODEL, np.concatenate([y, np.full((5, 4), np.nan)]))
    assert set(scores) == set(BOLTZMANN_METRICS)
    for name in ("mirror_error", "energy_error"):
        assert abs(scores[name]) < 4 * scores[f"{name}_se"]
    assert scores["basin_error"] < 3 * scores["basin_error_se"]
    assert 0 < scores["kl"] < 1.2 * (24**2 - 1) / (2 * 20_000)
    assert abs(scores["radius_ratio"] - 1) < 0.02


def test_scores_see_a_symmetrised_law():
    """Half of the states mirrored: the halves are equal, so the free energy is off by its value."""
    y, _ = MODEL.sample(np.random.default_rng(0), 20_000)
    half = np.concatenate([y[:10_000], boltzmann.mirror(y[10_000:])])
    scores = torsion_scores(MODEL, half)
    left, right = MODEL.basin_probabilities.reshape(2, 2).sum(axis=1)
    assert np.isclose(scores["mirror_error"], -np.log(left / right), atol=0.06)
    # The mean of the even part stays, that of the odd part becomes 0.
    odd = 0.75 * np.sin(boltzmann.to_angles(y)[:, 0])
    assert np.isclose(scores["energy_error"], -odd.mean(), atol=0.06)
    with pytest.raises(ValueError, match="finite"):
        torsion_scores(MODEL, np.full((3, 4), np.inf))


def test_scores_of_angles_are_those_of_states_with_these_angles():
    y, _ = MODEL.sample(np.random.default_rng(0), 2000)
    angles = boltzmann.to_angles(y) + 2 * np.pi * np.array([1, -4])
    expected = torsion_scores(MODEL, y)
    del expected["radius_ratio"]
    found = torsion_scores(MODEL, np.concatenate([angles, np.full((5, 2), np.nan)]))
    assert found == pytest.approx(expected)
