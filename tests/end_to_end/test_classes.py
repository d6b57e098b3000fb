"""Runs whose network is told labels: from the config to samples of a class."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import chex
import numpy as np
import pytest

from ndsm_jax import launch
from ndsm_jax.config import Config
from ndsm_jax.config.effect import check_effect
from ndsm_jax.latent.training import check_data
from ndsm_jax.launch import load_data, restore
from ndsm_jax.model import load
from ndsm_jax.reports.report import evaluate
from tests.training.tiny_runs import run, tiny

ROOT = pathlib.Path(__file__).parents[2]


def told(**sections):
    network = {"condition": "label"} | sections.pop("network", {})
    return tiny(network={"width": 8, "depth": 2, "time_features": 4} | network, **sections)


@pytest.fixture(scope="module")
def data():
    """Points of the modes of a toy, whose classes have names."""
    dataset = load_data(tiny())
    names = tuple(f"mode {chr(97 + i)}" for i in range(dataset.num_classes))
    return dataclasses.replace(dataset, class_names=names)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A run of 8 steps, with a control variate and held-out data; checkpoints of 3, 6 and 8."""
    folder = tmp_path_factory.mktemp("classes") / "run"
    run(told(train={"select": "held_out", "held_out_every": 4}), folder, data)
    return folder


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bitwise(folder, data, tmp_path):
    changes = {"select": "held_out", "held_out_every": 4}
    run(told(train=changes | {"steps": 5}), tmp_path, data)
    resumed = run(told(train=changes), tmp_path, data)
    chex.assert_trees_all_equal(resumed, restore(folder).state)
    with pytest.raises(ValueError, match=r"config\.network\.condition: 'label' in the checkpoint"):
        run(told(train=changes, network={"condition": "none"}), folder, data)


def test_the_folder_has_all_that_samples_of_a_class_need(folder, data):
    """Shares of the training items (some are held out), names, and the components of classes."""
    restored = restore(folder)
    classes = restored.experiment.classes
    kept = launch.set_aside(restored.config, data)[0].train_labels
    np.testing.assert_allclose(classes.shares, np.bincount(kept) / len(kept), rtol=1e-6)
    assert classes.log_weights.shape == (data.num_classes + 1, 3)
    np.testing.assert_allclose(np.exp(classes.log_weights).sum(axis=1), 1, rtol=1e-5)
    assert restored.experiment.dropout == 0.1
    model = load(folder)
    assert model.classes == data.class_names
    x = model.sample(6, label=["mode b", "mode a"])
    np.testing.assert_array_equal(x[::2], model.sample(6, label="mode b")[::2])
    assert np.abs(x[1::2] - model.sample(6, label="mode b")[1::2]).max() > 0
    assert model.sample(4).shape == (4, 2)
    assert np.isfinite(model.log_prob(data.test[:2], label="mode a")).all()
    assert np.isfinite(model.log_prob(data.test[:2])).all()
    with pytest.raises(ValueError, match="3 labels of 2 items; give one for each, or one for all"):
        model.log_prob(data.test[:2], label=["mode a", "mode b", "mode a"])
    # Guided: away from the score without labels, and from an earlier step. By the last parameters,
    # as held-out data choose those before the first step.
    last, early = (load(folder, step=step, sample={"ema": False}) for step in (None, 3))
    guided = last.sample(6, label="mode b", guidance_scale=3.0)
    assert np.abs(guided - last.sample(6, label="mode b")).max() > 0
    by_step = last.sample(6, label="mode b", guidance_scale=3.0, autoguide=early)
    assert np.abs(by_step - guided).max() > 0


