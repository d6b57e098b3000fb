"""Which rows of the training set a step uses: epochs without replacement, seeded."""

from __future__ import annotations

import functools

import numpy as np

LARGE = 2**24
"""Items from which an epoch's order is computed where it is used, and not held in memory."""

ROUNDS = 6
"""Of the Feistel network: four make a random function a permutation that none can tell from one."""


def batch_indices(seed: int, step: int, num_items: int, batch_size: int) -> np.ndarray:
    """Rows [batch_size] of the data used in a step, a function of (seed, step) alone.

    Every epoch is a fresh permutation; its last incomplete batch is dropped. A batch larger than
    the data holds whole epochs, and what it lacks of another.
    """
    if batch_size > num_items:
        epochs = -(-batch_size // num_items)
        orders = [_rows(seed, step * epochs + i, num_items, 0, num_items) for i in range(epochs)]
        return np.concatenate(orders)[:batch_size]
    epoch, position = divmod(step, num_items // batch_size)
    start = position * batch_size
    return _rows(seed, epoch, num_items, start, start + batch_size)


def _rows(seed: int, epoch: int, num_items: int, start: int, stop: int) -> np.ndarray:
    """Places `start` to `stop` of an epoch's order."""
    if num_items < LARGE:
        return _epoch_order(seed, epoch, num_items)[start:stop]
    return permuted(np.arange(start, stop), num_items, (seed, epoch))


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_items: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_items).astype(np.int32)


def permuted(places: np.ndarray, num_items: int, seed: tuple[int, ...]) -> np.ndarray:
    """The images of `places` [n] under a seeded permutation of 0, ..., num_items - 1.

    In memory of the size of `places`: a Feistel network (Luby and Rackoff 1988) on as many bits as
    the items take, walked on from images that are no items (Black and Rogaway 2002), fewer than
    three in four.
    """
    half = np.uint64((int(num_items - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)

    def walked(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return left << half | right

    found = walked(np.asarray(places, np.uint64))
    while (beyond := found >= num_items).any():
        found[beyond] = walked(found[beyond])
    return found.astype(np.int32 if num_items <= 2**31 else np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The last steps of splitmix64 (Steele, Lea and Flood 2014): every bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
