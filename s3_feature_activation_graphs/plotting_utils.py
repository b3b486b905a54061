"""What the pictures share: line styles that stay distinct, token strings, fonts, texts and saving.

Everything works on `matplotlib.figure.Figure` with the Agg canvas; pyplot and its global state stay out.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager
from matplotlib.ft2font import FT2Font

from pipeline_common.files import atomic_path
from s3_feature_activation_graphs.feature_traces import DrawnFeature

# Okabe and Ito's palette for colour-blind readers, without its yellow, which is lost on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "*", "<", ">")
# Colour and line style come back together after 35 lines, colour and marker after 70.
LINE_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))

SPACE_SIGN = "␣"
BASE_FONT = "DejaVu Sans"
_SIGNS = {" ": SPACE_SIGN, "\n": "↵", "\t": "⇥"}

PAD_INCHES = 0.12


def line_style(index: int) -> dict[str, Any]:
    """How the line with this index is drawn: distinct up to `MAX_FEATURES`, the first one thicker."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)],
        "linewidth": 2.2 if index == 0 else 1.4,
        "markersize": 6,
    }


def token_label(token: str, max_length: int) -> str:
    """A token as it is drawn: spaces as ␣, other invisible characters as signs or escapes.

    Args:
        token: as the tokenizer gives it.
        max_length: characters at most; a longer token is cut and ends in "…".
    """
    shown = "".join(
        _SIGNS.get(character) or (character if character.isprintable() else ascii(character)[1:-1])
        for character in token
    )
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def feature_label(feature: DrawnFeature) -> str:
    """Rank, key, train and held-out score, such as ``#1  12:82:1767  0.71 (0.55)``.

    A star marks a key whose activations are as stored, beside others in Neuronpedia's scale.
    """
    key = feature.key + ("*" if feature.as_stored else "")
    if feature.rank is None:
        return f"{key}  not ranked"
    score, held_out = ("-" if s is None else f"{s:.2f}" for s in (feature.score, feature.held_out_score))
    return f"#{feature.rank}  {key}  {score} ({held_out})"


def font_families(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Installed font families that together draw the texts.

    Args:
        texts: what will be drawn.

    Returns:
        The families in the order in which a glyph is looked for, DejaVu Sans first; and the
        characters that no installed font has, ascending.
    """
    needed = {ord(character) for character in set().union(*texts) if character.isprintable()}
    families, missing = [BASE_FONT], needed - _characters(findfont(BASE_FONT))
    # Opening every font takes seconds where many are installed, so only when something is missing.
    candidates = {
        entry.name: missing & _characters(entry.fname)
        for entry in (fontManager.ttflist if missing else [])
        if entry.style == "normal" and entry.weight in (400, "normal") and "Last Resort" not in entry.name
    }
    while missing and candidates:
        best = max(sorted(candidates), key=lambda name: len(candidates[name] & missing))
        if not candidates[best] & missing:
            break
        families.append(best)
        missing -= candidates.pop(best)
    return families, [chr(code) for code in sorted(missing)]


def _characters(path: str) -> set[int]:
    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):  # a format that FreeType does not read
        return set()
    return set(font.get_charmap()) if font.scalable else set()


@contextlib.contextmanager
def quiet_glyphs() -> Iterator[None]:
    """Draw characters that no font has as boxes, without a warning for each of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, atomically."""
    with quiet_glyphs(), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def plain_text(figure: Figure, x_inches: float, y_inches: float, text: str, **style: Any) -> Any:
    """Text at a place given in inches from the lower left; dollar signs and backslashes stay as they are."""
    width, height = figure.get_size_inches()
    return figure.text(x_inches / width, y_inches / height, text, parse_math=False, **style)


def footer(figure: Figure, text: str) -> Any:
    """The line at the foot of a figure."""
    return plain_text(figure, PAD_INCHES, PAD_INCHES, text, fontsize=7.5, color="#555555", va="bottom")
