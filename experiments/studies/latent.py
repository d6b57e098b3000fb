"""MNIST in the latent space of an autoencoder: 2405.15625, second version, and 2512.06615.

One variational autoencoder, frozen, and score models of its latents with one network, number of
noised states and number of steps: OU + DSM as published (configs/latent.py, variant `ou`), the same
and linear dynamics of every component with the settings that suit them best, NDSM, NDSM-CV and
path-space DSM, and path-space DSM whose network sees the component's coordinates. Then encoder,
decoder and score network trained together, from the NDSM model, and the same methods in the latents
of a plain autoencoder. Samples are decoded and measured as images, beside held-out images, their
reconstructions, and decoded draws of the prior alone.

`--only` takes patterns of the runs' folders, such as vae_path_space_dsm_*: they are trained and
measured, one part each, and nothing is shown.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ndsm_jax import evaluation, latent, plots
from ndsm_jax.config import Config
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation import ImageClassifier
from ndsm_jax.launch import draw_as_configured, load_data, restore
from ndsm_jax.reports.study import (
    Changes,
    Run,
    Study,
    chosen,
    load_config,
    over_seeds,
    seeded,
    slug,
    train_seconds,
)
from ndsm_jax.runs import fingerprint
from studies import CONFIGS, LOCAL

RESIDUAL: Changes = {"network": {"parameterisation": "residual"}}
METHODS: Mapping[str, tuple[str, Changes]] = {
    "OU + DSM": ("ou", {}),
    "OU + DSM, tuned": ("vp_standardised", {}),
    "component-wise OU + DSM, tuned": ("component_ou", {}),
    "NDSM (eps = 0)": ("", {"objective": {"name": "ndsm"}, **RESIDUAL}),
    "NDSM-CV": ("", {"objective": {"name": "ndsm_cv"}, **RESIDUAL}),
    "path-space DSM": ("", RESIDUAL),
    "path-space DSM, local coordinates": ("", LOCAL),
    "path-space DSM, local coordinates, balanced weight": (
        "",
        {**LOCAL, "noising": {**LOCAL["noising"], "weight": "auto"}},
    ),
}
START = "NDSM (eps = 0)"  # of joint training
JOINT = "NDSM, joint"
SMOKE: Changes = {
    "data": {"name": "digits", "num_train": 500, "num_test": 200},
    "mixture": {"num_components": 5},
    "network": {"width": 16, "depth": 2, "time_features": 16},
    "train": {"steps": 20, "log_every": 10, "checkpoint_every": 20},
    "sample": {"num": 200, "chunk": 200},
    "autoencoder": {"widths": (32,), "latent_dim": 4, "steps": 100},
    "joint": {"steps": 6, "batch_size": 16, "refit_every": 4},
}
SCALES: Mapping[str, Mapping[str, Any]] = {
    # methods of the variational and, of the first seed, of the plain autoencoder
    "smoke": {
        "methods": ("OU + DSM", START),
        "plain": (),
        "seeds": 1,
        "changes": SMOKE,
        "sampler_steps": 200,
        "pairs": 200,
    },
    "cpu": {
        "methods": tuple(METHODS),
        "plain": ("OU + DSM", "OU + DSM, tuned", START),
        "seeds": 3,
        "changes": {"data": {"name": "mnist"}, "joint": {"steps": 2000, "batch_size": 64}},
        "sampler_steps": 1000,
        "pairs": 2000,
    },
    "full": {
        "methods": tuple(METHODS),
        "plain": ("OU + DSM", "OU + DSM, tuned", START),
        "seeds": 3,
        "changes": {
            "data": {"name": "mnist"},
            "autoencoder": {"widths": (1024, 512), "steps": 100_000},
            "network": {"width": 512, "depth": 6},
            "train": {"steps": 100_000},
            "joint": {"steps": 50_000},
        },
        "sampler_steps": 1000,
        "pairs": 5000,
    },
}


def reproduce(study: Study, *, only: str = "") -> None:
    """All runs, then figures, tables and metrics.json; or `only` those that match a pattern.

    Raises:
      ValueError: patterns of which one matches nothing.
    """
    scale = SCALES[study.scale]
    config = _config(study, "", scale["changes"])
    methods = {"vae": scale["methods"]} | ({"ae": scale["plain"]} if scale["plain"] else {})
    cells = {
        _name(kind, method, seed): (kind, method, seed)
        for seed in range(scale["seeds"])  # seed by seed, so that a cut study has some of all
        for kind in methods
        for method in methods[kind]
        if seed == 0 or kind == "vae"
    }
    wanted = chosen(cells, only)
    images = load_data(config)
    kinds = dict.fromkeys(kind for kind, *_ in wanted)
    codecs = {kind: _codec(study, config, images, kind) for kind in kinds}
    if only:
        classifier = evaluation.evaluator(images)
        for kind, method, seed in wanted:
            run = _run(study, images, codecs[kind], kind, method, seed)
            _measure(study, images, classifier, _title(kind, method), seed, run.samples)
        return
    samples: dict[str, list[np.ndarray]] = {}
    facts: dict[str, list[dict[str, float]]] = {}

    def keep(name: str, x: np.ndarray, numbers: Mapping[str, float]) -> None:
        samples.setdefault(name, []).append(x)
        facts.setdefault(name, []).append(dict(numbers))

    for kind, method, seed in wanted:
        run = _run(study, images, codecs[kind], kind, method, seed)
        keep(_title(kind, method), run.samples, _cost(study, method, run))
    start = _run(study, images, codecs["vae"], "vae", START, 0)
    keep(JOINT, *_joint(study, config, images, start))
    prior = np.load(start.folder / "prior.npy", allow_pickle=False)
    floors = {
        "held-out images": images.test,
        "mixture prior, decoded": prior,
    }
    floors |= {
        f"their reconstructions, {kind}": _reconstructions(codec, images)
        for kind, codec in codecs.items()
    }
    _report(study, images, floors, samples, facts)


def _name(kind: str, method: str, seed: int) -> str:
    """Of a run's folder, and what `--only` is compared with."""
    return f"{kind}_{slug(method)}_{seed}"


