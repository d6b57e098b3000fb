"""Configuration: round trip, files, and errors that name the dotted key."""

import dataclasses
import importlib
import math
import pathlib

import pytest

from ndsm_jax import config
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import stand_in
from ndsm_jax.frames import component_mixture

CONFIGS = sorted(p.stem for p in pathlib.Path("configs").glob("*.py"))


def test_default_round_trip():
    assert Config.from_dict(config.default()) == Config()
    assert Config.from_dict(Config().to_dict()) == Config()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_every_config_file_is_valid_and_has_a_smoke_variant(name, variant):
    module = importlib.import_module(f"configs.{name}")
    built = Config.from_dict(module.get_config(variant))
    assert (built.train.steps <= 50) == (variant == "smoke")
    with pytest.raises(ValueError, match="smoke"):
        module.get_config("fast")


@pytest.mark.parametrize("variant", ["cpu", "paper", "told"])
def test_every_variant_of_mnist_can_be_built(variant):
    built = Config.from_dict(importlib.import_module("configs.mnist").get_config(variant))
    made = build(built, (28, 28, 1), stand_in(built, (28, 28, 1)))
    assert made.model.network.shape == (28, 28, 1)
    assert (built.network.condition == "label") == (variant == "told")


@pytest.mark.parametrize("variant", config.BASELINES)
@pytest.mark.parametrize(("name", "shape"), [("gm2d", (2,)), ("mnist", (28, 28, 1))])
def test_every_baseline_can_be_built(name, shape, variant):
    """With another process than the file's own, and the same network and budget."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    own, built = (Config.from_dict(get_config(v)) for v in ("", variant))
    noised = [c.train.steps * c.train.batch_size * c.noising.k for c in (own, built)]
    assert noised[0] == noised[1]
    assert (own.network.width, own.network.widths) == (built.network.width, built.network.widths)
    dim = math.prod(shape)
    made = build(built, shape, stand_in(built, shape))
    assert built.process.name != own.process.name
    names = {"component_ou": "ornstein_uhlenbeck", "component_flow": "straight_line"}
    in_components = built.process.name in names
    assert made.process.name == names.get(built.process.name, built.process.name)
    assert (component_mixture(made.frame) is not None) == in_components
    assert made.process.dim == dim


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"lr": 1}}, r"train\.lr: unknown key"),
        ({"train": {"stepz": 1}}, r"train\.stepz: unknown key \(did you mean 'steps'\?\)"),
        ({"trian": {}}, r"trian: unknown section \(did you mean 'train'\?\)"),
        ({"learning_rate": 1}, r"unknown section \(did you mean .*optimizer\.learning_rate or"),
        ({"train": {"steps": 0}}, r"train\.steps=0: must be >= 1"),
        ({"train": {"steps": 1.5}}, r"train\.steps=1\.5: expected int"),
        ({"train": {"steps": True}}, r"train\.steps=True: expected int"),
        (
            {"optimizer": {"learning_rate": -1.0}},
            r"optimizer\.learning_rate=-1\.0: must be >= 1e-12",
        ),
        ({"optimizer": {"learning_rate": float("nan")}}, "finite"),
        ({"control_variate": {"kind": "lerned"}}, r"control_variate\.kind='lerned'.*'learned'"),
        ({"network": {"widths": (8, 0)}}, r"network\.widths=0"),
        ({"network": {"widths": (8, "a")}}, r"network\.widths='a'"),
        ({"network": {"widths": ()}}, "network.widths: 1 to 64 values"),
        ({"data": {"name": "digit"}}, r"data\.name='digit'.*'digits'"),
    ],
)
def test_errors_name_the_dotted_key(tree, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(tree)


def test_whole_numbers_and_lists_are_taken_for_floats_and_tuples():
    built = Config.from_dict({"optimizer": {"learning_rate": 1}, "network": {"widths": [4, 8]}})
    assert built.optimizer.learning_rate == 1.0
    assert built.network.widths == (4, 8)


def test_sections_are_frozen_and_every_key_is_described():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.steps = 3
    for section in vars(Config()).values():
        for field in dataclasses.fields(section):
            assert field.metadata["doc"]


def test_reference_page_is_up_to_date():
    page = pathlib.Path("docs/configuration.md").read_text()
    assert page == config.reference(), "run: python -m ndsm_jax.config > docs/configuration.md"


def test_every_number_has_a_bound_on_either_side():
    for name, kind in config.sections.sections().items():
        for field in dataclasses.fields(kind):
            example = field.default[0] if isinstance(field.default, tuple) else field.default
            if type(example) in (int, float):
                meta = field.metadata
                bounds = (max(meta["low"], meta["above"]), meta["high"])
                assert all(map(math.isfinite, bounds)), f"{name}.{field.name}: {bounds}"
