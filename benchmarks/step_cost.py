"""What a training step costs by objective, noising included, relative to DSM on a linear process.

MNIST shapes: d = 784, ten components, the default U-Net (two of its four levels in the quick
form), minibatches of 64. A step is its share of the minibatches noised ahead, the gradient step,
and, for NDSM-CV, a twentieth of the forward-mode pass that updates eps(t). DSM and path-space DSM
run one and the same gradient step. `ndsm_as_published`: 2,000 steps in the whole space inside each
step, and a twentieth of the per-sample gradients by `vmap`.

    python benchmarks/step_cost.py --out=runs/benchmarks/step_cost.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import common
import jax
from noising_cost import synthetic_mixture

from ndsm_jax import app, references
from ndsm_jax.config import PAPER, Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.control_variates import exact_products
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Identity
from ndsm_jax.noising import NoisedBatch
from ndsm_jax.objectives import ndsm_terms

SHAPE, BATCH, PERIOD = (28, 28, 1), 64, 20
EXPERIMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "dsm": {"objective": {"name": "dsm"}, "process": {"name": "ornstein_uhlenbeck"}},
    "path_dsm": {"objective": {"name": "path_dsm"}},
    "ndsm": {"objective": {"name": "ndsm"}},
    "ndsm_cv": {"objective": {"name": "ndsm_cv"}},
    "published": {
        "objective": {"name": "ndsm_cv"},
        "process": {"horizon": 2.0},
        "noising": PAPER["noising"] | {"steps": 2000, "simulation": "full", "ahead_mb": 1e-6},
        "sample": PAPER["sample"] | {"steps": 2000},
    },
}


def configured(changes: dict[str, dict[str, Any]]) -> Config:
    """Of MNIST's shapes."""
    tree = {name: dict(section) for name, section in changes.items()}
    tree["noising"] = {"k": 1} | tree.get("noising", {})
    # Compilation is most of the quick form's time, and the coarse levels are most of that.
    widths = (32, 64) if common.QUICK.value else (32, 64, 128, 256)
    network = {"name": "unet", "widths": widths, "time_features": 128}
    tree["network"] = network | tree.get("network", {})
    tree["control_variate"] = {"period": PERIOD}
    tree["train"] = {"batch_size": BATCH} | tree.get("train", {})
    return Config.from_dict(tree)


def timed(changes: dict[str, dict[str, Any]]) -> common.Timed:
    """The functions that are timed, compiled as far as noising goes.

    On a synthetic mixture: time does not depend on the data.
    """
    config = configured(changes)
    reference = references.standard_normal(784)
    if config.process.name == "langevin":
        reference = synthetic_mixture(784, "spherical", 0)
    built = build(config, SHAPE, Parts(frame=Identity(), reference=reference))
    data = reference.sample(jax.random.key(0), (BATCH,))
    one = common.Timed(built, data, config, ahead=8)
    jax.block_until_ready(one.noised)
    return one


def per_sample_gradients(one: common.Timed, samples: int) -> Callable[[], Any]:
    """Gradients of `samples` losses and control variates, one by one, by `vmap`."""
    batch = jax.tree.map(lambda a: a[0, :samples], one.noised)

    @jax.jit
    def products(experiment: Experiment, params: Any, batch: NoisedBatch) -> Any:
        terms = lambda p, b: ndsm_terms(experiment.model.bind(p), b)  # noqa: E731
        return exact_products(terms, params, batch, chunk=samples)

    return lambda: products(one.experiment, one.state.params, batch)


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    samples = 4 if quick else 16
    with ThreadPoolExecutor() as pool:  # compiles programs side by side
        steps = dict(zip(EXPERIMENTS, pool.map(timed, EXPERIMENTS.values()), strict=True))
    per_sample = per_sample_gradients(steps["published"], samples)
    calls = {f"noise {name}": step.noise for name, step in steps.items()}
    # The gradient of NDSM is that of NDSM-CV with eps = 0: the quick form compiles one of them.
    plain = ("ndsm_cv", "dsm") if quick else ("ndsm_cv", "ndsm", "dsm")
    for name in plain:
        calls[f"plain {name}"] = partial(steps[name].gradient, 1)
    calls["due ndsm_cv"] = partial(steps["ndsm_cv"].gradient, 1, step=PERIOD - 1)
    calls["per sample"] = per_sample
    with ThreadPoolExecutor() as pool:
        first = [calls[f"plain {name}"] for name in plain] + [per_sample]
        list(pool.map(lambda call: jax.block_until_ready(call()), first))
    timings = common.ratios(calls, "plain dsm", rounds=1 if quick else 9, warm=True)
    seconds = {name: timing.seconds for name, timing in timings.items()}
    noise = {name: seconds[f"noise {name}"] / step.ahead for name, step in steps.items()}

    def amortised(extra: float) -> float:
        return seconds["plain ndsm_cv"] + extra / PERIOD

    parts = {
        "dsm": (noise["dsm"], seconds["plain dsm"]),
        "path_dsm": (noise["path_dsm"], seconds["plain dsm"]),
        "ndsm": (noise["ndsm"], seconds.get("plain ndsm", seconds["plain ndsm_cv"])),
        "ndsm_cv": (
            noise["ndsm_cv"],
            amortised(seconds["due ndsm_cv"] - seconds["plain ndsm_cv"]),
        ),
        "ndsm_as_published": (
            noise["published"],
            amortised(seconds["per sample"] * BATCH / samples),
        ),
    }
    base = sum(parts["dsm"])
    rows = [
        {
            "name": name,
            "ratio": (noising + step) / base,
            "milliseconds": 1e3 * (noising + step),
            "noising_ms": 1e3 * noising,
            "images_per_second": BATCH / (noising + step),
        }
        for name, (noising, step) in parts.items()
    ]
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
