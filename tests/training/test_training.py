"""The loop: bitwise resume, one trace, averages, stops, pictures, and refusals."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import control_variates, training
from ndsm_jax import launch as launch_module
from ndsm_jax.config import Config
from ndsm_jax.control_variates import Products
from ndsm_jax.datasets import Dataset, batch_indices
from ndsm_jax.launch import describe, load_data, make_run, restore
from ndsm_jax.runs import loop, read_metrics
from ndsm_jax.training import step as training_step
from ndsm_jax.training.state import STREAM_NOISE, STREAM_STEPS
from tests.training.tiny_runs import TINY, run, tiny

# The package has a function of the name of its module.
training_loop = importlib.import_module("ndsm_jax.training.train")


VARIANTS = {
    "learned, probes": {},
    "learned, exact": {"control_variate": {"period": 2, "estimator": "exact", "chunk": 5}},
    "closed form, warm-up": {
        "control_variate": {"period": 2, "kind": "optimal"},
        "optimizer": {"warmup_steps": 2},
    },
    "accumulation": {"optimizer": {"accumulate": 3, "clip_norm": 1.0}},
    "ou, dsm, cosine": {
        "process": {"name": "ornstein_uhlenbeck"},
        "objective": {"name": "dsm"},
    },
    "component ou": {"process": {"name": "component_ou"}, "objective": {"name": "dsm"}},
    "critically damped": {
        "process": {"name": "critically_damped"},
        "objective": {"name": "dsm"},
        "sample": {"sampler": "reverse_sde", "steps": 100},
    },
    "path-space, quotient": {
        "objective": {"name": "path_dsm"},
        "noising": {"steps": 24, "k": 2, "simulation": "quotient", "ahead_mb": 0.02},
    },
    "window with a control variate": {
        "objective": {"name": "path_dsm_cv"},
        "noising": {"steps": 24, "k": 2, "window": 0.1, "integrator": "exponential"},
    },
    "dropout": {"network": {"width": 8, "depth": 2, "time_features": 4, "dropout": 0.5}},
    "one mu, four noises": {"noising": {"steps": 24, "k": 1, "noises": 4}},
    "unet": {
        "data": {"name": "digits", "num_train": 100, "num_test": 20, "flips": True},
        "network": {"name": "unet", "widths": (4, 8), "time_features": 4},
    },
}


OFTEN = ("learned, probes", "path-space, quotient")
"""Variants that `make test` resumes, too."""


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[] if v in OFTEN else pytest.mark.slow) for v in VARIANTS]
)
def test_resume_is_bitwise(variant, tmp_path):
    """8 steps = 3 steps + a new process's restore + 5 steps, in every leaf of the state."""
    config = tiny(**VARIANTS[variant])
    whole = run(config, tmp_path / "whole")
    shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    run(shorter, tmp_path / "parts")
    resumed = run(config, tmp_path / "parts")
    chex.assert_trees_all_equal(whole, resumed)
    assert int(resumed.step) == 8
    first, second = (
        [{k: v for k, v in row.items() if k != "steps_per_second"} for row in read_metrics(d)]
        for d in (tmp_path / "whole", tmp_path / "parts")
    )
    assert [row["step"] for row in first] == [4, 8]
    assert first[-1] == second[-1]
    assert [row["step"] for row in second] == [3, 4, 8]


def test_results_do_not_depend_on_how_a_run_is_cut_into_dispatches(tmp_path, monkeypatch):
    config = tiny()
    whole = run(config, tmp_path / "a")
    monkeypatch.setattr(loop.Clock, "steps", lambda self: 1)
    chex.assert_trees_all_equal(whole, run(config, tmp_path / "b"))


