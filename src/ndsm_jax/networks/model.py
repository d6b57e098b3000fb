"""From a network to a score function with parameters."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import KEY, arguments
from ndsm_jax.conditions import Both
from ndsm_jax.networks.embedding import Features
from ndsm_jax.networks.precondition import Precondition
from ndsm_jax.networks.symmetry import FiniteGroup, symmetrise
from ndsm_jax.networks.tells import Tells


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("precondition", "tells", "features", "group", "condition"),
    meta_fields=("network", "dim"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreModel:
    """u_theta(y, t) of E^T grad log p_t(y), from a network.

    With a `group` the whole score is made equivariant, the reference's part with the network's. For
    a reference that is invariant itself, as a normal is, that is the same as symmetrising the
    network.

    Attributes:
      network: a Flax module (y [n, d], c [n], told [n, e] or nothing) -> [n, r], which takes a
        keyword `condition`, a pytree of [n, ...], where there is one; or anything with its
        `init(key, *inputs)` and `apply(params, *inputs)` (static). Where there are features they
        take the place of y.
      dim: d, of the states (static).
      precondition: what the network sees, and how its output becomes the score.
      tells: what it is told beside y; None: what the precondition says.
      features: what it sees in the place of y, or None. Of `harmonics` any network is periodic.
      group: under which the score is symmetrised, or None; None where the frame has a condition.
      condition: what the network is told of one item, see `conditions.example`; None: nothing.
    """

    network: Any
    dim: int
    precondition: Precondition
    tells: Tells | None = None
    features: Features | None = None
    group: FiniteGroup | None = None
    condition: Any = None

    @property
    def outputs(self) -> int:
        """r, the width of the network's output: that of the noise of the precondition's process."""
        process = getattr(self.precondition, "process", None)
        return self.dim if process is None else process.noise_dim

    @arguments(key=KEY)
    def init(self, key: Array) -> Any:
        """Parameters theta."""
        y, of_frame = jnp.zeros((1, self.dim)), jnp.zeros(1, jnp.int32)
        told = self._told(y, of_frame)
        own = {} if self.condition is None else {"condition": self.condition}
        return self.network.init(key, *self.sees(y, jnp.zeros(1)), *told, **own)

    def sees(self, y: Array, t: Array) -> tuple[Array, Array]:
        """What the network sees of states [n, d] and times [n]: [n, d] or features [n, e], [n]."""
        seen, time = self.precondition.inputs(y, t)
        return seen if self.features is None else self.features(seen), time

    @arguments(y="[..., d]", t="[...]")
    def __call__(
        self, params: Any, y: Array, t: Array, condition: Any = None, dropout: Array | None = None
    ) -> Array:
        """Score: y [..., d], t [...], condition of [..., ...] -> [..., r].

        The condition is that of the frame, or what the network is told where it is told one, or
        `conditions.Both`. Its leading axes may be 1 where those of y are more. With a key `dropout`
        the network leaves out activations, in every call with states of this shape the same.

        Raises:
          ValueError: a network whose output has another size, or that is told a condition where
            none is given (where it is traced).
        """
        if self.group is None:
            return self._score(params, y, t, condition, dropout)
        of_all = jax.tree.map(lambda c: jnp.asarray(c)[None], condition)
        score = partial(self._score, params, condition=of_all, dropout=dropout)
        return symmetrise(score, self.group)(y, t)

    def _score(
        self, params: Any, y: Array, t: Array, condition: Any, dropout: Array | None
    ) -> Array:
        flat, leading = y.reshape(-1, y.shape[-1]), y.ndim - 1
        seen, time = self.sees(flat, t.ravel())

        def row(c: Any) -> Array:
            rest = jnp.shape(c)[leading:]
            return jnp.broadcast_to(c, (*y.shape[:-1], *rest)).reshape(-1, *rest)

        of_frame, own = self._parts(jax.tree.map(row, condition))
        told = self._told(flat, of_frame)
        if dropout is not None:
            own["rngs"] = {"dropout": dropout}
        output = self.network.apply(params, seen, time, *told, **own)
        if output.size != len(flat) * self.outputs:  # one too narrow would broadcast
            needed = [len(flat), self.outputs]
            raise ValueError(
                f"network.name: {type(self.network).__name__} maps states of shape"
                f" {list(seen.shape)} to {list(output.shape)}; {needed} is needed"
            )
        return self.precondition.score(output.reshape(*y.shape[:-1], -1), y, t)

    def _parts(self, condition: Any) -> tuple[Any, dict[str, Any]]:
        """That of the frame, and what the network is told, as a keyword of its."""
        if self.condition is None:
            return condition, {}
        of_frame, own = condition if isinstance(condition, Both) else (None, condition)
        if own is None:
            raise ValueError(
                "the network is told a condition, and none is given; give one a state, such as"
                " conditions.null(condition), which says nothing"
            )
        return of_frame, {"condition": own}

    def _told(self, y: Array, of_frame: Any) -> tuple[Array, ...]:
        tells = self.precondition.tells if self.tells is None else self.tells
        return () if tells is None else (tells(y, of_frame),)

    def bind(self, params: Any, condition: Any = None, dropout: Array | None = None) -> Partial:
        """The score function of given parameters, itself a pytree.

        Where there is a condition it is given here or, as the samplers do, as third argument.
        A key `dropout` is for training, of networks that leave out activations; all others ignore
        it.
        """
        given = {} if condition is None else {"condition": condition}
        if getattr(self.network, "dropout", 0.0) and dropout is not None:
            given["dropout"] = dropout
        return Partial(_apply, self, params, **given)


def _apply(
    model: ScoreModel,
    params: Any,
    y: Array,
    t: Array,
    condition: Any = None,
    dropout: Array | None = None,
) -> Array:
    return model(params, y, t, condition, dropout)