def _title(kind: str, method: str) -> str:
    """Of a row."""
    return method if kind == "vae" else f"{method}, plain autoencoder"


def _config(study: Study, method: str, *changes: Changes) -> Config:
    variant, own = METHODS[method] if method else ("", {})
    scale = SCALES[study.scale]
    published = {"sample": {"steps": scale["sampler_steps"]}} if variant == "ou" else {}
    place = {"data": {"dir": study.data_dir}}
    common = {"train": {"tensorboard": False}}
    return load_config(CONFIGS / "latent.py", variant, own, place, common, *changes, published)


def _with_kind(config: Config, kind: str) -> Config:
    """With that kind of autoencoder, which is not trained further."""
    return dataclasses.replace(
        config,
        autoencoder=dataclasses.replace(config.autoencoder, kind=kind),
        joint=dataclasses.replace(config.joint, steps=0),
    )


def _codec(study: Study, config: Config, images: Dataset, kind: str) -> latent.Codec:
    folder = study.root / "autoencoders" / kind
    config = _with_kind(config, kind)
    return latent.train_autoencoder(config, images, folder, progress=study.progress)


def _run(
    study: Study, images: Dataset, codec: latent.Codec, kind: str, method: str, seed: int
) -> Run:
    config = _with_kind(_config(study, method, SCALES[study.scale]["changes"]), kind)
    config = seeded(latent.score_config(config), seed)
    frame = latent.frame_of(config, codec)
    return study.run(_name(kind, method, seed), config, images, frame=frame)


def _cost(study: Study, method: str, run: Run) -> dict[str, float]:
    c = _config(study, method, SCALES[study.scale]["changes"]).sample
    experiment = restore(run.folder, sample=dataclasses.asdict(c)).experiment
    evaluations = experiment.sampler.evaluations(len(experiment.sample_grid) - 1)
    return {
        "train s": run.facts["train_seconds"],
        "sample s": run.facts["sample_seconds"],
        "evaluations": float(evaluations or 0),
    }


