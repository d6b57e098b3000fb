"""An experiment: the parts that training and sampling need, as one pytree without a config."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax import conditions, frames, noising
from ndsm_jax.augmentation import Augment
from ndsm_jax.clock import time_coordinate
from ndsm_jax.conditions import Classes
from ndsm_jax.control_variates import Constant, ControlVariate, Estimator, Optimal
from ndsm_jax.frames import Frame
from ndsm_jax.integrators import ACCURATE, stable_grid, step_ratio, time_grid
from ndsm_jax.networks import (
    PRECONDITIONS,
    ScoreMLP,
    ScoreModel,
    balanced,
    described,
    harmonics,
    suited,
    weight_of,
)
from ndsm_jax.noising import NoisingFn, Probed
from ndsm_jax.objectives import OBJECTIVES, Objective, check_process, named
from ndsm_jax.optimisation import Optimiser, adam
from ndsm_jax.processes import Process
from ndsm_jax.references import GaussianMixture
from ndsm_jax.sampling import MultistepSDE, ReverseSDE, Sampler


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "process",
        "frame",
        "noising",
        "model",
        "control",
        "sampler",
        "sample_grid",
        "classes",
    ),
    meta_fields=("objective", "estimator", "optimiser", "dropout", "augment"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that training and sampling need besides data and parameters. Build it with `experiment`.

    Attributes:
      process: the noising process, in the coordinates of the frame.
      frame: from data to these coordinates, and back.
      noising: noises states.
      objective: what is minimised (static).
      model: the score, of parameters.
      control: eps(t) of objectives with a control variate.
      estimator: of what `control` learns from (static).
      optimiser: of the model's parameters, and their average (static).
      sampler: runs the process backwards.
      sample_grid: the times on which it does, [n + 1] from 0 to T.
      classes: what is known of the classes that the network is told, or None.
      dropout: share of the items of which training tells the network nothing (static).
      augment: (key, prepared data [B, m]) -> what a visit in training sees of them, [B, m], such as
        `augmentation.Mirrored`, or None; hashable (static).
    """

    process: Process
    frame: Frame
    noising: NoisingFn
    objective: Objective
    model: ScoreModel
    control: ControlVariate
    estimator: Estimator
    optimiser: Optimiser
    sampler: Sampler
    sample_grid: np.ndarray
    classes: Classes | None = None
    dropout: float = 0.0
    augment: Augment | None = None

    def checked(self, what: str, condition: Any, num: int) -> Any:
        """What the network is told of `num` items, in its types: see `conditions.check`."""
        known = len(self.classes) if self.classes else getattr(self.model.network, "classes", 0)
        return conditions.check(what, condition, self.model.condition, num, known or None)

    @property
    def components(self) -> GaussianMixture | None:
        """The mixture in one of whose components a sample starts, or None."""
        of_frame = frames.component_mixture(self.frame)
        if of_frame is not None:
            return of_frame
        reference = self.process.reference
        return reference if isinstance(reference, GaussianMixture) else None


def make_noising(
    objective: Objective,
    process: Process,
    grid: noising.Grid = 150,
    *,
    weight: noising.Weight | None = None,
) -> NoisingFn:
    """The way of noising that serves an objective, with its defaults: see `noising`."""
    if objective.noising == "path":
        return noising.path_windows(process, grid, weight=weight, companion=objective.controlled)
    if objective.noising == "linearised":
        return noising.linearised_windows(process, grid, weight=weight)
    if process.kernel is not None:
        return noising.exact_kernel(process, grid, weight=weight)
    return noising.local_steps(process, grid, weight=weight)


