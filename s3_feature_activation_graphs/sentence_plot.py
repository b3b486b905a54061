"""One sentence as a picture: tokens along the x axis, a line per feature, in a figure that is reused."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import TICKDOWN
from PIL import Image

from pipeline_common.files import atomic_path
from s1_compute_all_features.feature_store import key_form
from s3_feature_activation_graphs.feature_traces import MAX_PIXELS, DrawnFeature, activation_caption
from s3_feature_activation_graphs.picture_style import TITLE_SIZE, PictureStyle, SentenceToDraw, text_inches
from s3_feature_activation_graphs.plotting_utils import (
    PAD_INCHES,
    SPACE_SIGN,
    feature_label,
    footer,
    line_style,
    plain_text,
    quiet_glyphs,
)

LEGEND_SIZE = 8.5
LEGEND_TITLE = "rank  layer:l0:feature\nscore on train (held-out)"
LEGEND_STYLE: dict[str, Any] = {
    "loc": "upper left",
    "borderaxespad": 0.8,
    "fontsize": LEGEND_SIZE,
    "title_fontsize": LEGEND_SIZE,
    "frameon": False,
    "alignment": "left",
    "handlelength": 4.0,
    "labelspacing": 0.35,
}
GRID_STYLE: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}
SLANTED: dict[str, Any] = {"rotation": 45, "ha": "right", "va": "center", "rotation_mode": "anchor"}
COMPRESSION = 3
"""Of the PNG files. Levels above take longer and save a few per cent."""

SILENT_ALPHA = 0.35
"""Of the legend's entry for a feature that does not fire in the sentence."""

SINK_COLOUR = "#a9a9a9"
"""Of the label of a token that is an attention sink for one of the features."""

_SENTENCE_LINES = 3
_LEFT_INCHES, _TOP_INCHES, _FOOTER_INCHES, _MIN_AXES_INCHES = 0.75, 0.95, 0.25, 2.0
_TICK_POINTS, _TICK_PAD_POINTS = 3.5, 7.0
# Labels slanted by 45 degrees stay apart from here on.
_TOKEN_INCHES = 0.2


