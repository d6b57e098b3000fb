"""Bias and variance of stable targets (2302.00670) by the size of the minibatch, on digits.

The target of DSM at y = a x + s z is -z / s; the stable one averages over a minibatch of B items,
of which x is one. Both are compared with the exact score of the noised data, by the kernels around
all items, in units of 1 / s: for states y of the process, x is drawn from its posterior given y and
the other items uniformly, as training has it. `variance` is the mean square of a target around its
mean given y, `bias` that of its mean around the score, with the variance of the mean taken off;
both a dimension. `noise` is s / a over the data's standard deviation.

    python benchmarks/stable_targets.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array

from ndsm_jax import app, noising
from ndsm_jax.datasets import load

BATCHES = flags.DEFINE_list("batches", ["1", "16", "64", "256", "1024"], "Sizes of a minibatch.")
NOISES = flags.DEFINE_list("noises", ["0.5", "1", "2", "5"], "Noise levels.")
STATES = flags.DEFINE_integer("states", 32, "States y a noise level.", lower_bound=2)
REPEATS = flags.DEFINE_integer("repeats", 100, "Minibatches a state.", lower_bound=2)


@partial(jax.jit, static_argnames=("batch", "repeats"))
def measured(
    key: Array, data: Array, std: Array, y: Array, *, batch: int, repeats: int
) -> tuple[Array, Array]:
    """Variance and bias [n] of the targets at y [n, d] for noise of `std`, times std^2."""

    def one(key: Array, y: Array) -> tuple[Array, Array]:
        away = y[None] - data
        logs = -0.5 * jnp.sum(away**2, axis=1) / std**2
        exact = -(jax.nn.softmax(logs) @ away) / std

        def target(key: Array) -> Array:
            first, rest = jax.random.split(key)
            own = jax.random.categorical(first, logs)
            others = jax.random.randint(rest, (batch - 1,), 0, len(data))
            items = data[jnp.concatenate([own[None], others])]
            z = jnp.broadcast_to((y - items[0]) / std, (batch, 1, len(y)))
            scales = jnp.ones((batch, 1))
            return noising.stable_target(items, z, scales, std * scales)[0, 0] * std

        targets = jax.lax.map(target, jax.random.split(key, repeats))
        variance = jnp.var(targets, axis=0, ddof=1)
        bias = (jnp.mean(targets, axis=0) - exact) ** 2 - variance / repeats
        return variance.mean(), bias.mean()

    return jax.lax.map(lambda args: one(*args), (jax.random.split(key, len(y)), y))


def main(argv: Sequence[str]) -> None:
    data = jnp.asarray(load("digits").train)
    spread = float(jnp.std(data, axis=0).mean())
    quick = common.QUICK.value
    states, repeats = (8, 20) if quick else (STATES.value, REPEATS.value)
    rows = []
    for noise in map(float, NOISES.value[:2] if quick else NOISES.value):
        key_items, key_noise, key = jax.random.split(jax.random.key(common.SEED.value), 3)
        std = jnp.float32(noise * spread)
        items = data[jax.random.randint(key_items, (states,), 0, len(data))]
        y = items + std * jax.random.normal(key_noise, items.shape)
        for batch in map(int, BATCHES.value[:2] if quick else BATCHES.value):
            variance, bias = measured(key, data, std, y, batch=batch, repeats=repeats)
            row = {"name": f"noise {noise:g}, B = {batch}", "variance": float(variance.mean())}
            row |= {"bias": float(bias.mean()), "bias_se": float(np.std(bias) / states**0.5)}
            rows.append(row)
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
