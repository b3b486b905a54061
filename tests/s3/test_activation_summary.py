import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s3_feature_activation_graphs.activation_summary import (
    as_text,
    kind_of,
    relative_position,
    sentence_peaks,
    summarise,
    summary_document,
)
from s3_feature_activation_graphs.feature_traces import DrawnFeature, Traces


def traces_with(store_folder: Path, activations: np.ndarray) -> Traces:
    store = FeatureStore(store_folder)
    return Traces(store, [DrawnFeature(store.saes[0], f) for f in range(activations.shape[1])], activations)


def test_peaks_and_onsets_agree_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    n_tokens = rng.integers(1, 7, size=50)
    starts = np.concatenate([[0], np.cumsum(n_tokens)])
    # Whole numbers, so that there are ties; the last feature never fires.
    activations = np.maximum(rng.integers(-3, 3, size=(starts[-1], 4)), 0).astype(np.float32)
    activations[:, 3] = 0
    peaks = sentence_peaks(activations, starts)
    for sentence in range(50):
        for feature in range(4):
            values = activations[starts[sentence] : starts[sentence + 1], feature].tolist()
            fires = max(values) > 0
            where = (sentence, feature)
            assert peaks.value[where] == max(values)
            assert peaks.position[where] == (values.index(max(values)) if fires else -1)
            assert peaks.onset[where] == (next(i for i, v in enumerate(values) if v > 0) if fires else -1)
            assert peaks.share[where] == pytest.approx(max(values) / sum(values) if fires else 0)


def test_relative_position_does_not_depend_on_the_length() -> None:
    assert relative_position(np.array([0, 0, 1, 2]), np.array([1, 4, 3, 5])).tolist() == [
        0.5,
        0.125,
        0.5,
        0.5,
    ]


@pytest.mark.parametrize(
    ("n_active", "median_peak", "share", "kind"),
    [
        (4, 0.9, 1.0, "rarely active"),
        (0, None, None, "rarely active"),
        (5, 0.9, 1.0, "late/sentence-level"),
        (5, 2 / 3, 0.1, "late/sentence-level"),
        (5, 0.2, 0.1, "early/keyword"),
        (5, 0.5, 0.5, "early/keyword"),
        (5, 1 / 3, 0.49, "contextual"),
        (5, 0.6, 0.2, "contextual"),
    ],
)
def test_kinds_follow_the_stated_rule(n_active: int, median_peak: float, share: float, kind: str) -> None:
    assert kind_of(n_active, median_peak, share) == kind


def test_planted_features_get_their_kind_and_numbers(store_folder: Path) -> None:
    store = FeatureStore(store_folder)
    first, last = store.starts[:-1], store.starts[1:] - 1
    activations = np.zeros((int(store.starts[-1]), 4), np.float32)
    activations[first, 0] = 2
    activations[last, 1] = 1 + store.labels
    activations[:, 2] = 1  # evenly on: the first of the ties counts as the peak, so it reads as early
    middle = first + store.n_tokens // 2
    activations[:, 3] = 1
    activations[middle, 3] = 1.5
    early, late, _, contextual = summarise(traces_with(store_folder, activations), [0, 1, 2, 3])
    assert (early["kind"], late["kind"], contextual["kind"]) == (
        "early/keyword",
        "late/sentence-level",
        "contextual",
    )
    assert early["peak_position"] == {"mean": 0.0, "median": 0.0}
    assert late["n_active_sentences"] == 40
    assert late["sentences_by_kind"] == {"early/keyword": 0, "contextual": 0, "late/sentence-level": 40}
    assert late["peak_tokens"] == [{"token": ".", "n_sentences": 40}]
    assert late["onset_position"]["mean"] == (store.n_tokens - 1).mean()
    assert contextual["onset_position"]["mean"] == 0
    by_label = {(e["label"], e["split"]): e for e in late["peak_value_by_label"]}
    assert [by_label[label, "test"]["mean"] for label in range(4)] == [1, 2, 3, 4]
    assert sum(e["n_sentences"] for e in by_label.values()) == 40


def test_a_peak_on_a_piece_of_a_character_names_the_character(store_folder: Path) -> None:
    activations = np.zeros((int(FeatureStore(store_folder).starts[-1]), 1), np.float32)
    traces = traces_with(store_folder, activations)
    store = traces.store
    last = store.starts[1:] - 1
    activations[last - 1] = 1
    text = np.array(store.tokens.text, dtype="U20")
    text[last - 1], text[last] = "", "\U0001f600"
    store.__dict__["tokens"] = replace(store.tokens, text=text)
    (feature,) = summarise(traces, [0, 1, 2, 3])
    assert feature["peak_tokens"] == [{"token": "\U0001f600 1/2", "n_sentences": 40}]


def test_the_kinds_of_single_sentences_are_counted(store_folder: Path) -> None:
    store = FeatureStore(store_folder)
    activations = np.zeros((int(store.starts[-1]), 1), np.float32)
    first, last = store.starts[:-1], store.starts[1:] - 1
    activations[first[:7]] = 1
    activations[last[7:30]] = 1
    activations[first[:30] + 1, 0] = 0.5
    document = summary_document(traces_with(store_folder, activations), [0, 1, 2, 3], {}, [])
    (feature,) = document["features"]
    assert feature["sentences_by_kind"] == {"early/keyword": 7, "contextual": 0, "late/sentence-level": 23}
    assert feature["kind"] == "late/sentence-level"
    assert document["features_by_kind"] == {
        "early/keyword": 0,
        "contextual": 0,
        "late/sentence-level": 1,
        "rarely active": 0,
    }
    assert "7 early/keyword, 0 contextual, 23 late/sentence-level" in as_text(document)
    assert sum(feature["sentences_by_kind"].values()) == feature["n_active_sentences"]


def test_labels_limit_what_is_counted(store_folder: Path) -> None:
    store = FeatureStore(store_folder)
    (feature,) = summarise(traces_with(store_folder, np.ones((int(store.starts[-1]), 1), np.float32)), [0, 2])
    assert feature["n_sentences"] == feature["n_active_sentences"] == 20
    assert {entry["label"] for entry in feature["peak_value_by_label"]} == {0, 2}


def test_a_feature_that_never_fires_has_no_positions(store_folder: Path) -> None:
    store = FeatureStore(store_folder)
    silent = traces_with(store_folder, np.zeros((int(store.starts[-1]), 1), np.float32))
    document = summary_document(silent, [0, 1, 2, 3], {}, [])
    feature = document["features"][0]
    assert feature["kind"] == "rarely active"
    assert feature["peak_position"] == {"mean": None, "median": None}
    assert feature["peak_value_by_label"][0]["mean"] == 0
    json.dumps(document, allow_nan=False)
    assert "peak tokens (sentences): none" in as_text(document)


def test_the_text_says_what_the_numbers_say(traces: Traces) -> None:
    document = summary_document(traces, [0, 1, 2, 3], {}, ["overview.png", "label_0/sentence_000000.png"])
    text = as_text(document)
    assert "40 sentences, 1 of them drawn" in text
    assert "1:24:3  rank 1  score 0.90, held-out -" in text
    assert "0:8:60  rank 3, below the filters of the ranking" in text
    assert document["kind_rule"] in text
