"""The likelihood of held-out items in a report."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import frames, processes, training
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import LIKELIHOODS
from ndsm_jax.experiment import experiment
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.reports.likelihood import likelihood
from tests.training.tiny_runs import tiny


def as_run(made, state, **options):
    """What `likelihood` reads of a run."""
    config = tiny(evaluate={"likelihood_points": 30} | options)
    return types.SimpleNamespace(config=config, experiment=made, state=state)


def a_dataset(x, *, value_range=None, shape=None):
    split = len(x) // 2
    return Dataset(
        name="array",
        train=x[:split],
        test=x[split:],
        train_labels=None,
        test_labels=None,
        shape=shape or x.shape[1:],
        value_range=value_range,
        source="test",
    )


def untrained(process, frame=None):
    network = ScoreMLP(width=8, depth=2, zero_output=True, outputs=process.noise_dim)
    objective = "dsm" if process.kernel else "path_dsm"
    made = experiment(process, frame=frame, network=network, objective=objective, sample_grid=40)
    return made, training.init_state(made, seed=0)


def test_items_on_levels_have_bits_per_dimension(rng):
    """Uniform draws of 17 levels: log2(17) bits a dimension at least, and a little more."""
    x = rng.integers(17, size=(400, 4)) / 8 - 1
    dataset = a_dataset(x.astype(np.float32), value_range=(-1.0, 1.0), shape=(2, 2, 1))
    made, state = untrained(processes.ornstein_uhlenbeck(4, variance=0.4))
    found = likelihood(as_run(made, state), dataset)
    for row in found["rows"].values():
        assert row["bits"] == pytest.approx(-row["value"] / (4 * np.log(2)))
        assert row["bits"] > np.log2(17) - 3 * row["se"] / (4 * np.log(2))
        assert row["noise"] == "uniform"  # nothing here peaks at the levels
    # N(0, 0.4) is not far from uniform on [-1, 1].
    assert found["rows"]["prior"]["bits"] == pytest.approx(np.log2(17), abs=0.6)
    assert found["repeated"] == 0
    # The same by a frame that spreads items over their levels itself.
    framed, state = untrained(made.process, frames.Pixels(levels=17))
    again = likelihood(as_run(framed, state), dataset)
    assert again["rows"]["prior"]["bits"] == pytest.approx(found["rows"]["prior"]["bits"], abs=0.02)


def test_columns_of_few_values_are_counted_and_missing_cells_left_out(rng):
    x = np.concatenate([rng.normal(size=(200, 1)), rng.integers(3, size=(200, 1))], axis=1)
    made, state = untrained(processes.ornstein_uhlenbeck(2))
    found = likelihood(as_run(made, state), a_dataset(x))
    assert found["repeated"] == 1
    missing = x.copy()
    missing[120:, 0] = np.nan
    assert likelihood(as_run(made, state), a_dataset(missing))["points"] == 20
    missing[105:, 0] = np.nan
    assert "5 of them held out" in likelihood(as_run(made, state), a_dataset(missing))["why_not"]


def test_without_a_density_the_reason_is_given(rng):
    dataset = a_dataset(rng.normal(size=(60, 1)))
    damped = untrained(processes.critically_damped(1), frames.Augmented(std=jnp.float32(0.1)))
    assert "velocities" in likelihood(as_run(*damped), dataset)["why_not"]
    assert likelihood(as_run(*damped, likelihood_points=0), dataset) is None


def test_noise_on_some_coordinates_leaves_out_the_bound(rng):
    process = processes.critically_damped(1)
    dataset = a_dataset(rng.normal(size=(60, 2)))
    found = likelihood(as_run(*untrained(process)), dataset)
    assert set(found["rows"]) == set(LIKELIHOODS) - {"model, bound"}
