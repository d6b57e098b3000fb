"""Expectation-maximisation in JAX against scikit-learn, and NumPy in float64."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as ScikitMixture

from ndsm_jax import references
from ndsm_jax.references import em
from ndsm_jax.rows import Stored

KINDS = ("spherical", "diag", "tied", "full")
K = 3


def clusters(rng: np.random.Generator, dim: int, num: int = 900) -> np.ndarray:
    """Three overlapping ones, of other scales in other directions."""
    means = 1.5 * rng.normal(size=(K, dim))
    scales = rng.uniform(0.4, 1.5, size=(K, dim))
    label = rng.choice(K, num, p=[0.2, 0.3, 0.5])
    return means[label] + scales[label] * rng.normal(size=(num, dim))


def low_rank(rng: np.random.Generator, dim: int, rank: int = 2) -> references.LowRank:
    directions = np.linalg.qr(rng.normal(size=(K, dim, rank))).Q
    return references.LowRank(np.full(K, 0.7), directions, rng.uniform(1, 3, (K, rank)))


def round_covariances(kind: str, dim: int) -> np.ndarray:
    return {
        "spherical": np.ones(K),
        "tied_spherical": np.array(1.0),
        "diag": np.ones((K, dim)),
        "tied": np.eye(dim),
        "full": np.tile(np.eye(dim), (K, 1, 1)),
    }[kind]


def begin(kind: str, data: em.Blocks, x: np.ndarray, rng: np.random.Generator) -> em.Estimate:
    """Equal components, of variance about 1, at three rows."""
    dim = x.shape[1]
    covariances: Any = low_rank(rng, dim) if kind == "low_rank" else round_covariances(kind, dim)
    return em.Estimate(np.full(K, 1 / K), x[[1, 2, 3]] - data.centre, covariances)


def matrices(kind: str, covariances: Any, dim: int) -> np.ndarray:
    """Written out: [K, d, d]."""
    if kind == "low_rank":
        s, u, along = covariances
        stretched = (u * (along - s[:, None])[:, None, :]) @ u.transpose(0, 2, 1)
        return stretched + s[:, None, None] * np.eye(dim)
    if kind == "diag":
        return np.stack([np.diag(row) for row in covariances])
    if kind in ("tied", "full"):
        return np.broadcast_to(covariances, (K, dim, dim))
    return np.broadcast_to(covariances, K)[:, None, None] * np.eye(dim)


def e_step(x: np.ndarray, weights: Any, means: Any, dense: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean log-likelihood and responsibilities, by SciPy's densities."""
    joint = np.stack(
        [
            np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(weights, means, dense, strict=True)
        ],
        axis=1,
    )
    log_prob = np.logaddexp.reduce(joint, axis=1)
    return float(log_prob.mean()), np.exp(joint - log_prob[:, None])


