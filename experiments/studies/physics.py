"""Scores of given nonlinear dynamics: samples, currents and entropy production.

After 2407.07998, Figure 5, and 2206.04642: from simulated paths a small network learns the score of
the law p_t of an active swimmer, by local-DSM, NDSM and ISM, at equal numbers of steps and noised
states; and once more by NDSM with a coarser simulation. The model's samples are draws of p_0 that
the probability flow of the learned score has moved to t; a classifier tells them from simulated
states, or cannot. Then the same, by local-DSM, for a double well with inertia, a driven Duffing
oscillator and Lorenz's equations.

The learned score gives entropy rates along time. They are compared with the exact ones of
critically damped dynamics from a Gaussian, and with what simulations say without a score: heat from
their moments, and the entropy of p_t from distances between nearest neighbours.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.spatial
import scipy.special
import scipy.stats
from jax.tree_util import Partial

from ndsm_jax import currents, noising, plots, processes, references
from ndsm_jax.clock import loss_weight, time_coordinate
from ndsm_jax.evaluation import two_sample_accuracy
from ndsm_jax.experiment import Experiment, experiment
from ndsm_jax.integrators import broadcast_time, uniform_grid
from ndsm_jax.networks import Raw, ScoreMLP, ScoreModel
from ndsm_jax.noising import NoisingFn
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.optimisation import adam
from ndsm_jax.processes import Process, ScoreFn
from ndsm_jax.references import GaussianMixture
from ndsm_jax.reports.study import Study, over_seeds, slug
from ndsm_jax.training import train
from ndsm_jax.training.train import default_run

LOCAL = "local-DSM"
METHODS: Mapping[str, tuple[str, int]] = {
    LOCAL: ("local_dsm", 1),
    "NDSM": ("ndsm", 1),
    "ISM": ("ism", 1),
    "NDSM, steps ten times as long": ("ndsm", 10),
}
"""Name -> objective, and length of the simulation's steps in those of the scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """Dynamics, and what is looked at.

    Attributes:
      process: the dynamics.
      start: the law p_0.
      times: at which samples are compared, multiples of a 25th of the last one, the horizon.
      gap: window of local-DSM, time units.
      axes: the coordinates that pictures show.
      odd: coordinates that are odd under time reversal, or None where the entropy production is
        infinite.
    """

    process: Process
    start: GaussianMixture
    times: tuple[float, ...] = (1.0, 3.0, 5.0)
    gap: float = 0.2
    axes: tuple[int, int] = (0, 1)
    odd: tuple[int, ...] | None = (1,)


def _normal(mean: tuple[float, ...], std: tuple[float, ...]) -> GaussianMixture:
    return references.mixture([1.0], [mean], [np.square(std)], covariance="diag")


def _swimmer() -> System:
    process = processes.active_swimmer(horizon=5.0)
    return System(process=process, start=_normal((0, 0), (1, 1)), odd=None)


def _double_well() -> System:
    """U = (x^2 - 1)^2 at T = 1/2, from a cold cloud on the barrier."""
    wells = processes.double_well(1, barrier=2.0)
    process = processes.underdamped(wells, temperature=0.5, friction=1.0, horizon=5.0)
    return System(process=process, start=_normal((0, 0), (0.3, 0.3)), gap=0.1)


def _duffing() -> System:
    process = processes.duffing(force=0.5, noise=0.4, horizon=5.0)
    return System(process=process, start=_normal((0, 0), (0.5, 0.5)))


def _lorenz() -> System:
    process = processes.lorenz63(noise=4.0, unit=10.0, horizon=1.5)
    return System(
        process=process,
        start=_normal((0, 0, 2), (0.5, 0.5, 0.5)),
        times=(0.3, 0.9, 1.5),
        gap=0.02,
        axes=(0, 2),
        odd=(),
    )


def _damped() -> System:
    process = processes.critically_damped(1, mass=1.0, rate=1.0, horizon=5.0)
    return System(process=process, start=_normal((0, 0), (0.4, 1.6)), gap=0.5)


SYSTEMS: Mapping[str, Callable[[], System]] = {
    "active swimmer": _swimmer,
    "double well": _double_well,
    "Duffing": _duffing,
    "Lorenz-63": _lorenz,
    "critically damped": _damped,
}
SWIMMER, EXACT = "active swimmer", "critically damped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a scale.

    Attributes:
      systems: by name, in order.
      methods: for the swimmer.
      seeds: of trainings and samples.
      steps, batch, k: of a training, its minibatch, and the times of a path.
      grid: steps of the simulated paths; a multiple of 100, and so are those below.
      fine: steps of the simulation that models are compared with.
      flow: Heun steps of the transport.
      width, depth: of the network.
      samples: of a model, and of the simulation beside them.
      kept: simulated states that are kept, of which 2 seeds * samples are compared with models and
        with each other.
      paths: that are simulated for mean rates.
    """

    systems: tuple[str, ...] = tuple(SYSTEMS)
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 3
    steps: int = 10_000
    batch: int = 64
    k: int = 16
    grid: int = 1000
    fine: int = 5000
    flow: int = 300
    width: int = 64
    depth: int = 3
    samples: int = 3000
    kept: int = 20_000
    paths: int = 100_000


