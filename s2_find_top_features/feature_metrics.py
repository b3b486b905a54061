"""Metrics of sparse features against labels, for all features of an SAE at once.

Arrays in, numbers out. Every kernel works on the stored (non-zero) values and accounts for the zeros in
closed form, so that the result equals that of a dense computation, ties and zeros included. Sums that decide
ranks (mid-ranks, pairs) are sums of integers and halves below 2^53: exact, whatever their order.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from s2_find_top_features.sparse_columns import SparseColumns, segment_sums

LABELS = (0, 1, 2, 3)
THRESHOLD_QUANTILE = 0.95
"""A feature fires on a sentence when its activation exceeds this quantile of the label-0 activations."""


@dataclass(frozen=True)
class LabelledColumns:
    """Activations with their sentences' labels, and what several metrics take from both.

    Attributes:
        columns: the activations.
        labels: int64 [n], each one of `LABELS`.
    """

    columns: SparseColumns
    labels: np.ndarray

    @cached_property
    def n_by_label(self) -> np.ndarray:
        """Number of sentences of each label: int64 [4]."""
        return np.bincount(self.labels, minlength=len(LABELS))

    @cached_property
    def label(self) -> np.ndarray:
        """Label of each stored value's sentence: int8 [n_values]."""
        return self.labels.astype(np.int8)[self.columns.row]

    @cached_property
    def active_by_label(self) -> np.ndarray:
        """Number of active sentences by feature and label: int64 [n_features, 4]."""
        return np.bincount(self._cell, minlength=4 * self.columns.n_features).reshape(-1, 4)

    @cached_property
    def sum_by_label(self) -> np.ndarray:
        """Sum of the activations by feature and label: float64 [n_features, 4]."""
        return self._by_label(self.columns.value)

    @cached_property
    def excess_by_label(self) -> np.ndarray:
        """Sum of the excess ranks by feature and label: float64 [n_features, 4]."""
        return self._by_label(self.columns.excess_rank)

    @cached_property
    def pairs_won(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mann-Whitney U, a tie counting half, of three sets of label pairs (low, high).

        A pair of sentences is won where the one with the higher label has the higher activation.

        Returns:
            float64 [n_features] each: of (0, 3); of (0, 3), (1, 3) and (2, 3); of (0, 1), (0, 2) and (1, 2).
        """
        first, _ = self.columns.ties
        bounds = np.append(first, len(self.label))
        n_runs = np.bincount(self.columns.feature[first], minlength=self.columns.n_features)
        # Of label a: `up_to` counts its values before each run, `here` those in the run, and `around` twice
        # those before plus those in it: what a value of the run wins against them, in halves.
        counts = [_count_before(self.label == label) for label in LABELS]
        up_to = [of_label[bounds] for of_label in counts]
        here = [of_label[1:] - of_label[:-1] for of_label in up_to]
        around = [of_label[1:] + of_label[:-1] for of_label in up_to]
        before = [of_label[self.columns.starts[:-1]] for of_label in counts]
        active = self.active_by_label.T
        zero = self.n_by_label[:, None] - active

        def won(high_and_lows: dict[int, tuple[int, ...]]) -> np.ndarray:
            stored = sum(
                here[high] * sum(around[low] for low in lows) for high, lows in high_and_lows.items()
            )
            halves = segment_sums(np.asarray(stored, dtype=np.int64), n_runs)
            for high, lows in high_and_lows.items():
                for low in lows:
                    halves += active[high] * (2 * zero[low] - 2 * before[low]) + zero[high] * zero[low]
            return halves / 2

        return won({3: (0,)}), won({3: (0, 1, 2)}), won({1: (0,), 2: (0, 1)})

    @cached_property
    def deviations(self) -> tuple[np.ndarray, np.ndarray]:
        """Deviations of the activations from their feature's mean, zeros included.

        Taken from the mean before they are squared or summed, so that a feature that hardly varies keeps
        its digits.

        Returns:
            N times the variance, float64 [n_features], exactly 0 for a feature that never varies; and the
            sum of the deviations by label, float64 [n_features, 4].
        """
        columns = self.columns
        mean = columns.sums(columns.value) / max(columns.n, 1)
        deviation = columns.value - mean[columns.feature]
        by_label = self._by_label(deviation) - (self.n_by_label - self.active_by_label) * mean[:, None]
        total = columns.sums(deviation * deviation) + (columns.n - columns.n_active) * mean**2
        return np.where(columns.rank_variance > 0, total, 0.0), by_label

    @cached_property
    def _cell(self) -> np.ndarray:
        return self.columns.feature * np.int32(4) + self.label

    def _by_label(self, weights: np.ndarray) -> np.ndarray:
        n_cells = 4 * self.columns.n_features
        return np.bincount(self._cell, weights=weights, minlength=n_cells).reshape(-1, 4)


def pearson(data: LabelledColumns) -> np.ndarray:
    """Pearson correlation of each feature with the labels: float64 [n_features], NaN for a constant."""
    if not data.columns.n:
        return np.full(data.columns.n_features, np.nan)
    deviation = np.array(LABELS) - data.labels.mean()
    label_variance = float(data.n_by_label @ deviation**2)
    squared_deviation, deviation_by_label = data.deviations
    return _ratio(_over_labels(deviation_by_label, deviation), np.sqrt(squared_deviation * label_variance))


def label_rank_deviations(n_by_label: np.ndarray) -> np.ndarray:
    """Mid-rank of each label minus the mean rank: float64 [4], for counts int [4]."""
    mid_rank = np.cumsum(n_by_label) - (n_by_label - 1) / 2
    return mid_rank - (n_by_label.sum() + 1) / 2


def spearman(data: LabelledColumns) -> np.ndarray:
    """Spearman correlation (mid-ranks for ties) with the labels: float64 [n_features], NaN for a constant."""
    deviation = label_rank_deviations(data.n_by_label)
    label_variance = float(data.n_by_label @ deviation**2)
    return _ratio(
        _over_labels(data.excess_by_label, deviation), np.sqrt(data.columns.rank_variance * label_variance)
    )


def auroc_3_vs_0(data: LabelledColumns) -> np.ndarray:
    """Chance that a label-3 sentence has a higher activation than a label-0 one, ties counting half.

    Returns:
        float64 [n_features]; 0.5 for a feature that never fires; NaN where a label is absent.
    """
    return _share(data.pairs_won[0], int(data.n_by_label[3] * data.n_by_label[0]))


def auroc_3_vs_rest(data: LabelledColumns) -> np.ndarray:
    """As `auroc_3_vs_0`, label 3 against all other labels: float64 [n_features]."""
    return _share(data.pairs_won[1], int(data.n_by_label[3] * data.n_by_label[:3].sum()))


def trend(data: LabelledColumns) -> np.ndarray:
    """Jonckheere-Terpstra statistic over its maximum: float64 [n_features], 0.5 without a trend.

    The sum of the Mann-Whitney U of every pair of labels, divided by the number of pairs of sentences
    with different labels. NaN with one label only.
    """
    n = data.n_by_label
    n_pairs = (int(n.sum()) ** 2 - int((n**2).sum())) // 2
    return _share(data.pairs_won[1] + data.pairs_won[2], n_pairs)


def means_by_label(data: LabelledColumns) -> np.ndarray:
    """Mean activation per label: float64 [4, n_features], NaN for a label that does not occur."""
    n = data.n_by_label[:, None]
    return np.where(n > 0, data.sum_by_label.T / np.maximum(n, 1), np.nan)


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


def firing_threshold(data: LabelledColumns) -> np.ndarray:
    """The `THRESHOLD_QUANTILE` of the label-0 activations: float64 [n_features], NaN without label 0."""
    return quantile(data.columns.subset(data.labels == 0), THRESHOLD_QUANTILE)


def crossfitted_rates(data: LabelledColumns, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR on label 3 and FPR on label 0, each sentence judged by a threshold from the other folds.

    With the threshold from the same sentences the FPR would be 5% by construction.

    Args:
        data: the train sentences.
        fold: int [n], the fold of each sentence, from 0.

    Returns:
        TPR and FPR, float64 [n_features]; NaN where the label is absent, or where the other folds have no
        label 0 to take a threshold from.
    """
    is_0 = data.labels == 0
    of_0 = data.columns.subset(is_0)
    n_folds = int(fold.max(initial=0)) + 1
    threshold = np.stack([quantile(of_0.subset(fold[is_0] != k), THRESHOLD_QUANTILE) for k in range(n_folds)])
    return _rates(data, threshold, fold)


def rates(data: LabelledColumns, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR on label 3 and FPR on label 0 at thresholds (float64 [n_features]) that were fitted elsewhere.

    A sentence fires where its activation exceeds the threshold, so a zero never does. NaN for an absent
    label or threshold.
    """
    return _rates(data, threshold[None], np.zeros(data.columns.n, dtype=np.int64))


def metrics_of_split(data: LabelledColumns, tpr: np.ndarray, fpr: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of `ranked_features.METRICS` on one split.

    Args:
        data: the split's sentences.
        tpr: float64 [n_features], cross-fitted on train, at train's threshold on held-out.
        fpr: likewise.

    Returns:
        Name to float64 [n_features]; NaN where a metric does not exist (constant feature, absent label).
        ``separation`` is (mean_3 - mean_0) / std over all sentences (population std). ``monotonicity`` is
        1 where mean_0 <= mean_1 <= mean_2 <= mean_3, else 0. ``trend`` is the chance that of two
        sentences with different labels the one with the higher label has the higher activation, ties
        counting half. ``interpretability_score`` is 0.4 pearson + 0.3 separation + 0.3 (tpr - fpr).
    """
    columns = data.columns
    means = means_by_label(data)
    std = np.sqrt(data.deviations[0] / max(columns.n, 1))
    correlation = pearson(data)
    separation = _ratio(means[3] - means[0], std)
    rising = np.where(np.isnan(means).any(axis=0), np.nan, (np.diff(means, axis=0) >= 0).all(axis=0))
    return {
        "interpretability_score": 0.4 * correlation + 0.3 * separation + 0.3 * (tpr - fpr),
        "pearson": correlation,
        "spearman": spearman(data),
        "separation": separation,
        "tpr": tpr,
        "fpr": fpr,
        "auroc_3_vs_0": auroc_3_vs_0(data),
        "auroc_3_vs_rest": auroc_3_vs_rest(data),
        **{f"mean_{label}": means[label] for label in LABELS},
        "monotonicity": rising,
        "trend": trend(data),
        "density": _share(columns.n_active, columns.n),
    }


def _rates(data: LabelledColumns, threshold: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates at a threshold per fold and feature, float64 [n_folds, n_features]."""
    columns = data.columns
    if np.isnan(threshold).any():
        nothing = np.full(columns.n_features, np.nan)
        return nothing, nothing
    both = []
    offset = (fold * columns.n_features).astype(np.int32)
    for label in (3, 0):
        of_label = np.flatnonzero(data.label == label)
        feature = columns.feature[of_label]
        cell = offset[columns.row[of_label]] + feature
        firing = columns.value[of_label] > threshold.ravel()[cell]
        fired = np.bincount(feature[firing], minlength=columns.n_features)
        both.append(_share(fired, int(data.n_by_label[label])))
    return both[0], both[1]


def _over_labels(by_label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sum over labels of [n_features, 4]; a matrix product would round by the number of rows."""
    return (by_label * weight).sum(axis=1)


def _count_before(member: np.ndarray) -> np.ndarray:
    """How many members stand before each place and in all: int64 [n + 1], for bool [n]."""
    counts = np.zeros(len(member) + 1, dtype=np.int64)
    np.cumsum(member, out=counts[1:])
    return counts


def _order_statistic(columns: SparseColumns, k: int) -> np.ndarray:
    """The k-th smallest value (from 0) of each feature: 0 while the zeros last."""
    beyond_zeros = k - (columns.n - columns.n_active)
    stored = beyond_zeros >= 0
    result = np.zeros(columns.n_features)
    result[stored] = columns.value[columns.starts[:-1][stored] + beyond_zeros[stored]]
    return result


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    positive = denominator > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)


def _share(count: np.ndarray, total: int) -> np.ndarray:
    return count / total if total else np.full(len(count), np.nan)
