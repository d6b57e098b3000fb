"""Data files that are damaged, or hold something else."""

import gzip
import io
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
from PIL import Image

from ndsm_jax import datasets
from tests.fuzz.trial import examples, judge

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 2))


def saved(function: Callable[..., Any], *arrays: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    function(file, *arrays, **named)
    return file.getvalue()


def picture(mode: str = "L", suffix: str = "png") -> bytes:
    return saved(lambda f: Image.new(mode, (8, 8), 3).save(f, suffix))


NPY = saved(np.save, POINTS)
NPZ = saved(np.savez, x=POINTS, labels=np.arange(40) % 2)
CSV = "\n".join(["a,b,c", *(f"{x:.3f},{y:.3f},{'uv'[i % 2]}" for i, (x, y) in enumerate(POINTS))])
IDX = b"\0\0\x08\x03" + np.array([40, 28, 28], ">u4").tobytes() + bytes(40 * 784)

FILES: dict[str, tuple[str, bytes]] = {
    "array .npy": ("data.npy", NPY),
    "array .npz": ("data.npz", NPZ),
    "table": ("data.csv", CSV.encode()),
    "folder": ("a/0.png", picture()),
    "mnist": ("train-images-idx3-ubyte.gz", gzip.compress(IDX)),
}

ARRAYS: list[Any] = [
    np.zeros((40, 0)), np.zeros(0), np.zeros((0, 2)), np.zeros(()), np.zeros((40, 2, 2, 2, 2)),
    np.full((40, 2), np.nan), np.full((40, 2), np.inf), np.full((40, 2), 1e300), POINTS + 1j,
    np.array([["a", "b"]] * 40), np.zeros((40, 2), bool), np.zeros((40, 2), "datetime64[s]"),
    np.zeros(40, [("x", float), ("y", int)]), np.zeros((40, 2), "V4"), np.zeros((40, 2)),
    np.repeat(POINTS[:1], 40, axis=0), POINTS[:3], np.zeros((40, 8, 8, 5), np.uint8),
    POINTS.astype(np.float16), POINTS.astype(np.longdouble), np.arange(80, dtype=np.uint64) * 2**57,
    np.array([object()] * 40), np.array([[None, 1.0]] * 40, object),
]  # fmt: skip
LABELS: list[Any] = [
    np.zeros(39), np.full(40, np.nan), np.arange(40) * 10**9, np.arange(40), np.zeros((40, 3)),
    np.array(["a"] * 40), np.array([None] * 40), np.zeros(40, complex), -np.arange(40),
    np.zeros(()),
]  # fmt: skip


def load(name: str, file: str, content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        of_file = name in ("array", "table")
        data = datasets.load(name, dir=str(path if of_file else folder))
        return None if data.columns else (data.train, data.test)


@st.composite
def damages(draw: Any) -> tuple[str, bytes]:
    """A kind of file, and its content with bytes changed, cut out, or put in."""
    kind = draw(st.sampled_from(sorted(FILES)))
    content = bytearray(FILES[kind][1])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.one_of(st.integers(0, 200), st.integers(0, max(0, len(content) - 1))))
        what = draw(st.sampled_from(["change", "cut", "end", "put in"]))
        if what == "change":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == "cut":
            del content[place : place + draw(st.integers(1, 64))]
        elif what == "end":
            del content[place:]
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=32))
    return kind, bytes(content)


@hypothesis.given(damages())
@examples(short=25, long=400)
def test_damaged_files_are_refused_or_read_as_they_are(damage):
    kind, content = damage
    judge(
        "data files",
        f"{kind}: {content[:60]!r}",
        lambda: load(kind.split()[0], FILES[kind][0], content),
    )


cells = st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=6))


@hypothesis.given(st.lists(st.lists(cells, max_size=4).map(",".join), max_size=30).map("\n".join))
@examples(short=15, long=200)
def test_any_text_is_a_table_or_refused(text):
    content = text.encode("utf-8", "surrogatepass")
    judge("tables", f"{text[:60]!r}", lambda: load("table", "data.csv", content), finite=False)


def test_arrays_of_other_shapes_types_and_values():
    for number, array in enumerate(ARRAYS):
        content = saved(np.save, array, allow_pickle=True)
        judge("data arrays", f"array {number}", lambda c=content: load("array", "data.npy", c))
    for number, labels in enumerate(LABELS):
        content = saved(np.savez, x=POINTS, labels=labels)
        judge("data arrays", f"labels {number}", lambda c=content: load("array", "data.npz", c))
