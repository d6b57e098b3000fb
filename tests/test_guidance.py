"""Guidance against the exact posterior of a mixture, with the exact score of its noised law.

VP knows no mixture; for Langevin noising the data are the reference, whose score is exact.
"""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import frames, guidance, measurements, processes, references, sampling, training
from ndsm_jax.codec import Latent
from ndsm_jax.evaluation.distances import energy_distance
from ndsm_jax.experiment import experiment
from ndsm_jax.guidance import Reconstruction, Replacement, Twisted
from ndsm_jax.integrators import time_grid
from ndsm_jax.processes import Known
from ndsm_jax.sampling.origin import components, noised, origin

KEY = jax.random.key(0)
SAMPLES = 400


def plane():
    """Three components in 2-D, two of them near one another."""
    means = np.array([[0.0, 0.0], [0.6, 1.2], [-1.5, 0.5]])
    return references.mixture([0.2, 0.3, 0.5], means, [0.05, 0.1, 0.15])


def space():
    """Three components in 16-D."""
    means = 0.3 * np.random.default_rng(1).normal(size=(3, 16))
    return references.mixture([0.2, 0.3, 0.5], means, [0.05, 0.1, 0.15])


def noised_score(data, process, y, t):
    """Score of a spherical mixture under a kernel N(a Y_0, s^2 I), at one time for all rows."""
    kernel = process.kernel(t[0])
    std = jnp.sqrt((kernel.scale.value * data.factor) ** 2 + kernel.root.value**2)
    means = kernel.scale.value * data.means
    law = dataclasses.replace(data, means=means, factor=std, precision_factor=1 / std)
    return law.score(y)


def own_score(data, y, t):
    return data.score(y)


def vp(data):
    process = processes.variance_preserving(data.dim)
    return process, Partial(noised_score, data, process)


def langevin(data):
    return processes.langevin(data), Partial(own_score, data)


SDE = sampling.ReverseSDE()
HALF = measurements.given([0.3, np.nan])
SUMS = measurements.linear(
    np.random.default_rng(2).normal(size=(6, 16)),
    np.random.default_rng(3).normal(size=6) * 0.3,
    noise=0.2,
)


@partial(jax.jit, static_argnames="num")
def run(score, process, grid, guide, num):
    """Samples [num, d], and each population's log evidence."""
    index = jnp.arange(num * guide.particles, dtype=jnp.uint32)
    start = sampling.start_components(KEY, index, guide.start_log_weights(process.reference))
    x = sampling.start_states(KEY, index, process.reference, start)
    keys = jax.vmap(partial(sampling.sample_keys, KEY))(index)[2]
    state = sampling.reverse(keys, score, process, x, grid, guide).state
    evidence = jnp.zeros(num)
    if isinstance(guide, Twisted):
        evidence = guide.log_evidence(process, score, state, grid[1])
    return guide.finish(process, score, keys, state, grid[1]), evidence


def guided(make, data, guide, *, steps=60, num=SAMPLES):
    process, score = make(data)
    guide.check(process)
    grid = jnp.asarray(time_grid(process, steps))
    guide, _ = guide.plan(process, jnp.flip(grid[1:]))
    rows = guide.measurement.of(num).rows(
        lambda a: jnp.asarray(np.repeat(a, guide.particles, axis=0), jnp.float32)
    )
    guide = dataclasses.replace(guide, measurement=rows)
    return map(np.asarray, run(score, process, grid, guide, num))


CASES = {
    "VP, a coordinate in 2-D": (vp, plane(), HALF),
    "Langevin, a coordinate in 2-D": (langevin, plane(), HALF),
    "VP, sums in 16-D": (vp, space(), SUMS),
    "Langevin, sums in 16-D": (langevin, space(), SUMS),
}


def posterior(data, measurement, num=SAMPLES):
    law = references.conditional(data, measurement)
    x = np.asarray(law.sample(jax.random.key(7), (num,)))[:, 0]
    return law, x


