"""The pass over all SAEs: order, chunking, workers, and how much is kept."""

from dataclasses import replace

import numpy as np
import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features import candidates
from s2_find_top_features.evidence import ranked_features
from s2_find_top_features.ranked_features import METRICS
from s2_find_top_features.ranking import RankingSettings, Split, Thresholds, rank_features
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
    pools = [ranking.pool, ranking.falling]
    arrays = [
        getattr(pool, name) for pool in pools for name in ("sae", "feature_id", "passes", "activations")
    ]
    arrays += [pool.train[name] for pool in pools for name in METRICS]
    arrays += [ranking.pool.statistic, ranking.null.null, ranking.null.observed, ranking.null.maxima]
    return arrays


@pytest.mark.parametrize("rank_by", ["spearman", "interpretability_score", "auroc_3_vs_0", "trend"])
def test_planted_features_come_in_the_order_of_their_effects(store, rank_by):
    pool = rank_features(store, replace(SETTINGS, rank_by=rank_by)).pool
    places = list(zip(pool.sae.tolist(), pool.feature_id.tolist(), strict=True))
    assert places[:2] == [place[:2] for place in PLANTED[:2]]
    assert set(places[:4]) == {place[:2] for place in PLANTED}


def test_spearman_orders_all_four(store):
    pool = rank_features(store, SETTINGS).pool
    assert [(int(s), int(f)) for s, f in zip(pool.sae[:4], pool.feature_id[:4], strict=True)] == [
        place[:2] for place in PLANTED
    ]
    assert (np.diff(pool.train["spearman"][~pool.passes]) <= 0).all()
    assert (np.diff(pool.passes.astype(int)) <= 0).all()


def test_the_number_of_workers_changes_nothing(store):
    one, three = (rank_features(store, replace(SETTINGS, n_workers=n)) for n in (1, 3))
    for first, second in zip(everything(one), everything(three), strict=True):
        np.testing.assert_array_equal(first, second)


def test_saes_in_pieces_rank_as_one(store, tmp_path):
    """The 120 features in one SAE of 120 instead of three of 40: same order, same null, same numbers."""
    joined = np.concatenate(planted_activations(), axis=1)
    whole = rank_features(FeatureStore(write_planted_store(tmp_path / "one", [joined], LABELS)), SETTINGS)
    parts = rank_features(store, SETTINGS)
    np.testing.assert_array_equal(whole.pool.feature_id, parts.pool.sae * 40 + parts.pool.feature_id)
    for first, second in list(zip(everything(whole), everything(parts), strict=True)):
        if first.dtype.kind == "f":
            np.testing.assert_array_equal(first, second)


def test_a_small_pool_holds_the_same_best(store, monkeypatch):
    whole = rank_features(store, SETTINGS).pool
    monkeypatch.setattr(candidates, "_POOL_CELLS", 0)
    small = rank_features(store, SETTINGS).pool
    assert len(small) == SETTINGS.top_n < len(whole)
    np.testing.assert_array_equal(small.feature_id, whole.feature_id[: len(small)])


@pytest.mark.parametrize("rank_by", METRICS)
def test_every_metric_can_rank(store, rank_by):
    settings = replace(SETTINGS, rank_by=rank_by, thresholds=Thresholds(-1, 0, 1))
    pool = rank_features(store, settings).pool
    values = pool.train[rank_by]
    steps = np.diff(values[pool.passes])
    assert (steps >= 0).all() if rank_by == "fpr" else (steps <= 0).all()


def test_falling_features_are_ranked_by_their_strength(tmp_path):
    rng = np.random.default_rng(0)
    dense = noise(rng, len(LABELS), 30)
    dense[:, 4] = plant(rng, 3 - LABELS, 3.0, 1.0)
    dense[:, 9] = plant(rng, 3 - LABELS, 1.0, 1.0)
    store = FeatureStore(write_planted_store(tmp_path / "store", [dense], LABELS))
    split = Split.of(store)
    ranking = rank_features(store, SETTINGS)
    rising, falling, _ = ranked_features(store, ranking, SETTINGS, split)
    assert [feature.feature_id for feature in falling[:2]] == [4, 9]
    assert {feature.direction for feature in falling} == {"falling"}
    assert falling[0].evidence["q_value"] < 0.05
    assert falling[0].evidence["stability"] is None
    assert rising[0].feature_id not in (4, 9)


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
