"""Samples against a known Boltzmann density: divergences of bins, free energies, mean energy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ndsm_jax.evaluation import distances

if TYPE_CHECKING:
    from ndsm_jax.datasets.boltzmann import TorsionModel

Array = np.ndarray

BOLTZMANN_METRICS: dict[str, str] = {
    "kl": "Kullback-Leibler divergence of the binned samples from the exact density, nats",
    "tv": "total variation of the same bins",
    "kl_phi": "Kullback-Leibler divergence of phi's marginal, nats",
    "kl_psi": "the same of psi's",
    "mirror_error": "error of the free energy of the mirrored half, right minus left, kT",
    "mirror_error_se": "its standard error, from the number of samples",
    "basin_error": "root mean square error of the basins' free energies, kT",
    "basin_error_se": "what its square root of the expectation is for exact draws",
    "energy_error": "error of the mean energy, kT",
    "energy_error_se": "its standard error, from the number of samples",
    "radius_ratio": "mean distance of a state to the torus, over the exact one; not of angles",
}
"""What `torsion_scores` measures."""


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


def kl_divergence(counts: Array, probabilities: Array) -> float:
    """KL(q | p) = sum_b q_b log(q_b / p_b) of the frequencies q of `counts` and p > 0, in nats.

    For n exact draws into B bins it is about (B - 1) / (2 n), not 0 (2 n KL is the G statistic).

    Raises:
      ValueError: shapes that differ, no counts, or a bin of probability 0 that holds any.
    """
    from scipy.special import rel_entr

    q, p = _frequencies(counts, probabilities)
    return float(rel_entr(q, p).sum())


def total_variation(counts: Array, probabilities: Array) -> float:
    """Total variation sum_b |q_b - p_b| / 2 of the frequencies q of `counts` and p.

    Raises:
      ValueError: as `kl_divergence`.
    """
    q, p = _frequencies(counts, probabilities)
    return distances.total_variation(q, p)


def free_energy_difference(count: float, reference: float) -> Estimate:
    """F - F_ref = -log(P / P_ref) in kT, from the samples in either state.

    Half a sample is added to both, which removes the bias of order 1 / n and keeps an empty state
    finite. The variance of the logarithm of a ratio of multinomial counts is 1 / n + 1 / n_ref.

    Raises:
      ValueError: a negative count.
    """
    if min(count, reference) < 0:
        raise ValueError(f"counts must not be negative, got {count} and {reference}")
    n, m = count + 0.5, reference + 0.5
    return Estimate(float(-np.log(n / m)), float(np.sqrt(1 / n + 1 / m)))


def torsion_scores(model: TorsionModel, y: Array, *, bins: int = 24) -> dict[str, float]:
    """The `BOLTZMANN_METRICS` of states y [n, 4], or of angles [n, 2]: without the radii.

    What is not finite is left out.

    Args:
      model: the exact density.
      y: samples.
      bins: a side of the grid of phi and psi; 24 are of 15 degrees.

    Raises:
      ValueError: no finite state, or bins that do not divide 720.
    """
    from ndsm_jax.datasets import boltzmann

    y = np.asarray(y, np.float64)
    y = y[np.isfinite(y).all(axis=1)]
    if not len(y):
        raise ValueError("torsion_scores: no finite state")
    angles = boltzmann.to_angles(y)
    exact = model.bin_probabilities(bins)
    counts = boltzmann.angle_counts(y, bins)
    left, right = model.basin_probabilities.reshape(2, 2).sum(axis=1)
    basins = np.bincount(boltzmann.basin(angles), minlength=len(boltzmann.BASINS))
    mirrored = free_energy_difference(basins[2:].sum(), basins[:2].sum())
    n, p = len(y), model.basin_probabilities
    errors = np.log((basins + 0.5) / (n + 0.5)) - np.log(p)
    energies = model.energy(angles)
    scores = {
        "kl": kl_divergence(counts, exact),
        "tv": total_variation(counts, exact),
        "kl_phi": kl_divergence(counts.sum(axis=1), exact.sum(axis=1)),
        "kl_psi": kl_divergence(counts.sum(axis=0), exact.sum(axis=0)),
        "mirror_error": mirrored.value + float(np.log(right / left)),
        "mirror_error_se": mirrored.standard_error,
        "basin_error": float(np.sqrt(np.mean(errors**2))),
        "basin_error_se": float(np.sqrt(np.mean((1 - p) / (n * p)))),
        "energy_error": float(energies.mean() - model.mean_energy),
        "energy_error_se": float(energies.std() / np.sqrt(n)),
    }
    if y.shape[1] == 4:
        radial = np.linalg.norm(boltzmann.radii(y) - 1, axis=1).mean()
        # The mean of the Rayleigh law, the norm of two normals.
        scores["radius_ratio"] = float(radial / (model.radial_std * np.sqrt(np.pi / 2)))
    return scores


def _frequencies(counts: Array, probabilities: Array) -> tuple[Array, Array]:
    counts, p = np.asarray(counts, np.float64), np.asarray(probabilities, np.float64)
    if counts.shape != p.shape or counts.sum() <= 0 or np.any(counts[p <= 0] > 0):
        raise ValueError(
            f"counts {counts.shape} and probabilities {p.shape} must be of one shape, with samples,"
            " and none where the probability is 0"
        )
    return counts / counts.sum(), p / p.sum()
