"""Frechet distance and inception score as usually reported, against cached reference statistics.

The usual reference of a Frechet distance is the whole training split; `evaluate` of
`evaluation.suite` compares with held-out items instead. The two numbers differ.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ndsm_jax.evaluation.classifier import ImageClassifier
from ndsm_jax.evaluation.distances import total_variation
from ndsm_jax.evaluation.features import Moments, frechet_distance, inception_score, moments
from ndsm_jax.runs import replace_file

if TYPE_CHECKING:
    from ndsm_jax.datasets import Dataset

Array = np.ndarray

MAX_COUNT = 10_000
"""Images of a Frechet distance at most: its bias depends on the count, so the usual one is kept."""

CACHE = pathlib.Path.home() / ".cache" / "ndsm_jax" / "statistics"
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """A set of images as a classifier sees it.

    Attributes:
      moments: of the features.
      inception_score: of the class probabilities.
      histogram: [C] number of images that are classified as each class.
    """

    moments: Moments
    inception_score: float
    histogram: Array


def summarise(x: Array, classifier: ImageClassifier) -> Summary:
    """Summary of flat images [n >= 2, d]."""
    probabilities, features = classifier(x)
    return Summary(
        moments=moments(features),
        inception_score=inception_score(probabilities),
        histogram=np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1]),
    )


def subset(x: Array, count: int) -> Array:
    """`count` rows of x in a fixed random order; a smaller subset lies in a larger one."""
    return x[np.random.default_rng(0).permutation(len(x))[:count]]


def reference(
    dataset: Dataset,
    classifier: ImageClassifier,
    *,
    split: str,
    count: int = 0,
    folder: str | pathlib.Path = CACHE,
) -> Summary:
    """Summary of `count` items of a split (0: all), read from `folder` if it is there.

    A file is stored with what it was made of: the data's digest, split, count and the classifier's
    digest. Each set of them has a file of its own.

    Raises:
      ValueError: no such split or count; the file is damaged, or is of something else than its name
        says.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: give one of {', '.join(SPLITS)}.")
    items = dataset.train if split == "train" else dataset.test
    count = count or len(items)
    if not 2 <= count <= len(items):
        raise ValueError(f"count {count}: the {split} split has {len(items)} items, 2 are needed.")
    facts = {
        "data": dataset.digest,
        "split": split,
        "count": count,
        "evaluator": classifier.digest,
    }
    of = dataset.name.replace(":", "_")  # file.py:function
    name = f"{of}-{dataset.digest[:12]}-{split}-{count}-{classifier.digest[:12]}.npz"
    path = pathlib.Path(folder) / name
    if path.exists():
        return _read(path, facts)
    summary = summarise(subset(items, count), classifier)
    _write(path, summary, facts)
    return summary


def _read(path: pathlib.Path, facts: dict[str, Any]) -> Summary:
    remedy = "Delete it; it is then made anew."
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = json.loads(str(arrays["facts"]))
            summary = Summary(
                moments=Moments(
                    mean=arrays["mean"], covariance=arrays["covariance"], count=stored["count"]
                ),
                inception_score=float(arrays["inception_score"]),
                histogram=arrays["histogram"],
            )
    except Exception as error:  # a damaged archive raises many kinds
        raise ValueError(f"{path} is damaged ({error}). {remedy}") from error
    other = [key for key, value in facts.items() if stored.get(key) != value]
    if other:
        raise ValueError(f"{path} holds statistics of another {', '.join(other)}. {remedy}")
    return summary


def _write(path: pathlib.Path, summary: Summary, facts: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        facts=np.array(json.dumps(facts)),
        mean=summary.moments.mean,
        covariance=summary.moments.covariance,
        inception_score=np.float64(summary.inception_score),
        histogram=summary.histogram,
    )
    replace_file(path, buffer.getvalue())


def fid_report(
    samples: Array,
    dataset: Dataset,
    classifier: ImageClassifier,
    *,
    folder: str | pathlib.Path = CACHE,
) -> dict[str, Any]:
    """Frechet distance to the whole training split, inception score and classes of `samples`.

    Equally many samples and held-out items are used, 10,000 at most, drawn from each in a fixed
    random order. The floor has held-out items in place of the samples: it is what draws of the data
    themselves get. Samples are used as they are, neither clipped nor rounded to grey levels.

    Args:
      samples: [n, d] finite, in the units of the data.
      dataset: labelled images.
      classifier: from `evaluator`.
      folder: of the cached reference statistics.

    Returns:
      {"fid", "inception_score", "class_tv": {"value", "floor"}, "class_tv_uniform": {"value",
      "floor"}, "histogram": {"value", "floor"}, "count", "reference", "evaluator"} of JSON types.
      class_tv is the total variation between the shares of classes in the samples (as classified)
      and in the training labels, class_tv_uniform that to equal shares.

    Raises:
      ValueError: samples of the wrong shape or not finite, or data without labels.
    """
    samples = np.asarray(samples, dataset.train.dtype)
    if samples.ndim != 2 or samples.shape[1] != dataset.dim or len(samples) < 2:
        raise ValueError(
            f"fid_report: samples of shape {samples.shape}; needed is [n >= 2, {dataset.dim}]."
        )
    bad = int(np.sum(~np.isfinite(samples).all(axis=1)))
    if bad:
        raise ValueError(
            f"fid_report: {bad} of {len(samples)} samples are not finite; leave them out and say "
            "how many."
        )
    dataset = dataset.in_part(0)
    if dataset.train_labels is None:
        raise ValueError(f"fid_report needs labelled data; {dataset.name!r} has none.")
    count = min(len(samples), len(dataset.test), MAX_COUNT)
    train = reference(dataset, classifier, split="train", folder=folder)
    floor = reference(dataset, classifier, split="test", count=count, folder=folder)
    value = summarise(subset(samples, count), classifier)
    shares = np.bincount(dataset.train_labels, minlength=len(value.histogram))
    shares = shares / shares.sum()

    def both(measure: Any) -> dict[str, Any]:
        return {"value": measure(value), "floor": measure(floor)}

    return {
        "fid": both(lambda s: frechet_distance(s.moments, train.moments)),
        "inception_score": both(lambda s: s.inception_score),
        "class_tv": both(lambda s: total_variation(s.histogram / count, shares)),
        "class_tv_uniform": both(
            lambda s: total_variation(s.histogram / count, np.full(len(shares), 1 / len(shares)))
        ),
        "histogram": both(lambda s: s.histogram.tolist()),
        "count": count,
        "reference": f"{train.moments.count} training images",
        "evaluator": f"{classifier.name}, test accuracy {classifier.test_accuracy:.4f}",
    }
