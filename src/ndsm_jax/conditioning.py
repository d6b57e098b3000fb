"""Components of the prior and classes: where samples of a wished class start.

Within the horizon the reverse process mostly stays near the component of the prior that it starts
from, so the component is a free handle on the sample; a few labels name the components. A network
that is told the class starts in the components of that class, too: see `classes`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.checks import COUNT, POSITIVE, SEEDS, arguments, whole
from ndsm_jax.conditions import Classes
from ndsm_jax.datasets import Dataset, stratified_order
from ndsm_jax.references import GaussianMixture

PRIOR_COUNT = 0.1
"""Default prior count a component, in items, of `class_table`; docs/conditioning.md measures it."""

CHUNK = 256


@jax.jit
def _responsibilities(prior: GaussianMixture, x: Array) -> Array:
    # In chunks: the differences of all items and components, [n, K, d], may not fit.
    return jax.lax.map(prior.responsibilities, x, batch_size=CHUNK)


@jax.jit
def _most_likely(prior: GaussianMixture, x: Array) -> Array:
    return jax.lax.map(prior.most_likely, x, batch_size=CHUNK)


@arguments(prior=GaussianMixture, x="finite numbers [n, d]")
def most_likely_component(prior: GaussianMixture, x: np.ndarray) -> np.ndarray:
    """`GaussianMixture.most_likely` of many items, in chunks: [n, d] -> int [n]."""
    return np.asarray(_most_likely(prior, jnp.asarray(x, jnp.float32)))


@arguments(labels="integers [N]", per_class=COUNT, seed=SEEDS)
def labelled_subset(labels: np.ndarray, *, per_class: int, seed: int) -> np.ndarray:
    """Indices of the few items whose labels are used, `per_class` for each class on average.

    The choice is random and stratified: it has the class fractions of all labels [N]. So it needs
    no reweighting, and of a class with a share below one in its size it may have no item. All
    items when there are not enough.
    """
    num = per_class * len(np.unique(labels))
    return stratified_order(np.random.default_rng(seed), labels)[:num]


@arguments(
    prior=GaussianMixture,
    x="finite numbers [n, d]",
    labels="integers [n]",
    num_classes=COUNT,
    prior_count=POSITIVE,
)
def class_table(
    prior: GaussianMixture,
    x: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    prior_count: float = PRIOR_COUNT,
) -> np.ndarray:
    """P(class | component) from a few labelled items x [n, d], labels [n]: float64 [K, C].

    With responsibilities r_k and prior counts a / C for each class (a = `prior_count`),

        P(c | k) = (a / C + sum_{i: label_i = c} r_k(x_i)) / (a + sum_i r_k(x_i)),

    the posterior mean under a symmetric Dirichlet of total count a, with items counted by their
    responsibilities. A component that no labelled item belongs to has 1 / C everywhere. The items
    should have the class fractions of the data, as those of `labelled_subset` do.

    Raises:
      ValueError: shapes that do not match, labels outside 0 .. C - 1, or prior_count <= 0.
    """
    labels = np.asarray(labels)
    if len(x) != len(labels) or len(x) == 0:
        raise ValueError(f"class_table: {len(x)} items with {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"class_table: labels from {labels.min()} to {labels.max()}; with num_classes="
            f"{num_classes} they go from 0 to {num_classes - 1}"
        )
    r = np.asarray(_responsibilities(prior, jnp.asarray(x, jnp.float32)), np.float64)
    counts = prior_count / num_classes + r.T @ np.eye(num_classes)[labels]
    return counts / counts.sum(axis=1, keepdims=True)


@arguments(prior=GaussianMixture, dataset=Dataset, per_class=COUNT, seed=SEEDS)
def sparse_class_table(
    prior: GaussianMixture, dataset: Dataset, *, per_class: int, seed: int
) -> tuple[np.ndarray, int]:
    """`class_table` [K, C] from a `labelled_subset` of the training items, and its size.

    Raises ValueError when the data have no labels.
    """
    x, labels = dataset.train, dataset.train_labels
    if labels is None:
        raise ValueError(
            f"data set {dataset.name!r} has no labels to name the components of the prior with;"
            " choose components themselves"
        )
    chosen = labelled_subset(labels, per_class=per_class, seed=seed)
    return class_table(prior, x[chosen], labels[chosen], dataset.num_classes), len(chosen)


@arguments(prior=GaussianMixture, table="finite numbers [K, C]", label=whole(0))
def class_log_weights(prior: GaussianMixture, table: np.ndarray, label: int) -> np.ndarray:
    """log P(component | class) of a `class_table` [K, C], by Bayes: float64 [K].

        P(k | c) = w_k P(c | k) / sum_j w_j P(c | j)

    For `training.draw_components`.

    Raises:
      ValueError: a class that the table does not have.
    """
    num_classes = table.shape[1]
    if not 0 <= label < num_classes:
        raise ValueError(
            f"class {label}: the data have {num_classes} classes, numbered from 0 to"
            f" {num_classes - 1}"
        )
    joint = np.asarray(prior.log_weights, np.float64) + np.log(table[:, label])
    return joint - np.logaddexp.reduce(joint)


@arguments(
    labels="integers [N]", num_classes=COUNT, prior=GaussianMixture, states="finite numbers [N, d]"
)
def classes(
    labels: np.ndarray,
    num_classes: int,
    *,
    prior: GaussianMixture | None = None,
    states: np.ndarray | None = None,
) -> Classes:
    """What samples of a model that is told the labels [N] need to know of C classes.

    The shares of the classes; and, where samples start in the components of a `prior`, P(k | c) of
    `class_log_weights`, from all labels. That is where the items of a class are at the horizon, as
    far as they are in the component that they started from.

    Args:
      labels: integers from 0, of the training items; -1: no class.
      num_classes: C.
      prior: the mixture.
      states: of the items, in its coordinates, [N, d].

    Raises:
      ValueError: no label, or labels that do not exist.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    if not known.any() or labels.max() >= num_classes:
        raise ValueError(
            f"classes: labels of {known.sum()} items, the largest {labels.max(initial=-1)}; with"
            f" num_classes={num_classes} they go from 0 to {num_classes - 1}"
        )
    shares = np.bincount(labels[known], minlength=num_classes) / known.sum()
    log_weights = None
    if prior is not None and states is not None:
        table = class_table(prior, states[known], labels[known], num_classes)
        rows = [class_log_weights(prior, table, c) for c in range(num_classes)]
        log_weights = jnp.asarray(np.stack([*rows, np.asarray(prior.log_weights)]), jnp.float32)
    return Classes(shares=jnp.asarray(shares, jnp.float32), log_weights=log_weights)
