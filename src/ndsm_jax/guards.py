"""What is asked of samples: that there is room for them, and that they are near the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndsm_jax.machine import available_memory, in_words
from ndsm_jax.rows import Rows, extent

logger = logging.getLogger(__name__)

BOXES = 10
"""Samples farther from the middle of the data than so many halves of their range are astray."""

SHARE = 0.1
"""Of samples that may be astray."""

WIDTH = 64
"""Features up to which the range of each is recorded; of more, one range for all."""

COPIES = 4
"""Of the samples in memory, at most: the chunks, joined, in the data's units, and as float64."""


def check_room(num: int, *widths: int) -> None:
    """Raises ValueError where `num` samples of these widths together do not fit into memory."""
    need, room = num * sum(widths) * 4 * COPIES, available_memory()
    if need > room:
        raise ValueError(
            f"{num:,} samples need {in_words(need)} of memory, and {in_words(room)} are free; draw"
            " them in parts: a smaller --num (sample.num) each, with another --seed (sample.seed)"
        )


def box(data: Rows, *, same_units: bool = False) -> dict[str, list[float]]:
    """The range of data [n, D] by feature, of JSON types.

    Of all together where there are more than `WIDTH`, or where they have the same units: of pixels
    some hardly ever vary.
    """
    low, high = extent(data)
    if same_units or len(low) > WIDTH:
        low, high = np.fmin.reduce(low, keepdims=True), np.fmax.reduce(high, keepdims=True)
    return {"low": low.astype(float).tolist(), "high": high.astype(float).tolist()}


def astray(x: np.ndarray, data: Mapping[str, Any] | None) -> tuple[int, int]:
    """Numbers of samples [n, D] that are not finite, and that are far from data of a `box`.

    Far is a coordinate more than `BOXES` halves of the feature's range from its middle; of a
    feature that is constant, of the longest range. Without a box none is.
    """
    finite = np.isfinite(x).all(axis=1)
    if data is None:
        return int(np.sum(~finite)), 0
    low, high = (np.asarray(data[name], np.float64) for name in ("low", "high"))
    side = np.where(high > low, high - low, np.max(high - low, initial=0.0))
    near = np.abs(x[finite] - 0.5 * (low + high)) <= np.where(side > 0, 0.5 * BOXES * side, np.inf)
    return int(np.sum(~finite)), int(np.sum(~near.all(axis=1)))


def check_samples(x: np.ndarray, data: Mapping[str, Any] | None) -> None:
    """Says how many samples are astray.

    Raises FloatingPointError where they are more than a share `SHARE` of all.
    """
    broken, far = astray(x, data)
    if not broken + far:
        return
    text = f"of {len(x)} samples {broken} are not finite and {far} are more than"
    text += f" {BOXES} times the data's range away from them"
    if broken + far > SHARE * len(x):
        raise FloatingPointError(f"{text}. {REMEDY}")
    logger.warning("%s: leave them out", text)


REMEDY = (
    "Nothing of use can be made of them: give more steps (--steps, sample.steps) or a noisier"
    " sampler (--sampler=reverse_sde), and if that does not help, train longer or at a lower"
    " optimizer.learning_rate"
)
