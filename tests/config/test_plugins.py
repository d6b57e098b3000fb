"""A user's own process, reference, network and data set, named by file.py:function."""

import dataclasses
import json

import chex
import numpy as np
import pytest

from ndsm_jax import plugins
from ndsm_jax.config import Config
from ndsm_jax.config.own import sources
from ndsm_jax.launch import describe, launch, load_data, restore
from ndsm_jax.references import Reference
from ndsm_jax.reports.report import evaluate_run
from ndsm_jax.runs import read_host, read_metrics
from tests.training.tiny_runs import run, tiny

# --- loading ---


def test_the_function_and_the_digest_of_its_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def double(x):\n    return 2 * x\n")
    plugin = plugins.load(f"{path}:double", key="process.name")
    assert plugin.function(3) == 6
    assert plugin.name == f"{path}:double"
    assert plugin.digest == plugins.digest(f"{path}:double", key="process.name")
    path.write_text("def double(x):\n    return 2 * x  # twice\n")
    assert plugins.digest(f"{path}:double", key="process.name") != plugin.digest
    assert plugins.is_plugin(plugin.name)
    assert not plugins.is_plugin("langevin")


def test_paths_are_relative_to_the_working_directory_or_to_home(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def one():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("own.py:one", "~/own.py:one"):
        assert plugins.load(name, key="data.name").function() == 1


def test_a_file_is_run_once_until_it_changes(tmp_path, monkeypatch):
    """So that two of its functions know each other's classes."""
    path = tmp_path / "own.py"
    text = "class Law: ...\ndef law(): return Law()\ndef is_law(x): return isinstance(x, Law)\n"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    law = plugins.load(f"{path}:law", key="reference.name").function()
    for name in (f"{path}:is_law", "own.py:is_law"):
        assert plugins.load(name, key="process.name").function(law)
    path.write_text(text + "# changed\n")
    assert not plugins.load(f"{path}:is_law", key="process.name").function(law)


FILE = """
import numpy
LIMIT = 3
def first(): ...
def second(): ...
"""


@pytest.mark.parametrize(
    ("content", "function", "kind", "message"),
    [
        (None, "f", FileNotFoundError, r"process\.name='.*none\.py:f': no file .*starts from"),
        ("1 / 0\n", "f", ValueError, r"running .* failed with ZeroDivisionError: division by zero"),
        ("def f(:\n", "f", ValueError, r"failed with SyntaxError"),
        ("import nowhere_at_all\n", "f", ValueError, r"ModuleNotFoundError: .*nowhere_at_all"),
        (FILE, "third", ValueError, r"has no function 'third'; it has first, second$"),
        (FILE, "LIMIT", ValueError, r"has no function 'LIMIT'"),
        ("x = 1\n", "f", ValueError, r"it has no functions"),
    ],
)
def test_what_cannot_be_loaded_is_named(content, function, kind, message, tmp_path):
    path = tmp_path / ("none.py" if content is None else "own.py")
    if content is not None:
        path.write_text(content)
    with pytest.raises(kind, match=message) as error:
        plugins.load(f"{path}:{function}", key="process.name")
    assert str(error.value).startswith("process.name=")


# --- options ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("force=10.0", {"force": 10.0}),
        (" force = -1e-3 , steps=3", {"force": -1e-3, "steps": 3}),
        ('name="a, b=c", flag=True, none=None', {"name": "a, b=c", "flag": True, "none": None}),
        ("widths=[4, 8], pair=(1, 'x')", {"widths": [4, 8], "pair": (1, "x")}),
    ],
)
def test_options_are_names_and_literals(text, expected):
    assert plugins.parse_options(text, key="process.options") == expected


@pytest.mark.parametrize(
    "text",
    ["10.0", "force", "force=2*a", "force=open('x')", "force=", "a=1, a=2", "**x", "a=1) or f(b=2"],
)
def test_other_options_are_refused(text):
    with pytest.raises(ValueError, match=r"^process\.options=.* give name=value pairs"):
        plugins.parse_options(text, key="process.options")


