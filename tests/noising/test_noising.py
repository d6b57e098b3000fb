"""Noised batches: laws, fields, and times."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from ndsm_jax import frames, noising, processes, references
from ndsm_jax.clock import loss_weight
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import stand_in
from ndsm_jax.experiment import experiment
from ndsm_jax.integrators import local_kernel, simulate, time_grid
from ndsm_jax.noising.chain import walk
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.training.step import noised
from tests.training.tiny_runs import tiny

PRIOR = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])


def paths(process, steps=60, k=3, noises=1, **loss) -> noising.LocalSteps:
    loss = loss or {"loss_fraction": 0.5}
    loss |= {"simulation": "full", "integrator": "euler"}
    return noising.local_steps(process, steps, k=k, noises=noises, **loss)


def test_stratified_quantiles_are_uniform_and_evenly_spread():
    process = processes.langevin(PRIOR)
    law = noising.time_law(process.clock, time_grid(process, 20))
    u = np.asarray(law.quantiles(jax.random.key(0), 10, 4))
    np.testing.assert_allclose(np.diff(np.sort(u.ravel())), 1 / 40, atol=1e-6)
    # Each path's own times are spread over all of [0, 1), too.
    np.testing.assert_allclose(np.diff(np.sort(u, axis=1)), 1 / 4, atol=1e-6)
    many = jax.vmap(lambda k: law.quantiles(k, 2, 2))(jax.random.split(jax.random.key(1), 5000))
    assert_mean(many, np.full((2, 2), 0.5))


def test_time_law_inverts_its_distribution_function(rng):
    process = processes.langevin(PRIOR)
    grid = time_grid(process, 30)
    for kind in noising.TIME_LAWS:
        law = noising.time_law(process.clock, grid, kind=kind, stratified=False)
        assert float(law.cdf[0]) == 0
        assert float(law.cdf[-1]) == pytest.approx(1)
        u = jnp.asarray(rng.uniform(size=(500, 40)), jnp.float32)
        index = np.asarray(law.index(u))
        frequencies = np.bincount(index.ravel(), minlength=30) / index.size
        np.testing.assert_allclose(frequencies, np.diff(law.cdf), atol=4.5 * 0.5 / 20_000**0.5)
        t = np.asarray(law.time(u))
        assert ((t >= grid[index]) & (t <= grid[index + 1] * (1 + 1e-6))).all()
    uniform = noising.time_law(process.clock, grid, kind="uniform")
    np.testing.assert_allclose(uniform.cdf, grid / grid[-1], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"time_law: kind="):
        noising.time_law(process.clock, grid, kind="never")


@pytest.mark.parametrize("kind", noising.TIME_LAWS)
def test_a_grid_of_one_step_has_all_of_its_law(kind):
    process, grid = processes.ornstein_uhlenbeck(2), np.array([0.0, 4.0])
    law = noising.time_law(process.clock, grid, kind=kind)
    np.testing.assert_array_equal(law.cdf, [0, 1])
    batch = noising.exact_kernel(process, grid, times=law)(jax.random.key(0), jnp.ones((6, 2)))
    assert ((batch.t > 0) & (batch.t <= 4)).all()
    assert bool(jnp.isfinite(batch.score_target).all())


def test_exact_kernel_fills_every_field_consistently():
    process = processes.variance_preserving(3)
    law = noising.time_law(process.clock, time_grid(process, 50))
    noise = noising.exact_kernel(process, np.asarray(law.grid), k=4)
    x0 = jnp.full((500, 3), 0.7)
    batch = noise(jax.random.key(0), x0)
    chex.assert_shape([batch.y, batch.mu, batch.score_target], (500, 4, 3))
    chex.assert_shape([batch.t, batch.weight], (500, 4))
    kernel = process.kernel(batch.t)
    scale, std = kernel.scale.value, kernel.root.value
    np.testing.assert_allclose(batch.mu, scale[..., None] * x0[:, None, :], rtol=1e-6)
    expected = -(batch.y - batch.mu) / (std**2)[..., None]
    np.testing.assert_allclose(batch.score_target, expected, rtol=1e-3, atol=1e-2)
    white = np.asarray(-batch.score_target * std[..., None]).reshape(-1, 3)
    assert_mean(white, np.zeros(3))
    assert_mean(white**2, np.ones(3))
    assert float(batch.t.min()) >= float(law.grid[1])


def test_simulated_paths_are_one_gaussian_step_from_mu():
    process = processes.langevin(PRIOR)
    noise = paths(process)
    batch = noise(jax.random.key(0), PRIOR.sample(jax.random.key(1), (40,)))
    chex.assert_shape([batch.y, batch.mu, batch.score_target], (40, 3, 2))
    interval = noise.times.index(
        noise.times.quantiles(jax.random.split(jax.random.key(0), 3)[0], 40, 3)
    )
    variance = 2 * noise.lengths[interval][..., None]
    np.testing.assert_allclose(
        batch.y, batch.mu - variance * batch.score_target, rtol=1e-4, atol=1e-5
    )
    assert_mean((batch.score_target**2 * variance).reshape(-1, 2), np.ones(2))
    np.testing.assert_allclose(batch.weight, process.clock.variance(batch.t), rtol=1e-6)


def test_simulated_paths_of_a_linear_process_have_the_exact_kernel_moments():
    """OU by simulation against its kernel at the times drawn: (y - a x0) / s is N(0, 1).

    20,000 paths of 150 steps. Euler bias: steps of at most 0.055 of the relaxation time change
    means by less than 0.03 and variances by less than 0.06 (half a step times the rate).
    """
    process = processes.ornstein_uhlenbeck(2, variance=0.5)
    batch = paths(process, steps=150, k=2)(jax.random.key(0), jnp.ones((20_000, 2)))
    kernel = process.kernel(batch.t)
    scale, std = kernel.scale.value, kernel.root.value
    white = ((batch.y - scale[..., None]) / std[..., None]).reshape(-1, 2)
    assert_mean(white, np.zeros(2), bias=0.03)
    assert_mean(white**2, np.ones(2), bias=0.06)


@pytest.mark.parametrize("loss", [{"loss_fraction": 1.0}, {"loss_step": 1e-3}])
def test_loss_steps_leave_the_very_path(loss):
    """mu rebuilt from the stored path of the same keys, for every interval of the grid."""
    process = processes.langevin(PRIOR)
    noise = paths(process, steps=8, k=5, **loss)
    key, x0 = jax.random.key(4), PRIOR.sample(jax.random.key(1), (30,))
    batch = noise(key, x0)
    key_time, key_path, _ = jax.random.split(key, 3)
    path = simulate(jax.random.split(key_path, 3)[1], process, x0, noise.times.grid)
    interval = np.asarray(noise.times.index(noise.times.quantiles(key_time, 30, 5)))
    assert set(interval.ravel()) == set(range(8))
    start = np.asarray(noise.starts)[interval]
    mu, sigma = local_kernel(
        process,
        jnp.asarray(np.asarray(path)[start, np.arange(30)[:, None]]),
        noise.times.grid[start],
        noise.lengths[interval],
    )
    np.testing.assert_allclose(batch.mu, mu, rtol=1e-5, atol=1e-6)
    pull = -(batch.y - batch.mu) / (sigma**2)[..., None]
    np.testing.assert_allclose(batch.score_target, pull, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(batch.t, noise.times.grid[start] + noise.lengths[interval])


def test_fixed_loss_steps_start_on_the_grid():
    process = processes.langevin(PRIOR)
    grid = time_grid(process, 100)
    starts, lengths = noising.loss_steps(process.clock, grid, fixed=1e-3)
    np.testing.assert_array_equal(starts, np.arange(100))
    np.testing.assert_array_equal(lengths, np.float32(1e-3))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 2.0, 10.0])
def test_fractional_loss_steps_end_on_the_grid_and_add_the_fraction(fraction):
    """Training sees exactly the grid's times, the first of them too, by stable steps."""
    process = processes.langevin(PRIOR)
    grid = time_grid(process, 100)
    starts, lengths = (
        np.asarray(a) for a in noising.loss_steps(process.clock, grid, fraction=fraction)
    )
    np.testing.assert_allclose(grid[starts] + lengths, grid[1:], rtol=1e-6)
    assert (lengths > 0).all()
    assert lengths.max() <= np.diff(grid).max() * 1.001
    v = np.asarray(process.clock.variance(jnp.asarray(grid)))
    added = (v[1:] - v[starts]) / np.maximum(v[starts], 1e-12)
    capped = (starts == np.arange(100)) | (grid[1:] - grid[starts - 1] > np.diff(grid).max())
    assert (added[~capped] >= fraction * (1 - 1e-4)).all()
    # One grid point later would add too little: the step is the shortest that is long enough.
    later = (v[1:] - v[starts + 1]) / v[starts + 1]
    assert (later[~capped] < fraction).all()


