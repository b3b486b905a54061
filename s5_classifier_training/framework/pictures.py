"""The pictures of an experiment: a confusion matrix, or predicted against true values."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline_common.files import atomic_path

DPI = 150
_FOOTER_SIZE = 7


def draw_confusion_matrix(
    path: Path, confusion: np.ndarray, labels: list[int], title: str, footer: str
) -> None:
    """Counts of true against predicted label, shaded by the share of the true label's sentences.

    Args:
        path: the PNG.
        confusion: int64 [n_labels, n_labels], rows are true labels.
        labels: what the rows and columns stand for.
        title: above the matrix.
        footer: below it, small; may be empty.
    """
    figure, axes = _figure((5.2, 5.0), title, footer)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(labels)):
        for column in range(len(labels)):
            axes.text(
                column,
                row,
                f"{confusion[row, column]}\n{share[row, column]:.0%}",
                ha="center",
                va="center",
                color="white" if share[row, column] > 0.5 else "black",
            )
    axes.set_xticks(range(len(labels)), [str(label) for label in labels])
    axes.set_yticks(range(len(labels)), [str(label) for label in labels])
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    figure.colorbar(image, ax=axes, label="share of the true label's sentences", shrink=0.8)
    _save(figure, path)


def draw_predicted_vs_true(
    path: Path, target: np.ndarray, predicted: np.ndarray, title: str, footer: str
) -> None:
    """Predicted against true values of the test rows, with the line of perfect prediction.

    Args:
        path: the PNG.
        target: float [n_rows].
        predicted: float [n_rows].
        title: above the plot.
        footer: below it, small; may be empty.
    """
    figure, axes = _figure((5.2, 5.0), title, footer)
    low = float(min(target.min(), predicted.min()))
    high = float(max(target.max(), predicted.max()))
    axes.plot([low, high], [low, high], color="black", linewidth=1, linestyle="--", label="predicted = true")
    axes.scatter(target, predicted, s=12, alpha=0.5, color="#0072B2", linewidths=0, label="test row")
    axes.set_xlabel("true value")
    axes.set_ylabel("predicted value")
    axes.legend(frameon=False, loc="best")
    _save(figure, path)


def _figure(size: tuple[float, float], title: str, footer: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, parse_math=False)
    if footer:
        figure.supxlabel(footer, fontsize=_FOOTER_SIZE, color="0.35")
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
