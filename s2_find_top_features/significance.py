"""What chance alone would find: a permutation null over all features at once.

The statistic is |Spearman| of a feature's activations with the labels, so features that rise and features
that fall count alike. The labels are permuted, the activations are not, so the null keeps whatever the
features have in common. Its variance is 1 / (n - 1) for every feature, however rare: features can be pooled.

Westfall and Young (1993) for the maximum statistic; Benjamini and Hochberg (1995) for the step-up, with
p-values from the pooled null.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from s2_find_top_features.feature_metrics import label_rank_deviations
from s2_find_top_features.sparse_columns import SparseColumns

MIN_ACTIVE = 5
"""A feature that is active on fewer train sentences is not tested: its null is too coarse to pool."""

N_BINS = 20_000
"""|Spearman| is counted in bins of 1/20,000; a value counts as the lower edge of its bin."""

N_LENGTH_BANDS = 5

_FEATURES_AT_ONCE = 512  # so that their statistics under every permutation stay in the cache


@dataclass(frozen=True)
class Permutations:
    """The labels as they are and as permuted.

    Attributes:
        deviations: float64 [n, 1 + n_permutations], mid-rank of the label minus the mean rank; column 0
            is the true labels.
        n_fixed: sentences of groups that no other group could trade labels with.
    """

    deviations: np.ndarray
    n_fixed: int

    @property
    def n_permutations(self) -> int:
        """Number of permutations, the true labels not counted."""
        return self.deviations.shape[1] - 1


@dataclass(frozen=True)
class NullStatistics:
    """Statistics of a set of features, added up over SAEs.

    Attributes:
        n_tested: features that were tested.
        n_excluded: features that were not: active on fewer than `MIN_ACTIVE` sentences, or constant.
        observed: int64 [N_BINS], tested features by |Spearman|.
        null: int64 [N_BINS], tested features by |Spearman|, over all permutations together.
        maxima: float64 [n_permutations], the largest |Spearman| of each permutation.
    """

    n_tested: int
    n_excluded: int
    observed: np.ndarray
    null: np.ndarray
    maxima: np.ndarray

    @classmethod
    def empty(cls, n_permutations: int) -> "NullStatistics":
        """Of no features."""
        nothing = np.zeros(N_BINS, dtype=np.int64)
        return cls(0, 0, nothing, nothing, np.zeros(n_permutations))

    def __add__(self, other: "NullStatistics") -> "NullStatistics":
        return NullStatistics(
            self.n_tested + other.n_tested,
            self.n_excluded + other.n_excluded,
            self.observed + other.observed,
            self.null + other.null,
            np.maximum(self.maxima, other.maxima),
        )


def length_bands(n_tokens: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Bands of groups of similar sentence length: int64 [n], quintiles of the groups' mean length.

    Args:
        n_tokens: int [n].
        groups: int [n].
    """
    _, group = np.unique(groups, return_inverse=True)
    mean = np.bincount(group, weights=n_tokens) / np.bincount(group)
    edges = np.quantile(mean, np.arange(1, N_LENGTH_BANDS) / N_LENGTH_BANDS)
    return np.searchsorted(edges, mean, side="left")[group].astype(np.int64)


def permute_labels(
    labels: np.ndarray, groups: np.ndarray, n_permutations: int, seed: int, bands: np.ndarray | None = None
) -> Permutations:
    """Permute the labels of whole groups among groups of equal size (and equal band).

    Sentences of one group are near-duplicates and not independent, so a group's labels move together, in
    their order: single sentences trade with single sentences, pairs with pairs. A group whose size is its
    own keeps its labels, which makes the null wider, never narrower.

    Args:
        labels: int64 [n], 0-3.
        groups: int [n].
        n_permutations: how many.
        seed: of the permutations.
        bands: int [n], one value a group, from `length_bands`; None permutes across all lengths.
    """
    rng = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    rows_of_group = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    classes: dict[tuple[int, int], list[np.ndarray]] = {}
    for rows in rows_of_group:
        band = 0 if bands is None else int(bands[rows[0]])
        classes.setdefault((len(rows), band), []).append(rows)
    blocks = [np.stack(members) for _, members in sorted(classes.items())]
    permuted = np.repeat(labels[:, None], 1 + n_permutations, axis=1)
    for column in range(1, 1 + n_permutations):
        for rows in blocks:
            permuted[rows.ravel(), column] = labels[rows[rng.permutation(len(rows))].ravel()]
    deviation = label_rank_deviations(np.bincount(labels, minlength=4))
    n_fixed = sum(rows.size for rows in blocks if len(rows) == 1)
    return Permutations(deviation[permuted], n_fixed)


