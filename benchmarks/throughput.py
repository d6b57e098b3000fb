"""Images a second of training and sampling, by precision, and what share of the device's peak.

MNIST shapes, the U-Net of 2405.15625, A.3, path-space DSM with ten components; minibatches of 64,
as published, and of a size that fills a large device. A training step has its share of the noising.
Model FLOPs are those that XLA counts in a forward pass, three times for a training step, over the
peak of the device's matrix units for that precision where it is known (`PEAKS`; --peak_tflops).

    python benchmarks/throughput.py --out=runs/benchmarks/throughput.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from step_cost import BATCH, SHAPE, configured, synthetic_mixture

from ndsm_jax import app, training
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.frames import Identity
from ndsm_jax.networks import ScoreModel

PEAK = flags.DEFINE_float("peak_tflops", None, "Of the device, in every precision.", lower_bound=0)

PEAKS: Mapping[str, Mapping[str, float]] = {
    "H200": {"float32": 494.7, "bfloat16": 989.4},
    "H100": {"float32": 494.7, "bfloat16": 989.4},
    "A100": {"float32": 156.0, "bfloat16": 312.0},
}
"""Dense TFLOP/s by the makers' data sheets (SXM); float32 in TF32, as XLA multiplies by default."""

WIDE_BATCH, SAMPLES = 1024, 4096


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    batches, samples = ((8,), 8) if quick else ((BATCH, WIDE_BATCH), SAMPLES)
    rows = []
    for dtype in ("float32", "bfloat16"):
        rows += [_training(dtype, batch, rounds=1 if quick else 5) for batch in batches]
        rows.append(_sampling(dtype, samples, steps=8 if quick else 40))
    common.report(rows)


def _timed(dtype: str, batch: int, steps: int = 40) -> common.Timed:
    config = configured(
        {
            "network": {"dtype": dtype},
            "train": {"batch_size": batch},
            "sample": {"steps": steps},
        }
    )
    reference = synthetic_mixture(int(np.prod(SHAPE)), "spherical", 0)
    built = build(config, SHAPE, Parts(frame=Identity(), reference=reference), quiet=True)
    data = reference.sample(jax.random.key(0), (batch,))
    return common.Timed(built, data, config)


def _training(dtype: str, batch: int, *, rounds: int) -> dict[str, Any]:
    one = _timed(dtype, batch)
    jax.block_until_ready(one.noised)
    jax.block_until_ready(one.gradient(one.ahead))
    timings = common.ratios(
        {"noise": one.noise, "step": lambda: one.gradient(one.ahead)},
        "step",
        rounds=rounds,
        warm=True,
    )
    seconds = sum(timing.seconds for timing in timings.values()) / one.ahead
    return _row(
        f"training, {dtype}, minibatch {batch}",
        dtype,
        images=batch / seconds,
        flops=3 * _forward_flops(one, batch) / batch,
        milliseconds=1e3 * seconds,
        noising_ms=1e3 * timings["noise"].seconds / one.ahead,
    )


def _sampling(dtype: str, num: int, *, steps: int) -> dict[str, Any]:
    one = _timed(dtype, BATCH if num >= BATCH else num, steps)
    steps = len(one.experiment.sample_grid) - 1

    def draw() -> Any:
        return training.draw(one.experiment, one.state, num, chunk=num, progress=False)

    seconds = common.ratios({"draw": draw}, "draw", rounds=1)["draw"].seconds
    return _row(
        f"sampling, {dtype}, {steps} steps",
        dtype,
        images=num / seconds,
        flops=steps * _forward_flops(one, num) / num,
        milliseconds=1e3 * seconds,
        noising_ms=None,
    )


def _forward_flops(one: common.Timed, num: int) -> float:
    """Those of the scores of `num` states."""

    def scores(model: ScoreModel, *args: Any) -> jax.Array:
        return model(*args)

    y = jax.ShapeDtypeStruct((num, one.experiment.process.dim), jnp.float32)
    t = jax.ShapeDtypeStruct((num,), jnp.float32)
    # Before it is compiled: a GPU's program calls libraries, whose work is not counted.
    cost: Any = jax.jit(scores).lower(one.experiment.model, one.state.params, y, t).cost_analysis()
    return float(cost["flops"])


def _row(
    name: str,
    dtype: str,
    *,
    images: float,
    flops: float,
    milliseconds: float,
    noising_ms: float | None,
) -> dict[str, Any]:
    kind = jax.devices()[0].device_kind
    known = next((peaks[dtype] for name, peaks in PEAKS.items() if name in kind), None)
    peak = PEAK.value or known
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "name": name,
        "images_per_second": images,
        "milliseconds": milliseconds,
        "noising_ms": noising_ms,
        "gflop_an_image": flops / 1e9,
        "tflops": images * flops / 1e12,
        "share_of_peak": None if peak is None else images * flops / 1e12 / peak,
        "peak_memory_mb": memory.get("peak_bytes_in_use", 0) / 2**20 or None,
    }


if __name__ == "__main__":
    app.run(main)
