"""Training on data that stay in their file beside the same data in memory (Linux).

Speed: the same training in turn on an array, on the file, and on the file after the system was
asked to forget what it holds of it. Memory: a run in a process of its own; the peak of its resident
memory above that before the data.

    python benchmarks/stored_data.py --out=runs/benchmarks/stored_data.json
"""

from __future__ import annotations

import functools
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
    },
    "unet, 32 x 32 x 3 uint8": {
        "item": (32, 32, 3),
        "dtype": "uint8",
        "network": {"name": "unet", "widths": (16, 32), "time_features": 32},
        "steps": 20,
    },
}
FILES = ((1e9, "yes"), (1e9, "no"), (4e9, "no"))
"""Bytes of a file, and data.in_memory: what is loaded into memory takes several times its size."""

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
    """Steps a second, and the time of a step over that in memory, the median over rounds."""
    steps = SETTINGS[setting]["steps"]
    configs = {how: config_of(path, setting, how, steps) for how in ("yes", "no")}
    data = {how: load_data(config) for how, config in configs.items()}
    _, experiment = fitted(configs["no"], data["no"])

    def trained(how: str, cold: bool = False) -> Any:
        if cold:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        state = train_as_configured(configs[how], experiment, data[how], None, progress=False)
        return state.step

    timings = common.ratios(
        {
            "in memory": functools.partial(trained, "yes"),
            "in the file": functools.partial(trained, "no"),
            "in the file, forgotten": functools.partial(trained, "no", cold=True),
        },
        "in memory",
        rounds=ROUNDS,
    )
    return [
        {
            "name": f"{setting}, {name}",
            "file_mb": pathlib.Path(path).stat().st_size / 1e6,
            "steps_per_second": steps / timing.seconds,
            "ratio": timing.ratio,
        }
        for name, timing in timings.items()
    ]


def main(argv: Sequence[str]) -> None:
    if FILE.value is not None:
        assert SETTING.value is not None
        print(json.dumps(memory(FILE.value, SETTING.value, IN_MEMORY.value)))
        return
    rows = []
    files = tuple((QUICK, how) for _, how in FILES[:2]) if common.QUICK.value else FILES
    for setting in SETTINGS:
        for size, how in files:
            with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
                path = pathlib.Path(folder) / "x.npy"
                write(path, setting, size)
                if (size, how) == files[0]:
                    rows += speeds(str(path), setting)
                    print(*rows[-3:], sep="\n", file=sys.stderr)
                command = [sys.executable, __file__, f"--file={path}", f"--setting={setting}"]
                done = subprocess.run(
                    [*command, f"--in_memory={how}"], check=True, capture_output=True, text=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"name": f"{setting}, in memory: {how}", **found})
                print(rows[-1], file=sys.stderr)
    columns = ("name", "file_mb", "steps_per_second", "ratio", "peak_mb", "seconds")
    common.report(rows, columns)


if __name__ == "__main__":
    app.run(main)
