"""A user's own data set: what a function named by `path/to/file.py:function` returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ndsm_jax import plugins
from ndsm_jax.datasets.dataset import Raw, Samples
from ndsm_jax.datasets.files import from_arrays
from ndsm_jax.datasets.tables import Table
from ndsm_jax.rows import Stored

_KEYS = ("x", "data", "labels", "y", "test", "test_labels")


def short_name(name: str) -> str:
    """`path/to/file.py:function` as `file.py:function`, which is no name of ours."""
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).name}:{attribute}"


def own(name: str, options: str, seed: int) -> Raw:
    """Call the function with the options as keyword arguments, and bring its result to one form.

    The function returns an array [N, ...], `Samples`, `Raw`, `tables.Table`, or a dict with arrays
    named as in a .npz file (`from_arrays`). It is given `seed` too, if it has a parameter of this
    name and the options do not set it.

    Args:
      name: `path/to/file.py:function`.
      options: `name=value` pairs with commas between them, see `plugins.parse_options`.
      seed: of the data.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file or the function fails, options that do not fit, or another result.
    """
    result = plugins.call("data", name, options, seed=seed)
    path, _, attribute = name.rpartition(":")
    words = plugins.parse_options(options, key="data.options").items()
    call = ", ".join(f"{word}={value!r}" for word, value in words)
    return _to_raw(
        result, where=f"data.name={name!r}", source=f"{attribute}({call}) of {Path(path).name}"
    )


def _to_raw(result: Any, *, where: str, source: str) -> Raw:
    if isinstance(result, Raw):
        return _checked(result, where, source)
    if isinstance(result, Table):
        return Raw(train=Samples(result.x), source=source, columns=result.columns)
    if isinstance(result, Samples):
        return Raw(train=_samples(result, where), source=source)
    if isinstance(result, Mapping):
        present = {key: value for key, value in result.items() if value is not None}
        unknown = [key for key in present if key not in _KEYS]
        if unknown:
            raise ValueError(
                f"{where}: the function returned a dict with {unknown}; its arrays are named "
                f"{', '.join(_KEYS)}."
            )
        arrays = {key: _array(value, where, key) for key, value in present.items()}
        return from_arrays(arrays, where=where, source=source)
    if isinstance(result, np.ndarray | Stored) or hasattr(result, "__array__"):
        return Raw(train=Samples(_array(result, where, "array")), source=source)
    raise ValueError(
        f"{where}: the function returned {_kind(result)}; it must return an array [N, ...], "
        "datasets.Samples(x, labels), datasets.Raw, a datasets.tables.Table, rows.Stored, or a dict"
        " with 'x' and, if there are any, 'labels', 'test' and 'test_labels'."
    )


def _checked(raw: Raw, where: str, source: str) -> Raw:
    train = _samples(raw.train, where)
    test = None if raw.test is None else _samples(raw.test, where)
    if test is not None and test.labels is not None and train.labels is None:
        raise ValueError(f"{where}: the test data have labels, the training data have none.")
    source = f"{raw.source}; {source}" if raw.source else source
    return raw._replace(train=train, test=test, source=source)


def _samples(value: Any, where: str) -> Samples:
    if not isinstance(value, Samples):
        raise ValueError(
            f"{where}: the splits of a Raw are Samples(x, labels), not {_kind(value)}."
        )
    labels = None if value.labels is None else _array(value.labels, where, "labels")
    return Samples(_array(value.x, where, "x"), labels)


def _array(value: Any, where: str, part: str) -> Any:
    """An array or a list as a NumPy array; words that come as objects, as in pandas, as strings.

    Items that are not in memory stay so: `rows.Stored`, and arrays that NumPy maps from a file.
    """
    if isinstance(value, Stored | np.memmap):
        return value
    if not isinstance(value, list) and not hasattr(value, "__array__"):
        raise ValueError(f"{where}: {part} of the function is {_kind(value)}, not an array.")
    try:
        array = np.asarray(value)
    except Exception as error:  # a ragged list, or what another library's array raises
        raise ValueError(
            f"{where}: {part} of the function cannot become a NumPy array "
            f"({type(error).__name__}: {error})."
        ) from error
    if array.dtype == object and all(isinstance(item, str) for item in array.flat):
        return array.astype(str)
    return array


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
