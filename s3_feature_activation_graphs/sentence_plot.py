"""One sentence as a picture: tokens along the x axis, a line per feature, in a figure that is reused."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from s3_feature_activation_graphs.feature_traces import DrawnFeature
from s3_feature_activation_graphs.plotting_utils import (
    PAD_INCHES,
    SPACE_SIGN,
    feature_label,
    font_families,
    footer,
    line_style,
    plain_text,
    quiet_glyphs,
    save,
    token_label,
)

_TOKEN_SIZE, _TITLE_SIZE, _LEGEND_SIZE = 9, 11, 8.5
_SENTENCE_LINES = 3
_LEFT_INCHES, _TOP_INCHES, _FOOTER_INCHES, _MIN_AXES_INCHES = 0.75, 0.95, 0.25, 2.0
# Labels slanted by 45 degrees stay apart from here on.
_TOKEN_INCHES = 0.2
_SLANTED = {"rotation": 45, "ha": "right", "va": "center", "rotation_mode": "anchor"}
_MAX_PIXELS = 30_000


@dataclass(frozen=True)
class SentenceToDraw:
    """What one picture shows.

    Attributes:
        index: of the sentence in the store.
        text: the sentence.
        label: 0-3.
        held_out: it belongs to the test split.
        tokens: its token strings.
        activations: float32 [n_tokens, n_features].
    """

    index: int
    text: str
    label: int
    held_out: bool
    tokens: Sequence[str]
    activations: np.ndarray


class SentencePlotter:
    """Draws sentence after sentence into one figure, whose lines, legend and texts are kept.

    The figure has the size asked for and grows where a long sentence, a long legend or long tokens
    would otherwise be cut.
    """

    def __init__(
        self,
        features: Sequence[DrawnFeature],
        sentences: Sequence[SentenceToDraw],
        source: str,
        *,
        figsize: tuple[float, float],
        dpi: int,
        max_token_len: int,
        y_max: float | None,
    ) -> None:
        """Prepare the figure for a run.

        Args:
            features: the lines, in legend order, at most `MAX_FEATURES`.
            sentences: everything that will be drawn, for the fonts and margins.
            source: the line at the foot.
            figsize: width and height in inches.
            dpi: pixels per inch, for the widest possible figure.
            max_token_len: cut tokens to so many characters.
            y_max: upper end of every y axis; None for each sentence its own.
        """
        self._least_width, self._dpi, self._max_token_len, self._y_max = figsize[0], dpi, max_token_len, y_max
        labels = {token_label(token, max_token_len) for one in sentences for token in one.tokens}
        families, self.missing_characters = font_families([*labels, *(one.text for one in sentences)])
        self._token_font = FontProperties(family=families, size=_TOKEN_SIZE)
        self._title_font = FontProperties(family=families, size=_TITLE_SIZE)
        self._figure = Figure(figsize=figsize)
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes = self._empty_axes()
        self._lines = [self._empty_line(index, feature) for index, feature in enumerate(features)]
        self._legend = self._axes.legend(
            title="rank  layer:l0:feature\nscore on train (held-out)",
            loc="upper left",
            bbox_to_anchor=(1, 1),
            borderaxespad=0.8,
            fontsize=_LEGEND_SIZE,
            title_fontsize=_LEGEND_SIZE,
            frameon=False,
            alignment="left",
            handlelength=3.2,
            labelspacing=0.35,
        )
        self._head = plain_text(self._figure, 0, 0, "", fontsize=_TITLE_SIZE, fontweight="bold", va="top")
        self._sentence = plain_text(self._figure, 0, 0, "", fontproperties=self._title_font, va="top")
        self._footer = footer(self._figure, f"{source}  |  {SPACE_SIGN} = space")
        with quiet_glyphs():
            widest_label = max((self._width(label, self._token_font) for label in labels), default=0.0)
            legend = self._legend.get_window_extent(self._canvas.get_renderer())
        legend_height = legend.height / self._figure.dpi + 2 * PAD_INCHES
        self._right = legend.width / self._figure.dpi + 3 * PAD_INCHES
        self._bottom = widest_label + 0.3 + _FOOTER_INCHES
        self._left = max(
            _LEFT_INCHES, 0.72 * widest_label
        )  # a label slanted by 45 degrees reaches so far left
        least_height = self._bottom + _TOP_INCHES + max(_MIN_AXES_INCHES, legend_height)
        self._height = max(figsize[1], least_height)

    def _empty_axes(self) -> Any:
        axes = self._figure.add_subplot()
        axes.set_ylabel("activation")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        return axes

    def _empty_line(self, index: int, feature: DrawnFeature) -> Any:
        style = {**line_style(index), "linewidth": 2.2 if index == 0 else 1.4, "markersize": 6}
        # The best feature lies on top, and a marker at the very top of the axis stays whole.
        (line,) = self._axes.plot(
            [], [], label=feature_label(feature), zorder=100 - index, clip_on=False, **style
        )
        return line

    def draw(self, sentence: SentenceToDraw) -> Figure:
        """The picture of a sentence; valid until the next call."""
        n_tokens = len(sentence.tokens)
        spacing = self._lay_out(n_tokens)
        every = int(np.ceil(_TOKEN_INCHES / spacing - 1e-9))  # over 1 only at the greatest width
        positions = np.arange(n_tokens)
        for line, label, values in zip(
            self._lines, self._legend.get_texts(), sentence.activations.T, strict=True
        ):
            line.set_data(positions, values)
            # A marker on each of the many zeros would bury the few tokens that matter.
            line.set_markevery(np.flatnonzero(values > 0).tolist())
            label.set_alpha(1.0 if values.any() else 0.35)
        self._axes.set_xlim(-0.5, n_tokens - 0.5)
        self._axes.set_xticks(positions[::every])
        labels = [token_label(token, self._max_token_len) for token in sentence.tokens[::every]]
        self._axes.set_xticklabels(labels, fontproperties=self._token_font, parse_math=False, **_SLANTED)
        top = self._y_max if self._y_max is not None else float(sentence.activations.max(initial=0.0))
        self._axes.set_ylim(0, 1.04 * top if top > 0 else 1.0)
        split = "held-out" if sentence.held_out else "train"
        self._head.set_text(f"Sentence {sentence.index}  |  label {sentence.label}  |  {split}")
        width = self._figure.get_figwidth() - self._left - PAD_INCHES
        self._sentence.set_text("\n".join(self._wrapped(sentence.text, width)))
        return self._figure

    def save(self, sentence: SentenceToDraw, path: Path) -> None:
        """Draw a sentence into a PNG file."""
        with quiet_glyphs():
            figure = self.draw(sentence)
        save(figure, path, self._dpi)

    def _lay_out(self, n_tokens: int) -> float:
        """Fit the figure to a number of tokens; returns the inches that each token has."""
        margins = self._left + self._right
        wanted = margins + max(n_tokens * _TOKEN_INCHES, _MIN_AXES_INCHES)
        width, height = max(self._least_width, min(wanted, _MAX_PIXELS / self._dpi)), self._height
        self._figure.set_size_inches(width, height)
        axes_height = height - self._bottom - _TOP_INCHES
        left, bottom = self._left / width, self._bottom / height
        self._axes.set_position((left, bottom, (width - margins) / width, axes_height / height))
        self._head.set_position((left, 1 - PAD_INCHES / height))
        self._sentence.set_position((left, 1 - (PAD_INCHES + 0.21) / height))
        self._footer.set_position((PAD_INCHES / width, PAD_INCHES / height))
        return (width - margins) / n_tokens

    def _width(self, text: str, font: FontProperties) -> float:
        """Width of a text in inches."""
        width, _, _ = self._canvas.get_renderer().get_text_width_height_descent(text, font, ismath=False)
        return float(width / self._figure.dpi)

    def _wrapped(self, text: str, width: float) -> list[str]:
        columns = max(10, int(width / 0.08))
        while True:
            lines = textwrap.wrap(text, columns, max_lines=_SENTENCE_LINES, placeholder=" …")
            if columns <= 10 or all(self._width(line, self._title_font) <= width for line in lines):
                return lines
            columns = int(columns * 0.9)
