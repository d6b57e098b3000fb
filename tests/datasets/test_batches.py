"""Batches are epochs without replacement, a function of seed and step."""

import numpy as np
import pytest

from ndsm_jax.datasets import batch_indices, batches
from ndsm_jax.datasets.batches import permuted


def test_batches_are_epochs_without_replacement():
    rows = [batch_indices(0, step, 10, 3) for step in range(6)]
    for epoch in (rows[:3], rows[3:]):
        assert len(set(np.concatenate(epoch))) == 9
    assert not np.array_equal(np.concatenate(rows[:3]), np.concatenate(rows[3:]))
    np.testing.assert_array_equal(rows[4], batch_indices(0, 4, 10, 3))


def test_an_epoch_is_numpys_permutation_of_its_own_seed():
    order = np.random.default_rng([7, 2]).permutation(11)  # epoch 2 has steps 10 to 14
    rows = [batch_indices(7, step, 11, 2) for step in range(10, 15)]
    np.testing.assert_array_equal(np.concatenate(rows), order[:10])


@pytest.mark.parametrize("num", [1, 2, 3, 17, 1000, 4097])
def test_an_order_that_is_computed_is_a_permutation(num):
    orders = [permuted(np.arange(num), num, (0, epoch)) for epoch in range(2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(num))
    assert num < 17 or not np.array_equal(*orders)
    np.testing.assert_array_equal(permuted(np.array([num - 1]), num, (0, 1)), orders[1][-1:])


def test_an_order_that_is_computed_is_as_one_at_random():
    """Where two neighbours go, over 4,000 seeds: 100 cells of equal chance, chi-square."""
    ends = np.stack([permuted(np.array([500, 501]), 10**5, (seed, 0)) for seed in range(4000)])
    table = np.bincount(10 * (ends[:, 0] // 10**4) + ends[:, 1] // 10**4, minlength=100)
    chi_square = np.sum((table - 40) ** 2) / 40
    assert abs(chi_square - 99) < 4.5 * (2 * 99) ** 0.5
    order = permuted(np.arange(10**6), 10**8, (0, 0))
    # Neighbours are far apart: |i - j| of two at random is N / 3, with deviation N / sqrt(18).
    distance = np.abs(np.diff(order.astype(float))).mean() / 1e8
    assert abs(distance - 1 / 3) < 4.5 / 18**0.5 / 1000 * 2


def test_batches_of_many_items_are_epochs_too(monkeypatch):
    monkeypatch.setattr(batches, "LARGE", 50)
    rows = np.concatenate([batch_indices(3, step, 101, 10) for step in range(10)])
    assert (len(rows), len(set(rows.tolist()))) == (100, 100)
    np.testing.assert_array_equal(rows[30:40], batch_indices(3, 3, 101, 10))
