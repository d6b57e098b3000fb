"""The loss weight of local coordinates where components overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import noising, processes, references
from ndsm_jax.clock import time_coordinate
from ndsm_jax.experiment import experiment
from ndsm_jax.integrators import time_grid
from ndsm_jax.networks import PRECONDITIONS, balanced, target_excess, weight_of
from ndsm_jax.networks.balance import BINS, TIMES, _paths, apart

MEANS = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 1.5, 0.5]])
OVERLAPPING = references.mixture([0.4, 0.3, 0.3], MEANS, [1.0, 0.5, 0.25])
SEPARATED = references.mixture([0.4, 0.3, 0.3], 20 * MEANS, [1.0, 0.5, 0.25])


def parts(mixture, kind="local", process=None):
    """Path windows with the preconditioning's weight, and this."""
    process = process or processes.langevin(mixture)
    grid = time_grid(process, 100)
    coordinate = time_coordinate(process.clock, process.horizon, "clock", first=float(grid[1]))
    precondition = PRECONDITIONS[kind](process=process, coordinate=coordinate)
    weight = weight_of(precondition)
    return noising.path_windows(process, grid, k=4, weight=weight), precondition


def sizes(noise, precondition, mixture):
    """Mean weighted square of the targets in each eighth of the local times, on other paths."""
    x0 = mixture.sample(jax.random.key(7), (8000,))
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(8), x0)
    square = jnp.mean((batch.score_target - mixture.score(batch.y)) ** 2, axis=-1)
    c = np.asarray(precondition.time(batch.y, batch.t)).ravel()
    index = np.clip(4 * (c + 1), 0, 7).astype(int)
    found = np.asarray(batch.weight * square, np.float64).ravel()
    return np.array([found[index == i].mean() for i in range(8)])


def test_every_local_time_counts_alike_where_components_overlap():
    """32,000 fresh states: from 12 times too much to within 40 % of 1 (heavy tails of the latest);
    early times, where paths are in their component, keep the weight that they had (to 10 %)."""
    noise, precondition = parts(OVERLAPPING)
    assert not apart(OVERLAPPING)
    before = sizes(noise, precondition, OVERLAPPING)
    after = sizes(balanced(noise, precondition), precondition, OVERLAPPING)
    assert before.max() > 12
    assert after.max() < 1.4
    np.testing.assert_allclose(after[:2], before[:2], rtol=0.1)


def test_a_balanced_weight_is_a_function_of_state_and_time_alone():
    """Whatever the shape, and the same at every call: a restored run has it."""
    noise, precondition = parts(OVERLAPPING)
    weights = [balanced(noise, precondition).weight for _ in range(2)]
    y = 2 * jax.random.normal(jax.random.key(0), (5, 3, 3))
    t = jnp.linspace(0.01, 1.5, 15).reshape(5, 3)
    one, two = (w(y, t) for w in weights)
    np.testing.assert_array_equal(one, two)
    each = [float(weights[0](y[i, j], t[i, j])) for i in range(5) for j in range(3)]
    np.testing.assert_allclose(one.ravel(), each, rtol=1e-4)
    assert np.all(np.asarray(one <= 1.0001 * precondition.weight(y, t)))


@pytest.mark.parametrize("mixture", [OVERLAPPING, SEPARATED], ids=["overlapping", "separated"])
def test_nothing_changes_where_it_is_not_wanted(mixture):
    noise, local = parts(mixture)
    residual = parts(mixture, "residual")[1]
    assert balanced(noise, residual) is noise
    steps = noising.local_steps(noise.process, 20)
    assert balanced(steps, local) is steps
    assert (balanced(noise, local) is noise) == (mixture is SEPARATED)


def test_an_experiment_balances_the_weight_that_it_chooses():
    process = processes.langevin(OVERLAPPING)
    chosen = experiment(process).noising
    given = experiment(process, noise=noising.path_windows(process, 50)).noising
    y, late = jnp.ones((4, 3)), jnp.full(4, process.horizon)
    local = experiment(process).model.precondition
    assert float(chosen.weight(y, late)[0]) < 0.5 * float(local.weight(y, late)[0])
    np.testing.assert_allclose(given.weight(y, late), process.clock.variance(late), rtol=1e-6)


def test_what_was_measured_may_be_given():
    """As a checkpoint gives it: the same weight, and nothing is simulated."""
    noise, precondition = parts(OVERLAPPING)
    excess = target_excess(noise, precondition)
    assert excess.shape == (BINS,)
    np.testing.assert_array_equal(16 * excess, np.round(16 * excess))
    y, t = jax.random.normal(jax.random.key(0), (50, 3)), jnp.linspace(0.01, 1.5, 50)
    given = balanced(noise, precondition, excess).weight(y, t)
    np.testing.assert_array_equal(given, balanced(noise, precondition).weight(y, t))
    log_ratio = np.log(noise.weight(y, t) / given)
    assert log_ratio.min() >= 0
    assert log_ratio.max() <= float(excess.max()) + 1e-4


def test_paths_that_are_not_finite_are_refused():
    """A cubic drift that no step of the grid can follow: one error that names the keys."""
    process = processes.process(
        lambda y, t: -500 * y * jnp.sum(y**2, axis=-1, keepdims=True),
        2**0.5,
        OVERLAPPING,
        horizon=2.0,
    )
    noise, precondition = parts(OVERLAPPING, process=process)
    with pytest.raises(ValueError, match=r"not finite in 100 steps.*noising\.steps"):
        balanced(noise, precondition)


def test_full_covariances_are_measured_on_few_paths():
    """Axes of 200 x 200 numbers at every state: less than two minibatches of 64 x 4 have."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((2, 200, 200)) / 200**0.5
    full = np.einsum("kij,klj->kil", roots, roots) + np.eye(200)
    full = references.mixture([0.5, 0.5], np.zeros((2, 200)), full, covariance="full")
    spherical = references.mixture([0.5, 0.5], np.zeros((2, 200)), np.ones(2))
    assert _paths(full) * TIMES < 64 * 4 * 2 < _paths(spherical) * TIMES
