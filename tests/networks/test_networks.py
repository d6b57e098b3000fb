"""Networks: shapes, sizes, initial values, parameterisations, any other network."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ndsm_jax import networks, objectives, processes, references
from ndsm_jax.clock import time_coordinate
from ndsm_jax.config import Config
from ndsm_jax.networks.embedding import GaussianFourierFeatures

PRIOR = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])


def size(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_mlp_is_the_papers_network():
    """7 hidden layers of 32 on (y, t): 3*32+32 + 6*(32*32+32) + 32*2+2 parameters (A.2)."""
    net = networks.ScoreMLP()
    params = net.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
    assert size(params) == 128 + 6 * 1056 + 66
    assert net.apply(params, jnp.ones((5, 2)), jnp.zeros(5)).shape == (5, 2)


def test_mlp_equals_numpy(rng):
    net = networks.ScoreMLP(width=4, depth=2)
    params = net.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
    y, c = rng.normal(size=(3, 2)), rng.normal(size=3)
    x = np.concatenate([y, c[:, None]], axis=1)
    layers = jax.tree.map(np.asarray, params["params"])
    for name in ("Dense_0", "Dense_1"):
        x = x @ layers[name]["kernel"] + layers[name]["bias"]
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = x @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"]
    np.testing.assert_allclose(net.apply(params, y, c), x, rtol=1e-4, atol=1e-5)


def test_eps_net_is_the_papers_network_and_starts_at_zero():
    net = networks.EpsNet()
    params = net.init(jax.random.key(0), jnp.zeros(1))
    assert size(params) == 20 + 2 * 110 + 11
    np.testing.assert_array_equal(net.apply(params, jnp.linspace(-1, 1, 7)), 0)


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (9, 11, 3)])
def test_unet_takes_any_image_size(shape):
    net = networks.UNet(shape=shape, widths=(8, 12, 16), time_features=8)
    y, c = jnp.ones((2, int(np.prod(shape)))), jnp.array([-1.0, 1.0])
    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), y, c)
    assert out.shape == y.shape


@pytest.mark.parametrize(
    "widths", [(4, 8), *(pytest.param(w, marks=pytest.mark.slow) for w in ((8, 16), (32, 64)))]
)
def test_every_unet_block_sees_the_time(widths, rng):
    """A per-channel bias before a one-channel group norm would be removed again."""
    net = networks.UNet(shape=(8, 8, 1), widths=widths, time_features=8)
    y = jnp.asarray(rng.normal(size=(2, 64)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), y, jnp.zeros(2))
    apply = jax.jit(net.apply)
    early, late = (apply(params, y, jnp.full(2, c)) for c in (-1.0, 0.9))
    assert float(jnp.abs(early - late).mean()) > 0.01 * float(jnp.abs(early).mean())
    squares = jax.grad(lambda p: jnp.sum(net.apply(p, y, jnp.array([-1.0, 0.9])) ** 2))
    gradient = jax.jit(squares)(params)
    for name, block in gradient["params"].items():
        if name.startswith("Block"):
            assert float(jnp.abs(block["Dense_0"]["kernel"]).max()) > 1e-3


def test_unet_samples_do_not_see_each_other(rng):
    """GroupNorm normalises each sample alone: a batch equals its rows one by one, also by vmap."""
    net = networks.UNet(shape=(8, 8, 1), widths=(8, 16), time_features=8)
    y = jnp.asarray(rng.normal(size=(4, 64)), jnp.float32)
    c = jnp.linspace(-1, 1, 4)
    params = jax.jit(net.init)(jax.random.key(0), y, c)
    apply = jax.jit(net.apply)
    batch = apply(params, y, c)
    rows = [apply(params, y[i : i + 1], c[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(batch, jnp.stack(rows), rtol=1e-4, atol=1e-5)
    mapped = jax.vmap(lambda y, c: apply(params, y[None], c[None])[0])(y, c)
    np.testing.assert_allclose(batch, mapped, rtol=1e-4, atol=1e-5)


def test_fourier_features_are_fixed_and_of_the_stated_scale():
    net = GaussianFourierFeatures(size=4000, scale=3.0)
    params = net.init(jax.random.key(0), jnp.zeros(1))
    assert size(params) == 0
    h = 1e-3
    slope = (net.apply({}, jnp.array([h])) - net.apply({}, jnp.array([0.0])))[0, 2000:] / h
    assert float(jnp.std(slope)) == pytest.approx(2 * np.pi * 3, rel=0.1)


HALF = {
    "mlp": {"width": 64, "depth": 3, "time_features": 16, "skip": True},
    "mlp, plain": {"width": 64, "depth": 3},
    "unet": {"shape": (8, 8, 1), "widths": (8, 16), "time_features": 16},
}


@pytest.mark.parametrize(
    "kind", ["mlp", "mlp, plain", pytest.param("unet", marks=pytest.mark.slow)]
)
def test_bfloat16_networks_are_close_and_keep_float32_ends(kind, rng):
    """bfloat16 rounds to 2^-9 = 0.2 %; a few layers of it stay within 3 % of the output's norm.

    Parameters, output and gradients are float32, and so is the first layer: two inputs that differ
    by less than the spacing of bfloat16 numbers have different outputs.
    """
    kinds = networks.NETWORKS[kind.split(",")[0]]
    single, half = kinds(**HALF[kind]), kinds(**HALF[kind], dtype=jnp.bfloat16)
    y = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    c = jnp.linspace(-1, 1, 8)
    params = half.init(jax.random.key(0), y, c)
    chex.assert_trees_all_equal(params, single.init(jax.random.key(0), y, c))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    actual, expected = half.apply(params, y, c), single.apply(params, y, c)
    assert actual.dtype == jnp.float32
    error = jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)
    assert 1e-4 < error < 0.03
    gradient = jax.grad(lambda p: jnp.mean(half.apply(p, y, c) ** 2))(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
    rounded = y.astype(jnp.bfloat16).astype(jnp.float32)
    assert not jnp.array_equal(half.apply(params, rounded, c), actual)


def test_normalisation_statistics_of_bfloat16_networks_are_float32(rng):
    """Activations of mean 300 and deviation 1, where bfloat16 numbers are 2 apart.

    Statistics in bfloat16 would be off by as much as the deviation.
    """
    x = jnp.asarray(300 + rng.normal(size=(2, 8, 8, 4)), jnp.float32).astype(jnp.bfloat16)
    norm = nn.GroupNorm(num_groups=1, dtype=jnp.bfloat16)
    out, _ = norm.init_with_output(jax.random.key(0), x)
    exact = np.asarray(x, np.float64).reshape(2, -1)
    exact = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    np.testing.assert_allclose(np.asarray(out, np.float64).reshape(2, -1), exact, atol=0.05)


def model(parameterisation="residual", **options) -> networks.ScoreModel:
    process = processes.langevin(PRIOR)
    coordinate = time_coordinate(process.clock, process.horizon, "clock", first=1e-3)
    return networks.ScoreModel(
        network=networks.ScoreMLP(width=8, depth=2, **options),
        dim=process.dim,
        precondition=networks.PRECONDITIONS[parameterisation](
            process=process, coordinate=coordinate
        ),
    )


def test_unknown_parameterisation_is_refused():
    with pytest.raises(ValueError, match=r"network\.parameterisation"):
        Config.from_dict({"network": {"parameterisation": "cooked"}})


def test_dropout_is_one_network_a_key_and_none_without_a_key():
    """The scores of a loss of two, as NDSM's, are of one network; sampling leaves nothing out."""
    m, plain = model(dropout=0.5), model()
    params = m.init(jax.random.key(0))
    y, t = jnp.linspace(-2, 2, 12).reshape(3, 2, 2), jnp.full((3, 2), 0.2)
    one, two = (m.bind(params, dropout=jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(one(y, t), one(y, t))
    assert not jnp.array_equal(one(y, t), two(y, t))
    np.testing.assert_array_equal(m.bind(params)(y, t), plain.bind(params)(y, t))
    ignored = plain.bind(params, dropout=jax.random.key(1))
    np.testing.assert_array_equal(ignored(y, t), plain.bind(params)(y, t))


def test_residual_score_starts_as_the_priors():
    m = model(zero_output=True)
    y = jnp.linspace(-2, 2, 12).reshape(3, 2, 2)
    score = m(m.init(jax.random.key(0)), y, jnp.full((3, 2), 0.2))
    np.testing.assert_allclose(score, PRIOR.score(y), rtol=1e-6)


def test_parameterisations_are_the_stated_functions_of_the_network():
    raw, residual = model("raw"), model("residual")
    params = raw.init(jax.random.key(0))
    y, t = jnp.linspace(-2, 2, 12).reshape(3, 2, 2), jnp.array([[0.01, 0.1]] * 3)
    net = raw(params, y, t)
    flat = raw.network.apply(params, y.reshape(-1, 2), raw.precondition.coordinate(t).ravel())
    np.testing.assert_allclose(net.reshape(-1, 2), flat, rtol=1e-6)
    process = raw.precondition.process
    std = np.sqrt(np.asarray(process.clock.variance(t)))[..., None]
    np.testing.assert_allclose(residual(params, y, t), PRIOR.score(y) + net / std, rtol=1e-5)
    # For Langevin noising the probability-flow velocity is the residual alone.
    velocity = processes.probability_flow(process, residual.bind(params))(y, t)
    np.testing.assert_allclose(velocity, net / std, rtol=1e-3, atol=1e-4)


def test_the_network_is_told_the_mean_given_the_state():
    """E[mu | y], here by SciPy's densities, is its second input."""
    plain = model("raw")
    told = dataclasses.replace(plain, tells=networks.prior_mean(PRIOR))
    params = told.init(jax.random.key(0))
    y, t = jnp.linspace(-2, 2, 12).reshape(6, 2), jnp.full(6, 0.1)
    means = np.array([[-1.0, 0.0], [1.0, 0.5]])
    joint = np.stack(
        [
            weight * scipy.stats.multivariate_normal(m, variance * np.eye(2)).pdf(np.asarray(y))
            for weight, m, variance in zip((0.4, 0.6), means, (0.3, 0.4), strict=True)
        ],
        axis=-1,
    )
    mean = joint / joint.sum(-1, keepdims=True) @ means
    c = told.precondition.coordinate(t)
    flat = told.network.apply(params, y, c, jnp.asarray(mean, jnp.float32))
    np.testing.assert_allclose(told(params, y, t), flat, rtol=1e-4, atol=1e-6)
    assert size(params) == size(plain.init(jax.random.key(0))) + 2 * 8  # inputs x width


def test_any_other_network_is_a_plain_score_function():
    """Objectives and samplers take a function of (y, t): here one without Flax."""
    from test_objectives import make_batch

    weights = jnp.array([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.2, 0.0, -0.1]])
    loss = objectives.ndsm(lambda y, t: jnp.sin(y @ weights), make_batch(jax.random.key(0)))
    assert loss.shape == (6, 2)
    assert np.isfinite(loss).all()
