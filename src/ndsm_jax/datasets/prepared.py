"""Images that TensorFlow Datasets holds as array_record, read without TensorFlow and network."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ndsm_jax.datasets.dataset import Options, Raw, Samples
from ndsm_jax.datasets.files import check_memory
from ndsm_jax.datasets.images import fitted
from ndsm_jax.datasets.originals import BINARY
from ndsm_jax.datasets.stored import stays
from ndsm_jax.rows import Stored, blocks

BLOCK = 100
"""Records that are read at once: one by one takes longer, and many are memory."""

TEST_SPLITS = ("test", "validation", "valid", "val")
"""Names of held-out splits; of several the first is read."""


def data_folder(folder: str) -> Path:
    """The data folder of TensorFlow Datasets: `folder`, or "" for its own default."""
    return Path(folder or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def tfds(options: Options) -> Raw:
    """The images of the set `options.tfds`, see `read`.

    Raises:
      FileNotFoundError: there is no such set.
      ValueError: it holds no images, or other ones than are asked for.
    """
    if not options.tfds:
        raise ValueError(
            "data.tfds='': data.name='tfds' needs the name of a prepared set, such as cifar10."
        )
    root = data_folder(options.dir)
    folder = prepared_folder(options.tfds, root)
    return read(folder, image_size=options.image_size, in_memory=options.in_memory)


def prepared_folder(name: str, root: Path) -> Path:
    """The folder root/NAME/VERSION of a prepared set; of several versions the last.

    Args:
      name: NAME, NAME/CONFIGURATION, and :VERSION after it for another than the last.
      root: the data folder of TensorFlow Datasets.

    Raises:
      FileNotFoundError: there is none; the message says which files go where.
      ValueError: the set has several configurations.
    """
    path, _, version = name.partition(":")
    folder = root / path
    versions = [one for one in _folders(folder) if re.fullmatch(r"\d+\.\d+\.\d+", one.name)]
    versions = [one for one in versions if version in ("", one.name) and _is_prepared(one)]
    if versions:
        return max(versions, key=lambda one: [int(part) for part in one.name.split(".")])
    below = [
        f"{path}/{one.name}" for one in _folders(folder) if any(map(_is_prepared, _folders(one)))
    ]
    if below:
        raise ValueError(f"data.tfds={name!r}: which configuration? Say one of {', '.join(below)}.")
    short = path.split("/")[0]
    originals = BINARY[short].files_text() if short in BINARY else "its images or its IDX files"
    raise FileNotFoundError(
        f"data.tfds={name!r}: no prepared set in {folder}; put {originals} into a folder, and run"
        f" python experiments/prepare.py --dataset={short} --source=THAT_FOLDER --data_dir={root}"
        f" (or set data.dir to the folder in which {short}/ is)"
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


def read(folder: Path, *, image_size: int = 0, in_memory: str = "yes") -> Raw:
    """The images of a prepared set, in their order, with their labels if they have one each.

    Of the features the image is that called `image`, or else the only one, and the label alike.
    Labels of -1 stand for none. The training split is `train`; the held-out one is the first of
    `TEST_SPLITS`, if there is one.

    Args:
      folder: NAME/VERSION, as `prepared_folder` finds it.
      image_size: side to which the middle of each image is resized; 0: as they are.
      in_memory: whether the images are kept in memory, see `load`.

    Raises:
      ValueError: a damaged set, one in another format than array_record, no images of 8 bits, no
        training split, images that differ in size, or more than memory holds.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"{folder}: reading it takes tensorflow-datasets ({error}); install ndsm_jax[tfds]"
        ) from error
    try:
        builder = tfds.builder_from_directory(folder)
        features, info = dict(builder.info.features), builder.info
    except Exception as error:  # damaged metadata raise nearly anything
        raise _damaged(folder, error) from error
    if info.file_format.value != "array_record":
        raise ValueError(
            f"{folder}: prepared as {info.file_format.value}, which takes TensorFlow to read;"
            " prepare it with file_format='array_record', or by experiments/prepare.py"
        )
    image = _feature(features, tfds.features.Image, "image")
    if image is None or features[image].np_dtype != np.uint8:
        raise ValueError(
            f"{folder}: no images of 8 bits; its features are {', '.join(sorted(features))}"
        )
    label = _feature(features, tfds.features.ClassLabel, "label")
    held_out = [name for name in TEST_SPLITS if name in info.splits]
    if "train" not in info.splits:
        found = ", ".join(info.splits) or "there is none"
        raise ValueError(f"{folder}: no split is called train ({found}); prepare the set again")
    unread = [name for name in info.splits if name not in ("train", *held_out[:1])]
    if unread:
        warnings.warn(
            f"{folder}: {held_out[0] if held_out else 'train'} is read, and not"
            f" {', '.join(unread)}.",
            stacklevel=4,  # the caller of `load`
        )
    splits = []
    for split in ("train", *held_out[:1]):
        try:
            source = builder.as_data_source(split)
            packed = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
            len(source)  # of damaged metadata may be no length
        except Exception as error:
            raise _damaged(folder, error) from error
        where = f"{folder}, {split}"
        images = _images(source, image, image_size, where, in_memory)
        splits.append(Samples(images, _labels(packed, label, where)))
    names = tuple(features[label].names) if label else ()
    return Raw(
        train=splits[0],
        test=splits[1] if held_out else None,
        source=f"{info.full_name} of TensorFlow Datasets",
        class_names=() if names == tuple(map(str, range(len(names)))) else names,
    )


