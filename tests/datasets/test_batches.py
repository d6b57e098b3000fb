"""Batches are epochs without replacement, a function of seed and step."""

import numpy as np

from ndsm_jax.datasets import batch_indices


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