def _joint(
    study: Study, config: Config, images: Dataset, start: Run
) -> tuple[np.ndarray, dict[str, float]]:
    """Samples of the jointly trained model, and what it cost."""
    folder = study.root / "joint"
    model = latent.train_joint(
        config, images, restore(start.folder), folder, progress=study.progress
    )
    path = folder / "samples.npz"
    if not path.exists():
        begin = time.perf_counter()
        x = draw_as_configured(
            model.config, model.experiment, model.state, config.sample.num, progress=study.progress
        )
        np.savez(path, x=x, seconds=time.perf_counter() - begin)
    kept = np.load(path, allow_pickle=False)
    cost = _cost(study, START, start)
    cost["train s"] += train_seconds(folder)
    return kept["x"], cost | {"sample s": float(kept["seconds"])}


def _reconstructions(codec: latent.Codec, images: Dataset) -> np.ndarray:
    return latent.decode(codec, latent.encode(codec, images.test, seed=0))


def _measure(
    study: Study,
    images: Dataset,
    classifier: ImageClassifier,
    name: str,
    seed: int,
    x: np.ndarray,
) -> dict[str, float]:
    """Scores of images [n, d], by comparison with the training split."""
    pairs = SCALES[study.scale]["pairs"]

    def measured() -> dict[str, float]:
        rng = np.random.default_rng(0)  # held-out images may be sorted
        some, train = (rng.permutation(a)[:pairs] for a in (x, images.train))
        nearest, _ = evaluation.nearest_distances(some, images.train)
        report = evaluation.fid_report(x, images, classifier)
        return {
            "FID": report["fid"]["value"],
            "IS": report["inception_score"]["value"],
            "class TV": report["class_tv"]["value"],
            "energy distance": evaluation.energy_distance(some, train),
            "nearest training image": float(nearest.mean()),
        }

    of = {"images": fingerprint(x), "evaluator": classifier.digest, "pairs": pairs}
    return study.part(f"{slug(name)}_{seed}", of, measured)


def _report(
    study: Study,
    images: Dataset,
    floors: Mapping[str, np.ndarray],
    samples: Mapping[str, list[np.ndarray]],
    facts: Mapping[str, list[dict[str, float]]],
) -> None:
    classifier = evaluation.evaluator(images)
    measure = partial(_measure, study, images, classifier)
    results = {name: [measure(name, 0, x)] for name, x in floors.items()}
    results |= {
        name: [
            measure(name, seed, x) | cost
            for seed, (x, cost) in enumerate(zip(sets, facts[name], strict=True))
        ]
        for name, sets in samples.items()
    }
    rows: list[dict[str, Any]] = [
        {"": name, "seeds": len(r) if name in samples else "", **over_seeds(r)}
        for name, r in results.items()
    ]
    num = len(next(iter(samples.values()))[0])
    title = (
        f"{num} samples; FID to the {len(images.train)} training images in the features of"
        f" {classifier.name} (test accuracy {classifier.test_accuracy:.4f})"
    )
    study.table("latent", [*rows[len(floors) :], *rows[: len(floors)]], title=title)
    pictures = {name: sets[0][:20] for name, sets in samples.items()}
    order = np.random.default_rng(1).permutation(len(images.test))[:20]
    pictures |= {name: x[order] for name, x in floors.items() if len(x) == len(images.test)}
    study.figure("samples", plots.rows_figure(pictures, images.shape, columns=20))
    folders = (study.root / "autoencoders").iterdir()
    autoencoders = {folder.name: train_seconds(folder) for folder in folders}
    study.metrics(
        {
            "results": results,
            "autoencoder_train_seconds": autoencoders,
            "evaluator": [classifier.name, classifier.test_accuracy],
        }
    )
