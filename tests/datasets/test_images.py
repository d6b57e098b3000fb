"""Folders of images as people have them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from ndsm_jax.datasets import Dataset, files, load


def write_images(folder: Path, count: int, size: tuple[int, int] = (6, 4), start: int = 0) -> None:
    """Grey images whose left half is `start + i` and right half 255, so they can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((size[1], size[0]), 255, np.uint8)
        pixels[:, : size[0] // 2] = start + i
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_folder_without_labels(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_bytes(b"hidden")
    with pytest.warns(UserWarning, match=r"not read: 1 \.txt \(notes\.txt\)\.$") as caught:
        data = load("folder", dir=str(tmp_path))
    assert caught[0].filename == __file__
    assert data.shape == (4, 6, 1)
    assert data.train_labels is None
    assert data.value_range == (-1.0, 1.0)
    images = np.concatenate([data.train, data.test]).reshape(20, 4, 6)
    levels = np.sort((images[:, 0, 0] + 1) * 127.5)
    np.testing.assert_allclose(levels, np.arange(20), atol=1e-4)
    assert np.all(images[:, :, 3:] == 1.0)


def test_folder_classes_colour_and_resize(tmp_path: Path) -> None:
    write_images(tmp_path / "cats", 15, start=0)
    write_images(tmp_path / "dogs", 15, size=(9, 5), start=100)
    data = load("folder", dir=str(tmp_path), channels=3, image_size=4, test_fraction=0.4)
    assert data.shape == (4, 4, 3)
    assert data.num_classes == 2
    assert data.class_names == ("cats", "dogs")
    assert data.train_labels is not None
    np.testing.assert_array_equal(np.bincount(data.train_labels), [9, 9])
    left = (data.train.reshape(-1, 4, 4, 3)[:, 0, 0, 0] + 1) * 127.5
    np.testing.assert_array_equal(left > 50, data.train_labels == 1)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.dir=''.*folder of images"):
        load("folder")
    with pytest.raises(FileNotFoundError, match="no images"):
        load("folder", dir=str(tmp_path))
    write_images(tmp_path, 12)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png: size \(3, 3\) .*set data\.image_size"):
        load("folder", dir=str(tmp_path))
    (tmp_path / "odd.png").unlink()
    Image.fromarray(np.full((4, 6), 4000, np.int32)).save(tmp_path / "odd.tiff")
    with pytest.raises(ValueError, match=r"odd\.tiff: its pixels have no known range \(mode I\)"):
        load("folder", dir=str(tmp_path))
    (tmp_path / "odd.tiff").unlink()
    content = (tmp_path / "0.png").read_bytes()
    for damaged in (b"not an image", content[:-25], content[:40]):
        (tmp_path / "odd.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"odd\.png: unreadable image"):
            load("folder", dir=str(tmp_path))
    (tmp_path / "odd.png").unlink()
    write_images(tmp_path / "sub", 2)
    with pytest.raises(ValueError, match="both beside and inside"):
        load("folder", dir=str(tmp_path))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_of_sixteen_bits_the_upper_eight_are_read(kind, tmp_path: Path) -> None:
    """Level 257 v is v: 0 and 65,535 are the ends of both scales."""
    levels = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint16)
    levels[:, 0, 0] = 255
    for i, image in enumerate(levels):
        Image.fromarray(257 * image).save(tmp_path / f"{i:02}.{kind}")
    with pytest.warns(UserWarning, match=r"20 files have 16 bits a pixel, as 00\."):
        data = load("folder", dir=str(tmp_path), channels=1)
    read = {row.tobytes() for row in np.concatenate([data.train, data.test])}
    wanted = (levels.reshape(20, 16) / np.float32(127.5) - np.float32(1)).astype(np.float32)
    assert read == {row.tobytes() for row in wanted}


def test_colours_that_are_not_kept_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        image = np.repeat(rng.integers(0, 256, (4, 4, 1), dtype=np.uint8), 3, axis=2)
        if i < 7:  # the others are grey in a file of three channels
            image[0, 0] = (255, 0, 0)
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    with pytest.warns(UserWarning, match=r"7 files have colours, as .*\.png, .*data\.channels=3"):
        load("folder", dir=str(tmp_path), channels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("folder", dir=str(tmp_path), channels=3)


# --- transparency ---------------------------------------------------------------------------------


def levels(data: Dataset) -> np.ndarray:
    """All images as [N, H, W, C] in 0 to 255, in the order of their first value."""
    x = np.rint((np.concatenate([data.train, data.test]) + 1) * 127.5).reshape(-1, *data.shape)
    return x[np.lexsort(x.reshape(len(x), -1).T[::-1])]


def half_transparent(kind: str, k: int) -> tuple[Image.Image, dict[str, Any]]:
    """An image [4, 4] of level k, but wholly transparent and of a hidden 77 on the right, and how
    to save it."""
    grey = np.full((4, 4), k, np.uint8)
    grey[:, 2:] = 77
    alpha = np.full((4, 4), 255, np.uint8)
    alpha[:, 2:] = 0
    if kind == "RGBA":
        return Image.fromarray(np.stack([grey, grey, grey, alpha], -1)), {}
    if kind == "LA":
        return Image.fromarray(np.stack([grey, alpha], -1)), {}
    if kind == "L":  # one level stands for transparent
        return Image.fromarray(grey), {"transparency": 77}
    palette = Image.fromarray(grey).convert("P")
    seen = bytes(0 if i == 77 else 255 for i in range(256))
    return palette, {"transparency": seen if kind == "P, bytes" else 77}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "L", "P, bytes", "P, index"])
@pytest.mark.parametrize(("background", "behind"), [("white", 255), ("#0a0a0a", 10)])
def test_transparent_pixels_show_the_background(
    tmp_path: Path, kind: str, background: str, behind: int
) -> None:
    for k in range(20):
        image, how = half_transparent(kind, k)
        image.save(tmp_path / f"{k}.png", **how)
    for channels in (1, 3):
        found = levels(load("folder", dir=str(tmp_path), background=background, channels=channels))
        expected = np.full((20, 4, 4, channels), behind)
        expected[:, :, :2] = np.arange(20)[:, None, None, None]
        np.testing.assert_array_equal(found, expected)


def test_half_transparency_is_a_mean(tmp_path: Path) -> None:
    for k in range(20):
        pixels = np.full((4, 4, 4), 5 * k, np.uint8)
        pixels[..., 3] = 102  # 0.4
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    found = levels(load("folder", dir=str(tmp_path), background="black", channels=3))
    assert np.abs(found - 0.4 * 5 * np.arange(20)[:, None, None, None]).max() <= 0.5


def test_a_background_that_is_no_colour(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    with pytest.raises(ValueError, match=r"data\.background='whiet': no colour; give a name"):
        load("folder", dir=str(tmp_path), background="whiet")


# --- formats --------------------------------------------------------------------------------------


def test_jfif_and_avif_are_read(tmp_path: Path) -> None:
    for k in range(20):
        image = Image.fromarray(np.full((8, 8), 10 * k, np.uint8))
        image.save(tmp_path / f"{k}.jfif", format="JPEG")
        if features.check("avif"):
            image.save(tmp_path / f"{k}.AVIF", format="AVIF")
    data = load("folder", dir=str(tmp_path))
    assert len(data.train) + len(data.test) == (40 if features.check("avif") else 20)


def test_formats_that_are_not_opened_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    for name in ("a.heic", "b.HEIC", "c.svg"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=r"does not open 2 \.heic \(a\.heic, \.\.\.\), 1 \.svg"):
        load("folder", dir=str(tmp_path))


def test_no_format_starts_another_program(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript."""
    write_images(tmp_path, 20)
    (tmp_path / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\n")
    with pytest.raises(ValueError, match=r"0\.png: unreadable image"):
        load("folder", dir=str(tmp_path))


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_frames_are_told_or_taken(tmp_path: Path, suffix: str) -> None:
    for k in range(20):
        frames = [Image.fromarray(np.full((8, 8), 12 * k + 4 * i, np.uint8)) for i in range(3)]
        more: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
        frames[0].save(tmp_path / f"{k}{suffix}", save_all=True, append_images=frames[1:], **more)
    with pytest.warns(UserWarning, match=r"20 files with several frames, as 0\.\w+ with 3") as told:
        found = levels(load("folder", dir=str(tmp_path)))
    assert told[0].filename == __file__
    np.testing.assert_array_equal(found[:, 0, 0, 0], 12 * np.arange(20))
    found = levels(load("folder", dir=str(tmp_path), all_frames=True))
    np.testing.assert_array_equal(found[:, 0, 0, 0], 4 * np.arange(60))


# --- names, links, splits -------------------------------------------------------------------------


def test_links_are_followed_but_in_circles(tmp_path: Path) -> None:
    write_images(tmp_path / "there", 12)
    root = tmp_path / "here"
    write_images(root / "dogs", 12, start=100)
    (root / "cats").symlink_to(tmp_path / "there")
    (root / "dogs" / "all").symlink_to(root)
    (root / "dogs" / "one.png").symlink_to(tmp_path / "there" / "0.png")
    data = load("folder", dir=str(root))
    assert data.class_names == ("cats", "dogs")
    assert np.bincount(np.concatenate([data.train_labels, data.test_labels])).tolist() == [12, 13]
    (root / "cats" / "gone.png").symlink_to(root / "nowhere")
    with pytest.raises(ValueError, match=r"gone\.png: no file, but a pipe.* broken link"):
        load("folder", dir=str(root))


def test_a_pipe_among_images(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: no file, but a pipe"):
        load("folder", dir=str(tmp_path))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"plain"):
        write_images(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), 12)
    data = load("folder", dir=str(tmp_path))
    assert data.class_names == ("\\xff\\xfe", "plain")
    broken = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe/\xfa.png"))
    broken.write_bytes(b"?")
    with pytest.raises(ValueError, match=r"\\xfa\.png: unreadable") as raised:
        load("folder", dir=str(tmp_path))
    str(raised.value).encode()  # no surrogates


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "TEST")])
def test_splits_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    """With and without classes within."""
    for name, start in zip(names, (0, 100), strict=True):
        write_images(tmp_path / "flat" / name, 15, start=start)
        for k, kind in enumerate("ab"):
            write_images(tmp_path / "deep" / name / kind, 15, start=start + 20 * k)
    flat, deep = (load("folder", dir=str(tmp_path / kind)) for kind in ("flat", "deep"))
    assert (flat.train_labels, flat.num_classes, len(flat.train), len(flat.test)) == (
        None,
        0,
        15,
        15,
    )
    assert flat.source == f"image folder flat, split as {names[0]} and {names[1]}"
    left = np.rint((flat.test.reshape(15, 4, 6)[:, 0, 0] + 1) * 127.5)
    np.testing.assert_array_equal(np.sort(left), 100 + np.arange(15))
    assert deep.class_names == ("a", "b")
    for x, labels, start in (
        (deep.train, deep.train_labels, 0),
        (deep.test, deep.test_labels, 100),
    ):
        first = np.rint((x.reshape(30, 4, 6)[:, 0, 0] + 1) * 127.5) - start
        np.testing.assert_array_equal(first >= 20, labels == 1)


def test_one_held_out_split_of_two(tmp_path: Path) -> None:
    for k, name in enumerate(("train", "val", "test")):
        write_images(tmp_path / name, 15 + k)
    with pytest.warns(UserWarning, match=r"test/ is the held-out split; not read: val/") as told:
        data = load("folder", dir=str(tmp_path))
    assert told[0].filename == __file__
    assert (len(data.train), len(data.test)) == (15, 17)


def test_train_alone_is_a_split_and_beside_car_a_class(tmp_path: Path) -> None:
    for kind in "ab":
        write_images(tmp_path / "train" / kind, 15)
    assert load("folder", dir=str(tmp_path)).class_names == ("a", "b")
    write_images(tmp_path / "car", 15)
    assert load("folder", dir=str(tmp_path)).class_names == ("car", "train")
    write_images(tmp_path / "test", 15)
    with pytest.raises(ValueError, match=r"train/ and test/ are splits, and beside them is car"):
        load("folder", dir=str(tmp_path))


def test_held_out_splits_without_a_training_split(tmp_path: Path) -> None:
    for name in ("val", "test"):
        write_images(tmp_path / name, 15)
    with pytest.raises(ValueError, match=r"test/ and val/ are splits, and none is called train"):
        load("folder", dir=str(tmp_path))


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.4])  # where Pillow warns, and where it raises
def test_oversized_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    write_images(tmp_path, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(share * 24))
    with pytest.raises(ValueError, match=r"0\.png: more than 0 million pixels; shrink it"):
        load("folder", dir=str(tmp_path), image_size=4)


def test_more_images_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 bytes each, six times as much on the way to states."""
    write_images(tmp_path, 30)
    monkeypatch.setattr(files, "available_memory", lambda: 6 * 24 * 25)
    with pytest.raises(ValueError, match=r"\.png: needs .* of memory"):
        load("folder", dir=str(tmp_path))


def test_warnings_of_pillow_stay_with_it(tmp_path: Path) -> None:
    """Such as that of a palette with transparency."""
    for k in range(20):
        image, how = half_transparent("P, bytes", k)
        image.save(tmp_path / f"{k}.png", **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("folder", dir=str(tmp_path), channels=3)
