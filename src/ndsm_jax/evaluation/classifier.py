"""A classifier trained on the data set at hand, for features, class probabilities and mode counts.

Its features are not those of Inception: name the classifier and its accuracy beside a Frechet
distance made with them, and compare only distances made with the same classifier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import trange

from ndsm_jax.networks.classifier import ImageCNN

if TYPE_CHECKING:
    from ndsm_jax.datasets import Dataset

BATCH_SIZE = 128
MIN_STEPS = 1400
PEAK_LEARNING_RATE = 3e-3
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """A trained `ImageCNN`. All methods take flat images [n, d] in [-1, 1], of any n."""

    network: ImageCNN
    params: Any
    test_accuracy: float

    def features(self, x: np.ndarray) -> np.ndarray:
        """Activations of the last hidden layer, [n, 64]."""
        return _apply_chunked(self.network, self.params, x)[1]

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities, [n, C]."""
        return np.asarray(jax.nn.softmax(_apply_chunked(self.network, self.params, x)[0]))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Most probable class, [n]."""
        return _apply_chunked(self.network, self.params, x)[0].argmax(axis=1)


def train_classifier(
    dataset: Dataset, *, seed: int = 0, epochs: int | None = None, progress: bool = False
) -> ImageClassifier:
    """Trains an `ImageCNN` on the labelled images of `dataset`, reproducibly for a given seed.

    AdamW with a one-cycle learning rate, batches of 128, images shifted by up to one pixel.
    `epochs` defaults to as few as give 1400 steps: 3 for MNIST, 128 for the digits.

    Raises ValueError when the data are not images or have no labels.
    """
    if not dataset.is_image or dataset.train_labels is None or dataset.test_labels is None:
        unlabelled = dataset.train_labels is None or dataset.test_labels is None
        raise ValueError(
            f"train_classifier needs labelled images; data set {dataset.name!r} has items of shape "
            f"{dataset.shape}{' without labels' if unlabelled else ''}. Evaluate it without a "
            "classifier."
        )
    x, labels = dataset.train, dataset.train_labels
    height, width, channels = dataset.shape
    network = ImageCNN(shape=(height, width, channels), num_classes=dataset.num_classes)
    batch_size = min(BATCH_SIZE, len(x))
    steps_per_epoch = len(x) // batch_size
    if epochs is None:
        epochs = math.ceil(MIN_STEPS / steps_per_epoch)
    steps = epochs * steps_per_epoch
    optimiser = optax.adamw(optax.cosine_onecycle_schedule(steps, PEAK_LEARNING_RATE))

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(
        params: Any, opt_state: Any, key: jax.Array, x: jax.Array, labels: jax.Array
    ) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            logits, _ = network.apply(params, _random_shift(key, x, network.shape))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = optimiser.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    init_key, shift_key = jax.random.split(jax.random.key(seed))
    params = network.init(init_key, jnp.zeros((1, dataset.dim)))
    opt_state = optimiser.init(params)
    rng = np.random.default_rng(seed)
    # A Python loop: XLA on the CPU compiles convolutions badly inside one of its own, see
    # training.make_dispatch.
    for step in trange(steps, desc="classifier", disable=not progress):
        if step % steps_per_epoch == 0:
            order = rng.permutation(len(x))
        start = step % steps_per_epoch * batch_size
        batch = order[start : start + batch_size]
        key = jax.random.fold_in(shift_key, step)
        params, opt_state = train_step(params, opt_state, key, x[batch], labels[batch])

    predicted = _apply_chunked(network, params, dataset.test)[0].argmax(axis=1)
    accuracy = float(np.mean(predicted == dataset.test_labels))
    return ImageClassifier(network=network, params=params, test_accuracy=accuracy)


def _random_shift(key: jax.Array, x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Flat images [n, d] moved by -1, 0 or 1 pixel along each axis, borders repeated."""
    images = x.reshape(-1, *shape)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 3)
    crop = jax.vmap(lambda image, o: jax.lax.dynamic_slice(image, (o[0], o[1], 0), shape))
    return crop(padded, offsets).reshape(x.shape)


@partial(jax.jit, static_argnums=0)
def _apply(network: ImageCNN, params: Any, x: jax.Array) -> Any:
    return network.apply(params, x)


def _apply_chunked(network: ImageCNN, params: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logits, features) of x [n, d], in chunks of one size, so that it compiles once."""
    x = np.asarray(x, np.float32)
    padded = np.pad(x, ((0, -len(x) % CHUNK), (0, 0)))
    chunks = [_apply(network, params, part) for part in padded.reshape(-1, CHUNK, x.shape[1])]
    logits, features = (np.concatenate(part)[: len(x)] for part in zip(*chunks, strict=True))
    return logits, features
