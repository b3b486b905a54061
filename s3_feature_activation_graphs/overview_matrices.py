"""Two matrices: the best feature of each SAE by layer and l0, and which features fire together."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from s1_compute_all_features.feature_store import FeatureStore, StoredSae
from s3_feature_activation_graphs.activation_summary import source_line
from s3_feature_activation_graphs.feature_traces import DrawnFeature, Traces
from s3_feature_activation_graphs.plotting_utils import footer, plain_text

COLOURS = "cividis"  # its lightness rises evenly, also for colour-blind readers and in grey
MOST_WITH_NUMBERS = 15

_NO_FEATURE_COLOUR = "#ececec"
_FRAME_COLOUR = "#D55E00"
_CELL_WIDTH, _CELL_HEIGHT = 0.56, 0.46
_LEAST_MAP_WIDTH, _LEAST_PANEL_WIDTH = 5.6, 1.6
_LINE_INCHES, _CHARACTER_INCHES = 0.15, 0.075
"""Of the small text at the foot; a character's width is that of a wide one."""

_KEY_CHARACTERS, _KEY_CHARACTER_INCHES = 16, 0.072
"""Longest key that the margins of the other matrix have room for, and what each further character takes."""


def saes_by_layer(saes: Sequence[StoredSae]) -> dict[int, list[StoredSae]]:
    """Layers, ascending, and the SAEs of each from the sparsest to the densest; unknown l0 first."""
    layers = sorted({sae.layer for sae in saes})
    return {
        layer: sorted((sae for sae in saes if sae.layer == layer), key=lambda sae: sae.average_l0 or 0)
        for layer in layers
    }


def told_by_number(store: FeatureStore) -> dict[StoredSae, int]:
    """The SAEs that layer and l0 do not tell from others, numbered from 1 within their layer."""
    numbers: dict[StoredSae, int] = {}
    for saes in saes_by_layer(store.saes).values():
        numbers |= {sae: n for n, sae in enumerate(filter(store.needs_name, saes), start=1)}
    return numbers


def _name_lines(numbers: Mapping[StoredSae, int], width_inches: float) -> list[str]:
    """What the numbers stand for, wrapped to the width of a figure."""
    if not numbers:
        return []
    layers: dict[int, list[str]] = {}
    for sae, number in numbers.items():
        layers.setdefault(sae.layer, []).append(f"({number}) {sae.name}")
    text = "; ".join(f"layer {layer}: {', '.join(names)}" for layer, names in layers.items())
    n_characters = max(int(width_inches / _CHARACTER_INCHES), 20)
    return textwrap.wrap(f"SAEs by number: {text}", n_characters, break_on_hyphens=False)


def best_of_each_sae(ranked: Sequence[DrawnFeature]) -> dict[StoredSae, DrawnFeature]:
    """The feature of each SAE that ranks first; an SAE without a ranked feature is not there."""
    best: dict[StoredSae, DrawnFeature] = {}
    for feature in ranked:
        best.setdefault(feature.sae, feature)
    return best


def layer_map_figure(store: FeatureStore, ranked: Sequence[DrawnFeature]) -> Figure:
    """Layer x l0: the score of each SAE's best feature, on train and, of the same feature, held-out.

    Args:
        store: whose SAEs make the cells.
        ranked: every feature of the results, best first, at least one.
    """
    columns, numbers = saes_by_layer(store.saes), told_by_number(store)
    n_rows = max(len(saes) for saes in columns.values())
    best = best_of_each_sae(ranked)
    norm = _score_range(best.values())
    panel_width, panel_height = max(_CELL_WIDTH * len(columns), _LEAST_MAP_WIDTH), _CELL_HEIGHT * n_rows
    width = max(panel_width + 2.0, 8.4)
    names = _name_lines(numbers, width - 0.3)
    foot = 0.85 + _LINE_INCHES * len(names)
    height = 2 * panel_height + 1.8 + foot
    figure = Figure(figsize=(width, height))
    for held_out in (False, True):
        bottom = foot if held_out else foot + panel_height + 0.75
        axes = figure.add_axes((0.75 / width, bottom / height, panel_width / width, panel_height / height))
        for column, saes in enumerate(columns.values()):
            for row, sae in enumerate(saes):
                feature = best.get(sae)
                scores = (None, None) if feature is None else (feature.score, feature.held_out_score)
                l0 = [] if sae.average_l0 is None else [f"l0 {sae.average_l0}"]
                number = [f"({numbers[sae]})"] if sae in numbers else []
                _cell(axes, column, row, scores[held_out], norm, " ".join([*l0, *number]) or None)
        first = next(
            (column, saes.index(ranked[0].sae))
            for column, saes in enumerate(columns.values())
            if ranked[0].sae in saes
        )
        axes.add_patch(
            _square(*first, facecolor="none", edgecolor=_FRAME_COLOUR, linewidth=2.2, zorder=3, clip_on=False)
        )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(-0.5, n_rows - 0.5)
        axes.set_xticks(range(len(columns)), [str(layer) for layer in columns])
        axes.set_yticks([])
        axes.set_ylabel("l0, rising" if n_rows > 1 else "")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        where = "the same features, held-out" if held_out else "on train, where the features were ranked"
        axes.set_title(where, fontsize=10, loc="left")
        if held_out:
            axes.set_xlabel("layer")
    _colour_bar(figure, norm, (0.75 + panel_width + 0.25) / width, "score")
    note = (
        f"Score of the feature that ranks first in each SAE, among {len(ranked):,} in all; grey: none. "
        f"Framed: rank 1, {ranked[0].key}."
    )
    _head(figure, "The best feature of each SAE, by layer and l0", note, source_line(store))
    if names:
        top = 0.33 + _LINE_INCHES * len(names)
        plain_text(figure, 0.12, top, "\n".join(names), fontsize=7.5, color="#333333", va="top")
    return figure


