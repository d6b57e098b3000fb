"""Samplers that solve the reverse SDE. Derivations and measurements: docs/samplers.md."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import fields, number, whole
from ndsm_jax.clock import Clock
from ndsm_jax.integrators import broadcast_time
from ndsm_jax.processes.process import Process, ScoreFn, reverse_drift
from ndsm_jax.sampling.kernel import diffusion_ratio, relaxation_kernel, relaxation_scales
from ndsm_jax.sampling.sampler import Sampler, State, check_full_noise, extrapolation, normals


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseSDE(Sampler):
    """Reverse Euler-Maruyama (2405.15625, Alg. 3): x <- x + (-b + g^2 E u) h + g sqrt(h) E z.

    One evaluation a step, for any process; explicit, so steps must be shorter than the reference's
    variances.
    """

    def init(self, process: Process, x: Array, t: Array) -> State:
        """See `Sampler`."""
        return State(x)

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: State,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> State:
        """See `Sampler`."""
        x = state.x
        z = normals(keys, n, process.noise_dim, x.dtype)
        noise = process.spread(self.noise(process, t, t_next) * z)
        drift = reverse_drift(process, score)(x, broadcast_time(t, x))
        return State(x + (t - t_next) * drift + noise)

    def noise(self, process: Process, t: Array, t_next: Array) -> Array:
        """g sqrt(h)."""
        return process.diffusion(t) * jnp.sqrt(t - t_next)

    def evaluations(self, num_steps: int) -> int:
        """One a step."""
        return num_steps

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """The step itself."""
        return longest


class Multistep(NamedTuple):
    """x [B, d], the last denoised state [B, d] and the log a / s at which it was found."""

    x: Array
    last: Array
    last_log: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultistepSDE(Sampler):
    """Exponential integrator of the reverse SDE, multistep, one evaluation a step.

    With the local kernel (m, a, s), lambda = log(a / s), h its increase over the step, the denoised
    state D = m + (x - m + s^2 score) / a, and q^2 = 1 - e^-2h,

        x <- m + (s' / s) e^-h (x - m) + a' q^2 (D~ - m) + s' q z,
        D~ = D + h / (2 h_last) (D - D_last).

    For processes with a scalar kernel this is SDE-DPM-Solver++(2M) (2211.01095, App. B); for others
    the part of the drift that is linear near x is integrated exactly. Where the diffusion is not
    that of the clock, saturation decay' = g^2, score and noise are rescaled to it. Of order 1 D~ is
    D, see `ancestral`.

    With eta < 1 only that share of the noise, eta q in place of q: e^-h becomes sqrt(1 - eta^2 q^2)
    and q^2 becomes 1 - e^-h sqrt(1 - eta^2 q^2) (2010.02502, Eq. 12, see `ddim`). With eta = 0 it
    solves the probability flow: DDIM, and of order 2 DPM-Solver++(2M).

    Attributes:
      order: 2, or 1.
      eta: from 0 to 1.
    """

    order: int = 2
    eta: float = 1.0

    def __post_init__(self) -> None:
        fields(self, order=whole(1, 2), eta=number(low=0, high=1))

    def check(self, process: Process) -> None:
        """Refuses degenerate noise: its posterior given D is not isotropic."""
        first = "ancestral" if self.eta == 1 else "ddim"
        check_full_noise("multistep_sde" if self.order == 2 else first, process)

    def init(self, process: Process, x: Array, t: Array) -> Multistep:
        """See `Sampler`."""
        scale, std = relaxation_scales(process, t)
        return Multistep(x, jnp.zeros_like(x), jnp.log(scale / std))

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Multistep,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Multistep:
        """See `Sampler`."""
        x, last, last_log = state
        centre, scale, std = relaxation_kernel(process, x, t)
        scale_next, std_next = relaxation_scales(process, t_next)
        ratio = diffusion_ratio(process, t)
        log = jnp.log(scale / std)
        h = jnp.log(scale_next / std_next) - log
        difference = x - centre
        new = centre + (difference + ratio * std**2 * score(x, broadcast_time(t, x))) / scale
        weight = extrapolation(h, log - last_log) if self.order == 2 else jnp.zeros_like(h)
        denoised = new + weight * (new - last)
        # log sqrt(1 - eta^2 q^2), which is -h for all of the noise.
        less = 0.5 * jnp.log1p(self.eta**2 * jnp.expm1(-2 * h)) if self.eta < 1 else -h
        x = centre + std_next / std * jnp.exp(less) * difference
        x = x - scale_next * jnp.expm1(less - h) * (denoised - centre)
        noise = self.noise(process, t, t_next)
        x = x if noise is None else x + noise * normals(keys, n, process.dim, x.dtype)
        return Multistep(x, new, log)

    def noise(self, process: Process, t: Array, t_next: Array) -> Array | None:
        """eta s' sqrt(1 - e^-2h), rescaled to g; None where there is none."""
        if not self.eta:
            return None
        scale, std = relaxation_scales(process, t)
        scale_next, std_next = relaxation_scales(process, t_next)
        gain = -jnp.expm1(-2 * (jnp.log(scale_next / std_next) - jnp.log(scale / std)))
        return self.eta * std_next * jnp.sqrt(diffusion_ratio(process, t) * gain)

    def evaluations(self, num_steps: int) -> int:
        """One a step."""
        return num_steps

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """In which the typical mode's own relaxation gets as far: v (1 - exp(-longest / v)).

        For a scalar kernel there is no limit: all of the drift is integrated exactly.
        """
        saturation = float(clock.saturation)
        return -saturation * math.expm1(-longest / saturation)


def multistep_sde() -> MultistepSDE:
    """The reverse SDE with all of its noise: `MultistepSDE` as it is."""
    return MultistepSDE()


def ancestral() -> MultistepSDE:
    """Ancestral sampling of DDPM (2006.11239, Algorithm 2), for any grid: one evaluation a step.

    Draws from the posterior of the state at t' given x at t and the denoised state D,

        N( (r s'^2 / s^2) x + (a' q / s^2) D,  q s'^2 / s^2 I ),    r = a / a',  q = s^2 - r^2 s'^2,

    its Eq. 6 and 7 for kernels (a, s) and (a', s'). That is `MultistepSDE` of order 1.
    """
    return MultistepSDE(order=1)


def ddim(*, eta: float = 0.0) -> MultistepSDE:
    """DDIM (2010.02502, Eq. 12), for any grid: one evaluation a step, and no noise by default.

    With the denoised state D, and sigma = eta s' q, the deviation of `ancestral` times eta,

        x <- a' D + sqrt(s'^2 - sigma^2) (x - a D) / s + sigma z.

    eta = 0 is the first-order solver of the probability flow that is exact for a constant D, eta =
    1 is `ancestral`. That is `MultistepSDE` of order 1.
    """
    return MultistepSDE(order=1, eta=eta)
