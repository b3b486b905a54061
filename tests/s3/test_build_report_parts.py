"""The report's parts: verdict in words, heat-map data, charts, layer sweep; each against its inputs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import (
    RankedResults,
    read_specificity,
)
from s2_find_top_features.specificity_table import SPECIFICITY_COLUMNS
from s3_feature_activation_graphs.feature_traces import Traces
from s3_feature_activation_graphs.report_charts import (
    MAX_DOTS,
    Axis,
    interval_bar,
    shade,
    strip_chart,
)
from s3_feature_activation_graphs.report_content import (
    Evidence,
    ranked_rows,
    specificity_matrix,
    strongest_label,
)
from s3_feature_activation_graphs.report_emergence import MAX_BANDS, emergence_chart, read_layer_sweep
from s3_feature_activation_graphs.report_heat_maps import (
    TOP_KEPT,
    carried_sentences,
    heat_map_data,
    random_order,
)
from s3_feature_activation_graphs.report_verdict import interval, number, verdict_cards
from tests.s3.conftest import KEYS
from tests.s3.report_inputs import full_summary, ranked, write_store, write_sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RankedResults:
    store = FeatureStore(write_store(tmp_path_factory.mktemp("parts") / "lies_features", n_sentences=16))
    return RankedResults([ranked(rank, key) for rank, key in enumerate(KEYS, 1)], full_summary(store))


def with_summary(results: RankedResults, **changes: Any) -> RankedResults:
    return RankedResults(results.features, {**results.summary, **changes})


def test_numbers_to_read() -> None:
    assert [number(value) for value in (None, 0.126, -0.004, -0.126)] == ["\u2013", "0.13", "0.00", "-0.13"]
    assert interval(0.1, 0.2) == " [0.10, 0.20]"
    assert interval(None, 0.2) == ""


@pytest.mark.parametrize(
    ("word", "headline", "tone"),
    [
        ("beats", "Yes, it beats bag of words", "good"),
        ("loses", "No, it loses to bag of words", "bad"),
        ("cannot tell", "Cannot tell", "open"),
    ],
)
def test_the_verdict_against_bag_of_words(
    word: str, headline: str, tone: str, results: RankedResults
) -> None:
    verdict = {"word": word, "difference_low": None, "difference_high": None}
    card = verdict_cards(with_summary(results, verdict=verdict))[2]
    assert (card["headline"], card["tone"]) == (headline, tone)


def test_no_discovery_is_bad_news_and_nothing_tested_is_no_news(results: RankedResults) -> None:
    found = results.summary["significance"]
    none = verdict_cards(with_summary(results, significance={**found, "n_discoveries": 0}))[0]
    assert (none["headline"], none["tone"]) == ("0 of 240 tested features survive", "bad")
    untested = {**found, "n_tested": 0, "best_of_noise_mean": None, "best_of_noise_95": None}
    card = verdict_cards(with_summary(results, significance=untested))[0]
    assert (card["headline"], card["tone"]) == ("No feature was tested", "open")


def test_what_stays_above_chance_is_counted(results: RankedResults) -> None:
    # The lower ends run from 0.46 to 0.50, and 0.50 is not above 0.5.
    assert verdict_cards(results)[1]["headline"] == "0 of the 5 listed features stay above chance"
    better = [replace(results.features[0], evidence={"held_out_auroc_3_vs_0_low": 0.51})]
    cards = verdict_cards(RankedResults([*better, *results.features[1:]], results.summary))
    assert cards[1]["headline"] == "1 of the 5 listed features stay above chance"
    unknown = [replace(feature, evidence={}) for feature in results.features]
    cards = verdict_cards(RankedResults(unknown, results.summary))
    assert cards[1]["headline"] == "No held-out interval exists"
    assert cards[3]["headline"] == "Not known"


def test_rows_keep_the_files_values_and_drop_foreign_links(results: RankedResults) -> None:
    told = [{"rank": 2, "labels": ["lies", "sales"]}]
    bad = replace(results.features[1], neuronpedia_url="https://www.neuronpedia.org.example/x")
    rows = ranked_rows(RankedResults([results.features[0], bad], results.summary), told, {"feature-1-24-3"})
    assert [row["has_section"] for row in rows] == [True, False]
    assert rows[0]["url"].startswith("https://www.neuronpedia.org/")
    assert rows[1]["url"] == ""
    assert [row["explanation"] for row in rows] == ["", "lies; sales"]
    assert rows[0]["score"] == results.features[0].train["interpretability_score"]
    assert rows[0]["held_out_score"] == results.features[0].held_out["interpretability_score"]


def test_the_strongest_label_may_not_exist(results: RankedResults) -> None:
    feature = results.features[0]
    assert strongest_label(feature) == 3
    means = {f"mean_{label}": None for label in range(4)}
    assert strongest_label(replace(feature, train={**feature.train, **means})) is None
    assert strongest_label(replace(feature, train={**feature.train, **means, "mean_1": 0.0})) == 1


def unpacked(data: dict[str, Any], column: int) -> np.ndarray:
    """The activations that the page's script would see."""
    feature = data["features"][column]
    values = np.zeros(len(data["tokens"]))
    values[np.cumsum(feature["gaps"])] = feature["values"]
    return values


