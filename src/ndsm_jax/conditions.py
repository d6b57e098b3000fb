"""What a network is told of an item beside its state: a label, a vector, any pytree of both.

A condition is a pytree of arrays with the items on their leading axes. Integers are classes,
numbered from 0, and -1 says nothing; floats are vectors, and NaN says nothing. What says nothing is
`null`, on which the score is that of all items.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import checks
from ndsm_jax.checks import COUNT, KEY, Needs, arguments, number, whole

NO_CLASS = -1

ARRAY = Needs(
    "an array of integers or floats",
    lambda v: (
        hasattr(v, "dtype")
        and any(jnp.issubdtype(v.dtype, kind) for kind in (np.integer, np.floating))
    ),
)


class Both(NamedTuple):
    """The condition of a state that has one of its frame (`frames.Frame.enter`) as well.

    Attributes:
      frame: that of the frame.
      told: what the network is told.
    """

    frame: Any
    told: Any


def joined(frame: Any, told: Any) -> Any:
    """The condition of a state: `Both`, or the one that there is."""
    if frame is None or told is None:
        return told if frame is None else frame
    return Both(frame, told)


def _null(leaf: Any) -> Array:
    checks.check("conditions.null: a leaf", leaf, ARRAY)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        signed = jnp.issubdtype(leaf.dtype, jnp.signedinteger)
        return jnp.full_like(leaf, NO_CLASS, dtype=None if signed else jnp.int32)
    return jnp.full_like(leaf, jnp.nan)


def null(condition: Any) -> Any:
    """A condition that says nothing, in the shapes of another; of `Both` the frame's stays."""
    if isinstance(condition, Both):
        return condition._replace(told=null(condition.told))
    return jax.tree.map(_null, condition)


@arguments(key=KEY, rate=number(low=0, high=1))
def dropped(key: Array, condition: Any, rate: float) -> Any:
    """The condition of B items, each of them `null`, in all leaves, with probability `rate`.

    So a network learns both scores of classifier-free guidance (2207.12598, Algorithm 1).

    Raises:
      ValueError: leaves that are no arrays [B, ...] of one B, or none.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(condition)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"conditions.dropped: leaves of the shapes {shapes}; arrays [B, ...] are needed, of one"
            " B, and one at least"
        )
    nothing = null(condition)
    drop = jax.random.bernoulli(key, jnp.float32(rate), shapes[0][:1])

    def chosen(c: Array, nothing: Array) -> Array:
        return jnp.where(drop.reshape(-1, *[1] * (c.ndim - 1)), nothing, c)

    return jax.tree.map(chosen, condition, nothing)


def example(condition: Any) -> Any:
    """One item of the structure, the shapes and the types of conditions [N, ...]: zeros [1, ...].

    Raises:
      ValueError: leaves that are neither integers nor floats, or have no axis.
    """

    def leaf(c: Any) -> Array:
        if not ARRAY.holds(c) or not c.ndim:
            raise ValueError(
                f"condition: a leaf {checks.shown(c)}; classes are integers [N] and vectors floats"
                " [N, c]"
            )
        kind = jnp.float32 if jnp.issubdtype(c.dtype, np.floating) else jnp.int32
        return jnp.zeros((1, *c.shape[1:]), kind)

    return jax.tree.map(leaf, condition)


@arguments(what=str, num=whole(), num_classes=COUNT)
def check(what: str, condition: Any, like: Any, num: int, num_classes: int | None = None) -> Any:
    """The conditions of `num` items, in the types of `like`; None where that is.

    Args:
      what: how to name the function in messages.
      condition: a pytree of arrays [num, ...], or None.
      like: an `example`, of what the network is told; None: nothing.
      num: how many items.
      num_classes: that there are; None: not known.

    Raises:
      ValueError: a condition where none is taken, none where one is needed, or one of other leaves,
        shapes or length; classes that do not exist; infinite numbers.
    """
    if like is None:
        if condition is None:
            return None
        raise ValueError(
            f"{what}: a condition is given, and the network takes none; set network.condition to"
            " label (experiment(..., condition=...)) and train, or leave it out"
        )
    if condition is None:
        raise ValueError(
            f"{what}: the network is told a condition, and none is given; give one a row, such as"
            " conditions.null(condition), which says nothing, or set network.condition to none"
        )
    for one in jax.tree.leaves(like):
        checks.check("conditions.check: a leaf of like", one, ARRAY)
    forms: list[Any] = [jax.tree.structure(tree) for tree in (condition, like)]
    if forms[0] != forms[1]:
        raise ValueError(
            f"{what}: a condition of the structure {forms[0]!s:.200}, and the network is told"
            f" {forms[1]}; give experiment(..., condition=...) the same"
        )

    def leaf(c: Any, one: Array) -> np.ndarray:
        checks.check(f"{what}: a condition", c, ARRAY)
        c, kind = np.asarray(c), np.dtype(one.dtype)
        if c.shape != (num, *one.shape[1:]) or not np.can_cast(c.dtype, kind, "same_kind"):
            wanted = [num, *one.shape[1:]]
            raise ValueError(
                f"{what}: a condition of type {c.dtype} and shape {list(c.shape)}; {kind} of shape"
                f" {wanted} is needed"
            )
        if kind.kind == "f" and np.isinf(c).any():
            raise ValueError(f"{what}: a condition is infinite; NaN says nothing, inf is no number")
        wrong = c[(c < NO_CLASS) | (c >= (num_classes or np.inf))] if kind.kind != "f" else c[:0]
        if wrong.size:
            classes = "" if num_classes is None else f" to {num_classes - 1}"
            raise ValueError(
                f"{what}: class {wrong.ravel()[0]}; classes go from 0{classes}, and -1 says nothing"
            )
        return c.astype(kind)

    return jax.tree.map(leaf, condition, like)


@partial(jax.tree_util.register_dataclass, data_fields=("shares", "log_weights"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """What is known of C classes beside their items; see `conditioning.classes`.

    Attributes:
      shares: of the training items, [C].
      log_weights: log P(component | class) of the K components in which samples start, [C + 1, K];
        the last row is that of no class. None: samples do not start in components.
    """

    shares: Array
    log_weights: Array | None = None

    def __len__(self) -> int:
        """C."""
        return self.shares.shape[0]

    @arguments(shares="[C]", log_weights="[C + 1, K]", labels="integers from -1 below C [n]")
    def start_log_weights(self, labels: Any) -> Array:
        """Log P(component | class) of labels [n], -1 for no class: [n, K]."""
        if self.log_weights is None:
            raise ValueError(
                "Classes: log_weights are None, so that no class starts in components of its own;"
                " give conditioning.classes a prior and states"
            )
        return self.log_weights[jnp.asarray(labels, jnp.int32)]  # -1 is the last row

    @arguments(shares="[C]", log_weights="[C + 1, K]", components="integers below K [n]")
    def of_components(self, components: Any) -> Array:
        """Log P(class | component) of components [n], by Bayes: [n, C]."""
        if self.log_weights is None:
            return jnp.broadcast_to(jnp.log(self.shares), (len(components), len(self)))
        joint = (
            jnp.log(self.shares)[None] + self.log_weights[:-1].T[jnp.asarray(components, jnp.int32)]
        )
        return jax.nn.log_softmax(joint, axis=-1)
