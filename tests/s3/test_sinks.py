"""Attention sinks in pictures and in the report: shown as such, without a value."""

from pathlib import Path

import numpy as np
import pytest

from s1_compute_all_features.feature_store import POOLINGS, FeatureStore
from s2_find_top_features.ranked_features import read_results
from s3_feature_activation_graphs.build_report import main as build_report
from s3_feature_activation_graphs.feature_traces import Traces, load_traces
from s3_feature_activation_graphs.overview_matrices import coactivation_figure
from s3_feature_activation_graphs.overview_plots import heatmap_figure, heatmap_image, mean_trajectories
from s3_feature_activation_graphs.picture_run import SINK_NOTE, PictureRun
from s3_feature_activation_graphs.report_heat_maps import heat_map_data
from s3_feature_activation_graphs.report_rendering import read_overview
from s3_feature_activation_graphs.sentence_plot import SINK_COLOUR, SentencePlotter
from s3_feature_activation_graphs.visualize_activations import main as visualize
from tests.s3.conftest import KEYS, write_ranking
from tests.s3.report_inputs import full_summary, write_report_inputs
from tests.s3.test_pictures import drawn_tokens, feature_lines
from tests.synthetic_store import SINK_SIZE, planted_sinks, write_synthetic_store

ON_LAYER_1 = np.array([layer == 1 for layer, _, _ in KEYS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s3_sinks")
    store = write_synthetic_store(path / "lies_features", n_sentences=40, sink_layers=(1,))
    write_ranking(path / "results", store, KEYS)
    return path


@pytest.fixture(scope="module")
def traces(folder: Path) -> Traces:
    return load_traces(FeatureStore(folder / "lies_features"), read_results(folder / "results"), 5, [])


def picture_run(traces: Traces, sentences: list[int]) -> PictureRun:
    style = {"figsize": (14.0, 6.0), "dpi": 50, "max_token_len": 15, "free_y": False}
    return PictureRun(traces, traces.features, [0, 1, 2, 3], sentences, **style)


def test_traces_are_silent_on_the_sinks_of_their_own_layer(traces: Traces) -> None:
    sinks = planted_sinks(traces.store.n_tokens)
    np.testing.assert_array_equal(traces.sinks, sinks[:, None] & ON_LAYER_1)
    assert (traces.activations[traces.sinks] == 0).all()
    assert traces.peaks.max() < SINK_SIZE / 10
    for pooling in POOLINGS:
        expected = [
            traces.store.pooled_activations(feature.sae, pooling).columns(np.array([feature.feature_id]))
            for feature in traces.features
        ]
        np.testing.assert_allclose(traces.pooled(pooling), np.hstack(expected), rtol=1e-6)


def test_kept_sinks_are_tokens_like_others(folder: Path) -> None:
    store = FeatureStore(folder / "lies_features", keep_sinks=True)
    kept = load_traces(store, read_results(folder / "results"), 5, [])
    assert not kept.sinks.any()
    assert kept.peaks.max() > SINK_SIZE


def test_a_sink_has_a_pale_label_and_a_gap_in_the_lines_of_its_layer(traces: Traces) -> None:
    run = picture_run(traces, [0, 1])
    first, second = run._sentences  # a sentence with sinks, and one without
    plotter = SentencePlotter(traces.features, run._style)
    figure = plotter.draw(first)
    is_sink = traces.sinks[traces.tokens_of(0)].any(axis=1)
    assert is_sink.sum() == 3
    assert [label.get_color() == SINK_COLOUR for label in drawn_tokens(figure)] == is_sink.tolist()
    for line, column in zip(feature_lines(figure), range(len(KEYS)), strict=True):
        values = np.asarray(line.get_ydata())
        np.testing.assert_array_equal(np.isnan(values), is_sink & ON_LAYER_1[column])
        np.testing.assert_array_equal(values[~is_sink], first.activations[~is_sink, column])
    assert any(SINK_NOTE.strip() in text.get_text() for text in figure.texts)
    # The figure is reused: the next sentence has its own colours.
    figure = plotter.draw(second)
    assert {label.get_color() for label in drawn_tokens(figure)} == {"black"}
    assert not any(np.isnan(np.asarray(line.get_ydata())).any() for line in feature_lines(figure))


def test_trajectories_go_over_the_tokens_that_are_left(traces: Traces) -> None:
    grid, mean, _ = mean_trajectories(traces, 3)
    expected = np.zeros_like(mean)
    sentences = np.flatnonzero(traces.store.labels == 3)
    for sentence in sentences:
        values, sinks = traces.sentence(sentence), traces.sinks[traces.tokens_of(sentence)]
        for column in range(values.shape[1]):
            kept = [token for token in range(len(values)) if not sinks[token, column]]
            places = [(token + 0.5) / len(values) for token in kept]
            expected[:, column] += np.interp(grid, places, values[kept, column]) / len(sentences)
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)


def test_the_heat_map_is_grey_on_sinks(traces: Traces) -> None:
    image, _ = heatmap_image(traces, [0, 1, 2, 3])
    store = traces.store
    in_width = sum(min(image.shape[1], n_tokens) for n_tokens in store.n_tokens)
    shown = sum(
        int((~traces.sinks[traces.tokens_of(sentence), 0][: image.shape[1]]).sum())
        for sentence in range(len(store.sentences))
    )
    assert (~np.isnan(image)).sum() == shown < in_width
    texts = [text.get_text() for text in heatmap_figure(traces, [0, 1, 2, 3]).texts]
    assert any("grey lies behind its end, or is an attention sink" in text for text in texts)


def test_tokens_that_are_a_sink_for_some_feature_are_no_place_to_fire_together(traces: Traces) -> None:
    figure = coactivation_figure(traces, [0, 1, 2, 3])
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    n_left = int((~planted_sinks(traces.store.n_tokens)).sum())
    assert rows[-1] == f"any  {n_left:,}"


def test_the_reports_heat_maps_tell_sinks(traces: Traces) -> None:
    data = heat_map_data(traces, traces.peaks, 0, 0, [feature.key for feature in traces.features])
    assert set(data["sinks"]) == {"0", "1"}
    assert data["sinks"]["0"] == []
    sinks = np.zeros(len(data["tokens"]), dtype=bool)
    sinks[np.cumsum(data["sinks"]["1"])] = True
    np.testing.assert_array_equal(sinks, planted_sinks(traces.store.n_tokens))
    assert [feature["reads"] for feature in data["features"]] == [str(layer) for layer, _, _ in KEYS]


@pytest.mark.parametrize("keep", [False, True])
def test_pictures_and_report_follow_the_ranking(
    keep: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What the ranking did with sinks is done here, with no flag to forget."""
    made = write_report_inputs(tmp_path, n_sentences=24, sink_layers=(1,))
    store = FeatureStore(tmp_path / "lies_features")
    settings = {**full_summary(store)["settings"], "keep_sinks": keep}
    inputs = write_report_inputs(tmp_path / "again", {"settings": settings}, n_sentences=24, sink_layers=(1,))
    assert len(made) == len(inputs)
    assert (
        visualize([*inputs, "--output", str(tmp_path / "plots"), "--max-sentences", "2", "--dpi", "40"]) == 0
    )
    summary = (tmp_path / "plots" / "summary_statistics.json").read_text()
    assert ('"max": 10' in summary) == keep  # a peak of a thousand and some
    assert build_report([*inputs, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert read_overview(tmp_path / "report.html")["trait"] == "lies"
    assert ("--keep-sinks" in page) == keep
    capsys.readouterr()
