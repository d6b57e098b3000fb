"""A reference whose metastable states get the data's weights.

A residual score starts at the reference, and a short horizon does not mend wrong weights of its
states: an energy may have basins of the right shape whose shares are off. Tilting leaves the
shapes and sets the shares.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import COUNT, KEY, POSITIVE, SEEDS, SHAPE, arguments, number
from ndsm_jax.references.energy import largest_curvature, log_uniform
from ndsm_jax.references.reference import Reference, has_constant

_MAX_PROPOSALS = 2000  # a draw, one after another
_MIN_ACCEPTANCE = 0.01  # so that a draw is never accepted with probability 0.99^2000 = 2e-9
_PROBES = 4096  # draws of the base that a constructor looks at
_SMALLEST_WEIGHT = 1e-6  # of a fit, relative to the largest


@runtime_checkable
class Partition(Protocol):
    """A smooth partition of unity: r_k(y) >= 0 with sum_k r_k(y) = 1. A pytree.

    A `GaussianMixture` is one, by its responsibilities; `Centres` is another.
    """

    def responsibilities(self, y: Array) -> Array:
        """r_k(y): [..., d] -> [..., K]."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions", "bandwidth"),
    meta_fields=("period",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Centres:
    """r_k(y) in proportion to exp(-|y - c_k|^2 / (2 h^2)): cells of the nearest centre, softened.

    Between two centres at distance D the share goes from one to the other over a length h^2 / D.
    With a period p the square of a difference x is (p / pi)^2 sin(pi x / p)^2: periodic, smooth,
    and x^2 nearby.

    Attributes:
      positions: c_k, shape [K, d].
      bandwidth: h, a scalar.
      period: p of every coordinate (static), None without.
    """

    positions: Array
    bandwidth: Array
    period: float | None = None

    @property
    def dim(self) -> int:
        """d."""
        return self.positions.shape[1]

    @arguments(y="[..., d]")
    def responsibilities(self, y: Array) -> Array:
        """r_k(y): [..., d] -> [..., K]."""
        return jnp.vectorize(partial(_responsibilities, self), signature="(d)->(k)")(y)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("reference", "partition", "weights", "curvature"),
    meta_fields=("unit_mass",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tilted:
    """eta(y) sum_k alpha_k r_k(y), a base law eta reweighted by states. See `tilted`, `fit_tilt`.

    In terms of energies: U_ref - log sum_k alpha_k r_k(y). As sum_k r_k = 1, the factor lies
    between the least and the largest alpha_k: nothing underflows, and rejection has a bound.

    Attributes:
      reference: the base law, eta.
      partition: r_k.
      weights: alpha_k > 0, shape [K].
      curvature: the part of `stiffness` due to the factor, a scalar.
      unit_mass: whether sum_k alpha_k E_eta[r_k] = 1 is known of the weights (static).
    """

    reference: Reference
    partition: Partition
    weights: Array
    curvature: Array
    unit_mass: bool

    @property
    def dim(self) -> int:
        """d."""
        return self.reference.dim

    @property
    def normalised(self) -> bool:
        """Whether `log_prob` has its constant: that of the base, and weights of unit mass."""
        return self.unit_mass and has_constant(self.reference)

    @arguments(y="[..., d]")
    def log_tilt(self, y: Array) -> Array:
        """log sum_k alpha_k r_k(y): [..., d] -> [...]."""
        return _log_tilt(self.partition, self.weights, y)

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """log eta(y) + log sum_k alpha_k r_k(y): [..., d] -> [...].

        Normalised where eta is and sum_k alpha_k E_eta[r_k] = 1. `fit_tilt` sees to that; weights
        of `tilted` are only known to have it where they are all the same.
        """
        return self.reference.log_prob(y) + self.log_tilt(y)

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """grad log eta + grad log sum_k alpha_k r_k: [..., d] -> [..., d]."""
        tilt = jnp.vectorize(jax.grad(self.log_tilt), signature="(d)->(d)")
        return self.reference.score(y) + tilt(y)

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws by rejection from the base: [*shape, d].

        A draw y of eta is accepted with probability sum_k alpha_k r_k(y) / max_k alpha_k; all
        draws that are not yet accepted propose again, together, at most 2000 times.
        """
        log_bound = jnp.log(self.weights.max())

        def propose(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            index, y, accepted = carry
            key_y, key_u = jax.random.split(jax.random.fold_in(key, index))
            proposal = self.reference.sample(key_y, shape)
            log_u = log_uniform(key_u, shape)
            y = jnp.where(accepted[..., None], y, proposal)
            return index + 1, y, accepted | (log_u < self.log_tilt(proposal) - log_bound)

        def unfinished(carry: tuple[Array, Array, Array]) -> Array:
            index, _, accepted = carry
            return (index < _MAX_PROPOSALS) & ~accepted.all()

        zeros = jnp.zeros((*shape, self.dim), jnp.float32)
        start = (jnp.uint32(0), zeros, jnp.zeros(shape, bool))
        return jax.lax.while_loop(unfinished, propose, start)[1]

    def typical_variance(self) -> Array:
        """That of the base: the weights of its states leave their widths."""
        return self.reference.typical_variance()

    def stiffness(self) -> float:
        """The base's plus the largest curvature of log sum_k alpha_k r_k: a bound of the sum.

        The latter is a bound for `Centres` (see `tilted`). For another partition it is the largest
        at 256 draws of the base and at 256 points between two of them, where states change.
        """
        return self.reference.stiffness() + float(self.curvature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiltReport:
    """What `fit_tilt` found.

    Attributes:
      shares: mean_i r_k(x_i) of the data.
      base_shares: E_eta[r_k].
      weights: alpha_k, with sum_k alpha_k E_eta[r_k] = 1.
      residual: max_k |E[r_k] - share_k| of the tilted law, on the draws that it was fitted with.
        Not about 0 where no positive weights give the data's shares.
      standard_error: of the tilted law's E[r_k] in those draws, the largest over k.
      acceptance: of the tilted law's proposals.
    """

    shares: tuple[float, ...]
    base_shares: tuple[float, ...]
    weights: tuple[float, ...]
    residual: float
    standard_error: float
    acceptance: float

    def __str__(self) -> str:
        rows = [
            f"  {k:>3}  data {share:.4f}  base {base:.4f}  weight {weight:.4g}"
            for k, (share, base, weight) in enumerate(
                zip(self.shares, self.base_shares, self.weights, strict=True)
            )
        ]
        return "\n".join(
            [
                f"Tilted reference: {len(self.shares)} states, residual {self.residual:.2g}"
                f" (standard error {self.standard_error:.2g}), acceptance {self.acceptance:.2g}",
                *rows,
            ]
        )


@arguments(positions="finite numbers [K, d]", bandwidth=POSITIVE, period=POSITIVE)
def centres(positions: Any, bandwidth: float, *, period: float | None = None) -> Centres:
    """Builds a partition by the nearest of K centres [K, d], softened over a bandwidth.

    Raises:
      ValueError: positions that are not finite [K, d], or a bandwidth or period not positive.
    """
    positions = np.asarray(positions, np.float64)
    return Centres(
        positions=jnp.asarray(positions, jnp.float32),
        bandwidth=jnp.asarray(bandwidth, jnp.float32),
        period=None if period is None else float(period),
    )


@arguments(
    samples="finite numbers [N, d]", num=COUNT, bandwidth=number(low=0), period=POSITIVE, seed=SEEDS
)
def metastable_states(
    samples: np.ndarray,
    num: int,
    *,
    bandwidth: float = 0.0,
    period: float | None = None,
    seed: int = 0,
) -> Centres:
    """The partition of which the centres are those of k-means (scikit-learn, best of 10 starts).

    Angles are clustered by their cosines and sines.

    Args:
      samples: of the data or of the energy, [N, d]; the law in which the states are to be seen.
      num: K.
      bandwidth: h; 0 takes the samples' standard deviation per dimension about their centres.
      period: of every coordinate, None for coordinates that are no angles.
      seed: of the starts.

    Raises:
      ValueError: samples that are not finite [N, d], fewer than num, or with all of a state equal.
    """
    from sklearn.cluster import KMeans

    samples = np.asarray(samples, np.float64)
    if not 1 <= num <= len(samples):
        raise ValueError(f"metastable_states: num={num} of {len(samples)} samples")
    if period is None:
        model = KMeans(num, n_init=10, random_state=seed).fit(samples)
        positions = model.cluster_centers_
        squares = (samples - positions[model.labels_]) ** 2
    else:
        angles = 2 * np.pi / period * samples
        circle = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        model = KMeans(num, n_init=10, random_state=seed).fit(circle)
        cosines, sines = np.split(model.cluster_centers_, 2, axis=1)
        positions = period / (2 * np.pi) * np.arctan2(sines, cosines)
        difference = samples - positions[model.labels_]
        squares = (period / np.pi * np.sin(np.pi / period * difference)) ** 2
    return centres(positions, bandwidth or float(np.sqrt(squares.mean())), period=period)


@arguments(reference=Reference, partition=Partition, weights="finite numbers [n]")
def tilted(reference: Reference, partition: Partition, weights: Any) -> Tilted:
    """Builds the law eta(y) sum_k alpha_k r_k(y).

    The stiffness of the factor for `Centres`. The Hessian of log sum_k alpha_k r_k is the
    difference of the covariances of g_k = grad log r_k under r~_k ~ alpha_k r_k and under r_k.
    With rho = max alpha / min alpha neither is more than rho times the other, and each is at most
    (D / h^2)^2 / 4 in any direction, D the largest distance of two centres. So its eigenvalues are
    at most (1 - 1 / rho) D^2 / (4 h^4); with a period, where D is that of `Centres`, the Hessians
    of log r_k differ too, and add (1 - 1 / rho) 2 / h^2.

    Args:
      reference: the base law.
      partition: K states.
      weights: alpha_k > 0, [K]; a common factor changes log_prob by a constant and nothing else.
        Equal ones are taken as 1: they change nothing. With others the law lacks its constant,
        and a likelihood is refused; those of `fit_tilt` have it.

    Raises:
      ValueError: weights that do not fit the partition or are not positive, or so uneven that
        under 1 % of the base's draws would be accepted.
    """
    weights = np.asarray(weights, np.float64)
    probes = reference.sample(jax.random.key(0), (_PROBES,))
    states = jax.eval_shape(partition.responsibilities, probes).shape[-1]
    if weights.shape != (states,) or not np.all(np.isfinite(weights) & (weights > 0)):
        raise ValueError(
            f"a tilt of {states} states needs finite positive weights [{states}],"
            f" got {weights.tolist()}"
        )
    equal = bool(np.all(weights == weights[0]))
    if equal:
        weights = np.ones_like(weights)
    leaf = jnp.asarray(weights, jnp.float32)
    acceptance = float(jnp.exp(_log_tilt(partition, leaf, probes)).mean()) / weights.max()
    if acceptance < _MIN_ACCEPTANCE:
        raise ValueError(
            f"the base accepts {acceptance:.2g} of its draws with the weights"
            f" {np.round(weights / weights.max(), 4).tolist()}: it has almost no mass in the state"
            " of the largest weight. Choose a base that has, or fewer states"
        )
    curvature = _tilt_curvature(partition, weights, probes)
    return Tilted(
        reference=reference,
        partition=partition,
        weights=leaf,
        curvature=jnp.asarray(curvature, jnp.float32),
        unit_mass=equal,
    )


@arguments(
    reference=Reference, data="finite numbers [N, d]", partition=Partition, key=KEY, num=COUNT
)
def fit_tilt(
    reference: Reference, data: Any, partition: Partition, *, key: Array, num: int = 65_536
) -> tuple[Tilted, TiltReport]:
    """Weights alpha with which the tilted law has the data's shares of the states.

    Wanted is E_eta[r_k sum_j alpha_j r_j] = mean_i r_k(x_i) for all k, that is M alpha = share with
    M_kj = E_eta[r_k r_j]. Summed over k it says sum_j alpha_j E_eta[r_j] = 1: the tilted law is
    normalised if the base is. M comes from draws of the base, and alpha from non-negative least
    squares (SciPy), which is the solution where that is positive and the nearest shares where it
    is not; then alpha_k is at least 1e-6 of the largest.

    Args:
      reference: the base law.
      data: samples [N, d].
      partition: K states.
      key: of the draws.
      num: draws of the base.

    Returns:
      The tilted law and a `TiltReport`.

    Raises:
      ValueError: data that are not finite [N, d], a state in which no draw of the base lies, or as
        `tilted`.
    """
    from scipy.optimize import nnls

    data = jnp.asarray(data, jnp.float32)
    draws = reference.sample(key, (num,))
    shares = _responsibilities_of(partition, data).mean(axis=0)
    r = _responsibilities_of(partition, draws)
    base_shares = r.mean(axis=0)
    if not np.all(base_shares > 1e-8):
        raise ValueError(
            f"no draw of the base lies in state {int(base_shares.argmin())}: no weight gives it the"
            f" data's share, {shares[base_shares.argmin()]:.2g}. Raise the bandwidth, or choose"
            " fewer states or another base"
        )
    weights = nnls(r.T @ r / num, shares)[0]
    weights = np.maximum(weights, _SMALLEST_WEIGHT * weights.max())
    weights /= weights @ base_shares
    factor = r @ weights
    found = factor @ r / num
    errors = (factor[:, None] * (r - found)).std(axis=0) / math.sqrt(num)
    report = TiltReport(
        shares=tuple(shares.tolist()),
        base_shares=tuple(base_shares.tolist()),
        weights=tuple(weights.tolist()),
        residual=float(np.abs(found - shares).max()),
        standard_error=float(errors.max()),
        acceptance=float(1 / weights.max()),
    )
    return dataclasses.replace(tilted(reference, partition, weights), unit_mass=True), report


def _responsibilities(c: Centres, y: Array) -> Array:
    difference = y[None, :] - c.positions
    if c.period is not None:
        difference = c.period / jnp.pi * jnp.sin(jnp.pi / c.period * difference)
    return jax.nn.softmax(-jnp.sum(difference**2, axis=1) / (2 * c.bandwidth**2))


def _log_tilt(partition: Partition, weights: Array, y: Array) -> Array:
    r = partition.responsibilities(y)
    return jnp.log(jnp.sum(r * jnp.broadcast_to(weights, r.shape), axis=-1))


def _tilt_curvature(partition: Partition, weights: np.ndarray, draws: Array) -> float:
    """Of log sum_k alpha_k r_k: a bound for `Centres`, measured at draws for other partitions."""
    uneven = 1 - weights.min() / weights.max()
    if isinstance(partition, Centres):
        positions = np.asarray(partition.positions, np.float64)
        difference = positions[:, None] - positions[None]
        h_squared = float(partition.bandwidth) ** 2
        if partition.period is None:
            hessians = 0.0
        else:
            difference = partition.period / np.pi * np.sin(np.pi / partition.period * difference)
            hessians = 2 / h_squared
        widest = np.sum(difference**2, axis=-1).max()
        return float(uneven * (widest / (4 * h_squared**2) + hessians))
    first, second = draws[:256], draws[256:512]
    fraction = jax.random.uniform(jax.random.key(1), (len(first), 1))
    between = fraction * first + (1 - fraction) * second
    function = Partial(_log_tilt, partition, jnp.asarray(weights, jnp.float32))
    return max(largest_curvature(function, y) for y in (first, between))


def _responsibilities_of(partition: Partition, y: Array) -> np.ndarray:
    r = jax.lax.map(partition.responsibilities, y, batch_size=1024)
    r = np.asarray(r, np.float64)
    return r / r.sum(axis=1, keepdims=True)
