"""Noising processes dY = b(Y, t) dt + g(t) dW, their reverse, and their own clock.

Time t runs from 0 (data) to `horizon`, in the units of the SDE. The convention is b = + drift of
the forward process throughout; 2405.15625 writes -f for it in its Eq. 1 and + in its text.
An `SDE` is a pytree: functions that depend on arrays are `jax.tree_util.Partial`s over them, so a
compiled training step takes the process as an argument and is not retraced for another mixture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.gmm import GaussianMixture, standard_normal

ScoreFn = Callable[[Array, Array], Array]
"""s(y [..., d], t [...]) -> [..., d], an approximation of grad log p_t(y)."""

RELAXATION_TIMES = 4.0
"""Default horizon of Langevin noising, in units of the mixture's typical variance."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "drift",
        "diffusion",
        "prior",
        "decay",
        "saturation",
        "horizon",
        "kernel",
        "analytic_vjp",
    ),
    meta_fields=("name", "standardised"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SDE:
    """A forward noising process, with what reversing it needs.

    Attributes:
      name: for messages and reports (static).
      drift: b(y [..., d], t [...]) -> [..., d].
      diffusion: g(t [...]) -> [...], scalar noise.
      prior: the law at the horizon, from which the reverse process starts.
      decay: x(t) [...] -> [...], increasing from x(0) = 0: the local kernel variance is
        v(t) = saturation (1 - exp(-x(t))).
      saturation: the limit of v(t) for t -> infinity (a scalar).
      horizon: T, in time units.
      kernel: for linear processes t -> (a, s) with Y_t | Y_0 ~ N(a Y_0, s^2 I), otherwise None.
      analytic_vjp: (y, t, v) -> (b, J_b(y, t)^T v) where there is a formula, see `drift_vjp`.
      standardised: whether every component c of the prior has a process of its own, which is this
        one in its coordinates y = Sigma_c^{-1/2} (x - mu_c), x being data (static). Its law at the
        horizon is N(0, I) in them, and scores are conditional on c.
    """

    name: str
    drift: Callable[[Array, Array], Array]
    diffusion: Callable[[Array], Array]
    prior: GaussianMixture
    decay: Callable[[Array], Array]
    saturation: Array
    horizon: Array
    kernel: Callable[[Array], tuple[Array, Array]] | None = None
    analytic_vjp: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None
    standardised: bool = False

    @property
    def dim(self) -> int:
        """d."""
        return self.prior.dim

    def drift_vjp(self, y: Array, t: Array, v: Array) -> tuple[Array, Array]:
        """b(y, t) and J_b(y, t)^T v, the drift's Jacobian transposed times v: [..., d] each.

        By the process's formula where it has one, otherwise by `jax.vjp`.
        """
        if self.analytic_vjp is not None:
            return self.analytic_vjp(y, t, v)
        drift, pull_back = jax.vjp(lambda y: self.drift(y, t), y)
        return drift, pull_back(v)[0]

    def prior_score(self, y: Array) -> Array:
        """Score of the law at the horizon, in the coordinates of the process: [..., d]."""
        return -y if self.standardised else self.prior.score(y)

    def variance(self, t: Array) -> Array:
        """v(t) [...], the local kernel variance: std, loss weight and training times follow it."""
        return -self.saturation * jnp.expm1(-self.decay(t))

    def std(self, t: Array) -> Array:
        """sqrt(v(t)) [...]: the scale by which a preconditioned network is divided."""
        return jnp.sqrt(self.variance(t))

    def clock(self, t: Array) -> Array:
        """The process's own time, log v(t) - log(1 - v(t) / v(infinity)): [...] -> [...].

        It is minus a log signal-to-noise ratio: equal steps are geometric in t while little noise
        has been added, and uniform in t, a fixed fraction of the relaxation time, once v saturates.
        Written as log(saturation) + x + log(1 - exp(-x)), which is finite for any t > 0.
        """
        x = jnp.maximum(self.decay(t), jnp.finfo(jnp.float32).tiny)
        return jnp.log(self.saturation) + x + jnp.log(-jnp.expm1(-x))


def _langevin_drift(prior: GaussianMixture, y: Array, t: Array) -> Array:
    return prior.score(y)


def _langevin_drift_vjp(
    prior: GaussianMixture, y: Array, t: Array, v: Array
) -> tuple[Array, Array]:
    return prior.score_hvp(y, v)  # the Hessian is symmetric


def _sqrt_two(t: Array) -> Array:
    return jnp.full_like(t, 2**0.5)


def _langevin_decay(sigma_squared: Array, t: Array) -> Array:
    return 2 * t / sigma_squared


def mixture_langevin(prior: GaussianMixture, *, horizon: float | None = None) -> SDE:
    """Overdamped Langevin dynamics of a mixture (2405.15625, Eq. 3).

    b = grad log eta*(y), g = sqrt(2). The clock is the variance kernel of the typical component,
    v(t) = sigma^2 (1 - exp(-2 t / sigma^2)); the default horizon is `RELAXATION_TIMES` sigma^2.
    """
    sigma_squared = prior.typical_variance()
    return SDE(
        name="mixture_langevin",
        drift=Partial(_langevin_drift, prior),
        diffusion=Partial(_sqrt_two),
        prior=prior,
        decay=Partial(_langevin_decay, sigma_squared),
        saturation=sigma_squared,
        horizon=_horizon(horizon, RELAXATION_TIMES * float(sigma_squared)),
        analytic_vjp=Partial(_langevin_drift_vjp, prior),
    )


def _ou_kernel(variance: Array, t: Array) -> tuple[Array, Array]:
    x = _langevin_decay(variance, t)
    return jnp.exp(-0.5 * x), jnp.sqrt(-variance * jnp.expm1(-x))


def ornstein_uhlenbeck(dim: int, *, variance: float = 1.0, horizon: float | None = None) -> SDE:
    """Langevin dynamics of N(0, variance I): b = -y / variance, g = sqrt(2), exact kernel

    a(t) = exp(-t / variance), s(t)^2 = variance (1 - exp(-2 t / variance)).
    """
    sde = mixture_langevin(standard_normal(dim, variance), horizon=horizon)
    kernel = Partial(_ou_kernel, sde.saturation)
    return dataclasses.replace(sde, name="ornstein_uhlenbeck", kernel=kernel)


def component_ou(prior: GaussianMixture, *, horizon: float | None = None) -> SDE:
    """Linear dynamics of its own for every component of a mixture (2410.19149).

    Data point x of component c noises towards N(mu_c, Sigma_c), with the kernel

        X_t | x ~ N(mu_c + e^-t (x - mu_c), (1 - e^-2t) Sigma_c),

    which is `ornstein_uhlenbeck` of variance 1 in the coordinates of the component. So t is in
    relaxation times of that component, and one process serves them all. See `SDE.standardised`.
    """
    standard = ornstein_uhlenbeck(prior.dim, horizon=horizon)
    return dataclasses.replace(standard, name="component_ou", prior=prior, standardised=True)


def _vp_beta(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    return beta_min + beta_slope * t


def _vp_decay(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    return beta_min * t + 0.5 * beta_slope * t**2


def _vp_drift(beta_min: Array, beta_slope: Array, y: Array, t: Array) -> Array:
    return -0.5 * _vp_beta(beta_min, beta_slope, t)[..., None] * y


def _vp_diffusion(beta_min: Array, beta_slope: Array, t: Array) -> Array:
    return jnp.sqrt(_vp_beta(beta_min, beta_slope, t))


def _vp_kernel(beta_min: Array, beta_slope: Array, t: Array) -> tuple[Array, Array]:
    x = _vp_decay(beta_min, beta_slope, t)
    return jnp.exp(-0.5 * x), jnp.sqrt(-jnp.expm1(-x))


def variance_preserving(
    dim: int, *, beta_min: float = 0.1, beta_max: float = 20.0, horizon: float | None = None
) -> SDE:
    """VP-SDE dY = -beta(t)/2 Y dt + sqrt(beta(t)) dW (2405.15625, Eq. 23; 2011.13456, Eq. 11).

    beta is linear from beta_min at 0 to beta_max at the horizon (default 1). With
    B(t) = int_0^t beta the kernel is a = exp(-B/2), s^2 = v = 1 - exp(-B).
    """
    end = _horizon(horizon, 1.0)
    beta = (jnp.float32(beta_min), (beta_max - beta_min) / end)
    return SDE(
        name="variance_preserving",
        drift=Partial(_vp_drift, *beta),
        diffusion=Partial(_vp_diffusion, *beta),
        prior=standard_normal(dim),
        decay=Partial(_vp_decay, *beta),
        saturation=jnp.float32(1.0),
        horizon=end,
        kernel=Partial(_vp_kernel, *beta),
    )


_UNBOUNDED = 2.0**20
"""Saturation of a process that has none, over its largest variance: v(t) stays exact in float32."""


def _ve_variance(sigma_min: Array, log_ratio: Array, t: Array) -> Array:
    return sigma_min**2 * jnp.expm1(2 * log_ratio * t)


def _ve_decay(sigma_min: Array, log_ratio: Array, saturation: Array, t: Array) -> Array:
    return -jnp.log1p(-_ve_variance(sigma_min, log_ratio, t) / saturation)


def _ve_drift(y: Array, t: Array) -> Array:
    return jnp.zeros_like(y)


def _ve_diffusion(sigma_min: Array, log_ratio: Array, t: Array) -> Array:
    return sigma_min * jnp.exp(log_ratio * t) * jnp.sqrt(2 * log_ratio)


def _ve_kernel(sigma_min: Array, log_ratio: Array, t: Array) -> tuple[Array, Array]:
    return jnp.ones_like(t), jnp.sqrt(_ve_variance(sigma_min, log_ratio, t))


def variance_exploding(
    dim: int, *, sigma_min: float = 0.01, sigma_max: float = 50.0, horizon: float | None = None
) -> SDE:
    """VE-SDE dY = sqrt(d sigma^2 / dt) dW (2011.13456, Eq. 9 and 30), the process of NCSN.

    sigma(t) = sigma_min (sigma_max / sigma_min)^(t / T), T = 1 by default. Kernel a = 1 and
    s^2 = sigma(t)^2 - sigma_min^2. The clock is log s^2: levels at equal steps of it are geometric.

    Raises:
      ValueError: sigma_max that is not larger than sigma_min.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"process.sigma_max={sigma_max} must be larger than process.sigma_min={sigma_min}"
        )
    end = _horizon(horizon, 1.0)
    sigma = (jnp.float32(sigma_min), jnp.log(jnp.float32(sigma_max / sigma_min)) / end)
    saturation = jnp.float32(_UNBOUNDED * sigma_max**2)
    return SDE(
        name="variance_exploding",
        drift=Partial(_ve_drift),
        diffusion=Partial(_ve_diffusion, *sigma),
        prior=standard_normal(dim, sigma_max**2),
        decay=Partial(_ve_decay, *sigma, saturation),
        saturation=saturation,
        horizon=end,
        kernel=Partial(_ve_kernel, *sigma),
    )


def _local_decay(diffusion: Callable[[Array], Array], sigma_squared: Array, t: Array) -> Array:
    return diffusion(jnp.zeros_like(t)) ** 2 * t / sigma_squared


def user_process(
    drift: Callable[[Array, Array], Array],
    diffusion: Callable[[Array], Array],
    prior: GaussianMixture,
    *,
    horizon: float,
    decay: Callable[[Array], Array] | None = None,
    saturation: float | None = None,
    name: str = "user",
) -> SDE:
    """Any drift b(y [..., d], t [...]) and diffusion g(t [...]) > 0, noising towards `prior`.

    Without a clock of its own (`decay` and `saturation`, see `SDE`) the process uses that of the
    prior's typical component: v(t) = sigma^2 (1 - exp(-g(0)^2 t / sigma^2)).

    Raises:
      ValueError: a horizon that is not positive, or `decay` without `saturation`.
    """
    if (decay is None) != (saturation is None):
        raise ValueError("user_process: give both decay and saturation, or neither")
    diffusion = Partial(diffusion)
    sigma_squared = prior.typical_variance()
    return SDE(
        name=name,
        drift=Partial(drift),
        diffusion=diffusion,
        prior=prior,
        decay=Partial(decay or Partial(_local_decay, diffusion, sigma_squared)),
        saturation=sigma_squared if saturation is None else jnp.float32(saturation),
        horizon=_horizon(horizon, horizon),
    )


PROCESSES: dict[str, Callable[..., SDE]] = {
    "mixture_langevin": mixture_langevin,
    "ornstein_uhlenbeck": ornstein_uhlenbeck,
    "component_ou": component_ou,
    "variance_preserving": variance_preserving,
    "variance_exploding": variance_exploding,
}

MIXTURE_PROCESSES = ("mixture_langevin", "component_ou")
"""Those that take a mixture fitted to the data."""


def _horizon(horizon: float | None, default: float) -> Array:
    horizon = default if horizon is None else float(horizon)
    if not 0 < horizon < float("inf"):
        raise ValueError(f"process.horizon={horizon}: a positive, finite time is needed")
    return jnp.float32(horizon)


def reverse_drift(sde: SDE, score: ScoreFn) -> ScoreFn:
    """Drift of the reverse SDE in tau = T - t (2405.15625, Eq. 1): -b(x, t) + g(t)^2 s(x, t)."""

    def drift(x: Array, t: Array) -> Array:
        return -sde.drift(x, t) + sde.diffusion(t)[..., None] ** 2 * score(x, t)

    return drift


def probability_flow(sde: SDE, score: ScoreFn) -> ScoreFn:
    """Velocity dX/dtau of the probability-flow ODE (2011.13456, Eq. 13): -b + g^2 s / 2."""

    def velocity(x: Array, t: Array) -> Array:
        return -sde.drift(x, t) + 0.5 * sde.diffusion(t)[..., None] ** 2 * score(x, t)

    return velocity


TIME_COORDINATES = ("clock", "time")


def _clock_coordinate(sde: SDE, first: Array, t: Array) -> Array:
    ends = sde.clock(jnp.stack([first, sde.horizon]))
    return jnp.clip(2 * (sde.clock(t) - ends[0]) / (ends[1] - ends[0]) - 1, -1, 1)


def _time_coordinate(sde: SDE, t: Array) -> Array:
    return 2 * t / sde.horizon - 1


def time_coordinate(sde: SDE, kind: str, *, first: float) -> Callable[[Array], Array]:
    """What networks see of the time: a function [0, T] -> [-1, 1].

    `clock`: `SDE.clock` between the smallest time `first` and T, so that a tenfold smaller time is
    as visible as a tenfold larger one; `time`: t itself, as published.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in TIME_COORDINATES:
        raise ValueError(f"network.time={kind!r}: choose one of {', '.join(TIME_COORDINATES)}")
    if kind == "time":
        return Partial(_time_coordinate, sde)
    return Partial(_clock_coordinate, sde, jnp.float32(first))
