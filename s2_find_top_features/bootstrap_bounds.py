"""The best that each feature could reach in each bootstrap, for all features of an SAE at once.

A bootstrap is a weight per sentence: how often it was drawn. Sums of a feature's activations, their squares
and counts of its active sentences, by label and under all bootstraps, are sparse products
[n_features, n] x [n, n_bootstraps]: means, Pearson and separation follow. What needs the order of the drawn
activations (firing rates, rank metrics) would cost as much as the whole ranking again for every bootstrap, so
it is bounded from above:

- TPR. The threshold of a fold is an order statistic of the drawn label-0 activations of the other folds. If
  the d highest label-0 sentences are drawn so often that it must lie among them, it is at least the d-th, and
  the TPR at most the share of label 3 above that one. The FPR is at least 0.
- AUROC and trend. Every active sentence of the higher label wins against all of the lower one; two silent
  ones tie.
- Spearman. The active sentences rank by label; the variance of the ranks is at least what it would be if all
  of them tied.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, pairwise

import numpy as np
from scipy.sparse import csr_matrix

from s2_find_top_features.feature_metrics import LABELS, THRESHOLD_QUANTILE, LabelledColumns
from s2_find_top_features.ranked_features import SMALLER_IS_BETTER
from s2_find_top_features.scoring import Thresholds

_FEATURES_AT_ONCE = 512  # so that their values under every bootstrap stay in the cache
_MARGIN = 1e-9  # a bound that another order of summation could undercut is widened by this much
_DIGITS_LOST = 1e-6  # variance over mean square below which the sums do not tell the variance to _MARGIN
_COUNTED = ("tpr", "fpr", "density", "monotonicity")
"""Metrics that are ratios of counts: their bounds need no margin."""


@dataclass(frozen=True)
class Outlook:
    """What a feature may reach in each bootstrap, as far as sums and counts tell.

    Attributes:
        may_pass: bool [n_features, n_bootstraps], False where it certainly fails the filters.
        score: float64 [n_features, n_bootstraps], at most the second column of `Scores.order`: smaller is
            better; infinite where the feature cannot be ranked.
    """

    may_pass: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Bootstraps:
    """Draws of the train sentences, and what their bounds take from the labels alone.

    Attributes:
        times: float64 [n, n_bootstraps], how often each sentence was drawn.
        labels: int64 [n].
        fold: int64 [n], cross-fitting folds.
    """

    times: np.ndarray
    labels: np.ndarray
    fold: np.ndarray

    @cached_property
    def n_by_label(self) -> np.ndarray:
        """Sentences drawn of each label: float64 [4, n_bootstraps]."""
        return np.stack([self.times[self.labels == label].sum(axis=0) for label in LABELS])

    @cached_property
    def other_folds(self) -> np.ndarray:
        """Draws of the label-0 sentences outside each fold: float64 [n, n_folds, n_bootstraps]."""
        outside = np.arange(int(self.fold.max(initial=0)) + 1) != self.fold[:, None]
        return self.times[:, None] * (outside & (self.labels == 0)[:, None])[:, :, None]

    @cached_property
    def n_above_threshold(self) -> np.ndarray:
        """Label-0 draws above the order statistic below each fold's threshold: float64 [n_folds, ...]."""
        n = self.other_folds.sum(axis=0)
        return n - 1 - np.floor(THRESHOLD_QUANTILE * (n - 1))

    @cached_property
    def rates_exist(self) -> np.ndarray:
        """Whether there is a TPR: bool [n_bootstraps]. Folds past the last one drawn do not count."""
        drawn = np.stack([self.times[self.fold == k].sum(axis=0) for k in range(self.other_folds.shape[1])])
        needed = np.cumsum(drawn[::-1], axis=0)[::-1] > 0
        return ((self.other_folds.sum(axis=0) > 0) | ~needed).all(axis=0) & (self.n_by_label[3] > 0)

    @cached_property
    def depth(self) -> int:
        """How many of the highest label-0 sentences hold every fold's threshold in nearly all bootstraps.

        Twice as many as 5%, and three standard deviations of their number of draws.
        """
        expected = 2 * (1 - THRESHOLD_QUANTILE) * int((self.labels == 0).sum())
        return max(1, int(np.ceil(expected + 3 * np.sqrt(expected))))


