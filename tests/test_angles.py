"""Angles from end to end: what an experiment makes of them, refuses, and learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean
from jax.tree_util import Partial

from ndsm_jax import frames, networks, noising, processes, references, training
from ndsm_jax.config import Config
from ndsm_jax.config.parts import check_data
from ndsm_jax.experiment import experiment
from ndsm_jax.launch import load_data
from ndsm_jax.networks import ScoreMLP

SMALL = ScoreMLP(width=16, depth=1, outputs=2, zero_output=True)


def wells(strength, y):
    """Two wells an angle, of unequal depth, and a coupling: in kT."""
    return jnp.sum(strength * (jnp.cos(2 * y) + 0.4 * jnp.cos(y - 0.5))) + 0.5 * jnp.cos(
        y[0] - y[1]
    )


@pytest.fixture(scope="module")
def periodic():
    function = Partial(wells, jnp.float32(1.5))
    cell = {"low": [-np.pi] * 2, "high": [np.pi] * 2}
    return references.energy(
        function, references.rejection_samples(jax.random.key(0), function, num=4000, **cell)
    )


# --- defaults and refusals ---


@pytest.mark.parametrize(("kind", "period"), [("wrapped", 2 * np.pi), ("langevin", 1.0)])
def test_a_process_on_a_torus_has_angles_as_frame_and_a_periodic_network(kind, period, rng):
    torus = references.uniform_torus(2, period=period)
    make = {"wrapped": lambda: processes.wrapped(2, period=period)}
    process = make.get(kind, lambda: processes.langevin(torus))()
    made = experiment(process, objective="dsm" if kind == "wrapped" else "path_dsm")
    assert isinstance(made.frame, frames.Angles)
    assert made.frame.period == process.known.period == period
    params = jax.eval_shape(made.model.init, jax.random.key(0))["params"]
    assert params["Dense_1"]["kernel"].shape == (4, 256)
    y = jnp.asarray(period * rng.uniform(-0.5, 0.5, size=(20, 2)), jnp.float32)
    here, there = (made.model.sees(a, jnp.ones(20))[0] for a in (y, y - 2 * period))
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_an_angles_frame_makes_the_network_of_any_periodic_process_periodic(periodic):
    made = experiment(processes.langevin(periodic), frame=frames.Angles(), network=SMALL)
    assert made.process.known.period is None
    assert made.model.features is not None
    assert made.model.sees(jnp.ones((3, 2)), jnp.ones(3))[0].shape == (3, 4)


def test_what_is_not_periodic_is_refused(periodic):
    angles = frames.Angles()
    mixture = references.mixture([1.0], [[0.0, 0.0]], [0.3])
    with pytest.raises(ValueError, match=r"drift of process 'langevin' is not periodic.*wrapped"):
        experiment(processes.langevin(mixture), frame=angles)
    with pytest.raises(ValueError, match=r"drift of process 'ornstein_uhlenbeck' is not periodic"):
        experiment(processes.ornstein_uhlenbeck(2), frame=angles, objective="dsm")
    # A period of the wrong length; states of the energy that are softened as if they had none.
    with pytest.raises(ValueError, match=r"is not periodic, but changes by .* of 3;"):
        experiment(processes.langevin(periodic), frame=frames.Angles(period=3.0))
    partition = references.centres([[1.5, 0.0], [-1.5, 0.0]], 0.7)
    tilted = references.tilted(periodic, partition, [1.0, 3.0])
    with pytest.raises(ValueError, match=r"drift of process 'langevin' is not periodic"):
        experiment(processes.langevin(tilted), frame=angles)
    # The drift may be periodic, and what the samples start from not.
    normal = references.standard_normal(2)
    still = processes.process(lambda y, t: 0 * y, 1.0, normal, horizon=3.0)
    with pytest.raises(ValueError, match=r"score of the reference, a GaussianMixture, is not"):
        experiment(still, frame=angles)


def test_frame_and_process_are_of_one_period():
    process = processes.wrapped(2)
    for frame, words in (
        (frames.Identity(), "Identity has no period"),
        (frames.Angles(period=1.0), "Angles has the period 1;"),
        (frames.standardised(np.eye(2)), "Standardised has no period"),
    ):
        with pytest.raises(ValueError, match=rf"torus of period 6\.28.*{words}.*frames\.Angles"):
            experiment(process, objective="dsm", frame=frame)


def test_a_model_that_sees_the_angles_themselves_is_refused():
    process = processes.wrapped(2)
    made = experiment(process, objective="dsm", network=SMALL)
    plain = dataclasses.replace(made.model, features=None)
    with pytest.raises(ValueError, match=r"network sees is not periodic.*networks\.harmonics"):
        experiment(process, objective="dsm", model=plain)
    other = dataclasses.replace(made.model, features=networks.harmonics(np.pi, 2))
    experiment(process, objective="dsm", model=other)  # half the period is one, too


# --- a periodic energy ---


def test_path_targets_of_a_periodic_energy_have_the_score_of_the_wrapped_law():
    """On a circle, U = 1.2 cos 2 y + 0.6 cos(y - 0.5), 12 Euler steps from one point.

    The law of the chain modulo 2 pi by its transition matrix on 800 points, and its score by finite
    differences; E[f(y) (T - score)] = 0 for periodic f within 4.5 standard errors of 20,000 paths.
    """

    def energy(y):
        return jnp.sum(1.2 * jnp.cos(2 * y) + 0.6 * jnp.cos(y - 0.5))

    draws = references.rejection_samples(
        jax.random.key(0), energy, low=[-np.pi], high=[np.pi], num=1000
    )
    process = processes.langevin(references.energy(energy, draws), horizon=0.6)
    grid = np.linspace(0, 0.6, 13).astype(np.float32)
    start, h, num = 2.8, 0.05, 800
    cells = 2 * np.pi * np.arange(num) / num - np.pi

    def step(x):  # mean of the next state
        return x + h * (2.4 * np.sin(2 * x) + 0.6 * np.sin(x - 0.5))

    def transition(x):
        moved = cells[:, None, None] - step(x)[None, :, None] + 2 * np.pi * np.arange(-3, 4)
        return scipy.stats.norm.pdf(moved, scale=np.sqrt(2 * h)).sum(axis=-1)

    law = transition(np.array([start]))[:, 0]
    matrix = transition(cells) * (2 * np.pi / num)
    laws = [law]
    for _ in range(11):
        laws.append(matrix @ laws[-1])
    scores = [np.gradient(np.log(np.r_[p[-1], p, p[0]]), 2 * np.pi / num)[1:-1] for p in laws]
    np.testing.assert_allclose([p.mean() * 2 * np.pi for p in laws], 1, rtol=1e-6)

    noise = noising.path_windows(process, grid, k=1)
    batch = jax.jit(lambda n, key, x: n(key, x))(
        noise, jax.random.key(2), jnp.full((20_000, 1), start, jnp.float32)
    )
    y, t = np.float64(batch.y)[:, 0, 0], np.asarray(batch.t)[:, 0]
    n = np.round(t / h).astype(int) - 1
    assert np.abs(y).max() > np.pi  # some have left the cell
    at = (y + np.pi) % (2 * np.pi) - np.pi
    exact = np.stack([np.interp(at, np.r_[cells, np.pi], np.r_[s, s[0]]) for s in scores])
    residual = np.asarray(batch.score_target)[:, 0, 0] - exact[n, np.arange(len(n))]
    f = [g(m * y) for m in (1, 2, 3) for g in (np.cos, np.sin)] + [np.ones_like(y)]
    assert_mean(np.stack([g * residual * np.sqrt(t) for g in f], axis=1), 0.0, bias=2e-3)


@pytest.mark.parametrize("kind", ["energy", "wrapped"])
def test_from_data_to_samples_in_their_cell(kind, periodic):
    data = np.asarray(periodic.samples, np.float64) % (2 * np.pi)  # written from 0 on
    process = processes.langevin(periodic) if kind == "energy" else processes.wrapped(2)
    made = experiment(
        process,
        frame=frames.Angles.of(data),
        objective="path_dsm" if kind == "energy" else "dsm",
        network=SMALL,
    )
    longest = np.diff(made.noising.times.grid).max()
    assert longest * float(process.known.stiffness) < 0.2  # see docs/angles.md
    state = training.train(made, data, steps=20, batch_size=16, progress=False)
    samples = training.draw(made, state, 400, chunk=400, progress=False)
    assert samples.shape == (400, 2)
    assert samples.min() >= 0
    assert samples.max() < 2 * np.pi
    prior = training.draw_prior(made, 400)
    for x in (samples, prior):  # all of the cell is used
        assert np.all(np.ptp(x, axis=0) > 0.9 * 2 * np.pi)


def test_degrees_are_told(rng, caplog):
    config = Config.from_dict({"data": {"name": "torsion_angles", "frame": "angles"}})
    data = load_data(config)
    degrees = dataclasses.replace(data, train=np.rad2deg(data.train))
    with caplog.at_level("WARNING", logger="ndsm_jax"):
        check_data(config, data)
        assert not caplog.messages
        check_data(config, degrees)
    assert "go round 57.3 times; degrees are to be given as radians" in caplog.messages[0]
