"""The loss weight of local coordinates where components overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import noising, processes, references
from ndsm_jax.clock import time_coordinate
from ndsm_jax.experiment import experiment
from ndsm_jax.integrators import time_grid
from ndsm_jax.networks import PRECONDITIONS, balanced, weight_of
from ndsm_jax.networks.balance import apart

MEANS = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 1.5, 0.5]])
OVERLAPPING = references.mixture([0.4, 0.3, 0.3], MEANS, [1.0, 0.5, 0.25])
SEPARATED = references.mixture([0.4, 0.3, 0.3], 20 * MEANS, [1.0, 0.5, 0.25])


def parts(mixture, kind="local"):
    """Path windows with the preconditioning's weight, and this."""
    process = processes.langevin(mixture)
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
