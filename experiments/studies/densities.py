"""Held-out densities of tables: ours beside a mixture, kernels and a normalising flow.

Not in 2405.15625. Iris, wine, breast cancer, diabetes and digits come with scikit-learn; two laws
of the shape of POWER and MINIBOONE have a density that is known (`datasets.stand_ins`), which is a
ceiling. Everything is fitted to four fifths, in coordinates of mean 0 and variance 1 there, and
measured on the fifth: nats an item, in the units of the data. Five splits hold out every row once;
those of the stand-ins are five draws.

No density of numbers that repeat has a bound: a spike on a value is worth what one likes. So every
value gets uniform noise, the same for all methods, as wide as the step of its column, the largest
power of ten of which more than half of its values are multiples, and at least a hundredth of the
column's standard deviation. The mean log density is then a lower bound of the log probability of
what is in the table, by its volume (1511.01844, Section 3.1).

A data set and a split are one part, kept on disk, so that processes with `--only=wine_0,digits_*`
share a folder; the call without it measures what is missing and writes tables and figure.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ndsm_jax import NDSM, plots
from ndsm_jax.datasets.stand_ins import STAND_INS
from ndsm_jax.evaluation import kernel_density
from ndsm_jax.references import choose
from ndsm_jax.reports.study import Study, chosen, mean_and_error
from ndsm_jax.training import prior_log_prob

Array = np.ndarray

OURS, LANGEVIN = "ours", "ours, mixture Langevin"
MIXTURE, REFERENCE, KERNELS, FLOW = "mixture by BIC", "reference", "kernel density", "flow"
EXACT = "exact"
METHODS: Mapping[str, str] = {
    OURS: "the estimator's defaults: noise of each component, held-out length, refit on all rows",
    LANGEVIN: "the same with Langevin noising by the mixture and path DSM",
    REFERENCE: "what ours starts from",
    MIXTURE: "scikit-learn's mixture of the least BIC, alone: the one to beat",
    KERNELS: "Gaussian kernels, bandwidth by cross-validation",
    FLOW: "masked autoregressive flow of rational-quadratic splines (flowjax)",
    EXACT: "the density that the rows were drawn from: the ceiling",
}

SPLITS = 5
SCIKIT = ("iris", "wine", "breast_cancer", "diabetes", "digits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a scale.

    Attributes:
      names: of data sets.
      splits: of the five, how many.
      rows: of a stand-in, training and held-out ones together.
      langevin: the data sets that our second method is measured on.
      estimator: options of `NDSM`.
      large: those that differ for stand-ins.
      epochs: of the flow, at most.
    """

    names: tuple[str, ...] = (*SCIKIT, *STAND_INS)
    splits: int = SPLITS
    rows: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"power": 12_500, "miniboone": 6250}
    )
    langevin: tuple[str, ...] = ("iris", "wine", "diabetes")
    estimator: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    large: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 200


SCALES: Mapping[str, Settings] = {
    "smoke": Settings(
        names=("power",),
        splits=1,
        rows={"power": 150},
        langevin=("power",),
        estimator={
            "steps": 2,
            "batch_size": 16,
            "num_components": 2,
            "covariance": "diag",
            "settings": {"network.width": 8, "network.depth": 1},
        },
        epochs=1,
    ),
    "cpu": Settings(),
    "full": Settings(
        rows={"power": 1_000_000, "miniboone": 36_000},
        langevin=(*SCIKIT, *STAND_INS),
        large={"steps": 100_000, "patience": 10_000, "batch_size": 512},
        epochs=1000,
    ),
}


def reproduce(study: Study, *, only: str = "") -> None:
    """All data sets and splits, or `only` those whose NAME_SPLIT matches one of these patterns.

    Raises:
      ValueError: patterns of which one matches nothing.
      ModuleNotFoundError: flowjax is not installed.
    """
    settings = SCALES[study.scale]
    cells = {f"{n}_{i}": (n, i) for n in settings.names for i in range(settings.splits)}
    _flowjax()
    results: dict[str, list[dict[str, Any]]] = {}
    for name, split in chosen(cells, only):
        of = dataclasses.asdict(settings) | {"names": name, "splits": split}
        measure = functools.partial(_measured, study, name, split)
        results.setdefault(name, []).append(study.part(f"{name}_{split}", of, measure))
    if not only:
        _report(study, results)


