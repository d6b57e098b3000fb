"""The evaluator: a ResNet-18 of MNIST whose weights come with the package.

Frechet distances can be compared only when they were made with the same network. So the one for
MNIST is pinned: half-precision weights, checked by their SHA-256. Other labelled images get a small
network that is trained on the spot. `experiments/train_evaluator.py` made the weights.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ndsm_jax.datasets import is_original
from ndsm_jax.evaluation.classifier import (
    SCALED,
    SMALLEST,
    ImageClassifier,
    measured,
    train_classifier,
)
from ndsm_jax.networks.resnet import ResNet18, fold
from ndsm_jax.runs import replace_file

if TYPE_CHECKING:
    from ndsm_jax.datasets import Dataset

logger = logging.getLogger(__name__)

SHIPPED = pathlib.Path(__file__).with_name("mnist_resnet18.npz")
SHIPPED_SHA256 = "ed0e4183d1ff394f60feb927f4bf069a3d430e121e6e02045d7776ef89f00f40"
FACTS = "facts"


def evaluator(dataset: Dataset, *, seed: int = 0, progress: bool = False) -> ImageClassifier:
    """The classifier whose features measure samples of `dataset`.

    For MNIST itself (`datasets.is_original`) the shipped ResNet-18, for other labelled images, also
    those under MNIST's file names, an `ImageCNN` trained on them with `seed`.

    Raises:
      ValueError: damaged weights, or data that are not labelled images.
    """
    if is_original(dataset):
        return shipped()
    logger.info("training a classifier for the features ...")
    return train_classifier(dataset, seed=seed, progress=progress)


def evaluator_if_labelled(dataset: Dataset, *, seed: int = 0) -> ImageClassifier | None:
    """`evaluator`, or None for data that are not images, of which a split has no labels, or that
    are too small for one."""
    labelled = dataset.train_labels is not None and dataset.test_labels is not None
    large = dataset.is_image and min(dataset.shape[:2]) >= SMALLEST
    return evaluator(dataset, seed=seed) if large and labelled else None


@functools.cache
def shipped() -> ImageClassifier:
    """The evaluator of MNIST. Raises ValueError when its file is damaged."""
    return load(SHIPPED, sha256=SHIPPED_SHA256)


def save(
    path: str | pathlib.Path, trained: ImageClassifier, dataset: Dataset
) -> tuple[ImageClassifier, str]:
    """Writes a trained `ResNet18` as it is to be shipped: norms folded, weights in half precision.

    The file (.npz) also holds the network's description, the digest of the data, and the test
    accuracy of the weights as written.

    Returns:
      The classifier as `load` gives it, and the file's SHA-256.
    """
    network = trained.network
    if not isinstance(network, ResNet18) or network.folded:
        raise ValueError(f"save needs a trained ResNet18 with batch norms, got {network!r}.")
    if trained.value_range != SCALED:  # which a file of weights does not say
        raise ValueError(f"save needs images in [-1, 1], got the range {trained.value_range}.")
    folded = network.clone(folded=True)
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), fold(trained.variables))
    result = measured(folded, _single(half), dataset)
    facts = {
        "shape": folded.shape,
        "num_classes": folded.num_classes,
        "width": folded.width,
        "stem_stride": folded.stem_stride,
        "data": dataset.digest,
        "test_accuracy": result.test_accuracy,
    }
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {FACTS: np.array(json.dumps(facts))} | flatten_dict(half, sep="/")
    np.savez(buffer, **arrays)
    replace_file(pathlib.Path(path), buffer.getvalue())
    return result, hashlib.sha256(buffer.getvalue()).hexdigest()


def load(path: str | pathlib.Path, *, sha256: str | None = None) -> ImageClassifier:
    """The classifier that `save` wrote; with `sha256`, only from a file of that digest.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file has another SHA-256, or is not one of `save`.
    """
    content = pathlib.Path(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} has SHA-256 {found}, not {sha256}: its weights are not the evaluator's. "
            "Install ndsm_jax anew."
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            facts = json.loads(str(arrays[FACTS]))
            flat = {name: arrays[name] for name in arrays.files if name != FACTS}
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a file of evaluator.save: {error}") from error
    height, width, channels = facts["shape"]
    network = ResNet18(
        shape=(height, width, channels),
        num_classes=facts["num_classes"],
        width=facts["width"],
        stem_stride=facts["stem_stride"],
        folded=True,
    )
    return ImageClassifier(
        network=network,
        variables=_single(unflatten_dict(flat, sep="/")),
        test_accuracy=facts["test_accuracy"],
    )


def _single(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