def test_options_must_fit_the_function():
    def swirl(reference, *, force, horizon=1.0):
        return reference

    plugins.check_options(swirl, {"force": 1.0}, key="process.options", given=1)
    for options, message in (
        ({"force": 1.0, "farce": 2}, "unexpected keyword argument 'farce'"),
        ({}, "missing a required.* 'force'"),
    ):
        with pytest.raises(ValueError, match=rf"process\.options: swirl\(reference.*{message}"):
            plugins.check_options(swirl, options, key="process.options", given=1)


# --- a run of one's own ---

OWN = """
import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ndsm_jax import processes


@partial(jax.tree_util.register_dataclass, data_fields=("mean", "variance"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Normal:
    mean: jax.Array
    variance: jax.Array

    @property
    def dim(self):
        return self.mean.shape[0]

    def from_mean(self, y):
        return y - self.mean.reshape((1,) * (y.ndim - 1) + (self.dim,))

    def sample(self, key, shape=()):
        z = jax.random.normal(key, (*shape, self.dim))
        return jnp.broadcast_to(self.mean, z.shape) + jnp.sqrt(self.variance) * z

    def log_prob(self, y):
        return -0.5 * (self.from_mean(y) ** 2).sum(axis=-1) / self.variance

    def score(self, y):
        return -self.from_mean(y) / self.variance

    def typical_variance(self):
        return self.variance

    def stiffness(self):
        return 1 / float(self.variance)


def normal(states, wider=1.0):
    states = np.asarray(states)
    variance = jnp.float32(wider * states.var())
    return Normal(jnp.asarray(states.mean(axis=0), jnp.float32), variance)


def drift(reference, force, y, t):
    turned = jnp.stack([-y[..., 1], y[..., 0]], axis=-1)
    return reference.score(y) + force * turned


def swirl(reference, force=0.3, horizon=2.0):
    b = Partial(drift, reference, jnp.float32(force))
    return processes.process(b, 2**0.5, reference, horizon=horizon, name="swirl")


class Net(nn.Module):
    outputs: int
    width: int = 8

    @nn.compact
    def __call__(self, y, c, told=None):
        x = jnp.concatenate([y, c[:, None]], axis=-1)
        x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(x)


def net(outputs, width=8):
    return Net(outputs=outputs, width=width)


def spiral(num=200, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 6, size=num)
    return np.stack([t * np.cos(t), t * np.sin(t)], axis=1) * 1e3 + 5e4


def wrong():
    return 3


def text(*args, **kwargs):
    return "text"


def broken(*args, **kwargs):
    raise RuntimeError("no luck")


def plane():
    return np.zeros((40, 3)) + np.arange(40)[:, None]
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


def own(path, **sections) -> Config:
    """All four of one's own; every other setting as in the tiny runs."""
    return tiny(
        data={"name": f"{path}:spiral", "options": "num=200", "num_train": 0, "num_test": 0},
        reference={"name": f"{path}:normal", "options": "wider=1.2"},
        process={"name": f"{path}:swirl", "options": "force=0.4"},
        network={"name": f"{path}:net", "options": "width=6"},
        objective={"name": "path_dsm"},
        **sections,
    )


