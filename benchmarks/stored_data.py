"""Training on data that stay in their file beside the same data in memory (Linux).

A .npy file is written; each way of reading it is measured in a process of its own, in turn: seconds
until the data are loaded and checked, and until the first step (digest, units, fit of the mixture);
training steps a second, the median over the lines of the metrics but the first; and the peak of the
resident memory above that before the data.

    python benchmarks/stored_data.py --out=runs/benchmarks/stored_data.json
"""

from __future__ import annotations

import json
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
from ndsm_jax.launch import foreseen, launch, load_data
from ndsm_jax.runs import read_metrics

FILE = flags.DEFINE_string("file", None, "Measure on this file here, and print it as JSON.")
SETTING = flags.DEFINE_string("setting", None, "Which one, with --file.")
IN_MEMORY = flags.DEFINE_string("in_memory", "no", "As data.in_memory, with --file.")
FOLDER = flags.DEFINE_string("folder", None, "For the files; a temporary one by default.")

SETTINGS: dict[str, dict[str, Any]] = {
    "mlp, 784 float32": {
        "item": (784,),
        "dtype": "float32",
        "network": {"name": "mlp", "width": 256, "depth": 3},
    },
    "unet, 32 x 32 x 3 uint8": {
        "item": (32, 32, 3),
        "dtype": "uint8",
        "network": {"name": "unet", "widths": (16, 32), "time_features": 32},
    },
}
FILES = ((1e9, "yes"), (1e9, "no"), (4e9, "no"))
"""Bytes of a file, and data.in_memory: what is loaded into memory takes several times its size."""

QUICK_FILES = ((3e7, "yes"), (3e7, "no"))
STEPS, QUICK_STEPS = 1000, 40
BLOCK = 10_000


def write(path: pathlib.Path, setting: str, size: float) -> None:
    """A file of noise about ten centres, of about `size` bytes."""
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


def resident(name: str) -> float:
    """Bytes, of VmRSS or VmHWM."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def measured(path: str, setting: str, in_memory: str, steps: int) -> dict[str, float]:
    config = Config.from_dict(
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
                "log_every": steps // 10,
                "checkpoint_every": steps,
            },
        }
    )
    foreseen(Config(), load_data(Config()))  # what is imported and compiled in any case
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = resident("VmRSS"), time.perf_counter()
    dataset = load_data(config)
    loaded = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        launch(config, dataset, folder, progress=False)
        lines = [line for line in read_metrics(folder) if "steps_per_second" in line]
    rates = [line["steps_per_second"] for line in lines][1:]
    total = time.perf_counter() - start
    return {
        "file_mb": pathlib.Path(path).stat().st_size / 1e6,
        "load_s": loaded,
        "before_first_step_s": total - sum(steps / 10 / rate for rate in [rates[0], *rates]),
        "steps_per_second": float(np.median(rates)),
        "peak_mb": (resident("VmHWM") - before) / 1e6,
    }


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    steps = QUICK_STEPS if quick else STEPS
    if FILE.value is not None:
        assert SETTING.value is not None
        print(json.dumps(measured(FILE.value, SETTING.value, IN_MEMORY.value, steps)))
        return
    rows = []
    for setting in SETTINGS:
        for size, in_memory in QUICK_FILES if quick else FILES:
            with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
                path = pathlib.Path(folder) / "x.npy"
                write(path, setting, size)
                command = [sys.executable, __file__, f"--file={path}", f"--setting={setting}"]
                command += [f"--in_memory={in_memory}", *(["--quick"] if quick else [])]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"name": f"{setting}, in memory: {in_memory}", **found})
                print(rows[-1], file=sys.stderr)
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