def outlook(data: LabelledColumns, bootstraps: Bootstraps, rank_by: str, thresholds: Thresholds) -> Outlook:
    """Bound every feature in every bootstrap.

    Args:
        data: the train sentences.
        bootstraps: draws of them.
        rank_by: the metric that orders the features.
        thresholds: features that pass come first.
    """
    columns = data.columns
    products = _Products(data, bootstraps, counted=rank_by in _FROM_COUNTS)
    shape = columns.n_features, bootstraps.times.shape[1]
    may_pass, score = np.empty(shape, dtype=bool), np.empty(shape)
    for first in range(0, columns.n_features, _FEATURES_AT_ONCE):
        chunk = slice(first, min(first + _FEATURES_AT_ONCE, columns.n_features))
        with np.errstate(divide="ignore", invalid="ignore"):
            may_pass[chunk], score[chunk] = _chunk(products, chunk, bootstraps, rank_by, thresholds)
    return Outlook(may_pass, score)


class _Products:
    """Sparse matrices [n_features, n] whose products with the draws are the sums and counts."""

    def __init__(self, data: LabelledColumns, bootstraps: Bootstraps, counted: bool) -> None:
        columns = data.columns
        everything = slice(None)
        of_label = [np.flatnonzero(data.label == label) for label in LABELS]
        self.draws = bootstraps.times
        self.squares = self._matrix(data, everything, columns.value**2)
        self.by_label = [self._matrix(data, of, columns.value[of]) for of in of_label]
        ones = np.ones(len(columns.value))
        self.active = [self._matrix(data, of, ones[of]) for of in of_label] if counted else []
        # The d-th highest label-0 value of each feature; 0 where fewer are active.
        of_0, n_0 = of_label[0], data.active_by_label[:, 0]
        ends = np.cumsum(n_0)
        self.is_deep = n_0 >= bootstraps.depth
        threshold = np.zeros(columns.n_features)
        threshold[self.is_deep] = columns.value[of_0][ends[self.is_deep] - bootstraps.depth]
        above = of_label[3][columns.value[of_label[3]] > threshold[columns.feature[of_label[3]]]]
        self.above = self._matrix(data, above, ones[above])
        from_top = ends[columns.feature[of_0]] - np.arange(len(of_0))
        highest = of_0[(from_top <= bootstraps.depth) & self.is_deep[columns.feature[of_0]]]
        self.highest = self._matrix(data, highest, ones[highest])

    @staticmethod
    def _matrix(data: LabelledColumns, chosen: np.ndarray | slice, values: np.ndarray) -> csr_matrix:
        columns = data.columns
        lengths = np.bincount(columns.feature[chosen], minlength=columns.n_features)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return csr_matrix((values, columns.row[chosen], indptr), shape=(columns.n_features, columns.n))


def _chunk(
    products: _Products, chunk: slice, bootstraps: Bootstraps, rank_by: str, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray]:
    """`Outlook` of a run of features."""
    draws, n_by_label = products.draws, bootstraps.n_by_label
    n, n_or_nan = n_by_label.sum(axis=0), np.where(n_by_label > 0, n_by_label, np.nan)
    sums = [matrix[chunk] @ draws for matrix in products.by_label]
    squares = products.squares[chunk] @ draws
    total = sums[0] + sums[1] + sums[2] + sums[3]
    variance = squares - total**2 / n
    per_std = 1 / np.sqrt(variance)
    # Products of whole numbers, so that labels that do not vary have a variance of exactly 0.
    first = sum(label * n_by_label[label] for label in LABELS)
    second = sum(label**2 * n_by_label[label] for label in LABELS)
    label_variance = (n * second - first**2) / n
    covariance = sums[1] + 2 * sums[2] + 3 * sums[3] - total * (first / n)
    pearson = covariance * per_std / np.sqrt(np.where(label_variance > 0, label_variance, np.nan))
    tpr = _most_tpr(products, chunk, bootstraps)
    may_pass = (pearson >= thresholds.min_pearson - _MARGIN) & ~(tpr < thresholds.min_tpr)
    some = np.flatnonzero(may_pass.any(axis=1))
    may_pass[some] &= _may_rise([of_label[some] for of_label in sums], n_or_nan)
    most: np.ndarray
    if rank_by in _FROM_COUNTS:
        most = _FROM_COUNTS[rank_by]([matrix[chunk] @ draws for matrix in products.active], n_by_label)
    elif rank_by == "monotonicity":
        most = np.where(np.isnan(n_or_nan).any(axis=0), np.nan, _may_rise(sums, n_or_nan))
    elif rank_by.startswith("mean_"):
        label = int(rank_by.removeprefix("mean_"))
        most = sums[label] / n_or_nan[label] * (1 + _MARGIN)
    else:
        separation = (sums[3] / n_or_nan[3] - sums[0] / n_or_nan[0]) * per_std * np.sqrt(n)
        most = {
            "interpretability_score": 0.4 * pearson + 0.3 * separation + 0.3 * tpr,
            "pearson": pearson,
            "separation": separation,
            "tpr": tpr,
            "fpr": np.zeros_like(total),
        }[rank_by]
    score = most if rank_by in SMALLER_IS_BETTER else -most
    if rank_by not in _COUNTED:
        score -= _MARGIN
    score = np.fmin(score, np.inf)  # NaN, which cannot be ranked, becomes infinite
    active, unsure = squares > 0, variance <= _DIGITS_LOST * squares
    return active & (may_pass | unsure), np.where(active, np.where(unsure, -np.inf, score), np.inf)


