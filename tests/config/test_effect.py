"""Options know where they have an effect, and what they say is what the code does."""

import dataclasses
import inspect

import pytest

from ndsm_jax.config import BASELINES, Config, check_effect, has_effect
from ndsm_jax.config.assemble import build
from ndsm_jax.config.names import FITS, PROCESSES
from ndsm_jax.config.options import PLUGIN, POSITIVE
from ndsm_jax.config.parts import stand_in
from ndsm_jax.networks import NETWORKS
from ndsm_jax.runs import fingerprint
from ndsm_jax.sampling import SAMPLERS

OPTIONS = {
    f"{section}.{field.name}": field
    for section, values in vars(Config()).items()
    for field in dataclasses.fields(values)
}


def conditions(dotted):
    return OPTIONS[dotted].metadata["when"]


@pytest.mark.parametrize(
    ("tree", "key", "words"),
    [
        (
            {"process": {"beta_max": 3.0}},
            "process.beta_max",
            ["process.name='langevin'", "process.name=variance_preserving"],
        ),
        (
            {"sample": {"rtol": 1e-4}},
            "sample.rtol",
            ["sample.sampler='multistep_sde'", "sample.sampler=adaptive_flow"],
        ),
        (
            {"network": {"widths": (8, 16)}},
            "network.widths",
            ["network.widths=(8, 16)", "network.name='mlp'", "network.name=unet"],
        ),
        (
            {"objective": {"name": "ndsm"}, "noising": {"path_weights": "ramp"}},
            "noising.path_weights",
            ["objective.name='ndsm'", "objective.name=path_dsm or path_dsm_cv"],
        ),
        (
            {
                "process": {"name": "variance_preserving"},
                "objective": {"name": "dsm"},
                "mixture": {"num_components": 7},
            },
            "mixture.num_components",
            [
                "process.name='variance_preserving'",
                "process.name=component_ou",
                "process.name=langevin or file.py:function",
            ],
        ),
    ],
)
def test_a_key_that_nothing_reads_is_named_with_what_would(tree, key, words):
    config = Config.from_dict(tree)
    assert not has_effect(config, key)
    with pytest.raises(ValueError, match=f"^{key}=.* has no effect here") as error:
        check_effect(config, [key])
    for word in words:
        assert word in str(error.value)


def test_all_such_keys_are_named_at_once_and_only_those():
    config = Config.from_dict({"process": {"beta_max": 3.0}, "sample": {"rtol": 1e-4}})
    with pytest.raises(ValueError, match=r"beta_max") as error:
        check_effect(config, ["process.beta_max", "train.steps", "sample.rtol"])
    lines = str(error.value).splitlines()
    assert [line.split("=")[0].strip() for line in lines] == ["process.beta_max", "sample.rtol"]


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        ({}, ["train.steps", "mixture.num_components", "noising.path_weights", "network.width"]),
        ({"process": {"name": "variance_preserving"}}, ["process.beta_max", "process.beta_min"]),
        ({"process": {"name": "component_ou"}}, ["mixture.num_components", "mixture.covariance"]),
        ({"process": {"name": "my.py:f"}}, ["process.options", "mixture.seed", "reference.name"]),
        ({"sample": {"sampler": "adaptive_flow"}}, ["sample.rtol", "sample.atol"]),
        ({"network": {"name": "unet"}}, ["network.widths", "network.time_features"]),
        ({"reference": {"name": "student_t"}}, ["reference.degrees"]),
        ({"mixture": {"covariance": "low_rank"}}, ["mixture.rank"]),
        ({"noising": {"path_weights": "sinh"}}, ["noising.curvature"]),
        ({"data": {"name": "my.py:f"}}, ["data.options", "data.test_fraction"]),
    ],
)
def test_keys_that_are_read_pass(tree, keys):
    check_effect(Config.from_dict(tree), keys)


def test_a_condition_holds_only_where_its_own_key_is_read():
    """degrees belong to student_t, and a reference to processes that take any."""
    tree = {"reference": {"name": "student_t"}, "process": {"name": "variance_preserving"}}
    assert not has_effect(Config.from_dict(tree), "reference.degrees")
    tree = {"mixture": {"covariance": "low_rank"}, "process": {"name": "variance_preserving"}}
    assert not has_effect(Config.from_dict(tree), "mixture.rank")


