"""Is one predictor better than another on the same rows, and still so after many such questions?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from concept_evaluation.bootstrap import COVERAGE, group_resamples

N_RESAMPLES = 10_000
"""More than an interval needs: the smallest p value is 2 / (N_RESAMPLES + 1), and Holm multiplies it."""

FEW_HELD_OUT = 10
"""Held-out rows of a class below which no predictor is said to beat another: resampling so few claims a
difference in two of three runs of pure noise, and an AUROC of 9 against many has a standard error of 0.1."""

_MIN_DEFINED_FRACTION = 0.5


@dataclass(frozen=True)
class PairedComparison:
    """The first predictor's score minus the second's, on the same rows.

    Attributes:
        difference: on all rows.
        low: end of the 95% percentile interval.
        high: its other end.
        p_value: two-sided, of the hypothesis that both score alike.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float | None],
    target: np.ndarray,
    groups: np.ndarray,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> PairedComparison | None:
    """Paired bootstrap test of two predictors, resampling whole groups.

    Both are scored on the same rows of each resample, so what makes a sample easy or hard for both cancels.
    The p value is the one that belongs to the percentile interval: twice the smaller share of resamples
    with a difference of at most or at least zero, the observed sample counted in (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, sections 4.2 and 5.3). A difference of exactly zero
    counts on both sides, so equal predictors get p = 1.

    Args:
        first: [n_rows] predictions.
        second: [n_rows] predictions of the other.
        score: takes target and predictions, e.g. `metrics.accuracy`.
        target: [n_rows].
        groups: [n_rows] group indices; whole groups are resampled.
        seed: of the draws.
        n_resamples: how many samples.

    Returns:
        None with fewer than two groups, or where a score has no value on all rows or in more than half of
        the resamples; otherwise those without a value are left out.
    """

    def difference(rows: np.ndarray) -> float:
        scores = score(target[rows], first[rows]), score(target[rows], second[rows])
        return np.nan if scores[0] is None or scores[1] is None else scores[0] - scores[1]

    observed = difference(np.arange(len(target)))
    if np.isnan(observed) or len(np.unique(groups)) < 2:
        return None
    samples = np.array([difference(rows) for rows in group_resamples(groups, n_resamples, seed)])
    samples = samples[~np.isnan(samples)]
    if len(samples) < _MIN_DEFINED_FRACTION * n_resamples:
        return None
    low, high = np.quantile(samples, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    rarer = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    p_value = min(1.0, 2 * (1 + rarer) / (1 + len(samples)))
    return PairedComparison(float(observed), float(low), float(high), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted so that the chance of any false finding among them stays below the level.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979, 65-70): the smallest is multiplied
    by their number, the next by one less, and so on; none falls below an earlier one, none exceeds 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Args:
        p_values: of a family of tests, in any order.

    Returns:
        The adjusted values, in the same order.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted
