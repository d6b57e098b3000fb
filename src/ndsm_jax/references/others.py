"""References beside mixtures with a density in closed form: heavy tails, angles, and their fits."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, DIMENSIONS, FLAG, KEY, POSITIVE, SHAPE, arguments, number

_DEGREES_RANGE = (0.1, 1000.0)  # of a fit: beyond the latter a Student-t law is a normal one


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("location", "scale", "degrees", "log_normaliser"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentT:
    """Multivariate Student-t law with nu degrees of freedom. Build it with `student_t(...)`.

    eta(y) = C (1 + |z|^2 / nu)^(-(nu + d) / 2) with z = (y - location) / scale, elementwise, and
    C = Gamma((nu + d) / 2) / (Gamma(nu / 2) (nu pi)^(d / 2) prod_j scale_j)
    (Kotz and Nadarajah 2004, Multivariate t Distributions, Eq. 1.1). One chi-square variable
    scales all coordinates: they are uncorrelated but not independent.

    Attributes:
      location: centre, shape [d].
      scale: scale of every coordinate, shape [d]; the variance is scale^2 nu / (nu - 2), infinite
        for nu <= 2.
      degrees: nu, a scalar.
      log_normaliser: log C, a scalar, computed once in float64.
    """

    location: Array
    scale: Array
    degrees: Array
    log_normaliser: Array

    @property
    def dim(self) -> int:
        """d."""
        return self.location.shape[0]

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """location + scale n / sqrt(chi2 / nu), n normal: [*shape, d]."""
        key_normal, key_scale = jax.random.split(key)
        noise = jax.random.normal(key_normal, (*shape, self.dim))
        # chi2 / nu = Gamma(nu / 2) / (nu / 2); its logarithm does not underflow for a small nu.
        half = self.degrees / 2
        log_ratio = jax.random.loggamma(key_scale, half, shape) - jnp.log(half)
        return _affine(self, noise * jnp.exp(-log_ratio / 2)[..., None])

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """log eta(y): [..., d] -> [...]."""
        return _each(_student_log_prob, "(d)->()", self, y)

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """grad log eta(y) = -(nu + d) / (nu + |z|^2) z / scale: [..., d] -> [..., d]."""
        return _each(_student_score, "(d)->(d)", self, y)

    def typical_variance(self) -> Array:
        """Mean of scale^2, a scalar: the variance of the core, as that of the law may not exist."""
        return jnp.mean(self.scale**2)

    def stiffness(self) -> float:
        """(nu + d) / (nu min scale^2): the curvature of -log eta at the centre, its largest."""
        degrees = float(self.degrees)
        return (degrees + self.dim) / (degrees * float(self.scale.min()) ** 2)


@partial(jax.tree_util.register_dataclass, data_fields=("location", "scale"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic:
    """Independent logistic coordinates: tails exp(-|z|), a smooth core. See `logistic(...)`.

    eta(y) = prod_j sech(z_j / 2)^2 / (4 scale_j) with z = (y - location) / scale.

    Attributes:
      location: centre, shape [d].
      scale: scale of every coordinate, shape [d].
    """

    location: Array
    scale: Array

    @property
    def dim(self) -> int:
        """d."""
        return self.location.shape[0]

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Independent draws: [*shape, d]."""
        return _affine(self, jax.random.logistic(key, (*shape, self.dim)))

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """log eta(y) = -sum_j (z_j + 2 log(1 + exp(-z_j)) + log scale_j): [..., d] -> [...]."""
        return _each(_logistic_log_prob, "(d)->()", self, y)

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """grad log eta(y) = -tanh(z / 2) / scale: [..., d] -> [..., d]."""
        return _each(_logistic_score, "(d)->(d)", self, y)

    def typical_variance(self) -> Array:
        """Mean of the coordinates' variances, (pi^2 / 3) scale^2: a scalar."""
        return jnp.pi**2 / 3 * jnp.mean(self.scale**2)

    def stiffness(self) -> float:
        """1 / (2 min scale^2): the curvature of -log eta at the centre, its largest."""
        return 0.5 / float(self.scale.min()) ** 2


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("dim", "period"))
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTorus:
    """The uniform law of d angles of one period. Build it with `uniform_torus(...)`.

    States live in the covering space R^d: density and score are those of the wrapped law, constant
    everywhere, while draws lie in the cell [-period / 2, period / 2).

    Attributes:
      dim: d (static).
      period: of every coordinate (static).
    """

    dim: int
    period: float = 2 * math.pi

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws in [-period / 2, period / 2): [*shape, d]."""
        return self.period * (jax.random.uniform(key, (*shape, self.dim)) - 0.5)

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """-d log period: [..., d] -> [...]."""
        return jnp.full(jnp.shape(y)[:-1], -self.dim * math.log(self.period))

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """Zero: [..., d] -> [..., d]."""
        return jnp.zeros_like(y)

    def typical_variance(self) -> Array:
        """period^2 / 12, the variance of a draw per dimension: a scalar."""
        return jnp.float32(self.period**2 / 12)

    def stiffness(self) -> float:
        """Zero: there is no drift to resolve."""
        return 0.0


@arguments(
    dim=DIMENSIONS,
    degrees=POSITIVE,
    location=(number(), "finite numbers [d]"),
    scale=(POSITIVE, "finite numbers [d]"),
)
def student_t(dim: int, *, degrees: float, location: Any = 0.0, scale: Any = 1.0) -> StudentT:
    """Builds a multivariate Student-t law with a diagonal scale matrix.

    Args:
      dim: d.
      degrees: nu > 0; the mean exists from 1 on, the variance from 2 on.
      location: centre, a scalar or [d].
      scale: positive, a scalar or [d].

    Raises:
      ValueError: an argument outside its range, or a shape that is neither () nor [d].
    """
    location, scale = _location_and_scale(dim, location, scale)
    log_normaliser = math.lgamma((degrees + dim) / 2) - math.lgamma(degrees / 2)
    log_normaliser -= dim / 2 * math.log(degrees * math.pi) + np.log(scale).sum()
    leaves = {
        "location": location,
        "scale": scale,
        "degrees": degrees,
        "log_normaliser": log_normaliser,
    }
    return StudentT(**{name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()})


@arguments(
    dim=DIMENSIONS,
    location=(number(), "finite numbers [d]"),
    scale=(POSITIVE, "finite numbers [d]"),
)
def logistic(dim: int, *, location: Any = 0.0, scale: Any = 1.0) -> Logistic:
    """Builds a product of logistic laws.

    Args:
      dim: d.
      location: centre, a scalar or [d].
      scale: positive, a scalar or [d]; the standard deviation is pi / sqrt(3) times it.

    Raises:
      ValueError: an argument outside its range, or a shape that is neither () nor [d].
    """
    location, scale = _location_and_scale(dim, location, scale)
    return Logistic(
        location=jnp.asarray(location, jnp.float32), scale=jnp.asarray(scale, jnp.float32)
    )


@arguments(dim=DIMENSIONS, period=POSITIVE)
def uniform_torus(dim: int, *, period: float = 2 * math.pi) -> UniformTorus:
    """Builds the uniform law of d angles on [-period / 2, period / 2)^d.

    Raises:
      ValueError: dim < 1, or a period that is not positive and finite.
    """
    return UniformTorus(dim=int(dim), period=float(period))


@arguments(
    data="finite numbers [N, d]",
    degrees=number(low=0),
    shared=FLAG,
    max_iterations=COUNT,
    tolerance=POSITIVE,
)
def fit_student_t(
    data: np.ndarray,
    *,
    degrees: float = 0.0,
    shared: bool = False,
    max_iterations: int = 500,
    tolerance: float = 1e-8,
) -> StudentT:
    """Maximum likelihood of `student_t` by expectation-maximisation, in float64.

    The ECME algorithm (Liu and Rubin 1995, Statistica Sinica 5): with weights
    w_i = (nu + d) / (nu + |z_i|^2), location = sum w_i x_i / sum w_i, scale^2 = the weighted mean
    of squares (divided by sum w_i, which has the same fixed point and gets there sooner; Kent,
    Tyler and Vardi 1994), then nu maximises the likelihood itself, over [0.1, 1000].

    Args:
      data: samples [N, d], finite.
      degrees: nu; 0 estimates it.
      shared: whether all coordinates have one scale, as suits pixels.
      max_iterations: of EM.
      tolerance: EM stops when a step adds less than this to the log-likelihood per sample.

    Raises:
      ValueError: NaN in the data, fewer than two samples, or a coordinate without variance.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import gammaln

    data = _checked(data, "fit_student_t", shared)
    dim = data.shape[1]

    def log_likelihood(nu: float, squares: np.ndarray, scale: np.ndarray) -> float:
        constant = gammaln((nu + dim) / 2) - gammaln(nu / 2) - dim / 2 * np.log(nu * np.pi)
        return constant - np.log(scale).sum() - (nu + dim) / 2 * np.log1p(squares / nu).mean()

    location, scale = np.median(data, axis=0), _root_mean(data.var(axis=0), shared)
    nu = degrees or 4.0
    best = -np.inf
    for _ in range(max_iterations):
        squares = np.sum(((data - location) / scale) ** 2, axis=1)
        if not degrees:
            found = minimize_scalar(
                lambda x, q=squares, s=scale: -log_likelihood(np.exp(x), q, s),
                bounds=np.log(_DEGREES_RANGE),
                method="bounded",
            )
            nu = float(np.exp(found.x))
        previous, best = best, log_likelihood(nu, squares, scale)
        if best - previous < tolerance:
            break
        weights = (nu + dim) / (nu + squares)
        weights /= weights.sum()
        location = weights @ data
        scale = _root_mean(weights @ (data - location) ** 2, shared)
    return student_t(dim, degrees=nu, location=location, scale=scale)


