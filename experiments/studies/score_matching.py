"""A denoising autoencoder and the energy whose score it is: Vincent (2011), in the plane.

A tied-weight sigmoid autoencoder is trained to take noise of one level from rings and bars, by
denoising score matching at that level, which is the same loss. It sees data in units of the noise.
Its energy is drawn beside that of the noisy data, which is known: their density is the mean of the
kernels around all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax import noising, plots, processes
from ndsm_jax.clock import loss_weight, time_coordinate
from ndsm_jax.datasets import load
from ndsm_jax.experiment import Experiment, experiment
from ndsm_jax.networks import DenoisingAutoencoder, Raw, ScoreModel
from ndsm_jax.reports.study import Study
from ndsm_jax.training import TrainState, train

NOISES = (0.1, 0.3)
SCALES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"steps": 20, "hidden": 16, "bins": 12, "noisy": 200},
    "cpu": {"steps": 20_000, "hidden": 256, "bins": 61, "noisy": 2000},
    "full": {"steps": 100_000, "hidden": 1024, "bins": 61, "noisy": 5000},
}


def reproduce(study: Study) -> None:
    """Trains one autoencoder a level; table, figure and metrics.json."""
    scale = SCALES[study.scale]
    data = load("rings_and_bars")
    limit = 1.25 * float(np.abs(data.test).max())
    axis = np.linspace(-limit, limit, scale["bins"])
    at = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1), jnp.float32)
    rows, panels = [], {}
    for std in NOISES:
        made = autoencoder(scale["hidden"])
        state = train(
            made,
            data.train / std,
            steps=scale["steps"],
            batch_size=250,
            run=study.root / "runs" / f"noise_{std:g}",
            progress=study.progress,
        )
        items = jnp.asarray(data.train / std)
        found = agreement(made, state, items, jnp.asarray(data.test[: scale["noisy"]] / std))
        rows.append({"noise": std, "hidden units": scale["hidden"], **found})
        energies = {
            "noisy data": -jax.lax.map(partial(log_density, items), at / std),
            "autoencoder": made.model.network.apply(state.params, at / std, method="energy"),
        }
        for title, energy in energies.items():
            panels[f"{title}, noise {std:g}"] = np.asarray(energy - energy.min())
    study.table("energies", rows, title=f"rings and bars, {scale['steps']:,} steps")
    study.figure("energies", plots.energies_figure(panels, axis, data.test[:500]))
    study.metrics({"energies": rows})


def autoencoder(hidden: int) -> Experiment:
    """The autoencoder as the score of one level of noise, 1, trained by DSM."""
    low = 0.01
    process = processes.variance_exploding(2, sigma_min=low, sigma_max=(1 + low**2) ** 0.5)
    grid = np.array([0.0, process.horizon], np.float32)
    coordinate = time_coordinate(process.clock, process.horizon, "time", first=low)
    return experiment(
        process,
        objective="dsm",
        noise=noising.exact_kernel(
            process,
            grid,
            times=noising.time_law(process.clock, grid, kind="levels"),
            weight=loss_weight(process.clock, "variance"),
        ),
        model=ScoreModel(
            network=DenoisingAutoencoder(dim=2, hidden=hidden, std=1.0),
            dim=2,
            precondition=Raw(process=process, coordinate=coordinate),
        ),
    )


def log_density(data: Array, y: Array) -> Array:
    """Log density of data [N, d] with noise N(0, I) at y [n, d], up to a constant: [n]."""
    squares = jnp.sum((y[:, None] - data[None]) ** 2, axis=-1)
    return jax.nn.logsumexp(-0.5 * squares, axis=1)


def agreement(made: Experiment, state: TrainState, data: Array, clean: Array) -> dict[str, float]:
    """At noisy held-out points: how much of the exact score is missed, and of -grad E."""
    network, params = made.model.network, state.params
    y = clean + jax.random.normal(jax.random.key(0), clean.shape)
    score = made.model(params, y, jnp.broadcast_to(made.process.horizon, y.shape[:1]))
    slope = jax.grad(lambda y: network.apply(params, y, method="energy").sum())(y)
    exact = jax.lax.map(jax.grad(lambda row: log_density(data, row[None])[0]), y, batch_size=100)
    size = jnp.mean(exact**2)
    return {
        "|s - exact|^2 / |exact|^2": float(jnp.mean((score - exact) ** 2) / size),
        "largest |s + grad E|": float(jnp.abs(score + slope).max()),
    }
