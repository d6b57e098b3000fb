"""A user's own folder of images."""

from __future__ import annotations

import collections
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ndsm_jax.datasets.dataset import Options, Raw, Samples
from ndsm_jax.datasets.files import check_memory

Paths = Sequence[Path]

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
"""Sub-folders that are splits, in small letters; of several of the latter the first is read."""

STUBS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow only names, or that it gives to another program, as EPS to Ghostscript."""

UNREADABLE = {
    ".ai", ".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif",
    ".jxl", ".jxr", ".nef", ".orf", ".ps", ".raf", ".raw", ".rw2", ".svg", ".wmf",
    ".avif", ".avifs", ".webp", ".jp2", ".j2k", ".jpx", ".tif", ".tiff",
}  # fmt: skip
"""Suffixes of images; an error where Pillow, as it was built, does not open them."""

GREY = 16
"""Levels by which channels of a pixel differ in a grey image, of lossy formats."""

ONE_PICTURE = ("MPO", "PSD", "ICO", "ICNS")
"""Formats whose further frames are views, layers or sizes of the first."""


def folder(options: Options) -> Raw:
    """The images below the folder `options.dir`, links followed.

    Sub-folders are classes, except that `train` beside `test` or `val` (or alone) are splits, whose
    sub-folders are classes. Transparent pixels show the colour `options.background`.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: an unreadable image, one of a format that Pillow does not open, sizes that differ,
        images beside sub-folders with images, or splits beside other sub-folders.
    """
    root = Path(options.dir).expanduser()
    where = f"data.dir={_shown(options.dir)!r}"
    if not options.dir or not root.is_dir():
        raise FileNotFoundError(f"{where}: data.name='folder' needs an existing folder of images.")
    background = _colour(options.background)
    paths = _images(root, where)
    splits = _splits(root, paths, where)
    reader = _Reader(options, background)
    train, *test = (_samples(base, of_split, reader, where) for base, of_split in splits)
    if test and train.x.shape[1:] != test[0].x.shape[1:]:
        raise ValueError(
            f"{where}: images of {_shown(splits[0][0].name)} are {train.x.shape[1:3]}, those of"
            f" {_shown(splits[1][0].name)} {test[0].x.shape[1:3]}; set data.image_size to resize"
            " all images."
        )
    reader.tell(where)
    names = " and ".join(_shown(base.name) for base, _ in splits if base != root)
    return Raw(
        train=train,
        test=test[0] if test else None,
        source=f"image folder {_shown(root.name)}" + (f", split as {names}" if names else ""),
    )


def _shown(name: str) -> str:
    """A name as UTF-8, with what is none as backslashes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _colour(name: str) -> tuple[int, ...]:
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ValueError(
            f"data.background={name!r}: no colour; give a name such as white, or #rrggbb."
        ) from error


# --- which files ---


def _images(root: Path, where: str) -> list[Path]:
    """All images, in order. Raises, or warns, of what else there is."""
    from PIL import Image

    Image.init()
    opened = {suffix for suffix, name in Image.registered_extensions().items() if _opens(name)}
    opened.add(".mpo")  # the JPEG of several views
    found: list[Path] = []
    closed: list[Path] = []
    others: list[Path] = []
    for path in sorted(_files(root)):
        suffix = path.suffix.lower()
        if suffix in opened:
            if not path.is_file():
                raise ValueError(
                    f"{_shown(str(path))}: no file, but a pipe, a device or a broken link; remove"
                    " it."
                )
            found.append(path)
        else:
            (closed if suffix in UNREADABLE else others).append(path)
    if closed:
        raise ValueError(
            f"{where}: the installed Pillow does not open {_counted(closed)}; convert them to PNG,"
            " or move them elsewhere."
        )
    if not found:
        raise FileNotFoundError(
            f"{where}: no images ({' '.join(sorted(opened))}) found"
            + (f", but {_counted(others)}." if others else ".")
        )
    if others:
        # The caller of `load`.
        warnings.warn(f"{where}: no images, and not read: {_counted(others)}.", stacklevel=4)
    return found


