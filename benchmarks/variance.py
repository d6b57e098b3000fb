"""Variance of one sample's gradient, for every objective, against time and per unit of compute.

python benchmarks/variance.py --quick
python benchmarks/variance.py --mnist_dir=FOLDER --out=runs/benchmarks/variance.json

In 2 (rings and bars), 64 (digits) and 784 dimensions (MNIST, or a synthetic mixture) a residual MLP
is trained for a short while with path_dsm. At its parameters, the same for all objectives, and with
the loss weight v(t), `variance` is E|A - E A|^2 for one sample's gradient A, a mean over fixed
times; `error` is its relative standard error. `cost` counts gradients of the network a sample.
`ratio` is variance x cost over that of `ndsm` (eps = 0, loss_fraction = 2): the compute for equal
gradient noise, so that less is better. `ratio_seconds` is the same with the measured seconds of
noising and gradient as cost. `z` is the distance of the mean gradient from that of path_dsm_sinh in
units of what chance alone gives: about 1, as all have one expectation. OU has a network of its own.
--quick measures some of the objectives, at five times.
"""

import dataclasses
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import OUT, QUICK, SEED, ratios, report
from jax import Array

from ndsm_jax import app, control_variates
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.control_variates import Products, exact_products
from ndsm_jax.datasets import Dataset
from ndsm_jax.experiment import Experiment
from ndsm_jax.launch import launch, load_data, restore
from ndsm_jax.networks import ScoreModel
from ndsm_jax.noising import ExactKernel, NoisedBatch, NoisingFn, TimeLaw, loss_steps
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.processes import ScoreFn

MNIST_DIR = flags.DEFINE_string(
    "mnist_dir", None, "Folder of MNIST's IDX files; without it, a synthetic mixture."
)

RELAXATIONS = (0.002, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0)
"""The times, in relaxation times sigma^2."""
QUICK_RELAXATIONS = (0.002, 0.03, 0.3, 1.0, 4.0)
QUICK_ESTIMATORS = ("ndsm", "path_dsm_ramp_0.5", "path_dsm_sinh", "path_dsm_cv_sinh")
PUBLISHED_STEP = 1e-3
PATHS = 64
"""Data points a batch of noising, and of the timing."""
REFERENCE, UNBIASED = "ndsm", "path_dsm_sinh"

Tree = dict[str, dict[str, Any]]
Terms = Callable[[ScoreFn, NoisedBatch], tuple[Array, Array | None]]


class Estimator(NamedTuple):
    """One way to noise and what is minimised on it.

    Attributes:
      name: of the row with eps = 0.
      tree: what it changes in the config of the noising.
      terms: of the objective.
      cost: gradients of the network a sample.
      noises: that share one mu.
      controls: further eps of a control variate, name -> eps or None for the closed-form optimum.
      published: whether the loss step is the published one.
    """

    name: str
    tree: Tree
    terms: Terms
    cost: float
    noises: int = 1
    controls: dict[str, float | None] = {}  # noqa: RUF012
    published: bool = False


class Measured(NamedTuple):
    """Of an estimator at n times: products [n, N], mean gradients of L and W [n, P] each."""

    products: Products
    loss: np.ndarray
    control: np.ndarray


class Estimate(NamedTuple):
    """An estimator with one eps: what is reported of it.

    Attributes:
      name, estimator: of the row, and of the estimator with any eps.
      present: at which of the times it exists: bool [n].
      variance, error: of one sample's gradient at these times, and its standard error.
      mean: gradient at these times [n, P].
      mean_variance: E|mean - E mean|^2 at these times.
      eps: at these times.
      cost: gradients of the network a sample.
    """

    name: str
    estimator: str
    present: np.ndarray
    variance: np.ndarray
    error: np.ndarray
    mean: np.ndarray
    mean_variance: np.ndarray
    eps: np.ndarray
    cost: float


