"""Tables from text, arrays and data frames: what columns are, cells there and back, and errors."""

from __future__ import annotations

import pathlib
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ndsm_jax.datasets import files, load, tables
from ndsm_jax.datasets.tables import Table, decode, encode, read, write


def table_of(tmp_path: pathlib.Path, text: str, name: str = "t.csv", **options: Any) -> Table:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, **options)


def kinds(table: Table) -> dict[str, str]:
    return {column.name: column.kind for column in table.columns}


WEATHER = """day,rain,wind,sky,frost,site
1,0.5,12,clear,yes,7.0
2,,3,"cloudy, grey",no,8.0
3,NA,8,clear,yes,7.0
4,1.25,NaN,,no,9.0
5,1e-3,?,clear,no,9.0
"""


def test_what_columns_are(tmp_path):
    table = table_of(tmp_path, WEATHER)
    assert kinds(table) == {
        "day": "integer",
        "rain": "numeric",
        "wind": "integer",
        "sky": "categorical",
        "frost": "categorical",
        "site": "integer",
    }
    sky, rain = table.columns[3], table.columns[1]
    assert sky.levels == ("clear", "cloudy, grey")
    assert [c.missing for c in table.columns] == [False, True, True, True, False, False]
    assert (rain.low, rain.high, rain.decimals) == (1e-3, 1.25, 3)
    nan = np.nan
    expected = [
        [1, 0.5, 12, 0, 1, 7],
        [2, nan, 3, 1, 0, 8],
        [3, nan, 8, 0, 1, 7],
        [4, 1.25, nan, nan, 0, 9],
        [5, 1e-3, nan, 0, 0, 9],
    ]
    np.testing.assert_array_equal(table.x, expected)


@pytest.mark.parametrize(
    "text",
    [
        "a;b;c\n1,5;x;-2\n2,25;y;3\n",  # decimal commas
        "a\tb\tc\n1.5\tx\t-2\n2.25\ty\t3\n",
        "a|b|c\r\n1.5|x|-2\r\n2.25|y|3\r\n",
        "\ufeffa,b,c\n1.5,x,-2\n\n2.25,y,3",  # a byte order mark, an empty line, no last newline
        'a, b, "c"\n 1.5, "x",-2 \n2.25 , y,"3"\n',
        "a,b,c\n1.5,x,-2\n   \n2.25,y,3\n",
    ],
)
def test_separators_and_marks(tmp_path, text):
    table = table_of(tmp_path, text)
    assert kinds(table) == {"a": "numeric", "b": "categorical", "c": "integer"}
    np.testing.assert_array_equal(table.x, [[1.5, 0, -2], [2.25, 1, 3]])


def test_names_or_none(tmp_path):
    numbers = "1,2.5\n3,4.5\n"
    assert kinds(table_of(tmp_path, numbers)) == {"column_1": "integer", "column_2": "numeric"}
    years = table_of(tmp_path, "2001,2002\n3,4.5\n", header="yes")
    assert kinds(years) == {"2001": "integer", "2002": "numeric"}
    words = "x,y\nu,v\n"
    assert len(table_of(tmp_path, words).x) == 1
    assert len(table_of(tmp_path, words, header="no").x) == 2
    assert list(kinds(table_of(tmp_path, ",a\n0,1.5\n1,2.5\n"))) == ["column_1", "a"]
    assert table_of(tmp_path, "one\n1.5\n2.5\n").x.shape == (2, 1)


def test_lines_within_cells(tmp_path):
    table = table_of(tmp_path, 'a,b\n"two\nlines",1\n"say ""so""",2\n')
    assert table.columns[0].levels == ('say "so"', "two\nlines")


