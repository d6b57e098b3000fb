"""From a `Config` and data to the parts of an `Experiment`."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ndsm_jax import conditions, frames, noising, plugins
from ndsm_jax.augmentation import Augment, Both, Mirrored, Shifted
from ndsm_jax.clock import loss_weight, time_coordinate
from ndsm_jax.conditions import Classes
from ndsm_jax.config.effect import has_effect
from ndsm_jax.config.names import PROCESSES
from ndsm_jax.config.own import checked, taken
from ndsm_jax.config.parts import Parts
from ndsm_jax.config.sections import PERCEPTUAL, Config
from ndsm_jax.control_variates import Constant, ControlVariate, Estimator, Learned, Optimal
from ndsm_jax.experiment import Experiment, experiment
from ndsm_jax.frames import Frame
from ndsm_jax.integrators import (
    ACCURATE,
    MAX_STEPS,
    SMALLEST_VARIANCE,
    chosen_integrator,
    default_smallest_variance,
    stable_grid,
    step_ratio,
    step_sizes,
    stiffness,
    time_grid,
)
from ndsm_jax.networks import (
    NETWORKS,
    PRECONDITIONS,
    EpsNet,
    Precondition,
    ScoreModel,
    balanced,
    described,
    harmonics,
    image_group,
    prior_mean,
    suited,
    takes_condition,
    takes_told,
    target_excess,
    weight_of,
)
from ndsm_jax.noising import NoisingFn
from ndsm_jax.noising.modes import typical_variances
from ndsm_jax.objectives import OBJECTIVES, check_process
from ndsm_jax.optimisation import Optimiser, make_optimiser
from ndsm_jax.processes import Process
from ndsm_jax.references import GaussianMixture, floored
from ndsm_jax.sampling import SAMPLERS, Sampler

logger = logging.getLogger(__name__)

MIN_NOISING_STEPS, MIN_SAMPLE_STEPS = 150, 40
"""Grid steps where a config leaves their number open."""


@runtime_checkable
class NetworkLike(Protocol):
    """What a network of the user's has: the methods of a Flax module that are called."""

    def init(self, *args: Any) -> Any:
        """(key, *inputs) -> params."""

    def apply(self, *args: Any) -> Any:
        """(params, *inputs) -> outputs [n, r]."""


def build(
    config: Config, shape: tuple[int, ...], parts: Parts, *, quiet: bool = False
) -> Experiment:
    """Builds an experiment for items of `shape` and what was fitted to them.

    Logs the numbers of steps that it chooses, unless it is to be `quiet`.

    Raises:
      ValueError: an objective that the process cannot serve, or contradicting settings.
    """
    process, frame = _process_and_frame(config, parts)
    check_process(config.objective.name, process)
    sampler = _sampler(config)
    sampler.check(process)
    level = logging.DEBUG if quiet else logging.INFO
    levels = sampler.levels(process.dim, config.sample.smallest_variance)
    sample_grid = _chosen_grid(level, process, config.sample, levels or MIN_SAMPLE_STEPS, sampler)
    if not _learns_levels(config, process):
        grid = _chosen_grid(level, process, config.noising, MIN_NOISING_STEPS)
    else:  # a network sees time on the grid that it was trained on, whatever it samples by later
        grid = sample_grid if parts.levels is None else np.asarray(parts.levels)
    local = OBJECTIVES[config.objective.name].noising in ("local", "state")
    first = (local and config.noising.loss_step) or float(grid[1])  # the smallest training time
    _check_grids(config, process, sampler, grid, sample_grid, first)
    late = logging.DEBUG if quiet else logging.WARNING
    of_noising = {} if _learns_levels(config, process) else {"noising": grid}
    _warn_of_late_starts(late, process, of_noising | {"sample": sample_grid})
    c = config.network
    coordinate = time_coordinate(process.clock, process.horizon, c.time, first=float(grid[1]))
    precondition = PRECONDITIONS[c.parameterisation](process=process, coordinate=coordinate)
    network = _network(config, shape, process, precondition, parts.classes)
    if c.parameterisation == "auto":
        precondition = suited(precondition, network)
    elif precondition.tells is not None and not takes_told(network):
        raise ValueError(
            f"network.parameterisation={c.parameterisation!r} tells the network the mean of the"
            f" state's component, and the call of {c.name!r} has no place for it; give it a third"
            " argument, told [n, d], or choose residual"
        )
    noise = _noising(config, process, grid, first, precondition, parts.starts)
    return experiment(
        process,
        frame=frame,
        objective=config.objective.name,
        noise=noise if parts.excess is None else balanced(noise, precondition, parts.excess),
        model=_model(config, shape, process, frame, precondition, network, parts.classes),
        control=_control(config, coordinate),
        estimator=_estimator(config),
        optimiser=_optimiser(config),
        sampler=sampler,
        sample_grid=sample_grid,
        classes=parts.classes,
        dropout=0.0 if parts.classes is None else c.label_dropout,
        augment=_augment(config, shape),
    )


