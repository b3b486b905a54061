"""The pass over all SAEs: order, chunking, workers, and how much is kept."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features import stability
from s2_find_top_features.evidence import ranked_features
from s2_find_top_features.ranked_features import METRICS
from s2_find_top_features.ranking import rank_features
from s2_find_top_features.scoring import RankingSettings, Split, Thresholds
from s2_find_top_features.stability import BootstrapTops
from s2_find_top_features.threads import in_threads
from tests.s2.planted_store import noise, plant, write_planted_store

SETTINGS = RankingSettings(
    pooling="max",
    rank_by="spearman",
    thresholds=Thresholds(0.4, 0.5, 0.2),
    top_n=10,
    n_permutations=20,
    seed=0,
    stratify_by_length=False,
    n_workers=2,
)
LABELS = np.arange(240) % 4


def planted_activations(seed: int = 0) -> list[np.ndarray]:
    """Three SAEs of 40 features; effects of known size at known places."""
    rng = np.random.default_rng(seed)
    saes = [noise(rng, len(LABELS), 40) for _ in range(3)]
    for sae, feature, effect, density in PLANTED:
        saes[sae][:, feature] = plant(rng, LABELS, effect, density)
    return saes


PLANTED = [(1, 7, 4.0, 1.0), (0, 3, 1.2, 1.0), (2, 30, 0.6, 1.0), (2, 5, 2.0, 0.65)]
"""(SAE, feature, effect, density), strongest first by Spearman."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = write_planted_store(tmp_path_factory.mktemp("ranking") / "store", planted_activations(), LABELS)
    return FeatureStore(folder)


def everything(ranking):
    lists = [ranking.top, ranking.falling]
    arrays = [getattr(one, name) for one in lists for name in ("sae", "feature_id", "passes", "activations")]
    arrays += [one.train[name] for one in lists for name in METRICS]
    arrays += [ranking.top.statistic, ranking.null.null, ranking.null.observed, ranking.null.maxima]
    return arrays


@pytest.mark.parametrize("rank_by", ["spearman", "interpretability_score", "auroc_3_vs_0", "trend"])
def test_planted_features_come_in_the_order_of_their_effects(store, rank_by):
    top = rank_features(store, replace(SETTINGS, rank_by=rank_by)).top
    places = list(zip(top.sae.tolist(), top.feature_id.tolist(), strict=True))
    assert places[:2] == [place[:2] for place in PLANTED[:2]]
    assert set(places[:4]) == {place[:2] for place in PLANTED}


def test_spearman_orders_all_four(store):
    top = rank_features(store, SETTINGS).top
    assert [(int(s), int(f)) for s, f in zip(top.sae[:4], top.feature_id[:4], strict=True)] == [
        place[:2] for place in PLANTED
    ]
    assert (np.diff(top.train["spearman"][~top.passes]) <= 0).all()
    assert (np.diff(top.passes.astype(int)) <= 0).all()


def test_the_number_of_workers_changes_nothing(store):
    one, three = (rank_features(store, replace(SETTINGS, n_workers=n)) for n in (1, 3))
    for first, second in zip(everything(one), everything(three), strict=True):
        np.testing.assert_array_equal(first, second)


