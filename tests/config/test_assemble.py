"""Wiring from a config to its parts, and the checks made before anything is trained."""

import dataclasses
import logging
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import datasets, references
from ndsm_jax.config import BASELINES, Config, assemble, check_effect, default
from ndsm_jax.config.parts import check_data, check_samples, fit, stand_in
from ndsm_jax.datasets import Dataset
from ndsm_jax.frames import Identity
from ndsm_jax.integrators import ACCURATE, MAX_STEPS
from ndsm_jax.launch import fitted, load_data, restore
from ndsm_jax.networks import balance
from ndsm_jax.runs import fingerprint
from ndsm_jax.sampling import SAMPLERS
from ndsm_jax.training import init_state
from tests.training.tiny_runs import TINY, run, tiny


@pytest.mark.parametrize("kind", references.COVARIANCES)
def test_the_stand_in_has_the_structure_of_what_is_fitted(kind, rng):
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
    fitted = fit(config, dataset)
    parts = [(p.frame, p.reference) for p in (fitted, stand_in(config, (5,)))]
    assert jax.tree.structure(parts[0]) == jax.tree.structure(parts[1])
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), part) for part in parts]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert fitted.report is not None


IMAGES = (-1.0, 1.0)


@pytest.mark.parametrize(
    ("sections", "shape", "value_range"),
    [
        ({"data": {"name": "array"}}, (4,), None),
        ({"data": {"name": "array"}}, (2, 2, 1), None),
        ({"data": {"name": "array"}}, (2, 2, 1), IMAGES),
        ({"data": {"name": "own.py:data"}}, (4,), None),
        ({"data": {"name": "own.py:data"}}, (2, 2, 1), IMAGES),
        ({"data": {"name": "folder"}}, (2, 2, 1), IMAGES),
        ({"data": {"frame": "standardised"}}, (4,), IMAGES),
        ({"data": {"frame": "shared"}}, (4,), None),
        (
            {
                "data": {"frame": "angles"},
                "process": {"name": "wrapped"},
                "objective": {"name": "dsm"},
            },
            (4,),
            None,
        ),
        ({"data": {"frame": "pixels"}}, (2, 2, 1), IMAGES),
        ({"data": {"name": "array", "frame": "identity"}}, (4,), None),
        ({"process": {"name": "component_ou"}, "objective": {"name": "dsm"}}, (4,), None),
        ({"process": {"name": "variance_exploding"}, "objective": {"name": "dsm"}}, (4,), None),
        (
            {
                "process": {"name": "critically_damped"},
                "objective": {"name": "dsm"},
                "sample": {"sampler": "reverse_sde"},
            },
            (4,),
            None,
        ),
        ({"reference": {"name": "student_t"}}, (4,), None),
        ({"reference": {"name": "logistic"}}, (4,), None),
        ({"reference": {"name": "uniform_torus"}, "data": {"frame": "angles"}}, (4,), None),
    ],
)
def test_stand_ins_of_all_frames_and_references_have_the_structure_of_what_is_built(
    sections, shape, value_range, rng
):
    """Of the parts, and of the experiment that they make."""
    config = Config.from_dict({"mixture": {"num_components": 2, "num_inits": 1}} | sections)
    x = np.clip(rng.normal(size=(80, 4)) / 3, -1, 1).astype(np.float32)
    dataset = Dataset(
        name="noise",
        train=x[:60],
        test=x[60:],
        train_labels=None,
        test_labels=None,
        shape=shape,
        value_range=value_range,
        source="",
    )
    fitted = fit(config, dataset)
    parts = (fitted, stand_in(config, shape, value_range))
    saved = [(p.frame, p.reference) for p in parts]
    assert jax.tree.structure(saved[0]) == jax.tree.structure(saved[1])
    shapes = [jax.tree.map(lambda x: (np.shape(x), np.result_type(x)), part) for part in saved]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    built = [assemble.build(config, shape, p) for p in parts]
    states = [jax.eval_shape(lambda e=e: init_state(e, seed=0)) for e in built]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert jax.tree.leaves(states[0]) == jax.tree.leaves(states[1])