def test_noises_share_one_mu():
    process = processes.langevin(PRIOR)
    batch = paths(process, k=2, noises=3)(jax.random.key(0), PRIOR.sample(jax.random.key(1), (50,)))
    chex.assert_shape([batch.y, batch.mu, batch.score_target], (50, 6, 2))
    for group in (slice(0, 3), slice(3, 6)):
        for shared in (batch.mu, batch.t, batch.weight):
            first = np.asarray(shared)[:, [group.start] * 3]
            np.testing.assert_array_equal(shared[:, group], first)
    z = np.asarray(batch.score_target).transpose(1, 0, 2).reshape(6, -1)
    assert np.abs(np.corrcoef(z) - np.eye(6)).max() < 4.5 / 100**0.5


def test_loss_steps_want_one_of_the_two():
    process = processes.langevin(PRIOR)
    grid = time_grid(process, 10)
    for bad in ({}, {"fixed": 1.0, "fraction": 1.0}, {"fixed": -1.0}):
        with pytest.raises(ValueError, match=r"noising\.loss_step"):
            noising.loss_steps(process.clock, grid, **bad)


def test_noising_is_traced_once_for_any_mixture():
    traced = chex.assert_max_traces(lambda n, k, x: n(k, x), n=1)
    noise = jax.jit(traced)
    x0 = PRIOR.sample(jax.random.key(1), (8,))
    for mean, variance in ((0.5, 0.3), (0.7, 0.4)):
        prior = references.mixture([0.4, 0.6], [[-mean, 0.0], [mean, 0.5]], [0.3, variance])
        noise(paths(processes.langevin(prior), steps=10), jax.random.key(0), x0)


