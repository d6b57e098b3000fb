"""Samples started from chosen components, and classes by way of them: closed forms and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from ndsm_jax import conditioning, processes, references, sampling
from ndsm_jax.integrators import time_grid

WEIGHTS = np.array([0.25, 0.75])
MEANS = np.array([[-4.0, 0.0], [4.0, 1.0]])
VARIANCE = 0.2
PRIOR = references.mixture(WEIGHTS, MEANS, np.full(2, VARIANCE))
PROCESS = processes.langevin(PRIOR)
GRID = time_grid(PROCESS, 150, smallest_variance=1e-3)

DATA_MEANS = MEANS + np.array([[0.3, -0.2], [-0.2, 0.4]])
DATA_VARIANCES = np.array([0.05, 0.1])


def data_score(y, t):
    """Score of noised sum_k w_k N(m_k, s_k^2 I), with components that do not see each other.

    The drift near component k is -(y - mu_k) / v to within rounding, so that component noises to a
    normal of mean mu_k + e^{-t/v} (m_k - mu_k), variance e^{-2t/v} s_k^2 + v (1 - e^{-2t/v}).
    """
    decay = jnp.exp(-t / VARIANCE)[..., None]
    nearer = (y[..., :1] > 0).astype(y.dtype)

    def choose(values):
        low, high = jnp.asarray(values, y.dtype)
        return (1 - nearer) * low + nearer * high

    mean = choose(MEANS[:, None]) + decay * choose((DATA_MEANS - MEANS)[:, None])
    variance = decay**2 * choose(DATA_VARIANCES[:, None, None]) + VARIANCE * (1 - decay**2)
    return -(y - mean) / variance


@pytest.mark.parametrize(
    "sampler", [sampling.ReverseSDE(), sampling.HeunFlow()], ids=lambda s: type(s).__name__
)
def test_samples_have_the_law_of_the_component_asked_for(sampler):
    """4,000 samples a component against the closed form N(m_k, s_k^2 I).

    The start is the limit's component, off by e^{-4} (m_k - mu_k), at most 0.008; 0.015 is allowed
    for it and the discretisation.
    """
    components = np.arange(8000) % 2
    x = sampling.sample(
        jax.random.key(0),
        data_score,
        PROCESS,
        8000,
        grid=GRID,
        sampler=sampler,
        components=components,
        chunk=8000,
    )
    for k in range(2):
        assert_mean(x[k::2], DATA_MEANS[k], bias=0.015)
        assert_mean((x[k::2] - DATA_MEANS[k]) ** 2, np.full(2, DATA_VARIANCES[k]), bias=0.015)


def test_stationary_samples_stay_in_their_component():
    """The exact score of stationary data is the prior's; components are 18 deviations apart."""
    components = np.repeat([1, 0, 1], 100)
    x = sampling.sample(
        jax.random.key(1), PROCESS.drift, PROCESS, 300, grid=GRID, components=components
    )
    np.testing.assert_array_equal(conditioning.most_likely_component(PRIOR, x), components)


def draw(num, **options):
    options = {
        "grid": time_grid(PROCESS, 20),
        "sampler": sampling.HeunFlow(),
        "chunk": 64,
    } | options
    return sampling.sample(jax.random.key(3), data_score, PROCESS, num, **options)


def test_without_components_the_priors_own_are_used():
    """The draw is the one `GaussianMixture.sample` makes with the sample's key."""
    index = jnp.arange(40, dtype=jnp.uint32)
    components = sampling.start_components(jax.random.key(3), index, PRIOR.log_weights)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(3), i))[0])(index)
    points = jax.vmap(PRIOR.sample)(keys)
    np.testing.assert_array_equal(conditioning.most_likely_component(PRIOR, points), components)
    np.testing.assert_array_equal(draw(40), draw(40, components=np.asarray(components)))


def test_a_sample_depends_on_its_index_and_component_alone():
    components = np.arange(40) % 2
    whole = draw(40, components=components)
    parts = draw(40, components=components, chunk=16)
    np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-4)
    changed = np.where(np.arange(40) == 7, 0, components)
    np.testing.assert_array_equal(
        np.any(whole != draw(40, components=changed), axis=1), np.arange(40) == 7
    )


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (np.array([0, 2, 1]), "component 2: the reference has 2 components"),
        (np.array([0, -1, 1]), "component -1"),
        (np.array([0, 1]), r"shape \(2,\)"),
        (np.array([0.0, 1.0, 1.0]), "float64"),
    ],
)
def test_components_that_do_not_exist_are_refused(components, message):
    with pytest.raises(ValueError, match=message):
        draw(3, components=components)