def null_statistics(columns: SparseColumns, permutations: Permutations) -> tuple[NullStatistics, np.ndarray]:
    """|Spearman| of every feature with the true labels and with every permutation.

    Ranks are halves and their products quarters, summed in float64 without rounding: an observed value and
    its null are compared exactly, and no order of summation changes them.

    Args:
        columns: the train sentences.
        permutations: of their labels.

    Returns:
        The counts, and |Spearman| with the true labels, float64 [n_features], NaN for a feature that is not
        tested.
    """
    tested = (columns.n_active >= MIN_ACTIVE) & (columns.rank_variance > 0)
    chosen = columns.select(tested)
    norm = np.sqrt(columns.rank_variance[tested] * np.square(permutations.deviations[:, 0]).sum())
    excess = columns.excess_rank[np.flatnonzero(tested[columns.feature])]
    n_tested = chosen.n_features
    observed = np.empty(n_tested)
    null_counts = np.zeros(N_BINS, dtype=np.int64)
    maxima = np.zeros(permutations.n_permutations)
    for first in range(0, n_tested, _FEATURES_AT_ONCE):
        last = min(first + _FEATURES_AT_ONCE, n_tested)
        starts = chosen.starts[first : last + 1]
        values = slice(int(starts[0]), int(starts[-1]))
        ranks = csr_matrix(
            (excess[values], chosen.row[values], (starts - starts[0]).astype(np.int32)),
            shape=(last - first, columns.n),
        )
        statistic = np.abs(ranks @ permutations.deviations)
        statistic /= norm[first:last, None]
        observed[first:last] = statistic[:, 0]
        null = statistic[:, 1:]
        null_counts += np.bincount(_bin(null).ravel(), minlength=N_BINS)
        np.maximum(maxima, null.max(axis=0), out=maxima)
    everywhere = np.full(columns.n_features, np.nan)
    everywhere[tested] = observed
    counts = np.bincount(_bin(observed), minlength=N_BINS)
    n_excluded = columns.n_features - n_tested
    return NullStatistics(n_tested, n_excluded, counts, null_counts, maxima), everywhere


def fwer_p(observed: np.ndarray, statistics: NullStatistics) -> np.ndarray:
    """Chance that the best of all features reaches the observed value in noise: float64 [n_features].

    (1 + permutations whose maximum is at least the observed value) / (1 + permutations); NaN stays.
    """
    maxima = np.sort(statistics.maxima)
    n_reaching = len(maxima) - np.searchsorted(maxima, observed, side="left")
    p = (1 + n_reaching) / (1 + len(maxima))
    return np.where(np.isnan(observed), np.nan, p)


def q_values(observed: np.ndarray, statistics: NullStatistics) -> np.ndarray:
    """False discovery rate of the list that reaches down to the observed value: float64 [n_features].

    At a threshold t the expected number of null features is (1 + null values >= t) / permutations; q is
    the smallest ratio of that to the observed features >= t, over all t up to the observed value. NaN stays.
    """
    known = ~np.isnan(observed)
    q = np.full(observed.shape, np.nan)
    q[known] = _q_by_bin(statistics)[_bin(observed[known])]
    return q


def n_discoveries(statistics: NullStatistics, level: float) -> int:
    """Number of tested features with a q-value below the level."""
    return int(statistics.observed[_q_by_bin(statistics) < level].sum())


def smallest_discovery(statistics: NullStatistics, level: float) -> float | None:
    """|Spearman| from which on a tested feature has a q-value below the level; None without discoveries."""
    bins = np.flatnonzero((_q_by_bin(statistics) < level) & (statistics.observed > 0))
    return float(bins[0] / N_BINS) if len(bins) else None


def _q_by_bin(statistics: NullStatistics) -> np.ndarray:
    at_least_null = np.cumsum(statistics.null[::-1])[::-1]
    at_least_observed = np.cumsum(statistics.observed[::-1])[::-1]
    expected = (1 + at_least_null) / max(len(statistics.maxima), 1)
    rate = np.where(at_least_observed > 0, expected / np.maximum(at_least_observed, 1), 1.0)
    return np.minimum(np.minimum.accumulate(rate), 1.0)


def _bin(statistic: np.ndarray) -> np.ndarray:
    return np.minimum((statistic * N_BINS).astype(np.int64), N_BINS - 1)
