"""Any energy as a reference: density in proportion to exp(-U), and samplers for its draws."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax.checks import COUNT, DIMENSIONS, KEY, SHAPE, arguments, function, number, whole
from ndsm_jax.references.reference import Reference, has_constant

_CURVATURE_SAMPLES = 256
_DENSE_DIM = 64  # up to which Hessians are formed
_POWER_ITERATIONS = 30
_PROPOSALS = 1 << 15  # per batch of `rejection_samples`


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("function", "samples", "variance", "curvature", "log_normaliser"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy:
    """eta(y) = exp(-U(y)) / Z, and draws made beforehand. Build it with `energy`.

    Attributes:
      function: U, from [d] to a scalar, in units of kT; a `jax.tree_util.Partial`, whose bound
        arrays are leaves.
      samples: draws from eta, shape [M, d].
      variance: what `typical_variance` returns, a scalar.
      curvature: what `stiffness` returns, a scalar.
      log_normaliser: log Z, a scalar, which `normalised` finds; None: not known.
    """

    function: Partial
    samples: Array
    variance: Array
    curvature: Array
    log_normaliser: Array | None = None

    @property
    def dim(self) -> int:
        """d."""
        return self.samples.shape[1]

    @property
    def normalised(self) -> bool:
        """Whether `log_prob` has its constant."""
        return self.log_normaliser is not None

    @arguments(key=KEY, shape=SHAPE)
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws with replacement from the M samples: [*shape, d]."""
        return self.samples[jax.random.randint(key, shape, 0, self.samples.shape[0])]

    @arguments(y="[..., d]")
    def log_prob(self, y: Array) -> Array:
        """-U(y), less log Z where that is known: [..., d] -> [...]."""
        log_prob = -jnp.vectorize(self.function, signature="(d)->()")(y)
        return log_prob if self.log_normaliser is None else log_prob - self.log_normaliser

    @arguments(y="[..., d]")
    def score(self, y: Array) -> Array:
        """-grad U(y), by automatic differentiation: [..., d] -> [..., d]."""
        return -jnp.vectorize(jax.grad(self.function), signature="(d)->(d)")(y)

    def typical_variance(self) -> Array:
        """sigma^2 = mean_j 1 / E[(dU/dy_j)^2], a scalar.

        Integration by parts gives E[(dU/dy_j)^2] = E[d^2 U / dy_j^2], the mean curvature along
        coordinate j where the law's mass is: within its modes, however many there are. So this is
        the variance per dimension of a mode (exact for a normal law of independent coordinates,
        less for correlated ones), where the variance of the samples would be mostly that between
        modes. It is the squares that are averaged, at the samples: they are positive. The samples'
        variance, never less in theory (Cramer-Rao), bounds it: on a torus U may be flat.
        """
        return self.variance

    def stiffness(self) -> float:
        """The largest |eigenvalue| of the Hessian of U at up to 256 samples: see
        `largest_curvature`."""
        return float(self.curvature)


@arguments(function=function(1), samples="numbers [M, d]", dim=DIMENSIONS)
def energy(function: Callable[[Array], Array], samples: Any, *, dim: int | None = None) -> Energy:
    """Builds a reference from an energy and draws from exp(-U).

    Args:
      function: U, from one state [d] to a scalar, twice differentiable by JAX. Give a
        `jax.tree_util.Partial` that binds its arrays for them to be leaves; those in a closure are
        constants of every compiled step.
      samples: draws from exp(-U), [M, d], as `rejection_samples` and `nuts_samples` make them. M
        bounds how many different starts a sampler has: some ten thousand cost nothing.
      dim: d, to check the samples against; None takes theirs.

    Raises:
      ValueError: samples that are not finite, not [M, d] or not of dimension `dim`, or an energy
        that is not a scalar or not finite at one of them.
    """
    samples = jnp.asarray(samples, jnp.float32)
    if samples.ndim != 2 or not samples.size or not bool(jnp.isfinite(samples).all()):
        raise ValueError(
            f"an energy needs finite samples [M, d], got shape {samples.shape} or NaN;"
            " make them with rejection_samples or nuts_samples"
        )
    if dim is not None and samples.shape[1] != dim:
        raise ValueError(f"the energy has {dim} dimensions, its samples have {samples.shape[1]}")
    function = function if isinstance(function, Partial) else Partial(function)
    _check_scalar(function, samples.shape[1])
    value, gradient = _values_and_gradients(function, samples)
    if not bool(jnp.isfinite(value).all() & jnp.isfinite(gradient).all()):
        raise ValueError(
            "the energy or its gradient is not finite at one of its samples; leave out the samples"
            " where it is not, or make the energy finite there"
        )
    information = jnp.mean(gradient**2, axis=0)
    variance = jnp.minimum(1 / information, jnp.var(samples, axis=0)).mean()
    if not float(variance) > 0:
        raise ValueError("the samples of an energy are all the same; draw more of them")
    return Energy(
        function=function,
        samples=samples,
        variance=variance,
        curvature=jnp.asarray(largest_curvature(function, samples), jnp.float32),
    )