def shorter(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


@pytest.fixture(scope="module")
def trained(path, tmp_path_factory):
    """8 steps at once, and 3 steps and then 5 more from the folder."""
    folder, config = tmp_path_factory.mktemp("runs"), own(path)
    whole = run(config, folder / "whole")
    run(shorter(config, 3), folder / "parts")
    return folder, config, whole, run(config, folder / "parts")


def test_all_of_ones_own_train_and_resume_bitwise(trained):
    folder, config, whole, resumed = trained
    assert int(whole.step) == 8
    chex.assert_trees_all_equal(whole, resumed)
    losses = [read_metrics(folder / name)[-1]["loss"] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    made = restore(folder / "whole").experiment
    assert made.process.name == "swirl"
    assert float(made.process.drift.args[1]) == np.float32(0.4)
    assert float(made.process.horizon) == 2.0
    assert isinstance(made.process.reference, Reference)
    assert made.model.network.width == 6
    # Data of large units are standardised, unasked.
    np.testing.assert_allclose(made.frame.shift, load_data(config).train.mean(axis=0))
    assert "own.py" in load_data(config).source
    kept = json.loads((folder / "whole" / "config.json").read_text())["sources"]
    assert kept == sources(config)
    assert set(kept) == {"data.name", "reference.name", "process.name", "network.name"}
    assert read_host(folder / "whole" / "checkpoints")["sources"] == kept


def test_a_horizon_of_the_config_goes_to_the_process(path):
    config = own(path)
    config = dataclasses.replace(config, process=dataclasses.replace(config.process, horizon=3.0))
    text = describe(config, load_data(config))
    assert "y: float32[16, 2, 2]" in text


def test_it_is_evaluated(trained):
    folder = trained[0]
    result = evaluate_run(folder / "whole", num=40, progress=False)
    assert result.metrics["finite_fraction"]["value"] == 1
    assert result.conditioning is None
    facts = json.loads(result.metrics_path.read_text())["facts"]
    assert facts["process"].startswith("swirl")
    assert facts["units of distances"].startswith("standard deviations")
    assert "swirl" in result.report_path.read_text()


def test_a_changed_file_is_refused_until_it_is_allowed(trained, path):
    folder, config, *_ = trained
    longer = shorter(config, 10)
    path.write_text(OWN + "\n# Another comment\n")
    try:
        with pytest.raises(ValueError, match=r"process\.name") as error:
            run(longer, folder / "parts")
        assert "allow_changed_source" in str(error.value)
        with pytest.raises(ValueError, match=r"file has changed.*--allow_changed_source") as error:
            restore(folder / "parts")
        assert f"process.name='{path}:swirl'" in str(error.value)
        with pytest.raises(ValueError, match="file has changed"):
            evaluate_run(folder / "parts", num=40, progress=False)
        assert int(restore(folder / "parts", allow_changed_source=True).state.step) == 8
        state = run(longer, folder / "parts", allow_changed_source=True)
        assert int(state.step) == 10
        assert int(restore(folder / "parts").state.step) == 10  # it is the new source's run now
    finally:
        path.write_text(OWN)


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    moved = own(path)
    run(shorter(moved, 3), tmp_path / "run")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"own\.py"):
        restore(tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("process", {"name": "wrong", "options": ""}, r"process\.options: wrong\(\) cannot"),
        (
            "process",
            {"name": "broken"},
            r"process\.name='.*:broken': the function failed with RuntimeError: no",
        ),
        ("process", {"name": "text"}, r"process\.name=.*returned a str; a processes\.Process"),
        ("process", {"options": "farce=1"}, r"process\.options: swirl\(.*'farce'"),
        ("process", {"options": "force"}, r"process\.options='force': give name=value"),
        ("reference", {"name": "text"}, r"reference\.name=.*returned a str; a references\.Ref"),
        ("reference", {"name": "nothing"}, r"reference\.name=.*has no function 'nothing'"),
        ("network", {"name": "wrong", "options": ""}, r"network\.name=.*returned a int; a Flax"),
        ("network", {"options": "depth=3"}, r"network\.options: net\(.*'depth'"),
        ("data", {"name": "broken", "options": ""}, r"data\.name=.*failed with RuntimeError"),
        ("data", {"name": "wrong", "options": ""}, r"data\.name=.*must return an array"),
    ],
)
def test_what_a_function_may_not_do_is_one_clear_error(section, change, message, path, tmp_path):
    config = own(path)
    values = getattr(config, section)
    if "name" in change:
        change = change | {"name": f"{path}:{change['name']}"}
    config = dataclasses.replace(config, **{section: dataclasses.replace(values, **change)})
    with pytest.raises(ValueError, match=message):
        launch(config, load_data(config), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_drift_of_the_plane_refuses_data_of_another_dimension(path, tmp_path):
    """The reference follows the data, the drift does not: that it failed there is named."""
    config = own(path)
    data = dataclasses.replace(config.data, name=f"{path}:plane", options="")
    config = dataclasses.replace(config, data=data)
    message = (
        r"process\.name='.*:swirl': the function failed with TypeError: .*\(2, 3, 3\), \(2, 3, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        launch(config, load_data(config), tmp_path / "run", progress=False)
