"""Scores of predictions against labels."""

import numpy as np
from sklearn.metrics import roc_auc_score


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: float [n].
        positive: bool [n].

    Returns:
        0 to 1; None where one of the two classes is absent.
    """
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))
