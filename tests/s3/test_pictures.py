import io
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from s3_feature_activation_graphs.feature_traces import MAX_FEATURES, DrawnFeature, Traces
from s3_feature_activation_graphs.overview_plots import (
    distributions_figure,
    heatmap_figure,
    heatmap_image,
    mean_trajectories,
    trajectories_figure,
)
from s3_feature_activation_graphs.picture_style import SentenceToDraw, fitted_style
from s3_feature_activation_graphs.plotting_utils import feature_label, font_families, line_style, token_label
from s3_feature_activation_graphs.sentence_plot import SILENT_ALPHA, SentencePlotter


def sentence(tokens: list[str], n_features: int = 5, text: str = "He lied.", seed: int = 0) -> SentenceToDraw:
    activations = np.random.default_rng(seed).exponential(size=(len(tokens), n_features)).astype(np.float32)
    return SentenceToDraw(42, text, 3, True, tokens, activations * (activations > 1))


def plotter(features: list[DrawnFeature], sentences: list[SentenceToDraw], **changes: Any) -> SentencePlotter:
    settings = {"figsize": (14.0, 6.0), "dpi": 50, "max_token_len": 15, "y_max": 8.0} | changes
    style, _ = fitted_style(sentences, source="model  |  store", **settings)
    return SentencePlotter(features, style)


def drawn_tokens(figure: Figure) -> list[Text]:
    """Token labels, which the plotter draws itself instead of leaving them to the axis."""
    return [text for text in figure.axes[0].texts if text.get_text()]


def feature_lines(figure: Figure) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if line.get_label().startswith("#")]


def test_thirty_lines_differ_in_two_ways_each_and_without_colour() -> None:
    styles = [line_style(index) for index in range(MAX_FEATURES)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == MAX_FEATURES
    assert len({(style["color"], style["marker"]) for style in styles}) == MAX_FEATURES
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == MAX_FEATURES


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
        style, missing = fitted_style(
            [one], source="", figsize=(14.0, 6.0), dpi=50, max_token_len=15, y_max=None
        )
        SentencePlotter(traces.features, style).save(one, tmp_path)
    assert [str(warning.message) for warning in caught] == []
    assert missing == font_families(one.tokens)[1]


def test_signs_of_mathematics_stay_text(traces: Traces, tmp_path: Path) -> None:
    # Parsed as mathematics, both the first token and the sentence would raise.
    one = sentence(["$\\frac{$", " a_{b$"], text="He paid $\\frac{1$ and $_$.")
    drawer = plotter(traces.features, [one])
    drawer.save(one, tmp_path)
    figure = drawer.draw(one)
    assert "He paid $\\frac{1$ and $_$." in [text.get_text() for text in figure.texts]
    assert [label.get_text() for label in drawn_tokens(figure)] == ["$\\frac{$", "␣a_{b$"]


def test_a_figure_that_is_reused_shows_only_the_last_sentence(traces: Traces) -> None:
    long, short = sentence([f" word{i}" for i in range(30)]), sentence([" He", " lied"], seed=1)
    drawer = plotter(traces.features, [long, short])
    drawer.draw(long)
    figure = drawer.draw(short)
    assert [label.get_text() for label in drawn_tokens(figure)] == ["␣He", "␣lied"]
    for line, values in zip(feature_lines(figure), short.activations.T, strict=True):
        assert np.array_equal(line.get_ydata(), values)
        assert line.get_markevery() == np.flatnonzero(values).tolist()
    assert figure.axes[0].get_ylim() == (0, pytest.approx(8.32))


@pytest.mark.parametrize("y_max", [8.0, None])
def test_what_is_kept_from_one_picture_to_the_next_changes_no_pixel(
    traces: Traces, y_max: float | None
) -> None:
    long, short = sentence([f" word{i}" for i in range(70)]), sentence([" He", " lied"], seed=1)
    silent = SentenceToDraw(1, "Hm", 0, False, ["Hm"], np.zeros((1, 5), np.float32))
    everything = [short, long, silent, short, silent]
    drawer = plotter(traces.features, everything, y_max=y_max)
    for one in everything:
        pixels = drawer.pixels(one).copy()
        # Afresh, by a plotter that has drawn nothing before, and by matplotlib's own order of drawing.
        with io.BytesIO() as file:
            plotter(traces.features, everything, y_max=y_max).draw(one).savefig(file)
            assert np.array_equal(pixels, np.asarray(Image.open(file)))


def test_the_legend_is_pale_where_a_feature_is_silent(traces: Traces) -> None:
    one = sentence([" He", " lied"])
    one.activations[:, 2] = 0
    one.activations[0, [0, 1, 3, 4]] = 1
    labels = plotter(traces.features, [one]).draw(one).legends[0].get_texts()
    assert [label.get_alpha() for label in labels] == [1, 1, SILENT_ALPHA, 1, 1]


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
    labels = drawn_tokens(figure)
    for artist in (*labels, *figure.texts, *figure.legends, axes.yaxis.label):
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
    anchors = [axes.transData.transform(label.get_position())[0] for label in labels]
    line_height = labels[0].get_fontsize() / 72 * figure.dpi
    assert all(right - left > line_height / np.sin(np.pi / 4) for left, right in pairwise(anchors))


def test_the_picture_has_the_size_asked_for(traces: Traces, tmp_path: Path) -> None:
    one = sentence([" He", " lied"])
    plotter(traces.features, [one], figsize=(10.0, 5.0), dpi=60).save(one, tmp_path / "a")
    with Image.open(tmp_path / "a" / "label_3" / "sentence_000042.png") as picture:
        assert picture.size == (600, 300)
        assert picture.info["dpi"] == pytest.approx((60, 60), rel=1e-3)
        assert np.asarray(picture.convert("L")).std() > 5  # not blank


def test_pixels_come_back_from_the_file_as_they_were(traces: Traces, tmp_path: Path) -> None:
    drawn = sentence(["He", " lied", "."], len(traces.features))
    one = plotter(traces.features, [drawn])
    (tmp_path / drawn.file).parent.mkdir(parents=True, exist_ok=True)
    one.save(drawn, tmp_path)
    with Image.open(tmp_path / drawn.file) as picture:
        assert picture.mode == "RGB"
        assert picture.info["dpi"] == pytest.approx((50, 50), abs=0.1)
        assert np.array_equal(np.asarray(picture), one.pixels(drawn)[..., :3])


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
