"""Original files of images to a folder of TensorFlow Datasets, without TensorFlow and network."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ndsm_jax.datasets.dataset import Options, Raw, Samples, number_classes
from ndsm_jax.datasets.images import folder as image_folder
from ndsm_jax.datasets.originals import BINARY, Binary, has_idx, read_binary, read_idx

OWN_VERSION = "1.0.0"
"""Of sets that TensorFlow Datasets has no name for."""


def prepare(
    name: str,
    source: Path,
    data_dir: Path,
    *,
    channels: int = 3,
    image_size: int = 0,
    background: str = "white",
    binary: Mapping[str, Binary] = BINARY,
) -> Path:
    """Reads original files and writes them as array_record, in their order; nothing is left of a
    try that fails.

    Args:
      name: of the set, by which `data.tfds` finds it.
      source: a folder with the binary files or the archive of `binary[name]`, with the four IDX
        files, or of images, as `data.name=folder` reads it.
      data_dir: the data folder of TensorFlow Datasets, in which data_dir/NAME/VERSION is made. The
        version is that of TensorFlow Datasets where it has a set of this name.
      channels, image_size, background: of a folder of images, see `datasets.load`.
      binary: sets in binary files.

    Returns: data_dir/NAME/VERSION.

    Raises:
      FileExistsError: the set is there.
      FileNotFoundError: the source has no such files.
      ValueError: a name that is none, damaged files, or images that differ in size.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"--dataset={name!r}: a name has small letters, digits and _, and starts with a letter"
        )
    target = data_dir / name / _version(name)
    if target.exists():
        raise FileExistsError(
            f"{target} is there; read it by data.tfds={name}, or remove it to prepare it again"
        )
    raw = original(
        name, source, channels=channels, image_size=image_size, background=background, binary=binary
    )
    return write(raw, name, target.name, data_dir)


def original(
    name: str,
    source: Path,
    *,
    channels: int = 3,
    image_size: int = 0,
    background: str = "white",
    binary: Mapping[str, Binary] = BINARY,
) -> Raw:
    """The images of a folder of original files, labels numbered; see `prepare`."""
    if not source.is_dir():
        raise FileNotFoundError(f"--source={str(source)!r}: no such folder")
    form = binary.get(name)
    pictures = image_size or channels != 3
    if form is not None and form.present(source):
        raw = read_binary(form, source)
    elif has_idx(source):
        raw = read_idx(source)
    else:
        return _pictures(source, form, channels, image_size, background)
    if pictures:
        raise ValueError(
            f"--source={str(source)!r}: --image_size and --channels are of a folder of images;"
            " leave them out, and set data.image_size when you train"
        )
    return raw


def _pictures(
    source: Path, form: Binary | None, channels: int, image_size: int, background: str
) -> Raw:
    try:
        options = Options(
            dir=str(source),
            num_train=0,
            num_test=0,
            test_fraction=0.5,
            seed=0,
            channels=channels,
            image_size=image_size,
            columns="",
            header="auto",
            background=background,
        )
        raw = image_folder(options)
    except (ValueError, FileNotFoundError) as error:
        words = str(error)
        for key, flag in {"data.dir": "--source", "data.": "--"}.items():
            words = words.replace(key, flag)
        if isinstance(error, FileNotFoundError):
            wanted = "its four IDX files, or images" if form is None else form.files_text()
            words += f" Put {wanted} there."
        raise type(error)(words) from error
    train, test, names = number_classes(raw.train, raw.test, what=str(source))
    return raw._replace(train=train, test=test, class_names=names)


def _version(name: str) -> str:
    """The version of the set that TensorFlow Datasets has under a name, or `OWN_VERSION`."""
    tfds = _tfds()
    try:
        known = tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return OWN_VERSION
    if known.BUILDER_CONFIGS:
        raise ValueError(
            f"--dataset={name!r}: TensorFlow Datasets has configurations under this name; choose"
            f" another, such as {name}_images"
        )
    return str(known.VERSION)


def _tfds() -> Any:
    try:
        import importlib_resources  # noqa: F401  (of which tensorflow-datasets does not tell)
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"experiments/prepare.py takes tensorflow-datasets ({error}); install ndsm_jax[tfds]"
        ) from error
    return tensorflow_datasets


def write(raw: Raw, name: str, version: str, data_dir: Path) -> Path:
    """Writes uint8 images [N, H, W, C] with labels 0, 1, ... as data_dir/NAME/VERSION.

    It is made beside its place and then moved there whole. Shows progress.
    """
    tfds = _tfds()
    splits = {"train": raw.train} | ({} if raw.test is None else {"test": raw.test})
    features = {"image": tfds.features.Image(shape=raw.train.x.shape[1:], dtype=np.uint8)}
    if raw.train.labels is not None:
        count = 1 + max(int(s.labels.max()) for s in splits.values() if s.labels is not None)
        names = raw.class_names or tuple(map(str, range(count)))
        features["label"] = tfds.features.ClassLabel(names=list(names))

    class Originals(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, name-defined]
        VERSION = tfds.core.Version(version)
        pkg_dir_path = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=raw.source or name,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: _examples(samples, split) for split, samples in splits.items()}

        def _generate_examples(self) -> None:
            """Of no use: each split brings its own."""

    Originals.name = name
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as beside:
        builder = Originals(data_dir=beside, file_format="array_record")
        with _quiet(tfds):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        target = data_dir / name / version
        target.parent.mkdir(exist_ok=True)
        os.rename(Path(beside) / name / version, target)
    return target


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Without the words and bars of TensorFlow Datasets, which are of a download and a folder that
    goes."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def _examples(samples: Samples, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    from PIL import Image

    for i, pixels in enumerate(tqdm(samples.x, desc=split, unit="image")):
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
        file.seek(0)
        example: dict[str, Any] = {"image": file}
        if samples.labels is not None:
            example["label"] = int(samples.labels[i])
        yield i, example
