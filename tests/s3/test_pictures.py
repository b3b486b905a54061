import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from s3_feature_activation_graphs.feature_traces import MAX_FEATURES, DrawnFeature, Traces
from s3_feature_activation_graphs.overview_plots import (
    distributions_figure,
    heatmap_figure,
    heatmap_image,
    mean_trajectories,
    trajectories_figure,
)
from s3_feature_activation_graphs.plotting_utils import feature_label, font_families, line_style, token_label
from s3_feature_activation_graphs.sentence_plot import SentencePlotter, SentenceToDraw


def sentence(tokens: list[str], n_features: int = 5, text: str = "He lied.", seed: int = 0) -> SentenceToDraw:
    activations = np.random.default_rng(seed).exponential(size=(len(tokens), n_features)).astype(np.float32)
    return SentenceToDraw(42, text, 3, True, tokens, activations * (activations > 1))


def plotter(features: list[DrawnFeature], sentences: list[SentenceToDraw], **changes: Any) -> SentencePlotter:
    settings = {"figsize": (14.0, 6.0), "dpi": 50, "max_token_len": 15, "y_max": 8.0} | changes
    return SentencePlotter(features, sentences, "model  |  store", **settings)


def test_thirty_lines_differ_in_two_ways_each() -> None:
    styles = [line_style(index) for index in range(MAX_FEATURES)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == MAX_FEATURES
    assert len({(style["color"], style["marker"]) for style in styles}) == MAX_FEATURES


def test_every_line_colour_stands_out_from_white_paper() -> None:
    luminance = [
        np.dot(to_rgb(line_style(i)["color"]), (0.2126, 0.7152, 0.0722)) for i in range(MAX_FEATURES)
    ]
    assert max(luminance) < 0.75  # yellow would have about 0.87


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" lied", "␣lied"),
        ("ing", "ing"),
        ("  ", "␣␣"),
        ("\n\t", "↵⇥"),
        ("\u200b\x00", "\\u200b\\x00"),
        ("$x_1$\\n", "$x_1$\\n"),
        ("abcdefghijklmno", "abcdefghijklmno"),
        ("abcdefghijklmnop", "abcdefghijklmn…"),
        ("他撒谎", "他撒谎"),
    ],
)
def test_tokens_are_drawn_as_they_are_with_spaces_visible(token: str, shown: str) -> None:
    assert token_label(token, 15) == shown


def test_labels_of_features_give_rank_key_and_both_scores(traces: Traces) -> None:
    assert feature_label(traces.features[0]) == "#1  1:24:3  0.90 (-)"
    assert feature_label(DrawnFeature(traces.store.saes[0], 9)) == "0:8:9  not ranked"


def test_another_installed_font_helps_out_where_dejavu_sans_has_no_glyph() -> None:
    assert font_families(["Он солгал"]) == (["DejaVu Sans"], [])
    # matplotlib itself brings STIX, which has the script A; no font has an unassigned code point.
    families, missing = font_families(["\N{MATHEMATICAL SCRIPT CAPITAL A}"])
    assert families[0] == "DejaVu Sans"
    assert len(families) == 2
    assert missing == []


def test_missing_glyphs_are_reported_once_and_never_warned_about(traces: Traces, tmp_path: Path) -> None:
    # Linear A is in none of the fonts that come with matplotlib and in hardly any other.
    one = sentence(["\U00010600", " \U00010601"], text="\U00010600 \U00010601")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawer = plotter(traces.features, [one])
        drawer.save(one, tmp_path / "one.png")
    assert [str(warning.message) for warning in caught] == []
    _, missing = font_families(one.tokens)
    assert drawer.missing_characters == missing


def test_signs_of_mathematics_stay_text(traces: Traces, tmp_path: Path) -> None:
    # Parsed as mathematics, both the first token and the sentence would raise.
    one = sentence(["$\\frac{$", " a_{b$"], text="He paid $\\frac{1$ and $_$.")
    drawer = plotter(traces.features, [one])
    drawer.save(one, tmp_path / "one.png")
    figure = drawer.draw(one)
    assert "He paid $\\frac{1$ and $_$." in [text.get_text() for text in figure.texts]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["$\\frac{$", "␣a_{b$"]


def test_a_figure_that_is_reused_shows_only_the_last_sentence(traces: Traces) -> None:
    long, short = sentence([f" word{i}" for i in range(30)]), sentence([" He", " lied"], seed=1)
    drawer = plotter(traces.features, [long, short])
    drawer.draw(long)
    axes = drawer.draw(short).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["␣He", "␣lied"]
    for line, values in zip(axes.lines, short.activations.T, strict=True):
        assert np.array_equal(line.get_ydata(), values)
        assert line.get_markevery() == np.flatnonzero(values).tolist()
    assert axes.get_ylim() == (0, pytest.approx(8.32))


def test_the_title_says_label_and_split(traces: Traces) -> None:
    one = sentence([" He", " lied"])
    texts = [text.get_text() for text in plotter(traces.features, [one]).draw(one).texts]
    assert "Sentence 42  |  label 3  |  held-out" in texts
    assert any("model  |  store" in text for text in texts)


def test_free_y_fits_the_sentence(traces: Traces) -> None:
    one = sentence([" He", " lied", "."])
    axes = plotter(traces.features, [one], y_max=None).draw(one).axes[0]
    assert axes.get_ylim()[1] == pytest.approx(1.04 * one.activations.max())
    silent = SentenceToDraw(1, "Hm", 0, False, ["Hm"], np.zeros((1, 5), np.float32))
    assert plotter(traces.features, [silent], y_max=None).draw(silent).axes[0].get_ylim() == (0, 1)


