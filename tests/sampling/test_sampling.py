"""Samplers with exact scores, where the law of the result is known."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import processes, references, sampling
from ndsm_jax.integrators import time_grid
from ndsm_jax.sampling import (
    AdaptiveFlow,
    AnnealedLangevin,
    HeunFlow,
    MultistepFlow,
    MultistepSDE,
    PredictorCorrector,
    RestartFlow,
    ReverseSDE,
)

PROCESS = processes.ornstein_uhlenbeck(2, variance=0.5, horizon=2.5)
GRID = time_grid(PROCESS, 150, smallest_variance=1e-3)
WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
VARIANCES = np.array([0.05, 0.1])


EXACT = ("reverse_sde", "multistep_sde", "ancestral", "heun_flow", "multistep_flow")
"""Samplers that end in the law of the data, but for the errors of their steps."""


def kernel(process, t):
    """a(t) and s(t) of a scalar kernel."""
    gaussian = process.kernel(t)
    return gaussian.scale.value, gaussian.root.value


def exact_score(weights, means, variances):
    """Score of OU noising of a spherical mixture: at time t it is again a mixture."""

    def score(y, t):
        scale, std = kernel(PROCESS, t[..., None])
        v = scale**2 * jnp.asarray(variances, jnp.float32)[None] + std**2
        difference = y[:, None, :] - scale[..., None] * jnp.asarray(means, jnp.float32)[None]
        log_joint = (
            jnp.log(jnp.asarray(weights, jnp.float32))[None]
            - 0.5 * jnp.sum(difference**2, -1) / v
            - jnp.log(v)
        )
        r = jax.nn.softmax(log_joint, axis=-1)
        return -jnp.sum((r / v)[..., None] * difference, axis=1)

    return score


@pytest.fixture(params=EXACT)
def sampler(request):
    return sampling.SAMPLERS[request.param]()


def draw(sampler, score, *, seed=0, num=8000):
    return sampling.sample(
        jax.random.key(seed), score, PROCESS, num, grid=GRID, sampler=sampler, chunk=4000
    )


def test_gaussian_moments_are_recovered(sampler):
    """N(m, 0.2 I): mean and variance within 4.5 standard errors of 8,000 samples, plus 0.01 for the
    discretisation (5 % of the variance)."""
    mean = np.array([[0.6, -0.4]])
    x = draw(sampler, exact_score([1.0], mean, [0.2]))
    assert_mean(x, mean[0], bias=0.01)
    assert_mean((x - mean) ** 2, [0.2, 0.2], bias=0.01)


@pytest.mark.parametrize(
    "sampler",
    [
        *(sampling.SAMPLERS[name]() for name in EXACT),
        sampling.ddim(),
        sampling.ddim(eta=0.5),
        PredictorCorrector(),
        RestartFlow(restarts=2),
    ],
    ids=repr,
)
def test_mixture_moments_and_fractions_are_recovered(sampler):
    """Within 4.5 standard errors of 8,000 samples, plus what the steps may cost."""
    x = draw(sampler, exact_score(WEIGHTS, MEANS, VARIANCES))
    assert_mean(x[:, 0] > 0, WEIGHTS[1], bias=0.005)
    assert_mean(x, WEIGHTS @ MEANS, bias=0.01)
    second = WEIGHTS @ (MEANS**2 + VARIANCES[:, None])
    assert_mean(x**2, second, bias=0.015)


def test_probability_flow_and_reverse_sde_have_the_same_law():
    """Two-sample Kolmogorov-Smirnov statistic of four projections, 8,000 independent samples each.

    It exceeds c = sqrt(-ln(p / 2) / 2) sqrt(2 / n) = 0.035 with probability p = 1e-4 under equal
    laws; 0.01 is allowed for the discretisation of the two.
    """
    score = exact_score(WEIGHTS, MEANS, VARIANCES)
    a, b = draw(ReverseSDE(), score, seed=0), draw(HeunFlow(), score, seed=1)
    critical = np.sqrt(-np.log(1e-4 / 2) / 2) * np.sqrt(2 / 8000)
    for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
        assert scipy.stats.ks_2samp(a @ direction, b @ direction).statistic < critical + 0.01


def test_langevin_started_from_its_own_law_stays_there(sampler):
    """Nonlinear noising of stationary data: the exact score is the prior's own."""
    prior = references.mixture(WEIGHTS, MEANS, VARIANCES)
    process = processes.langevin(prior)
    grid = time_grid(process, 200)
    x = sampling.sample(
        jax.random.key(1), process.drift, process, 8000, grid=grid, sampler=sampler, chunk=8000
    )
    assert_mean(x, WEIGHTS @ MEANS, bias=0.01)
    assert_mean(x**2, WEIGHTS @ (MEANS**2 + VARIANCES[:, None]), bias=0.015)


