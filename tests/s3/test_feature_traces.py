from pathlib import Path

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureKey, FeatureStore
from s2_find_top_features.ranked_features import read_results, write_results
from s3_feature_activation_graphs.feature_traces import (
    Traces,
    check_labels,
    choose_sentences,
    load_traces,
)
from tests.s3.conftest import KEYS
from tests.s3.report_inputs import full_summary
from tests.synthetic_store import write_synthetic_store


def test_a_key_reads_and_writes_as_users_type_it() -> None:
    assert FeatureKey.parse(" 12:82:1767") == FeatureKey(12, 82, 1767)
    assert FeatureKey.parse("12::1767") == FeatureKey(12, None, 1767)
    assert FeatureKey.parse("layer_12.a-b:5") == FeatureKey(None, None, 5, "layer_12.a-b")
    texts = ["12:82:1767", "12::5", "layer_12_width_65k_l0_72:1767"]
    assert [repr(FeatureKey.parse(text)) for text in texts] == texts


@pytest.mark.parametrize("text", ["12", "12:5", "a b:82", "a:8:1", "12:82:1767:3", "", "-1:8:3", "12:8.5:1"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not layer:l0:feature_id"):
        FeatureKey.parse(text)


def test_the_best_features_come_in_the_order_of_the_ranking(traces: Traces) -> None:
    assert [feature.key for feature in traces.features] == ["1:24:3", "0:8:3", "0:8:60", "1:8:7", "0:24:11"]
    assert [feature.rank for feature in traces.features] == [1, 2, 3, 4, 5]
    assert traces.features[0].score == 0.9
    assert traces.features[0].held_out_score is None
    for column, (layer, l0, feature_id) in enumerate(KEYS):
        # Two features of one SAE are read together: each must still land in its own column.
        expected = traces.store.activations(traces.store.find_sae(layer, l0)).to_dense()[:, feature_id]
        assert np.array_equal(traces.activations[:, column], expected)


def test_peaks_are_the_store_s_max_pooling(traces: Traces) -> None:
    pooled = traces.store.pooled_activations(traces.store.find_sae(0, 8), "max").to_dense()
    assert np.array_equal(traces.peaks[:, 1:3], pooled[:, [3, 60]])


def test_features_picked_by_hand_keep_their_rank_where_they_have_one(
    store_folder: Path, results_folder: Path
) -> None:
    keys = [FeatureKey(1, 8, 50), FeatureKey(0, 8, 3), FeatureKey(1, 8, 50)]
    traces = load_traces(FeatureStore(store_folder), read_results(results_folder), 5, keys)
    assert [(feature.key, feature.rank) for feature in traces.features] == [("1:8:50", None), ("0:8:3", 2)]


def test_an_empty_l0_is_enough_where_the_layer_has_one_sae(tmp_path: Path) -> None:
    store = FeatureStore(write_synthetic_store(tmp_path / "store", n_sentences=8, l0s=(8,)))
    write_results(tmp_path / "results", [], [], full_summary(store))
    results = read_results(tmp_path / "results")
    # The same feature under both of its names counts once.
    traces = load_traces(store, results, 5, [FeatureKey(1, None, 3), FeatureKey(1, 8, 3)])
    assert [feature.key for feature in traces.features] == ["1:8:3"]
    with pytest.raises(UserError, match=r"hold no ranked feature.*--features"):
        load_traces(store, results, 5, [])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            FeatureKey(1, None, 3),
            r"layer 1 has several SAEs; choose one of layer_01_l0_8 \(l0 8\), layer_01_l0_24",
        ),
        (FeatureKey(7, 8, 3), "no SAE of layer 7"),
        (FeatureKey(1, 9, 3), "no SAE with l0 9"),
        (FeatureKey(1, 8, 64), "features 0 to 63, not 64"),
        (
            FeatureKey(None, None, 3, "layer_9"),
            "no SAE is named layer_9; there are layer_00_l0_8, layer_00_l0_24",
        ),
    ],
)
def test_a_feature_that_is_not_in_the_store_is_named(
    store_folder: Path, results_folder: Path, key: FeatureKey, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_traces(FeatureStore(store_folder), read_results(results_folder), 5, [key])


def test_results_of_another_store_are_refused(tmp_path: Path, results_folder: Path) -> None:
    other = FeatureStore(write_synthetic_store(tmp_path / "other", n_sentences=12, seed=1))
    with pytest.raises(UserError, match=r"made from another store.*run analyze_features.py again"):
        load_traces(other, read_results(results_folder), 5, [])


def test_labels_are_all_or_the_wanted_ones(two_labels: tuple[Path, Path]) -> None:
    store = FeatureStore(two_labels[0])
    assert check_labels(store, []) == [0, 3]
    assert check_labels(store, [3, 3]) == [3]
    with pytest.raises(UserError, match="no sentence has label 1; there are the labels 0, 3"):
        check_labels(store, [0, 1])


def test_labels_share_the_limit_and_the_strongest_sentences_come_first(traces: Traces) -> None:
    chosen = choose_sentences(traces, [0, 3], 6, "activation")
    labels = traces.store.labels[chosen]
    assert labels.tolist() == [0, 0, 0, 3, 3, 3]
    for label in (0, 3):
        of_label = np.flatnonzero(traces.store.labels == label)
        best = sorted(of_label, key=lambda sentence: -traces.peaks[sentence, 0])[:3]
        assert [s for s in chosen if traces.store.labels[s] == label] == best


def test_file_order_and_no_limit(traces: Traces) -> None:
    assert choose_sentences(traces, [2], 3, "index") == [2, 6, 10]
    assert sorted(choose_sentences(traces, [0, 1, 2, 3], 0, "index")) == list(range(40))


def test_what_a_small_label_leaves_over_goes_to_the_others(tmp_path: Path, results_folder: Path) -> None:
    labels = np.array([0, *[3] * 9])
    store = FeatureStore(write_synthetic_store(tmp_path / "store", n_sentences=10, labels=labels))
    traces = Traces(store, [], np.zeros((int(store.starts[-1]), 1), np.float32))
    assert store.labels[choose_sentences(traces, [0, 3], 6, "activation")].tolist() == [0, 3, 3, 3, 3, 3]