def test_heat_maps_carry_every_token_and_activation(traces: Traces) -> None:
    data = heat_map_data(traces, traces.peaks, 0, 0, [feature.key for feature in traces.features])
    store = traces.store
    assert [data["vocabulary"][token] for token in data["tokens"]] == store.tokens.text.tolist()
    assert data["lengths"] == store.n_tokens.tolist()
    assert data["index"] == list(range(len(store.labels)))
    assert data["labels"] == store.labels.tolist()
    assert data["held_out"] == store.held_out.astype(int).tolist()
    assert data["top_limit"] is None
    for column, feature in enumerate(data["features"]):
        expected = traces.activations[:, column]
        # Three significant digits: half a unit of the third is at most 0.5%.
        np.testing.assert_allclose(unpacked(data, column), expected, rtol=5.1e-3)
        assert np.array_equal(unpacked(data, column) > 0, expected > 0)
        np.testing.assert_allclose(feature["pooled"], traces.peaks[:, column], rtol=5.1e-3)
        assert feature["max"] == pytest.approx(expected.max(), rel=5.1e-3)
    # The synthetic sentences end in a number that no token has: the text stands beside the tokens.
    assert data["texts"] == store.sentences


def test_a_text_that_its_tokens_spell_is_not_stored_twice(traces: Traces) -> None:
    store = traces.store
    spelled = ["".join(store.tokens.text[traces.tokens_of(s)]).strip() for s in range(len(store.labels))]
    before, store.sentences = store.sentences, [*spelled[:-1], "else"]
    try:
        data = heat_map_data(traces, traces.peaks, 0, 0, [feature.key for feature in traces.features])
    finally:
        store.sentences = before
    assert data["texts"] == [None] * (len(spelled) - 1) + ["else"]


def test_the_random_order_does_not_know_activations_and_has_each_sentence_once() -> None:
    labels = np.arange(200) % 4
    order = random_order(labels, 0)
    assert {label: sorted(of_label.tolist()) for label, of_label in order.items()} == {
        label: list(range(label, 200, 4)) for label in range(4)
    }
    assert order[3].tolist() != sorted(order[3].tolist())
    assert all(np.array_equal(order[label], random_order(labels, 0)[label]) for label in order)
    assert order[3].tolist() != random_order(labels, 1)[3].tolist()


def test_a_large_store_is_carried_in_part_with_every_features_top() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 4
    pooled = rng.random((4000, 3))
    order = random_order(labels, 0)
    carried, drawn = carried_sentences(pooled, labels, 200, order)
    assert all(np.array_equal(drawn[label], order[label][:50]) for label in range(4))
    expected = {sentence for of_label in drawn.values() for sentence in of_label.tolist()}
    for label in range(4):
        of_label = np.flatnonzero(labels == label)
        for column in range(3):
            best = sorted(of_label, key=lambda s, column=column: -pooled[s, column])[:TOP_KEPT]
            expected |= {int(sentence) for sentence in best}
    assert carried.tolist() == sorted(expected)
    everything, _ = carried_sentences(pooled, labels, 0, order)
    assert everything.tolist() == list(range(4000))


