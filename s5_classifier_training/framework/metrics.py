"""Which scores belong to which task, and their intervals on the test rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_evaluation import metrics
from concept_evaluation.bootstrap import bootstrap_intervals
from s5_classifier_training.framework.tables import number

MAIN_SCORE = {"classification": "accuracy", "ordinal": "quadratic_weighted_kappa", "regression": "r2"}
"""The score that cv_mean, the choice of the best estimator and test_... / train_... speak of."""


@dataclass(frozen=True)
class Predictions:
    """A model's answers for some rows.

    Attributes:
        predicted: float64 [n_rows]: the most probable label, or the predicted activation.
        probabilities: float64 [n_rows, n_labels], columns as in ``labels``; None in a regression.
        labels: int64 [n_labels], ascending: every label of the dataset; None in a regression.
    """

    predicted: np.ndarray
    probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Predictions":
        """The answers for some of the rows, int or bool [n_taken]."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Predictions(self.predicted[rows], probabilities, self.labels)


def scores(target: np.ndarray, predictions: Predictions) -> dict[str, float | None]:
    """Every score of a task; None where one has no value.

    Labels are scored by accuracy, macro_f1, quadratic_weighted_kappa, mae (of the predicted label), spearman
    and auroc_3_vs_0 (both of the expected label, the mean of the labels under the predicted probabilities),
    log_loss, brier_score and expected_calibration_error. A regression is scored by r2, mae and spearman.

    Args:
        target: [n_rows].
        predictions: of the same rows.
    """
    predicted = predictions.predicted
    if predictions.probabilities is None or predictions.labels is None:
        return {
            "r2": metrics.r2(target, predicted),
            "mae": metrics.mean_absolute_error(target, predicted),
            "spearman": metrics.spearman(target, predicted),
        }
    labels, probabilities = predictions.labels, predictions.probabilities
    confusion = metrics.confusion_matrix(target, predicted, labels)
    expected_label = probabilities @ labels
    extreme = (target == 0) | (target == 3)
    return {
        "accuracy": metrics.accuracy(target, predicted),
        "macro_f1": metrics.macro_f1(confusion),
        "quadratic_weighted_kappa": metrics.quadratic_weighted_kappa(confusion, labels),
        "mae": metrics.mean_absolute_error(target, predicted),
        "spearman": metrics.spearman(target, expected_label),
        "auroc_3_vs_0": metrics.auroc(expected_label[extreme], target[extreme] == 3),
        "log_loss": metrics.log_loss(target, probabilities, labels),
        "brier_score": metrics.brier_score(target, probabilities, labels),
        "expected_calibration_error": metrics.expected_calibration_error(target, probabilities, labels),
    }


def scores_with_intervals(
    target: np.ndarray, predictions: Predictions, groups: np.ndarray, seed: int
) -> dict[str, dict[str, float | None]]:
    """Every score with its 95% bootstrap interval over groups.

    Args:
        target: [n_rows].
        predictions: of the same rows.
        groups: [n_rows]; whole groups are resampled.
        seed: of the draws; the same for every model, so that all are scored on the same resamples.

    Returns:
        Name to value, low and high; low and high are None where there is no interval.
    """
    values = scores(target, predictions)
    intervals = bootstrap_intervals(lambda rows: scores(target[rows], predictions.take(rows)), groups, seed)
    return {name: _entry(value, intervals[name]) for name, value in values.items()}


def with_interval(entry: Mapping[str, Any] | None) -> str:
    """``0.512 [0.404, 0.620]``, as tables show a score; a dash where there is no value."""
    if entry is None or entry["value"] is None:
        return "-"
    if entry["low"] is None:
        return number(entry["value"])
    return f"{number(entry['value'])} [{number(entry['low'])}, {number(entry['high'])}]"


def _entry(value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval if value is not None and interval is not None else (None, None)
    return {"value": value, "low": low, "high": high}