def estimators(sigma_squared: float, dim: int) -> list[Estimator]:
    """All that run on Langevin dynamics of a mixture whose typical variance is `sigma_squared`."""
    dsm, ndsm = OBJECTIVES["path_dsm"].terms, OBJECTIVES["ndsm_cv"].terms

    def path(name: str, weights: str, window: float) -> Tree:
        # The path objectives' windows are in units of time; 0 is the whole path.
        noising = {"path_weights": weights, "window": window * sigma_squared}
        return {"objective": {"name": name}, "noising": noising}

    def local(noises: int) -> Tree:
        return {"objective": {"name": "ndsm"}, "noising": {"noises": noises}}

    optimal: dict[str, float | None] = {"optimal": None}
    both = {"eps1": 1.0} | optimal
    found = [
        Estimator("ndsm", local(1), ndsm, 2, controls=both),
        Estimator("ndsm_step", local(1), ndsm, 2, controls=both, published=True),
        *(Estimator(f"ndsm_{n}", local(n), ndsm, (n + 1) / n, noises=n) for n in (4, 8)),
        *(
            Estimator(f"path_dsm_ramp_{w:g}", path("path_dsm", "ramp", w), dsm, 1)
            for w in (0.5, 1.73, 4.0)
        ),
        Estimator("path_dsm_sinh", path("path_dsm", "sinh", 0), dsm, 1),
        *(
            Estimator(
                f"path_dsm_cv_{name}", path("path_dsm_cv", weights, window), ndsm, 2, controls=both
            )
            for name, weights, window in (("ramp_0.5", "ramp", 0.5), ("sinh", "sinh", 0))
        ),
    ]
    if QUICK.value:
        found = [e for e in found if e.name in QUICK_ESTIMATORS]
    if dim <= 3:
        ism = OBJECTIVES["ism"].terms  # its divergence is exact, one derivative a dimension
        found.append(Estimator("implicit", path("path_dsm", "sinh", 0), ism, 1 + dim))
    return found


def merge(tree: Tree, changes: Tree) -> Tree:
    """A config's tree with some sections' keys replaced."""
    return {name: tree.get(name, {}) | changes.get(name, {}) for name in {**tree, **changes}}


def trained(tree: Tree, dataset: Dataset) -> tuple[Experiment, Any]:
    """The experiment after its short training, and its averaged parameters."""
    with tempfile.TemporaryDirectory() as workdir:
        launch(Config.from_dict(tree), dataset, workdir, progress=False)
        run = restore(workdir)
    return run.experiment, run.state.chosen


def staircase(grid: np.ndarray, intervals: np.ndarray) -> TimeLaw:
    """The law that puts equal mass on the given intervals of a grid, and no other.

    Stratified, it gives each path, noised as often as there are intervals, each of them once.
    """
    mass = np.zeros(len(grid) - 1)
    mass[intervals] = 1 / len(intervals)
    cdf = np.concatenate([[0.0], np.cumsum(mass)])
    return TimeLaw(grid=jnp.asarray(grid, jnp.float32), cdf=jnp.asarray(cdf, jnp.float32))


def fixed_times(grid: np.ndarray, sigma_squared: float, relaxations: Sequence[float]) -> np.ndarray:
    """Right ends of the grid's intervals nearest to the wanted times: their indices [n]."""
    wanted = np.asarray(relaxations) * sigma_squared
    return np.abs(grid[1:, None] - wanted[None, :]).argmin(axis=0)


def at_times(noising: Any, intervals: np.ndarray, *, published: bool) -> NoisingFn:
    """The noising with its k times at the right ends of the given intervals, one each."""
    grid = np.asarray(noising.times.grid)
    t = grid[intervals + 1]
    changes: dict[str, Any] = {"k": len(t)}
    if isinstance(noising, ExactKernel):
        # Its time is anywhere within an interval, so the intervals are made short.
        grid, intervals = np.stack([t * (1 - 1e-5), t], axis=1).ravel(), 2 * np.arange(len(t))
    elif published:
        # A step of one length ends at t if the path is left at t - length.
        left = t - np.float32(PUBLISHED_STEP)
        grid = np.union1d(grid, left)
        intervals = np.searchsorted(grid, left)
        starts, lengths = loss_steps(noising.process.clock, grid, fixed=PUBLISHED_STEP)
        changes |= {"starts": starts, "lengths": lengths}
    return dataclasses.replace(noising, times=staircase(grid, intervals), **changes)


