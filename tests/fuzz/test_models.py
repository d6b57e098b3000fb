"""Estimator, model and exported files with one argument that is something else."""

import hypothesis
import numpy as np
import pytest

from ndsm_jax import NDSM, export, load
from ndsm_jax.model import Model
from tests.fuzz.test_arguments import Case, calls, try_call
from tests.fuzz.trial import examples

TINY = {"network.width": 4, "network.depth": 1, "noising.k": 1, "noising.steps": 4}
ROWS = np.random.default_rng(0).normal(size=(20, 2))
GAPS = np.where(np.arange(4).reshape(2, 2) == 1, np.nan, ROWS[:2])
FITTED = NDSM(
    num_components=2,
    covariance="diag",
    steps=1,
    settings=TINY | {"train.select": "last"},
    random_state=0,
)
PARAMETERS = FITTED.get_params()
KEPT: dict[str, Model] = {}


def of_model(name: str):
    """A method of the model that was fitted."""
    return lambda **given: getattr(KEPT["model"], name)(**given)


def fitted(**changes):
    """The parameters alone: rows follow that are refused."""
    return NDSM(**PARAMETERS | changes).fit(ROWS[:2])


MODELS: dict[str, Case] = {
    "NDSM.sample": (FITTED.sample, {"n_samples": 2, "random_state": 0}),
    "NDSM.score_samples": (FITTED.score_samples, {"X": ROWS[:2]}),
    "NDSM.score": (FITTED.score, {"X": ROWS[:2]}),
    "NDSM.condition": (lambda cells: FITTED.condition(cells).row.shape, {"cells": {1: 0.5}}),
    "NDSM.condition cell": (lambda value: FITTED.condition({1: value}).row.shape, {"value": 0.5}),
    "Conditional.sample": (
        lambda **given: FITTED.condition({1: 0.5}).sample(**given),
        {"n_samples": 2, "random_state": 0},
    ),
    "NDSM.impute": (FITTED.impute, {"X": GAPS, "random_state": 0}),
    "NDSM.save": (FITTED.save, {"folder": "kept"}),
    "NDSM.load": (NDSM.load, {"folder": "nowhere"}),
    "Model.sample": (
        of_model("sample"),
        {
            "num": 2,
            "label": None,
            "given": GAPS,
            "guidance": "reconstruction",
            "guidance_scale": 1.0,
            "autoguide": None,
            "seed": 0,
            "components": [0, 1],
            "progress": False,
        },
    ),
    "Model.score": (of_model("score"), {"y": ROWS[:2], "t": 0.5, "condition": [0, 1]}),
    "Model.log_prob": (
        of_model("log_prob"),
        {"x": ROWS[:2], "label": None, "seed": 0, "progress": False},
    ),
    "Model.matrix": (lambda x: KEPT["model"].matrix(x).shape, {"x": ROWS}),
    "load": (
        load,
        {"folder": "nowhere", "sample": {}, "step": None, "allow_changed_source": False},
    ),
    "export.core": (lambda model: export.core(model).process.dim, {"model": None}),
    "export.programs": (
        lambda platforms: export.programs(KEPT["model"], platforms=platforms),
        {"platforms": ("gpu",)},
    ),
    "export.read": (export.read, {"path": "nothing.zip"}),
    "export.write_parameters": (
        lambda path: export.write_parameters(path, KEPT["model"], card=lambda text: text),
        {"path": "no/nothing.safetensors"},
    ),
    "export.read_parameters": (
        lambda path: export.read_parameters(path, KEPT["model"]),
        {"path": "nothing.safetensors"},
    ),
    "export.parameters": (lambda model: len(export.parameters(model)), {"model": None}),
    "export.export_run": (
        export.export_run,
        {
            "workdir": "nowhere",
            "out": "nothing.zip",
            "sample": {},
            "licence": None,
            "platforms": ("cpu",),
            "allow_changed_source": False,
        },
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _model(tmp_path_factory):
    """Of the smallest estimator, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("models"))
        KEPT["model"] = FITTED.fit(ROWS).model_
        yield


@hypothesis.given(calls(MODELS))
@examples(short=15, long=300)
def test_models_refuse_what_is_no_argument_of_theirs(case):
    try_call("models", MODELS, case)


@hypothesis.given(calls({"NDSM": (fitted, PARAMETERS)}))
@examples(short=15, long=200)
def test_an_estimator_refuses_what_is_no_parameter_of_its(case):
    try_call("models", {"NDSM": (fitted, PARAMETERS)}, case)


@hypothesis.given(calls({"NDSM.fit": (FITTED.fit, {"X": ROWS})}))
@examples(short=3, long=40)
def test_an_estimator_refuses_what_are_no_rows(case):
    try_call("models", {"NDSM.fit": (NDSM(**PARAMETERS).fit, {"X": ROWS})}, case)
