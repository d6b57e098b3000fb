"""From a `Config` and data to the parts of an `Experiment`."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ndsm_jax import frames, noising, plugins, references
from ndsm_jax.clock import loss_weight, time_coordinate
from ndsm_jax.codec import Latent, standard_codec
from ndsm_jax.config.names import FITS, PROCESSES
from ndsm_jax.config.sections import Config
from ndsm_jax.control_variates import Constant, ControlVariate, Estimator, Learned, Optimal
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import Experiment, experiment
from ndsm_jax.frames import Frame
from ndsm_jax.integrators import time_grid
from ndsm_jax.networks import (
    NETWORKS,
    PRECONDITIONS,
    Autoencoder,
    EpsNet,
    Precondition,
    ScoreModel,
    described,
    image_group,
    prior_mean,
    weight_of,
)
from ndsm_jax.noising import NoisingFn
from ndsm_jax.objectives import OBJECTIVES, check_process
from ndsm_jax.optimisation import Optimiser, adam
from ndsm_jax.processes import Process, langevin
from ndsm_jax.references import GaussianMixture, Reference
from ndsm_jax.sampling import Sampler, make_sampler
from ndsm_jax.sampling.noise_levels import largest_distance

logger = logging.getLogger(__name__)

MIN_NOISING_STEPS, MIN_SAMPLE_STEPS, MAX_STEPS = 150, 40, 500
"""Grid steps where a config leaves their number open, and how many of them it may become."""

TILT_ITEMS = 4096
"""Draws of a reference among which its metastable states are looked for."""

PLUGIN_KEYS = ("data.name", "reference.name", "process.name", "network.name")
"""Keys that take `path/to/file.py:function`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What is fitted to the data; a checkpoint keeps it.

    Attributes:
      frame: from data to the coordinates in which the reference lives.
      reference: fitted there; for component_ou the mixture whose components are the frame.
      report: of the fit, to be read; None where nothing was fitted.
    """

    frame: Frame
    reference: Reference
    report: Any = None


# --- frame and reference, of the data ---


def frame_kind(
    config: Config, shape: tuple[int, ...], value_range: tuple[float, float] | None
) -> str:
    """data.frame, decided where it is open, for items of a shape and a range (None: unbounded)."""
    if config.data.frame != "auto":
        return config.data.frame
    own = config.data.name == "array" or plugins.is_plugin(config.data.name)
    if not own or value_range is not None:
        return "identity"
    return "shared" if len(shape) == 3 else "standardised"


def data_frame(config: Config, dataset: Dataset) -> Frame:
    """The frame of the data that the config asks for, see `data.frame`."""
    kind = frame_kind(config, dataset.shape, dataset.value_range)
    if kind == "pixels" and dataset.value_range != (-1.0, 1.0):
        raise ValueError(
            f"data.frame='pixels' needs grey levels scaled to [-1, 1], and data.name="
            f"{config.data.name!r} has the range {dataset.value_range}; give uint8 images"
        )
    if kind in ("standardised", "shared"):
        return frames.standardised(dataset.train, shared=kind == "shared")
    return _frames_without_arrays().get(kind, frames.Identity())


def fit(config: Config, dataset: Dataset, *, frame: Frame | None = None) -> Parts:
    """The frame of the data, and the reference fitted in it.

    Args:
      config: the experiment.
      dataset: its data.
      frame: in place of that of the config: the latent space of a trained autoencoder.

    Raises:
      ValueError: settings that do not fit the data.
    """
    if (config.autoencoder.kind != "none") != isinstance(frame, Latent):
        raise ValueError(
            f"autoencoder.kind={config.autoencoder.kind!r}: experiments/train_latent.py trains in a"
            " latent space; use it, or set autoencoder.kind to none"
        )
    frame = frame or data_frame(config, dataset)
    reference, report = fit_reference(config, frame.prepare(dataset.train))
    return Parts(frame=frame, reference=reference, report=report)


def fit_reference(
    config: Config, states: np.ndarray, *, start: GaussianMixture | None = None
) -> tuple[Reference, Any]:
    """The reference fitted to states [N, d], and a report of the fit, to be read, or None.

    The fit of a mixture starts from the mixture `start` if there is one.

    Raises:
      ValueError: settings that do not fit the data.
    """
    if takes_mixture(config):
        return _fit_mixture(config, states, start)
    if open_to_any(config):
        return _fit_other(config, states)
    if config.process.name == "variance_exploding":
        sigma_max = config.process.sigma_max or largest_distance(states)
        return references.standard_normal(states.shape[1], sigma_max**2), None
    return references.standard_normal(states.shape[1]), None


def open_to_any(config: Config) -> bool:
    """Whether the process takes any reference."""
    return config.process.name == "langevin" or plugins.is_plugin(config.process.name)


def takes_mixture(config: Config) -> bool:
    """Whether a mixture is fitted to the data."""
    if config.process.name == "component_ou":
        return True
    return open_to_any(config) and config.reference.name in ("auto", "mixture")


def stand_in(
    config: Config,
    shape: tuple[int, ...],
    value_range: tuple[float, float] | None = None,
) -> Parts:
    """Parts of the right structure without data, of items of a shape and a range."""
    frame, dim = _frame_stand_in(config, shape, value_range)
    if takes_mixture(config):
        return Parts(frame=frame, reference=_mixture_stand_in(config, dim))
    if open_to_any(config):
        return Parts(frame=frame, reference=_other_stand_in(config, dim))
    variance = (config.process.sigma_max or 1e3 * config.process.sigma_min) ** 2
    exploding = config.process.name == "variance_exploding"
    reference = references.standard_normal(dim, variance if exploding else 1.0)
    return Parts(frame=frame, reference=reference)


def _frame_stand_in(
    config: Config, shape: tuple[int, ...], value_range: tuple[float, float] | None
) -> tuple[Frame, int]:
    """A frame of the right structure, and the dimensions of its states."""
    c, dim = config.autoencoder, math.prod(shape)
    if c.kind != "none":
        network = autoencoder(config, dim)
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, dim)))
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
        return Latent(codec=standard_codec(network, params), seed=c.seed), c.latent_dim
    kind = frame_kind(config, shape, value_range)
    if kind in ("standardised", "shared"):
        return frames.Standardised(shift=np.zeros(dim), scale=np.ones(dim)), dim
    return _frames_without_arrays().get(kind, frames.Identity()), dim


def _frames_without_arrays() -> dict[str, Frame]:
    return {"angles": frames.Angles(), "pixels": frames.Pixels()}


def autoencoder(config: Config, dim: int) -> Autoencoder:
    """The network of the section autoencoder for items of `dim` dimensions."""
    c = config.autoencoder
    return Autoencoder(
        dim=dim, latent_dim=c.latent_dim, widths=c.widths, variational=c.kind == "vae"
    )


def _mixture_stand_in(config: Config, dim: int) -> GaussianMixture:
    k, covariance = config.mixture.num_components, config.mixture.covariance
    eye = np.eye(dim) if covariance in ("tied", "full") else np.ones(dim)
    rank = config.mixture.rank
    directions = np.broadcast_to(np.eye(dim, rank), (k, dim, rank))
    covariances = {
        "low_rank": references.LowRank(np.ones(k), directions, np.ones((k, rank))),
        "spherical": np.ones(k),
        "tied_spherical": np.float64(1.0),
        "diag": np.ones((k, dim)),
        "tied": eye,
        "full": np.broadcast_to(eye, (k, *eye.shape)),
    }[covariance]
    return references.mixture(np.ones(k), np.zeros((k, dim)), covariances, covariance=covariance)


def _fit_mixture(
    config: Config, states: np.ndarray, start: GaussianMixture | None
) -> tuple[GaussianMixture, Any]:
    options = dataclasses.asdict(config.mixture)
    power = options.pop("weight_power")
    fitted, report = references.fit(states, options.pop("num_components"), start=start, **options)
    if power != 1:
        fitted = references.reweighted(fitted, power)
    if config.process.name == "langevin":
        fitted = _resolvable(config, fitted)
    return fitted, report


def _resolvable(config: Config, fitted: GaussianMixture) -> GaussianMixture:
    """The mixture with its smallest variances raised to what `MAX_STEPS` explicit steps resolve.

    Where the number of steps is left to us, and only as far as is needed.
    """
    if config.noising.steps and config.sample.steps:
        return fitted
    smallest = fitted.smallest_variance()
    for _ in range(5):  # the horizon follows the typical variance, which rises a little
        process = langevin(fitted, horizon=config.process.horizon or None)
        longest = 0.0
        for section in (config.noising, config.sample):
            if not section.steps:
                longest = max(longest, float(np.diff(_grid(process, section, MAX_STEPS)).max()))
        if longest * _stiffness(process) < 1:
            break
        fitted = references.floored(fitted, 1.1 * longest)
    if fitted.smallest_variance() > smallest:
        logger.info(
            "mixture: variances below %.3g (the smallest was %.3g, the typical is %.3g) are raised"
            " to it, as %d explicit steps resolve no less; a coarser mixture (fewer components, a"
            " larger mixture.min_covariance) or more steps (noising.steps, sample.steps) avoid it",
            fitted.smallest_variance(),
            smallest,
            float(fitted.typical_variance()),
            MAX_STEPS,
        )
    return fitted


def _fit_other(config: Config, states: np.ndarray) -> tuple[Reference, Any]:
    """A reference that is no mixture, fitted to states, reweighted by them if that is asked for."""
    c = config.reference
    if plugins.is_plugin(c.name):
        wanted = "a references.Reference"
        fitted = _own("reference", c.name, c.options, (states,), Reference, wanted, states.shape[1])
    else:
        fitted = FITS[c.name](states, **_options(FITS[c.name], c))
    if not c.reweight:
        return fitted, None
    key_states, key_fit = jax.random.split(jax.random.key(config.data.seed))
    items = np.asarray(fitted.sample(key_states, (TILT_ITEMS,)))
    partition = references.metastable_states(items, c.reweight, period=_period(config))
    return references.fit_tilt(fitted, states, partition, key=key_fit)


def _other_stand_in(config: Config, dim: int) -> Reference:
    items = np.random.default_rng(0).standard_normal((max(64, 2 * dim), dim), np.float32)
    c = config.reference
    alone = dataclasses.replace(config, reference=dataclasses.replace(c, reweight=0))
    reference, _ = _fit_other(alone, items)
    if not c.reweight:
        return reference
    positions = np.arange(c.reweight * dim, dtype=float).reshape(-1, dim)
    partition = references.centres(positions, 1.0, period=_period(config))
    return references.tilted(reference, partition, np.ones(c.reweight))


def _period(config: Config) -> float | None:
    return 2 * np.pi if config.data.frame == "angles" else None


def _own(
    section: str,
    name: str,
    text: str,
    args: tuple[Any, ...],
    kind: Any,
    wanted: str,
    dim: int | None,
    **more: Any,
) -> Any:
    """What a function of the user's makes, of the right kind and dimension."""
    plugin = plugins.load(name, key=f"{section}.name")
    options = plugins.parse_options(text, key=f"{section}.options") | more
    plugins.check_options(plugin.function, options, key=f"{section}.options", given=len(args))
    try:
        made = plugin.function(*args, **options)
    except Exception as error:  # whatever the user's function raises
        raise ValueError(
            f"{section}.name={name!r} failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, kind):
        raise ValueError(
            f"{section}.name={name!r} returned a {type(made).__name__}; {wanted} is needed"
        )
    if dim is not None and made.dim != dim:
        raise ValueError(
            f"{section}.name={name!r} is of {made.dim} dimensions, and the data have {dim}"
        )
    return made


# --- the experiment ---


def build(config: Config, shape: tuple[int, ...], parts: Parts) -> Experiment:
    """Builds an experiment for items of `shape` and what was fitted to them.

    Raises:
      ValueError: an objective that the process cannot serve, or contradicting settings.
    """
    process, frame = _process_and_frame(config, parts)
    check_process(config.objective.name, process)
    sampler = _sampler(config)
    sampler.check(process)
    grid = _grid(process, config.noising, _steps(process, config.noising, MIN_NOISING_STEPS))
    sample_steps = _steps(process, config.sample, MIN_SAMPLE_STEPS, sampler)
    sample_grid = _grid(process, config.sample, sample_steps)
    local = OBJECTIVES[config.objective.name].noising in ("local", "state")
    first = (local and config.noising.loss_step) or float(grid[1])  # the smallest training time
    _check_grids(process, sampler, grid, sample_grid, first)
    c = config.network
    coordinate = time_coordinate(process.clock, process.horizon, c.time, first=float(grid[1]))
    precondition = PRECONDITIONS[c.parameterisation](process=process, coordinate=coordinate)
    return experiment(
        process,
        frame=frame,
        objective=config.objective.name,
        noise=_noising(config, process, grid, first, precondition),
        model=_model(config, shape, process, frame, precondition),
        control=_control(config, coordinate),
        estimator=_estimator(config),
        optimiser=_optimiser(config),
        sampler=sampler,
        sample_grid=sample_grid,
    )


def _process_and_frame(config: Config, parts: Parts) -> tuple[Process, Frame]:
    c, reference, frame = config.process, parts.reference, parts.frame
    if plugins.is_plugin(c.name):
        horizon = {"horizon": c.horizon} if c.horizon else {}
        made = _own(
            "process", c.name, c.options, (reference,), Process, "a processes.Process", None,
            **horizon,
        )  # fmt: skip
        if made.dim != reference.dim:
            raise ValueError(
                f"process.name={c.name!r} is of {made.dim} dimensions, its reference of"
                f" {reference.dim}"
            )
        return made, frame
    make, dim = PROCESSES[c.name], reference.dim
    if c.name == "component_ou":
        assert isinstance(reference, GaussianMixture)
        frame = frames.chained(frame, frames.OfComponent(mixture=reference))
    options = _options(make, c)
    if c.name == "variance_exploding":
        options["sigma_max"] = float(reference.typical_variance()) ** 0.5
    if c.name == "component_ou":
        del options["variance"]
    process = make(reference if c.name == "langevin" else dim, **options)
    if c.name == "critically_damped":
        std = jnp.sqrt(0.04 * jnp.float32(c.mass))
        frame = frames.chained(frame, frames.Augmented(std=std))
    return process, frame


def _options(make: Callable[..., Any], section: Any) -> dict[str, Any]:
    """The keys of a section that a constructor takes; a horizon of 0 is its own default."""
    taken = inspect.signature(make).parameters
    options = {key: value for key, value in vars(section).items() if key in taken}
    if "horizon" in options:
        options["horizon"] = options["horizon"] or None
    return options


def _grid(process: Process, section: Any, steps: int) -> np.ndarray:
    smallest = section.smallest_variance
    return time_grid(process, steps, kind=section.grid, smallest_variance=smallest)


def _ratio(process: Process, grid: np.ndarray, sampler: Sampler | None) -> float:
    """The longest explicit step of a grid, times the stiffness: below 1 it is stable."""
    longest = float(np.diff(grid).max())
    if sampler is not None:
        longest = sampler.explicit_step(longest, process.clock)
    return longest * _stiffness(process)


def _stiffness(process: Process) -> float:
    """That of the drift where it is known, otherwise that of the reference it noises to."""
    known = process.known.stiffness
    return process.reference.stiffness() if known is None else float(known)


def _explicit(process: Process, sampler: Sampler | None) -> bool:
    """Whether explicit steps of the drift are taken at all: not where the kernel is known."""
    return process.kernel is None or (process.noisy is not None and sampler is not None)


def _steps(process: Process, section: Any, fewest: int, sampler: Sampler | None = None) -> int:
    """The number of steps that a section asks for, or the fewest that are stable."""
    if section.steps:
        return section.steps
    steps = fewest
    while _explicit(process, sampler) and steps < MAX_STEPS:
        ratio = _ratio(process, _grid(process, section, steps), sampler)
        if ratio < 1:
            break
        steps = min(MAX_STEPS, int(np.ceil(1.1 * ratio * steps)))
    if steps > fewest:
        logger.info(
            "%s.steps: %d, as the stiffness of %s, %.3g per unit of time, needs explicit steps"
            " shorter than those of %d",
            "noising" if sampler is None else "sample",
            steps,
            process.name,
            _stiffness(process),
            fewest,
        )
    return steps


def _check_grids(
    process: Process, sampler: Sampler, grid: np.ndarray, sample_grid: np.ndarray, first: float
) -> None:
    """Raises ValueError where explicit steps are unstable, or sampling visits untrained times."""
    if sample_grid[1] < 0.99 * first:
        raise ValueError(
            f"sampling would start its last step at t = {sample_grid[1]:.3g}, but the smallest"
            f" trained time is {first:.3g}; raise sample.smallest_variance (lower sample.steps on a"
            " uniform grid), or lower noising.smallest_variance"
        )
    for section, times, by in (("noising", grid, None), ("sample", sample_grid, sampler)):
        ratio, num_steps = _ratio(process, times, by), len(times) - 1
        if ratio > 1 and _explicit(process, by):
            steps = int(np.ceil(1.1 * ratio * num_steps))
            raise ValueError(
                f"the longest step of {section}.steps={num_steps} is {ratio:.3g} times what the"
                f" stiffness of {process.name!r} allows an explicit one; set {section}.steps to"
                f" about {steps}, or to 0, which chooses it and raises a mixture's smallest"
                " variances where they need too many"
            )


def _noising(
    config: Config, process: Process, grid: np.ndarray, first: float, precondition: Precondition
) -> NoisingFn:
    c, objective = config.noising, OBJECTIVES[config.objective.name]
    weight = weight_of(precondition) if c.weight == "auto" else loss_weight(process.clock, c.weight)
    common: dict[str, Any] = {
        "k": c.k,
        "times": noising.time_law(process.clock, grid, kind=c.times, stratified=c.stratified),
        "weight": weight,
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
    if process.kernel is not None:
        return noising.exact_kernel(process, grid, first=first, **common)
    return noising.local_steps(
        process,
        grid,
        noises=c.noises,
        loss_step=c.loss_step,
        loss_fraction=c.loss_fraction,
        simulation=c.simulation,
        integrator=c.integrator,
        **common,
    )


def _model(
    config: Config,
    shape: tuple[int, ...],
    process: Process,
    frame: Frame,
    precondition: Precondition,
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
    return ScoreModel(
        network=_network(config, shape, process, precondition),
        dim=process.dim,
        precondition=precondition,
        tells=tells,
        group=group,
    )


def _network(
    config: Config, shape: tuple[int, ...], process: Process, precondition: Precondition
) -> Any:
    c = config.network
    outputs = 0 if process.noisy is None else process.noise_dim
    own = plugins.is_plugin(c.name)
    given = {
        "shape": shape,
        "outputs": outputs or process.dim if own else outputs,
        "zero_output": precondition.starts_at_zero,
        "width": c.width,
        "depth": c.depth,
        "skip": c.skip,
        "widths": c.widths,
        "time_features": c.time_features,
        "time_scale": c.time_scale,
        "dtype": jnp.dtype(c.dtype),
    }
    if own:
        # Of what we know, a network of the user's gets what it asks for by name.
        plugin = plugins.load(c.name, key="network.name")
        offered = {key: given[key] for key in ("shape", "outputs", "zero_output")}
        asked = inspect.signature(plugin.function).parameters
        more = {key: value for key, value in offered.items() if key in asked}
        return _own(
            "network", c.name, c.options, (), _Network, "a Flax module (init and apply)", None,
            **more,
        )  # fmt: skip
    make = NETWORKS[c.name]
    if c.name == "unet":
        smallest = 2 ** (len(c.widths) - 1)
        if len(shape) != 3 or process.dim != int(np.prod(shape)):
            raise ValueError(
                f"network.name='unet' needs images, the data have shape {shape} and the states"
                f" {process.dim} dimensions; use network.name=mlp"
            )
        if c.time_features < 2 or min(shape[:2]) < smallest:
            raise ValueError(
                f"network.name='unet' with {len(c.widths)} network.widths needs images of at least"
                f" {smallest} pixels a side, got {shape}, and network.time_features >= 2"
            )
    taken = {field.name for field in dataclasses.fields(make)}
    return make(**{key: value for key, value in given.items() if key in taken})


class _NetworkType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return callable(getattr(instance, "init", None)) and callable(
            getattr(instance, "apply", None)
        )


class _Network(metaclass=_NetworkType):
    """Anything with `init` and `apply`."""


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
    updates = max(1, config.train.steps // c.accumulate)
    if c.warmup_steps >= updates:
        raise ValueError(
            f"optimizer.warmup_steps={c.warmup_steps} is not less than the {updates} optimiser"
            " updates of train.steps; lower it"
        )
    return adam(
        c.learning_rate,
        cosine_steps=config.train.steps if c.schedule == "cosine" else 0,
        warmup_steps=c.warmup_steps,
        clip_norm=c.clip_norm,
        accumulate=c.accumulate,
        ema_decay=c.ema_decay,
    )


def _sampler(config: Config) -> Sampler:
    c = config.sample
    return make_sampler(
        c.sampler, churn=c.churn, rtol=c.rtol, atol=c.atol, langevin_steps=c.langevin_steps
    )


def sources(config: Config) -> dict[str, str]:
    """Dotted key -> SHA-256 of the file of the user's own that it names."""
    tree = config.to_dict()
    named = {key: tree[key.split(".")[0]][key.split(".")[1]] for key in PLUGIN_KEYS}
    return {
        key: plugins.digest(name, key=key) for key, name in named.items() if plugins.is_plugin(name)
    }