SCALES: Mapping[str, Settings] = {
    "smoke": Settings(
        systems=(SWIMMER, EXACT),
        methods=(LOCAL, "ISM"),
        seeds=1,
        steps=20,
        batch=16,
        k=2,
        grid=300,
        fine=500,
        flow=100,
        width=8,
        depth=1,
        samples=200,
        kept=1000,
        paths=2000,
    ),
    "cpu": Settings(),
    "full": Settings(seeds=5, steps=100_000, batch=256, samples=10_000, kept=100_000),
}
PARTS, EVERY = 100, 4
"""Intervals of the horizon, at whose ends rates are measured, and entropies at every fourth."""


def reproduce(study: Study) -> None:
    """All trainings, seed by seed; tables, figures and metrics.json are written after each."""
    settings = SCALES[study.scale]
    systems = {name: SYSTEMS[name]() for name in settings.systems}
    simulated = {name: _simulated(study, name, systems[name]) for name in systems}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(settings.seeds):
        for name, system in systems.items():
            of_system = results.setdefault(name, {})
            for method in settings.methods if name == SWIMMER else (LOCAL,):
                found = _measured(study, name, system, method, seed, simulated[name])
                of_system.setdefault(method, []).append(found)
        _report(study, systems, simulated, results)


# --- simulation ---


class Simulated(NamedTuple):
    """A simulation without a model.

    Attributes:
      states: at the ends of `PARTS` intervals, [101, kept, d].
      entropy: of every fourth of them [26].
      medium: rate of entropy given to the surroundings, [101].
      floor: accuracies of telling two simulations apart, one dict of times a seed.
    """

    states: np.ndarray
    entropy: list[float]
    medium: list[float]
    floor: list[dict[str, float]]


def _ends(system: System) -> np.ndarray:
    return np.linspace(0, float(system.process.horizon), PARTS + 1)


def _index(system: System, time: float) -> int:
    return round(PARTS * time / float(system.process.horizon))


def _simulated(study: Study, name: str, system: System) -> Simulated:
    """A fine simulation, and what of it needs no model."""
    settings = SCALES[study.scale]
    file = study.root / "simulated" / f"{slug(name)}.npy"

    def measure() -> dict[str, Any]:
        key, key_start = jax.random.split(jax.random.key(1000))
        y, ends = system.start.sample(key_start, (settings.paths,)), _ends(system)
        kept, medium = [], []
        for n, time in enumerate(ends):
            if n:
                grid = np.linspace(ends[n - 1], time, settings.fine // PARTS + 1)
                step = jax.random.fold_in(key, n)
                y = noising.states_at(step, system.process, y, grid, time)[0]
            kept.append(np.asarray(y[: settings.kept]))
            no_score = Partial(_no_score, system.process)
            medium.append(_mean_rates(system.process, no_score, y, time, system.odd or ()).medium)
        states = np.stack(kept)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, states)
        seeds = range(settings.seeds)
        pairs = [(_chunk(study, states, s), _chunk(study, states, s + len(seeds))) for s in seeds]
        return {
            "entropy": [knn_entropy(y) for y in states[::EVERY]],
            "medium": np.asarray(medium, float).tolist(),
            "floor": [_accuracies(system, *pair, seed=s) for s, pair in enumerate(pairs)],
        }

    of = dataclasses.asdict(settings)
    values = study.part(f"{slug(name)}_simulated", of, measure)
    return Simulated(np.load(file, allow_pickle=False), **values)


def _no_score(process: Process, y: jax.Array, t: jax.Array) -> jax.Array:
    return process.project(jnp.zeros_like(y))


