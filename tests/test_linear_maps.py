"""Linear maps and Gaussian kernels against dense matrices and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import linear_maps
from ndsm_jax.linear_maps import Blocks, Dense, Diagonal, Gaussian, Scalar

DIM = 6
LEADING = [(), (4,), (2, 3)]


def pair(kind, leading, rng):
    """A map with arrays of a leading shape, and its dense matrices [*leading, d, d] in float64."""
    eye = np.eye(DIM)
    if kind == "scalar":
        value = rng.uniform(0.5, 2.0, leading) * rng.choice([-1, 1], leading)
        return Scalar(value=jnp.float32(value)), np.asarray(value)[..., None, None] * eye
    if kind == "diagonal":
        values = rng.uniform(0.5, 2.0, (*leading, DIM)) * rng.choice([-1, 1], (*leading, DIM))
        return Diagonal(values=jnp.float32(values)), values[..., None] * eye
    m = {"blocks of 2": 2, "blocks of 3": 3, "dense": DIM}[kind]
    matrix = rng.normal(size=(*leading, m, m)) + 3 * np.eye(m)
    if kind == "dense":
        return Dense(matrix=jnp.float32(matrix)), matrix
    return Blocks(matrix=jnp.float32(matrix)), np.kron(matrix, np.eye(DIM // m))


KINDS = ["scalar", "diagonal", "blocks of 2", "blocks of 3", "dense"]


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_their_matrices(kind, leading, rng):
    """mv, mv_t, solve, solve_t and log_det, each in float32 against the dense matrix in float64."""
    linear, dense = pair(kind, leading, rng)
    y = rng.normal(size=(*leading, DIM))
    expected = {
        "mv": dense @ y[..., None],
        "mv_t": np.swapaxes(dense, -1, -2) @ y[..., None],
        "solve": np.linalg.solve(dense, y[..., None]),
        "solve_t": np.linalg.solve(np.swapaxes(dense, -1, -2), y[..., None]),
    }
    for name, value in expected.items():
        actual = jax.jit(lambda m, y, name=name: getattr(m, name)(y))(linear, jnp.float32(y))
        assert actual.shape == y.shape
        np.testing.assert_allclose(actual, value[..., 0], rtol=1e-5, atol=1e-5, err_msg=name)
    log_det = linear.log_det(DIM)
    assert log_det.shape == leading
    np.testing.assert_allclose(log_det, np.linalg.slogdet(dense)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_map_serves_states_of_any_leading_shape(kind, rng):
    """Maps of the leading shapes [1] and [3, 1] on states [3, 5, d], as noising has them: x_0 is
    [B, 1, d] beside times [B, k]."""
    for leading in [(1, 1), (3, 1)]:
        linear, dense = pair(kind, leading, rng)
        y = rng.normal(size=(3, 5, DIM))
        actual = linear.mv(jnp.float32(y))
        np.testing.assert_allclose(actual, (dense @ y[..., None])[..., 0], rtol=1e-5, atol=1e-5)
        back = linear.solve(actual)
        np.testing.assert_allclose(back, y, rtol=1e-4, atol=1e-5)
    linear, dense = pair(kind, (3, 5), rng)
    x0 = rng.normal(size=(3, 1, DIM))
    expected = (dense @ x0[..., None])[..., 0]
    np.testing.assert_allclose(linear.mv(jnp.float32(x0)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_gaussian_are_the_gradients_of_scipys_density(kind, rng):
    """-L^{-T} z is grad log N(y; A x, L L^T) at y = A x + L z, by central differences in float64
    of SciPy's log density."""
    scale, a = pair(kind, (2,), rng)
    root, l_ = pair(kind, (2,), rng)
    gaussian = Gaussian(scale=scale, root=root)
    x, z = rng.normal(size=(2, 2, DIM))
    mean, y = gaussian.sample(jnp.float32(x), jnp.float32(z))
    score = gaussian.score(jnp.float32(z))
    h = 1e-5 * np.eye(DIM)
    for i in range(2):
        exact_mean = a[i] @ x[i]
        exact = exact_mean + l_[i] @ z[i]
        np.testing.assert_allclose(mean[i], exact_mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(y[i], exact, rtol=1e-5, atol=1e-5)
        law = scipy.stats.multivariate_normal(exact_mean, l_[i] @ l_[i].T)
        gradient = (law.logpdf(exact + h) - law.logpdf(exact - h)) / 2e-5
        np.testing.assert_allclose(score[i], gradient, rtol=1e-4, atol=1e-5)
        # The density itself, by log_det: log N = -|z|^2 / 2 - log |det L| - d/2 log 2 pi.
        density = -0.5 * z[i] @ z[i] - np.asarray(root.log_det(DIM))[i]
        density -= 0.5 * DIM * np.log(2 * np.pi)
        assert density == pytest.approx(law.logpdf(exact), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_gaussian_have_its_moments(kind, rng):
    """20,000 draws: mean A x and covariance L L^T, within 4.5 standard errors."""
    (scale, a), (root, l_) = pair(kind, (1,), rng), pair(kind, (1,), rng)
    a, l_ = a[0], l_[0]
    x = rng.normal(size=DIM)
    z = jax.random.normal(jax.random.key(0), (20_000, DIM))
    x_many = jnp.broadcast_to(jnp.float32(x), z.shape)
    _, y = jax.jit(lambda g, x, z: g.sample(x, z))(Gaussian(scale=scale, root=root), x_many, z)
    deviation = np.asarray(y, np.float64) - a @ x
    assert_mean(deviation, np.zeros(DIM))
    assert_mean(deviation[:, :, None] * deviation[:, None, :], l_ @ l_.T)


def test_isotropic_is_a_pair_of_scalars():
    t = jnp.array([0.5, 2.0])
    gaussian = linear_maps.isotropic(t, 3 * t)
    x, z = jnp.ones((2, 3)), jnp.full((2, 3), -1.0)
    mean, y = gaussian.sample(x, z)
    np.testing.assert_allclose(mean, t[:, None] * x)
    np.testing.assert_allclose(y, -2 * t[:, None] * x)
    np.testing.assert_allclose(gaussian.score(z), x / (3 * t[:, None]), rtol=1e-6)


@pytest.mark.parametrize("indices", [None, (4, 5), (3, 0, 2)])
def test_select_and_embed_are_the_matrix_e(indices, rng):
    """E^T y and E u, with E the columns of the identity, in the order of the indices."""
    e = np.eye(DIM) if indices is None else np.eye(DIM)[:, list(indices)]
    y, u = rng.normal(size=(2, 3, DIM)), rng.normal(size=(2, 3, e.shape[1]))
    selected = linear_maps.select(jnp.float32(y), indices)
    embedded = linear_maps.embed(jnp.float32(u), indices, DIM)
    np.testing.assert_allclose(selected, y @ e, rtol=1e-6)
    np.testing.assert_allclose(embedded, u @ e.T, rtol=1e-6)