def by_time(batch: NoisedBatch, times: np.ndarray) -> NoisedBatch:
    """A batch [B, k noises] sorted by its k times, one item for the states that share one mu.

    Fields: t and weight [k, B, 1], y and score_target [k, B, 1, noises, d], mu [k, B, 1, d].
    """
    n, dim = batch.noises, batch.y.shape[-1]
    index = np.abs(np.asarray(batch.t)[:, ::n, None] - times).argmin(axis=-1).ravel()
    order = np.argsort(index, kind="stable")
    counts = np.bincount(index, minlength=len(times))
    # Rounding may put one state more at one time than at another.
    rows = np.stack([order[index[order] == i][: counts.min()] for i in range(len(times))])

    def first(a: Any) -> Any:
        a = np.asarray(a)
        return a.reshape(len(index), n, *a.shape[2:])[rows, :1]

    def every(a: Any) -> Any:
        return np.asarray(a).reshape(len(index), 1, n, dim)[rows]

    return NoisedBatch(
        y=every(batch.y),
        t=first(batch.t),
        weight=first(batch.weight),
        score_target=every(batch.score_target),
        mu=None if batch.mu is None else first(batch.mu),
    )


def grouped_terms(terms: Terms, model: ScoreModel, params: Any, batch: NoisedBatch) -> Any:
    """(L, W), each the mean over the noises that share one mu, for items of `by_time`: [B, 1]."""
    n = batch.y.shape[2]

    def repeat(a: Array) -> Array:
        return jnp.repeat(a, n, axis=1)

    flat = NoisedBatch(
        y=batch.y[:, 0],
        t=repeat(batch.t),
        weight=repeat(batch.weight),
        score_target=batch.score_target[:, 0],
        mu=None if batch.mu is None else repeat(batch.mu),
        noises=n,
    )
    loss, control = terms(model.bind(params), flat)
    control = jnp.zeros_like(loss) if control is None else control
    return jnp.mean(loss, axis=1, keepdims=True), jnp.mean(control, axis=1, keepdims=True)


@partial(jax.jit, static_argnames="terms")
def measure_at(
    model: ScoreModel, params: Any, batch: NoisedBatch, *, terms: Terms
) -> tuple[Products, Array]:
    """The products [B] of the items at one time, and the mean gradients of L and W [2, P]."""
    function = partial(grouped_terms, terms, model)
    products = exact_products(function, params, batch)
    mean = jax.jacrev(lambda p: jnp.stack([jnp.mean(x) for x in function(p, batch)]))(params)
    flat = jnp.concatenate([x.reshape(2, -1) for x in jax.tree.leaves(mean)], axis=1)
    return jax.tree.map(lambda x: x[:, 0], products), flat


@partial(jax.jit, static_argnames="terms")
def gradient(model: ScoreModel, params: Any, batch: NoisedBatch, *, terms: Terms) -> Any:
    """The gradient of the mean loss, for the timing."""
    return jax.grad(lambda p: jnp.mean(terms(model.bind(p), batch)[0]))(params)


@jax.jit
def noise(noising: NoisingFn, key: Array, x0: Array) -> NoisedBatch:
    """A batch, compiled once for each kind of noising."""
    return noising(key, x0)


def measure(
    model: ScoreModel, params: Any, batch: NoisedBatch, times: np.ndarray, *, terms: Terms
) -> Measured:
    """Products and mean gradients of an estimator's batch at each time."""
    items = by_time(batch, times)
    parts = [jax.tree.map(lambda a, i=i: a[i], items) for i in range(len(times))]
    at = [measure_at(model, params, part, terms=terms) for part in parts]
    products = Products(*(jnp.stack(x) for x in zip(*(p for p, _ in at), strict=True)))
    return Measured(products, *np.stack([np.asarray(g) for _, g in at], axis=1))


def closed_form(products: Products) -> np.ndarray:
    """The eps that minimises the variance at each time, by `control_variates.Optimal`: [n]."""
    control = control_variates.Optimal(coordinate=jnp.zeros_like)
    found = []
    for at in map(Products._make, zip(*products, strict=True)):
        t = jnp.zeros(len(at.loss))
        state = control.update(control.init(jax.random.key(0)), t, at)
        found.append(float(control.eps(state, t[:1])[0]))
    return np.array(found)