def _opens(name: str) -> bool:
    from PIL import Image

    return name in Image.OPEN and name not in STUBS


def _counted(paths: Paths) -> str:
    """Such as `65 .heic (a.heic, ...)`."""
    of_suffix: dict[str, list[Path]] = collections.defaultdict(list)
    for path in paths:
        of_suffix[path.suffix.lower()].append(path)
    return ", ".join(
        f"{len(some)} {_shown(suffix) or 'without suffix'} ({_shown(some[0].name)}"
        + (", ...)" if len(some) > 1 else ")")
        for suffix, some in sorted(of_suffix.items())
    )


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All below a folder that are no folders, links followed, but for hidden ones and loops."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:
            yield from _files(path, above)


def _splits(root: Path, paths: Paths, where: str) -> list[tuple[Path, Paths]]:
    """The folder and the images of the training split, and of the test split if there is one.

    Raises:
      ValueError: the folders of two splits beside other ones.
    """
    tops = {parts[0]: parts[0].lower() for path in paths if (parts := _below(root, path)[:-1])}
    train = [top for top, name in tops.items() if name in TRAIN_FOLDERS]
    held_out = sorted(
        (top for top, name in tops.items() if name in TEST_FOLDERS),
        key=lambda top: TEST_FOLDERS.index(tops[top]),
    )
    others = [top for top in tops if top not in train and top not in held_out]
    direct = [path.name for path in paths if path.parent == root]
    found = [*train, *held_out]
    if not found or (len(found) == 1 and (others or direct or held_out)):
        return [(root, paths)]  # `train` beside `car` is a class
    beside = [*others, *direct, *train[1:]]
    if beside or not train:
        names = " and ".join(f"{_shown(top)}/" for top in found)
        problem = f"beside them is {_shown(beside[0])}" if beside else "none is called train"
        raise ValueError(
            f"{where}: {names} are splits, and {problem}; name one train, and move all else into"
            " them, or elsewhere."
        )
    chosen = [train[0], *held_out[:1]]
    if len(held_out) > 1:
        warnings.warn(
            f"{where}: {_shown(held_out[0])}/ is the held-out split; not read:"
            f" {', '.join(_shown(top) + '/' for top in held_out[1:])}.",
            stacklevel=4,  # the caller of `load`
        )
    return [(root / top, [p for p in paths if _below(root, p)[0] == top]) for top in chosen]


