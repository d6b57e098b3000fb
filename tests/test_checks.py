"""Arguments are checked once, where JAX traces; the messages; nothing is left in programs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import checks, conditions, contrast, currents, linear_maps, processes, references
from ndsm_jax.checks import COUNT, GRID, KEY, POSITIVE, SEEDS, arguments, function, number, whole
from ndsm_jax.likelihood import Flow


@arguments(key=KEY, y="[..., d]", v="[..., d]", k=COUNT, grid=(GRID, whole(2)), scale=number(low=0))
def step(key, y, v, k=1, grid=4, scale=None):
    return y + v


def call(**changes):
    given = {"key": jax.random.key(0), "y": jnp.zeros((3, 2)), "v": jnp.zeros((1, 2))}
    return step(**given | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y": jnp.zeros((3, 1))},
            r"step: v=float32\[1, 2\]: .*\[\.\.\., d\] with .*d = 1",
        ),
        ({"v": jnp.zeros((4, 2))}, r"v=float32\[4, 2\]: .* with \.\.\. = \(3,\), d = 2"),
        ({"v": None}, r"step: v=None: an array of floats \[\.\.\., d\] with .*d = 2 is needed"),
        ({"v": np.zeros((1, 2), int)}, r"v=int64\[1, 2\]: an array of floats"),
        ({"key": jax.random.PRNGKey(0)}, r"key=uint32\[2\]: one typed PRNG key"),
        ({"k": 0}, r"k=0: a whole number >= 1 is needed"),
        ({"k": True}, r"k=True: a whole number"),
        ({"k": 10**400}, r"k=2\*\*1328\.\.\.: a whole number"),
        (
            {"grid": np.array([0.0, 2.0, 1.0])},
            r"grid=float64\[3\]: increasing finite .* or a",
        ),
        ({"grid": np.array([0.0, 1.0, np.nan])}, "increasing finite times"),
        ({"grid": np.array([0.1, 1.0, 2.0])}, "increasing finite times"),
        ({"scale": float("nan")}, r"scale=nan: a number >= 0"),
    ],
)
def test_messages_name_function_argument_what_is_given_and_what_is_needed(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_defaults_of_none_and_good_arguments_pass():
    assert call(scale=None, k=np.int64(2), grid=[0.0, 0.5, 1.0]).shape == (3, 2)
    assert call(grid=np.linspace(0, 1, 3), scale=np.float32(0.0)).shape == (3, 2)


def test_values_that_jax_traces_are_not_looked_at_and_shapes_are():
    jitted = jax.jit(lambda grid, y: call(grid=grid, y=y))
    assert jitted(jnp.array([0.0, 2.0, 1.0]), jnp.zeros((3, 2))).shape == (3, 2)
    with pytest.raises(ValueError, match="d = 3 is needed"):
        jitted(jnp.array([0.0, 1.0, 2.0]), jnp.zeros((3, 3)))


def test_programs_are_the_same_with_the_checks_and_without():
    mixture = references.mixture([0.5, 0.5], np.zeros((2, 2)), [1.0, 2.0])
    bare = references.GaussianMixture.log_prob.__wrapped__
    y = jnp.zeros((3, 2))
    programs = [str(jax.make_jaxpr(f)(y)) for f in (mixture.log_prob, lambda y: bare(mixture, y))]
    assert programs[0] == programs[1]


def test_a_component_that_does_not_exist_is_refused_and_not_clamped():
    mixture = references.mixture([0.5, 0.5], np.zeros((2, 2)), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"index=.* with 99: integers below K .* K = 2"):
        mixture.sample_component(jnp.array([0, 99]), jnp.zeros((2, 2)))


def test_a_function_is_asked_how_many_arguments_it_takes():
    assert function(2).holds(lambda y, t: y)
    assert function(2, 3).holds(lambda y, t, condition: y)
    assert not function(2).holds(lambda y: y)
    assert not function(1).holds(int)
    assert not POSITIVE.holds(0.0)
    assert SEEDS.holds(2**32 - 1)
    assert not SEEDS.holds(2**32)


def test_a_name_that_a_function_does_not_have_is_a_slip_of_ours():
    with pytest.raises(TypeError, match="no arguments z"):
        arguments(z=COUNT)(lambda y: y)


def test_what_a_pytree_holds_is_checked_where_it_is_used():
    """JAX rebuilds it with leaves of any kind, so that its constructor takes all."""
    assert jax.tree.map(lambda _: None, linear_maps.Scalar(value=jnp.ones(3))).value is None
    y, wrong = jnp.ones((3, 2)), linear_maps.Diagonal(values=jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"Diagonal\.mv: values=float32\[3, 1\].* with .*d = 2"):
        wrong.mv(y)
    with pytest.raises(ValueError, match=r"Dense\.solve: matrix=None"):
        linear_maps.Dense(matrix=None).solve(y)
    with pytest.raises(ValueError, match=r"coordinates=2: a multiple of .* 3, is needed"):
        linear_maps.Blocks(matrix=jnp.eye(3)).mv(y)
    classes = conditions.Classes(shares=jnp.ones(2) / 2, log_weights=jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"log_weights=float32\[2, 4\].*\[C \+ 1, K\] with C = 2"):
        classes.of_components([0])


def test_labels_and_coordinates_out_of_range_are_refused_and_not_clamped():
    classes = conditions.Classes(shares=jnp.ones(2) / 2, log_weights=jnp.zeros((3, 4)))
    assert classes.start_log_weights([1, -1]).shape == (2, 4)
    assert classes.start_log_weights([]).shape == (0, 4)
    for label in (2, -2):
        with pytest.raises(ValueError, match=rf"labels=.* with {label}: integers from -1 below C"):
            classes.start_log_weights([label])
    with pytest.raises(ValueError, match=r"with 4: integers below K \[n\] with K = 4"):
        classes.of_components([4])
    with pytest.raises(ValueError, match=r"currents\.reversed_drift: odd=\(2,\) with 2"):
        currents.reversed_drift(processes.ornstein_uhlenbeck(2), (2,))
    with pytest.raises(ValueError, match=r"linear_maps\.select: indices=\(-1,\): integers below d"):
        linear_maps.select(jnp.ones((3, 2)), (-1,))


def test_what_a_function_returns_is_checked_in_its_name():
    """And a score of shape [..., 1] does not broadcast."""
    process, y, t = processes.ornstein_uhlenbeck(2), jnp.ones((3, 2)), jnp.ones(3)
    flow = currents.velocity(process, lambda y, t: -y)
    with pytest.raises(ValueError, match=r"currents\.velocity: t=float32\[3, 1\]"):
        flow(y, t[:, None])
    narrow = lambda y, t: -y[..., :1]  # noqa: E731
    guided = contrast.Contrast(scale=2.0, weaker=narrow)(lambda y, t: -y, process)
    for call in (
        lambda: guided(y, t),
        lambda: currents.entropy_rates(process, narrow, y, t),
        lambda: currents.velocity(process, narrow)(y, t),
    ):
        with pytest.raises(ValueError, match=r"the score of states \[3, 2\] is float32\[3, 1\]"):
            call()


def test_paths():
    assert checks.FOLDER.holds("runs/mine")
    assert checks.FILE.holds(pathlib.Path("model.zip"))
    for wrong in ("", "a\0b", b"runs", 3, None):
        assert not checks.FOLDER.holds(wrong)


def test_fields_of_a_dataclass_are_checked_likewise():
    with pytest.raises(ValueError, match=r"Flow: probes=-1: a whole number >= 0"):
        Flow(probes=-1)


def test_a_score_is_held_to_the_noisy_coordinates():
    narrow = checks.score("sampling", lambda y, t: y[..., :1], 2)
    with pytest.raises(ValueError, match=r"sampling: the score of states \[3, 2\] is .*\[3, 1\]"):
        narrow(jnp.zeros((3, 2)), jnp.zeros(3))