def estimates(estimator: Estimator, measured: Measured, present: np.ndarray) -> list[Estimate]:
    """An estimator with eps = 0 and with each of its controls."""
    products, found = measured.products, []
    for suffix, value in {"": 0.0, **estimator.controls}.items():
        eps = closed_form(products) if value is None else np.full(present.sum(), value)
        e = eps[:, None]
        square = products.loss + 2 * e * products.cross + e**2 * products.control
        num = square.shape[1]
        # The products take the mean of B for zero; that of a sample adds its square.
        excess = eps**2 * np.sum(measured.control**2, axis=1)
        variance = (square.mean(axis=1) - excess) * num / (num - 1)
        found.append(
            Estimate(
                name="_".join(filter(None, [estimator.name, suffix])),
                estimator=estimator.name,
                present=present,
                variance=estimator.noises * variance,
                error=estimator.noises * square.std(axis=1, ddof=1) / num**0.5,
                mean=measured.loss + e * measured.control,
                mean_variance=variance / num,
                eps=eps,
                cost=estimator.cost,
            )
        )
    return found


def disagreement(one: Estimate, other: Estimate) -> float:
    """Distance of two mean gradients over its root mean square where their laws have one mean.

    `other` is there at all times. A root mean square over times.
    """
    difference = np.sum((one.mean - other.mean[one.present]) ** 2, axis=1)
    expected = one.mean_variance + other.mean_variance[one.present]
    return float(np.sqrt(np.mean(difference / expected)))


class Calls(NamedTuple):
    """What is timed: noising and gradient of a batch of `states` states."""

    noising: Callable[[], Any]
    gradient: Callable[[], Any]
    states: int


class Process(NamedTuple):
    """A trained experiment, and where its gradients are measured.

    Attributes:
      experiment, params: as trained.
      shape: of an item.
      data: [N, d].
      intervals: of the grid, at whose right ends: [n].
      times: these right ends [n].
    """

    experiment: Experiment
    params: Any
    shape: tuple[int, ...]
    data: np.ndarray
    intervals: np.ndarray
    times: np.ndarray


def row(
    prefix: str, on: Process, one: Estimate, reference: Estimate, unbiased: Estimate | None
) -> dict[str, Any]:
    """What is reported of an estimate; its ratio is over the times at which it is there."""

    def everywhere(values: np.ndarray) -> list[float | None]:
        filled: list[float | None] = [None] * len(on.times)
        for i, value in zip(np.flatnonzero(one.present), values, strict=True):
            filled[i] = float(value)
        return filled

    mean = float(one.variance.mean())
    same_times = float(reference.variance[one.present].mean())
    return {
        "name": f"{prefix}_{one.name}",
        "estimator": one.estimator,
        "ratio": mean * one.cost / (same_times * reference.cost),
        "variance": mean,
        "error": float(np.sqrt(np.sum(one.error**2)) / len(one.error) / mean),
        "cost": float(one.cost),
        "z": None if unbiased is None or one is unbiased else disagreement(one, unbiased),
        "t": on.times.tolist(),
        "relaxations": (on.times / float(on.experiment.process.clock.saturation)).tolist(),
        "variance_at": everywhere(one.variance),
        "error_at": everywhere(one.error),
        "eps_at": everywhere(one.eps),
    }


def process(tree: Tree, dataset: Dataset, num: int) -> Process:
    """Trains, and chooses times and `num` data points."""
    experiment, params = trained(tree, dataset)
    grid = np.asarray(experiment.noising.times.grid)
    wanted = QUICK_RELAXATIONS if QUICK.value else RELAXATIONS
    intervals = fixed_times(grid, float(experiment.process.clock.saturation), wanted)
    rows = np.random.default_rng(SEED.value).permutation(len(dataset.train))
    data = dataset.train[np.resize(rows, num)]
    return Process(experiment, params, dataset.shape, data, intervals, grid[intervals + 1])