def component_share(data, x, k):
    return np.asarray(data.responsibilities(jnp.asarray(x)))[:, k]


@pytest.mark.parametrize("case", CASES)
def test_particles_have_the_posterior(case):
    """400 samples of 16 particles each: mean, second moments and the components' weights within 4.5
    standard errors and 0.02 of the analytic ones (0.02: finite steps and particles); the energy
    distance to 400 exact draws below 3 times the mean of 20 such distances between exact draws; and
    the evidence, whose estimates are unbiased, within 4.5 standard errors and 5 %."""
    make, data, measurement = CASES[case]
    law, exact = posterior(data, measurement)
    sampler = SDE if make is vp else sampling.MultistepSDE()
    x, evidence = guided(make, data, Twisted(sampler=sampler, measurement=measurement))
    mean, covariance = np.asarray(law.mean())[0], np.asarray(law.covariance())[0]
    assert_mean(x, mean, bias=0.02)
    apart = x - mean
    assert_mean(apart[:, :, None] * apart[:, None, :], covariance, bias=0.02)
    others = np.asarray(law.sample(jax.random.key(8), (20, SAMPLES)))[:, :, 0]
    floor = np.mean([energy_distance(other, exact) for other in others])
    assert energy_distance(x, exact) < 3 * floor
    for k in range(3):
        expected = component_share(data, np.concatenate(others), k).mean()
        assert_mean(component_share(data, x, k), expected, bias=0.02)
    assert_mean(np.exp(evidence - float(law.log_evidence[0])), 1.0, bias=0.05)


def test_reconstruction_is_exact_where_its_likelihood_is():
    """Langevin noising, data = reference, components apart: moments within 4.5 standard errors and
    0.03 of the posterior's."""
    data = space()
    law, _ = posterior(data, SUMS)
    x, _ = guided(langevin, data, Reconstruction(sampler=SDE, measurement=SUMS))
    assert_mean(x, np.asarray(law.mean())[0], bias=0.03)
    apart = x - np.asarray(law.mean())[0]
    second = apart[:, :, None] * apart[:, None, :]
    assert_mean(second, np.asarray(law.covariance())[0], bias=0.03)


def test_replacement_needs_its_repeats():
    """VP in 2-D, a coordinate given: the error of the other's mean and of its variance, with 10
    repeats, stays below 0.1 + 4.5 standard errors, and that of the law, as an energy distance, is
    below a half of that without."""
    data = plane()
    law, exact = posterior(data, HALF)
    distances = []
    for repeats in (1, 10):
        guide = Replacement(sampler=SDE, measurement=HALF, repeats=repeats)
        x, _ = guided(vp, data, guide)
        np.testing.assert_allclose(x[:, 0], 0.3, atol=1e-6)
        distances.append(energy_distance(x, exact))
    assert distances[1] < distances[0] / 2, distances
    assert_mean(x, np.asarray(law.mean())[0], bias=0.1)
    assert_mean((x - np.asarray(law.mean())[0])[:, 1] ** 2, law.covariance()[0, 1, 1], bias=0.1)


