"""The torsion density against adaptive quadrature and closed forms, and its data set."""

import numpy as np
import pytest
from conftest import assert_mean
from scipy import integrate, stats
from scipy.special import iv

from ndsm_jax.datasets import boltzmann, load, support_distance
from ndsm_jax.datasets.boltzmann import TorsionModel

MODEL = TorsionModel()
PI = np.pi


def density(psi: float, phi: float) -> float:
    return float(np.exp(MODEL.log_density_of_angles(np.array([phi, psi]))))


def test_basin_probabilities_match_adaptive_quadrature():
    # Of psi: helical is (-135, 45) degrees on the left and (-45, 135) on the right.
    helical = [
        integrate.dblquad(density, -PI, 0, -0.75 * PI, 0.25 * PI, epsabs=1e-7)[0],
        integrate.dblquad(density, 0, PI, -0.25 * PI, 0.75 * PI, epsabs=1e-7)[0],
    ]
    left = integrate.dblquad(density, -PI, 0, -PI, PI, epsabs=1e-7)[0]
    expected = [left - helical[0], helical[0], 1 - left - helical[1], helical[1]]
    np.testing.assert_allclose(MODEL.basin_probabilities, expected, atol=2e-5)
    assert np.isclose(MODEL.basin_probabilities.sum(), 1, atol=1e-10)


def test_partition_function_by_bessel_functions():
    """For each phi the integral over psi is a series.

    exp(a sin(2 psi) + b cos(psi)), with a = 2.5 sin(phi) and b = -0.4, is the product of the series
    sum_n I_n(a) exp(i n (2 psi - pi / 2)) and sum_m I_m(b) exp(i m psi) (Jacobi and Anger). What is
    left of it over a period has m = -2 n: 2 pi sum_n I_n(a) I_2n(b) cos(n pi / 2).
    """
    n = np.arange(-30, 31)

    def inner(phi: float) -> float:
        rest = 2.5 * np.cos(2 * phi) + np.cos(phi) + MODEL.chirality * np.sin(phi)
        terms = iv(n, 2.5 * np.sin(phi)) * iv(2 * n, -0.4) * np.cos(n * PI / 2)
        return float(2 * PI * np.exp(-rest) * terms.sum())

    partition = integrate.quad(inner, -PI, PI, epsabs=1e-8)[0]
    np.testing.assert_allclose(
        MODEL.log_density_of_angles(np.zeros(2)), -MODEL.energy(np.zeros(2)) - np.log(partition)
    )


def test_energy_terms():
    """2.5 cos 2 phi + cos phi - 2.5 sin phi sin 2 psi + 0.4 cos psi + 0.75 sin phi, by hand."""
    angles = np.random.default_rng(0).uniform(-PI, PI, (50, 2))
    phi, psi = angles.T
    expected = 2.5 * np.cos(2 * phi) + np.cos(phi) - 2.5 * np.sin(phi) * np.sin(2 * psi)
    expected += 0.4 * np.cos(psi)
    np.testing.assert_allclose(TorsionModel(chirality=0).energy(angles), expected)
    np.testing.assert_allclose(MODEL.energy(angles), expected + 0.75 * np.sin(phi))


def test_the_mirror_symmetry_is_broken_by_the_chirality_alone():
    y, _ = MODEL.sample(np.random.default_rng(0), 200)
    image = boltzmann.mirror(y)
    achiral = TorsionModel(chirality=0)
    np.testing.assert_allclose(achiral.log_density(image), achiral.log_density(y))
    np.testing.assert_allclose(
        MODEL.log_density(image) - MODEL.log_density(y),
        1.5 * np.sin(boltzmann.to_angles(y)[:, 0]),
        atol=1e-10,
    )
    np.testing.assert_array_equal(
        boltzmann.basin(boltzmann.to_angles(image)),
        (boltzmann.basin(boltzmann.to_angles(y)) + 2) % 4,
    )
    np.testing.assert_allclose(achiral.basin_probabilities[:2], achiral.basin_probabilities[2:])


def test_density_of_states_integrates_to_one():
    """Importance sampling: E_q[p / q] = 1 for q uniform on the angles, Student's t on the radii."""
    rng = np.random.default_rng(0)
    n = 40_000
    angles = rng.uniform(-PI, PI, (n, 2))
    law = stats.t(5, loc=1, scale=MODEL.radial_std)
    r = law.rvs((n, 2), random_state=rng)
    keep = np.all(r > 0, axis=1)
    log_q = law.logpdf(r).sum(axis=1) - 2 * np.log(2 * PI) - np.log(np.abs(r)).sum(axis=1)
    log_p = MODEL.log_density(boltzmann.embed(angles, np.abs(r)))
    assert_mean(np.where(keep, np.exp(log_p - log_q), 0), 1.0)