def test_a_sample_depends_on_its_index_alone(sampler):
    score = exact_score(WEIGHTS, MEANS, VARIANCES)
    options = {"grid": GRID, "sampler": sampler}
    whole = sampling.sample(jax.random.key(3), score, PROCESS, 40, chunk=40, **options)
    parts = sampling.sample(jax.random.key(3), score, PROCESS, 40, chunk=16, **options)
    fewer = sampling.sample(jax.random.key(3), score, PROCESS, 18, chunk=5, **options)
    np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole[:18], fewer, rtol=1e-3, atol=1e-4)
    assert not np.allclose(whole[0], whole[1])


def test_an_ancestral_step_has_the_published_posterior():
    """Mean and variance of 20,000 steps against 2006.11239, Eq. 6 and 7, in NumPy: alpha is the
    squared ratio of the scales, beta = 1 - alpha, as VP has it."""
    process, ends = processes.variance_preserving(2), (0.5, 0.45)
    x = np.array([0.7, -1.2])
    (scale, std), (last_scale, last_std) = (vp_kernel(t) for t in ends)
    alpha = (scale / last_scale) ** 2
    denoised = (x - std**2 * x) / scale  # the score -x
    mean = last_scale * (1 - alpha) / std**2 * denoised + np.sqrt(alpha) * last_std**2 / std**2 * x
    y, count, *_ = run(
        sampling.ancestral(),
        lambda y, t: -y,
        process,
        np.broadcast_to(x, (20_000, 2)),
        np.array([0.0, *ends[::-1]]),
    )
    y = np.asarray(y, np.float64)
    assert count == 1
    assert_mean(y, mean, bias=1e-4)
    assert_mean((y - mean) ** 2, np.full(2, last_std**2 / std**2 * (1 - alpha)), bias=1e-4)


def test_annealed_langevin_recovers_gaussian_moments():
    """NCSN's process, N(m, 0.2 I) and its exact score: 60 levels down to 0.01. The variance
    remembers the levels above, for which 10 % of bias are allowed."""
    process = processes.variance_exploding(2, sigma_min=0.01, sigma_max=5.0)
    mean = jnp.array([[0.6, -0.4]])
    x = sampling.sample(
        jax.random.key(0),
        lambda y, t: (mean - y) / (0.2 + process.clock.variance(t)[:, None]),
        process,
        4000,
        grid=time_grid(process, 60, smallest_variance=1e-6),
        sampler=AnnealedLangevin(langevin_steps=5),
        chunk=4000,
    )
    assert_mean(x, mean[0], bias=0.02)
    assert_mean((x - mean) ** 2, [0.2, 0.2], bias=0.02)


def ou_kernel(t):
    return np.exp(-2 * t), np.sqrt(0.5 * (1 - np.exp(-4 * t)))


def vp_kernel(t):
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    return np.exp(-0.5 * integral), np.sqrt(1 - np.exp(-integral))


DATA_MEAN, DATA_VARIANCE = np.array([0.6, -0.4]), 0.2
POINTS = np.array([[0.5, 0.1], [-0.3, 0.8]])


