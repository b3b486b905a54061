"""Ordinal classification from logistic regressions, one per threshold between neighbouring labels."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression


class OrdinalClassifier(ClassifierMixin, BaseEstimator):
    """Labels whose order counts: each threshold asks whether the label lies above it.

    The probability of a label is the difference of two neighbouring answers (Frank and Hall, "A Simple
    Approach to Ordinal Classification", ECML 2001). The thresholds are fitted one by one, so an answer may
    exceed the one below it by a little; it is then lowered to it, and no probability is below 0. Unlike in a
    proportional-odds model, each threshold has weights of its own.

    Attributes:
        C: inverse strength of each logistic regression's L2 penalty.
        max_iter: of each logistic regression.
        classes_: the labels, ascending.
        thresholds_: the fitted logistic regressions, lowest threshold first.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 100) -> None:
        self.C = C
        self.max_iter = max_iter

    def fit(self, X: np.ndarray, y: np.ndarray) -> "OrdinalClassifier":
        """Fit every threshold.

        Args:
            X: [n_rows, n_inputs].
            y: [n_rows], at least two different labels.

        Raises:
            ValueError: a single label, or a value that LogisticRegression refuses.
        """
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError("an ordinal classifier needs two different labels")
        self.thresholds_ = [
            LogisticRegression(C=self.C, max_iter=self.max_iter).fit(X, y > label)
            for label in self.classes_[:-1]
        ]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of each label: float64 [n_rows, n_labels], rows sum to 1."""
        answers = [threshold.predict_proba(X)[:, 1] for threshold in self.thresholds_]
        above = np.minimum.accumulate(np.stack(answers, axis=1).astype(np.float64), axis=1)
        return -np.diff(above, axis=1, prepend=1.0, append=0.0)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable label: [n_rows]."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
