"""MNIST, from its IDX files or from tensorflow-datasets, and the data sets made of it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ndsm_jax.datasets.dataset import TEST_SIZE, TRAIN_SIZE, Dataset, Options, Raw, Samples
from ndsm_jax.datasets.idx import find_idx, parse_idx, read_bytes
from ndsm_jax.datasets.prepared import data_folder, prepared_folder, read

NUM_DIGITS = 10

_MNIST_SOURCE = "MNIST (LeCun, Bottou, Bengio and Haffner 1998), CC BY-SA 3.0"

# Of the decompressed files: a gzip header carries a time stamp, so its bytes vary.
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_OTHER_SOURCE = "data other than the original MNIST"

_MNIST_ROWS = {
    "train": "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
    "test": "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
}
"""SHA-256 of the sorted SHA-256 of all rows of pixels and label: tensorflow-datasets shuffles."""


def rows_digest(samples: Samples) -> str:
    """A digest (hex) of uint8 images [N, ...] and labels [N] below 256, whatever their order."""
    labels = np.zeros(len(samples.x)) if samples.labels is None else samples.labels
    rows = np.column_stack([samples.x.reshape(len(samples.x), -1), labels.astype(np.uint8)])
    each = sorted(hashlib.sha256(row.tobytes()).digest() for row in rows)
    return hashlib.sha256(b"".join(each)).hexdigest()


def is_original(dataset: Dataset) -> bool:
    """Whether a data set is of MNIST itself: loaded by this name, from data of MNIST's digests."""
    return dataset.name == "mnist" and dataset.source.startswith(_MNIST_SOURCE)


def mnist(options: Options) -> Raw:
    root = Path(options.dir).expanduser()
    if not options.dir or (root / "mnist").is_dir():
        return _mnist_from_tfds(options.dir)
    return _mnist_from_idx(root)


def _mnist_from_idx(root: Path) -> Raw:
    arrays, altered = {}, []
    for stem, sha256 in _MNIST_SHA256.items():
        path = find_idx(root, stem)
        content = read_bytes(path)
        arrays[stem] = array = parse_idx(content, name=str(path))
        if array.ndim != (3 if "images" in stem else 1):
            raise ValueError(
                f"{path}: IDX shape {array.shape} is not that of MNIST images or labels."
            )
        if hashlib.sha256(content).hexdigest() != sha256:
            altered.append(path.name)
    if altered:
        _warn(", ".join(altered))
    return Raw(
        train=Samples(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]),
        test=Samples(arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]),
        source=_OTHER_SOURCE if altered else _MNIST_SOURCE,
    )


def _mnist_from_tfds(data_dir: str) -> Raw:
    """MNIST as prepared by tensorflow-datasets, read without TensorFlow and without a download."""
    root = data_folder(data_dir)
    try:
        raw = read(prepared_folder("mnist", root))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "MNIST not found. Set data.dir to a folder with its four IDX files (plain or gzip), or "
            "prepare 'mnist' of tensorflow-datasets with file_format='array_record', or by "
            "experiments/prepare.py, and leave data.dir empty or set it to that data folder."
        ) from error
    if raw.test is None:
        raise ValueError(f"{root}/mnist: no test split; prepare MNIST with both.")
    splits = {"train": raw.train, "test": raw.test}
    altered = [name for name, rows in splits.items() if rows_digest(rows) != _MNIST_ROWS[name]]
    if altered:
        _warn(f"of tensorflow-datasets, the split {' and '.join(altered)}")
    source = _OTHER_SOURCE if altered else _MNIST_SOURCE
    return Raw(splits["train"], splits["test"], source=f"{source}, by tensorflow-datasets")


def _warn(altered: str) -> None:
    message = f"Not the original MNIST (SHA-256 of the content differs): {altered}."
    warnings.warn(message, stacklevel=5)  # the caller of `load`


def half_size(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W] uint8, H and W divisible by 4, at half their size in the middle of black.

    Every pixel is the mean of a 2 x 2 block, rounded, halves up.
    """
    _, height, width = images.shape
    rows = images[:, ::2].astype(np.uint16) + images[:, 1::2]
    total = rows[:, :, ::2] + rows[:, :, 1::2]
    margins = ((0, 0), (height // 4, height // 4), (width // 4, width // 4))
    return np.pad(((total + 2) // 4).astype(np.uint8), margins)


def upside_down(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W] turned by 180 degrees."""
    return images[:, ::-1, ::-1]


def approx_c2_mnist(options: Options) -> Raw:
    """MNIST, each digit with probability 1/2 upside down at half size (2405.15625, Section 5).

    Every combination occurs in the symmetrised law, but only large upright and small upside-down
    digits in the data. Labels are digit + 10 small, so 0 to 9 are large and 10 to 19 small. With
    one data.seed an image of a split has the same size in every subset.
    """
    raw = mnist(options)

    def transform(split: str, x: np.ndarray, labels: np.ndarray) -> Samples:
        stream = {"train": TRAIN_SIZE, "test": TEST_SIZE}[split]
        small = np.random.default_rng([options.seed, stream]).random(len(x)) < 0.5
        images = np.where(small[:, None, None], upside_down(half_size(x)), x)
        return Samples(images, labels + NUM_DIGITS * small)

    return _transformed(raw, transform, "half of it at half size and upside down")


def mnist_orientations(options: Options) -> Raw:
    """Every MNIST digit large and small, upright and upside down: four items of each.

    Labels are digit + 10 small + 20 upside_down, so that those of `approx_c2_mnist` are 0 to 9 and
    30 to 39. To train a classifier that tells them.
    """

    def transform(split: str, x: np.ndarray, labels: np.ndarray) -> Samples:
        small = half_size(x)
        images = np.concatenate([x, small, upside_down(x), upside_down(small)])
        offsets = np.arange(4)[:, None] * NUM_DIGITS
        return Samples(images, (labels + offsets).ravel())

    return _transformed(mnist(options), transform, "at two sizes and two orientations")


def _transformed(
    raw: Raw, transform: Callable[[str, np.ndarray, np.ndarray], Samples], what: str
) -> Raw:
    """MNIST with both splits changed by transform(split, images [N, 28, 28], labels int32 [N])."""
    splits = {}
    for split, samples in (("train", raw.train), ("test", raw.test)):
        if samples is None or samples.labels is None or samples.x.shape[1:3] != (28, 28):
            raise ValueError(
                f"The {split} split of MNIST is not of labelled 28 x 28 images; fetch it again."
            )
        images, labels = samples.x.reshape(-1, 28, 28), samples.labels.astype(np.int32)
        if len(images) != len(labels):
            raise ValueError(f"MNIST {split}: {len(labels)} labels for {len(images)} samples.")
        splits[split] = transform(split, images, labels)
    return Raw(train=splits["train"], test=splits["test"], source=f"{raw.source}; {what}")
