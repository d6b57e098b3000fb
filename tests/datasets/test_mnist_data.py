"""MNIST: file formats, damage, tensorflow-datasets, and the data sets made of it."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ndsm_jax.datasets import Raw, Samples, half_size, idx, is_original, load, mnist, parse_idx
from tests.datasets.dataset_files import idx_bytes, small_mnist, sort_rows, write_mnist

NOT_ORIGINAL = pytest.mark.filterwarnings("ignore:Not the original MNIST")


@NOT_ORIGINAL
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_round_trip(tmp_path: Path, dotted: bool, zipped: bool) -> None:
    arrays = small_mnist()
    data = load("mnist", dir=write_mnist(tmp_path, arrays, dotted=dotted, zipped=zipped))
    assert data.shape == (28, 28, 1)
    assert data.value_range == (-1.0, 1.0)
    expected = arrays["train-images-idx3-ubyte"].reshape(40, 784) / 127.5 - 1.0
    np.testing.assert_allclose(data.train, expected, atol=1e-6)
    assert (data.train.min(), data.train.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(data.test_labels, arrays["t10k-labels-idx1-ubyte"])


@NOT_ORIGINAL
def test_mnist_plain_content_under_a_gz_name_is_read(tmp_path: Path) -> None:
    write_mnist(tmp_path, small_mnist())
    name = "train-images-idx3-ubyte"
    (tmp_path / name).rename(tmp_path / f"{name}.gz")
    assert len(load("mnist", dir=str(tmp_path)).train) == 40


def test_mnist_warns_of_other_content(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, small_mnist())
    with pytest.warns(UserWarning, match="Not the original MNIST"):
        data = load("mnist", dir=folder)
    assert "other than the original" in data.source


def cut_gzip(content: bytes) -> bytes:
    return gzip.compress(content)[:-20]


def flip_gzip(content: bytes) -> bytes:
    zipped = bytearray(gzip.compress(content))
    zipped[len(zipped) // 2] ^= 0xFF
    return bytes(zipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-5], "truncated: 5 bytes missing"),
        (lambda b: b + b"\0\0", "2 bytes too long"),
        (lambda b: b"\0\0\x0d\x03" + b[4:], "not an IDX file of unsigned bytes"),
        (lambda b: b"<html>", "not an IDX file of unsigned bytes"),
        (lambda b: b[:9], "not an IDX file of unsigned bytes"),
        (lambda b: b"", "not an IDX file of unsigned bytes"),
        (cut_gzip, "corrupted gzip"),
        (flip_gzip, "corrupted gzip"),
        (lambda b: idx_bytes(np.zeros(40)), "IDX shape"),
    ],
)
def test_mnist_damaged_file(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    write_mnist(tmp_path, small_mnist())
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        load("mnist", dir=str(tmp_path))
    assert path.name in str(raised.value)


@NOT_ORIGINAL
def test_a_bomb_is_read_no_further_than_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros, that are no IDX file; an IDX file of 40 images, and zeros; one of 2^96 bytes."""
    write_mnist(tmp_path, small_mnist())
    path, good = tmp_path / "train-images-idx3-ubyte", idx_bytes(np.zeros((40, 28, 28)))
    bomb = bytes(1 << 28)
    read: list[int] = []

    def parse(content: bytes, *, name: str) -> np.ndarray:
        read.append(len(content))
        return parse_idx(content, name=name)

    monkeypatch.setattr(mnist, "parse_idx", parse)
    for content, message in (
        (bomb, "not an IDX file"),
        (good + bomb, "bytes too long"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bomb[:99], "needs .*B of memory"),
    ):
        path.write_bytes(gzip.compress(content, 1))
        with pytest.raises(ValueError, match=message):
            load("mnist", dir=str(tmp_path))
    assert max(read) < 2 * idx.SURPLUS


def test_rows_digest_is_of_rows_in_any_order() -> None:
    arrays = small_mnist()
    x, labels = arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]
    order = np.random.default_rng(0).permutation(40)
    digest = mnist.rows_digest(Samples(x, labels))
    assert mnist.rows_digest(Samples(x[order][..., None], labels[order].astype(int))) == digest
    assert mnist.rows_digest(Samples(x, labels[::-1])) != digest


@NOT_ORIGINAL
def test_mnist_label_length_mismatch(tmp_path: Path) -> None:
    arrays = small_mnist()
    arrays["train-labels-idx1-ubyte"] = np.zeros(39, np.uint8)
    with pytest.raises(ValueError, match="39 labels for 40 samples"):
        load("mnist", dir=write_mnist(tmp_path, arrays))


def test_mnist_missing_file(tmp_path: Path) -> None:
    write_mnist(tmp_path, small_mnist())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.dir.*t10k-labels-idx1-ubyte or "):
        load("mnist", dir=str(tmp_path))


