"""A training step of a network at MNIST's shapes, for the benchmarks of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from noising_cost import synthetic_mixture
from step_cost import SHAPE

from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.frames import Identity
from ndsm_jax.training import init_state, noised
from ndsm_jax.training.step import train_step


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
