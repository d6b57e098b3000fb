"""Training of the autoencoder, of the score model of its latents, and of both together.

W/autoencoder/   checkpoints, metrics.jsonl, reconstructions.png
W/score/         an ordinary run whose frame is the autoencoder, for sample.py and evaluate.py too
W/joint/         checkpoints, metrics.jsonl
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ndsm_jax import frames, plots
from ndsm_jax.codec import Codec, Latent, decode, encode, posterior, standard_codec, standardised
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import autoencoder, fit_reference, takes_mixture
from ndsm_jax.datasets import Dataset, batch_indices
from ndsm_jax.experiment import Experiment
from ndsm_jax.latent.objective import joint_terms, normal_divergence, reconstruction_loss
from ndsm_jax.launch import Restored, foreseen, launch, restore, set_aside
from ndsm_jax.optimisation import averaged, descend
from ndsm_jax.rows import part_size
from ndsm_jax.runs import Run, fingerprint, has_checkpoints, loop, replace_file

logger = logging.getLogger(__name__)

# Streams folded into a root key, of autoencoder.seed the first two, of train.seed the last; see
# codec.STREAM_ENCODE for the one between.
STREAM_INIT, STREAM_STEPS, STREAM_JOINT = 0, 1, 3

Tree = dict[str, Any]
Metrics = Mapping[str, Any]


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
    if config.joint.steps and config.network.condition != "none":
        raise ValueError(
            f"joint.steps={config.joint.steps}: joint training tells the network no labels; set"
            " joint.steps to 0, or network.condition to none"
        )
    if config.joint.steps and config.joint.batch_size > len(dataset.train):
        raise ValueError(
            f"joint.batch_size={config.joint.batch_size} exceeds the {len(dataset.train)} training"
            " samples"
        )


def train_latent(
    config: Config,
    dataset: Dataset,
    workdir: str | pathlib.Path,
    *,
    allow_changed_source: bool = False,
    progress: bool = True,
) -> Restored:
    """All stages in workdir, each resumed or, where finished, kept: see the module's docstring.

    What the config and the data decide is checked for all stages before the first one.

    Raises:
      ValueError: see `check_data`, `launch.launch` and `train_joint`.
      loop.NonFiniteError: a loss was not finite.
    """
    workdir, score = pathlib.Path(workdir), score_config(config)
    check_data(config, dataset)
    if not has_checkpoints(workdir / "score"):
        _, experiment, _ = foreseen(score, set_aside(score, dataset)[0])
        if config.joint.steps:
            check_joint(score, experiment)
    codec = train_autoencoder(config, dataset, workdir / "autoencoder", progress=progress)
    launch(
        score,
        dataset,
        workdir / "score",
        frame=frame_of(config, codec),
        allow_changed_source=allow_changed_source,
        progress=progress,
    )
    run = restore(
        workdir / "score",
        sample=dataclasses.asdict(config.sample),
        allow_changed_source=allow_changed_source,
    )
    if not config.joint.steps:
        return run
    return train_joint(config, dataset, run, workdir / "joint", progress=progress)


def frame_of(config: Config, codec: Codec) -> Latent:
    """The latent space of a trained codec as a frame."""
    return Latent(codec=codec, seed=config.autoencoder.seed)


def score_config(config: Config) -> Config:
    """The config of the score model alone, without what comes after it."""
    return dataclasses.replace(config, joint=Config().joint)


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
    """SECTION.steps steps of `one`, from the state in `folder` or that of `init`."""
    c = config.train
    run = Run(
        folder=folder,
        facts=facts,
        upgrade=partial(_upgraded, tuple(facts["settings"])),
        log_every=c.log_every,
        checkpoint_every=c.checkpoint_every,
        keep=c.keep,
        tensorboard=c.tensorboard,
    )

    def counted(step: int, state: Tree) -> tuple[Tree, Metrics]:
        state, metrics = one(step, state)
        return state | {"step": jnp.int32(step + 1)}, metrics

    restored = run.resume(jax.eval_shape(init))
    state = init() if restored is None else restored.state
    return loop.run(
        state,
        loop.one_by_one(counted),
        run,
        first=int(state["step"]),
        last=getattr(config, section).steps,
        remedy=f"Lower {section}.learning_rate",
        name=section,
        progress=progress,
    )


def _facts(settings: Config, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint records beside arrays: what has to be the same for it to be resumed."""
    data = dataclasses.replace(settings.data, dir="")  # the digest says what they are
    settings = dataclasses.replace(settings, data=data)
    return {"settings": settings.to_dict(), "digest": dataset.digest}


