"""All scores at once: samples, real training data and prior samples against held-out data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ndsm_jax.evaluation.agreement import Starts, agreement, label_agreement
from ndsm_jax.evaluation.classifier import ImageClassifier
from ndsm_jax.evaluation.distances import (
    energy_distance,
    energy_gap_error,
    median_distance,
    mmd,
    sliced_gap_error,
    sliced_wasserstein,
    total_variation,
    two_sample_accuracy,
)
from ndsm_jax.evaluation.features import frechet_distance
from ndsm_jax.evaluation.neighbours import (
    is_memorised,
    nearest_distances,
    neighbour_gap_errors,
    neighbour_ratios,
    precision_recall_density_coverage,
    two_nearest,
)
from ndsm_jax.evaluation.reference import Summary, summarise
from ndsm_jax.rows import Rows, Stored

if TYPE_CHECKING:
    from ndsm_jax.datasets import Dataset

Array = np.ndarray
ModeOf = Callable[[Array], Array]
Coordinates = Callable[[Array], Array]

MIN_POINTS = 10
NEIGHBOURS = 5
NUM_CLUSTERS = 10
BOX = 10

METRICS: dict[str, tuple[str, str]] = {
    "finite_fraction": ("higher", f"share of finite points within {BOX} x the data's bounding box"),
    "sliced_wasserstein": ("lower", "sliced 2-Wasserstein distance, 512 directions"),
    "energy_distance": ("lower", "energy distance (V-statistic)"),
    "mmd2": ("lower", "unbiased squared MMD, Gaussian kernel of the held-out median distance"),
    "two_sample_accuracy": ("lower", "accuracy of an SVM told to find the fakes; 0.5: none found"),
    "two_sample_accuracy_se": ("target", "binomial standard error of two_sample_accuracy"),
    "precision": ("higher", "share of samples within a 5-neighbour ball of the data"),
    "recall": ("higher", "share of data within a 5-neighbour ball of the samples"),
    "density": ("higher", "5-neighbour balls of the data that hold a sample, mean / 5"),
    "coverage": ("higher", "share of 5-neighbour balls of the data that hold a sample"),
    "nearest_train": ("target", "mean distance to the nearest training item; below: memorising"),
    "nearest_train_q10": ("target", "10 % quantile of that distance"),
    "nearest_train_q50": ("target", "median of that distance"),
    "nearest_train_q90": ("target", "90 % quantile of that distance"),
    "nearest_train_ratio": ("target", "nearest_train over its floor (held-out items)"),
    "neighbour_ratio": (
        "target",
        "distance to the nearest training item over that to the second, mean; 0: copies",
    ),
    "memorised_fraction": (
        "target",
        "share nearer to a training item than half its distance to the next training item",
    ),
    "support_distance": ("lower", "mean distance to the data's noise-free support"),
    "mode_tv": ("lower", "total variation of the mode fractions; floor: exact draws of that size"),
    "frechet_distance": (
        "lower",
        "Frechet distance to the held-out items, our own classifier's features",
    ),
    "inception_score": ("target", "inception score of our own classifier's probabilities"),
}
"""What `evaluate` measures: name -> (which direction is better, description)."""


def evaluate(
    samples: Array,
    prior_samples: Array,
    dataset: Dataset,
    *,
    classifier: ImageClassifier | None = None,
    coordinates: Coordinates | None = None,
    starts: Starts | None = None,
    labels: Array | None = None,
    seed: int = 0,
    max_points: int = 5000,
) -> dict[str, Any]:
    """Scores `samples` [n, d] against the held-out data, beside a floor and the prior's scores.

    Every metric of `METRICS` that applies has three numbers, computed from equally many points (the
    estimators depend on the sample size) against the same held-out items:

    - value: the samples;
    - floor: real training items in their place, what a perfect model would get. For the distances
      to the training set (nearest_train, neighbour_ratio, memorised_fraction) it is the held-out
      items; for mode_tv the expected total variation of as many independent draws from the data's
      own fractions.
      The Frechet distance is to the held-out items here, while `fid_report` has the usual one, to
      the training split. Its floor contains that the classifier was fitted to these very items.
    - prior: samples of the prior, what a model that learnt nothing gets.

    Points that are not finite, or farther from the data's centre than ten times its bounding box
    (the box's longest side in every coordinate), are counted in finite_fraction and left out of
    everything else: read it first. A column with fewer than 10 points left is None.

    Of the energy distance, the sliced Wasserstein distance and mode_tv there is the error as well:
    the standard error of value - prior over draws of the sets. Of other metrics it is None.

    Modes are the classifier's classes if there is one, else the label of the nearest training item,
    or the nearest of 10 k-means clusters of the training data when there are no labels. Their data
    fractions are those of all real items, from the labels themselves where there are any.

    All that goes by distances between points (the bounding box, nearest items and clusters
    included) is measured in `coordinates`. The classifier, which scales them itself, and the
    distance to the support get the points themselves.

    Of data that are not in memory all training items are looked at for the nearest ones, and a
    seeded part of each split for all else (`Dataset.in_part`).

    Args:
        samples: [n, d] points of the model, in the units of the data.
        prior_samples: [p, d] points of the prior, in the same.
        dataset: the data.
        classifier: from `evaluator`; adds the Frechet distance and the inception score.
        coordinates: in which distances mean something, [n, d] -> [n, e]; None: those of the data.
        starts: where the samples started in the prior; adds how often they are of their component
            and, with labels, of their class (as the modes are assigned).
        labels: of the classes that were asked for, [n]; adds how often samples are of them, as the
            modes are assigned.
        seed: of subsets, directions and folds.
        max_points: most points per set that are compared (distances cost their square).

    Returns:
        {"metrics": {name: {"value", "floor", "prior", "error", "better": "lower" | "higher" |
        "target", "what"}}, "modes": {"labels", "data", "samples", "prior"}, "counts": {...}}, and,
        with `starts`, "conditioning": what `agreement` returns, None when fewer than 10 samples are
        left; with `labels`, "labels": what `label_agreement` does, or None as well. All made of
        JSON types; "target" means as near to the floor as possible.

    Raises ValueError when a set has the wrong shape or fewer than 10 points.
    """
    if coordinates is None:
        with np.errstate(over="ignore"):  # beyond the data's numbers is as good as infinite
            samples = np.asarray(samples, dataset.train.dtype)
            prior_samples = np.asarray(prior_samples, dataset.train.dtype)
    samples, prior_samples = np.asarray(samples), np.asarray(prior_samples)
    _check(dataset.dim, samples=samples, prior_samples=prior_samples)
    _check(dataset.dim, training_set=dataset.train, held_out_set=dataset.test)

    whole, dataset = dataset, dataset.in_part(seed)
    rng = np.random.default_rng(seed)
    sets = {"value": samples, "floor": dataset.train, "prior": prior_samples}
    into = _finite_or_nan(coordinates)
    train = into(dataset.train)
    near = whole.train.then(into) if isinstance(whole.train, Stored) else train
    inside = {key: _inside_box(into(points), train) for key, points in sets.items()}
    valid = {key: sets[key][mask] for key, mask in inside.items()}
    usable = [key for key, points in valid.items() if len(points) >= MIN_POINTS]
    size = min(max_points, *(len(valid[key]) for key in usable))
    points = {key: rng.permutation(valid[key])[:size] for key in usable}
    held_out = rng.permutation(dataset.test)[:max_points]
    compared_with = into(held_out)
    modes, data_fractions, mode_of = _modes(dataset, into, classifier, seed)
    # Of all points, not `size` of them, so the floor needs the number of samples.
    fractions = {key: _fractions(mode_of, valid[key], len(modes)) for key in ("value", "prior")}

    columns: dict[str, dict[str, float]] = {
        key: {"finite_fraction": float(np.mean(mask))} for key, mask in inside.items()
    }
    bandwidth = median_distance(compared_with, seed=seed)
    reference = None if classifier is None else summarise(held_out, classifier)
    located = {key: into(x) for key, x in points.items()}
    for key, x in points.items():
        at = located[key]
        columns[key] |= _against_held_out(at, compared_with, bandwidth, seed)
        columns[key] |= _against_training(compared_with if key == "floor" else at, near)
        columns[key] |= _to_support(x, dataset.name)
        if key in fractions:
            columns[key]["mode_tv"] = total_variation(fractions[key], data_fractions)
        if classifier is not None and reference is not None:
            columns[key] |= _in_feature_space(summarise(x, classifier), reference)
    columns["floor"]["mode_tv"] = expected_total_variation(data_fractions, len(valid["value"]))
    for key in points:
        if columns["floor"]["nearest_train"] > 0:
            ratio = columns[key]["nearest_train"] / columns["floor"]["nearest_train"]
            columns[key]["nearest_train_ratio"] = ratio

    errors: dict[str, float] = {}
    if {"value", "prior"} <= located.keys():
        compared = (located["value"], located["prior"], compared_with)
        blocks = min(10, *map(len, compared))
        errors = {
            "energy_distance": energy_gap_error(*compared),
            "sliced_wasserstein": sliced_gap_error(*compared, blocks=blocks, seed=seed),
            "mode_tv": math.hypot(
                *(
                    total_variation_error(fractions[key], data_fractions, len(valid[key]))
                    for key in ("value", "prior")
                )
            ),
            "two_sample_accuracy": math.hypot(
                *(columns[key]["two_sample_accuracy_se"] for key in ("value", "prior"))
            ),
        }
        if min(map(len, compared)) // 2 > NEIGHBOURS:
            errors |= neighbour_gap_errors(compared_with, *compared[:2], k=NEIGHBOURS, seed=seed)

    result: dict[str, Any] = {
        "metrics": {
            name: {
                **{key: columns[key].get(name) for key in ("value", "floor", "prior")},
                "error": errors.get(name),
                "better": better,
                "what": what,
            }
            for name, (better, what) in METRICS.items()
            if name in columns["floor"]
        },
        "modes": {
            "labels": modes,
            "data": data_fractions.tolist(),
            "samples": fractions["value"].tolist(),
            "prior": fractions["prior"].tolist(),
        },
        "counts": {
            "train": len(whole.train),
            "test": len(whole.test),
            "samples": len(samples),
            "prior": len(prior_samples),
            "compared": size,
            "held_out": len(held_out),
        },
    }
    if starts is not None:
        result["conditioning"] = None
        if "value" in usable:
            kept = dataclasses.replace(starts, components=starts.components[inside["value"]])
            labelled = dataset.train_labels is not None and dataset.test_labels is not None
            class_of = mode_of if labelled else None
            result["conditioning"] = agreement(
                valid["value"], kept, dataset, class_of=class_of, seed=seed
            )
    if labels is not None and dataset.test_labels is not None:
        result["labels"] = None
        if "value" in usable:
            told = labels[inside["value"]]
            result["labels"] = label_agreement(valid["value"], told, dataset, class_of=mode_of)
    return result


def _finite_or_nan(coordinates: Coordinates | None) -> Coordinates:
    """The coordinates, of points that may not be finite, or too large for float32, too."""

    def into(x: Array) -> Array:
        if coordinates is None:
            return x
        with np.errstate(over="ignore", invalid="ignore"):
            return coordinates(x)

    return into


def expected_total_variation(fractions: Array, size: int) -> float:
    """Expected total variation between `fractions` [K] and the frequencies of `size` draws of them.

    The binomial mean deviation is closed form (De Moivre): E|N - np| = 2 m (1 - p) P(N = m) with
    m = floor(np) + 1.
    """
    from scipy.stats import binom

    p = np.asarray(fractions, np.float64)
    m = np.floor(size * p) + 1
    deviations = 2 * m * (1 - p) * binom.pmf(m, size, p)
    return float(0.5 * deviations.sum() / max(size, 1))


def total_variation_error(frequencies: Array, fractions: Array, size: int) -> float:
    """Standard error of the total variation between `fractions` [K] and `frequencies` of draws.

    To first order, multinomial: sqrt((sum_k p_k s_k^2 - (sum_k p_k s_k)^2) / size) / 2 with p the
    frequencies of `size` draws of any law, and s the signs of p - `fractions`. Where the laws agree
    it is above the true error.
    """
    p, sign = np.asarray(frequencies, np.float64), np.sign(frequencies - fractions)
    return 0.5 * float(np.sqrt(max(p @ sign**2 - (p @ sign) ** 2, 0.0) / size))


def _check(dim: int, **sets: Array) -> None:
    """Raises ValueError for a set that is not [n >= MIN_POINTS, dim]."""
    for name, points in sets.items():
        if points.ndim != 2 or points.shape[1] != dim or len(points) < MIN_POINTS:
            raise ValueError(
                f"evaluate: {name} of shape {points.shape}; needed are at least {MIN_POINTS} points"
                f" of dimension {dim} (more of them: sample.num, data.num_train, data.num_test)."
            )


def _inside_box(points: Array, train: Array) -> Array:
    """Whether each point is finite and within BOX times the bounding box of the data, [n]."""
    low, high = train.min(axis=0), train.max(axis=0)
    reach = 0.5 * BOX * (high - low).max()  # the longest side: coordinates may be constant
    # A comparison with NaN is false.
    return np.all(np.abs(points - 0.5 * (low + high)) <= reach, axis=1)


def _against_held_out(x: Array, held_out: Array, bandwidth: float, seed: int) -> dict[str, float]:
    accuracy = two_sample_accuracy(x, held_out, seed=seed)
    return {
        "sliced_wasserstein": sliced_wasserstein(x, held_out, seed=seed),
        "energy_distance": energy_distance(x, held_out),
        "mmd2": mmd(x, held_out, bandwidth=bandwidth),
        "two_sample_accuracy": accuracy.value,
        "two_sample_accuracy_se": accuracy.standard_error,
        **precision_recall_density_coverage(held_out, x, NEIGHBOURS),
    }


def _against_training(x: Array, train: Rows) -> dict[str, float]:
    distances, indices = two_nearest(x, train)
    distance, index = distances[:, 0], indices[:, 0]
    q10, q50, q90 = np.quantile(distance, (0.1, 0.5, 0.9))
    return {
        "nearest_train": float(distance.mean()),
        "nearest_train_q10": float(q10),
        "nearest_train_q50": float(q50),
        "nearest_train_q90": float(q90),
        "neighbour_ratio": float(neighbour_ratios(distances).mean()),
        "memorised_fraction": float(np.mean(is_memorised(distance, index, train))),
    }


def _to_support(x: Array, name: str) -> dict[str, float]:
    from ndsm_jax.datasets import support_distance

    try:
        return {"support_distance": float(support_distance(name, x).mean())}
    except ValueError:  # the data set has no known support
        return {}


def _in_feature_space(x: Summary, held_out: Summary) -> dict[str, float]:
    return {
        "frechet_distance": frechet_distance(x.moments, held_out.moments),
        "inception_score": x.inception_score,
    }


def _modes(
    dataset: Dataset, into: Coordinates, classifier: ImageClassifier | None, seed: int
) -> tuple[list[str], Array, ModeOf]:
    """Names of the modes, their fractions in all real data, and the rule that assigns them.

    The rule takes points in the units of the data, `into` the coordinates of distances.
    """
    train, train_labels, test_labels = (
        into(dataset.train),
        dataset.train_labels,
        dataset.test_labels,
    )
    mode_of: ModeOf
    if train_labels is None or test_labels is None:
        from sklearn.cluster import KMeans

        k_means = KMeans(min(NUM_CLUSTERS, len(train)), n_init=1, random_state=seed).fit(train)

        def cluster_of(x: Array) -> Array:
            return k_means.predict(np.asarray(into(x), train.dtype))  # it takes no other type

        mode_of = cluster_of
        all_labels = np.concatenate([k_means.labels_, mode_of(dataset.test)])
        names = [f"cluster {i}" for i in range(k_means.n_clusters)]
    else:

        def label_of_nearest(x: Array) -> Array:
            return train_labels[nearest_distances(into(x), train)[1]]

        mode_of = label_of_nearest if classifier is None else classifier.predict
        all_labels = np.concatenate([train_labels, test_labels])
        names = list(dataset.class_names) or [str(i) for i in range(dataset.num_classes)]
    return names, np.bincount(all_labels, minlength=len(names)) / len(all_labels), mode_of


def _fractions(mode_of: ModeOf, points: Array, num_modes: int) -> Array:
    """Share of the points in each mode, [num_modes]; zeros when there are no points."""
    if len(points) == 0:
        return np.zeros(num_modes)
    return np.bincount(mode_of(points), minlength=num_modes) / len(points)
