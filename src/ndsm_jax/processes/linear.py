"""Processes whose kernels are closed forms: OU, variance preserving and exploding, sub-VP, the
straight line of flow matching, wrapped, damped."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import DIMENSIONS, POSITIVE, arguments, number
from ndsm_jax.clock import Clock, relaxing
from ndsm_jax.linear_maps import Blocks, Gaussian, WrappedGaussian, isotropic
from ndsm_jax.linear_maps import wrapped as wrapped_gaussian
from ndsm_jax.processes.langevin import RELAXATION_TIMES, sqrt_two
from ndsm_jax.processes.process import Known, Process, checked_horizon
from ndsm_jax.references.mixtures import mixture, standard_normal
from ndsm_jax.references.others import uniform_torus


def _ou_drift(variance: Array, y: Array, t: Array) -> Array:
    return -y / variance


def _ou_kernel(variance: Array, t: Array) -> Gaussian:
    x = 2 * t / variance
    return isotropic(jnp.exp(-0.5 * x), jnp.sqrt(-variance * jnp.expm1(-x)))


def _ou_vjp(variance: Array, y: Array, t: Array, v: Array) -> tuple[Array, Array]:
    return -y / variance, -v / variance


@arguments(dim=DIMENSIONS, variance=POSITIVE, horizon=POSITIVE)
def ornstein_uhlenbeck(dim: int, *, variance: float = 1.0, horizon: float | None = None) -> Process:
    """Langevin dynamics of N(0, variance I): b = -y / variance, g = sqrt(2), exact kernel

    a(t) = exp(-t / variance), s(t)^2 = variance (1 - exp(-2 t / variance)).
    """
    v = jnp.float32(variance)
    return Process(
        name="ornstein_uhlenbeck",
        drift=Partial(_ou_drift, v),
        diffusion=Partial(sqrt_two),
        reference=standard_normal(dim, variance),
        clock=relaxing(v),
        horizon=checked_horizon(horizon, RELAXATION_TIMES * variance),
        known=Known(
            kernel=Partial(_ou_kernel, v),
            drift_vjp=Partial(_ou_vjp, v),
            stiffness=1 / v,
            elementwise=True,
        ),
    )


def _vp_beta(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    return beta_min + beta_slope * t


def _vp_decay(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    return beta_min * t + 0.5 * beta_slope * t**2


def _vp_drift(beta_min: Array, beta_slope: Array, y: Array, t: Array) -> Array:
    return -0.5 * _vp_beta(beta_min, beta_slope, t)[..., None] * y


def _vp_vjp(
    beta_min: Array, beta_slope: Array, y: Array, t: Array, v: Array
) -> tuple[Array, Array]:
    rate = -0.5 * _vp_beta(beta_min, beta_slope, t)[..., None]
    return rate * y, rate * v


def _vp_diffusion(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    return jnp.sqrt(_vp_beta(beta_min, beta_slope, t))


def _vp_kernel(beta_min: Array, beta_slope: Array, t: Array) -> Gaussian:
    x = _vp_decay(beta_min, beta_slope, t)
    return isotropic(jnp.exp(-0.5 * x), jnp.sqrt(-jnp.expm1(-x)))


@arguments(dim=DIMENSIONS, beta_min=POSITIVE, beta_max=POSITIVE, horizon=POSITIVE)
def variance_preserving(
    dim: int, *, beta_min: float = 0.1, beta_max: float = 20.0, horizon: float | None = None
) -> Process:
    """VP-SDE dY = -beta(t)/2 Y dt + sqrt(beta(t)) dW (2405.15625, Eq. 23; 2011.13456, Eq. 11).

    beta is linear from beta_min at 0 to beta_max at the horizon (default 1). With
    B(t) = int_0^t beta the kernel is a = exp(-B/2), s^2 = v = 1 - exp(-B).
    """
    end = checked_horizon(horizon, 1.0)
    beta = (jnp.float32(beta_min), (beta_max - beta_min) / end)
    return Process(
        name="variance_preserving",
        drift=Partial(_vp_drift, *beta),
        diffusion=Partial(_vp_diffusion, *beta),
        reference=standard_normal(dim),
        clock=Clock(decay=Partial(_vp_decay, *beta), saturation=jnp.float32(1.0)),
        horizon=end,
        known=Known(
            kernel=Partial(_vp_kernel, *beta),
            drift_vjp=Partial(_vp_vjp, *beta),
            stiffness=jnp.float32(0.5 * max(beta_min, beta_max)),
            elementwise=True,
        ),
    )


def _sub_vp_diffusion(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    loss = -jnp.expm1(-2 * _vp_decay(beta_min, beta_slope, t))
    return jnp.sqrt(_vp_beta(beta_min, beta_slope, t) * loss)


def _sub_vp_kernel(beta_min: Array, beta_slope: Array, t: Array) -> Gaussian:
    x = _vp_decay(beta_min, beta_slope, t)
    return isotropic(jnp.exp(-0.5 * x), -jnp.expm1(-x))


def _sub_vp_clock(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    """-log(1 - s^2), s = 1 - exp(-B): B - log(1 + s), or the former where that cancels."""
    x = _vp_decay(beta_min, beta_slope, t)
    std = -jnp.expm1(-x)
    return jnp.where(x < 1, -jnp.log1p(-(jnp.minimum(std, 0.7) ** 2)), x - jnp.log1p(std))


@arguments(dim=DIMENSIONS, beta_min=POSITIVE, beta_max=POSITIVE, horizon=POSITIVE)
def sub_variance_preserving(
    dim: int, *, beta_min: float = 0.1, beta_max: float = 20.0, horizon: float | None = None
) -> Process:
    """Sub-VP-SDE, dY = -beta(t)/2 Y dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dW (2011.13456, Eq. 14).

    `variance_preserving` with less noise at every time: a = exp(-B/2) as there, s = 1 - exp(-B) in
    place of its root (Eq. 29). v = s^2, so the clock's signal, sqrt(1 - v), is above a.
    """
    vp = variance_preserving(dim, beta_min=beta_min, beta_max=beta_max, horizon=horizon)
    beta = (jnp.float32(beta_min), (beta_max - beta_min) / vp.horizon)
    return dataclasses.replace(
        vp,
        name="sub_variance_preserving",
        diffusion=Partial(_sub_vp_diffusion, *beta),
        clock=Clock(decay=Partial(_sub_vp_clock, *beta), saturation=jnp.float32(1.0)),
        known=dataclasses.replace(vp.known, kernel=Partial(_sub_vp_kernel, *beta), of=None),
    )


def _line_drift(y: Array, t: Array) -> Array:
    return -y / (1 - t)[..., None]


def _line_vjp(y: Array, t: Array, v: Array) -> tuple[Array, Array]:
    return -y / (1 - t)[..., None], -v / (1 - t)[..., None]


def _line_diffusion(t: Array) -> Array:
    return jnp.sqrt(2 * t / (1 - t))


def _line_kernel(t: Array) -> Gaussian:
    return isotropic(1 - t, t)


def _line_decay(t: Array) -> Array:
    return -jnp.log1p(-(t**2))


LINE_END = 0.999
"""Horizon of `straight_line`: a thousandth of the data is left, a seventh of what VP leaves."""


@arguments(dim=DIMENSIONS, horizon=POSITIVE)
def straight_line(dim: int, *, horizon: float | None = None) -> Process:
    """The straight line from data to N(0, I) of flow matching, a = 1 - t and s = t (2210.02747,
    Section 4.1 with sigma_min = 0; rectified flow, 2209.03003): Y_t = (1 - t) x + t z.

    It is the linear SDE dY = -Y / (1 - t) dt + sqrt(2 t / (1 - t)) dW; the velocity of its
    probability flow is E[z - x | Y_t], which `networks.Velocity` predicts. v = t^2.

    Args:
      dim: d.
      horizon: T < 1, as drift and noise diverge at 1; `LINE_END` by default.

    Raises:
      ValueError: a horizon that is not below 1.
    """
    end = checked_horizon(horizon, LINE_END)
    if not end < 1:
        raise ValueError(
            f"process.horizon={float(end):g}: the straight line ends at 1, where it diverges;"
            f" set it below 1, or to 0 for {LINE_END}"
        )
    return Process(
        name="straight_line",
        drift=Partial(_line_drift),
        diffusion=Partial(_line_diffusion),
        reference=standard_normal(dim),
        clock=Clock(decay=Partial(_line_decay), saturation=jnp.float32(1.0)),
        horizon=end,
        known=Known(
            kernel=Partial(_line_kernel),
            drift_vjp=Partial(_line_vjp),
            stiffness=1 / (1 - end),
            elementwise=True,
        ),
    )


_UNBOUNDED = 2.0**20
"""Saturation of a process that has none, over its largest variance: v(t) stays exact in float32."""


def _ve_levels(sigma_min: float, sigma_max: float, horizon: Array) -> tuple[Array, Array]:
    """sigma_min, and the rate of log sigma(t)."""
    return jnp.float32(sigma_min), jnp.log(jnp.float32(sigma_max / sigma_min)) / horizon


def _ve_variance(sigma_min: Array, log_ratio: Array, t: Array) -> Array:
    return sigma_min**2 * jnp.expm1(2 * log_ratio * t)


def _ve_decay(sigma_min: Array, log_ratio: Array, saturation: Array, t: Array) -> Array:
    return -jnp.log1p(-_ve_variance(sigma_min, log_ratio, t) / saturation)


def _ve_drift(y: Array, t: Array) -> Array:
    return jnp.zeros_like(y)


def _ve_vjp(y: Array, t: Array, v: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(y), jnp.zeros_like(v)


def _ve_diffusion(sigma_min: Array, log_ratio: Array, t: Array) -> Array:
    return sigma_min * jnp.exp(log_ratio * t) * jnp.sqrt(2 * log_ratio)


def _ve_kernel(sigma_min: Array, log_ratio: Array, t: Array) -> Gaussian:
    return isotropic(jnp.ones_like(t), jnp.sqrt(_ve_variance(sigma_min, log_ratio, t)))


@arguments(dim=DIMENSIONS, sigma_min=POSITIVE, sigma_max=POSITIVE, horizon=POSITIVE)
def variance_exploding(
    dim: int, *, sigma_min: float = 0.01, sigma_max: float = 50.0, horizon: float | None = None
) -> Process:
    """VE-SDE dY = sqrt(d sigma^2 / dt) dW (2011.13456, Eq. 9 and 30), the process of NCSN.

    sigma(t) = sigma_min (sigma_max / sigma_min)^(t / T), T = 1 by default. Kernel a = 1 and
    s^2 = sigma(t)^2 - sigma_min^2. The clock is log s^2: levels at equal steps of it are geometric.
    The data keep their scale, whatever sigma_max: where a grid says nothing else, its first time
    is for data of unit variance (`integrators.default_smallest_variance`).

    Raises:
      ValueError: sigma_max that is not larger than sigma_min.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"process.sigma_max={sigma_max} must be larger than process.sigma_min={sigma_min}"
        )
    end = checked_horizon(horizon, 1.0)
    sigma = _ve_levels(sigma_min, sigma_max, end)
    saturation = jnp.float32(_UNBOUNDED * sigma_max**2)
    return Process(
        name="variance_exploding",
        drift=Partial(_ve_drift),
        diffusion=Partial(_ve_diffusion, *sigma),
        reference=standard_normal(dim, sigma_max**2),
        clock=Clock(decay=Partial(_ve_decay, *sigma, saturation), saturation=saturation),
        horizon=end,
        known=Known(
            kernel=Partial(_ve_kernel, *sigma),
            drift_vjp=Partial(_ve_vjp),
            stiffness=jnp.float32(0.0),
            elementwise=True,
        ),
    )


