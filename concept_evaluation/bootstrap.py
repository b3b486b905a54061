"""Bootstrap intervals that resample whole groups."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

N_RESAMPLES = 1000
COVERAGE = 0.95
_MIN_DEFINED_FRACTION = 0.5


def group_resamples(groups: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of bootstrap samples: groups drawn with replacement, each with all its rows.

    Rows of one group (near-duplicates, tokens of one sentence) are not independent, so drawing single
    rows would give intervals that are too narrow.

    Args:
        groups: [n_rows] group indices.
        n_resamples: how many samples.
        seed: of the draws.

    Yields:
        int64 [n_rows of this sample].
    """
    _, group = np.unique(groups, return_inverse=True)
    order = np.argsort(group, kind="stable")
    rows_of_group = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(n_resamples):
        drawn = rng.integers(0, len(rows_of_group), size=len(rows_of_group))
        yield np.concatenate([rows_of_group[index] for index in drawn])


def bootstrap_intervals(
    scores: Callable[[np.ndarray], Mapping[str, float | None]],
    groups: np.ndarray,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, tuple[float, float] | None]:
    """95% percentile intervals of several scores of the same rows.

    Args:
        scores: takes row indices, with repetitions, and returns named scores of these rows.
        groups: [n_rows] group indices; whole groups are resampled.
        seed: of the draws.
        n_resamples: how many samples.

    Returns:
        Name to (low, high). None where there are fewer than two groups to draw from, or where the score
        has no value in more than half of the resamples; otherwise those without a value are left out.
    """
    names = list(scores(np.arange(len(groups))))
    if len(np.unique(groups)) < 2:
        return dict.fromkeys(names)
    samples = [scores(rows) for rows in group_resamples(groups, n_resamples, seed)]
    intervals: dict[str, tuple[float, float] | None] = {}
    for name in names:
        defined = [value for sample in samples if (value := sample[name]) is not None]
        if len(defined) < _MIN_DEFINED_FRACTION * n_resamples:
            intervals[name] = None
        else:
            low, high = np.quantile(defined, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
            intervals[name] = (float(low), float(high))
    return intervals


def percentile_intervals(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile intervals of many scores that were resampled side by side.

    Args:
        samples: float64 [n_resamples, n_scores], NaN where a score has no value in a resample.

    Returns:
        Low and high, float64 [n_scores]; NaN where a score has no value in more than half of the resamples;
        otherwise those without a value are left out.
    """
    low, high = np.full((2, samples.shape[1]), np.nan)
    enough = np.mean(~np.isnan(samples), axis=0) >= _MIN_DEFINED_FRACTION if len(samples) else low > 0
    ends = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
    if enough.any():
        low[enough], high[enough] = np.nanquantile(samples[:, enough], ends, axis=0)
    return low, high
