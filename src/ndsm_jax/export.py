"""A trained model as one file that JAX alone runs, and its parameters as safetensors.

The file is a zip archive: programs serialised by `jax.export`, the arrays that they share, a
manifest, and a model card. Nothing in it is pickled. `exported.load` reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax import exported, frames, training
from ndsm_jax.checks import FILE, FLAG, FOLDER, FUNCTION, Needs, arguments, sequence
from ndsm_jax.conditions import Classes, joined
from ndsm_jax.config.assemble import build
from ndsm_jax.contrast import Contrast
from ndsm_jax.frames import Frame
from ndsm_jax.launch import check_replaced
from ndsm_jax.likelihood import Flow
from ndsm_jax.model import MODEL, Model, load
from ndsm_jax.processes import Process
from ndsm_jax.references import GaussianMixture
from ndsm_jax.reports.card import card, is_card, metrics_of
from ndsm_jax.runs import aside, check_output, replace_file
from ndsm_jax.sampling import Sampler, sample_chunk, start_components
from ndsm_jax.training.draw import draw_labels
from ndsm_jax.training.likelihood import DRAWS, SMALLEST_SHARE, class_start
from ndsm_jax.training.state import STREAM_LIKELIHOOD, STREAM_SAMPLES

logger = logging.getLogger(__name__)

FORMAT = "ndsm_jax.export 1"
"""Of the archive, in its manifest; raised when readers of the last one would not understand."""

PLATFORMS = ("cpu", "cuda", "tpu")

PLATFORM = sequence(
    Needs("a word", lambda v: isinstance(v, str)),
    f"a list of some of {', '.join(PLATFORMS)}",
    fewest=1,
)

CHECKED = 4
"""Samples by which a file is compared with its run, once it is written."""

REMEDY = "choose another one: --sampler=multistep_sde or --sampler=reverse_sde"
"""Where a sampler cannot be exported."""

_VISIT = 0xFFFFFFFD
"""Stream of the state drawn for an item; no probe has this number."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "score",
        "guided",
        "process",
        "frame",
        "sampler",
        "sample_grid",
        "density_grid",
        "log_dets",
        "classes",
        "start",
    ),
    meta_fields=("density",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Core:
    """All that the programs compute with: a pytree whose arrays they share.

    Attributes:
      score: of the parameters that sampling uses.
      guided: the score that samples are drawn with, see `contrast`.
      process, frame: of the experiment.
      sampler: planned.
      sample_grid, density_grid: times [n + 1].
      log_dets: of the covariances of the components in which states live [K], else empty.
      classes: that the network is told, or None.
      start: the law at the horizon given a class, or None.
      density: how log p is found (static).
    """

    score: Partial
    guided: Callable[..., Array]
    process: Process
    frame: Frame
    sampler: Sampler
    sample_grid: Array
    density_grid: Array
    log_dets: Array
    classes: Classes | None
    start: Partial | None
    density: Flow

    @property
    def mixture(self) -> GaussianMixture | None:
        """In a component of which states live, or None."""
        return frames.component_mixture(self.frame)

    def score_row(
        self, y: Array, t: Array, component: Array | None = None, label: Array | None = None
    ) -> Array:
        """The score of one state: y [d], t, its component and its label -> [r]."""
        condition = joined(_one(component), _one(label))
        more = () if condition is None else (condition,)
        return self.score(y[None], t[None], *more)[0]

    def sample_row(
        self,
        seed: Array,
        index: Array,
        label: Array | None = None,
        log_weights: Array | None = None,
    ) -> Array:
        """A sample of a seed by its number, as `training.draw` has it, before it leaves: [d]."""
        root, number = jax.random.fold_in(jax.random.key(seed), STREAM_SAMPLES), index[None]
        weights = self._weights(label) if log_weights is None else log_weights[None]
        mixture, run = self.mixture, (self.guided, self.process, self.sample_grid, self.sampler)
        if mixture is None:
            start = None if weights is None else start_components(root, number, weights)
            return sample_chunk(root, number, start, *run, _one(label)).x[0]
        weights = mixture.log_weights if weights is None else weights
        component = start_components(root, number, weights).astype(jnp.int32)
        y = sample_chunk(root, number, None, *run, joined(component, _one(label))).x
        return mixture.sample_component(component, y)[0]

    def log_prob_row(
        self, seed: Array, index: Array, prepared: Array, label: Array | None = None
    ) -> Array:
        """log p of the state that a prepared item [m], by its number, enters as (a scalar).

        As `training.log_prob`, but for the randomness of states that the frame draws.
        """
        root = jax.random.fold_in(jax.random.key(seed), STREAM_LIKELIHOOD)
        outer = frames.outside(self.frame)

        def visit(number: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(root, number), index)
            y = prepared[None]
            if outer.random:
                y = outer.enter(jax.random.fold_in(key, _VISIT), y)[0]
            if self.mixture is None:
                return self._flow(key, y, _one(label))
            return self._sum_over_components(key, y, self.mixture, label)

        if not outer.random:
            return visit(jnp.uint32(0))
        return jnp.mean(jax.lax.map(visit, jnp.arange(DRAWS, dtype=jnp.uint32)))

    def _weights(self, label: Array | None) -> Array | None:
        """Of the components that the items of a class start in [1, K]; None: not by the class."""
        if label is None or self.classes is None or self.classes.log_weights is None:
            return None
        return self.classes.start_log_weights(label[None])

    def _sum_over_components(
        self, key: Array, y: Array, mixture: GaussianMixture, label: Array | None
    ) -> Array:
        """log sum_c w_c p(y | c) over the components that have a share in y [1, d].

        In the order of their shares, so that a batch takes as many rounds as its row with the most.
        """
        shares = mixture.responsibilities(y[0])
        order = jnp.argsort(-shares).astype(jnp.int32)
        least = min(SMALLEST_SHARE, 1 / mixture.num_components)
        weights = self._weights(label)
        log_weights = mixture.log_weights if weights is None else weights[0]

        def goes_on(carry: tuple[Array, Array]) -> Array:
            round = jnp.minimum(carry[0], mixture.num_components - 1)
            return (carry[0] < mixture.num_components) & (shares[order[round]] >= least)

        def add(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            round, total = carry
            component = order[round][None]
            z = mixture.standardise(component, y)
            at = joined(component, _one(label))
            value = self._flow(jax.random.fold_in(key, round), z, at)
            weight = log_weights[component[0]] - 0.5 * self.log_dets[component[0]]
            return round + 1, jnp.logaddexp(total, weight + value)

        return jax.lax.while_loop(goes_on, add, (jnp.int32(0), jnp.float32(-jnp.inf)))[1]

    def _flow(self, key: Array, y: Array, condition: Any) -> Array:
        """log p of one state [1, d]: a scalar."""
        with jax.default_matmul_precision("highest"):  # as likelihood.log_prob
            return self.density(
                key[None],
                self.score,
                self.process,
                y,
                self.density_grid,
                condition=condition,
                start=self.start,
            ).value[0]


def _one(value: Array | None) -> Array | None:
    """A row as a batch of one."""
    return None if value is None else value[None]


class Input(NamedTuple):
    """An input of a program: its name, and its shape, `n` the size of a batch, and type."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


SEED, INDEX = Input("seed", (), "uint32"), Input("index", ("n",), "uint32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """What `programs` makes of a model.

    Attributes:
      arrays: that all programs take first, as a list.
      code: by name.
      inputs: of each, beside the arrays.
      without: why there is no program of a name.
    """

    arrays: Sequence[np.ndarray]
    code: Mapping[str, jax.export.Exported]
    inputs: Mapping[str, tuple[Input, ...]]
    without: Mapping[str, str]


@arguments(model=MODEL)
def core(model: Model) -> Core:
    """What the programs of a model compute with.

    Raises:
      ValueError: a sampler that does not serve the process, or guidance that the model cannot.
    """
    experiment, state = model.experiment, model.state
    process, grid = experiment.process, jnp.asarray(experiment.sample_grid)
    experiment.sampler.check(process)
    c, params = model.config.sample, state.chosen if model.config.sample.ema else state.params
    contrast = Contrast(scale=c.guidance_scale, low=c.guidance_low, high=c.guidance_high)
    score = experiment.model.bind(params)
    first = jnp.stack([grid[1], process.horizon])
    variance = np.asarray(process.clock.variance(first))
    density, mixture = Flow(), frames.component_mixture(experiment.frame)
    times = density.times(process, None, float(variance[0] / variance[1]))
    return Core(
        score=score,
        guided=contrast(score, process),
        process=process,
        frame=experiment.frame,
        sampler=experiment.sampler.plan(process, jnp.flip(grid[1:]))[0],
        sample_grid=grid,
        density_grid=jnp.asarray(times, jnp.float32),
        log_dets=jnp.zeros(0) if mixture is None else mixture.log_det_covariances(),
        classes=experiment.classes,
        start=class_start(experiment, np.zeros(1, np.int32))[0],
        density=density,
    )


@arguments(model=MODEL, platforms=PLATFORM)
def programs(model: Model, *, platforms: Sequence[str] = PLATFORMS) -> Programs:
    """The model as programs for batches of any size n; data in their own units and precision.

    - sample(seed, index [n]) -> [n, D]: samples number `index` of a seed, those of `Model.sample`;
    - sample_from(seed, index [n], log_weights [n, K]) -> [n, D]: with other weights of the K
      components, where samples start in components of a mixture;
    - score(y [n, d], t [n]) -> [n, r]: `Model.score`, of states; where states live in a component,
      component [n] is the third input;
    - log_prob(x [n, D], seed) -> [n]: `Model.log_prob`, nats, NaN for items that are not finite.

    Where the network is told labels, label [n] comes before `log_weights`, and last otherwise.

    A program is traced for one row and batched by `jax.vmap`: no part of an experiment need know of
    sizes that are symbols. What acts on states is traced in float32 as it is trained, and the frame
    around it in float64.

    Args:
      model: a trained one.
      platforms: that the programs are to run on, of `PLATFORMS`.

    Raises:
      ValueError: a sampler or a network that cannot be exported, or an unknown platform.
    """
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ValueError(
            f"--platforms={','.join(platforms)}: {unknown[0]!r} is not one of"
            f" {', '.join(PLATFORMS)}"
        )
    parts, config = core(model), model.config
    trace = _Trace(parts, platforms)
    told = () if parts.classes is None else (Input("label", ("n",), "int32"),)
    component = () if parts.mixture is None else (Input("component", ("n",), "int32"),)
    y, t = Input("y", ("n", parts.process.dim), "float32"), Input("t", ("n",), "float32")

    # The score first: where it cannot be exported, no sampler is to blame.
    of = (y, t, *component, *told)
    with _refusing(f"network.name={config.network.name!r}", "give one without callbacks"):
        score = of, trace.whole(trace.rows(Core.score_row, of), of)
    found = {}
    with _refusing(f"sample.sampler={config.sample.sampler!r}", REMEDY):
        of = (SEED, INDEX, *told)
        found["sample"] = of, trace.samples(of)
        if model.experiment.components is not None:
            num = model.experiment.components.num_components
            of = (*of, Input("log_weights", ("n", num), "float32"))
            found["sample_from"] = of, trace.samples(of)
    found["score"] = score

    frame, without = model.experiment.frame, {}
    item = frame.leave(np.zeros((1, parts.process.dim), np.float32), np.zeros(1, np.int32))
    try:
        training.check_density(model.experiment, item, method=parts.density, told=bool(told))
    except ValueError as error:
        without["log_prob"] = str(error)
    else:
        of = (Input("x", ("n", item.shape[1]), str(item.dtype)), SEED, *told)
        found["log_prob"] = of, trace.densities(of, frames.outside(frame).prepare(item).shape[1])
    return Programs(
        arrays=trace.arrays,
        code={name: code for name, (_, code) in found.items()},
        inputs={name: of for name, (of, _) in found.items()},
        without=without,
    )


class _Trace:
    """Traces functions of a `Core`, whose arrays become inputs that all programs share.

    Arrays of NumPy, which the host computes with, and keys become constants.
    """

    def __init__(self, parts: Core, platforms: Sequence[str]) -> None:
        self.platforms = tuple(platforms)
        self.leaves, self.structure = jax.tree.flatten(parts)
        self.arrays: list[np.ndarray] = []
        self.places: dict[int, int] = {}
        known: dict[tuple[Any, ...], int] = {}
        for i, leaf in enumerate(self.leaves):
            if isinstance(leaf, Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                array = np.asarray(leaf)
                name = (array.shape, str(array.dtype), array.tobytes())
                self.places[i] = known.setdefault(name, len(self.arrays))
                if self.places[i] == len(self.arrays):
                    self.arrays.append(array)

    def core(self, arrays: Sequence[Array]) -> Core:
        """Of the arrays in a program."""
        filled = [
            arrays[self.places[i]] if i in self.places else leaf
            for i, leaf in enumerate(self.leaves)
        ]
        return jax.tree.unflatten(self.structure, filled)

    def rows(self, row: Callable[..., Array], of: Sequence[Input]) -> Callable[..., Array]:
        """A method of a `Core` of one row, for batches: a program that others can call."""
        axes, names = [0 if "n" in one.shape else None for one in of], [one.name for one in of]

        def function(arrays: Sequence[Array], *inputs: Array) -> Array:
            def named(*inputs: Array) -> Array:
                return row(self.core(arrays), **dict(zip(names, inputs, strict=True)))

            return jax.vmap(named, in_axes=axes)(*inputs)

        return self._exported(function, of).call

    def samples(self, of: Sequence[Input]) -> jax.export.Exported:
        """Samples as data."""
        states = self.rows(Core.sample_row, of)

        def sample(arrays: Sequence[Array], *inputs: Array) -> Array:
            outer = frames.outside(self.core(arrays).frame)
            return jax.vmap(lambda y: outer.leave(y[None], None)[0])(states(arrays, *inputs))

        return self.whole(sample, of)

    def densities(self, of: Sequence[Input], width: int) -> jax.export.Exported:
        """log p of data, `width` numbers an item once they are prepared."""
        prepared = Input("prepared", ("n", width), "float32")
        rows = self.rows(Core.log_prob_row, (SEED, INDEX, prepared, *of[2:]))

        def log_prob(arrays: Sequence[Array], x: Array, seed: Array, *label: Array) -> Array:
            outer = frames.outside(self.core(arrays).frame)
            index = jnp.arange(x.shape[0], dtype=jnp.uint32)
            prepared = jax.vmap(lambda x: outer.prepare(x[None])[0])(x)
            scale = jax.vmap(lambda x: outer.log_det(x[None], None)[0])(x)
            value = rows(arrays, seed, index, prepared, *label).astype(jnp.float64) + scale
            return jnp.where(jnp.isfinite(x).all(axis=1), value, jnp.nan)

        return self.whole(log_prob, of)

    def whole(self, function: Callable[..., Array], of: Sequence[Input]) -> jax.export.Exported:
        """A program with its frame, in float64. Of programs within, `rows`, each has its own."""
        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
            return self._exported(function, of)

    def _exported(self, function: Callable[..., Array], of: Sequence[Input]) -> jax.export.Exported:
        (n,) = jax.export.symbolic_shape("n")
        given = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self.arrays]
        inputs = [
            jax.ShapeDtypeStruct(tuple(n if m == "n" else m for m in one.shape), one.dtype)
            for one in of
        ]
        export = jax.export.export(jax.jit(function), platforms=self.platforms)
        return export(given, *inputs)


@contextlib.contextmanager
def _refusing(what: str, remedy: str) -> Iterator[None]:
    """Raises ValueError for whatever a tracer, a library or a user's function raises within."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} cannot be exported ({_in_short(error)}); {remedy}") from error


def _in_short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- the archive ---


@arguments(path=FILE, model=MODEL, made=Programs, card=FUNCTION)
def write(
    path: str | pathlib.Path, model: Model, made: Programs, *, card: Callable[[str], str]
) -> None:
    """Writes programs as an archive that `exported.load` reads.

    Args:
      path: of the archive.
      model, made: the model, and its programs.
      card: from the section on how the file is used, the whole text of README.md within it.
    """
    _needs("flatbuffers")
    path = pathlib.Path(path)
    names = [f"array_{i:03d}.npy" for i in range(len(made.arrays))]
    manifest = {
        "format": FORMAT,
        "programs": {
            name: {
                "inputs": [one._asdict() for one in made.inputs[name]],
                "output": {"shape": [str(n) for n in out.shape], "dtype": str(out.dtype)},
            }
            for name, code in made.code.items()
            for out in code.out_avals
        },
        "without": dict(made.without),
        "arrays": names,
        "data": dict(model.facts["data"]),
        "config": model.config.to_dict(),
        "step": int(model.state.step),
        "last_time": float(model.experiment.sample_grid[1]),
        "jax": jax.__version__,
        "platforms": list(next(iter(made.code.values())).platforms),
    }

    with aside(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("README.md", card(usage(path.name, model, made)))
        file.writestr("manifest.json", json.dumps(manifest, indent=2))
        for name, code in made.code.items():
            file.writestr(f"{name}.jax", bytes(code.serialize()))
        for name, array in zip(names, made.arrays, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            file.writestr(name, buffer.getvalue())


@arguments(path=FILE)
def read(path: str | pathlib.Path) -> tuple[dict[str, Callable[..., np.ndarray]], dict[str, Any]]:
    """`exported.load`, whatever is wrong with the file said in one line.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no exported model, of another format, or damaged.
    """
    _needs("flatbuffers")
    _check_there(path)
    try:
        found, manifest = exported.load(path)
    except Exception as error:  # of zipfile, json, NumPy, JAX: as many kinds as ways to be damaged
        raise ValueError(
            f"{path}: no exported model, or a damaged one ({_in_short(error)}); write it again with"
            " experiments/export.py"
        ) from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: its format is {manifest.get('format')!r}, and {FORMAT!r} is read here; use"
            " the snippet in its README.md, or write it again"
        )
    return found, manifest


def usage(name: str, model: Model, made: Programs) -> str:
    """How an archive is read without this package, for its card."""
    source = inspect.getsource(exported)
    data, experiment = model.facts["data"], model.experiment
    labels = ", labels" if model.classes else ""
    calls = {
        "sample": f"x = model['sample'](0, range(16){labels})  # samples 0 to 15 of seed 0",
        "log_prob": f"nats = model['log_prob'](x, 0{labels})",
    }
    told = [f"labels = [0] * 16  # {model.classes[0]}"] if model.classes else []
    lines = [f"model, manifest = load({name!r})", *told]
    lines += [calls[n] for n in calls if n in made.code]
    table = ["| program | inputs | output |", "| --- | --- | --- |"]
    for program, code in made.code.items():
        (out,) = code.out_avals
        inputs = ", ".join(map(str, made.inputs[program]))
        table.append(f"| `{program}` | {inputs} | {out.dtype}[{', '.join(map(str, out.shape))}] |")
    notes = [f"x: items of shape {tuple(data['shape'])}, flat, in the units of the data."]
    if model.columns:
        notes.append(
            "A word is its position in the `levels` of its column: manifest['data']['columns']."
        )
    if "sample_from" in made.code:
        notes.append(
            "log_weights: of the components that each sample may start in; 0 for one and"
            " -inf for all others chooses one."
        )
    if model.classes:
        notes.append(f"label: a position in {', '.join(model.classes)}; -1 is no label.")
    notes.append(
        f"y: states, in the coordinates of the noising (frame: {type(experiment.frame).__name__}),"
        f" and t: times from {float(experiment.sample_grid[1]):.3g}, those of data, to"
        f" {float(experiment.process.horizon):.4g}."
    )
    notes += [f"There is no `{program}`: {why}." for program, why in made.without.items()]
    return (
        "`pip install jax flatbuffers` is all that it takes. `load`:\n\n"
        f"```python\n{source[source.index('import io') :]}```\n\n"
        "```python\n"
        + "\n".join(lines)
        + "\n```\n\n"
        + "\n".join(table)
        + "\n\n"
        + "\n".join(f"- {note}" for note in notes)
    )


def _check_there(path: str | pathlib.Path) -> None:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; experiments/export.py writes one")


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"exports need the package {package}: pip install 'ndsm_jax[export]'")


# --- parameters alone ---


@arguments(model=MODEL)
def parameters(model: Model) -> dict[str, Any]:
    """What training and fits found: `network`, what sampling uses of it, and what was fitted."""
    chosen = model.state.chosen if model.config.sample.ema else model.state.params
    fitted = {name: getattr(model.parts, name) for name in ("frame", "reference", "classes")}
    return {"network": chosen} | fitted


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree by dotted names: network.params.Dense_0.kernel."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf, order="C")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@arguments(path=FILE, model=MODEL, card=FUNCTION)
def write_parameters(path: str | pathlib.Path, model: Model, *, card: Callable[[str], str]) -> None:
    """Writes `parameters` as safetensors, and the card beside them, of the same name in .md."""
    _needs("safetensors")
    from safetensors.numpy import save

    path = pathlib.Path(path)
    data = model.facts["data"]
    metadata = {
        "format": "ndsm_jax.parameters 1",
        "step": str(int(model.state.step)),
        "data": data["name"],
        "data_digest": data["digest"],
        "config": json.dumps(model.config.to_dict()),
        "versions": json.dumps(model.facts["versions"]),
    }
    replace_file(path, save(named(parameters(model)), metadata=metadata))
    use = (
        f"`safetensors.numpy.load_file({path.name!r})` gives arrays by name: `network.` the"
        " parameters that sampling uses, `reference.` and `frame.` what was fitted. Into a model"
        " with the run at hand:\n\n```python\nimport ndsm_jax\nfrom ndsm_jax import export\n\n"
        f"model = export.read_parameters({path.name!r}, ndsm_jax.load(folder))\n```"
    )
    replace_file(path.with_suffix(".md"), card(use).encode(errors="surrogateescape"))


@arguments(path=FILE, model=MODEL)
def read_parameters(path: str | pathlib.Path, model: Model) -> Model:
    """The model with the arrays of a file of `write_parameters` in the place of its own.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or of a model with other arrays.
    """
    _needs("safetensors")
    _check_there(path)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors, or damaged ones ({error})") from error
    like = parameters(model)
    wanted = {name: (a.shape, str(a.dtype)) for name, a in named(like).items()}
    given = {name: (a.shape, str(a.dtype)) for name, a in found.items()}
    if differ := [n for n in {**wanted, **given} if wanted.get(n) != given.get(n)]:
        name = differ[0]
        raise ValueError(
            f"{path}: parameters of another model; {len(differ)} arrays differ, {name} is"
            f" {given.get(name, 'absent')} in the file and {wanted.get(name, 'absent')} in the run"
        )
    leaves = [
        found[name] if isinstance(leaf, np.ndarray) else jnp.asarray(found[name])
        for name, leaf in zip(named(like), jax.tree.leaves(like), strict=True)
    ]
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    params, parts = tree.pop("network"), dataclasses.replace(model.parts, **tree)
    best = None
    if model.state.best is not None:
        best = dataclasses.replace(model.state.best, params=params)
    return dataclasses.replace(
        model,
        parts=parts,
        experiment=build(model.config, model.shape, parts, quiet=True),
        state=dataclasses.replace(model.state, params=params, ema=params, best=best),
    )


# --- a run ---


@arguments(
    workdir=FOLDER,
    out=FILE,
    sample=Mapping,
    licence=str,
    platforms=PLATFORM,
    allow_changed_source=FLAG,
)
def export_run(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    sample: Mapping[str, Any] | None = None,
    licence: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    allow_changed_source: bool = False,
) -> str:
    """Exports the model of a run: its programs (.zip) or its parameters (.safetensors).

    Args:
      workdir: folder of the run; its metrics.json, if any, goes into the card.
      out: the file; its suffix says which.
      sample: keys of the config's sample section to replace.
      licence: of the data, see `reports.card.card`.
      platforms: see `programs`.
      allow_changed_source: whether files of the user's own may have changed since.

    Returns:
      What was written, in a line or two.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: another suffix, a file that cannot be written or a text of somebody else's where
        the card belongs, a damaged metrics.json, a key of `sample` that nothing reads, a package
        that is missing, and as `programs`.
    """
    path, folder = pathlib.Path(out), pathlib.Path(workdir)
    if path.suffix not in (".zip", ".safetensors"):
        raise ValueError(
            f"--out={path}: give FILE.zip for programs that JAX alone runs, or FILE.safetensors for"
            " the parameters"
        )
    check_output(path)
    if path.suffix == ".safetensors":
        _check_card(path.with_suffix(".md"))
    check_replaced(folder, sample=sample)
    metrics = metrics_of(folder)
    model = load(folder, sample=sample, allow_changed_source=allow_changed_source)

    def card_of(use: str) -> str:
        return card(model, use=use, metrics=metrics, licence=licence)

    if path.suffix == ".safetensors":
        write_parameters(path, model, card=card_of)
        count = len(named(parameters(model)))
        return f"{path}: {count} arrays\n{path.with_suffix('.md')}: the card"
    _needs("flatbuffers")
    expected = model.sample(CHECKED, seed=0)  # what cannot be sampled is refused here
    labels = [draw_labels(model.experiment, CHECKED, seed=0)] if model.classes else []
    logger.info("tracing the programs ...")
    write(path, model, programs(model, platforms=platforms), card=card_of)
    logger.info("comparing the file with the run ...")
    difference = np.abs(read(path)[0]["sample"](0, range(CHECKED), *labels) - expected)
    return (
        f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"
        f"{CHECKED} samples of the file and of the run differ by {difference.max():.2g} at most"
    )


def _check_card(path: pathlib.Path) -> None:
    """Raises ValueError where a card would take the place of a text that is none."""
    check_output(path)
    if path.exists() and not is_card(path.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(
            f"--out: the card is written to {path}, which is a text of somebody else's; choose"
            " another name, or move it away"
        )