def denoise_gaussian(process, closed_form, t):
    """Denoised POINTS under the exact score of noised N(DATA_MEAN, 0.2 I), and E[Y_0 | Y_t]."""
    scale, std = closed_form(t)
    variance = scale**2 * DATA_VARIANCE + std**2
    residual = POINTS - scale * DATA_MEAN
    score = lambda y, t: jnp.asarray(-residual / variance, y.dtype)  # noqa: E731
    actual = sampling.denoise(score, process, jnp.asarray(POINTS, jnp.float32), jnp.float32(t))
    return actual, DATA_MEAN + scale * DATA_VARIANCE / variance * residual


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.5])
@pytest.mark.parametrize(
    ("process", "closed_form"),
    [(PROCESS, ou_kernel), (processes.variance_preserving(2), vp_kernel)],
    ids=["ornstein_uhlenbeck", "variance_preserving"],
)
def test_denoise_is_the_posterior_mean_of_linear_processes(process, closed_form, t):
    """Gaussian data, whose posterior mean has a closed form."""
    np.testing.assert_allclose(*denoise_gaussian(process, closed_form, t), atol=1e-4)


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.5])
def test_denoise_is_exact_for_the_langevin_dynamics_of_a_gaussian(t):
    """The same process without its kernel: the local kernel is the exact one."""
    process = processes.langevin(PROCESS.reference)
    np.testing.assert_allclose(*denoise_gaussian(process, ou_kernel, t), atol=1e-4)


def test_denoise_is_one_step_backwards_to_first_order_for_any_drift():
    """x - t b + v score with b = -x^3, g = 1.5: the rest of the local kernel is of order t^2.

    Halving t must divide the remainder by 4 (within 10 %).
    """
    process = processes.process(
        lambda y, t: -(y**3),
        lambda t: jnp.full_like(t, 1.5),
        references.standard_normal(2),
        horizon=1.0,
    )
    x = jnp.asarray(POINTS, jnp.float32)

    def remainder(t):
        first_order = (
            POINTS + t * POINTS**3 - float(process.clock.variance(jnp.float32(t))) * POINTS
        )
        return sampling.denoise(lambda y, t: -y, process, x, jnp.float32(t)) - first_order

    ratio = np.asarray(remainder(0.04)) / np.asarray(remainder(0.02))
    np.testing.assert_allclose(ratio, 4.0, rtol=0.1)


def kernel_at(process, t):
    """The kernel's (a, s) at a time as floats."""
    return tuple(float(v) for v in kernel(process, jnp.float32(t)))


def exact_gaussian_flow(process, x, t, t_next):
    """Probability flow between two times of N(DATA_MEAN, DATA_VARIANCE I): it maps quantiles."""
    (a, s), (a_next, s_next) = kernel_at(process, t), kernel_at(process, t_next)
    deviation = np.sqrt(a**2 * DATA_VARIANCE + s**2)
    deviation_next = np.sqrt(a_next**2 * DATA_VARIANCE + s_next**2)
    return a_next * DATA_MEAN + deviation_next / deviation * (x - a * DATA_MEAN)


def gaussian_score(process):
    """Exact score of N(DATA_MEAN, DATA_VARIANCE I) noised by a linear process."""

    def score(y, t):
        a, s = kernel(process, t[..., None])
        return -(y - a * jnp.asarray(DATA_MEAN[None], y.dtype)) / (a**2 * DATA_VARIANCE + s**2)

    return score