@pytest.mark.parametrize("n_tokens", [1, 3, 25, 90])
@pytest.mark.parametrize("figsize", [(14.0, 6.0), (3.0, 2.0)])
@pytest.mark.parametrize("n_features", [1, 30])
def test_nothing_is_cut_and_no_tokens_overlap(
    traces: Traces, n_tokens: int, figsize: tuple[float, float], n_features: int
) -> None:
    features = [DrawnFeature(traces.store.saes[3], i, i + 1, 0.5, 0.5, True) for i in range(n_features)]
    tokens = [" incomprehensibilities" if i % 3 else " a" for i in range(n_tokens)]
    one = sentence(tokens, n_features, text="WHO LIED? " * 60)
    figure = plotter(features, [one], figsize=figsize).draw(one)
    figure.draw_without_rendering()
    axes, inside = figure.axes[0], figure.bbox
    labels = axes.get_xticklabels()
    for artist in (*labels, *figure.texts, axes.get_legend(), axes.yaxis.label):
        box = artist.get_window_extent()
        assert box.x0 >= inside.x0
        assert box.y0 >= inside.y0
        assert box.x1 <= inside.x1
        assert box.y1 <= inside.y1
    footer_top = figure.texts[-1].get_window_extent().y1
    assert min(label.get_window_extent().y0 for label in labels) > footer_top
    title_bottom = min(text.get_window_extent().y0 for text in figure.texts[:-1])
    assert axes.get_window_extent().y1 < title_bottom
    # Slanted by 45 degrees, neighbours are apart if the step along the axis exceeds the line height / sin 45.
    anchors = [axes.transData.transform((tick, 0))[0] for tick in axes.get_xticks()]
    line_height = labels[0].get_fontsize() / 72 * figure.dpi
    assert all(right - left > line_height / np.sin(np.pi / 4) for left, right in pairwise(anchors))


def test_the_picture_has_the_size_asked_for(traces: Traces, tmp_path: Path) -> None:
    one = sentence([" He", " lied"])
    plotter(traces.features, [one], figsize=(10.0, 5.0), dpi=60).save(one, tmp_path / "a" / "one.png")
    with Image.open(tmp_path / "a" / "one.png") as picture:
        assert picture.size == (600, 300)
        assert np.asarray(picture.convert("L")).std() > 5  # not blank


def test_trajectories_are_means_over_sentences_not_tokens(traces: Traces) -> None:
    store = traces.store
    n_tokens = store.n_tokens[np.repeat(np.arange(len(store.sentences)), store.n_tokens)]
    # A constant per sentence is resampled to itself; a straight line over the relative position too.
    flat = n_tokens.astype(np.float32)
    straight = (store.tokens.position + 0.5) / n_tokens
    planted = Traces(store, traces.features[:2], np.stack([flat, straight], axis=1).astype(np.float32))
    grid, mean, half = mean_trajectories(planted, label=2)
    of_label = store.n_tokens[store.labels == 2]
    assert mean[:, 0] == pytest.approx(of_label.mean())
    assert half[:, 0] == pytest.approx(1.96 * of_label.std(ddof=1) / np.sqrt(len(of_label)))
    inner = (grid >= 0.5 / of_label.min()) & (grid <= 1 - 0.5 / of_label.min())
    assert inner.sum() > 5
    assert mean[inner, 1] == pytest.approx(grid[inner], abs=1e-6)  # activations are float32


def test_the_heat_map_shows_every_sentence_once_and_nan_behind_its_end(traces: Traces) -> None:
    image, sizes = heatmap_image(traces, [0, 3])
    assert sizes == [10, 10]
    assert image.shape == (20, traces.store.n_tokens.max())
    peaks = np.nanmax(image, axis=1)
    assert (np.diff(peaks[:10]) <= 0).all()
    assert (np.diff(peaks[10:]) <= 0).all()
    lengths = (~np.isnan(image)).sum(axis=1)
    expected = traces.store.n_tokens[np.isin(traces.store.labels, [0, 3])]
    assert sorted(lengths.tolist()) == sorted(expected.tolist())
    assert np.nansum(image) == pytest.approx(
        sum(traces.sentence(s)[:, 0].sum() for s in range(40) if traces.store.labels[s] in (0, 3)), rel=1e-5
    )


@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_overviews_show_train_and_held_out_and_cut_nothing(traces: Traces, n_features: int) -> None:
    some = Traces(traces.store, traces.features[:n_features], traces.activations[:, :n_features])
    for figure, in_legend in (
        (trajectories_figure(some, [0, 1, 2, 3]), "label 3 (n=10)"),
        (distributions_figure(some, [0, 1, 2, 3]), "held-out (n=8)"),
        (heatmap_figure(some, [0, 1, 2, 3]), None),
    ):
        figure.draw_without_rendering()
        for artist in (*figure.texts, *figure.legends, *(axes.title for axes in figure.axes)):
            box = artist.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
        if in_legend:
            assert in_legend in [text.get_text() for text in figure.legends[0].get_texts()]
            assert len(figure.axes) == n_features


def test_overviews_bear_a_label_with_a_single_sentence_and_a_silent_feature(traces: Traces) -> None:
    silent = Traces(traces.store, traces.features[:1], np.zeros_like(traces.activations[:, :1]))
    traces.store.labels[traces.store.labels == 3] = 2
    traces.store.labels[0] = 3
    for make in (trajectories_figure, distributions_figure, heatmap_figure):
        make(silent, [0, 2, 3]).draw_without_rendering()
