"""Simulation in the quotient against the full space: the same laws, in every corner."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import noising, processes, references
from ndsm_jax.integrators import time_grid
from ndsm_jax.noising.quotient import _chi

STEPS = 30
PATHS = 6_000


def make_prior(dim, rank, covariance, seed=0):
    """Components whose centred means span `rank` dimensions of R^dim."""
    rng = np.random.default_rng(seed)
    if covariance == "low_rank":
        directions = np.linalg.qr(rng.normal(size=(2, dim, rank)))[0]
        spread = rng.uniform(0.8, 1.5, (2, rank))
        low_rank = references.LowRank(np.array([0.3, 0.5]), directions, spread)
        return references.mixture(
            [0.4, 0.6], rng.normal(size=(2, dim)), low_rank, covariance=covariance
        )
    num = rank + 1
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:, :rank]
    means = rng.normal(size=(num, rank)) @ basis.T + rng.normal(size=dim)
    weights = rng.uniform(0.5, 1.0, num)
    variances = rng.uniform(0.3, 0.9, num) if covariance == "spherical" else 0.5
    return references.mixture(weights, means, variances, covariance=covariance)


CASES = {  # d - rank is 4, 3, 2, 1 and 0
    "codim 4": (6, 2, "spherical"),
    "codim 3": (5, 2, "spherical"),
    "codim 2": (4, 2, "spherical"),
    "codim 1": (3, 2, "spherical"),
    "codim 0": (2, 2, "spherical"),
    "one component": (3, 0, "spherical"),
    "low rank, codim 4": (7, 1, "low_rank"),
    "tied": (5, 2, "tied_spherical"),
    "tied, codim 0": (2, 2, "tied_spherical"),
    "tied, one component": (3, 0, "tied_spherical"),
}
BETWEEN = ("codim 3", "codim 2", "codim 1")


def noisings(process, kind, integrator="euler"):
    grid = time_grid(process, STEPS)
    common = {
        "simulation": kind,
        "times": noising.time_law(process.clock, grid, stratified=False),
        "integrator": integrator,
        "k": 2,
    }
    yield noising.local_steps(process, grid, loss_fraction=0.5, **common)
    yield noising.path_windows(process, grid, window=0.6, **common)


def statistics(process, batch, x0):
    """First and second moments and a nonlinear one, of states and targets: [PATHS, many].

    Targets are scaled by the kernel's std, as otherwise the earliest times are all that counts.
    """
    y = np.asarray(batch.y)
    target = np.asarray(batch.score_target * process.clock.std(batch.t)[..., None])
    d = y.shape[-1]
    upper = np.triu_indices(d)
    start = np.asarray(x0)[:, None]
    pairs = [(y, y), (target, target), (y, target), (y, np.broadcast_to(start, y.shape))]
    columns = [y, target, np.sin(y.sum(-1, keepdims=True)), (y**2).sum(-1, keepdims=True) ** 2]
    columns += [(a[..., :, None] * b[..., None, :])[..., upper[0], upper[1]] for a, b in pairs]
    columns += [(y * target).sum(-1, keepdims=True) ** 2]
    late = np.asarray(batch.t > 0.3 * process.horizon)[..., None]
    all_columns = np.concatenate(columns, axis=-1)
    return np.concatenate([all_columns, all_columns * late], axis=-1).mean(axis=1)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c in BETWEEN else []) for c in CASES],
)
def test_the_quotient_has_the_law_of_the_full_space(case):
    """Moments of states, targets and their products with the data, and two-sample tests.

    6,000 paths each: within 5 standard errors of the difference (some 150 statistics a case), and
    Kolmogorov-Smirnov p > 1e-4 on random projections. Two of the five starts have q_0 = 0.
    """
    prior = make_prior(*CASES[case])
    process = processes.langevin(prior)
    spread = prior.sample(jax.random.key(2), (3,)) * 1.5
    few = jnp.concatenate([spread, prior.means[jnp.array([0, -1])]])
    x0 = jnp.tile(few, (PATHS // 5, 1))
    run = jax.jit(lambda n, key, x: n(key, x))
    pairs = zip(noisings(process, "full"), noisings(process, "quotient"), strict=True)
    for number, (full, small) in enumerate(pairs):
        assert small.chain.process.dim < prior.dim + 5
        a = run(full, jax.random.key(10 + number), x0)
        b = run(small, jax.random.key(20 + number), x0)
        left, right = statistics(process, a, x0), statistics(process, b, x0)
        error = np.sqrt(left.var(0) / len(left) + right.var(0) / len(right))
        z = (left.mean(0) - right.mean(0)) / np.maximum(error, 1e-9)
        assert np.abs(z).max() < 5, (number, np.abs(z).argmax(), z.shape)
        direction = np.random.default_rng(3).normal(size=prior.dim)
        for field in (lambda n: n.y, lambda n: n.score_target * process.clock.std(n.t)[..., None]):
            one, two = (np.asarray(field(n))[:, 0] @ direction for n in (a, b))
            assert scipy.stats.ks_2samp(one, two).pvalue > 1e-4


def test_the_quotient_of_exponential_steps():
    """As above for the exponential integrator, the tied complement's closed form included."""
    for case in ("codim 4", "low rank, codim 4", "tied", "tied, one component"):
        prior = make_prior(*CASES[case])
        process = processes.langevin(prior)
        x0 = jnp.tile(prior.sample(jax.random.key(2), (5,)), (PATHS // 5, 1))
        run = jax.jit(lambda n, key, x: n(key, x))
        kinds = [list(noisings(process, kind, "exponential"))[1] for kind in ("full", "quotient")]
        left, right = (
            statistics(process, run(n, jax.random.key(i), x0), x0) for i, n in enumerate(kinds)
        )
        error = np.sqrt(left.var(0) / len(left) + right.var(0) / len(right))
        assert (np.abs(left.mean(0) - right.mean(0)) < 5 * error + 1e-6).all()


@pytest.mark.parametrize("case", ["codim 4", "codim 1", "low rank, codim 4", "tied"])
def test_noise_free_paths_from_the_data_run_in_the_quotient(case):
    """mu depends on x0 and the time alone: equal to that of the full space, to float precision."""
    process = processes.langevin(make_prior(*CASES[case]))
    x0 = process.reference.sample(jax.random.key(2), (50,)) * 1.5
    mu = []
    for kind in ("full", "quotient"):
        noise = dataclasses.replace(
            list(noisings(process, kind))[1], starts=jnp.zeros(STEPS, int), companion=True
        )
        mu.append(noise(jax.random.key(0), x0).mu)
    np.testing.assert_allclose(mu[0], mu[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", ["spherical", "low_rank"])
def test_noising_does_not_depend_on_the_units(covariance):
    """Data and components 2^-20 times as large, and times 2^-40: states s y and targets T / s."""
    prior, batches = make_prior(12, 2, covariance), []
    x0 = prior.sample(jax.random.key(0), (20,)).at[0].set(prior.means[0])
    grid = time_grid(processes.langevin(prior), STEPS)
    law = noising.time_law(processes.langevin(prior).clock, grid)
    for s in (1.0, 2.0**-20):
        scaled = {n: getattr(prior, n) for n in ("means", "factor", "direction_std")}
        scaled = {n: None if a is None else a * s for n, a in scaled.items()}
        small = dataclasses.replace(prior, precision_factor=prior.precision_factor / s, **scaled)
        process = processes.langevin(small, horizon=float(grid[-1]) * s**2)
        times = dataclasses.replace(law, grid=law.grid * s**2)
        noise = noising.path_windows(process, grid * s**2, k=2, simulation="quotient", times=times)
        batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(1), x0 * s)
        batches.append((batch.y / s, batch.score_target * s))
    for one, other in zip(*batches, strict=True):
        scale = np.abs(one).max(axis=-1, keepdims=True)
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-3)


@pytest.mark.parametrize("covariance", ["spherical", "tied_spherical"])
def test_targets_in_high_dimension_satisfy_stein_identity(covariance):
    """d = 200, K = 5: E[T f(y)] = -E[grad f(y)] and the covariance of the targets' complement.

    6,000 paths, within 4.5 standard errors.
    """
    prior = make_prior(200, 4, covariance)
    process = processes.langevin(prior)
    noise = list(noisings(process, "quotient"))[1]
    assert noise.chain.process.dim in (4, 8)
    x0 = prior.sample(jax.random.key(0), (PATHS,))
    batch = jax.jit(lambda n, key, x: n(key, x))(noise, jax.random.key(1), x0)
    rng = np.random.default_rng(0)
    inside = np.asarray(noise.chain.basis)[:, :2].T
    directions = np.concatenate([inside, rng.normal(size=(6, 200)) / 200**0.5])
    y = np.asarray(batch.y) @ directions.T
    target = np.asarray(batch.score_target) @ directions.T
    norms = (directions**2).sum(1)
    scale = np.asarray(process.clock.std(batch.t))[..., None]
    assert_mean(((target * np.sin(y) + np.cos(y) * norms) * scale).mean(1), np.zeros(8))
    crossed = target[..., :4] * np.sin(y[..., 4:]) + np.cos(y[..., 4:]) * (
        directions[:4] * directions[4:]
    ).sum(1)
    assert_mean((crossed * scale).mean(1), np.zeros(4))


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 780])
def test_chi_is_the_law_of_lengths(degrees):
    """Kolmogorov-Smirnov against SciPy's chi, 20,000 draws, p > 1e-3."""
    draws = np.asarray(_chi(jax.random.key(degrees), degrees, (20_000,)))
    assert scipy.stats.kstest(draws, scipy.stats.chi(degrees).cdf).pvalue > 1e-3
    assert not np.any(_chi(jax.random.key(0), 0, (3,)))


def test_simulations_are_chosen_by_size_and_refused_where_there_is_no_quotient():
    big = processes.langevin(make_prior(100, 3, "spherical"))
    grid = time_grid(big, STEPS)
    assert isinstance(noising.make_chain(big, grid), noising.Quotient)
    assert isinstance(noising.make_chain(big, grid, paths=20), noising.FullSpace)
    tied = processes.langevin(make_prior(100, 3, "tied_spherical"))
    assert isinstance(noising.make_chain(tied, grid, paths=20), noising.TiedQuotient)
    diag = processes.langevin(
        references.mixture([1.0], np.zeros((1, 4)), np.ones((1, 4)), covariance="diag")
    )
    assert isinstance(noising.make_chain(diag, grid), noising.FullSpace)
    with pytest.raises(ValueError, match=r"noising\.simulation='quotient'"):
        noising.make_chain(diag, grid, kind="quotient")
    with pytest.raises(ValueError, match="make_chain: kind="):
        noising.make_chain(big, grid, kind="fast")