def _upgraded(sections: tuple[str, ...], host: dict[str, Any]) -> dict[str, Any]:
    # Settings that were added since have the values that the run had without them; sections that
    # do not matter, which an autoencoder of before has as well, are left out.
    settings = Config.from_dict(host["settings"]).to_dict()
    return host | {"settings": {name: settings[name] for name in sections}}


# --- the autoencoder ---


def train_autoencoder(
    config: Config, dataset: Dataset, folder: str | pathlib.Path, *, progress: bool = True
) -> Codec:
    """Trains the autoencoder, or goes on where an earlier call stopped.

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
    network = autoencoder(config, dataset.dim)
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

        done = descend(loss, codec.params, state["optimizer"], optimizer, has_aux=True)
        codec = dataclasses.replace(codec, params=done.params)
        metrics = {"loss": done.loss, **done.aux}
        return state | {"codec": codec, "optimizer": done.moments}, metrics

    seen = dataset.in_part(c.seed)

    def one(step: int, state: Tree) -> tuple[Tree, Metrics]:
        rows = batch_indices(c.seed, step, len(dataset.train), c.batch_size)
        state, metrics = update(state, dataset.train[rows], step)
        if step + 1 == c.steps:
            state |= {"codec": standardised(state["codec"], seen.train, seed=c.seed)}
        return state, metrics

    facts = _facts(config, dataset)
    facts |= {"settings": {"autoencoder": facts["settings"]["autoencoder"]}}
    state = _train(config, "autoencoder", folder, facts, init, one, progress=progress)
    codec = state["codec"]
    if not (folder / "reconstructions.png").exists():
        figure = reconstruction_figure(codec, dataset)
        replace_file(folder / "reconstructions.png", plots.png(figure))
    return codec


def reconstruction_figure(codec: Codec, dataset: Dataset, *, columns: int = 12) -> Any:
    """Held-out images above their reconstructions from the posterior's mean."""
    x = dataset.test[np.random.default_rng(0).permutation(len(dataset.test))[:columns]]
    mean, _ = posterior(codec, x)
    rows = {"held out": x, "reconstruction": decode(codec, mean)}
    return plots.rows_figure(rows, dataset.shape, columns=columns)


# --- autoencoder and score model together ---


def check_joint(score: Config, experiment: Experiment) -> None:
    """Raises ValueError where joint training cannot go on from such a score model."""
    name = score.process.name
    if not takes_mixture(score) or frames.component_mixture(experiment.frame) is not None:
        raise ValueError(
            "joint training fits the mixture again, and noises in all of the latent space; with"
            f" process.name={name!r} it cannot: choose langevin, or set joint.steps to 0"
        )
    if experiment.process.noisy is not None:
        raise ValueError(
            f"joint training needs noise in every coordinate, and that of process.name={name!r} is"
            " not; choose langevin, or set joint.steps to 0"
        )


