"""Samples given a measurement: how far each way of guiding is from the posterior, and digits.

Not in 2405.15625. First with an exact score, of mixtures in 2 and 16 dimensions under a linear
noising (VP) and under Langevin noising towards the data's own law, given half of the coordinates or
noisy sums of them: what is compared is the guidance alone, with the analytic posterior. Then a
trained network of the 8 x 8 digits: held-out digits are completed from their lower half. A judge,
the evaluation's classifier, says whether the class of the completed digit is the true one. The
oracle is the label of the training digit whose lower half is nearest.

A posterior's own draws have its component and its class by their probability, and a neighbour's
label is a best guess: so the vote of several completions is shown, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ndsm_jax import config as config_module
from ndsm_jax import evaluation, measurements, plots, processes, references, sampling
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation.distances import energy_distance
from ndsm_jax.guidance import Reconstruction, Replacement, Twisted
from ndsm_jax.integrators import time_grid
from ndsm_jax.launch import Restored, load_data, restore
from ndsm_jax.measurements import Measurement
from ndsm_jax.processes import Process
from ndsm_jax.references import GaussianMixture
from ndsm_jax.reports.study import Study, load_config, mean_and_error, slug
from ndsm_jax.training import draw
from studies import CONFIGS

METHODS: dict[str, Callable[..., sampling.Sampler]] = {
    "replacement": partial(Replacement, repeats=1),
    "replacement x 10": partial(Replacement, repeats=10),
    "reconstruction": Reconstruction,
    "twisted, 4": partial(Twisted, particles=4),
    "twisted, 16": partial(Twisted, particles=16),
    "twisted, 64": partial(Twisted, particles=64),
}
"""Name -> guidance; the number is that of particles, or of times that a step is taken."""

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "dims": (2,),
        "measurements": 2,
        "draws": 40,
        "steps": 12,
        "methods": ("reconstruction", "twisted, 4"),
        "items": 8,
        "votes": 2,
        "changes": {
            **config_module.SMOKE,
            "data": {"num_train": 500, "num_test": 200},
            "train": config_module.SMOKE["train"] | {"picture_every": 0, "tensorboard": False},
        },
    },
    "cpu": {
        "dims": (2, 16),
        "measurements": 8,
        "draws": 400,
        "steps": 60,
        "methods": tuple(METHODS)[:-1],
        "items": 359,
        "votes": 5,
        "changes": {"train": {"steps": 3000, "picture_every": 0, "tensorboard": False}},
    },
    "full": {
        "dims": (2, 16),
        "measurements": 32,
        "draws": 2000,
        "steps": 200,
        "methods": tuple(METHODS),
        "items": 359,
        "votes": 15,
        "changes": {"train": {"steps": 20_000, "tensorboard": False}},
    },
}

SHOWN = 16
"""Digits in a picture."""


def reproduce(study: Study) -> None:
    """Measures every method on the mixtures, then on the digits; writes both results."""
    scale = SCALES[study.scale]
    errors = {
        f"{process}, {kind}, {dim}-D": _posterior_errors(study, scale, process, kind, dim)
        for dim in scale["dims"]
        for process in NOISINGS
        for kind in ("coordinates", "sums")
    }
    _report_errors(study, errors)
    _digits(study, scale, errors)


# --- mixtures, with exact scores ---


def mixture_of(dim: int) -> GaussianMixture:
    """Three spherical components, near enough to one another to be confused."""
    spread = {2: 1.0, 16: 0.5}[dim]
    means = spread * np.random.default_rng(dim).normal(size=(3, dim))
    return references.mixture([0.2, 0.3, 0.5], means, [0.05, 0.1, 0.15])


def _kernel_score(data: GaussianMixture, process: Process, y: Array, t: Array) -> Array:
    """Of a spherical mixture under a kernel N(a Y_0, s^2 I), at one time for all rows."""
    kernel = process.kernel(t[0])  # type: ignore[misc]
    scale, std = kernel.scale.value, kernel.root.value  # type: ignore[union-attr]
    factor = jnp.sqrt((scale * data.factor) ** 2 + std**2)
    law = dataclasses.replace(
        data, means=scale * data.means, factor=factor, precision_factor=1 / factor
    )
    return law.score(y)


def _own_score(data: GaussianMixture, y: Array, t: Array) -> Array:
    return data.score(y)


def _vp(data: GaussianMixture) -> tuple[Process, Partial]:
    process = processes.variance_preserving(data.dim)
    return process, Partial(_kernel_score, data, process)


def _langevin(data: GaussianMixture) -> tuple[Process, Partial]:
    return processes.langevin(data), Partial(_own_score, data)


NOISINGS: dict[str, Callable[[GaussianMixture], tuple[Process, Partial]]] = {
    "VP": _vp,
    "Langevin": _langevin,
}


def _measured(data: GaussianMixture, kind: str, num: int) -> Measurement:
    """What is known of `num` draws of the data: half of their coordinates, or noisy sums."""
    x = np.asarray(data.sample(jax.random.key(1), (num,)), np.float64)
    half = data.dim // 2
    if kind == "coordinates":
        return measurements.given(np.where(np.arange(data.dim) < half, x, np.nan))
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(half, data.dim)) / data.dim**0.5
    noise = 0.1
    value = x @ matrix.T + noise * rng.normal(size=(num, half))
    return measurements.linear(matrix, value, noise=noise)


def _posterior_errors(
    study: Study, scale: Mapping[str, Any], process_name: str, kind: str, dim: int
) -> dict[str, Any]:
    """Row -> metric -> one value a measurement."""
    data, num, draws = mixture_of(dim), scale["measurements"], scale["draws"]
    process, score = NOISINGS[process_name](data)
    measured = _measured(data, kind, num)
    law = references.conditional(data, measured)
    exact = np.asarray(law.sample(jax.random.key(2), (2, draws)))  # [2, draws, num, d]

    def of(x: np.ndarray) -> dict[str, list[float]]:
        return _errors(data, law, np.moveaxis(x, 1, 0), np.moveaxis(exact[0], 1, 0))

    rows = {"exact draws": of(exact[1])}
    for name in scale["methods"]:
        if name.startswith("replacement") and kind == "sums":
            continue  # they have noise
        about = {"method": name, "draws": draws, "measurements": num, "steps": scale["steps"]}

        def measure(name: str = name) -> dict[str, Any]:
            rows = measured.rows(lambda a: np.tile(a, (draws, *[1] * (a.ndim - 1))))
            sampler = METHODS[name](sampler=sampling.MultistepSDE(), measurement=rows)
            x = sampling.sample(
                jax.random.key(0),
                score,
                process,
                draws * num,
                grid=time_grid(process, scale["steps"]),
                sampler=sampler,
                chunk=3200,
            )
            return of(x.reshape(draws, num, dim))

        rows[name] = study.part(f"{slug(process_name)}_{kind}_{dim}_{slug(name)}", about, measure)
    return rows


def _errors(
    data: GaussianMixture, law: references.Conditional, x: np.ndarray, exact: np.ndarray
) -> dict[str, list[float]]:
    """Metric -> one value a measurement, of draws x [num, draws, d]."""
    means, covariances = np.asarray(law.mean()), np.asarray(law.covariance())
    weights = np.exp(np.asarray(law.log_weights))
    found: dict[str, list[float]] = {"mean": [], "covariance": [], "weights": [], "energy": []}
    for draws, other, mean, covariance, weight in zip(
        x, exact, means, covariances, weights, strict=True
    ):
        found["mean"].append(
            float(np.linalg.norm(draws.mean(axis=0) - mean) / np.trace(covariance) ** 0.5)
        )
        apart = np.cov(draws.T) - covariance
        found["covariance"].append(float(np.linalg.norm(apart) / np.linalg.norm(covariance)))
        # The component is independent of the measurement given x: E r_k(x) is its probability.
        shares = np.asarray(data.responsibilities(jnp.asarray(draws))).mean(axis=0)
        found["weights"].append(float(0.5 * np.abs(shares - weight).sum()))
        found["energy"].append(float(energy_distance(draws, other)))
    return found


COLUMNS = {
    "mean": "mean: error / deviation",
    "covariance": "covariance: relative error",
    "weights": "weights: total variation",
    "energy": "energy distance",
}


def _report_errors(study: Study, errors: Mapping[str, Any]) -> None:
    for case, rows in errors.items():
        count = len(rows["exact draws"]["mean"])
        table = [
            {"": name} | {title: mean_and_error(values[key]) for key, title in COLUMNS.items()}
            for name, values in rows.items()
        ]
        study.table(
            slug(case),
            table,
            title=f"{case}; mean ± standard error over {count} measurements",
        )
    panels = {
        title: {
            case: {name: values[key] for name, values in rows.items()}
            for case, rows in errors.items()
        }
        for key, title in COLUMNS.items()
    }
    log = [COLUMNS[key] for key in ("mean", "covariance", "energy")]
    study.figure("posteriors", plots.levels_figure(panels, log=log))


# --- digits, with a trained network ---


def _lower_half(dataset: Dataset, items: np.ndarray) -> np.ndarray:
    """Items [n, D] with their upper half NaN."""
    height = dataset.shape[0]
    images = items.astype(np.float64).reshape(-1, *dataset.shape)
    images[:, : height // 2] = np.nan
    return images.reshape(len(items), -1)


def _digits(study: Study, scale: Mapping[str, Any], errors: Mapping[str, Any]) -> None:
    config = load_config(CONFIGS / "digits.py", "", scale["changes"])
    dataset = load_data(config)
    folder = study.run("digits", config, dataset).folder
    run = restore(folder)
    judge = evaluation.evaluator(dataset)
    items, labels = dataset.test[: scale["items"]], dataset.test_labels[: scale["items"]]  # type: ignore[index]
    known = _lower_half(dataset, items)
    votes = scale["votes"]
    completed = {"mixture alone": _drawn(study, run, known, votes, "mixture alone", _of_mixture)}
    for name in scale["methods"]:
        completed[name] = _drawn(study, run, known, votes, name, partial(_of_run, METHODS[name]))
    nearest = _nearest(dataset, known)
    neighbour = np.where(np.isnan(known), dataset.train[nearest], known).astype(np.float32)
    rows = {
        "oracle: label of the nearest half": _share(dataset.train_labels[nearest], labels),  # type: ignore[index]
        "oracle: the nearest half completes": _share(judge.predict(neighbour), labels),
        "the digits themselves": _share(judge.predict(items), labels),
    }
    table: list[dict[str, Any]] = [
        {"": name, "one completion": _shown(row)} for name, row in rows.items()
    ]
    agreement: dict[str, Any] = dict(rows)
    for name, x in completed.items():
        classes = np.stack([judge.predict(one) for one in x])  # [votes, n]
        voted = np.array(
            [np.bincount(c, minlength=dataset.num_classes).argmax() for c in classes.T]
        )
        # Completions of one item are no independent trials: the error is that of items.
        right = (classes == labels).mean(axis=0)
        one = {"value": float(right.mean()), "error": float(right.std() / len(right) ** 0.5)}
        agreement[name] = {"one": one, "vote": _share(voted, labels)}
        table.append(
            {
                "": name,
                "one completion": _shown(one),
                f"vote of {votes}": _shown(agreement[name]["vote"]),
                "upper half, rms error": float(np.sqrt(np.mean((x - items) ** 2) * 2)),
                "spread": float(x.std(axis=0)[:, : x.shape[2] // 2].mean()),
            }
        )
    study.table(
        "digits",
        [dict.fromkeys(table[-1], None) | row for row in table],
        title=f"{len(items)} held-out digits, lower half given: share whose class is the true one."
        " Spread: deviation of a pixel between completions",
    )
    gap = float(np.nanmin(known))
    pictures = {"given": np.where(np.isnan(known), gap, known), "truth": items}
    pictures |= {name: x[0] for name, x in completed.items()}
    grey = plots.grey_limits(items, dataset.value_range)
    study.figure(
        "digits",
        plots.rows_figure(
            {name: x[:SHOWN] for name, x in pictures.items()},
            dataset.shape,
            columns=min(SHOWN, len(items)),
            grey=grey,
        ),
    )
    study.metrics({"posteriors": errors, "digits": agreement})


Complete = Callable[[Restored, Measurement, int], np.ndarray]


def _of_mixture(run: Restored, known: Measurement, seed: int) -> np.ndarray:
    """Draws of the reference given what is known, without a network."""
    frame, mixture = run.experiment.frame, run.experiment.components
    assert mixture is not None
    law = references.conditional(mixture, frame.measured(known, None))
    return known.put(frame.leave(np.asarray(law.sample(jax.random.key(seed))), None))


def _of_run(
    method: Callable[..., sampling.Sampler], run: Restored, known: Measurement, seed: int
) -> np.ndarray:
    return draw(
        run.experiment,
        run.state,
        len(known),
        seed=seed,
        measurement=known,
        guidance=method,
        chunk=2048,
        progress=False,
    )


def _drawn(
    study: Study, run: Restored, known: np.ndarray, votes: int, name: str, complete: Complete
) -> np.ndarray:
    """`votes` completions of every item, [votes, n, D], kept in completions/NAME.npy."""
    path = study.root / "completions" / f"{slug(name)}.npy"

    def measure() -> dict[str, Any]:
        x = np.stack([complete(run, measurements.given(known), seed) for seed in range(votes)])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, x.astype(np.float32))
        return {"file": path.name}

    about = {"items": len(known), "votes": votes, "config": run.config.to_dict()}
    study.part(f"digits_{slug(name)}", about, measure)
    return np.load(path, allow_pickle=False)


def _nearest(dataset: Dataset, known: np.ndarray) -> np.ndarray:
    """The training item that is nearest in the coordinates that are known, [n]."""
    from sklearn.neighbors import NearestNeighbors

    seen = ~np.isnan(known[0])
    index = NearestNeighbors(n_neighbors=1).fit(dataset.train[:, seen])
    return index.kneighbors(known[:, seen], return_distance=False)[:, 0]


def _share(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    share = float(np.mean(found == labels))
    return {"value": share, "error": float((share * (1 - share) / len(labels)) ** 0.5)}


def _shown(share: Mapping[str, float]) -> str:
    return f"{share['value']:.3f} ± {share['error']:.3f}"
