"""The library without a config: an experiment of a process, trained with a folder and without."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ndsm_jax import frames, noising, processes, references, sampling
from ndsm_jax.experiment import experiment
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.optimisation import Optimiser
from ndsm_jax.runs import Run, read_metrics
from ndsm_jax.training import draw, train
from ndsm_jax.training.train import default_run

# The package has a function of the name of its module.
training_loop = importlib.import_module("ndsm_jax.training.train")

ROOT = pathlib.Path(__file__).parents[2]


def mixture(position: float = 1.0):
    return references.mixture([0.4, 0.6], [[-position, 0.0], [position, 0.0]], [0.2, 0.3])


def small(process=None, **options):
    network = ScoreMLP(width=8, depth=2, zero_output=True)
    process = process or processes.langevin(mixture())
    return experiment(process, network=network, sample_grid=12, **options)


def points(seed: int = 0, num: int = 100):
    return np.random.default_rng(seed).normal(size=(num, 2))


def trained(made=None, data=None, *, steps=8, **options):
    data = points() if data is None else data
    return train(made or small(), data, steps=steps, batch_size=16, progress=False, **options)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = trained()
    assert int(state.step) == 8
    assert not list(tmp_path.iterdir())
    samples = draw(small(), state, 20, progress=False)
    assert samples.shape == (20, 2)
    assert np.isfinite(samples).all()
    assert not list(tmp_path.iterdir())


def test_the_defaults_are_an_experiment_of_any_process():
    """Nothing but the process; the one that noises exactly is trained by denoising."""
    for process, objective in (
        (processes.langevin(mixture()), "path_dsm"),
        (processes.variance_preserving(2), "dsm"),
    ):
        made = experiment(process, objective=objective)
        state = train(made, points(), steps=1, batch_size=8, progress=False)
        assert int(state.step) == 1
        assert made.components is process.reference
        assert isinstance(made.frame, frames.Identity)


@pytest.mark.parametrize("whole_run", [True, False], ids=["Run", "folder"])
def test_with_a_folder_it_resumes_bitwise(whole_run, tmp_path):
    """8 steps without a folder = 3 steps, and 5 more from the folder."""
    folder = tmp_path / "run"
    made = small()
    run = folder
    if whole_run:
        run = Run(folder=folder, facts={"mine": 1}, log_every=2, checkpoint_every=2)
    trained(made, steps=3, run=run)
    resumed = trained(made, run=run)
    chex.assert_trees_all_equal(resumed, trained(made))
    steps = [row["step"] for row in read_metrics(folder)]
    assert steps == ([2, 3, 4, 6, 8] if whole_run else [3, 8])
    again = trained(made, run=run, steps=5)  # there is nothing to do
    chex.assert_trees_all_equal(again, resumed)


def test_another_experiment_is_refused(tmp_path):
    """Process, data, seed, batch size and network; the sampler is free."""
    trained(steps=2, run=tmp_path)
    other_process = small(processes.langevin(mixture(position=1.5)))
    with pytest.raises(ValueError, match=r"experiment\.process: \d+ in the checkpoint, \d+ now"):
        trained(other_process, run=tmp_path)
    other_network = experiment(
        processes.langevin(mixture()), network=ScoreMLP(width=9, depth=2, zero_output=True)
    )
    with pytest.raises(ValueError, match=r"experiment\.model"):
        trained(other_network, run=tmp_path)
    with pytest.raises(ValueError, match=r"\n  data: \d+ in the checkpoint, \d+ now"):
        trained(data=points(seed=1), run=tmp_path)
    with pytest.raises(ValueError, match=r"\n  seed: 0 in the checkpoint, 1 now"):
        trained(seed=1, run=tmp_path)
    with pytest.raises(ValueError, match="batch_size: 16 in the checkpoint, 20 now"):
        train(small(), points(), steps=8, batch_size=20, run=tmp_path, progress=False)
    longer_grid = experiment(
        processes.langevin(mixture()),
        network=ScoreMLP(width=8, depth=2, zero_output=True),
        sample_grid=20,
    )
    assert int(trained(longer_grid, steps=3, run=tmp_path).step) == 3


def test_another_optimiser_of_ones_own_is_refused(tmp_path):
    def made(rate):
        return small(optimiser=Optimiser(transform=optax.adam(rate)))

    trained(made(1e-3), steps=2, run=tmp_path)
    with pytest.raises(ValueError, match=r"experiment\.optimiser"):
        trained(made(1e-1), run=tmp_path)
    assert int(trained(made(1e-3), steps=3, run=tmp_path).step) == 3


def test_a_last_step_that_is_not_finite_is_told():
    far = Optimiser(transform=optax.scale(-np.inf))
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        trained(small(optimiser=far), steps=1)


def test_another_objective_is_refused(tmp_path):
    process = processes.variance_preserving(2)
    trained(small(process, objective="dsm"), steps=2, run=tmp_path)
    with pytest.raises(ValueError, match="belong to another experiment"):
        trained(small(process, objective="ism"), run=tmp_path)


def test_another_drift_of_the_same_name_is_refused(tmp_path):
    """A drift that closes over an array, and one that reads a global number."""

    def closes(rate):
        def drift(y, t):
            return -y * rate[0]

        return small(processes.process(drift, 1.4, mixture(), horizon=1.0))

    trained(closes(np.array([1.0])), steps=2, run=tmp_path)
    assert int(trained(closes(np.array([1.0])), steps=3, run=tmp_path).step) == 3
    with pytest.raises(ValueError, match=r"experiment\.process: \d+ in the checkpoint"):
        trained(closes(np.array([9.0])), run=tmp_path)


# --- parts that do not go together ---

DEGENERATE = processes.process(
    lambda y, t: -y, 1.0, references.standard_normal(2), horizon=1.0, noisy=(1,)
)


@pytest.mark.parametrize(
    "other",
    [
        processes.langevin(mixture(position=2.0)),
        processes.langevin(references.standard_normal(3)),
        dataclasses.replace(processes.langevin(mixture()), horizon=jnp.float32(7.0)),
        dataclasses.replace(processes.langevin(mixture()), diffusion=lambda t: 1.0 + t),
    ],
    ids=["reference", "dimension", "horizon", "diffusion"],
)
def test_noise_and_models_of_another_process_are_refused(other):
    process = processes.langevin(mixture())
    with pytest.raises(ValueError, match="noise is of another process"):
        experiment(process, noise=noising.path_windows(other, 20))
    probed = noising.Probed(noising=noising.local_steps(other, 20))
    with pytest.raises(ValueError, match="noise is of another process"):
        experiment(process, objective="ism", noise=probed)
    with pytest.raises(ValueError, match="model is of another process"):
        experiment(process, model=small(other).model)


def test_noise_and_models_of_an_equal_process_are_taken():
    first, again = processes.langevin(mixture()), processes.langevin(mixture())
    made = experiment(first, noise=noising.path_windows(again, 20), model=small(again).model)
    assert int(trained(made, steps=1).step) == 1


@pytest.mark.parametrize("objective", ["path_dsm_cv", "ndsm", "ndsm_cv"])
def test_noise_without_the_mu_that_an_objective_needs_is_refused(objective):
    process = processes.langevin(mixture())
    with pytest.raises(ValueError, match=f"objective='{objective}' needs mu.*companion=True"):
        experiment(process, objective=objective, noise=noising.path_windows(process, 20))
    noise = noising.path_windows(process, 20, companion=True)
    assert small(process, objective=objective, noise=noise).objective == OBJECTIVES[objective]


def test_degenerate_noise_has_a_default_sampler_and_a_refusal_of_all_that_is_wrong():
    made = experiment(DEGENERATE, objective="ndsm")
    assert made.sampler == sampling.ReverseSDE()
    with pytest.raises(ValueError, match=r"'path_dsm' needs noise in every.*one of ism, .*ndsm"):
        experiment(DEGENERATE)
    with pytest.raises(ValueError, match=r"'path_dsm'.*ndsm_cv; and .*multistep_sde"):
        experiment(DEGENERATE, sampler=sampling.MultistepSDE())


@pytest.mark.parametrize(
    ("process", "outputs", "needed"),
    [(None, 1, r"to \[\d+, 1\]; \[\d+, 2\]"), (DEGENERATE, 2, r"to \[\d+, 2\]; \[\d+, 1\]")],
    ids=["one for two", "two for one"],
)
def test_a_network_of_another_width_is_refused(process, outputs, needed):
    """One output for two coordinates would broadcast, and train."""
    process = process or processes.langevin(mixture())
    network = ScoreMLP(width=8, depth=1, outputs=outputs)
    made = experiment(process, objective="ndsm", network=network)
    with pytest.raises(
        ValueError, match=rf"network\.name: ScoreMLP maps states .*{needed} is needed"
    ):
        trained(made, steps=1)


FACTS = """
import json, sys
from ndsm_jax.training.train import default_run
from tests.training.test_library import points, small
print(json.dumps(default_run(small(), points(), "x", batch_size=16, seed=0).facts))
"""


def test_the_same_experiment_is_known_again_in_another_process():
    """Neither addresses nor the order of sets enter what a run is recognised by."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", FACTS], env=environment, capture_output=True, text=True, check=True
    )
    facts = default_run(small(), points(), "x", batch_size=16, seed=0).facts
    assert json.loads(result.stdout) == facts