def _may_rise(sums: list[np.ndarray], n_or_nan: np.ndarray) -> np.ndarray:
    """Whether the means may rise from label to label: bool; True where a label was not drawn."""
    means = [of_label / n for of_label, n in zip(sums, n_or_nan, strict=True)]
    rising = [high >= low * (1 - _MARGIN) for low, high in pairwise(means)]
    return np.logical_and.reduce(rising) | np.isnan(n_or_nan).any(axis=0)


def _most_tpr(products: _Products, chunk: slice, bootstraps: Bootstraps) -> np.ndarray:
    """Upper bound of the TPR: float64 [n_chunk, n_bootstraps], NaN where there is no threshold."""
    most = (products.above[chunk] @ products.draws) / bootstraps.n_by_label[3]
    deep = np.flatnonzero(products.is_deep[chunk])
    if len(deep):
        n, *shape = bootstraps.other_folds.shape
        drawn = products.highest[chunk][deep] @ bootstraps.other_folds.reshape(n, -1)
        held = (drawn.reshape(-1, *shape) > bootstraps.n_above_threshold).all(axis=1)
        most[deep] = np.where(held, most[deep], 1.0)
    return np.where(bootstraps.rates_exist, most, np.nan)


def _won(active: list[np.ndarray], n: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Largest share of the pairs of sentences (low label, high label) that the high one can win."""
    won = sum(
        active[high] * n[low] + (n[high] - active[high]) * (n[low] - active[low]) / 2 for low, high in pairs
    )
    n_pairs = sum(n[low] * n[high] for low, high in pairs)
    return won / np.where(n_pairs > 0, n_pairs, np.nan)


def _most_spearman(active: list[np.ndarray], n_by_label: np.ndarray) -> np.ndarray:
    """Largest Spearman correlation of features that are active on so many sentences of each label."""
    n = n_by_label.sum(axis=0)
    deviation = np.cumsum(n_by_label, axis=0) - (n_by_label - 1) / 2 - (n + 1) / 2
    label_variance = (n_by_label * deviation**2).sum(axis=0)
    n_active = active[0] + active[1] + active[2] + active[3]
    n_silent = n - n_active
    covariance, n_before = np.zeros_like(n_active), np.zeros_like(n_active)
    for of_label, deviation_of_label in zip(active, deviation, strict=True):
        # Mid-rank of the label's active sentences minus that of the silent ones.
        excess = (n_silent - 1) / 2 + n_before + (of_label + 1) / 2
        covariance += of_label * deviation_of_label * excess
        n_before += of_label
    variance = (n**3 - n - (n_silent**3 - n_silent) - (n_active**3 - n_active)) / 12
    bound = np.maximum(covariance, 0) / np.sqrt(variance * label_variance)
    return np.where(label_variance > 0, np.where(variance > 0, np.minimum(bound, 1), 1), np.nan)


def _density(active: list[np.ndarray], n_by_label: np.ndarray) -> np.ndarray:
    return (active[0] + active[1] + active[2] + active[3]) / n_by_label.sum(axis=0)


_FROM_COUNTS: dict[str, Callable[[list[np.ndarray], np.ndarray], np.ndarray]] = {
    "density": _density,
    "spearman": _most_spearman,
    "auroc_3_vs_0": partial(_won, pairs=[(0, 3)]),
    "auroc_3_vs_rest": partial(_won, pairs=[(0, 3), (1, 3), (2, 3)]),
    "trend": partial(_won, pairs=list(combinations(LABELS, 2))),
}
"""Bounds from the active draws of each label, [n_features, n_bootstraps] each, and all draws by label."""
