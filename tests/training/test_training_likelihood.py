"""Log densities in the units of the data, through every frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ndsm_jax import frames, processes, references, training
from ndsm_jax.experiment import experiment
from ndsm_jax.likelihood import Bound, Flow
from ndsm_jax.networks import ScoreMLP

MIXTURE = references.mixture([0.4, 0.6], [[-1.0], [1.0]], [0.2, 0.3])
SCALED = frames.Standardised(shift=np.array([3.0]), scale=np.array([20.0]))
PLANE = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.3])


def made(process, *, learnt=True, **options):
    """An experiment, and a state of random parameters, or of a network that returns zero."""
    network = ScoreMLP(width=8, depth=2, zero_output=not learnt, outputs=process.noise_dim)
    objective = "path_dsm" if process.kernel is None else "dsm"
    parts = experiment(process, network=network, objective=objective, sample_grid=40, **options)
    return parts, training.init_state(parts, seed=1)


def log_prob(parts, x, **options):
    return training.log_prob(*parts, x, progress=False, **options)


def mass(parts, low, high, num=1200):
    """The integral of exp(log p) over an interval of the line."""
    x = np.linspace(low, high, num + 1)[:-1, None]
    density = np.exp(log_prob(parts, x, steps=80, chunk=num).value)
    assert density.max() > 1.05 * np.median(density)  # there is something to integrate
    return density.sum() * (high - low) / num


def test_states_that_are_the_data_have_mass_one():
    assert mass(made(processes.langevin(MIXTURE)), -8, 8) == pytest.approx(1, abs=2e-3)


def test_standardised_data_have_mass_one_in_their_own_units():
    parts = made(processes.langevin(MIXTURE), frame=SCALED)
    assert mass(parts, -157, 163) == pytest.approx(1, abs=2e-3)


def test_angles_have_mass_one_on_the_circle():
    """In degrees, from 0; the same density a turn further on."""
    frame = frames.Angles(start=np.array([0.0]), period=360.0)
    parts = made(processes.wrapped(1, period=360.0, sigma_min=20.0), frame=frame)
    assert mass(parts, 0, 360, num=7200) == pytest.approx(1, abs=2e-3)
    x = np.array([[10.0], [200.0]])  # of which one is written as -160 in the frame
    np.testing.assert_allclose(log_prob(parts, x).value, log_prob(parts, x + 360).value, rtol=1e-5)


@pytest.mark.parametrize("outer", [False, True], ids=["component", "standardised component"])
def test_components_have_mass_one_together(outer):
    frame = frames.OfComponent(mixture=MIXTURE)
    if outer:
        frame = frames.chained(SCALED, frame)
    parts = made(processes.ornstein_uhlenbeck(1), frame=frame)
    low, high = (-157, 163) if outer else (-8, 8)
    assert mass(parts, low, high) == pytest.approx(1, abs=2e-3)


def test_levels_have_less_than_mass_one_together():
    """Of four grey levels; the bound is tight where the density is nearly level within them."""
    wide = references.mixture([1.0], [[0.0]], [0.15])
    frame = frames.Pixels(levels=4)
    parts = made(processes.langevin(wide), frame=frame, learnt=False)
    levels = np.linspace(-1, 1, 4)[:, None]
    found = log_prob(parts, levels, draws=64)
    edges = np.array([levels[:, 0] - 1 / 3, levels[:, 0] + 1 / 3]) / 0.15**0.5
    exact = np.log(np.diff(scipy.stats.norm.cdf(edges), axis=0)[0])
    assert np.all(found.value < exact + 3 * found.standard_error)
    # With U uniform E log p + log step = log N(level) + log step - step^2 / (24 s^2).
    step = 2 / 3
    bound = scipy.stats.norm.logpdf(levels[:, 0], scale=0.15**0.5) + np.log(step)
    bound -= step**2 / (24 * 0.15)
    assert np.all(np.abs(found.value - bound) < 4.5 * found.standard_error + 1e-3)


def test_what_has_learnt_nothing_is_the_mixture():
    """In the plane, standardised, with a constant feature; exactly, with probes, and the bound."""
    frame = frames.standardised(np.random.default_rng(0).normal(5, [100, 1e-3], (50, 2)))
    x = np.asarray(frame.leave(PLANE.sample(jax.random.key(0), (30,))))
    expected = np.asarray(PLANE.log_prob(frame.prepare(x))) - np.log(frame.scale).sum()
    parts = made(processes.langevin(PLANE), learnt=False, frame=frame)
    np.testing.assert_allclose(log_prob(parts, x).value, expected, rtol=0, atol=2e-3)
    probed = log_prob(parts, x, method=Flow(probes=2))
    np.testing.assert_allclose(probed.value, expected, rtol=0, atol=2e-3)
    np.testing.assert_allclose(training.prior_log_prob(parts[0], x).value, expected, atol=1e-4)
    bound = log_prob(parts, x, method=Bound(paths=4, importance=4))
    assert abs(np.mean(bound.value - expected)) < 0.1


def test_components_that_have_learnt_nothing_are_the_mixture():
    x = np.asarray(PLANE.sample(jax.random.key(0), (30,)))
    frame = frames.OfComponent(mixture=PLANE)
    parts = made(processes.ornstein_uhlenbeck(2), learnt=False, frame=frame)
    expected = np.asarray(PLANE.log_prob(x))
    found = log_prob(parts, x)
    # Components with a share below 1e-4 are left out.
    np.testing.assert_allclose(found.value, expected, rtol=0, atol=2e-3)
    np.testing.assert_array_equal(found.standard_error, 0)
    np.testing.assert_allclose(training.prior_log_prob(parts[0], x).value, expected, atol=1e-5)


def test_units_change_log_p_by_the_log_determinant(rng):
    """A million times the numbers in a frame that was fitted to them: 2 log 10^6 less, exactly."""
    data = rng.normal(size=(200, 2))
    found = []
    for unit in (1.0, 2.0**20):
        frame = frames.standardised(data * unit)
        parts = made(processes.langevin(PLANE), frame=frame)
        found.append(log_prob(parts, data[:40] * unit).value)
    np.testing.assert_allclose(found[1] - found[0], -2 * 20 * np.log(2), rtol=1e-9)


def test_another_density_is_averaged_over_the_same_draws(rng):
    """That of the states of `Pixels` by SciPy, beside the model's of the same law."""
    wide = references.mixture([1.0], [[0.0, 0.0]], [0.15])
    parts = made(processes.langevin(wide), frame=frames.Pixels(levels=17), learnt=False)
    x = np.linspace(-1, 1, 17)[rng.integers(17, size=(20, 2))]
    normal = scipy.stats.multivariate_normal(np.zeros(2), 0.15)
    found = training.log_prob_of_states(parts[0], x, normal.logpdf)
    model = log_prob(parts, x)
    np.testing.assert_allclose(found.value, model.value, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.standard_error, model.standard_error, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="draws=0"):
        log_prob(parts, x, draws=0)


