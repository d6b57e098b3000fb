"""Student-t, logistic and torus laws against SciPy and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import references
from ndsm_jax.references import others

LOCATION, SCALE = np.array([0.5, -1.0, 2.0]), np.array([0.4, 1.0, 2.5])
GIVEN = {"location": LOCATION, "scale": SCALE}
LAWS = {
    "student_t": references.student_t(3, degrees=3.5, **GIVEN),
    "logistic": references.logistic(3, **GIVEN),
    "uniform_torus": references.uniform_torus(3, period=3.0),
}


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]


@pytest.mark.parametrize("degrees", [0.5, 3.0, 40.0, 1e6])
@pytest.mark.parametrize("dim", [1, 3, 50])
def test_student_log_prob_matches_scipy(degrees, dim, rng):
    location, scale = rng.normal(size=dim), rng.uniform(0.3, 2.0, dim)
    y = (2 * rng.normal(size=(4, 2, dim))).astype(np.float32)
    law = references.student_t(dim, degrees=degrees, location=location, scale=scale)
    expected = scipy.stats.multivariate_t(location, np.diag(scale**2), df=degrees).logpdf(y)
    np.testing.assert_allclose(law.log_prob(y), expected, rtol=1e-5, atol=2e-5)


def test_logistic_log_prob_matches_scipy(rng):
    y = (5 * rng.normal(size=(4, 2, 3))).astype(np.float32)
    expected = scipy.stats.logistic(LOCATION, SCALE).logpdf(y).sum(axis=-1)
    np.testing.assert_allclose(LAWS["logistic"].log_prob(y), expected, rtol=1e-5)


def test_torus_log_prob_integrates_to_one():
    law = LAWS["uniform_torus"]
    np.testing.assert_allclose(jnp.exp(law.log_prob(jnp.ones((2, 3)))) * 3.0**3, 1.0, rtol=1e-5)


def test_score_is_the_gradient(law, rng):
    y = jnp.asarray(3 * rng.normal(size=(10, 3)), jnp.float32)
    expected = jax.vmap(jax.grad(law.log_prob))(y)
    np.testing.assert_allclose(law.score(y), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(law.score(y.reshape(5, 2, 3)).reshape(10, 3), law.score(y))
    assert law.score(y[0]).shape == (3,)


def test_far_away_nothing_overflows(law):
    for distance in (1e4, 1e8):
        y = jnp.full((1, 3), distance)
        assert bool(jnp.isfinite(law.log_prob(y)).all() & jnp.isfinite(law.score(y)).all())


def test_stiffness_is_the_largest_curvature_of_a_grid(law):
    """Of 21^3 Hessians about the centre, the centre among them."""
    steps = np.linspace(-2, 2, 21)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    y = jnp.asarray(LOCATION + SCALE * offsets, jnp.float32)
    hessians = jax.lax.map(jax.hessian(law.log_prob), y, batch_size=1000)
    largest = np.abs(np.linalg.eigvalsh(hessians)).max()
    assert law.stiffness() == pytest.approx(largest, rel=1e-4, abs=1e-6)


def test_samples_match_scipy_distributions():
    """Kolmogorov-Smirnov, 20,000 draws: 1 in 10,000 seeds would fail each line."""

    def check(values, cdf):
        assert scipy.stats.kstest(np.asarray(values, np.float64), cdf).pvalue > 1e-4

    key, n = jax.random.key(0), 20_000
    student = (np.asarray(LAWS["student_t"].sample(key, (n,))) - LOCATION) / SCALE
    check(np.mean(student**2, axis=1), scipy.stats.f(3, 3.5).cdf)  # which ties the coordinates
    logistic = (np.asarray(LAWS["logistic"].sample(key, (n,))) - LOCATION) / SCALE
    torus = np.asarray(LAWS["uniform_torus"].sample(key, (n,)))
    for j in range(3):
        check(student[:, j], scipy.stats.t(3.5).cdf)
        check(logistic[:, j], scipy.stats.logistic.cdf)
        check(torus[:, j], scipy.stats.uniform(-1.5, 3.0).cdf)
    assert_mean(logistic[:, :, None] * logistic[:, None, :], np.pi**2 / 3 * np.eye(3))
    assert_mean(torus[:, :, None] * torus[:, None, :], 9 / 12 * np.eye(3))
    assert torus.min() >= -1.5
    assert torus.max() < 1.5


def test_few_degrees_do_not_overflow():
    """chi2 with 0.1 degrees is below 1e-38, float32's least, in one draw of 80."""
    draws = references.student_t(2, degrees=0.1).sample(jax.random.key(0), (20_000,))
    assert np.mean(np.isfinite(np.asarray(draws)).all(axis=1)) > 0.998


def test_typical_variance():
    assert LAWS["student_t"].typical_variance() == pytest.approx(np.mean(SCALE**2))
    logistic = scipy.stats.logistic(0, SCALE).var().mean()
    assert LAWS["logistic"].typical_variance() == pytest.approx(logistic)
    assert LAWS["uniform_torus"].typical_variance() == pytest.approx(9 / 12)


