"""A Boltzmann density of two torsion angles whose mirror symmetry is broken by a known amount.

A peptide of achiral residues (glycine) has the energy U(phi, psi) = U(-phi, -psi): each conformer
is as probable as its mirror image. A chiral residue (alanine) breaks that. `TorsionModel` has an
energy of this kind, with barriers and basins like those of the alanine dipeptide, in four terms
instead of a force field, so that everything about it is exact: its density is normalised by
quadrature, and its samples come by rejection, not from a Markov chain.

Energies are in units of kT and angles in radians.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

Array = np.ndarray

Terms = tuple[tuple[float, int, int], ...]
"""(c, m, n): the energy c cos(m phi + n psi), in kT. Unchanged by (phi, psi) -> (-phi, -psi)."""

EVEN_TERMS: Terms = (
    (2.5, 2, 0),  # barriers at phi = 0 and 180 degrees
    (1.0, 1, 0),  # the first is the higher
    (-1.25, 1, -2),  # with the next: -2.5 sin(phi) sin(2 psi), two wells of psi on each side
    (1.25, 1, 2),
    (0.4, 0, 1),  # extended conformers lie lower than helical ones
)
"""Those of `TorsionModel`."""

BASINS = ("left extended", "left helical", "right extended", "right helical")
"""Left: phi < 0. Mirror images: 0 and 2, 1 and 3."""

_CELLS = 720  # a side of the quadrature grid: half a degree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorsionModel:
    """p(phi, psi) = exp(-U(phi, psi)) / Z, U = sum c cos(m phi + n psi) + chirality sin(phi).

    The sum is over the `even_terms`.

    A state is y = (r_1 cos phi, r_1 sin phi, r_2 cos psi, r_2 sin psi), where the radii are
    independent N(1, radial_std^2), like the bonds of a molecule: stiff, and not of interest. The
    density is thus concentrated about a torus in four dimensions.

    Attributes:
      chirality: of the term that is odd under the mirror (phi, psi) -> (-phi, -psi), in kT; with 0
        the symmetry is exact.
      radial_std: standard deviation of the radii, at most 0.1, so that none is negative.
      even_terms: (c, m, n) of the terms that are even.

    Raises:
      ValueError: a radial_std outside (0, 0.1].
    """

    chirality: float = 0.75
    radial_std: float = 0.05
    even_terms: Terms = EVEN_TERMS

    def __post_init__(self) -> None:
        if not 0 < self.radial_std <= 0.1:
            raise ValueError(f"radial_std={self.radial_std}: must be in (0, 0.1]")

    def energy(self, angles: Array) -> Array:
        """U in kT, [...], of angles [..., 2]."""
        phi, psi = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
        even = sum(c * np.cos(m * phi + n * psi) for c, m, n in self.even_terms)
        return even + self.chirality * np.sin(phi)

    def log_density_of_angles(self, angles: Array) -> Array:
        """log p(phi, psi), [...], with respect to d phi d psi, of angles [..., 2]."""
        return -self.energy(angles) - self._log_partition

    def log_density(self, y: Array) -> Array:
        """Log density [...] of states y [..., 4]: p(phi, psi) prod_i N(r_i; 1, radial_std^2) / r_i.

        1 / r_i is the Jacobian of polar coordinates. What the normal law of the radii puts below 0
        is less than 1e-23 and left out.
        """
        r = radii(y)
        z = (r - 1) / self.radial_std
        log_normal = -0.5 * z**2 - np.log(self.radial_std * np.sqrt(2 * np.pi))
        return self.log_density_of_angles(to_angles(y)) + np.sum(log_normal - np.log(r), axis=-1)

    def sample_angles(self, rng: np.random.Generator, n: int) -> Array:
        """n exact draws of the angles in [-pi, pi), [n, 2], by rejection from the uniform law."""
        parts = [np.empty((0, 2))]
        while sum(map(len, parts)) < n:
            proposals = rng.uniform(-np.pi, np.pi, size=(max(4 * n, 1000), 2))
            accept = np.exp(self._energy_bound - self.energy(proposals))
            parts.append(proposals[rng.random(len(proposals)) < accept])
        return np.concatenate(parts)[:n]

    def sample(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """n exact, independent draws: states [n, 4] and their basins [n]."""
        angles = self.sample_angles(rng, n)
        return embed(angles, 1 + self.radial_std * rng.standard_normal((n, 2))), basin(angles)

    def bin_probabilities(self, bins: int) -> Array:
        """Exact probabilities [bins, bins] of equal bins of phi and psi from -pi to pi.

        Raises:
          ValueError: a number of bins that does not divide 720.
        """
        if bins < 1 or _CELLS % bins:
            raise ValueError(f"bins={bins}: must divide {_CELLS}")
        side = _CELLS // bins
        return self._cell_probabilities.reshape(bins, side, bins, side).sum(axis=(1, 3))

    @functools.cached_property
    def basin_probabilities(self) -> Array:
        """Exact probabilities of `BASINS`, [4]; -log of them are free energies in kT."""
        weights = self._cell_probabilities.ravel()
        return np.bincount(basin(_cell_centres()).ravel(), weights, minlength=len(BASINS))

    @property
    def mean_energy(self) -> float:
        """E[U] in kT."""
        return float(np.sum(self._cell_probabilities * self.energy(_cell_centres())))

    @functools.cached_property
    def _log_partition(self) -> float:
        # The midpoint rule converges faster than any power of the spacing: U is smooth and periodic
        factors = np.exp(-self.energy(_cell_centres()))
        return float(np.log(factors.mean() * (2 * np.pi) ** 2))

    @functools.cached_property
    def _cell_probabilities(self) -> Array:
        cell = (2 * np.pi / _CELLS) ** 2
        return np.exp(self.log_density_of_angles(_cell_centres())) * cell

    @functools.cached_property
    def _energy_bound(self) -> float:
        """A lower bound of U: its least value on the grid, less what a cell can hide.

        The minimum lies within h / sqrt(2) of a centre, and no second derivative exceeds L there,
        so that the centre's energy is at most L h^2 / 4 higher.
        """
        curvature = sum(abs(c) * (m**2 + n**2) for c, m, n in self.even_terms)
        curvature += abs(self.chirality)
        lowest = self.energy(_cell_centres()).min()
        return float(lowest - curvature * (2 * np.pi / _CELLS) ** 2 / 4)


def to_angles(y: Array) -> Array:
    """(phi, psi) in [-pi, pi], [..., 2], of states [..., 4], whatever their radii, or of angles."""
    y = np.asarray(y, np.float64)
    if y.shape[-1] == 2:
        return (y + np.pi) % (2 * np.pi) - np.pi
    return np.arctan2(y[..., 1::2], y[..., 0::2])


def radii(y: Array) -> Array:
    """(r_1, r_2), [..., 2], of states [..., 4]."""
    y = np.asarray(y, np.float64)
    return np.hypot(y[..., 0::2], y[..., 1::2])


def angle_counts(y: Array, bins: int) -> Array:
    """How many states [n, 4], or angles [n, 2], are in each bin of `bin_probabilities`."""
    phi, psi = to_angles(y).T
    return np.histogram2d(phi, psi, bins=bins, range=[(-np.pi, np.pi), (-np.pi, np.pi)])[0]


def embed(angles: Array, r: Array) -> Array:
    """States [..., 4] of angles and radii [..., 2]."""
    pairs = np.stack([r * np.cos(angles), r * np.sin(angles)], axis=-1)
    return pairs.reshape(*angles.shape[:-1], 4)


def mirror(y: Array) -> Array:
    """The mirror images (-phi, -psi) of states [..., 4]: a reflection, linear in y."""
    return np.asarray(y) * np.array([1, -1, 1, -1])


def basin(angles: Array) -> Array:
    """Index [...] into `BASINS` of angles [..., 2].

    Left and right by the sign of phi. Helical: psi within a right angle of -45 degrees (left) or of
    +45 degrees (right), that is, on the near side of the ridges sin(2 psi) = +-1.
    """
    phi, psi = angles[..., 0], angles[..., 1]
    right = phi >= 0
    helical = np.cos(psi - np.where(right, np.pi / 4, -np.pi / 4)) > 0
    return 2 * right.astype(int) + helical


@functools.cache
def _cell_centres() -> Array:
    centres = (np.arange(_CELLS) + 0.5) * (2 * np.pi / _CELLS) - np.pi
    return np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)