UNIFORM = 0.8
"""Noise at the horizon of `wrapped`, in periods. The density of the kernel is then within a factor
1 +- 2 exp(-2 pi^2 UNIFORM^2) = 1 +- 7e-6 of the uniform one, coordinate by coordinate."""


def _wrapped_decay(sigma_min: Array, log_ratio: Array, saturation: Array, t: Array) -> Array:
    return jnp.log1p(_ve_variance(sigma_min, log_ratio, t) / saturation)


def _wrapped_kernel(sigma_min: Array, log_ratio: Array, period: Array, t: Array) -> WrappedGaussian:
    return wrapped_gaussian(jnp.sqrt(_ve_variance(sigma_min, log_ratio, t)), period)


@arguments(
    dim=DIMENSIONS, period=POSITIVE, sigma_min=POSITIVE, sigma_max=number(low=0), horizon=POSITIVE
)
def wrapped(
    dim: int,
    *,
    period: float = 2 * math.pi,
    sigma_min: float = 0.01,
    sigma_max: float = 0.0,
    horizon: float | None = None,
) -> Process:
    """Brownian motion of angles: `variance_exploding` on a flat torus, towards the uniform law.

    States run in the covering space R^d, y = x + s z. The law at a time is that of y modulo the
    period P, and its kernel the wrapped normal one, sum_k N(y + k P; x, s^2) (as in 2206.01729 for
    torsion angles, 2202.02763 for any compact manifold). For a score that is periodic there are two
    targets with one minimiser. The conditional mean of -z / s given y modulo P is the score of that
    law; the score of the wrapped kernel is the conditional mean of -z / s given x too, and so has
    the same conditional mean and less variance (Rao-Blackwell), the less the larger s / P is. The
    kernel has the latter.

    The clock is that of variance exploding, `Clock.time` = log s^2, but v saturates at the variance
    of the uniform law, S = P^2 / 12: v = S s^2 / (S + s^2) and a^2 = S / (S + s^2), those of the
    variance-preserving states a y.

    Args:
      dim: d, the number of angles.
      period: P of all.
      sigma_min: see `variance_exploding`; in units of the angles.
      sigma_max: the same; 0: `UNIFORM` periods.
      horizon: T; 1 by default.

    Raises:
      ValueError: a period that is not positive, or sigma_max that is not larger than sigma_min.
    """
    torus = uniform_torus(dim, period=period)
    sigma_max = sigma_max or UNIFORM * torus.period
    process = variance_exploding(dim, sigma_min=sigma_min, sigma_max=sigma_max, horizon=horizon)
    sigma = _ve_levels(sigma_min, sigma_max, process.horizon)
    saturation = torus.typical_variance()
    return dataclasses.replace(
        process,
        name="wrapped",
        reference=torus,
        clock=Clock(decay=Partial(_wrapped_decay, *sigma, saturation), saturation=saturation),
        known=Known(
            kernel=Partial(_wrapped_kernel, *sigma, jnp.float32(torus.period)),
            drift_vjp=Partial(_ve_vjp),
            stiffness=jnp.float32(0.0),
            elementwise=True,
            period=torus.period,
        ),
    )


