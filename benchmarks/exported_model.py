"""What an exported model costs to load and to run, beside the run that it is of.

python experiments/export.py --workdir=runs/digits --out=digits.zip
python benchmarks/exported_model.py --file=digits.zip --workdir=runs/digits
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, flags

import ndsm_jax
from ndsm_jax import exported

FILE = flags.DEFINE_string("file", None, "Of experiments/export.py.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of its run.", required=True)
NUM = flags.DEFINE_integer("num", 500, "Samples in a batch.", lower_bound=1)
POINTS = flags.DEFINE_integer("points", 100, "Densities in a batch.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 10, "Of each timing, of which the median counts.")


def seconds(*functions: Callable[[], Any]) -> list[float]:
    """The median time of each, measured in turn, so that other work slows all alike."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS.value):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) for taken in times]


def once(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the time that it took."""
    start = time.perf_counter()
    found = function()
    return found, time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    path, index = pathlib.Path(FILE.value), range(NUM.value)
    (programs, _), loading = once(lambda: exported.load(path))
    _, first = once(lambda: programs["sample"](0, index))
    model = ndsm_jax.load(WORKDIR.value)
    x = model.sample(POINTS.value, seed=1)
    rows = [("sample", lambda: programs["sample"](0, index), lambda: model.sample(NUM.value))]
    if "log_prob" in programs:
        rows.append(("log_prob", lambda: programs["log_prob"](x, 0), lambda: model.log_prob(x)))
    print(f"size {path.stat().st_size / 1e6:.2f} MB")
    print(f"load {loading:.2f} s, first batch with its compilation {first:.1f} s")
    print("| program | file, s | library, s | ratio of speeds |\n| --- | --- | --- | --- |")
    for name, of_file, of_library in rows:
        file, library = seconds(of_file, of_library)
        print(f"| {name} | {file:.3f} | {library:.3f} | {library / file:.2f} |")


if __name__ == "__main__":
    app.run(main)
