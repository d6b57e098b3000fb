"""References other than a fitted mixture, from a config to restored samples."""

import logging

import chex
import jax
import numpy as np
import pytest

from ndsm_jax import noising, references
from ndsm_jax.config.assemble import build, resolvable
from ndsm_jax.config.parts import fit
from ndsm_jax.launch import draw_as_configured, load_data, restore
from tests.training.tiny_runs import run, tiny

AUTO = {"noising": {"steps": 0, "k": 2}, "sample": {"steps": 0, "sampler": "multistep_sde"}}
FILE = """
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ndsm_jax import processes, references


def well(y):
    return 4 * (y[0] ** 2 - 1) ** 2 + 2 * y[1] ** 2


def double_well(states):
    x = np.asarray(states, np.float64)
    assert np.std(x[:, 0]) < 3  # it is shown states of the run, never others
    return references.energy(well, references.rejection_samples(
        jax.random.key(0), well, low=[-2.0, -3.0], high=[2.0, 3.0], num=2000))


@partial(jax.tree_util.register_dataclass, data_fields=("mean",), meta_fields=("variance",))
@dataclasses.dataclass(frozen=True)
class Static:
    mean: jax.Array
    variance: float
    dim = 2
    def sample(self, key, shape=()):
        return self.mean + self.variance**0.5 * jax.random.normal(key, (*shape, 2))
    def log_prob(self, y):
        return -0.5 * ((y - self.mean) ** 2).sum(-1) / self.variance
    def score(self, y):
        return -(y - jnp.broadcast_to(self.mean, y.shape)) / self.variance
    def typical_variance(self):
        return jnp.float32(self.variance)
    def stiffness(self):
        return 1 / self.variance


def static(states):
    return Static(jnp.asarray(np.mean(states, 0)), float(np.var(states)))


def closed_over(states):
    variance = float(np.var(states))
    return references.energy(lambda y: 0.5 * (y**2).sum() / variance, np.asarray(states))


def tight(reference):
    return processes.langevin(reference)


def unknown(reference):
    return processes.process(lambda y, t: -y, 2**0.5, reference, horizon=1.0)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    (folder / "own.py").write_text(FILE)
    x = np.random.default_rng(0).normal(size=(250, 2)) * [0.3, 0.5]
    x[:, 0] += np.where(np.random.default_rng(1).random(250) < 0.3, -1.0, 1.0)
    np.save(folder / "x.npy", x)
    return folder


def config(file, **sections):
    data = {"name": "array", "dir": str(file / "x.npy"), "num_train": 0, "num_test": 0}
    return tiny(**AUTO, **({"data": data} | sections))


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("student_t", references.StudentT, {}),
        pytest.param("logistic", references.Logistic, {}, marks=pytest.mark.slow),
        pytest.param("student_t", references.Tilted, {"reweight": 2}, marks=pytest.mark.slow),
        pytest.param("own.py:double_well", references.Energy, {}, marks=pytest.mark.slow),
        ("own.py:double_well", references.Tilted, {"reweight": 2}),
    ],
)
def test_a_run_is_trained_restored_and_sampled(name, kind, more, file, tmp_path):
    name = f"{file}/{name}" if ".py" in name else name
    data = {"name": "array", "dir": str(file / "x.npy"), "num_train": 0, "num_test": 0}
    frame = {"frame": "identity"} if ".py" in name else {}
    made = config(file, data=data | frame, reference={"name": name, **more})
    state = run(made, tmp_path)
    restored = restore(tmp_path)
    chex.assert_trees_all_equal(restored.state, state)
    reference = restored.experiment.process.reference
    assert isinstance(reference, kind)
    again = resolvable(made, fit(made, load_data(made))).reference
    chex.assert_trees_all_equal(jax.tree.leaves(reference), jax.tree.leaves(again))
    y = np.random.default_rng(2).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_array_equal(reference.score(y), again.score(y))
    assert restored.experiment.components is None
    x = draw_as_configured(made, restored.experiment, restored.state, 20, progress=False)
    assert x.shape == (20, 2)
    assert np.isfinite(x).all()
    run(made, tmp_path)  # nothing to do, and no complaint


@pytest.mark.parametrize("name", ["static", "closed_over"])
def test_a_reference_that_could_not_be_restored_is_refused_before_training(name, file, tmp_path):
    data = {"name": "gaussians", "num_train": 400, "num_test": 50}
    made = tiny(**AUTO, data=data, reference={"name": f"{file}/own.py:{name}"})
    with pytest.raises(ValueError, match=r"reference\.name=.*must be arrays"):
        run(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_torus_is_of_angles(file):
    made = config(file, reference={"name": "uniform_torus"})
    with pytest.raises(ValueError, match=r"uniform_torus.*data\.frame"):
        fit(made, load_data(made))


def test_any_process_of_a_mixture_has_it_raised_to_what_steps_resolve(file, caplog):
    """A component of two equal points among wide ones, in a process from a file."""
    mixture = {"num_components": 3, "min_covariance": 1e-7, "num_inits": 1}
    made = config(file, process={"name": f"{file}/own.py:tight"}, mixture=mixture)
    dataset = load_data(made)
    dataset.train[:8] = [5.0, 5.0]
    with caplog.at_level(logging.INFO, logger="ndsm_jax"):
        parts = resolvable(made, fit(made, dataset))
    assert "are raised to it" in caplog.text
    grid = build(made, (2,), parts).noising.times.grid
    assert np.diff(grid).max() / parts.reference.smallest_variance() < 1


def test_an_unknown_stiffness_is_guessed_and_never_refused(file, caplog):
    mixture = {"num_components": 3, "min_covariance": 1e-7, "num_inits": 1}
    made = config(file, process={"name": f"{file}/own.py:unknown"}, mixture=mixture)
    dataset = load_data(made)
    dataset.train[:8] = [5.0, 5.0]
    with caplog.at_level(logging.INFO, logger="ndsm_jax"):
        build(made, (2,), resolvable(made, fit(made, dataset)))
    assert "whose stiffness is not known" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused_before_the_fit(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file; choose another folder"):
        run(tiny(), tmp_path / "file" / "run")


STRETCHED = np.array([[3.0, 2.9], [0.0, 0.3]])


@pytest.mark.parametrize(
    ("mixture", "shape", "found"),
    [
        pytest.param({"num_components": 0}, np.eye(2), (1, "spherical"), marks=pytest.mark.slow),
        ({"num_components": 0, "covariance": "auto"}, np.eye(2), (1, "spherical")),
        ({"num_components": 0, "covariance": "auto"}, np.diag([1.0, 9.0]), (1, "diag")),
        ({"num_components": 2, "covariance": "auto"}, STRETCHED, (2, "full")),
    ],
)
def test_what_was_chosen_of_the_mixture_is_restored(tmp_path, mixture, shape, found):
    """With one component the network is in no local coordinates: its kernels have other shapes."""
    x = np.random.default_rng(0).normal(size=(200, 2)) @ shape
    np.save(tmp_path / "x.npy", x)
    data = {"name": "array", "dir": str(tmp_path / "x.npy"), "num_train": 0, "num_test": 0}
    data |= {"frame": "shared"}
    process, objective = {"name": "langevin"}, {}
    if found[1] != "spherical":  # where Langevin noising needs many steps
        process, objective = {"name": "component_ou"}, {"name": "dsm"}
    config = tiny(data=data, mixture=mixture, process=process, objective=objective)
    state = run(config, tmp_path / "run")
    restored = restore(tmp_path / "run")
    components = restored.experiment.components
    assert (components.num_components, components.covariance) == found
    chex.assert_trees_all_equal(restored.state, state)
    run(config, tmp_path / "run")  # resumes


def test_local_dsm_chooses_its_windows_on_training_data_and_keeps_them(tmp_path):
    data = {"name": "gaussians", "num_train": 60, "num_test": 20}
    config = tiny(data=data, objective={"name": "local_dsm"})
    run(config, tmp_path / "run")
    restored = restore(tmp_path / "run")
    x, starts = load_data(config).train, restored.parts.starts
    assert starts is not None
    assert starts.shape == (noising.num_paths(2), 2)
    assert {tuple(row) for row in np.asarray(starts)} == {tuple(row) for row in np.float32(x)}
    made = restored.experiment
    expected = noising.controlled_starts(
        made.process,
        made.noising.times.grid,
        made.noising.linearised,
        tolerance=config.noising.tolerance,
        x0=starts,
    )
    np.testing.assert_array_equal(made.noising.starts, expected)
    run(config, tmp_path / "run")  # resumes
