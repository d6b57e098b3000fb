"""Training of the autoencoder, of the score model of its latents, and of both together.

W/autoencoder/   checkpoints, metrics.jsonl, reconstructions.png, latents.npz
W/score/         an ordinary run on those latents, for experiments/sample.py and evaluate.py too
W/joint/         checkpoints, metrics.jsonl
"""

from __future__ import annotations

import dataclasses
import io
import logging
import pathlib
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ndsm_jax import gmm, loop, plots
from ndsm_jax.checkpointing import Checkpoints, read_host
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import Experiment, build, fit_prior
from ndsm_jax.latent.objective import (
    Codec,
    joint_terms,
    normal_divergence,
    reconstruction_loss,
    standard_codec,
)
from ndsm_jax.networks import Autoencoder
from ndsm_jax.training import (
    TrainState,
    batch_indices,
    ema_decay,
    restore,
    train,
)
from ndsm_jax.writers import replace_file

logger = logging.getLogger(__name__)

CHUNK = 1000
"""Items encoded or decoded at a time."""

# Streams folded into a root key, of autoencoder.seed the first three, of train.seed the last.
STREAM_INIT, STREAM_STEPS, STREAM_ENCODE, STREAM_JOINT = range(4)

Tree = dict[str, Any]
Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentModel:
    """An autoencoder with a trained score model of its latents.

    Attributes:
      codec: between items and the score model's states.
      experiment, state: of the score model; what `training.draw` takes.
    """

    codec: Codec
    experiment: Experiment
    state: TrainState


def check_data(config: Config, dataset: Dataset) -> None:
    """Raises ValueError where there is no autoencoder to train, or its likelihood does not fit."""
    c = config.autoencoder
    if c.kind == "none":
        raise ValueError(
            "autoencoder.kind='none': set it to 'vae' or 'ae' (configs/latent.py does), or train in"
            " the data's own space with experiments/train.py"
        )
    if dataset.value_range != (-1.0, 1.0):
        raise ValueError(
            f"the decoder's Bernoulli likelihood needs items within [-1, 1], and data.name="
            f"{dataset.name!r} has the range {dataset.value_range}; give images, as uint8"
        )
    if c.batch_size > len(dataset.train):
        raise ValueError(
            f"autoencoder.batch_size={c.batch_size} exceeds the {len(dataset.train)} training"
            " samples"
        )
    if config.joint.steps and c.kind != "vae":
        raise ValueError(
            f"joint.steps={config.joint.steps} needs autoencoder.kind='vae', whose posterior has an"
            " entropy; or set joint.steps to 0"
        )
    if config.joint.steps and config.joint.batch_size > len(dataset.train):
        raise ValueError(
            f"joint.batch_size={config.joint.batch_size} exceeds the {len(dataset.train)} training"
            " samples"
        )


def train_latent(
    config: Config, dataset: Dataset, workdir: str | pathlib.Path, *, progress: bool = True
) -> LatentModel:
    """All stages in workdir, each resumed or, where finished, kept: see the module's docstring.

    Raises:
      ValueError: see `check_data`, `training.train` and `train_joint`.
      loop.NonFiniteError: a loss was not finite.
    """
    workdir = pathlib.Path(workdir)
    codec = train_autoencoder(config, dataset, workdir / "autoencoder", progress=progress)
    latents = encode_dataset(codec, dataset, seed=config.autoencoder.seed)
    train(
        score_config(config, workdir / "autoencoder"),
        latents,
        workdir / "score",
        progress=progress,
    )
    sample = dataclasses.asdict(config.sample)
    experiment, state, _ = restore(workdir / "score", sample=sample)
    model = LatentModel(codec=codec, experiment=experiment, state=state)
    if not config.joint.steps:
        return model
    return train_joint(config, dataset, model, workdir / "joint", progress=progress)


def score_config(config: Config, autoencoder: pathlib.Path) -> Config:
    """The config of the score model of the latents that the autoencoder's folder holds.

    That of an ordinary run on an array of data.
    """
    default = Config()
    path = str(autoencoder / "latents.npz")
    data = dataclasses.replace(default.data, name="array", dir=path)
    return dataclasses.replace(
        config, data=data, autoencoder=default.autoencoder, joint=default.joint
    )


# --- what both stages of training share ---


