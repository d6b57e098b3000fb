"""Bias and variance of stable targets (2302.00670) by the size of the minibatch.

The target of DSM at y = a x + s z is -z / s; the stable one averages over a minibatch of B items,
of which x is one. Both are compared with the exact score of the noised data, by the kernels around
all items, in units of 1 / s: for states y of the process, x is drawn from its posterior given y and
the other items uniformly, as training has it. `variance` is the mean square of a target around its
mean given y, `bias` that of its mean around the score, with the variance of the mean taken off;
both a dimension. `noise` is s / a over the digits' standard deviation.

The same of simulated paths (`LocalSteps.stable`), for rings and bars and for digits under Langevin
noising by a mixture: the kernels are those of the last step, N(mu_i, sigma^2 I), the items are the
mu_i of `PATHS` paths at one time, and the score is that of all of these kernels.

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

from ndsm_jax import app, noising, processes, references
from ndsm_jax.datasets import load
from ndsm_jax.integrators import local_kernel
from ndsm_jax.noising.chain import walk

BATCHES = flags.DEFINE_list("batches", ["1", "16", "64", "256", "1024"], "Sizes of a minibatch.")
NOISES = flags.DEFINE_list("noises", ["0.5", "1", "2", "5"], "Noise levels.")
STATES = flags.DEFINE_integer("states", 32, "States y a noise level.", lower_bound=2)
PATHS, TIMES = 4096, (0.1, 0.3, 0.6, 1.0)
"""Simulated paths, and shares of the grid's intervals at whose ends they are looked at."""
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


def last_steps(key: Array, data: Array, components: int, share: float) -> tuple[Array, Array]:
    """mu [n, d] and sigma of the last step of paths from the data, at a share of the grid."""
    mixture, _ = references.fit(np.asarray(data), components, seed=0)
    noise = noising.local_steps(processes.langevin(mixture), 150, k=1)
    interval = int(share * (len(noise.starts) - 1))
    index, h = noise.starts[interval], noise.lengths[interval]
    grid, of_all = noise.times.grid, jnp.full((len(data), 1), index)
    left, _ = walk(key, noise.chain, data, of_all, grid[:-1], integrator="euler")
    t = jnp.full((len(data), 1), grid[index])
    mu, sigma = local_kernel(noise.process, left, t, jnp.broadcast_to(h, t.shape))
    return mu[:, 0], sigma[0, 0]


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    states, repeats = (8, 20) if quick else (STATES.value, REPEATS.value)
    few = 2 if quick else None
    key_items, key_noise, key_paths, key = jax.random.split(jax.random.key(common.SEED.value), 4)

    def row(name: str, items: Array, std: Array, batch: int) -> dict[str, float | str]:
        chosen = items[jax.random.randint(key_items, (states,), 0, len(items))]
        y = chosen + std * jax.random.normal(key_noise, chosen.shape)
        variance, bias = measured(key, items, std, y, batch=batch, repeats=repeats)
        return {
            "name": f"{name}, B = {batch}",
            "variance": float(variance.mean()),
            "bias": float(bias.mean()),
            "bias_se": float(np.std(bias) / states**0.5),
        }

    digits = jnp.asarray(load("digits").train)
    spread = float(jnp.std(digits, axis=0).mean())
    sizes = list(map(int, BATCHES.value))[:few]
    rows = [
        row(f"noise {noise:g}", digits, jnp.float32(noise * spread), batch)
        for noise in list(map(float, NOISES.value))[:few]
        for batch in sizes
    ]
    plane = jnp.asarray(load("rings_and_bars").train[: 500 if quick else PATHS])
    paths = {"rings and bars, 4 components": (plane, 4), "digits, 50 components": (digits, 50)}
    for name, (data, components) in list(paths.items())[: 1 if quick else None]:
        for share in TIMES[:few]:
            mu, sigma = last_steps(key_paths, data, components, share)
            rows += [row(f"{name}, {share:.0%} of the grid", mu, sigma, batch) for batch in sizes]
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
