"""Tables: columns of numbers and words from a CSV file, an array or a data frame, and back."""

from __future__ import annotations

import csv
import itertools
import math
import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ndsm_jax.checks import shown
from ndsm_jax.columns import KINDS, TRANSFORMS, Column, Level
from ndsm_jax.datasets.dataset import Options, Raw, Samples, did_you_mean
from ndsm_jax.datasets.files import read_npy

MISSING = ("", "?", "#N/A", "<NA>", "N/A", "n/a", "NA", "NaN", "nan", "None", "null", "NULL")
"""Cells of a file that stand for none."""

SEPARATORS = ("\t", ";", "|", ",")

MAX_LEVELS = 100
"""Of a categorical column."""

MAX_DECIMALS = 6
"""Of numbers that count as rounded."""

DROP = "drop"

LONG = 200
"""Characters of a cell from which its column is kept as objects."""

_CODE = re.compile(r"[-+]?0\d")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+")

HEADERS = ("auto", "yes", "no")


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of numbers, levels and missing cells, and what the columns are.

    Attributes:
      columns: D of them.
      x: [N, D] float64: numbers, positions in `Column.levels`, NaN for missing cells.
    """

    columns: tuple[Column, ...]
    x: np.ndarray


def read(
    data: Any, *, columns: Mapping[str, str] | str = "", header: str = "auto", key: str = "data.dir"
) -> Table:
    """A table from a file, an array [N, D], or a data frame of pandas.

    Kinds of columns: words, truth values and pandas' categories are categorical, whole numbers are
    integer, other numbers numeric. `columns` says otherwise for some.

    Args:
      data: the path of a text file with separators (tab, semicolon, bar or comma: the first by
        which all of its first rows have equally many cells), or of a .npy file; an array of
        numbers, words or both; or a data frame.
      columns: by the names of columns, which are column_1, ... where there are none: a kind of
        `KINDS`, a transform of `TRANSFORMS`, both with a + between, or drop. As a mapping, or as
        text, name=word with commas between.
      header: whether the first row of a file is that of the names; auto: unless one of its cells is
        a number.
      key: what `data` is called in messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unreadable file, rows of different lengths (with the line), a name that stands
        twice, an empty column, an infinite value, words where numbers should be, or a categorical
        column of more than `MAX_LEVELS` levels.
    """
    named = _cells(data, header, key)
    wanted = _wanted(columns, [name for name, _ in named])
    kept = [(name, cells) for name, cells in named if wanted.get(name) != DROP]
    if not kept:
        raise ValueError(f"{key}: the table has no column left")
    found = tuple(_column(name, cells, wanted.get(name, "")) for name, cells in kept)
    x = [_encoded(column, cells) for column, (_, cells) in zip(found, kept, strict=True)]
    return Table(columns=found, x=np.stack(x, axis=1))


def encode(columns: Sequence[Column], data: Any, *, header: str = "auto") -> np.ndarray:
    """Other data of the same columns, as `read` takes them, as a matrix [n, D] like `Table.x`.

    Columns are found by their names, or by their places where the data have none.

    Raises:
      ValueError: a column that is not there, or a value that its column cannot have.
    """
    named = _cells(data, header, "data")
    places = _located(columns, [name for name, _ in named])
    parts = [_encoded(c, named[place][1]) for c, place in zip(columns, places, strict=True)]
    return np.stack(parts, axis=1)


def filled(columns: Sequence[Column], data: Any, x: np.ndarray) -> Any:
    """A copy of data as `encode` takes them, but for files, with gaps filled from a matrix [n, D].

    All else is as it was: cells that are there, columns that are none of `columns`, names, index.

    Raises:
      ValueError: as `encode`.
    """
    named = _cells(data, "auto", "data")
    is_frame = hasattr(data, "iloc")
    out: Any = data.copy() if is_frame else np.array(as_rows(data))
    values = decode(columns, x).values()
    for place, new in zip(_located(columns, [name for name, _ in named]), values, strict=True):
        gaps = np.flatnonzero(named[place][1].missing)
        if len(gaps) and is_frame:
            out.isetitem(place, _with(data.iloc[:, place], gaps, new[gaps]))
        elif len(gaps):
            out[gaps, place] = new[gaps]
    return out


def _with(series: Any, gaps: np.ndarray, values: np.ndarray) -> Any:
    """A column of a data frame with values at some places."""
    made = series.copy()
    made.iloc[gaps] = values.tolist()
    return made


def _located(columns: Sequence[Column], names: Sequence[str]) -> list[int]:
    """Which of the data's columns each of the columns is: by name, or by place without names."""
    found = {name: place for place, name in enumerate(names)}
    unnamed = all(name == _numbered(i) for i, name in enumerate(names))
    if unnamed and not found.keys() >= {c.name for c in columns}:
        if len(names) > len(columns):
            raise ValueError(
                f"the data have {len(names)} columns without names, and {len(columns)} are needed:"
                f" {', '.join(c.name for c in columns[:10])}"
            )
        found = {c.name: place for place, c in enumerate(columns[: len(names)])}
    for column in columns:
        if column.name not in found:
            hint = did_you_mean(column.name, found)
            raise ValueError(f"the data have no column {column.name!r}. {hint}")
    return [found[column.name] for column in columns]