@pytest.mark.slow
def test_a_run_on_images_of_ones_own_is_read_back(tmp_path, rng):
    """uint8 images have a range, and are not standardised: restored as they were trained."""
    path = tmp_path / "x.npy"
    np.save(path, rng.integers(0, 256, size=(60, 3, 3), dtype=np.uint8))
    config = tiny(
        data={"name": "array", "dir": str(path), "num_train": 0, "num_test": 0},
        mixture={"num_components": 1, "num_inits": 1},
        noising={"steps": 0, "k": 2},
        sample={"steps": 0},
        train=TINY["train"] | {"steps": 2},
    )
    state = run(config, tmp_path / "run")
    restored = restore(tmp_path / "run")
    assert isinstance(restored.experiment.frame, Identity)
    assert fingerprint(restored.state) == fingerprint(state)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    assert int(run(longer, tmp_path / "run").step) == 3


def test_weight_power_changes_the_weights_of_the_prior_alone():
    data = datasets.load("circle8", num_train=400, num_test=10)
    priors = {}
    for power in (1.0, 0.0):
        mixture = {"num_components": 3, "num_inits": 1, "weight_power": power}
        priors[power] = fit(Config.from_dict({"mixture": mixture}), data).reference
    np.testing.assert_allclose(priors[0.0].log_weights, np.log(1 / 3), rtol=1e-6)
    assert np.ptp(priors[1.0].log_weights) > 0.1
    np.testing.assert_array_equal(priors[0.0].means, priors[1.0].means)
    np.testing.assert_array_equal(priors[0.0].factor, priors[1.0].factor)


def test_a_rank_that_does_not_fit_is_refused_before_fitting():
    config = Config.from_dict({"mixture": {"covariance": "low_rank", "rank": 8}})
    with pytest.raises(ValueError, match=r"mixture\.rank=8 .* 2 dimensions"):
        stand_in(config, (2,))


def build(**sample):
    """An experiment on a mixture of unit variance (horizon 4) with a sample section."""
    config = Config.from_dict({"sample": sample})
    return assemble.build(config, (2,), stand_in(config, (2,)))


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
    config = Config.from_dict({"sample": {"sampler": "reverse_sde", "churn": 0.5}})
    with pytest.raises(ValueError, match=r"sample\.churn=0\.5 has no effect"):
        check_effect(config, ["sample.churn"])


def test_a_perceptual_weight_of_no_window_is_refused():
    config = Config.from_dict({"noising": {"weight": "perceptual"}})
    with pytest.raises(ValueError, match=r"noising\.weight='perceptual' .*local_dsm"):
        assemble.build(config, (2,), stand_in(config, (2,)))


# --- steps that are left to us ---


def emoji(rng, spread: float) -> Dataset:
    """Points of a file with modes of unit variance, and one of a far smaller spread."""
    wide = rng.normal(size=(300, 2)) + np.array([[0, 0], [9, 0], [0, 9]])[np.arange(300) % 3]
    tight = spread * rng.normal(size=(100, 2)) + 9
    x = rng.permutation(np.concatenate([wide, tight])).astype(np.float32)
    return Dataset(
        name="emoji",
        train=x[:320],
        test=x[320:],
        train_labels=None,
        test_labels=None,
        shape=(2,),
        value_range=None,
        source="test",
    )


def with_steps(**sections) -> Config:
    mixture = {"num_components": 4, "num_inits": 2, "min_covariance": 1e-9}
    return tiny(mixture=mixture, objective={"name": "path_dsm"}, **sections)


def num_steps(config: Config, fitted) -> tuple[int, int]:
    made = assemble.build(config, (2,), fitted)
    return len(made.noising.times.grid) - 1, len(made.sample_grid) - 1


def test_steps_are_as_many_as_the_stiffness_needs(rng, caplog):
    """A variance of 0.14^2 beside 1: more steps than usual resolve it, and nothing is raised.

    Those of noising are short enough for the variance that they noise to, not only stable.
    """
    euler = {"steps": 0, "integrator": "euler"}
    config = with_steps(noising=euler, sample={"steps": 0})
    fitted = assemble.resolvable(config, fit(config, emoji(rng, 0.14)))
    assert fitted.reference.smallest_variance() == pytest.approx(0.02, rel=0.3)
    with caplog.at_level(logging.INFO, logger="ndsm_jax"):
        noising, sampling = num_steps(config, fitted)
    assert assemble.MIN_NOISING_STEPS < noising <= MAX_STEPS
    assert assemble.MIN_SAMPLE_STEPS < sampling < MAX_STEPS
    assert f"noising.steps: {noising}, as the stiffness of langevin" in caplog.text
    assert f"sample.steps: {sampling}, as the stiffness of langevin" in caplog.text
    made = assemble.build(config, (2,), fitted)
    stiffness = float(made.process.known.stiffness)
    ratio = np.diff(made.noising.times.grid).max() * stiffness
    assert ratio < ACCURATE or (noising == MAX_STEPS and ratio < 1 and "% too large" in caplog.text)
    assert made.process.reference is fitted.reference
    # As many for exponential steps, which make no variance of a component too large.
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ndsm_jax"):
        exponential = with_steps(noising={"steps": 0}, sample={"steps": 0})
        assert num_steps(exponential, fitted)[0] == noising
    assert "too large" not in caplog.text
    # A flow's velocity is not stiff.
    flow = with_steps(noising={"steps": 0}, sample={"steps": 0, "sampler": "heun_flow"})
    assert num_steps(flow, fitted) == (noising, assemble.MIN_SAMPLE_STEPS)


