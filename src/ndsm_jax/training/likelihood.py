"""How likely items are by a trained model, in the coordinates of the data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from tqdm import tqdm

from ndsm_jax import conditions, frames, likelihood
from ndsm_jax.checks import COUNT, FLAG, SEEDS, STEPS, arguments
from ndsm_jax.conditions import Classes, joined
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Frame
from ndsm_jax.likelihood import Flow, LogProb, Method
from ndsm_jax.references import GaussianMixture, Reference
from ndsm_jax.training.state import STREAM_LIKELIHOOD, TrainState

SMALLEST_SHARE = 1e-4
"""Of a component in an item: those with less are left out of the sum over components."""

FAR = 1e9
"""Of a state: what lies farther out has no density in float32, where a log density is a difference
of squares, and nobody has trained a network there."""

DRAWS = 4
"""Of the state of an item, where its frame draws it."""


@arguments(
    experiment=Experiment,
    state=TrainState,
    x="numbers [n, D]",
    seed=SEEDS,
    method=Method,
    steps=STEPS,
    draws=COUNT,
    ema=FLAG,
    chunk=COUNT,
    progress=FLAG,
)
def log_prob(
    experiment: Experiment,
    state: TrainState,
    x: Any,
    *,
    condition: Any = None,
    seed: int = 0,
    method: Method | None = None,
    steps: int | None = None,
    draws: int = DRAWS,
    ema: bool = True,
    chunk: int = 100,
    progress: bool = True,
) -> LogProb:
    """log p of items x [n, D] by a trained model: nats, of a density in the units of the data.

    That of the states, see `likelihood`, plus `Frame.log_det`: [n] float64 each. Before the last
    time of sampling the score is that at this time. Of frames that are no change of variables:

    - Where states live in a component it is log sum_c w_c p(x | c), over all components with a
      share of `SMALLEST_SHARE` or more in x. To leave out the others makes it smaller, not larger.
    - Where the frame draws the state, as `frames.Pixels` does, it is the mean over draws, which
      bounds the log probability of the levels of x from below (1511.01844, Section 3.1).
    - An item so far out that float32 has no density there (`FAR`) has -inf.
    - A constant feature has no density. What the model thinks of it counts, in units of the states.

    Args:
      experiment: its parts.
      state: of its training.
      x: items, finite.
      condition: what the network is told of them, a pytree of [n, ...], for log p(x | condition);
        by default nothing, as of the items that `Experiment.dropout` left out, for log p(x).
      seed: of probes, paths and draws.
      method: `likelihood.Flow()` if None.
      steps: of its grid; by default as many as are good for it.
      draws: of the state of an item, where the frame draws it.
      ema: whether to use the average of the parameters.
      chunk: states in memory at a time (times probes, or paths).
      progress: whether to show a progress bar.

    Raises:
      ValueError: as `check_density`; a condition that is not that of the experiment; draws or a
        chunk below 1.
    """
    method = method or Flow()
    check_density(experiment, x, method=method, told=condition is not None)
    if condition is None and experiment.model.condition is not None:
        nothing = conditions.null(experiment.model.condition)
        condition = jax.tree.map(lambda c: np.repeat(c, len(x), axis=0), nothing)
    condition = experiment.checked("log_prob", condition, len(x))
    start, log_weights = class_start(experiment, condition)
    process, key = experiment.process, jax.random.fold_in(jax.random.key(seed), STREAM_LIKELIHOOD)
    first = jnp.stack([jnp.asarray(experiment.sample_grid[1]), process.horizon])
    variance = np.asarray(process.clock.variance(first))
    grid = method.times(process, steps, float(variance[0] / variance[1]))
    score = experiment.model.bind(state.chosen if ema else state.params)
    places = [
        _placed(experiment.frame, x, y, condition, log_weights)
        for y in _visits(experiment.frame, x, draws, seed)
    ]
    found = []
    total = sum(len(place.y) for place in places)
    with tqdm(total=total, desc="log p", unit=" states", disable=not progress) as bar:
        for i, place in enumerate(places):
            if not len(place.y):
                found.append(place.sum(LogProb(np.zeros(0), np.zeros(0))))
                continue
            of_states = likelihood.log_prob(
                jax.random.fold_in(key, i),
                score,
                process,
                place.y,
                method=method,
                grid=grid,
                condition=place.condition,
                start=start,
                chunk=chunk,
                on_chunk=bar.update,
            )
            found.append(place.sum(of_states))
    return _over_draws(found)


def class_start(experiment: Experiment, labels: Any) -> tuple[Partial | None, np.ndarray | None]:
    """Where items of their classes start: a law at the horizon, or weights [n, K] in the frame."""
    classes, mixture = experiment.classes, experiment.components
    if classes is None or classes.log_weights is None or mixture is None:
        return None, None
    if frames.component_mixture(experiment.frame) is not None:
        return None, np.asarray(classes.start_log_weights(labels), np.float64)
    return Partial(_class_log_prob, mixture, classes), None


def _class_log_prob(mixture: GaussianMixture, classes: Classes, y: Array, labels: Array) -> Array:
    parts = classes.start_log_weights(labels) + mixture.component_log_prob(y)
    return jax.nn.logsumexp(parts, axis=-1)


def log_prob_of_states(
    experiment: Experiment,
    x: Any,
    log_density: Callable[[np.ndarray], Any],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> LogProb:
    """The same for a density in place of the model's: of the draws of the states, and in the units.

    Args:
      experiment: of its parts, the frame.
      x: items [n, D], finite.
      log_density: of states [n, d], outside of components; see `frames.outside`.
      seed, draws: as for `log_prob`.

    Raises:
      ValueError: as `check_density`.
    """
    check_density(experiment, x)
    outer = frames.outside(experiment.frame)
    found = []
    for y in _visits(experiment.frame, x, draws, seed):
        value = np.asarray(log_density(y), np.float64) + outer.log_det(x, None)
        found.append(LogProb(value, np.zeros(len(x))))
    return _over_draws(found)


def prior_log_prob(experiment: Experiment, x: Any, *, seed: int = 0, draws: int = DRAWS) -> LogProb:
    """The same for the law that sampling starts from: what a model that learnt nothing gives.

    Raises:
      ValueError: as `check_density`.
    """
    mixture = frames.component_mixture(experiment.frame)
    law = experiment.process.reference if mixture is None else mixture
    return log_prob_of_states(experiment, x, partial(_log_density, law), seed=seed, draws=draws)


@jax.jit
def _log_density(law: Reference, y: jax.Array) -> jax.Array:
    return jax.lax.map(law.log_prob, y, batch_size=256)


def check_density(
    experiment: Experiment, x: Any, *, method: Method | None = None, told: bool = False
) -> None:
    """Raises ValueError where items x [n, D] have no density, or none that is known.

    Items of another shape or not finite; velocities or an autoencoder in the frame; a reference
    whose density lacks its constant; a process that the method does not serve; a network that knows
    items by their condition alone, and is not `told` it.
    """
    frame, process = experiment.frame, experiment.process
    if experiment.model.condition is not None and not told and not experiment.dropout:
        raise ValueError(
            "log_prob: the network was always told the condition, so that it knows p(x | condition)"
            " alone; give log_prob the condition, or train with network.label_dropout=0.1"
        )
    (method or Flow()).check(process)
    width = frame.data_dim
    wrong = np.ndim(x) != 2 or width not in (None, np.shape(x)[1])
    if wrong or not len(x) or not np.isfinite(x).all():
        raise ValueError(
            f"log_prob: x of shape {np.shape(x)}; finite items [n, {width or 'D'}] are needed"
        )
    frame.log_det(x[:1], np.zeros(1, np.int32))
    dim = frames.states(frame, x[:1]).shape[1]
    if dim != process.dim:
        raise ValueError(
            f"log_prob: x has {dim} coordinates in its frame, and process {process.name!r} has"
            f" {process.dim}"
        )


def _visits(frame: Frame, x: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """States [n, d] of the items, outside of components; as many as there are to be averaged."""
    if draws < 1:
        raise ValueError(f"log_prob: draws={draws} must be at least 1")
    outer = frames.outside(frame)
    seeds = range(seed, seed + (draws if outer.random else 1))
    return [frames.states(outer, x, seed=each, by_item=True) for each in seeds]


class _Placed(NamedTuple):
    """States whose densities add up to those of n items.

    Attributes:
      y: states [m, d], those of an item one after another.
      condition: of each, or None.
      log_factor: log of w_c |det dy / dx| [m].
      item: of each, increasing [m]; one that has no state has no density either.
      num: of items, n.
    """

    y: np.ndarray
    condition: Any
    log_factor: np.ndarray
    item: np.ndarray
    num: int

    def sum(self, of_states: LogProb) -> LogProb:
        """log sum exp(log p + log_factor) of each item [n], and its standard error."""
        terms, error = of_states.value + self.log_factor, of_states.standard_error
        far = np.abs(self.y).max(axis=1, initial=0) > FAR
        terms, error = np.where(far, -np.inf, terms), np.where(far, 0.0, error)
        value, square = np.full(self.num, -np.inf), np.zeros(self.num)
        with np.errstate(invalid="ignore"):  # logarithms of no density
            np.logaddexp.at(value, self.item, terms)
            share = np.exp(terms - value[self.item])
        np.add.at(square, self.item, (np.where(far, 0.0, share) * error) ** 2)
        return LogProb(value, np.sqrt(square))


def _placed(
    frame: Frame, x: np.ndarray, y: np.ndarray, told: Any, log_weights: np.ndarray | None
) -> _Placed:
    """Items x [n, D], and their states y [n, d] outside of components, as states of the frame.

    `told` is their condition, `log_weights` [n, K] are those of the components, where they differ.
    """
    mixture = frames.component_mixture(frame)
    if mixture is None:
        return _Placed(y, told, frame.log_det(x, None), np.arange(len(x)), len(x))
    shares = np.asarray(jax.lax.map(mixture.responsibilities, jnp.asarray(y), batch_size=256))
    item, component = np.nonzero(shares >= min(SMALLEST_SHARE, 1 / mixture.num_components))
    component = component.astype(np.int32)
    states = np.asarray(mixture.standardise(jnp.asarray(component), jnp.asarray(y[item])))
    log_factor = np.asarray(mixture.log_weights, np.float64)[component]
    if log_weights is not None:
        log_factor = log_weights[item, component]
    condition = joined(component, jax.tree.map(lambda c: c[item], told))
    return _Placed(states, condition, log_factor + frame.log_det(x[item], component), item, len(x))


def _over_draws(found: list[LogProb]) -> LogProb:
    """The mean over draws of the states; a single draw has the error of its own."""
    if len(found) == 1:
        return found[0]
    values = np.stack([one.value for one in found])
    with np.errstate(invalid="ignore"):  # of items without a density
        error = values.std(axis=0, ddof=1) / len(found) ** 0.5
    return LogProb(values.mean(axis=0), np.where(np.isinf(values).any(axis=0), 0.0, error))
