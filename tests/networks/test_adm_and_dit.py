"""Networks with self-attention: the U-Net of ADM, the transformer of patches."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import networks
from ndsm_jax.networks.adm import ResidualBlock, doubled, halved
from ndsm_jax.networks.attention import SelfAttention
from ndsm_jax.networks.dit import TransformerBlock, assembled, patches, positions

SHAPE = (6, 10, 2)
NETWORKS = {
    "adm": networks.ADM(
        shape=SHAPE, widths=(8, 16), blocks=1, attention=5, head_width=8, time_features=8, classes=3
    ),
    "dit": networks.DiT(shape=SHAPE, width=16, depth=2, head_width=8, time_features=8, classes=3),
}
SMALLER = {"adm": {"widths": (8,), "attention": 0}, "dit": {"depth": 1}}
BOTH = pytest.mark.parametrize("name", NETWORKS)


def inputs(num=3, seed=0):
    """States, times, what is told of them, labels."""
    rng = np.random.default_rng(seed)
    y, told = jnp.asarray(rng.normal(size=(2, num, 120)), jnp.float32)
    return y, jnp.linspace(-0.8, 0.9, num), told, jnp.arange(num, dtype=jnp.int32)


@partial(jax.jit, static_argnums=0)  # one program for all tests of a network
def applied(net, params, y, c, told, label, **options):
    return net.apply(params, y, c, told, condition=label, **options)


def shapes(net):
    y, c, told, label = inputs(1)
    return jax.eval_shape(lambda: net.init(jax.random.key(0), y, c, told, condition=label))


def stirred(shapes, seed=1):
    """Parameters of which none is zero, kernels of a layer's usual size."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1])) for x in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(x, jnp.float32) for x in drawn])


@pytest.fixture(scope="module")
def params():
    return {name: stirred(shapes(net)) for name, net in NETWORKS.items()}


def size(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_attention_is_numpys_softmax(rng):
    net = SelfAttention(head_width=3)
    x = rng.normal(size=(2, 5, 6))
    params = stirred(jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.float32(x))))
    layers = jax.tree.map(np.asarray, params["params"])
    q, k, v = np.split(x @ layers["qkv"]["kernel"] + layers["qkv"]["bias"], 3, axis=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        logits = q[..., head] @ k[..., head].swapaxes(1, 2) / np.sqrt(3)
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        heads.append(weights @ v[..., head])
    expected = np.concatenate(heads, axis=-1) @ layers["out"]["kernel"] + layers["out"]["bias"]
    np.testing.assert_allclose(net.apply(params, jnp.float32(x)), expected, rtol=1e-4, atol=1e-5)


def test_softmax_of_bfloat16_attention_is_float32():
    """256 equal weights of 1 / 257, each rounded, and one value: in bfloat16 a sum of exponentials
    one by one would stop growing at 256."""
    net = SelfAttention(head_width=4, dtype=jnp.bfloat16)
    x = jnp.ones((1, 300, 4), jnp.bfloat16)
    params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), x))["params"]
    eye = jnp.eye(4, dtype=jnp.float32)
    params["qkv"]["kernel"] = jnp.concatenate([0 * eye, 0 * eye, eye], axis=1)
    params["out"]["kernel"] = eye
    found = np.asarray(net.apply({"params": params}, x), np.float32)
    np.testing.assert_allclose(found, 1.0, rtol=2**-7)


def test_patches_are_the_squares_of_an_image_and_go_back(rng):
    images = rng.normal(size=(2, 6, 10, 3))
    found = patches(jnp.asarray(images), 2)
    expected = [
        images[:, i : i + 2, j : j + 2].reshape(2, -1)
        for i in range(0, 6, 2)
        for j in range(0, 10, 2)
    ]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(assembled(found, 2, (6, 10)), jnp.asarray(images))
    shifted = patches(jnp.asarray(np.roll(images, (2, 4), axis=(1, 2))), 2).reshape(2, 3, 5, 12)
    rolled = jnp.roll(found.reshape(2, 3, 5, 12), (1, 2), axis=(1, 2))
    np.testing.assert_array_equal(shifted, rolled)


