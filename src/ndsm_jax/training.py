"""Training of a score network: compiled dispatches of many steps, resumed bitwise."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import logging
import pathlib
import platform
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ndsm_jax import __version__, loop, plots
from ndsm_jax.checkpointing import Checkpoints, read_host
from ndsm_jax.config import Config
from ndsm_jax.control_variates import exact_products, probe_products
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import Experiment, abstract_prior, build, fit_prior
from ndsm_jax.noising import NoisedBatch
from ndsm_jax.sampling import sample, start_components

logger = logging.getLogger(__name__)

# Streams folded into a root key: of train.seed the first two, of sample.seed the others.
STREAM_INIT, STREAM_STEPS, STREAM_SAMPLES, STREAM_PRIOR, STREAM_PICTURE = range(5)
# Streams folded into a step's key.
STREAM_NOISE, STREAM_PROBES = range(2)

PICTURE_SAMPLES = 64
"""Samples in an interim picture of images; four times as many points in the plane."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "params", "ema", "opt_state", "control"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that changes in training; with config, data and prior it determines the rest of the run.

    Attributes:
      step: steps done (int32 scalar).
      params: theta.
      ema: running average of theta, started at theta.
      opt_state: of theta.
      control: state of the control variate (phi and its optimiser, or the closed form's sums).
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    control: Any


def init_state(experiment: Experiment) -> TrainState:
    """The state before the first step, a function of train.seed alone."""
    key = jax.random.fold_in(jax.random.key(experiment.config.train.seed), STREAM_INIT)
    key_params, key_control = jax.random.split(key)
    params = experiment.model.init(key_params)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # its own buffers, as both are donated
        opt_state=experiment.optimizer.init(params),
        control=experiment.control.init(key_control),
    )


def batch_indices(seed: int, step: int, num_items: int, batch_size: int) -> np.ndarray:
    """Rows [batch_size] of the data used in a step, a function of (seed, step) alone.

    Every epoch is a fresh permutation; its last incomplete batch is dropped.
    """
    epoch, position = divmod(step, num_items // batch_size)
    start = position * batch_size
    return _epoch_order(seed, epoch, num_items)[start : start + batch_size]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_items: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_items).astype(np.int32)


def train_step(
    experiment: Experiment, state: TrainState, key: Array, batch: NoisedBatch
) -> tuple[TrainState, dict[str, Array]]:
    """One step of 2405.15625, Algorithm 1, for any objective: (state, metrics) from noised data.

    The theta-update uses eps(t) of the state. For an objective with a control variate, the products
    of per-sample gradients, at the updated theta as in the paper, update it every
    control_variate.period steps, and give an estimate of one sample's gradient variance (NaN
    otherwise).
    """
    config, model, control = experiment.config, experiment.model, experiment.control
    eps = control.eps(state.control, batch.t)

    def terms(params: Any, batch: NoisedBatch) -> tuple[Array, Array]:
        loss, control = experiment.objective.terms(model.bind(params, batch.component), batch)
        return loss, jnp.zeros_like(loss) if control is None else control

    def mean_loss(params: Any) -> Array:
        loss, control = terms(params, batch)
        return jnp.mean(loss + eps * control)

    loss, gradient = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = experiment.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(config.optimizer.ema_decay, state.step)
    ema = optax.incremental_update(params, state.ema, 1 - decay)

    c = config.control_variate

    def update_control(_: None) -> tuple[Any, Array]:
        if c.estimator == "exact":
            products = exact_products(terms, params, batch, chunk=c.chunk)
        else:
            products = probe_products(key, terms, params, batch, num_probes=c.num_probes)
        return control.update(state.control, batch.t, products), products.gradient_variance(eps)

    control_state, variance = state.control, jnp.float32(jnp.nan)
    if experiment.objective.controlled:
        control_state, variance = jax.lax.cond(
            (state.step + 1) % c.period == 0,
            update_control,
            lambda _: (control_state, variance),
            None,
        )
    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(gradient),
        "grad_variance": variance,
        "eps_mean": jnp.mean(eps),
        "eps_max": jnp.max(jnp.abs(eps)),
    }
    state = TrainState(
        step=state.step + 1, params=params, ema=ema, opt_state=opt_state, control=control_state
    )
    return state, metrics


