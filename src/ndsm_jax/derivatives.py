"""Divergences of functions of states, exact or estimated."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax import checks
from ndsm_jax.checks import arguments
from ndsm_jax.linear_maps import embed


@arguments(
    function=checks.function(1), y="[..., d]", probe="[..., r]", noisy="integers below d [r]"
)
def divergence(
    function: Callable[[Array], Array],
    y: Array,
    *,
    probe: Array | None = None,
    noisy: tuple[int, ...] | None = None,
) -> tuple[Array, Array]:
    """f(y) [..., r] and its divergence tr(J_f(y) E) [...], or an estimate of the latter.

    With a probe v of mean 0 and covariance I the estimate v . J_f E v (Hutchinson 1990): one
    derivative along a direction. Otherwise exactly, by r of them.

    Args:
      function: f, of states alone.
      y: states [..., d].
      probe: v [..., r], independent of y; None: exact.
      noisy: the coordinates that E selects, r of them; None: all, and r = d.

    Raises:
      ValueError: a function of other values than [..., r].
    """
    size = y.shape[-1] if noisy is None else len(noisy)

    def checked(y: Array) -> Array:
        value = function(y)
        what = f"derivatives.divergence: the function of states {list(y.shape)}"
        checks.output(what, value, (*y.shape[:-1], size))
        return value

    def along(v: Array) -> tuple[Array, Array]:
        value, derivative = jax.jvp(checked, (y,), (embed(v, noisy, y.shape[-1]),))
        return value, jnp.sum(v * derivative, axis=-1)

    if probe is not None:
        checks.check("derivatives.divergence: probe", probe, "[..., r]", r=size)
        return along(probe)
    value, parts = jax.vmap(
        lambda axis: along(jnp.broadcast_to(axis, (*y.shape[:-1], size))), out_axes=(None, -1)
    )(jnp.eye(size, dtype=y.dtype))
    return value, jnp.sum(parts, axis=-1)