def _cld_drift(mass: Array, friction: Array, rate: Array, y: Array, t: Array) -> Array:
    x, v = jnp.split(y, 2, axis=-1)
    return rate * jnp.concatenate([v / mass, -x - friction * v / mass], axis=-1)


def _cld_vjp(
    mass: Array, friction: Array, rate: Array, y: Array, t: Array, w: Array
) -> tuple[Array, Array]:
    along, across = jnp.split(w, 2, axis=-1)
    pulled = jnp.concatenate([-across, along / mass - friction * across / mass], axis=-1)
    return _cld_drift(mass, friction, rate, y, t), rate * pulled


def _cld_diffusion(friction: Array, rate: Array, t: Array) -> Array:
    return jnp.full_like(t, 1.0) * jnp.sqrt(2 * friction * rate)


def _cld_decay(root_mass: Array, rate: Array, t: Array) -> Array:
    return 2 * rate * t / root_mass


def _cld_kernel(mass: Array, rate: Array, t: Array) -> Gaussian:
    root_mass = jnp.sqrt(mass)
    s = rate * t / root_mass  # in units of the (double) relaxation time
    decay = jnp.exp(-s)
    rows = [
        [decay * (1 + s), decay * s / root_mass],
        [-decay * s * root_mass, decay * (1 - s)],
    ]
    scale = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    # At 0 there is no noise, and the root below would be 0 / 0.
    noisy = s > 0
    s = jnp.where(noisy, s, 1.0)
    # Covariance of x and v / sqrt(M) from a point. For short times var x = 4 s^3 / 3 - ... is the
    # difference of numbers near 1, and float32 has seven digits: its series, to 1e-6.
    e = jnp.exp(-2 * s)
    terms = (4 / 3, -2.0, 8 / 5, -8 / 9, 8 / 21, -2 / 15, 16 / 405)
    series = s**3 * jnp.polyval(jnp.asarray(terms[::-1], s.dtype), s)
    var_x = jnp.where(s < 0.25, series, -jnp.expm1(-2 * s) - 2 * e * s * (1 + s))
    var_v = -jnp.expm1(-2 * s) + 2 * e * s * (1 - s)
    low = jnp.sqrt(var_v)
    # v first: it is noisy at once, and x follows.
    slope = 2 * e * s**2 / low
    rest = jnp.sqrt(var_x - slope**2)
    zero = jnp.zeros_like(low)
    rows = [
        [rest, slope],
        [zero, root_mass * low],
    ]
    root = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    root = jnp.where(noisy[..., None, None], root, 0.0)
    return Gaussian(scale=Blocks(matrix=scale), root=Blocks(matrix=root))