def test_one_tiny_variance_among_large_ones_trains_by_default(rng, tmp_path, caplog):
    """It is raised to what the most steps resolve, and the log says so."""
    config = with_steps(noising={"steps": 0}, sample={"steps": 0})
    with caplog.at_level(logging.INFO, logger="ndsm_jax"):
        state = run(config, tmp_path, emoji(rng, 1e-3))
    assert int(state.step) == config.train.steps
    assert "the smallest was 1.0" in caplog.text or "the smallest was 9." in caplog.text
    assert "are raised to it, as 500 explicit steps resolve no less" in caplog.text
    assert "noising.steps: " in caplog.text
    assert "the stiffness of langevin" in caplog.text
    made = restore(tmp_path).experiment
    grid, stiffness = made.noising.times.grid, float(made.process.known.stiffness)
    assert len(grid) - 1 <= MAX_STEPS
    assert np.diff(grid).max() * stiffness < 1
    variances = np.sort(np.asarray(made.process.reference.component_variances()).ravel())
    assert variances[0] == pytest.approx(1 / stiffness, rel=1e-3)
    np.testing.assert_allclose(variances[1:], 1, rtol=0.4)  # the others are as they were


@pytest.mark.parametrize("spread", [0.14, 1e-3])
def test_too_few_steps_that_were_asked_for_are_still_an_error(spread, rng, tmp_path):
    config = with_steps(noising={"steps": 24})
    with pytest.raises(ValueError, match=r"noising\.steps=24 is .* set noising\.steps to about"):
        run(config, tmp_path, emoji(rng, spread))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("integrator", ["euler", "exponential"])
def test_few_steps_are_refused_where_they_are_not_exact(integrator):
    """One component: two steps of its whole relaxation are exact, and Euler's are not stable."""
    config = Config.from_dict(
        {
            "mixture": {"num_components": 1},
            "objective": {"name": "path_dsm"},
            "noising": {"steps": 3, "integrator": integrator},
        }
    )
    if integrator == "euler":
        with pytest.raises(ValueError, match=r"longest step of noising\.steps=3 is"):
            assemble.build(config, (2,), stand_in(config, (2,)))
    else:
        made = assemble.build(config, (2,), stand_in(config, (2,)))
        assert len(made.noising.times.grid) == 4


