"""Reference measures: laws to which a process noises, with their score.

`Reference` is the contract; a Gaussian mixture fitted to the data is the one that most runs use.
"""

from ndsm_jax.references.choosing import CRITERIA, Choice, choose, kinds_for
from ndsm_jax.references.conditional import Conditional, conditional
from ndsm_jax.references.energy import (
    Energy,
    energy,
    largest_curvature,
    normalised,
    nuts_samples,
    rejection_samples,
)
from ndsm_jax.references.fitting import (
    AUTO,
    INITS,
    SOLVERS,
    FitReport,
    check_samples,
    fit,
    fit_bytes,
    floored,
    solver_for,
)
from ndsm_jax.references.mixtures import (
    COVARIANCES,
    GaussianMixture,
    LowRank,
    mixture,
    reweighted,
    standard_normal,
)
from ndsm_jax.references.others import (
    Logistic,
    StudentT,
    UniformTorus,
    fit_logistic,
    fit_student_t,
    logistic,
    student_t,
    uniform_torus,
)
from ndsm_jax.references.reference import Reference, has_constant
from ndsm_jax.references.tilted import (
    Centres,
    Partition,
    Tilted,
    TiltReport,
    centres,
    fit_tilt,
    metastable_states,
    tilted,
)

__all__ = [
    "AUTO",
    "COVARIANCES",
    "CRITERIA",
    "INITS",
    "SOLVERS",
    "Centres",
    "Choice",
    "Conditional",
    "Energy",
    "FitReport",
    "GaussianMixture",
    "Logistic",
    "LowRank",
    "Partition",
    "Reference",
    "StudentT",
    "TiltReport",
    "Tilted",
    "UniformTorus",
    "centres",
    "check_samples",
    "choose",
    "conditional",
    "energy",
    "fit",
    "fit_bytes",
    "fit_logistic",
    "fit_student_t",
    "fit_tilt",
    "floored",
    "has_constant",
    "kinds_for",
    "largest_curvature",
    "logistic",
    "metastable_states",
    "mixture",
    "normalised",
    "nuts_samples",
    "rejection_samples",
    "reweighted",
    "solver_for",
    "standard_normal",
    "student_t",
    "tilted",
    "uniform_torus",
]