@arguments(data="finite numbers [N, d]", shared=FLAG)
def fit_logistic(data: np.ndarray, *, shared: bool = False) -> Logistic:
    """`logistic` with the data's moments: location = mean, scale = std sqrt(3) / pi.

    Args:
      data: samples [N, d], finite.
      shared: whether all coordinates have one scale, that of their mean variance, as suits pixels.

    Raises:
      ValueError: NaN in the data, fewer than two samples, or a coordinate without variance.
    """
    data = _checked(data, "fit_logistic", shared)
    scale = _root_mean(data.var(axis=0), shared) * math.sqrt(3) / math.pi
    return logistic(data.shape[1], location=data.mean(axis=0), scale=scale)


def _each(function: Any, signature: str, reference: Any, y: Array) -> Array:
    return jnp.vectorize(partial(function, reference), signature=signature)(y)


def _student_log_prob(s: StudentT, y: Array) -> Array:
    squares = jnp.sum(((y - s.location) / s.scale) ** 2)
    return s.log_normaliser - (s.degrees + s.dim) / 2 * jnp.log1p(squares / s.degrees)


def _student_score(s: StudentT, y: Array) -> Array:
    z = (y - s.location) / s.scale
    return -(s.degrees + s.dim) / (s.degrees + jnp.sum(z**2)) * z / s.scale


