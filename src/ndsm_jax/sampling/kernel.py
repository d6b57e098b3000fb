"""The noising near a state as a linear process, and the denoised state by it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import SCORE, arguments
from ndsm_jax.integrators import broadcast_time, forward_step
from ndsm_jax.linear_maps import Scalar
from ndsm_jax.processes.process import Process, ScoreFn, reverse_drift

MIN_SCALE = 1e-13
"""Smallest a(t) of a local kernel: before it the law is the reference's to rounding, and float32
would underflow. Samplers that use a(t) leave the states as they are there."""


def scalar_kernel(process: Process, t: Array) -> tuple[Array, Array] | None:
    """The (a, s) of a kernel N(a Y_0, s^2 I) at times t [...]; None where there is no such one."""
    if process.kernel is None:
        return None
    kernel = process.kernel(t)
    if isinstance(kernel.scale, Scalar) and isinstance(kernel.root, Scalar):
        return kernel.scale.value, kernel.root.value
    return None


@arguments(process=Process, x="[..., d]", t="[]")
def relaxation_kernel(process: Process, x: Array, t: Array) -> tuple[Array, Array, Array]:
    """The noising near x [B, d] as a linear process: Y_t | Y_0 ~ N(m + a (Y_0 - m), s^2 I).

    For processes whose kernel is of this form that kernel, m = 0. For others the Ornstein-Uhlenbeck
    process that has the process's clock, a = exp(-decay / 2) and s = std, and its drift at (x, t),
    which sets the centre: b = -(x - m) decay' / 2. Exact for the Langevin dynamics of a Gaussian of
    one variance. It means nothing where noise drives some coordinates only.

    Returns:
      m [B, d], and a, s (scalars), at a scalar time t.
    """
    scale, std = relaxation_scales(process, t)
    if scalar_kernel(process, t) is not None:
        return jnp.zeros_like(x), scale, std
    centre = x + (2 / process.clock.rate(t)) * process.drift(x, broadcast_time(t, x))
    return centre, scale, std


def relaxation_scales(process: Process, t: Array) -> tuple[Array, Array]:
    """The a and s of `relaxation_kernel`, which do not depend on the state: [...] -> two [...]."""
    known = scalar_kernel(process, t)
    scale, std = (process.clock.signal(t), process.clock.std(t)) if known is None else known
    return jnp.maximum(scale, MIN_SCALE), std


def diffusion_ratio(process: Process, t: Array) -> Array:
    """g(t)^2 over that of the process's clock, saturation decay'(t); 1 for a scalar kernel."""
    if scalar_kernel(process, t) is not None:
        return jnp.ones_like(t)
    return process.diffusion(t) ** 2 / (process.clock.saturation * process.clock.rate(t))


def noised(process: Process, x: Array, t: Array, t_next: Array, z: Array) -> Array:
    """Forward from time t to a later t_next (scalars) by given normals z [B, r]: [B, d] -> [B, d].

    By the transition of a scalar kernel, N(a'/a x, (s'^2 - (a'/a)^2 s^2) I), exactly; otherwise one
    Euler-Maruyama step. No evaluation of the score.
    """
    known = scalar_kernel(process, jnp.stack([t, t_next]))
    if known is None:
        h = broadcast_time(t_next - t, x)
        return forward_step(process, x, broadcast_time(t, x), h, z)
    (a, a_next), (s, s_next) = known
    kept = a_next / a
    return kept * x + jnp.sqrt(jnp.maximum(s_next**2 - (kept * s) ** 2, 0)) * z


@arguments(score=SCORE, process=Process, x="[..., d]", t="[]")
def denoise(score: ScoreFn, process: Process, x: Array, t: Array) -> Array:
    """The posterior mean E[Y_0 | Y_t = x] at a scalar time t: [B, d] -> [B, d].

    Tweedie's formula for the local kernel, m + (x - m + s^2 score) / a: exact for processes with a
    scalar kernel, otherwise to first order in t, x - t b + v(t) score. Under degenerate noise the
    score of the other coordinates is not known, and it is the mean of one reverse Euler step,
    x + t (-b + g^2 E u), the same to first order.
    """
    times = broadcast_time(t, x)
    if process.noisy is not None:
        return x + t * reverse_drift(process, score)(x, times)
    centre, scale, std = relaxation_kernel(process, x, t)
    return centre + (x - centre + std**2 * score(x, times)) / scale
