"""Linear dynamics of its own for every component: coordinates, kernel, law of the samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import (
    clock,
    experiment,
    noising,
    objectives,
    processes,
    references,
    sampling,
    training,
)
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts, stand_in
from ndsm_jax.frames import Identity, OfComponent
from ndsm_jax.integrators import time_grid

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
FULL = np.array([[[0.05, 0.02], [0.02, 0.1]], [[0.2, -0.05], [-0.05, 0.1]]])
PRIOR = references.mixture(WEIGHTS, MEANS, FULL, covariance="full")
PROCESS = processes.ornstein_uhlenbeck(2)
FRAME = OfComponent(mixture=PRIOR)
GRID = time_grid(PROCESS, 60)


def kernel_at(t):
    """a and s of the kernel N(a y_0, s^2 I): [...] each."""
    kernel = PROCESS.kernel(t)
    return kernel.scale.value, kernel.root.value


def test_kernel_is_that_of_the_chain_in_data_space():
    """Euler-Maruyama of dX = -(X - mu_c) dt + sqrt(2) L_c dW by NumPy: 20,000 paths, 400 steps to
    t = 0.5; the bias of the scheme is below 0.001."""
    rng = np.random.default_rng(0)
    x0, time, steps = np.array([-0.6, 0.1]), 0.5, 400
    x = np.broadcast_to(x0, (20_000, 2))
    h, root = time / steps, np.linalg.cholesky(FULL[0])
    for _ in range(steps):
        x = x - h * (x - MEANS[0]) + np.sqrt(2 * h) * rng.normal(size=x.shape) @ root.T
    scale, std = kernel_at(jnp.float32(time))
    mean = FRAME.leave(scale * PRIOR.standardise(0, jnp.asarray(x0, jnp.float32)), 0)
    assert_mean(x, mean, bias=0.001)
    products = (x - np.asarray(mean))[:, :, None] * (x - np.asarray(mean))[:, None, :]
    assert_mean(products, float(std) ** 2 * FULL[0], bias=0.001)


def test_noised_draws_the_posterior_and_noises_by_the_kernel():
    """20,000 copies of a point between the components, at known times."""
    x0 = jnp.broadcast_to(jnp.array([-0.4, 0.25]), (20_000, 2))
    noise = noising.exact_kernel(PROCESS, GRID, k=2)
    whole = experiment.experiment(PROCESS, frame=FRAME, objective="dsm", noise=noise)
    batch = jax.jit(training.noised)(whole, jax.random.key(0), x0)
    assert batch.t.shape == (20_000, 2)
    assert batch.condition.shape == (20_000, 1)
    density = [
        w * scipy.stats.multivariate_normal(m, s).pdf(np.asarray(x0[0]))
        for w, m, s in zip(WEIGHTS, MEANS, FULL, strict=True)
    ]
    assert 0.2 < density[0] / sum(density) < 0.8
    assert_mean(batch.condition[:, 0] == 0, density[0] / sum(density))
    scale, std = kernel_at(batch.t)
    start = PRIOR.standardise(batch.condition, jnp.broadcast_to(x0[:, None], batch.y.shape))
    z = np.asarray((batch.y - scale[..., None] * start) / std[..., None])
    assert_mean(z[:, 0], np.zeros(2))
    assert_mean(z[:, 0] ** 2, np.ones(2))
    np.testing.assert_allclose(batch.score_target, -z / np.asarray(std)[..., None], atol=2e-3)
    # Component and noise by the two halves of the key.
    key_component, key_noise = jax.random.split(jax.random.key(0))
    y0, component = FRAME.enter(key_component, x0)
    np.testing.assert_array_equal(batch.condition[:, 0], component)
    np.testing.assert_allclose(batch.y, noise(key_noise, y0).y, rtol=1e-5, atol=1e-5)


DATA_MEANS = np.array([[-0.9, 0.7], [1.2, -0.4]])
DATA_STD = np.array([0.2, 0.15])


def exact_score(y, t, component):
    """Of data N(DATA_MEANS[c], DATA_STD[c]^2 I) in component c, in the component's coordinates."""
    factor = jnp.linalg.inv(jnp.linalg.cholesky(jnp.asarray(FULL, jnp.float32)))
    offset = jnp.asarray(DATA_MEANS - MEANS, jnp.float32)
    mean = jnp.einsum("kij,kj->ki", factor, offset)[component]
    spread = jnp.asarray(DATA_STD, jnp.float32)[:, None, None] * factor
    scale, std = kernel_at(t[..., None])
    covariance = scale[..., None] ** 2 * jnp.einsum("kij,klj->kil", spread, spread)[component]
    covariance += std[..., None] ** 2 * jnp.eye(2)[None]
    return -jnp.linalg.solve(covariance, (y - scale * mean)[..., None])[..., 0]


@pytest.mark.parametrize(
    "sampler",
    [sampling.ReverseSDE(), sampling.MultistepSDE(), sampling.AdaptiveFlow()],
    ids=lambda s: type(s).__name__,
)
def test_exact_conditional_score_gives_the_moments_of_each_component(sampler):
    """1,000 samples a component of 60 steps; bias of the discretisation below 0.015 in the mean
    and 10 % in the variance (first-order samplers)."""
    components = np.arange(2000) % 2
    y = sampling.sample(
        jax.random.key(1),
        exact_score,
        PROCESS,
        2000,
        grid=GRID,
        sampler=sampler,
        condition=jnp.asarray(components),
        chunk=2000,
    )
    x = FRAME.leave(y, components)
    for c in range(2):
        y = x[components == c]
        assert_mean(y, DATA_MEANS[c], bias=0.015)
        assert_mean(
            (y - DATA_MEANS[c]) ** 2, np.full(2, DATA_STD[c] ** 2), bias=0.1 * DATA_STD[c] ** 2
        )


