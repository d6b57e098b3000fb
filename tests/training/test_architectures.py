"""Training of networks with attention, through configs."""

import chex
import numpy as np
import pytest

from ndsm_jax.config import check_effect
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import stand_in
from ndsm_jax.launch import restore
from tests.training.tiny_runs import run, tiny

NETWORKS = {
    "dit": {"width": 16, "depth": 1, "patch": 4, "head_width": 8},
    "adm": {"widths": (8, 8), "blocks": 1, "attention": 4},
}


def configured(name, steps, *, optimizer=None, **network):
    return tiny(
        data={"name": "digits", "num_train": 120, "num_test": 30},
        objective={"name": "path_dsm"},
        control_variate={"period": 20},
        network={"width": 256, "depth": 5, "name": name, "time_features": 4}
        | NETWORKS[name]
        | network,
        optimizer=optimizer or {},
        train={"steps": steps, "batch_size": 8, "log_every": 2, "checkpoint_every": 2},
    )


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("dit", {"name": "muon", "schedule": "inverse_sqrt", "warmup_steps": 1}),
        ("adm", {"name": "adamw"}),
    ],
)
@pytest.mark.slow
def test_a_run_resumes_bitwise_with_dropout_and_is_read_back(name, optimizer, tmp_path):
    """bfloat16, rematerialised, told labels and the component's mean: 4 steps, and 2 and 2."""
    options = {"dropout": 0.3, "dtype": "bfloat16", "remat": True, "condition": "label"}
    of = lambda steps: configured(name, steps, optimizer=optimizer, **options)  # noqa: E731
    whole = run(of(4), tmp_path / "whole")
    run(of(2), tmp_path / "parts")
    chex.assert_trees_all_equal(run(of(4), tmp_path / "parts"), whole)
    back = restore(tmp_path / "parts")
    chex.assert_trees_all_equal(back.state.params, whole.params)
    y, told = np.zeros((3, 64), np.float32), np.arange(3, dtype=np.int32)
    scores = [
        back.experiment.model.bind(whole.params, told)(y, np.full(3, 0.1, np.float32))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*scores)
    assert np.isfinite(scores[0]).all()


@pytest.mark.parametrize(
    ("sections", "key", "message"),
    [
        ({"network": {"name": "dit", "patch": 3}}, None, r"network\.patch=3 does not divide"),
        ({"network": {"name": "adm"}, "data": {"name": "gaussians"}}, None, "needs images"),
        ({"network": {"patch": 2}}, "network.patch", "read with network.name=dit"),
        (
            {"optimizer": {"weight_decay": 0.1}},
            "optimizer.weight_decay",
            "read with optimizer.name=adamw or lion or muon",
        ),
    ],
)
def test_sizes_that_do_not_fit_and_keys_without_effect_are_refused(sections, key, message):
    config = tiny(**({"data": {"name": "digits"}} | sections))
    shape = (8, 8, 1) if config.data.name == "digits" else (2,)
    parts = stand_in(config, shape)
    with pytest.raises(ValueError, match=message):
        check_effect(config, [key]) if key else build(config, shape, parts)
