"""Approx.-C2-MNIST: 2405.15625, Section 5.2, Figures 5 and 6, with their claims as numbers.

The data are large upright and small upside-down digits, half of each. A classifier trained on all
four combinations of size and orientation counts, for every method, the share of large digits (the
paper: Ornstein-Uhlenbeck noising prefers the small ones) and the fake samples, large upside-down
or small upright (the paper: a C2-symmetrised score makes them). Fakes are counted among the digits
`TELLING`, whose orientation shows; the same counts on held-out data are the floor.

`full` is as published. `cpu` and `smoke` give every method the same small network, budget and
sampler, and NDSM and NDSM-CV our grid and parameterisation. Beside the published methods there
are path-space DSM, with their mixture of two and with ones of 50 and 200, and a tuned baseline,
variance preserving noising with EDM's preconditioning, own clock and average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ndsm_jax import config, datasets, evaluation, plots
from ndsm_jax.datasets import MIN_SAMPLES, NUM_DIGITS
from ndsm_jax.evaluation import ImageClassifier
from ndsm_jax.evaluation.suite import expected_total_variation
from ndsm_jax.launch import load_data
from ndsm_jax.reports.study import Changes, Run, Study, load_config
from studies import CONFIGS

EDM_C2: Changes = config.EDM | {"network": config.EDM["network"] | {"symmetry": "c2"}}
NDSM: Changes = {"objective": {"name": "ndsm"}}
NDSM_CV: Changes = {"objective": {"name": "ndsm_cv"}}
K_50: Changes = {
    "mixture": {"num_components": 50, "covariance": "spherical"},
    "sample": {"steps": 60},  # as many as the smallest variance needs
}
K_200: Changes = {
    "mixture": {"num_components": 200, "covariance": "spherical", "num_inits": 1},
    "sample": {"steps": 90},
}

Method = tuple[str, str, Changes]
METHODS: dict[str, Method] = {
    "path_dsm": ("path-space DSM", "", {}),
    "path_dsm_50": ("path-space DSM, K = 50", "", K_50),
    "path_dsm_200": ("path-space DSM, K = 200", "", K_200),
    "vp": ("VP+DSM, tuned", "vp", config.EDM),
    "vp_c2": ("VP+DSM, tuned, C2", "vp", EDM_C2),
    "ndsm_cv": ("NDSM-CV", "", NDSM_CV),
    "ou": ("OU+DSM", "ou", {}),
    "ou_c2": ("OU+DSM, C2", "ou_c2", {}),
    "ndsm": ("NDSM", "", NDSM),
}
"""Folder -> name in tables, variant of configs/approx_c2.py, changes of it."""

PUBLISHED: dict[str, Method] = {
    "ndsm_cv": ("NDSM-CV", "paper", NDSM_CV),
    "ndsm": ("NDSM", "paper", NDSM),
}
"""The same at full scale."""

FIGURES = {
    "figure_5": ("ou", "ou_c2", "ndsm", "ndsm_cv"),
    "ours": ("vp", "vp_c2", "path_dsm", "path_dsm_50", "path_dsm_200"),
}
DATA = "held-out data"
SHOWN = 64
OUTSIDE = 10.0
"""Samples beyond this many half ranges of grey have diverged: their share is in metrics.json, and
the classifier does not see them."""

TELLING = (3, 4, 7)
"""Digits that differ from themselves, and from other digits, upside down. 0, 1 and 8 look the same,
2 and 5 much the same, 6 and 9 like each other."""
CLEAR = 0.9
"""Probability of its class from which a fake is clear."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the study.

    Attributes:
      methods: keys of `METHODS`.
      changes: of the configs.
      classifier_train, classifier_test: images for the classifier, 0: all 240,000 and 40,000.
      classifier_epochs: None for the default of `train_classifier`.
      max_points: most points of a pairwise metric.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    changes: Changes
    classifier_train: int = 0
    classifier_test: int = 0
    classifier_epochs: int | None = None
    max_points: int


