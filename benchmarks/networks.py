"""Parameters, step cost and memory of the networks of images, at MNIST's shapes.

A training step of path-space DSM with ten components without its noising, minibatches of 64, in
turn, against the first network. --network chooses some of `NETWORKS`. GFLOP are those that XLA
counts in a forward pass of one image; memory is that of a step's intermediate values in XLA's plan.

    python benchmarks/networks.py --out=runs/benchmarks/networks.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import common
import jax
from absl import flags
from noising_cost import synthetic_mixture
from step_cost import SHAPE

from ndsm_jax import app
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.frames import Identity
from ndsm_jax.training import init_state, noised
from ndsm_jax.training.step import train_step

BATCH = flags.DEFINE_integer("batch", 64, "Images a step.", lower_bound=1)
CHOSEN = flags.DEFINE_multi_string("network", None, "A name of NETWORKS; several times, or all.")
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


class Step:
    """One training step of a network, compiled."""

    def __init__(self, network: Mapping[str, Any], batch: int) -> None:
        config = Config.from_dict(
            {"noising": {"k": 1}, "network": dict(network), "train": {"batch_size": batch}}
        )
        reference = synthetic_mixture(784, "spherical", 0)
        parts = Parts(frame=Identity(), reference=reference)
        experiment = build(config, SHAPE, parts, quiet=True)
        key = jax.random.key(0)
        data = reference.sample(key, (batch,))
        state = init_state(experiment, seed=0)
        self.args = experiment, state, key, jax.jit(noised)(experiment, key, data)
        self.compiled = jax.jit(train_step).lower(*self.args).compile()
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        self.batch = batch

    def __call__(self) -> Any:
        return self.compiled(*self.args)

    @property
    def gflop_an_image(self) -> float:
        """Of a forward pass."""
        experiment, state, _, batch = self.args
        y = batch.y.reshape(self.batch, -1)

        def network(params: Any, *seen: jax.Array) -> jax.Array:
            return experiment.model.network.apply(params, *seen)

        # Before it is compiled: a GPU's program calls libraries, whose work is not counted.
        cost: Any = jax.jit(network).lower(state.params, y, y[:, 0], y).cost_analysis()
        return float(cost["flops"]) / self.batch / 1e9

    @property
    def memory_mb(self) -> float:
        """Of a step's intermediate values, by XLA's plan."""
        plan: Any = self.compiled.memory_analysis()
        return float(plan.temp_size_in_bytes) / 2**20


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    of = QUICK if quick else {name: NETWORKS[name] for name in CHOSEN.value or NETWORKS}
    batch = 4 if quick else BATCH.value
    with ThreadPoolExecutor(2) as pool:  # compiles programs side by side
        steps = dict(zip(of, pool.map(lambda n: Step(n, batch), of.values()), strict=True))
    timings = common.ratios(steps, next(iter(of)), rounds=1 if quick else ROUNDS.value)
    common.report(
        [
            {
                "name": name,
                "parameters": step.parameters,
                "gflop_an_image": step.gflop_an_image,
                "milliseconds": 1e3 * timings[name].seconds,
                "ratio": timings[name].ratio,
                "memory_mb": step.memory_mb,
            }
            for name, step in steps.items()
        ]
    )


if __name__ == "__main__":
    app.run(main)
