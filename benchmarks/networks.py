"""Parameters, step cost and memory of the networks of images, at MNIST's shapes.

The gradient step of path-space DSM with ten components, noising left out, minibatches of 64 and the
optimiser's update within; in turn, against the default U-Net. GFLOP are those that XLA counts in a
forward pass of one image. Memory is what XLA reserves for a step beside its arguments (on a GPU it
is the card's), with and without rematerialisation.

    python benchmarks/networks.py --out=runs/benchmarks/networks.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import common
import jax
import jax.numpy as jnp
from absl import flags
from noising_cost import synthetic_mixture
from step_cost import SHAPE

from ndsm_jax import app
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.frames import Identity
from ndsm_jax.networks import ScoreModel
from ndsm_jax.training.step import train_step

BATCH = flags.DEFINE_integer("batch", 64, "Images a step.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that are timed.", lower_bound=1)

ADM = {"name": "adm", "widths": (32, 64, 64), "head_width": 32}
DIT = {"name": "dit", "width": 256, "depth": 6, "patch": 4}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"name": "unet", "time_features": 128},
    "unet, bfloat16": {"name": "unet", "time_features": 128, "dtype": "bfloat16"},
    "adm": ADM,
    "adm, bfloat16": {**ADM, "dtype": "bfloat16"},
    "adm, remat": {**ADM, "remat": True},
    "dit": DIT,
    "dit, bfloat16": {**DIT, "dtype": "bfloat16"},
    "dit, remat": {**DIT, "remat": True},
    "dit, patch 2": {**DIT, "patch": 2},
}
QUICK: Mapping[str, Mapping[str, Any]] = {
    "dit": {**DIT, "width": 32, "depth": 1},
    "dit, remat": {**DIT, "width": 32, "depth": 1, "remat": True},
}


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    chosen = QUICK if quick else NETWORKS
    batch = 4 if quick else BATCH.value
    timed = {name: _timed(network, batch) for name, network in chosen.items()}
    steps = {name: lambda one=one: one.gradient(1) for name, one in timed.items()}
    reference = next(iter(chosen))
    timings = common.ratios(steps, reference, rounds=1 if quick else ROUNDS.value)
    common.report(
        [
            {
                "name": name,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(one.state.params)),
                "gflop_an_image": _forward_flops(one, batch) / batch / 1e9,
                "milliseconds": 1e3 * timings[name].seconds,
                "ratio": timings[name].ratio,
                "memory_mb": _memory(one) / 2**20,
            }
            for name, one in timed.items()
        ]
    )


def _timed(network: Mapping[str, Any], batch: int) -> common.Timed:
    config = Config.from_dict(
        {"noising": {"k": 1}, "network": dict(network), "train": {"batch_size": batch}}
    )
    reference = synthetic_mixture(784, "spherical", 0)
    built = build(config, SHAPE, Parts(frame=Identity(), reference=reference), quiet=True)
    one = common.Timed(built, reference.sample(jax.random.key(0), (batch,)), config, ahead=1)
    jax.block_until_ready(one.noised)
    return one


def _forward_flops(one: common.Timed, num: int) -> float:
    def network(model: ScoreModel, params: Any, *seen: jax.Array) -> jax.Array:
        return model.network.apply(params, *seen)

    state = jax.ShapeDtypeStruct((num, one.experiment.process.dim), jnp.float32)
    time = jax.ShapeDtypeStruct((num,), jnp.float32)
    lowered = jax.jit(network).lower(one.experiment.model, one.state.params, state, time, state)
    cost: Any = lowered.cost_analysis()
    return float(cost["flops"])


def _memory(one: common.Timed) -> float:
    """Bytes of a step's intermediate values, by XLA's plan."""
    batch = jax.tree.map(lambda leaf: leaf[0], one.noised)
    lowered = jax.jit(train_step).lower(one.experiment, one.state, jax.random.key(0), batch)
    plan: Any = lowered.compile().memory_analysis()
    return float(plan.temp_size_in_bytes)


if __name__ == "__main__":
    app.run(main)
