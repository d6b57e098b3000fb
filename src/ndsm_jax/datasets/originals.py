"""Image sets in the formats in which they were published: CIFAR's binary files, and IDX."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import tarfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ndsm_jax.datasets.dataset import Raw, Samples
from ndsm_jax.datasets.files import check_memory
from ndsm_jax.datasets.idx import SURPLUS, find_idx, parse_idx, read_bytes

IDX = {"train": "train", "test": "t10k"}
"""Split -> how the names of its two files begin, as MNIST's and those of Fashion-MNIST do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binary:
    """Records of labels of one byte each, and of an image: all red, then all green, then all blue.

    The binary version of CIFAR (Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html).

    Attributes:
      archive: name of the .tar.gz that holds the files.
      sha256: of the archive as published.
      train, test: names of the files of a split, in order, and how many records each has.
      label_bytes: before the image; the last is the label.
      class_names: of the labels 0, 1, ...; () where a file `names` in the same place has them.
      names: that file, a name a line; "" for none.
      side: of an image, in pixels.
      source: origin and citation in one line.
    """

    archive: str
    sha256: str
    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bytes: int = 1
    class_names: tuple[str, ...] = ()
    names: str = ""
    side: int = 32
    source: str = ""

    @property
    def files(self) -> dict[str, int]:
        """Of both splits."""
        return {**self.train, **self.test}

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return self.label_bytes + 3 * self.side**2

    def files_text(self) -> str:
        """Which files are wanted, in words."""
        names = [*self.files, *filter(None, [self.names])]
        return f"{self.archive} (or its files {', '.join(names)})"

    def present(self, folder: Path) -> bool:
        """Whether a folder has the archive, or one of its files."""
        names = (self.archive, *self.files)
        return any(any(folder.glob(pattern)) for name in names for pattern in (name, f"*/{name}"))


CIFAR10 = Binary(
    archive="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    test={"test_batch.bin": 10_000},
    class_names=(
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    source="CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)",
)  # fmt: skip
CIFAR100 = Binary(
    archive="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    train={"train.bin": 50_000},
    test={"test.bin": 10_000},
    label_bytes=2,
    names="fine_label_names.txt",
    source="CIFAR-100 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)",
)
BINARY: dict[str, Binary] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
"""By the names that TensorFlow Datasets has for them."""


# --- CIFAR's binary files ---


def read_binary(form: Binary, folder: Path) -> Raw:
    """The splits of a set in binary files, in a folder, a folder in it, or its archive there.

    Warns where the archive is not the published one.

    Raises:
      FileNotFoundError: files are missing; the message says which.
      ValueError: files of another size, damaged ones, or labels that are no class.
    """
    names = [*form.files, *filter(None, [form.names])]
    limits = dict.fromkeys(names, 1 << 16) | {
        name: form.record * count for name, count in form.files.items()
    }
    check_memory(5 * sum(limits.values()), str(folder))
    archive = folder / form.archive
    if archive.is_file():
        found, where = _members(archive, limits), archive
    else:
        paths = {name: _find(folder, name) for name in names}
        found = {n: _content(path, limits[n]) for n, path in paths.items() if path is not None}
        where = folder
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{where}: {', '.join(missing)} missing; put {form.files_text()} there."
        )
    for name, count in form.files.items():
        if len(found[name]) != form.record * count:
            raise ValueError(
                f"{where}: {name} has {len(found[name]):,} bytes"
                f"{' or more' if len(found[name]) > form.record * count else ''}, not the"
                f" {form.record * count:,} of {count:,} records; fetch it again."
            )
    classes = form.class_names or tuple(
        found[form.names].decode("utf-8", "backslashreplace").split()
    )
    splits = []
    for files in (form.train, form.test):
        content = np.frombuffer(b"".join(found[name] for name in files), np.uint8)
        rows = content.reshape(-1, form.record)
        labels, pixels = rows[:, form.label_bytes - 1], rows[:, form.label_bytes :]
        if labels.max() >= len(classes):
            raise ValueError(
                f"{where}: label {labels.max()} in {' or '.join(files)}, and there are"
                f" {len(classes)} classes; fetch the files again."
            )
        images = pixels.reshape(-1, 3, form.side, form.side).transpose(0, 2, 3, 1)
        splits.append(Samples(np.ascontiguousarray(images), labels.astype(np.int64)))
    if archive.is_file() and _sha256(archive) != form.sha256:
        warnings.warn(
            f"{archive}: not the published archive (its SHA-256 differs); its files have the right"
            " sizes.",
            stacklevel=4,  # the caller of `prepare`
        )
    return Raw(train=splits[0], test=splits[1], source=form.source, class_names=classes)


def _find(folder: Path, name: str) -> Path | None:
    """A file of a folder, or of a folder in it, where an archive was unpacked."""
    return next(
        (p for p in (folder / name, *sorted(folder.glob(f"*/{name}"))) if p.is_file()), None
    )


def _content(path: Path, limit: int) -> bytes:
    """A file as far as its limit, and one byte more."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def _members(archive: Path, limits: Mapping[str, int]) -> dict[str, bytes]:
    """The wanted files of an archive, by name, each as far as its limit and one byte more."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    stream = tar.extractfile(member) if member.isreg() and name in limits else None
                    if stream is not None:
                        found[name] = stream.read(limits[name] + 1)
            # At the end of the stream is its checksum, beyond where the archive ends.
            if len(unpacked.read(SURPLUS)) == SURPLUS:
                raise ValueError(f"{archive}: {SURPLUS:,} bytes after its end; fetch it again.")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{archive}: damaged archive ({error}); fetch it again.") from error
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- IDX ---


def has_idx(folder: Path) -> bool:
    """Whether a folder has an IDX file of one of the names of `IDX`."""
    return any(any(folder.glob(f"{start}-*idx*-ubyte*")) for start in IDX.values())


def read_idx(folder: Path) -> Raw:
    """The splits of images [N, H, W] and labels [N] in four IDX files, plain or gzip.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a damaged file, or one of another shape.
    """
    splits = []
    for start in IDX.values():
        arrays = []
        for stem, rank in ((f"{start}-images-idx3-ubyte", 3), (f"{start}-labels-idx1-ubyte", 1)):
            path = find_idx(folder, stem, key="--source")
            array = parse_idx(read_bytes(path), name=str(path))
            if array.ndim != rank:
                raise ValueError(f"{path}: IDX shape {array.shape}, not one of rank {rank}.")
            arrays.append(array)
        images, labels = arrays
        splits.append(Samples(images[..., None], labels.astype(np.int64)))
    num_classes = 1 + max(int(s.labels.max(initial=0)) for s in splits if s.labels is not None)
    names = tuple(map(str, range(num_classes)))
    return Raw(train=splits[0], test=splits[1], source="IDX files", class_names=names)
