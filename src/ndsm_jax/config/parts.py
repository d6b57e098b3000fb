"""What is fitted to the data before an experiment is built: the frame and the reference."""

from __future__ import annotations

import dataclasses
import logging
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import conditioning, frames, plugins, references
from ndsm_jax.codec import Latent, standard_codec
from ndsm_jax.columns import Column, squeezed, squeezed_by
from ndsm_jax.conditions import Classes
from ndsm_jax.config.names import FITS, IN_COMPONENTS, NONLINEAR
from ndsm_jax.config.own import checked, taken
from ndsm_jax.config.sections import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.frames import Frame
from ndsm_jax.machine import available_memory
from ndsm_jax.networks import Autoencoder
from ndsm_jax.noising import num_paths
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.references import GaussianMixture, Reference
from ndsm_jax.references.choosing import LADDER
from ndsm_jax.rows import Rows, Stored, blocks, extent, moments, part, part_size, read
from ndsm_jax.runs import fingerprint
from ndsm_jax.sampling.noise_levels import largest_distance
from ndsm_jax.table_frame import frame_like, table_frame
from ndsm_jax.training import memory

logger = logging.getLogger(__name__)

SEEN_BYTES = 2**25
"""Of each split of data that are not in memory, among which far values are looked for."""

MANY_TURNS = 8
"""Of a coordinate, from which angles may not be in radians."""

TILT_ITEMS = 4096
"""Draws of a reference among which its metastable states are looked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What is fitted to the data; a checkpoint keeps it.

    Attributes:
      frame: from data to the coordinates in which the reference lives.
      reference: fitted there; for component_ou and component_flow the mixture whose components are
        the frame.
      report: of the fit, to be read; None where nothing was fitted.
      classes: of the labels that the network is told; None where it is told none.
      starts: some states [P, d] of the data, on whose paths local-DSM chooses its windows; None
        where it does not.
      excess: of the targets in local coordinates, see `networks.target_excess`; None where there is
        none.
      levels: 0 and the times [L + 1] at which the network was trained, where these are those of
        sampling (noising.times=levels); None elsewhere, and before training. Later samples may
        come by another grid.
    """

    frame: Frame
    reference: Reference
    report: Any = None
    classes: Classes | None = None
    starts: Array | None = None
    excess: Array | None = None
    levels: np.ndarray | None = None


# --- frame and reference, of the data ---


def frame_kind(
    config: Config,
    shape: tuple[int, ...],
    value_range: tuple[float, float] | None,
    columns: tuple[Column, ...] = (),
) -> str:
    """data.frame, decided where it is open, for items of a shape and a range (None: unbounded), or
    for a table of these columns."""
    if columns:
        if config.data.frame != "auto":
            raise ValueError(
                f"data.frame={config.data.frame!r}: a table has a frame of its own; set it to auto,"
                " and say what its columns are by data.columns"
            )
        return "table"
    if config.data.frame != "auto":
        return config.data.frame
    own = config.data.name == "array" or plugins.is_plugin(config.data.name)
    if not own or value_range is not None:
        return "identity"
    return "shared" if len(shape) == 3 else "standardised"


def data_frame(config: Config, dataset: Dataset) -> Frame:
    """The frame of the data that the config asks for, see `data.frame`."""
    kind = frame_kind(config, dataset.shape, dataset.value_range, dataset.columns)
    if kind == "table":
        return table_frame(dataset.columns, dataset.train, seed=config.data.seed)
    if kind == "pixels" and dataset.value_range != (-1.0, 1.0):
        raise ValueError(
            f"data.frame='pixels' needs grey levels scaled to [-1, 1], and data.name="
            f"{config.data.name!r} has the range {dataset.value_range}; give uint8 images"
        )
    if kind in ("standardised", "shared"):
        return frames.standardised(dataset.train, shared=kind == "shared")
    if kind == "angles":
        return frames.Angles.of(dataset.train)
    return frames.Pixels() if kind == "pixels" else frames.Identity()