def test_start_components_follow_each_samples_weights():
    """20,000 draws: weights shared, and one row a sample."""
    index = jnp.arange(20_000, dtype=jnp.uint32)
    p = np.array([0.1, 0.2, 0.7])
    shared = sampling.start_components(jax.random.key(0), index, jnp.log(p))
    assert_mean(np.eye(3)[shared], p)
    rows = np.stack([p, p[::-1]])[np.arange(20_000) % 2]
    own = np.asarray(sampling.start_components(jax.random.key(1), index, jnp.log(rows)))
    assert_mean(np.eye(3)[own[::2]], p)
    assert_mean(np.eye(3)[own[1::2]], p[::-1])


def test_class_table_counts_labels():
    """Far components: responsibilities are 0 or 1, the table a smoothed count."""
    x = MEANS[[0, 0, 0, 1]]
    table = conditioning.class_table(PRIOR, x, np.array([2, 2, 0, 1]), 3, prior_count=0.6)
    np.testing.assert_allclose(table, np.array([[1.2, 0.2, 2.2], [0.2, 1.2, 0.2]]) / [[3.6], [1.6]])


def test_class_table_shares_an_item_between_overlapping_components(rng):
    """Against the sum in NumPy, with responsibilities from SciPy's densities."""
    from scipy.stats import multivariate_normal

    prior = references.mixture(WEIGHTS, 0.2 * MEANS, np.array([0.3, 0.6]))
    x, labels = rng.normal(size=(30, 2)), rng.integers(0, 3, 30)
    joint = np.stack(
        [
            w * multivariate_normal(m, v * np.eye(2)).pdf(x)
            for w, m, v in zip(WEIGHTS, 0.2 * MEANS, (0.3, 0.6), strict=True)
        ],
        axis=1,
    )
    r = joint / joint.sum(axis=1, keepdims=True)
    counts = np.array([[r[labels == c, k].sum() for c in range(3)] for k in range(2)]) + 0.5 / 3
    actual = conditioning.class_table(prior, x, labels, 3, prior_count=0.5)
    np.testing.assert_allclose(actual, counts / counts.sum(axis=1, keepdims=True), rtol=1e-4)


def test_class_log_weights_are_bayes_rule():
    table = np.array([[0.9, 0.1], [0.3, 0.7]])
    for c, joint in ((0, WEIGHTS * [0.9, 0.3]), (1, WEIGHTS * [0.1, 0.7])):
        log_weights = conditioning.class_log_weights(PRIOR, table, c)
        np.testing.assert_allclose(np.exp(log_weights), joint / joint.sum(), rtol=1e-6)


def test_components_without_labels_are_uniform_over_classes():
    table = conditioning.class_table(PRIOR, MEANS[:1], np.array([1]), 4)
    np.testing.assert_allclose(table[1], 0.25, rtol=1e-5)


@pytest.mark.parametrize("per_class", [1, 5, 50])  # 50: more than there are
def test_labelled_subset_is_stratified_seeded_and_nested(per_class):
    labels = np.repeat([0, 1, 2], [60, 30, 30])
    chosen = conditioning.labelled_subset(labels, per_class=per_class, seed=0)
    num = min(3 * per_class, 120)
    assert len(set(chosen)) == num
    shares = np.bincount(labels[chosen], minlength=3)
    assert np.abs(shares - num * np.array([0.5, 0.25, 0.25])).max() <= 1
    longer = conditioning.labelled_subset(labels, per_class=per_class + 3, seed=0)
    np.testing.assert_array_equal(longer[:num], chosen)
    other = conditioning.labelled_subset(labels, per_class=per_class, seed=1)
    assert not np.array_equal(other, chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.array([0])}, "labels=.* n = 2"),
        ({"labels": np.array([0, 5])}, "labels from 0 to 5"),
        ({"prior_count": 0.0}, "prior_count=0.0"),
    ],
)
def test_unusable_labels_are_refused(options, message):
    options = {"labels": np.array([0, 1])} | options
    with pytest.raises(ValueError, match=message):
        conditioning.class_table(PRIOR, MEANS, num_classes=2, **options)


@pytest.mark.parametrize("label", [-1, 2])
def test_unknown_class_is_refused(label):
    with pytest.raises(ValueError, match=f"(class |label=){label}:"):
        conditioning.class_log_weights(PRIOR, np.full((2, 2), 0.5), label)
