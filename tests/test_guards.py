"""Guards against boxes and counts that are computed by hand."""

import numpy as np
import pytest

from ndsm_jax import guards


def test_samples_need_room(monkeypatch):
    monkeypatch.setattr(guards, "available_memory", lambda: 102_400.0)
    guards.check_room(1000, 6)  # 96,000 bytes in four copies
    with pytest.raises(ValueError, match=r"1,100 samples need .* in parts: a smaller --num"):
        guards.check_room(1100, 4, 2)


def test_samples_are_counted_by_the_range_of_each_feature():
    data = np.array([[0.0, 1e6, 7.0], [2.0, 3e6, 7.0], [1.0, np.nan, 7.0]])
    box = guards.box(data)
    assert box == {"low": [0.0, 1e6, 7.0], "high": [2.0, 3e6, 7.0]}
    x = np.array(
        [
            [11.0, 12e6, 7.0 + 9e6],  # on the edge; the third feature has the longest range
            [11.1, 2e6, 7.0],
            [-9.1, 2e6, 7.0],
            [1.0, -8.1e6, 7.0],
            [1.0, 2e6, 7.0 + 11e6],
            [np.nan, 2e6, 7.0],
            [1.0, np.inf, 7.0],
        ]
    )
    assert guards.astray(x, box) == (2, 4)
    assert guards.astray(x, None) == (2, 0)


def test_many_features_have_one_range():
    x = np.arange(130.0).reshape(2, 65)
    assert guards.box(x) == {"low": [0.0], "high": [129.0]}
    assert guards.astray(np.full((3, 65), 1e4), guards.box(x)) == (0, 3)


def test_pixels_have_one_range_as_some_hardly_ever_vary():
    x = np.array([[0.0, 0.0], [1.0, 1e-3], [0.5, 0.0]])
    assert guards.astray(np.array([[0.5, 0.4]]), guards.box(x)) == (0, 1)
    assert guards.astray(np.array([[0.5, 0.4]]), guards.box(x, same_units=True)) == (0, 0)


def test_constant_data_say_nothing_of_samples():
    box = guards.box(np.ones((4, 2)))
    assert guards.astray(np.array([[1e9, 0.0], [np.nan, 0.0]]), box) == (1, 0)


def test_few_are_said_and_more_than_a_tenth_are_an_error(caplog):
    box = {"low": [0.0], "high": [1.0]}
    x = np.zeros((100, 1))
    with caplog.at_level("WARNING", logger="ndsm_jax"):
        guards.check_samples(x, box)
        assert caplog.text == ""
        x[:4], x[4:10] = np.nan, 1e3
        guards.check_samples(x, box)
    assert "of 100 samples 4 are not finite and 6 are more than 10 times" in caplog.text
    x[10] = np.inf
    with pytest.raises(FloatingPointError, match=r"100 samples 5 are not .* and 6 .*--steps"):
        guards.check_samples(x, box)