@pytest.mark.parametrize("variant", ["learned, probes", "learned, exact", "unet"])
def test_the_step_is_traced_once(variant, tmp_path, monkeypatch):
    chex.clear_trace_counter()  # it is kept by function, over the parameters of this test
    traced = chex.assert_max_traces(training.train_step, n=1)
    monkeypatch.setattr(training_step, "train_step", traced)
    run(tiny(**VARIANTS[variant]), tmp_path)


ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = {"train": TINY["train"] | {"steps": 400, "checkpoint_every": 5, "log_every": 5}}
COMMAND = """
import os, sys
from ndsm_jax.runs import MetricWriter
from tests.training.test_training import OPTIONS
from tests.training.tiny_runs import run, tiny
config = tiny(**OPTIONS)
original = MetricWriter.write
def write(self, step, scalars):
    original(self, step, scalars)
    print(step, flush=True)
MetricWriter.write = write
run(config, sys.argv[1])
"""


@pytest.mark.slow
def test_resume_is_bitwise_after_kill_9(tmp_path):
    """A run killed twice at arbitrary moments ends in the state of an undisturbed one."""
    config = tiny(**OPTIONS)
    whole = run(config, tmp_path / "whole")
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    for kill_after in (40, 150):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(tmp_path / "killed")],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= kill_after:
                break
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert process.returncode == -signal.SIGKILL
    steps = [row["step"] for row in read_metrics(tmp_path / "killed")]
    assert steps[-1] >= 40
    resumed = run(config, tmp_path / "killed")
    chex.assert_trees_all_equal(whole, resumed)
    steps = [row["step"] for row in read_metrics(tmp_path / "killed")]
    assert steps == list(range(5, 401, 5))


def test_batches_are_epochs_without_replacement():
    rows = [batch_indices(0, step, 10, 3) for step in range(6)]
    for epoch in (rows[:3], rows[3:]):
        assert len(set(np.concatenate(epoch))) == 9
    assert not np.array_equal(np.concatenate(rows[:3]), np.concatenate(rows[3:]))
    np.testing.assert_array_equal(rows[4], batch_indices(0, 4, 10, 3))


def test_first_step_is_adam_on_the_gradient_written_out(tmp_path):
    """One step against optax's definition: Adam's first update is -lr g / (|g| + eps)."""
    config = tiny(train=TINY["train"] | {"steps": 1, "log_every": 1})
    dataset = load_data(config)
    state = run(config, tmp_path)
    experiment = restore(tmp_path).experiment
    start = training.init_state(experiment, seed=0)
    key = jax.random.fold_in(jax.random.key(0), STREAM_STEPS)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), STREAM_NOISE)
    x0 = jnp.asarray(dataset.train[batch_indices(0, 0, 200, 16)])
    batch = experiment.noising(key, x0)

    def loss(params):
        return experiment.objective.terms(lambda y, t: experiment.model(params, y, t), batch)[
            0
        ].mean()

    gradient = jax.jit(jax.grad(loss))(start.params)
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g / (jnp.abs(g) + 1e-8), start.params, gradient)
    # Where the gradient is rounding noise its sign is, too.
    for p, e, g in zip(*map(jax.tree.leaves, (state.params, expected, gradient)), strict=True):
        clear = np.abs(g) > 1e-5
        np.testing.assert_allclose(np.asarray(p)[clear], np.asarray(e)[clear], atol=2e-6)
    # EMA in closed form: decay min(0.999, 1 / 10) at step 0.
    ema = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.params, state.params)
    chex.assert_trees_all_close(state.ema, ema, atol=1e-6)


def test_non_finite_values_stop_the_run_and_keep_the_last_checkpoint(tmp_path):
    config = tiny()
    run(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), tmp_path)
    before = restore(tmp_path).state
    original = training.train_step

    def explode(experiment, state, key, batch):
        state, metrics = original(experiment, state, key, batch)
        bad = jnp.where(state.step >= 6, jnp.nan, 0.0)
        return state, metrics | {"loss": metrics["loss"] + bad}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "train_step", explode)
        with pytest.raises(loop.NonFiniteError, match=r"at step 6.*learning_rate"):
            run(config, tmp_path)
    chex.assert_trees_all_equal(restore(tmp_path).state, before)


