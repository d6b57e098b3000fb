"""Wiring from a config to its parts, and the checks made before anything is trained."""

import jax
import numpy as np
import pytest

from ndsm_jax import datasets, experiment, gmm
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import abstract_prior, fit_prior


@pytest.mark.parametrize("kind", gmm.COVARIANCES)
def test_abstract_prior_has_the_structure_of_the_fitted_one(kind, rng):
    """Checkpoints are restored into it: same leaves, shapes and types."""
    mixture = {"num_components": 2, "covariance": kind, "rank": 3, "num_inits": 1}
    config = Config.from_dict({"mixture": mixture})
    data = rng.normal(size=(100, 5)).astype(np.float32)
    dataset = Dataset(
        name="noise",
        train=data,
        test=data,
        train_labels=None,
        test_labels=None,
        shape=(5,),
        value_range=None,
        source="",
    )
    fitted, report = fit_prior(config, dataset)
    stand_in = abstract_prior(config, 5)
    assert jax.tree.structure(fitted) == jax.tree.structure(stand_in)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), m) for m in (fitted, stand_in)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert report is not None


def test_weight_power_changes_the_weights_of_the_prior_alone():
    data = datasets.load("circle8", num_train=400, num_test=10)
    priors = {}
    for power in (1.0, 0.0):
        mixture = {"num_components": 3, "num_inits": 1, "weight_power": power}
        priors[power], _ = fit_prior(Config.from_dict({"mixture": mixture}), data)
    np.testing.assert_allclose(priors[0.0].log_weights, np.log(1 / 3), rtol=1e-6)
    assert np.ptp(priors[1.0].log_weights) > 0.1
    np.testing.assert_array_equal(priors[0.0].means, priors[1.0].means)
    np.testing.assert_array_equal(priors[0.0].factor, priors[1.0].factor)


def test_a_rank_that_does_not_fit_is_refused_before_fitting():
    config = Config.from_dict({"mixture": {"covariance": "low_rank", "rank": 8}})
    with pytest.raises(ValueError, match=r"mixture\.rank=8 .* 2 dimensions"):
        abstract_prior(config, 2)


def build(**sample):
    """An experiment on a mixture of unit variance (horizon 4) with a sample section."""
    config = Config.from_dict({"sample": sample})
    return experiment.build(config, (2,), experiment.abstract_prior(config, 2))


def test_few_steps_are_refused_where_a_step_is_explicit():
    """Five steps in the clock: the longest is 1.8 of the variance, Euler needs less than 1."""
    for options in ({"sampler": "reverse_sde"}, {"sampler": "multistep_flow", "churn": 1.0}):
        with pytest.raises(ValueError, match=r"longest step of sample\.steps=5 is 1\.\d"):
            build(steps=5, **options)
    for options in (
        {"sampler": "multistep_sde"},
        {"sampler": "multistep_flow"},
        {"sampler": "multistep_flow", "churn": 0.3},
        {"sampler": "heun_flow"},
    ):
        assert len(build(steps=5, **options).sample_grid) == 6


def test_churn_without_a_flow_is_refused():
    with pytest.raises(ValueError, match=r"sample\.churn"):
        build(sampler="reverse_sde", churn=0.5)