def test_the_average_that_was_chosen_is_taken():
    parts, state = made(processes.langevin(MIXTURE))
    other = training.init_state(parts, seed=2)
    x = np.linspace(-1, 1, 5)[:, None]
    of_both = dataclasses.replace(state, ema=other.params)
    average = training.log_prob(parts, of_both, x, progress=False).value
    last = training.log_prob(parts, of_both, x, ema=False, progress=False).value
    np.testing.assert_allclose(average, log_prob((parts, other), x).value, rtol=1e-6)
    np.testing.assert_allclose(last, log_prob((parts, state), x).value, rtol=1e-6)


@pytest.mark.parametrize(
    ("process", "frame", "x", "message"),
    [
        ("langevin", None, np.zeros((3, 2)), r"x has 2 coordinates in its frame.*has 1"),
        ("langevin", SCALED, np.zeros((3, 2)), r"x of shape \(3, 2\); finite items \[n, 1\]"),
        ("langevin", None, np.full((3, 1), np.nan), r"finite items"),
        ("langevin", None, np.zeros(3), r"x=float64\[3\]"),
        ("damped", frames.Augmented(std=jnp.float32(0.1)), np.zeros((3, 1)), "velocities"),
    ],
)
def test_items_without_a_density_are_refused(process, frame, x, message):
    if process == "langevin":
        parts = made(processes.langevin(MIXTURE), frame=frame)
    else:
        parts = made(processes.critically_damped(1), frame=frame)
    with pytest.raises(ValueError, match=message):
        log_prob(parts, x)