def test_a_change_is_offered_and_allowed_where_the_state_keeps_its_arrays(tmp_path):
    """Lion has one moment of each parameter, Adam two; a rate is a number of neither."""
    run(tiny(train={"steps": 2}), tmp_path)
    before = restore(tmp_path).state
    name, rate = {"name": "lion"}, {"learning_rate": 2e-3}
    with pytest.raises(ValueError, match=r"optimizer\.name: 'adam' in the checkpoint.*") as refused:
        run(tiny(optimizer=name | rate), tmp_path)
    assert "optimizer.learning_rate" in str(refused.value)
    assert "allow_changed" not in str(refused.value)
    with pytest.raises(ValueError, match=r"--allow_changed=optimizer\.name: .* other arrays"):
        run(tiny(optimizer=name), tmp_path, allow_changed=["optimizer.name"])
    for key in ("optimizer", "optimizer."):
        with pytest.raises(ValueError, match=rf"--allow_changed={key}: name a key.*learning_rate"):
            run(tiny(optimizer=rate), tmp_path, allow_changed=[key])
    with pytest.raises(ValueError, match=r"--allow_changed=optimizer\.learning_rate$"):
        run(tiny(optimizer=rate), tmp_path)
    chex.assert_trees_all_equal(restore(tmp_path).state, before)


def test_a_divergence_is_caught_and_its_remedy_can_be_followed_in_the_same_folder(tmp_path):
    diverging = tiny(optimizer={"learning_rate": 1e6})
    with pytest.raises(loop.NonFiniteError, match=r"not finite at step.*--allow_changed=optim"):
        run(diverging, tmp_path)
    lower = tiny(optimizer={"learning_rate": 1e-3})
    key = "optimizer.learning_rate"
    with pytest.raises(ValueError, match=rf"(?s)belong to another.*--allow_changed={key}$"):
        run(lower, tmp_path)
    with pytest.raises(ValueError, match=r"train\.seed: only keys of the sections"):
        run(lower, tmp_path, allow_changed=["train.seed"])
    shorter = dataclasses.replace(lower, train=dataclasses.replace(lower.train, steps=4))
    run(shorter, tmp_path, allow_changed=[key])
    state = run(lower, tmp_path)  # the change is part of the run from here on
    made = restore(tmp_path)
    changed = {"step": 0, "key": key, "before": 1e6, "now": 1e-3}
    assert made.host["changes"] == [changed]
    assert made.config.optimizer.learning_rate == 1e-3
    # As the first steps diverged at once, the run is that of the lower rate.
    chex.assert_trees_all_equal(state, run(lower, tmp_path / "fresh"))


def change_facts(folder, change):
    """Changes the facts of the newest checkpoint, with the checksum that they have then."""
    step = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    path = step / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    del manifest["crc32"]
    change(manifest["host"])
    crc32 = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    path.write_text(json.dumps(manifest | {"crc32": crc32}))


def test_facts_that_are_not_those_of_a_run_are_refused(tmp_path):
    """Whose checksum is right: of another program, or of somebody who means harm."""
    config = tiny()
    run(config, tmp_path / "good")
    needed = ["config", "sources", "data", "versions", "versions.ndsm_jax", "data.shape"]
    needed += [f"data.{name}" for name in ("value_range", "name", "digest", "num_train", "source")]
    for number, name in enumerate(needed):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        *parents, last = name.split(".")

        def without(facts, parents=parents, last=last):
            for parent in parents:
                facts = facts[parent]
            del facts[last]

        change_facts(folder, without)
        with pytest.raises(ValueError, match=rf"facts have no {re.escape(name)}"):
            restore(folder)
        with pytest.raises(ValueError, match=rf"facts have no {re.escape(name)}"):
            run(tiny(train=TINY["train"] | {"steps": 9}), folder)