def _learns_levels(config: Config, process: Process) -> bool:
    """Whether the times of training are those of the sampling grid."""
    return config.noising.times == "levels" and process.kernel is not None


def measured(config: Config, shape: tuple[int, ...], parts: Parts) -> tuple[Parts, Experiment]:
    """The parts with what is measured on the experiment's own paths and the levels that it is
    trained at, and the experiment of all.

    Raises:
      ValueError: as `build`, and paths that are not finite.
    """
    built = build(config, shape, parts)
    if _learns_levels(config, built.process):
        parts = dataclasses.replace(parts, levels=np.asarray(built.sample_grid))
    if config.noising.weight != "auto":
        return parts, built
    noise, precondition = built.noising, built.model.precondition
    excess = target_excess(noise, precondition)
    if excess is None:
        return parts, built
    built = dataclasses.replace(built, noising=balanced(noise, precondition, excess))
    return dataclasses.replace(parts, excess=excess), built


def _augment(config: Config, shape: tuple[int, ...]) -> Augment | None:
    data = config.data
    set_keys = {"data.flips": "false"} if data.flips else {}
    set_keys |= {"data.shifts": "0"} if data.shifts else {}
    if not set_keys or config.autoencoder.kind != "none":
        return None
    keys, verb = " and ".join(set_keys), "move" if len(set_keys) > 1 else "moves"
    off = " and ".join(f"{key} to {value}" for key, value in set_keys.items())
    if len(shape) != 3:
        raise ValueError(
            f"{keys} {verb} pixels of images, and data.name={data.name!r} has items of shape"
            f" {shape}; set {off}"
        )
    smaller = min(shape[:2])
    if data.shifts >= smaller:
        raise ValueError(
            f"data.shifts={data.shifts} moves images of {shape[0]} x {shape[1]} pixels out of"
            f" sight; set it to {f'at most {smaller - 1}, or ' if smaller > 1 else ''}0"
        )
    # Of images no other frame has a scale, or an angle, of each pixel.
    if data.frame in ("standardised", "angles"):
        raise ValueError(
            f"{keys}: with data.frame={data.frame!r} a pixel has a scale of its own, and another"
            f" where it goes to; set data.frame to shared, or {off}"
        )
    mirrored = Mirrored(shape=shape)
    if not data.shifts:
        return mirrored
    shifted = Shifted(shape=shape, pixels=data.shifts)
    return Both(first=mirrored, second=shifted) if data.flips else shifted


def _process_and_frame(config: Config, parts: Parts) -> tuple[Process, Frame]:
    c, reference, frame = config.process, parts.reference, parts.frame
    if plugins.is_plugin(c.name):
        horizon = {"horizon": c.horizon} if c.horizon else {}
        takes = inspect.signature(plugins.load(c.name, key="process.name").function).parameters
        if c.horizon and "horizon" not in takes:
            raise ValueError(
                f"process.horizon={c.horizon}: {c.name!r} has no parameter horizon; give it one, or"
                " leave process.horizon at 0"
            )
        made = plugins.call("process", c.name, c.options, reference, **horizon)
        wanted = "a processes.Process"
        made = checked("process", c.name, made, Process, wanted, reference.dim)
        return made, frame
    make = PROCESSES[c.name]
    of = reference if "reference" in inspect.signature(make).parameters else reference.dim
    framed = make(of, **taken(make, c))
    if isinstance(framed, tuple):
        return framed[0], frames.chained(frame, framed[1])
    return framed, frame