@NOT_ORIGINAL
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mnist_from_tensorflow_datasets(tmp_path: Path) -> None:
    """Prepare a small real tensorflow-datasets folder, as a user would, and read it back."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")  # needed to prepare, not to read
    from tensorflow_datasets.image_classification import mnist

    arrays = small_mnist()
    with tfds.core.registered.skip_registration():

        class MNIST(mnist.MNIST):
            pkg_dir_path = None

            def _split_generators(self, dl_manager):
                return {"train": self._generate("train"), "test": self._generate("t10k")}

            def _generate(self, prefix):
                images = arrays[f"{prefix}-images-idx3-ubyte"]
                for i, (image, label) in enumerate(
                    zip(images, arrays[f"{prefix}-labels-idx1-ubyte"], strict=True)
                ):
                    file = io.BytesIO()
                    Image.fromarray(image).save(file, "PNG")
                    file.seek(0)
                    yield i, {"image": file, "label": int(label)}

    MNIST(data_dir=tmp_path, file_format="array_record").download_and_prepare()

    data = load("mnist", dir=str(tmp_path))
    assert data.shape == (28, 28, 1)
    assert not is_original(data)
    for x, labels, prefix in (
        (data.train, data.train_labels, "train"),
        (data.test, data.test_labels, "t10k"),
    ):
        assert labels is not None
        images = arrays[f"{prefix}-images-idx3-ubyte"].reshape(len(x), -1)
        expected = np.column_stack([images, arrays[f"{prefix}-labels-idx1-ubyte"]])
        ours = np.column_stack([np.rint((x + 1) * 127.5), labels])
        # The examples come back in another order, so compare sorted rows.
        np.testing.assert_array_equal(sort_rows(ours), sort_rows(expected))


def test_mnist_without_any_source(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()  # a data folder of tensorflow-datasets with nothing prepared
    with pytest.raises(FileNotFoundError, match=r"Set data\.dir to a folder .* or prepare 'mnist'"):
        load("mnist", dir=str(tmp_path))


def test_real_mnist() -> None:
    folder = os.environ.get("NDSM_MNIST_DIR")
    if not folder:
        pytest.skip("NDSM_MNIST_DIR is not set to a folder with the four MNIST files")
    data = load("mnist", dir=folder, num_train=6000)  # no warning: pytest would show one
    assert data.train.shape == (6000, 784)
    assert data.test.shape == (10_000, 784)
    assert data.source.startswith("MNIST (LeCun")
    assert is_original(data)
    assert not is_original(load("approx_c2_mnist", dir=folder, num_train=100))
    whole = mnist._mnist_from_idx(Path(folder))
    for split, samples in (("train", whole.train), ("test", whole.test)):
        assert samples is not None
        assert mnist.rows_digest(samples) == mnist._MNIST_ROWS[split]
    # Class sizes as published with MNIST.
    train_sizes = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_sizes = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train_labels is not None
    assert data.test_labels is not None
    np.testing.assert_array_equal(np.bincount(data.test_labels), test_sizes)
    assert np.abs(np.bincount(data.train_labels) - np.array(train_sizes) / 10).max() <= 1
    # The mean pixel of the 10,000 test images is known to be 0.1325 on [0, 1].
    assert np.isclose((data.test.mean(dtype=np.float64) + 1) / 2, 0.1325, atol=1e-4)


def halved(image: np.ndarray) -> np.ndarray:
    """Pillow's own average of 2 x 2 blocks, pasted in the middle of black."""
    canvas = Image.new("L", (28, 28))
    canvas.paste(Image.fromarray(image).reduce(2), (7, 7))
    return np.asarray(canvas)


def test_half_size_is_that_of_pillow() -> None:
    images = small_mnist()["train-images-idx3-ubyte"]
    np.testing.assert_array_equal(half_size(images), np.stack([halved(image) for image in images]))


@NOT_ORIGINAL
def test_approx_c2_mnist_holds_large_upright_and_small_turned_digits(tmp_path: Path) -> None:
    arrays = small_mnist()
    folder = write_mnist(tmp_path, arrays)
    data = load("approx_c2_mnist", dir=folder)
    assert data.shape == (28, 28, 1)
    assert data.num_classes == 20
    for split, x, labels in (
        ("train", data.train, data.train_labels),
        ("t10k", data.test, data.test_labels),
    ):
        assert labels is not None
        small = labels >= 10
        assert 0 < small.sum() < len(small)
        np.testing.assert_array_equal(labels % 10, arrays[f"{split}-labels-idx1-ubyte"])
        images = arrays[f"{split}-images-idx3-ubyte"]
        turned = np.stack([np.rot90(halved(image), 2) for image in images])
        expected = np.where(small[:, None, None], turned, images).reshape(len(x), 784)
        np.testing.assert_allclose((x + 1) * 127.5, expected, atol=1e-3)
    assert load("approx_c2_mnist", dir=folder).digest == data.digest
    other = load("approx_c2_mnist", dir=folder, seed=1)
    assert other.digest != data.digest
    subset = load("approx_c2_mnist", dir=folder, num_train=20)
    assert subset.train_labels is not None
    assert all((data.train == x).all(axis=1).any() for x in subset.train)


def test_approx_c2_mnist_halves_are_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 coins: the share of small digits is 1/2 with a standard error of 0.0035."""
    x, labels = np.zeros((20_000, 28, 28), np.uint8), np.zeros(20_000, np.uint8)
    x[:, 0, 0] = 1
    x[0, 0, 0] = 2
    raw = Raw(train=Samples(x, labels), test=Samples(x, labels), source="")
    monkeypatch.setattr(mnist, "mnist", lambda options: raw)
    data = load("approx_c2_mnist")
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert abs(np.mean(data.train_labels == 10) - 0.5) < 4.5 * 0.0035
    assert abs(np.mean(data.train_labels == data.test_labels) - 0.5) < 4.5 * 0.0035


@NOT_ORIGINAL
def test_mnist_orientations_are_the_four_combinations(tmp_path: Path) -> None:
    arrays = small_mnist()
    data = load("mnist_orientations", dir=write_mnist(tmp_path, arrays))
    assert data.num_classes == 40
    assert data.test.shape == (80, 784)
    assert data.test_labels is not None
    first = arrays["t10k-images-idx3-ubyte"][0]  # a 0
    for label, image in {
        0: first,
        10: halved(first),
        20: np.rot90(first, 2),
        30: np.rot90(halved(first), 2),
    }.items():
        found = data.test[np.argmax(data.test_labels == label)]
        np.testing.assert_allclose((found + 1) * 127.5, image.ravel(), atol=1e-3)
