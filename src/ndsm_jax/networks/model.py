"""From a network to a score function with parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.networks.embedding import Features
from ndsm_jax.networks.precondition import Precondition
from ndsm_jax.networks.symmetry import FiniteGroup, symmetrise
from ndsm_jax.references.mixtures import GaussianMixture

Tells = Callable[[Array, Any], Array]
"""(y [n, d], condition of [n, ...]) -> [n, e], what a network is told beside y."""


def _mean(mixture: GaussianMixture, y: Array, condition: Any) -> Array:
    return mixture.responsibilities(y) @ mixture.means


def prior_mean(mixture: GaussianMixture) -> Tells:
    """E[mu | y] = sum_k r_k(y) mu_k, what y says of its component's mean: [n, d].

    Mixture Langevin noising leaves the mean in y at full strength, and a network that is not told
    takes it for a part of the data for long.
    """
    return Partial(_mean, mixture)


def _described(frame: Any, y: Array, condition: Any) -> Array:
    return frame.describe(condition)


def described(frame: Any) -> Tells:
    """What the frame says of a condition (`Frame.describe`): of a component, its mean."""
    return Partial(_described, frame)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("precondition", "tells", "features", "group"),
    meta_fields=("network", "dim"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreModel:
    """u_theta(y, t) of E^T grad log p_t(y), from a network.

    With a `group` the whole score is made equivariant, the reference's part with the network's. For
    a reference that is invariant itself, as a normal is, that is the same as symmetrising the
    network.

    Attributes:
      network: a Flax module (y [n, d], c [n], told [n, e] or nothing) -> [n, r]; or anything with
        its `init(key, *inputs)` and `apply(params, *inputs)` (static). Where there are features
        they take the place of y.
      dim: d, of the states (static).
      precondition: what the network sees, and how its output becomes the score.
      tells: what it is told beside y, or None.
      features: what it sees in the place of y, or None. Of `harmonics` any network is periodic.
      group: under which the score is symmetrised, or None; None where there is a condition.
    """

    network: Any
    dim: int
    precondition: Precondition
    tells: Tells | None = None
    features: Features | None = None
    group: FiniteGroup | None = None

    @property
    def outputs(self) -> int:
        """r, the width of the network's output: that of the noise of the precondition's process."""
        process = getattr(self.precondition, "process", None)
        return self.dim if process is None else process.noise_dim

    def init(self, key: Array) -> Any:
        """Parameters theta."""
        y, condition = jnp.zeros((1, self.dim)), jnp.zeros(1, jnp.int32)
        told = () if self.tells is None else (self.tells(y, condition),)
        return self.network.init(key, *self.sees(y, jnp.zeros(1)), *told)

    def sees(self, y: Array, t: Array) -> tuple[Array, Array]:
        """What the network sees of states [n, d] and times [n]: [n, d] or features [n, e], [n]."""
        seen, time = self.precondition.inputs(y, t)
        return seen if self.features is None else self.features(seen), time

    def __call__(self, params: Any, y: Array, t: Array, condition: Any = None) -> Array:
        """Score: y [..., d], t [...], condition of [..., ...] -> [..., r].

        Raises:
          ValueError: a network whose output has another size (where it is traced).
        """
        if self.group is None:
            return self._score(params, y, t, condition)
        return symmetrise(partial(self._score, params, condition=None), self.group)(y, t)

    def _score(self, params: Any, y: Array, t: Array, condition: Any) -> Array:
        flat, leading = y.reshape(-1, y.shape[-1]), y.ndim - 1
        seen, time = self.sees(flat, t.ravel())
        told: tuple[Array, ...] = ()
        if self.tells is not None:
            rows = jax.tree.map(lambda c: c.reshape(-1, *c.shape[leading:]), condition)
            told = (self.tells(flat, rows),)
        output = self.network.apply(params, seen, time, *told)
        if output.size != len(flat) * self.outputs:  # one too narrow would broadcast
            needed = [len(flat), self.outputs]
            raise ValueError(
                f"network.name: {type(self.network).__name__} maps states of shape"
                f" {list(seen.shape)} to {list(output.shape)}; {needed} is needed"
            )
        return self.precondition.score(output.reshape(*y.shape[:-1], -1), y, t)

    def bind(self, params: Any, condition: Any = None) -> Partial:
        """The score function of given parameters, itself a pytree.

        Where there is a condition it is given here or, as the samplers do, as third argument.
        """
        given = {} if condition is None else {"condition": condition}
        return Partial(_apply, self, params, **given)


def _apply(model: ScoreModel, params: Any, y: Array, t: Array, condition: Any = None) -> Array:
    return model(params, y, t, condition)