def test_rows_have_measurements_and_chunks_of_their_own():
    """Every row with its own gaps: exact coordinates are exact, whatever the chunk; a row without
    any is a sample as without guidance."""
    data = plane()
    process, score = langevin(data)
    known = np.array([[0.3, np.nan], [np.nan, 1.0], [0.1, 0.9], [np.nan, np.nan], [-1.4, np.nan]])
    measurement = measurements.given(known)
    options = {"score": score, "process": process, "num": 5, "grid": time_grid(process, 20)}
    guide = Twisted(sampler=SDE, measurement=measurement, particles=4)
    whole, parts = (
        sampling.sample(KEY, sampler=guide, chunk=chunk, **options) for chunk in (20, 8)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-4)
    read = ~np.isnan(known)
    np.testing.assert_allclose(whole[read], known[read], atol=1e-6)
    guide = Reconstruction(sampler=SDE, measurement=measurement)
    x = sampling.sample(KEY, sampler=guide, **options)
    free = sampling.sample(KEY, sampler=SDE, **options)
    np.testing.assert_allclose(x[3], free[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_origin_of_the_langevin_dynamics_of_a_gaussian(kind, rng):
    """Data N(m, S) noised by exp(-t Sigma^-1): the mean of Y_0 given Y_t is that of the joint
    normal law, and where the data are the reference the covariance too."""
    a = rng.normal(size=(3, 3)) * 0.4
    if kind == "full":
        sigma = a @ a.T + 0.2 * np.eye(3)
        mixture = references.mixture([1.0], np.ones((1, 3)), sigma[None], covariance=kind)
    else:
        u = np.linalg.qr(a).Q[:, :1]
        sigma = 0.2 * np.eye(3) + 0.5 * u @ u.T
        low = references.LowRank(np.array([0.2]), u[None], np.array([[0.7]]))
        mixture = references.mixture([1.0], np.ones((1, 3)), low, covariance=kind)
    process = processes.langevin(mixture)
    t, y = 0.2, rng.normal(size=(4, 3)).astype(np.float32)
    decay = scipy.linalg.expm(-t * np.linalg.inv(sigma))
    noise = sigma - decay @ sigma @ decay
    for mean, spread in [(np.ones(3), sigma), (np.zeros(3), np.diag([0.1, 0.5, 1.0]))]:
        total = decay @ spread @ decay + noise
        at = np.ones(3) + decay @ (mean - 1)
        score = jnp.asarray(-(y - at) @ np.linalg.inv(total), jnp.float32)
        law = origin(process, components(process), jnp.asarray(y), jnp.float32(t), score, error=0.0)
        expected = mean + (y - at) @ np.linalg.solve(total, decay @ spread)
        np.testing.assert_allclose(law.means[:, 0], expected, atol=2e-4)
        if spread is sigma:
            left = sigma - sigma @ decay @ np.linalg.solve(total, decay @ sigma)
            found = [law.covariances.mv(jnp.asarray(e[None], jnp.float32))[0] for e in np.eye(3)]
            np.testing.assert_allclose(np.stack(found), left, atol=1e-5)


def test_origin_under_a_kernel_is_tweedies_and_shrinks_where_the_score_errs(rng):
    """VP, a mixture: E[Y_0 | Y_t] by Bayes' rule, component by component. With an error it goes to
    that of N(0, I) as the signal goes: at the horizon nothing of the score is left."""
    data = plane()
    process, score = vp(data)
    y = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    for t in (0.05, 0.4):
        kernel = process.kernel(jnp.float32(t))
        a, s = float(kernel.scale.value), float(kernel.root.value)
        variances = np.asarray(data.factor[:, 0], np.float64) ** 2
        means, total = np.asarray(data.means), a**2 * variances + s**2
        joint = np.stack(
            [
                np.log(w) + scipy.stats.multivariate_normal(a * m, v * np.eye(2)).logpdf(y)
                for w, m, v in zip([0.2, 0.3, 0.5], means, total, strict=True)
            ]
        )
        r = np.exp(joint - np.logaddexp.reduce(joint))
        gains = (a * variances / total)[:, None, None]
        of_components = means[:, None] + gains * (y[None] - a * means[:, None])
        expected = np.einsum("kb,kbd->bd", r, of_components)
        u = score(y, jnp.full(5, t))
        law = origin(process, None, y, jnp.float32(t), u, error=0.0)
        np.testing.assert_allclose(law.mean(), expected, rtol=2e-3, atol=2e-3)
    end = process.horizon
    law = origin(process, None, y, end, score(y, jnp.full(5, end)) + 1.0, error=0.1)
    np.testing.assert_allclose(law.mean(), jnp.zeros((5, 2)), atol=1.0)
    exact = origin(process, None, y, end, score(y, jnp.full(5, end)) + 1.0, error=0.0)
    assert float(jnp.abs(exact.mean()).min()) > 50


@pytest.mark.parametrize("kind", ["kernel", "mixture", "clock"])
def test_noising_on_from_a_state(kind, rng):
    """20,000 draws of Y_end given Y_start: mean and covariance of the exact transition, within 4.5
    standard errors. `clock`: the Langevin dynamics of one Gaussian, of which the process does not
    know that it is one of a mixture."""
    sigma = np.array([[0.5, 0.2], [0.2, 0.3]]) if kind == "mixture" else 0.4 * np.eye(2)
    process = processes.langevin(
        references.mixture([1.0], np.ones((1, 2)), sigma[None], covariance="full")
    )
    start, end = 0.1, 0.25
    decay, centre = scipy.linalg.expm(-(end - start) * np.linalg.inv(sigma)), np.ones(2)
    covariance = sigma - decay @ sigma @ decay
    if kind == "kernel":
        process = processes.variance_preserving(2)
        before, after = (process.kernel(jnp.float32(t)) for t in (start, end))
        ratio = float(after.scale.value / before.scale.value)
        left = float(after.root.value) ** 2 - (ratio * float(before.root.value)) ** 2
        decay, covariance, centre = ratio * np.eye(2), left * np.eye(2), np.zeros(2)
    elif kind == "clock":
        process = dataclasses.replace(process, known=Known())
    y = np.array([0.3, -0.5])
    keys = jax.random.split(KEY, 20_000)
    args = keys, jnp.uint32(0), jnp.tile(jnp.asarray(y, jnp.float32), (20_000, 1))
    x = jax.jit(noised)(process, components(process), *args, jnp.float32(start), jnp.float32(end))
    mean = centre + decay @ (y - centre)
    assert_mean(x, mean, bias=1e-4)
    apart = np.asarray(x, np.float64) - mean
    assert_mean(apart[:, :, None] * apart[:, None, :], covariance, bias=1e-4)


def test_on_a_torus_a_reading_is_one_of_its_images(rng):
    """The likelihood of an angle is that of the wrapped normal law, the sum over 41 images; it does
    not change by a period; and a given angle of a uniform law leaves the other one uniform."""
    process = processes.wrapped(2)
    period, t = process.known.period, jnp.float32(0.6)
    measurement = measurements.given([2.5, np.nan])
    y = jnp.asarray(rng.uniform(-3, 3, size=(6, 2)), jnp.float32)
    rows = measurement.of(6).rows(lambda a: jnp.asarray(a, jnp.float32))

    def log_likelihood(y):
        law = origin(process, None, y, t, jnp.zeros_like(y))
        return guidance.log_likelihood(process, rows, law), law

    found, law = log_likelihood(y)
    std = float(law.covariances.variances[0, 0]) ** 0.5
    images = 2.5 + period * np.arange(-20, 21)
    expected = scipy.stats.norm(np.asarray(y)[:, :1], std).logpdf(images[None])
    np.testing.assert_allclose(found, np.logaddexp.reduce(expected, axis=1), atol=1e-4)
    np.testing.assert_allclose(log_likelihood(y + period)[0], found, atol=1e-4)

    guide = Reconstruction(sampler=SDE, measurement=measurement)
    score = Partial(lambda y, t: jnp.zeros_like(y))
    x = sampling.sample(KEY, score, process, 500, grid=time_grid(process, 40), sampler=guide)
    turns = x / period
    np.testing.assert_allclose((turns[:, 0] - 2.5 / period + 0.5) % 1, 0.5, atol=1e-4)
    assert scipy.stats.kstest(turns[:, 1] % 1, "uniform").pvalue > 1e-3


def test_what_cannot_be_guided_is_refused():
    data = plane()
    process, score = langevin(data)
    both = partial(Reconstruction, measurement=HALF)
    damped = processes.critically_damped(1)
    wrapped = processes.wrapped(2)
    refused = [
        (both(sampler=sampling.AdaptiveFlow()), process, "their own steps"),
        (both(sampler=SDE), damped, "noise drives 1 of 2"),
        (both(sampler=SDE), processes.variance_preserving(3), "measurement of 2 coordinates"),
        (Twisted(sampler=sampling.HeunFlow(), measurement=HALF), process, "no density"),
        (
            Replacement(sampler=SDE, measurement=measurements.given([0.0, 1.0], noise=0.1)),
            process,
            "these have noise",
        ),
        (
            Reconstruction(sampler=SDE, measurement=measurements.linear([[1.0, 1.0]], [0.0])),
            wrapped,
            "only coordinates",
        ),
    ]
    for guide, of, message in refused:
        with pytest.raises(ValueError, match=message):
            guide.check(of)
    draw = partial(sampling.sample, KEY, score, process, 4, grid=10)
    with pytest.raises(ValueError, match="components and hooks"):
        draw(sampler=Twisted(sampler=SDE, measurement=HALF), components=np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="3 rows for 4 samples"):
        draw(sampler=both(sampler=SDE, measurement=measurements.given(np.zeros((3, 2)))))
    with pytest.raises(ValueError, match="repeats=0"):
        Replacement(sampler=SDE, measurement=HALF, repeats=0)


def framed(kind, rng):
    """A frame, data x [5, 3], their states and conditions."""
    x = rng.normal(size=(5, 3)) * [1e3, 1e-3, 1.0] + [1e4, 0.0, 2.0]
    standardised = frames.standardised(x)
    if kind == "standardised":
        return standardised, x, standardised.prepare(x), None
    component = np.array([0, 1, 1, 0, 1])
    covariance, c = {
        "spherical": ("spherical", [0.5, 2.0]),
        "full": ("full", [np.eye(3) + 0.5, np.diag([0.3, 1.0, 2.0])]),
        "low_rank": (
            "low_rank",
            references.LowRank(
                np.array([0.5, 0.2]), np.eye(3)[None, :, :1].repeat(2, 0), np.array([[2.0], [1.0]])
            ),
        ),
    }[kind]
    mixture = references.mixture([0.5, 0.5], rng.normal(size=(2, 3)), c, covariance=covariance)
    inner = frames.OfComponent(mixture=mixture)
    y = mixture.standardise(jnp.asarray(component), jnp.asarray(standardised.prepare(x)))
    return frames.chained(standardised, inner), x, np.asarray(y), component


@pytest.mark.parametrize("kind", ["standardised", "spherical", "full", "low_rank"])
def test_a_frame_says_what_a_measurement_of_data_says_of_states(kind, rng):
    """Exact readings of data, seen from the states: these states have them."""
    frame, x, y, condition = framed(kind, rng)
    gaps = np.where(rng.uniform(size=x.shape) < 0.4, np.nan, x)
    a = rng.normal(size=(2, 3)) / [1e3, 1e-3, 1.0]
    for m in (measurements.given(gaps), measurements.linear(a, x @ a.T)):
        seen = frame.measured(m, condition)
        readings = np.asarray(seen.readings(y))
        read = np.isfinite(seen.variance)
        assert read.sum() == np.isfinite(m.variance).sum()
        np.testing.assert_allclose(readings[read], seen.value[read], atol=1e-4)


def test_drawn_in_the_units_of_the_data_from_components_of_a_frame(rng):
    """A network that knows nothing yet, under a frame of components: what is given is given back to
    the last digit, each sample's component is one that its measurement allows, and a measurement of
    other data is refused."""
    frame, _, _, _ = framed("full", rng)
    mixture = frames.component_mixture(frame)
    far = dataclasses.replace(mixture, means=jnp.asarray([[-9.0, 0, 0], [9.0, 0, 0]]))
    frame = frames.chained(frame.outer, frames.OfComponent(mixture=far))
    model = experiment(processes.ornstein_uhlenbeck(3), frame=frame, objective="dsm", sample_grid=8)
    state = training.init_state(model, seed=0)
    known = np.full((6, 3), np.nan)
    known[:, 0] = frame.outer.leave(np.array([[-9.0, 0, 0], [9.0, 0, 0]] * 3))[:, 0]
    for method in (Reconstruction, partial(Twisted, particles=2)):
        options = {"guidance": method, "progress": False}
        x = training.draw(model, state, 6, measurement=measurements.given(known), **options)
        np.testing.assert_array_equal(x[:, 0], known[:, 0])
        nearest = np.asarray(far.most_likely(jnp.asarray(frame.outer.prepare(x))))
        np.testing.assert_array_equal(nearest, [0, 1] * 3)
    with pytest.raises(ValueError, match="2 coordinates, and items of the data have 3"):
        training.draw(model, state, 6, measurement=HALF, progress=False)


def test_frames_that_are_not_affine_refuse():
    latent = Latent(codec=None)
    with pytest.raises(ValueError, match="autoencoder"):
        latent.measured(HALF)
    augmented = frames.Augmented(std=jnp.float32(1.0)).measured(HALF)
    assert augmented.dim == 4
    readings = np.asarray(augmented.readings(np.array([[0.3, 1.0, 2.0, 3.0]])))
    read = np.isfinite(augmented.variance)
    np.testing.assert_allclose(readings[read], augmented.value[read], rtol=1e-6)


def test_every_guidance_is_named():
    found = inspect.getmembers(guidance, inspect.isclass)
    kinds = {k for _, k in found if issubclass(k, guidance.Guidance) and k is not guidance.Guidance}
    assert set(guidance.GUIDANCES.values()) == kinds


def test_a_noised_state_has_the_law_of_a_component_and_its_noise():
    """From one state half-way between two that overlap: moments of the exact mixture of draws."""
    mixture = references.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0])
    process, num = processes.langevin(mixture), 40_000
    keys = jax.random.split(jax.random.key(3), num)
    y = jnp.zeros((num, 2))
    found = np.asarray(
        noised(process, components(process), keys, jnp.uint32(0), y, jnp.float32(0), jnp.float32(1))
    )
    kept, added = np.exp(-1.0), -np.expm1(-2.0)
    # mu + (y - mu) kept: +-(1 - kept), either one in two.
    exact = np.array([added + (1 - kept) ** 2, added])
    np.testing.assert_allclose(found.var(axis=0), exact, rtol=5 * (2 / num) ** 0.5)
    assert abs(np.cov(found.T)[0, 1]) < 5 * np.sqrt(exact.prod() / num)


