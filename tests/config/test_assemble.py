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
from ndsm_jax.launch import describe, fitted, load_data, restore
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


LEVELS = {
    "process": {"name": "variance_preserving"},
    "objective": {"name": "dsm"},
    "noising": {"times": "levels"},
    "network": {"parameterisation": "residual"},
}


def test_a_network_sees_time_on_the_grid_that_it_was_trained_on():
    """In x(t) + log(1 - exp(-x(t))) from -1 at the first level to 1 at T; of 20 levels those."""

    def made(parts, **sample):
        config = tiny(**LEVELS, sample={"grid": "uniform"} | sample)
        return assemble.measured(config, (2,), parts or stand_in(config, (2,)))

    parts, trained = made(None, steps=20)
    horizon = float(trained.process.horizon)
    levels = np.linspace(0, horizon, 21)
    np.testing.assert_allclose(parts.levels, levels, rtol=1e-6)
    for steps in (20, 5):
        _, sampled = made(parts, steps=steps)
        assert len(sampled.sample_grid) == steps + 1
        np.testing.assert_array_equal(sampled.noising.times.grid, parts.levels)
        x = np.asarray(sampled.process.clock.decay(jnp.asarray(levels[1:])), np.float64)
        own = x + np.log(-np.expm1(-x))
        np.testing.assert_allclose(
            sampled.model.precondition.coordinate(jnp.asarray(levels[1:])),
            2 * (own - own[0]) / (own[-1] - own[0]) - 1,
            atol=1e-5,
        )
    with pytest.raises(ValueError, match=r"smallest trained time is .*train another run"):
        made(parts, steps=200)


def test_a_run_keeps_the_levels_that_it_was_trained_at(tmp_path):
    """Sampled by fewer steps, and resumed with them: the same score, and the same levels."""
    sections = LEVELS | {"data": {"num_train": 100}}

    def with_steps(sample, train):
        return tiny(**sections, sample={"grid": "uniform", "steps": sample}, train={"steps": train})

    run(with_steps(20, 4), tmp_path)
    made, few = restore(tmp_path), restore(tmp_path, sample={"steps": 5})
    y, t = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32), jnp.full(6, 0.2)
    scores = [of.experiment.model.bind(of.state.params)(y, t) for of in (made, few)]
    np.testing.assert_array_equal(*scores)
    assert (len(made.experiment.sample_grid), len(few.experiment.sample_grid)) == (21, 6)
    with pytest.raises(ValueError, match="smallest trained time is"):
        restore(tmp_path, sample={"steps": 200})
    run(with_steps(5, 6), tmp_path)
    resumed = restore(tmp_path).experiment
    assert len(resumed.sample_grid) == 6
    np.testing.assert_array_equal(resumed.noising.times.grid, made.experiment.noising.times.grid)
    whole = run(with_steps(20, 6), tmp_path / "whole")
    np.testing.assert_array_equal(
        *(jax.tree.leaves(s.params)[0] for s in (restore(tmp_path).state, whole))
    )


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


def test_a_late_first_time_of_exploding_noise_is_warned_of(caplog):
    """sigma_max = 50: the default of 0.001 of v(T) is a variance of 2.5; 4e-7 is 0.001."""
    for smallest, warned in ((1e-3, ("noising", "sample")), (4e-7, ())):
        section = {"smallest_variance": smallest}
        config = Config.from_dict(
            {
                "process": {"name": "variance_exploding", "sigma_max": 50.0},
                "objective": {"name": "dsm"},
                "noising": section,
                "sample": section,
            }
        )
        caplog.clear()
        assemble.build(config, (2,), stand_in(config, (2,), None))
        assert [r.args[0] for r in caplog.records if "hides" in r.msg] == list(warned)
        assert all("about 4e-07" in r.getMessage() for r in caplog.records if "hides" in r.msg)


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


FAR = 1000000.25


@pytest.mark.parametrize("row", [3, 5])  # one of them is trained on, the other is held out
def test_a_far_value_that_leaves_nothing_of_a_feature_is_refused(tmp_path, rng, row):
    x = rng.normal(size=(100, 2))
    check_data(*own_array(tmp_path, x))
    x[row, 1] = FAR
    config, dataset = own_array(tmp_path, x)
    of = {"training": dataset.train, "held-out": dataset.test}
    ((split, at),) = ((k, np.argwhere(x == FAR)) for k, x in of.items() if (x == FAR).any())
    where = rf"{FAR} of feature 1 in row {at[0, 0]} of the {split} split.*name=table"
    with pytest.raises(ValueError, match=rf"feature 1 is .* {where}"):
        check_data(config, dataset)
    with pytest.raises(ValueError, match=where):  # a dry run says so
        describe(config, dataset)
    check_data(*own_array(tmp_path, x, data={"name": "table"}))  # the remedy


def test_a_far_pixel_is_refused(tmp_path, rng):
    x = rng.normal(size=(40, 8, 8))
    x[0, 1, 1] = 1e6
    with pytest.raises(
        ValueError,
        match=r"data\.frame='shared': the middle of all is .* of feature 9 in row .*; clip them",
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


@pytest.mark.parametrize("names", ["", "abc"])
def test_a_class_without_a_training_item_is_not_told(tmp_path, rng, names):
    """It would be sampled all the same."""
    x, labels = rng.normal(size=(90, 2)), np.repeat(np.arange(3), 30)
    labels = np.array(list(names))[labels] if names else labels
    np.savez(tmp_path / "x.npz", x=x[:60], labels=labels[:60], test=x[40:], test_labels=labels[40:])
    data = {"name": "array", "dir": str(tmp_path / "x.npz")}
    config = tiny(data={**dict.fromkeys(("num_train", "num_test"), 0), **data})
    check_samples(config, load_data(config))
    told = dataclasses.replace(config.network, condition="label")
    config = dataclasses.replace(config, network=told)
    message = f"1 of 3 classes have no training item, the first is {'c' if names else 2};"
    for refused in (check_samples, describe, fitted):
        with pytest.raises(ValueError, match=message):
            refused(config, load_data(config))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_by_name_is_what_its_constructor_makes(name):
    """No key of the config gives it another default."""
    assert assemble._sampler(tiny(sample={"sampler": name})) == SAMPLERS[name]()
