"""Data that stay in their files are the data that are read into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ndsm_jax import rows
from ndsm_jax.datasets import Dataset, load, stored
from ndsm_jax.datasets.dataset import hold_out
from ndsm_jax.rows import Stored


def both(name: str, **options: Any) -> tuple[Dataset, Dataset]:
    """In memory, and not."""
    return load(name, in_memory="yes", **options), load(name, in_memory="no", **options)


def assert_same(read: Dataset, left: Dataset) -> None:
    assert (read.is_stored, left.is_stored) == (False, True)
    assert isinstance(left.train, Stored)
    for ours, theirs in ((left.train, read.train), (left.test, read.test)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_array_equal(ours[:], theirs)
    for name in ("train_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(left, name), getattr(read, name))
    for field in dataclasses.fields(Dataset):
        if field.name not in ("train", "test", "train_labels", "test_labels"):
            assert getattr(left, field.name) == getattr(read, field.name)
    assert left.digest == read.digest


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 600)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["float64", ">f4", "float16", "uint8", "uint16", "bool"])
@pytest.mark.parametrize("shape", [(60, 3), (60, 4, 5), (60, 3, 6, 6)])
def test_npy(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    read, left = both("array", dir=str(tmp_path / "x.npy"), num_train=30, seed=4)
    assert_same(read, left)
    held = [hold_out(data, 12, seed=1) for data in (read, left)]
    assert isinstance(held[1][0].train, Stored)
    np.testing.assert_array_equal(held[1][0].train[:], held[0][0].train)
    np.testing.assert_array_equal(held[1][1].x[:], held[0][1].x)


@pytest.mark.usefixtures("small_blocks")
def test_npz_that_is_not_compressed_with_labels_and_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(70, 3)),
        "labels": np.array(["b", "a"] * 35)[:, None],
        "test": rng.normal(size=(15, 3)),
        "test_labels": np.array(["a"] * 15)[:, None],
    }
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    read, left = both("array", dir=str(tmp_path / "x.npz"), num_train=20)
    assert_same(read, left)
    assert left.class_names == ("a", "b")


OWN = """
import numpy as np
from ndsm_jax.datasets import Samples
from ndsm_jax.rows import Stored

class Squares:
    shape, dtype = (100, 2), np.dtype("float64")

    def __getitem__(self, rows):
        return np.stack([rows, rows**2], axis=1).astype(float)

def source():
    return Stored.of(Squares())

def labelled():
    return Samples(Stored.of(Squares()), np.arange(100) % 4)

def mapped(file="x.npy"):
    return {"x": np.load(file, mmap_mode="r", allow_pickle=False)}
"""


@pytest.mark.parametrize("function", ["source", "labelled", "mapped"])
def test_what_a_function_of_ones_own_leaves_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    assert_same(*both(f"own.py:{function}"))


def test_what_is_small_is_in_memory_and_what_is_not_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(100, 4)))  # 3,200 bytes, and as states
    for free, stays in ((1e6, False), (12_900, False), (12_700, True), (1_000, True)):
        monkeypatch.setattr(stored, "available_memory", lambda free=free: free)
        assert load("array", dir=str(path)).is_stored == stays
    with pytest.raises(ValueError, match=r"data\.in_memory='maybe': choose one of auto, yes, no"):
        load("array", dir=str(path), in_memory="maybe")


@pytest.mark.parametrize("how", ["compressed", "Fortran"])
def test_rows_that_cannot_be_read_one_by_one(tmp_path: Path, how: str) -> None:
    path, x = tmp_path / "x.npz", np.random.default_rng(0).normal(size=(30, 4))
    if how == "compressed":
        np.savez_compressed(path, x=x)
    else:
        path = path.with_suffix(".npy")
        np.save(path, np.asfortranarray(x))
    load("array", dir=str(path))
    with pytest.raises(ValueError, match=rf"x.*{how}.*numpy\.ascontiguousarray"):
        load("array", dir=str(path), in_memory="no")
    np.save(tmp_path / "again.npy", np.ascontiguousarray(x))  # the remedy
    assert_same(*both("array", dir=str(tmp_path / "again.npy")))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"NaN or Inf in 2 of 500 rows, first in row 481"),
        (1e151, r"values of 1e\+150 or more in 2 of 500 rows, first in row 481"),
    ],
)
def test_a_bad_value_in_a_late_block_is_named_with_its_row(
    tmp_path: Path, value: float, message: str
) -> None:
    x = np.random.default_rng(0).normal(size=(500, 3))
    x[[481, 490], 1] = value
    np.save(tmp_path / "x.npy", x)
    for how in ("yes", "no"):
        with pytest.raises(ValueError, match=message):
            load("array", dir=str(tmp_path / "x.npy"), in_memory=how)


def test_equal_rows_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((50, 3)))
    with pytest.raises(ValueError, match="all 50 samples are equal"):
        load("array", dir=str(tmp_path / "x.npy"), in_memory="no")


@pytest.mark.parametrize("fault", ["gone", "shorter", "changed", "replaced"])
def test_a_file_that_changes_is_one_error(tmp_path: Path, fault: str) -> None:
    path, x = tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 3))
    np.save(path, x)
    data = load("array", dir=str(path), in_memory="no")
    before = path.stat()
    if fault == "gone":
        path.unlink()
    elif fault == "shorter":
        os.truncate(path, 200)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        target = path if fault == "changed" else tmp_path / "other.npy"
        np.save(target, x + 1)
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        target.replace(path)
    with pytest.raises(OSError, match=r"x\.npy: .*(cannot be read any more|was changed).*again"):
        data.train[:]


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    np.savez(tmp_path / "x.npz", x=x, test=x)
    data = load("array", dir=str(tmp_path / "x.npz"), in_memory="no")
    text = b"(20, 3)" + x.tobytes() + b"(20, 3)" + x.tobytes() + b"NoneNone"
    assert data.digest == hashlib.sha256(text).hexdigest()


def test_a_part_of_the_data_is_read_for_what_takes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PART", 1000)
    labels = np.arange(3000) % 5
    np.savez(tmp_path / "x.npz", x=labels[:, None] + np.zeros((1, 2)), labels=labels)
    read, left = both("array", dir=str(tmp_path / "x.npz"))
    assert read.in_part(0) is read
    seen = left.in_part(0)
    assert not seen.is_stored
    assert (seen.train.shape, seen.test.shape) == ((1000, 2), (600, 2))
    np.testing.assert_array_equal(seen.train[:, 0], seen.train_labels)