def _feature(features: dict[str, Any], kind: type, usual: str) -> str | None:
    """The feature of a kind that has the usual name, or is the only one; None: there is none."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    return usual if usual in found else found[0] if len(found) == 1 else None


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The images [N, H, W, C] of a random-access source of TensorFlow Datasets, by their numbers.

    Attributes:
      records: the source.
      image: the feature.
      image_size: see `read`.
      shape: of all images together.
      where: in messages.
    """

    records: Any
    image: str
    image_size: int
    shape: tuple[int, ...]
    where: str
    dtype = np.dtype(np.uint8)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Raises ValueError for damaged records, and images of another size than the first."""
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for start in range(0, len(rows), BLOCK):
            numbers = rows[start : start + BLOCK].tolist()
            for i, record in enumerate(_records(self.records, numbers, self.where)):
                pixels = _pixels(record, self.image, self.image_size)
                if pixels.shape != self.shape[1:]:
                    raise ValueError(
                        f"{self.where}: size {pixels.shape[:2]} of item {numbers[i]} differs from"
                        f" {self.shape[1:3]} of the first; set data.image_size to resize all images"
                    )
                found[start + i] = pixels
        return found


def _images(source: Any, image: str, image_size: int, where: str, in_memory: str) -> Any:
    """All images of a random-access source, in memory or where they are."""
    if not len(source):
        raise ValueError(f"{where}: no records; prepare the set again")
    check_memory(8 * len(source), where)
    first = _pixels(_records(source, [0], where)[0], image, image_size)
    shape = (len(source), *first.shape)
    images = Stored.of(Records(source, image, image_size, shape, where))
    wanted = 5 * math.prod(shape)  # as bytes, then as float32
    if stays(in_memory, wanted):
        return images
    check_memory(wanted, where)
    found = np.empty(shape, np.uint8)
    for start, block in blocks(images):
        found[start : start + len(block)] = block
    return found


def _pixels(record: dict[str, Any], image: str, image_size: int) -> np.ndarray:
    return fitted(record[image], image_size) if image_size else record[image]


def _labels(packed: Any, label: str | None, where: str) -> np.ndarray | None:
    """All labels of a source whose images stay packed; None where some have none."""
    if label is None:
        return None
    labels = np.empty(len(packed), np.int64)
    for start in range(0, len(packed), BLOCK):
        numbers = list(range(start, min(start + BLOCK, len(packed))))
        labels[numbers] = [record[label] for record in _records(packed, numbers, where)]
    return None if (labels < 0).any() else labels


def _records(source: Any, numbers: list[int], where: str) -> list[dict[str, Any]]:
    try:
        return list(source.__getitems__(numbers))
    except Exception as error:  # damaged records and images raise nearly anything
        raise _damaged(Path(where), error) from error


def _damaged(where: Path, error: Exception) -> ValueError:
    words = " ".join(str(error).split())[:200]
    return ValueError(
        f"{where}: damaged ({type(error).__name__}: {words}); remove the folder, and run"
        " experiments/prepare.py again"
    )
