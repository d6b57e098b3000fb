"""Distance to the support that simulated data have without noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ndsm_jax.datasets.boltzmann import radii
from ndsm_jax.datasets.dataset import did_you_mean
from ndsm_jax.datasets.toys import CIRCLE8_CENTRES, CURVES


def _moons_distance(points: np.ndarray) -> np.ndarray:
    def upper_half_circle(p: np.ndarray) -> np.ndarray:
        to_arc = np.abs(np.hypot(p[:, 0], p[:, 1]) - 1.0)
        to_end = np.hypot(np.abs(p[:, 0]) - 1.0, p[:, 1])
        return np.where(p[:, 1] >= 0, to_arc, to_end)

    # The second moon is the first turned by half a turn about (1/2, 1/4).
    return np.minimum(upper_half_circle(points), upper_half_circle(np.array([1.0, 0.5]) - points))


def _circle8_distance(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - CIRCLE8_CENTRES, axis=-1).min(axis=1)


def _torsion_distance(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(radii(points) - 1, axis=-1)


_SUPPORT_DISTANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: curves.distance for name, curves in CURVES.items()},
    "moons": _moons_distance,
    "circle8": _circle8_distance,
    "torsion": _torsion_distance,
}


def support_distance(name: str, points: np.ndarray) -> np.ndarray:
    """Euclidean distance [n] of points [n, d] to the noise-free support of a simulated data set.

    The support is the curves of `CURVES`, two half circles for `moons`, the eight centres for
    `circle8`, and the torus of unit radii for `torsion` (d = 4; 2 otherwise).

    Raises:
      ValueError: for a data set without such a support, or points not of shape [n, d].
    """
    if name not in _SUPPORT_DISTANCES:
        raise ValueError(
            f"No support distance for {name!r}. {did_you_mean(name, _SUPPORT_DISTANCES)}"
        )
    dim = 4 if name == "torsion" else 2
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"support_distance: points must be [n, {dim}], not {points.shape}.")
    return _SUPPORT_DISTANCES[name](points)
