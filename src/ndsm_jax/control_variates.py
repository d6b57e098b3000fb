"""Control variates of NDSM: the function eps(t) and how it is learned (2405.15625, Section 3.1).

With A_i = grad_theta L_i, B_i = grad_theta W_i (weights included) and Abar the batch mean of A, the
objective of Eq. 22 is a quadratic in each eps_i:

    mean_i |A_i + eps_i B_i - Abar|^2
        = const + mean_i (2 eps_i <A_i - Abar, B_i> + eps_i^2 |B_i|^2).

So two scalars a sample say everything about eps, and no derivative goes through a gradient.
`exact_products` and `probe_products` compute them, a `ControlVariate` turns them into eps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ndsm_jax.noising import NoisedBatch
from ndsm_jax.optimisation import descend

TermsFn = Callable[[Any, NoisedBatch], tuple[Array, Array]]
"""(params, batch) -> (L [B, k], W [B, k])."""


class Products(NamedTuple):
    """Per-sample scalars [B, k]: <A_i - Abar, B_i>, |B_i|^2 and |A_i - Abar|^2."""

    cross: Array
    control: Array
    loss: Array

    def gradient_variance(self, eps: Array) -> Array:
        """Estimate of E|A + eps B - E A|^2, the variance of one sample's gradient (a scalar)."""
        return jnp.mean(self.loss + 2 * eps * self.cross + eps**2 * self.control)


def exact_products(terms: TermsFn, params: Any, batch: NoisedBatch, *, chunk: int = 16) -> Products:
    """The products from per-sample gradients, `chunk` of them in memory at a time.

    It costs tens of training steps for a convolutional network: the reference, and the choice for
    small networks. `probe_products` is its cheap, unbiased substitute.
    """
    mean_gradient = jax.grad(lambda p: jnp.mean(terms(p, batch)[0]))(params)

    def products(sample: NoisedBatch) -> tuple[Array, Array, Array]:
        single = jax.tree.map(lambda a: a[None, None], sample)
        gradients = jax.jacrev(lambda p: jnp.stack(terms(p, single))[:, 0, 0])(params)
        loss = jax.tree.map(lambda g, mean: g[0] - mean, gradients, mean_gradient)
        control = jax.tree.map(lambda g: g[1], gradients)
        return _inner(loss, control), _inner(control, control), _inner(loss, loss)

    shape = batch.t.shape
    condition = jax.tree.map(lambda c: jnp.broadcast_to(c, (*shape, *c.shape[2:])), batch.condition)
    batch = dataclasses.replace(batch, noises=1, condition=condition)  # every state on its own
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch)
    scalars = jax.lax.map(products, flat, batch_size=min(chunk, flat.t.size))
    return Products(*(a.reshape(shape) for a in scalars))


def probe_products(
    key: Array, terms: TermsFn, params: Any, batch: NoisedBatch, *, num_probes: int = 1
) -> Products:
    """Unbiased estimates of the products from random directions in parameter space.

    For v ~ N(0, I) one batched forward-mode pass gives a_i = v . A_i and b_i = v . B_i, and
    E[(a_i - abar) b_i] = <A_i - Abar, B_i>, E[b_i^2] = |B_i|^2. Costs about one
    forward-mode pass a probe, whatever the batch size.
    """

    def probe(key: Array) -> Products:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        normals = [
            jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
        ]
        direction = jax.tree.unflatten(treedef, normals)
        _, (a, b) = jax.jvp(lambda p: terms(p, batch), (params,), (direction,))
        a = a - jnp.mean(a)
        return Products(cross=a * b, control=b**2, loss=a**2)

    estimates = jax.lax.map(probe, jax.random.split(key, num_probes))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), estimates)


ESTIMATORS = ("probes", "exact")


