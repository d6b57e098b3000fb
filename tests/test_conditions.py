"""Conditions: what says nothing, what is left out, and which ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import conditioning, conditions, references
from ndsm_jax.conditions import Both, Classes

RATE = 0.15


def test_a_share_is_left_out_in_all_leaves_at_once():
    """20,000 items: the share, its independence of the item before, and what is kept."""
    condition = {"class": jnp.arange(20_000) % 7, "at": jnp.ones((20_000, 3))}
    found = conditions.dropped(jax.random.key(0), condition, RATE)
    out = np.asarray(found["class"] == -1)
    assert_mean(out, RATE)
    assert_mean(out[1:] & out[:-1], RATE**2)
    np.testing.assert_array_equal(np.isnan(found["at"]), np.repeat(out[:, None], 3, axis=1))
    np.testing.assert_array_equal(found["class"][~out], condition["class"][~out])


def test_the_frames_condition_is_joined_where_there_is_one():
    frame, told = jnp.arange(2), jnp.arange(2) + 5
    assert conditions.joined(None, None) is None
    assert conditions.joined(frame, None) is frame
    assert conditions.joined(None, told) is told
    assert conditions.joined(frame, told) == Both(frame, told)


LIKE = conditions.example({"class": np.zeros(4, np.int64), "at": np.zeros((4, 2))})


def told(**changes):
    return {"class": np.array([0, 2, -1]), "at": np.ones((3, 2))} | changes


def test_what_is_right_comes_in_the_types_of_the_network():
    found = conditions.check("f", told(), LIKE, 3, 3)
    assert found["class"].dtype == np.int32
    assert found["at"].dtype == np.float32
    assert conditions.check("f", None, None, 3) is None
    nothing = told(at=np.full((3, 2), np.nan))
    assert np.isnan(conditions.check("f", nothing, LIKE, 3)["at"]).all()


@pytest.mark.parametrize(
    ("condition", "like", "message"),
    [
        (told(), None, r"f: a condition is given.*network\.condition"),
        (None, LIKE, r"f: the network is told a condition, and none is given"),
        ({"class": np.zeros(3, int)}, LIKE, r"f: a condition of the structure"),
        (told(at=np.ones((3, 3))), LIKE, r"shape \[3, 3\]; float32 of shape \[3, 2\]"),
        (told(at=np.ones((4, 2))), LIKE, r"shape \[4, 2\]; float32 of shape \[3, 2\]"),
        (told(**{"class": np.zeros(3)}), LIKE, r"float64 .*; int32 of shape \[3\]"),
        (told(**{"class": np.array([0, 3, 1])}), LIKE, "class 3; classes go from 0 to 2, and -1"),
        (told(**{"class": np.array([0, -2, 1])}), LIKE, "class -2"),
        (told(at=np.full((3, 2), np.inf)), LIKE, "infinite"),
    ],
)
def test_what_is_wrong_is_refused(condition, like, message):
    with pytest.raises(ValueError, match=message):
        conditions.check("f", condition, like, 3, 3)


def test_an_example_needs_arrays_of_items():
    for wrong in (np.array(["a"]), np.float64(1.0)):
        with pytest.raises(ValueError, match="classes are integers"):
            conditions.example(wrong)


# --- classes and the components in which they start ---

MEANS = np.array([[-2.0], [0.0], [2.5]])
MIXTURE = references.mixture([0.5, 0.3, 0.2], MEANS, [0.5, 0.4, 0.6])


def items(num=2000):
    """Class 0 in the first two components, class 1 in the last two; some items without a class."""
    rng = np.random.default_rng(0)
    k = rng.choice(3, size=num, p=[0.5, 0.3, 0.2])
    x = MEANS[k] + np.sqrt([0.5, 0.4, 0.6])[k, None] * rng.normal(size=(num, 1))
    labels = np.where(k == 1, rng.integers(0, 2, num), k // 2)
    labels[rng.uniform(size=num) < 0.1] = -1
    return x.astype(np.float32), labels


def test_classes_have_the_shares_and_the_components_of_their_items():
    """P(k | c) is the mean responsibility of the class's items, but for the weights of EM; here by
    SciPy's densities, of a mixture that fits."""
    x, labels = items()
    found = conditioning.classes(labels, 2, prior=MIXTURE, states=x)
    np.testing.assert_allclose(found.shares, np.bincount(labels[labels >= 0]) / sum(labels >= 0))
    scales = np.sqrt([0.5, 0.4, 0.6])
    density = np.array([0.5, 0.3, 0.2]) * scipy.stats.norm.pdf(x, MEANS[:, 0], scales)
    r = density / density.sum(axis=1, keepdims=True)
    table = np.stack([r[labels == c].sum(axis=0) for c in range(2)], axis=1)
    table /= table.sum(axis=1, keepdims=True)
    expected = np.array([[0.5], [0.3], [0.2]]) * table
    expected /= expected.sum(axis=0)
    weights = np.exp(found.log_weights)
    np.testing.assert_allclose(weights[:2].T, expected, atol=2e-3)
    np.testing.assert_allclose(weights[2], [0.5, 0.3, 0.2], rtol=1e-5)
    np.testing.assert_array_equal(found.start_log_weights([1, -1])[1], found.log_weights[2])


def test_bayes_from_components_to_classes():
    shares, given = np.array([0.25, 0.75]), np.array([[0.9, 0.1], [0.2, 0.8]])
    log_weights = jnp.log(jnp.float32([*given, [0.5, 0.5]]))
    classes = Classes(shares=jnp.float32(shares), log_weights=log_weights)
    joint = shares[:, None] * given
    expected = (joint / joint.sum(axis=0)).T
    np.testing.assert_allclose(np.exp(classes.of_components(np.array([0, 1]))), expected, rtol=1e-5)
    plain = np.exp(Classes(shares=jnp.float32(shares)).of_components(np.zeros(3, int)))
    np.testing.assert_allclose(plain, [shares] * 3, rtol=1e-5)


def test_labels_that_are_none_are_refused():
    for labels in (np.full(3, -1), np.array([0, 2])):
        with pytest.raises(ValueError, match="classes: labels of"):
            conditioning.classes(labels, 2)