def test_unknown_weight_is_refused():
    with pytest.raises(ValueError, match=r"noising\.weight"):
        loss_weight(processes.langevin(PRIOR).clock, "heavy")


@pytest.mark.parametrize("make", [noising.path_windows, noising.local_steps])
def test_a_law_of_times_on_another_grid_is_refused(make):
    process = processes.langevin(PRIOR)
    times = noising.time_law(process.clock, time_grid(process, 30), kind="uniform")
    with pytest.raises(ValueError, match="grid of 30 steps, which is not the grid of 40 steps"):
        make(process, 40, times=times)
    with pytest.raises(ValueError, match="grid of 30 steps"):
        make(process, np.linspace(0, float(process.horizon), 31), times=times)
    assert make(process, 30, times=times).times is times


def test_stable_targets_of_all_the_data_are_their_exact_score(rng):
    """NumPy, in float64: the score of the mean of the kernels around all of the batch's items. It
    is another than the plain target where several items may have been the state's."""
    process = processes.straight_line(3)
    x0 = rng.normal(size=(40, 3)).astype(np.float32) + 2
    grid = time_grid(process, 30)
    noise = noising.exact_kernel(process, grid, k=5, stable=True)
    batch = noise(jax.random.key(0), jnp.asarray(x0))
    y, t = np.asarray(batch.y, np.float64), np.asarray(batch.t, np.float64)[..., None]
    away = y[:, :, None] - (1 - t[..., None]) * x0[None, None]
    logs = -0.5 * (away**2).sum(-1) / t**2
    w = np.exp(logs - logs.max(-1, keepdims=True))
    exact = -((w / w.sum(-1, keepdims=True))[..., None] * away).sum(2) / t**2
    np.testing.assert_allclose(batch.score_target * t, exact * t, atol=2e-3)
    plain = noising.exact_kernel(process, grid, k=5)(jax.random.key(0), jnp.asarray(x0))
    np.testing.assert_array_equal(plain.y, batch.y)
    assert batch.mu is None
    middle = (t > 0.4) & (t < 0.9)
    change = np.abs(np.asarray(plain.score_target) - np.asarray(batch.score_target)) * t
    assert change[middle[..., 0]].mean() > 0.2