# --- data ---


def step(column: Array) -> float:
    """The largest power of ten of which more than half of the values are multiples; or 0."""
    for exponent in range(4, -10, -1):
        scaled = column * 10.0**-exponent
        if np.mean(np.isclose(scaled, np.round(scaled), rtol=1e-9, atol=1e-6)) > 0.5:
            return 10.0**exponent
    return 0.0


def rows_of(name: str) -> Array:
    """The rows of a data set of scikit-learn, with noise within the steps of their columns."""
    from sklearn import datasets

    load = getattr(datasets, f"load_{name}")
    x = (load(scaled=False) if name == "diabetes" else load()).data.astype(np.float64)
    rng = np.random.default_rng(0)
    # A pixel is one of 17 levels, whatever its values.
    steps = 1.0 if name == "digits" else [max(step(c), c.std() / 100) for c in x.T]
    return x + steps * (rng.uniform(size=x.shape) - 0.5)


def _split(name: str, split: int, settings: Settings) -> tuple[Array, Array]:
    """Training rows, and those that are held out."""
    if name in STAND_INS:
        x = STAND_INS[name].sample(np.random.default_rng([split, 1]), settings.rows[name])
        held = np.arange(len(x)) < len(x) // SPLITS
    else:
        x = rows_of(name)
        held = np.random.default_rng(0).permutation(len(x)) % SPLITS == split
    return x[~held], x[held]


# --- methods ---

Densities = dict[str, tuple[Array, dict[str, Any]]]
"""Method -> log densities of held-out rows [n], and what else there is to say."""


def _measured(study: Study, name: str, split: int) -> dict[str, Any]:
    settings = SCALES[study.scale]
    train, test = _split(name, split, settings)
    shift, scale = train.mean(axis=0), train.std(axis=0)
    standard = (train - shift) / scale, (test - shift) / scale
    options = {"random_state": split, "verbose": study.progress, **settings.estimator}
    options |= settings.large if name in STAND_INS else {}
    methods: dict[str, Callable[[], Densities]] = {
        MIXTURE: lambda: _mixture(*standard, split),
        KERNELS: lambda: _kernels(*standard, split),
        FLOW: lambda: _flow(*standard, split, settings.epochs),
        OURS: lambda: _ours(*standard, options),
    }
    if name in settings.langevin:
        methods[LANGEVIN] = lambda: _langevin(*standard, options)
    values: dict[str, Array] = {}
    facts: dict[str, Any] = {}
    for method, measure in methods.items():
        start = time.perf_counter()
        with jax.numpy_rank_promotion("allow"):  # flowjax relies on it
            densities = measure()
        for label, (value, found) in densities.items():
            values[label] = np.asarray(value, np.float64) - np.log(scale).sum()
            facts[label] = found
        facts[method]["seconds"] = time.perf_counter() - start
    if name in STAND_INS:
        values[EXACT], facts[EXACT] = STAND_INS[name].log_density(test), {}
    return {
        "train": len(train),
        "held out": len(test),
        "dim": test.shape[1],
        "methods": {
            label: {
                "value": float(value.mean()),
                "gain": float((value - values[MIXTURE]).mean()),
                # Of this split alone, over its items.
                "gain_se": float((value - values[MIXTURE]).std(ddof=1) / len(value) ** 0.5),
                **facts[label],
            }
            for label, value in values.items()
        },
    }


def _mixture(train: Array, test: Array, seed: int) -> Densities:
    """Chosen among all that ours chooses from, and from as many rows."""
    found = choose(train, seed=seed)
    size = {"components": found.num_components, "covariance": found.covariance}
    return {MIXTURE: (found.model.score_samples(test), size)}


def _kernels(train: Array, test: Array, seed: int) -> Densities:
    found = kernel_density(train, seed=seed)
    return {KERNELS: (found.score_samples(test), {"bandwidth": float(found.bandwidth)})}