def _train(
    config: Config,
    section: str,
    folder: pathlib.Path,
    facts: Tree,
    init: Callable[[], Tree],
    one: Callable[[int, Tree], tuple[Tree, Metrics]],
    *,
    progress: bool,
) -> Tree:
    """SECTION.steps steps of `one`, from the state in `folder` or that of `init`.

    From the host, as training.make_dispatch steps convolutions on the CPU; these steps are long
    enough not to mind.
    """

    def advance(step: int, state: Tree, most: int) -> tuple[Tree, dict[str, np.ndarray]]:
        done = []
        for now in range(step, step + most):
            state, metrics = one(now, state)
            done.append(metrics)
        stacked = {name: np.asarray(jnp.stack([m[name] for m in done])) for name in done[0]}
        return state | {"step": jnp.int32(step + most)}, stacked

    state = _resume(folder, facts, jax.eval_shape(init)) or init()
    return loop.run(
        state,
        advance,
        folder,
        config.train,
        first=int(state["step"]),
        last=getattr(config, section).steps,
        facts=facts,
        remedy=f"Lower {section}.learning_rate.",
        name=section,
        progress=progress,
    )


def _facts(settings: Config, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint records beside arrays: what has to be the same for it to be resumed."""
    data = dataclasses.replace(settings.data, dir="")  # the digest says what they are
    settings = dataclasses.replace(settings, data=data)
    return {"settings": settings.to_dict(), "digest": dataset.digest}


def _resume(folder: pathlib.Path, facts: Tree, like: Tree) -> Tree | None:
    """The newest good state in `folder`, or None where there is none.

    Raises:
      ValueError: it was trained with other settings or on other data.
    """
    directory = folder / "checkpoints"
    if not Checkpoints(directory).steps():
        return None
    host = read_host(directory)
    # Settings that were added since have the values that the run had without them.
    host["settings"] = Config.from_dict(host["settings"]).to_dict()
    if host != facts:
        raise ValueError(
            f"{folder} was trained with other settings or on other data; choose another --workdir"
            " or delete it"
        )
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(like).state


# --- the autoencoder ---


def build_network(config: Config, dim: int) -> Autoencoder:
    """The autoencoder of items of `dim` dimensions."""
    c = config.autoencoder
    return Autoencoder(
        dim=dim,
        latent_dim=c.latent_dim,
        widths=c.widths,
        variational=c.kind == "vae",
    )


def train_autoencoder(
    config: Config, dataset: Dataset, folder: str | pathlib.Path, *, progress: bool = True
) -> Codec:
    """Trains the autoencoder, or goes on where an earlier call stopped, and writes latents.npz.

    -E_q log p(x | z) + beta KL(q(z | x) || N(0, I)) (1312.6114, Eq. 3; beta: Higgins et al. 2017),
    beta rising linearly from 0 over the first autoencoder.anneal_steps; a plain autoencoder has the
    first term alone. Adam with a cosine decay. At the end the codec's coordinates are set to the
    moments of the training latents.

    Raises:
      ValueError: see `check_data`; or the folder holds another autoencoder.
      loop.NonFiniteError: the loss was not finite.
    """
    check_data(config, dataset)
    c, folder = config.autoencoder, pathlib.Path(folder)
    network = build_network(config, dataset.dim)
    root = jax.random.key(c.seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(c.learning_rate, c.steps))

    def init() -> Tree:
        key = jax.random.fold_in(root, STREAM_INIT)
        params = network.init(key, jnp.zeros((1, dataset.dim)))
        codec = standard_codec(network, params)
        return {"step": jnp.int32(0), "codec": codec, "optimizer": optimizer.init(params)}

    @partial(jax.jit, donate_argnums=0)
    def update(state: Tree, x: Array, step: Array) -> tuple[Tree, Metrics]:
        codec = state["codec"]
        key = jax.random.fold_in(jax.random.fold_in(root, STREAM_STEPS), step)

        def loss(params: Any) -> tuple[Array, Metrics]:
            current = dataclasses.replace(codec, params=params)
            mean, std = current.posterior(x)
            z = mean + std * jax.random.normal(key, mean.shape)
            terms = {"reconstruction": reconstruction_loss(current.logits(z), x).mean()}
            if not network.variational:
                return terms["reconstruction"], terms
            terms["divergence"] = normal_divergence(mean, std).mean()
            beta = c.beta * jnp.minimum(1.0, (step + 1) / max(c.anneal_steps, 1))
            return terms["reconstruction"] + beta * terms["divergence"], terms

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(codec.params)
        updates, moments = optimizer.update(gradient, state["optimizer"], codec.params)
        params = optax.apply_updates(codec.params, updates)
        codec = dataclasses.replace(codec, params=params)
        return state | {"codec": codec, "optimizer": moments}, {"loss": value, **terms}

    def one(step: int, state: Tree) -> tuple[Tree, Metrics]:
        rows = batch_indices(c.seed, step, len(dataset.train), c.batch_size)
        state, metrics = update(state, dataset.train[rows], step)
        if step + 1 == c.steps:
            state |= {"codec": standardised(state["codec"], dataset.train, seed=c.seed)}
        return state, metrics

    facts = _facts(dataclasses.replace(Config(), autoencoder=c), dataset)
    state = _train(config, "autoencoder", folder, facts, init, one, progress=progress)
    codec = state["codec"]
    if not (folder / "latents.npz").exists():
        _write_latents(folder / "latents.npz", encode_dataset(codec, dataset, seed=c.seed))
        figure = reconstruction_figure(codec, dataset)
        (folder / "reconstructions.png").write_bytes(plots.png(figure))
    return codec


def encode(codec: Codec, x: np.ndarray, *, seed: int) -> np.ndarray:
    """Draws z [n, latent_dim] from the posteriors of items x [n, d], a function of the seed."""
    key = jax.random.fold_in(jax.random.key(seed), STREAM_ENCODE)
    mean, std = _chunked(_posterior, codec, x)
    return mean + std * np.asarray(jax.random.normal(key, mean.shape))


def decode(codec: Codec, z: np.ndarray) -> np.ndarray:
    """Mean items [n, d] in [-1, 1] of latents z [n, latent_dim]."""
    return _chunked(_decode, codec, z)[0]


def standardised(codec: Codec, x: np.ndarray, *, seed: int) -> Codec:
    """The codec in coordinates in which draws of `encode` have mean 0 and variance 1 each."""
    z = encode(codec, x, seed=seed)
    return dataclasses.replace(
        codec,
        shift=codec.shift + codec.scale * z.mean(axis=0),
        scale=codec.scale * np.maximum(z.std(axis=0), 1e-6),  # a coordinate may have died
    )


def encode_dataset(codec: Codec, dataset: Dataset, *, seed: int) -> Dataset:
    """The data set of the latents, of one draw an item, with the items' labels."""
    return dataclasses.replace(
        dataset,
        name=f"latent {dataset.name}",
        train=encode(codec, dataset.train, seed=seed),
        test=encode(codec, dataset.test, seed=seed + 1),
        shape=(codec.shift.shape[0],),
        value_range=None,
        source=f"latents of {dataset.source}",
    )


def _write_latents(path: pathlib.Path, latents: Dataset) -> None:
    """A file for data.name=array."""
    arrays: dict[str, Any] = {"x": latents.train, "test": latents.test}
    arrays |= {"labels": latents.train_labels, "test_labels": latents.test_labels}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: a for name, a in arrays.items() if a is not None})
    replace_file(path, buffer.getvalue())