def resolvable(config: Config, parts: Parts) -> Parts:
    """The parts with a mixture's smallest variances raised to what `MAX_STEPS` steps resolve.

    Where the number of explicit steps is left to us and the drift's stiffness is known, and only as
    far as is needed.
    """
    sections = [c for c in (config.noising, config.sample) if not c.steps]
    fitted = parts.reference
    if not sections or not isinstance(fitted, GaussianMixture):
        return parts
    mixture = fitted
    for _ in range(5):  # the horizon follows the typical variance, which rises a little
        process, _ = _process_and_frame(config, dataclasses.replace(parts, reference=mixture))
        if process.kernel is not None or process.known.stiffness is None:
            return parts
        longest = max(float(np.diff(_section_grid(process, c, MAX_STEPS)).max()) for c in sections)
        if longest * stiffness(process) < 1:
            break
        mixture = floored(mixture, 1.1 * longest)
    raised, smallest = mixture.smallest_variance(), fitted.smallest_variance()
    if raised == smallest:
        return parts
    logger.info(
        "mixture: variances below %.3g (the smallest was %.3g, the typical is %.3g) are raised to"
        " it, as %d explicit steps resolve no less; a coarser mixture (fewer components, a larger"
        " mixture.min_covariance) or more steps (noising.steps, sample.steps) avoid it",
        raised,
        smallest,
        float(mixture.typical_variance()),
        MAX_STEPS,
    )
    return dataclasses.replace(parts, reference=mixture)


def _section_grid(process: Process, section: Any, steps: int) -> np.ndarray:
    """The time grid of the section noising or sample, with a number of steps: [steps + 1]."""
    smallest = section.smallest_variance
    return time_grid(process, steps, kind=section.grid, smallest_variance=smallest)


def _explicit(process: Process, sampler: Sampler | None) -> bool:
    """Whether explicit steps of the drift are taken at all: not where the kernel is known."""
    return process.kernel is None or (process.noisy is not None and sampler is not None)


def _explicit_step(process: Process, sampler: Sampler | None) -> Callable[[float], float] | None:
    if sampler is None:
        return None
    return lambda longest: sampler.explicit_step(longest, process.clock)


def _chosen_grid(
    level: int, process: Process, section: Any, fewest: int, sampler: Sampler | None = None
) -> np.ndarray:
    """The grid of as many steps as a section asks for, or as few as are stable (logged).

    Noising takes as many as Euler's steps would need, whatever its own are: exponential ones are
    exact within a component of one variance, and no better than Euler's between two of different
    ones.
    """
    steps = section.steps or fewest
    if section.steps or not _explicit(process, sampler):
        return _section_grid(process, section, steps)
    grid = stable_grid(
        process,
        fewest,
        explicit_step=_explicit_step(process, sampler),
        make=lambda steps: _section_grid(process, section, steps),
        ratio=ACCURATE if sampler is None else 1.0,
    )
    ratio = step_ratio(process, grid, _explicit_step(process, sampler))
    if len(grid) - 1 > fewest:
        logger.log(
            level,
            "%s.steps: %d, as the stiffness of %s, %.3g per unit of time%s, needs explicit steps"
            " shorter than those of %d%s",
            "noising" if sampler is None else "sample",
            len(grid) - 1,
            process.name,
            stiffness(process),
            " (a guess by its reference)" if process.known.stiffness is None else "",
            fewest,
            f"; they make the narrowest variance {100 * ratio / (2 - ratio):.0f} % too large, and"
            " more would make it less"
            if sampler is None and ACCURATE < ratio < 1 and _is_euler(process, section)
            else "",
        )
    return grid


def _is_euler(process: Process, section: Any) -> bool:
    return chosen_integrator(process, section.integrator) == "euler"


def _noising_step(process: Process, section: Any) -> Callable[[float], float] | None:
    """Of the longest step of the simulation, the eta of `step_sizes` where it is longest: that of a
    path from the widest component, which is explicit in the drift of the others."""
    if _is_euler(process, section):
        return None
    mixture, at = process.known.mixture, jnp.asarray(process.horizon)
    widest = None if mixture is None else jnp.max(typical_variances(mixture))

    def eta(longest: float) -> float:
        h = jnp.asarray(longest)
        return float(step_sizes(process, at, h, integrator="exponential", variance=widest)[0])

    return eta