@pytest.mark.parametrize("noises", [1, 3])
def test_stable_targets_of_paths_are_the_score_of_their_last_steps(rng, noises):
    """NumPy, in float64: all paths have the same k times, and at each the target is the score of
    the mean of the Gaussians that they are left by. mu is that of the same key without them."""
    process = processes.langevin(PRIOR)
    x0 = (2 * rng.normal(size=(40, 2))).astype(np.float32)
    noise = noising.local_steps(process, 40, k=5, noises=noises, stable=True, integrator="euler")
    key = jax.random.key(0)
    batch = noise(key, jnp.asarray(x0))
    assert batch.y.shape == batch.score_target.shape == (40, 5 * noises, 2)
    assert batch.mu is None
    assert batch.noises == noises
    t = np.asarray(batch.t)
    np.testing.assert_array_equal(t, np.broadcast_to(t[:1], t.shape))
    assert len(np.unique(t)) == 5

    key_time, key_path, _ = jax.random.split(key, 3)
    interval = noise.times.index(noise.times.quantiles(key_time, 1, 5))[0]
    index, h = noise.starts[interval], np.asarray(noise.lengths[interval], np.float64)
    starts = jnp.broadcast_to(index, (40, 5))
    grid = noise.times.grid
    left, _ = walk(key_path, noise.chain, jnp.asarray(x0), starts, grid[:-1], integrator="euler")
    drift = process.drift(left, jnp.broadcast_to(grid[index], (40, 5)))
    mu = np.asarray(left, np.float64) + h[:, None] * np.asarray(drift, np.float64)
    mu = np.repeat(mu, noises, axis=1)
    variance = np.repeat(2 * h, noises)
    away = np.asarray(batch.y, np.float64)[:, None] - mu[None]  # [state, item, time, d]
    logs = -0.5 * (away**2).sum(-1) / variance
    w = np.exp(logs - logs.max(axis=1, keepdims=True))
    exact = -((w / w.sum(axis=1, keepdims=True))[..., None] * away).sum(axis=1) / variance[:, None]
    std = np.sqrt(variance)[:, None]
    target = np.asarray(batch.score_target)
    np.testing.assert_allclose(target * std, exact * std, atol=5e-3)
    own = -np.einsum("iitd->itd", away) / variance[:, None]
    assert np.abs((own - exact) * std).mean() > 0.2  # and it is another than the path's own


@pytest.mark.slow
def test_stable_targets_of_paths_train_towards_the_same_score():
    """One Gaussian N(0, I) that noises to itself has the score -y. The slope that least squares
    finds, weighted as the loss is, over 600 minibatches of 64, beside its standard error; that of
    the stable targets has less than half the variance, and the bias of a batch of this size."""
    process = processes.langevin(references.mixture([1.0], [[0.0, 0.0]], [1.0]))
    slopes = {}
    for stable in (False, True):
        noise = noising.local_steps(process, 200, k=2, loss_fraction=0.5, stable=stable)

        def slope(key, noise=noise):
            key_data, key_noise = jax.random.split(key)
            batch = noise(key_noise, jax.random.normal(key_data, (64, 2)))
            w = batch.weight[..., None]
            return jnp.sum(w * batch.score_target * batch.y) / jnp.sum(w * batch.y**2)

        slopes[stable] = np.asarray(jax.lax.map(slope, jax.random.split(jax.random.key(1), 600)))
    assert abs(slopes[False].mean() + 1) < 4.5 * slopes[False].std() / 600**0.5 + 0.03
    assert abs(slopes[True].mean() + 1) < 4.5 * slopes[True].std() / 600**0.5 + 0.05
    assert slopes[True].var() < 0.5 * slopes[False].var()


