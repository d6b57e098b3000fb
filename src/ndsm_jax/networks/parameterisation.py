"""From a network's output to a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.sde import SDE, ScoreFn

PARAMETERISATIONS = ("residual", "raw")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sde", "coordinate"),
    meta_fields=("network", "parameterisation"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreModel:
    """s_theta(y, t) from a network of (y, c(t)).

    `raw`: s = net, as published. `residual`: s = grad log prior(y) + net / std(t), exact in the far
    tails and as t -> T; for Langevin noising the probability-flow velocity is then net / std(t).

    Attributes:
      sde: the process (its prior and clock are used).
      coordinate: c, t [...] -> [-1, 1], see `sde.time_coordinate`.
      network: a Flax module (y [n, d], c [n]) -> [n, d] (static).
      parameterisation: one of `PARAMETERISATIONS` (static).
    """

    sde: SDE
    coordinate: Callable[[Array], Array]
    network: Any
    parameterisation: str = "residual"

    def __post_init__(self) -> None:
        if self.parameterisation not in PARAMETERISATIONS:
            choices = ", ".join(PARAMETERISATIONS)
            raise ValueError(
                f"network.parameterisation={self.parameterisation!r}: choose one of {choices}"
            )

    def init(self, key: Array) -> Any:
        """Parameters theta."""
        return self.network.init(key, jnp.zeros((1, self.sde.dim)), jnp.zeros(1))

    def __call__(self, params: Any, y: Array, t: Array) -> Array:
        """Score: y [..., d], t [...] -> [..., d]."""
        c = self.coordinate(t)
        output = self.network.apply(params, y.reshape(-1, y.shape[-1]), c.ravel()).reshape(y.shape)
        if self.parameterisation == "raw":
            return output
        return self.sde.prior.score(y) + output / self.sde.std(t)[..., None]

    def bind(self, params: Any) -> ScoreFn:
        """The score function of given parameters, itself a pytree."""
        return Partial(_apply, self, params)


def _apply(model: ScoreModel, params: Any, y: Array, t: Array) -> Array:
    return model(params, y, t)