def decode(columns: Sequence[Column], x: np.ndarray) -> dict[str, np.ndarray]:
    """A matrix [n, D] as the values of each column: floats, integers, or levels.

    Integers with missing cells are floats, and so are infinite ones; levels with missing cells are
    objects, None among them.
    """
    return {c.name: _decoded(c, values) for c, values in zip(columns, x.T, strict=True)}


def write(path: str | pathlib.Path, columns: Sequence[Column], x: np.ndarray) -> None:
    """Writes a matrix [n, D] as a CSV file with names and levels; missing cells are empty."""
    cells = [_words(values) for values in decode(columns, x).values()]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(c.name for c in columns)
        writer.writerows(zip(*cells, strict=True))


def table(options: Options) -> Raw:
    """The table in the file `options.dir`, see `read`."""
    made = read(options.dir, columns=options.columns, header=options.header)
    if blank := int(np.isnan(made.x).all(axis=1).sum()):
        warnings.warn(
            f"data.dir: {blank} of {len(made.x)} rows have no cell at all, and count as missing;"
            " leave the empty lines of a spreadsheet out of its file",
            stacklevel=3,
        )
    source = f"table {pathlib.Path(options.dir).name}"
    return Raw(train=Samples(made.x), source=source, columns=made.columns)


# --- cells ---


class _Cells(NamedTuple):
    """Values of a column, of which those that are missing do not count.

    Attributes:
      values: [n], numbers, truth values, or words.
      missing: [n] bool.
      text: whether words may stand for numbers.
      levels: of a category of pandas, in its order.
    """

    values: np.ndarray
    missing: np.ndarray
    text: bool = False
    levels: tuple[Level, ...] = ()

    @property
    def present(self) -> np.ndarray:
        """The values that are not missing."""
        return self.values[~self.missing]

    @property
    def codes(self) -> bool:
        """Whether they are written as numbers are not: 01234."""
        return self.text and any(map(_CODE.match, map(str, self.present)))

    @property
    def numbers(self) -> np.ndarray | None:
        """These as float64, or None where they are no numbers."""
        values = self.present
        if self.text and any("_" in str(value) for value in values):  # which Python would read
            return None
        if self.levels or values.dtype.kind == "b":
            return None
        if values.dtype.kind in "OUT" and not self.text and not all(map(_is_numeric, values)):
            return None
        try:
            return values.astype(np.float64)
        except (ValueError, OverflowError):
            return None


Named = list[tuple[str, _Cells]]