def experiment(
    process: Process,
    *,
    frame: Frame | None = None,
    objective: str | Objective = "path_dsm",
    noise: NoisingFn | None = None,
    network: Any = None,
    model: ScoreModel | None = None,
    control: ControlVariate | None = None,
    estimator: Estimator | None = None,
    optimiser: Optimiser | None = None,
    sampler: Sampler | None = None,
    sample_grid: noising.Grid | None = None,
    condition: Any = None,
    classes: Classes | None = None,
    dropout: float = 0.0,
    augment: Augment | None = None,
) -> Experiment:
    """Puts an experiment together; everything but the process has a default.

    Args:
      process: the noising process.
      frame: from data to the process's coordinates; by default the data are the states, or, for a
        process on a torus, angles of its period.
      objective: a key of `objectives.OBJECTIVES`, or an `objectives.Objective` of one's own.
      noise: a way of noising this process that serves it; by default `make_noising`, with the
        weight that goes with the model's preconditioning.
      network: of the default model, (y [n, d], c [n]) -> [n, r], see `networks`; of angles it gets
        cosines and sines [n, 2 d].
      model: the score of this process; by default one of `network`, by default a `ScoreMLP`, in
        local coordinates where the reference is a mixture of several components and the network
        has a third argument (`networks.takes_told`), else residual.
      control: eps(t), by default the closed form in 20 bins of time, for objectives that have one.
      estimator, optimiser: by default `Estimator()` and `optimisation.adam()`.
      sampler: by default `sampling.MultistepSDE()`, or `ReverseSDE()` where noise drives some
        coordinates only.
      sample_grid: times [n + 1], or a number of steps; by default 40, or as many more as the
        drift's stiffness needs, up to `integrators.MAX_STEPS`.
      condition: what the network is told of the items, see `conditions`; of these [N, ...] the
        structure, the shapes and the types count.
      classes: of its labels, where they are all that it is told; see `conditioning.classes`. With
        them samples need no condition.
      dropout: share of the items of which training tells it nothing, for classifier-free guidance.
      augment: of the training items at each visit, see `Experiment.augment`; by default none.

    Raises:
      ValueError: parts that do not go together: an objective or a sampler that cannot serve the
        process, a way of noising or a model of another process, or an objective that needs the
        `mu` that the way of noising does not give; a condition that is not the model's, or a
        dropout without one; angles, and a drift, a reference or a model that is not periodic.
    """
    if not isinstance(objective, Objective) and objective not in OBJECTIVES:
        raise ValueError(
            f"objective.name={objective!r}: choose one of {', '.join(OBJECTIVES)}, or give an"
            " objectives.Objective"
        )
    sampler = sampler or (MultistepSDE() if process.noisy is None else ReverseSDE())
    _check_serve(objective, sampler, process)
    name, kind = named(objective)
    frame = frame or _default_frame(process)
    period = _period(frame, process)
    if noise is None:
        simulated = kind.noising == "path" or process.kernel is None
        grid = np.asarray(_stable(process, 150, None) if simulated else time_grid(process, 150))
    else:
        _check_noise(name, kind, noise, process)
        grid = np.asarray(noise.times.grid)
    coordinate = time_coordinate(process.clock, process.horizon, "clock", first=float(grid[1]))
    if model is None:
        network = network or ScoreMLP(
            width=256,
            depth=5,
            skip=True,
            time_features=64,
            zero_output=True,
            outputs=process.noise_dim,
        )
        precondition = PRECONDITIONS["auto"](process=process, coordinate=coordinate)
        model = ScoreModel(
            network=network,
            dim=process.dim,
            precondition=suited(precondition, network),
            tells=None if frames.component_mixture(frame) is None else described(frame),
            features=None if period is None else harmonics(period),
            condition=None if condition is None else conditions.example(condition),
        )
    else:
        _check_model(model, process, period)
        if condition is not None:
            conditions.check("experiment", conditions.example(condition), model.condition, 1)
    if not 0 <= dropout < 1 or (dropout and model.condition is None):
        raise ValueError(
            f"experiment: dropout={dropout} is the share of items whose condition is left out; give"
            " a condition, and a share from 0 to below 1"
        )
    if noise is None:
        noise = make_noising(kind, process, grid, weight=weight_of(model.precondition))
        noise = balanced(noise, model.precondition)
    _check_stable(noise, model, frame)
    if kind.probe_from is not None and process.noise_dim >= kind.probe_from:
        noise = Probed(noising=noise)
    if control is None:
        control = Optimal(coordinate=coordinate, num_bins=20) if kind.controlled else Constant()
    if sample_grid is None and process.kernel is None:
        sample_grid = _stable(process, 40, sampler)
    elif sample_grid is None or isinstance(sample_grid, int):
        sample_grid = time_grid(process, sample_grid or 40)
    return Experiment(
        process=process,
        frame=frame,
        noising=noise,
        objective=kind,
        model=model,
        control=control,
        estimator=estimator or Estimator(),
        optimiser=optimiser or adam(),
        sampler=sampler,
        sample_grid=np.asarray(sample_grid, np.float32),
        classes=classes,
        dropout=dropout,
        augment=augment,
    )


def _stable(process: Process, fewest: int, sampler: Sampler | None) -> np.ndarray:
    """A grid whose explicit steps the process's stiffness allows. Raises ValueError for none."""

    def explicit_step(longest: float) -> float:
        return longest if sampler is None else sampler.explicit_step(longest, process.clock)

    aim = ACCURATE if sampler is None else 1.0
    grid = stable_grid(process, fewest, explicit_step=explicit_step, ratio=aim)
    ratio = step_ratio(process, grid, explicit_step)
    if ratio > 1 and process.known.stiffness is not None:
        raise ValueError(
            f"experiment: the longest of {len(grid) - 1} explicit steps is {ratio:.3g} times what"
            f" the stiffness of process {process.name!r} allows; raise a mixture's smallest"
            " variances (references.floored), or give a finer grid (noise, sample_grid)"
        )
    return grid


def _check_serve(objective: str | Objective, sampler: Sampler, process: Process) -> None:
    """Raises one ValueError for all of objective and sampler that cannot serve the process."""
    problems = []
    for check in (lambda: check_process(objective, process), lambda: sampler.check(process)):
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; and ".join(problems))


