"""What a network is told beside the state that it sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jax import Array
from jax.tree_util import Partial

from ndsm_jax.references.mixtures import GaussianMixture

Tells = Callable[[Array, Any], Array]
"""(y [n, d], condition of [n, ...]) -> [n, e], what a network is told beside y."""


def takes_told(network: Any) -> bool:
    """Whether a network's call has a place for what it is told: a third, not named condition."""
    if not callable(network):
        return False
    parameters = _parameters(network)
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return more or (len(places) > 2 and places[2].name != "condition")


def takes_condition(network: Any) -> bool:
    """Whether a network's call takes a keyword `condition`, as far as its signature tells."""
    if not callable(network):
        return True
    return any(p.name == "condition" or p.kind is p.VAR_KEYWORD for p in _parameters(network))


def _parameters(network: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(network.__call__).parameters.values())


def _mean(mixture: GaussianMixture, y: Array, condition: Any) -> Array:
    return mixture.responsibilities(y) @ mixture.means


def prior_mean(mixture: GaussianMixture) -> Tells:
    """E[mu | y] = sum_k r_k(y) mu_k, what y says of its component's mean: [n, d].

    Mixture Langevin noising leaves the mean in y at full strength, and a network that is not told
    takes it for a part of the data for long.
    """
    return Partial(_mean, mixture)


def _described(frame: Any, y: Array, condition: Any) -> Array:
    return frame.describe(condition)


def described(frame: Any) -> Tells:
    """What the frame says of a condition (`Frame.describe`): of a component, its mean."""
    return Partial(_described, frame)
