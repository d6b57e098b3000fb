"""Networks of angles: exactly periodic, whatever the network, and able to tell all angles apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import networks, processes
from ndsm_jax.clock import time_coordinate


def model(network, process, number=1):
    coordinate = time_coordinate(process.clock, process.horizon, "clock", first=1e-3)
    return networks.ScoreModel(
        network=network,
        dim=process.dim,
        precondition=networks.Residual(process=process, coordinate=coordinate),
        features=networks.harmonics(process.known.period, number),
    )


@pytest.mark.parametrize("number", [1, 3])
def test_harmonics_are_cosines_and_sines_coordinate_by_coordinate(number, rng):
    y = rng.uniform(-20, 20, size=(50, 3))
    found = networks.harmonics(5.0, number)(jnp.asarray(y, jnp.float32))
    assert found.shape == (50, 6 * number)
    phase = 2 * np.pi / 5 * y[:, :, None] * np.arange(1, number + 1)
    expected = np.concatenate([np.cos(phase), np.sin(phase)], axis=-1).reshape(50, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5 * number)


NETWORKS = {
    "mlp": networks.ScoreMLP(width=32, depth=2, skip=True, time_features=16, outputs=12),
    "unet": networks.UNet(shape=(3, 4, 1), widths=(8,), time_features=8),
}


@pytest.mark.parametrize(("name", "number"), [("mlp", 1), ("mlp", 3), ("unet", 2)])
def test_scores_are_periodic_to_float_precision(name, number, rng):
    """Bitwise where a period on is a float32 number: a period of 8, states in steps of 2^-16.

    For the period 2 pi within what the rounding of y + 2 pi k, 2e-6 of 5 turns, changes.
    """
    t = jnp.asarray(rng.uniform(0.01, 1, size=64), jnp.float32)
    turns = rng.integers(-5, 6, size=(64, 12))
    for period in (8.0, 2 * np.pi):
        process = processes.wrapped(12, period=period)
        score = model(NETWORKS[name], process, number)
        params = score.init(jax.random.key(0))
        y = rng.integers(-(2**18), 2**18, size=(64, 12)) * (period / 2**19)
        compiled = jax.jit(score.__call__)
        here, there = (
            np.asarray(compiled(params, jnp.asarray(a, jnp.float32), t))
            for a in (y, y + period * turns)
        )
        assert here.shape == (64, 12)
        assert np.abs(here).max() > 0.1
        if period == 8:
            np.testing.assert_array_equal(there, here)
        else:
            np.testing.assert_allclose(there, here, atol=3e-5 * number * np.abs(here).max())


def test_a_network_of_another_width_is_refused():
    """A ScoreMLP has as many outputs as it has inputs, if it is not told."""
    score = model(networks.ScoreMLP(width=4, depth=1), processes.wrapped(2))
    params = jax.eval_shape(score.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"ScoreMLP maps states .*\[5, 4\].*\[5, 2\] is needed"):
        jax.eval_shape(score.__call__, params, jnp.zeros((5, 2)), jnp.ones(5))


@pytest.mark.parametrize(("period", "number"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_no_harmonics_are_refused(period, number):
    with pytest.raises(ValueError, match=r"harmonics: (period|number)="):
        networks.harmonics(period, number)