def test_samples_follow_the_density():
    rng = np.random.default_rng(0)
    y, labels = MODEL.sample(rng, 20_000)
    angles = boltzmann.to_angles(y)
    np.testing.assert_array_equal(labels, boltzmann.basin(angles))
    expected = MODEL.bin_probabilities(12)
    counts = boltzmann.angle_counts(y, 12)
    bins = np.floor((angles + PI) * 6 / PI).astype(int)
    assert counts[2, 10] == np.sum(np.all(bins == (2, 10), axis=1)) > 50
    large = len(y) * expected > 5
    pooled = np.append(counts[large], counts[~large].sum())
    exact = len(y) * np.append(expected[large], expected[~large].sum())
    assert stats.chisquare(pooled, exact).pvalue > 1e-3
    assert stats.kstest((boltzmann.radii(y) - 1).ravel() / 0.05, "norm").pvalue > 1e-3
    assert_mean(MODEL.energy(angles), MODEL.mean_energy)


def test_rejection_needs_a_lower_bound_of_the_energy():
    fine = np.random.default_rng(0).uniform(-PI, PI, (200_000, 2))
    lowest = MODEL.energy(fine).min()
    assert MODEL._energy_bound < lowest
    assert lowest - MODEL._energy_bound < 0.01


def test_angles_and_radii_invert_the_embedding(rng):
    angles, r = rng.uniform(-PI, PI, (5, 3, 2)), rng.uniform(0.5, 2, (5, 3, 2))
    y = boltzmann.embed(angles, r)
    np.testing.assert_allclose(boltzmann.to_angles(y), angles)
    np.testing.assert_allclose(boltzmann.radii(y), r)
    np.testing.assert_allclose(y[..., 0], r[..., 0] * np.cos(angles[..., 0]))
    np.testing.assert_allclose(y[..., 3], r[..., 1] * np.sin(angles[..., 1]))


@pytest.mark.parametrize("std", [0.0, 0.2, float("nan")])
def test_bad_models_are_refused(std):
    with pytest.raises(ValueError, match="radial_std"):
        TorsionModel(radial_std=std)


@pytest.mark.parametrize("bins", [0, 7])
def test_bad_bins_are_refused(bins):
    with pytest.raises(ValueError, match="divide 720"):
        MODEL.bin_probabilities(bins)


# --- the data set ---------------------------------------------------------------------------------


def test_data_set_is_exact_draws_with_basins_as_labels():
    data = load("torsion", num_train=500, num_test=300, seed=1)
    assert data.train.shape == (500, 4)
    assert data.test.shape == (300, 4)
    assert data.num_classes == 4
    np.testing.assert_array_equal(
        data.train_labels, boltzmann.basin(boltzmann.to_angles(data.train))
    )
    assert load("torsion", num_train=500, num_test=300, seed=1).digest == data.digest
    # The norm of two normals has mean std sqrt(pi / 2).
    assert_mean(support_distance("torsion", data.train), 0.05 * np.sqrt(PI / 2))
    with pytest.raises(ValueError, match=r"\[n, 4\]"):
        support_distance("torsion", np.zeros((3, 2)))


def test_angles_are_those_of_the_states_of_the_same_seed():
    states, angles = (
        load(name, num_train=500, num_test=300, seed=1) for name in ("torsion", "torsion_angles")
    )
    np.testing.assert_allclose(boltzmann.to_angles(states.train), angles.train, atol=1e-6)
    np.testing.assert_array_equal(states.test_labels, angles.test_labels)
    turned = angles.train + 2 * PI * np.array([3, -2])
    np.testing.assert_allclose(boltzmann.to_angles(turned), angles.train, atol=1e-5)


def test_a_model_of_other_terms():
    """Even terms alone: mirror images are equally likely, and the density is that of its energy."""
    model = TorsionModel(chirality=0.0, even_terms=((3.0, 2, 0), (0.8, 1, -2), (-0.5, 0, 1)))
    phi, psi = np.array([0.3, -1.1])
    by_hand = 3 * np.cos(2 * phi) + 0.8 * np.cos(phi - 2 * psi) - 0.5 * np.cos(psi)
    assert np.isclose(model.energy(np.array([phi, psi])), by_hand)
    left, right = model.basin_probabilities.reshape(2, 2)
    np.testing.assert_allclose(left, right, rtol=1e-10)
    angles = model.sample_angles(np.random.default_rng(0), 20_000)
    expected = len(angles) * model.bin_probabilities(12)
    counts = boltzmann.angle_counts(angles, 12)
    large = expected > 5
    pooled = np.append(counts[large], counts[~large].sum())
    exact = np.append(expected[large], expected[~large].sum())
    assert stats.chisquare(pooled, exact).pvalue > 1e-3
