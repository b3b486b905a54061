"""Metrics of sparse features against labels, for all features of an SAE at once.

Arrays in, numbers out. Activations are non-negative and mostly zero; every kernel works on the stored
(non-zero) values and accounts for the zeros in closed form, so that the result equals that of a dense
computation, ties and zeros included.

Names: f counts features, i counts stored values. n is the number of sentences looked at.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

LABELS = (0, 1, 2, 3)
THRESHOLD_QUANTILE = 0.95
"""A feature fires on a sentence when its activation exceeds this quantile of the label-0 activations."""


@dataclass(frozen=True)
class SparseColumns:
    """The stored values of [n, n_features] activations, sorted by feature and, within it, by value.

    Attributes:
        feature: int64 [n_values], ascending.
        value: float64 [n_values], above zero, ascending within a feature.
        row: int64 [n_values], the sentence.
        n: number of sentences.
        n_features: number of features.
    """

    feature: np.ndarray
    value: np.ndarray
    row: np.ndarray
    n: int
    n_features: int

    @classmethod
    def from_csr(
        cls, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]
    ) -> "SparseColumns":
        """From compressed sparse rows (SciPy's csr layout) of non-negative values."""
        row = np.repeat(np.arange(shape[0]), np.diff(indptr))
        order = np.lexsort((data, indices))
        return cls(
            feature=indices[order].astype(np.int64),
            value=data[order].astype(np.float64),
            row=row[order],
            n=shape[0],
            n_features=shape[1],
        )

    def subset(self, keep: np.ndarray) -> "SparseColumns":
        """The sentences for which ``keep`` (bool [n]) is True, renumbered; the sorting stays."""
        kept = keep[self.row]
        number = np.cumsum(keep) - 1
        return SparseColumns(
            self.feature[kept], self.value[kept], number[self.row[kept]], int(keep.sum()), self.n_features
        )

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Sum of a weight per stored value over each feature: float64 [n_features]."""
        return np.bincount(self.feature, weights=weights, minlength=self.n_features)

    @cached_property
    def n_active(self) -> np.ndarray:
        """Number of sentences on which each feature is active: int64 [n_features]."""
        return np.bincount(self.feature, minlength=self.n_features)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each feature's values start: int64 [n_features + 1]."""
        return np.concatenate([[0], np.cumsum(self.n_active)])

    @cached_property
    def _ties(self) -> tuple[np.ndarray, np.ndarray]:
        """First index and length of every run of equal values within a feature."""
        if not len(self.value):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        changes = (self.feature[1:] != self.feature[:-1]) | (self.value[1:] != self.value[:-1])
        first = np.flatnonzero(np.concatenate([[True], changes]))
        return first, np.diff(np.concatenate([first, [len(self.value)]]))

    @cached_property
    def excess_rank(self) -> np.ndarray:
        """Mid-rank of each stored value minus the mid-rank of its feature's zeros: float64 [n_values].

        Ranks count from 1; z zeros share the rank (z + 1) / 2, or would, were there any.
        """
        first, length = self._ties
        n_zero = self.n - self.n_active
        position = np.repeat(first + (length - 1) / 2, length) - self.starts[self.feature]
        rank = n_zero[self.feature] + position + 1
        return rank - (n_zero[self.feature] + 1) / 2

    @cached_property
    def rank_variance(self) -> np.ndarray:
        """N times the variance of each feature's mid-ranks: float64 [n_features].

        (n^3 - n - sum over ties of (t^3 - t)) / 12, the zeros being one tie.
        """
        first, length = self._ties
        ties = self.feature[first] if len(first) else first
        cubes = np.bincount(ties, weights=length.astype(float) ** 3 - length, minlength=self.n_features)
        n_zero = (self.n - self.n_active).astype(float)
        return (float(self.n) ** 3 - self.n - cubes - (n_zero**3 - n_zero)) / 12


def pearson(columns: SparseColumns, labels: np.ndarray) -> np.ndarray:
    """Pearson correlation of each feature with the labels: float64 [n_features], NaN for a constant."""
    deviation = labels - labels.mean()
    covariance = columns.sums(columns.value * deviation[columns.row])
    return _ratio(covariance, np.sqrt(_squared_deviation(columns) * (deviation @ deviation)))


def spearman(columns: SparseColumns, labels: np.ndarray) -> np.ndarray:
    """Spearman correlation (mid-ranks for ties) with the labels: float64 [n_features], NaN for a constant."""
    ranks = _mid_ranks(labels)
    deviation = ranks - ranks.mean()
    covariance = columns.sums(columns.excess_rank * deviation[columns.row])
    return _ratio(covariance, np.sqrt(columns.rank_variance * (deviation @ deviation)))


def auroc(columns: SparseColumns, positive: np.ndarray) -> np.ndarray:
    """Chance that a positive sentence has the higher activation, ties counting half (Mann-Whitney U).

    Args:
        columns: of the positive and negative sentences together.
        positive: bool [n].

    Returns:
        float64 [n_features]; 0.5 for a feature that never fires; NaN where a class is absent.
    """
    n_positive = int(positive.sum())
    n_negative = columns.n - n_positive
    if not n_positive or not n_negative:
        return np.full(columns.n_features, np.nan)
    zero_rank = (columns.n - columns.n_active + 1) / 2
    rank_sum = columns.sums(columns.excess_rank * positive[columns.row]) + n_positive * zero_rank
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def means_by_label(columns: SparseColumns, labels: np.ndarray) -> np.ndarray:
    """Mean activation per label: float64 [4, n_features], NaN for a label that does not occur."""
    means = np.full((len(LABELS), columns.n_features), np.nan)
    for label in LABELS:
        n_label = int((labels == label).sum())
        if n_label:
            means[label] = columns.sums(columns.value * (labels[columns.row] == label)) / n_label
    return means


def quantile(columns: SparseColumns, q: float) -> np.ndarray:
    """Quantile of each feature over all its sentences, zeros included: float64 [n_features].

    Linear interpolation between order statistics, as ``numpy.quantile`` does by default. NaN without
    sentences.
    """
    if columns.n == 0:
        return np.full(columns.n_features, np.nan)
    position = q * (columns.n - 1)
    low = int(np.floor(position))
    below, above = (_order_statistic(columns, k) for k in (low, min(low + 1, columns.n - 1)))
    return below + (position - low) * (above - below)


def fires(columns: SparseColumns, threshold: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of the sentences marked in ``among`` (bool [n]) exceed each feature's threshold.

    Args:
        columns: the activations.
        threshold: float64 [n_features], at least 0; exceeding is strict, so a zero never fires.
        among: bool [n].

    Returns:
        int64 [n_features].
    """
    firing = (columns.value > threshold[columns.feature]) & among[columns.row]
    return np.bincount(columns.feature[firing], minlength=columns.n_features)


def crossfitted_rates(
    columns: SparseColumns, labels: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """TPR on label 3 and FPR on label 0, each sentence judged by a threshold from the other folds.

    With the threshold from the same sentences the FPR would be 5% by construction.

    Args:
        columns: the train sentences.
        labels: int64 [n].
        folds: (fitting indices, judged indices); every sentence is judged once.

    Returns:
        TPR and FPR, float64 [n_features]; NaN where the label is absent, or where a fold has no label 0
        to take its threshold from.
    """
    caught = np.zeros(columns.n_features)
    alarmed = np.zeros(columns.n_features)
    for fitting, judged in folds:
        threshold = quantile(columns.subset(_mask(fitting, columns.n) & (labels == 0)), THRESHOLD_QUANTILE)
        judged_mask = _mask(judged, columns.n)
        if np.isnan(threshold).any():
            return np.full(columns.n_features, np.nan), np.full(columns.n_features, np.nan)
        caught += fires(columns, threshold, judged_mask & (labels == 3))
        alarmed += fires(columns, threshold, judged_mask & (labels == 0))
    return _share(caught, int((labels == 3).sum())), _share(alarmed, int((labels == 0).sum()))


def rates(columns: SparseColumns, labels: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR on label 3 and FPR on label 0 at thresholds that were fitted elsewhere; NaN for absent labels."""
    if np.isnan(threshold).any():
        return np.full(columns.n_features, np.nan), np.full(columns.n_features, np.nan)
    tpr = _share(fires(columns, threshold, labels == 3), int((labels == 3).sum()))
    fpr = _share(fires(columns, threshold, labels == 0), int((labels == 0).sum()))
    return tpr, fpr


def metrics_of_split(
    columns: SparseColumns, labels: np.ndarray, tpr: np.ndarray, fpr: np.ndarray
) -> dict[str, np.ndarray]:
    """Every metric of `ranked_features.METRICS` on one split.

    Args:
        columns: the split's sentences.
        labels: int64 [n].
        tpr: float64 [n_features], cross-fitted on train, at train's threshold on held-out.
        fpr: likewise.

    Returns:
        Name to float64 [n_features]; NaN where a metric does not exist (constant feature, absent label).
        ``separation`` is (mean_3 - mean_0) / std over all sentences (population std). ``monotonicity`` is
        1 where mean_0 <= mean_1 <= mean_2 <= mean_3, else 0. ``trend`` is the chance that of two
        sentences with different labels the one with the higher label has the higher activation, ties
        counting half (Jonckheere-Terpstra statistic over its maximum; 0.5 is no trend).
        ``interpretability_score`` is 0.4 pearson + 0.3 separation + 0.3 (tpr - fpr).
    """
    means = means_by_label(columns, labels)
    ends = (labels == 3) | (labels == 0)
    std = np.sqrt(_squared_deviation(columns) / max(columns.n, 1))
    correlation = pearson(columns, labels)
    separation = _ratio(means[3] - means[0], std)
    rising = np.where(np.isnan(means).any(axis=0), np.nan, (np.diff(means, axis=0) >= 0).all(axis=0))
    no_contrast = np.full(columns.n_features, np.nan)
    return {
        "interpretability_score": 0.4 * correlation + 0.3 * separation + 0.3 * (tpr - fpr),
        "pearson": correlation,
        "spearman": spearman(columns, labels),
        "separation": separation,
        "tpr": tpr,
        "fpr": fpr,
        "auroc_3_vs_0": auroc(columns.subset(ends), labels[ends] == 3),
        "auroc_3_vs_rest": auroc(columns, labels == 3),
        **{f"mean_{label}": means[label] for label in LABELS},
        "monotonicity": rising,
        "trend": trend(columns, labels) if columns.n else no_contrast,
        "density": columns.n_active / columns.n if columns.n else no_contrast,
    }


def trend(columns: SparseColumns, labels: np.ndarray) -> np.ndarray:
    """Jonckheere-Terpstra statistic over its maximum: float64 [n_features], 0.5 without a trend.

    The sum of the Mann-Whitney U of every pair of labels, divided by the number of pairs of sentences
    with different labels. NaN with one label only.
    """
    concordant = np.zeros(columns.n_features)
    n_pairs = 0
    for low in LABELS:
        for high in LABELS[low + 1 :]:
            pair = (labels == low) | (labels == high)
            weight = int((labels == low).sum()) * int((labels == high).sum())
            if weight:
                concordant += weight * auroc(columns.subset(pair), labels[pair] == high)
                n_pairs += weight
    return concordant / n_pairs if n_pairs else np.full(columns.n_features, np.nan)


def _squared_deviation(columns: SparseColumns) -> np.ndarray:
    """N times the variance of each feature, zeros included; exactly 0 for a feature that never varies."""
    mean = columns.sums(columns.value) / max(columns.n, 1)
    stored = columns.sums((columns.value - mean[columns.feature]) ** 2)
    total = stored + (columns.n - columns.n_active) * mean**2
    return np.where(columns.rank_variance > 0, total, 0.0)


def _order_statistic(columns: SparseColumns, k: int) -> np.ndarray:
    """The k-th smallest value (from 0) of each feature: 0 while the zeros last."""
    beyond_zeros = k - (columns.n - columns.n_active)
    stored = beyond_zeros >= 0
    result = np.zeros(columns.n_features)
    result[stored] = columns.value[columns.starts[:-1][stored] + beyond_zeros[stored]]
    return result


def _mid_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    positive = denominator > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)


def _share(count: np.ndarray, total: int) -> np.ndarray:
    return count / total if total else np.full(len(count), np.nan)


def _mask(indices: np.ndarray, n: int) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[indices] = True
    return mask
