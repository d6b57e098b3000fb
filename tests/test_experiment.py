"""Checks of the wiring that are made before anything is trained."""

import pytest

from ndsm_jax import experiment
from ndsm_jax.config import Config


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