VP = processes.variance_preserving(2)
"""Linear processes with their kernel, and the same ones without it, as if they were nonlinear."""
CASES = {
    "ornstein_uhlenbeck": (PROCESS, PROCESS),
    "variance_preserving": (VP, VP),
    "langevin": (PROCESS, processes.langevin(PROCESS.reference, horizon=2.5)),
    "vp_without_kernel": (
        VP,
        processes.process(VP.drift, VP.diffusion, VP.reference, horizon=1, clock=VP.clock),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def run(sampler, score, process, x, grid, **options):
    """A sampler alone, down an increasing grid from its end to its second time, in one trace."""
    keys = jax.random.split(jax.random.key(0), len(x))
    reverse = jax.jit(
        lambda x, grid: sampling.reverse(keys, score, process, x, grid, sampler, **options)
    )
    return reverse(jnp.asarray(x, jnp.float32), jnp.asarray(grid, jnp.float32))


FLOWS = pytest.mark.parametrize("flow", [HeunFlow, MultistepFlow])


def test_noise_that_is_added_again():
    """EDM's churn (2206.00364, Algorithm 2, lines 4 to 6) for variance exploding noise: from sigma
    to (1 + gamma) sigma by noise of the difference, nothing else."""
    process = processes.variance_exploding(2, sigma_min=0.01, sigma_max=5.0)
    t, later = jnp.float32(0.5), jnp.float32(0.6)
    sigma, more = (float(process.clock.std(at)) for at in (t, later))
    z = jax.random.normal(jax.random.key(0), (2, 2))
    x = jnp.asarray(POINTS, jnp.float32)
    expected = np.asarray(x) + np.sqrt(more**2 - sigma**2) * np.asarray(z)
    np.testing.assert_allclose(sampling.noised(process, x, t, later, z), expected, rtol=1e-4)


def test_restarts_contract_what_a_wrong_start_costs():
    """Started with four times the variance at T, the flow of Gaussian data keeps the factor R = 4.

    Noised from t to t' its excess R - 1 becomes (R - 1) (a'/a)^2 V / V', V and V' the variances of
    the data at t and t', by every restart. 4,000 samples of two coordinates: the standard error of
    R is R / 63; 4.5 of them, and 0.03 for the steps.
    """
    score, grid = gaussian_score(PROCESS), time_grid(PROCESS, 40, smallest_variance=1e-2)
    start = 2 * jnp.sqrt(0.5) * jax.random.normal(jax.random.key(0), (4000, 2))

    def law(t):
        a, s = kernel_at(PROCESS, t)
        return a, a**2 * DATA_VARIANCE + s**2

    down = grid[:0:-1]
    (a, v), (a_up, v_up) = law(down[30]), law(down[19])  # 0.2 and 0.5 of 38 intervals
    factor = (a_up / a) ** 2 * v / v_up
    end, variance = law(grid[1])
    for sampler, restarts in ((HeunFlow(), 0), (RestartFlow(), 1), (RestartFlow(restarts=3), 3)):
        x = np.asarray(run(sampler, score, PROCESS, start, grid).x)
        found = ((x - end * DATA_MEAN) ** 2).mean() / variance
        expected = 1 + 3 * factor**restarts
        assert abs(found - expected) < 4.5 * expected / 63 + 0.03, (restarts, found, expected)
    assert factor < 0.5


@FLOWS
@pytest.mark.parametrize("process", [PROCESS, VP], ids=lambda process: process.name)
def test_flows_have_order_two(flow, process):
    """Against the closed-form flow of Gaussian data, with 20, 40 and 80 steps of equal clock.

    The slope of log error over log step must be at least 1.8. The multistep method at the same
    number of steps, half the evaluations, stays below 1 % of the distance covered with 80.
    """
    score = gaussian_score(process)
    errors = []
    for steps in (20, 40, 80):
        grid = time_grid(process, steps, smallest_variance=1e-2)
        x = run(flow(), score, process, POINTS, grid).x
        expected = exact_gaussian_flow(process, POINTS, grid[-1], grid[1])
        errors.append(np.abs(np.asarray(x) - expected).max())
    assert np.log2(errors[0] / errors[2]) / 2 > 1.8, errors
    assert errors[2] < 0.01 * np.abs(expected - POINTS).max()


@pytest.mark.parametrize(
    "sampler",
    [
        ReverseSDE(),
        MultistepSDE(),
        HeunFlow(churn=0.5),
        MultistepFlow(churn=0.5),
        AnnealedLangevin(langevin_steps=3, langevin_length=0.1),
        PredictorCorrector(corrector_steps=2),
        RestartFlow(restarts=2),
    ],
)
def test_evaluations_are_counted(sampler):
    """One network call at run time for each evaluation that is stated, and none for churn."""
    calls = []

    def score(y, t):
        jax.debug.callback(lambda: calls.append(0))
        return -y

    x, count, *_ = run(sampler, score, PROCESS, POINTS, time_grid(PROCESS, 12))
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert len(calls) == count == sampler.evaluations(12) - 1


def test_the_network_is_traced_as_often_as_it_appears(sampler):
    """Once a step function (twice for Heun) and once for the denoising, whatever the grid."""
    traces = []

    def score(y, t):
        traces.append(0)
        return PROCESS.drift(y, t)

    bound = jax.tree_util.Partial(score)
    for seed in range(2):
        sampling.sample(
            jax.random.key(seed), bound, PROCESS, 4, grid=time_grid(PROCESS, 8), sampler=sampler
        )
    assert len(traces) == (3 if isinstance(sampler, HeunFlow) else 2)


def variance_error(sampler, process, linear, steps, *, num=40_000):
    """(variance of the sampler's result over the exact one) - 1, and the mean's error."""
    x = np.asarray(process.reference.sample(jax.random.key(7), (num,)))
    # Start exactly from p_T, which is not quite the prior.
    grid = time_grid(process, steps, smallest_variance=1e-2)
    a, s = kernel_at(linear, grid[-1])
    x = a * DATA_MEAN + np.sqrt(a**2 * DATA_VARIANCE + s**2) * x / x.std()
    out = np.asarray(run(sampler, gaussian_score(linear), process, x, grid).x)
    a, s = kernel_at(linear, grid[1])
    return out.var(0).mean() / (a**2 * DATA_VARIANCE + s**2) - 1, out.mean(0) - a * DATA_MEAN


def test_multistep_sde_keeps_the_marginal_with_few_steps(case):
    """20 steps, Gaussian data: variance within 4.5 standard errors (sqrt(2 / 80,000)) + 2.5 %.

    Euler-Maruyama on the same grid is wrong by more than three times as much.
    """
    linear, process = case
    allowed = 4.5 * np.sqrt(2 / 80_000) + 0.025
    error, mean_error = variance_error(MultistepSDE(), process, linear, 20)
    assert abs(error) < allowed
    assert np.abs(mean_error).max() < 0.02
    assert abs(variance_error(ReverseSDE(), process, linear, 20)[0]) > 3 * abs(error)


@pytest.mark.parametrize("sampler", [MultistepSDE(), MultistepFlow()])
def test_multistep_survives_a_horizon_of_many_relaxation_times(sampler):
    """57 of them, where a(T) = exp(-57) is below what float32 can use; mixture as above."""
    prior = references.mixture(WEIGHTS, MEANS, VARIANCES)
    process = processes.langevin(prior, horizon=57 * float(prior.typical_variance()))
    grid = time_grid(process, 200)
    x = sampling.sample(
        jax.random.key(1), process.drift, process, 4000, grid=grid, sampler=sampler, chunk=4000
    )
    assert_mean(x, WEIGHTS @ MEANS, bias=0.01)
    assert_mean(x**2, WEIGHTS @ (MEANS**2 + VARIANCES[:, None]), bias=0.015)


def test_multistep_sde_follows_a_diffusion_that_is_not_its_clocks():
    """OU with g^2 = 2 (1 + 3 t) and drift scaled alike, under a clock of constant rate.

    It is the OU process in the time u = t + 1.5 t^2, whose kernel gives the exact score.
    """
    warp = lambda t: t + 1.5 * t**2  # noqa: E731
    process = processes.process(
        lambda y, t: -(1 + 3 * t)[..., None] * y / 0.5,
        lambda t: jnp.sqrt(2 * (1 + 3 * t)),
        PROCESS.reference,
        horizon=1.0,
    )

    def score(y, t):
        a, s = kernel(PROCESS, warp(t[..., None]))
        return -(y - a * jnp.asarray(DATA_MEAN[None], y.dtype)) / (a**2 * DATA_VARIANCE + s**2)

    grid = time_grid(process, 150, smallest_variance=1e-2)
    x = process.reference.sample(jax.random.key(3), (20_000,))
    out = np.asarray(run(MultistepSDE(), score, process, x, grid).x)
    a, s = kernel_at(PROCESS, warp(grid[1]))
    assert_mean(out, a * DATA_MEAN, bias=0.01)
    assert_mean((out - a * DATA_MEAN) ** 2, [a**2 * DATA_VARIANCE + s**2] * 2, bias=0.01)


@FLOWS
@pytest.mark.parametrize("churn", [0.5, 1.0])
def test_churn_keeps_the_marginal_law(flow, churn):
    """As above with 150 steps, without a kernel: 4.5 standard errors + 1 %."""
    linear, process = CASES["langevin"]
    error, mean_error = variance_error(flow(churn=churn), process, linear, 150)
    assert abs(error) < 4.5 * np.sqrt(2 / 80_000) + 0.01
    assert np.abs(mean_error).max() < 0.01


def test_churned_states_have_the_law_of_the_later_time():
    """p_t -> p_{t + h} for Gaussian data under OU; Euler's bias is of order h^2 = 1e-4."""
    t, h, num = 0.3, 0.01, 40_000
    a, s = kernel_at(PROCESS, t)
    x = a * DATA_MEAN + np.sqrt(a**2 * DATA_VARIANCE + s**2) * np.asarray(
        jax.random.normal(jax.random.key(0), (num, 2))
    )
    keys = jax.random.split(jax.random.key(1), num)
    x, later = sampling.churned(
        keys, PROCESS, jnp.asarray(x, jnp.float32), 3, jnp.float32(t), jnp.float32(h)
    )
    x = np.asarray(x)
    assert later == pytest.approx(t + h)
    a, s = kernel_at(PROCESS, later)
    assert_mean(x, a * DATA_MEAN, bias=1e-3)
    assert_mean((x - a * DATA_MEAN) ** 2, [a**2 * DATA_VARIANCE + s**2] * 2, bias=1e-3)


def test_adaptive_flow_agrees_with_a_fine_heun_grid():
    """Mixture data under OU: paths agree to 2e-3 at tolerance 1e-5, by fewer evaluations than Heun,
    and a looser tolerance takes fewer still."""
    score = exact_score(WEIGHTS, MEANS, VARIANCES)
    x = np.asarray(PROCESS.reference.sample(jax.random.key(0), (64,)))
    fine, count, *_ = run(HeunFlow(), score, PROCESS, x, time_grid(PROCESS, 300))
    tight, loose = (
        run(AdaptiveFlow(rtol=tolerance, atol=tolerance), score, PROCESS, x, GRID)
        for tolerance in (1e-5, 1e-2)
    )
    np.testing.assert_allclose(tight.x, fine, atol=2e-3)
    assert np.all(loose.evaluations < tight.evaluations)
    assert np.max(tight.evaluations) < count
    assert tight.evaluations.shape == (64,)
    assert AdaptiveFlow().evaluations(150) is None


def test_adaptive_flow_without_diffrax_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ValueError, match=r"ndsm_jax\[diffrax\]"):
        sampling.sample(
            jax.random.key(0), PROCESS.drift, PROCESS, 2, grid=GRID, sampler=AdaptiveFlow()
        )


NARROW = references.mixture([0.5, 0.5], [[-3.0], [3.0]], [1.0, 0.01])


@pytest.mark.parametrize(
    ("sampler", "key"),
    [
        (sampling.PredictorCorrector(), r"sample\.snr to at most 0\.09"),
        (sampling.AnnealedLangevin(), r"sample\.langevin_length to at most"),
        (sampling.AnnealedLangevin(langevin_length=0.1), r"sample\.langevin_length to at most"),
    ],
)
def test_langevin_steps_too_long_for_a_component_are_refused(sampler, key):
    process = processes.langevin(NARROW)
    with pytest.raises(ValueError, match=f"narrowest component .* {key}"):
        sampling.sample(
            jax.random.key(0), lambda y, t: NARROW.score(y), process, 8, grid=40, sampler=sampler
        )


def test_the_remedy_keeps_the_weights_of_a_narrow_component():
    """A stationary law: 2,000 samples, a share of 1/2 +- 0.011."""
    process = processes.langevin(NARROW)
    x = sampling.sample(
        jax.random.key(0),
        lambda y, t: NARROW.score(y),
        process,
        2000,
        grid=time_grid(process, 400),
        sampler=sampling.PredictorCorrector(snr=0.05),
        chunk=2000,
    )
    assert abs(np.mean(x[:, 0] < 0) - 0.5) < 4 * 0.011


@pytest.mark.parametrize(
    "make",
    [
        lambda: sampling.PredictorCorrector(predictor=sampling.RestartFlow()),
        lambda: sampling.PredictorCorrector(predictor=sampling.AnnealedLangevin()),
        lambda: sampling.RestartFlow(flow=sampling.RestartFlow()),
        lambda: sampling.RestartFlow(flow=sampling.AnnealedLangevin()),
    ],
)
def test_samplers_whose_times_are_not_taken_are_refused(make):
    with pytest.raises(ValueError, match="chooses times or scores of its own"):
        make()


def test_a_condition_that_is_a_number_is_one_error():
    process = processes.variance_preserving(1)
    with pytest.raises(ValueError, match="condition: a number for 5 samples"):
        sampling.sample(jax.random.key(0), lambda y, t, c: -y, process, 5, grid=4, condition=1.0)
