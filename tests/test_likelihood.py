"""Log densities with exact scores, where they are known."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import scipy.linalg
import scipy.stats
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import likelihood, processes, references
from ndsm_jax.likelihood import Bound, Flow
from ndsm_jax.linear_maps import wrapped_score

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
VARIANCES = np.array([0.05, 0.1])

OU = processes.ornstein_uhlenbeck(2, variance=0.5, horizon=6.0)
VP = processes.variance_preserving(2, beta_max=40.0)
"""Long: of a mean of 1 less than e^-10 is left at the horizon, where the law is the reference."""


def draws(num, seed=0):
    rng = np.random.default_rng(seed)
    k = rng.choice(2, size=num, p=WEIGHTS)
    return (MEANS[k] + VARIANCES[k, None] ** 0.5 * rng.normal(size=(num, 2))).astype(np.float32)


def exact(x):
    """log p of the mixture, by SciPy."""
    laws = [scipy.stats.multivariate_normal(m, v) for m, v in zip(MEANS, VARIANCES, strict=True)]
    return np.log(sum(w * law.pdf(x) for w, law in zip(WEIGHTS, laws, strict=True)))


def _mixture_score(process, y, t):
    kernel = process.kernel(t)
    a, s = kernel.scale.value[:, None], kernel.root.value[:, None]
    v = a**2 * jnp.asarray(VARIANCES, jnp.float32)[None] + s**2
    difference = y[:, None, :] - a[..., None] * jnp.asarray(MEANS, jnp.float32)[None]
    weights = jnp.asarray(WEIGHTS, jnp.float32)[None]
    log_joint = jnp.log(weights / v) - 0.5 * jnp.sum(difference**2, axis=-1) / v
    return -jnp.sum((jax.nn.softmax(log_joint, axis=-1) / v)[..., None] * difference, axis=1)


def mixture_score(process):
    """Of the mixture, noised by a process with a scalar kernel: a mixture again."""
    return Partial(_mixture_score, process)


def log_prob(process, score, x, *, steps=None, smallest=1e-4, method=None, seed=0, **options):
    method = method or Flow()
    grid = method.times(process, steps, smallest)
    return likelihood.log_prob(
        jax.random.key(seed), score, process, x, grid=grid, method=method, **options
    )


# --- linear processes ---


@pytest.mark.parametrize(
    ("process", "smallest"),
    [
        (OU, 1e-4),
        (VP, 1e-4),
        # The data's variance is 1e-7 of the largest, and a mean 5e-4 of its root.
        (processes.variance_exploding(2, sigma_max=2000.0), 1e-11),
    ],
    ids=lambda p: getattr(p, "name", ""),
)
def test_log_p_of_a_mixture_is_exact_to_a_thousandth(process, smallest):
    x = draws(100)
    found = log_prob(process, mixture_score(process), x, steps=120, smallest=smallest)
    np.testing.assert_allclose(found.value, exact(x), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found.standard_error, 0)


def test_to_hold_the_score_before_the_first_time_costs_less_than_to_stop_there():
    """Of the default grid, whose first time has a thousandth of the variance: 1e-3 an item.

    The law at that time itself is another by 1e-2.
    """
    x = draws(200)
    found = likelihood.log_prob(jax.random.key(0), mixture_score(VP), VP, x, chunk=200)
    held = found.value - exact(x)
    kernel = VP.kernel(jnp.asarray(Flow().times(VP, 40, 1e-3)[1]))
    a, s = float(kernel.scale.value), float(kernel.root.value)
    laws = [
        scipy.stats.multivariate_normal(a * m, a**2 * v + s**2)
        for m, v in zip(MEANS, VARIANCES, strict=True)
    ]
    stopped = np.log(sum(w * law.pdf(x) for w, law in zip(WEIGHTS, laws, strict=True))) - exact(x)
    assert np.sqrt(np.mean(held**2)) < 2e-3
    assert np.sqrt(np.mean(stopped**2)) > 8e-3


def test_steps_with_error_control_agree():
    """With those of the grid, for the same probes."""
    x, score = draws(40), mixture_score(VP)
    methods = Flow(tolerance=1e-5, probes=2), Flow(probes=2)
    controlled, fixed = (log_prob(VP, score, x, method=m, steps=120) for m in methods)
    np.testing.assert_allclose(controlled.value, fixed.value, rtol=0, atol=1e-3)
    np.testing.assert_allclose(controlled.standard_error, fixed.standard_error, rtol=0, atol=1e-3)


def test_error_control_without_diffrax_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ValueError, match=r"tolerance.*ndsm_jax\[diffrax\]"):
        log_prob(OU, mixture_score(OU), draws(3), method=Flow(tolerance=1e-3))


def test_a_row_depends_on_its_index_alone():
    x, score = draws(20), mixture_score(OU)
    for method in (Flow(probes=3), Bound(paths=2, importance=2)):
        run = {"method": method, "steps": 20}
        whole, parts = (log_prob(OU, score, x, chunk=chunk, **run) for chunk in (20, 6))
        np.testing.assert_allclose(whole.value, parts.value, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(whole.standard_error, parts.standard_error, rtol=0.02, atol=1e-3)
        other = log_prob(OU, score, x, seed=1, **run)
        assert np.mean(whole.value != other.value) > 0.3  # of signs in the plane half are the same


# --- the divergence's estimate ---

DIM = 8
ROTATION = scipy.stats.ortho_group.rvs(DIM, random_state=0)
SPECTRUM = np.geomspace(0.05, 1.5, DIM)


def _normal_score(process, y, t):
    kernel = process.kernel(t)
    a, s = kernel.scale.value[:, None], kernel.root.value[:, None]
    rotation = jnp.asarray(ROTATION, jnp.float32)
    precision = 1 / (a**2 * jnp.asarray(SPECTRUM, jnp.float32)[None] + s**2)
    return -(y @ rotation * precision) @ rotation.T


@pytest.mark.parametrize("law", list(likelihood.PROBES))
def test_the_error_of_probes_falls_as_their_root_and_is_told(law):
    """A correlated normal law: the Jacobian is not diagonal, where signs would be exact.

    Of 300 rows a root mean square has a relative standard error of 1 / sqrt(600) = 4 %.
    """
    process = processes.ornstein_uhlenbeck(DIM, horizon=8.0)
    score = Partial(_normal_score, process)
    covariance = ROTATION @ np.diag(SPECTRUM) @ ROTATION.T
    normal = scipy.stats.multivariate_normal(np.zeros(DIM), covariance)
    x = normal.rvs(300, random_state=1).astype(np.float32)
    run = {"steps": 60, "chunk": 300}
    if law == "rademacher":
        found = log_prob(process, score, x, method=Flow(probes=0), **run)
        np.testing.assert_allclose(found.value, normal.logpdf(x), rtol=0, atol=1e-3)
    errors = {}
    for probes in (4, 64):
        found = log_prob(process, score, x, method=Flow(probes=probes, law=law), **run)
        error = found.value - normal.logpdf(x)
        errors[probes] = np.sqrt(np.mean(error**2))
        assert_mean(error, 0, bias=1e-3)
        told = np.sqrt(np.mean(found.standard_error**2))
        assert told == pytest.approx(errors[probes], rel=0.2)
    assert errors[4] / errors[64] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("method", [Flow(), Flow(probes=2), Bound(paths=2)], ids=repr)
def test_log_p_is_the_same_where_jax_has_float64(method):
    """Of states in float32, from the same draws; float64 states keep their precision."""
    x = draws(4)
    expected = log_prob(OU, _reference_score, x, method=method, steps=20)
    with jax.enable_x64(True):
        found = log_prob(OU, _reference_score, x, method=method, steps=20)
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
        keys = jax.random.split(jax.random.key(0), 4)
        grid = method.times(OU, 20, 1e-4)
        of_double = method(keys, _reference_score, OU, jnp.asarray(x, jnp.float64), grid)
        assert of_double.value.dtype == jnp.float64


def _reference_score(y, t):
    return OU.reference.score(y)


def test_one_probe_does_not_tell_its_error():
    found = log_prob(OU, mixture_score(OU), draws(5), steps=20, method=Flow(probes=1))
    assert np.isfinite(found.value).all()
    assert np.isnan(found.standard_error).all()


def test_sums_keep_what_rounding_would_lose():
    """10,000 terms of 1e-4 beside 1e4, of which float32 resolves 1e-3."""

    def step(carry, term):
        return likelihood._add(*carry, term), None

    terms = jnp.full(10_000, 1e-4, jnp.float32)
    start = jnp.float32(1e4), jnp.float32(0)
    (total, lost), _ = jax.jit(lambda start: jax.lax.scan(step, start, terms))(start)
    assert float(total) - float(lost) == pytest.approx(10_001, abs=2e-3)
    assert float(jax.lax.scan(lambda c, t: (c + t, None), start[0], terms)[0]) == 1e4


# --- simulated processes, other references, degenerate noise ---


@pytest.mark.parametrize(
    "reference",
    [
        references.mixture(WEIGHTS, MEANS, VARIANCES),
        references.student_t(2, degrees=3.0, scale=[0.5, 2.0]),
    ],
    ids=lambda r: type(r).__name__,
)
def test_langevin_noising_of_its_own_reference(reference):
    """Nothing moves: the score cancels the drift, with exact divergences and with probes."""
    process = processes.langevin(reference)
    x = np.asarray(reference.sample(jax.random.key(3), (50,)))
    expected = np.asarray(reference.log_prob(x))
    score = Partial(lambda r, y, t: r.score(y), reference)
    for method in (Flow(), Flow(probes=2)):
        found = log_prob(process, score, x, method=method)
        np.testing.assert_allclose(found.value, expected, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found.standard_error, 0, atol=1e-3)


def relaxation(reference, tilt, reach=6.0, size=2401, modes=40):
    """Score of Langevin noising in one dimension from p_0 = eta tilt, by the spectrum of it.

    h = p_t / eta solves dh/dt = (eta h')' / eta: symmetric finite volumes, whose eigenfunctions
    are then splined.
    """
    grid = np.linspace(-reach, reach, size)
    step = grid[1] - grid[0]
    eta, middle = (
        np.exp(np.asarray(reference.log_prob(at[:, None]), np.float64))
        for at in (grid, grid[:-1] + step / 2)
    )
    out = np.concatenate([middle, [0]]) + np.concatenate([[0], middle])
    values, vectors = scipy.linalg.eigh_tridiagonal(
        out / eta / step**2,
        -middle / np.sqrt(eta[1:] * eta[:-1]) / step**2,
        select="i",
        select_range=(0, modes - 1),
    )
    parts = vectors.T @ (np.sqrt(eta) * tilt(grid))
    spline = scipy.interpolate.CubicSpline(grid, vectors / np.sqrt(eta)[:, None] * parts)
    coefficients = jnp.asarray(spline.c, jnp.float32)  # [4, cells, modes], highest power first
    rates = jnp.asarray(values, jnp.float32)

    def score(reference, rates, coefficients, y, t):
        cell = jnp.clip(((y[:, 0] + reach) / step).astype(int), 0, size - 2)
        x = (y[:, :1] + reach) - cell[:, None] * step
        c = coefficients[:, cell]
        weights = jnp.exp(-rates[None] * t[:, None])
        h = jnp.sum((((c[0] * x + c[1]) * x + c[2]) * x + c[3]) * weights, axis=1)
        slope = jnp.sum(((3 * c[0] * x + 2 * c[1]) * x + c[2]) * weights, axis=1)
        return reference.score(y) + (slope / h)[:, None]

    return Partial(score, reference, rates, coefficients)


def test_langevin_noising_of_other_data():
    """Data that are eta (1 + 0.8 tanh y) up to a constant, with the score of the numerical law."""
    reference = references.mixture([0.4, 0.6], [[-1.0], [1.0]], [0.4, 0.3])
    process = processes.langevin(reference, horizon=18.0)
    fine = np.linspace(-8, 8, 20_001)
    mass = np.exp(np.asarray(reference.log_prob(fine[:, None]), np.float64))
    constant = np.trapezoid(mass * (1 + 0.8 * np.tanh(fine)), fine)
    score = relaxation(reference, lambda y: (1 + 0.8 * np.tanh(y)) / constant)
    x = np.linspace(-2.2, 2.4, 60)[:, None].astype(np.float32)
    expected = np.log((1 + 0.8 * np.tanh(x[:, 0])) / constant) + np.asarray(reference.log_prob(x))
    found = log_prob(process, score, x, steps=200)
    np.testing.assert_allclose(found.value, expected, rtol=0, atol=1e-3)


def test_degenerate_noise_gives_the_density_of_positions_and_velocities():
    """Critically damped: the noise drives velocities alone; N(m, C) stays normal."""
    process = processes.critically_damped(1, horizon=2.5)
    mean, covariance = np.array([0.8, 0.0]), np.diag([0.3, 0.04 * 0.25])

    def score(mean, covariance, y, t):
        kernel = process.kernel(t)
        a, root = kernel.scale.matrix, kernel.root.matrix
        total = a @ covariance[None] @ jnp.swapaxes(a, 1, 2) + root @ jnp.swapaxes(root, 1, 2)
        deviation = y - (a @ mean[None, :, None])[..., 0]
        return -jnp.linalg.solve(total, deviation[..., None])[:, 1:, 0]

    bound = Partial(score, jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32))
    normal = scipy.stats.multivariate_normal(mean, covariance)
    x = normal.rvs(50, random_state=0).astype(np.float32)
    found = log_prob(process, bound, x, steps=150)
    np.testing.assert_allclose(found.value, normal.logpdf(x), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match=r"drives 1 of 2; use likelihood\.Flow"):
        log_prob(process, bound, x, method=Bound())


# --- the bound ---


def test_the_bound_is_log_p_for_a_normal_law():
    """Of one variance, where nothing but errors of second order in the steps is lost."""
    process = processes.ornstein_uhlenbeck(2, variance=0.5, horizon=4.0)
    law = references.mixture([1.0], [[0.5, -0.3]], 0.1, covariance="tied_spherical")

    def score(mean, y, t):
        kernel = process.kernel(t)
        a, s = kernel.scale.value[:, None], kernel.root.value[:, None]
        return -(y - a * mean[None]) / (0.1 * a**2 + s**2)

    x = np.asarray(law.sample(jax.random.key(1), (100,)))
    run = {"steps": 200, "method": Bound(paths=16)}
    found = log_prob(process, Partial(score, law.means[0]), x, **run)
    gap = np.asarray(law.log_prob(x)) - found.value
    assert_mean(gap, 0, bias=2e-3)
    told = np.sqrt(np.mean(found.standard_error**2))
    assert told == pytest.approx(np.std(gap), rel=0.3)


def test_the_bound_of_a_simulated_process():
    """Langevin noising of its own reference: 0.05 nats are lost to 200 Euler steps."""
    reference = references.mixture(WEIGHTS, MEANS, VARIANCES)
    process = processes.langevin(reference)
    score = Partial(lambda r, y, t: r.score(y), reference)
    x = draws(100)
    gap = exact(x) - log_prob(process, score, x, method=Bound(paths=8)).value
    assert_mean(gap, 0.04, bias=0.04)


def _wrapped_normal_score(process, std, y, t):
    """Of angles N(3, std^2) modulo 2 pi, after Brownian motion: wrapped normal laws again."""
    kernel = process.kernel
    variance = 2 * t if kernel is None else kernel(t).root.value ** 2
    return wrapped_score(y - 3, jnp.sqrt(std**2 + variance), 2 * np.pi)


@pytest.mark.parametrize(
    "process",
    [processes.wrapped(2), processes.langevin(references.uniform_torus(2))],
    ids=lambda p: p.name,
)
def test_the_bound_on_a_torus(process):
    """Of wrapped normal angles, by SciPy's over images: its mean is at most 0.03 below, within 4.5
    standard errors."""
    x = np.random.default_rng(0).normal(3, 0.7, size=(60, 2))
    images = x[..., None] + 2 * np.pi * np.arange(-3, 4)
    density = scipy.stats.norm(3, 0.7).pdf(images).sum(axis=-1)
    x = (x + np.pi) % (2 * np.pi) - np.pi  # across the seam
    score = Partial(_wrapped_normal_score, process, jnp.float32(0.7))
    found = log_prob(process, score, x, smallest=1e-3, method=Bound(paths=8))
    assert_mean(found.value - np.log(density).sum(axis=-1), -0.015, bias=0.015)


def test_the_bound_is_below_log_p_and_importance_tightens_it():
    """Of a mixture under OU in 60 steps: -0.1 nats, and a third of it with 8 paths to a bound."""
    x, score = draws(100), mixture_score(OU)
    gaps = []
    for importance in (1, 8):
        method = Bound(paths=16, importance=importance)
        found = log_prob(OU, score, x, steps=60, method=method)
        gap = exact(x) - found.value
        error = np.sqrt(np.mean(found.standard_error**2) / len(x))
        assert np.mean(gap) > 3 * error
        gaps.append(np.mean(gap))
    assert gaps[1] < 0.5 * gaps[0] < 0.2


def test_a_wrong_score_lowers_the_bound_by_the_divergence_of_the_paths():
    """Girsanov: a score off by delta costs int g^2 |delta|^2 / 2 dt."""
    x, true = draws(60), mixture_score(OU)
    wrong = Partial(lambda true, y, t: true(y, t) + jnp.float32(0.4), true)
    method = Bound(paths=16)
    values = [log_prob(OU, s, x, steps=300, method=method).value for s in (true, wrong)]
    # The same noise in both: the difference has little variance.
    assert_mean(values[0] - values[1], 0.5 * 2 * 2 * 0.4**2 * 6.0, bias=0.06)


# --- refusals ---


def test_a_density_up_to_a_constant_is_refused_and_the_remedy_works():
    law = references.mixture([0.4, 0.6], [[-1.0], [1.0]], [0.2, 0.3])
    draws = law.sample(jax.random.key(0), (4000,))
    energy = references.energy(Partial(lambda m, y: 3.0 - m.log_prob(y), law), draws)
    x = np.linspace(-1, 1, 10)[:, None]
    score = Partial(lambda r, y, t: r.score(y), law)
    with pytest.raises(ValueError, match=r"Energy lacks its constant.*references\.normalised"):
        log_prob(processes.langevin(energy), score, x)
    proposal = references.mixture([1.0], [[0.2]], [1.2])
    known, error = references.normalised(jax.random.key(1), energy, proposal)
    found = log_prob(processes.langevin(known), score, x, steps=20)
    assert error < 0.03
    deviation = found.value - np.asarray(law.log_prob(x))
    assert np.abs(deviation).max() < 4.5 * error + 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": np.zeros((3, 5))}, "y=.* d = 2"),
        ({"y": np.full((3, 2), np.nan)}, r"y=.* not finite"),
        ({"condition": np.zeros(4)}, r"4 rows for 3 states"),
        ({"chunk": 0}, r"chunk=0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {"y": draws(3)} | options
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob(jax.random.key(0), mixture_score(OU), OU, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Flow, {"probes": -1}),
        (Flow, {"law": "uniform"}),
        (Flow, {"tolerance": 0.0}),
        (Bound, {"paths": 0}),
        (Bound, {"importance": 0}),
    ],
)
def test_options_out_of_range_are_named(method, options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        method(**options)


def test_a_uniform_law_of_levels_has_eight_bits():
    assert likelihood.bits_per_dim(-5 * np.log(256), 5) == pytest.approx(8)
