"""Optimisers by name, their learning rates, weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import stand_in
from ndsm_jax.networks import DiT
from ndsm_jax.optimisation import (
    OPTIMISERS,
    Optimiser,
    adam,
    averaged,
    descend,
    learning_rates,
    make_optimiser,
)


def moved(optimiser, params, gradients):
    """Parameters after updates against given gradients."""
    state = optimiser.transform.init(params)
    for gradient in gradients:
        loss = lambda p, g=gradient: sum(jnp.sum(p[k] * g[k]) for k in p)  # noqa: E731
        params, state, *_ = descend(loss, params, state, optimiser.transform)
    return params


def given(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def adams(gradients, m=0.0, v=0.0):
    """Kingma and Ba's steps, of learning rate 1."""
    for n, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        yield m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)


def lions(gradients, m=0.0):
    """Chen et al.'s: the sign of an average."""
    for g in gradients:
        yield np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g


@pytest.mark.parametrize(
    ("name", "steps", "decay"),
    [("adam", adams, 0.0), ("adamw", adams, 0.3), ("lion", lions, 0.3)],
)
def test_rules_are_those_of_the_papers_with_decoupled_decay(name, steps, decay, rng):
    start, gradients = given(rng, 5), [given(rng, 5) for _ in range(3)]
    found = moved(
        make_optimiser(name, 0.1, weight_decay=decay), {"a": start}, [{"a": g} for g in gradients]
    )
    expected = np.asarray(start, np.float64)
    for step in steps(np.asarray(gradients, np.float64)):
        expected = expected - 0.1 * (step + decay * expected)
    np.testing.assert_allclose(found["a"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 6), (3, 3, 2, 6)])
def test_muon_makes_the_step_of_a_kernel_orthogonal(shape, rng):
    """Singular values of the first step: all near 1 (Newton-Schulz leaves 0.7 to 1.2), of the scale
    0.2 sqrt(longest side); its directions are those of the gradient's own decomposition."""
    params, gradient = {"kernel": jnp.zeros(shape)}, given(rng, *shape)
    step = moved(make_optimiser("muon", 1.0), params, [{"kernel": gradient}])["kernel"]
    u, values, v = np.linalg.svd(np.reshape(gradient, (-1, 6)), full_matrices=False)
    scale = 0.2 * np.sqrt(np.prod(shape) / 6)
    found = u.T @ (-np.reshape(step, (-1, 6)) / scale) @ v.T
    np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-3)
    assert (np.abs(np.diag(found) - 1) < 0.35).all()
    assert values.max() / values.min() > 1.5


def test_muon_is_nadamw_for_all_but_kernels(rng):
    params = {"bias": given(rng, 4), "embedding": given(rng, 3, 4)}
    gradients = [{"bias": given(rng, 4), "embedding": given(rng, 3, 4)} for _ in range(2)]
    nadamw = Optimiser(transform=optax.nadamw(0.1, weight_decay=0.2))
    found, expected = (
        moved(optimiser, params, gradients)
        for optimiser in (make_optimiser("muon", 0.1, weight_decay=0.2), nadamw)
    )
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in OPTIMISERS if n != "adam"])
def test_weight_decay_leads_to_a_network_that_is_zero(name):
    """Where the data say nothing, every parameter shrinks by 1 - 0.1 * 0.5 an update."""
    net = DiT(shape=(4, 4, 1), width=8, depth=1, time_features=4)
    y = jnp.ones((1, 16))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), y, jnp.zeros(1)))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), shapes)
    optimiser = make_optimiser(name, 0.1, weight_decay=0.5)

    @jax.jit
    def shrunk(params):
        zero = jax.tree.map(jnp.zeros_like, params)
        update, _ = optimiser.transform.update(zero, optimiser.transform.init(params), params)
        return jax.tree.map(jnp.add, params, update)

    for leaf in jax.tree.leaves(shrunk(params)):
        np.testing.assert_allclose(leaf, 0.95 * 0.3, rtol=1e-5)


def test_learning_rates():
    n = np.arange(101)
    warm = np.minimum(n / 20, 1)
    cosine = np.where(n < 20, n / 20, (1 + np.cos(np.pi * (n - 20) / 80)) / 2)
    expected = {
        "constant": warm,
        "cosine": cosine,
        "inverse_sqrt": warm / np.sqrt(np.maximum(n / 40, 1)),
    }
    for kind, values in expected.items():
        rate = learning_rates(kind, 0.3, warmup=20, updates=100, start=40)
        np.testing.assert_allclose([rate(i) for i in n], 0.3 * values, rtol=1e-4, atol=1e-6)
    bare = learning_rates("inverse_sqrt", 0.3, start=40)
    np.testing.assert_allclose(bare(160), 0.15, rtol=1e-6)


def test_gradients_are_clipped_and_averaged_into_one_update():
    params = {"a": jnp.zeros(2)}
    gradients = [{"a": jnp.array([3.0, 0.0])}, {"a": jnp.array([0.0, 4.0])}]
    optimiser = make_optimiser("adam", 0.1, accumulate=2, clip_norm=1.0)
    assert not jnp.any(moved(optimiser, params, gradients[:1])["a"])
    np.testing.assert_allclose(moved(optimiser, params, gradients)["a"], [-0.1, -0.1], rtol=1e-4)


def test_equal_optimisers_are_one_and_say_what_they_are():
    assert adam(1e-3) is make_optimiser("adam", 1e-3)
    names = {
        make_optimiser(name, 0.1, schedule=kind, steps=10).name
        for name in OPTIMISERS
        for kind in ("constant", "cosine", "inverse_sqrt")
    }
    assert len(names) == 12


def test_average_forgets_the_initialisation():
    ema = averaged(jnp.float32(0.0), jnp.float32(1.0), 0.9, jnp.int32(0))
    assert float(ema) == pytest.approx(0.9)
    assert float(averaged(ema, jnp.float32(2.0), 0.9, jnp.int32(1000))) == pytest.approx(1.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adagrad"}, r"optimizer\.name='adagrad': choose one of adam, adamw"),
        ({"weight_decay": 0.1}, r"optimizer\.weight_decay=0\.1 has no effect .* choose adamw"),
        ({"schedule": "step"}, r"optimizer\.schedule='step': choose one of constant"),
        ({"schedule": "cosine", "steps": 5, "warmup_steps": 5}, r"5 updates do not outlast"),
    ],
)
def test_unknown_and_useless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimiser(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 30, "steps": 20}, r"optimizer\.accumulate=30 .* there are 20: lower"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"decay_start": 0, "schedule": "inverse_sqrt"}, "decay_start"),
        ({"ema_decay": 1.5}, "ema_decays"),
        ({"ema_decay": ()}, "ema_decays"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimiser(**options)


def test_several_averages_are_a_list_or_a_tuple():
    made = make_optimiser(ema_decay=[0.9, 0.99])
    assert made is make_optimiser(ema_decay=(0.9, 0.99))
    assert made.ema_decays == (0.9, 0.99)


def test_a_training_that_makes_no_update_is_refused():
    config = Config.from_dict({"train": {"steps": 20}, "optimizer": {"accumulate": 21}})
    with pytest.raises(ValueError, match=r"optimizer\.accumulate=21 .* train\.steps=20 make none"):
        build(config, (2,), stand_in(config, (2,), None))
