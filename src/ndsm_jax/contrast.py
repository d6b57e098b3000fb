"""A score guided away from a weaker one: classifier-free guidance and autoguidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ndsm_jax import checks
from ndsm_jax.checks import FUNCTION, SCORE, arguments, number
from ndsm_jax.conditions import Both, null
from ndsm_jax.processes.process import Process, as_pytree

Score = Callable[..., Array]
"""u(y [..., d], t [...]) -> [..., r], or u(y, t, condition), as samplers take it."""


@arguments(score=FUNCTION)
def untold(score: Score) -> Partial:
    """The score with `conditions.null` in the place of its condition: that of all items."""
    return Partial(_untold, as_pytree(score))


def _untold(score: Score, y: Array, t: Array, condition: Any) -> Array:
    return score(y, t, null(condition))


@arguments(score=FUNCTION)
def unconditional(score: Score) -> Partial:
    """A score that is told nothing (but by its frame), beside a condition that it does not see."""
    return Partial(_unconditional, as_pytree(score))


def _unconditional(score: Score, y: Array, t: Array, condition: Any) -> Array:
    return score(y, t, condition.frame) if isinstance(condition, Both) else score(y, t)


@arguments(
    score=SCORE,
    weaker=SCORE,
    process=Process,
    scale=number(low=0),
    low=number(low=0, high=1),
    high=number(low=0, high=1),
)
def extrapolated(
    score: Score,
    weaker: Score,
    process: Process,
    *,
    scale: float,
    low: float = 0.0,
    high: float = 1.0,
) -> Partial:
    """weaker + scale (score - weaker) where v(t) / v(T) is from `low` to `high`; else the score.

    2207.12598, Eq. 6, whose w is scale - 1; 2406.02507 for other weaker scores, 2404.07724 for the
    interval, outside of which the weaker score is not evaluated. Residual parametrisations of one
    reference differ by what their networks say: the reference's score, which both have, cancels in
    the difference, and is in the result once at any scale.
    """
    limits = jnp.array([low, high if high < 1 else jnp.inf])
    scores = as_pytree(score), as_pytree(weaker)
    return Partial(_extrapolated, *scores, process, jnp.float32(scale), limits)


@arguments(y="[..., d]", t="[...]")
def _extrapolated(
    score: Score,
    weaker: Score,
    process: Process,
    scale: Array,
    limits: Array,
    y: Array,
    t: Array,
    *condition: Any,
) -> Array:
    score, weaker = (
        checks.score("contrast.extrapolated", one, process.noise_dim) for one in (score, weaker)
    )
    strong = score(y, t, *condition)
    share = process.clock.variance(t) / process.clock.variance(process.horizon)
    inside = (limits[0] <= share) & (share <= limits[1])

    def guided(y: Array) -> Array:
        weak = weaker(y, t, *condition)
        return jnp.where(inside[..., None], weak + scale * (strong - weak), strong)

    return jax.lax.cond(jnp.any(inside), guided, lambda y: strong, y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """How far samples are guided away from a weaker score, and when: see `extrapolated`.

    Attributes:
      scale: 1 is off and costs nothing; 0 is the weaker score.
      low, high: of v(t) / v(T), the share of the noise.
      weaker: a score of the same process that takes the same conditions (autoguidance); None: the
        score itself, `untold` its condition (classifier-free guidance).
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    weaker: Score | None = None

    def __post_init__(self) -> None:
        checks.check("sample.guidance_scale", self.scale, number(low=0))
        checks.check("sample.guidance_low", self.low, number(low=0, high=1))
        checks.check("sample.guidance_high", self.high, number(low=0, high=1))
        checks.fields(self, weaker=FUNCTION)
        if not self.low < self.high:
            raise ValueError(
                f"sample.guidance_low={self.low} must lie below sample.guidance_high={self.high};"
                " 0 and 1 are all times"
            )

    @property
    def off(self) -> bool:
        """Whether it changes nothing."""
        return self.scale == 1

    @arguments(score=FUNCTION, process=Process)
    def __call__(self, score: Score, process: Process) -> Score:
        """The guided score, of states of the process."""
        if self.off:
            return score
        weaker = untold(score) if self.weaker is None else self.weaker
        return extrapolated(score, weaker, process, scale=self.scale, low=self.low, high=self.high)