@pytest.mark.parametrize("high", [0.003, 1.0, 7.3, 180.0, 0.0])
def test_an_axis_covers_its_range_with_round_ticks(high: float) -> None:
    axis = Axis.of(0.0, high, 200.0, 10.0)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 9
    assert float(ticks[0]["text"]) == 0
    assert float(ticks[-1]["text"]) >= high
    assert axis.at(0.0) == 200.0
    assert axis.at(axis.high) == pytest.approx(10.0)
    assert len({tick["text"] for tick in ticks}) == len(ticks)


def test_a_strip_chart_has_a_dot_per_sentence_at_its_value() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 3], 40)
    held_out = np.tile([False, False, False, True], 20)
    pooled = (rng.random(80) * 5 * (rng.random(80) < 0.7)).astype(np.float32)
    chart = strip_chart(pooled, labels, held_out)
    assert [(g["label"], g["split"], g["n"]) for g in chart["groups"]] == [
        (0, "train", 30), (0, "held-out", 10), (3, "train", 30), (3, "held-out", 10)
    ]  # fmt: skip
    low, high = chart["ticks"][0], chart["ticks"][-1]
    for group in chart["groups"]:
        values = pooled[(labels == group["label"]) & (held_out == (group["split"] == "held-out"))]
        assert group["n_active"] == (values > 0).sum()
        assert group["mean"] == pytest.approx(values.mean())
        heights = np.array([float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", group["path"])])
        span = float(high["text"]) - float(low["text"])
        drawn = float(low["text"]) + (heights - low["at"]) / (high["at"] - low["at"]) * span
        # Coordinates have one digit after the point.
        np.testing.assert_allclose(drawn, np.sort(values), atol=0.06 * span / abs(high["at"] - low["at"]))
    assert not chart["thinned"]


def test_a_large_group_is_drawn_as_quantiles_and_an_empty_one_not_at_all() -> None:
    pooled = np.arange(1000, dtype=np.float32)
    chart = strip_chart(pooled, np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=bool))
    (group,) = chart["groups"]
    assert chart["thinned"]
    assert group["path"].count("M") == MAX_DOTS
    assert group["n"] == 1000
    silent = strip_chart(np.zeros(4, np.float32), np.array([0, 0, 3, 3]), np.zeros(4, dtype=bool))
    assert [group["n_active"] for group in silent["groups"]] == [0, 0]


def test_shades_and_bars() -> None:
    assert shade(0.75) == {"value": 0.75, "side": "above", "strength": 0.5}
    assert shade(0.0) == {"value": 0.0, "side": "below", "strength": 1.0}
    assert shade(None)["value"] is None
    assert interval_bar(0.5, 0.25, 0.75) == {"at": 50.0, "left": 25.0, "width": 50.0}
    assert interval_bar(0.5, None, None) == {"at": 50.0, "left": 50.0, "width": 0.0}
    assert interval_bar(None, None, None) is None


def test_a_sweep_becomes_a_curve_over_layers(tmp_path: Path) -> None:
    rows = read_layer_sweep(write_sweep(tmp_path / "sweep.csv", ("caring", "lies")), ("lies",), "synthetic")
    assert [row.layer for row in rows] == [-1, 0, 1, None]
    chart = emergence_chart(rows)
    assert chart is not None
    (curve,) = chart["curves"]
    assert [tick["text"] for tick in chart["layers"]] == ["emb", "0", "1"]
    ticks = {float(tick["text"]): tick["at"] for tick in chart["ticks"]}
    for point, auroc in zip(curve["points"], (0.6, 0.7, 0.8), strict=True):
        assert point["y"] == pytest.approx(ticks[0.5] + (auroc - 0.5) / 0.5 * (ticks[1.0] - ticks[0.5]))
    xs = [point["x"] for point in curve["points"]]
    assert xs == sorted(set(xs))
    assert curve["best"].layer == 0  # by cross-validation, though held-out is better at layer 1
    assert curve["band"].count(" ") == 6
    assert [baseline["row"].name for baseline in chart["baselines"]] == ["bag of words"]


def test_many_curves_have_no_bands_and_no_curve_no_chart(tmp_path: Path) -> None:
    rows = read_layer_sweep(write_sweep(tmp_path / "sweep.csv"), ("lies",), "synthetic")
    more = [replace(row, pooling=f"p{copy}") for copy in range(MAX_BANDS + 1) for row in rows]
    chart = emergence_chart(more)
    assert chart is not None
    assert [curve["band"] for curve in chart["curves"]] == [""] * (MAX_BANDS + 1)
    unknown = [replace(row, values={**row.values, "test_auroc": None}) for row in rows]
    assert emergence_chart(unknown) is None
    assert emergence_chart([row for row in rows if row.layer is None]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("test_auroc_low", "low"), "column 'test_auroc_low' is missing"),
        (("lies,0", "lies,zero"), r"line 3: invalid literal .* run sweep_layers.py again"),
        (("0.60,0.50", "much,0.50"), "line 2: could not convert"),
    ],
)
def test_a_damaged_sweep_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "sweep.csv")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        read_layer_sweep(path, ("lies",), "synthetic")


