"""Parameters, step cost and memory of the networks of images, at MNIST's shapes.

A training step of path-space DSM with ten components without its noising, minibatches of 64, in
turn, against the first network. --network chooses some of `NETWORKS`. GFLOP are those that XLA
counts in a forward pass of one image; memory is that of a step's intermediate values in XLA's plan.

    python benchmarks/networks.py --out=runs/benchmarks/networks.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import common
from absl import flags
from network_step import Step

from ndsm_jax import app

BATCH = flags.DEFINE_integer("batch", 64, "Images a step.", lower_bound=1)
CHOSEN = flags.DEFINE_multi_string("network", None, "A name of NETWORKS; several times, or all.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that are timed.", lower_bound=1)

ADM = {"name": "adm", "widths": (32, 64, 64), "head_width": 32}
DIT = {"name": "dit", "width": 256, "depth": 6, "patch": 4}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"name": "unet", "time_features": 128},
    "unet, bfloat16": {"name": "unet", "time_features": 128, "dtype": "bfloat16"},
    "adm": ADM,
    "adm, bfloat16": {**ADM, "dtype": "bfloat16"},
    "adm, remat": {**ADM, "remat": True},
    "dit": DIT,
    "dit, bfloat16": {**DIT, "dtype": "bfloat16"},
    "dit, remat": {**DIT, "remat": True},
    "dit, patch 2": {**DIT, "patch": 2},
}
QUICK: Mapping[str, Mapping[str, Any]] = {
    "dit": {**DIT, "width": 32, "depth": 1},
    "dit, remat": {**DIT, "width": 32, "depth": 1, "remat": True},
}


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    of = QUICK if quick else {name: NETWORKS[name] for name in CHOSEN.value or NETWORKS}
    batch = 4 if quick else BATCH.value
    with ThreadPoolExecutor(2) as pool:  # compiles programs side by side
        steps = dict(zip(of, pool.map(lambda n: Step(n, batch), of.values()), strict=True))
    timings = common.ratios(steps, next(iter(of)), rounds=1 if quick else ROUNDS.value)
    common.report(
        [
            {
                "name": name,
                "parameters": step.parameters,
                "gflop_an_image": step.gflop_an_image,
                "milliseconds": 1e3 * timings[name].seconds,
                "ratio": timings[name].ratio,
                "memory_mb": step.memory_mb,
            }
            for name, step in steps.items()
        ]
    )


if __name__ == "__main__":
    app.run(main)