def _check_grids(
    config: Config,
    process: Process,
    sampler: Sampler,
    grid: np.ndarray,
    sample_grid: np.ndarray,
    first: float,
) -> None:
    """Raises ValueError where explicit steps are unstable, or sampling visits untrained times."""
    if sample_grid[1] < 0.99 * first:
        remedy = "lower noising.smallest_variance"
        if _learns_levels(config, process):
            remedy = "train another run, as with noising.times=levels one keeps its first grid"
        raise ValueError(
            f"sampling would start its last step at t = {sample_grid[1]:.3g}, but the smallest"
            f" trained time is {first:.3g}; raise sample.smallest_variance (lower sample.steps on a"
            f" uniform grid), or {remedy}"
        )
    for section, times, by in (("noising", grid, None), ("sample", sample_grid, sampler)):
        step = _explicit_step(process, by) if by else _noising_step(process, config.noising)
        ratio, num_steps = step_ratio(process, times, step), len(times) - 1
        if ratio <= 1 or not _explicit(process, by):
            continue
        needed = int(np.ceil(1.1 * ratio * num_steps))
        if process.known.stiffness is None:
            logger.warning(
                "%s.steps: %d may be too few for %s, whose stiffness is not known: by that of its"
                " reference it needs %d (processes.Known(stiffness=...) says it)",
                section,
                num_steps,
                process.name,
                needed,
            )
            continue
        chosen = getattr(config, section).steps == 0
        remedy = "lower the drift's stiffness" if chosen else f"or {section}.steps to 0"
        if isinstance(process.reference, GaussianMixture) and not chosen:
            remedy += ", which chooses it and raises a mixture's smallest variances where needed"
        raise ValueError(
            f"the longest step of {section}.steps={num_steps} is {ratio:.3g} times what the"
            f" stiffness of {process.name!r} allows an explicit one; set {section}.steps to about"
            f" {needed}, {remedy}"
        )


def _warn_of_late_starts(level: int, process: Process, grids: Mapping[str, np.ndarray]) -> None:
    """Where a process that only adds noise has much of it by the first time: its v(T), of which the
    config sets a share, may be any number of times the data's variance."""
    wanted = default_smallest_variance(process)
    if wanted == SMALLEST_VARIANCE:
        return
    largest = process.clock.variance(process.horizon)
    for section, grid in grids.items():
        first = process.clock.variance(jnp.asarray(grid[1]))
        if first > 10 * wanted * largest:
            logger.log(
                level,
                "%s: at the first time of %s the noise has the variance %.2g already, which hides"
                " what is finer in the data; lower %s.smallest_variance, to about %.2g for data of"
                " unit variance",
                section,
                process.name,
                first,
                section,
                wanted,
            )


def _noising(
    config: Config,
    process: Process,
    grid: np.ndarray,
    first: float,
    precondition: Precondition,
    starts: Array | None,
) -> NoisingFn:
    c, objective = config.noising, OBJECTIVES[config.objective.name]
    perceptual = c.weight == PERCEPTUAL
    if perceptual and objective.noising != "linearised":
        raise ValueError(
            f"noising.weight={PERCEPTUAL!r} is the covariance of a linearised window, which"
            f" objective.name={config.objective.name!r} does not have; choose another weight, or"
            " objective.name=local_dsm"
        )
    common: dict[str, Any] = {
        "k": c.k,
        "times": noising.time_law(process.clock, grid, kind=c.times, stratified=c.stratified),
        "weight": None if perceptual else _weight(c.weight, process, precondition),
    }
    if c.noises > 1 and objective.noising != "local":
        raise ValueError(
            f"noising.noises={c.noises} share one mu, which objective.name="
            f"{config.objective.name!r} does not have; set it to 1, or choose ndsm or ndsm_cv"
        )
    if objective.noising == "path":
        return noising.path_windows(
            process,
            grid,
            window=c.window,
            weights=c.path_weights,
            curvature=c.curvature,
            companion=objective.controlled,
            simulation=c.simulation,
            integrator=c.integrator,
            **common,
        )
    if objective.noising == "linearised":
        return noising.linearised_windows(
            process,
            grid,
            schedule=c.schedule,
            gap=c.gap,
            tolerance=c.tolerance,
            jacobian=c.jacobian,
            perceptual=perceptual,
            x0=starts,
            simulation=c.simulation,
            integrator=c.integrator,
            **common,
        )
    stable = c.stable and objective.averages
    if process.kernel is not None:
        return noising.exact_kernel(process, grid, first=first, stable=stable, **common)
    return noising.local_steps(
        process,
        grid,
        noises=c.noises,
        loss_step=c.loss_step,
        loss_fraction=c.loss_fraction,
        stable=stable,
        simulation=c.simulation,
        integrator=c.integrator,
        **common,
    )


def _weight(kind: str, process: Process, precondition: Precondition) -> noising.Weight:
    return weight_of(precondition) if kind == "auto" else loss_weight(process.clock, kind)