def _below(folder: Path, path: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


# --- what is in them ---


class _Reader:
    """Reads images, all of one size, and keeps account of what is to be told of them.

    Attributes:
      options: of the loader.
      background: RGB.
      first: the first image's file and shape.
      size: bytes of all so far.
      cut: files of which one frame of several was read, and their numbers of frames.
      deep, coloured: files of 16 bits a pixel, and of colours that are not kept.
    """

    def __init__(self, options: Options, background: tuple[int, ...]):
        self.options, self.background = options, background
        self.first: tuple[Path, tuple[int, ...]] | None = None
        self.size = 0
        self.cut: dict[Path, int] = {}
        self.deep: list[Path] = []
        self.coloured: list[Path] = []

    def tell(self, where: str) -> None:
        """Warns of frames, bits and colours that were left out."""
        if self.coloured:
            warnings.warn(
                f"{where}: {len(self.coloured)} files have colours, as"
                f" {_shown(self.coloured[0].name)}, and are read as grey; data.channels=3 keeps"
                " them.",
                stacklevel=4,
            )
        if self.deep:
            warnings.warn(
                f"{where}: {len(self.deep)} files have 16 bits a pixel, as"
                f" {_shown(self.deep[0].name)}, of which the upper 8 are read; for all of them give"
                " the images as an array of floats (.npy).",
                stacklevel=4,
            )
        if self.cut:
            path, frames = next(iter(self.cut.items()))
            warnings.warn(
                f"{where}: of {len(self.cut)} files with several frames, as {_shown(path.name)}"
                f" with {frames}, the first frame is read; data.all_frames=True reads all.",
                stacklevel=4,  # the caller of `load`
            )

    def read(self, path: Path) -> Iterator[np.ndarray]:
        """The frames of a file as uint8 [H, W, channels]."""
        for frame in self._frames(path):
            image = self._pixels(frame, path)
            if self.first is None:
                self.first = path, image.shape
            if image.shape != self.first[1]:
                raise ValueError(
                    f"{_shown(str(path))}: size {image.shape[:2]} differs from"
                    f" {self.first[1][:2]} of {_shown(self.first[0].name)}; set data.image_size to"
                    " resize all images."
                )
            self.size += image.nbytes
            check_memory(6 * self.size, _shown(str(path)))  # twice as bytes, then as float32
            yield image

    def _frames(self, path: Path) -> list[Any]:
        """The first frame, or all, upright by the EXIF tag, decoded."""
        from PIL import Image, ImageOps

        formats = [name for name in Image.OPEN if name not in STUBS]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd tags; what cannot be decoded is an error
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=formats) as file:
                    count = getattr(file, "n_frames", 1)
                    several = count > 1 and file.format not in ONE_PICTURE
                    if several and not self.options.all_frames:
                        self.cut[path] = count
                    frames = []
                    for i in range(count if several and self.options.all_frames else 1):
                        file.seek(i)
                        frames.append(self._composed(ImageOps.exif_transpose(file), path))
                    return frames
        except _Refused:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(
                f"{_shown(str(path))}: more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million"
                " pixels; shrink it with a program of your own, or remove it."
            ) from error
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise ValueError(
                f"{_shown(str(path))}: unreadable image ({_shown(str(error))}); repair or remove"
                " it."
            ) from error

    def _composed(self, image: Any, path: Path) -> Any:
        """An image of the channels that are wanted, transparent pixels before the background."""
        from PIL import Image

        # Pillow would clip these to 255 without a word.
        if image.mode.startswith("I;16"):
            self.deep.append(path)
            levels = np.asarray(image).astype(np.uint32)
            image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        elif image.mode.startswith(("I", "F")):
            raise _Refused(
                f"{_shown(str(path))}: its pixels have no known range (mode {image.mode}); convert"
                " it to 8 or 16 bits."
            )
        if image.has_transparency_data:
            layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image
            layer = layer.convert("RGBA")
            behind = Image.new("RGBA", layer.size, (*self.background, 255))
            image = Image.alpha_composite(behind, layer)
        if self.options.channels == 1 and image.mode not in ("1", "L", "LA", "La"):
            pixels = np.asarray(image.convert("RGB")).astype(np.int16)
            if np.ptp(pixels, axis=-1).max() > GREY:
                self.coloured.append(path)
        return image.convert("L" if self.options.channels == 1 else "RGB")

    def _pixels(self, image: Any, path: Path) -> np.ndarray:
        pixels = _resized(image, self.options.image_size)
        return pixels.reshape(*pixels.shape[:2], self.options.channels)


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image uint8 [H, W, C], resized to [side, side, C]."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return _resized(image, side).reshape(side, side, pixels.shape[-1])


def _resized(image: Any, side: int) -> np.ndarray:
    """An image's pixels, of its middle in a square of a side; 0: as they are."""
    from PIL import ImageOps

    return np.asarray(ImageOps.fit(image, (side, side)) if side else image)


class _Refused(ValueError):
    """An image that is not read, in words of ours."""


def _samples(base: Path, paths: Paths, reader: _Reader, where: str) -> Samples:
    """The images of a split, and the names of their sub-folders as labels if there are any."""
    classes = [_shown(parts[0]) if (parts := _below(base, path)[:-1]) else "" for path in paths]
    if "" in classes and len(set(classes)) > 1:
        raise ValueError(
            f"{where}: images both beside and inside sub-folders, whose names are class labels; put"
            " all images in sub-folders, or none."
        )
    images, labels = [], []
    for path, label in zip(paths, classes, strict=True):
        for image in reader.read(path):
            images.append(image)
            labels.append(label)
    return Samples(np.stack(images), None if "" in classes else np.array(labels))
