"""The contract of a sampler: a way of running a noising process backwards, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.clock import Clock
from ndsm_jax.measurements import Measurement
from ndsm_jax.processes.process import Process, ScoreFn
from ndsm_jax.references.mixtures import GaussianMixture
from ndsm_jax.sampling.kernel import denoise

DEGENERATE = ("reverse_sde", "heun_flow", "multistep_flow", "adaptive_flow", "restart_flow")
"""Samplers that serve degenerate noise: they need E^T grad log p alone, through the reverse drift
or the probability flow."""


class State(NamedTuple):
    """The state of a sampler without a memory: x [B, d]."""

    x: Array


@runtime_checkable
class Sampler(Protocol):
    """What `driver.reverse` asks of a sampler: a frozen dataclass of options, and a pytree.

    A sampler of one's own inherits from this class, or merely has its methods. States x [B, d] go
    down decreasing times; row i is driven by keys[i] alone.

    Attributes:
      by_row: whether rows choose their own steps. Such a sampler is given one row at a time
        (B = 1), batched by `jax.vmap`, and all arrays of its state have the leading axis B.
      measurement: what is known of the samples, row by row; None: nothing, see `guidance`.
      particles: rows, one after the other, that become one sample in `finish`.
    """

    by_row: ClassVar[bool] = False
    measurement: Measurement | None = None
    particles: int = 1

    def check(self, process: Process) -> None:
        """Raises ValueError for a process that the sampler cannot serve, or a missing library."""
        return None

    def plan(self, process: Process, times: Array) -> tuple[Sampler, Array]:
        """The sampler with what it takes from the grid, and the times that it steps over.

        `times` [n] are those of the grid from T to its first positive one. Options that depend on
        them are filled in where they are not given, so planning twice changes nothing.
        """
        return self, times

    def levels(self, dim: int, smallest_variance: float) -> int | None:
        """How many times the grid should have where nobody says; None: it does not matter here.

        For states [B, dim], and a grid whose first positive time has `smallest_variance` v(T).
        """
        return None

    def start_log_weights(self, mixture: GaussianMixture) -> Array:
        """Of the components of the reference to start in: [K], or one a row [B, K]."""
        return mixture.log_weights

    def init(self, process: Process, x: Array, t: Array) -> Any:
        """The state at the first of the times: a NamedTuple with x [B, d] in its field `x`."""

    def step(
        self,
        process: Process,
        score: ScoreFn,
        keys: Array,
        state: Any,
        n: Array,
        t: Array,
        t_next: Array,
    ) -> Any:
        """The state after step n from t to t_next (scalars); keys [B], the same at every step."""

    def noise(self, process: Process, t: Array, t_next: Array) -> Array | None:
        """The deviation of the noise in a step that is Gaussian: scalar to scalar.

        Such a step goes to f(state, score(x, t)) + noise z, of one evaluation of the score, with
        z = `normals` (keys, n, r). None: it is of another kind.
        """
        return None

    def finish(self, process: Process, score: ScoreFn, keys: Array, state: Any, t: Array) -> Array:
        """The samples [B / particles, d], of the state at the last time: what `denoise` makes."""
        return denoise(score, process, state.x, t)

    def evaluations(self, num_steps: int) -> int | None:
        """Evaluations of the score for a sample on a grid of `num_steps`, denoising included.

        The last of the grid's steps is the denoising one. None where it depends on the sample: the
        state then has a field `evaluations` [B] that counts them, denoising excluded.
        """

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """Length of an explicit Euler step that is as stable as one of length `longest` here.

        Times the process's stiffness it must stay below 1. 0: no limit (the flow's velocity is not
        stiff).
        """
        return 0.0


class Step(NamedTuple):
    """What a hook is told, after a step.

    Attributes:
      n: number of the step, from 0.
      t: the time reached, in time units (a scalar).
      keys: for the hook's own random numbers in this step, one a row [B].
      condition: that of the rows, as given to the score; None without.
    """

    n: Array
    t: Array
    keys: Array
    condition: Any


Hook = Callable[[Array, Step], tuple[Array, Any]]
"""(x [B, d], step) -> (x [B, d], output), called after every step within the compiled loop.

The states go on from the x that it returns; outputs (any pytree, or None) are stacked.
"""

_HOOK = 0xFFFFFFFF
"""Stream of the hooks' keys: no step has this number."""


def normals(keys: Array, n: Array, dim: int, dtype: Any = jnp.float32) -> Array:
    """Standard normals of step n, row by row from its key, of the states' type: [B, dim]."""
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (dim,), dtype))(keys)


_CORRECTOR = 0xFFFFFFFE
"""Stream of the keys of `PredictorCorrector`'s own steps."""


def corrector_keys(keys: Array) -> Array:
    """Keys [B] of a stream that neither the predictor nor a hook uses."""
    return jax.vmap(lambda k: jax.random.fold_in(k, _CORRECTOR))(keys)


def hook_keys(keys: Array, n: Array) -> Array:
    """Keys [B] for a hook after step n, of a stream that no sampler uses."""
    return jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, _HOOK), n))(keys)


def extrapolation(h: Array, h_last: Array) -> Array:
    """h / (2 h_last), the weight of the last difference in a second-order multistep method.

    0, first order, where there is no last step or one of under a tenth of this one.
    """
    usable = h_last > 0.1 * h
    return jnp.where(usable, 0.5 * h / jnp.where(usable, h_last, 1.0), 0.0)


def check_full_noise(name: str, process: Process) -> None:
    """Raises ValueError where noise does not drive every coordinate, for samplers that need it."""
    if process.noisy is not None:
        raise ValueError(
            f"sample.sampler={name!r} needs noise on every coordinate, and that of"
            f" {process.name!r} drives {process.noise_dim} of {process.dim}; choose one of"
            f" {', '.join(DEGENERATE)}"
        )
