"""Configuration: one frozen, validated dataclass a section, and its `ml_collections` form.

The dataclasses below are the only place where an option, its default, its range and its
description are written. `default()` turns them into the `ConfigDict` that the files in `configs/`
fill in and that `--config.section.key=value` overrides; `Config.from_dict` turns it back, checked.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ndsm_jax.control_variates import ESTIMATORS
from ndsm_jax.datasets import DATASETS
from ndsm_jax.gmm import COVARIANCES, INITS
from ndsm_jax.integrators import GRIDS, INTEGRATORS
from ndsm_jax.networks import DTYPES, NETWORKS, PARAMETERISATIONS, SYMMETRIES
from ndsm_jax.noising import PATH_WEIGHTS, SIMULATIONS, TIME_LAWS, WEIGHTS
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.sampling import SAMPLERS
from ndsm_jax.sde import PROCESSES, TIME_COORDINATES


def option(
    default: Any,
    doc: str,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    choices: Iterable[str] = (),
) -> Any:
    """A dataclass field with its description and range: low <= x <= high, x > above."""
    metadata = {"doc": doc, "low": low, "above": above, "high": high, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the sections: checks every field's type, range and choice.

    Raises:
      ValueError: naming the dotted key, the value and what is allowed.
    """

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config")
        section = re.sub(r"(?<!^)(?=[A-Z])", "_", section).lower()
        for field in dataclasses.fields(self):
            key = f"{section}.{field.name}"
            value = _coerce(key, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
            for item in value if isinstance(value, tuple) else (value,):
                _check_range(key, item, field.metadata)


def _coerce(key: str, value: Any, default: Any) -> Any:
    """The value in the default's type: 1 for a float, a list for a tuple, nothing else."""
    if isinstance(default, tuple) and isinstance(value, tuple | list):
        if not value:
            raise ValueError(f"{key}=(): at least one value is needed")
        return tuple(_coerce(key, item, default[0]) for item in value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        wanted, got = type(default).__name__, type(value).__name__
        raise ValueError(f"{key}={value!r}: expected {wanted}, got {got}")
    return value


def _check_range(key: str, value: Any, allowed: Mapping[str, Any]) -> None:
    choices = allowed["choices"]
    if choices and value not in choices:
        raise ValueError(
            f"{key}={value!r}: choose one of {', '.join(choices)}{_hint(str(value), choices)}"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{key}={value!r}: a finite number is needed")
        if value < allowed["low"] or value > allowed["high"] or value <= allowed["above"]:
            raise ValueError(f"{key}={value!r}: must be {_range(allowed)}")


def _range(allowed: Mapping[str, Any]) -> str:
    parts = []
    if allowed["low"] > -math.inf:
        parts.append(f">= {allowed['low']:g}")
    if allowed["above"] > -math.inf:
        parts.append(f"> {allowed['above']:g}")
    if allowed["high"] < math.inf:
        parts.append(f"<= {allowed['high']:g}")
    return " and ".join(parts)


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """What is modelled."""

    name: str = option("digits", "data set", choices=DATASETS)
    dir: str = option("", "folder or file of MNIST, array and folder data; '' where none is needed")
    num_train: int = option(0, "training samples used, a seeded stratified subset; 0: all", low=0)
    num_test: int = option(0, "held-out samples used; 0: all", low=0)
    test_fraction: float = option(
        0.2, "share held out when the data have no test split", above=0, high=0.9
    )
    image_size: int = option(
        0, "side to which a folder's images are resized; 0: as they are", low=0
    )
    channels: int = option(1, "channels of a folder's images: 1, grey, or 3, colour", low=1, high=3)
    seed: int = option(0, "of toy data, splits and subsets", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig(Section):
    """The Gaussian mixture fitted to the data, for mixture_langevin and component_ou."""

    num_components: int = option(10, "K", low=1)
    covariance: str = option("spherical", "kind of covariance", choices=COVARIANCES)
    rank: int = option(8, "directions of a low_rank component, fewer than the data's", low=1)
    subset: int = option(0, "samples used for the fit; 0: all training samples", low=0)
    num_inits: int = option(4, "starts of the fit; the best likelihood wins", low=1)
    init: str = option("kmeans", "what expectation-maximisation starts from", choices=INITS)
    weight_power: float = option(
        1.0,
        "the fitted weights are raised to it, to study mis-specified ones; 1: as fitted, 0: equal",
        low=0,
        high=10,
    )
    min_covariance: float = option(1e-4, "added to variances, squared data units", above=0)
    max_iterations: int = option(200, "of expectation-maximisation, per start", low=1)
    seed: int = option(0, "of subset and starts", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig(Section):
    """The noising process."""

    name: str = option("mixture_langevin", "process", choices=PROCESSES)
    horizon: float = option(
        0.0,
        "T, time units; 0: 4 sigma^2 for Langevin and OU, 4 for component_ou, 1 for VP and VE",
        low=0,
    )
    variance: float = option(1.0, "stationary variance of ornstein_uhlenbeck", above=0)
    beta_min: float = option(0.1, "beta(0) of variance_preserving", above=0)
    beta_max: float = option(20.0, "beta(T) of variance_preserving", above=0)
    sigma_min: float = option(0.01, "sigma(0) of variance_exploding, data units", above=0)
    sigma_max: float = option(
        0.0,
        "sigma(T) of variance_exploding; 0: the largest distance between two training items",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisingConfig(Section):
    """How training data are noised. Grid, times and weight on the process's clock by default."""

    steps: int = option(150, "grid steps from 0 to T", low=3)
    grid: str = option(
        "clock", "time grid: the process's clock, its 7th root, or uniform in t", choices=GRIDS
    )
    smallest_variance: float = option(
        1e-3, "first grid time, as v(t_1) / v(T); not for uniform", above=0, high=0.5
    )
    times: str = option("clock", "law of the training times", choices=TIME_LAWS)
    stratified: bool = option(True, "low-discrepancy times over a batch instead of independent")
    k: int = option(4, "random times a path", low=1)
    weight: str = option("variance", "loss weight: v(t), v(t) / a(t)^2 or 1", choices=WEIGHTS)
    simulation: str = option(
        "auto", "the full space, its quotient (fast where isotropic), or auto", choices=SIMULATIONS
    )
    integrator: str = option("euler", "step of the simulation", choices=INTEGRATORS)
    path_weights: str = option("sinh", "weights c of path_dsm", choices=PATH_WEIGHTS)
    window: float = option(0.0, "of path_dsm, time units; 0: the whole path", low=0)
    curvature: float = option(
        0.0, "rate of sinh weights, 1 / time; 0: of the component at the window's start", low=0
    )
    noises: int = option(1, "normals that share one mu (ndsm, ndsm_cv)", low=1)
    ahead_mb: float = option(
        4.0,
        "memory for minibatches noised ahead, MB, at least one; a few suit a CPU's cache",
        above=0,
    )
    loss_step: float = option(0.0, "fixed length of the loss step, time units; 0: off", low=0)
    loss_fraction: float = option(
        2.0, "loss step adds this fraction of the variance already there; 0: off", low=0, high=10
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
    )
    value: float = option(0.0, "of the constant; 0 is NDSM, 1 undoes the cancellation")
    num_bins: int = option(20, "time bins of optimal; 1: the best constant", low=1)
    decay: float = option(0.95, "memory of optimal, per update", low=0, high=0.9999)
    width: int = option(10, "hidden width of eps_phi", low=1)
    depth: int = option(3, "hidden layers of eps_phi", low=1)
    learning_rate: float = option(1e-3, "of phi (Adam)", above=0)
    period: int = option(20, "N_CV, steps between updates of eps and variance estimates", low=1)
    estimator: str = option("probes", "per-sample gradient products", choices=ESTIMATORS)
    num_probes: int = option(1, "random directions an update, for probes", low=1)
    chunk: int = option(16, "per-sample gradients in memory at a time, for exact", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """The score network and its parameterisation."""

    name: str = option("mlp", "architecture", choices=NETWORKS)
    parameterisation: str = option(
        "residual",
        "score = network, network / std, or prior score + network / std (edm: a network / std)",
        choices=PARAMETERISATIONS,
    )
    time: str = option("clock", "time the network sees", choices=TIME_COORDINATES)
    symmetry: str = option(
        "none",
        "group of image turns (c2, c4), with reflections (d4), under which the score is averaged",
        choices=SYMMETRIES,
    )
    prior_mean: bool = option(
        False, "the network sees the mean of the mixture's components given y, beside y"
    )
    width: int = option(256, "hidden width of mlp", low=1)
    depth: int = option(5, "hidden layers of mlp", low=1)
    skip: bool = option(True, "residual, normalised hidden layers in mlp")
    widths: tuple[int, ...] = option((32, 64, 128, 256), "channels of each unet level", low=1)
    time_features: int = option(
        64, "Gaussian Fourier features; 0 (mlp only): append the time", low=0
    )
    time_scale: float = option(1.0, "standard deviation of their frequencies", above=0)
    dtype: str = option(
        "float32",
        "precision of the hidden layers; parameters, first and last layer are float32",
        choices=DTYPES,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Adam and the average of the parameters."""

    learning_rate: float = option(1e-3, "peak learning rate", above=0)
    schedule: str = option("constant", "after the warm-up", choices=("constant", "cosine"))
    warmup_steps: int = option(0, "linear warm-up, optimiser updates", low=0)
    clip_norm: float = option(0.0, "largest global gradient norm; 0: off", low=0)
    accumulate: int = option(1, "steps whose gradients are averaged into one update", low=1)
    ema_decay: float = option(0.999, "of the parameter average, per step", low=0, high=0.999999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The loop."""

    steps: int = option(3000, "training steps", low=1)
    batch_size: int = option(
        64, "data points (paths) a step; each is noised at noising.k times", low=1
    )
    seed: int = option(0, "of initialisation, batches and noise", low=0)
    log_every: int = option(50, "steps averaged into one line of metrics.jsonl", low=1)
    checkpoint_every: int = option(500, "steps between checkpoints", low=1)
    keep: int = option(3, "checkpoints kept", low=1)
    picture_every: int = option(1000, "steps between sample pictures; 0: none", low=0)
    tensorboard: bool = option(True, "write TensorBoard events beside metrics.jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """The reverse process."""

    num: int = option(5000, "samples drawn for evaluation", low=1)
    sampler: str = option("multistep_sde", "sampler, see docs/samplers.md", choices=SAMPLERS)
    steps: int = option(40, "grid steps", low=3)
    grid: str = option("clock", "time grid, as noising.grid", choices=GRIDS)
    smallest_variance: float = option(
        1e-3, "last time before the denoising step, as v(t_1) / v(T)", above=0, high=0.99
    )
    churn: float = option(
        0.0,
        "share of each step that is undone by noising first, for the flows; 0: none, 1: as noisy as"
        " the reverse SDE",
        low=0,
        high=1,
    )
    rtol: float = option(1e-3, "relative tolerance of adaptive_flow", above=0, high=0.1)
    atol: float = option(1e-3, "absolute tolerance of adaptive_flow, data units", above=0)
    langevin_steps: int = option(5, "of annealed_langevin, at each noise level", low=1)
    chunk: int = option(500, "samples in memory at a time", low=1)
    ema: bool = option(True, "use the average of the parameters")
    seed: int = option(0, "of the samples", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """Metrics."""

    max_points: int = option(5000, "largest number of points in a pairwise metric", low=20)
    labels_per_class: int = option(
        10, "labels, per class on average, that name the mixture's components", low=1
    )
    seed: int = option(0, "of projections, subsets and classifiers", low=0)


AUTOENCODERS = ("none", "ae", "vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Section):
    """The autoencoder of a latent-space model, `experiments/train_latent.py`."""

    kind: str = option(
        "none", "no latent space, plain or variational autoencoder", choices=AUTOENCODERS
    )
    latent_dim: int = option(20, "dimensions of the latent space", low=1)
    widths: tuple[int, ...] = option((512, 256), "of the encoder; the decoder mirrors it", low=1)
    beta: float = option(0.5, "weight of the divergence or cross-entropy term (vae)", above=0)
    anneal_steps: int = option(2000, "over which beta rises from 0, in pretraining", low=0)
    steps: int = option(8000, "training steps", low=1)
    batch_size: int = option(256, "items a step", low=1)
    learning_rate: float = option(1e-3, "peak learning rate (Adam, cosine decay)", above=0)
    seed: int = option(0, "of initialisation, batches and posterior draws", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointConfig(Section):
    """Training of autoencoder and score network together, after each alone."""

    steps: int = option(0, "training steps; 0: the autoencoder stays frozen", low=0)
    batch_size: int = option(128, "items a step", low=1)
    k: int = option(4, "random times a path", low=1)
    learning_rate: float = option(2e-4, "of all parameters (Adam)", above=0)
    clip_norm: float = option(100.0, "largest global gradient norm", above=0)
    refit_every: int = option(1000, "steps between fits of the mixture to current latents", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment; every section is frozen and checked."""

    data: DataConfig = DataConfig()
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
        built: dict[str, Any] = {}
        for section, values in tree.items():
            check_key(section)
            for key in values:
                check_key(f"{section}.{key}")
            built[section] = _sections()[section](**values)
        return cls(**built)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain dict (tuples kept), the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Readable JSON of `to_dict`."""
        return json.dumps(self.to_dict(), indent=2)


def _sections() -> dict[str, type[Section]]:
    return {name: type(section) for name, section in vars(Config()).items()}


def check_key(dotted: str) -> None:
    """Raises ValueError, with the nearest known name, unless `section` or `section.key` exists."""
    section, _, key = dotted.partition(".")
    sections = _sections()
    if section not in sections:
        hint = _hint(section, sections)
        raise ValueError(f"{section}: unknown section{hint}; one of {', '.join(sections)}")
    known = [field.name for field in dataclasses.fields(sections[section])]
    if key and key not in known:
        raise ValueError(f"{dotted}: unknown key{_hint(key, known)}; one of {', '.join(known)}")


def default() -> ConfigDict:
    """A fully populated, type-locked `ConfigDict` of the defaults, to start a config file from."""
    return ConfigDict(Config().to_dict())


SMOKE: dict[str, dict[str, Any]] = {
    "mixture": {"subset": 400, "num_inits": 1},
    "noising": {"steps": 100},
    "network": {"width": 16, "depth": 2, "widths": (8, 16), "time_features": 16},
    "optimizer": {"warmup_steps": 0},
    "train": {
        "steps": 20,
        "batch_size": 16,
        "log_every": 10,
        "checkpoint_every": 10,
        "picture_every": 20,
    },
    "sample": {"num": 200, "chunk": 100},
    "evaluate": {"max_points": 200},
    "autoencoder": {"widths": (32,), "latent_dim": 4, "steps": 20, "batch_size": 16},
    "joint": {"batch_size": 16, "refit_every": 5},
}
"""What the `:smoke` variant of every config changes: all features, in seconds."""


PAPER: dict[str, dict[str, Any]] = {
    "noising": {
        "steps": 100,
        "grid": "uniform",
        "times": "uniform",
        "stratified": False,
        "weight": "unit",
        "loss_step": 1e-3,
        "loss_fraction": 0.0,
    },
    "objective": {"name": "ndsm_cv"},
    "control_variate": {"estimator": "exact", "kind": "learned"},
    "network": {"parameterisation": "raw", "time": "time"},
    "optimizer": {"schedule": "constant", "warmup_steps": 0, "ema_decay": 0.0},
    "sample": {"sampler": "reverse_sde", "grid": "uniform", "steps": 1000, "ema": False},
}
"""Strict reproduction of 2405.15625, where our defaults are the process's own clock, a residual
score and preconditioned weights. Horizon and sizes are each experiment's."""


PAPER_IMAGES: dict[str, dict[str, Any]] = PAPER | {
    "control_variate": {"estimator": "probes"},  # exact costs tens of steps for a U-Net
    "process": {"horizon": 2.0},
    "noising": PAPER["noising"] | {"steps": 2000},
    "sample": PAPER["sample"] | {"steps": 2000},
}
"""The same for images (A.3): T = 2 in 2,000 steps of 1e-3."""


UNET: dict[str, dict[str, Any]] = {
    "network": {"name": "unet", "time_features": 128},
    "noising": {"k": 1},
    "train": {
        "batch_size": 64,
        "steps": 93_750,
        "checkpoint_every": 1000,
        "picture_every": 5000,
    },
    "optimizer": {"warmup_steps": 200, "schedule": "cosine"},
    "sample": {"num": 10_000, "chunk": 250},
}
"""A U-Net on MNIST and what is made of it: minibatches of 64, 100 epochs (2405.15625, A.3)."""


EDM: dict[str, dict[str, Any]] = {
    "noising": {"weight": "edm"},
    "network": {"parameterisation": "edm"},
}
"""The preconditioning and the loss weight of 2206.00364, for any process."""


BASELINES: dict[str, dict[str, Any]] = {
    "vp": {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "dsm"},
    },
    "vp_standardised": {
        "process": {"name": "component_ou"},
        "mixture": {"num_components": 1},
        "objective": {"name": "dsm"},
        **EDM,
    },
    "component_ou": {
        "process": {"name": "component_ou"},
        "objective": {"name": "dsm"},
        **EDM,
    },
    "ou": PAPER
    | {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "dsm"},
        # Every term of DSM as large as any other, as 2011.13456, Section 3.3
        "noising": PAPER["noising"] | {"steps": 1000, "weight": "variance"},
    },
    "ddpm": {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "dsm"},
        "noising": {"steps": 1000, "grid": "uniform", "times": "uniform", "stratified": False},
        "network": {"parameterisation": "scaled", "time": "time"},
        "sample": {"sampler": "ancestral", "grid": "uniform", "steps": 1000},
    },
    "ncsn": {
        "process": {"name": "variance_exploding"},
        "objective": {"name": "dsm"},
        "noising": {"smallest_variance": 1e-7},
        "network": {"parameterisation": "scaled"},
        "sample": {"sampler": "annealed_langevin", "steps": 100, "smallest_variance": 1e-7},
    },
}
"""Other methods with the network, the data and the budget of a config file, see docs/baselines.md:
`vp` with the settings of our own methods, `vp_standardised` and `component_ou` with those that we
found best for them, `ou` as 2405.15625 has it, `ddpm` and `ncsn` with times, parameterisation and
sampler of their papers."""


def variant(config: ConfigDict, name: str, **variants: Mapping[str, dict[str, Any]]) -> ConfigDict:
    """Applies the variant of a config file, the part after the colon in --config=FILE:VARIANT.

    Args:
      config: the file's config, changed in place.
      name: '' for none, 'smoke', one of `BASELINES`, or one of `variants`.
      **variants: further variants of the file, nested updates of the config.

    Raises:
      ValueError: unknown variant.
    """
    known: dict[str, Mapping[str, dict[str, Any]]] = {
        "": {},
        "smoke": SMOKE,
        **BASELINES,
        **variants,
    }
    if name not in known:
        raise ValueError(
            f"unknown variant {name!r}: choose one of {', '.join(filter(None, known))}"
        )
    config.update(known[name])
    return config


def reference() -> str:
    """A Markdown table of every key, default, range and meaning (docs/configuration.md)."""
    lines = [
        "# Configuration reference",
        "",
        "Made by `python -m ndsm_jax.config`. Override with `--config.section.key=value`.",
    ]
    for name, kind in _sections().items():
        lines += ["", f"## `{name}`", "", str(kind.__doc__), ""]
        lines += ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for field in dataclasses.fields(kind):
            meta = field.metadata
            allowed = ", ".join(meta["choices"]) or _range(meta)
            lines.append(f"| `{field.name}` | `{field.default!r}` | {allowed} | {meta['doc']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