def _chunk(study: Study, states: np.ndarray, number: int) -> np.ndarray:
    """As many simulated states as a model has samples, others for another number."""
    size = SCALES[study.scale].samples
    first = number * size % (states.shape[1] - size + 1)
    return states[:, first : first + size]


def _accuracies(system: System, x: np.ndarray, y: np.ndarray, *, seed: int) -> dict[str, float]:
    """Two-sample accuracy at the times shown, of states [101, n, d] each; NaN of what diverged."""
    found, size = {}, x.shape[1]
    for time in system.times:
        pair = [states[_index(system, time)] for states in (x, y)]
        finite = np.isfinite(pair).all()
        accuracy = (
            two_sample_accuracy(*pair, seed=seed, max_points=size).value if finite else np.nan
        )
        found[f"t = {time:g}"] = accuracy
    return found


def knn_entropy(x: np.ndarray, k: int = 4) -> float:
    """-E log p of draws x [n, d], by the distances e to their k-th nearest neighbours:

        psi(n) - psi(k) + log V_d + d mean log e,

    V_d the volume of the unit ball (Kozachenko and Leonenko 1987; Kraskov et al., cond-mat/0305641,
    Eq. 20).
    """
    n, d = x.shape
    distance = scipy.spatial.cKDTree(x).query(x, k + 1)[0][:, -1]
    log_ball = 0.5 * d * np.log(np.pi) - scipy.special.gammaln(0.5 * d + 1)
    digamma = scipy.special.digamma
    return float(digamma(n) - digamma(k) + log_ball + d * np.mean(np.log(distance)))


# --- training ---


