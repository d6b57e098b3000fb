"""A classifier trained on the data set at hand, for features, class probabilities and mode counts.

Its features are not those of Inception: name the classifier and its accuracy beside a Frechet
distance made with them, and compare only distances made with the same classifier.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from ndsm_jax.datasets import batch_indices
from ndsm_jax.networks.classifier import ImageCNN
from ndsm_jax.networks.resnet import ResNet18
from ndsm_jax.optimisation import descend
from ndsm_jax.runs import Run, loop

if TYPE_CHECKING:
    from ndsm_jax.datasets import Dataset

BATCH_SIZE = 128
MIN_STEPS = 1400
PEAK_LEARNING_RATE = 3e-3
CHUNK = 500
SAVE_EVERY = 250

SMALLEST = 4
"""Pixels a side that a network can be given."""

SCALED = (-1.0, 1.0)
"""Where a network sees images: what `datasets` scales is there already."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageClassifier:
    """A trained network. All methods take flat images [n, d] in the units of its data, of any n.

    Attributes:
      network: a Flax module from flat images in [-1, 1] to (logits [n, C], features [n, f]).
      variables: its collections.
      test_accuracy: share of the data set's held-out images that it classifies rightly.
      value_range: of the images it was trained on, [low, high], which become [-1, 1] (`scaled`).
    """

    network: ImageCNN | ResNet18
    variables: Any
    test_accuracy: float
    value_range: tuple[float, float] = SCALED

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities [n, C] and features [n, f], from one pass."""
        x = scaled(x, self.value_range)
        logits, features = _apply_chunked(self.network, self.variables, x)
        return scipy.special.softmax(logits, axis=1), features

    def features(self, x: np.ndarray) -> np.ndarray:
        """Activations of the last hidden layer, [n, f]."""
        return self(x)[1]

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities, [n, C]."""
        return self(x)[0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Most probable class, [n]."""
        return self(x)[0].argmax(axis=1)

    @property
    def name(self) -> str:
        """The kind of network and the first digits of the digest."""
        return f"{type(self.network).__name__} {self.digest[:8]}"

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the network's description, its variables, and a range of its own."""
        own = "" if self.value_range == SCALED else repr(self.value_range)
        sha = hashlib.sha256(f"{self.network!r}{own}".encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            array = np.asarray(leaf)
            sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


def measured(network: ImageCNN | ResNet18, variables: Any, dataset: Dataset) -> ImageClassifier:
    """The classifier of these variables, its accuracy measured on the held-out images."""
    limits = value_range(dataset)
    logits, _ = _apply_chunked(network, variables, scaled(dataset.test, limits))
    accuracy = float(np.mean(logits.argmax(axis=1) == dataset.test_labels))
    return ImageClassifier(
        network=network, variables=variables, test_accuracy=accuracy, value_range=limits
    )


def value_range(dataset: Dataset) -> tuple[float, float]:
    """The range of images in memory: the known one, or from their least value in training to the
    largest."""
    x = dataset.train
    low, high = (x.min(), x.max()) if dataset.value_range is None else dataset.value_range
    return float(low), float(high)


def scaled(x: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Images [n, d] with the range `limits` taken to [-1, 1], in float64: [n, d] float32.

    2 (x - low) / (high - low) - 1, so that x may have any unit. What is in [-1, 1] is left as it
    is, and a constant is taken to -1.
    """
    if limits == SCALED:
        return np.asarray(x, np.float32)
    low, high = limits
    share = (np.asarray(x, np.float64) - low) / ((high - low) or 1.0)
    return (2 * share - 1).astype(np.float32)


def train_classifier(
    dataset: Dataset,
    *,
    network: ImageCNN | ResNet18 | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int = BATCH_SIZE,
    shift: int = 1,
    folder: pathlib.Path | None = None,
    progress: bool = False,
) -> ImageClassifier:
    """Trains a network on the labelled images of `dataset`, reproducibly for a given seed.

    AdamW with a one-cycle learning rate; images moved at random by up to `shift` pixels along each
    axis. The network sees them in [-1, 1], whatever their units are (`scaled`).

    Args:
      dataset: the data; of those that are not in memory a part (`Dataset.in_part`).
      network: what to train; an `ImageCNN` by default.
      seed: of the initialisation, the batches and the shifts.
      epochs: as few as give 1400 steps by default: 3 for MNIST, 128 for the digits.
      batch_size: images in a step.
      shift: greatest shift in pixels.
      folder: where the training is kept and resumed from.
      progress: whether to show a progress bar.

    Raises:
      ValueError: the data are not images, too small, or not both splits have labels, or the folder
        holds another training.
    """
    if not dataset.is_image or dataset.train_labels is None or dataset.test_labels is None:
        unlabelled = dataset.train_labels is None or dataset.test_labels is None
        raise ValueError(
            f"train_classifier needs labelled images; data set {dataset.name!r} has items of shape "
            f"{dataset.shape}{', and not both splits have labels' if unlabelled else ''}. Evaluate "
            "it with classifier=None."
        )
    if min(dataset.shape[:2]) < SMALLEST:
        raise ValueError(
            f"train_classifier needs images of {SMALLEST} x {SMALLEST} pixels or more; data set"
            f" {dataset.name!r} has {dataset.shape[0]} x {dataset.shape[1]}. Evaluate it with"
            " classifier=None."
        )
    dataset = dataset.in_part(seed)
    x, labels = scaled(dataset.train, value_range(dataset)), dataset.train_labels
    assert labels is not None
    if network is None:
        height, width, channels = dataset.shape
        network = ImageCNN(shape=(height, width, channels), num_classes=dataset.num_classes)
    batch_size = min(batch_size, len(x))
    steps_per_epoch = len(x) // batch_size
    if epochs is None:
        epochs = math.ceil(MIN_STEPS / steps_per_epoch)
    steps = epochs * steps_per_epoch
    init_key, shift_key = jax.random.split(jax.random.key(seed))
    variables = jax.jit(network.init)(init_key, jnp.zeros((1, dataset.dim)))
    opt_state = _optimiser(steps).init(variables["params"])
    state = {"variables": variables, "opt_state": opt_state}
    facts = {
        "data": dataset.digest,
        "network": repr(network),
        "epochs": epochs,
        "batch_size": batch_size,
        "shift": shift,
        "seed": seed,
    }
    run = None
    if folder is not None:
        run = Run(
            folder=folder, facts=facts, checkpoint_every=SAVE_EVERY, keep=2, tensorboard=False
        )
    like = state | {"step": jnp.int32(0)}
    restored = None if run is None else run.resume(like)
    state = like if restored is None else restored.state

    def one(step: int, state: Any) -> tuple[Any, Any]:
        batch = batch_indices(seed, step, len(x), batch_size)
        key = jax.random.fold_in(shift_key, step)
        return _train_step(network, steps, shift, state, key, x[batch], labels[batch])

    # Step by step: XLA on the CPU compiles convolutions badly inside a loop of its own, see
    # training.steps_on_host.
    state = loop.run(
        state,
        loop.one_by_one(one),
        run,
        first=int(state["step"]),
        last=steps,
        remedy="Lower the learning rate.",
        name="classifier",
        progress=progress,
    )
    return measured(network, state["variables"], dataset)


def _optimiser(steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_onecycle_schedule(steps, PEAK_LEARNING_RATE))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _train_step(
    network: ImageCNN | ResNet18,
    steps: int,
    shift: int,
    state: Any,
    key: jax.Array,
    x: jax.Array,
    labels: jax.Array,
) -> Any:
    def loss(params: Any) -> tuple[jax.Array, Any]:
        (logits, _), updated = network.apply(
            state["variables"] | {"params": params},
            _random_shift(key, x, network.shape, shift),
            mutable=["batch_stats"],  # empty for a network without batch norms
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated

    params = state["variables"]["params"]
    done = descend(loss, params, state["opt_state"], _optimiser(steps), has_aux=True)
    variables = {"params": done.params, **done.aux}
    state = {"variables": variables, "opt_state": done.moments, "step": state["step"] + 1}
    return state, {"loss": done.loss}


def _random_shift(
    key: jax.Array, x: jax.Array, shape: tuple[int, int, int], pixels: int
) -> jax.Array:
    """Flat images [n, d] moved by up to `pixels` along each axis, borders repeated."""
    images = x.reshape(-1, *shape)
    border = (pixels, pixels)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)), mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
    crop = jax.vmap(lambda image, o: jax.lax.dynamic_slice(image, (o[0], o[1], 0), shape))
    return crop(padded, offsets).reshape(x.shape)


@partial(jax.jit, static_argnums=0)
def _apply(network: ImageCNN | ResNet18, variables: Any, x: jax.Array) -> Any:
    return network.apply(variables, x)


def _apply_chunked(
    network: ImageCNN | ResNet18, variables: Any, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(logits, features) of x [n, d], in chunks of one size, so that it compiles once."""
    padded = np.pad(x, ((0, -len(x) % CHUNK), (0, 0)))
    chunks = [_apply(network, variables, part) for part in padded.reshape(-1, CHUNK, x.shape[1])]
    logits, features = (np.concatenate(part)[: len(x)] for part in zip(*chunks, strict=True))
    return logits, features