@arguments(dim=DIMENSIONS, mass=POSITIVE, rate=POSITIVE, horizon=POSITIVE)
def critically_damped(
    dim: int, *, mass: float = 0.25, rate: float = 4.0, horizon: float | None = None
) -> Process:
    """Critically damped Langevin dynamics of positions and velocities (2112.07068, Eq. 5).

        dx = rate v / M dt,    dv = rate (-x - Gamma v / M) dt + sqrt(2 Gamma rate) dW,

    with Gamma^2 = 4 M, noise on the velocities alone. y = (x, v) has 2 `dim` coordinates. The
    kernel is exact, a 2 x 2 block times I, from a point (x_0, v_0); the law at the horizon is
    N(0, I) x N(0, M I). Deviations of x and v decay as exp(-rate t / sqrt(M)): the clock has twice
    that rate, and the default horizon is 8 of these times, where less than 0.4 % of a deviation is
    left. `frames.Augmented` adds the velocities to data.

    Args:
      dim: of the positions.
      mass: M (2112.07068 has 1/4).
      rate: beta, 1 / time (4 there, on a horizon of 1).

    Raises:
      ValueError: a mass or a rate that is not positive.
    """
    m, beta = jnp.float32(mass), jnp.float32(rate)
    friction = 2 * jnp.sqrt(m)
    variances = jnp.concatenate([jnp.ones(dim), jnp.full(dim, mass)])
    return Process(
        name="critically_damped",
        drift=Partial(_cld_drift, m, friction, beta),
        diffusion=Partial(_cld_diffusion, friction, beta),
        reference=mixture([1.0], jnp.zeros((1, 2 * dim)), variances[None], covariance="diag"),
        clock=Clock(decay=Partial(_cld_decay, jnp.sqrt(m), beta), saturation=jnp.float32(mass)),
        horizon=checked_horizon(horizon, 8 * mass**0.5 / rate),
        noisy=tuple(range(dim, 2 * dim)),
        known=Known(
            kernel=Partial(_cld_kernel, m, beta),
            drift_vjp=Partial(_cld_vjp, m, friction, beta),
            stiffness=beta / jnp.sqrt(m),
        ),
    )