def _noise(system: System, method: str, settings: Settings) -> NoisingFn:
    """Times uniform, weight 1: for all methods the same states, but for their last step."""
    process, (objective, longer) = system.process, METHODS[method]
    grid = uniform_grid(float(process.horizon), settings.grid // longer)
    options: dict[str, Any] = {
        "k": settings.k,
        "times": noising.time_law(process.clock, grid, kind="uniform"),
        "weight": loss_weight(process.clock, "unit"),
    }
    if OBJECTIVES[objective].noising == "linearised":
        return noising.linearised_windows(process, grid, schedule="gap", gap=system.gap, **options)
    return noising.local_steps(process, grid, loss_step=float(grid[1]), **options)


def _experiment(system: System, method: str, settings: Settings) -> Experiment:
    """p_0 is smooth, and so the score is finite at time 0: the network is the score as it is."""
    process = system.process
    coordinate = time_coordinate(process.clock, process.horizon, "time", first=0.0)
    network = ScoreMLP(width=settings.width, depth=settings.depth, outputs=process.noise_dim)
    return experiment(
        process,
        objective=METHODS[method][0],
        noise=_noise(system, method, settings),
        model=ScoreModel(
            network=network,
            dim=process.dim,
            precondition=Raw(process=process, coordinate=coordinate),
        ),
        optimiser=adam(5e-3, schedule="cosine", steps=settings.steps),
        sample_grid=settings.flow,
    )


def _score(study: Study, name: str, system: System, method: str, seed: int) -> ScoreFn:
    """The learned score; trained, or gone on with, where that is not done."""
    settings = SCALES[study.scale]
    made = _experiment(system, method, settings)
    data = np.asarray(system.start.sample(jax.random.key(2000 + seed), (50_000,)))
    folder = study.root / "runs" / _label(name, method, seed)
    run = default_run(made, data, folder, batch_size=settings.batch, seed=seed)
    state = train(
        made,
        data,
        steps=settings.steps,
        batch_size=settings.batch,
        seed=seed,
        run=dataclasses.replace(run, tensorboard=False, checkpoint_every=5000),
        progress=study.progress,
    )
    return made.model.bind(state.ema)


# --- measurement ---


def _label(name: str, method: str, seed: int) -> str:
    return f"{slug(name)}_{slug(method)}_{seed}"


def _samples_file(study: Study, name: str, method: str, seed: int) -> pathlib.Path:
    return study.root / "samples" / f"{_label(name, method, seed)}.npy"


@jax.jit
def _transported(process: Process, score: ScoreFn, y0: Any, log_prob: Any, grid: Any) -> Any:
    return currents.transport(process, score, y0, grid, log_prob=log_prob)


@partial(jax.jit, static_argnames="odd")
def _mean_rates(process: Process, score: ScoreFn, y: Any, t: Any, odd: tuple[int, ...]) -> Any:
    rates = currents.entropy_rates(process, score, y, broadcast_time(t, y), odd=odd)
    return jax.tree.map(jnp.mean, rates)


def _rates(system: System, score: ScoreFn, states: np.ndarray) -> dict[str, list[float]]:
    """Means of the entropy rates over simulated states [101, n, d]: [101] each."""
    at = zip(states, _ends(system), strict=True)
    rates = [_mean_rates(system.process, score, y, t, system.odd or ()) for y, t in at]
    columns = zip(*rates, strict=True)
    fields = currents.EntropyRates._fields
    return {name: np.asarray(c, float).tolist() for name, c in zip(fields, columns, strict=True)}


def _measured(
    study: Study, name: str, system: System, method: str, seed: int, simulated: Simulated
) -> dict[str, Any]:
    """Accuracies of a model's samples, its entropies along time, and where its samples are."""
    settings = SCALES[study.scale]
    label = _label(name, method, seed)
    samples = _samples_file(study, name, method, seed)

    def measure() -> dict[str, Any]:
        score = _score(study, name, system, method, seed)
        y0 = system.start.sample(jax.random.key(3000 + seed), (settings.samples,))
        grid = uniform_grid(float(system.process.horizon), settings.flow)
        path = _transported(system.process, score, y0, system.start.log_prob(y0), jnp.asarray(grid))
        moved, log_prob = (np.asarray(a)[:: settings.flow // PARTS] for a in path)
        samples.parent.mkdir(parents=True, exist_ok=True)
        np.save(samples, moved)
        return {
            "accuracy": _accuracies(
                system, _chunk(study, simulated.states, seed), moved, seed=seed
            ),
            "entropy of the flow": (-log_prob.mean(axis=1)[::EVERY]).tolist(),
            "current": _current(system, score, simulated.states[-1]).tolist(),
            **_rates(system, score, simulated.states),
        }

    return study.part(label, dataclasses.asdict(settings), measure)


CELLS = 16


def _cells(system: System, y: np.ndarray) -> list[np.ndarray]:
    """Edges of cells along the axes shown, that hold all but a thousandth of the states [n, d]."""
    ends = np.quantile(y[:, list(system.axes)], [5e-4, 1 - 5e-4], axis=0)
    return [np.linspace(low, high, CELLS + 1) for low, high in ends.T]


def _current(system: System, score: ScoreFn, y: np.ndarray) -> np.ndarray:
    """The current at the horizon in the plane shown, the mean of v over the states [n, d] in a cell
    times their density: [2, CELLS, CELLS]. Of more coordinates it is the integral over the others.
    """
    edges = _cells(system, y)
    times = jnp.broadcast_to(system.process.horizon, y.shape[:1])
    velocity = jax.jit(currents.velocity(system.process, score))(y, times)
    shown = [np.asarray(velocity[:, i], np.float64) for i in system.axes]
    x = y[:, list(system.axes)]
    sums = scipy.stats.binned_statistic_2d(*x.T, shown, "sum", bins=edges).statistic
    return sums / (len(y) * np.prod([e[1] - e[0] for e in edges]))


# --- what is known without a score ---


def _integral(rates: Any, system: System) -> np.ndarray:
    """From rates [101] what has come together up to every fourth of the times: [26]."""
    return scipy.integrate.cumulative_simpson(rates, x=_ends(system), initial=0)[::EVERY]


def exact_rate(system: System) -> np.ndarray:
    """The entropy production rate of the critically damped system at each of the times: [101].

    D tr(c S c^T) with u - b_i / D = -c y, for the covariance S(t) of its Gaussian law.
    """
    start = np.diag(np.asarray(system.start.factor[0], np.float64) ** 2)
    f = np.array([[0.0, 1.0], [-1.0, -2.0]])  # mass 1, rate 1, friction 2; D = 2
    rates = []
    for t in _ends(system):
        a = scipy.linalg.expm(t * f)
        spread = np.eye(2) + a @ (start - np.eye(2)) @ a.T
        c = np.linalg.inv(spread)[1] - np.array([0.0, 1.0])
        rates.append(2 * c @ spread @ c)
    return np.array(rates)


# --- report ---


def _report(
    study: Study,
    systems: Mapping[str, System],
    simulated: Mapping[str, Simulated],
    results: Mapping[str, Mapping[str, list[dict[str, Any]]]],
) -> None:
    settings = SCALES[study.scale]
    error = 0.5 / (2 * settings.samples) ** 0.5
    for name, of_system in results.items():
        seeds = len(of_system[LOCAL])
        rows = [
            {"samples": m, **over_seeds([r["accuracy"] for r in runs])}
            for m, runs in of_system.items()
        ]
        rows.append({"samples": "another simulation", **over_seeds(simulated[name].floor[:seeds])})
        study.table(
            slug(name),
            rows,
            title=f"{name}: accuracy of telling {settings.samples} samples from as many simulated"
            f" states (0.5: not at all; one test has a standard error of {error:.2g}), seeds:"
            f" {seeds}",
        )
    _entropies(study, systems, simulated, results)
    study.figure("samples", _samples_figure(study, systems, simulated, results))
    arrows = {
        name: (
            simulated[name].states[-1][:, list(system.axes)],
            _cells(system, simulated[name].states[-1]),
            np.asarray(results[name][LOCAL][0]["current"]),
        )
        for name, system in systems.items()
        if name in results
    }
    study.figure("currents", plots.currents_figure(arrows))
    study.metrics({"results": results, "floor": {n: s.floor for n, s in simulated.items()}})


def _entropies(
    study: Study,
    systems: Mapping[str, System],
    simulated: Mapping[str, Simulated],
    results: Mapping[str, Mapping[str, list[dict[str, Any]]]],
) -> None:
    """Entropy of the law, and entropy produced, over time: learned, simulated, exact."""
    rows, entropy, production = [], {}, {}
    for name, of_system in results.items():
        system, runs, known = systems[name], of_system[LOCAL], np.asarray(simulated[name].entropy)
        t = _ends(system)[::EVERY].tolist()
        changes = [_integral(r["system"], system) for r in runs]
        flow = [np.subtract(r["entropy of the flow"], r["entropy of the flow"][0]) for r in runs]
        entropy[name] = {
            "simulated": (t, (known - known[0]).tolist()),
            "learned rate": (t, np.mean(changes, axis=0).tolist()),
            "log p along the flow": (t, np.mean(flow, axis=0).tolist()),
        }
        row = {
            "": name,
            "entropy: simulated": known[-1] - known[0],
            "learned rate": _over([c[-1] for c in changes]),
            "log p of the flow": _over([f[-1] for f in flow]),
        }
        if system.odd is not None:
            learned = [_integral(r["total"], system) for r in runs]
            balance = known - known[0] + _integral(simulated[name].medium, system)
            production[name] = {
                "simulated": (t, balance.tolist()),
                "learned": (t, np.mean(learned, axis=0).tolist()),
            }
            row |= {
                "produced: simulated": balance[-1],
                "learned": _over([x[-1] for x in learned]),
            }
            if name == EXACT:
                exact = _integral(exact_rate(system), system)
                production[name]["exact"] = (t, exact.tolist())
                row["exact"] = exact[-1]
        rows.append(row)
    rows.sort(key=len, reverse=True)  # the first row names the columns
    study.table(
        "entropy",
        rows,
        title="From time 0 to the horizon, in nats: change of the entropy of the law, and entropy"
        " produced; mean ± standard error over seeds",
    )
    study.figure(
        "entropy", plots.lines_figure(entropy, columns=3, y="S(t) - S(0), nats", scale="linear")
    )
    study.figure(
        "production",
        plots.lines_figure(production, columns=3, y="entropy produced, nats", scale="linear"),
    )


def _over(values: list[float]) -> str:
    return over_seeds([{"": float(value)} for value in values])[""]


def _samples_figure(
    study: Study,
    systems: Mapping[str, System],
    simulated: Mapping[str, Simulated],
    results: Mapping[str, Mapping[str, list[dict[str, Any]]]],
) -> Any:
    """Simulated states above the samples of the models of the first seed, a column a time."""
    groups: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, of_system in results.items():
        system, size = systems[name], SCALES[study.scale].samples
        sets = {"simulated": simulated[name].states[:, :size]} | {
            m: np.load(_samples_file(study, name, m, 0), allow_pickle=False) for m in of_system
        }
        groups[name] = {
            title: {
                f"t = {time:g}": states[_index(system, time)][:, list(system.axes)]
                for time in system.times
            }
            for title, states in sets.items()
        }
    return plots.clouds_figure(groups)
