"""What a training needs of memory as `training.memory` foresees it, and its measured peak (Linux).

Each setting is trained for some steps in a process of its own; the peak is that of its resident
memory above what it had when the estimate was made, data loaded. Digits (d = 64), and images of
28 x 28 grey levels of noise (d = 784).

    python benchmarks/memory.py --out=runs/benchmarks/memory.json
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
from absl import flags

from ndsm_jax import app, references
from ndsm_jax.config import Config
from ndsm_jax.config.parts import fit
from ndsm_jax.datasets import Dataset
from ndsm_jax.launch import foreseen, launch, load_data, set_aside

SETTING = flags.DEFINE_string("setting", None, "Measure this one here, and print it as JSON.")

TRAIN = {"select": "last", "picture_every": 0, "tensorboard": False}
FULL = {
    "num_components": 30,
    "covariance": "full",
    "min_covariance": 0.1,
    "num_inits": 1,
    "max_iterations": 3,
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "small mlp": {"train": TRAIN | {"steps": 70}},
    "wide mlp": {"network": {"width": 2048}, "train": TRAIN | {"steps": 3}},
    "large batch": {"train": TRAIN | {"steps": 3, "batch_size": 8192}},
    "wide and large": {
        "network": {"width": 512},
        "train": TRAIN | {"steps": 3, "batch_size": 4096},
    },
    "per-sample gradients": {
        "network": {"width": 1024},
        "objective": {"name": "path_dsm_cv"},
        "control_variate": {"estimator": "exact", "chunk": 32, "period": 1},
        "train": TRAIN | {"steps": 2},
    },
    "unet": {
        "data": {"name": "noise"},
        "network": {"name": "unet", "widths": (32, 64, 128), "time_features": 128},
        "noising": {"k": 1},
        "train": TRAIN | {"steps": 3},
    },
    "unet, batch of 16": {
        "data": {"name": "noise"},
        "network": {"name": "unet", "widths": (32, 64, 128), "time_features": 128},
        "noising": {"k": 1},
        "train": TRAIN | {"steps": 3, "batch_size": 16},
    },
    "fit, spherical": {
        "data": {"name": "noise"},
        "mixture": {"num_components": 50, "num_inits": 1, "solver": "scikit-learn"},
    },
    "fit, full": {"data": {"name": "noise"}, "mixture": FULL | {"solver": "scikit-learn"}},
    "fit by jax, spherical": {
        "data": {"name": "much noise"},
        "mixture": {"num_components": 50, "num_inits": 1, "max_iterations": 3, "solver": "jax"},
    },
    "fit by jax, full": {"data": {"name": "noise"}, "mixture": FULL | {"solver": "jax"}},
}
QUICK = ("small mlp",)


def noise(num: int) -> Dataset:
    x = np.random.default_rng(0).standard_normal((num, 784), np.float32)
    return Dataset(
        name="noise",
        train=x,
        test=x[:100],
        train_labels=None,
        test_labels=None,
        shape=(28, 28, 1),
        value_range=None,
        source="",
    )


def resident(name: str) -> float:
    """Bytes, of VmRSS or VmHWM."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def measured(name: str) -> dict[str, float]:
    """Of one setting, the estimate and the peak, MB."""
    tree = {section: dict(keys) for section, keys in SETTINGS[name].items()}
    num = {"noise": 6000, "much noise": 60_000}.get(tree.get("data", {}).get("name", ""))
    config = Config.from_dict(tree | ({"data": {"name": "digits"}} if num else {}))
    dataset = noise(num) if num else load_data(config)
    rest, _ = set_aside(config, dataset)
    if name.startswith("fit"):
        c = config.mixture
        num, dim = rest.train.shape
        sizes = (num, dim, c.num_components, c.covariance)
        needed = references.fit_bytes(*sizes, solver=c.solver)
        foreseen(Config(), load_data(Config()))  # what is imported and compiled in any case
    else:
        needed = foreseen(config, rest)[2]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    if name.startswith("fit"):
        fit(config, rest)
    else:
        with tempfile.TemporaryDirectory() as folder:
            launch(config, dataset, folder, progress=False)
    return {"needed": needed / 1e6, "peak": (resident("VmHWM") - before) / 1e6}


def main(argv: Sequence[str]) -> None:
    if SETTING.value is not None:
        print(json.dumps(measured(SETTING.value)))
        return
    rows = []
    for name in QUICK if common.QUICK.value else SETTINGS:
        command = [sys.executable, __file__, f"--setting={name}"]
        with tempfile.TemporaryDirectory() as empty:  # to compile is part of what a run needs
            kept = os.environ | {"JAX_COMPILATION_CACHE_DIR": empty}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=kept)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["needed"] / found["peak"]
        rows.append({"name": name, "needed_mb": found["needed"], "peak_mb": found["peak"]})
        rows[-1]["ratio"] = ratio
        print(rows[-1], file=sys.stderr)
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
