"""Several devices, of one or more processes, as one.

One axis of devices, over which the rows of minibatches and of samples are spread; the compiler
divides the work accordingly (`jax.sharding`). Everything else is the same on each of them, or, for
large networks, spread as well. On one device nothing here moves anything.

Several processes all run the same program, and each of the functions here is called by all.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROWS = "rows"
"""The axis of devices."""

SMALLEST = 2**12
"""Elements of an array that is worth spreading."""


def mesh() -> Mesh:
    """All devices of all processes."""
    return Mesh(np.asarray(jax.devices()), (ROWS,))


def num_devices() -> int:
    """Of all processes."""
    return jax.device_count()


def is_first() -> bool:
    """Whether this is the process that writes files, and tells what goes on."""
    return jax.process_index() == 0


def check_divides(name: str, number: int) -> None:
    """Raises ValueError where rows of this number cannot be spread evenly."""
    if number % num_devices():
        raise ValueError(
            f"{name}={number} does not divide among {num_devices()} devices; set it to"
            f" {whole_rows(number)}"
        )


def whole_rows(number: int) -> int:
    """The least multiple of the number of devices that is not less."""
    return -(-number // num_devices()) * num_devices()


def by_rows(axis: int = 0) -> NamedSharding | None:
    """Along an axis of arrays; None on one device."""
    return _sharding(*[None] * axis, ROWS)


def everywhere() -> NamedSharding | None:
    """The same on each device; None on one device."""
    return _sharding()


def _sharding(*axes: str | None) -> NamedSharding | None:
    return NamedSharding(mesh(), PartitionSpec(*axes)) if num_devices() > 1 else None


def gathered(tree: Any, rows: np.ndarray, axis: int = 0) -> Any:
    """Rows of arrays of the host, spread along an axis; a process reads those of its own devices.

    Args:
      tree: of arrays [N, ...], or of anything else that a NumPy array of row numbers can index.
      rows: numbers, whose length along the axis is a multiple of `num_devices`.
      axis: of the rows.
    """

    def take(rows: np.ndarray) -> Any:
        return jax.tree.map(lambda a: a[rows], tree)

    sharding = by_rows(axis)
    if sharding is None:
        return take(rows)
    parts, devices = [], []
    for device, index in sharding.addressable_devices_indices_map(rows.shape).items():
        parts.append(take(rows[index]))
        devices.append(device)

    def joined(*leaves: Any) -> jax.Array:
        shape = rows.shape + leaves[0].shape[rows.ndim :]
        local = [jax.device_put(leaf, d) for leaf, d in zip(leaves, devices, strict=True)]
        return jax.make_array_from_single_device_arrays(shape, sharding, local)

    return jax.tree.map(joined, *parts)


def spread(tree: Any, axis: int = 0) -> Any:
    """Arrays that every process has, spread along an axis whose length `num_devices` divides."""
    sharding = by_rows(axis)
    return tree if sharding is None else jax.tree.map(lambda a: _put(a, sharding), tree)


def replicated(tree: Any) -> Any:
    """Arrays that every process has, on each device; those that are on all of them stay."""
    sharding = everywhere()
    return tree if sharding is None else jax.tree.map(lambda a: _put(a, sharding), tree)


def shardings(tree: Any, *, spread: bool = False) -> Any:
    """Where the arrays of a training's state are: on each device, or those that are large spread.

    An array is spread along the longest axis that the number of devices divides, if it has one and
    `SMALLEST` elements. (Rajbhandari et al. 2020, ZeRO: parameters, gradients and moments.)
    """
    one = everywhere()
    if one is None:
        return None

    def of(leaf: Any) -> NamedSharding:
        fits = [n if n % num_devices() == 0 else 0 for n in leaf.shape]
        if not spread or leaf.size < SMALLEST or not any(fits):
            return one
        axis = int(np.argmax(fits))
        return NamedSharding(one.mesh, PartitionSpec(*[None] * axis, ROWS))

    return jax.tree.map(of, tree)


def placed(tree: Any, where: Any) -> Any:
    """Arrays that every process has, placed by `shardings`."""
    return tree if where is None else jax.tree.map(_put, tree, where)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """A leaf where it is wanted. What is on all devices may be, or is, spread among them."""
    if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
        return leaf if leaf.sharding == sharding else jax.device_put(leaf, sharding)
    if _is_key(leaf):
        data = jax.device_put(np.asarray(jax.random.key_data(leaf)), everywhere())
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Of the host: the devices of other processes take what these have.
    return jax.device_put(np.asarray(leaf), sharding)


def fetched(tree: Any) -> Any:
    """NumPy arrays of JAX's, wherever their parts are; typed keys and all else stay as they are."""

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or _is_key(leaf):
            return leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def agreed(tree: Any) -> Any:
    """Arrays of the first process, for all: what each has fitted may differ in the last bit."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def broadcast(leaf: Any) -> np.ndarray:
        array = np.ascontiguousarray(leaf)  # as bytes: JAX would make float32 of float64
        sent = multihost_utils.broadcast_one_to_all(np.frombuffer(array.tobytes(), np.uint8))
        return np.frombuffer(np.asarray(sent).tobytes(), array.dtype).reshape(array.shape)

    return jax.tree.map(broadcast, tree)


def least(number: int) -> int:
    """Of the numbers that the processes have."""
    return int(_all(number).min())


def largest(number: int) -> int:
    """Of the numbers that the processes have."""
    return int(_all(number).max())


def _all(number: int) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray([number])
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.int32(number)))
