"""Samplers made of others: with a corrector after every step, or going back up again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.checks import COUNT, check, fields, number
from ndsm_jax.clock import Clock
from ndsm_jax.processes.process import Process, ScoreFn
from ndsm_jax.sampling.flow import HeunFlow
from ndsm_jax.sampling.kernel import noised
from ndsm_jax.sampling.langevin import check_length, langevin
from ndsm_jax.sampling.reverse import MultistepSDE
from ndsm_jax.sampling.sampler import Sampler, check_full_noise, corrector_keys, normals


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """A sampler's steps, each followed by Langevin steps at the time reached (2011.13456, Alg. 1).

    x <- x + alpha s(x, t) + sqrt(2 alpha) z with alpha = 2 snr^2 v(t). The paper's Algorithms 4 and
    5 have 2 (snr |z| / |s|)^2 there, norms of the batch; for scores of noise, |z| / |s| is the
    noise's std(t), and samples stay independent.

    Attributes:
      corrector_steps: Langevin steps after each step.
      snr: r, the ratio of their drift to their noise.
      predictor: the sampler; not one whose rows choose their own steps.
    """

    corrector_steps: int = 1
    snr: float = 0.16
    predictor: Sampler = dataclasses.field(default_factory=MultistepSDE)

    def __post_init__(self) -> None:
        fields(self, predictor=Sampler)
        check("sample.corrector_steps", self.corrector_steps, COUNT)
        check("sample.snr", self.snr, number(above=0, high=0.9))
        _check_common_steps(self, self.predictor)

    def check(self, process: Process) -> None:
        """Refuses degenerate noise, as a Langevin step needs the whole score, and steps of the
        corrector that a component of the reference is too narrow for."""
        check_full_noise("predictor_corrector", process)

        def remedy(most: float) -> str:
            return f"lower sample.snr to at most {(most / 2) ** 0.5:.2g}"

        check_length("predictor_corrector", process, 2 * self.snr**2, remedy)
        self.predictor.check(process)

    def init(self, process: Process, x: Array, t: Array) -> Any:
        """See `Sampler`: the predictor's state."""
        return self.predictor.init(process, x, t)

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
        """See `Sampler`."""
        state = self.predictor.step(process, score, keys, state, n, t, t_next)
        alpha = 2 * self.snr**2 * process.clock.variance(t_next)
        own, first = corrector_keys(keys), n * self.corrector_steps
        x = langevin(score, own, state.x, first, t_next, alpha, self.corrector_steps)
        return state._replace(x=x)

    def evaluations(self, num_steps: int) -> int:
        """The predictor's, and `corrector_steps` a step."""
        predicted = self.predictor.evaluations(num_steps)
        assert predicted is not None
        return predicted + self.corrector_steps * (num_steps - 1)

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """The predictor's."""
        return self.predictor.explicit_step(longest, clock)


def _check_common_steps(sampler: Sampler, within: Sampler) -> None:
    if within.by_row:
        raise ValueError(
            f"{type(sampler).__name__}: rows of {type(within).__name__} choose their own steps;"
            " give another sampler"
        )
    if within.measurement is not None or type(within).plan is not Sampler.plan:
        outer, inner = type(sampler).__name__, type(within).__name__
        guided = f", or give {outer} to it" if within.measurement is not None else ""
        raise ValueError(
            f"{outer}: {inner} chooses times or scores of its own, which {outer} does not take"
            f" from it; give another sampler{guided}"
        )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartFlow(Sampler):
    """A flow that noises its states again and repeats a stretch of its way (2306.14878, Eq. 6).

    Having come down the grid to a time t_low, states are noised to t_high, exactly where the kernel
    is N(a y, s^2 I), by explicit steps elsewhere, and flow down again, `restarts` times. Noise
    contracts the errors made above t_low, and the flow's steps between make fewer new ones than
    those of the reverse SDE.

    Attributes:
      restarts: K.
      restart_low, restart_high: the stretch, as shares of the grid's steps, counted from the data.
      flow: a sampler of the flow; not one whose rows choose their own steps.
    """

    restarts: int = 1
    restart_low: float = 0.2
    restart_high: float = 0.5
    flow: Sampler = dataclasses.field(default_factory=HeunFlow)

    def __post_init__(self) -> None:
        fields(self, flow=Sampler)
        check("sample.restarts", self.restarts, COUNT)
        check("sample.restart_low", self.restart_low, number(low=0, high=1))
        check("sample.restart_high", self.restart_high, number(low=0, high=1))
        if not self.restart_low < self.restart_high:
            raise ValueError(
                f"sample.restart_low={self.restart_low} must lie below"
                f" sample.restart_high={self.restart_high}"
            )
        _check_common_steps(self, self.flow)

    def check(self, process: Process) -> None:
        """See `Sampler`."""
        self.flow.check(process)

    def _ends(self, intervals: int) -> tuple[int, int]:
        """The numbers of the steps, from the horizon, before which the stretch starts and ends."""
        start = min(round((1 - self.restart_high) * intervals), intervals - 1)
        return start, max(round((1 - self.restart_low) * intervals), start + 1)

    def plan(self, process: Process, times: Array) -> tuple[Sampler, Array]:
        """Down to the stretch's end, then up and down it again, then on."""
        start, end = self._ends(times.shape[0] - 1)
        again = jnp.concatenate([jnp.flip(times[start:end]), times[start + 1 : end + 1]])
        whole = [times[: end + 1], *[again] * self.restarts, times[end + 1 :]]
        return self, jnp.concatenate(whole)

    def init(self, process: Process, x: Array, t: Array) -> Any:
        """See `Sampler`: the flow's state."""
        return self.flow.init(process, x, t)

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
        """See `Sampler`. Up the times it noises, and the flow starts afresh."""

        def up(state: Any) -> Any:
            z = normals(keys, n, process.noise_dim, state.x.dtype)
            return self.flow.init(process, noised(process, state.x, t, t_next, z), t_next)

        def down(state: Any) -> Any:
            return self.flow.step(process, score, keys, state, n, t, t_next)

        return jax.lax.cond(t_next > t, up, down, state)

    def evaluations(self, num_steps: int) -> int:
        """The flow's, and those of the stretch for every restart."""
        start, end = self._ends(num_steps - 1)
        once, again = self.flow.evaluations(num_steps), self.flow.evaluations(end - start + 1)
        assert once is not None
        assert again is not None
        return once + self.restarts * (again - 1)

    def explicit_step(self, longest: float, clock: Clock) -> float:
        """The forward step."""
        return longest