@pytest.mark.parametrize("file", ["latent", "gm2d", "mnist", "digits", "torsion"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_the_same_in_every_file(file, baseline):
    """What a file sets for its own method does not reach a baseline's loss or score."""
    tree = default()
    tree.update(BASELINES[baseline])
    wanted = Config.from_dict(tree)
    found = Config.from_dict(runpy.run_path(f"configs/{file}.py")["get_config"](baseline))
    assert found.noising.weight == wanted.noising.weight
    assert found.network.parameterisation == wanted.network.parameterisation
    assert found.sample.sampler == wanted.sample.sampler
    assert (found.noising.times, found.noising.grid) == (wanted.noising.times, wanted.noising.grid)


def test_what_is_measured_is_kept(rng, tmp_path, monkeypatch):
    """Targets where components overlap: a restored run has the weight, and measures nothing."""
    x = rng.normal(size=(400, 2)).astype(np.float32)
    data = dataclasses.replace(emoji(rng, 0.5), train=x[:300], test=x[300:])
    config = tiny(mixture={"num_components": 3}, objective={"name": "path_dsm"})
    config = dataclasses.replace(
        config, network=dataclasses.replace(config.network, parameterisation="local")
    )
    run(config, tmp_path, data)

    def fails(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(balance, "_measured", fails)
    made = restore(tmp_path)
    y, late = jnp.asarray(x[:50]), jnp.full(50, made.experiment.process.horizon)
    weight = made.experiment.noising.weight(y, late)
    own = made.experiment.model.precondition.weight(y, late)
    assert np.all(np.asarray(weight) <= 1.0001 * np.asarray(own))
    assert float(jnp.max(own / weight)) > 1.5


ANGLES = {"data": {"frame": "angles"}, "network": {"width": 8, "depth": 1}}
WRAPPED = {"process": {"name": "wrapped"}, "objective": {"name": "dsm"}}


@pytest.mark.parametrize("harmonics", [1, 3])
def test_a_network_of_angles_sees_their_harmonics(harmonics):
    tree = ANGLES | WRAPPED | {"network": ANGLES["network"] | {"harmonics": harmonics}}
    config = Config.from_dict(tree)
    check_effect(config, ["network.harmonics", "process.sigma_min", "process.sigma_max"])
    model = assemble.build(config, (3,), stand_in(config, (3,))).model
    params = model.init(jax.random.key(0))["params"]
    assert params["Dense_1"]["kernel"].shape == (6 * harmonics, 8)
    assert model(model.init(jax.random.key(0)), np.zeros((5, 3)), np.ones(5)).shape == (5, 3)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (ANGLES, r"drift of process 'langevin' is not periodic.*process\.name=wrapped"),
        (
            ANGLES | {"process": {"name": "variance_preserving"}, "objective": {"name": "dsm"}},
            r"drift of process 'variance_preserving' is not periodic",
        ),
        (WRAPPED, r"process 'wrapped' is on a torus.*set data\.frame to angles"),
    ],
)
def test_angles_and_processes_on_a_torus_need_each_other(sections, words):
    config = Config.from_dict(sections)
    with pytest.raises(ValueError, match=words):
        assemble.build(config, (3,), stand_in(config, (3,)))


# --- data that a config cannot serve -------------------------------------------------------------


def own_array(tmp_path, x, **sections):
    """A config of own data and the data set."""
    np.save(tmp_path / "own.npy", x)
    data = {"name": "array", "dir": str(tmp_path / "own.npy")} | sections.pop("data", {})
    config = Config.from_dict({"data": data, **sections})
    return config, load_data(config)


@pytest.mark.parametrize("row", [3, 5])  # one of them is trained on, the other is held out
def test_a_far_value_that_leaves_nothing_of_a_feature_is_refused(tmp_path, rng, row):
    x = rng.normal(size=(100, 2))
    check_data(*own_array(tmp_path, x))
    x[row, 1] = 1e6
    config, dataset = own_array(tmp_path, x)
    split = "training" if (dataset.train == 1e6).any() else "held-out"
    with pytest.raises(ValueError, match=rf"feature 1 is .* 1e\+06 in {split} row \d+.*name=table"):
        check_data(config, dataset)
    check_data(*own_array(tmp_path, x, data={"name": "table"}))  # the remedy


def test_a_far_pixel_is_refused(tmp_path, rng):
    x = rng.normal(size=(40, 8, 8))
    x[0, 0, 0] = 1e6
    with pytest.raises(
        ValueError, match=r"data\.frame='shared': the middle of all is .*; clip them"
    ):
        check_data(*own_array(tmp_path, x))
    check_data(*own_array(tmp_path, x.clip(-9, 9)))


def test_samples_are_counted_before_anything_is_built(tmp_path, rng):
    """A full covariance of 2,000 dimensions took minutes to fit to 100 samples."""
    config, dataset = own_array(
        tmp_path, rng.normal(size=(100, 2000)), mixture={"covariance": "full"}
    )
    with pytest.raises(ValueError, match=r"mixture\.covariance='full' in 2000 dimensions needs"):
        fitted(config, dataset)
    config, dataset = own_array(tmp_path, rng.normal(size=(100, 2)), mixture={"num_components": 50})
    with pytest.raises(ValueError, match=r"num_components=50 needs at least 100 .*lower it to 40,"):
        check_samples(config, dataset)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_by_name_is_what_its_constructor_makes(name):
    """No key of the config gives it another default."""
    assert assemble._sampler(tiny(sample={"sampler": name})) == SAMPLERS[name]()