@arguments(key=KEY, reference=Energy, proposal=Reference, num=whole(2))
def normalised(
    key: Array, reference: Energy, proposal: Reference, *, num: int = 10_000
) -> tuple[Energy, float]:
    """The energy with log Z, by bridge sampling between its draws and those of a proposal.

    The acceptance ratio method (Bennett 1976; Meng and Wong 1996). With l = -U - log q, M draws of
    the energy, `num` of the proposal q and r = M / num, log Z is the c at which the sum of
    1 / (1 + r exp(l - c)) over the energy's draws is that of 1 / (1 + exp(c - l) / r) over the
    proposal's. The two laws have to overlap; neither needs to cover the other.

    Args:
      key: of the proposal's draws.
      reference: the energy.
      proposal: a reference whose log_prob has its constant: a mixture fitted to the draws; where
        the energy is periodic, `uniform_torus`.
      num: draws of the proposal.

    Returns:
      The energy, and the standard error of log Z for independent draws of either law.

    Raises:
      ValueError: a proposal without its constant, or without overlap.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    if not has_constant(proposal):
        raise ValueError(
            "normalised: the log_prob of the proposal needs its constant; fit a mixture"
        )
    draws = (reference.samples, proposal.sample(key, (num,)))
    of_energy, of_proposal = (
        -np.asarray(_values(reference.function, y), np.float64) - np.asarray(proposal.log_prob(y))
        for y in draws
    )
    shift = np.log(len(of_energy) / num)

    def shares(c: float) -> tuple[np.ndarray, np.ndarray]:
        return expit(c - shift - of_energy), expit(shift + of_proposal - c)

    def excess(c: float) -> float:
        low, high = shares(c)
        return low.sum() - high.sum()

    both = np.concatenate([of_energy, of_proposal])
    ends = both.min() - abs(shift) - 50, both.max() + abs(shift) + 50
    log_normaliser = brentq(excess, *ends, xtol=1e-9)
    error = sum(np.var(s) / np.mean(s) ** 2 / len(s) for s in shares(log_normaliser)) ** 0.5
    if not error < 1:
        raise ValueError(
            f"normalised: log Z has a standard error of {error:.2g}, as energy and proposal hardly"
            " overlap; fit the proposal to the energy's samples"
        )
    found = jnp.asarray(log_normaliser, jnp.float32)
    return dataclasses.replace(reference, log_normaliser=found), float(error)


def log_uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """log u of uniform draws: what a log probability of acceptance has to exceed.

    In float32 a draw in 2^23 is 0, which would accept anything. It is put in the middle of the
    cell that it stands for: u >= 2^-24, so that nothing of a probability below that is accepted.
    """
    return jnp.log(jnp.maximum(jax.random.uniform(key, shape), 2.0**-24))


@arguments(function=function(1), samples="finite numbers [M, d]")
def largest_curvature(function: Callable[[Array], Array], samples: Array) -> float:
    """max_i of the largest |eigenvalue| of the Hessian of a function at the samples.

    At up to 256 of the samples [M, d], evenly spaced. Exact for d <= 64; beyond that 30 power
    iterations with Hessian-vector products, which come close from below.
    """
    count = min(len(samples), _CURVATURE_SAMPLES)
    chosen = samples[np.linspace(0, len(samples) - 1, count).astype(int)]
    return float(_curvatures(Partial(function), chosen).max())


@jax.jit
def _curvatures(function: Partial, samples: Array) -> Array:
    if samples.shape[1] <= _DENSE_DIM:

        def one(y: Array) -> Array:
            return jnp.abs(jnp.linalg.eigvalsh(jax.hessian(function)(y))).max()

        return jax.lax.map(one, samples, batch_size=32)
    start = jax.random.normal(jax.random.key(0), samples.shape[1:])

    def power(y: Array) -> Array:
        def body(_: int, v: Array) -> Array:
            unit = v / jnp.maximum(jnp.linalg.norm(v), 1e-30)  # 0 where the function is flat
            return jax.jvp(jax.grad(function), (y,), (unit,))[1]

        return jnp.linalg.norm(jax.lax.fori_loop(0, _POWER_ITERATIONS, body, start))

    return jax.lax.map(power, samples, batch_size=32)


@jax.jit
def _values_and_gradients(function: Partial, samples: Array) -> tuple[Array, Array]:
    return jax.lax.map(jax.value_and_grad(function), samples, batch_size=1024)


@jax.jit
def _values(function: Partial, y: Array) -> Array:
    return jax.vmap(function)(y)


def _check_scalar(function: Callable[[Array], Array], dim: int) -> None:
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct((dim,), jnp.float32)).shape
    if shape != ():
        raise ValueError(
            f"an energy maps one state [{dim}] to a scalar, this one gives shape {shape}; sum over"
            " its last axis"
        )


@arguments(
    key=KEY,
    function=function(1),
    low="finite numbers [...]",
    high="finite numbers [...]",
    num=COUNT,
    grid_size=whole(2, 2**24),
    min_acceptance=number(low=0, high=1),
)
def rejection_samples(
    key: Array,
    function: Callable[[Array], Array],
    *,
    low: Any,
    high: Any,
    num: int,
    grid_size: int = 1 << 15,
    min_acceptance: float = 1e-4,
) -> Array:
    """Independent draws from exp(-U) restricted to a box, by rejection from the uniform law.

    A proposal is accepted with probability exp(U_min - U). U_min is the least energy of a grid
    over the box, lowered further by L-BFGS-B from the grid's eight best points.

    Args:
      key: of the proposals.
      function: U, from [d] to a scalar.
      low, high: corners of the box, [d] each; where the energy is periodic, one cell.
      num: draws.
      grid_size: points of the grid, all axes together. At most 15 dimensions have two an axis.
      min_acceptance: acceptance rate below which rejection is refused.

    Returns:
      The draws, [num, d].

    Raises:
      ValueError: a box without a volume, no finite energy in it, too low an acceptance rate, or
        an energy below U_min, met while sampling.
    """
    from scipy.optimize import minimize

    low, high = (np.atleast_1d(np.asarray(a, np.float32)) for a in (low, high))
    if low.shape != high.shape or low.ndim != 1 or not np.all(low < high):
        raise ValueError(f"rejection needs low < high, both [d], got {low} and {high}")
    dim = len(low)
    _check_scalar(function, dim)
    function = function if isinstance(function, Partial) else Partial(function)
    per_axis = int(grid_size ** (1 / dim) + 1e-9)
    if per_axis < 2:
        raise ValueError(
            f"rejection in {dim} dimensions is hopeless: use nuts_samples (pip install"
            " 'ndsm_jax[nuts]')"
        )
    centres = (np.arange(per_axis, dtype=np.float32) + 0.5) / per_axis
    axes = [lo + (hi - lo) * centres for lo, hi in zip(low, high, strict=True)]
    grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=-1)
    values = np.asarray(_values(function, grid), np.float64)
    values = np.where(np.isnan(values), np.inf, values)
    if not np.isfinite(values.min()):
        raise ValueError("rejection: the energy is nowhere finite in the box; move low and high")
    lowest = values.min()
    value_and_grad = jax.jit(jax.value_and_grad(function))

    def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_grad(jnp.asarray(y, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    bounds = list(zip(low.tolist(), high.tolist(), strict=True))
    for index in np.argsort(values)[:8]:
        found = float(minimize(objective, grid[index], jac=True, bounds=bounds).fun)
        lowest = min(lowest, found) if np.isfinite(found) else lowest
    slack = 1e-5 * max(1.0, abs(lowest))  # float32: a hundred units in the last place
    lowest -= slack

    @jax.jit
    def propose(function: Partial, index: Array) -> tuple[Array, Array, Array]:
        key_y, key_u = jax.random.split(jax.random.fold_in(key, index))
        unit = jax.random.uniform(key_y, (_PROPOSALS, dim))
        y = jnp.asarray(low)[None, :] + jnp.asarray(high - low)[None, :] * unit
        excess = _values(function, y) - lowest
        return y, excess, log_uniform(key_u, excess.shape) < -excess

    kept: list[np.ndarray] = []
    count, batches = 0, 0
    while count < num or not batches:
        y, excess, accepted = (np.asarray(a) for a in propose(function, jnp.uint32(batches)))
        if np.nanmin(excess) < 0:
            raise ValueError(
                f"rejection: an energy lies {-np.nanmin(excess):.2g} below the least one found on"
                f" the grid of {per_axis} points an axis; raise grid_size"
            )
        kept.append(y[accepted])
        count += len(kept[-1])
        batches += 1
        if count / (batches * _PROPOSALS) < min_acceptance:
            raise ValueError(
                f"rejection accepts {count} of {batches * _PROPOSALS} proposals, below"
                f" min_acceptance={min_acceptance}: draw low and high in to where the density is,"
                " or use nuts_samples (pip install 'ndsm_jax[nuts]')"
            )
    return jnp.asarray(np.concatenate(kept)[:num])


@arguments(
    key=KEY, function=function(1), start="finite numbers [...]", num=COUNT, warmup=COUNT, thin=COUNT
)
def nuts_samples(
    key: Array,
    function: Callable[[Array], Array],
    start: Any,
    *,
    num: int,
    warmup: int = 1000,
    thin: int = 1,
) -> Array:
    """Draws from exp(-U) by the No-U-Turn Sampler of BlackJAX (Hoffman and Gelman 2014).

    Step size and diagonal mass matrix come from Stan's window adaptation. Draws of a chain are
    correlated, and a chain rarely crosses a barrier of many kT: start chains in all modes, and
    know that their shares are then those of the starts (`fit_tilt` mends them).

    Args:
      key: of all chains.
      function: U, from [d] to a scalar.
      start: where the chains start: [d] for one, [C, d] for C, which run in parallel.
      num: draws from all chains together.
      warmup: steps of adaptation, thrown away.
      thin: steps from one draw to the next.

    Returns:
      The draws, [num, d], chain after chain.

    Raises:
      ValueError: BlackJAX is not installed, counts below 1, starts of another shape, or draws that
        are not finite.

    Warns:
      RuntimeWarning: over 1 % of the steps diverged, so the draws miss a stiff part of the law.
    """
    try:
        import blackjax
    except ImportError as error:
        raise ValueError(
            "nuts_samples needs BlackJAX, which is not installed: pip install 'ndsm_jax[nuts]'"
        ) from error
    starts = jnp.atleast_2d(jnp.asarray(start, jnp.float32))
    if starts.ndim != 2 or not bool(jnp.isfinite(starts).all()):
        raise ValueError(f"nuts_samples needs finite starts [C, d] or [d], got {starts.shape}")
    if min(num, warmup, thin) < 1:
        raise ValueError(f"num={num}, warmup={warmup} and thin={thin} must be at least 1")
    _check_scalar(function, starts.shape[1])
    length = -(-num // len(starts))

    def log_density(y: Array) -> Array:
        return -function(y)

    def chain(key: Array, start: Array) -> tuple[Array, Array]:
        key_warmup, key_run = jax.random.split(key)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts, log_density, adaptation_info_fn=lambda *_: None
        )
        (state, parameters), _ = adaptation.run(key_warmup, start, warmup)
        kernel = blackjax.nuts(log_density, **parameters)

        def one(state: Any, key: Array) -> tuple[Any, Array]:
            state, info = kernel.step(key, state)
            return state, info.is_divergent

        def draw(state: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
            state, divergent = jax.lax.scan(one, state, jax.random.split(key, thin))
            return state, (state.position, divergent.mean())

        _, (positions, divergent) = jax.lax.scan(draw, state, jax.random.split(key_run, length))
        return positions, divergent.mean()

    positions, divergent = jax.jit(jax.vmap(chain))(jax.random.split(key, len(starts)), starts)
    positions = positions.reshape(-1, starts.shape[1])[:num]
    if not bool(jnp.isfinite(positions).all()):
        raise ValueError("nuts_samples: a chain left for infinity; the energy must grow there")
    if (share := float(divergent.mean())) > 0.01:
        warnings.warn(
            f"nuts_samples: {share:.0%} of the steps diverged; the draws miss a stiff part of the"
            " law. Smooth the energy, or raise warmup",
            RuntimeWarning,
            stacklevel=2,
        )
    return positions