def test_positions_are_sines_of_rows_and_columns_that_tell_all_apart():
    found = positions(3, 5, 8).reshape(3, 5, 8)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        phase = np.array([row, row / 100, column, column / 100])
        expected = np.concatenate([np.sin(phase), np.cos(phase)])
        np.testing.assert_allclose(found[row, column], expected, atol=1e-6)
    flat = found.reshape(15, 8)
    distance = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(15)
    assert distance.min() > 1e-3


def test_resolutions_go_down_by_means_and_up_by_copies(rng):
    x = rng.normal(size=(1, 3, 4, 2)).astype(np.float32)
    padded = np.concatenate([x, x[:, 2:]], axis=1)
    means = padded.reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
    np.testing.assert_allclose(halved(jnp.asarray(x)), means, rtol=1e-5)
    copies = np.kron(means, np.ones((1, 2, 2, 1)))[:, :3, :4]
    np.testing.assert_allclose(doubled(halved(jnp.asarray(x)), (3, 4)), copies, rtol=1e-5)


def test_blocks_start_as_the_identity(rng):
    time = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
    tokens = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    out, _ = jax.jit(TransformerBlock(4).init_with_output)(jax.random.key(0), tokens, time)
    np.testing.assert_array_equal(out, tokens)
    images = tokens[:, :4].reshape(2, 2, 2, 8)
    block = ResidualBlock(8, (2, 2), head_width=4)
    out, _ = jax.jit(block.init_with_output)(jax.random.key(0), images, time)
    np.testing.assert_array_equal(out, images)


@BOTH
def test_output_starts_at_zero_where_that_is_asked(name):
    net = dataclasses.replace(NETWORKS[name], zero_output=True, **SMALLER[name])
    y, c, told, label = inputs(1)
    run = jax.jit(lambda key: net.init_with_output(key, y, c, told, condition=label))
    out, params = run(jax.random.key(0))
    assert not jnp.any(out)
    assert not jnp.any(params["params"]["last"]["kernel"])
    usual = NETWORKS[name].init
    last = jax.eval_shape(lambda: usual(jax.random.key(0), y, c, told, condition=label))
    assert last["params"]["last"]["kernel"].shape == params["params"]["last"]["kernel"].shape


@BOTH
def test_all_that_a_network_is_given_counts_and_items_do_not_see_each_other(name, params):
    net, (y, c, told, label) = NETWORKS[name], inputs()
    run = partial(applied, net, params[name])
    out = run(y, c, told, label)
    assert out.shape == y.shape
    assert out.dtype == jnp.float32
    assert np.isfinite(out).all()
    changed = ((-y, c, told, label), (y, -c, told, label), (y, c, -told, label))
    for other in (*changed, (y, c, told, label - 1)):
        assert (np.abs(run(*other) - out).max(axis=1) > 1e-3).all()
    turned = run(*(jnp.roll(a, 1, axis=0) for a in (y, c, told, label)))
    np.testing.assert_allclose(turned, jnp.roll(out, 1, axis=0), rtol=1e-4, atol=1e-4)
    # Distant pixels see each other: the last one counts in the first one's output.
    moved = run(y.at[:, -1].add(1.0), c, told, label)
    assert (np.abs(moved - out)[:, 0] > 1e-5).all()


def test_number_of_parameters_of_a_transformer():
    """Embedding of times, classes, patches; per block 6 w e of adaLN, 4 w^2 of attention, 8 w^2."""
    w, e, p = 16, 32, 4 * 2
    dense = lambda i, o: (i + 1) * o  # noqa: E731
    embedding = dense(8, e) + dense(e, e) + 4 * e + dense(2 * p, w)
    block = dense(e, 6 * w) + dense(w, 3 * w) + dense(w, w) + dense(w, 4 * w) + dense(4 * w, w)
    assert size(shapes(NETWORKS["dit"])) == embedding + 2 * block + dense(e, 2 * w) + dense(w, p)