def _check_noise(name: str, objective: Objective, noise: NoisingFn, process: Process) -> None:
    """Raises ValueError for noise of another process, or without the mu that is needed."""
    of = getattr(noise, "process", None)
    if of is not None and not _same_dynamics(of, process):
        raise ValueError(
            f"experiment: noise is of another process ({of.name!r} of {of.dim} dimensions) than the"
            f" experiment's ({process.name!r} of {process.dim}); build it of the same one"
        )
    local = objective.noising == "local" and not getattr(noise, "stable", False)
    if objective.controlled or local:
        row = jax.ShapeDtypeStruct((1, process.dim), np.float32)
        if jax.eval_shape(lambda x0: noise(jax.random.key(0), x0), row).mu is None:
            other = "the same with stable=False"
            if not getattr(noise, "stable", False):
                other = "path_windows(..., companion=True)"
            raise ValueError(
                f"experiment: objective={name!r} needs mu, which this noise does not give; {other}"
                " does"
            )


def _default_frame(process: Process) -> Frame:
    period = process.known.period
    return frames.Identity() if period is None else frames.Angles(period=period)


def _period(frame: Frame, process: Process) -> float | None:
    """The period of the states, or None. Raises ValueError unless frame and process have one."""
    period, known = frames.period(frame), process.known.period
    if known is not None and period != known:
        raise ValueError(
            f"experiment: process {process.name!r} is on a torus of period {known:.6g}, and the"
            f" frame {type(frame).__name__} has"
            f" {'no period' if period is None else f'the period {period:.6g}'}; set data.frame to"
            " angles (frames.Angles, of the same period)"
        )
    if period is not None:
        remedy = (
            "choose process.name=wrapped with objective.name=dsm (processes.wrapped), or a"
            " reference.name that is periodic: uniform_torus, or an energy of yours"
        )
        kind = type(process.reference).__name__
        drift = Partial(_drift_halfway, process)
        _check_periodic(f"the drift of process {process.name!r}", drift, process, period, remedy)
        score = Partial(_reference_score, process)
        _check_periodic(f"the score of the reference, a {kind},", score, process, period, remedy)
    return period


def _drift_halfway(process: Process, y: Array) -> Array:
    return process.drift(y, jnp.broadcast_to(process.horizon / 2, y.shape[:-1]))


def _reference_score(process: Process, y: Array) -> Array:
    return process.reference.score(y)


def _seen_at_the_horizon(model: ScoreModel, horizon: Array, y: Array) -> Array:
    return model.sees(y, jnp.broadcast_to(horizon, y.shape[:-1]))[0]


@jax.jit
def _change(function: Partial, y: Array, there: Array) -> tuple[Array, Array]:
    """How much a function changes from y to there, and how large it is, [n, d] each -> scalars."""
    here = function(y)
    return jnp.abs(function(there) - here).max(), jnp.abs(here).max()


def _check_periodic(
    what: str, function: Partial, process: Process, period: float, remedy: str
) -> None:
    """Raises ValueError unless a function of states is the same a period on, at 32 of them."""
    rng = np.random.default_rng(0)
    y = period * rng.uniform(-0.5, 0.5, size=(32, process.dim))
    there = y + period * rng.choice((-1, 1), size=y.shape)
    difference, size = map(float, _change(function, jnp.float32(y), jnp.float32(there)))
    if not difference <= 1e-3 * size:  # beyond rounding, of the states too
        raise ValueError(
            f"data.frame='angles': {what} is not periodic, but changes by {difference:.3g} over a"
            f" period of {period:.6g}; {remedy}"
        )


def _check_model(model: ScoreModel, process: Process, period: float | None) -> None:
    """Raises ValueError for a model of another process, or of angles that is not periodic."""
    of = getattr(model.precondition, "process", None)
    if model.dim != process.dim or (of is not None and not _same_dynamics(of, process)):
        raise ValueError(
            f"experiment: the model is of another process (of {model.dim} dimensions) than the"
            f" experiment's ({process.name!r} of {process.dim}); build it of the same one"
        )
    if period is not None:
        seen = Partial(_seen_at_the_horizon, model, process.horizon)
        remedy = "give ScoreModel(features=networks.harmonics(period), ...)"
        _check_periodic("what the network sees", seen, process, period, remedy)


def _check_stable(noise: NoisingFn, model: ScoreModel, frame: Frame) -> None:
    """Raises ValueError for targets averaged over items with conditions of their own."""
    mixture = frames.component_mixture(frame)
    several = mixture is not None and mixture.num_components > 1
    if not getattr(noise, "stable", False):
        return
    if frames.period(frame) is not None:
        raise ValueError(
            "noising.stable averages over states by their distances, and those here are angles; set"
            " it to false"
        )
    if several or model.condition is not None:
        raise ValueError(
            "noising.stable averages targets over the minibatch, whose items have"
            f" {'components' if several else 'conditions'} of their own here; set it to false"
        )


def _same_dynamics(a: Process, b: Process) -> bool:
    """Whether two processes have one drift, noise and horizon, as built alike from equal arrays."""
    if a is b:
        return True
    of = [(p.drift, p.diffusion, p.noisy, p.horizon) for p in (a, b)]
    forms: list[Any] = [jax.tree.structure(parts) for parts in of]
    leaves = [jax.tree.leaves(parts) for parts in of]
    return forms[0] == forms[1] and all(map(np.array_equal, *leaves))
