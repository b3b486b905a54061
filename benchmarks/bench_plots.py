"""How fast are the pictures of sentences, beside the plain loop?

The plain loop makes each picture as matplotlib's tutorials do: plt.subplots, a plot call per feature, tick
labels, legend, savefig, plt.close. It gets the margins and line breaks that this stage has worked out, for
nothing. First both must draw the same picture, pixel for pixel. Then the loop is timed in one process, and
this stage on all sentences, by one process and by several, their start included.

  uv run python benchmarks/bench_plots.py --quick --json plots.json
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from PIL import Image

from pipeline_common.command_line import HelpFormatter, positive_int, usable_cores
from pipeline_common.errors import exit_codes
from pipeline_common.files import write_json
from s1_compute_all_features.feature_store import StoredSae
from s3_feature_activation_graphs.feature_traces import DrawnFeature
from s3_feature_activation_graphs.picture_style import PictureStyle, SentenceToDraw, fitted_style
from s3_feature_activation_graphs.plotting_utils import feature_label, line_style
from s3_feature_activation_graphs.sentence_plot import (
    GRID_STYLE,
    LEGEND_STYLE,
    LEGEND_TITLE,
    SILENT_ALPHA,
    SLANTED,
    SentencePlotter,
)
from s3_feature_activation_graphs.sentence_workers import draw_sentences

N_SENTENCES, N_SENTENCES_QUICK = 1000, 240
N_ALONE, N_ALONE_QUICK = 200, 40
N_PLAIN, N_PLAIN_QUICK = 100, 16
N_CHECKED = 6
N_FEATURES = 10
DPI = 150
SHARE_ACTIVE = 0.08
PIECES = (
    " the",
    " cashier",
    "ed",
    " $5",
    " and",
    " under_score",
    "ing",
    " promise",
    " a",
    ",",
    " told",
    "'s",
)


@dataclass(frozen=True)
class Place:
    """Where the parts of a picture stand, worked out by this stage."""

    size: tuple[float, float]
    axes: tuple[float, float, float, float]
    legend: tuple[float, float]
    texts: list[tuple[float, float, str, dict[str, object]]]


def make_sentences(n_sentences: int, rng: np.random.Generator) -> list[SentenceToDraw]:
    """Sentences of 12 to 36 tokens, and one in fifty of 80, which needs a wider figure."""
    made = []
    for index in range(n_sentences):
        n_tokens = 80 if index % 50 == 9 else int(rng.integers(12, 37))
        tokens = rng.choice(PIECES, n_tokens).tolist()
        values = rng.exponential(2, (n_tokens, N_FEATURES)).astype(np.float32)
        values *= rng.random(values.shape) < SHARE_ACTIVE
        text = "".join(tokens).strip()
        made.append(SentenceToDraw(index, text, index % 4, index % 5 == 0, tokens, values))
    return made


def make_features() -> list[DrawnFeature]:
    """Ten features of different SAEs."""
    return [
        DrawnFeature(
            StoredSae("", 5 + k, 60 + k, 16_384, "", "", "", "", ""), 1000 + k, k + 1, 0.6, 0.5, True
        )
        for k in range(N_FEATURES)
    ]


def place_of(plotter: SentencePlotter, sentence: SentenceToDraw) -> Place:
    """Layout of a picture, read off the figure that this stage draws."""
    figure = plotter.draw(sentence)
    anchor = figure.legends[0].get_bbox_to_anchor()
    texts = []
    for text in figure.texts:
        look = {"fontproperties": text.get_fontproperties(), "va": text.get_va(), "color": text.get_color()}
        texts.append((*text.get_position(), text.get_text(), look))
    corner = figure.transFigure.inverted().transform((anchor.x0, anchor.y0))
    size, axes = figure.get_size_inches(), figure.axes[0].get_position().bounds
    return Place((float(size[0]), float(size[1])), axes, (float(corner[0]), float(corner[1])), texts)


def plain_picture(
    sentence: SentenceToDraw, place: Place, features: Sequence[DrawnFeature], style: PictureStyle, path: Path
) -> None:
    """One turn of the plain loop."""
    figure, axes = pyplot.subplots(figsize=place.size)
    axes.set_position(place.axes)
    positions = np.arange(len(sentence.tokens))
    for index, (feature, values) in enumerate(zip(features, sentence.activations.T, strict=True)):
        axes.plot(
            positions, values, label=feature_label(feature), markevery=np.flatnonzero(values > 0).tolist(),
            zorder=100 - index, clip_on=False, **line_style(index),
        )  # fmt: skip
    labels = style.labels_of(sentence.tokens)
    axes.set_xticks(positions, labels, fontproperties=style.token_font, parse_math=False, **SLANTED)
    axes.set_xlim(-0.5, len(positions) - 0.5)
    axes.set_ylim(0, 1.04 * style.y_max)
    axes.set_ylabel("activation")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", **GRID_STYLE)
    axes.set_axisbelow(True)
    legend = figure.legend(title=LEGEND_TITLE, bbox_to_anchor=place.legend, **LEGEND_STYLE)
    for text, values in zip(legend.get_texts(), sentence.activations.T, strict=True):
        text.set_alpha(1.0 if values.any() else SILENT_ALPHA)
    for x, y, text, look in place.texts:
        figure.text(x, y, text, parse_math=False, **look)
    figure.savefig(path, dpi=style.dpi)
    pyplot.close(figure)


def check(
    sentences: Sequence[SentenceToDraw], features: Sequence[DrawnFeature], style: PictureStyle, folder: Path
) -> None:
    """Stop unless both ways draw the same pixels."""
    plotter = SentencePlotter(features, style)
    for sentence in sentences:
        plain_picture(sentence, place_of(plotter, sentence), features, style, folder / "plain.png")
        plotter.save(sentence, folder)
        theirs, ours = (
            np.asarray(Image.open(path).convert("RGB"))
            for path in (folder / "plain.png", folder / sentence.file)
        )
        np.testing.assert_array_equal(ours, theirs, f"sentence {sentence.index}: another picture")
    print(f"  the same pixels in {len(sentences)} pictures of {', '.join(sorted(widths(sentences)))} tokens")


def widths(sentences: Sequence[SentenceToDraw]) -> set[str]:
    return {str(len(sentence.tokens)) for sentence in sentences}


def time_plain_loop(
    sentences: Sequence[SentenceToDraw], features: Sequence[DrawnFeature], style: PictureStyle, folder: Path
) -> float:
    """Seconds for a picture."""
    plotter = SentencePlotter(features, style)
    places = [place_of(plotter, sentence) for sentence in sentences]
    start = time.perf_counter()
    for sentence, place in zip(sentences, places, strict=True):
        plain_picture(sentence, place, features, style, folder / f"{sentence.index}.png")
    return (time.perf_counter() - start) / len(sentences)


def time_this_stage(
    sentences: Sequence[SentenceToDraw],
    features: Sequence[DrawnFeature],
    style: PictureStyle,
    folder: Path,
    n_workers: int,
) -> float:
    """Seconds for a picture, with the start of the processes."""
    start = time.perf_counter()
    draw_sentences(folder, sentences, features, style, n_workers)
    seconds = (time.perf_counter() - start) / len(sentences)
    assert all((folder / sentence.file).is_file() for sentence in sentences)
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sentences, multiplied up to 1,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument(
        "--workers", type=positive_int, default=usable_cores(), metavar="N", help="processes of this stage"
    )
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print."""
    arguments = build_parser().parse_args(argv)
    matplotlib.use("agg")
    quick = arguments.quick
    sentences = make_sentences(N_SENTENCES_QUICK if quick else N_SENTENCES, np.random.default_rng(0))
    features = make_features()
    alone = sentences[: N_ALONE_QUICK if quick else N_ALONE]
    plain = sentences[: N_PLAIN_QUICK if quick else N_PLAIN]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{len(sentences):,} sentences x {N_FEATURES} features, {DPI} dpi, load average at the start: {load}"
    )
    style, _ = fitted_style(
        sentences, figsize=(14.0, 6.0), dpi=DPI, max_token_len=15, source="synthetic",
        y_max=max(float(sentence.activations.max()) for sentence in sentences),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        check([*sentences[: N_CHECKED - 1], sentences[9]], features, style, folder)
        loop = time_plain_loop(plain, features, style, folder)
        one = time_this_stage(alone, features, style, folder / "one", 1)
        several = time_this_stage(sentences, features, style, folder / "several", arguments.workers)
    for name, seconds, n_drawn in (
        ("plain loop", loop, len(plain)),
        ("this stage, one process", one, len(alone)),
        (f"this stage, {arguments.workers} at a time", several, len(sentences)),
    ):
        print(f"  {name:<24}{1000 * seconds:7.1f} s for 1,000 plots, from {n_drawn:,}")
    print(f"  {'ratio':<24}{loop / several:7.1f}   (one process {loop / one:.1f})")
    figures = {
        "ratio_vs_plain_loop": loop / several,
        "ratio_vs_plain_loop_one_process": loop / one,
        "seconds_per_1000_plots": 1000 * several,
        "seconds_per_1000_plots_one_process": 1000 * one,
        "seconds_per_1000_plots_plain_loop": 1000 * loop,
        "n_workers": arguments.workers,
    }
    if arguments.json is not None:
        write_json(arguments.json, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
