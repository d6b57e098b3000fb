"""Flow matching: the straight line, its velocity, and the line to a component of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import assert_mean

from ndsm_jax import frames, noising, objectives, processes, references, sampling
from ndsm_jax.clock import time_coordinate
from ndsm_jax.integrators import uniform_grid
from ndsm_jax.networks import Velocity, weight_of

LINE = processes.straight_line(2)
COORDINATE = time_coordinate(LINE.clock, LINE.horizon, "time", first=1e-3)
VELOCITY = Velocity(process=LINE, coordinate=COORDINATE)
GRID = uniform_grid(float(LINE.horizon), 1000)
WEIGHTS, VARIANCES = np.array([0.3, 0.7]), np.array([0.05, 0.1])
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
"""DATA: a mixture of two spherical components."""


def moments(xp, y, t):
    """E[z | y] and E[x | y], component by component, by NumPy or JAX: [..., d] each."""
    a, s = 1 - t[..., None], t[..., None]
    v = a**2 * VARIANCES + s**2  # [..., K]
    away = y[..., None, :] - a[..., None] * MEANS
    odds = WEIGHTS * xp.exp(-0.5 * (away**2).sum(-1) / v) / v
    r = (odds / odds.sum(-1, keepdims=True))[..., None]
    x = MEANS + (a * VARIANCES / v)[..., None] * away
    return (r * (s / v)[..., None] * away).sum(-2), (r * x).sum(-2)


def velocity(y, t):
    with jax.numpy_rank_promotion("allow"):
        z, x = moments(jnp, y, t)
    return z - x


def test_the_score_of_the_exact_velocity_is_the_exact_score(rng):
    """-E[z | y] / t, the minimiser of denoising score matching (Vincent 2011), in float64 by NumPy.

    E[z | y] = y + (1 - t) v; float32 keeps it to 1e-6 of the terms from which it comes.
    """
    y = rng.normal(size=(50, 2))
    t = rng.uniform(0.05, 0.99, size=50)
    z, x = moments(np, y, t)
    y32, t32 = jnp.asarray(y, jnp.float32), jnp.asarray(t, jnp.float32)
    score = VELOCITY.score(jnp.asarray(z - x, jnp.float32), y32, t32)
    np.testing.assert_allclose(score, -z / t[:, None], rtol=1e-5, atol=1e-4)


def test_dsm_of_the_velocity_is_the_loss_of_flow_matching(rng):
    """|net - (z - x)|^2 / 2 for every state, whatever the network: so one minimiser."""
    noise = noising.exact_kernel(LINE, GRID, weight=weight_of(VELOCITY))
    x0 = jnp.asarray(rng.normal(size=(64, 2)), jnp.float32)
    batch = noise(jax.random.key(0), x0)
    net = lambda y, t: jnp.sin(3 * y) + t[..., None]  # noqa: E731
    loss = objectives.dsm(lambda y, t: VELOCITY.score(net(y, t), y, t), batch)
    t = np.asarray(batch.t)[..., None]
    z = (np.asarray(batch.y) - (1 - t) * np.asarray(x0)[:, None]) / t
    expected = 0.5 * ((np.asarray(net(batch.y, batch.t)) - z + np.asarray(x0)[:, None]) ** 2).sum(
        -1
    )
    np.testing.assert_allclose(loss, expected, rtol=2e-3, atol=1e-3)


def test_twenty_straight_steps_recover_a_mixture():
    """By the exact velocity, Heun's method: 8,000 samples within 4.5 standard errors + 0.015."""
    x = sampling.sample(
        jax.random.key(0),
        lambda y, t: VELOCITY.score(velocity(y, t), y, t),
        LINE,
        8000,
        grid=uniform_grid(float(LINE.horizon), 20),
        sampler=sampling.HeunFlow(),
        chunk=8000,
    )
    assert_mean(x[:, 0] > 0, 0.7, bias=0.005)
    assert_mean(x, [0.4, -0.2], bias=0.01)
    assert_mean(x**2, [0.3 * 1.05 + 0.7 * 1.1, 0.3 * 0.3 + 0.7 * 0.35], bias=0.015)