def ema_decay(decay: float, step: Array) -> Array:
    """Decay of the average of the parameters in a step (from 0), at most `decay`.

    The ramp lets the average forget the initialisation while training is young.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


METRICS = ("loss", "grad_norm", "grad_variance", "eps_mean", "eps_max")
"""What `train_step` measures, one scalar each."""

MAX_AHEAD = 64
"""Minibatches noised in one dispatch at most: beyond, there is no latency left to save."""


def minibatches_ahead(experiment: Experiment) -> int:
    """How many minibatches are noised in one dispatch: as many as noising.ahead_mb holds."""
    c = experiment.config
    x0 = jax.ShapeDtypeStruct((c.train.batch_size, experiment.sde.dim), np.float32)
    batch = jax.eval_shape(experiment.noising, jax.random.key(0), x0)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return int(np.clip(c.noising.ahead_mb * 1e6 / size, 1, MAX_AHEAD))


NoiseFn = Callable[[Any, Array, np.ndarray, int], NoisedBatch]


def make_noise(experiment: Experiment) -> NoiseFn:
    """Compiles (arrays, data [N, d], rows [A, B], step) -> NoisedBatch, every field with [A, ...].

    Noising does not depend on theta, so that the minibatches of A steps, from `step` on, are noised
    at once: on a GPU, and for small states, its cost is latency. Each has the key of its own step.
    """
    root = _steps_root(experiment)

    def noise(arrays: Any, data: Array, rows: Array, step: Array) -> NoisedBatch:
        _, noising, _ = arrays
        steps = step + jnp.arange(rows.shape[0])
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(root, n), STREAM_NOISE))
        return jax.vmap(noising)(keys(steps), data[rows])

    return jax.jit(noise)


DispatchFn = Callable[[TrainState, Any, NoisedBatch, int, int], tuple[TrainState, dict[str, Any]]]


def make_dispatch(experiment: Experiment) -> DispatchFn:
    """Compiles (state, arrays, noised [A, ...], first, num) -> (state, metrics [A]).

    Runs `num` training steps on the minibatches from `first` on, without returning to the host.
    Both are arguments of the loop, so any number of steps runs the same code: one trace, and
    results that do not depend on how a run was cut into dispatches. The state is donated. `arrays`
    are `device_arrays(experiment)`, passed in so that they are no constants of the program.

    Convolutional networks on the CPU are stepped from the host instead: XLA compiles the weight
    gradient of a convolution some thirty times slower inside a loop (jax issue 12868), and their
    steps are long enough not to mind. For the same reason their control variate wants the estimator
    probes, not exact.
    """
    root = _steps_root(experiment)

    def step(state: TrainState, arrays: Any, noised: NoisedBatch, index: Array) -> Any:
        sde, noising, model = arrays
        current = dataclasses.replace(experiment, sde=sde, noising=noising, model=model)
        batch = jax.tree.map(lambda x: x[index], noised)
        key = jax.random.fold_in(jax.random.fold_in(root, state.step), STREAM_PROBES)
        return train_step(current, state, key, batch)

    def run(state: TrainState, arrays: Any, noised: NoisedBatch, first: Array, num: Array) -> Any:
        def body(i: Array, carry: Any) -> Any:
            state, metrics = carry
            state, now = step(state, arrays, noised, first + i)
            return state, {name: metrics[name].at[i].set(now[name]) for name in METRICS}

        capacity = noised.t.shape[0]
        metrics = {name: jnp.full(capacity, jnp.nan, jnp.float32) for name in METRICS}
        return jax.lax.fori_loop(0, num, body, (state, metrics))

    if experiment.config.network.name != "unet" or jax.default_backend() != "cpu":
        return jax.jit(run, donate_argnums=0)

    compiled = jax.jit(step, donate_argnums=0)

    def on_host(state: TrainState, arrays: Any, noised: NoisedBatch, first: int, num: int) -> Any:
        done = []
        for index in range(first, first + num):
            state, now = compiled(state, arrays, noised, index)
            done.append(now)
        return state, {name: jnp.stack([now[name] for now in done]) for name in METRICS}

    return on_host


def _steps_root(experiment: Experiment) -> Array:
    return jax.random.fold_in(jax.random.key(experiment.config.train.seed), STREAM_STEPS)


def device_arrays(experiment: Experiment) -> tuple[Any, Any, Any]:
    """The pytrees that the functions of `make_noise` and `make_dispatch` take."""
    return experiment.sde, experiment.noising, experiment.model


def restore(
    workdir: str | pathlib.Path, *, sample: Mapping[str, Any] | None = None
) -> tuple[Experiment, TrainState, dict[str, Any]]:
    """The experiment, newest good state and recorded facts of a run, without its data.

    `sample` replaces keys of the config's sample section.

    Raises:
      FileNotFoundError: no checkpoint in workdir.
      ValueError: every checkpoint is damaged.
    """
    directory = pathlib.Path(workdir) / "checkpoints"
    host = read_host(directory)
    tree = host["config"] | {"sample": host["config"]["sample"] | dict(sample or {})}
    return _restore(Config.from_dict(tree), tuple(host["data"]["shape"]), directory)


def _restore(
    config: Config, shape: tuple[int, ...], directory: pathlib.Path
) -> tuple[Experiment, TrainState, dict[str, Any]]:
    prior = abstract_prior(config, int(np.prod(shape)))
    stand_in = build(config, shape, prior)
    like = {"train": jax.eval_shape(lambda: init_state(stand_in)), "prior": prior}
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(like)
    experiment = build(config, shape, restored.state["prior"])
    return experiment, restored.state["train"], restored.host


RESUMABLE_CHANGES = frozenset(
    [
        "data.dir",
        "train.steps",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep",
        "train.picture_every",
        "train.tensorboard",
    ]
)
"""Keys, with the sections sample and evaluate, that may differ from the run that is resumed."""


def check_resumable(config: Config, host: dict[str, Any], dataset: Dataset) -> None:
    """Raises ValueError, naming the keys, when a checkpoint belongs to another experiment."""
    old, new = Config.from_dict(host["config"]).to_dict(), config.to_dict()
    free = set(RESUMABLE_CHANGES)
    if config.optimizer.schedule == "cosine":
        free.discard("train.steps")  # the schedule depends on it
    differing = [
        f"{section}.{key}: {old[section][key]!r} in the checkpoint, {value!r} now"
        + (" (the cosine schedule depends on it)" if key == "steps" and section == "train" else "")
        for section, values in new.items()
        for key, value in values.items()
        if section not in ("sample", "evaluate")
        and f"{section}.{key}" not in free
        and old[section][key] != value
    ]
    if host["data"]["digest"] != dataset.digest:
        differing.append("the data themselves (another file content)")
    if differing:
        raise ValueError(
            "the checkpoints in --workdir belong to another experiment; choose another --workdir or"
            " restore these settings:\n  " + "\n  ".join(differing)
        )


def host_facts(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint records beside arrays: config, data, versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"ndsm_jax": __version__, "python": platform.python_version()}
    data = {
        "name": dataset.name,
        "shape": list(dataset.shape),
        "digest": dataset.digest,
        "num_train": len(dataset.train),
        "source": dataset.source,
    }
    return {"config": config.to_dict(), "data": data, "versions": versions}


def train(
    config: Config, dataset: Dataset, workdir: str | pathlib.Path, *, progress: bool = True
) -> TrainState:
    """Trains to train.steps, resuming from the newest good checkpoint in workdir if there is one.

    Writes checkpoints/, metrics.jsonl, tensorboard/, images/, config.json and, when a mixture is
    fitted, mixture.txt. Ctrl-C and SIGTERM save a checkpoint before they take effect.

    Raises:
      loop.NonFiniteError: a loss, a gradient or the state was not finite.
      KeyboardInterrupt: after an interrupt, once the checkpoint is saved.
      ValueError: batch larger than the data, or workdir belongs to another experiment.
    """
    c = config.train
    if c.batch_size > len(dataset.train):
        raise ValueError(
            f"train.batch_size={c.batch_size} exceeds the {len(dataset.train)} training samples"
        )
    workdir = pathlib.Path(workdir)
    experiment, state = _start(config, dataset, workdir)
    step = int(state.step)
    if step >= c.steps:
        logger.info("nothing to do: step %d of train.steps=%d is saved", step, c.steps)
        return state
    facts = host_facts(config, dataset)
    (workdir / "config.json").write_text(json.dumps(facts, indent=2) + "\n")

    noise, dispatch = make_noise(experiment), make_dispatch(experiment)
    arrays = device_arrays(experiment)
    data = jnp.asarray(dataset.train)
    # A block of minibatches starts at a multiple of its size, wherever the run was resumed.
    block = minibatches_ahead(experiment)
    noised = None

    def advance(step: int, state: TrainState, most: int) -> tuple[TrainState, dict[str, Any]]:
        nonlocal noised
        first = step % block
        num = min(most, block - first)
        if noised is None or first == 0:
            numbers = range(step - first, step - first + block)
            rows = [batch_indices(c.seed, n, len(data), c.batch_size) for n in numbers]
            noised = noise(arrays, data, np.stack(rows), step - first)
        state, metrics = dispatch(state, arrays, noised, first, num)
        return state, {name: np.asarray(x)[:num] for name, x in metrics.items()}

    return loop.run(
        state,
        advance,
        workdir,
        c,
        first=step,
        last=c.steps,
        facts=facts,
        remedy="Lower optimizer.learning_rate, set optimizer.clip_norm, or raise"
        " noising.smallest_variance",
        pack=lambda state: {"train": state, "prior": experiment.sde.prior},
        picture=lambda state: _picture(experiment, state, dataset),
        progress=progress,
    )


def _start(
    config: Config, dataset: Dataset, workdir: pathlib.Path
) -> tuple[Experiment, TrainState]:
    directory = workdir / "checkpoints"
    if Checkpoints(directory).steps():
        check_resumable(config, read_host(directory), dataset)
        experiment, state, _ = _restore(config, dataset.shape, directory)
        logger.info("resuming %s from step %d", workdir, int(state.step))
        return experiment, state
    build(config, dataset.shape, abstract_prior(config, dataset.dim))  # contradictions show here
    prior, report = fit_prior(config, dataset)
    experiment = build(config, dataset.shape, prior)
    workdir.mkdir(parents=True, exist_ok=True)
    if report is not None:
        logger.info("%s", report)
        (workdir / "mixture.txt").write_text(f"{report}\n")
    return experiment, init_state(experiment)


def _picture(experiment: Experiment, state: TrainState, dataset: Dataset) -> np.ndarray:
    num = PICTURE_SAMPLES if dataset.is_image else 16 * PICTURE_SAMPLES
    x = _sample(experiment, state, STREAM_PICTURE, num, chunk=num, progress=False)
    return plots.render(plots.samples_figure(x, dataset.shape, reference=dataset.test[:num]))


def draw(
    experiment: Experiment,
    state: TrainState,
    num: int,
    *,
    components: np.ndarray | None = None,
    progress: bool,
) -> np.ndarray:
    """`num` samples [num, d] of a trained model, as the config's sample section says.

    From given `components` of the prior [num], or from those of `draw_components`.
    """
    chunk = experiment.config.sample.chunk
    return _sample(
        experiment,
        state,
        STREAM_SAMPLES,
        num,
        components=components,
        chunk=chunk,
        progress=progress,
    )


def draw_components(
    experiment: Experiment, num: int, *, log_weights: np.ndarray | None = None
) -> np.ndarray:
    """Components [num] from which `draw` starts; by `log_weights` [K] or [num, K] if given."""
    weights = experiment.sde.prior.log_weights if log_weights is None else jnp.asarray(log_weights)
    key = jax.random.fold_in(jax.random.key(experiment.config.sample.seed), STREAM_SAMPLES)
    index = jnp.arange(num, dtype=jnp.uint32)
    return np.asarray(start_components(key, index, weights))


def draw_prior(experiment: Experiment, num: int) -> np.ndarray:
    """`num` draws [num, d] from the law at the horizon."""
    key = jax.random.key(experiment.config.sample.seed)
    return np.asarray(experiment.sde.prior.sample(jax.random.fold_in(key, STREAM_PRIOR), (num,)))


def _sample(
    experiment: Experiment,
    state: TrainState,
    stream: int,
    num: int,
    *,
    components: np.ndarray | None = None,
    chunk: int,
    progress: bool,
) -> np.ndarray:
    c = experiment.config.sample
    return sample(
        jax.random.fold_in(jax.random.key(c.seed), stream),
        experiment.model.bind(state.ema if c.ema else state.params),
        experiment.sde,
        num,
        grid=experiment.sample_grid,
        sampler=c.sampler,
        components=components,
        churn=c.churn,
        rtol=c.rtol,
        atol=c.atol,
        langevin_steps=c.langevin_steps,
        chunk=chunk,
        progress=progress,
    )