def _logistic_log_prob(s: Logistic, y: Array) -> Array:
    z = jnp.abs(y - s.location) / s.scale  # the density is even: no large terms cancel
    return -jnp.sum(z + 2 * jnp.log1p(jnp.exp(-z)) + jnp.log(s.scale))


def _logistic_score(s: Logistic, y: Array) -> Array:
    return -jnp.tanh((y - s.location) / (2 * s.scale)) / s.scale


def _affine(s: StudentT | Logistic, noise: Array) -> Array:
    location, scale = (jnp.broadcast_to(a, noise.shape) for a in (s.location, s.scale))
    return location + scale * noise


def _location_and_scale(dim: int, location: Any, scale: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [d], checked."""
    arrays = {}
    for name, value in (("location", location), ("scale", scale)):
        value = np.asarray(value, np.float64)
        arrays[name] = np.broadcast_to(value, (dim,))
    if not np.all(arrays["scale"] > 0):
        raise ValueError("scale must be positive in every coordinate")
    return arrays["location"], arrays["scale"]


def _root_mean(squares: np.ndarray, shared: bool) -> np.ndarray:
    """The roots of squares [d], or d times that of their mean."""
    return np.sqrt(np.full_like(squares, squares.mean()) if shared else squares)


def _checked(data: np.ndarray, name: str, shared: bool) -> np.ndarray:
    """Data [N, d] in float64, of which every coordinate varies, or any that share a scale."""
    data = np.asarray(data, np.float64)
    if data.ndim != 2 or len(data) < 2 or not np.all(np.isfinite(data)):
        raise ValueError(
            f"{name} needs finite data [N, d] with N >= 2, got shape {data.shape} or NaN"
        )
    constant = np.flatnonzero(np.ptp(data, axis=0) == 0)
    if constant.size > (data.shape[1] - 1 if shared else 0):
        raise ValueError(
            f"{name}: coordinate {constant[0]} has the same value in all samples"
            f" ({constant.size} of {data.shape[1]} coordinates have); leave it out, add noise to"
            " it, or let all coordinates share a scale (reference.shared)"
        )
    return data
