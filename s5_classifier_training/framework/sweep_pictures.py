"""The pictures of a sweep: AUROC over layers, one trait a picture, and all traits side by side."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline_common.files import atomic_path
from s1_compute_all_features.feature_store import EMBEDDINGS
from s5_classifier_training.framework.layer_sweep import BAG_OF_WORDS, Row

DPI = 150
# Okabe and Ito's palette for colour-blind readers; black and grey are kept for the baselines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "*", "<", ">")
BASELINE_COLOUR = "0.25"
MAX_BANDS = 3
"""With more curves than this, their intervals would hide one another; they become thin bars."""
COLUMNS_OF_PANELS = 3
_MAX_TICKS = 28
_MAX_TICKS_OF_PANEL = 14

_HELD_OUT_KEY = (
    "Line and band: held-out sentences with 95% bootstrap intervals by group. "
    "Dashed: bag of words on the same sentences, with its interval. Dotted: chance."
)


def draw_trait(path: Path, rows: Sequence[Row], footer: str) -> None:
    """AUROC over layers of every estimator on one trait, beside the bag of words.

    Args:
        path: the PNG.
        rows: of one trait.
        footer: below the plot, small: model and pooling.
    """
    figure = Figure(figsize=(8.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(
        f"{rows[0]['trait']}: AUROC of label 3 against 0 by layer", fontsize=11, loc="left", parse_math=False
    )
    _draw_held_out(axes, rows)
    for (_, curve), style in zip(_curves(rows).items(), _styles(), strict=False):
        axes.plot(
            *_points(curve, "cv_auroc_mean"), **style, linewidth=0.8, linestyle=(0, (2, 2)), markersize=4,
            markerfacecolor="white", label=f"{curve[0]['estimator']}, cross-validated", zorder=3,
        )  # fmt: skip
    _label_axes(axes, _places([rows]), _MAX_TICKS)
    axes.legend(frameon=False, fontsize=8, loc="best")
    _save(figure, path, f"{_HELD_OUT_KEY}\nOpen points: mean over the folds of train. {footer}")


def draw_all_traits(path: Path, rows_of_trait: Sequence[Sequence[Row]], footer: str) -> None:
    """A panel a trait with shared axes; the other traits' curves stand behind it in grey.

    Args:
        path: the PNG.
        rows_of_trait: one sequence of rows a trait.
        footer: below the panels, small.
    """
    n_columns = min(COLUMNS_OF_PANELS, len(rows_of_trait))
    n_rows = -(-len(rows_of_trait) // n_columns)
    figure = Figure(figsize=(max(4.0 * n_columns, 8.2), 3.2 * n_rows + 1.2), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    figure.suptitle("AUROC of label 3 against 0 by layer", fontsize=11, x=0.01, ha="left")
    panels = list(grid.flat[: len(rows_of_trait)])
    for panel in grid.flat[len(rows_of_trait) :]:
        panel.remove()
    for panel, own in zip(panels, rows_of_trait, strict=True):
        for others in rows_of_trait:
            if others is not own:
                first = next(iter(_curves(others).values()))
                panel.plot(*_points(first, "test_auroc"), color="0.8", linewidth=0.9, zorder=1)
        panel.set_title(own[0]["trait"], fontsize=10, loc="left", parse_math=False)
        _draw_held_out(panel, own)
    for index, panel in enumerate(panels):
        _label_axes(panel, _places(rows_of_trait), _MAX_TICKS_OF_PANEL)
        panel.tick_params(labelbottom=True)  # the panel below may be missing
        if index % n_columns:
            panel.set_ylabel("")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper right", ncols=min(len(names), 4), frameon=False, fontsize=8
    )
    grey = f" Grey: the other traits ({next(iter(_curves(rows_of_trait[0])))})."
    _save(figure, path, f"{_HELD_OUT_KEY}\n{footer}{grey if len(rows_of_trait) > 1 else ''}")


def place_of(layer: Any) -> int:
    """Where a layer stands on the axis: the embeddings left of layer 0."""
    return -1 if layer == EMBEDDINGS else int(layer)


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Estimator to its rows, by layer."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row["layer"] is not None:
            curves.setdefault(row["estimator"], []).append(row)
    return curves


def _points(curve: Sequence[Row], score: str) -> tuple[list[int], np.ndarray]:
    values = np.array([row[score] for row in curve], dtype=np.float64)
    return [place_of(row["layer"]) for row in curve], values


def _places(rows_of_trait: Sequence[Sequence[Row]]) -> list[int]:
    """Every layer that one of the traits has, as places on the axis."""
    layers = {row["layer"] for rows in rows_of_trait for row in rows if row["layer"] is not None}
    return sorted(place_of(layer) for layer in layers)


def _styles() -> Iterator[dict[str, Any]]:
    """Colour and marker of one estimator after another."""
    for index in itertools.count():
        yield {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_held_out(axes: Axes, rows: Sequence[Row]) -> None:
    """Held-out AUROC of every estimator and of the bag of words, with intervals."""
    curves = _curves(rows)
    for index, ((name, curve), style) in enumerate(zip(curves.items(), _styles(), strict=False)):
        places, values = _points(curve, "test_auroc")
        _, low = _points(curve, "test_auroc_low")
        _, high = _points(curve, "test_auroc_high")
        axes.plot(places, values, **style, markersize=4, linewidth=1.6, label=f"{name}, held-out", zorder=4)
        if len(curves) <= MAX_BANDS:
            axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2)
        else:
            shift = 0.12 * (index - (len(curves) - 1) / 2)
            axes.vlines(np.array(places) + shift, low, high, color=style["color"], linewidth=0.8, zorder=2)
    words = next((row for row in rows if row["estimator"] == BAG_OF_WORDS), None)
    if words is not None and words["test_auroc"] is not None:
        axes.axhline(
            words["test_auroc"], color=BASELINE_COLOUR, linewidth=1.2, linestyle="--",
            label="bag of words, held-out", zorder=3,
        )  # fmt: skip
        if words["test_auroc_low"] is not None:
            axes.axhspan(
                words["test_auroc_low"],
                words["test_auroc_high"],
                color=BASELINE_COLOUR,
                alpha=0.08,
                linewidth=0,
            )
    axes.axhline(0.5, color="0.5", linewidth=0.9, linestyle=":", zorder=1)
    if all(row["test_auroc"] is None and row["cv_auroc_mean"] is None for row in rows):
        axes.text(
            0.5,
            0.5,
            "no AUROC: label 0 or label 3 is missing",
            transform=axes.transAxes,
            ha="center",
            va="center",
        )


def _label_axes(axes: Axes, places: Sequence[int], max_ticks: int) -> None:
    step = -(-len(places) // max_ticks)
    shown = places[::step]
    axes.set_xticks(shown, ["emb." if place < 0 else str(place) for place in shown])
    axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
    low, _ = axes.get_ylim()
    axes.set_ylim(min(low, 0.4), 1.01)
    axes.set_xlabel("layer (emb.: embeddings)")
    axes.set_ylabel("AUROC, label 3 against 0")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, footer: str) -> None:
    FigureCanvasAgg(figure)
    figure.supxlabel(footer, fontsize=7, color="0.35", x=0.01, ha="left", parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
