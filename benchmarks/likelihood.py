"""Log densities of a trained model beside the exact ones, by every method, and what they cost.

python benchmarks/likelihood.py --quick
python benchmarks/likelihood.py --out=runs/benchmarks/likelihood.json
python benchmarks/likelihood.py --workdir=runs/torsion

The data are the torsion angles of configs/torsion.py, whose density is known. Without a trained run
in --workdir one is trained there first. Of --num held-out items: `log_p`, the mean; `error`, the
mean excess over the exact density, with its standard error `se`, and `rms`, that of single items;
`steps_rms`, `steps_max` and `steps_mean`, the difference to 320 steps with the exact divergence (of
bounds, to 1600 steps, in the mean); `seconds` for all items, compiled.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from common import QUICK, SEED, report

from ndsm_jax import app, training
from ndsm_jax.config import Config
from ndsm_jax.datasets.boltzmann import TorsionModel
from ndsm_jax.launch import launch, load_data, restore
from ndsm_jax.likelihood import Bound, Flow, LogProb, Method
from ndsm_jax.runs import has_checkpoints

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the model.")
NUM = flags.DEFINE_integer("num", 500, "Held-out items; 40 with --quick.", lower_bound=10)

MODEL: dict[str, dict[str, Any]] = {
    "data": {"name": "torsion"},
    "mixture": {"num_components": 8},
    "network": {"width": 64, "depth": 4, "time_features": 16},
    "train": {"steps": 5000, "picture_every": 0, "tensorboard": False},
}
"""That of configs/torsion.py."""

FLOW, BOUND = Flow(probes=0), Bound(paths=4)
METHODS: dict[str, tuple[Method, int | None]] = {
    **{f"flow, {steps} steps": (FLOW, steps) for steps in (10, 20, 40, 80)},
    **{f"flow, tolerance {tol:g}": (Flow(probes=0, tolerance=tol), None) for tol in (1e-4, 1e-6)},
    **{f"flow, 40 steps, {n} probes": (Flow(probes=n), 40) for n in (2, 8, 32)},
    **{f"bound, {steps} steps": (BOUND, steps) for steps in (100, 200, 400)},
    "bound of 16 paths, 200 steps": (Bound(paths=2, importance=16), 200),
}
"""Name -> method, and steps of its grid."""


def main(argv: Sequence[str]) -> None:
    quick = QUICK.value
    folder = pathlib.Path(
        WORKDIR.value or "runs/benchmarks/likelihood" + ("_quick" if quick else "")
    )
    if not has_checkpoints(folder):
        shorter = {"train": MODEL["train"] | {"steps": 100}} if quick else {}
        config = Config.from_dict(MODEL | shorter)
        launch(config, load_data(config), folder)
    run = restore(folder)
    x = load_data(run.config).test
    x = np.random.default_rng(SEED.value).permutation(x)[: 40 if quick else NUM.value]
    exact = TorsionModel().log_density(x)

    def by(method: Method, steps: int | None) -> LogProb:
        return training.log_prob(
            run.experiment, run.state, x, method=method, steps=steps, chunk=len(x), progress=False
        )

    fine_flow = by(FLOW, 320).value
    fine_bound = None if quick else by(BOUND, 1600).value
    prior = training.prior_log_prob(run.experiment, x).value
    rows = [row("prior", prior, exact)]
    for name, (method, steps) in METHODS.items():
        by(method, steps)
        start = time.perf_counter()
        value = by(method, steps).value
        seconds = time.perf_counter() - start
        rows.append(row(name, value, exact) | {"seconds": seconds})
        if isinstance(method, Flow):
            lost = value - fine_flow
            rows[-1] |= {"steps_rms": np.sqrt(np.mean(lost**2)), "steps_max": np.abs(lost).max()}
        elif fine_bound is not None:
            rows[-1]["steps_mean"] = np.mean(value - fine_bound)
    columns = ["log_p", "error", "se", "rms", "steps_rms", "steps_max", "steps_mean", "seconds"]
    report(rows, ["name", *columns])


def row(name: str, value: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    error = value - exact
    return {
        "name": name,
        "log_p": value.mean(),
        "error": error.mean(),
        "se": error.std(ddof=1) / len(error) ** 0.5,
        "rms": np.sqrt(np.mean(error**2)),
    }


if __name__ == "__main__":
    app.run(main)