def check_data(config: Config, dataset: Dataset) -> None:
    """Raises ValueError for data of which the frame that the config asks for leaves too little.

    A shift and a scale leave nothing to be seen of a feature whose deviation is that of a few far
    values, be they in the training split or the other.
    """
    kind = frame_kind(config, dataset.shape, dataset.value_range, dataset.columns)
    if kind == "angles":
        low, high = extent(dataset.train)
        if (turns := float(np.max(high - low)) / (2 * np.pi)) > MANY_TURNS:
            logger.warning(
                "data.frame='angles': values from %g to %g go round %.3g times; degrees are to be"
                " given as radians (numpy.deg2rad)",
                np.min(low),
                np.max(high),
                turns,
            )
    if kind not in ("standardised", "shared") or config.autoencoder.kind != "none":
        return
    stored, seen = dataset.is_stored, dataset.in_part(config.data.seed, SEEN_BYTES)
    shared = kind == "shared"
    rows = np.concatenate([seen.train, seen.test])
    of_all = moments(dataset.train, shared=shared)[1] ** 0.5 if stored else None
    for i, values in enumerate((rows.reshape(-1, 1) if shared else rows).T):
        # What is far and rare may be in no part of the data, but is in the deviation of all.
        deviation = values.std()
        rare = of_all is not None and of_all[i] > 2 * deviation
        if of_all is not None and rare:
            deviation = of_all[i]
        if not squeezed(values) and not (rare and squeezed_by(values, deviation)):
            continue
        middle = np.subtract(*np.quantile(values, (0.841, 0.159))) / 2
        remedy = "set data.name=table with the rows in one .npy file, for a scale by quantiles"
        raise ValueError(
            f"data.frame={kind!r}: the middle of {'all' if shared else f'feature {i}'} is"
            f" {middle:.3g} wide, and the deviation {deviation:.3g}, by far values such as"
            f" {_farthest(dataset, None if shared else i, float(np.median(values)))}, beside which"
            f" a model sees nothing of the others; {'clip them' if shared or stored else remedy},"
            " or mend the row"
        )


def _farthest(dataset: Dataset, feature: int | None, middle: float) -> str:
    """In words, the value of a feature (None: of any) that is farthest from the middle.

    With all its digits, as a file knows its row by nothing else: splits are in an order of theirs.
    """
    best, found = -1.0, ""
    for split, x in (("training", dataset.train), ("held-out", dataset.test)):
        for start, block in blocks(x):
            values = block if feature is None else block[:, feature : feature + 1]
            far = np.abs(values - middle)
            if far.max() > best:
                best, (row, column) = far.max(), np.unravel_index(far.argmax(), far.shape)
                found = (
                    f"{values[row, column]} of feature {column if feature is None else feature} in"
                    f" row {start + row} of the {split} split (a file may have it elsewhere: look"
                    " for the value)"
                )
    return found


def check_samples(config: Config, dataset: Dataset) -> None:
    """Raises ValueError for training data too few for the mixture that the config asks for, or
    without an item of a class that the network is told."""
    _check_classes(config, dataset)
    if takes_mixture(config):
        c = config.mixture
        _, dim = _frame_stand_in(config, dataset.shape, dataset.value_range, dataset.columns)
        size = fit_size(config, dataset.train)
        references.check_samples(size, dim, c.num_components, c.covariance, c.criterion)


def _check_classes(config: Config, dataset: Dataset) -> None:
    """A class that no training item has would be sampled, and the network has learnt nothing."""
    labels = told_labels(config, dataset)
    if labels is None:
        return
    absent = np.flatnonzero(np.bincount(labels, minlength=dataset.num_classes) == 0)
    if absent.size:
        name = dataset.class_names[absent[0]] if dataset.class_names else absent[0]
        raise ValueError(
            f"network.condition={config.network.condition!r}: {absent.size} of"
            f" {dataset.num_classes} classes have no training item, the first is {name}; give some"
            " (a larger data.num_train, train.select=last where all are held out), take the class"
            " out of the held-out data, or set network.condition to none"
        )


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
    labels = told_labels(config, dataset)
    states = frames.states(frame, dataset.train)
    reference, report = fit_reference(config, states)
    classes = None
    if labels is not None:
        prior = reference if isinstance(reference, GaussianMixture) else None
        prior = prior if takes_mixture(config) else None
        some = part(states, config.mixture.seed)
        classes = conditioning.classes(
            read(labels, some), dataset.num_classes, prior=prior, states=read(states, some)
        )
    starts = _starts(config, states) if chooses_windows(config) else None
    return Parts(frame=frame, reference=reference, report=report, classes=classes, starts=starts)


def chooses_windows(config: Config) -> bool:
    """Whether local-DSM's windows are those whose error is small on paths of the data."""
    linearised = OBJECTIVES[config.objective.name].noising == "linearised"
    return linearised and config.noising.schedule == "controlled" and open_to_any(config)


def _starts(config: Config, states: Rows) -> Array:
    size = num_paths(states.shape[1])
    some = np.random.default_rng(config.mixture.seed).permutation(len(states))[:size]
    return jnp.asarray(np.resize(read(states, np.sort(some)), (size, states.shape[1])), jnp.float32)


def told_labels(config: Config, dataset: Dataset) -> np.ndarray | None:
    """The labels [N] of the training items that the network is told, or None.

    Raises:
      ValueError: it is to be told labels, and the data have none.
    """
    if config.network.condition == "none":
        return None
    if dataset.train_labels is None:
        raise ValueError(
            f"network.condition={config.network.condition!r}: data.name={config.data.name!r} has no"
            " labels; give data with labels (an .npz file with x and labels, a folder of folders),"
            " or set network.condition to none"
        )
    return dataset.train_labels


