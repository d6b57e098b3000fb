"""What a training will need of memory, and what there is, before anything is computed.

The formula, and how far it is from measured peaks: docs/reliability.md. Shapes alone are looked at
(`jax.eval_shape`, `jax.make_jaxpr`), so that it takes a second whatever the sizes are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import parallel
from ndsm_jax.experiment import Experiment
from ndsm_jax.machine import available_memory, in_words
from ndsm_jax.training.state import TrainState, init_state
from ndsm_jax.training.step import minibatches_ahead, noised, noised_shapes

PROGRAMS = 450e6
"""Bytes of compiled programs and of compiling them, twice as many where there are convolutions.

Measured: docs/reliability.md."""


KEPT = 0.75
"""Share of what the backward pass needs that XLA keeps, and does not compute again where it needs
it, and of gradients of samples that are there at once. Measured: docs/reliability.md."""


def size_of(tree: Any) -> int:
    """Bytes of the arrays of a pytree, of shapes or of values."""
    return sum(math.prod(a.shape) * _bytes(a.dtype) for a in jax.tree.leaves(tree))


def _bytes(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def needed(
    experiment: Experiment,
    rows: int,
    width: int,
    *,
    batch_size: int,
    ahead_mb: float = 4.0,
    select: bool = False,
    shard_parameters: bool = False,
) -> dict[str, float]:
    """Bytes that a training needs beside its data, by what they are for.

    Of the memory that `available` tells of: that of one accelerator, or of this process's host, on
    which all of its simulated devices are.

    Args:
      experiment: its parts; of the reference the shapes count alone.
      rows, width: of the prepared data [N, m]; rows = 0 where they are not in memory.
      batch_size: data points a step.
      ahead_mb: see `training.train`.
      select: whether the best average is kept, too.
      shard_parameters: see `training.train`.
    """
    local = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    share = local / parallel.num_devices()  # of a minibatch, and of what is sharded
    copies = share if shard_parameters else local
    state = jax.eval_shape(lambda: init_state(experiment, seed=0, select=select))
    batch = noised_shapes(experiment, width, batch_size)
    items = _items(experiment, width, batch)
    block = minibatches_ahead(experiment, np.empty((0, width)), batch_size, ahead_mb)
    parameters = size_of(state.params)
    convolutions = getattr(experiment.model.network, "convolutional", False)
    return {
        "states": 4.0 * rows * width,
        # And in a checkpoint, and compressed.
        "parameters, averages, optimiser": (copies + 2.0) * size_of(state),
        "gradient": copies * 2.0 * parameters,  # and the update that is made of it
        "activations": share
        * max(_kept(experiment, state, batch), _products(experiment, state, batch)),
        "noise ahead": share
        * block
        * (
            2.0 * size_of(batch)
            + size_of(items)  # read ahead
            + _largest(lambda x: noised(experiment, jax.random.key(0), *x), items)
        ),
        "programs": PROGRAMS * (2 if convolutions else 1),
    }


def _items(experiment: Experiment, width: int, batch: Any) -> tuple[Any, Any]:
    """Prepared data of a minibatch and what the network is told of them, as shapes."""
    size = batch.t.shape[0]
    told = jax.tree.map(
        lambda c: jax.ShapeDtypeStruct((size, *c.shape[1:]), c.dtype), experiment.model.condition
    )
    return jax.ShapeDtypeStruct((size, width), jnp.float32), told


def _terms(experiment: Experiment, params: Any, batch: Any) -> Any:
    return experiment.objective.terms(experiment.model.bind(params, batch.condition), batch)


def _kept(experiment: Experiment, state: TrainState, batch: Any) -> float:
    """What the backward pass of the loss needs of the forward pass, parameters aside."""

    def backward(params: Any, batch: Any) -> Any:
        return jax.vjp(lambda p: jnp.mean(_terms(experiment, p, batch)[0]), params)[1]

    residuals = size_of(jax.eval_shape(backward, state.params, batch))
    return KEPT * max(0.0, residuals - size_of(state.params))


def _products(experiment: Experiment, state: TrainState, batch: Any) -> float:
    """Of the products of per-sample gradients, where there is a control variate."""
    if not experiment.objective.controlled:
        return 0.0
    estimator = experiment.estimator
    if estimator.kind == "exact":  # a gradient a sample, `chunk` at a time, and two means
        chunk = min(estimator.chunk, math.prod(batch.t.shape))
        return (KEPT * chunk + 2.0) * size_of(state.params)
    # Forward mode keeps nothing: a tangent beside each value, and a direction of the parameters.
    pair = _largest(lambda p: _terms(experiment, p[0], p[1]), (state.params, batch))
    return 2 * pair + size_of(state.params)


def _largest(function: Callable[[Any], Any], shapes: Any) -> float:
    """Bytes of operands and results of the largest operation within a function."""
    sizes = _operations(jax.make_jaxpr(function)(shapes).jaxpr)
    return float(max(sizes, default=0))


def _operations(jaxpr: Any) -> Iterator[int]:
    for equation in jaxpr.eqns:
        inner = [p for value in equation.params.values() for p in _programs(value)]
        for program in inner:
            yield from _operations(program)
        if not inner:
            values = {id(v): v.aval for v in (*equation.invars, *equation.outvars)}
            yield sum(size_of(a) for a in values.values() if hasattr(a, "shape"))


def _programs(value: Any) -> list[Any]:
    """Programs among the parameters of an operation: of a loop, a branch, a compiled function."""
    if isinstance(value, tuple | list):
        return [program for one in value for program in _programs(one)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


# --- what there is ---


def available() -> float:
    """Bytes of memory that this process can still get: of the device, on the host where that is it.

    Infinite where the system does not say.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)
    return available_memory()


def check(needs: Mapping[str, float], have: float, remedies: Mapping[str, str]) -> None:
    """Raises ValueError where needs, in bytes, exceed what there is.

    Args:
      needs: by what they are for.
      have: bytes.
      remedies: for the same, what makes them less.
    """
    total = sum(needs.values())
    if total <= have:
        return
    largest = max(needs, key=lambda name: needs[name])
    parts = ", ".join(f"{name} {in_words(size)}" for name, size in needs.items())
    raise ValueError(
        f"this needs about {in_words(total)} of memory ({parts}), and {in_words(have)} are there;"
        f" {remedies.get(largest, 'use a machine with more')}"
    )