@pytest.mark.parametrize("dotted", OPTIONS)
def test_conditions_name_existing_keys_and_values_that_they_can_have(dotted):
    for when in conditions(dotted):
        assert when, dotted
        for key, values in when.items():
            assert key != dotted
            allowed = OPTIONS[key].metadata
            assert values
            for value in values:
                if value == PLUGIN:
                    assert allowed["plugin"], f"{dotted}: {key} takes no {PLUGIN}"
                elif value == POSITIVE:
                    assert type(OPTIONS[key].default) in (int, float)
                elif allowed["choices"]:
                    assert value in allowed["choices"], f"{dotted}: {key}={value}"
                else:
                    assert type(value) is type(OPTIONS[key].default)


# --- what is declared and what is done ---


def declared(section, chooser, name):
    """Keys of a section that say that they are read where `chooser` is `name`."""
    return {
        dotted.partition(".")[2]
        for dotted in OPTIONS
        if dotted.startswith(f"{section}.")
        and any(name in when.get(chooser, ()) for when in conditions(dotted))
    }


def taken(make, section):
    """Keys of a section that a constructor takes by name, but those that are always read."""
    if dataclasses.is_dataclass(make):
        names = {field.name for field in dataclasses.fields(make)}
    else:
        names = set(inspect.signature(make).parameters)
    always = {"name", "horizon"}
    return {name for name in names if f"{section}.{name}" in OPTIONS} - always


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_take_what_is_declared_to_be_theirs(name):
    expected = taken(PROCESSES[name], "process")
    if name == "variance_exploding":  # that of its reference, which reads the key
        expected.add("sigma_max")
    assert declared("process", "process.name", name) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_what_is_declared_to_be_theirs(name):
    assert declared("network", "network.name", name) == taken(NETWORKS[name], "network")


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_take_what_is_declared_to_be_theirs(name):
    assert declared("sample", "sample.sampler", name) == taken(SAMPLERS[name], "sample")


@pytest.mark.parametrize("name", FITS)
def test_references_take_what_is_declared_to_be_theirs(name):
    reweighted = {"reweight"}  # after the fit, whatever the reference
    assert declared("reference", "reference.name", name) - reweighted == taken(
        FITS[name], "reference"
    )


CASES = {
    "langevin, path": {},
    "langevin, local": {"objective": {"name": "ndsm_cv"}},
    "langevin, linearised": {"objective": {"name": "local_dsm"}},
    "langevin, fixed gap": {"objective": {"name": "local_dsm"}, "noising": {"schedule": "gap"}},
    "langevin, perceptual": {
        "objective": {"name": "local_dsm"},
        "noising": {"schedule": "gap", "weight": "perceptual"},
    },
    "langevin, state": {"objective": {"name": "ism"}},
    "langevin, no mixture": {"reference": {"name": "student_t"}},
    "critically damped": {
        "process": {"name": "critically_damped"},
        "objective": {"name": "dsm"},
        "sample": {"sampler": "reverse_sde"},
    },
    "variance preserving, local": {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "ndsm"},
    },
    "wrapped": {
        "data": {"frame": "angles"},
        "process": {"name": "wrapped"},
        "objective": {"name": "dsm"},
    },
    **{name: BASELINES[name] for name in ("component_ou", "ddpm", "ncsn")},
}
REFUSED = {"noises", "churn", "rtol", "atol", "langevin_steps", "prior_mean", "reweight"}
"""Keys whose other values are errors where nothing reads them, from a config file too."""


def other_value(field, value):
    """Another value that the option can have."""
    if field.metadata["choices"]:
        return next(choice for choice in field.metadata["choices"] if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, value[-1])
    if isinstance(value, str):
        return "a=1"
    if isinstance(value, int):
        return value + 1
    return 0.5 * (value + field.metadata["high"]) if field.metadata["high"] < 9 else value + 0.5


@pytest.mark.parametrize("case", CASES)
def test_what_has_no_effect_changes_nothing(case):
    """All keys that are declared to be unread get another value: the experiment is the same.

    But for the estimator of what no control variate learns from.
    """
    config = Config.from_dict(CASES[case])
    tree = config.to_dict()
    changed = [
        dotted
        for dotted, field in OPTIONS.items()
        if not has_effect(config, dotted) and field.name not in REFUSED
    ]
    assert len(changed) > 10
    for dotted in changed:
        section, _, key = dotted.partition(".")
        tree[section] = tree[section] | {key: other_value(OPTIONS[dotted], tree[section][key])}
    other = Config.from_dict(tree)
    built = [vars(build(c, (2,), stand_in(c, (2,)))) for c in (config, other)]
    differing = [
        name for name in built[0] if fingerprint(built[0][name]) != fingerprint(built[1][name])
    ]
    assert set(differing) <= {"estimator"}, changed
