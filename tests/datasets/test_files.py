"""A user's own files of NumPy: parts, precision, classes, damage, and what is hostile."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from ndsm_jax.datasets import Dataset, files, load
from tests.datasets.dataset_files import sort_rows


@pytest.mark.parametrize(
    ("shape", "item"), [((50, 5), (5,)), ((50, 4, 6), (4, 6, 1)), ((50, 5, 6, 3), (5, 6, 3))]
)
def test_array_ranks_and_types(
    tmp_path: Path, shape: tuple[int, ...], item: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(0, 9, shape)
    np.save(tmp_path / "float.npy", values)
    data = load("array", dir=str(tmp_path / "float.npy"))
    assert (data.shape, data.dim, data.value_range) == (item, int(np.prod(item)), None)
    assert (data.train_labels, data.num_classes) == (None, 0)
    assert len(data.train) == 40
    rows = np.concatenate([data.train, data.test])
    assert data.train.dtype == data.test.dtype == np.float64
    flat = values.reshape(50, -1)
    np.testing.assert_array_equal(sort_rows(rows), sort_rows(flat))

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.flat[:2] = 0, 255
    np.save(tmp_path / "uint8.npy", pixels)
    data = load("array", dir=str(tmp_path / "uint8.npy"))
    is_image = len(item) == 3  # the scale of other rows is not known
    assert data.value_range == ((-1.0, 1.0) if is_image else None)
    assert data.train.dtype == (np.float32 if is_image else np.float64)
    rows = np.concatenate([data.train, data.test])
    assert (rows.min(), rows.max()) == ((-1.0, 1.0) if is_image else (0, 255))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes keywords for options


@pytest.mark.parametrize("key", ["x", "data", "anything"])
def test_npz_names(tmp_path: Path, key: str) -> None:
    x, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    path = tmp_path / "a.npz"
    write_npz(path, {key: x, "labels": labels, "test": x[:12] + 9, "test_labels": labels[:12]})
    data = load("array", dir=str(path))
    np.testing.assert_array_equal(data.train, x)
    np.testing.assert_array_equal(data.test, x[:12] + 9)
    np.testing.assert_array_equal(data.test_labels, labels[:12])
    assert data.num_classes == 3


def test_array_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = np.random.default_rng(0).normal(size=(30, 2))

    def load_array(content: dict[str, np.ndarray] | bytes) -> Dataset:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_npz(path, content)
        return load("array", dir=str(path))

    with pytest.raises(ValueError, match="Name it 'x' or 'data'"):
        load_array({"a": good, "b": good})
    with pytest.raises(ValueError, match="'test_labels' needs both"):
        load_array({"x": good, "test_labels": np.zeros(30, int)})
    with pytest.raises(ValueError, match=r"train items are float64\[2\], test items float64\[3\]"):
        load_array({"x": good, "test": np.random.default_rng(1).normal(size=(30, 3))})
    with pytest.raises(ValueError, match=r"array test data: 4 samples"):
        load_array({"x": good, "test": good[:4]})
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_array(b"PK\x03\x04 and then rubbish")
    with pytest.raises(ValueError, match=r"'x': holds Python objects.*allow_pickle=False"):
        load_array({"x": np.array([{"an": "object"}] * 30)})
    np.savez_compressed(path, x=good)
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_array(path.read_bytes()[:300])


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY rubbish", b"text"])
def test_npy_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable \.npy"):
        load("array", dir=str(path))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "needs the path"),
        ("absent.npy", r"no file absent\.npy"),
        ("a.txt", "needs the path"),
        (".", "needs the path"),
    ],
)
def test_array_missing(path: str, problem: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"data\.dir=.*{problem}"):
        load("array", dir=path)


# --- precision and classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), (">f8", "f8"), ("g", "f8")]
)
def test_array_keeps_its_precision(tmp_path: Path, given: str, kept: str) -> None:
    """1 + k 2^-40 is one number in float32, and two hundred in float64."""
    x = (1 + np.arange(200) * 2.0**-40 + np.arange(2)[:, None] / 4).T.astype(given)
    x[0] = 3.0
    np.save(tmp_path / "a.npy", x)
    data = load("array", dir=str(tmp_path / "a.npy"))
    assert data.train.dtype == data.test.dtype == np.dtype(kept)
    rows = np.concatenate([data.train, data.test])
    np.testing.assert_array_equal(sort_rows(rows), sort_rows(x.astype(kept)))
    assert len(np.unique(rows[:, 0])) == (200 if kept == "f8" else 2)


def test_array_takes_values_that_float32_cannot(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1e145, (30, 2))
    np.savez(tmp_path / "a.npz", x=x, test=-x)
    data = load("array", dir=str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.train, x)
    assert np.isfinite(data.train.var())


@pytest.mark.parametrize(
    "labels",
    [
        np.array([3_000_000_000, -7, 12])[np.arange(60) % 3],
        np.array([2**64 - 1, 2**64 - 2, 0], np.uint64)[np.arange(60) % 3],
        np.array(["dog", "cat", "Zebra"])[np.arange(60) % 3],
        np.array([1, 2, 3], np.uint8)[np.arange(60) % 3],
    ],
)
def test_array_labels_are_classes_in_the_order_of_numpy(tmp_path: Path, labels: np.ndarray) -> None:
    """Row i of the file holds the value i, so rows can be told apart."""
    np.savez(tmp_path / "a.npz", x=np.arange(60.0)[:, None], labels=labels)
    data = load("array", dir=str(tmp_path / "a.npz"), num_train=30)
    names, classes = np.unique(labels, return_inverse=True)
    assert data.class_names == tuple(str(name) for name in names)
    assert data.num_classes == 3
    for x, found in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert found is not None
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, classes[x[:, 0].astype(int)])
    assert data.train_labels is not None
    np.testing.assert_array_equal(np.bincount(data.train_labels), [10, 10, 10])


def test_array_labels_that_count_from_zero_are_kept(tmp_path: Path) -> None:
    x, labels = np.arange(30.0)[:, None], np.arange(30) % 4
    np.savez(tmp_path / "a.npz", x=x, labels=labels)
    data = load("array", dir=str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.train_labels, labels[data.train[:, 0].astype(int)])
    assert (data.class_names, data.num_classes) == ((), 4)


def test_array_labels_of_both_splits_are_numbered_together(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    train, test = np.array([40, 10])[np.arange(20) % 2], np.array([50, 40, 20])[np.arange(20) % 3]
    np.savez(tmp_path / "a.npz", x=x, labels=train, test=x, test_labels=test.astype(np.uint64))
    data = load("array", dir=str(tmp_path / "a.npz"))
    assert data.class_names == ("10", "20", "40", "50")
    np.testing.assert_array_equal(np.array([10, 20, 40, 50])[data.train_labels], train)
    np.testing.assert_array_equal(np.array([10, 20, 40, 50])[data.test_labels], test)

    np.savez(tmp_path / "a.npz", x=x, labels=train, test=x, test_labels=test.astype(str))
    with pytest.raises(ValueError, match="train labels are int64, test labels <U"):
        load("array", dir=str(tmp_path / "a.npz"))


def test_a_class_that_a_subset_lacks_keeps_its_place(tmp_path: Path) -> None:
    labels = np.array(["a"] * 50 + ["b"] * 49 + ["c"])
    np.savez(tmp_path / "a.npz", x=np.arange(100.0)[:, None], labels=labels)
    data = load("array", dir=str(tmp_path / "a.npz"), num_train=10, num_test=10)
    assert data.train_labels is not None
    assert data.train_labels.max() == 1
    assert (data.class_names, data.num_classes) == (("a", "b", "c"), 3)


# --- hostile files --------------------------------------------------------------------------------


def declaring(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """A .npy file of a few bytes whose header announces a shape."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)


