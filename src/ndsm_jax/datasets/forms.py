"""A user's own arrays, as people have them, in the one form that `validate` knows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ndsm_jax.datasets.dataset import Samples
from ndsm_jax.rows import Stored, each

MAX_CHANNELS = 4
"""Of pictures: grey, colour, with transparency."""


def usual(samples: Samples, *, layout: str, what: str) -> Samples:
    """Items with channels last, their numbers as uint8 or floats; labels as integers or strings.

    Whole numbers and truth values become float64, and a frame finds their scale, but for pictures
    of 8 bits: rows [N, d] are none, nor is what is 0 to 65535. Labels may also be [N, 1], bytes,
    truth values, and whole numbers that are written as floats.

    Raises:
      ValueError: images [N, a, b, c] whose channels `layout` = auto cannot tell, or the layout of
        items that have none.
    """
    x, labels = samples
    x = _channels_last(x if isinstance(x, Stored) else np.asarray(x), layout, what)
    if x.dtype.kind in "iub" and (x.dtype != np.uint8 or x.ndim == 2):
        x = each(partial(np.asarray, dtype=np.float64), x)
    return Samples(x, None if labels is None else _classes(labels))


def _channels_last(x: Any, layout: str, what: str) -> Any:
    """Items [N, H, W, C] of [N, a, b, c]; others as they are."""
    if x.ndim != 4:
        if layout != "auto":
            raise ValueError(
                f"{what}: shape {x.shape} has no channels; leave data.layout={layout} out."
            )
        return x
    if layout == "auto":
        layout = _layout(x.shape[1:])
    if not layout:
        raise ValueError(
            f"{what}: shape {x.shape}: are the channels first, or last? Say"
            " data.layout=channels_first or data.layout=channels_last."
        )
    if layout == "channels_last":
        return x
    return each(partial(np.moveaxis, source=1, destination=-1), x)


def _layout(item: tuple[int, ...]) -> str:
    """What an item [a, b, c] can only be, or '' where it may be both.

    Pictures have few channels, and often two equal sides. Each of these two signs speaks for one
    layout, or, where it is there for both or for none, is silent; those that speak must agree.
    """
    first, middle, last = item
    signs = [
        {"channels_first": first <= MAX_CHANNELS, "channels_last": last <= MAX_CHANNELS},
        {"channels_first": middle == last, "channels_last": first == middle},
    ]
    said = {max(sign, key=sign.__getitem__) for sign in signs if sum(sign.values()) == 1}
    return said.pop() if len(said) == 1 else ""


def _classes(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "backslashreplace")
    if labels.dtype.kind == "b":
        return labels.astype(np.int8)
    if labels.dtype.kind == "f" and np.all(np.abs(labels) < 2**53) and np.all(labels % 1 == 0):
        return labels.astype(np.int64)
    return labels