def test_contract(law):
    assert isinstance(law, references.Reference)
    assert law.dim == 3
    y = jnp.ones((2, 3))
    compiled = jax.jit(lambda law, y: (law.score(y), law.sample(jax.random.key(0), (4, 5))))
    score, draws = compiled(law, y)
    np.testing.assert_allclose(score, law.score(y), rtol=1e-5)
    assert draws.shape == (4, 5, 3)
    assert draws.dtype == jnp.float32
    assert law.sample(jax.random.key(0)).shape == (3,)


def student_data(n, dim, degrees, seed=0):
    rng = np.random.default_rng(seed)
    location, scale = np.linspace(-1, 1, dim), np.linspace(0.5, 2.0, dim)
    shape = np.diag(scale**2)
    return scipy.stats.multivariate_t(location, shape, df=degrees).rvs(n, rng).reshape(n, dim)


def test_student_fit_in_one_dimension_is_scipys():
    data = student_data(2000, 1, 4.0)
    fitted = references.fit_student_t(data)
    degrees, location, scale = scipy.stats.t.fit(data[:, 0])
    np.testing.assert_allclose(fitted.degrees, degrees, rtol=5e-3)
    np.testing.assert_allclose(fitted.location, [location], atol=1e-3)
    np.testing.assert_allclose(fitted.scale, [scale], rtol=2e-3)


@pytest.mark.parametrize("degrees", [0.0, 6.0])
def test_student_fit_maximises_the_likelihood(degrees):
    """SciPy's mean log-likelihood falls to both sides along every parameter that is free."""
    data = student_data(1000, 3, 3.0)
    fitted = references.fit_student_t(data, degrees=degrees)
    best = [np.asarray(a, np.float64) for a in (fitted.location, fitted.scale, fitted.degrees)]

    def likelihood(location, scale, nu):
        return scipy.stats.multivariate_t(location, np.diag(scale**2), df=nu).logpdf(data).mean()

    top = likelihood(*best)
    for sign in (-0.02, 0.02):
        for j in range(3):
            step = sign * np.eye(3)[j]
            assert likelihood(best[0] + step, best[1], best[2]) < top
            assert likelihood(best[0], best[1] * (1 + step), best[2]) < top
        if not degrees:
            assert likelihood(best[0], best[1], best[2] * (1 + 2 * sign)) < top
    if degrees:
        assert float(fitted.degrees) == degrees


def test_student_fit_of_normal_data_has_many_degrees(rng):
    fitted = references.fit_student_t(rng.normal(size=(2000, 4)))
    assert fitted.degrees > 50
    np.testing.assert_allclose(fitted.scale, 1.0, rtol=4.5 / np.sqrt(2 * 2000))


def test_logistic_fit_has_the_moments_of_the_data(rng):
    data = rng.logistic(size=(500, 2)) * [0.5, 2.0] + [1.0, -3.0]
    fitted = references.fit_logistic(data)
    law = scipy.stats.logistic(np.asarray(fitted.location), np.asarray(fitted.scale))
    np.testing.assert_allclose(law.mean(), data.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(law.var(), data.var(axis=0), rtol=1e-5)


def test_a_shared_scale_is_of_all_coordinates_and_a_constant_one_may_be_among_them(rng):
    data = rng.normal(size=(500, 3)) * [0.5, 2.0, 0.0]
    law = references.fit_logistic(data, shared=True)
    np.testing.assert_allclose(law.scale, np.sqrt(data.var(axis=0).mean() * 3) / np.pi, rtol=1e-5)
    fitted = references.fit_student_t(data, degrees=5.0, shared=True)
    assert np.ptp(fitted.scale) == 0
    best = np.asarray(fitted.location, np.float64), float(fitted.scale[0])

    def likelihood(location, scale):
        law = scipy.stats.multivariate_t(location, scale**2 * np.eye(3), df=5.0)
        return law.logpdf(data).mean()

    for factor in (0.98, 1.02):
        assert likelihood(best[0], best[1] * factor) < likelihood(*best)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: references.student_t(2, degrees=0.0), "student_t: degrees=0"),
        (lambda: references.student_t(2, degrees=3.0, scale=[1.0, 0.0]), r"^scale must"),
        (lambda: references.logistic(2, location=[1.0, 2.0, 3.0]), "location=.* d = 2"),
        (lambda: references.logistic(2, location=np.nan), "finite"),
        (lambda: references.logistic(0), "dim=0"),
        (lambda: references.uniform_torus(0), "dim=0"),
        (lambda: references.uniform_torus(2, period=-1.0), "period=-1"),
        (lambda: references.fit_student_t(np.ones((5, 2))), "coordinate 0"),
        (lambda: references.fit_student_t(np.eye(3), degrees=-1.0), "degrees=-1"),
        (lambda: references.fit_logistic(np.full((5, 2), np.nan)), "finite"),
        (lambda: references.fit_logistic(np.ones(5)), r"\[N, d\]"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_fit_beyond_the_range_stops_at_its_end():
    low, high = others._DEGREES_RANGE
    fitted = references.fit_student_t(np.linspace(-1, 1, 50)[:, None])  # lighter tails than normal
    assert low < float(fitted.degrees) <= high
    assert float(fitted.degrees) > 0.9 * high
