"""Wiring: from a `Config` and data to the process, noising, objective, network and optimisers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ndsm_jax import control_variates, gmm
from ndsm_jax.config import Config
from ndsm_jax.control_variates import ControlVariate
from ndsm_jax.datasets import Dataset
from ndsm_jax.gmm import FitReport, GaussianMixture
from ndsm_jax.integrators import time_grid
from ndsm_jax.networks import EpsNet, ScoreMLP, ScoreModel, UNet, image_group
from ndsm_jax.noise_levels import largest_distance
from ndsm_jax.noising import (
    Dispatched,
    ExactKernel,
    LocalSteps,
    NoisingFn,
    PathWindows,
    Probed,
    loss_steps,
    make_chain,
    time_law,
    window_starts,
)
from ndsm_jax.objectives import EXACT_DIVERGENCE_DIM, OBJECTIVES, Objective, check_process
from ndsm_jax.sampling import sampler_options
from ndsm_jax.sde import MIXTURE_PROCESSES, PROCESSES, SDE, time_coordinate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that training and sampling need besides data and parameters."""

    config: Config
    shape: tuple[int, ...]
    sde: SDE
    noising: NoisingFn
    objective: Objective
    control: ControlVariate
    model: ScoreModel
    optimizer: optax.GradientTransformation
    sample_grid: np.ndarray


def load_data(config: Config) -> Dataset:
    """The data set of the config, checked (see `datasets.load` for the errors)."""
    from ndsm_jax import datasets

    return datasets.load(**dataclasses.asdict(config.data))


def load_run_data(
    config: Config, host: Mapping[str, Any], *, data_dir: str | None = None
) -> Dataset:
    """The data that a run was trained on, from `data_dir` in place of data.dir if given.

    Args:
      config: of the run.
      host: what `training.restore` says of its checkpoint.
      data_dir: where the data are now.

    Raises:
      FileNotFoundError: the data are not there.
      ValueError: the data differ from those of the training.
    """
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    dataset = load_data(config)
    if dataset.digest != host["data"]["digest"]:
        raise ValueError(
            "the data differ from those this run was trained on; give the right --data_dir"
        )
    return dataset


def fit_prior(
    config: Config, dataset: Dataset, *, start: GaussianMixture | None = None
) -> tuple[GaussianMixture, FitReport | None]:
    """The law at the horizon: a mixture fitted to the training data, or the process's normal.

    The fit starts from the mixture `start` if there is one.
    """
    if config.process.name in MIXTURE_PROCESSES:
        options = dataclasses.asdict(config.mixture)
        power = options.pop("weight_power")
        fitted, report = gmm.fit(
            dataset.train, options.pop("num_components"), start=start, **options
        )
        return (fitted if power == 1 else gmm.reweighted(fitted, power)), report
    if config.process.name == "variance_exploding":
        sigma_max = config.process.sigma_max or largest_distance(dataset.train)
        return gmm.standard_normal(dataset.dim, sigma_max**2), None
    return abstract_prior(config, dataset.dim), None


def abstract_prior(config: Config, dim: int) -> GaussianMixture:
    """A prior of the right structure: the process's normal, or a stand-in for a fitted mixture."""
    c = config.process
    if c.name not in MIXTURE_PROCESSES:
        variances = {
            "ornstein_uhlenbeck": c.variance,
            # A stand-in where the data are to decide.
            "variance_exploding": (c.sigma_max or 1e3 * c.sigma_min) ** 2,
        }
        return gmm.standard_normal(dim, variances.get(c.name, 1.0))
    k, covariance = config.mixture.num_components, config.mixture.covariance
    eye = np.eye(dim) if covariance in ("tied", "full") else np.ones(dim)
    rank = config.mixture.rank
    directions = np.broadcast_to(np.eye(dim, rank), (k, dim, rank))
    covariances = {
        "low_rank": gmm.LowRank(np.ones(k), directions, np.ones((k, rank))),
        "spherical": np.ones(k),
        "tied_spherical": np.float64(1.0),
        "diag": np.ones((k, dim)),
        "tied": eye,
        "full": np.broadcast_to(eye, (k, *eye.shape)),
    }[covariance]
    return gmm.mixture(np.ones(k), np.zeros((k, dim)), covariances, covariance=covariance)


def build_sde(config: Config, prior: GaussianMixture) -> SDE:
    """The noising process with its prior."""
    c = config.process
    horizon = c.horizon or None
    if c.name in MIXTURE_PROCESSES:
        return PROCESSES[c.name](prior, horizon=horizon)
    if c.name == "ornstein_uhlenbeck":
        return PROCESSES[c.name](prior.dim, variance=c.variance, horizon=horizon)
    if c.name == "variance_exploding":
        sigma_max = float(prior.typical_variance()) ** 0.5
        sigmas = {"sigma_min": c.sigma_min, "sigma_max": sigma_max}
        return PROCESSES[c.name](prior.dim, horizon=horizon, **sigmas)
    betas = {"beta_min": c.beta_min, "beta_max": c.beta_max}
    return PROCESSES[c.name](prior.dim, horizon=horizon, **betas)