def _score_range(features: Iterable[DrawnFeature]) -> Normalize:
    scores = [s for f in features for s in (f.score, f.held_out_score) if s is not None] or [0.0]
    low, high = min(scores), max(scores)
    return Normalize(low, high) if high > low else Normalize(low - 0.1, high + 0.1)


def share_active_with(active: np.ndarray) -> np.ndarray:
    """How often features are active together.

    Args:
        active: bool [n_places, n_features], at least one place; a place is a token or a sentence.

    Returns:
        float64 [n_features + 1, n_features]: of the places where the row's feature is active, the share
        in which the column's is as well; NaN where it never is. Last row: of all places, which is what a
        row would show if the two had nothing to do with each other.
    """
    counts = active.astype(np.float64)
    with np.errstate(invalid="ignore"):
        together = (counts.T @ counts) / counts.sum(axis=0)[:, None]
    return np.vstack([together, counts.mean(axis=0)])


def coactivation_figure(traces: Traces, labels: Sequence[int]) -> Figure:
    """How often the features fire on one token, and in one sentence."""
    store = traces.store
    sentences = np.isin(store.labels, labels)
    # A token that is an attention sink for one of them says nothing of a pair.
    tokens = np.repeat(sentences, store.n_tokens) & ~traces.sinks.any(axis=1)
    n_features = len(traces.features)
    with_numbers = n_features <= MOST_WITH_NUMBERS
    cell = max(0.42 if with_numbers else 0.24, _LEAST_PANEL_WIDTH / n_features)
    panel = cell * n_features, cell * (n_features + 1)
    keys = [feature.key for feature in traces.features]
    more = _KEY_CHARACTER_INCHES * max(0, *(len(key) - _KEY_CHARACTERS for key in keys))
    left_margin, gap, bottom = 1.75 + more, 1.15, 1.4 + more
    width, height = max(left_margin + 2 * panel[0] + gap + 1.1, 8.4), panel[1] + bottom + 1.1
    figure = Figure(figsize=(width, height))
    norm = Normalize(0, 1)
    for number, (active, what) in enumerate(
        ((traces.activations[tokens] > 0, "tokens"), (traces.peaks[sentences] > 0, "sentences"))
    ):
        left = left_margin + number * (panel[0] + gap)
        axes = figure.add_axes((left / width, bottom / height, panel[0] / width, panel[1] / height))
        shares = share_active_with(active)
        shares[np.arange(n_features), np.arange(n_features)] = np.nan
        for (row, column), share in np.ndenumerate(shares):
            value = None if np.isnan(share) else float(share)
            _cell(axes, column, n_features - row, value, norm, None, with_numbers)
        axes.axhline(0.5, color="white", linewidth=3)
        axes.set_xlim(-0.5, n_features - 0.5)
        axes.set_ylim(-0.5, n_features + 0.5)
        axes.set_xticks(range(n_features), keys, rotation=90, fontsize=8)
        counts = [*active.sum(axis=0), len(active)]
        names = [*keys, "any"] if number == 0 else [""] * (n_features + 1)
        rows = [f"{name}  {count:,}".strip() for name, count in zip(names, counts, strict=True)]
        axes.set_yticks(range(n_features, -1, -1), rows, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"the same {what[:-1]}", fontsize=10, loc="left")
    _colour_bar(figure, norm, (left_margin + 2 * panel[0] + gap + 0.25) / width, "share")
    note = (
        "Of the tokens or sentences where the row's feature fires (number beside the row), the share where\n"
        "the column's fires too. Last row: of all of them, which a pair without connection would also show."
    )
    _head(figure, "Which features fire together", note, source_line(store))
    return figure


def _square(column: int, row: int, **style: Any) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, **style)


def _cell(
    axes: Any,
    column: int,
    row: int,
    value: float | None,
    norm: Normalize,
    above: str | None,
    with_number: bool = True,
) -> None:
    """A coloured square with its value; grey where there is none."""
    colour = _NO_FEATURE_COLOUR if value is None else colormaps[COLOURS](norm(value))
    axes.add_patch(_square(column, row, facecolor=colour, edgecolor="white", linewidth=1))
    number = "" if value is None else f"{value:.2f}"
    lines = [line for line in (above, number if with_number else "") if line]
    ink = "white" if value is not None and norm(value) < 0.5 else "black"
    if lines:
        axes.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=7, color=ink)


def _colour_bar(figure: Figure, norm: Normalize, left: float, label: str) -> None:
    panels = [axes.get_position() for axes in figure.axes]
    bottom, top = min(panel.y0 for panel in panels), max(panel.y1 for panel in panels)
    place = figure.add_axes((left, bottom, 0.16 / figure.get_figwidth(), top - bottom))
    figure.colorbar(ScalarMappable(norm, COLOURS), cax=place, label=label)


def _head(figure: Figure, title: str, note: str, source: str) -> None:
    height = figure.get_figheight()
    plain_text(figure, 0.12, height - 0.12, title, fontsize=12, fontweight="bold", va="top")
    plain_text(figure, 0.12, height - 0.4, note, fontsize=9, va="top", color="#333333")
    footer(figure, source)
