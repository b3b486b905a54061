"""What a sentence's picture shows, and the fonts and margins that all pictures of a run share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from s3_feature_activation_graphs.plotting_utils import font_families, quiet_glyphs, token_label

TOKEN_SIZE, TITLE_SIZE = 9, 11


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
        sinks: bool [n_tokens, n_features], where there is no value because the token is an attention sink;
            None for nowhere.
    """

    index: int
    text: str
    label: int
    held_out: bool
    tokens: Sequence[str]
    activations: np.ndarray
    sinks: np.ndarray | None = None

    @property
    def file(self) -> str:
        """The picture's place in the output folder."""
        return f"label_{self.label}/sentence_{self.index:06d}.png"

    @property
    def title(self) -> str:
        """Number, label and split."""
        split = "held-out" if self.held_out else "train"
        return f"Sentence {self.index}  |  label {self.label}  |  {split}"


@dataclass(frozen=True)
class PictureStyle:
    """What all pictures of a run share.

    Attributes:
        figsize: least width and height in inches.
        dpi: pixels per inch.
        max_token_len: tokens are cut to so many characters.
        y_max: upper end of every y axis; None for each sentence its own.
        source: the line at the foot.
        families: fonts, in the order in which a glyph is looked for.
        token_inches: width of the widest token.
    """

    figsize: tuple[float, float]
    dpi: int
    max_token_len: int
    y_max: float | None
    source: str
    families: tuple[str, ...] = ()
    token_inches: float = 0.0

    def labels_of(self, tokens: Iterable[str]) -> list[str]:
        """Tokens as they are drawn."""
        return [token_label(token, self.max_token_len) for token in tokens]

    @property
    def token_font(self) -> FontProperties:
        """The font of the x axis."""
        return FontProperties(family=list(self.families), size=TOKEN_SIZE)

    @property
    def title_font(self) -> FontProperties:
        """The font of the sentence."""
        return FontProperties(family=list(self.families), size=TITLE_SIZE)


def fitted_style(sentences: Sequence[SentenceToDraw], **chosen: Any) -> tuple[PictureStyle, list[str]]:
    """The style in which sentences can be drawn with no character lost and no token cut by a margin.

    Args:
        sentences: everything that will be drawn.
        chosen: the fields of `PictureStyle` that are not measured.

    Returns:
        The style, and the characters that no installed font has, ascending.
    """
    style = PictureStyle(**chosen)
    labels = {label for one in sentences for label in style.labels_of(one.tokens)}
    families, missing = font_families([*labels, *(one.text for one in sentences)])
    style = PictureStyle(**chosen, families=tuple(families))
    canvas = FigureCanvasAgg(Figure(dpi=style.dpi))
    with quiet_glyphs():
        widest = max((text_inches(canvas, label, style.token_font) for label in labels), default=0.0)
    return PictureStyle(**chosen, families=tuple(families), token_inches=widest), missing


def text_inches(canvas: FigureCanvasAgg, text: str, font: FontProperties) -> float:
    """Width of a text."""
    width, _, _ = canvas.get_renderer().get_text_width_height_descent(text, font, ismath=False)
    return float(width / canvas.figure.dpi)
