"""Training on data that stay in their file beside the same data in memory (Linux).

Speed: the same training in turn on an array, on the file, and on the file after the system was
asked to forget what it holds of it. Memory: a run in a process of its own; the peak of its resident
memory above that before the data.

    python benchmarks/stored_data.py --out=runs/benchmarks/stored_data.json
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
from absl import flags

from ndsm_jax import app
from ndsm_jax.config import Config
from ndsm_jax.launch import fitted, foreseen, launch, load_data, train_as_configured
from ndsm_jax.runs import Run, read_metrics

FILE = flags.DEFINE_string("file", None, "Measure memory on this file here, and print it as JSON.")
SETTING = flags.DEFINE_string("setting", None, "Which one, with --file.")
IN_MEMORY = flags.DEFINE_string("in_memory", "no", "As data.in_memory, with --file.")
FOLDER = flags.DEFINE_string("folder", None, "For the files; a temporary one by default.")

SETTINGS: dict[str, dict[str, Any]] = {
    "mlp, 784 float32": {
        "item": (784,),
        "dtype": "float32",
        "network": {"name": "mlp", "width": 256, "depth": 3},
        "steps": 200,
        "files": ((5e8, ("yes", "no")), (4e9, ("no",))),
    },
    "unet, 32 x 32 x 3 uint8": {
        "item": (32, 32, 3),
        "dtype": "uint8",
        "network": {"name": "unet", "widths": (16, 32), "time_features": 32},
        "steps": 20,
        "files": ((2e8, ("yes", "no")),),
    },
}
"""Where "files" are bytes of a file, and data.in_memory: to load it takes many times its size."""

QUICK = 3e7
ROUNDS, MEMORY_STEPS = 5, 20
BLOCK = 10_000


def write(path: pathlib.Path, setting: str, size: float) -> None:
    """A file of noise about ten centres, of about `size` bytes, on the disk."""
    item, dtype = SETTINGS[setting]["item"], np.dtype(SETTINGS[setting]["dtype"])
    num = max(400, int(size / (np.prod(item) * dtype.itemsize)))
    x = np.lib.format.open_memmap(path, "w+", dtype, (num, *item))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, *item)).astype(np.float32)
    for start in range(0, num, BLOCK):
        rows = x[start : start + BLOCK]
        values = rng.standard_normal(rows.shape, np.float32) / 2 + centres[rng.integers(10)]
        rows[:] = np.clip(128 + 40 * values, 0, 255) if dtype == np.uint8 else values
    x.flush()


def config_of(path: str, setting: str, in_memory: str, steps: int) -> Config:
    return Config.from_dict(
        {
            "data": {"name": "array", "dir": path, "in_memory": in_memory},
            "mixture": {"num_components": 10, "subset": 5000, "num_inits": 1},
            "network": SETTINGS[setting]["network"],
            "noising": {"k": 1},
            "train": {
                "steps": steps,
                "select": "last",
                "picture_every": 0,
                "tensorboard": False,
            },
        }
    )


def resident(name: str) -> float:
    """Bytes, of VmRSS or VmHWM."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def memory(path: str, setting: str, in_memory: str) -> dict[str, float]:
    config = config_of(path, setting, in_memory, MEMORY_STEPS)
    foreseen(Config(), load_data(Config()))  # what is imported and compiled in any case
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = resident("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        launch(config, load_data(config), folder, progress=False)
    return {
        "file_mb": pathlib.Path(path).stat().st_size / 1e6,
        "peak_mb": (resident("VmHWM") - before) / 1e6,
        "seconds": time.perf_counter() - start,
    }


def speeds(path: str, setting: str) -> list[dict[str, Any]]:
    """Steps a second, without what comes before them, and over those in memory: medians of rounds.

    The ways take turns, so that a machine whose speed drifts slows all of them alike.
    """
    steps = SETTINGS[setting]["steps"]
    configs = {how: config_of(path, setting, how, steps) for how in ("yes", "no")}
    data = {how: load_data(config) for how, config in configs.items()}
    _, experiment = fitted(configs["no"], data["no"])
    ways = {"in memory": "yes", "in the file": "no", "in the file, forgotten": "no"}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, how in ways.items():
            if name.endswith("forgotten"):
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with tempfile.TemporaryDirectory() as folder:
                run = Run(
                    folder=pathlib.Path(folder),
                    facts={},
                    log_every=steps,
                    checkpoint_every=steps,
                    tensorboard=False,
                )
                train_as_configured(
                    configs[how], experiment, data[how], None, run=run, progress=False
                )
                rates[name].append(read_metrics(folder)[-1]["steps_per_second"])
    ratios = np.array([rates[name][1:] for name in ways])  # the first round compiles
    return [
        {
            "name": f"{setting}, {name}",
            "file_mb": pathlib.Path(path).stat().st_size / 1e6,
            "steps_per_second": float(np.median(ratios[i])),
            "ratio": float(np.median(ratios[i] / ratios[0])),
        }
        for i, name in enumerate(ways)
    ]


def main(argv: Sequence[str]) -> None:
    if FILE.value is not None:
        assert SETTING.value is not None
        print(json.dumps(memory(FILE.value, SETTING.value, IN_MEMORY.value)))
        return
    rows = []
    quick = common.QUICK.value
    for setting, options in SETTINGS.items():
        for size, ways in ((QUICK, ("yes", "no")),) if quick else options["files"]:
            with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
                path = pathlib.Path(folder) / "x.npy"
                write(path, setting, size)
                if "yes" in ways:
                    rows += speeds(str(path), setting)
                    print(*rows[-3:], sep="\n", file=sys.stderr)
                for how in ways:
                    command = [sys.executable, __file__, f"--file={path}", f"--setting={setting}"]
                    command += [f"--in_memory={how}"]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    rows.append({"name": f"{setting}, in memory: {how}", **found})
                    print(rows[-1], file=sys.stderr)
    columns = ("name", "file_mb", "steps_per_second", "ratio", "peak_mb", "seconds")
    common.report(rows, columns)


if __name__ == "__main__":
    app.run(main)
