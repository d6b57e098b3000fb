"""Guided scores, against the algebra of Gaussians with known scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import networks, processes, references, sampling
from ndsm_jax.clock import time_coordinate
from ndsm_jax.conditions import Both, null
from ndsm_jax.contrast import Contrast, extrapolated, unconditional, untold
from ndsm_jax.integrators import time_grid

MEANS = np.array([[-1.0, 0.5], [1.5, 0.0]])
VARIANCE = 0.2
SHARES = np.array([0.3, 0.7])
VP = processes.variance_preserving(2)


def scalars(t):
    kernel = VP.kernel(jnp.asarray(t, jnp.float32))
    return np.asarray(kernel.scale.value, np.float64), np.asarray(kernel.root.value, np.float64)


def _class_scores(y, t):
    """Scores of both classes [2, ..., d], and the log of their joint densities [2, ...]."""
    kernel = VP.kernel(t)
    a, s = kernel.scale.value[..., None], kernel.root.value[..., None]
    total = a**2 * VARIANCE + s**2
    difference = y[None] - a[None] * jnp.float32(MEANS).reshape(2, *[1] * (y.ndim - 1), 2)
    log = -0.5 * jnp.sum(difference**2 / total[None], axis=-1)
    log += jnp.log(jnp.float32(SHARES)).reshape(2, *[1] * (y.ndim - 1))
    return -difference / total[None], log


def _exact(y, t, label):
    """The score of N(mean of the class, VARIANCE), noised; -1 is the mixture of both."""
    scores, log = _class_scores(y, t)
    of_all = jnp.sum(jax.nn.softmax(log, axis=0)[..., None] * scores, axis=0)
    of_class = jnp.where((label == 0)[..., None], scores[0], scores[1])
    return jnp.where((label < 0)[..., None], of_all, of_class)


@jax.jit
def called(score, *args):
    return score(*args)


def numpy_log_densities(y, t):
    """Log p_t(y) of each class and of all, in float64: [2] and a number."""
    a, s = scalars(t)
    total = a**2 * VARIANCE + s**2
    of_class = -0.5 * np.sum((y - a * MEANS) ** 2, axis=-1) / total - np.log(2 * np.pi * total)
    return of_class, np.logaddexp.reduce(of_class + np.log(SHARES))


def test_the_guided_score_is_the_gradient_of_the_tilted_log_density():
    """s_u + w (s_c - s_u) = grad [log p + w log p(c | y)], the latter by finite differences."""
    rng = np.random.default_rng(0)
    step = 1e-5
    for scale in (0.0, 0.5, 3.0):
        guided = Contrast(scale=scale)(Partial(_exact), VP)
        for t, label in ((0.05, 0), (0.3, 1), (0.9, 0)):
            y = rng.normal(size=2)
            found = called(guided, jnp.float32(y), jnp.float32(t), jnp.int32(label))
            expected = np.zeros(2)
            for i in range(2):
                for sign in (-1, 1):
                    moved = y + sign * step * np.eye(2)[i]
                    of_class, of_all = numpy_log_densities(moved, t)
                    tilted = of_all + scale * (of_class[label] - of_all)
                    expected[i] += sign * tilted / (2 * step)
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def _of_mean(mean, y, t):
    kernel = VP.kernel(t)
    a, s = kernel.scale.value[..., None], kernel.root.value[..., None]
    return -(y - a * jnp.broadcast_to(mean, y.shape)) / (a**2 * VARIANCE + s**2)


def test_gaussians_of_one_variance_are_guided_to_one_of_the_extrapolated_mean():
    """Their guided score is that of N(m_0 + w (m_1 - m_0), VARIANCE) at every time, and so is what
    is drawn with it; that is so for no other laws. 4,000 samples, 60 steps."""
    scale, ends = 2.5, [jnp.float32(mean) for mean in MEANS]
    weaker, score = (Partial(_of_mean, end) for end in ends)
    guided = Contrast(scale=scale, weaker=weaker)(score, VP)
    mean = MEANS[0] + scale * (MEANS[1] - MEANS[0])
    y = jax.random.normal(jax.random.key(0), (50, 2))
    t = jnp.linspace(0.01, 1, 50)
    of_mean = _of_mean(jnp.float32(mean), y, t)
    np.testing.assert_allclose(guided(y, t), of_mean, rtol=1e-4, atol=1e-4)
    grid = time_grid(VP, 60)
    sampler = sampling.MultistepSDE()
    x = sampling.sample(jax.random.key(1), guided, VP, 4000, grid=grid, sampler=sampler, chunk=4000)
    assert_mean(x, mean, bias=0.02)
    assert_mean((x - mean) ** 2, np.full(2, VARIANCE), bias=0.02)


def test_it_is_off_at_one_and_outside_of_the_interval():
    """At scale 1 the score is the same object; where v(t) / v(T) is outside of the interval the
    weaker one is not even evaluated."""
    calls = []

    def weaker(y, t):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.zeros_like(y)

    score = Partial(_of_mean, jnp.float32(MEANS[0]))
    assert Contrast(weaker=weaker)(score, VP) is score
    guided = jax.jit(extrapolated(score, Partial(weaker), VP, scale=3.0, low=0.2, high=0.6))
    share = np.asarray(VP.clock.variance(jnp.linspace(0, 1, 101)) / VP.clock.variance(1.0))
    for t, evaluated in ((0.01, False), (0.25, True), (0.95, False)):
        assert (0.2 <= share[round(100 * t)] <= 0.6) == evaluated
        calls.clear()
        y, times = jnp.ones((4, 2)), jnp.full(4, t)
        found = guided(y, times)
        jax.effects_barrier()
        assert bool(calls) == evaluated
        strong = score(y, times)
        np.testing.assert_allclose(found, 3 * strong if evaluated else strong, rtol=1e-6)
    # Rows of one batch may be at different times.
    times = jnp.array([0.01, 0.25])
    y = jnp.ones((2, 2))
    expected = score(y, times) * jnp.array([[1.0], [3.0]])
    np.testing.assert_allclose(guided(y, times), expected, rtol=1e-6)


def test_the_reference_of_residual_scores_cancels():
    """At any scale it is in the guided score once: what is extrapolated is the networks' part."""
    mixture = references.mixture([0.5, 0.5], MEANS, [0.2, 0.3])
    process = processes.langevin(mixture)
    model = networks.ScoreModel(
        network=networks.ScoreMLP(width=8, depth=2, classes=2),
        dim=2,
        precondition=networks.Residual(
            process=process,
            coordinate=time_coordinate(process.clock, process.horizon, "clock", first=1e-3),
        ),
        condition=jnp.zeros(1, jnp.int32),
    )
    params = jax.jit(model.init)(jax.random.key(0))
    y, t = jax.random.normal(jax.random.key(1), (2, 6, 2))[0], jnp.linspace(0.01, 0.1, 6)
    label = jnp.arange(6) % 2
    guided = called(Contrast(scale=4.0)(model.bind(params), process), y, t, label)
    network = jax.jit(lambda label: model.network.apply(params, *model.sees(y, t), condition=label))
    told, nothing = network(label), network(jnp.full(6, -1))
    assert np.abs(told - nothing).max() > 0.01
    net = nothing + 4 * (told - nothing)
    expected = mixture.score(y) + net / process.clock.std(t)[:, None]
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-4)