@pytest.mark.slow
def test_with_stable_targets_ndsm_regresses_on_them():
    """0.5 |s - T|^2, weighted: the cancellation at mu needs a target of mean 0 given mu."""
    config = tiny(
        data={"name": "gaussians"}, objective={"name": "ndsm"}, noising={"stable": True, "k": 2}
    )
    made = build(config, (2,), stand_in(config, (2,)), quiet=True)
    assert made.noising.stable
    batch = noised(made, jax.random.key(0), np.zeros((8, 2), np.float32))
    score = np.asarray(PRIOR.score(batch.y))
    loss, control = OBJECTIVES["ndsm"].terms(lambda y, t: PRIOR.score(y), batch)
    expected = 0.5 * ((score - np.asarray(batch.score_target)) ** 2).sum(-1)
    np.testing.assert_allclose(loss, np.asarray(batch.weight) * expected, rtol=1e-4, atol=1e-5)
    assert control is None
    plain = tiny(data={"name": "gaussians"}, objective={"name": "ndsm_cv"})
    plain = dataclasses.replace(plain, noising=dataclasses.replace(plain.noising, stable=True))
    assert not build(plain, (2,), stand_in(plain, (2,)), quiet=True).noising.stable


def test_stable_targets_need_a_scalar_kernel_and_one_condition():
    angles = frames.Angles()
    torus = processes.langevin(references.uniform_torus(1))
    with pytest.raises(ValueError, match="those here are angles; set it to false"):
        experiment(
            torus, objective="ndsm", frame=angles, noise=noising.local_steps(torus, stable=True)
        )
    langevin = processes.langevin(PRIOR)
    averaged = noising.local_steps(langevin, stable=True)
    with pytest.raises(ValueError, match=r"'ndsm_cv' needs mu, .*; the same with stable=False"):
        experiment(langevin, objective="ndsm_cv", noise=averaged)
    damped = processes.critically_damped(2)
    with pytest.raises(ValueError, match="averages over paths whose noise is in every coordinate"):
        noising.local_steps(damped, stable=True)
    with pytest.raises(ValueError, match=r"noising\.stable needs a kernel N"):
        noising.exact_kernel(processes.critically_damped(2), stable=True)
    reference = references.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    process = processes.ornstein_uhlenbeck(1)
    noise = noising.exact_kernel(process, stable=True)
    frame = frames.OfComponent(mixture=reference)
    with pytest.raises(ValueError, match="components of their own"):
        experiment(process, objective="dsm", frame=frame, noise=noise)
    with pytest.raises(ValueError, match="conditions of their own"):
        experiment(process, objective="dsm", noise=noise, condition=np.zeros(3, np.int32))


def spherical_in_eight(covariance):
    means = np.random.default_rng(0).normal(size=(3, 8))
    variances = 0.4 if covariance == "tied_spherical" else [0.3, 0.5, 0.4]
    return processes.langevin(
        references.mixture([1, 2, 1], means, variances, covariance=covariance)
    )


SHORT = {
    "path": lambda: noising.path_windows(processes.langevin(PRIOR), 8, simulation="full"),
    "quotient": lambda: noising.path_windows(
        spherical_in_eight("spherical"), 8, simulation="quotient"
    ),
    "tied": lambda: noising.local_steps(
        spherical_in_eight("tied_spherical"), 8, simulation="quotient"
    ),
    "stable": lambda: noising.local_steps(processes.langevin(PRIOR), 8, stable=True),
    "linearised": lambda: noising.linearised_windows(processes.critically_damped(1), 8),
    "kernel": lambda: noising.exact_kernel(processes.wrapped(2), 8),
    "stable kernel": lambda: noising.exact_kernel(processes.ornstein_uhlenbeck(2), 8, stable=True),
}


@pytest.mark.parametrize("way", SHORT)
def test_float32_data_are_noised_alike_where_jax_has_float64(way):
    """All of the batch in float32, from the same draws."""
    noise = SHORT[way]()
    dim = noise.process.dim
    x0 = jnp.asarray(np.random.default_rng(1).normal(size=(4, dim)), jnp.float32)
    run = jax.jit(lambda noise, key, x0: noise(key, x0))
    expected = run(noise, jax.random.key(0), x0)
    with jax.enable_x64(True):
        batch = run(SHORT[way](), jax.random.key(0), x0)
    for leaf, of in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, of, rtol=1e-3, atol=1e-3 * np.abs(of).max())
