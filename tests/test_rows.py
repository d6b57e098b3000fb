"""Rows that are read when they are asked for, against arrays; moments and extents in blocks."""

import numpy as np
import pytest

from ndsm_jax import frames, rows
from ndsm_jax.rows import Rows, Stored, blocks, each, extent, moments, part, read


class Counting:
    """An array whose reads are noted."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.asked = array, array.shape, array.dtype, []

    def __getitem__(self, numbers):
        assert (np.diff(numbers) >= 0).all()  # in the order of the file
        self.asked.append(len(numbers))
        return self.array[numbers]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 1000)


def test_rows_are_those_of_an_array(rng):
    x = rng.normal(size=(50, 3))
    stored = Stored.of(Counting(x))
    order = rng.permutation(50)
    for ours, theirs in ((stored, x), (stored.take(order).take(order[:20]), x[order][order[:20]])):
        assert isinstance(ours, Rows)
        assert isinstance(theirs, Rows)
        assert (ours.shape, ours.ndim, ours.dtype, len(ours)) == (
            theirs.shape,
            2,
            np.float64,
            len(theirs),
        )
        some = rng.integers(-5, 20, size=(4, 6))  # some twice, some from the end
        for index in (slice(None), slice(3, 17, 2), slice(-4, None), 5, -1, some, some[0][:0]):
            np.testing.assert_array_equal(ours[index], theirs[index])
        with pytest.raises(IndexError, match="of"):
            ours[np.array([len(theirs)])]


def test_nothing_is_read_before_it_is_asked_for(rng):
    source = Counting(rng.normal(size=(1000, 3)))
    stored = Stored.of(source)
    work = each(lambda x: 2 * x[:, :2], stored.take(np.arange(500)))
    assert (work.shape, max(source.asked)) == ((500, 2), 1)  # the first tells the shape
    assert work[:0].shape == (0, 2)
    np.testing.assert_array_equal(work[10:12], 2 * source.array[10:12, :2])
    assert max(source.asked) == 2


def test_what_takes_all_at_once_is_told_what_to_do():
    stored = Stored.of(Counting(np.zeros((10, 2))))
    for function in (np.asarray, np.mean, np.random.default_rng(0).permutation):
        with pytest.raises(ValueError, match=r"10 items .*data\.in_memory=yes"):
            function(stored)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_moments_and_extent_are_numpys(rng, shared, stored):
    x = rng.normal(size=(777, 5)) * [1, 1e-3, 1e6, 1, 1] + [0, 1e4, 0, -1e8, 3]
    given = Stored.of(Counting(x)) if stored else x
    assert len(list(blocks(given))) > 10
    mean, variance = moments(given, shared=shared)
    exact = np.asarray(x, np.longdouble)
    axis = None if shared else 0
    np.testing.assert_allclose(mean, np.atleast_1d(exact.mean(axis=axis)), rtol=1e-14)
    # Values of 1e8 have their deviation of 1 to 1e-8 of it.
    np.testing.assert_allclose(variance, np.atleast_1d(exact.var(axis=axis)), rtol=1e-7)
    low, high = extent(given)
    np.testing.assert_array_equal(low, x.min(axis=0))
    np.testing.assert_array_equal(high, x.max(axis=0))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("frame", ["standardised", "shared", "angles", "pixels"])
def test_frames_of_stored_data_are_those_of_arrays(rng, frame):
    x = rng.normal(size=(300, 4)).astype(np.float32)
    x[:, 2] = 7
    make = {
        "standardised": frames.standardised,
        "shared": lambda x: frames.standardised(x, shared=True),
        "angles": frames.Angles.of,
        "pixels": lambda x: frames.Pixels(),
    }[frame]
    ours, theirs = make(Stored.of(Counting(x))), make(x)
    for name in ("shift", "scale", "start"):
        assert np.array_equal(getattr(ours, name, 0), getattr(theirs, name, 0))
    prepared = ours.prepare(Stored.of(Counting(x)))
    assert isinstance(prepared, Stored)
    np.testing.assert_array_equal(prepared[:], theirs.prepare(x))
    found = frames.states(ours, Stored.of(Counting(x)), seed=3)
    expected = frames.states(theirs, x, seed=3, by_item=True)
    np.testing.assert_array_equal(found[40:90], expected[40:90])


def test_a_part_is_seeded_and_keeps_the_order(monkeypatch):
    monkeypatch.setattr(rows, "PART", 1200)
    x = np.arange(5000.0)[:, None]
    stored = Stored.of(Counting(x))
    numbers = part(stored, 0)
    assert len(numbers) == len(set(numbers.tolist())) == 1200
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(numbers, part(stored, 0))
    assert not np.array_equal(numbers, part(stored, 1))
    np.testing.assert_array_equal(read(stored, numbers)[:, 0], numbers)
    assert part(x, 0) is None
    assert read(x, None) is x
