"""Pictures of a labelled dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline_common.files import atomic_path
from s0_dataset_generation.labelled_sentences import LABELS

# Light to dark with the strength of the trait; told apart in grey and by the colour-blind.
LABEL_COLOURS = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")
_NEUTRAL, _OVER_LIMIT = "#6b7a8f", "#c44e52"
_DPI = 120


def plot_labels(path: Path, title: str, sentences: Sequence[str], labels: np.ndarray) -> None:
    """Save a PNG of label counts and of sentence length by label, int [n_sentences]."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_counts(left, labels)
    _draw_lengths(right, sentences, labels)
    _save(figure, path, title)


def plot_audit(
    path: Path,
    title: str,
    sentences: Sequence[str],
    labels: np.ndarray,
    findings: Mapping[str, Any],
    limits: Mapping[str, float],
) -> None:
    """Save a PNG of counts, lengths, shortcut AUROCs and the commonest first words.

    Args:
        path: the PNG.
        title: above the picture.
        sentences: the texts.
        labels: int [n_sentences].
        findings: of `dataset_audit.audit`.
        limits: shortcut name to the AUROC above which it is marked.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (counts, lengths), (shortcuts, first_words) = figure.subplots(2, 2)
    _draw_counts(counts, labels)
    _draw_lengths(lengths, sentences, labels)
    _draw_shortcuts(shortcuts, findings["shortcut_auroc"], limits)
    words = findings["first_words"]
    first_words.barh(list(words), list(words.values()), color=_NEUTRAL)
    first_words.invert_yaxis()
    first_words.set(xlabel="sentences", title="Commonest first words")
    _save(figure, path, title)


def _draw_counts(axes: Axes, labels: np.ndarray) -> None:
    counts = [int((labels == label).sum()) for label in LABELS]
    bars = axes.bar(
        [str(label) for label in LABELS], counts, color=LABEL_COLOURS, edgecolor="#08306b", linewidth=0.5
    )
    axes.bar_label(bars)
    axes.margins(y=0.12)
    axes.set(xlabel="label (0 irrelevant - 3 clearly shown)", ylabel="sentences", title="Sentences per label")


def _draw_lengths(axes: Axes, sentences: Sequence[str], labels: np.ndarray) -> None:
    present = [label for label in LABELS if (labels == label).any()]
    lengths = np.array([len(sentence.split()) for sentence in sentences])
    boxes = axes.boxplot(
        [lengths[labels == label] for label in present],
        tick_labels=[str(label) for label in present],
        patch_artist=True,
        medianprops={"color": "#f28e2b", "linewidth": 2},
        flierprops={"marker": ".", "markersize": 4},
    )
    for box, label in zip(boxes["boxes"], present, strict=True):
        box.set_facecolor(LABEL_COLOURS[label])
    axes.set_ylim(bottom=0)
    axes.set(xlabel="label", ylabel="words", title="Length by label (line: median)")


def _draw_shortcuts(axes: Axes, aurocs: Mapping[str, float | None], limits: Mapping[str, float]) -> None:
    names = [f"{name}: {'not enough' if value is None else f'{value:.2f}'}" for name, value in aurocs.items()]
    values = [0.0 if value is None else value for value in aurocs.values()]
    over = [value > limits.get(name, 1.0) for name, value in zip(aurocs, values, strict=True)]
    axes.barh(names, values, color=[_OVER_LIMIT if is_over else _NEUTRAL for is_over in over])
    axes.axvline(0.5, color="black", linewidth=1, linestyle=":")
    for row, name in enumerate(aurocs):
        if name in limits:
            axes.plot([limits[name]] * 2, [row - 0.5, row + 0.5], color=_OVER_LIMIT, linewidth=1.5)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="AUROC, label 3 vs 0 (dotted: chance; red: limit)", title="Shortcut tests")


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, metadata={"Software": None})
