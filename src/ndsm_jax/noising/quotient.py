"""Simulation in the quotient of the space by the rotations that leave the drift alone.

The drift of Langevin dynamics for components Sigma_k that are isotropic outside a small subspace M,
which holds the (centred) means and the components' own directions, depends on the rest q of a state
only through |q|. So the chain is simulated in a few dimensions, whatever d is (docs/path_space.md).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array

from ndsm_jax.integrators import step_sizes
from ndsm_jax.noising.modes import Modes, modes_of
from ndsm_jax.processes.langevin import ISOTROPIC, langevin
from ndsm_jax.processes.process import Process
from ndsm_jax.references.mixtures import GaussianMixture

FRAME = 4
"""Coordinates outside M: along q_0, along the state, along the target, and one more direction."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("process", "modes", "centre", "basis", "spare"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quotient:
    """The chain of a mixture's Langevin dynamics, exact in law, in r + 4 instead of d dimensions.

    With q = alpha e + w, e = q_0 / |q_0| and w orthogonal to e, the pair of w and the target's part
    u orthogonal to M and e is driven by isotropic noise and mixed by scalars alone, so that only
    its Gram matrix matters: w = omega e_1, u = a e_1 + b e_2. In the frame (M, e, e_1, e_2, e_3)
    a step is the ordinary one of a mixture in r + 4 dimensions, with the length of the noise
    outside of (M, e, e_1, e_2), a chi variable of d - r - 3 degrees of freedom, along e_3. After
    it `reframe` turns the last three axes so that w lies on the first and u on the first two.
    `lift` gives e_1 and e_2 uniform directions. Exact in law for each (path, time), not jointly in
    time.

    Attributes:
      process: the Langevin dynamics in the frame [r + 4].
      modes: the components, by their mean variances.
      centre, basis: the affine subspace M: [d], [d, r] orthonormal.
      spare: a unit vector orthogonal to M, zero if there is none: [d].
    """

    process: Process
    modes: Modes
    centre: Array
    basis: Array
    spare: Array

    @property
    def codim(self) -> int:
        """m = d - r, the dimension of q."""
        return self.basis.shape[0] - self.basis.shape[1]

    def start(self, x0: Array) -> Array:
        """x0 [B, d] -> states [B, r + 4]."""
        p, q = _split(self, x0)
        length = jnp.linalg.norm(q, axis=-1, keepdims=True) * (self.codim > 0)
        return jnp.concatenate([p, length, jnp.zeros((*p.shape[:-1], 3), p.dtype)], axis=-1)

    def draws(self, key: Array, num_steps: int, y: Array) -> tuple[Array, Array]:
        """All randomness of chains y [..., r + 4], ahead of their loop, where it costs a third.

        Normals [num_steps, size (r + 3)] and lengths along e_3, chi(d - r - 3) [num_steps, size],
        in the precision of y.
        """
        size = math.prod(y.shape[:-1])
        key_normals, key_lengths = jax.random.split(key)
        shape = (num_steps, size * (self.process.dim - 1))
        normals = jax.random.normal(key_normals, shape, y.dtype)
        return normals, _chi(key_lengths, self.codim - 3, (num_steps, size), y.dtype)

    def noise(self, key: Array, n: Array, drawn: tuple[Array, Array], y: Array) -> Array:
        """Step n's normals in the frame, [..., r + 4]."""
        shape, free = y.shape[:-1], self.process.dim - 1
        z = drawn[0][n].reshape(*shape, free)
        # A complement of fewer than three dimensions has no e, e_1 or e_2.
        alive = np.arange(free) < free - FRAME + 1 + min(self.codim, FRAME - 1)
        z = jnp.where(jnp.broadcast_to(alive, z.shape), z, 0)
        return jnp.concatenate([z, drawn[1][n].reshape(*shape, 1)], axis=-1)

    def reframe(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Turns the last three axes: y to (omega, 0, 0), target to (a, b, 0) with omega, b >= 0."""
        w, u = y[..., -3:], target[..., -3:]
        omega = jnp.linalg.norm(w, axis=-1, keepdims=True)
        first = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0], w.dtype), w.shape)
        along = jnp.where(omega > 0, w / jnp.where(omega > 0, omega, 1), first)
        a = jnp.sum(along * u, axis=-1, keepdims=True)
        b = jnp.linalg.norm(u - a * along, axis=-1, keepdims=True)
        zero = jnp.zeros_like(a)
        return (
            jnp.concatenate([y[..., :-3], omega, zero, zero], axis=-1),
            jnp.concatenate([target[..., :-3], a, b, zero], axis=-1),
        )

    def lift(
        self, key: Array, x0: Array, index: Array, y: Array, target: Array, companion: Array
    ) -> tuple[Array, Array, Array]:
        """States, targets, companions of the whole space: [B, k, r + 4] each -> [B, k, d] each."""
        rank = self.basis.shape[1]
        _, q = _split(self, x0)
        # Where there is no q_0 any direction will do, as alpha starts from zero.
        e = _unit(outward(q, x0 - self.centre[None, :], self.spare))[:, None]
        free = jax.random.normal(key, (2, *y.shape[:2], q.shape[-1]), q.dtype)
        free = free - (free @ self.basis) @ self.basis.T
        e_1 = _unit(_without(free[0], e))
        e_2 = _unit(_without(_without(free[1], e), e_1))

        def whole(x: Array) -> Array:
            p, (alpha, one, two) = x[..., :rank], jnp.split(x[..., rank : rank + 3], 3, axis=-1)
            return p @ self.basis.T + alpha * e + one * e_1 + two * e_2

        centre = self.centre[None, None, :]
        return centre + whole(y), whole(target), centre + whole(companion)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("process", "modes", "centre", "basis", "scale", "variance"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TiedQuotient:
    """As `Quotient` for one isotropic variance shared by all components.

    q is then an Ornstein-Uhlenbeck chain of its own, q_n = a_n q_0 + sqrt(v_n) xi, with the
    denoising target -xi / sqrt(v_n). Only the r coordinates in M are simulated.

    Attributes:
      scale, variance: a_n and v_n of the chain at every grid point: [n + 1].
    """

    process: Process
    modes: Modes
    centre: Array
    basis: Array
    scale: Array
    variance: Array

    def start(self, x0: Array) -> Array:
        """x0 [B, d] -> states [B, r]."""
        return _split(self, x0)[0]

    def draws(self, key: Array, num_steps: int, y: Array) -> Array:
        """All normals of chains y [..., r], ahead of their loop: [num_steps, size r]."""
        return jax.random.normal(key, (num_steps, y.size), y.dtype)

    def noise(self, key: Array, n: Array, drawn: Array, y: Array) -> Array:
        """Step n's normals, [..., r]."""
        return drawn[n].reshape(y.shape)

    def reframe(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Nothing turns."""
        return y, target

    def lift(
        self, key: Array, x0: Array, index: Array, y: Array, target: Array, companion: Array
    ) -> tuple[Array, Array, Array]:
        """States, targets, companions of the whole space: [B, k, r] each -> [B, k, d] each."""
        _, q = _split(self, x0)
        xi = jax.random.normal(key, (*y.shape[:2], q.shape[-1]), q.dtype)
        xi = xi - (xi @ self.basis) @ self.basis.T
        std = jnp.sqrt(self.variance[index])[..., None]
        centre = self.centre[None, None, :] + self.scale[index][..., None] * q[:, None]
        pull = -xi / jnp.where(std > 0, std, 1)
        return (
            centre + y @ self.basis.T + std * xi,
            target @ self.basis.T + pull,
            centre + companion @ self.basis.T,
        )


def _chi(key: Array, degrees: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Lengths of normal vectors of `degrees` dimensions, by Marsaglia & Tsang's rejection (2000).

    `jax.random.chisquare` has the same law, but on a CPU it draws its elements one by one.
    """
    if degrees < 1:
        return jnp.zeros(shape, dtype)
    if degrees == 1:
        return jnp.abs(jax.random.normal(key, shape, dtype))
    d = degrees / 2 - 1 / 3

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, value, missing = state
        key, key_normal, key_uniform = jax.random.split(key, 3)
        x = jax.random.normal(key_normal, shape, dtype)
        v = (1 + x / (9 * d) ** 0.5) ** 3
        log_u = jnp.log1p(-jax.random.uniform(key_uniform, shape, dtype))
        # log v is -inf or NaN for v <= 0, which the comparison refuses.
        accepted = log_u < 0.5 * x**2 + d * (1 - v + jnp.log(v))
        return key, jnp.where(missing & accepted, v, value), missing & ~accepted

    start = (key, jnp.ones(shape, dtype), jnp.ones(shape, bool))
    _, v, _ = jax.lax.while_loop(lambda state: jnp.any(state[2]), propose, start)
    return jnp.sqrt(2 * d * v)


def _split(chain: Quotient | TiedQuotient, x: Array) -> tuple[Array, Array]:
    """Coordinates p [..., r] in M and the rest q [..., d]."""
    x = x - jnp.broadcast_to(chain.centre, x.shape)
    p = x @ chain.basis
    q = x - p @ chain.basis.T
    return p, q - (q @ chain.basis) @ chain.basis.T


def _without(x: Array, e: Array) -> Array:
    return x - jnp.sum(x * e, axis=-1, keepdims=True) * e


def _unit(x: Array) -> Array:
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)


_ROUNDING = 1e-5
"""What is left of an offset in float32, relative to it, once all of its parts are subtracted."""


def outward(q: Array, offset: Array, spare: Array) -> Array:
    """The part q of an offset outside of M, [..., d] each, or a spare direction [d] there.

    The latter where q is nothing but rounding, whatever the units of the states are.
    """
    least = _ROUNDING * jnp.linalg.norm(offset, axis=-1, keepdims=True)
    some = jnp.linalg.norm(q, axis=-1, keepdims=True) > least
    return jnp.where(some, q, jnp.broadcast_to(spare, q.shape))


def subspace(prior: GaussianMixture) -> np.ndarray:
    """An orthonormal basis [d, r] of the centred means and the components' own directions."""
    means = np.asarray(prior.means, np.float64)
    vectors = means - means.mean(axis=0)
    if prior.covariance == "low_rank":
        spread = np.asarray(prior.directions, np.float64) * np.asarray(prior.direction_std)[:, None]
        vectors = np.concatenate([vectors, spread.transpose(0, 2, 1).reshape(-1, prior.dim)])
    _, s, vt = np.linalg.svd(vectors, full_matrices=False)
    return vt[s > 1e-6 * max(s.max(initial=0.0), 1e-30)].T


def quotient(
    process: Process, grid: np.ndarray, *, integrator: str = "euler"
) -> Quotient | TiedQuotient:
    """The small chain of mixture Langevin dynamics, on a grid [n + 1].

    Raises:
      ValueError: another process, or a covariance that is not isotropic outside a small subspace.
    """
    mixture = process.known.quotient
    if mixture is None or process.noisy is not None:
        raise ValueError(
            f"noising.simulation='quotient': the drift of {process.name!r} is not known to be the"
            " score of a mixture that is isotropic outside a small subspace"
            f" (mixture.covariance among {', '.join(ISOTROPIC)}, process.name='langevin');"
            " choose noising.simulation='full' or 'auto'"
        )
    basis = subspace(mixture)
    centre = np.asarray(mixture.means, np.float64).mean(axis=0)
    shared: dict[str, Any] = {
        "modes": modes_of(mixture, relaxing=process.known.mixture is not None),
        "centre": jnp.asarray(centre, jnp.float32),
        "basis": jnp.asarray(basis, jnp.float32),
    }
    tied = mixture.covariance == "tied_spherical"
    small = _restrict(mixture, basis, centre, 0 if tied else FRAME)
    # Noise, clock and horizon stay those of the whole process.
    own = langevin(small, horizon=float(process.horizon))
    reduced = dataclasses.replace(
        process, drift=own.drift, known=own.known, reference=own.reference
    )
    if tied:
        scale, variance = _linear_chain(process, grid, mixture.smallest_variance(), integrator)
        return TiedQuotient(process=reduced, scale=scale, variance=variance, **shared)
    axes = np.eye(mixture.dim)
    axis = axes[np.argmin(np.sum(basis**2, axis=1))]  # the one that M contains the least of
    spare = axis - basis @ (basis.T @ axis)
    length = np.linalg.norm(spare)
    spare = spare / length if length > 1e-6 else np.zeros(mixture.dim)
    return Quotient(process=reduced, spare=jnp.asarray(spare, jnp.float32), **shared)


def _restrict(
    prior: GaussianMixture, basis: np.ndarray, centre: np.ndarray, extra: int
) -> GaussianMixture:
    """The mixture on M and `extra` isotropic dimensions, with the responsibilities of the whole.

    The weights make up for the normalisers of the d - r - extra dimensions that are missing.
    """
    missing = prior.dim - basis.shape[1] - extra
    pad = np.zeros((prior.num_components, extra))
    means = np.concatenate([(np.asarray(prior.means, np.float64) - centre) @ basis, pad], axis=1)
    log_std = np.broadcast_to(np.log(np.asarray(prior.factor, np.float64)[:, 0]), means.shape[0])
    log_weights = np.asarray(prior.log_weights, np.float64) - missing * log_std
    log_weights -= scipy.special.logsumexp(log_weights)
    arrays = {"log_weights": log_weights, "means": means}
    if prior.covariance == "low_rank":
        inside = np.einsum("dr,kdq->krq", basis, np.asarray(prior.directions, np.float64))
        arrays["directions"] = np.pad(inside, ((0, 0), (0, extra), (0, 0)))
    changes: dict[str, Any] = {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}
    return dataclasses.replace(prior, **changes)


def _linear_chain(
    process: Process, grid: np.ndarray, stationary: float, integrator: str
) -> tuple[Array, Array]:
    """a_n and v_n of the chain with drift -y / stationary: [n + 1] each, in float64."""
    eta, sigma = step_sizes(
        process, jnp.asarray(grid[:-1]), jnp.asarray(np.diff(grid)), integrator=integrator
    )
    factor = 1 - np.asarray(eta, np.float64) / stationary
    scale = np.concatenate([[1.0], np.cumprod(factor)])
    variance = np.zeros(len(grid))
    for n, added in enumerate(np.asarray(sigma, np.float64) ** 2):
        variance[n + 1] = factor[n] ** 2 * variance[n] + added
    return jnp.asarray(scale, jnp.float32), jnp.asarray(variance, jnp.float32)