def fit_size(config: Config, x: Rows) -> int:
    """Of how many of the data x [N, d] the reference is fitted to: mixture.subset, or all.

    Of data that are not in memory a part that is.
    """
    size = config.mixture.subset if takes_mixture(config) else 0
    if not size and isinstance(x, Stored):
        size = part_size(x)
    return min(size or len(x), len(x))


def fit_reference(
    config: Config, states: Rows, *, start: GaussianMixture | None = None
) -> tuple[Reference, Any]:
    """The reference fitted to states [N, d], and a report of the fit, to be read, or None.

    The fit of a mixture starts from the mixture `start` if there is one. Of states that are not in
    memory a part is read, as large as `fit_size` says.

    Raises:
      ValueError: settings that do not fit the data.
    """
    if isinstance(states, Stored) and fit_size(config, states) < len(states):
        logger.info(
            "the reference is fitted to %d of %d items, as these are not in memory%s",
            fit_size(config, states),
            len(states),
            " (mixture.subset)" if takes_mixture(config) else "",
        )
    if takes_mixture(config):
        return _fit_mixture(config, states, start)
    states = read(states, part(states, config.data.seed))
    if open_to_any(config):
        return _fit_other(config, states)
    if config.process.name == "variance_exploding":
        sigma_max = config.process.sigma_max or largest_distance(states)
        return references.standard_normal(states.shape[1], sigma_max**2), None
    return references.standard_normal(states.shape[1]), None


def check_sizes(config: Config, num: int, dim: int) -> None:
    """Raises ValueError where num items of dim dimensions cannot be noised or fitted.

    For their number, or for the memory it takes, by arithmetic alone: to look at shapes would take
    a part of that memory.
    """
    c, latent = config.noising, config.autoencoder
    dim = dim if latent.kind == "none" else latent.latent_dim
    states = config.train.batch_size * c.k * c.noises * dim
    memory.check(
        {"a minibatch": BYTES_A_STATE * float(states)},
        available_memory(),
        {"a minibatch": "lower train.batch_size, noising.k or noising.noises"},
    )
    if takes_mixture(config):
        _check_fit(config, num, dim)


BYTES_A_STATE = 32
"""Of a noised coordinate: itself, its target, what is drawn and what is told of it, at least."""


