"""Data sets in a user's own files: arrays of NumPy, and folders of images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ndsm_jax.datasets.dataset import Options, Raw, Samples


def array(options: Options) -> Raw:
    """The .npy or .npz file `options.dir`, see `from_arrays`; a lone array may have any name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, or arrays whose part cannot be told.
    """
    path = Path(options.dir).expanduser()
    if path.suffix in (".npy", ".npz") and not path.is_file():
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: no file {path} (a relative path starts from {Path.cwd()})."
        )
    if path.suffix not in (".npy", ".npz"):
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: data.name='array' needs the path of a .npy or .npz file."
        )
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file ({error}).") from error

    return from_arrays(arrays, where=str(path), source=f"array file {path.name}")


def from_arrays(arrays: Mapping[str, np.ndarray], *, where: str, source: str) -> Raw:
    """Arrays named as in a .npz file: `x` or `data`, `labels` or `y`, `test`, `test_labels`.

    Args:
      arrays: of which all but the first may be absent; other names are ignored.
      where: how to name their origin in messages.
      source: of the result.

    Raises:
      ValueError: no data, or `test_labels` without `test` and `labels`.
    """
    arrays = dict(arrays)
    x = _pop_first(arrays, "x", "data")
    labels = _pop_first(arrays, "labels", "y")
    test = _pop_first(arrays, "test")
    test_labels = _pop_first(arrays, "test_labels")
    if x is None and len(arrays) == 1:
        _, x = arrays.popitem()
    if x is None:
        raise ValueError(
            f"{where}: which array holds the data? Name it 'x' or 'data' (found: {sorted(arrays)})."
        )
    if test_labels is not None and (test is None or labels is None):
        raise ValueError(f"{where}: 'test_labels' needs both 'test' and 'labels'.")
    return Raw(
        train=Samples(x, labels),
        test=None if test is None else Samples(test, test_labels),
        source=source,
    )


def _pop_first(arrays: dict[str, np.ndarray], *names: str) -> np.ndarray | None:
    return next((arrays.pop(name) for name in names if name in arrays), None)


_IMAGE_SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip


def folder(options: Options) -> Raw:
    """The images below the folder `options.dir`; names of its sub-folders, if any, are the labels.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: an unreadable image, sizes that differ, or images beside sub-folders with images.
    """
    root = Path(options.dir).expanduser()
    if not options.dir or not root.is_dir():
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: data.name='folder' needs an existing folder of images."
        )
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in _IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        raise FileNotFoundError(
            f"data.dir={options.dir!r}: no images ({' '.join(sorted(_IMAGE_SUFFIXES))}) found."
        )
    classes = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
    if "" in classes and len(set(classes)) > 1:
        raise ValueError(
            f"data.dir={options.dir!r}: images both beside and inside sub-folders, whose names are "
            "class labels; put all images in sub-folders, or none."
        )
    images = [_read_image(path, options.channels, options.image_size) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{path}: size {image.shape[:2]} differs from {images[0].shape[:2]} of "
                f"{paths[0].name}; set data.image_size to resize all images."
            )
    return Raw(
        train=Samples(np.stack(images), None if "" in classes else np.array(classes)),
        source=f"image folder {root.name}",
    )


def _read_image(path: Path, channels: int, size: int) -> np.ndarray:
    """An image as uint8 [H, W, channels], upright by its EXIF tag; an alpha channel is dropped."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    # Pillow reports broken files of some formats as SyntaxError or ValueError.
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: unreadable image ({error}); repair or remove it.") from error
    # Pillow would clip these to 255 without a word.
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{path}: more than 8 bits a channel (mode {image.mode}); convert it to 8."
        )
    image = image.convert("L" if channels == 1 else "RGB")
    if size:
        image = ImageOps.fit(image, (size, size))
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)
