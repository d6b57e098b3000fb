"""What a session's run is recognised by: all that its functions do, in any process."""

import functools
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ndsm_jax.networks import ScoreMLP
from ndsm_jax.runs import fingerprint

ROOT = pathlib.Path(__file__).parents[2]

SCRIPT = """
import functools
import jax
import jax.numpy as jnp
import numpy as np

FORCE = 1.0
CENTRES = np.array([1.0, 2.0])
KNOWN = {"a", "b", "c", "d"}


def shape(y):
    return FORCE * y


def reads_a_number(y, t):
    return -FORCE * y


def reads_an_array(y, t):
    return -CENTRES * y


def calls(y, t):
    return shape(y) if "a" in KNOWN and "b" in {"b", "e", "f"} else recursive(y, 3)


def recursive(y, n):
    return y if n == 0 else recursive(FORCE * y, n - 1)


def inner(y, t):
    f = lambda v: -1.0 * v
    return f(y)


def nested(y, t):
    def g(v):
        return [FORCE * w for w in v]

    return g(y)


def closes(array):
    def drift(y, t):
        return -array * y

    return drift


class Force:
    rate = 1.0

    def __init__(self, strength):
        self.strength = strength
        self.array = np.array([1.0])

    def __call__(self, y, t):
        return self.strength * self.rate * self.scaled(y)

    def scaled(self, y):
        return 1.0 * self.array * y


jitted = jax.jit(reads_a_number)
mapped = jax.vmap(reads_a_number)
bound = functools.partial(lambda force, y, t: force * y, 1.0)
closed = closes(np.array([1.0]))
in_jax = closes(jnp.array([1.0]))
in_dict = closes({"a": 1.0})
called = Force(1.0)
method = Force(1.0).scaled
chained = functools.partial(jax.jit(closes(closes(2.0))), 1.0)
"""


def names(script, *found):
    """The fingerprints of a script's functions, each as a process's drift is in its pytree."""
    scope = {"__name__": "__main__"}
    exec(compile(script, "script.py", "exec"), scope)
    return [fingerprint(Partial(scope[name], jnp.ones(2))) for name in found]


FUNCTIONS = (
    *("reads_a_number", "reads_an_array", "calls", "recursive", "inner", "nested", "jitted"),
    *("mapped", "bound", "closed", "in_jax", "in_dict", "called", "method", "chained"),
)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("reads_a_number", "FORCE = 1.0", "FORCE = 50.0"),
        ("reads_an_array", "[1.0, 2.0]", "[1.0, 3.0]"),
        ("calls", "FORCE = 1.0", "FORCE = 50.0"),
        ("calls", "return FORCE * y", "return 2 * FORCE * y"),
        ("calls", '"c", "d"}', '"c", "e"}'),
        ("recursive", "n - 1", "n - 2"),
        ("inner", "-1.0 * v", "-9.0 * v"),
        ("nested", "FORCE = 1.0", "FORCE = 50.0"),
        ("jitted", "FORCE = 1.0", "FORCE = 50.0"),
        ("jitted", "-FORCE * y", "FORCE * y"),
        ("mapped", "-FORCE * y", "FORCE * y"),
        ("bound", "y, 1.0)", "y, 9.0)"),
        ("bound", "t: force * y", "t: force - y"),
        ("closed", "closed = closes(np.array([1.0]))", "closed = closes(np.array([9.0]))"),
        ("in_jax", "closes(jnp.array([1.0]))", "closes(jnp.array([9.0]))"),
        ("in_dict", '{"a": 1.0}', '{"a": 2.0}'),
        ("called", "called = Force(1.0)", "called = Force(2.0)"),
        ("called", "rate = 1.0", "rate = 2.0"),
        ("called", "1.0 * self.array", "2.0 * self.array"),
        ("called", "self.array = np.array([1.0])", "self.array = np.array([2.0])"),
        ("method", "1.0 * self.array", "2.0 * self.array"),
        ("chained", "closes(2.0)", "closes(3.0)"),
    ],
)
def test_a_change_of_what_a_function_does_is_seen(name, old, new):
    assert old in SCRIPT
    assert names(SCRIPT, name) != names(SCRIPT.replace(old, new), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FORCE = 1.0", "FORCE = 1.0\nfirst = 3"),  # read by nothing
        ("CENTRES = np", "strength = 3\nCENTRES = np"),  # the name of an attribute only
        ("def reads_a_number", "\n\n# another line\n\ndef reads_a_number"),
        ('{"a", "b", "c", "d"}', '{"d", "c", "b", "a"}'),
    ],
)
def test_nothing_else_is(old, new):
    assert old in SCRIPT
    assert names(SCRIPT, *FUNCTIONS) == names(SCRIPT.replace(old, new), *FUNCTIONS)


class Net(nn.Module):
    width: int = 4
    activation: object = nn.gelu

    @nn.compact
    def __call__(self, y, c):
        return nn.Dense(y.shape[-1])(self.activation(nn.Dense(self.width)(y)))


class Other(Net):
    @nn.compact
    def __call__(self, y, c):
        return 2 * nn.Dense(y.shape[-1])(self.activation(nn.Dense(self.width)(y)))


Other.__name__, Other.__qualname__ = "Net", "Net"


def test_networks_are_known_by_their_code_and_their_fields():
    """Static fields of a pytree, as a `ScoreModel` has its network: by class and fields."""

    def of(network):
        return fingerprint(Partial(jnp.add, jnp.ones(2), n=Partial(lambda: network)))

    same = [Net(), Net(width=4), Net(activation=nn.gelu)]
    assert len({of(net) for net in same}) == 1
    different = [Net(), Other(), Net(width=5), Net(activation=nn.relu), ScoreMLP(width=8, depth=1)]
    different.append(ScoreMLP(width=8, depth=2))
    different += [Net(activation=lambda x: x), Net(activation=lambda x: 2 * x)]
    assert len({of(net) for net in different}) == len(different)


def test_arrays_count_by_type_shape_and_bytes():
    """Also typed keys, and an object that is no array."""
    a = np.arange(6.0)
    assert fingerprint([a]) == fingerprint([a.copy()])
    values = [a, a.astype(np.float32), a.reshape(2, 3), a + 1, jax.random.key(0), jax.random.key(1)]
    values += [names, functools.partial(names, 1), "text", None]
    assert len({fingerprint([v]) for v in values}) == len(values)


def test_in_another_process_they_are_the_same(tmp_path):
    """With another seed of hashes, on which the order of sets depends."""
    code = (
        "from tests.runs.test_fingerprint import FUNCTIONS, SCRIPT, names, Net, Partial, jnp\n"
        "from ndsm_jax.runs import fingerprint\n"
        "print(names(SCRIPT, *FUNCTIONS), fingerprint(Partial(jnp.add, n=Partial(Net().apply))))"
    )
    printed = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        printed.add(result.stdout)
    assert printed == {
        f"{names(SCRIPT, *FUNCTIONS)} {fingerprint(Partial(jnp.add, n=Partial(Net().apply)))}\n"
    }