def build(config: Config, shape: tuple[int, ...], prior: GaussianMixture) -> Experiment:
    """Builds an experiment for items of `shape` and a prior in flat states.

    Raises:
      ValueError: an objective that the process cannot serve, or contradicting settings.
    """
    sde = build_sde(config, prior)
    grid, sample_grid = _grid(sde, config.noising), _grid(sde, config.sample)
    objective = OBJECTIVES[config.objective.name]
    local = objective.noising in ("local", "state")
    first = (local and config.noising.loss_step) or float(grid[1])  # the smallest training time
    _check_grids(config, sde, grid, sample_grid, first)
    check_process(config.objective.name, sde)
    noising = _build_noising(config, sde, grid, first)
    if sde.standardised:
        noising = Dispatched(prior=prior, within=noising)
    if objective.noising == "state" and sde.dim > EXACT_DIVERGENCE_DIM:
        noising = Probed(noising=noising)
    coordinate = time_coordinate(sde, config.network.time, first=float(grid[1]))
    group = image_group(config.network.symmetry, shape)
    if group is not None and sde.standardised:
        raise ValueError(
            f"network.symmetry={config.network.symmetry!r} does not go with process.name="
            f"{sde.name!r}, whose network takes the states of one component; use 'none'"
        )
    if config.network.prior_mean and (sde.standardised or sde.prior.num_components == 1):
        raise ValueError(
            f"network.prior_mean tells the network nothing new with process.name={sde.name!r} and"
            f" {sde.prior.num_components} components; set it to false"
        )
    model = ScoreModel(
        sde=sde,
        coordinate=coordinate,
        network=_build_network(config, shape),
        parameterisation=config.network.parameterisation,
        prior_mean=config.network.prior_mean,
        group=group,
    )
    return Experiment(
        config=config,
        shape=shape,
        sde=sde,
        noising=noising,
        objective=objective,
        control=_build_control(config, coordinate),
        model=model,
        optimizer=_build_optimizer(config),
        sample_grid=sample_grid,
    )


def _grid(sde: SDE, section: Any) -> np.ndarray:
    smallest = section.smallest_variance
    return time_grid(sde, section.steps, kind=section.grid, smallest_variance=smallest)


def _build_noising(config: Config, sde: SDE, grid: np.ndarray, first: float) -> NoisingFn:
    c, objective = config.noising, OBJECTIVES[config.objective.name]
    times = time_law(sde, grid, kind=c.times, stratified=c.stratified)
    if c.noises > 1 and objective.noising != "local":
        raise ValueError(
            f"noising.noises={c.noises} share one mu, which objective.name="
            f"{config.objective.name!r} does not have; set it to 1, or choose ndsm or ndsm_cv"
        )
    if objective.noising != "path" and sde.kernel is not None:
        return ExactKernel(sde=sde, times=times, first=jnp.float32(first), k=c.k, weight=c.weight)
    companion = objective.noising == "path" and objective.controlled
    simulation = c.simulation
    if companion and c.window:  # in a quotient its windows start at time 0, see PathWindows
        if simulation == "quotient":
            raise ValueError(
                f"objective.name={config.objective.name!r} with noising.window={c.window} needs"
                " noising.simulation='full' or 'auto'; or set noising.window to 0"
            )
        simulation = "full"
    chain = make_chain(
        sde,
        grid,
        kind=simulation,
        integrator=c.integrator,
        paths=c.k if objective.noising == "path" else 1,
    )
    if objective.noising != "path":
        starts, lengths = loss_steps(sde, grid, fixed=c.loss_step, fraction=c.loss_fraction)
        return LocalSteps(
            chain=chain,
            sde=sde,
            times=times,
            starts=starts,
            lengths=lengths,
            k=c.k,
            noises=c.noises,
            weight=c.weight,
            integrator=c.integrator,
        )
    return PathWindows(
        chain=chain,
        sde=sde,
        times=times,
        starts=window_starts(grid, c.window),
        curvature=jnp.float32(c.curvature),
        k=c.k,
        weight=c.weight,
        integrator=c.integrator,
        weights=c.path_weights,
        companion=companion,
    )