def _is_numeric(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _numbered(i: int) -> str:
    return f"column_{i + 1}"


def _cells(data: Any, header: str, key: str) -> Named:
    """The columns by their names."""
    if isinstance(data, str | pathlib.Path):
        path = pathlib.Path(data).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"{key}={str(data)!r}: no file {path} (a relative path starts from"
                f" {pathlib.Path.cwd()}); a table needs the path of a CSV or .npy file"
            )
        if path.suffix != ".npy":
            return _of_file(path, header)
        data = read_npy(path)
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        names = [str(name) for name in data.columns]
        _check_names(names, "the data frame")
        return [(name, _of_series(data.iloc[:, i])) for i, name in enumerate(names)]
    array = as_rows(data)
    if array.ndim != 2 or not array.size:
        features = (
            f"0 feature(s) (shape={array.shape}) while a minimum of 1 is required; give it some"
        )
        given = features if array.ndim == 2 and len(array) else f"one of shape {array.shape}"
        raise ValueError(f"a table needs an array [N, D] with rows and columns; this is {given}")
    return [(_numbered(i), _of_array(values)) for i, values in enumerate(array.T)]


def as_rows(data: Any) -> np.ndarray:
    """Lists, or an array, as an array; one of objects where lists hold words or truth values.

    By itself NumPy makes words of numbers beside words, and numbers of truth values beside numbers.

    Raises:
      ValueError: what NumPy makes no array of.
    """
    try:
        if isinstance(data, list | tuple):
            objects = np.array(data, object)
            if any(isinstance(cell, str | bool | np.bool_) for cell in objects.flat):
                return objects
        return np.asarray(data)
    except (TypeError, ValueError) as error:  # ragged lists; keys of JAX
        raise ValueError(
            f"a table needs an array [N, D]; this is {shown(data)}, of which NumPy makes none"
        ) from error


