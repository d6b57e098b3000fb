"""Capabilities belong to the very drift and noise beside them, through replace and pytrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import noising, processes, references
from ndsm_jax.integrators import time_grid
from ndsm_jax.processes import Known

CAPABILITIES = ("kernel", "drift_vjp", "quotient", "stiffness", "period")
NORMAL = references.standard_normal(2)


def contraction(y, t):
    return -y


def plain_kernel(t):
    return processes.ornstein_uhlenbeck(2).kernel(t)


def plain_vjp(y, t, v):
    return -y, -v


def own():
    """A process that has every capability at once, whatever they say."""
    known = Known(
        kernel=plain_kernel,
        drift_vjp=plain_vjp,
        quotient=NORMAL,
        stiffness=jnp.float32(1.0),
        period=1.0,
    )
    return processes.process(contraction, jnp.ones_like, NORMAL, horizon=2.0, known=known)


PROCESSES = {
    "own": own(),
    "langevin": processes.langevin(NORMAL),
    "ornstein_uhlenbeck": processes.ornstein_uhlenbeck(2),
    "variance_preserving": processes.variance_preserving(2),
    "variance_exploding": processes.variance_exploding(2),
    "wrapped": processes.wrapped(2),
    "critically_damped": processes.critically_damped(1),
}
ROUND_TRIPS = {
    "as built": lambda p: p,
    "jit": jax.jit(lambda p: p),
    "tree.map": lambda p: jax.tree.map(lambda a: a + 0, p),
    "flattened": lambda p: jax.tree.unflatten(*jax.tree.flatten(p)[::-1]),
    "vmap": lambda p: jax.tree.map(
        lambda a: a[0],
        jax.vmap(lambda p: p)(jax.tree.map(lambda a: jnp.stack([a, a]), p)),
    ),
    "twice": lambda p: jax.jit(lambda p: p)(dataclasses.replace(p, name="copy")),
}


def names(process):
    """The capabilities that a process has."""
    return {name for name in CAPABILITIES if getattr(process.known, name) is not None}


def test_the_process_of_these_tests_has_every_capability():
    assert names(PROCESSES["own"]) == set(CAPABILITIES)
    assert set().union(*(names(p) for p in PROCESSES.values())) == set(CAPABILITIES)


def other_drift(y, t):
    return 10 - 3 * y**3


def other_diffusion(t):
    return 2.0 + t


@pytest.mark.parametrize("trip", ROUND_TRIPS)
@pytest.mark.parametrize("name", PROCESSES)
def test_another_drift_has_none_of_the_old_ones_capabilities(name, trip):
    process = ROUND_TRIPS[trip](PROCESSES[name])
    assert names(process) == names(PROCESSES[name])
    changed = dataclasses.replace(process, drift=other_drift)
    assert names(changed) == set()
    assert changed.kernel is None
    assert names(process) == names(PROCESSES[name])  # the old one is left as it was
    # Nor do they come back on the way through a pytree, or with the next change.
    for again in ROUND_TRIPS.values():
        assert names(again(changed)) == set()
    assert names(dataclasses.replace(changed, horizon=jnp.float32(1.0))) == set()
    assert names(dataclasses.replace(changed, drift=process.drift)) == set()
    # `pull_back` is that of the new drift.
    y, v = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, 3.0]])
    drift, pulled = processes.pull_back(changed, y, jnp.ones(1), v)
    np.testing.assert_allclose(drift, 10 - 3 * y**3, rtol=1e-6)
    np.testing.assert_allclose(pulled, -9 * y**2 * v, rtol=1e-6)


@pytest.mark.parametrize("trip", ROUND_TRIPS)
@pytest.mark.parametrize("name", PROCESSES)
def test_another_diffusion_leaves_what_the_drift_alone_says(name, trip):
    process = ROUND_TRIPS[trip](PROCESSES[name])
    changed = dataclasses.replace(process, diffusion=other_diffusion)
    assert names(changed) == names(process) - {"kernel"}
    for again in ROUND_TRIPS.values():
        assert names(again(changed)) == names(process) - {"kernel"}
    y, t = jnp.ones((1, 2)), jnp.full(1, 0.3)
    np.testing.assert_array_equal(changed.drift(y, t), process.drift(y, t))
    # No formula of the drift is stale: against automatic differentiation.
    drift, pulled = processes.pull_back(changed, y, t, 2 * y)
    value, pull = jax.vjp(lambda y: process.drift(y, t), y)
    np.testing.assert_allclose(drift, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pulled, pull(2 * y)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_other_noisy_coordinates_have_neither_kernel_nor_quotient(name):
    """With noise in some coordinates alone the dynamics are no longer rotation invariant."""
    changed = dataclasses.replace(PROCESSES[name], noisy=(0,))
    assert names(changed) == names(PROCESSES[name]) - {"kernel", "quotient"}


def test_degenerate_noise_is_simulated_in_the_whole_space():
    """In d = 40, where `auto` would take the quotient of noise in every coordinate."""
    process = dataclasses.replace(processes.langevin(far_mixture()), noisy=(0, 1))
    noise = noising.local_steps(process, 20)
    assert isinstance(noise.chain, noising.FullSpace)
    y = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(0), jnp.zeros((8, DIM))).y
    assert not np.any(y[..., 2:])  # no noise and, at the mixture's centre, no drift there


@pytest.mark.parametrize("trip", ROUND_TRIPS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_rest_may_change_freely(name, trip):
    process = ROUND_TRIPS[trip](PROCESSES[name])
    for changes in (
        {"horizon": jnp.float32(7.0)},
        {"name": "other"},
        {"reference": references.standard_normal(2, 3.0)},
        {"clock": processes.variance_preserving(2).clock},
        {"drift": process.drift, "diffusion": process.diffusion},
        {},
    ):
        changed = dataclasses.replace(process, **changes)
        assert names(changed) == names(process)
    assert float(dataclasses.replace(process, horizon=jnp.float32(7.0)).horizon) == 7


def test_new_capabilities_may_come_with_a_new_drift():
    known = Known(drift_vjp=lambda y, t, v: (-3 * y, -3 * v), stiffness=jnp.float32(3.0))
    changed = dataclasses.replace(PROCESSES["own"], drift=lambda y, t: -3 * y, known=known)
    assert names(changed) == {"drift_vjp", "stiffness"}
    # The same object given to another process belongs to that one, not to the first.
    assert names(dataclasses.replace(PROCESSES["langevin"], known=known)) == {
        "drift_vjp",
        "stiffness",
    }
    # But capabilities taken from a process stay its own.
    assert names(dataclasses.replace(PROCESSES["langevin"], known=changed.known)) == set()


@pytest.mark.parametrize("name", PROCESSES)
def test_formulas_of_drifts_are_their_derivatives(name, rng):
    process = PROCESSES[name]
    y, v = (jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32) for _ in range(2))
    t = jnp.asarray(rng.uniform(size=(3, 4)), jnp.float32)
    drift, pulled = processes.pull_back(process, y, t, v)
    value, pull = jax.vjp(lambda y: process.drift(y, t), y)
    np.testing.assert_allclose(drift, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pulled, pull(v)[0], rtol=1e-5, atol=1e-5)


DIM = 40


def far_mixture():
    """Two spherical components in d = 40, whose means span one direction."""
    means = np.zeros((2, DIM))
    means[:, 0] = -1.0, 1.0
    return references.mixture([0.5, 0.5], means, [0.5, 0.5])


NOISINGS = {
    "path_windows": noising.path_windows,
    "local_steps": noising.local_steps,
}


def noised(process, make, simulation, paths, seed=0, **options):
    """Noised data that are 0: states and times, [paths, ...] with one time a path."""
    noise = make(process, time_grid(process, 40), k=1, simulation=simulation, **options)
    x0 = jnp.zeros((paths, DIM))
    return jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(seed), x0)


@pytest.mark.parametrize("name", NOISINGS)
def test_a_pushed_drift_is_simulated_as_it_is(name):
    """Drift = score + 10, replaced in a process that has a quotient, in d = 40.

    The mean of all coordinates at late times, t > T / 2, of 2,000 paths: as in the whole space
    within 4.5 standard errors of the difference (below 0.05), near the 10 v = 5 of the shifted
    stationary law, and far from 0, which is what the old drift's quotient gave.
    """
    process = processes.langevin(far_mixture())
    score = process.drift
    pushed = dataclasses.replace(process, drift=lambda y, t: score(y, t) + 10)
    assert process.known.quotient is not None
    means = []
    for simulation, seed in (("auto", 0), ("full", 1)):
        batch = noised(pushed, NOISINGS[name], simulation, 2000, seed)
        late = np.asarray(batch.t[:, 0]) > 0.5 * float(process.horizon)
        means.append(np.asarray(batch.y)[late, 0].mean(axis=1))
    one, two = means
    error = np.sqrt(one.var() / len(one) + two.var() / len(two))
    assert error < 0.05
    assert abs(one.mean() - two.mean()) < 4.5 * error
    assert 4 < one.mean() < 5.5
    with pytest.raises(ValueError, match=r"noising\.simulation='quotient': the drift"):
        NOISINGS[name](pushed, 10, simulation="quotient")


@pytest.mark.parametrize("covariance", ["spherical", "tied_spherical"])
@pytest.mark.parametrize("name", NOISINGS)
def test_another_diffusion_has_its_own_law_in_the_quotient(name, covariance):
    """g = 0.7 + t in place of sqrt(2): moments of states and scaled targets as in the whole space.

    4,000 paths each, within 5 standard errors of the difference, and Kolmogorov-Smirnov p > 1e-4.
    The quotient of the old diffusion is refused by the same statistics.
    """
    means = np.zeros((2, DIM))
    means[:, 0] = -1.0, 1.0
    variances = 0.5 if covariance == "tied_spherical" else [0.4, 0.6]
    mixture = references.mixture([0.4, 0.6], means, variances, covariance=covariance)
    process = processes.langevin(mixture)
    changed = dataclasses.replace(process, diffusion=lambda t: 0.7 + t)
    direction = np.r_[1.0, np.full(DIM - 1, 0.2)]

    def statistics(process, simulation, seed):
        batch = noised(process, NOISINGS[name], simulation, 4000, seed)
        y, scale = np.asarray(batch.y)[:, 0], np.asarray(process.clock.std(batch.t))
        target = np.asarray(batch.score_target)[:, 0] * scale
        late = np.asarray(batch.t) > 0.3 * float(process.horizon)
        columns = [y @ direction, y[:, 0] ** 2, (y**2).sum(1), (target**2).sum(1), target[:, 0]]
        columns += [(y * target).sum(1), y[:, 0] * target[:, 0]]
        columns = np.stack(columns, axis=1)
        return np.concatenate([columns, columns * late], axis=1), y @ direction

    def worst(a, b):
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        return (np.abs(a.mean(0) - b.mean(0)) / error).max()

    small, projected = statistics(changed, "quotient", 0)
    full, projected_full = statistics(changed, "full", 1)
    assert worst(small, full) < 5
    assert scipy.stats.ks_2samp(projected, projected_full).pvalue > 1e-4
    assert worst(statistics(process, "quotient", 0)[0], full) > 10


def test_a_kernel_is_not_drawn_from_after_another_diffusion():
    process = dataclasses.replace(
        processes.ornstein_uhlenbeck(2), diffusion=lambda t: jnp.full_like(t, 0.5)
    )
    with pytest.raises(ValueError, match="'ornstein_uhlenbeck' has no kernel to draw from"):
        noising.exact_kernel(process, 20)
    # Simulated instead: the variance at T of dY = -Y dt + dW / 2 is 1/8 (Euler bias below 1 %).
    batch = noising.local_steps(process, time_grid(process, 400), k=1)(
        jax.random.key(0), jnp.zeros((4000, 2))
    )
    late = np.asarray(batch.t[:, 0]) > 3
    y = np.asarray(batch.y)[late, 0]
    assert_mean(y**2, np.full(2, 0.125), bias=0.003)
