"""Stochastic dynamics that are given, and whose score is wanted: swimmers, oscillators, Lorenz.

Nothing is noised towards anything here. Of a law that has to be known for a purpose (the horizon's,
for samples backwards in time), a stationary one is exact, and any other is fitted to simulated
states: `noising.with_simulated_reference`. Until then the reference is a normal law of about the
right size, from which the clock has its scale; drift, noise and score do not ask for it.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import COUNT, DIMENSIONS, KEY, POSITIVE, SEEDS, SHAPE, arguments, number
from ndsm_jax.processes.process import Known, Process, process
from ndsm_jax.references.energy import Energy, energy, rejection_samples
from ndsm_jax.references.mixtures import standard_normal
from ndsm_jax.references.reference import Reference, has_constant


def _swimmer_drift(gamma: Array, y: Array, t: Array) -> Array:
    x, v = jnp.split(y, 2, axis=-1)
    return jnp.concatenate([v - x**3, -gamma * v], axis=-1)


@arguments(gamma=POSITIVE, horizon=POSITIVE)
def active_swimmer(*, gamma: float = 0.1, horizon: float | None = None) -> Process:
    """A swimmer in an anharmonic trap, driven by a persistent noise (2206.04642; 2407.07998).

        dx = (-x^3 + v) dt,    dv = -gamma v dt + sqrt(2 gamma) dW,    y = (x, v).

    v tends to N(0, 1), in a time 1 / gamma; x follows it to the curve x^3 = v. The default horizon
    is 10 / gamma. Stiffness is that at |x| = 2, where the curve has v = 8.

    Raises:
      ValueError: a gamma or a horizon that is not positive.
    """
    rate = jnp.float32(gamma)
    return process(
        Partial(_swimmer_drift, rate),
        (2 * gamma) ** 0.5,
        standard_normal(2),
        horizon=10 / gamma if horizon is None else horizon,
        noisy=(1,),
        known=Known(stiffness=rate + 12),
        name="active_swimmer",
    )


def _oscillator_stiffness(friction: Array, curvature: Array) -> Array:
    """Of dx = v dt, dv = -(curvature x + friction v) dt: Euler's steps of it are stable for h below
    2 / friction, if it is overdamped, and below friction / curvature, if it oscillates."""
    return friction + curvature / friction


@partial(jax.tree_util.register_dataclass, data_fields=("positions", "temperature"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Maxwell:
    """Positions of a reference, and velocities of N(0, temperature I) beside them: y = (x, v)."""

    positions: Reference
    temperature: Array

    @property
    def dim(self) -> int:
        """d, twice that of the positions."""
        return 2 * self.positions.dim

    @property
    def normalised(self) -> bool:
        """Whether `log_prob` has its constant: where that of the positions does."""
        return has_constant(self.positions)

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws: [*shape, d]."""
        key_x, key_v = jax.random.split(key)
        v = jax.random.normal(key_v, (*shape, self.positions.dim))
        x = self.positions.sample(key_x, shape)
        return jnp.concatenate([x, jnp.sqrt(self.temperature) * v], axis=-1)

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """Log density, as far as that of the positions is known: [..., d] -> [...]."""
        x, v = jnp.split(y, 2, axis=-1)
        squares = v**2 / self.temperature + jnp.log(2 * jnp.pi * self.temperature)
        return self.positions.log_prob(x) - 0.5 * jnp.sum(squares, axis=-1)

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """grad log density: [..., d] -> [..., d]."""
        x, v = jnp.split(y, 2, axis=-1)
        return jnp.concatenate([self.positions.score(x), -v / self.temperature], axis=-1)

    def typical_variance(self) -> Array:
        """Mean of that of the positions and of that of the velocities, a scalar."""
        return 0.5 * (self.positions.typical_variance() + self.temperature)

    def stiffness(self) -> float:
        """The larger curvature of the two."""
        return max(self.positions.stiffness(), 1 / float(self.temperature))


def _underdamped_drift(law: Maxwell, friction: Array, y: Array, t: Array) -> Array:
    x, v = jnp.split(y, 2, axis=-1)
    force = law.temperature * law.positions.score(x)
    return jnp.concatenate([v, force - friction * v], axis=-1)


@arguments(positions=Reference, temperature=POSITIVE, friction=POSITIVE, horizon=POSITIVE)
def underdamped(
    positions: Reference,
    *,
    temperature: float = 1.0,
    friction: float = 1.0,
    horizon: float | None = None,
) -> Process:
    """Langevin dynamics with inertia, of unit mass (Kramers 1940, Physica 7(4)).

        dx = v dt,    dv = (-grad U(x) - gamma v) dt + sqrt(2 gamma T) dW,    y = (x, v),

    in the potential U = -T log eta of a law eta of positions. Its stationary law, the reference, is
    exact: eta times N(0, T I). The default horizon is 10 / gamma; over a high barrier it may take
    longer by the exponential of its height.

    Args:
      positions: eta; for a potential U of yours `references.energy(U / T, draws)`, and for
        likelihoods its `references.normalised`.
      temperature: T, the mean square of a velocity.
      friction: gamma, 1 / time.

    Raises:
      ValueError: a temperature, a friction or a horizon that is not positive.
    """
    law = Maxwell(positions=positions, temperature=jnp.float32(temperature))
    gamma = jnp.float32(friction)
    curvature = jnp.float32(temperature * positions.stiffness())
    return process(
        Partial(_underdamped_drift, law, gamma),
        (2 * friction * temperature) ** 0.5,
        law,
        horizon=10 / friction if horizon is None else horizon,
        noisy=tuple(range(positions.dim, law.dim)),
        known=Known(stiffness=_oscillator_stiffness(gamma, curvature)),
        name="underdamped",
    )


