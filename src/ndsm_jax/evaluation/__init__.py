"""How close samples are to data: distances, neighbours, classifier features, and all of them."""

from ndsm_jax.evaluation.agreement import AGREEMENTS, Starts, agreement, label_agreement
from ndsm_jax.evaluation.classifier import ImageClassifier, train_classifier
from ndsm_jax.evaluation.distances import (
    Accuracy,
    energy_distance,
    energy_gap_error,
    median_distance,
    mmd,
    sliced_gap_error,
    sliced_wasserstein,
    total_variation,
    two_sample_accuracy,
)
from ndsm_jax.evaluation.evaluator import evaluator, evaluator_if_labelled
from ndsm_jax.evaluation.features import Moments, frechet_distance, inception_score, moments
from ndsm_jax.evaluation.likelihood import (
    LIKELIHOODS,
    compared,
    kernel_density,
    level_step,
    mixture_by_bic,
    within_level,
)
from ndsm_jax.evaluation.neighbours import (
    is_memorised,
    nearest_distances,
    precision_recall_density_coverage,
)
from ndsm_jax.evaluation.reference import Summary, fid_report, reference, summarise
from ndsm_jax.evaluation.suite import METRICS, evaluate
from ndsm_jax.evaluation.tables import (
    associations,
    column_distances,
    most_associated,
    table_scores,
)

__all__ = [
    "AGREEMENTS",
    "LIKELIHOODS",
    "METRICS",
    "Accuracy",
    "ImageClassifier",
    "Moments",
    "Starts",
    "Summary",
    "agreement",
    "associations",
    "column_distances",
    "compared",
    "energy_distance",
    "energy_gap_error",
    "evaluate",
    "evaluator",
    "evaluator_if_labelled",
    "fid_report",
    "frechet_distance",
    "inception_score",
    "is_memorised",
    "kernel_density",
    "label_agreement",
    "level_step",
    "median_distance",
    "mixture_by_bic",
    "mmd",
    "moments",
    "most_associated",
    "nearest_distances",
    "precision_recall_density_coverage",
    "reference",
    "sliced_gap_error",
    "sliced_wasserstein",
    "summarise",
    "table_scores",
    "total_variation",
    "train_classifier",
    "two_sample_accuracy",
    "within_level",
]
