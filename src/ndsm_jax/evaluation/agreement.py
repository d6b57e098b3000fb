"""Whether samples are of the component, and of the class, that they were started for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ndsm_jax import conditioning
from ndsm_jax.frames import Frame, Identity, states
from ndsm_jax.references import GaussianMixture

if TYPE_CHECKING:
    from ndsm_jax.datasets import Dataset

Array = np.ndarray

AGREEMENTS: dict[str, str] = {
    "component": "most likely component of the sample = the one it started from",
    "class of the component": "class of the sample = likeliest class of the component it started"
    " from",
    "class asked for": "class of the sample = class asked for, each asked as often as in the data",
}
"""What `agreement` measures: name -> description."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Starts:
    """Where samples started.

    Attributes:
      prior: the mixture.
      components: component of each sample, drawn by the prior's weights [n].
      labels_per_class: labelled training items, per class on average, that name the components.
      frame: from data to the coordinates that the prior is a mixture in.
    """

    prior: GaussianMixture
    components: Array
    labels_per_class: int
    frame: Frame = dataclasses.field(default_factory=Identity)


def agreement(
    samples: Array,
    starts: Starts,
    dataset: Dataset,
    *,
    class_of: Callable[[Array], Array] | None,
    seed: int = 0,
) -> dict[str, Any]:
    """How often samples [n, d] are of the component and of the class that they started for.

    With k_i the component that sample i started from, c_i its class and T = P(class | component)
    from a few labelled training items (`conditioning.class_table`):

    - component: mean of [argmax_k r_k(x_i) = k_i];
    - class of the component: mean of [argmax_c T(k_i, c) = c_i];
    - class asked for: mean of T(k_i, c_i). It is the share of hits when classes are asked for in
      their own proportions P(c) = sum_k w_k T(k, c) and components follow P(k | c):
      sum_c P(c) sum_k P(k | c) P(c_i = c | k) = sum_k w_k sum_c T(k, c) P(c_i = c | k).

    Each has a standard error (over samples, for this table), the value by chance (the same mean if
    the two were independent), and two values for comparison: `prior`, the starting points
    themselves in the samples' place, and `data`, held-out items with their own labels and their
    most likely component (None for components, where it is 1 by definition).

    Args:
      samples: [n, d], n >= 2, finite, in the units of the data.
      starts: where they started.
      dataset: the data.
      class_of: the class of points in these units, [n, d] -> [n]; None leaves out the classes.
      seed: of the choice of labelled items and of the starting points.

    Returns:
      {"labels": number of labels used, "classes": likeliest class of each component [K] (None
      without labels), "agreement": {name: {"value", "se", "chance", "prior", "data", "what"}}},
      made of JSON types.
    """
    prior, k, frame = starts.prior, starts.components, starts.frame
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(samples), prior.dim), np.float32)
    points = np.asarray(prior.sample_component(jnp.asarray(k), jnp.asarray(noise)))
    one_hot = np.eye(prior.num_components)[k]
    reached = states(frame, samples)
    rows: dict[str, dict[str, Any]] = {
        "component": {
            **_share(one_hot, conditioning.most_likely_component(prior, reached)),
            "prior": _share(one_hot, conditioning.most_likely_component(prior, points))["value"],
            "data": None,
        }
    }
    result: dict[str, Any] = {"labels": 0, "classes": None}
    if class_of is not None and dataset.test_labels is not None:
        table, num_labels = conditioning.sparse_class_table(
            prior,
            dataclasses.replace(dataset, train=states(frame, dataset.train)),
            per_class=starts.labels_per_class,
            seed=seed,
        )
        classes = table.argmax(axis=1)
        result = {"labels": num_labels, "classes": classes.tolist()}
        held_out = conditioning.most_likely_component(prior, states(frame, dataset.test))
        of_samples, of_points = class_of(samples), class_of(frame.leave(points, None))
        likeliest = np.eye(dataset.num_classes)[classes]
        for name, target in (("class of the component", likeliest), ("class asked for", table)):
            rows[name] = {
                **_share(target[k], of_samples),
                "prior": _share(target[k], of_points)["value"],
                "data": _share(target[held_out], dataset.test_labels)["value"],
            }
    return {
        **result,
        "agreement": {name: {**row, "what": AGREEMENTS[name]} for name, row in rows.items()},
    }


def label_agreement(
    samples: Array, labels: Array, dataset: Dataset, *, class_of: Callable[[Array], Array]
) -> dict[str, Any]:
    """How often samples [n, d] are of the classes [n] that the network was told.

    Args:
      samples: n >= 2, finite, in the units of the data.
      labels: what was asked for.
      dataset: the data.
      class_of: the class of points in these units, [n, d] -> [n].

    Returns:
      {"value", "se", "chance", "data", "classes"}, as those of `agreement`: data are held-out items
      with their own labels, by which the rule of the classes is judged; classes are the shares of
      each class that are of it, None where it was never asked for.
    """
    found = class_of(samples)
    classes = [found[labels == c] == c for c in range(dataset.num_classes)]
    return {
        **_share(np.eye(dataset.num_classes)[labels], found),
        "data": float(np.mean(class_of(dataset.test) == dataset.test_labels)),
        "classes": [float(of.mean()) if len(of) else None for of in classes],
    }


def _share(target: Array, found: Array) -> dict[str, float]:
    """Mean of target[i, found[i]], target [n, C] with rows of sum 1, found [n]."""
    hits = np.take_along_axis(target, found[:, None], axis=1)[:, 0]
    frequencies = np.bincount(found, minlength=target.shape[1]) / len(found)
    return {
        "value": float(hits.mean()),
        "se": float(hits.std(ddof=1) / np.sqrt(len(hits))),
        "chance": float(target.mean(axis=0) @ frequencies),
    }