def test_what_is_said_of_columns(tmp_path):
    words = "day=drop, wind=numeric+quantile,site = categorical,rain=standardised"
    table = table_of(tmp_path, WEATHER, columns=words)
    assert kinds(table) == {
        "rain": "numeric",
        "wind": "numeric",
        "sky": "categorical",
        "frost": "categorical",
        "site": "categorical",
    }
    assert [c.transform for c in table.columns] == ["standardised", "quantile", *["auto"] * 3]
    assert table.columns[4].levels == (7, 8, 9)
    np.testing.assert_array_equal(table.x[:, 4], [0, 1, 0, 2, 2])
    same = table_of(tmp_path, WEATHER, columns={"day": "drop", "site": "categorical"})
    assert same.columns[-1] == table.columns[-1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n3\n", {}, "line 3: 1 cells, where the first row has 2"),
        ('a,b\n1,"x\ny"\n3,4,5\n', {}, "line 4: 3 cells"),
        ("a,b,a\n1,2,3\n", {}, "'a' stands twice, at columns 1 and 3"),
        ("a,b\n1,\n2,NA\n", {}, r"column 'b' is empty: leave it out \(data.columns=b=drop\)"),
        ("a,b\n", {}, "has names, and no rows"),
        ("", {}, "the file is empty"),
        ("a\n" + "".join(f"w{i}\n" for i in range(101)), {}, "101 different values in 101 rows"),
        ("a,b\n1,inf\n2,3\n", {}, "column 'b', row 1 of the data: inf is not finite"),
        ("a,b\n1,x\n2,3\n", {"columns": "b=numeric"}, "'b' is to be numeric, and 'x' is no number"),
        ("a,b\n1,2\n2,3.5\n", {"columns": "b=integer"}, "row 2 of the data: 3.5 is not a whole"),
        ("a,b\n1,2\n", {"columns": "c=drop"}, "no column 'c'"),
        ("a,b\n1,2\n", {"columns": "b=word"}, "b=word: say one of numeric, integer, categorical"),
        ("a,b\n1,2\n", {"columns": "b=drop+integer"}, "b=drop.integer: say one of"),
        ("a,b\n1,x\n", {"columns": "b=quantile"}, "b=quantile: a category has no transform"),
        ("a,b\n1,x\n", {"columns": "a=drop,b=drop"}, "no column left"),
        (b"a,b\n\xff\xfe,1\n", {}, "not a table of UTF-8 text"),
    ],
)
def test_errors_say_where_and_what_to_do(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        table_of(tmp_path, text, **options)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"data\.dir='absent\.csv': no file absent\.csv"):
        read("absent.csv")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([[1.5], [np.nan]]), "numeric"),
        (np.array([[1], [2]]), "integer"),
        (np.array([[True], [False]]), "categorical"),
        (np.array([["1"], ["2"]]), "categorical"),  # words of an array are words
        (np.array([[1], [None], [2.0]], object), "integer"),
        (np.array([[1], ["x"], [None]], object), "categorical"),
    ],
)
def test_arrays(array, kind, tmp_path):
    table = read(array)
    assert kinds(table) == {"column_1": kind}
    np.testing.assert_array_equal(encode(table.columns, array), table.x)
    if array.dtype != object:
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(read(tmp_path / "a.npy").x, table.x)


def test_lists_keep_numbers_beside_words():
    """NumPy by itself makes words of all cells, and numbers of truth values."""
    table = read([[1.5, "a", True], [float("nan"), "b", False], [2.5, None, True]])
    assert kinds(table) == {
        "column_1": "numeric",
        "column_2": "categorical",
        "column_3": "categorical",
    }
    nan = np.nan
    np.testing.assert_array_equal(table.x, [[1.5, 0, 1], [nan, 1, 0], [2.5, nan, 1]])
    np.testing.assert_array_equal(encode(table.columns, [[2.5, "a", True]]), [[2.5, 0, 1]])
    assert kinds(read([[1, 2.5], [2, 3.5]])) == {"column_1": "integer", "column_2": "numeric"}


def test_words_are_numbers_where_it_is_said():
    words = np.array([["1.5", "a"], ["2.5", "b"]])
    assert kinds(read(words))["column_1"] == "categorical"
    table = read(words, columns={"column_1": "numeric"})
    np.testing.assert_array_equal(table.x[:, 0], [1.5, 2.5])
    with pytest.raises(ValueError, match="'a' is no number"):
        read(words, columns={"column_2": "numeric"})


def test_words_and_numbers_in_one_column():
    cells = np.array([[1], ["x"], [2], [None]], object)
    table = read(cells)
    assert table.columns[0].levels == (1, 2, "x")
    assert decode(table.columns, table.x)["column_1"].tolist() == [1, "x", 2, None]
    with pytest.raises(ValueError, match="'column_1' has the value inf, which is not finite"):
        read(np.array([[1], ["x"], [np.inf]], object))


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((0, 2)), np.zeros((3, 1), "M8[D]")])
def test_arrays_that_are_no_tables(array):
    with pytest.raises(ValueError, match=r"a table (needs|cannot)"):
        read(array)


class Series:
    """As much of pandas' as a table needs."""

    def __init__(self, values: list[Any], name: str, categories: list[Any] | None = None) -> None:
        self.values, self.name = np.array(values, object), name
        self.dtype = type("dtype", (), {"kind": "O"})()
        if categories is not None:
            self.cat = type("cat", (), {"categories": categories})()

    def __getitem__(self, mask: np.ndarray) -> np.ndarray:
        return self.values[mask]

    def isna(self) -> np.ndarray:
        return np.array([v is None for v in self.values])

    def to_numpy(self, dtype: Any) -> np.ndarray:
        return self.values.astype(dtype)


