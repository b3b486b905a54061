"""Families, held-out metrics and intervals of the best features."""

from dataclasses import replace

import numpy as np
import pytest

from concept_evaluation.bootstrap import bootstrap_intervals
from concept_evaluation.metrics import auroc
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features import evidence
from s2_find_top_features.evidence import families, held_out_intervals, ranked_features
from s2_find_top_features.ranking import rank_features
from s2_find_top_features.scoring import Split
from s2_find_top_features.stability import BootstrapTops
from tests.s2.planted_store import noise, plant, write_planted_store
from tests.s2.test_ranking import LABELS, SETTINGS

TOP_3 = replace(SETTINGS, top_n=3)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """One strong feature, its near-copy in the next SAE, and noise; every third sentence has a twin."""
    rng = np.random.default_rng(1)
    saes = [noise(rng, len(LABELS), 40) for _ in range(2)]
    saes[0][:, 3] = plant(rng, LABELS, 3.0, 1.0)
    saes[1][:, 5] = saes[0][:, 3] * rng.uniform(0.95, 1.05, size=len(LABELS)).astype(np.float32)
    groups = np.arange(len(LABELS))
    groups[1::12] = groups[::12]
    folder = tmp_path_factory.mktemp("evidence") / "store"
    store = FeatureStore(write_planted_store(folder, saes, LABELS, groups=groups))
    split = Split.of(store)
    tops = BootstrapTops(split, TOP_3)
    return store, split, rank_features(store, TOP_3, tops=tops), tops


def features_of(outcome):
    """The listed features with their evidence."""
    store, split, ranking, tops = outcome
    return ranked_features(store, ranking, TOP_3, split, tops)[0]


def test_the_planted_features_stay_and_noise_comes_and_goes(outcome):
    features = features_of(outcome)
    assert [feature.evidence["stability"] for feature in features[:2]] == [1.0, 1.0]
    assert features[2].evidence["stability"] < 0.8


@pytest.mark.parametrize("n_values", [1, 100])
def test_evidence_taken_run_by_run_is_the_same(outcome, n_values, monkeypatch):
    monkeypatch.setattr(evidence, "N_RESAMPLES", 20)
    whole = features_of(outcome)
    monkeypatch.setattr(evidence, "_VALUES_AT_ONCE", n_values)
    assert features_of(outcome) == whole


def test_copies_are_one_family_with_the_better_as_representative(outcome):
    features = features_of(outcome)
    assert [feature.family for feature in features] == [1, 1, 2]
    assert [feature.is_representative for feature in features] == [True, False, True]


def test_families_do_not_chain():
    """B resembles a and c; a and c do not resemble each other: c founds its own family."""
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(2, 4000))
    b = a + 0.6 * d
    c = b + 0.8 * d
    activations = np.stack([a, b, c])
    correlation = np.corrcoef(activations)
    assert correlation[0, 1] > 0.8 < correlation[1, 2]
    assert correlation[0, 2] < 0.8
    assert families(activations).tolist() == [1, 1, 2]


def test_a_constant_feature_is_a_family_of_its_own():
    assert families(np.array([[1.0, 1, 1, 1], [0, 1, 0, 1], [2, 2, 2, 2]])).tolist() == [1, 2, 3]


def test_held_out_metrics_equal_a_dense_calculation(outcome):
    store = outcome[0]
    features = features_of(outcome)
    activations = store.pooled_activations(store.saes[0], "max").to_dense()
    best = activations[:, features[0].feature_id].astype(np.float64)
    held_out = best[store.held_out]
    labels = store.labels[store.held_out]
    ends = (labels == 0) | (labels == 3)
    assert features[0].held_out["auroc_3_vs_0"] == pytest.approx(auroc(held_out[ends], labels[ends] == 3))
    threshold = np.quantile(best[~store.held_out & (store.labels == 0)], 0.95)
    assert features[0].held_out["tpr"] == pytest.approx((held_out[labels == 3] > threshold).mean())
    for feature in features:
        assert feature.evidence["optimism"] == pytest.approx(
            feature.train["spearman"] - feature.held_out["spearman"]
        )


def test_intervals_equal_those_of_single_scores(outcome):
    _, split, ranking, _ = outcome
    top = ranking.top
    low, high = held_out_intervals(top, split, ("auroc_3_vs_0",), seed=5)["auroc_3_vs_0"]
    labels = split.held_out_labels

    def scores(rows):
        ends = rows[(labels[rows] == 0) | (labels[rows] == 3)]
        held_out = top.activations[:, ~split.train]
        return {str(k): auroc(held_out[k, ends], labels[ends] == 3) for k in range(3)}

    expected = bootstrap_intervals(scores, split.held_out_groups, 5)
    np.testing.assert_allclose(low, [expected[str(k)][0] for k in range(3)])
    np.testing.assert_allclose(high, [expected[str(k)][1] for k in range(3)])


def test_one_held_out_group_has_no_interval(outcome):
    _, split, ranking, _ = outcome
    alone = replace(split, held_out_groups=np.zeros_like(split.held_out_groups))
    low, high = held_out_intervals(ranking.top.take(np.arange(2)), alone, ("pearson",), 0)["pearson"]
    assert np.isnan(low).all()
    assert np.isnan(high).all()