class SentencePlotter:
    """Draws sentence after sentence into one figure, whose artists are kept.

    The figure has the size asked for and grows where a long sentence, a long legend or long tokens
    would otherwise be cut. What no sentence changes (legend, foot, shared y axis) is drawn once for each
    size of the figure and copied into every picture.
    """

    def __init__(self, features: Sequence[DrawnFeature], style: PictureStyle) -> None:
        """Prepare the figure.

        Args:
            features: the lines, in legend order, at most `MAX_FEATURES`.
            style: of `fitted_style` for all sentences of the run, so that their margins agree.
        """
        self._style = style
        self._figure = Figure(figsize=style.figsize, dpi=style.dpi)
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_subplot()
        self._axes.set_ylabel(activation_caption(features))
        self._axes.spines[["top", "right"]].set_visible(False)
        self._token_labels: list[Any] = []
        self._grid, self._ticks = self._empty_x_axis()
        self._lines = [self._empty_line(index, feature) for index, feature in enumerate(features)]
        form = key_form(feature.key for feature in features)
        title = LEGEND_TITLE.replace("layer:l0:feature", form)
        self._legend = self._figure.legend(handles=self._lines, title=title, **LEGEND_STYLE)
        self._head = plain_text(self._figure, 0, 0, "", fontsize=TITLE_SIZE, fontweight="bold", va="top")
        self._sentence = plain_text(self._figure, 0, 0, "", fontproperties=style.title_font, va="top")
        self._footer = footer(self._figure, f"{style.source}  |  {SPACE_SIGN} = space")
        with quiet_glyphs():
            legend = self._legend.get_window_extent(self._canvas.get_renderer())
        legend_height = legend.height / style.dpi + 2 * PAD_INCHES
        self._right = legend.width / style.dpi + 3 * PAD_INCHES
        self._bottom = style.token_inches + 0.3 + _FOOTER_INCHES
        # A label slanted by 45 degrees reaches so far left.
        self._left = max(_LEFT_INCHES, 0.72 * style.token_inches)
        least_height = self._bottom + _TOP_INCHES + max(_MIN_AXES_INCHES, legend_height)
        self._height = max(style.figsize[1], least_height)
        self._still: tuple[np.ndarray, np.ndarray] | None = None

    def _empty_x_axis(self) -> tuple[Any, Any]:
        """Grid lines and tick marks; matplotlib's own axis takes several times as long for as many tokens."""
        self._axes.xaxis.set_visible(False)
        (grid,) = self._axes.plot(
            [], [], zorder=0.5, transform=self._axes.get_xaxis_transform("grid"), **GRID_STYLE
        )
        (ticks,) = self._axes.plot(
            [], [], zorder=0.5, transform=self._axes.get_xaxis_transform("tick1"), clip_on=False,
            linestyle="none", marker=TICKDOWN, markersize=_TICK_POINTS, markeredgewidth=0.8, color="black",
        )  # fmt: skip
        return grid, ticks

    def _empty_line(self, index: int, feature: DrawnFeature) -> Any:
        # The best feature lies on top, and a marker at the very top of the axis stays whole.
        (line,) = self._axes.plot(
            [], [], label=feature_label(feature), zorder=100 - index, clip_on=False, **line_style(index)
        )
        return line

    def draw(self, sentence: SentenceToDraw) -> Figure:
        """The figure of a sentence; valid until the next call."""
        n_tokens = len(sentence.tokens)
        spacing = self._lay_out(n_tokens)
        every = int(np.ceil(_TOKEN_INCHES / spacing - 1e-9))  # over 1 only at the greatest width
        positions = np.arange(n_tokens)
        sinks = np.zeros(sentence.activations.shape, bool) if sentence.sinks is None else sentence.sinks
        for line, values, hidden in zip(self._lines, sentence.activations.T, sinks.T, strict=True):
            # A gap, not a zero: a sink has no value.
            line.set_data(positions, np.where(hidden, np.nan, values))
            # A marker on each of the many zeros would bury the few tokens that matter.
            line.set_markevery(np.flatnonzero(values > 0).tolist())
        self._shade_legend(_fires(sentence))
        self._axes.set_xlim(-0.5, n_tokens - 0.5)
        labels = self._style.labels_of(sentence.tokens[::every])
        self._set_tokens(positions[::every], labels, np.any(sinks, axis=1)[::every])
        y_max = self._style.y_max
        top = y_max if y_max is not None else float(sentence.activations.max(initial=0.0))
        self._axes.set_ylim(0, 1.04 * top if top > 0 else 1.0)
        self._head.set_text(sentence.title)
        width = self._figure.get_figwidth() - self._left - PAD_INCHES
        self._sentence.set_text("\n".join(self._wrapped(sentence.text, width)))
        return self._figure

    def pixels(self, sentence: SentenceToDraw) -> np.ndarray:
        """The picture of a sentence: uint8 [height, width, 4]; valid until the next call."""
        with quiet_glyphs():
            self.draw(sentence)
            renderer = self._canvas.get_renderer()
            picture = np.asarray(self._canvas.buffer_rgba())
            self._copy_still_parts(renderer, picture, _fires(sentence))
            own_y_axis = [self._axes.yaxis] if self._style.y_max is None else []
            moving = [self._grid, self._ticks, *own_y_axis, *self._axes.spines.values()]
            moving += [*self._token_labels, *reversed(self._lines), self._head, self._sentence]
            for artist in moving:
                artist.draw(renderer)
        return picture

    def save(self, sentence: SentenceToDraw, folder: Path) -> None:
        """Draw a sentence into its PNG file, atomically."""
        picture = Image.fromarray(self.pixels(sentence)[:, :, :3])
        dpi = (self._style.dpi, self._style.dpi)
        with atomic_path(folder / sentence.file) as temporary:
            picture.save(temporary, format="png", compress_level=COMPRESSION, dpi=dpi)

    def _copy_still_parts(self, renderer: Any, picture: np.ndarray, fires: np.ndarray) -> None:
        """Fill the picture with what changes with its size alone, legend entries pale where nothing fires."""
        if self._still is None or self._still[0].shape != picture.shape:
            shared_y_axis = [self._axes.yaxis] if self._style.y_max is not None else []
            versions = []
            for lit in (True, False):
                renderer.clear()
                self._shade_legend(np.full(len(fires), lit))
                for artist in (self._figure.patch, *shared_y_axis, self._legend, self._footer):
                    artist.draw(renderer)
                versions.append(picture.copy())
            self._still = versions[0], versions[1]
            self._shade_legend(fires)
        lit_version, pale_version = self._still
        picture[:] = lit_version
        for text, lit in zip(self._legend.get_texts(), fires, strict=True):
            if not lit:
                box = text.get_window_extent(renderer)
                rows = slice(int(len(picture) - box.y1), int(len(picture) - box.y0) + 1)
                first = int(box.x0) - 1
                picture[rows, first:] = pale_version[rows, first:]

    def _shade_legend(self, fires: np.ndarray) -> None:
        for text, lit in zip(self._legend.get_texts(), fires, strict=True):
            text.set_alpha(1.0 if lit else SILENT_ALPHA)

    def _set_tokens(self, positions: np.ndarray, labels: Sequence[str], pale: np.ndarray) -> None:
        # From the foot to the top of the axes; NaN parts one grid line from the next.
        self._grid.set_data(np.repeat(positions, 3), np.tile([0, 1, np.nan], len(positions)))
        self._ticks.set_data(positions, np.zeros(len(positions)))
        transform, _, _ = self._axes.get_xaxis_text1_transform(_TICK_PAD_POINTS)
        while len(self._token_labels) < len(labels):
            text = self._axes.text(0, 0, "", fontproperties=self._style.token_font, **SLANTED)
            text.set(parse_math=False, transform=transform)
            self._token_labels.append(text)
        for text, position, label, is_pale in zip(self._token_labels, positions, labels, pale, strict=False):
            text.set_position((position, 0))
            text.set_text(label)
            text.set_color(SINK_COLOUR if is_pale else "black")
        for text in self._token_labels[len(labels) :]:
            text.set_text("")

    def _lay_out(self, n_tokens: int) -> float:
        """Fit the figure to a number of tokens; returns the inches that each token has."""
        margins = self._left + self._right
        wanted = margins + max(n_tokens * _TOKEN_INCHES, _MIN_AXES_INCHES)
        width = max(self._style.figsize[0], min(wanted, MAX_PIXELS / self._style.dpi))
        height = self._height
        self._figure.set_size_inches(width, height)
        axes_height = height - self._bottom - _TOP_INCHES
        left, bottom = self._left / width, self._bottom / height
        self._axes.set_position((left, bottom, (width - margins) / width, axes_height / height))
        self._legend.set_bbox_to_anchor((1 - self._right / width, 1 - _TOP_INCHES / height))
        self._head.set_position((left, 1 - PAD_INCHES / height))
        self._sentence.set_position((left, 1 - (PAD_INCHES + 0.21) / height))
        self._footer.set_position((PAD_INCHES / width, PAD_INCHES / height))
        return (width - margins) / n_tokens

    def _wrapped(self, text: str, width: float) -> list[str]:
        columns = max(10, int(width / 0.08))
        while True:
            lines = textwrap.wrap(text, columns, max_lines=_SENTENCE_LINES, placeholder=" …")
            if columns <= 10 or all(
                text_inches(self._canvas, line, self._style.title_font) <= width for line in lines
            ):
                return lines
            columns = int(columns * 0.9)


def _fires(sentence: SentenceToDraw) -> np.ndarray:
    """Which features are above 0 somewhere: bool [n_features]."""
    return np.asarray((sentence.activations > 0).any(axis=0))