@pytest.mark.slow
def test_a_run_without_labels_is_the_weaker_one_and_not_the_other_way(folder, data, tmp_path):
    changes = {"select": "held_out", "held_out_every": 4}
    plain = tiny(train=changes, network={"width": 4, "depth": 1, "time_features": 4})
    run(plain, tmp_path, data)
    weaker, model = load(tmp_path), load(folder)
    x = model.sample(4, label="mode a", guidance_scale=2.0, autoguide=weaker)
    assert np.isfinite(x).all()
    with pytest.raises(ValueError, match="told labels that the one that is guided is not"):
        weaker.sample(4, guidance_scale=2.0, autoguide=model)
    with pytest.raises(ValueError, match=r"label=mode a: .*network\.condition=label"):
        weaker.sample(4, label="mode a")
    with pytest.raises(ValueError, match=r"sample\.guidance_scale=2 .*--autoguide"):
        weaker.sample(4, guidance_scale=2.0)
    longer = dataclasses.replace(weaker.experiment.process, horizon=np.float32(9.0))
    other = dataclasses.replace(weaker.experiment, process=longer)
    with pytest.raises(ValueError, match="autoguidance: process of the weaker run differ"):
        launch.weaker_score(model.config, model.experiment, other, weaker.state)


def test_the_evaluation_says_how_often_samples_are_of_their_class(folder, data, tmp_path):
    restored = restore(folder)
    result = evaluate(restored, data, tmp_path, num=60, progress=False)
    found = result.labels
    assert set(found) == {"value", "se", "chance", "data", "classes"}
    assert len(found["classes"]) == data.num_classes
    assert found["data"] > 0.9  # of points in modes that hardly touch, by their nearest neighbours
    assert "label asked for" in result.table()
    assert json.loads((tmp_path / "metrics.json").read_text())["labels"] == found
    assert "labels that the network was told" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_command_takes_classes_by_their_names(folder):
    script = ROOT / "experiments" / "sample.py"
    words = [sys.executable, str(script), f"--workdir={folder}", "--num=4", "--label=mode a,mode b"]

    def command(*flags):
        return subprocess.run([*words, *flags], capture_output=True, text=True)

    result = command("--guidance_scale=2", f"--autoguide={folder}", "--autoguide_step=3")
    assert result.returncode == 0, result.stderr
    assert np.load(folder / "samples.npy").shape == (4, 2)
    result = command("--labels_per_class=3")
    assert result.returncode == 1
    assert "error: --labels_per_class and --data_dir name the components" in result.stderr


# --- what is refused ---


def test_data_without_labels_are_refused(data, tmp_path):
    plain = dataclasses.replace(data, train_labels=None, test_labels=None, class_names=())
    for call in (run, lambda config, folder, data: launch.describe(config, data)):
        with pytest.raises(ValueError, match=r"network\.condition='label': data\.name='gaussians'"):
            call(told(), tmp_path, plain)
    assert "condition" in launch.describe(told(), data)


def test_keys_about_labels_are_read_where_the_network_is_told_some():
    keys = ["network.label_dropout", "sample.guidance_scale", "sample.guidance_high"]
    check_effect(told(), ["network.condition", *keys])
    for key in keys:
        with pytest.raises(ValueError, match=r"it is read with network\.condition=label"):
            check_effect(tiny(), [key])


NETWORK = """
import flax.linen as nn

class Plain(nn.Module):
    @nn.compact
    def __call__(self, y, c{}):
        return nn.Dense(y.shape[-1])(y)

def plain(classes):
    assert classes == {}
    return Plain()
"""


def test_a_network_of_ones_own_has_to_take_a_condition(data, tmp_path):
    for parameter, refused in (("", True), (", condition", False)):
        path = tmp_path / f"network{refused}.py"
        path.write_text(NETWORK.format(parameter, data.num_classes))
        config = told(network={"name": f"{path}:plain"}, train={"steps": 1})
        if refused:
            with pytest.raises(ValueError, match="takes no argument `condition`; give"):
                launch.describe(config, data)
        else:
            assert "network" in launch.describe(config, data)


def test_joint_training_of_an_autoencoder_tells_no_labels(data):
    images = dataclasses.replace(data, value_range=(-1.0, 1.0))
    tree = {
        "network": {"condition": "label"},
        "autoencoder": {"kind": "vae", "batch_size": 16},
        "joint": {"steps": 5, "batch_size": 16},
    }
    with pytest.raises(ValueError, match=r"joint\.steps=5: .*network\.condition to none"):
        check_data(Config.from_dict(tree), images)
