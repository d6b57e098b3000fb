"""Configuration: one frozen, validated dataclass a section, and its `ml_collections` form.

The dataclasses below are the only place where an option, its default, its range and its
description are written. `default()` turns them into the `ConfigDict` that the files in `configs/`
fill in and that `--config.section.key=value` overrides; `Config.from_dict` turns it back, checked.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ndsm_jax.checks import SEED, shown
from ndsm_jax.clock import LADDERS, TIME_COORDINATES, WEIGHTS
from ndsm_jax.config.names import (
    DATA_FRAMES,
    FITS,
    IN_COMPONENTS,
    NONLINEAR,
    PROCESSES,
    REFERENCES,
)
from ndsm_jax.config.options import PLUGIN, POSITIVE, Section, When, hint, option
from ndsm_jax.control_variates import ESTIMATORS
from ndsm_jax.datasets import DATASETS
from ndsm_jax.datasets.dataset import IN_MEMORY, LAYOUTS
from ndsm_jax.datasets.tables import HEADERS
from ndsm_jax.integrators import GRIDS, INTEGRATOR_CHOICES
from ndsm_jax.networks import DTYPES, NETWORKS, PRECONDITIONS, SYMMETRIES
from ndsm_jax.noising import (
    JACOBIANS,
    PATH_WEIGHTS,
    SCHEDULES,
    SIMULATIONS,
    TIME_LAWS,
)
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.optimisation import LEARNING_RATES, OPTIMISERS
from ndsm_jax.references import AUTO, COVARIANCES, CRITERIA, INITS, SOLVERS
from ndsm_jax.sampling import SAMPLERS

# --- where options have an effect ---


def _own(key: str) -> When:
    return {key: (PLUGIN,)}


def _takers(chooser: str, constructors: Mapping[str, Any], key: str, *more: str) -> When:
    """The names in a config whose constructors take a key, by their signatures."""
    names = (n for n, make in constructors.items() if key in inspect.signature(make).parameters)
    return {chooser: (*names, *more)}


def _process(key: str) -> When:
    return _takers("process.name", PROCESSES, key)


def _network(key: str) -> When:
    return _takers("network.name", NETWORKS, key)


def _sampler(key: str) -> When:
    return _takers("sample.sampler", SAMPLERS, key)


def _objectives(*noising: str) -> When:
    """The objectives that regress on one of these, see `objectives.Objective`."""
    return {"objective.name": tuple(n for n, o in OBJECTIVES.items() if o.noising in noising)}


FILES: When = {
    "data.name": (
        "array",
        "folder",
        "table",
        "tfds",
        "mnist",
        "approx_c2_mnist",
        "mnist_orientations",
    )
}
TABLE: When = {"data.name": ("table",)}
WITHOUT_KERNEL: When = {"process.name": (*NONLINEAR, PLUGIN)}
MIXTURE: tuple[When, ...] = (
    {"process.name": IN_COMPONENTS},
    {**WITHOUT_KERNEL, "reference.name": ("auto", "mixture")},
)
PATH = _objectives("path")
LINEARISED = _objectives("linearised")
GRIDDED: tuple[When, ...] = (
    {"noising.times": tuple(law for law in TIME_LAWS if law != "levels")},
    WITHOUT_KERNEL,
)
AVERAGED: When = {"objective.name": tuple(name for name, o in OBJECTIVES.items() if o.averages)}
STEPPED: When = {**_objectives("local"), **WITHOUT_KERNEL}
SIMULATED: tuple[When, ...] = (
    PATH,
    LINEARISED,
    {**_objectives("local", "state"), **WITHOUT_KERNEL},
)
TOLD_LABELS: When = {"network.condition": ("label",)}
CONTROLLED: When = {"objective.name": tuple(n for n, o in OBJECTIVES.items() if o.controlled)}


PERCEPTUAL = "perceptual"

# --- bounds: far from what is used, near enough that a slip is told before it is computed ---

ITEMS = 10**9
"""Of data, samples, steps."""
BATCH = 10**7
"""Items a step."""
GRID = 100_000
"""Steps of a grid; each is a step of every path."""
WIDTH, DEPTH = 65_536, 256
"""Of networks."""
SMALL, LARGE = 1e-12, 1e12
"""Of variances, rates and times: their squares and inverses are numbers in float32."""
RATE = 1e6
"""Of a learning rate."""

# --- the sections ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """What is modelled."""

    name: str = option("digits", "data set", choices=DATASETS, plugin=True)
    options: str = option(
        "", "of a data set of your own: name=value, with commas between", when=_own("data.name")
    )
    dir: str = option(
        "",
        "folder or file of MNIST, array, table and folder data; of tfds the data folder, by default"
        " that of tensorflow-datasets",
        when=FILES,
    )
    tfds: str = option(
        "",
        "name of a prepared set of images, such as cifar10 (experiments/prepare.py, docs/data.md)",
        when={"data.name": ("tfds",)},
    )
    columns: str = option(
        "",
        "of a table: name=word, with commas between; numeric, integer or categorical, standardised"
        " or quantile, both with a + between, or drop",
        when=TABLE,
    )
    header: str = option(
        "auto",
        "whether the first row of a table has the names; auto: unless it has a number",
        choices=HEADERS,
        when=TABLE,
    )
    frame: str = option(
        "auto",
        "coordinates of the process: identity, every feature of mean 0 and variance 1, the same"
        " shift and scale for all features, angles with a period of 2 pi, grey levels made"
        " continuous; auto: standardised for your own arrays without a range, shared for images"
        " among them; a table has its own",
        choices=DATA_FRAMES,
        when={"autoencoder.kind": ("none",)},
    )
    num_train: int = option(
        0, "training samples used, a seeded stratified subset; 0: all", low=0, high=ITEMS
    )
    num_test: int = option(0, "held-out samples used; 0: all", low=0, high=ITEMS)
    test_fraction: float = option(
        0.2,
        "share held out when the data have no test split",
        above=0,
        high=0.9,
        when={"data.name": ("digits", "array", "folder", "table", "tfds", PLUGIN)},
    )
    image_size: int = option(
        0,
        "side to which the middle of images of folder and tfds is resized; 0: as they are",
        low=0,
        high=4096,
        when={"data.name": ("folder", "tfds")},
    )
    channels: int = option(
        1,
        "channels of a folder's images: 1, grey, or 3, colour",
        low=1,
        high=3,
        when={"data.name": ("folder",)},
    )
    background: str = option(
        "white",
        "colour behind transparent pixels of a folder's images, a name or #rrggbb",
        when={"data.name": ("folder",)},
    )
    all_frames: bool = option(
        False,
        "take all frames of animations and pages of files, not the first alone",
        when={"data.name": ("folder",)},
    )
    layout: str = option(
        "auto",
        "of arrays of images [N, a, b, c]; auto: as their shape tells, or else an error",
        choices=LAYOUTS,
        when={"data.name": ("array", PLUGIN)},
    )
    in_memory: str = option(
        "auto",
        "keep items in memory; otherwise their rows are read when they are needed; auto: unless"
        " their states take more than half of the memory that is free",
        choices=IN_MEMORY,
        when={"data.name": ("array", "tfds", PLUGIN)},
    )
    flips: bool = option(
        False,
        "show the training an image mirrored left to right in half of the visits; held-out losses"
        " and likelihoods see it as it is",
        when={"autoencoder.kind": ("none",)},
    )
    shifts: int = option(
        0,
        "show the training an image moved by up to so many pixels in both directions, its edges"
        " repeated; held-out losses and likelihoods see it as it is",
        low=0,
        high=64,
        when={"autoencoder.kind": ("none",)},
    )
    seed: int = option(0, "of toy data, splits and subsets", low=0, high=SEED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig(Section):
    """The law to which the data noise, and from which sampling starts."""

    name: str = option(
        "auto",
        "auto: the process's own, which is a mixture for langevin",
        choices=REFERENCES,
        plugin=True,
        when=WITHOUT_KERNEL,
    )
    options: str = option(
        "",
        "of a reference of your own: name=value, with commas between",
        when=_own("reference.name"),
    )
    degrees: float = option(
        0.0,
        "of freedom of student_t; 0: fitted",
        low=0,
        high=1e6,
        when=_takers("reference.name", FITS, "degrees"),
    )
    shared: bool = option(
        False,
        "one scale for all coordinates of student_t and logistic, as suits pixels",
        when=_takers("reference.name", FITS, "shared"),
    )
    reweight: int = option(
        0,
        "metastable states of the reference whose weights are fitted to the data's shares; 0: its"
        " own weights",
        low=0,
        high=100,
        when={"reference.name": (*FITS, PLUGIN)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig(Section):
    """The Gaussian mixture fitted to the data."""

    num_components: int = option(
        10,
        "K; 0: that of the least criterion",
        low=0,
        high=100_000,
        when=MIXTURE,
    )
    criterion: str = option(
        "bic",
        "that chooses K where it is 0, and the covariance where it is auto: the Bayesian"
        " information criterion, or five-fold cross-validation of the log likelihood",
        choices=CRITERIA,
        when=tuple(
            {**of, key: (open_,)}
            for of in MIXTURE
            for key, open_ in (("mixture.num_components", 0), ("mixture.covariance", AUTO))
        ),
    )
    covariance: str = option(
        "spherical",
        "kind of covariance; auto: spherical, diag or, up to 64 dimensions, full, by the criterion",
        choices=(*COVARIANCES, AUTO),
        when=MIXTURE,
    )
    rank: int = option(
        8,
        "directions of a low_rank component, fewer than the data's",
        low=1,
        high=10_000,
        when=tuple({**one, "mixture.covariance": ("low_rank",)} for one in MIXTURE),
    )
    subset: int = option(
        0, "samples used for the fit; 0: all training samples", low=0, high=ITEMS, when=MIXTURE
    )
    num_inits: int = option(
        4, "starts of the fit; the best likelihood wins", low=1, high=1000, when=MIXTURE
    )
    init: str = option(
        "kmeans", "what expectation-maximisation starts from", choices=INITS, when=MIXTURE
    )
    weight_power: float = option(
        1.0,
        "the fitted weights are raised to it, to study mis-specified ones; 1: as fitted, 0: equal",
        low=0,
        high=10,
        when=MIXTURE,
    )
    min_covariance: float = option(
        1e-4, "added to variances, squared units of the frame", low=SMALL, high=LARGE, when=MIXTURE
    )
    max_iterations: int = option(
        200, "of expectation-maximisation, per start", low=1, high=100_000, when=MIXTURE
    )
    solver: str = option(
        "auto",
        "of the fit: scikit-learn in float64, or jax in float32 on all devices; auto: scikit-learn"
        " for small data and kinds of covariance that it has",
        choices=SOLVERS,
        when=MIXTURE,
    )
    seed: int = option(0, "of subset and starts", low=0, high=SEED, when=MIXTURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig(Section):
    """The noising process."""

    name: str = option("langevin", "process", choices=PROCESSES, plugin=True)
    options: str = option(
        "", "of a process of your own: name=value, with commas between", when=_own("process.name")
    )
    horizon: float = option(
        0.0,
        "T, time units; 0: 4 sigma^2 for langevin and OU, 4 for component_ou, 1 for VP, sub-VP, VE"
        " and wrapped, 0.999 for straight_line and component_flow, 8 relaxation times for"
        " critically_damped, its own for a process of yours",
        low=0,
        high=1e6,
    )
    variance: float = option(
        1.0,
        "stationary variance of ornstein_uhlenbeck",
        low=SMALL,
        high=LARGE,
        when=_process("variance"),
    )
    beta_min: float = option(
        0.1,
        "beta(0) of variance_preserving and sub-VP",
        low=1e-6,
        high=1e6,
        when=_process("beta_min"),
    )
    beta_max: float = option(
        20.0,
        "beta(T) of variance_preserving and sub-VP",
        low=1e-6,
        high=1e6,
        when=_process("beta_max"),
    )
    sigma_min: float = option(
        0.01,
        "sigma(0) of variance_exploding and wrapped, units of the frame",
        low=1e-6,
        high=1e6,
        when=_process("sigma_min"),
    )
    sigma_max: float = option(
        0.0,
        "sigma(T) of variance_exploding and wrapped; 0: the largest distance between two training"
        " items, and 0.8 of the period",
        low=0,
        high=1e6,
        when=_takers("process.name", PROCESSES, "sigma_max", "variance_exploding"),
    )
    mass: float = option(0.25, "M of critically_damped", low=1e-6, high=1e6, when=_process("mass"))
    rate: float = option(
        4.0, "beta of critically_damped, 1 / time", low=1e-6, high=1e6, when=_process("rate")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisingConfig(Section):
    """How training data are noised. Grid, times and weight on the process's clock by default."""

    steps: int = option(
        0,
        "grid steps from 0 to T; 0: 150, or as many more as the stiffness of the drift needs, up to"
        " 500 (a fitted mixture's smallest variances are raised where that is not enough)",
        low=0,
        high=GRID,
        when=GRIDDED,
    )
    grid: str = option(
        "clock",
        "time grid: the process's clock, its 7th root, uniform in t, or a ladder of noise levels",
        choices=GRIDS,
        when=GRIDDED,
    )
    smallest_variance: float = option(
        1e-3,
        "first grid time, as v(t_1) / v(T)",
        low=1e-9,
        high=0.5,
        when={"noising.grid": ("clock", "edm", *LADDERS)},
    )
    times: str = option(
        "clock",
        "law of the training times; levels: those of the grid, all as often, which is that of"
        " sampling for a process with a kernel",
        choices=TIME_LAWS,
    )
    stratified: bool = option(True, "low-discrepancy times over a batch instead of independent")
    k: int = option(4, "random times a path", low=1, high=4096)
    weight: str = option(
        "auto",
        "loss weight: v(t), v(t) / a(t)^2, 1, the matrix of local_dsm's local covariance, or that"
        " of network.parameterisation, balanced where components overlap",
        choices=("auto", *WEIGHTS, PERCEPTUAL),
    )
    simulation: str = option(
        "auto",
        "the full space, its quotient (fast where isotropic), or auto",
        choices=SIMULATIONS,
        when=SIMULATED,
    )
    integrator: str = option(
        "auto",
        "step of the simulation; auto: exponential for the Langevin dynamics of a mixture",
        choices=INTEGRATOR_CHOICES,
        when=SIMULATED,
    )
    path_weights: str = option(
        "sinh", "weights c of a path's target", choices=PATH_WEIGHTS, when=PATH
    )
    window: float = option(
        0.0, "of a path's target, time units; 0: the whole path", low=0, high=1e6, when=PATH
    )
    curvature: float = option(
        0.0,
        "rate of sinh weights, 1 / time; 0: of the component at the window's start",
        low=0,
        high=1e9,
        when={**PATH, "noising.path_weights": ("sinh",)},
    )
    schedule: str = option(
        "controlled",
        "start of local_dsm's windows: as early as the local mean allows, or a fixed gap",
        choices=SCHEDULES,
        when=LINEARISED,
    )
    tolerance: float = option(
        0.02,
        "error of the local mean, in units of sqrt(v(t))",
        low=1e-6,
        high=10,
        when={**LINEARISED, "noising.schedule": ("controlled",)},
    )
    gap: float = option(
        0.05,
        "length of a window, time units",
        low=1e-9,
        high=1e6,
        when={**LINEARISED, "noising.schedule": ("gap",)},
    )
    jacobian: str = option(
        "auto",
        "of the drift: dense, a scalar plus a few directions (isotropic mixtures), diagonal"
        " (elementwise drifts), or the cheapest that is known to hold",
        choices=JACOBIANS,
        when=LINEARISED,
    )
    stable: bool = option(
        False,
        "targets averaged over the minibatch, with less variance and some bias; of simulated paths,"
        " which then share their times",
        when=AVERAGED,
    )
    noises: int = option(1, "normals that share one mu", low=1, high=4096, when=STEPPED)
    ahead_mb: float = option(
        4.0,
        "memory for minibatches noised ahead, MB, at least one; a few suit a CPU's cache",
        above=0,
        high=1e6,
    )
    loss_step: float = option(
        0.0,
        "fixed length of the loss step, time units; 0: off; a kernel's smallest time",
        low=0,
        high=1e6,
        when=_objectives("local", "state"),
    )
    loss_fraction: float = option(
        2.0,
        "loss step adds this fraction of the variance already there; 0: off",
        low=0,
        high=10,
        when={
            **_objectives("local", "state"),
            **WITHOUT_KERNEL,
            "noising.loss_step": (0.0,),
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section):
    """What is minimised."""

    name: str = option("path_dsm", "objective", choices=OBJECTIVES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlVariateConfig(Section):
    """eps(t) of ndsm_cv and path_dsm_cv, and the estimator of the gradient's variance."""

    kind: str = option(
        "learned",
        "eps(t): constant, closed-form, network",
        choices=("constant", "optimal", "learned"),
        when=CONTROLLED,
    )
    value: float = option(
        0.0,
        "of the constant; 0 is NDSM, 1 undoes the cancellation",
        when={**CONTROLLED, "control_variate.kind": ("constant",)},
        low=-1e6,
        high=1e6,
    )
    num_bins: int = option(
        20,
        "time bins of optimal; 1: the best constant",
        low=1,
        high=GRID,
        when={**CONTROLLED, "control_variate.kind": ("optimal",)},
    )
    decay: float = option(
        0.95,
        "memory of optimal, per update",
        low=0,
        high=0.9999,
        when={**CONTROLLED, "control_variate.kind": ("optimal",)},
    )
    width: int = option(
        10,
        "hidden width of eps_phi",
        low=1,
        high=WIDTH,
        when={**CONTROLLED, "control_variate.kind": ("learned",)},
    )
    depth: int = option(
        3,
        "hidden layers of eps_phi",
        low=1,
        high=DEPTH,
        when={**CONTROLLED, "control_variate.kind": ("learned",)},
    )
    learning_rate: float = option(
        1e-3,
        "of phi (Adam)",
        low=SMALL,
        high=RATE,
        when={**CONTROLLED, "control_variate.kind": ("learned",)},
    )
    period: int = option(
        20,
        "N_CV, steps between updates of eps and variance estimates",
        low=1,
        high=ITEMS,
        when=CONTROLLED,
    )
    estimator: str = option(
        "probes", "per-sample gradient products", choices=ESTIMATORS, when=CONTROLLED
    )
    num_probes: int = option(
        1,
        "random directions an update, for probes",
        low=1,
        high=4096,
        when={**CONTROLLED, "control_variate.estimator": ("probes",)},
    )
    chunk: int = option(
        16,
        "per-sample gradients in memory at a time, for exact",
        low=1,
        high=ITEMS,
        when={**CONTROLLED, "control_variate.estimator": ("exact",)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """The score network and its parameterisation."""

    name: str = option("mlp", "architecture", choices=NETWORKS, plugin=True)
    options: str = option(
        "", "of a network of your own: name=value, with commas between", when=_own("network.name")
    )
    parameterisation: str = option(
        "auto",
        "score = network, network / std, or prior score + network / std (edm: a network / std);"
        " velocity: network = that of the probability flow;"
        " local: edm in the coordinates and the time of the state's component; auto: local where"
        " there are several and the network has a third argument, else residual",
        choices=PRECONDITIONS,
    )
    time: str = option("clock", "time the network sees", choices=TIME_COORDINATES)
    symmetry: str = option(
        "none",
        "group of image turns (c2, c4), with reflections (d4), under which the score is averaged",
        choices=SYMMETRIES,
    )
    harmonics: int = option(
        1,
        "the network sees the sines and cosines of 1, ..., H times each angle in its place, and is"
        " periodic",
        low=1,
        high=1000,
        when={"data.frame": ("angles",)},
    )
    prior_mean: bool = option(
        False,
        "the network sees the mean of the mixture's components given y, beside y, as that of"
        " parameterisation=local always does",
        when={
            **WITHOUT_KERNEL,
            "network.parameterisation": tuple(
                n for n in PRECONDITIONS if n not in ("auto", "local")
            ),
        },
    )
    condition: str = option(
        "none",
        "what the network is told of each item: nothing, or its label",
        choices=("none", "label"),
    )
    label_dropout: float = option(
        0.1,
        "share of the items whose label training keeps from the network, for guidance without a"
        " classifier",
        low=0,
        high=0.9,
        when=TOLD_LABELS,
    )
    width: int = option(
        256, "hidden width of mlp, of a token of dit", low=1, high=WIDTH, when=_network("width")
    )
    depth: int = option(
        5, "hidden layers of mlp, blocks of dit", low=1, high=DEPTH, when=_network("depth")
    )
    skip: bool = option(True, "residual, normalised hidden layers in mlp", when=_network("skip"))
    widths: tuple[int, ...] = option(
        (32, 64, 128, 256),
        "channels of each level of unet and adm",
        low=1,
        high=WIDTH,
        when=_network("widths"),
    )
    blocks: int = option(
        2, "residual blocks a level of adm", low=1, high=DEPTH, when=_network("blocks")
    )
    attention: int = option(
        16,
        "levels of adm whose sides are at most this long have self-attention; 0: none",
        low=0,
        high=4096,
        when=_network("attention"),
    )
    patch: int = option(
        2,
        "side of the patches of dit, a divisor of the image's",
        low=1,
        high=4096,
        when=_network("patch"),
    )
    head_width: int = option(
        64,
        "channels of a head of self-attention, a divisor of those of the level or the token",
        low=1,
        high=WIDTH,
        when=_network("head_width"),
    )
    dropout: float = option(
        0.0,
        "share of the hidden activations that training leaves out",
        low=0,
        high=0.9,
        when=_network("dropout"),
    )
    remat: bool = option(
        False,
        "the backward pass computes the inside of the blocks again: less memory, more time",
        when=_network("remat"),
    )
    time_features: int = option(
        64,
        "Gaussian Fourier features; 0 (mlp only): append the time",
        low=0,
        high=WIDTH,
        when=_network("time_features"),
    )
    time_scale: float = option(
        1.0,
        "standard deviation of their frequencies",
        low=1e-6,
        high=1e6,
        when=_network("time_scale"),
    )
    dtype: str = option(
        "float32",
        "precision of the hidden layers; parameters, first and last layer are float32",
        choices=DTYPES,
        when=_network("dtype"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """How the parameters move, and their average."""

    name: str = option("adam", "rule, see docs/networks.md", choices=OPTIMISERS)
    learning_rate: float = option(1e-3, "peak learning rate", low=SMALL, high=RATE)
    weight_decay: float = option(
        0.01,
        "share of the learning rate by which an update shrinks every parameter, towards the"
        " reference of a residual score",
        low=0,
        high=1000,
        when=_takers("optimizer.name", OPTIMISERS, "weight_decay"),
    )
    schedule: str = option(
        "constant",
        "after the warm-up; inverse_sqrt: the peak over sqrt(update / decay_start)",
        choices=LEARNING_RATES,
    )
    decay_start: int = option(
        1000,
        "optimiser updates after which inverse_sqrt falls",
        low=1,
        high=ITEMS,
        when={"optimizer.schedule": ("inverse_sqrt",)},
    )
    warmup_steps: int = option(0, "linear warm-up, optimiser updates", low=0, high=ITEMS)
    clip_norm: float = option(0.0, "largest global gradient norm; 0: off", low=0, high=LARGE)
    accumulate: int = option(
        1, "steps whose gradients are averaged into one update", low=1, high=ITEMS
    )
    ema_decay: tuple[float, ...] = option(
        (0.999,),
        "of the averages of the parameters, per step; of several the first is sampled with, or that"
        " which train.select chooses",
        low=0,
        high=0.999999,
    )


HELD_OUT: When = {"train.select": ("auto", "held_out")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The loop."""

    steps: int = option(3000, "training steps", low=1, high=ITEMS)
    batch_size: int = option(
        64, "data points (paths) a step; each is noised at noising.k times", low=1, high=BATCH
    )
    seed: int = option(0, "of initialisation, batches and noise", low=0, high=SEED)
    select: str = option(
        "auto",
        "the average of the parameters to sample with: the last, or the best one on held-out"
        " training items; auto: the latter for fewer than 10,000 items",
        choices=("auto", "held_out", "last"),
    )
    held_out: float = option(
        0.1,
        "share of the training items that is held out of fit and training; at least 20 items, at"
        " most a third of all, and eight batches",
        low=1e-6,
        high=0.5,
        when=HELD_OUT,
    )
    held_out_every: int = option(
        100, "steps between looks at the held-out items", low=1, high=ITEMS, when=HELD_OUT
    )
    patience: int = option(
        0,
        "steps without a better average after which training stops; 0: never",
        low=0,
        high=ITEMS,
        when=HELD_OUT,
    )
    log_every: int = option(50, "steps averaged into one line of metrics.jsonl", low=1, high=ITEMS)
    checkpoint_every: int = option(500, "steps between checkpoints", low=1, high=ITEMS)
    keep: int = option(3, "checkpoints kept", low=1, high=100_000)
    picture_every: int = option(1000, "steps between sample pictures; 0: none", low=0, high=ITEMS)
    tensorboard: bool = option(True, "write TensorBoard events beside metrics.jsonl")
    shard_parameters: bool = option(
        False, "several devices share parameters, averages and moments, see docs/scaling.md"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """The reverse process."""

    num: int = option(5000, "samples drawn for evaluation", low=1, high=ITEMS)
    sampler: str = option("multistep_sde", "sampler, see docs/samplers.md", choices=SAMPLERS)
    steps: int = option(
        0,
        "grid steps; 0: 40, or as many more as the drift's stiffness needs, up to 500; for"
        " annealed_langevin as many levels as overlap by half",
        low=0,
        high=GRID,
    )
    grid: str = option("clock", "time grid, as noising.grid", choices=GRIDS)
    smallest_variance: float = option(
        1e-3,
        "last time before the denoising step, as v(t_1) / v(T)",
        low=1e-9,
        high=0.99,
        when={"sample.grid": ("clock", "edm", *LADDERS)},
    )
    churn: float = option(
        0.0,
        "share of each step that is undone by noising first, for the flows; 0: none, 1: as noisy as"
        " the reverse SDE",
        low=0,
        high=1,
        when=_sampler("churn"),
    )
    eta: float = option(
        0.0,
        "share of ancestral sampling's noise in ddim; 0: none, 1: all",
        low=0,
        high=1,
        when=_sampler("eta"),
    )
    corrector_steps: int = option(
        1,
        "Langevin steps after each step of predictor_corrector",
        low=1,
        high=GRID,
        when=_sampler("corrector_steps"),
    )
    snr: float = option(
        0.16,
        "ratio of their drift to their noise",
        low=1e-6,
        high=0.9,
        when=_sampler("snr"),
    )
    restarts: int = option(
        1,
        "times that restart_flow goes up and down its stretch",
        low=1,
        high=GRID,
        when=_sampler("restarts"),
    )
    restart_low: float = option(
        0.2,
        "end of the stretch, as a share of the grid's steps from the data",
        low=0,
        high=1,
        when=_sampler("restart_low"),
    )
    restart_high: float = option(
        0.5, "start of the stretch, likewise", above=0, high=1, when=_sampler("restart_high")
    )
    rtol: float = option(
        1e-3,
        "relative tolerance of adaptive_flow",
        low=1e-9,
        high=0.1,
        when=_sampler("rtol"),
    )
    atol: float = option(
        1e-3,
        "absolute tolerance of adaptive_flow, units of the frame",
        low=1e-9,
        high=1e6,
        when=_sampler("atol"),
    )
    langevin_steps: int = option(
        5,
        "of annealed_langevin, at each noise level",
        low=1,
        high=GRID,
        when=_sampler("langevin_steps"),
    )
    langevin_length: float = option(
        0.0,
        "of its steps, alpha / sigma^2 in x + alpha s + sqrt(2 alpha) z; 0: what fits the levels",
        low=0,
        high=1,
        when=_sampler("langevin_length"),
    )
    guidance_scale: float = option(
        1.0,
        "w of s_u + w (s_c - s_u), scores without and with the label; 1: off",
        low=0,
        high=1000,
        when=TOLD_LABELS,
    )
    guidance_low: float = option(
        0.0,
        "least v(t) / v(T) at which samples are guided",
        low=0,
        high=1,
        when=TOLD_LABELS,
    )
    guidance_high: float = option(
        1.0,
        "largest v(t) / v(T) at which samples are guided",
        above=0,
        high=1,
        when=TOLD_LABELS,
    )
    chunk: int = option(500, "samples in memory at a time", low=1, high=ITEMS)
    ema: bool = option(True, "use the average of the parameters")
    seed: int = option(0, "of the samples", low=0, high=SEED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """Metrics."""

    max_points: int = option(
        5000, "largest number of points in a pairwise metric", low=20, high=100_000
    )
    labels_per_class: int = option(
        10, "labels, per class on average, that name the mixture's components", low=1, high=ITEMS
    )
    likelihood_points: int = option(
        200, "held-out items whose log p is computed, at most; 0: none", low=0, high=ITEMS
    )
    seed: int = option(0, "of projections, subsets and classifiers", low=0, high=SEED)


AUTOENCODERS = ("none", "ae", "vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Section):
    """The autoencoder of a latent-space model, `experiments/train_latent.py`."""

    kind: str = option(
        "none", "no latent space, plain or variational autoencoder", choices=AUTOENCODERS
    )
    latent_dim: int = option(
        20,
        "dimensions of the latent space",
        low=1,
        high=WIDTH,
        when={"autoencoder.kind": ("ae", "vae")},
    )
    widths: tuple[int, ...] = option(
        (512, 256),
        "of the encoder; the decoder mirrors it",
        low=1,
        high=WIDTH,
        when={"autoencoder.kind": ("ae", "vae")},
    )
    beta: float = option(
        0.5,
        "weight of the divergence or cross-entropy term (vae)",
        low=SMALL,
        high=1e6,
        when={"autoencoder.kind": ("vae",)},
    )
    anneal_steps: int = option(
        2000,
        "over which beta rises from 0, in pretraining",
        low=0,
        high=ITEMS,
        when={"autoencoder.kind": ("vae",)},
    )
    steps: int = option(
        8000, "training steps", low=1, high=ITEMS, when={"autoencoder.kind": ("ae", "vae")}
    )
    batch_size: int = option(
        256, "items a step", low=1, high=BATCH, when={"autoencoder.kind": ("ae", "vae")}
    )
    learning_rate: float = option(
        1e-3,
        "peak learning rate (Adam, cosine decay)",
        low=SMALL,
        high=RATE,
        when={"autoencoder.kind": ("ae", "vae")},
    )
    seed: int = option(
        0,
        "of initialisation, batches and posterior draws",
        low=0,
        high=SEED,
        when={"autoencoder.kind": ("ae", "vae")},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointConfig(Section):
    """Training of autoencoder and score network together, after each alone."""

    steps: int = option(
        0,
        "training steps; 0: the autoencoder stays frozen",
        low=0,
        high=ITEMS,
        when={"autoencoder.kind": ("vae",)},
    )
    batch_size: int = option(
        128, "items a step", low=1, high=BATCH, when={"joint.steps": (POSITIVE,)}
    )
    k: int = option(4, "random times a path", low=1, high=4096, when={"joint.steps": (POSITIVE,)})
    learning_rate: float = option(
        2e-4, "of all parameters (Adam)", low=SMALL, high=RATE, when={"joint.steps": (POSITIVE,)}
    )
    clip_norm: float = option(
        100.0,
        "largest global gradient norm",
        low=SMALL,
        high=LARGE,
        when={"joint.steps": (POSITIVE,)},
    )
    refit_every: int = option(
        1000,
        "steps between fits of the mixture to current latents",
        low=1,
        high=ITEMS,
        when={"joint.steps": (POSITIVE,)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment; every section is frozen and checked."""

    data: DataConfig = DataConfig()
    reference: ReferenceConfig = ReferenceConfig()
    mixture: MixtureConfig = MixtureConfig()
    process: ProcessConfig = ProcessConfig()
    noising: NoisingConfig = NoisingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    control_variate: ControlVariateConfig = ControlVariateConfig()
    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    joint: JointConfig = JointConfig()

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any] | ConfigDict) -> Config:
        """The checked form of a `ConfigDict` or of `to_dict`'s output (missing keys: defaults).

        Raises:
          ValueError: naming the dotted key that is unknown, of a wrong type or out of range.
        """
        tree = tree.to_dict() if isinstance(tree, ConfigDict) else tree
        if not isinstance(tree, Mapping):
            raise ValueError(f"a config is a dict of sections, got {shown(tree)}")
        built: dict[str, Any] = {}
        for section, values in tree.items():
            _check_section(section)
            kind = sections()[section]
            if not isinstance(values, Mapping):
                raise ValueError(
                    f"{section}={shown(values)}: a section is a dict of its keys; set one of them,"
                    f" such as {section}.{dataclasses.fields(kind)[0].name}"
                )
            for key in values:
                _check_name(section, key)
            built[section] = kind(**values)
        return cls(**built)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain dict (tuples kept), the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Readable JSON of `to_dict`."""
        return json.dumps(self.to_dict(), indent=2)


def sections() -> dict[str, type[Section]]:
    """Name -> dataclass of every section."""
    return {name: type(section) for name, section in vars(Config()).items()}


def value_of(config: Config, dotted: str) -> Any:
    """The value of the key `section.name`."""
    section, _, name = dotted.partition(".")
    return getattr(getattr(config, section), name)


def check_key(dotted: str) -> None:
    """Raises ValueError, with the nearest known name, unless `section` or `section.key` exists."""
    section, _, key = dotted.partition(".")
    _check_section(section)
    if key:
        _check_name(section, key)


def _check_section(section: Any) -> None:
    if section not in sections():
        word = _word(section)
        keys = [
            f"{name}.{field.name}"
            for name, of in sections().items()
            for field in dataclasses.fields(of)
            if field.name == word
        ]
        nearest = f" (did you mean {' or '.join(keys)}?)" if keys else hint(word, sections())
        raise ValueError(f"{word}: unknown section{nearest}; one of {', '.join(sections())}")


def _check_name(section: str, key: Any) -> None:
    known = [field.name for field in dataclasses.fields(sections()[section])]
    if key not in known:
        word = _word(key)
        raise ValueError(
            f"{section}.{word}: unknown key{hint(word, known)}; one of {', '.join(known)}"
        )


def _word(key: Any) -> str:
    plain = isinstance(key, str) and key.isprintable() and len(key) < 100
    return key if plain and key else shown(key)


def default() -> ConfigDict:
    """A fully populated, type-locked `ConfigDict` of the defaults, to start a config file from."""
    return ConfigDict(Config().to_dict())
