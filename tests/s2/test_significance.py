"""The permutation null against loops over SciPy, and against noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features import significance
from s2_find_top_features.ranking import rank_features
from s2_find_top_features.significance import (
    N_BINS,
    NullStatistics,
    fwer_p,
    length_bands,
    n_discoveries,
    null_statistics,
    permute_labels,
    q_values,
    smallest_discovery,
)
from s2_find_top_features.sparse_columns import SparseColumns
from tests.s2.planted_store import noise, plant, write_planted_store
from tests.s2.test_ranking import SETTINGS

LABELS = np.arange(80) % 4


def columns_of(dense: np.ndarray) -> SparseColumns:
    return SparseColumns.from_dense(np.ascontiguousarray(dense.T))


def test_groups_trade_labels_with_groups_of_their_size():
    groups = np.concatenate([np.arange(20), np.repeat(np.arange(20, 40), 2), [40] * 3, np.arange(41, 58)])
    labels = np.random.default_rng(0).integers(0, 4, size=len(groups))
    permutations = permute_labels(labels, groups, 50, seed=1)
    ranks = stats.rankdata(labels) - (len(labels) + 1) / 2
    np.testing.assert_allclose(permutations.deviations[:, 0], ranks)
    sizes = np.bincount(groups)[groups]
    blocks = {tuple(ranks[groups == group]) for group in range(20, 40)}
    moved = 0
    for column in permutations.deviations.T[1:]:
        for size in (1, 2):
            assert sorted(column[sizes == size]) == sorted(ranks[sizes == size])
        assert {tuple(column[groups == group]) for group in range(20, 40)} <= blocks
        np.testing.assert_array_equal(column[sizes == 3], ranks[sizes == 3])
        moved += int((column != ranks).sum())
    assert moved > 50 * len(labels) / 3
    assert permutations.n_fixed == 3


def test_length_bands_keep_short_and_long_apart():
    groups = np.repeat(np.arange(100), 2)
    n_tokens = np.repeat(np.arange(100), 2) // 10 + 5
    bands = length_bands(n_tokens, groups)
    assert np.unique(bands).tolist() == [0, 1, 2, 3, 4]
    assert (np.diff(bands) >= 0).all()
    labels = np.where(n_tokens > 8, 3, 0)
    across = permute_labels(labels, groups, 20, seed=0).deviations
    within = permute_labels(labels, groups, 20, seed=0, bands=bands).deviations
    assert (across[:, 1:] != across[:, :1]).any()
    # The label is decided by the band here, so within bands nothing is left to permute.
    np.testing.assert_array_equal(within, np.repeat(within[:, :1], 21, axis=1))


def test_the_same_seed_permutes_alike_and_another_does_not():
    first, again, other = (permute_labels(LABELS, np.arange(80), 5, seed).deviations for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first[:, 1:] != other[:, 1:]).any()


def case(n_features: int = 30):
    rng = np.random.default_rng(0)
    dense = np.round(noise(rng, 80, n_features, 0.3) * 2) / 2  # ties
    dense[:, 0] = 0
    dense[:, 1] = np.where(np.arange(80) < 4, 1.0, 0.0)
    dense[:, 2] = 1.5
    dense[:, 3] = plant(rng, LABELS, 1.0, 0.9)
    return dense, permute_labels(LABELS, np.arange(80), 12, seed=0)


def test_the_null_equals_a_loop_over_scipy():
    dense, permutations = case()
    statistics, observed = null_statistics(columns_of(dense), permutations)
    tested = ((dense > 0).sum(axis=0) >= 5) & (np.ptp(dense, axis=0) > 0)
    assert not tested[:3].any()
    assert (statistics.n_tested, statistics.n_excluded) == (int(tested.sum()), int((~tested).sum()))
    every = np.array(
        [
            [abs(stats.spearmanr(x, column).statistic) for column in permutations.deviations.T]
            for x in dense.T[tested].astype(np.float64)
        ]
    )
    np.testing.assert_allclose(observed[tested], every[:, 0], rtol=1e-9)
    assert np.isnan(observed[~tested]).all()
    np.testing.assert_allclose(statistics.maxima, every[:, 1:].max(axis=0), rtol=1e-9)
    assert statistics.null.sum() == every[:, 1:].size
    middle = (np.repeat(np.arange(N_BINS), statistics.null) + 0.5) / N_BINS
    np.testing.assert_allclose(middle, np.sort(every[:, 1:].ravel()), atol=1 / N_BINS)


def test_chunks_of_features_add_up_to_the_whole(monkeypatch):
    dense, permutations = case()
    whole, observed = null_statistics(columns_of(dense), permutations)
    monkeypatch.setattr(significance, "_FEATURES_AT_ONCE", 4)
    parts = [null_statistics(columns_of(dense[:, first : first + 11]), permutations) for first in (0, 11, 22)]
    total = NullStatistics.empty(permutations.n_permutations)
    for part, _ in parts:
        total = total + part
    for name in ("n_tested", "n_excluded", "observed", "null", "maxima"):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), observed)


def test_p_and_q_values_equal_their_definitions():
    rng = np.random.default_rng(0)
    observed = np.concatenate([rng.beta(1, 9, size=200), [0.5, 0.6, 0.61], [np.nan]])
    null = rng.beta(1, 9, size=(50, 203))
    statistics = NullStatistics(
        203,
        1,
        np.bincount((observed[:-1] * N_BINS).astype(int), minlength=N_BINS),
        np.bincount((null * N_BINS).astype(int).ravel(), minlength=N_BINS),
        null.max(axis=1),
    )
    p = fwer_p(observed, statistics)
    q = q_values(observed, statistics)
    known = observed[:-1]
    expected = [(1 + (null.max(axis=1) >= value).sum()) / 51 for value in known]
    np.testing.assert_allclose(p[:-1], expected)
    assert np.isnan(p[-1])
    assert np.isnan(q[-1])

    def rate(t):
        t = np.floor(t * N_BINS) / N_BINS  # a value counts as the lower edge of its bin
        return min(1, (1 + (null >= t).sum()) / 50 / (known >= t).sum())

    rates = np.array([rate(t) for t in known])
    stepped_up = [rates[known <= value].min() for value in known]
    np.testing.assert_allclose(q[:-1], stepped_up)
    assert n_discoveries(statistics, 0.05) == (q[:-1] < 0.05).sum() >= 3
    smallest = smallest_discovery(statistics, 0.05)
    assert smallest is not None
    assert (known >= smallest).sum() == n_discoveries(statistics, 0.05)
    assert smallest_discovery(statistics, 1e-9) is None


def test_a_tie_with_the_best_of_noise_counts_against_the_feature():
    statistics = NullStatistics(
        1, 0, np.zeros(N_BINS, int), np.zeros(N_BINS, int), np.array([0.1, 0.3, 0.3, 0.5])
    )
    np.testing.assert_allclose(fwer_p(np.array([0.3, 0.30001, 0.6]), statistics), [4 / 5, 2 / 5, 1 / 5])


def test_planted_features_are_discovered_and_most_noise_is_not():
    rng = np.random.default_rng(2)
    labels = np.arange(200) % 4
    dense = noise(rng, 200, 500)
    for feature in range(5):
        dense[:, feature] = plant(rng, labels, 1.0, 0.8)
    statistics, observed = null_statistics(
        columns_of(dense), permute_labels(labels, np.arange(200), 100, seed=0)
    )
    assert (q_values(observed, statistics)[:5] < 0.05).all()
    assert (fwer_p(observed, statistics)[:5] < 0.05).all()
    assert n_discoveries(statistics, 0.05) <= 7


def null_runs_with_a_discovery(folder: Path, n_runs: int, n_permutations: int) -> int:
    """Runs of the ranking on one small store, half of its features near-copies, under permuted labels."""
    rng = np.random.default_rng(0)
    dense = noise(rng, 200, 150)
    copies = dense * rng.uniform(0.9, 1.1, size=dense.shape).astype(np.float32)
    labels = np.arange(200) % 4
    groups = np.concatenate([np.arange(150), 150 + np.arange(50) // 2])
    store = FeatureStore(write_planted_store(folder, [dense, copies], labels, groups=groups))
    found = 0
    for run in range(n_runs):
        store.labels = labels[np.random.default_rng(1000 + run).permutation(200)]
        settings = replace(SETTINGS, n_permutations=n_permutations, seed=run, top_n=1, n_workers=1)
        found += n_discoveries(rank_features(store, settings).null, 0.05) > 0
    return found


def test_noise_rarely_has_a_discovery(tmp_path):
    """At 5% the count has mean 5; more than 10 of 100 comes about once in a hundred honest methods."""
    assert null_runs_with_a_discovery(tmp_path / "store", 100, 200) <= 10