@pytest.mark.parametrize("shape", [(10**12, 10), (10**25, 10), (2**31, 2**31)])
def test_a_huge_declared_shape_is_not_allocated(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(declaring(shape))
    for name in ("array", "table"):
        with pytest.raises(ValueError, match=r"a\.npy: damaged, as it declares the shape \(\d+, "):
            load(name, dir=str(path))


def test_what_is_larger_than_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(1000, 4)))
    monkeypatch.setattr(files, "available_memory", lambda: 16 * 4000 - 1)
    with pytest.raises(ValueError, match=r"a\.npy: needs .*B of memory.*write fewer items"):
        load("array", dir=str(tmp_path / "a.npy"))
    monkeypatch.setattr(files, "available_memory", lambda: 16 * 4000)
    assert load("array", dir=str(tmp_path / "a.npy")).dim == 4


def test_members_that_nothing_reads_stay_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros that inflate to more than the memory there is, and an object."""
    x = np.random.default_rng(0).normal(size=(30, 2))
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=x, bomb=np.zeros(10**6), words=np.array([{}] * 3))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(files, "available_memory", lambda: 10**6)
    data = load("array", dir=str(path))
    np.testing.assert_array_equal(sort_rows(np.concatenate([data.train, data.test])), sort_rows(x))
    np.savez_compressed(path, bomb=np.zeros((10**5, 10)))
    with pytest.raises(ValueError, match=r"'bomb': needs"):
        load("array", dir=str(path))


class Executed(Exception):
    """What unpickling a hostile array would raise."""


class Hostile:
    def __reduce__(self) -> tuple[type[Executed], tuple[()]]:
        return Executed, ()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Hostile()] * 30))
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 2)), labels=np.array([Hostile()] * 30))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Hostile()))
    for name in ("a.npy", "a.npz", "b.npy"):
        with pytest.raises(ValueError, match=r"Python objects|not a readable"):
            load("array", dir=str(tmp_path / name))


@pytest.mark.parametrize("name", ["array", "table", "mnist"])
def test_pipes_are_no_files(tmp_path: Path, name: str) -> None:
    """Opening one would wait for a writer."""
    for file in ("a.npy", "train-images-idx3-ubyte"):
        os.mkfifo(tmp_path / file)
    path = tmp_path if name == "mnist" else tmp_path / "a.npy"
    with pytest.raises(FileNotFoundError):
        load(name, dir=str(path))


def test_every_load_of_the_library_refuses_pickle() -> None:
    root = Path(files.__file__).parents[3]
    for path in [
        p for top in ("src", "experiments", "benchmarks") for p in (root / top).rglob("*.py")
    ]:
        lines = [line for line in path.read_text().splitlines() if "np.load(" in line]
        assert all("allow_pickle=False" in line for line in lines), path