def test_what_the_weaker_scores_are_told():
    """Nothing of the user's, in two ways; the condition of the frame stays."""

    def score(y, t, *condition):
        return condition

    both = Both(jnp.arange(3), {"class": jnp.arange(3), "at": jnp.ones((3, 2))})
    (seen,) = untold(score)(None, None, both)
    np.testing.assert_array_equal(seen.frame, both.frame)
    np.testing.assert_array_equal(seen.told["class"], [-1] * 3)
    assert np.isnan(seen.told["at"]).all()
    assert unconditional(score)(None, None, both) == (both.frame,)
    assert unconditional(score)(None, None, both.told) == ()
    assert null(None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, r"sample\.guidance_scale=-1\.0"),
        ({"scale": np.inf}, r"sample\.guidance_scale=inf"),
        ({"low": 0.5, "high": 0.4}, r"sample\.guidance_low=0\.5 .* sample\.guidance_high=0\.4"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Contrast(**options)


def test_a_plain_function_is_guided_in_a_sampler():
    """CFG of two Gaussians of one variance: at scale w a mean of w times the difference."""
    process = processes.variance_preserving(1)
    signal = process.clock.signal

    def strong(y, t):
        return signal(t)[..., None] - y

    def weak(y, t):
        return -y

    grid = time_grid(process, 40)
    score = extrapolated(strong, weak, process, scale=2.0)
    found = sampling.sample(jax.random.key(0), score, process, 2000, grid=grid)
    assert_mean(found[:, 0], 2.0, bias=0.05)
    for guided in (Contrast(scale=2.0, weaker=weak)(strong, process), untold(weak)):
        jax.jit(lambda f: 0)(guided)  # an argument of compiled code