def _inner(a: Any, b: Any) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), start=jnp.float32(0))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(),
    meta_fields=("kind", "period", "num_probes", "chunk"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
    """How the products are found, and how often (all static).

    Attributes:
      kind: `probes` or `exact`, see `probe_products` and `exact_products`.
      period: N_CV, training steps from one update of eps to the next (2405.15625, Algorithm 1).
      num_probes: random directions an update, for `probes`.
      chunk: per-sample gradients in memory at a time, for `exact`.
    """

    kind: str = "probes"
    period: int = 20
    num_probes: int = 1
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.kind not in ESTIMATORS:
            raise ValueError(
                f"control_variate.estimator={self.kind!r}: choose one of {', '.join(ESTIMATORS)}"
            )

    def products(self, key: Array, terms: TermsFn, params: Any, batch: NoisedBatch) -> Products:
        """The products of a batch; the key is for `probes`."""
        if self.kind == "exact":
            return exact_products(terms, params, batch, chunk=self.chunk)
        return probe_products(key, terms, params, batch, num_probes=self.num_probes)


class ControlVariate(Protocol):
    """eps(t) as functions of a state; `update` returns the next state from a batch's products.

    eps used in a step comes from earlier batches only, so E[eps(t) W] = 0 holds exactly.
    """

    def init(self, key: Array) -> Any:
        """The first state."""

    def eps(self, state: Any, t: Array) -> Array:
        """eps [...] at times t [...]."""

    def update(self, state: Any, t: Array, products: Products) -> Any:
        """The next state."""


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """eps(t) = value. 0 is NDSM (Theorem 3.1), 1 undoes the cancellation."""

    value: float | Array = 0.0

    def init(self, key: Array) -> tuple[()]:
        """Nothing is learned."""
        return ()

    def eps(self, state: tuple[()], t: Array) -> Array:
        """See `ControlVariate`."""
        return jnp.full_like(t, self.value)

    def update(self, state: tuple[()], t: Array, products: Products) -> tuple[()]:
        """See `ControlVariate`."""
        return state


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("coordinate",),
    meta_fields=("num_bins", "decay"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimal:
    """The closed-form minimiser of Eq. 22 in each of `num_bins` bins of time, no network.

    eps = - sum <A_i - Abar, B_i> / sum |B_i|^2 over the bin's samples, the sums being exponential
    averages over updates with factor `decay`. One bin gives the best constant. Clipped to [-1, 1],
    as the ratio of the first few noisy sums can be anything.

    Attributes:
      coordinate: t -> [-1, 1], cut into bins of equal length.
    """

    coordinate: Callable[[Array], Array]
    num_bins: int = 1
    decay: float = 0.95

    def _index(self, t: Array) -> Array:
        position = (self.coordinate(t) + 1) / 2 * self.num_bins
        return jnp.clip(position.astype(int), 0, self.num_bins - 1)

    def init(self, key: Array) -> tuple[Array, Array]:
        """Empty sums."""
        return jnp.zeros(self.num_bins), jnp.zeros(self.num_bins)

    def eps(self, state: tuple[Array, Array], t: Array) -> Array:
        """See `ControlVariate`."""
        cross, control = state
        ratio = -cross / jnp.maximum(control, jnp.finfo(control.dtype).tiny)
        return jnp.clip(ratio, -1, 1)[self._index(t)]

    def update(
        self, state: tuple[Array, Array], t: Array, products: Products
    ) -> tuple[Array, Array]:
        """See `ControlVariate`."""
        sums = [
            jax.ops.segment_sum(x.ravel(), self._index(t).ravel(), self.num_bins)
            for x in (products.cross, products.control)
        ]
        return self.decay * state[0] + sums[0], self.decay * state[1] + sums[1]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("coordinate",),
    meta_fields=("network", "optimizer"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """eps_phi, a small network of time trained on Eq. 22 (2405.15625, Algorithm 1, line 7).

    Attributes:
      network: a Flax module [n] -> [n], see `networks.EpsNet` (static).
      coordinate: t -> [-1, 1], the network's input.
      optimizer: of phi (static).
    """

    network: Any
    coordinate: Callable[[Array], Array]
    optimizer: optax.GradientTransformation

    def init(self, key: Array) -> tuple[Any, Any]:
        """phi and the state of its optimiser."""
        params = self.network.init(key, jnp.zeros(1))
        return params, self.optimizer.init(params)

    def eps(self, state: tuple[Any, Any], t: Array) -> Array:
        """See `ControlVariate`."""
        return self.network.apply(state[0], self.coordinate(t).ravel()).reshape(t.shape)

    def update(self, state: tuple[Any, Any], t: Array, products: Products) -> tuple[Any, Any]:
        """See `ControlVariate`."""
        params, opt_state = state

        def mean_square(params: Any) -> Array:
            e = self.eps((params, opt_state), t)
            return jnp.mean(2 * e * products.cross + e**2 * products.control)

        done = descend(mean_square, params, opt_state, self.optimizer)
        return done.params, done.moments
