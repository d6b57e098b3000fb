"""The memory that a training needs, against sizes counted by hand, and the refusal before a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import launch, processes, references
from ndsm_jax.experiment import experiment
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.training import memory
from tests.training.tiny_runs import tiny


def test_sizes_are_those_of_the_shapes():
    network = ScoreMLP(width=32, depth=2, outputs=2)
    made = experiment(processes.ornstein_uhlenbeck(2), objective="dsm", network=network)
    needs = memory.needed(made, 1000, 2, batch_size=64, select=True)
    params = 4 * (3 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2)  # the time is a third input
    assert needs["states"] == 4 * 1000 * 2
    # Parameters, average, best average and Adam's two moments, three times, and a few counters.
    assert needs["parameters, averages, optimiser"] == pytest.approx(3 * 5 * params, rel=0.02)
    assert needs["gradient"] == 2 * params
    # GELU of 256 states keeps some values of each hidden unit: at least two, at most twenty.
    hidden = 4 * 256 * 2 * 32
    assert 2 * hidden < needs["activations"] < 20 * hidden


def test_what_is_kept_for_the_backward_pass_grows_with_the_batch():
    made = experiment(processes.ornstein_uhlenbeck(2), objective="dsm", network=ScoreMLP())
    sizes = [memory.needed(made, 9, 2, batch_size=n)["activations"] for n in (64, 128, 256)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.05)


def test_operations_within_loops_and_branches_are_seen():
    def function(x):
        def body(i, y):
            return jax.lax.cond(i > 0, lambda y: y, lambda y: jnp.outer(y, y).sum(0), y)

        return jax.lax.fori_loop(0, 3, body, x)

    assert memory._largest(function, jnp.zeros(100)) >= 4 * 100 * 100


def test_more_than_there_is_is_refused_with_the_largest_part_and_its_remedy():
    with pytest.raises(ValueError, match=r"3 GB .*a 1 GB, b 2 GB.* 2\.5 GB are there; less b"):
        memory.check({"a": 1e9, "b": 2e9}, 2.5e9, {"b": "less b"})
    memory.check({"a": 1e9}, 1e9, {})


@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        ({"network": {"width": 65536, "depth": 8}}, r"lower network\.width"),
        ({"train": {"batch_size": 10**7}, "noising": {"k": 1000}}, r"lower train\.batch_size"),
        ({"mixture": {"num_components": 99_999}}, r"mixture\.num_components=99999 needs at least"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_anything_is_computed(sections, remedy):
    config = tiny(**sections)
    dataset = launch.load_data(config)
    with pytest.raises(ValueError, match=remedy):
        launch.foreseen(config, dataset)


def test_a_fit_that_cannot_fit_is_refused_by_its_sizes():
    assert references.fit_bytes(10**6, 784, 400, "full") > 4 * 8 * 400 * 784**2
    data = np.zeros((10**5, 1))
    config = tiny(mixture={"num_components": 1000, "covariance": "full"})
    with pytest.raises(ValueError, match=r"the mixture's fit .*; lower mixture\.num_components"):
        launch.check_sizes(config, len(data), 10**4)