def _ours(train: Array, test: Array, options: Mapping[str, Any]) -> Densities:
    model = NDSM(**options).fit(train)
    prior = prior_log_prob(model.model_.experiment, test).value
    return {OURS: (model.score_samples(test), _kept(model)), REFERENCE: (prior, {})}


def _langevin(train: Array, test: Array, options: Mapping[str, Any]) -> Densities:
    settings = {
        "process.name": "langevin",
        "objective.name": "path_dsm",
        "network.parameterisation": "residual",
        "noising.weight": "auto",
        # Full covariances are narrow: with the 500 that would be chosen, explicit steps noise to a
        # law that is too wide.
        "noising.steps": 2000,
    }
    more = {"settings": {**options.get("settings", {}), **settings}}
    model = NDSM(**{**options, **more}).fit(train)
    return {LANGEVIN: (model.score_samples(test), _kept(model))}


def _kept(model: NDSM) -> dict[str, Any]:
    best, mixture = model.model_.state.best, model.model_.config.mixture
    return {
        "steps": int(best.step),
        "components": mixture.num_components,
        "covariance": mixture.covariance,
    }


def _flowjax() -> Any:
    try:
        import flowjax.flows
        import flowjax.train
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the study densities compares with flowjax ({error}): pip install 'ndsm_jax[bench]'"
        ) from error
    return flowjax


def _flow(train: Array, test: Array, seed: int, epochs: int) -> Densities:
    """Adam until ten epochs have not improved a tenth of the training rows; the best is kept."""
    import equinox
    import jax.numpy as jnp
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal

    flowjax = _flowjax()
    key_flow, key_fit = jax.random.split(jax.random.key(seed))
    flow = flowjax.flows.masked_autoregressive_flow(
        key_flow,
        base_dist=Normal(jnp.zeros(train.shape[1])),
        transformer=RationalQuadraticSpline(knots=8, interval=4),
    )
    flow, losses = flowjax.train.fit_to_data(
        key_fit,
        flow,
        jnp.asarray(train, jnp.float32),
        learning_rate=1e-3,
        max_epochs=epochs,
        max_patience=10,
        batch_size=int(np.clip(len(train) // 20, 8, 128)),
        val_prop=0.1,
        show_progress=False,
    )
    log_prob = equinox.filter_jit(lambda flow, x: flow.log_prob(x))
    value = np.asarray(log_prob(flow, jnp.asarray(test, jnp.float32)))
    return {FLOW: (value, {"epochs": len(losses["train"])})}


# --- report ---


def _report(study: Study, results: Mapping[str, list[dict[str, Any]]]) -> None:
    splits = len(next(iter(results.values())))
    error = f"mean ± standard error over {splits} splits" if splits > 1 else "one split"
    values, gains = [], []
    for name, parts in results.items():
        first = parts[0]
        of = {"": name, "columns": first["dim"], "rows": first["train"]}

        def over(key: str, parts: list[dict[str, Any]] = parts) -> dict[str, str]:
            known = [m for m in METHODS if m in parts[0]["methods"]]
            return {m: mean_and_error([p["methods"][m][key] for p in parts]) for m in known}

        kept = {"steps": ", ".join(str(p["methods"][OURS]["steps"]) for p in parts)}
        values.append(
            of | {"held out": first["held out"]} | dict.fromkeys(METHODS, "") | over("value")
        )
        gains.append({"": name} | dict.fromkeys(METHODS, "") | over("gain") | kept)
        del gains[-1][MIXTURE]
    study.table("densities", values, title=f"Held-out log density, nats an item; {error}.")
    study.table(
        "gains",
        gains,
        title=f"The same less that of the mixture by BIC, item by item; {error}; and after how many"
        " steps of training ours was kept.",
    )
    panels = {
        name: {
            "gain over the mixture by BIC, nats an item": {
                label: [p["methods"][label]["gain"] for p in parts]
                for label in METHODS
                if label in parts[0]["methods"] and label != MIXTURE
            }
        }
        for name, parts in results.items()
    }
    lines = {name: {"the mixture": 0.0} for name in results}
    study.figure("densities", plots.levels_figure(panels, lines=lines, columns=4))
    study.metrics({"methods": METHODS, "results": results})