def test_number_of_parameters_of_adm():
    """A conv of 9 i o, a block of two convs, two norms, the time, a skip where the width changes.

    Two levels (8, 16), one block a level; the second, of 3 x 5 pixels, attends.
    """
    e = 32
    dense = lambda i, o: (i + 1) * o  # noqa: E731
    conv = lambda i, o: (9 * i + 1) * o  # noqa: E731

    def block(i, o, attends=False):
        parts = 2 * i + conv(i, o) + 2 * o + dense(e, 2 * o) + conv(o, o)
        attention = 2 * o + dense(o, 3 * o) + dense(o, o)
        return parts + (i != o) * dense(i, o) + attends * attention

    embedding = dense(8, e) + dense(e, e) + 4 * e
    encoder = conv(4, 8) + block(8, 8) + block(8, 16) + block(16, 16, True)
    middle = block(16, 16, True) + block(16, 16)
    low = block(16 + 16, 16, True) * 2  # with the skips of the block and of the change of levels
    high = block(16, 8) + block(8 + 8, 8) * 2
    last = 2 * 8 + conv(8, 2)
    assert size(shapes(NETWORKS["adm"])) == embedding + encoder + middle + low + high + last


@BOTH
def test_files_take_any_number_of_items_and_probes_forward_derivatives(name, params):
    """Both are traced only: an exported model's batch is a symbol, a probe is a jvp."""
    net = dataclasses.replace(NETWORKS[name], remat=True)
    (many,) = jax.export.symbolic_shape("n")
    batch = [jax.ShapeDtypeStruct((many, *x.shape[1:]), x.dtype) for x in inputs()]
    run = lambda p, *batch: net.apply(p, *batch[:3], condition=batch[3])  # noqa: E731
    assert jax.eval_shape(partial(run, params[name]), *batch).shape == (many, 120)

    def probed(p, v):
        return jax.jvp(lambda p: run(p, *inputs()), (p,), (v,))[1]

    assert jax.eval_shape(probed, params[name], params[name]).shape == (3, 120)


@BOTH
def test_rematerialisation_has_the_same_gradient(name):
    net, batch = dataclasses.replace(NETWORKS[name], **SMALLER[name]), inputs()
    params = stirred(shapes(net))

    def gradient(net):
        loss = lambda p: jnp.mean(net.apply(p, *batch[:3], condition=batch[3]) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    plain, again = gradient(net), gradient(dataclasses.replace(net, remat=True))
    chex.assert_trees_all_close(plain, again, rtol=1e-4, atol=1e-6)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(plain))


@BOTH
def test_bfloat16_networks_are_close_and_keep_float32_ends(name, params):
    """As those of test_networks.py: a few layers of 2^-9 each, and a first layer that sees inputs
    apart which are one in bfloat16."""
    net, (y, *rest) = NETWORKS[name], inputs()
    half = dataclasses.replace(net, dtype=jnp.bfloat16)
    actual, expected = (applied(one, params[name], y, *rest) for one in (half, net))
    assert actual.dtype == jnp.float32
    assert 1e-4 < jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected) < 0.03
    rounded = y.astype(jnp.bfloat16).astype(jnp.float32)
    assert not jnp.array_equal(applied(half, params[name], rounded, *rest), actual)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes(half))} == {"float32"}


@BOTH
def test_dropout_is_of_training_alone_and_of_its_key(name, params):
    net, batch = dataclasses.replace(NETWORKS[name], dropout=0.5), inputs()
    programs = [
        jax.make_jaxpr(lambda *args, net=net: net.apply(args[0], *args[1:4], condition=args[4]))(
            params[name], *batch
        )
        for net in (net, NETWORKS[name])
    ]
    assert str(programs[0]) == str(programs[1])
    one, again, two = (
        applied(net, params[name], *batch, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    plain = applied(NETWORKS[name], params[name], *batch)
    assert min(jnp.abs(one - two).max(), jnp.abs(one - plain).max()) > 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.DiT(shape=(7, 7, 1)), r"network\.patch=2 does not divide .*\(7, 7, 1\)"),
        (lambda: networks.DiT(shape=SHAPE, width=90), r"network\.width=90: .*multiple of 4"),
        (lambda: networks.DiT(shape=SHAPE, width=100), r"network\.head_width=64 .* 100"),
        (lambda: networks.ADM(shape=SHAPE, widths=(32, 96)), r"network\.head_width=64 .* 96"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
