"""Sets of TensorFlow Datasets, written from original files and read back, without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import socket
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ndsm_jax.datasets import Dataset, Samples, load
from ndsm_jax.datasets.dataset import Raw
from ndsm_jax.datasets.originals import CIFAR10, CIFAR100, Binary
from ndsm_jax.datasets.preparing import original, prepare, write
from tests.datasets.dataset_files import small_mnist, sort_rows, write_mnist
from tests.datasets.test_damage import mutated
from tests.training.tiny_runs import run, tiny

tfds = pytest.importorskip("tensorflow_datasets")

FEW = {"cifar10": 10, "cifar100": 20}
OTHER_ARCHIVE = pytest.mark.filterwarnings("ignore:.*not the published archive")


def few(form: Binary, count: int) -> Binary:
    """The same format with `count` records a file."""
    return dataclasses.replace(
        form, train=dict.fromkeys(form.train, count), test=dict.fromkeys(form.test, count)
    )


def write_binary(folder: Path, form: Binary, classes: int = 10) -> dict[str, np.ndarray]:
    """Records by hand from the published description: labels, 1,024 red, 1,024 green, 1,024 blue.

    Returns: the images [n, 32, 32, 3] of each file, whose labels are 0, 1, ... modulo `classes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = {}
    for name, count in form.files.items():
        images[name] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        content = b""
        for i, image in enumerate(images[name]):
            content += bytes([7] * (form.label_bytes - 1) + [i % classes])
            content += b"".join(image[..., colour].tobytes() for colour in range(3))
        (folder / name).write_bytes(content)
    if form.names:
        (folder / form.names).write_text("".join(f"class_{i}\n" for i in range(classes)))
    return images


def archive_of(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname="cifar-batches-bin")


def levels(x: np.ndarray, data: Dataset) -> np.ndarray:
    """States as uint8 images."""
    return np.rint((x + 1) * 127.5).astype(np.uint8).reshape(-1, *data.shape)


# --- CIFAR ---


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"the network is asked: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@OTHER_ARCHIVE
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "form"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_written_and_read(tmp_path: Path, name: str, form: Binary, packed: bool) -> None:
    """Images and labels in the order of the files; TensorFlow Datasets itself reads them, too."""
    form, source, root = few(form, FEW[name]), tmp_path / "source", tmp_path / "root"
    images = write_binary(source / "unpacked", form)
    if packed:
        archive_of(source / "unpacked", source / form.archive)
        for path in (source / "unpacked").iterdir():
            path.unlink()
    folder = prepare(name, source, root, binary={name: form})
    assert folder == root / name / "3.0.2"
    assert [path.name for path in root.iterdir()] == [name]

    data = load("tfds", dir=str(root), tfds=name)
    assert data.shape == (32, 32, 3)
    expected = np.concatenate([images[file] for file in form.train])
    np.testing.assert_array_equal(levels(data.train, data), expected)
    np.testing.assert_array_equal(levels(data.test, data), images[next(iter(form.test))])
    left = load("tfds", dir=str(root), tfds=name, in_memory="no", num_train=12)
    assert left.is_stored
    some = load("tfds", dir=str(root), tfds=name, num_train=12)
    np.testing.assert_array_equal(left.train[:], some.train)
    np.testing.assert_array_equal(left.train[[5, 2, 5]], some.train[[5, 2, 5]])
    np.testing.assert_array_equal(left.train_labels, some.train_labels)
    assert (left.digest, left.class_names) == (some.digest, some.class_names)
    assert data.train_labels is not None
    wanted = np.concatenate([np.arange(FEW[name]) % 10 for _ in form.train])
    np.testing.assert_array_equal(data.train_labels, wanted)
    assert data.class_names[3] == ("cat" if name == "cifar10" else "class_3")
    assert data.source == f"{name}/3.0.2 of TensorFlow Datasets"

    stock = tfds.data_source(name, data_dir=root, split="train", download=False)
    np.testing.assert_array_equal(stock[7]["image"], expected[7])
    assert stock[7]["label"] == wanted[7]
    assert "tensorflow" not in sys.modules
    with pytest.raises(FileExistsError, match=r"is there; .* or remove it"):
        prepare(name, source, root, binary={name: form})


def test_an_archive_that_is_not_the_published_one_is_told(tmp_path: Path) -> None:
    form = few(CIFAR10, 10)
    write_binary(tmp_path / "files", form)
    archive_of(tmp_path / "files", tmp_path / form.archive)
    with pytest.warns(UserWarning, match="not the published archive"):
        original("cifar10", tmp_path, binary={"cifar10": form})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(5))


def relabel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3073] = 11
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"data_batch_2\.bin has 30,727 bytes, not the 30,730 of 10 records; fetch it again"),
        (lengthen, r"data_batch_2\.bin has 30,731 bytes or more, not the 30,730"),
        (relabel, r"label 11 in data_batch_1\.bin or .*, and there are 10 classes"),
        (Path.unlink, r"data_batch_2\.bin missing; put cifar-10-binary\.tar\.gz \(or its files"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@OTHER_ARCHIVE
def test_damaged_binary_files(tmp_path: Path, damage, message: str, packed: bool) -> None:
    form, files = few(CIFAR10, 10), tmp_path / "source"
    write_binary(files, form)
    damage(files / "data_batch_2.bin")
    source = files
    if packed:
        source = tmp_path
        archive_of(files, tmp_path / form.archive)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare("cifar10", source, tmp_path / "root", binary={"cifar10": form})
    assert not list(tmp_path.glob("root/*"))


def test_a_damaged_archive_is_one_error(tmp_path: Path) -> None:
    form = few(CIFAR10, 10)
    write_binary(tmp_path / "files", form)
    path = tmp_path / form.archive
    archive_of(tmp_path / "files", path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    bomb = gzip.compress(gzip.decompress(whole) + bytes(1 << 24))
    for content in (whole[: len(whole) // 2], bytes(flipped), b"<html>", gzip.compress(b"x"), bomb):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged archive|bytes after its end"):
            original("cifar10", tmp_path, binary={"cifar10": form})


def test_the_sizes_of_the_published_files_are_known() -> None:
    """Six files of 30,730,000 bytes; of CIFAR-100 153,700,000 and 30,740,000."""
    assert [CIFAR10.record * n for n in CIFAR10.files.values()] == [30_730_000] * 6
    assert [CIFAR100.record * n for n in CIFAR100.files.values()] == [153_700_000, 30_740_000]


# --- IDX, and folders of images ---


@pytest.mark.filterwarnings("ignore:Not the original MNIST")
def test_idx_is_written_and_read(tmp_path: Path) -> None:
    arrays = small_mnist()
    (tmp_path / "source").mkdir()
    source = write_mnist(tmp_path / "source", arrays, zipped=True)
    for name, version in (("mnist", "3.0.1"), ("my_digits", "1.0.0")):
        folder = prepare(name, Path(source), tmp_path / "root")
        assert folder == tmp_path / "root" / name / version
        data = load("tfds", dir=str(tmp_path / "root"), tfds=name)
        images = arrays["train-images-idx3-ubyte"][..., None]
        np.testing.assert_array_equal(levels(data.train, data), images)
        np.testing.assert_array_equal(data.test_labels, arrays["t10k-labels-idx1-ubyte"])
        assert data.class_names == ()
    same = load("mnist", dir=str(tmp_path / "root"))
    np.testing.assert_array_equal(levels(same.train, same), images)
    (tmp_path / "source" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"--source=.* has no t10k-labels-idx1-ubyte or "):
        prepare("other", Path(source), tmp_path / "root")


def photograph(folder: Path, count: int, size: tuple[int, int]) -> list[Image.Image]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    made = []
    for i in range(count):
        made.append(Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)))
        made[-1].save(folder / f"{i:02}.png")
    return made


def test_a_folder_of_images_is_written_and_read(tmp_path: Path) -> None:
    """With splits and classes, of one size; and, without classes, of several, resized once."""
    root = tmp_path / "root"
    cars = photograph(tmp_path / "cars" / "train" / "Audi 100", 12, (9, 7))
    photograph(tmp_path / "cars" / "train" / "BMW M3", 12, (9, 7))
    photograph(tmp_path / "cars" / "test" / "BMW M3", 11, (9, 7))
    prepare("stanford_cars", tmp_path / "cars", root)
    data = load("tfds", dir=str(root), tfds="stanford_cars")
    assert data.shape == (7, 9, 3)
    assert data.class_names == ("Audi 100", "BMW M3")
    np.testing.assert_array_equal(data.test_labels, np.ones(11))
    np.testing.assert_array_equal(levels(data.train, data)[:12], [np.asarray(i) for i in cars])

    small = load("tfds", dir=str(root), tfds="stanford_cars:1.0.0", image_size=5)
    expected = [np.asarray(ImageOps.fit(image, (5, 5))) for image in cars]
    np.testing.assert_array_equal(levels(small.train, small)[:12], expected)

    several = photograph(tmp_path / "several", 12, (80, 64))
    several += photograph(tmp_path / "several" / ".." / "several2", 12, (70, 90))
    for i in range(12):
        (tmp_path / "several2" / f"{i:02}.png").rename(tmp_path / "several" / f"{12 + i}.png")
    with pytest.raises(ValueError, match=r"set --image_size to resize all images"):
        prepare("several", tmp_path / "several", root)
    with pytest.raises(ValueError, match=r"^--image_size=-5"):
        prepare("several", tmp_path / "several", root, image_size=-5)
    prepare("several", tmp_path / "several", root, image_size=64)
    data = load("tfds", dir=str(root), tfds="several", test_fraction=0.5)
    assert data.shape == (64, 64, 3)
    assert data.train_labels is None
    found = np.concatenate([levels(data.train, data), levels(data.test, data)])
    resized = np.stack([np.asarray(ImageOps.fit(image, (64, 64))) for image in several])
    found, resized = (sort_rows(x.reshape(24, -1)) for x in (found, resized))
    np.testing.assert_array_equal(found, resized)


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    root, source = tmp_path / "root", tmp_path / "source"
    with pytest.raises(FileNotFoundError, match=r"--source='.*source': no such folder"):
        prepare("cifar10", source, root)
    source.mkdir()
    with pytest.raises(FileNotFoundError, match=r"--source=.*Put cifar-10-binary\.tar\.gz \(or"):
        prepare("cifar10", source, root)
    with pytest.raises(FileNotFoundError, match=r"Put its four IDX files, or images there"):
        prepare("mine", source, root)
    for name in ("Cars", "my-cars", "a/b", ""):
        with pytest.raises(ValueError, match=r"--dataset=.*small letters, digits and _"):
            prepare(name, source, root)
    with pytest.raises(ValueError, match=r"has configurations .* imagenet_resized_images"):
        prepare("imagenet_resized", source, root)
    write_mnist(source, small_mnist())
    with pytest.raises(ValueError, match=r"--image_size and --channels are of a folder of images"):
        prepare("mine", source, root, image_size=8)
    assert not root.exists()


# --- reading ---


def raw(count: int = 20, shape: tuple[int, ...] = (4, 6, 3), labels: bool = True) -> Raw:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return Raw(train=Samples(x, np.arange(count) % 2 if labels else None), source="mine")


def test_a_set_that_is_not_there_says_which_files_go_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.tfds='': .* needs the name of a prepared set"):
        load("tfds", dir=str(tmp_path))
    message = (
        rf"data\.tfds='cifar10': no prepared set in {tmp_path}/cifar10; put"
        r" cifar-10-binary\.tar\.gz \(or its files data_batch_1\.bin, .*test_batch\.bin\) into a"
        r" folder, and run python"
        rf" experiments/prepare\.py --dataset=cifar10 --source=THAT_FOLDER --data_dir={tmp_path}"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load("tfds", dir=str(tmp_path), tfds="cifar10")
    with pytest.raises(FileNotFoundError, match=r"put its images or its IDX files into a folder"):
        load("tfds", dir=str(tmp_path), tfds="mine")
    write(raw(), "mine", "1.0.0", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data\.tfds='mine:2\.0\.0'"):
        load("tfds", dir=str(tmp_path), tfds="mine:2.0.0")


def test_versions_and_configurations(tmp_path: Path) -> None:
    write(raw(20), "mine", "9.0.0", tmp_path)
    write(raw(30), "mine", "10.0.0", tmp_path)
    assert len(load("tfds", dir=str(tmp_path), tfds="mine", num_test=10).train) == 20
    assert len(load("tfds", dir=str(tmp_path), tfds="mine:9.0.0").train) == 10
    (tmp_path / "mine").rename(tmp_path / "small")
    (tmp_path / "mine").mkdir()
    (tmp_path / "small").rename(tmp_path / "mine" / "small")
    with pytest.raises(ValueError, match=r"which configuration\? Say one of mine/small"):
        load("tfds", dir=str(tmp_path), tfds="mine")
    assert len(load("tfds", dir=str(tmp_path), tfds="mine/small").train) == 20


def test_damaged_sets_are_one_error(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write(raw(), "mine", "1.0.0", tmp_path)
    records, info = folder / "mine-train.array_record-00000-of-00001", folder / "dataset_info.json"
    for path, content in (
        (records, records.read_bytes()[:900]),
        (records, b"x" * len(records.read_bytes())),
        (info, b"{"),
        (info, info.read_bytes().replace(b'"20"', b'"2000000000000"')),
        (info, info.read_bytes().replace(b"array_record", b"tfrecord")),
        (folder / "features.json", b"{}"),
    ):
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine/1\.0\.0.*(damaged|takes TensorFlow|memory)"):
            load("tfds", dir=str(tmp_path), tfds="mine")
        path.write_bytes(whole)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(40):
            path.write_bytes(mutated(whole, rng))
            with contextlib.suppress(ValueError):
                load("tfds", dir=str(tmp_path), tfds="mine")
        path.write_bytes(whole)
    assert load("tfds", dir=str(tmp_path), tfds="mine").shape == (4, 6, 3)


@pytest.mark.slow
def test_a_set_trains(tmp_path: Path) -> None:
    """Mirrored, dequantised and resized, as a config asks for it."""
    write(raw(40, (8, 12, 3)), "mine", "1.0.0", tmp_path)
    of_set = {"name": "tfds", "tfds": "mine", "dir": str(tmp_path), "num_train": 0, "num_test": 0}
    config = tiny(
        data=of_set | {"image_size": 4, "flips": True, "frame": "pixels"},
        process={"name": "ornstein_uhlenbeck"},
        objective={"name": "dsm"},
        train={"steps": 4},
    )
    state = run(config, tmp_path / "run")
    assert int(state.step) == 4
