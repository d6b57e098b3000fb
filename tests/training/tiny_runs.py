"""A run of seconds, for the tests that need a trained one."""

import pathlib
from typing import Any

from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.launch import launch, load_data
from ndsm_jax.training import TrainState

TINY: dict[str, Any] = {
    "data": {"name": "gaussians", "num_train": 200, "num_test": 50},
    "mixture": {"num_components": 3, "num_inits": 1},
    "noising": {"steps": 24, "k": 2},
    "objective": {"name": "ndsm_cv"},
    "control_variate": {"period": 2},
    "network": {"width": 8, "depth": 2, "time_features": 4},
    "train": {
        "steps": 8,
        "select": "last",
        "batch_size": 16,
        "log_every": 4,
        "checkpoint_every": 3,
        "picture_every": 0,
        "tensorboard": False,
    },
    "sample": {"steps": 24},
    "evaluate": {"likelihood_points": 0},
}


def tiny(**sections: dict[str, Any]) -> Config:
    tree = {name: TINY.get(name, {}) | sections.get(name, {}) for name in {*TINY, *sections}}
    return Config.from_dict(tree)


def run(
    config: Config, folder: pathlib.Path, dataset: Dataset | None = None, **options: Any
) -> TrainState:
    """Trains in a folder, on the data of the config by default."""
    return launch(config, dataset or load_data(config), folder, progress=False, **options)