def test_a_sweep_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "sweep.csv")
    path.write_text(path.read_text().replace(",further", ",model").replace(",x", ",other"))
    with pytest.raises(UserError, match="no row of the trait lies with the model synthetic"):
        read_layer_sweep(path, ("lies",), "synthetic")
    assert len(read_layer_sweep(path, ("lies",), "other")) == 4


def specificity_line(rank: int, trait: str, *numbers: str) -> str:
    layer, l0, feature_id = KEYS[rank - 1]
    return ",".join([str(rank), "sae", str(layer), str(l0), str(feature_id), trait, *numbers])


def test_specificity_is_read_and_laid_out_by_trait(tmp_path: Path, results: RankedResults) -> None:
    assert read_specificity(tmp_path) == []
    lines = [
        ",".join(SPECIFICITY_COLUMNS),
        specificity_line(1, "caring", "0.7", "0.5", "0.9", "4", "5", "6", "0"),
        specificity_line(1, "bravery", "0.7", "", "", "4", "0", "6", "1"),
        specificity_line(2, "caring", "0.6", "0.4", "0.2", "4", "5", "6", "0"),
        specificity_line(2, "bravery", "0.6", "0.3", "0.1", "4", "5", "6", "1"),
    ]
    (tmp_path / "specificity.csv").write_text("\n".join(lines) + "\n")
    rows = read_specificity(tmp_path)
    assert rows[0]["held_out_auroc_3_vs_0_of_other"] == 0.5
    assert rows[1]["held_out_auroc_3_vs_0_of_other"] is None
    evidence = Evidence(results, specificity=rows)
    assert evidence.other_traits == ["caring", "bravery"]
    matrix = specificity_matrix(evidence, [1, 2, None, 3])
    assert [row["key"] for row in matrix] == ["1:24:3", "0:8:3"]
    assert [[cell["value"] for cell in pair] for pair in matrix[0]["cells"]] == [[0.5, 0.9], [None, None]]
    assert [row["own"]["value"] for row in matrix] == [0.7, 0.6]

    (tmp_path / "specificity.csv").write_text("\n".join([lines[0], lines[1].replace("0.9", "high")]) + "\n")
    with pytest.raises(UserError, match=r"specificity\.csv: line 2: .* run analyze_features.py again"):
        read_specificity(tmp_path)
    (tmp_path / "specificity.csv").write_text("rank,layer\n")
    with pytest.raises(UserError, match="column 'sae_name' is missing"):
        read_specificity(tmp_path)
