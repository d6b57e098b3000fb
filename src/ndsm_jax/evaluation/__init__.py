"""How close samples are to data: distances, neighbours, classifier features, and all of them."""

from ndsm_jax.evaluation.agreement import AGREEMENTS, Starts, agreement
from ndsm_jax.evaluation.classifier import ImageClassifier, train_classifier
from ndsm_jax.evaluation.distances import (
    Accuracy,
    energy_distance,
    median_distance,
    mmd,
    sliced_wasserstein,
    total_variation,
    two_sample_accuracy,
)
from ndsm_jax.evaluation.evaluator import evaluator, evaluator_if_labelled
from ndsm_jax.evaluation.features import Moments, frechet_distance, inception_score, moments
from ndsm_jax.evaluation.neighbours import (
    is_memorised,
    nearest_distances,
    precision_recall_density_coverage,
)
from ndsm_jax.evaluation.reference import Summary, fid_report, reference, summarise
from ndsm_jax.evaluation.suite import METRICS, evaluate

__all__ = [
    "AGREEMENTS",
    "METRICS",
    "Accuracy",
    "ImageClassifier",
    "Moments",
    "Starts",
    "Summary",
    "agreement",
    "energy_distance",
    "evaluate",
    "evaluator",
    "evaluator_if_labelled",
    "fid_report",
    "frechet_distance",
    "inception_score",
    "is_memorised",
    "median_distance",
    "mmd",
    "moments",
    "nearest_distances",
    "precision_recall_density_coverage",
    "reference",
    "sliced_wasserstein",
    "summarise",
    "total_variation",
    "train_classifier",
    "two_sample_accuracy",
]