def run(key: Array, on: Process, tree: Tree, estimator: Estimator) -> tuple[list[Estimate], Calls]:
    """The estimates of one estimator, and what is timed for it."""
    model, terms = on.experiment.model, estimator.terms
    config = Config.from_dict(merge(tree, estimator.tree))
    fitted = Parts(frame=on.experiment.frame, reference=on.experiment.process.reference)
    built = build(config, on.shape, fitted)
    present = on.times > (PUBLISHED_STEP if estimator.published else 0)
    noising = at_times(built.noising, on.intervals[present], published=estimator.published)
    key = jax.random.fold_in(key, zlib.crc32(estimator.name.encode()))
    parts = on.data.reshape(-1, PATHS, on.data.shape[1])
    batches = [noise(noising, jax.random.fold_in(key, i), x) for i, x in enumerate(parts)]
    if terms is OBJECTIVES["dsm"].terms:  # a kernel's mu is not used: one program for them all
        batches = [dataclasses.replace(b, mu=None) for b in batches]
    batch = jax.tree.map(lambda *a: np.concatenate(a), *batches)
    measured = measure(model, on.params, batch, on.times[present], terms=terms)
    calls = Calls(
        noising=partial(noise, noising, key, parts[0]),
        gradient=partial(gradient, model, on.params, batches[0], terms=terms),
        states=batches[0].t.size,
    )
    return estimates(estimator, measured, present), calls


def synthetic(num: int = 4000, dim: int = 784, components: int = 10, rank: int = 16) -> Dataset:
    """A mixture whose components are thin, so that no spherical mixture fits it."""
    rng = np.random.default_rng(SEED.value)
    centres = rng.normal(size=(components, dim)) * 0.3
    spread = rng.normal(size=(components, rank, dim)) * 0.2 / np.sqrt(1 + np.arange(rank))[:, None]
    label = rng.integers(components, size=num)
    x = centres[label] + np.einsum("nr,nrd->nd", rng.normal(size=(num, rank)), spread[label])
    x = x + 0.05 * rng.normal(size=x.shape)
    half = num // 2
    train, test = np.split(x.astype(np.float32), [half])
    return Dataset(
        name="synthetic",
        train=train,
        test=test,
        train_labels=None,
        test_labels=None,
        shape=(dim,),
        value_range=None,
        source="synthetic",
    )


def problems() -> dict[str, tuple[Tree, Dataset, int]]:
    """Name of the rows -> config of the training, data, samples a time."""
    quick = QUICK.value
    common: Tree = {
        "objective": {"name": "path_dsm"},
        "network": {"parameterisation": "residual"},
        "optimizer": {"schedule": "cosine"},
        "train": {"steps": 100 if quick else 600, "picture_every": 0, "tensorboard": False},
        "mixture": {"num_inits": 1},
    }
    small: Tree = {"network": {"width": 32, "depth": 2, "time_features": 16}}
    plane: Tree = {"network": {"width": 32, "depth": 7, "skip": False, "time_features": 0}}
    wide: Tree = {"network": {"width": 128, "depth": 3}}
    sizes = {"d2": (plane, 2048), "d64": (wide, 512), "d784": (wide, 320)}
    data: dict[str, Tree] = {
        "d2": {"data": {"name": "rings_and_bars"}, "mixture": {"num_components": 4}},
        "d64": {"data": {"name": "digits"}},
    }
    if not quick:
        mnist = {"data": {"name": "mnist", "dir": MNIST_DIR.value or ""}}
        data["d784"] = merge(mnist, {"mixture": {"subset": 4000}})
    found = {}
    for name, section in data.items():
        network, num = (small, 128) if quick else sizes[name]
        tree = merge(merge(common, network), section)
        use_synthetic = name == "d784" and MNIST_DIR.value is None
        dataset = synthetic() if use_synthetic else load_data(Config.from_dict(tree))
        found[name] = (tree, dataset, num)
    return found


PICTURED = {
    "ndsm": {"color": "#1f4e79"},
    "ndsm_optimal": {"color": "#1f4e79", "linestyle": ":"},
    "ndsm_eps1": {"color": "#1f4e79", "linestyle": "--"},
    "ndsm_step": {"color": "#d08a2e"},
    "ndsm_step_eps1": {"color": "#d08a2e", "linestyle": "--"},
    "ndsm_8": {"color": "#6fa8dc"},
    "path_dsm_ramp_0.5": {"color": "#7a9e7e", "linestyle": "--"},
    "path_dsm_ramp_4": {"color": "#7a9e7e", "linestyle": ":"},
    "path_dsm_sinh": {"color": "#2e7d32"},
    "path_dsm_cv_sinh_optimal": {"color": "#8e44ad", "linestyle": "--"},
    "implicit": {"color": "#c0392b"},
    "ou_dsm": {"color": "#888888"},
}
"""What the picture shows of the estimators, and how."""