def test_samples_do_not_depend_on_the_chunk():
    draws = [
        sampling.sample(
            jax.random.key(1),
            exact_score,
            PROCESS,
            6,
            grid=GRID,
            condition=jnp.arange(6) % 2,
            chunk=chunk,
        )
        for chunk in (2, 6)
    ]
    np.testing.assert_allclose(*draws, atol=1e-5)


def config(**sections):
    return Config.from_dict({"process": {"name": "component_ou"}, **sections})


def test_the_network_knows_the_component():
    """U-Net and MLP: another component, another output of a network with random weights."""
    for name, shape in (("mlp", (4,)), ("unet", (4, 4, 1))):
        network = {"name": name, "width": 8, "depth": 1, "widths": (4,), "parameterisation": "raw"}
        built = config(objective={"name": "dsm"}, network=network, mixture={"num_components": 2})
        dim = int(np.prod(shape))
        prior = references.mixture([1, 1], np.stack([np.zeros(dim), np.ones(dim)]), np.ones(2))
        parts = Parts(frame=Identity(), reference=prior)
        model = build(built, shape, parts).model
        params = jax.jit(model.init)(jax.random.key(0))
        y, t = jnp.ones((2, dim)), jnp.full(2, 0.5)
        score = jax.jit(type(model).__call__)
        same, other = (score(model, params, y, t, jnp.array(c)) for c in ((0, 0), (0, 1)))
        assert same.shape == (2, dim)
        np.testing.assert_array_equal(same[0], other[0])
        assert float(jnp.abs(same[1] - other[1]).max()) > 1e-3


def test_an_untrained_residual_score_gives_the_prior():
    """Its network starts at zero, so the process is reversed from N(0, I) to N(0, I): 4,000
    samples have the moments of the mixture."""
    built = config(objective={"name": "dsm"}, network={"width": 8, "depth": 1})
    built = build(built, (2,), Parts(frame=Identity(), reference=PRIOR))
    built = dataclasses.replace(built, sample_grid=GRID, sampler=sampling.MultistepSDE())
    state = training.init_state(built, seed=0)
    x = training.draw(built, state, 4000, seed=1, chunk=4000, progress=False)
    mean = WEIGHTS @ MEANS
    second = np.einsum("k,kij->ij", WEIGHTS, FULL) + np.cov(MEANS.T, aweights=WEIGHTS, ddof=0)
    assert_mean(x, mean)
    assert_mean((x - mean)[:, :, None] * (x - mean)[:, None, :], second, bias=0.005)


def test_edm_preconditioning_gives_targets_of_variance_one():
    """Data N(0, I), a network that is 0: the loss is half the squared norm of its target, d / 2 in
    mean, at every time (1,000 points at each of four)."""
    built = config(objective={"name": "dsm"}, network={"parameterisation": "edm", "width": 8})
    normal = Parts(frame=Identity(), reference=references.standard_normal(2))
    built = build(built, (2,), normal)
    process = built.process
    params = jax.jit(built.model.init)(jax.random.key(0))
    x0, z = jax.random.normal(jax.random.key(1), (2, 1000, 4, 2))
    t = jnp.broadcast_to(jnp.array([[1e-3, 0.1, 1.0, 4.0]]), (1000, 4))
    scale, std = (a[..., None] for a in kernel_at(t))
    y = scale * x0 + std * z
    batch = noising.NoisedBatch(
        y=y,
        t=t,
        weight=clock.loss_weight(process.clock, "edm")(y, t),
        score_target=-z / std,
        condition=jnp.zeros((1000, 4), jnp.int32),
    )
    loss = objectives.dsm(built.model.bind(params, batch.condition), batch)
    assert_mean(loss, np.ones(4))
    np.testing.assert_allclose(
        loss, 0.5 * np.sum(np.asarray(std * x0 - scale * z) ** 2, axis=-1), rtol=0.02, atol=2e-3
    )


@pytest.mark.parametrize("name", ["component_ou", "variance_preserving"])
def test_a_prior_mean_that_tells_nothing_is_refused(name):
    tree = {
        "process": {"name": name},
        "objective": {"name": "dsm"},
        "network": {"prior_mean": True},
    }
    config = Config.from_dict(tree | {"mixture": {"num_components": 2}})
    parts = stand_in(config, (2,))
    with pytest.raises(ValueError, match=r"network\.prior_mean .* process\.name"):
        build(config, (2,), parts)


@pytest.mark.parametrize("objective", ["ndsm", "path_dsm"])
def test_other_objectives_have_targets_in_the_components_coordinates(objective):
    """E[T f(y)] = -E[grad f(y)] given the component, for data of their own law: 20,000 points.

    The targets are scaled by sqrt(v(t)), as otherwise the earliest times are all that counts.
    """
    parts = Parts(frame=Identity(), reference=PRIOR)
    built = build(config(objective={"name": objective}), (2,), parts)
    x0 = jnp.asarray(DATA_MEANS)[jnp.arange(20_000) % 2] + 0.2 * jax.random.normal(
        jax.random.key(0), (20_000, 2)
    )
    batch = jax.jit(training.noised)(built, jax.random.key(1), x0)
    std = np.asarray(PROCESS.clock.std(batch.t))[..., None]
    y, target = np.asarray(batch.y), np.asarray(batch.score_target)
    for c in range(2):
        inside = np.asarray(batch.condition == c)[..., None]
        assert 0.2 < inside.mean() < 0.8
        assert_mean((inside * std * (target * np.sin(y) + np.cos(y))).mean(axis=1), np.zeros(2))