def test_replacement_refuses_a_sampler_that_goes_up():
    process = processes.langevin(plane())
    sampler = Replacement(
        sampler=sampling.RestartFlow(), measurement=measurements.given([[0.5, np.nan]])
    )
    with pytest.raises(ValueError, match="RestartFlow's go up as well"):
        sampling.sample(KEY, lambda y, t: -y, process, 5, grid=30, sampler=sampler)


@pytest.mark.parametrize("kind", [Replacement, Reconstruction, Twisted])
def test_guidance_by_readings_of_64_bits(kind):
    process = processes.langevin(plane())
    with jax.enable_x64(True):
        measurement = measurements.given(np.array([[0.5, np.nan]], np.float64))
        sampler = kind(sampler=sampling.MultistepSDE(), measurement=measurement)
        found = sampling.sample(
            jax.random.key(0), lambda y, t: plane().score(y), process, 4, grid=12, sampler=sampler
        )
    np.testing.assert_allclose(found[:, 0], 0.5, atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_replacement_counts_the_evaluations_that_it_makes(churn):
    """Calls of the score from within the compiled loop."""
    calls = []

    def score(y, t):
        jax.debug.callback(lambda: calls.append(1))
        return -y

    process = processes.variance_preserving(2)
    sampler = Replacement(
        sampler=sampling.HeunFlow(churn=churn),
        measurement=measurements.given([[0.5, np.nan]]),
        repeats=3,
    )
    sampling.sample(KEY, score, process, 1, grid=11, sampler=sampler)
    jax.effects_barrier()
    # Without churn the state that says where readings come from is the flow's own, and XLA, which
    # a callback keeps from it, evaluates the score once for both.
    assert len(calls) - (0 if churn else 3 * 10) == sampler.evaluations(11)