SAMPLER = {"sampler": "multistep_sde", "grid": "clock"}
SCALES = {
    "smoke": Scale(
        methods=("path_dsm", "ou_c2"),
        changes=config.SMOKE
        | {
            "data": {"num_train": 300, "num_test": 200},
            "mixture": {"num_inits": 1},
            "train": config.SMOKE["train"] | {"steps": 4, "picture_every": 0},
            "sample": SAMPLER | {"num": 64, "chunk": 64, "steps": 5, "smallest_variance": 0.05},
        },
        classifier_train=400,
        classifier_test=400,
        classifier_epochs=2,
        max_points=64,
    ),
    "cpu": Scale(
        changes={
            "data": {"num_train": 12_000},
            "network": {"widths": (16, 32, 64), "time_features": 64},
            "train": {"steps": 1500, "log_every": 20, "checkpoint_every": 100, "picture_every": 0},
            "optimizer": {"warmup_steps": 100},
            "sample": SAMPLER | {"num": 2000, "steps": 40, "smallest_variance": 0.02},
        },
        classifier_train=100_000,
        max_points=2000,
    ),
    "full": Scale(changes={}, max_points=5000),
}


def reproduce(study: Study) -> None:
    """Trains every method, counts sizes and fakes, and draws Figures 5 and 6."""
    scale = SCALES[study.scale]
    methods = METHODS | (PUBLISHED if study.scale == "full" else {})
    data = {"data": {"dir": study.data_dir}}
    configs = {}
    for folder in scale.methods:
        _, variant, own = methods[folder]
        configs[folder] = load_config(CONFIGS / "approx_c2.py", variant, scale.changes, data, own)
    dataset = load_data(next(iter(configs.values())))
    study.figure("figure_6", plots.panels({"data": dataset.test[:SHOWN]}, dataset.shape))
    runs = {methods[folder][0]: study.run(folder, c, dataset) for folder, c in configs.items()}
    scores = {
        name: study.scores(run, dataset, max_points=scale.max_points) for name, run in runs.items()
    }
    samples = {DATA: dataset.test} | {name: not_diverged(run) for name, run in runs.items()}

    classifier = train_orientation_classifier(study, scale)
    probabilities = {
        name: classifier.probabilities(x) if len(x) else np.empty((0, 4 * NUM_DIGITS))
        for name, x in samples.items()
    }
    features = classifier.features(dataset.test)
    frechet = {
        name: evaluation.frechet_distance(
            classifier.features(dataset.train[: len(x)] if name == DATA else x), features
        )
        for name, x in samples.items()
        if len(x)
    }
    classes = {name: p.argmax(axis=1) for name, p in probabilities.items()}
    counted = {name: counts(p) for name, p in probabilities.items()}
    shares = {name: digit_shares(c) for name, c in classes.items()}
    held_out = np.asarray(dataset.test_labels)
    truth = held_out + 2 * NUM_DIGITS * (held_out >= NUM_DIGITS)  # labels of mnist_orientations
    expected = digit_shares(truth)

    for figure, folders in FIGURES.items():
        names = [methods[folder][0] for folder in folders if folder in configs]
        shown = {name: samples[name][:SHOWN] for name in names if len(samples[name])}
        if shown:
            framed = {name: is_fake(classes[name][:SHOWN]) for name in shown}
            study.figure(figure, plots.panels(shown, dataset.shape, framed=framed, size=3.0))
    accuracy = float(np.mean(classes[DATA] == truth))
    study.table(
        "approx_c2",
        [
            {"method": name}
            | {
                key.replace("_", " "): _percent(counted[name], key)
                for key in ("large", "fake", "clear_fake", "large_upside_down", "small_upright")
            }
            | {
                "digits, TV": evaluation.total_variation(shares[name], expected),
                "Frechet": frechet.get(name),
            }
            | {key: _score(scores, name, metric) for key, metric in COLUMNS.items()}
            for name in classes
        ],
        title=f"Approx.-C2-MNIST, {study.scale} scale. Large: share ± standard error. Fake: of the"
        f" digits {', '.join(map(str, TELLING))}; clear: with probability over {CLEAR}. The"
        f" classifier of 40 classes is right on {accuracy:.2%} of the held-out data.",
    )
    study.table(
        "digits",
        [{"digit": "data"} | _by_digit(expected)]
        + [{"digit": name} | _by_digit(share) for name, share in shares.items()],
        title="Share of each digit, by the classifier; 'data' by the labels of the held-out data.",
    )
    study.metrics(
        {
            "classifier": {
                "accuracy": classifier.test_accuracy,
                "accuracy_on_held_out_data": accuracy,
            },
            "digits_tv_floor": {
                name: expected_total_variation(expected, len(c)) for name, c in classes.items()
            },
            "counts": counted,
            "digits": {name: share.tolist() for name, share in shares.items()},
            "frechet_distance": frechet,
            "scores": scores,
            "runs": {
                name: {"outside": 1 - len(samples[name]) / len(run.samples), **run.facts}
                for name, run in runs.items()
            },
        }
    )