def _check_grids(
    config: Config, sde: SDE, grid: np.ndarray, sample_grid: np.ndarray, first: float
) -> None:
    """Raises ValueError where Euler steps are unstable, sampling visits untrained times, or the
    sampler does not take an option."""
    c = config.sample
    sampler_options(c.sampler, churn=c.churn)
    if sample_grid[1] < 0.99 * first:
        raise ValueError(
            f"sampling would start its last step at t = {sample_grid[1]:.3g}, but the smallest"
            f" trained time is {first:.3g}; raise sample.smallest_variance (lower sample.steps on a"
            " uniform grid), or lower noising.smallest_variance"
        )
    if sde.name != "mixture_langevin":
        return
    smallest = sde.prior.smallest_variance()
    longest = float(np.diff(sample_grid).max())
    saturation = float(sde.saturation)
    # The probability flow's velocity is not stiff, so what counts is the forward steps of churn. An
    # exponential step pulls towards the modes like an explicit one of the length in which the
    # typical component's own relaxation gets as far.
    explicit = {
        "reverse_sde": longest,
        "multistep_sde": -saturation * math.expm1(-longest / saturation),
    }.get(c.sampler, c.churn * longest)
    lengths = {
        "noising": (float(np.diff(grid).max()), len(grid) - 1),
        "sample": (explicit, len(sample_grid) - 1),
    }
    for section, (length, num_steps) in lengths.items():
        ratio = length / smallest
        if ratio > 1:
            steps = int(np.ceil(1.1 * ratio * num_steps))
            raise ValueError(
                f"the longest step of {section}.steps={num_steps} is {ratio:.3g} times the"
                f" smallest variance of the mixture ({smallest:.3g}), and explicit Euler needs less"
                f" than 1; set {section}.steps to about {steps}, raise mixture.min_covariance, or"
                " choose another mixture.covariance"
            )


def _build_network(config: Config, shape: tuple[int, ...]) -> ScoreMLP | UNet:
    c = config.network
    zero_output = c.parameterisation in ("residual", "edm")
    if c.name == "mlp":
        return ScoreMLP(
            width=c.width,
            depth=c.depth,
            skip=c.skip,
            time_features=c.time_features,
            time_scale=c.time_scale,
            zero_output=zero_output,
            dtype=jnp.dtype(c.dtype),
        )
    if len(shape) != 3:
        raise ValueError(
            f"network.name='unet' needs images, the data have shape {shape}; use network.name=mlp"
        )
    smallest = 2 ** (len(c.widths) - 1)
    if c.time_features < 2 or min(shape[:2]) < smallest:
        raise ValueError(
            f"network.name='unet' with {len(c.widths)} network.widths needs images of at least"
            f" {smallest} pixels a side, got {shape}, and network.time_features >= 2"
        )
    return UNet(
        shape=(shape[0], shape[1], shape[2]),
        widths=c.widths,
        time_features=c.time_features,
        time_scale=c.time_scale,
        zero_output=zero_output,
        dtype=jnp.dtype(c.dtype),
    )


def _build_control(config: Config, coordinate: Any) -> ControlVariate:
    c = config.control_variate
    if not OBJECTIVES[config.objective.name].controlled:
        return control_variates.constant(0.0)
    if c.kind == "constant":
        return control_variates.constant(c.value)
    if c.kind == "optimal":
        return control_variates.optimal(coordinate, num_bins=c.num_bins, decay=c.decay)
    network = EpsNet(width=c.width, depth=c.depth)
    return control_variates.learned(network, coordinate, optax.adam(c.learning_rate))


def _build_optimizer(config: Config) -> optax.GradientTransformation:
    c = config.optimizer
    updates = max(1, config.train.steps // c.accumulate)
    if c.warmup_steps >= updates:
        raise ValueError(
            f"optimizer.warmup_steps={c.warmup_steps} is not less than the {updates} optimiser"
            " updates of train.steps; lower it"
        )
    schedule = optax.constant_schedule(c.learning_rate)
    if c.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(c.learning_rate, max(1, updates - c.warmup_steps))
    if c.warmup_steps:
        warmup = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [c.warmup_steps])
    clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    optimizer = optax.chain(clip, optax.adam(schedule))
    if c.accumulate > 1:
        return optax.MultiSteps(optimizer, c.accumulate).gradient_transformation()
    return optimizer


def describe(config: Config, dataset: Dataset) -> str:
    """What a dry run prints: data, network, first batch's shapes; nothing is fitted or trained."""
    experiment = build(config, dataset.shape, abstract_prior(config, dataset.dim))
    x0 = jax.ShapeDtypeStruct((config.train.batch_size, dataset.dim), np.float32)
    batch = jax.eval_shape(experiment.noising, jax.random.key(0), x0)
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    fields = {name: value for name, value in vars(batch).items() if hasattr(value, "shape")}
    return "\n".join(
        [
            f"data {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} held-out"
            f" items of shape {dataset.shape} ({dataset.source})",
            f"network {config.network.name}: {size:,} parameters",
            f"first batch, from x0 {x0.shape}:",
            *(f"  {name}: {value.dtype}{list(value.shape)}" for name, value in fields.items()),
        ]
    )