def test_saes_in_pieces_rank_as_one(store, tmp_path):
    """The 120 features in one SAE of 120 instead of three of 40: same order, same null, same numbers."""
    joined = np.concatenate(planted_activations(), axis=1)
    whole = rank_features(FeatureStore(write_planted_store(tmp_path / "one", [joined], LABELS)), SETTINGS)
    parts = rank_features(store, SETTINGS)
    np.testing.assert_array_equal(whole.top.feature_id, parts.top.sae * 40 + parts.top.feature_id)
    for first, second in list(zip(everything(whole), everything(parts), strict=True)):
        if first.dtype.kind == "f":
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("n_values", [1, 50, 700])
def test_an_sae_scored_run_by_run_ranks_as_one(store, n_values, monkeypatch):
    def analysed():
        recorded = []
        tops = BootstrapTops(Split.of(store), SETTINGS)
        ranking = rank_features(store, SETTINGS, tops=tops, record=lambda *one: recorded.append(one))
        recorded.sort(key=lambda one: one[0].name)  # threads record in any order
        tables = [table for _, train, held_out, passing in recorded for table in (train, held_out)]
        return [
            *everything(ranking),
            *(values for table in tables for values in table.values()),
            *(passing for *_, passing in recorded),
            tops.share(ranking.top),
        ]

    whole = analysed()
    monkeypatch.setattr("s2_find_top_features.ranking._VALUES_AT_ONCE", n_values)
    for first, second in zip(whole, analysed(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_best_of_fewer_are_the_first_of_more(store):
    few, many = (rank_features(store, replace(SETTINGS, top_n=n)).top for n in (4, 100))
    assert (len(few), len(many)) == (4, 100)
    np.testing.assert_array_equal(few.feature_id, many.feature_id[:4])
    np.testing.assert_array_equal(few.activations, many.activations[:4])


@pytest.mark.parametrize("rank_by", METRICS)
def test_every_metric_can_rank(store, rank_by):
    settings = replace(SETTINGS, rank_by=rank_by, thresholds=Thresholds(-1, 0, 1))
    top = rank_features(store, settings).top
    values = top.train[rank_by]
    steps = np.diff(values[top.passes])
    assert (steps >= 0).all() if rank_by == "fpr" else (steps <= 0).all()


def test_falling_features_are_ranked_by_their_strength(tmp_path):
    rng = np.random.default_rng(0)
    dense = noise(rng, len(LABELS), 30)
    dense[:, 4] = plant(rng, 3 - LABELS, 3.0, 1.0)
    dense[:, 9] = plant(rng, 3 - LABELS, 1.0, 1.0)
    store = FeatureStore(write_planted_store(tmp_path / "store", [dense], LABELS))
    split = Split.of(store)
    tops = BootstrapTops(split, SETTINGS)
    ranking = rank_features(store, SETTINGS, tops=tops)
    rising, falling = ranked_features(store, ranking, SETTINGS, split, tops)
    assert [feature.feature_id for feature in falling[:2]] == [4, 9]
    assert {feature.direction for feature in falling} == {"falling"}
    assert falling[0].evidence["q_value"] < 0.05
    assert falling[0].evidence["stability"] is None
    assert rising[0].feature_id not in (4, 9)


def test_memory_does_not_grow_with_the_number_of_saes(tmp_path, monkeypatch):
    """What the arrays take at their peak; a process's resident size has the allocator's moods in it too."""
    monkeypatch.setattr(stability, "_VALUES_WAITING", 0)  # else contenders of several SAEs wait together
    monkeypatch.setattr(stability, "N_BOOTSTRAPS", 10)
    rng = np.random.default_rng(0)
    store = FeatureStore(write_planted_store(tmp_path, [noise(rng, len(LABELS), 2000)], LABELS))
    peaks = []
    for n_saes in (3, 20):
        several = FeatureStoreOf(store, store.saes * n_saes)
        tops = BootstrapTops(Split.of(store), SETTINGS)
        tracemalloc.start()
        rank_features(several, replace(SETTINGS, n_workers=1), tops=tops, record=lambda *_: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[0] > 2**20


def test_the_null_spans_all_saes(store):
    null = rank_features(store, SETTINGS).null
    alone = [rank_features(FeatureStoreOf(store, [sae]), SETTINGS).null.maxima for sae in store.saes]
    np.testing.assert_array_equal(null.maxima, np.max(alone, axis=0))


class FeatureStoreOf(FeatureStore):
    """The same store, as if it held some SAEs only."""

    def __init__(self, store, saes):
        vars(self).update(vars(store))
        self.saes = saes


def test_results_come_in_order_and_an_error_ends_the_work():
    done = []

    def work(item):
        if item == 3:
            raise RuntimeError("no")
        done.append(item)
        return item

    results = in_threads(work, range(100), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="no"):
        next(results)
    assert max(done) <= 5
    assert list(in_threads(lambda item: item**2, range(7), 3)) == [item**2 for item in range(7)]


def test_a_train_split_of_one_label_is_one_line(tmp_path):
    labels = np.array([3] * 40 + [0] * 10)
    folder = write_planted_store(
        tmp_path / "s", [noise(np.random.default_rng(0), 50, 8)], labels, held_out=labels == 0
    )
    with pytest.raises(UserError, match="every train sentence has label 3, and a ranking compares labels"):
        rank_features(FeatureStore(folder), SETTINGS)