def _model(
    config: Config,
    shape: tuple[int, ...],
    process: Process,
    frame: Frame,
    precondition: Precondition,
    network: Any,
    classes: Classes | None,
) -> ScoreModel:
    c = config.network
    in_component = frames.component_mixture(frame) is not None
    group = image_group(c.symmetry, shape)
    if group is not None and (in_component or process.dim != int(np.prod(shape))):
        raise ValueError(
            f"network.symmetry={c.symmetry!r} acts on whole images, and the states of process"
            f" {config.process.name!r} are not; use 'none'"
        )
    tells = described(frame) if in_component else None
    if c.prior_mean:
        mixture = process.reference
        alone = isinstance(mixture, GaussianMixture) and mixture.num_components == 1
        if in_component or alone or not isinstance(mixture, GaussianMixture):
            raise ValueError(
                f"network.prior_mean tells the network nothing new with process.name="
                f"{config.process.name!r}, which has not several components to tell of; set it to"
                " false"
            )
        tells = prior_mean(mixture)
    period = frames.period(frame)
    return ScoreModel(
        network=network,
        dim=process.dim,
        precondition=precondition,
        tells=tells,
        features=None if period is None else harmonics(period, c.harmonics),
        group=group,
        condition=None if classes is None else conditions.example(np.zeros(1, np.int32)),
    )


def _network(
    config: Config,
    shape: tuple[int, ...],
    process: Process,
    precondition: Precondition,
    classes: Classes | None,
) -> Any:
    c = config.network
    own = plugins.is_plugin(c.name)
    given = {
        **vars(c),
        "shape": shape,
        "outputs": process.noise_dim,
        "zero_output": precondition.starts_at_zero,
        "dtype": jnp.dtype(c.dtype),
        "classes": 0 if classes is None else len(classes),
    }
    if own:
        # Of what we know, a network of the user's gets what it asks for by name.
        offered = {key: given[key] for key in ("shape", "outputs", "zero_output", "classes")}
        made = plugins.call("network", c.name, c.options, **offered)
        wanted = "a Flax module (init and apply)"
        made = checked("network", c.name, made, NetworkLike, wanted, None)
        if classes is not None and not takes_condition(made):
            raise ValueError(
                f"network.condition='label': the network of {c.name!r} takes no argument"
                " `condition`; give its __call__ one, labels [n] of which -1 is none, or set"
                " network.condition to none"
            )
        return made
    make = NETWORKS[c.name]
    fields = {field.name for field in dataclasses.fields(make)} - {"name", "parent"}  # Flax's
    if "shape" in fields:
        if len(shape) != 3 or process.dim != int(np.prod(shape)):
            raise ValueError(
                f"network.name={c.name!r} needs images, the data have shape {shape} and the states"
                f" {process.dim} dimensions; use network.name=mlp"
            )
        smallest = 2 ** (len(c.widths) - 1) if "widths" in fields else 1
        if c.time_features < 2 or min(shape[:2]) < smallest:
            raise ValueError(
                f"network.name={c.name!r} with {len(c.widths)} network.widths needs images of at"
                f" least {smallest} pixels a side, got {shape}, and network.time_features >= 2"
            )
    return make(**{key: value for key, value in given.items() if key in fields})


def _control(config: Config, coordinate: Any) -> ControlVariate:
    c = config.control_variate
    if not OBJECTIVES[config.objective.name].controlled:
        return Constant()
    if c.kind == "constant":
        return Constant(value=c.value)
    if c.kind == "optimal":
        return Optimal(coordinate=coordinate, num_bins=c.num_bins, decay=c.decay)
    return Learned(
        network=EpsNet(width=c.width, depth=c.depth),
        coordinate=coordinate,
        optimizer=optax.adam(c.learning_rate),
    )


def _estimator(config: Config) -> Estimator:
    c = config.control_variate
    return Estimator(kind=c.estimator, period=c.period, num_probes=c.num_probes, chunk=c.chunk)


def _optimiser(config: Config) -> Optimiser:
    c = config.optimizer
    updates = config.train.steps // c.accumulate
    if not updates:
        raise ValueError(
            f"optimizer.accumulate={c.accumulate} steps make an update, and"
            f" train.steps={config.train.steps} make none; lower it"
        )
    if c.warmup_steps >= updates:
        raise ValueError(
            f"optimizer.warmup_steps={c.warmup_steps} is not less than the {updates} optimiser"
            " updates of train.steps; lower it"
        )
    read = {key: value for key, value in vars(c).items() if has_effect(config, f"optimizer.{key}")}
    steps = config.train.steps if c.schedule == "cosine" else 0
    return make_optimiser(**read, steps=steps)


def _sampler(config: Config) -> Sampler:
    c = config.sample
    return SAMPLERS[c.sampler](**taken(SAMPLERS[c.sampler], c))
