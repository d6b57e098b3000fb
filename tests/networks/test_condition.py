"""Networks that are told a condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import networks, processes
from ndsm_jax.clock import time_coordinate
from ndsm_jax.networks.embedding import ConditionEmbedding

SHAPE = (4, 4, 1)
MLP = networks.ScoreMLP(width=8, depth=2, time_features=4, classes=3)
PUBLISHED = networks.ScoreMLP(width=8, depth=2, classes=3)
UNET = networks.UNet(shape=SHAPE, widths=(4, 8), time_features=8, classes=3)


def applied(network, params, label, told=()):
    y = jnp.linspace(-1, 1, 16 * len(label)).reshape(len(label), 16)
    return network.apply(params, y, jnp.zeros(len(label)), *told, condition=label)


@pytest.mark.parametrize("network", [MLP, PUBLISHED, UNET], ids=["mlp", "no features", "unet"])
def test_a_class_is_its_row_of_a_table_and_no_class_the_last(network):
    """Turning the rows of the table round by one turns the classes."""
    label = jnp.array([0, 1, 2, -1])
    y, c = jnp.zeros((1, 16)), jnp.zeros(1)
    params = jax.jit(lambda key: network.init(key, y, c, condition=label[:1]))(jax.random.key(0))
    run = jax.jit(lambda params, label: applied(network, params, label))
    found = run(params, label)
    assert found.shape == (4, 16)

    def turned(path, leaf):
        return jnp.roll(leaf, 1, axis=0) if "Embed_0" in jax.tree_util.keystr(path) else leaf

    moved = run(jax.tree_util.tree_map_with_path(turned, params), jnp.array([1, 2, -1, 0]))
    np.testing.assert_allclose(moved, found, rtol=1e-5, atol=1e-6)
    others = run(params, jnp.array([1, 2, -1, 0]))
    assert (np.abs(others - found).max(axis=1) > 1e-3).all()


def test_vectors_go_through_a_linear_map_unless_one_of_them_says_nothing():
    embedding = ConditionEmbedding(5)
    v = jnp.array([[1.0, -2.0], [0.5, jnp.nan], [jnp.nan, jnp.nan]])
    params = embedding.init(jax.random.key(0), {"at": v})
    found = embedding.apply(params, {"at": v})
    dense = params["params"]["Dense_0"]
    np.testing.assert_allclose(found[0], v[0] @ dense["kernel"] + dense["bias"], rtol=1e-5)
    np.testing.assert_array_equal(found[1], params["params"]["nothing_2"][0])
    np.testing.assert_array_equal(found[2], found[1])
    # What says nothing passes no NaN into the gradient.
    slope = jax.grad(lambda p: embedding.apply(p, {"at": v}).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    np.testing.assert_allclose(slope["params"]["Dense_0"]["kernel"], np.outer(v[0], np.ones(5)))


def test_leaves_are_added_up():
    embedding = ConditionEmbedding(5, classes=3)
    tree = {"a": jnp.array([0, 2]), "b": jnp.array([1, 1]), "c": jnp.ones((2, 2))}
    params = embedding.init(jax.random.key(0), tree)["params"]
    rows = params["Embed_0"]["embedding"][tree["a"]] + params["Embed_1"]["embedding"][tree["b"]]
    vector = params["Dense_0"]["kernel"].sum(axis=0) + params["Dense_0"]["bias"]
    found = embedding.apply({"params": params}, tree)
    np.testing.assert_allclose(found, rows + vector[None], rtol=1e-5)


def test_vectors_of_one_width_have_each_a_vector_of_their_own():
    embedding = ConditionEmbedding(5)
    nan = jnp.full((1, 4), jnp.nan)
    tree = {"a": nan, "b": nan.reshape(1, 2, 2), "c": nan[:, :3]}
    params = embedding.init(jax.random.key(0), tree)
    names = ("nothing_4", "nothing_4_1", "nothing_3")
    assert set(params["params"]) >= set(names)
    expected = sum(params["params"][name] for name in names)
    np.testing.assert_allclose(embedding.apply(params, tree), expected, rtol=1e-6)


def test_integers_need_the_number_of_classes():
    with pytest.raises(ValueError, match="0 classes; give the network classes="):
        ConditionEmbedding(5).init(jax.random.key(0), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="a leaf"):
        ConditionEmbedding(5, 3).init(jax.random.key(0), jnp.zeros((2, 2), jnp.int32))


def model(group=None):
    process = processes.variance_preserving(16)
    coordinate = time_coordinate(process.clock, process.horizon, "time", first=1e-3)
    precondition = networks.Scaled(process=process, coordinate=coordinate)
    return networks.ScoreModel(
        network=MLP,
        dim=16,
        precondition=precondition,
        group=group,
        condition=jnp.zeros(1, jnp.int32),
    )


def test_a_condition_an_item_is_that_of_all_its_states():
    """[B, 1] beside states [B, k, d], and under a symmetry, which the label does not feel."""
    plain, turning = model(), model(networks.image_group("c2", SHAPE))
    params = jax.jit(plain.init)(jax.random.key(0))
    y = jax.random.normal(jax.random.key(1), (3, 2, 16))
    t, label = jnp.full((3, 2), 0.3), jnp.array([[0], [2], [-1]])
    run = jax.jit(lambda model, y, label: model(params, y, t[: len(y)], label))
    together = run(plain, y, label)
    for i in range(3):
        alone = run(plain, y[i : i + 1], jnp.repeat(label[i : i + 1], 2, axis=1))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-5)
    turned = run(turning, y, label)
    back = run(plain, y[..., ::-1], label)[..., ::-1]
    np.testing.assert_allclose(turned, (together + back) / 2, rtol=1e-4, atol=1e-5)


def test_a_network_that_is_told_a_condition_needs_one():
    with pytest.raises(ValueError, match=r"is told a condition, and none is given.*null"):
        jax.eval_shape(lambda *args: model()(None, *args), jnp.zeros((2, 16)), jnp.zeros(2))