@pytest.mark.parametrize("dim", [2, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_iterations_are_those_of_scikit_learn(kind, dim, rng):
    """From one start, with and without matrix products for distances."""
    x = clusters(rng, dim)
    data = em.blocks(x)
    first = begin(kind, data, x, rng)
    model = ScikitMixture(
        K,
        covariance_type=kind,
        weights_init=first.weights,
        means_init=x[[1, 2, 3]],
        precisions_init=first.covariances,
        reg_covar=1e-3,
        tol=0.0,
        max_iter=8,
    )
    with pytest.warns(ConvergenceWarning):
        model.fit(x)
    run = em.iterate(data, kind, first, min_covariance=1e-3, max_iterations=8, tolerance=0.0)
    assert not run.converged
    np.testing.assert_allclose(run.log_likelihoods, model.lower_bounds_, rtol=3e-6)
    np.testing.assert_allclose(run.estimate.weights, model.weights_, rtol=1e-4)
    np.testing.assert_allclose(run.estimate.means + data.centre, model.means_, atol=1e-4)
    np.testing.assert_allclose(run.estimate.covariances, model.covariances_, rtol=1e-4, atol=1e-5)


def tied_spherical_step(x: np.ndarray, r: np.ndarray, _: em.Estimate) -> Any:
    means = r.T @ x / r.sum(axis=0)[:, None]
    squares = np.sum((x[:, None, :] - means[None]) ** 2, axis=2)
    return np.sum(r * squares) / x.size


def low_rank_step(x: np.ndarray, r: np.ndarray, last: em.Estimate) -> np.ndarray:
    """Each component's regression on its latent variables z, row by row, and their new covariance:
    covariances [K, d, d]."""
    s, u, along = last.covariances
    found = []
    for k in range(K):
        w = u[k] * np.sqrt(along[k] - s[k])
        away = x - r[:, k] @ x / r[:, k].sum()
        inner = np.linalg.inv(w.T @ w + s[k] * np.eye(w.shape[1]))
        z = away @ w @ inner
        zz = s[k] * inner + np.einsum("n,ni,nj->ij", r[:, k], z, z) / r[:, k].sum()
        xz = np.einsum("n,ni,nj->ij", r[:, k], away, z) / r[:, k].sum()
        new = xz @ np.linalg.inv(zz)
        residual = np.sum(r[:, k] * np.sum((away - z @ new.T) ** 2, axis=1)) / r[:, k].sum()
        residual += s[k] * np.trace(new @ inner @ new.T)
        found.append(new @ zz @ new.T + residual / x.shape[1] * np.eye(x.shape[1]))
    return np.stack(found)


@pytest.mark.parametrize("dim", [4, 12])
@pytest.mark.parametrize("kind", ["tied_spherical", "low_rank"])
def test_steps_of_kinds_that_scikit_learn_has_not(kind, dim, rng):
    """Against EM written out row by row in float64; and no step loses likelihood."""
    x = clusters(rng, dim)
    data = em.blocks(x)
    e = begin(kind, data, x, rng)
    gains = []
    for _ in range(4):
        dense = matrices(kind, e.covariances, dim)
        expected, r = e_step(x, e.weights, e.means + data.centre, dense)
        after = (tied_spherical_step if kind == "tied_spherical" else low_rank_step)(x, r, e)
        e, log_likelihood = em.step(data, kind, e, min_covariance=0.0)
        assert log_likelihood == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(e.weights, r.mean(axis=0), rtol=1e-5)
        means = r.T @ x / r.sum(axis=0)[:, None]
        np.testing.assert_allclose(e.means + data.centre, means, atol=1e-5)
        found = e.covariances if kind == "tied_spherical" else matrices(kind, e.covariances, dim)
        np.testing.assert_allclose(found, after, rtol=1e-4, atol=1e-5)
        gains.append(log_likelihood)
    assert np.diff(gains).min() > 0


@pytest.fixture(scope="module")
def digits():
    return load_digits().data / 8.0 - 1.0


def test_one_low_rank_component_is_probabilistic_pca(digits):
    """It starts from random directions with hardly any variance of their own."""
    pca = PCA(6, svd_solver="full").fit(digits)
    shrink = (len(digits) - 1) / len(digits)  # scikit-learn divides by N - 1
    pca.explained_variance_ *= shrink
    pca.noise_variance_ *= shrink
    options = {"covariance": "low_rank", "rank": 6, "min_covariance": 1e-9}
    mixture, report = references.fit(digits, 1, **options)
    assert report.converged
    # EM stops at a gain of 1e-3 a sample.
    assert report.log_likelihood == pytest.approx(pca.score(digits), abs=0.01)
    data = em.blocks(digits)
    start = em.Estimate(
        np.ones(1),
        np.zeros((1, 64)),
        references.LowRank(
            np.asarray(mixture.factor[:, 0], np.float64) ** 2,
            np.asarray(mixture.directions, np.float64),
            np.asarray(mixture.direction_std, np.float64) ** 2,
        ),
    )
    run = em.iterate(data, "low_rank", start, min_covariance=0, max_iterations=400, tolerance=1e-7)
    assert np.diff(run.log_likelihoods).min() > -1e-5
    assert run.log_likelihoods[-1] == pytest.approx(pca.score(digits), abs=1e-3)
    along = np.sort(run.estimate.covariances.direction_variances[0])[::-1]
    np.testing.assert_allclose(along, pca.explained_variance_, rtol=1e-2)


@pytest.mark.parametrize("kind", references.COVARIANCES)
def test_an_offset_of_1e4_times_the_spread_changes_nothing(kind, rng):
    x = clusters(rng, 12)
    runs = []
    for offset in (0.0, 1e4 * x.std()):
        data = em.blocks(x + offset)
        first = begin(kind, data, x + offset, np.random.default_rng(1))
        runs.append(em.iterate(data, kind, first, min_covariance=1e-3, max_iterations=5))
    near, far = (run.estimate for run in runs)
    np.testing.assert_allclose(runs[1].log_likelihoods, runs[0].log_likelihoods, rtol=1e-5)
    np.testing.assert_allclose(far.means, near.means, atol=1e-4)
    for a, b in zip(far.covariances, near.covariances, strict=True) if kind == "low_rank" else []:
        np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-3, atol=1e-4)
    if kind != "low_rank":
        np.testing.assert_allclose(far.covariances, near.covariances, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", references.COVARIANCES)
def test_a_component_without_rows_stays_where_it_is(kind, rng):
    x = clusters(rng, 12)
    data = em.blocks(x)
    first = begin(kind, data, x, rng)
    first.means[2] = 1e3
    run = em.iterate(data, kind, first, min_covariance=1e-3, max_iterations=5)
    weights, means, covariances = run.estimate
    assert 0 < weights[2] < 1e-12
    np.testing.assert_allclose(means[2], 1e3, rtol=1e-3)
    fitted = references.mixture(weights, means, covariances, covariance=kind)
    assert np.isfinite(fitted.score(np.float32(x))).all()
    if kind in ("spherical", "diag", "full", "low_rank"):
        np.testing.assert_allclose(fitted.component_variances()[2], 1e-3, rtol=1e-3)


class Recorded:
    """A source of stored rows, with a record of how many are read."""

    def __init__(self, x: np.ndarray) -> None:
        self._x, self.shape, self.dtype = x, x.shape, x.dtype
        self.read: list[int] = []

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        self.read.append(len(numbers))
        return self._x[numbers]


def test_rows_that_are_not_kept_are_read_in_blocks_once_an_iteration(rng, monkeypatch):
    """Their number is no multiple of the block."""
    x = clusters(rng, 12, 1001)
    whole = em.blocks(x)
    first = begin("full", whole, x, rng)
    options: Any = {"min_covariance": 1e-3, "max_iterations": 4, "tolerance": 0.0}
    expected = em.iterate(whole, "full", first, **options)
    monkeypatch.setattr(em, "KEPT", 0)
    source = Recorded(x)
    data = em.Blocks(
        rows=Stored.of(source), index=None, centre=whole.centre, chunk=32, numbers=12 * 64 * 3
    )
    run = em.iterate(data, "full", first, **options)
    assert data.size == 192
    assert source.read == [192, 192, 192, 192, 192, 41] * 4
    np.testing.assert_allclose(run.log_likelihoods, expected.log_likelihoods, rtol=1e-6)
    for found, wanted in zip(run.estimate, expected.estimate, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_blocks_are_added_in_float64():
    """2^24 + 1 is not a number in float32."""
    parts = iter([2.0**24, 1.0, 1.0, 1.0])
    total = em._total([()] * 4, lambda: np.float32(next(parts)))
    assert total == 2**24 + 3


@pytest.mark.parametrize("subset", [0, 500])
def test_a_file_gives_what_the_array_gives(subset, rng, tmp_path):
    x = clusters(rng, 4).astype(np.float32)
    np.save(tmp_path / "rows.npy", x)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r", allow_pickle=False)
    options: Any = {"solver": "jax", "subset": subset, "num_inits": 2, "covariance": "diag"}
    fits = [references.fit(rows, K, **options) for rows in (x, mapped, Stored.of(Recorded(x)))]
    for mixture, report in fits[1:]:
        for a, b in zip(jax.tree.leaves(fits[0][0]), jax.tree.leaves(mixture), strict=True):
            np.testing.assert_array_equal(a, b)
        assert report.log_likelihood == fits[0][1].log_likelihood
    assert (fits[0][1].held_out_log_likelihood is None) == (subset == 0)


SCRIPT = """
    import json, sys
    import jax, numpy as np
    from ndsm_jax.references import em
    x = np.random.default_rng(0).normal(size=(1003, 12)) * np.arange(1, 13)
    data = em.blocks(x)
    first = em.Estimate(np.full(3, 1 / 3), x[:3] - data.centre, np.tile(30 * np.eye(12), (3, 1, 1)))
    run = em.iterate(data, "full", first, min_covariance=1e-3, max_iterations=5, tolerance=0.0)
    start = em.start(data, "spherical", 3, init="random", min_covariance=0.0, seed=0)
    means = run.estimate.means.tolist(), start.means.tolist()
    json.dump([jax.device_count(), run.log_likelihoods, *means], sys.stdout)
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    found = []
    for count in (1, 8):
        flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
        done = subprocess.run(
            command, env=os.environ | {"XLA_FLAGS": flags}, check=True, capture_output=True
        )
        found.append(json.loads(done.stdout))
    (one, *expected), (eight, *values) = found
    assert (one, eight) == (1, 8)
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(values[1], expected[1], atol=1e-4)
    np.testing.assert_allclose(values[2], expected[2], atol=1e-6)


@pytest.mark.parametrize("init", references.INITS)
def test_every_start_finds_separated_clusters(init, rng):
    label = rng.choice(4, 2000)
    x = 10 * np.eye(4, 12)[label] + rng.normal(size=(2000, 12))
    options: Any = {"num_inits": 4, "init": init, "seed": 1}
    _, by_jax = references.fit(x, 4, solver="jax", **options)
    _, expected = references.fit(x, 4, solver="scikit-learn", **options)
    assert by_jax.converged
    assert by_jax.log_likelihood > expected.log_likelihood - 0.01
    assert (by_jax.solver, expected.solver) == ("jax", "scikit-learn")


def test_a_long_run_follows_short_ones_on_some_rows(rng, monkeypatch):
    x = clusters(rng, 4, 6000)
    monkeypatch.setattr(em, "SEEDED", 500)
    for kind in ("full", "low_rank"):
        options: Any = {"covariance": kind, "rank": 1, "solver": "jax", "num_inits": 3}
        _, report = references.fit(x, K, subset=4000, **options)
        assert report.num_samples == 4000
        assert report.converged
        assert report.held_out_log_likelihood == pytest.approx(report.log_likelihood, abs=0.15)


def test_rows_less_than_k_different_ones(rng):
    x = np.repeat(rng.normal(size=(2, 12)), 20, axis=0)
    fitted, report = references.fit(x, 4, solver="jax", min_covariance=1e-2)
    assert np.isfinite(report.log_likelihood)
    np.testing.assert_allclose(fitted.component_variances(), 1e-2, rtol=1e-2)
    references.fit(np.zeros((20, 12)), 2, solver="jax")


def test_the_solver_is_chosen_by_size_and_kind():
    assert references.solver_for(2000, 64, 10, "spherical") == "scikit-learn"
    assert references.solver_for(60_000, 784, 400, "spherical") == "jax"
    assert references.solver_for(200, 2, 3, "low_rank") == "jax"
    assert references.solver_for(60_000, 784, 400, "full", "scikit-learn") == "scikit-learn"


def test_what_a_solver_cannot_do_is_refused(rng):
    x = clusters(rng, 4, 60)
    for kind in ("tied_spherical", "low_rank"):
        with pytest.raises(ValueError, match=rf"mixture\.solver='scikit-learn' has no {kind}"):
            references.fit(x, 2, covariance=kind, rank=1, solver="scikit-learn")
    with pytest.raises(FloatingPointError, match=r"mixture\.solver to scikit-learn"):
        references.fit(1e25 * x, 2, solver="jax")
    references.fit(1e25 * x, 2, solver="scikit-learn")
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"references\.fit: data.*finite"):
        references.fit(Stored.of(Recorded(x)), 2)
    start = references.mixture([0.5, 0.5], np.zeros((2, 4)), 1.0, covariance="tied_spherical")
    with pytest.raises(ValueError, match="of the same kind and size"):
        references.fit(np.zeros((9, 4)), 2, start=start)