class DataFrame:
    def __init__(self, *series: Series) -> None:
        self.columns = [one.name for one in series]
        get = type("iloc", (), {"__getitem__": lambda _, at: series[at[1]]})
        self.iloc = get()


def test_data_frames():
    """pandas is no dependency: the stand-in has what is used of it."""
    frame = DataFrame(
        Series([1, None, 3], "n"),
        Series(["b", "a", None], "c", ["b", "a", "unused"]),
        Series([True, False, None], "t"),
    )
    table = read(frame)
    assert kinds(table) == {"n": "integer", "c": "categorical", "t": "categorical"}
    assert [c.levels for c in table.columns] == [(), ("b", "a"), (False, True)]
    nan = np.nan
    np.testing.assert_array_equal(table.x, [[1, 0, 1], [nan, 1, 0], [3, nan, nan]])
    turned = DataFrame(Series([True], "t"), Series([2], "n"), Series(["a"], "c"))
    np.testing.assert_array_equal(encode(table.columns, turned), [[2, 1, 1]])
    with pytest.raises(ValueError, match="the data have no column 'c'"):
        encode(table.columns, DataFrame(Series([1], "n")))
    other = DataFrame(Series([1], "n"), Series(["z"], "c"), Series([True], "t"))
    with pytest.raises(ValueError, match="column 'c' has no level 'z'; it has b, a"):
        encode(table.columns, other)


def test_cells_there_and_back(tmp_path):
    table = table_of(tmp_path, WEATHER)
    values = decode(table.columns, table.x)
    assert values["day"].dtype == np.int64
    assert values["wind"].dtype == np.float64  # with missing cells
    assert values["sky"].tolist() == ["clear", "cloudy, grey", "clear", None, "clear"]
    write(tmp_path / "again.csv", table.columns, table.x)
    again = read(tmp_path / "again.csv")
    assert again.columns == table.columns
    np.testing.assert_array_equal(again.x, table.x)
    np.testing.assert_array_equal(encode(table.columns, tmp_path / "again.csv"), table.x)


WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=5
)
NUMBERS = st.floats(
    allow_nan=False, allow_infinity=False, width=64, min_value=-1e12, max_value=1e12
)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | NUMBERS,
            st.none() | st.integers(-(10**9), 10**9),
            st.none() | WORDS.filter(lambda w: w not in tables.MISSING),
        ),
        min_size=3,
        max_size=20,
    )
)
def test_any_cells_there_and_back(rows, tmp_path):
    """Written by Python's csv module, read, and written again: nothing changes but white space."""
    import csv

    kept = [(1.5, 1, "word"), *rows]
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("number", "whole", "words"), *kept])
    table = read(tmp_path / "t.csv", columns="words=categorical,number=numeric")
    found = decode(table.columns, table.x)
    for name, expected in zip(("number", "whole", "words"), zip(*kept, strict=True), strict=True):
        for cell, value in zip(found[name].tolist(), expected, strict=True):
            assert (
                (value is None and (cell is None or cell != cell))
                or str(cell) == str(value)
                or cell == value
            )
    write(tmp_path / "u.csv", table.columns, table.x)
    again = read(tmp_path / "u.csv", columns="words=categorical,number=numeric")
    assert again.columns == table.columns
    np.testing.assert_array_equal(again.x, table.x)


def test_a_table_as_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        f"{v:.3f},{'' if v > 1 else int(10 * v)},{'ab'[int(v > 0)]}" for v in rng.normal(size=100)
    ]
    path = tmp_path / "t.csv"
    path.write_text("x,k,w\n" + "\n".join(lines) + "\n")
    data = load("table", dir=str(path), columns="k=numeric", test_fraction=0.3)
    assert (data.shape, len(data.train), len(data.test)) == ((3,), 70, 30)
    assert [c.kind for c in data.columns] == ["numeric", "numeric", "categorical"]
    assert np.isnan(data.train[:, 1]).any()
    assert (data.train_labels, data.value_range, data.source) == (None, None, "table t.csv")
    whole = np.concatenate([data.train, data.test])
    np.testing.assert_array_equal(np.sort(whole[:, 0]), np.sort(read(path).x[:, 0]))
    # The digest knows levels, which are not in the numbers.
    path.write_text(re.sub(",a\n", ",c\n", path.read_text()))
    assert (
        load("table", dir=str(path), columns="k=numeric", test_fraction=0.3).digest != data.digest
    )
    path.write_text("x,w\n" + "1.5,a\n2.5,b\n")
    with pytest.raises(ValueError, match="2 samples; at least 10 are needed"):
        load("table", dir=str(path))