def _double_well(barrier: Array, x: Array) -> Array:
    return barrier * jnp.sum((x**2 - 1) ** 2)


@arguments(dim=DIMENSIONS, barrier=POSITIVE, num=COUNT, seed=SEEDS)
def double_well(dim: int = 1, *, barrier: float = 2.0, num: int = 20_000, seed: int = 0) -> Energy:
    """The law of positions exp(-barrier sum_i (x_i^2 - 1)^2), with `num` independent draws.

    barrier: in units of kT; minima at +-1, whose curvature is 8 barrier.

    Raises:
      ValueError: a barrier that is not positive.
    """
    function = Partial(_double_well, jnp.float32(barrier))
    edge = (1 + (20 / barrier) ** 0.5) ** 0.5  # where the energy is 20 kT
    draws = rejection_samples(
        jax.random.key(seed), function, low=[-edge], high=[edge], num=num * dim
    )
    return energy(function, draws.reshape(num, dim))


def _duffing_drift(parameters: Array, y: Array, t: Array) -> Array:
    damping, linear, cubic, force, frequency = parameters
    x, v = jnp.split(y, 2, axis=-1)
    push = force * jnp.cos(frequency * t)[..., None]
    return jnp.concatenate([v, push - damping * v - linear * x - cubic * x**3], axis=-1)


@arguments(
    damping=POSITIVE,
    linear=number(),
    cubic=number(),
    force=number(),
    frequency=number(),
    noise=POSITIVE,
    horizon=POSITIVE,
)
def duffing(
    *,
    damping: float = 0.3,
    linear: float = -1.0,
    cubic: float = 1.0,
    force: float = 0.0,
    frequency: float = 1.2,
    noise: float = 0.3,
    horizon: float | None = None,
) -> Process:
    """Duffing's oscillator, with noise on the velocity alone: y = (x, v).

        dx = v dt,    dv = (-delta v - alpha x - beta x^3 + F cos(omega t)) dt + g dW.

    Without a force it is `underdamped` at the temperature g^2 / (2 delta). The default horizon is
    10 / delta. Stiffness is that at |x| = 2.

    Args:
      damping, linear, cubic: delta, alpha, beta; a negative alpha and a positive beta make two
        wells at +-sqrt(-alpha / beta).
      force, frequency: F and omega of the periodic force; the drift then depends on the time.
      noise: g.

    Raises:
      ValueError: a damping, a noise or a horizon that is not positive.
    """
    parameters = jnp.float32([damping, linear, cubic, force, frequency])
    curvature = jnp.abs(parameters[1] + 12 * parameters[2])
    return process(
        Partial(_duffing_drift, parameters),
        noise,
        standard_normal(2),
        horizon=10 / damping if horizon is None else horizon,
        noisy=(1,),
        known=Known(stiffness=_oscillator_stiffness(parameters[0], curvature)),
        name="duffing",
    )


def _lorenz_drift(parameters: Array, y: Array, t: Array) -> Array:
    sigma, rho, beta, unit = parameters
    x1, x2, x3 = jnp.moveaxis(y, -1, 0)
    rates = [sigma * (x2 - x1), x1 * (rho - unit * x3) - x2, unit * x1 * x2 - beta * x3]
    return jnp.stack(rates, axis=-1)


def _lorenz_stiffness(sigma: float, rho: float, beta: float) -> float:
    """At the origin, where the drift's rates are -beta and -m +- sqrt(square), m = (sigma + 1) / 2.

    Of a negative square they are a pair -m +- i w, whose Euler steps are stable for h below
    2 m / (m^2 + w^2).
    """
    middle, square = 0.5 * (sigma + 1), 0.25 * (sigma - 1) ** 2 + sigma * rho
    pair = middle + square**0.5 if square >= 0 else middle - square / middle
    return max(pair, beta)


@arguments(
    sigma=POSITIVE, rho=number(), beta=number(), noise=POSITIVE, unit=POSITIVE, horizon=POSITIVE
)
def lorenz63(
    *,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8 / 3,
    noise: float = 2.0,
    unit: float = 1.0,
    horizon: float = 5.0,
) -> Process:
    """Lorenz's equations (1963, J. Atmos. Sci. 20(2), Eq. 25-27) with isotropic noise.

        dx1 = sigma (x2 - x1) dt + g dW1,    dx2 = (x1 (rho - x3) - x2) dt + g dW2,
        dx3 = (x1 x2 - beta x3) dt + g dW3.

    Stiffness is the largest rate of contraction at the origin, where the drift contracts most; for
    a rho at which the origin is a spiral, what Euler's steps of that need.

    Args:
      sigma, rho, beta: of the equations.
      noise: g, in Lorenz's units.
      unit: states are in units of so many of Lorenz's; for networks rho is a good one.

    Raises:
      ValueError: a sigma, a noise, a unit or a horizon that is not positive.
    """
    return process(
        Partial(_lorenz_drift, jnp.float32([sigma, rho, beta, unit])),
        noise / unit,
        standard_normal(3, (8 / unit) ** 2),
        horizon=horizon,
        known=Known(stiffness=jnp.float32(_lorenz_stiffness(sigma, rho, beta))),
        name="lorenz63",
    )
