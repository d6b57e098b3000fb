"""Samplers: the noising process run backwards from the prior.

Every sampler takes `(keys, score, sde, x, grid)`, states x [B, d] at the first time of a decreasing
grid [n + 1], and returns them at the last time with the evaluations of the score that it took.
Row i is driven by keys[i] alone. Derivations and measurements: docs/samplers.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from ndsm_jax.integrators import broadcast_time, forward_step, heun_step, scan_grid
from ndsm_jax.noise_levels import langevin_step
from ndsm_jax.sde import SDE, ScoreFn, probability_flow, reverse_drift

logger = logging.getLogger(__name__)

MIN_SCALE = 1e-13
"""Smallest a(t) of a local kernel: before it the law is the prior's to rounding, and float32 would
underflow. Samplers that use a(t) leave the states as they are there."""


def _normals(keys: Array, n: Array, x: Array) -> Array:
    """Standard normals of step n, row by row from its key: [B, d]."""
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), x.shape[1:]))(keys)


def reverse_sde(
    keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array
) -> tuple[Array, Array | int]:
    """Reverse Euler-Maruyama (2405.15625, Algorithm 3): x <- x + (-b + g^2 s) h + g sqrt(h) z.

    One evaluation a step; explicit, so steps must be shorter than the mixture's variances.
    """
    drift = reverse_drift(sde, score)

    def step(x: Array, n: Array, t: Array, t_next: Array) -> tuple[Array, None]:
        t = broadcast_time(t, x)
        h = t - t_next
        scale = sde.diffusion(t) * jnp.sqrt(h)
        return x + h[:, None] * drift(x, t) + scale[:, None] * _normals(keys, n, x), None

    return scan_grid(step, x, grid)[0], grid.shape[0] - 1


def relaxation_kernel(sde: SDE, x: Array, t: Array) -> tuple[Array, Array, Array]:
    """The noising near x [B, d] as a linear process: Y_t | Y_0 ~ N(m + a (Y_0 - m), s^2 I).

    For linear processes its own kernel, m = 0. For others the Ornstein-Uhlenbeck process that has
    the process's clock, a = exp(-decay / 2) and s = std, and its drift at (x, t), which sets the
    centre: b = -(x - m) decay' / 2. Exact for the Langevin dynamics of a Gaussian.

    Returns:
      m [B, d], and a, s (scalars), at a scalar time t.
    """
    if sde.kernel is not None:
        scale, std = sde.kernel(t)
        return jnp.zeros_like(x), jnp.maximum(scale, MIN_SCALE), std
    decay, rate = jax.jvp(sde.decay, (t,), (jnp.ones_like(t),))
    centre = x + (2 / rate) * sde.drift(x, broadcast_time(t, x))
    return centre, jnp.maximum(jnp.exp(-0.5 * decay), MIN_SCALE), sde.std(t)


def multistep_sde(
    keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array, *, order: int = 2
) -> tuple[Array, Array | int]:
    """Exponential integrator of the reverse SDE, second-order multistep, one evaluation a step.

    With the local kernel (m, a, s), lambda = log(a / s), h its increase over the step and the
    denoised state D = m + (x - m + s^2 score) / a,

        x <- m + (s' / s) e^-h (x - m) + a' (1 - e^-2h) (D~ - m) + s' sqrt(1 - e^-2h) z,
        D~ = D + h / (2 h_last) (D - D_last).

    For linear processes this is SDE-DPM-Solver++(2M) (2211.01095, App. B); for others the part of
    the drift that is linear near x is integrated exactly. Where the diffusion is not that of the
    clock, saturation decay' = g^2, score and noise are rescaled to it. Of order 1 D~ is D.
    """

    def step(
        carry: tuple[Array, Array, Array], n: Array, t: Array, t_next: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        x, last, last_log = carry
        centre, scale, std = relaxation_kernel(sde, x, t)
        _, scale_next, std_next = relaxation_kernel(sde, x, t_next)
        ratio = _diffusion_ratio(sde, t)
        log = jnp.log(scale / std)
        h = jnp.log(scale_next / std_next) - log
        difference = x - centre
        new = centre + (difference + ratio * std**2 * score(x, broadcast_time(t, x))) / scale
        weight = _extrapolation(h, log - last_log) if order == 2 else jnp.zeros_like(h)
        denoised = new + weight * (new - last)
        gain = -jnp.expm1(-2 * h)
        x = centre + std_next / std * jnp.exp(-h) * difference
        x = x + scale_next * gain * (denoised - centre)
        x = x + std_next * jnp.sqrt(ratio * gain) * _normals(keys, n, x)
        return (x, new, log), None

    _, scale, std = relaxation_kernel(sde, x, grid[0])
    start = (x, jnp.zeros_like(x), jnp.log(scale / std))
    return scan_grid(step, start, grid)[0][0], grid.shape[0] - 1


def ancestral(
    keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array
) -> tuple[Array, Array | int]:
    """Ancestral sampling of DDPM (2006.11239, Algorithm 2), for any grid: one evaluation a step.

    Draws from the posterior of the state at t' given x at t and the denoised state D,

        N( (r s'^2 / s^2) x + (a' q / s^2) D,  q s'^2 / s^2 I ),    r = a / a',  q = s^2 - r^2 s'^2,

    its Eq. 6 and 7 for kernels (a, s) and (a', s'). That is `multistep_sde` of order 1.
    """
    return multistep_sde(keys, score, sde, x, grid, order=1)


def annealed_langevin(
    keys: Array,
    score: ScoreFn,
    sde: SDE,
    x: Array,
    grid: Array,
    *,
    repeats: Array,
    step: Array,
) -> tuple[Array, Array | int]:
    """Annealed Langevin dynamics of NCSN (1907.05600, Algorithm 1, with 2006.09011's step):

        x <- x + alpha s(x, t) + sqrt(2 alpha) z,    alpha = step v(t),

    `repeats` times at every time of the grid, the last included. `step` is epsilon / sigma_L^2, see
    `noise_levels.langevin_step`. The time is a level of noise only, so that any process will do;
    `variance_exploding` is that of NCSN.
    """

    def level(x: Array, n: Array, t: Array, t_next: Array) -> tuple[Array, None]:
        alpha = step * sde.variance(t)

        def move(i: Array, x: Array) -> Array:
            noise = jnp.sqrt(2 * alpha) * _normals(keys, n * repeats + i, x)
            return x + alpha * score(x, broadcast_time(t, x)) + noise

        return jax.lax.fori_loop(0, repeats, move, x), None

    levels = jnp.append(grid, grid[-1])  # one interval for each
    return scan_grid(level, x, levels)[0], repeats * grid.shape[0]


def _diffusion_ratio(sde: SDE, t: Array) -> Array:
    """g(t)^2 over that of the process's clock, saturation decay'(t); 1 for linear processes."""
    if sde.kernel is not None:
        return jnp.ones_like(t)
    rate = jax.jvp(sde.decay, (t,), (jnp.ones_like(t),))[1]
    return sde.diffusion(t) ** 2 / (sde.saturation * rate)


def _extrapolation(h: Array, h_last: Array) -> Array:
    """h / (2 h_last), the weight of the last difference in a second-order multistep method.

    0, first order, where there is no last step or one of under a tenth of this one.
    """
    usable = h_last > 0.1 * h
    return jnp.where(usable, 0.5 * h / jnp.where(usable, h_last, 1.0), 0.0)


def churned(
    keys: Array, sde: SDE, x: Array, n: Array, t: Array, length: Array
) -> tuple[Array, Array]:
    """Noised again before step n: one forward Euler-Maruyama step from t to t + length.

    The churn of 2206.00364, Algorithm 2, for any SDE. It keeps the marginal law (up to the Euler
    error), whatever the score, so that the flow that follows starts a little earlier from states
    that have forgotten some of the errors made so far. No evaluation of the score.

    Returns:
      The states [B, d] and their time t + length (a scalar).
    """
    h = broadcast_time(length, x)
    x = forward_step(sde, x, broadcast_time(t, x), h, _normals(keys, n, x))
    return x, t + length


def heun_flow(
    keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array, *, churn: Array | None = None
) -> tuple[Array, Array | int]:
    """Heun's method on the probability-flow ODE, two evaluations a step.

    churn: before each step but the first, this fraction of the step before is undone by `churned`.
    """
    velocity = probability_flow(sde, score)

    def step(
        carry: tuple[Array, Array], n: Array, t: Array, t_next: Array
    ) -> tuple[tuple[Array, Array], None]:
        x, last_t = carry
        start = t
        if churn is not None:
            x, start = churned(keys, sde, x, n, t, churn * (last_t - t))
        x = heun_step(velocity, x, broadcast_time(start, x), broadcast_time(t_next, x))
        return (x, t), None

    return scan_grid(step, (x, grid[0]), grid)[0][0], 2 * (grid.shape[0] - 1)


def multistep_flow(
    keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array, *, churn: Array | None = None
) -> tuple[Array, Array | int]:
    """Second-order multistep on the probability-flow ODE in the clock, one evaluation a step.

    Adams-Bashforth for dX/dc = (dX/dt) / c'(t), c = `SDE.clock`:

        x <- x + h F~,    F~ = F + h / (2 h_last) (F - F_last),    F = velocity / c'(t),

    with h the decrease of c. Equal clock steps leave F nearly linear: early in noising it is half
    the distance to the denoised state, late it relaxes at the process's own rate. The first step is
    of first order. Stable for h < 2 (10 steps on the default grid).

    churn: as `heun_flow`.
    """
    velocity = probability_flow(sde, score)

    def step(
        carry: tuple[Array, Array, Array, Array], n: Array, t: Array, t_next: Array
    ) -> tuple[tuple[Array, Array, Array, Array], None]:
        x, last, last_clock, last_t = carry
        start = t
        if churn is not None:
            x, start = churned(keys, sde, x, n, t, churn * (last_t - t))
        clock, rate = jax.jvp(sde.clock, (start,), (jnp.ones_like(start),))
        new = velocity(x, broadcast_time(start, x)) / rate
        h = clock - sde.clock(t_next)
        weight = _extrapolation(h, last_clock - clock)
        return (x + h * (new + weight * (new - last)), new, clock, t), None

    carry = (x, jnp.zeros_like(x), sde.clock(grid[0]), grid[0])
    return scan_grid(step, carry, grid)[0][0], grid.shape[0] - 1


def adaptive_flow(
    keys: Array, score: ScoreFn, sde: SDE, x: Array, grid: Array, *, rtol: Array, atol: Array
) -> tuple[Array, Array | int]:
    """Tsit5 with error control on the probability-flow ODE in log t, by diffrax; keys not used.

    Of the grid only its ends and its number of steps count, which sets the first step. Every sample
    has its own steps; the chunk runs until the last one is done. rtol, atol: as diffrax's
    PIDController, in units of x.

    Returns:
      x [B, d] and the evaluations of each sample [B]: one, and six a step tried.

    Raises:
      ValueError: diffrax is not installed.
    """
    try:
        import diffrax
    except ImportError as error:
        raise ValueError(
            "sample.sampler='adaptive_flow' needs diffrax: pip install 'ndsm_jax[diffrax]', or"
            " choose another sampler"
        ) from error
    velocity = probability_flow(sde, score)

    def slope(log_t: Any, x: Array, args: Any) -> Array:
        t = jnp.exp(log_t)
        return -t * velocity(x[None], t[None])[0]

    start, end = jnp.log(grid[0]), jnp.log(grid[-1])

    def solve(x: Array) -> tuple[Array, Array]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Tsit5(),
            t0=start,
            t1=end,
            dt0=(end - start) / (grid.shape[0] - 1),
            y0=x,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        )
        assert solution.ys is not None
        return solution.ys[0], 1 + 6 * solution.stats["num_steps"]

    with jax.numpy_rank_promotion("allow"):  # diffrax relies on it
        return jax.vmap(solve)(x)


def denoise(score: ScoreFn, sde: SDE, x: Array, t: Array) -> Array:
    """The posterior mean E[Y_0 | Y_t = x] at a scalar time t: [B, d] -> [B, d].

    Tweedie's formula for the local kernel, m + (x - m + s^2 score) / a: exact for linear
    processes, otherwise to first order in t, x - t b + v(t) score.
    """
    centre, scale, std = relaxation_kernel(sde, x, t)
    return centre + (x - centre + std**2 * score(x, broadcast_time(t, x))) / scale


SAMPLERS: dict[str, Callable[..., tuple[Array, Array | int]]] = {
    "reverse_sde": reverse_sde,
    "multistep_sde": multistep_sde,
    "ancestral": ancestral,
    "annealed_langevin": annealed_langevin,
    "heun_flow": heun_flow,
    "multistep_flow": multistep_flow,
    "adaptive_flow": adaptive_flow,
}

EVALUATIONS_PER_STEP = {
    "reverse_sde": 1,
    "multistep_sde": 1,
    "ancestral": 1,
    "heun_flow": 2,
    "multistep_flow": 1,
}

CHURNED = ("heun_flow", "multistep_flow")


def evaluations(sampler: str, num_steps: int) -> int | None:
    """Evaluations of the score for a sample on a grid of `num_steps`, the denoising step included.

    The last of the grid's steps is the denoising one. None for `adaptive_flow`, which decides as it
    goes, and `annealed_langevin`, which repeats its steps (`sample` logs what they took).
    """
    per_step = EVALUATIONS_PER_STEP.get(sampler)
    return None if per_step is None else per_step * (num_steps - 1) + 1


def sampler_options(
    sampler: str,
    *,
    churn: float = 0.0,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    langevin_steps: int = 5,
) -> dict[str, float]:
    """Those of the options that the sampler takes. No churn is no option: it costs nothing.

    Raises:
      ValueError: unknown sampler, or churn with one that has none.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sample.sampler={sampler!r}: choose one of {', '.join(SAMPLERS)}")
    if churn and sampler not in CHURNED:
        raise ValueError(
            f"sample.churn={churn}: {sampler} has none; set it to 0, or choose sample.sampler from"
            f" {', '.join(CHURNED)}"
        )
    if sampler == "adaptive_flow":
        return {"rtol": rtol, "atol": atol}
    if sampler == "annealed_langevin":
        return {"repeats": langevin_steps}
    return {"churn": churn} if churn else {}


def _sample_keys(root: Array, i: Array) -> tuple[Array, Array, Array]:
    """Keys of sample i of the stream `root`: of its component, its place in there, its path."""
    start, path = jax.random.split(jax.random.fold_in(root, i))
    component, noise = jax.random.split(start)
    return component, noise, path


@jax.jit
def start_components(root: Array, index: Array, log_weights: Array) -> Array:
    """Components from which samples number `index` [B] of the stream `root` start: int32 [B].

    Drawn with probabilities softmax(log_weights), log_weights [K] or one row a sample [B, K]. With
    the prior's own `log_weights` they are those that `sample` uses when no components are given.
    """
    log_weights = jnp.broadcast_to(log_weights, (*index.shape, log_weights.shape[-1]))
    keys = jax.vmap(partial(_sample_keys, root))(index)[0]
    return jax.vmap(jax.random.categorical)(keys, log_weights)


@partial(jax.jit, static_argnames=("sampler",))
def sample_chunk(
    root: Array,
    index: Array,
    components: Array,
    score: ScoreFn,
    sde: SDE,
    grid: Array,
    options: dict[str, float],
    *,
    sampler: str,
) -> tuple[Array, Array]:
    """Samples number `index` [B] of the stream `root`: [B, d], on an increasing grid [n + 1].

    From `components` [B] of the prior at T to the first time of the grid by `sampler`, then one
    `denoise` step to 0. Also returns the mean number of evaluations of the score for a sample (a
    scalar).

    A process that is `standardised` starts from N(0, I), runs in the coordinates of each sample's
    component with the score of that component, and ends in those of the data.
    """
    _, noise_keys, path_keys = jax.vmap(partial(_sample_keys, root))(index)
    x = jax.vmap(lambda key: jax.random.normal(key, (sde.dim,)))(noise_keys)

    def backwards(keys: Array, score: ScoreFn, x: Array) -> tuple[Array, Array]:
        x, count = SAMPLERS[sampler](keys, score, sde, x, jnp.flip(grid[1:]), **options)
        return denoise(score, sde, x, grid[1]), 1 + jnp.mean(jnp.asarray(count, jnp.float32))

    if not sde.standardised:
        return backwards(path_keys, score, sde.prior.sample_component(components, x))

    def one(key: Array, component: Array, x: Array) -> tuple[Array, Array]:
        def given(y: Array, t: Array) -> Array:
            return score(y, t, jnp.full(t.shape, component))  # type: ignore[call-arg]

        x, count = backwards(key[None], given, x[None])
        return x[0], count

    x, count = jax.vmap(one)(path_keys, components, x)
    return sde.prior.sample_component(components, x), jnp.mean(count)


def sample(
    key: Array,
    score: ScoreFn,
    sde: SDE,
    num: int,
    *,
    grid: np.ndarray,
    sampler: str = "reverse_sde",
    churn: float = 0.0,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    langevin_steps: int = 5,
    components: np.ndarray | None = None,
    chunk: int = 500,
    progress: bool = False,
) -> np.ndarray:
    """Draws `num` samples, `chunk` at a time in bounded memory: [num, d].

    Sample i depends on `key`, i and its component alone, not on `num` or `chunk` (up to rounding).

    Args:
      key: typed PRNG key.
      score: s(y [B, d], t [B]) -> [B, d]; a `ScoreModel.bind(params)`, or any function. For a
        process that is `standardised` it has a third argument, the component of each row [B].
      sde: the noising process.
      num: number of samples.
      grid: increasing times [n + 1] from 0, see `integrators.time_grid`.
      sampler: a key of `SAMPLERS`.
      components: components of the prior to start from, integers [num]; drawn by their weights
        if None. Their choice conditions the samples, see docs/conditioning.md.
      churn: fraction of each step that is undone first, for the samplers in `CHURNED`.
      rtol, atol: relative and absolute tolerance of `adaptive_flow`.
      langevin_steps: steps of `annealed_langevin` at each level; their length follows from it and
        the mean ratio of the grid's levels.
      chunk: samples in memory at a time.
      progress: whether to show a progress bar, and at the end to log the evaluations used.

    Raises:
      ValueError: an option that the sampler does not take, see `sampler_options`, num or chunk less
        than 1, or components that do not exist.
    """
    if num < 1 or chunk < 1:
        raise ValueError(f"sample: num and chunk must be at least 1, got {num} and {chunk}")
    options = sampler_options(
        sampler, churn=churn, rtol=rtol, atol=atol, langevin_steps=langevin_steps
    )
    if sampler == "annealed_langevin":
        ends = np.asarray(sde.std(jnp.asarray(grid)[jnp.array([1, -1])]), np.float64)
        ratio = (ends[1] / ends[0]) ** (1 / max(1, len(grid) - 2))
        options["step"] = langevin_step(float(ratio), langevin_steps)
    score = score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)
    if components is not None:
        _check_components(components, num, sde.prior.num_components)
    chunk = min(chunk, num)
    times = jnp.asarray(grid)
    done, counts = [], []
    with tqdm(total=num, desc="sampling", unit=" samples", disable=not progress) as bar:
        for start in range(0, num, chunk):
            index = jnp.arange(start, start + chunk, dtype=jnp.uint32)
            if components is None:
                started = start_components(key, index, sde.prior.log_weights)
            else:
                rest = np.asarray(components[start : start + chunk], np.int32)
                started = jnp.asarray(np.pad(rest, (0, chunk - len(rest))))
            x, count = sample_chunk(
                key, index, started, score, sde, times, options, sampler=sampler
            )
            done.append(np.asarray(x)[: num - start])
            counts.append(float(count))
            bar.update(len(done[-1]))
    if progress:
        logger.info("%s: %.4g evaluations of the score a sample", sampler, np.mean(counts))
    return np.concatenate(done)


def _check_components(components: np.ndarray, num: int, num_components: int) -> None:
    components = np.asarray(components)
    if components.shape != (num,) or not np.issubdtype(components.dtype, np.integer):
        raise ValueError(
            f"components of shape {components.shape} and type {components.dtype}: one integer for"
            f" each of the {num} samples is needed"
        )
    wrong = components[(components < 0) | (components >= num_components)]
    if wrong.size:
        raise ValueError(
            f"component {wrong[0]}: the prior has {num_components} components, numbered from 0 to"
            f" {num_components - 1}"
        )