def train_joint(
    config: Config,
    dataset: Dataset,
    start: Restored,
    folder: str | pathlib.Path,
    *,
    progress: bool = True,
) -> Restored:
    """Trains encoder, decoder and score network together (2512.06615), from pretrained ones.

    Minimises reconstruction + beta (cross_entropy - entropy), see `objective.joint_terms`, by Adam,
    in the coordinates of the pretrained codec; beta is the autoencoder's. The mixture, prior and
    drift, is frozen for joint.refit_every steps, then fitted again to the current latents by EM,
    started from itself. The averages of all parameters are what is returned.

    Args:
      config: its joint section; the others are those of `start`.
      dataset: the items.
      start: a score model in the latents of a variational autoencoder.
      folder: of the run; an earlier call's is resumed.

    Raises:
      ValueError: a process without a fitted mixture of its own, a plain autoencoder, or the folder
        of a run with other settings or another start.
      loop.NonFiniteError: a loss was not finite.
    """
    check_data(config, dataset)
    check_joint(start.config, start.experiment)
    c, folder = config.joint, pathlib.Path(folder)
    score, frame = start.config, start.experiment.frame
    assert isinstance(frame, Latent)
    codec, shape, beta = frame.codec, start.shape, config.autoencoder.beta
    root = jax.random.fold_in(jax.random.key(config.train.seed), STREAM_JOINT)
    optimizer = optax.chain(optax.clip_by_global_norm(c.clip_norm), optax.adam(c.learning_rate))

    def init() -> Tree:
        params = jax.tree.map(jnp.copy, {"codec": codec.params, "score": start.state.chosen})
        return {
            "step": jnp.int32(0),
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "optimizer": optimizer.init(params),
            "prior": start.experiment.process.reference,
        }

    def arrays(prior: Any) -> tuple[Any, ...]:
        now = build(score, shape, dataclasses.replace(start.parts, reference=prior), quiet=True)
        return now.process, now.noising.times, now.model

    @partial(jax.jit, donate_argnums=0)
    def update(state: Tree, arrays: Any, x: Array, step: Array) -> tuple[Tree, Metrics]:
        process, times, model = arrays
        key = jax.random.fold_in(root, step)

        def loss(params: Any) -> tuple[Array, Metrics]:
            current = dataclasses.replace(codec, params=params["codec"])
            score_fn = partial(model, params["score"])
            terms = joint_terms(key, current, score_fn, process, times, x, k=c.k)
            terms = {name: term.mean() for name, term in terms.items()}
            divergence = terms["cross_entropy"] - terms["entropy"]
            return terms["reconstruction"] + beta * divergence, terms

        done = descend(loss, state["params"], state["optimizer"], optimizer, has_aux=True)
        ema = averaged(state["ema"], done.params, config.optimizer.ema_decay[0], step)
        state = state | {"params": done.params, "ema": ema, "optimizer": done.moments}
        norm = optax.global_norm(done.gradient)
        return state, {"loss": done.loss, "grad_norm": norm, **done.aux}

    current: dict[str, Any] = {}
    one_start = dataclasses.replace(score, mixture=dataclasses.replace(score.mixture, num_inits=1))

    def refit(state: Tree, step: int) -> Tree:
        now = dataclasses.replace(codec, params=state["params"]["codec"])
        rows = np.random.default_rng([config.train.seed, step]).permutation(len(dataset.train))
        rows = rows[: one_start.mixture.subset or part_size(dataset.train)]
        z = encode(now, dataset.train[rows], seed=step)
        prior, report = fit_reference(one_start, z, start=state["prior"])
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

    settings = dataclasses.replace(score, autoencoder=config.autoencoder, joint=c)
    facts = _facts(settings, dataset) | {"start": fingerprint((codec, start.state.chosen))}
    state = _train(config, "joint", folder, facts, init, one, progress=progress)
    ema = state["ema"]
    trained = frame_of(config, dataclasses.replace(codec, params=ema["codec"]))
    parts = dataclasses.replace(start.parts, frame=trained, reference=state["prior"])
    return dataclasses.replace(
        start,
        experiment=build(score, shape, parts),
        parts=parts,
        state=dataclasses.replace(
            start.state, params=ema["score"], ema=ema["score"], others=(), best=None
        ),
        folder=folder,
    )