def _of_file(path: pathlib.Path, header: str) -> Named:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            said = re.fullmatch(r'"?sep=(.)"?\s*', file.readline())  # as spreadsheets write it
            if said is not None:
                separator = said[1]
            else:
                file.seek(0)
                separator = _separator(file)
                file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
            lines = ((reader.line_num, row) for row in reader)
            rows = [(n, row) for n, row in lines if len(row) > 1 or any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of UTF-8 text ({error})") from error
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    first = [cell.strip() for cell in rows[0][1]]
    has_header = header == "yes" or (header == "auto" and not any(map(_is_number, first)))
    width = len(first)
    for line, row in rows:
        if len(row) != width:
            raise ValueError(
                f"{path}, line {line}: {len(row)} cells, where the first row has {width} (separated"
                f" by {separator!r}); mend the row, or quote cells that hold a separator"
            )
    names = first if has_header else [""] * width
    names = [name or _numbered(i) for i, name in enumerate(names)]
    _check_names(names, str(path))
    body = rows[1:] if has_header else rows
    if not body:
        raise ValueError(f"{path}: the file has names, and no rows")
    columns = zip(*(row for _, row in body), strict=True)
    return [(n, _of_text(c, separator)) for n, c in zip(names, columns, strict=True)]


def _separator(file: Iterable[str]) -> str:
    """Of `SEPARATORS` the first by which the first rows have equally many cells, more than one."""
    lines = list(itertools.islice(file, 200))
    widths = {
        separator: [len(row) for row in csv.reader(lines, delimiter=separator) if row][:100]
        for separator in SEPARATORS
    }
    for separator, found in widths.items():
        if found and found[0] > 1 and len(set(found)) == 1:
            return separator
    return max(reversed(SEPARATORS), key=lambda s: widths[s][0] if widths[s] else 0)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell not in MISSING


def _of_text(cells: Iterable[str], separator: str) -> _Cells:
    words = [cell.strip() for cell in cells]
    # An array of text has the length of its longest cell in every place.
    values = np.array(words, object if max(map(len, words)) > LONG else None)
    missing = np.array([word in MISSING for word in words])
    made = _Cells(values, missing, text=True)
    if separator == "," or values.dtype == object or made.numbers is not None:
        return made
    commas = ["," in word for word in made.present]
    grouped = [bool(_THOUSANDS.fullmatch(word)) for word in made.present[commas]]
    if grouped and all(grouped) and not all(commas):
        raise ValueError(
            f"cells such as {str(made.present[commas][0])!r} have commas before three digits, and"
            " others of their column none: write numbers without thousands separators"
        )
    with_points = made._replace(values=np.char.replace(values, ",", "."))  # decimal commas
    return made if with_points.numbers is None else with_points


def _of_series(series: Any) -> _Cells:
    if getattr(series.dtype, "kind", "O") in "Mm":
        raise ValueError(
            f"column {series.name!r} holds {series.dtype}: make it a number, or leave it out"
        )
    missing = np.asarray(series.isna())
    levels: tuple[Level, ...] = ()
    if hasattr(series, "cat"):
        used = set(series[~missing])
        levels = tuple(_plain(level) for level in series.cat.categories if level in used)
    return _Cells(series.to_numpy(dtype=object), missing, levels=levels)


def _of_array(values: np.ndarray) -> _Cells:
    if values.dtype.kind not in "fiubUTO":
        raise ValueError(f"a table cannot hold {values.dtype}: give numbers or words")
    if values.dtype.kind != "O":
        missing = values != values  # NaN
    else:
        try:
            missing = np.array([bool(value is None or value != value) for value in values])
        except (ValueError, TypeError) as error:
            raise ValueError(
                "a cell of a table is one number, word or truth value, or None; one holds more"
            ) from error
    return _Cells(values, missing)


def _check_names(names: Sequence[str], where: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(
                f"{where}: the name {name!r} stands twice, at columns {names.index(name) + 1} and"
                f" {i + 1}; rename one"
            )


# --- what a column is ---


def _wanted(columns: Mapping[str, str] | str, names: Sequence[str]) -> dict[str, str]:
    """Column -> what is said of it, checked."""
    if isinstance(columns, str):
        said = next(csv.reader([columns], skipinitialspace=True), [])  # quotes hold a comma
        parts = [part.rpartition("=") for part in said if part.strip()]
        columns = {name.strip(): word.strip() for name, _, word in parts}
    for name, word in columns.items():
        if name not in names:
            raise ValueError(f"data.columns: no column {name!r}. {did_you_mean(name, names)}")
        known = {*KINDS, *TRANSFORMS, DROP}
        words = word.split("+")
        if not known.issuperset(words) or len(words) > 2 or (len(words) > 1 and DROP in words):
            raise ValueError(
                f"data.columns: {name}={word}: say one of {', '.join(KINDS)}, one of"
                f" {', '.join(TRANSFORMS)}, both with a + between, or {DROP}"
            )
    return dict(columns)


def _said(name: str, word: str) -> str:
    """How the command line says a word of a column."""
    return f'data.columns="{name}"={word}' if "," in name else f"data.columns={name}={word}"


def _column(name: str, cells: _Cells, wanted: str) -> Column:
    """What a column is."""
    words = wanted.split("+")
    kind = next((word for word in words if word in KINDS), "")
    transform = next((word for word in words if word in TRANSFORMS), "auto")
    if cells.missing.all():
        raise ValueError(f"column {name!r} is empty: leave it out ({_said(name, DROP)})")
    numbers, missing = cells.numbers, bool(cells.missing.any())
    if kind == "categorical" or (numbers is None and not kind):
        if transform != "auto":
            raise ValueError(f"data.columns: {name}={wanted}: a category has no transform")
        levels = _levels(name, cells)
        return Column(name=name, kind="categorical", levels=levels, missing=missing)
    if not kind:
        assert numbers is not None
        kind = "integer" if np.all(numbers == np.rint(numbers)) else "numeric"
    column = Column(name=name, kind=kind, transform=transform, missing=missing)
    x = _as_numbers(column, cells)
    decimals = _decimals(x) if kind == "numeric" else None
    return replace(column, low=float(x.min()), high=float(x.max()), decimals=decimals)


def _decimals(x: np.ndarray) -> int | None:
    """The fewest decimals that write numbers exactly, if `MAX_DECIMALS` do."""
    with np.errstate(over="ignore"):  # of numbers that `validate` refuses
        return next((k for k in range(MAX_DECIMALS + 1) if np.array_equal(x.round(k), x)), None)


def _levels(name: str, cells: _Cells) -> tuple[Level, ...]:
    values = cells.present if cells.numbers is None or cells.codes else cells.numbers
    found = set(cells.levels) or set(map(_plain, values.tolist()))
    infinite = [level for level in found if isinstance(level, float) and math.isinf(level)]
    if infinite:
        raise ValueError(
            f"column {name!r} has the value {infinite[0]}, which is not finite; mend it, or leave"
            " the cell empty"
        )
    if len(found) > MAX_LEVELS:
        raise ValueError(
            f"column {name!r} has {len(found)} different values in {len(values)} rows, and a"
            f" category may have {MAX_LEVELS}: leave it out ({_said(name, DROP)}), join its"
            " rare levels, or, where they are meant as numbers, mend those that are none"
        )
    return cells.levels or tuple(sorted(found, key=lambda level: (isinstance(level, str), level)))


def _plain(level: Any) -> Level:
    """A level as JSON knows it; whole numbers without a point."""
    level = level.item() if isinstance(level, np.generic) else level
    if isinstance(level, float) and level.is_integer():
        return int(level)
    return level if isinstance(level, str | bool | int | float) else str(level)


def _encoded(column: Column, cells: _Cells) -> np.ndarray:
    """Values [n] as numbers, or as positions of levels, NaN where they are missing."""
    x = np.full(len(cells.values), np.nan)
    x[~cells.missing] = _as_numbers(column, cells) if column.ordered else _places(column, cells)
    return x


def _as_numbers(column: Column, cells: _Cells) -> np.ndarray:
    said = all(isinstance(value, str) or _is_numeric(value) for value in cells.present)
    numbers = cells._replace(text=True).numbers if said else cells.numbers
    if numbers is None:
        words = list(map(str, cells.present))
        word = next((word for word in words if not _is_number(word)), words[0])
        raise ValueError(
            f"column {column.name!r} is to be {column.kind}, and {word!r:.40} is no number: mend"
            f" it, or make the column a category ({_said(column.name, 'categorical')})"
        )
    fractional = (numbers != np.rint(numbers)) & (column.kind == "integer")
    for problem, bad in (("finite", ~np.isfinite(numbers)), ("a whole number", fractional)):
        if bad.any():
            row = 1 + np.flatnonzero(~cells.missing)[bad.argmax()]
            raise ValueError(
                f"column {column.name!r}, row {row} of the data: {numbers[bad.argmax()]:g} is not"
                f" {problem}; mend it, or leave the cell empty"
            )
    return numbers


def _places(column: Column, cells: _Cells) -> list[int]:
    """The position of each value among the levels."""
    of_words = any(isinstance(level, str | bool) for level in column.levels)
    values = cells.present if of_words or cells.numbers is None else cells.numbers
    as_text = cells.text and of_words  # as a file has them, truth values too
    place = {str(level) if as_text else level: i for i, level in enumerate(column.levels)}
    try:
        return [place[_plain(value)] for value in values]
    except KeyError as error:
        known = ", ".join(map(str, column.levels[:10])) + ", ..." * (len(column.levels) > 10)
        raise ValueError(
            f"column {column.name!r} has no level {error.args[0]!r}; it has {known}"
        ) from None


def _decoded(column: Column, x: np.ndarray) -> np.ndarray:
    finite = np.isfinite(x)
    if column.ordered:
        whole = column.kind == "integer" and finite.all() and np.abs(x).max(initial=0) < 2**63
        return x.astype(np.int64) if whole else x.copy()
    # Of words beside numbers NumPy would make words.
    mixed = len({isinstance(v, str) + 2 * isinstance(v, bool) for v in column.levels}) > 1
    levels = np.array(column.levels, object if mixed else None)
    found = levels[np.where(finite, x, 0).astype(int)]
    if finite.all():
        return found
    found = found.astype(object)
    found[~finite] = None
    return found


def _words(values: np.ndarray) -> list[Any]:
    """Cells of a file: what is missing is empty, whole numbers have no point."""
    return ["" if v is None or v != v else _short(v) for v in values.tolist()]


def _short(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value == round(value):
        return int(value) if abs(value) < 2**53 else value
    return value
