"""Confidence intervals of AUROCs, and of the difference of two, that hold near 1 and for few sentences.

A percentile bootstrap fails there: a perfect AUROC of 21 against 21 sentences resamples to 1.00 every time.
Two estimates of the variance are combined instead, each strong where the other fails:

- a model that depends on the AUROC alone (Newcombe, Statistics in Medicine 25, 2006, 559-573, method 5),
  inverted like a score test, so that an interval ends where the observed value would be surprising and has a
  width at 1.00 too;
- the spread of the placements (DeLong et al., Biometrics 44, 1988, 837-845; summed over groups as Obuchowski,
  Biometrics 53, 1997, 567-578), which sees what the model cannot: one label that scatters more, or a half of
  label 3 on which the feature is silent.

Where the second exceeds the first, the model is stretched by their ratio, up to the largest variance that an
AUROC can have, t (1 - t) / min(m, n) (Birnbaum and Klose, Annals of Mathematical Statistics 28, 1957,
933-945). The quantile is Student's, with Welch and Satterthwaite's degrees of freedom.

Axes: S scores (features, baselines), N rows (sentences).
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

COVERAGE = 0.95
_BISECTIONS = 40
_SMALLEST_DF = 3


@dataclass(frozen=True)
class AurocIntervals:
    """AUROCs with their 95% intervals.

    Attributes:
        auroc: float64 [S]; NaN where a class is empty.
        low: float64 [S]; NaN with fewer than two groups in a class.
        high: float64 [S]; likewise.
    """

    auroc: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class AurocDifference:
    """The first score's AUROC minus the second's, on the same rows.

    Attributes:
        difference: on all rows.
        low: end of the 95% interval.
        high: its other end.
    """

    difference: float
    low: float
    high: float

    @property
    def resolution(self) -> float:
        """The difference that these rows could just have told from none: how far ``low`` lies below."""
        return self.difference - self.low


def auroc_intervals(scores: np.ndarray, is_positive: np.ndarray, groups: np.ndarray) -> AurocIntervals:
    """AUROC of each score, ties counted half, with its interval.

    Args:
        scores: float [S, N], none NaN.
        is_positive: bool [N].
        groups: int [N]; rows of one group are near-duplicates and count as about one.
    """
    parts = _parts(scores, is_positive, groups)
    if parts is None:
        auroc = _aurocs(scores, is_positive)
        nothing = np.full(len(auroc), np.nan)
        return AurocIntervals(auroc, nothing, nothing)
    low, high = _score_interval(parts)
    return AurocIntervals(parts.auroc, low, high)


def auroc_difference(
    first: np.ndarray, second: np.ndarray, is_positive: np.ndarray, groups: np.ndarray
) -> AurocDifference | None:
    """How much better the first score tells the classes, paired by row.

    The two intervals are joined by their ends (MOVER: Zou, Psychological Methods 12, 2007, 399-413), with the
    correlation of the placements: what makes a row easy or hard for both cancels.

    Args:
        first: float [N].
        second: float [N].
        is_positive: bool [N].
        groups: int [N].

    Returns:
        None with fewer than two groups in a class.
    """
    parts = _parts(np.stack([first, second]), is_positive, groups)
    if parts is None:
        return None
    (low_a, low_b), (high_a, high_b) = _score_interval(parts)
    a, b = parts.auroc
    variances = parts.spread
    product = float(np.sqrt(variances[0] * variances[1]))
    r = float(np.clip(parts.covariance / product, -1, 1)) if product > 0 else 0.0
    down, up = (a - low_a, high_b - b), (high_a - a, b - low_b)
    low = a - b - np.sqrt(max(down[0] ** 2 - 2 * r * down[0] * down[1] + down[1] ** 2, 0))
    high = a - b + np.sqrt(max(up[0] ** 2 - 2 * r * up[0] * up[1] + up[1] ** 2, 0))
    return AurocDifference(float(a - b), float(low), float(high))


@dataclass(frozen=True)
class _Parts:
    """What the intervals are made of.

    Attributes:
        auroc: float64 [S].
        spread: DeLong's variance, float64 [S].
        covariance: of the first two scores; 0 with one score.
        df: Welch and Satterthwaite's degrees of freedom, float64 [S].
        n_positive: rows of the positive class, near-duplicates counted down.
        n_negative: likewise of the other.
    """

    auroc: np.ndarray
    spread: np.ndarray
    covariance: float
    df: np.ndarray
    n_positive: float
    n_negative: float


def _aurocs(scores: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    m, n = int(is_positive.sum()), int((~is_positive).sum())
    if not (m and n):
        return np.full(len(scores), np.nan)
    ranks = rankdata(scores, axis=1)[:, is_positive]
    return (ranks.sum(axis=1) - m * (m + 1) / 2) / (m * n)


def _parts(scores: np.ndarray, is_positive: np.ndarray, groups: np.ndarray) -> _Parts | None:
    _, group = np.unique(groups, return_inverse=True)
    sides = [np.flatnonzero(is_positive), np.flatnonzero(~is_positive)]
    if any(len(np.unique(group[rows])) < 2 for rows in sides):
        return None
    positive, negative = sides
    m, n = len(positive), len(negative)
    # A placement is the share of the other class that a row stands on the right side of, ties as half.
    ranks = rankdata(scores, axis=1)
    placements = (
        (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / n,
        1 - (ranks[:, negative] - rankdata(scores[:, negative], axis=1)) / m,
    )
    auroc = placements[0].mean(axis=1)
    # Deviations from the mean, summed by group, over the number of rows: [S, n_groups] for either class.
    n_groups = int(group.max()) + 1
    sums = [
        _summed(of_side - auroc[:, None], group[rows], n_groups) / len(rows)
        for of_side, rows in zip(placements, sides, strict=True)
    ]
    counts = [len(np.unique(group[rows])) for rows in sides]
    shares = [np.square(of_side).sum(axis=1) * k / (k - 1) for of_side, k in zip(sums, counts, strict=True)]
    total = np.maximum(shares[0] + shares[1] + 2 * (sums[0] * sums[1]).sum(axis=1), 0)
    below = shares[0] ** 2 / (counts[0] - 1) + shares[1] ** 2 / (counts[1] - 1)
    smallest = min(counts) - 1
    df = np.where(below > 0, (shares[0] + shares[1]) ** 2 / np.where(below > 0, below, 1), smallest)
    joint = sums[0] + sums[1]
    covariance = float(joint[0] @ joint[1]) if len(scores) > 1 else 0.0
    effective = [
        len(rows) ** 2 / float(np.square(np.bincount(group[rows])).sum()) for rows in sides
    ]  # Kish: what near-duplicates are worth
    return _Parts(auroc, total, covariance, np.maximum(df, min(_SMALLEST_DF, smallest)), *effective)


def _summed(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums over the rows of each group: [S, N] to [S, n_groups]."""
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    sums = np.zeros((len(values), n_groups))
    sums[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def _score_interval(parts: _Parts) -> tuple[np.ndarray, np.ndarray]:
    """All true values from which the observed one is not further than the quantile, by bisection."""
    m, n = parts.n_positive, parts.n_negative
    balance = (m + n) / 2 - 1

    def model(t: np.ndarray) -> np.ndarray:
        return t * (1 - t) * (1 + balance * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)

    at_observed = model(parts.auroc)
    stretch = np.maximum(parts.spread / np.where(at_observed > 0, at_observed, np.inf), 1)
    z = student.ppf((1 + COVERAGE) / 2, parts.df)

    def inside(t: np.ndarray) -> np.ndarray:
        variance = np.minimum(stretch * model(t), t * (1 - t) / min(m, n))
        return np.asarray(np.abs(t - parts.auroc) <= z * np.sqrt(variance))

    ends = []
    for outermost in (0.0, 1.0):
        near, far = parts.auroc.copy(), np.full_like(parts.auroc, outermost)
        for _ in range(_BISECTIONS):
            middle = (near + far) / 2
            within = inside(middle)
            near, far = np.where(within, middle, near), np.where(within, far, middle)
        ends.append(far)
    return ends[0], ends[1]
