"""What noising costs a sample, by dimension: the quotient against the full space.

Ten components, minibatches of 64, 150 steps of the process's clock, path-space targets or NDSM's
local steps; `kernel` is one draw from a linear process's kernel, the floor. Minibatches are noised
ahead as in training. `ratio` is relative to the full space with path-space targets at d = 784.

    python benchmarks/noising_cost.py --out=runs/benchmarks/noising_cost.json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import common
import jax
import numpy as np

from ndsm_jax import app, references
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts
from ndsm_jax.frames import Identity

COMPONENTS, BATCH = 10, 64
DIMS = (64, 784, 3072, 12288)
QUICK_KINDS = ("full", "quotient", "kernel")
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {"objective": {"name": "path_dsm"}, "noising": {"simulation": "full"}},
    "quotient": {"objective": {"name": "path_dsm"}, "noising": {"simulation": "quotient"}},
    "tied": {
        "objective": {"name": "path_dsm"},
        "noising": {"simulation": "quotient"},
        "mixture": {"covariance": "tied_spherical"},
    },
    "low_rank": {
        "objective": {"name": "path_dsm"},
        "noising": {"simulation": "quotient"},
        "mixture": {"covariance": "low_rank", "rank": 2},
    },
    "full_ndsm": {"objective": {"name": "ndsm"}, "noising": {"simulation": "full"}},
    "quotient_ndsm": {"objective": {"name": "ndsm"}, "noising": {"simulation": "quotient"}},
    "kernel": {"objective": {"name": "dsm"}, "process": {"name": "ornstein_uhlenbeck"}},
}


def synthetic_mixture(dim: int, covariance: str, rank: int) -> references.GaussianMixture:
    """Ten components whose distances and variances are like those of images."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(COMPONENTS, dim)) * 5 / dim**0.5
    variances: Any = rng.uniform(0.15, 0.25, COMPONENTS)
    if covariance == "tied_spherical":
        variances = 0.2
    if covariance == "low_rank":
        directions = np.linalg.qr(rng.normal(size=(COMPONENTS, dim, rank)))[0]
        variances = references.LowRank(variances, directions, np.full((COMPONENTS, rank), 0.6))
    return references.mixture(np.ones(COMPONENTS), means, variances, covariance=covariance)


def timed(dim: int, changes: dict[str, dict[str, Any]], ahead: int) -> common.Timed:
    """Noising of `ahead` minibatches at once, as in training, or as many as its buffer holds."""
    tree = {name: dict(section) for name, section in changes.items()}
    tree["noising"] = {"k": 1} | tree.get("noising", {})
    tree["train"] = {"batch_size": BATCH}
    config = Config.from_dict(tree)
    if config.process.name == "langevin":
        reference = synthetic_mixture(dim, config.mixture.covariance, config.mixture.rank)
    else:
        reference = references.standard_normal(dim)
    experiment = build(config, (dim,), Parts(frame=Identity(), reference=reference))
    data = reference.sample(jax.random.key(0), (BATCH,))
    return common.Timed(experiment, data, config, ahead=ahead)


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    kinds = {
        f"{kind}_{dim}": timed(dim, changes, 2 if quick or dim > 784 else 8)
        for dim in DIMS
        for kind, changes in KINDS.items()
        if not quick or (kind in QUICK_KINDS and (kind != "full" or dim <= 784))
    }
    calls = {name: kind.noise for name, kind in kinds.items()}
    timings = common.ratios(calls, "full_784", rounds=3 if quick else 5)
    blocks = {name: kind.ahead / kinds["full_784"].ahead for name, kind in kinds.items()}
    rows = [
        {
            "name": name,
            "ratio": timing.ratio / blocks[name],
            "times_faster_than_full_784": blocks[name] / timing.ratio,
            "microseconds_per_sample": 1e6 * timing.seconds / kinds[name].ahead / BATCH,
        }
        for name, timing in timings.items()
    ]
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