def _check_fit(config: Config, num: int, dim: int) -> None:
    c = config.mixture
    used = min(c.subset or num, num)
    components = c.num_components or max(k for k in LADDER if k <= max(1, used // 10))
    covariance = _largest_kind(c.covariance, dim)
    solver = references.solver_for(used, dim, components, covariance, c.solver)
    needed = references.fit_bytes(num, dim, components, covariance, c.rank, solver)
    memory.check(
        {"the mixture's fit": needed},
        available_memory(),
        {
            "the mixture's fit": "lower mixture.num_components, mixture.rank or data.num_train, or"
            " choose mixture.covariance=spherical"
        },
    )


def open_to_any(config: Config) -> bool:
    """Whether the process takes any reference."""
    return config.process.name in NONLINEAR or plugins.is_plugin(config.process.name)


def takes_mixture(config: Config) -> bool:
    """Whether a mixture is fitted to the data."""
    if config.process.name in IN_COMPONENTS:
        return True
    return open_to_any(config) and config.reference.name in ("auto", "mixture")


EXAMPLES = 256
"""Data points, at most, from which the structure of a reference of the user's own is found."""


def examples(config: Config, dataset: Dataset, frame: Frame | None = None) -> np.ndarray | None:
    """The first states [n, d], for a reference of the user's own; None where there is none."""
    if not (open_to_any(config) and plugins.is_plugin(config.reference.name)):
        return None
    return frames.states(frame or data_frame(config, dataset), dataset.train[:EXAMPLES])


def check_structure(config: Config, found: Reference, fitted: Reference) -> None:
    """Raises ValueError where two fits of a reference to other data differ in more than arrays.

    Such a reference could not be restored.
    """
    prints = [fingerprint(jax.tree.map(lambda a: 0, one)) for one in (found, fitted)]
    if prints[0] != prints[1]:
        raise ValueError(
            f"reference.name={config.reference.name!r}: what depends on the states must be arrays"
            " that are fields of a pytree (jax.tree_util.register_dataclass) or arguments of a"
            " jax.tree_util.Partial; static fields and closed-over numbers are not restored from a"
            " checkpoint"
        )


def stand_in(
    config: Config,
    shape: tuple[int, ...],
    value_range: tuple[float, float] | None = None,
    examples: np.ndarray | None = None,
    columns: tuple[Column, ...] = (),
    num_classes: int = 0,
) -> Parts:
    """Parts of the right structure without data, of items of a shape and a range, or of a table.

    examples: some states [n, d], for a reference of the user's own; see `examples`.
    num_classes: of the labels that the network is told; 0: it is told none.
    """
    frame, dim = _frame_stand_in(config, shape, value_range, columns)
    classes = _classes_stand_in(config, num_classes)
    starts = jnp.zeros((num_paths(dim), dim)) if chooses_windows(config) else None
    parts = partial(Parts, frame=frame, classes=classes, starts=starts)
    if takes_mixture(config):
        return parts(reference=_mixture_stand_in(config, dim))
    if open_to_any(config):
        return parts(reference=_other_stand_in(config, dim, examples))
    variance = (config.process.sigma_max or 1e3 * config.process.sigma_min) ** 2
    exploding = config.process.name == "variance_exploding"
    return parts(reference=references.standard_normal(dim, variance if exploding else 1.0))


def _classes_stand_in(config: Config, num_classes: int) -> Classes | None:
    if config.network.condition == "none":
        return None
    rows = (num_classes + 1, config.mixture.num_components or 2)
    log_weights = jnp.zeros(rows) if takes_mixture(config) else None
    return Classes(shares=jnp.ones(num_classes) / num_classes, log_weights=log_weights)


def _frame_stand_in(
    config: Config,
    shape: tuple[int, ...],
    value_range: tuple[float, float] | None,
    columns: tuple[Column, ...],
) -> tuple[Frame, int]:
    """A frame of the right structure, and the dimensions of its states."""
    c, dim = config.autoencoder, math.prod(shape)
    if c.kind != "none":
        network = autoencoder(config, dim)
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, dim)))
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
        return Latent(codec=standard_codec(network, params), seed=c.seed), c.latent_dim
    kind = frame_kind(config, shape, value_range, columns)
    if kind == "table":
        table = frame_like(columns)
        return table, table.dim
    if kind in ("standardised", "shared"):
        return frames.Standardised(shift=np.zeros(dim), scale=np.ones(dim)), dim
    if kind == "angles":
        return frames.Angles(start=np.full(dim, -0.5)), dim
    return (frames.Pixels() if kind == "pixels" else frames.Identity()), dim


def autoencoder(config: Config, dim: int) -> Autoencoder:
    """The network of the section autoencoder for items of `dim` dimensions."""
    c = config.autoencoder
    return Autoencoder(
        dim=dim, latent_dim=c.latent_dim, widths=c.widths, variational=c.kind == "vae"
    )


def _largest_kind(covariance: str, dim: int) -> str:
    """The kind itself, or the largest of those that auto chooses from."""
    return references.kinds_for(dim)[-1] if covariance == references.AUTO else covariance


def _mixture_stand_in(config: Config, dim: int) -> GaussianMixture:
    k = config.mixture.num_components or 2
    covariance = _largest_kind(config.mixture.covariance, dim)
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
    config: Config, states: Rows, start: GaussianMixture | None
) -> tuple[GaussianMixture, Any]:
    options = dataclasses.asdict(config.mixture)
    if isinstance(states, Stored):
        options["subset"] = fit_size(config, states)
    power = options.pop("weight_power")
    fitted, report = references.fit(states, options.pop("num_components"), start=start, **options)
    if power != 1:
        fitted = references.reweighted(fitted, power)
    return fitted, report


def _fit_other(config: Config, states: np.ndarray) -> tuple[Reference, Any]:
    """A reference that is no mixture, fitted to states, reweighted by them if that is asked for."""
    c = config.reference
    if c.name == "uniform_torus" and config.data.frame != "angles":
        raise ValueError(
            "reference.name='uniform_torus' is of coordinates with a period of 2 pi; set data.frame"
            " to angles, or choose another reference"
        )
    if plugins.is_plugin(c.name):
        made = plugins.call("reference", c.name, c.options, states)
        wanted = "a references.Reference"
        fitted = checked("reference", c.name, made, Reference, wanted, states.shape[1])
    else:
        fitted = FITS[c.name](states, **taken(FITS[c.name], c))
    if not c.reweight:
        return fitted, None
    key_states, key_fit = jax.random.split(jax.random.key(config.data.seed))
    items = np.asarray(fitted.sample(key_states, (TILT_ITEMS,)))
    partition = references.metastable_states(items, c.reweight, period=_period(config))
    return references.fit_tilt(fitted, states, partition, key=key_fit)


def _other_stand_in(config: Config, dim: int, items: np.ndarray | None) -> Reference:
    if items is None:
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
