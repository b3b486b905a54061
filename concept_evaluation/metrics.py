"""Scores of predictions against labels, fast enough to be resampled a thousand times.

Every score is None where its definition has no value (one class absent, no variation, no rows).
"""

import numpy as np

CALIBRATION_BINS = 10


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the mean of theirs: float64 [n].

    As ``scipy.stats.rankdata``, whose checks cost more than the ranks of a few hundred values do.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: float [n].
        positive: bool [n].

    Returns:
        0 to 1, by mid-ranks (Mann-Whitney U over the number of pairs); None where one of the two classes
        is absent.
    """
    if positive.all() or not positive.any():
        return None
    n_positive = int(positive.sum())
    rank_sum = float(mid_ranks(scores)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * (len(positive) - n_positive))


def accuracy(target: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of rows whose predicted label is the true one; both [n]."""
    return float(np.mean(target == predicted)) if len(target) else None


def confusion_matrix(target: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts of (true label, predicted label): int64 [n_labels, n_labels], rows are true labels.

    Args:
        target: [n], each one of ``labels``.
        predicted: [n], each one of ``labels``.
        labels: [n_labels], ascending and distinct.
    """
    n_labels = len(labels)
    cell = np.searchsorted(labels, target) * n_labels + np.searchsorted(labels, predicted)
    return np.bincount(cell, minlength=n_labels**2).reshape(n_labels, n_labels)


def macro_f1(confusion: np.ndarray) -> float | None:
    """Mean F1 over the labels that occur among the true or the predicted ones.

    Args:
        confusion: [n_labels, n_labels] counts from `confusion_matrix`.
    """
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    occurs = occurrences > 0
    if not occurs.any():
        return None
    return float(np.mean(2 * np.diagonal(confusion)[occurs] / occurrences[occurs]))


def quadratic_weighted_kappa(confusion: np.ndarray, labels: np.ndarray) -> float | None:
    """Cohen's kappa with quadratic weights: agreement beyond chance, a miss by two counting fourfold.

    Args:
        confusion: [n_labels, n_labels] counts from `confusion_matrix`.
        labels: [n_labels]; the weight of a miss is the squared difference of the labels.

    Returns:
        1 for agreement, 0 for chance; None where every row, true and predicted, has one label.
    """
    expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / max(confusion.sum(), 1)
    weights = np.subtract.outer(labels, labels).astype(np.float64) ** 2
    by_chance = float((weights * expected).sum())
    return 1 - float((weights * confusion).sum()) / by_chance if by_chance > 0 else None


def mean_absolute_error(target: np.ndarray, predicted: np.ndarray) -> float | None:
    """Mean distance between prediction and target; both [n]."""
    return float(np.mean(np.abs(target - predicted))) if len(target) else None


def r2(target: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of the target's variance that is explained: 0 for its own mean, negative below that.

    Args:
        target: float [n_rows].
        predicted: float [n_rows].

    Returns:
        At most 1; None where the target does not vary.
    """
    if len(target) == 0 or np.ptp(target) == 0:
        return None
    residual = float(np.sum((target - predicted) ** 2))
    return 1 - residual / float(np.sum((target - np.mean(target)) ** 2))


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation of two arrays [n_rows], with mid-ranks for ties.

    None where there are fewer than two rows or one side does not vary.
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    first_ranks, second_ranks = mid_ranks(first), mid_ranks(second)
    first_ranks -= first_ranks.mean()
    second_ranks -= second_ranks.mean()
    covariance = float(first_ranks @ second_ranks)
    return covariance / float(np.sqrt((first_ranks @ first_ranks) * (second_ranks @ second_ranks)))


def log_loss(target: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean negative logarithm of the probability given to the true label, in nats.

    Args:
        target: [n], each one of ``labels``.
        probabilities: float [n, n_labels]; rows sum to 1. A probability of 0 counts as the smallest
            step above 0 that float64 resolves next to 1, so that one miss does not make the mean infinite.
        labels: [n_labels], ascending.
    """
    if len(target) == 0:
        return None
    of_true_label = probabilities[np.arange(len(target)), np.searchsorted(labels, target)]
    return float(np.mean(-np.log(np.maximum(of_true_label, np.finfo(np.float64).eps))))


def brier_score(target: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean squared distance of the probabilities from the truth, summed over labels (Brier 1950).

    Args:
        target: [n], each one of ``labels``.
        probabilities: float [n, n_labels]; rows sum to 1.
        labels: [n_labels], ascending.

    Returns:
        0 for certainty in the true labels, 2 for certainty in wrong ones; None without rows.
    """
    if len(target) == 0:
        return None
    truth = target[:, None] == labels
    return float(np.mean(np.sum((probabilities - truth) ** 2, axis=1)))


def expected_calibration_error(
    target: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, n_bins: int = CALIBRATION_BINS
) -> float | None:
    """How far the probability of the predicted label is from the share of right predictions.

    Rows are sorted by that probability into bins of equal width; the distance of each bin's mean
    probability from its share of right predictions is averaged with the bins' sizes as weights (Naeini,
    Cooper and Hauskrecht, AAAI 2015). Chance alone keeps it above 0 where bins hold few rows.

    Args:
        target: [n], each one of ``labels``.
        probabilities: float [n, n_labels]; rows sum to 1.
        labels: [n_labels], ascending; the first of several most probable ones is predicted.
        n_bins: over 0 to 1; a probability on an edge belongs to the bin below.

    Returns:
        0 to 1; None without rows.
    """
    if len(target) == 0:
        return None
    confidence = probabilities.max(axis=1)
    right = labels[probabilities.argmax(axis=1)] == target
    place = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    excess = np.bincount(place, weights=confidence - right, minlength=n_bins)
    return float(np.abs(excess).sum() / len(target))
