"""Arrays as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ndsm_jax.datasets import Samples, load
from ndsm_jax.datasets.forms import usual


def form(x: np.ndarray, labels: np.ndarray | None = None, *, layout: str = "auto") -> Samples:
    return usual(Samples(x, labels), layout=layout, what="my data")


@pytest.mark.parametrize(
    ("item", "first"),
    [
        ((3, 64, 64), True),
        ((1, 28, 28), True),
        ((13, 64, 64), True),  # bands of a satellite
        ((3, 48, 64), True),
        ((1, 4, 4), True),
        ((64, 64, 13), False),
        ((28, 28, 1), False),
        ((48, 64, 3), False),
        ((8, 8, 16), False),
    ],
)
def test_the_shape_tells_the_channels(item: tuple[int, ...], first: bool) -> None:
    x = np.random.default_rng(0).normal(size=(5, *item))
    expected = np.transpose(x, (0, 2, 3, 1)) if first else x
    np.testing.assert_array_equal(form(x).x, expected)


@pytest.mark.parametrize("item", [(3, 3, 3), (4, 6, 3), (13, 4, 4), (4, 4, 8), (10, 12, 7)])
def test_what_the_shape_does_not_tell_is_asked(item: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, *item))
    with pytest.raises(ValueError, match=r"my data: shape \(30, .*data\.layout=channels_first or"):
        form(x)
    np.testing.assert_array_equal(form(x, layout="channels_last").x, x)
    np.savez(tmp_path / "a.npz", x=x, test=x)
    data = load("array", dir=str(tmp_path / "a.npz"), layout="channels_first")
    assert data.shape == (*item[1:], item[0])
    np.testing.assert_array_equal(data.train, np.transpose(x, (0, 2, 3, 1)).reshape(30, -1))


def test_a_layout_of_what_has_none() -> None:
    with pytest.raises(ValueError, match=r"no channels; leave data\.layout=channels_last out"):
        form(np.zeros((20, 2)), layout="channels_last")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, np.int8, bool])
def test_whole_numbers_are_numbers(kind: type) -> None:
    x: np.ndarray = np.random.default_rng(0).integers(0, 2, (20, 3)).astype(kind)
    found = form(x).x
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, x)


def test_pixels_and_floats_stay() -> None:
    for kind in (np.uint8, np.float32, np.float64):
        assert form(np.zeros((20, 3, 4), kind)).x.dtype == kind
    assert form(np.zeros((20, 3), np.float32)).x.dtype == np.float32


def test_rows_of_uint8_are_data_in_their_units(tmp_path: Path) -> None:
    """As int16 of the same numbers; a frame finds their scale, and images have the known one."""
    x = np.random.default_rng(0).integers(0, 256, (40, 4)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x[:25], test=x[25:])
    np.savez(tmp_path / "b.npz", x=x[:25].astype(np.int16), test=x[25:].astype(np.int16))
    np.savez(tmp_path / "c.npz", x=x[:25].reshape(25, 2, 2), test=x[25:].reshape(15, 2, 2))
    rows, others, images = (load("array", dir=str(tmp_path / f"{n}.npz")) for n in "abc")
    np.testing.assert_array_equal(rows.train, x[:25])
    assert rows.digest == others.digest
    assert rows.value_range is None
    assert images.value_range == (-1, 1)
    np.testing.assert_allclose(images.train, x[:25] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        np.array([3_000_000_000, -7, 12]),
        np.array([490_000_000, 1, 12]),
        np.array(["cat", "dog", "eel"]),
        np.array([b"cat", b"dog", b"eel"]),
        np.array([0.0, 1.0, 5.0]),
        np.array([False, True, False]),
    ],
)
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_are_classes(tmp_path: Path, given: np.ndarray, shape: tuple[int, ...]) -> None:
    """Row i holds the value i."""
    labels = given[np.arange(60) % 3]
    np.savez(tmp_path / "a.npz", x=np.arange(60.0)[:, None], labels=labels.reshape(shape))
    data = load("array", dir=str(tmp_path / "a.npz"))
    _, classes = np.unique(labels, return_inverse=True)
    np.testing.assert_array_equal(data.train_labels, classes[data.train[:, 0].astype(int)])
    assert data.num_classes == len(np.unique(given))


@pytest.mark.parametrize("labels", [np.arange(20) / 2, np.full(20, np.nan), np.full(20, 1e30)])
def test_labels_that_are_no_classes_stay_as_they_are(labels: np.ndarray) -> None:
    found = form(np.zeros((20, 2)), labels).labels
    assert found is not None
    assert found.dtype == np.float64
