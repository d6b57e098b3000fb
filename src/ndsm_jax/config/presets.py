"""Variants of config files: smoke runs, published settings, baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

SMOKE: dict[str, dict[str, Any]] = {
    "mixture": {"subset": 400, "num_inits": 1, "min_covariance": 0.01},
    "network": {"width": 16, "depth": 2, "widths": (8, 16), "time_features": 16},
    "optimizer": {"warmup_steps": 0},
    "train": {
        "steps": 20,
        "batch_size": 16,
        "log_every": 10,
        "checkpoint_every": 10,
        "picture_every": 20,
    },
    "sample": {"num": 200, "chunk": 100},
    "evaluate": {"max_points": 200, "likelihood_points": 20},
    "autoencoder": {"widths": (32,), "latent_dim": 4, "steps": 20, "batch_size": 16},
    "joint": {"batch_size": 16, "refit_every": 5},
}
"""What the `:smoke` variant of every config changes: all features, in seconds."""


PAPER: dict[str, dict[str, Any]] = {
    "noising": {
        "steps": 100,
        "grid": "uniform",
        "times": "uniform",
        "stratified": False,
        "weight": "unit",
        "integrator": "euler",
        "loss_step": 1e-3,
        "loss_fraction": 0.0,
    },
    "objective": {"name": "ndsm_cv"},
    "control_variate": {"estimator": "exact", "kind": "learned"},
    "network": {"parameterisation": "raw", "time": "time"},
    "optimizer": {"schedule": "constant", "warmup_steps": 0, "ema_decay": (0.0,)},
    "train": {"select": "last"},
    "sample": {"sampler": "reverse_sde", "grid": "uniform", "steps": 1000, "ema": False},
}
"""Strict reproduction of 2405.15625, where our defaults are the process's own clock, a residual
score and preconditioned weights. Horizon and sizes are each experiment's."""


PAPER_IMAGES: dict[str, dict[str, Any]] = PAPER | {
    "control_variate": {"estimator": "probes"},  # exact costs tens of steps for a U-Net
    "process": {"horizon": 2.0},
    "noising": PAPER["noising"] | {"steps": 2000},
    "sample": PAPER["sample"] | {"steps": 2000},
}
"""The same for images (A.3): T = 2 in 2,000 steps of 1e-3."""


UNET: dict[str, dict[str, Any]] = {
    "network": {"name": "unet", "time_features": 128},
    "noising": {"k": 1},
    "train": {
        "batch_size": 64,
        "steps": 93_750,
        "checkpoint_every": 1000,
        "picture_every": 5000,
    },
    "optimizer": {"warmup_steps": 200, "schedule": "cosine"},
    "sample": {"num": 10_000, "chunk": 250},
    "evaluate": {"likelihood_points": 50},  # an image takes a second or two on a CPU
}
"""A U-Net on MNIST and what is made of it: minibatches of 64, 100 epochs (2405.15625, A.3)."""


EDM: dict[str, dict[str, Any]] = {
    "noising": {"weight": "edm"},
    "network": {"parameterisation": "edm"},
}
"""The preconditioning and the loss weight of 2206.00364, for any process."""


TABLE: dict[str, dict[str, Any]] = {
    "data": {"name": "table"},
    "mixture": {"num_components": 0, "covariance": "auto"},
    "process": {"name": "component_ou"},
    "objective": {"name": "dsm"},
    "noising": EDM["noising"],
    "network": {**EDM["network"], "width": 128, "depth": 4},
    "train": {"select": "held_out", "held_out_every": 25, "batch_size": 128},
}
"""A table, and the defaults of `NDSM`.

Columns are correlated and of all shapes, so that the noise is that of each component, in its own
coordinates: with noise that is the same in all directions, as that of langevin, narrow directions
need many short steps, or cost nats (docs/estimator.md). The best length of training is some tens of
steps for hundreds of rows, hence frequent looks.
"""


FLOW: dict[str, dict[str, Any]] = {
    "objective": {"name": "dsm"},
    "noising": {"steps": 1000, "grid": "uniform", "times": "uniform", "weight": "auto"},
    "network": {"parameterisation": "velocity", "time": "time"},
    "sample": {"sampler": "heun_flow", "grid": "uniform", "steps": 20},
}
"""Flow matching: the velocity, uniform times, a solver of the flow with equal steps."""


BASELINES: dict[str, dict[str, Any]] = {
    "vp": {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "dsm"},
        "noising": {"weight": "auto"},
    },
    "vp_standardised": {
        "process": {"name": "component_ou"},
        "mixture": {"num_components": 1},
        "objective": {"name": "dsm"},
        **EDM,
    },
    "component_ou": {
        "process": {"name": "component_ou"},
        "objective": {"name": "dsm"},
        **EDM,
    },
    "flow_matching": FLOW | {"process": {"name": "straight_line"}},
    "component_flow": FLOW | {"process": {"name": "component_flow"}},
    "ou": PAPER
    | {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "dsm"},
        # Every term of DSM as large as any other, as 2011.13456, Section 3.3
        "noising": PAPER["noising"] | {"steps": 1000, "weight": "variance"},
    },
    "ddpm": {
        "process": {"name": "variance_preserving"},
        "objective": {"name": "dsm"},
        "noising": {
            "steps": 1000,
            "grid": "uniform",
            "times": "uniform",
            "stratified": False,
            "weight": "auto",
        },
        "network": {"parameterisation": "scaled", "time": "time"},
        "sample": {"sampler": "ancestral", "grid": "uniform", "steps": 1000},
    },
    "ncsn": {
        "process": {"name": "variance_exploding"},
        "objective": {"name": "dsm"},
        "noising": {"times": "levels", "weight": "auto"},
        "network": {"parameterisation": "scaled"},
        "sample": {
            "sampler": "annealed_langevin",
            "grid": "geometric",
            "smallest_variance": 1e-7,
        },
    },
}
"""Other methods with the network, the data and the budget of a config file, see docs/baselines.md:
`vp` with the settings of our own methods, `vp_standardised` and `component_ou` with those that we
found best for them, `flow_matching` and `component_flow`, whose source is coupled to a mixture's
components, `ou` as 2405.15625 has it, `ddpm` and `ncsn` with times, parameterisation and sampler of
their papers."""


def variant(config: ConfigDict, name: str, **variants: Mapping[str, dict[str, Any]]) -> ConfigDict:
    """Applies the variant of a config file, the part after the colon in --config=FILE:VARIANT.

    Args:
      config: the file's config, changed in place.
      name: '' for none, 'smoke', one of `BASELINES`, or one of `variants`.
      **variants: further variants of the file, nested updates of the config.

    Raises:
      ValueError: unknown variant.
    """
    known: dict[str, Mapping[str, dict[str, Any]]] = {
        "": {},
        "smoke": SMOKE,
        **BASELINES,
        **variants,
    }
    if name not in known:
        raise ValueError(
            f"unknown variant {name!r}: choose one of {', '.join(filter(None, known))}"
        )
    config.update(known[name])
    return config