def test_a_table_of_a_function(tmp_path):
    """Of the user's own: it may return what `read` makes."""
    path = tmp_path / "own.py"
    path.write_text(
        "import numpy as np\nfrom ndsm_jax.datasets import tables\n"
        "def rows():\n    return tables.read(np.array([[i * 0.5, i % 2] for i in range(40)]))\n"
    )
    data = load(f"{path}:rows")
    assert [c.kind for c in data.columns] == ["numeric", "integer"]
    assert len(data.train) == 30


# --- what spreadsheets write ----------------------------------------------------------------------


def written(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_codes_that_are_declared_a_category_keep_their_zeros(tmp_path):
    path = written(tmp_path, "zip,x\n" + "01234,1\n1234,2\n001,3\n" * 4)
    found = tables.read(path, columns="zip=categorical")
    assert found.columns[0].levels == ("001", "01234", "1234")
    again = tables.encode(found.columns, [["01234", 1.0], ["1234", 2.0]])
    np.testing.assert_array_equal(again[:, 0], [1, 2])
    assert tables.read(path).columns[0].kind == "integer"  # undeclared they are numbers


def test_underscores_are_no_part_of_a_number(tmp_path):
    found = tables.read(written(tmp_path, "k,x\n" + "1_0,1\n10,2\n" * 5))
    assert found.columns[0].levels == ("10", "1_0")


def test_thousands_separators_are_refused_and_decimal_commas_read(tmp_path):
    path = written(tmp_path, "a\tb\n" + "999\t1\n1,234\t2\n12,500\t3\n" * 4)
    with pytest.raises(ValueError, match=r"'1,234' have commas .* without thousands separators"):
        tables.read(path)
    for cells in ("1,5", "1,234"):  # all of a column have them, or not of three digits
        found = tables.read(written(tmp_path, "a\tb\n" + f"{cells}\t1\n2,250\t2\n" * 5))
        np.testing.assert_allclose(found.x[:2, 0], [float(cells.replace(",", ".")), 2.25])


def test_empty_lines_and_the_separator_of_a_spreadsheet_are_told(tmp_path):
    path = written(tmp_path, "sep=;\na;b\n" + "1;2\n3;5\n;\n" * 20)
    with pytest.warns(UserWarning, match="20 of 60 rows have no cell at all"):
        found = load("table", dir=str(path))
    assert [column.name for column in found.columns] == ["a", "b"]


def test_names_with_commas_can_be_said(tmp_path):
    path = written(tmp_path, '"income, net",a=b\n' + "1,2\n3,4\n" * 5)
    found = tables.read(path, columns='"income, net"=drop,a=b=categorical')
    assert [(c.name, c.kind) for c in found.columns] == [("a=b", "categorical")]


def test_long_cells_take_their_own_memory_alone(tmp_path):
    rows = "".join(f"{i},w\n" for i in range(3000))
    path = written(tmp_path, "x,note\n" + rows + f"1,{'y' * 60_000}\n")
    tracemalloc.start()
    found = tables.read(path, columns="note=categorical")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.columns[1].levels == ("w", "y" * 60_000)
    assert peak < 30e6  # 3,001 x 60,000 x 4 bytes are 720 MB


def test_truth_values_come_back_from_a_file(tmp_path):
    found = tables.read([[True, 1.5], [False, 2.0]] * 6)
    path = tmp_path / "out.csv"
    tables.write(path, found.columns, found.x)
    np.testing.assert_array_equal(tables.encode(found.columns, path), found.x)


def test_categories_of_pandas_have_as_many_levels_as_others():
    pandas = pytest.importorskip("pandas")
    many = pandas.Categorical([f"w{i}" for i in range(300)])
    with pytest.raises(ValueError, match="300 different values"):
        tables.read(pandas.DataFrame({"w": many, "x": np.arange(300.0)}))


def test_members_of_an_archive_are_looked_for_without_reading_them(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 2)))
    members = files._Members(tmp_path / "x.npz", "yes")
    monkeypatch.setattr(files.zipfile, "ZipFile", None)
    assert "x" in members
    assert "labels" not in members


def test_remedies_for_names_with_commas_can_be_pasted(tmp_path):
    path = written(tmp_path, '"income, net",b\n' + ",2\n,4\n" * 5)
    with pytest.raises(ValueError, match=r'leave it out \(data\.columns="income, net"=drop\)'):
        tables.read(path)
    tables.read(path, columns='"income, net"=drop')