def picture(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Variance against the time in relaxation times, one panel a dimension."""
    from matplotlib.figure import Figure

    prefixes = list(dict.fromkeys(row["name"].split("_")[0] for row in rows))
    by_name = {row["name"]: row for row in rows}
    figure = Figure(figsize=(4 * len(prefixes) + 2.4, 4), layout="constrained")
    axes = figure.subplots(ncols=len(prefixes), squeeze=False)[0]
    for axis, prefix in zip(axes, prefixes, strict=True):
        for name, style in PICTURED.items():
            if (row := by_name.get(f"{prefix}_{name}")) is None:
                continue
            variance = np.array(row["variance_at"], float)  # None becomes NaN, which is not drawn
            axis.loglog(row["relaxations"], variance, marker=".", label=name, **style)
        axis.set(xlabel="t / relaxation time", title=f"d = {prefix[1:]}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("variance of one sample's gradient")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


OU: Tree = {"process": {"name": "ornstein_uhlenbeck"}, "objective": {"name": "dsm"}}


def compare(prefix: str, tree: Tree, dataset: Dataset, num: int) -> list[dict[str, Any]]:
    """The rows of one problem: mixture Langevin dynamics, then OU, each with its own network."""
    key = jax.random.key(SEED.value)
    mixture = process(tree, dataset, num)
    sigma_squared = float(mixture.experiment.process.clock.saturation)
    found: dict[str, Estimate] = {}
    calls: dict[str, Calls] = {}
    for estimator in estimators(sigma_squared, dataset.dim):
        new, calls[estimator.name] = run(key, mixture, tree, estimator)
        found |= {e.name: e for e in new}
    reference, unbiased = found[REFERENCE], found[UNBIASED]
    rows = [row(prefix, mixture, e, reference, unbiased) for e in found.values()]

    if QUICK.value:
        return rows

    ou = process(merge(tree, OU), dataset, num)
    ou_dsm = Estimator("ou_dsm", {}, OBJECTIVES["dsm"].terms, 1)
    (estimate,), calls["ou_dsm"] = run(key, ou, merge(tree, OU), ou_dsm)
    rows.append(row(prefix, ou, estimate, reference, None))
    seconds = time_calls(calls)
    return [with_seconds(r, seconds, reference.cost) for r in rows]


def with_seconds(
    row: dict[str, Any], seconds: Mapping[str, Mapping[str, float]], reference_cost: float
) -> dict[str, Any]:
    """A row with its times, and with its ratio by measured seconds in place of counted cost."""
    mine, base = seconds[row["estimator"]], seconds[REFERENCE]
    variance_ratio = row["ratio"] * reference_cost / row["cost"]
    by_seconds = variance_ratio * sum(mine.values()) / sum(base.values())
    return dict(row) | dict(mine) | {"ratio_seconds": by_seconds}


def time_calls(calls: Mapping[str, Calls]) -> dict[str, dict[str, float]]:
    """Microseconds a state of noising and of the gradient."""
    alternatives: dict[str, Callable[[], Any]] = {}
    for name, call in calls.items():
        alternatives |= {f"{name} noising_us": call.noising, f"{name} gradient_us": call.gradient}
    timings = ratios(alternatives, f"{REFERENCE} gradient_us", rounds=5)
    return {
        name: {
            what: 1e6 * timings[f"{name} {what}"].seconds / call.states
            for what in ("noising_us", "gradient_us")
        }
        for name, call in calls.items()
    }


COLUMNS = (
    "name",
    "ratio",
    "ratio_seconds",
    "variance",
    "error",
    "cost",
    "noising_us",
    "gradient_us",
    "z",
)


def main(argv: Sequence[str]) -> None:
    rows = [row for name, problem in problems().items() for row in compare(name, *problem)]
    report(rows, COLUMNS)
    if OUT.value is not None:
        picture(rows, pathlib.Path(OUT.value).with_suffix(".png"))


if __name__ == "__main__":
    app.run(main)
