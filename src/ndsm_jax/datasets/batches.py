"""Which rows of the training set a step uses: epochs without replacement, seeded."""

from __future__ import annotations

import functools

import numpy as np


def batch_indices(seed: int, step: int, num_items: int, batch_size: int) -> np.ndarray:
    """Rows [batch_size] of the data used in a step, a function of (seed, step) alone.

    Every epoch is a fresh permutation; its last incomplete batch is dropped. A batch larger than
    the data holds whole epochs, and what it lacks of another.
    """
    if batch_size > num_items:
        epochs = -(-batch_size // num_items)
        orders = [_epoch_order(seed, step * epochs + i, num_items) for i in range(epochs)]
        return np.concatenate(orders)[:batch_size]
    epoch, position = divmod(step, num_items // batch_size)
    start = position * batch_size
    return _epoch_order(seed, epoch, num_items)[start : start + batch_size]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_items: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_items).astype(np.int32)