COLUMNS = {
    "energy": "energy_distance",
    "nearest train": "nearest_train",
    "two-sample": "two_sample_accuracy",
    "precision": "precision",
    "recall": "recall",
}
"""Columns of the table that `evaluation.evaluate` gives, all in pixel space."""


def train_orientation_classifier(study: Study, scale: Scale) -> ImageClassifier:
    """A classifier of digit, size and orientation, kept: see the data set mnist_orientations."""
    data = datasets.load(
        "mnist_orientations",
        dir=study.data_dir,
        num_train=scale.classifier_train,
        num_test=scale.classifier_test,
    )
    return evaluation.train_classifier(
        data,
        epochs=scale.classifier_epochs,
        folder=study.root / "classifier",
        progress=study.progress,
    )


def not_diverged(run: Run) -> np.ndarray:
    """A run's samples within `OUTSIDE`, or none if they are too few to say anything."""
    kept = run.samples[run.within(OUTSIDE)]
    return kept if len(kept) >= MIN_SAMPLES else kept[:0]


def is_fake(classes: np.ndarray) -> np.ndarray:
    """Whether images of these classes [n] are large upside down or small upright, of `TELLING`."""
    small, upside_down = classes // NUM_DIGITS % 2, classes // (2 * NUM_DIGITS)
    return np.isin(classes % NUM_DIGITS, TELLING) & (small != upside_down)


def counts(probabilities: np.ndarray) -> dict[str, float]:
    """From probabilities [n, 40] of the classes of mnist_orientations: shares and errors.

    Returns:
      large: of all; of the images of `TELLING` digits, whose number is telling (NaN where there
      are none), fake and its two kinds large_upside_down and small_upright, and clear_fake, those
      whose class has more than `CLEAR` of the probability; each with its standard error, NAME_se.
    """
    classes = probabilities.argmax(axis=1)
    telling = np.isin(classes % NUM_DIGITS, TELLING)
    large, fake = classes // NUM_DIGITS % 2 == 0, is_fake(classes)
    clear = probabilities.max(axis=1) > CLEAR
    among_telling = {
        "fake": fake,
        "clear_fake": fake & clear,
        "large_upside_down": fake & large,
        "small_upright": fake & ~large,
    }
    result = {"telling": float(telling.sum())} | _share("large", large)
    for name, which in among_telling.items():
        result |= _share(name, which[telling])
    return result


def _share(name: str, which: np.ndarray) -> dict[str, float]:
    if len(which) == 0:
        return {name: float("nan"), f"{name}_se": float("nan")}
    p = float(np.mean(which))
    return {name: p, f"{name}_se": (p * (1 - p) / len(which)) ** 0.5}


def digit_shares(classes: np.ndarray) -> np.ndarray:
    """Share of each digit [10] among classes [n] of mnist_orientations; zeros where n = 0."""
    return np.bincount(classes % NUM_DIGITS, minlength=NUM_DIGITS) / max(len(classes), 1)


def _by_digit(shares: np.ndarray) -> dict[str, float]:
    return {str(digit): float(share) for digit, share in enumerate(shares)}


def _percent(counted: Mapping[str, float], key: str) -> str:
    return f"{100 * counted[key]:.1f} ± {100 * counted[f'{key}_se']:.1f} %"


def _score(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]], name: str, metric: str
) -> float | None:
    """A method's score; of the held-out data the floor, which all methods share."""
    if name in scores:
        return scores[name][metric]["value"]
    return next(iter(scores.values()))[metric]["floor"]