@jax.jit
def _posterior(codec: Codec, x: Array) -> tuple[Array, Array]:
    return codec.posterior(x)


@jax.jit
def _decode(codec: Codec, z: Array) -> tuple[Array]:
    return (codec.decode(z),)


def _chunked(function: Any, codec: Codec, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays [n, ...] of function(codec, x), in chunks of one size: it compiles once."""
    size = min(CHUNK, len(x))
    padded = np.pad(np.asarray(x, np.float32), ((0, -len(x) % size), (0, 0)))
    parts = [function(codec, part) for part in padded.reshape(-1, size, x.shape[1])]
    return tuple(np.concatenate(part)[: len(x)] for part in zip(*parts, strict=True))


def reconstruction_figure(codec: Codec, dataset: Dataset, *, columns: int = 12) -> Any:
    """Held-out images above their reconstructions from the posterior's mean."""
    x = np.random.default_rng(0).permutation(dataset.test)[:columns]
    mean, _ = _chunked(_posterior, codec, x)
    rows = {"held out": x, "reconstruction": decode(codec, mean)}
    return plots.rows_figure(rows, dataset.shape, columns=columns)


# --- autoencoder and score model together ---


def train_joint(
    config: Config,
    dataset: Dataset,
    start: LatentModel,
    folder: str | pathlib.Path,
    *,
    progress: bool = True,
) -> LatentModel:
    """Trains encoder, decoder and score network together (2512.06615), from pretrained ones.

    Minimises reconstruction + beta (cross_entropy - entropy), see `objective.joint_terms`, by Adam,
    in the coordinates of the pretrained codec; beta is the autoencoder's. The mixture, prior and
    drift, is frozen for joint.refit_every steps, then fitted again to the current latents by EM,
    started from itself. The averages of all parameters are what is returned.

    Args:
      config: its joint section; the others are those of `start`.
      dataset: the items.
      start: a variational autoencoder and a score model of its latents.
      folder: of the run; an earlier call's is resumed.

    Raises:
      ValueError: a process other than mixture_langevin, a plain autoencoder, or the folder of a run
        with other settings or another start.
      loop.NonFiniteError: a loss was not finite.
    """
    check_data(config, dataset)
    c, folder = config.joint, pathlib.Path(folder)
    if start.experiment.sde.name != "mixture_langevin":
        raise ValueError(
            f"joint training fits the mixture again, and process.name={start.experiment.sde.name!r}"
            " has none; choose mixture_langevin, or set joint.steps to 0"
        )
    codec, shape = start.codec, start.experiment.shape
    score_config, beta = start.experiment.config, config.autoencoder.beta
    root = jax.random.fold_in(jax.random.key(config.train.seed), STREAM_JOINT)
    optimizer = optax.chain(optax.clip_by_global_norm(c.clip_norm), optax.adam(c.learning_rate))

    def init() -> Tree:
        ema = start.state.ema
        params = jax.tree.map(jnp.copy, {"codec": codec.params, "score": ema})
        return {
            "step": jnp.int32(0),
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "optimizer": optimizer.init(params),
            "prior": start.experiment.sde.prior,
        }

    def arrays(prior: gmm.GaussianMixture) -> tuple[Any, ...]:
        now = build(score_config, shape, prior)
        return now.sde, now.noising.times, now.model

    @partial(jax.jit, donate_argnums=0)
    def update(state: Tree, arrays: Any, x: Array, step: Array) -> tuple[Tree, Metrics]:
        sde, times, model = arrays
        key = jax.random.fold_in(root, step)

        def loss(params: Any) -> tuple[Array, Metrics]:
            current = dataclasses.replace(codec, params=params["codec"])
            score_fn = partial(model, params["score"])
            terms = joint_terms(key, current, score_fn, sde, times, x, k=c.k)
            terms = {name: term.mean() for name, term in terms.items()}
            divergence = terms["cross_entropy"] - terms["entropy"]
            return terms["reconstruction"] + beta * divergence, terms

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"])
        updates, moments = optimizer.update(gradient, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        decay = ema_decay(config.optimizer.ema_decay, step)
        ema = optax.incremental_update(params, state["ema"], 1 - decay)
        state = state | {"params": params, "ema": ema, "optimizer": moments}
        norm = optax.global_norm(gradient)
        return state, {"loss": value, "grad_norm": norm, **terms}

    current: dict[str, Any] = {}
    one_start = dataclasses.replace(
        score_config, mixture=dataclasses.replace(score_config.mixture, num_inits=1)
    )

    def refit(state: Tree, step: int) -> Tree:
        now = dataclasses.replace(codec, params=state["params"]["codec"])
        rows = np.random.default_rng([config.train.seed, step]).permutation(len(dataset.train))
        z = encode(now, dataset.train[rows[: one_start.mixture.subset or len(rows)]], seed=step)
        latents = dataclasses.replace(dataset, train=z)
        prior, report = fit_prior(one_start, latents, start=state["prior"])
        logger.info("step %d: %s", step, report)
        return state | {"prior": prior}

    def one(step: int, state: Tree) -> tuple[Tree, Metrics]:
        if step and step % c.refit_every == 0:
            state = refit(state, step)
            current.clear()
        if not current:
            current["arrays"] = arrays(state["prior"])
        rows = batch_indices(config.train.seed, step, len(dataset.train), c.batch_size)
        prior = state.pop("prior")  # not donated
        state, metrics = update(state, current["arrays"], dataset.train[rows], step)
        return state | {"prior": prior}, metrics

    settings = dataclasses.replace(score_config, autoencoder=config.autoencoder, joint=c)
    facts = _facts(settings, dataset) | {"start": fingerprint((codec, start.state.ema))}
    state = _train(config, "joint", folder, facts, init, one, progress=progress)
    experiment = build(score_config, shape, state["prior"])
    ema = state["ema"]
    return LatentModel(
        codec=dataclasses.replace(codec, params=ema["codec"]),
        experiment=experiment,
        state=dataclasses.replace(start.state, params=ema["score"], ema=ema["score"]),
    )


def fingerprint(tree: Any) -> int:
    """CRC32 of the bytes of a pytree's arrays."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return crc