def test_a_later_version_says_its_number(tmp_path):
    run(tiny(), tmp_path)

    def later(host):
        host["versions"]["ndsm_jax"] = "9.7"
        host["config"]["process"]["warp"] = 1.0

    change_facts(tmp_path, later)
    message = r"written by ndsm_jax 9\.7, and this is ndsm_jax .*process\.warp.*ndsm_jax==9\.7"
    with pytest.raises(ValueError, match=message):
        restore(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(tiny(train=TINY["train"] | {"steps": 9}), tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_what_is_in_the_way_is_named_before_anything_is_computed(name, tmp_path, monkeypatch):
    monkeypatch.setattr(launch_module, "fitted", None)
    path = tmp_path / "run" / name
    path.parent.mkdir()
    _ = path.mkdir() if "." in name else path.touch()
    with pytest.raises(ValueError, match=rf"{name} is a (file|folder) where a \w+ is needed"):
        run(tiny(), tmp_path / "run")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_in_a_dispatch_saves_and_the_same_command_resumes(
    number, tmp_path, monkeypatch
):
    config = tiny(train=TINY["train"] | {"checkpoint_every": 100})
    whole = run(config, tmp_path / "whole")
    original = training.make_dispatch

    def interrupted(seed, **options):
        dispatch = original(seed, **options)

        def call(*arguments):
            result = dispatch(*arguments)  # the old state is donated: nothing to save here
            os.kill(os.getpid(), number)
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "make_dispatch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    assert 0 < int(restore(tmp_path / "parts").state.step) < 8
    chex.assert_trees_all_equal(whole, run(config, tmp_path / "parts"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_poisoned_state_is_never_saved(tmp_path, monkeypatch):
    """Infinite products at step 4 give a NaN phi, though the loss is finite: it is not saved."""
    config = tiny(control_variate={"period": 4}, train=TINY["train"] | {"checkpoint_every": 2})

    def infinite(key, terms, params, batch, *, num_probes):
        return Products(*[jnp.full_like(batch.t, jnp.inf)] * 3)

    with monkeypatch.context() as patch:
        patch.setattr(control_variates, "probe_products", infinite)
        with pytest.raises(loop.NonFiniteError, match="step 4"):
            run(config, tmp_path)
    assert int(restore(tmp_path).state.step) == 2
    assert int(run(config, tmp_path).step) == 8


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    run(tiny(), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == [4, 8]
    assert read_metrics(tmp_path)[0]["loss"] != 1.0


def test_another_experiment_or_other_data_are_refused(tmp_path):
    config = tiny(train=TINY["train"] | {"steps": 3})
    run(config, tmp_path)
    other = tiny(optimizer={"learning_rate": 0.5}, train=TINY["train"] | {"steps": 5})
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.001 in the checkpoint"):
        run(other, tmp_path)
    dataset = load_data(config)
    changed = dataclasses.replace(dataset, train=dataset.train + 1)
    longer = tiny(train=TINY["train"] | {"steps": 5})
    with pytest.raises(ValueError, match=r"data\.digest: '\w+' in the checkpoint, '\w+' now"):
        run(longer, tmp_path, changed)
    # What a run may be resumed with: where data are, how it is sampled, evaluated and logged.
    free = tiny(
        data={"dir": "elsewhere"},
        sample={"seed": 3, "num": 7},
        evaluate={"max_points": 50},
        train=TINY["train"] | {"steps": 5, "log_every": 1, "keep": 1, "picture_every": 2},
    )
    make_run(free, dataset, tmp_path).check()
    cosine = tiny(optimizer={"schedule": "cosine"}, train=TINY["train"] | {"steps": 5})
    with pytest.raises(ValueError, match="schedule: 'constant' in the checkpoint") as error:
        make_run(cosine, dataset, tmp_path).check()
    assert "config.train.steps: 3 in the checkpoint, 5 now" in str(error.value)


def test_objective_and_process_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"objective\.name='dsm' needs a process"):
        run(tiny(objective={"name": "dsm"}), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_leaves_its_facts_and_pictures(tmp_path):
    config = tiny(train=TINY["train"] | {"steps": 4, "picture_every": 4, "tensorboard": True})
    run(config, tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert Config.from_dict(facts["config"]) == config
    assert facts["versions"]["jax"] == jax.__version__
    assert "3 components" in (tmp_path / "mixture.txt").read_text()
    assert (tmp_path / "images" / "samples" / "00000004.png").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").iterdir())
    row = read_metrics(tmp_path)[-1]
    assert {"loss", "grad_norm", "grad_variance", "eps_mean", "eps_max"} <= set(row)


@pytest.mark.parametrize("kind", ["diag", "tied", "full"])
def test_unstable_steps_are_refused_with_the_number_needed(kind, tmp_path):
    """The digits' constant pixels: variances of min_covariance, far below a grid step."""
    config = tiny(
        data={"name": "digits", "num_train": 200, "num_test": 50},
        mixture={"num_components": 2, "covariance": kind, "num_inits": 1},
    )
    with pytest.raises(ValueError, match=r"noising\.steps=24 is .* set noising\.steps to about"):
        run(config, tmp_path)


def test_sampling_may_not_start_below_the_trained_times():
    with pytest.raises(ValueError, match=r"sample\.smallest_variance"):
        describe(tiny(sample={"smallest_variance": 1e-5}), load_data(tiny()))


def test_warm_up_must_end_before_training():
    with pytest.raises(ValueError, match=r"optimizer\.warmup_steps=9"):
        describe(tiny(optimizer={"warmup_steps": 9}), load_data(tiny()))


@pytest.mark.parametrize("shape", [pytest.param((60, 1), marks=pytest.mark.slow), (60, 4, 4, 2)])
def test_pictures_of_unusual_shapes(shape, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=shape).astype(np.float32))
    config = tiny(
        data={"name": "array", "dir": str(path), "num_train": 0, "num_test": 0},
        mixture={"num_components": 2, "num_inits": 1},
        noising={"steps": 60, "k": 2},
        sample={"steps": 60},
        train=TINY["train"] | {"steps": 2, "picture_every": 2},
    )
    run(config, tmp_path / "run")
    assert (tmp_path / "run" / "images" / "samples" / "00000002.png").exists()


@pytest.mark.parametrize(
    ("num", "side", "data", "is_advised"),
    [
        (100, 16, {}, True),
        (999, 28, {"frame": "shared"}, True),
        (1000, 28, {}, False),
        (100, 8, {}, False),  # where a pixel is much
        (100, 28, {"shifts": 1}, False),
        (100, 28, {"frame": "standardised"}, False),  # which refuses it
    ],
)
def test_small_shifts_are_advised_where_they_help(num, side, data, is_advised):
    x = np.zeros((num, side * side), np.float32)
    dataset = Dataset(
        name="array",
        train=x,
        test=x[:2],
        train_labels=None,
        test_labels=None,
        shape=(side, side, 1),
        value_range=(-1.0, 1.0),
        source="zeros",
    )
    config = Config.from_dict({"data": data})
    assert launch_module.takes_shifts(config, dataset) is is_advised


def test_describe_shows_shapes_without_training():
    text = describe(tiny(), load_data(tiny()))
    assert "y: float32[16, 2, 2]" in text
    assert "parameters" in text


def test_variance_estimate_is_that_of_the_gradients(tmp_path):
    """With the exact estimator, grad_variance is the per-sample gradients' variance in NumPy."""
    config = tiny(
        control_variate={"estimator": "exact", "period": 1, "kind": "constant", "value": 0.0},
        optimizer={"learning_rate": 1e-12},
        train=TINY["train"] | {"steps": 1, "log_every": 1},
    )
    run(config, tmp_path)
    experiment = restore(tmp_path).experiment
    params = training.init_state(experiment, seed=0).params
    key = jax.random.fold_in(jax.random.key(0), STREAM_STEPS)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), STREAM_NOISE)
    x0 = jnp.asarray(load_data(config).train[batch_indices(0, 0, 200, 16)])
    batch = experiment.noising(key, x0)

    def losses(params):
        return experiment.objective.terms(lambda y, t: experiment.model(params, y, t), batch)[0]

    jacobian = jax.jit(jax.jacrev(losses))(params)
    flat = np.concatenate(
        [np.asarray(leaf).reshape(32, -1) for leaf in jax.tree.leaves(jacobian)], axis=1
    )
    expected = ((flat - flat.mean(0)) ** 2).sum(1).mean()
    assert read_metrics(tmp_path)[-1]["grad_variance"] == pytest.approx(expected, rel=1e-3)
