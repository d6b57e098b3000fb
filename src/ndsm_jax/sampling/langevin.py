"""Langevin dynamics at every level of noise, the sampler of NCSN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, fields, number
from ndsm_jax.integrators import broadcast_time
from ndsm_jax.processes.process import Process, ScoreFn
from ndsm_jax.sampling import noise_levels
from ndsm_jax.sampling.sampler import Sampler, State, check_full_noise, normals


def langevin(
    score: ScoreFn, keys: Array, x: Array, first: Array, t: Array, alpha: Array, steps: int
) -> Array:
    """`steps` unadjusted Langevin steps of length alpha at time t: [B, d] -> [B, d].

    x <- x + alpha s(x, t) + sqrt(2 alpha) z, with the normals number `first`, `first` + 1, ... of
    the keys.
    """

    def move(i: Array, x: Array) -> Array:
        z = normals(keys, first + i, x.shape[-1], x.dtype)
        return x + alpha * score(x, broadcast_time(t, x)) + jnp.sqrt(2 * alpha) * z

    return jax.lax.fori_loop(0, steps, move, x)


def check_length(
    name: str, process: Process, length: float, remedy: Callable[[float], str]
) -> None:
    """Raises ValueError where Langevin steps of length v(T) `length` empty a narrow component.

    For the Langevin dynamics of a mixture, whose narrowest component has 1 / stiffness in place of
    v: an explicit step must be shorter, as everywhere. `remedy`: of the longest such length.
    """
    if process.known.mixture is None or process.known.stiffness is None:
        return
    longest = process.clock.variance(process.horizon) * process.known.stiffness
    if isinstance(longest, jax.core.Tracer) or length * float(longest) < 1:
        return
    raise ValueError(
        f"sample.sampler={name!r}: its Langevin steps are {length * float(longest):.3g} times as"
        f" long as the narrowest component of the reference of {process.name!r} allows, and would"
        f" empty it; {remedy(0.99 / float(longest))}, or choose another sampler"
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics of NCSN (1907.05600, Algorithm 1, with 2006.09011's step):

        x <- x + alpha s(x, t) + sqrt(2 alpha) z,    alpha = length v(t),

    `langevin_steps` times at every time of the grid, the last included. The time is a level of
    noise only, so that any process whose noise drives all coordinates will do; `variance_exploding`
    is that of NCSN. Papers write alpha / 2 and sqrt(alpha) for the same step: their alpha is twice
    ours, docs/noise_levels.md.

    Attributes:
      langevin_steps: steps at each level.
      langevin_length: epsilon / sigma_L^2; 0: `noise_levels.langevin_step` for the mean ratio of
        the grid's levels.
    """

    langevin_steps: int = 5
    langevin_length: float = 0.0

    def __post_init__(self) -> None:
        fields(self, langevin_steps=COUNT, langevin_length=number(low=0))

    def check(self, process: Process) -> None:
        """Refuses degenerate noise: a Langevin step needs the whole score."""
        check_full_noise("annealed_langevin", process)

    def plan(self, process: Process, times: Array) -> tuple[Sampler, Array]:
        """The length of the steps, and the times with the last one twice: one interval for each.

        Raises:
          ValueError: no length is given and the times are traced by JAX; or a length that a
            component of the reference is too narrow for.
        """
        levels = jnp.append(times, times[-1])
        if self.langevin_length:
            self._check_length(process, self.langevin_length)
            return self, levels
        ends = process.clock.std(jnp.stack([times[-1], times[0]]))
        if isinstance(ends, jax.core.Tracer):
            raise ValueError(
                "AnnealedLangevin: the length of its steps is found by SciPy, outside of compiled"
                " code; give `langevin_length`, or what `plan` returns"
            )
        low, high = np.asarray(ends, np.float64)
        ratio = (high / low) ** (1 / max(1, len(times) - 1))
        length = noise_levels.langevin_step(float(ratio), self.langevin_steps)
        self._check_length(process, length)
        return dataclasses.replace(self, langevin_length=length), levels

    def _check_length(self, process: Process, length: float) -> None:
        def remedy(most: float) -> str:
            return f"set sample.langevin_length to at most {most:.2g}"

        check_length("annealed_langevin", process, length, remedy)

    def levels(self, dim: int, smallest_variance: float) -> int | None:
        """By Technique 2 of 2006.09011, from five dimensions on, where it has an answer."""
        if dim < noise_levels.FEWEST_DIMENSIONS:
            return None
        return noise_levels.num_levels(smallest_variance**0.5, 1.0, dim)

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
        """See `Sampler`. Stays at t."""
        if not self.langevin_length:
            raise ValueError("AnnealedLangevin: step needs a length; take the sampler of `plan`")
        alpha = self.langevin_length * process.clock.variance(t)
        first = n * self.langevin_steps
        return State(langevin(score, keys, state.x, first, t, alpha, self.langevin_steps))

    def evaluations(self, num_steps: int) -> int:
        """`langevin_steps` a level, and one to denoise."""
        return self.langevin_steps * num_steps + 1
