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

from ndsm_jax.networks.symmetry import FiniteGroup, symmetrise
from ndsm_jax.sde import SDE, ScoreFn

PARAMETERISATIONS = ("residual", "edm", "scaled", "raw")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sde", "coordinate", "group"),
    meta_fields=("network", "parameterisation", "prior_mean"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreModel:
    """s_theta(y, t) from a network of (y, c(t)).

    `raw`: s = net, as published. `residual`: s = grad log prior(y) + net / std(t), exact in the far
    tails and as t -> T; for Langevin noising the probability-flow velocity is then net / std(t).
    `edm`: the residual is a(t) net / std(t), a = exp(-decay / 2). For data of mean 0 and variance 1
    and a variance-preserving kernel the network's target, std x - a z, then has variance 1 at every
    time; that is the preconditioning of 2206.00364, Table 1, written for the score.
    `scaled`: s = net / std(t), the third technique of 2006.09011 and, up to the sign, the noise
    that 2006.11239 predicts.

    For a process that is `standardised` the network is conditional: the mean of the component goes
    into it beside y. With `prior_mean` that of any other process gets what y says of that mean,
    E[mu | y] = sum_k r_k(y) mu_k. Mixture Langevin noising leaves the mean in y at full strength,
    and a network that is not told takes it for a part of the data for long.

    With a `group` the whole score is made equivariant, the prior's part with the network's. For a
    prior that is invariant itself, as a normal is, that is the same as symmetrising the network.

    Attributes:
      sde: the process (its prior and clock are used).
      coordinate: c, t [...] -> [-1, 1], see `sde.time_coordinate`.
      network: a Flax module (y [n, d], c [n]) -> [n, d] (static).
      parameterisation: one of `PARAMETERISATIONS` (static).
      prior_mean: whether the network sees E[mu | y] too (static).
      group: under which the score is symmetrised, or None; None for a `standardised` process.
    """

    sde: SDE
    coordinate: Callable[[Array], Array]
    network: Any
    parameterisation: str = "residual"
    prior_mean: bool = False
    group: FiniteGroup | None = None

    def __post_init__(self) -> None:
        if self.parameterisation not in PARAMETERISATIONS:
            choices = ", ".join(PARAMETERISATIONS)
            raise ValueError(
                f"network.parameterisation={self.parameterisation!r}: choose one of {choices}"
            )

    def init(self, key: Array) -> Any:
        """Parameters theta."""
        y = jnp.zeros((1, self.sde.dim))
        condition = (y,) if self.sde.standardised or self.prior_mean else ()
        return self.network.init(key, y, jnp.zeros(1), *condition)

    def __call__(self, params: Any, y: Array, t: Array, component: Array | None = None) -> Array:
        """Score: y [..., d], t [...] -> [..., d].

        component: integers [...], for a process that is `standardised`.
        """
        if self.group is None:
            return self._score(params, y, t, component)
        return symmetrise(partial(self._score, params, component=None), self.group)(y, t)

    def _score(self, params: Any, y: Array, t: Array, component: Array | None) -> Array:
        inputs = [y.reshape(-1, y.shape[-1]), self.coordinate(t).ravel()]
        if self.sde.standardised:
            assert component is not None
            inputs.append(self.sde.prior.means[component.ravel()])
        elif self.prior_mean:
            inputs.append(self.sde.prior.responsibilities(inputs[0]) @ self.sde.prior.means)
        output = self.network.apply(params, *inputs).reshape(y.shape)
        if self.parameterisation == "raw":
            return output
        output = output / self.sde.std(t)[..., None]
        if self.parameterisation == "scaled":
            return output
        if self.parameterisation == "edm":
            output = output * jnp.exp(-0.5 * self.sde.decay(t))[..., None]
        return self.sde.prior_score(y) + output

    def bind(self, params: Any, component: Array | None = None) -> ScoreFn:
        """The score function of given parameters, itself a pytree.

        With a process that is `standardised` it needs its `component`, here or, as the samplers
        give it, as third argument.
        """
        given = {} if component is None else {"component": component}
        return Partial(_apply, self, params, **given)


def _apply(
    model: ScoreModel, params: Any, y: Array, t: Array, component: Array | None = None
) -> Array:
    return model(params, y, t, component)
