"""How likely held-out items of a run are, beside the densities that it has to beat."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ndsm_jax import evaluation, frames, training
from ndsm_jax.datasets import Dataset
from ndsm_jax.evaluation.likelihood import KERNELS, WIDTHS
from ndsm_jax.launch import Restored
from ndsm_jax.likelihood import EXACT_DIM, Bound, Flow, LogProb, Method, bits_per_dim

logger = logging.getLogger(__name__)

PROBES, PATHS = 2, 2
"""An item. Their errors are independent from item to item, so that those of the means have them."""

MIN_ITEMS = 10

Density = Callable[[np.ndarray], LogProb]
"""Items [n, D] -> their log densities."""


def likelihood(run: Restored, dataset: Dataset) -> dict[str, Any] | None:
    """Mean log p of `evaluate.likelihood_points` held-out items, by the model and by what it beats.

    Nats an item, of a density in the units of the data. Rows with missing cells are left out. Items
    on grey levels have probabilities instead, which are bounded from below: where the frame of the
    run does not spread items over their levels, noise of each of `WIDTHS` does here, and the
    largest bound counts, row by row.

    Returns:
      None where no points are asked for; {"why_not": text} where items have no density. Otherwise
      {"rows": {name: {"value", "se", "gain", "gain_se", "what"}}, "points", "divergence",
      "estimate_se", "repeated"} of JSON types, and in rows of items on levels "bits" and "noise".
      estimate_se is the root mean square of the standard errors of single items, as estimates by
      the flow; repeated, the columns in which most values are not the only ones of their kind.
    """
    c, experiment = run.config.evaluate, run.experiment
    if not c.likelihood_points:
        return None
    train, test = (x[np.isfinite(x).all(axis=1)] for x in (dataset.train, dataset.test))
    rng = np.random.default_rng(c.seed)
    x, train = rng.permutation(test)[: c.likelihood_points], rng.permutation(train)[:KERNELS]
    if min(len(x), len(train)) < MIN_ITEMS:
        return {"why_not": f"too few items without missing cells, {len(x)} of them held out"}
    try:
        training.check_density(experiment, x)
    except ValueError as error:
        return {"why_not": str(error)}
    logger.info("log p of %d held-out items ...", len(x))
    spread = frames.outside(experiment.frame).random
    step = None if spread else evaluation.level_step(dataset.train, dataset.value_range)
    densities = _densities(run, train, step)
    found = {name: _best(density, x, step, c.seed) for name, density in densities.items()}
    rows = evaluation.compared({name: log_prob.value for name, (log_prob, _) in found.items()})
    if step is not None or isinstance(experiment.frame, frames.Pixels):
        for name, (_, width) in found.items():
            noise = "uniform" if math.isinf(width) else f"normal, {width:g} levels"
            rows[name] |= {"bits": bits_per_dim(rows[name]["value"], dataset.dim), "noise": noise}
    errors = found["model"][0].standard_error
    exact = experiment.process.dim <= EXACT_DIM
    return {
        "rows": rows,
        "points": len(x),
        "divergence": "exact" if exact else f"{PROBES} probes an item",
        "estimate_se": float(np.sqrt(np.mean(errors**2))),
        "repeated": 0 if step is not None or spread else _repeated(train),
    }


def _densities(run: Restored, train: np.ndarray, step: float | None) -> dict[str, Density]:
    """The rows of the table: name -> log densities of items."""
    c, experiment, seed = run.config, run.experiment, run.config.evaluate.seed

    def of_model(method: Method) -> Density:
        return lambda x: training.log_prob(
            experiment, run.state, x, seed=seed, method=method, ema=c.sample.ema, progress=False
        )

    def of_states(fitted: Any) -> Density:
        return lambda x: training.log_prob_of_states(experiment, x, fitted.score_samples, seed=seed)

    probes = 0 if experiment.process.dim <= EXACT_DIM else PROBES
    densities = {"model": of_model(Flow(probes=probes))}
    try:
        Bound().check(experiment.process)
        densities["model, bound"] = of_model(Bound(paths=PATHS))
    except ValueError as error:
        logger.info("no bound by the reverse SDE: %s", error)
    densities["prior"] = lambda x: training.prior_log_prob(experiment, x, seed=seed)
    if step is not None:
        train, _ = evaluation.within_level(train, step, math.inf, seed=seed)
    states = frames.states(frames.outside(experiment.frame), train, seed=seed)
    densities["mixture by BIC"] = of_states(evaluation.mixture_by_bic(states, seed=seed))
    densities["kernel density"] = of_states(evaluation.kernel_density(states, seed=seed))
    return densities


def _best(density: Density, x: np.ndarray, step: float | None, seed: int) -> tuple[LogProb, float]:
    """Log densities; of items on levels the best bound of `WIDTHS`, and the width of its noise."""
    if step is None:
        return density(x), math.inf
    found = []
    for width in WIDTHS:
        at, entropy = evaluation.within_level(x, step, width, seed=seed)
        value, error = density(at)
        found.append((LogProb(value + entropy, error), width))
    return max(found, key=lambda one: float(np.mean(one[0].value)))


def _repeated(x: np.ndarray) -> int:
    """Columns of x [n, D] in which more than half of the values occur again."""
    distinct = [len(np.unique(column)) for column in x.T]
    return int(np.sum(2 * np.array(distinct) < len(x)))