STANDARDISED = frames.Standardised(shift=np.zeros(2), scale=np.ones(2))
COMPONENTS = frames.OfComponent(mixture=mixture())


@pytest.mark.parametrize(
    ("frame", "data", "options", "message"),
    [
        (None, points(), {"batch_size": 0}, r"batch_size=0"),
        (None, points()[:, :1], {}, r"data have 1 coordinates.*'langevin' has 2"),
        (None, np.tile(points(), 2), {}, r"data have 4 coordinates.*'langevin' has 2"),
        (STANDARDISED, np.tile(points(), 2), {}, r"4 coordinates"),
        (STANDARDISED, points()[:, :1], {}, r"1 coordinates"),  # they would broadcast
        (COMPONENTS, np.tile(points(), 2), {}, r"4 coordinates"),
        (None, points().ravel(), {}, r"data=float64\[200\]: numbers \[N, D\]"),
        (None, points()[:0], {}, r"shape \(0, 2\)"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_computed(
    frame, data, options, message, tmp_path, monkeypatch
):
    process = processes.ornstein_uhlenbeck(2) if frame is COMPONENTS else None
    made = small(process, frame=frame, objective="dsm" if process else "path_dsm")
    for name in ("init_state", "make_noise"):
        monkeypatch.setattr(training_loop, name, None)  # would raise
    options = {"batch_size": 16} | options
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message) as error:
        train(made, data, steps=3, run=folder, progress=False, **options)
    assert len(str(error.value).splitlines()) == 1
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_rows_that_are_not_finite_are_counted_and_named(bad, tmp_path, monkeypatch):
    """1e39 is finite in float64, and not in the float32 of the states."""
    data = points()
    data[[7, 30], 1] = bad
    monkeypatch.setattr(training_loop, "init_state", None)
    with pytest.raises(ValueError, match=r"2 of 100 rows of the data are not finite, first row 7"):
        trained(data=data, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_state_can_be_handed_over():
    """`state` goes on where it is, bitwise."""
    made = small()
    start = trained(made, steps=3)
    kept = jax.tree.map(np.array, start)
    chex.assert_trees_all_equal(trained(made, state=start), trained(made))
    chex.assert_trees_all_equal(start, kept)  # and is what it was
    chex.assert_trees_all_equal(trained(made, state=start, donate=True), trained(made))
