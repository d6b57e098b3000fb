"""Measurements against what they are said to be: readings, noise, and the same seen from states."""

import numpy as np
import pytest

from ndsm_jax import measurements

D = 4


def moments(matrix, covariance, prior):
    """Gain and covariance of x ~ N(0, prior) given A x + N(0, R), written out."""
    total = matrix @ prior @ matrix.T + covariance
    gain = prior @ matrix.T @ np.linalg.pinv(total)
    return gain, prior - gain @ matrix @ prior


def updated(measurement, prior, row=0):
    """Mean and covariance of x ~ N(0, prior) given a row, by its orthonormal readings."""
    read = np.isfinite(measurement.variance[row])
    v = np.eye(measurement.dim) if measurement.directions is None else measurement.directions
    v = (v[row] if v.ndim == 3 else v)[read]
    gain, left = moments(v, np.diag(measurement.variance[row, read]), prior)
    return gain @ measurement.value[row, read], left


@pytest.fixture
def prior(rng):
    a = rng.normal(size=(D, D))
    return a @ a.T + 0.1 * np.eye(D)


@pytest.mark.parametrize("noise", ["exact", "independent", "mixed", "correlated", "singular"])
def test_any_linear_measurement_says_what_its_matrix_says(rng, prior, noise):
    """Three readings, of rows with different gaps: the Gaussian update of each is that written out
    with the matrix, to rounding of float64."""
    matrix, values = rng.normal(size=(3, D)), rng.normal(size=(4, 3))
    values[1, 0] = values[2, 1] = values[2, 2] = np.nan
    root = rng.normal(size=(3, 3 if noise == "correlated" else 1))
    covariance = {
        "exact": np.zeros((3, 3)),
        "independent": 0.09 * np.eye(3),
        "mixed": np.diag([0.0, 0.04, 0.25]),
        "correlated": root @ root.T,
        "singular": root @ root.T,
    }[noise]
    if noise in ("correlated", "singular"):
        m = measurements.linear(matrix, values, covariance=covariance)
    else:
        m = measurements.linear(matrix, values, noise=np.sqrt(np.diag(covariance)))
    for i, value in enumerate(values):
        read = ~np.isnan(value)
        gain, left = moments(matrix[read], covariance[np.ix_(read, read)], prior)
        mean, covariance_left = updated(m, prior, i)
        np.testing.assert_allclose(mean, gain @ value[read], atol=1e-7)
        np.testing.assert_allclose(covariance_left, left, atol=1e-7)
        v = m.directions[i]
        np.testing.assert_allclose(v @ v.T, np.eye(3), atol=1e-12)


def test_rows_without_gaps_share_their_directions(rng):
    m = measurements.linear(rng.normal(size=(3, D)), rng.normal(size=(5, 3)), noise=0.1)
    assert m.directions.shape == (3, D)
    assert m.of(5) is m


@pytest.mark.parametrize("kind", ["coordinates", "linear"])
@pytest.mark.parametrize("map_kind", ["diagonal", "matrix", "of each row"])
def test_seen_from_states(rng, prior, kind, map_kind):
    """x = L y + c: the update of y ~ N(0, prior) is that by A L y = value - A c, written out."""
    x, matrix = rng.normal(size=(3, D)), np.eye(D)
    if kind == "coordinates":
        x[0, 1] = x[1, 0] = x[1, 3] = np.nan
        m = measurements.given(x, noise=0.2)
    else:
        matrix, x = rng.normal(size=(2, D)), x[:, :2]
        m = measurements.linear(matrix, x, noise=0.2)
    shape = {"diagonal": (D,), "matrix": (D, D), "of each row": (3, D, D)}[map_kind]
    linear, shift = rng.normal(size=shape), rng.normal(size=(3, D) if len(shape) == 3 else D)
    seen = m.seen_from(linear, shift)
    for i in range(3):
        read = ~np.isnan(x[i])
        to_data = np.diag(linear) if linear.ndim == 1 else linear if linear.ndim == 2 else linear[i]
        offset = shift if shift.ndim == 1 else shift[i]
        a = matrix[read]
        gain, left = moments(a @ to_data, 0.04 * np.eye(read.sum()), prior)
        mean, covariance = updated(seen, prior, i)
        np.testing.assert_allclose(mean, gain @ (x[i, read] - a @ offset), atol=1e-7)
        np.testing.assert_allclose(covariance, left, atol=1e-7)


def test_a_coordinate_that_stays_where_it_is_says_nothing():
    m = measurements.given([[2.0, 3.0]]).seen_from(np.array([0.5, 0.0]), np.array([1.0, 3.0]))
    np.testing.assert_array_equal(m.value, [[2.0, 0.0]])
    np.testing.assert_array_equal(m.variance, [[0.0, np.inf]])


def test_exact_coordinates_are_put_in_and_others_left():
    m = measurements.given([[1e9 + 1, np.nan, 2.0]], noise=[0.0, 0.0, 0.5])
    np.testing.assert_array_equal(m.put(np.zeros((1, 3))), [[1e9 + 1, 0.0, 0.0]])


def test_mean_pooling_averages_blocks(rng):
    images = rng.normal(size=(3, 4, 6, 2))
    matrix = measurements.mean_pooling((4, 6, 2), 2)
    expected = images.reshape(3, 2, 2, 3, 2, 2).mean(axis=(2, 4)).reshape(3, -1)
    np.testing.assert_allclose(images.reshape(3, -1) @ matrix.T, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: measurements.given([np.inf]), "infinite values"),
        (lambda: measurements.given([0.0], noise=-1), "0 or more"),
        (lambda: measurements.given([0.0], noise=np.nan), "not finite"),
        (lambda: measurements.linear(np.eye(2), [0.0]), "a matrix .m, d."),
        (lambda: measurements.linear([[1.0, 1.0], [2.0, 2.0]], [0.0, 0.0]), "not independent"),
        (
            lambda: measurements.linear(np.eye(2), [0.0, 0], covariance=np.eye(3)),
            "covariance=.* 2",
        ),
        (lambda: measurements.linear(np.eye(2), [0.0, 0], covariance=-np.eye(2)), "semi-definite"),
        (lambda: measurements.given(np.zeros((2, 3))).of(5), "2 rows for 5 samples"),
        (lambda: measurements.mean_pooling((5, 4, 1), 2), "do not tile"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