def test_logit_normal_times():
    """The logits of the shares of T are standard normal: Kolmogorov-Smirnov, 4,000 draws."""
    law = noising.time_law(LINE.clock, GRID, kind="logit_normal", stratified=False)
    share = np.asarray(law.time(law.quantiles(jax.random.key(0), 4000, 1))[:, 0]) / GRID[-1]
    logits = scipy.special.logit(share.astype(np.float64))
    assert scipy.stats.kstest(logits, "norm").pvalue > 1e-3


def test_formulas_of_the_drift_are_its_derivatives():
    y, v, t = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, 3.0]]), jnp.array([0.7])
    for process in (LINE, processes.sub_variance_preserving(2)):
        drift, pulled = processes.pull_back(process, y, t, v)
        value, pull = jax.vjp(lambda y, p=process: p.drift(y, t), y)
        np.testing.assert_allclose(drift, value, rtol=1e-6)
        np.testing.assert_allclose(pulled, pull(v)[0], rtol=1e-6)


def test_a_horizon_of_one_is_refused():
    with pytest.raises(ValueError, match=r"process\.horizon=1: the straight line ends at 1"):
        processes.straight_line(2, horizon=1.0)


MODES = np.array([[-4.0, 0.0], [4.0, 1.0]])


def modes(rng, num):
    """Two far modes, a bar and a disc, with weights 0.3 and 0.7."""
    of = rng.uniform(size=num) < 0.7
    bar = np.stack([rng.uniform(-1, 1, num), 0.05 * rng.normal(size=num)], axis=1)
    x = np.where(of[:, None], MODES[1] + 0.3 * rng.normal(size=(num, 2)), MODES[0] + bar)
    return x.astype(np.float32), of


def test_the_line_to_a_component_keeps_every_components_mass(rng):
    """A data point goes straight to a point of its own component, and back.

    The mixture is fitted to the data, so that the share of the data that is coupled to a component
    is its weight; samples of the component are of its mode, every one of them.
    """
    x, of = modes(rng, 2000)
    mixture, _ = references.fit(x, 2)
    right = int(np.argmax(np.asarray(mixture.means)[:, 0]))
    weights = np.exp(np.asarray(mixture.log_weights))
    np.testing.assert_allclose(weights[right], of.mean(), atol=1e-5)
    coupled = np.asarray(mixture.responsibilities(jnp.asarray(x)))
    np.testing.assert_allclose(coupled.mean(0), weights, atol=1e-5)
    frame = frames.OfComponent(mixture=mixture)
    states, component = frame.enter(jax.random.key(0), jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(component) == right, of)
    # The line in the component's coordinates is one between data and the component's source.
    batch = noising.exact_kernel(LINE, GRID, k=1)(jax.random.key(1), states)
    t = np.asarray(batch.t)
    z = (np.asarray(batch.y[:, 0]) - (1 - t) * np.asarray(states)) / t
    source, between = (
        frame.leave(y.astype(np.float32), component) for y in (z, np.asarray(batch.y[:, 0]))
    )
    np.testing.assert_allclose(between, (1 - t) * x + t * source, atol=2e-3)
    # Back, by the exact velocity of the bar's and the disc's second moments in their coordinates.
    variance = jnp.stack([jnp.var(states[np.asarray(component) == k], axis=0) for k in (0, 1)])
    mean = jnp.stack([jnp.mean(states[np.asarray(component) == k], axis=0) for k in (0, 1)])

    def score(y, t, k):
        a, s = 1 - t[:, None], t[:, None]
        return -(y - a * mean[k]) / (a**2 * variance[k] + s**2)

    index = jnp.arange(1000, dtype=jnp.uint32)
    started = np.asarray(sampling.start_components(jax.random.key(2), index, mixture.log_weights))
    made = sampling.sample(
        jax.random.key(2),
        score,
        LINE,
        1000,
        grid=uniform_grid(float(LINE.horizon), 20),
        sampler=sampling.HeunFlow(),
        condition=started,
    )
    made = frame.leave(made, started)
    np.testing.assert_array_equal(made[:, 0] > 0, started == right)
