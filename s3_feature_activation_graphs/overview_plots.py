"""Pictures of a whole dataset: trajectories, distributions and a heat map of the best features."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from s1_compute_all_features.feature_store import key_form
from s3_feature_activation_graphs.activation_summary import relative_position, source_line
from s3_feature_activation_graphs.feature_traces import Traces, activation_caption
from s3_feature_activation_graphs.plotting_utils import feature_label, footer, plain_text

MAX_PANELS = 6
N_POINTS = 21
HEATMAP_LENGTH_PERCENTILE = 98
HEATMAP_VALUE_PERCENTILE = 99

# Light to dark with rising label, from matplotlib's cividis; markers tell them apart without colour.
LABEL_COLOURS = {0: "#c9b75f", 1: "#8f8a76", 2: "#4f576c", 3: "#00224e"}
LABEL_MARKERS = {0: "o", 1: "s", 2: "^", 3: "D"}
_TITLE_LENGTH = 44
"""Characters that a panel's title has room for at its usual size."""

HELD_OUT_COLOUR, TRAIN_COLOUR = "#D55E00", "#0072B2"


def mean_trajectories(
    traces: Traces, label: int, n_points: int = N_POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean activation along the sentences of a label.

    Each sentence is interpolated linearly onto the same relative positions (`relative_position`; the
    first and last token hold to the ends), so that every sentence counts the same whatever its length. An
    attention sink has no value: the tokens beside it stand in for it.

    Args:
        traces: the features.
        label: of the sentences.
        n_points: number of relative positions.

    Returns:
        Relative positions [n_points], means [n_points, n_features], and half the width of the 95%
        interval of the mean, 1.96 standard errors over sentences [n_points, n_features], NaN where
        the label has fewer than two sentences.
    """
    grid = np.linspace(0, 1, n_points)

    def positions(sentence: np.int64) -> tuple[slice, np.ndarray, np.ndarray]:
        tokens, values = traces.tokens_of(int(sentence)), traces.sentence(int(sentence))
        return tokens, values, relative_position(np.arange(len(values)), np.array(len(values)))

    resampled = np.array(
        [
            [
                np.interp(grid, place[~sinks], column[~sinks])
                for column, sinks in zip(values.T, traces.sinks[tokens].T, strict=True)
            ]
            for tokens, values, place in map(positions, np.flatnonzero(traces.store.labels == label))
        ]
    )
    n_sentences = len(resampled)
    mean = resampled.mean(axis=0).T
    if n_sentences < 2:
        return grid, mean, np.full_like(mean, np.nan)
    return grid, mean, 1.96 * resampled.std(axis=0, ddof=1).T / np.sqrt(n_sentences)


def trajectories_figure(traces: Traces, labels: Sequence[int]) -> Figure:
    """Mean activation by label over relative position, one panel for each of the top features."""
    figure, panels = _panels(traces, "Mean activation along the sentence, by label", row_height=2.9)
    for label in labels:
        grid, mean, half = mean_trajectories(traces, label)
        n_sentences = int((traces.store.labels == label).sum())
        for column, panel in enumerate(panels):
            centre, spread = mean[:, column], half[:, column]
            panel.plot(
                grid, centre, color=LABEL_COLOURS[label], marker=LABEL_MARKERS[label], markevery=2,
                markersize=4.5, linewidth=1.6, label=f"label {label} (n={n_sentences})", zorder=3 + label,
            )  # fmt: skip
            panel.fill_between(
                grid, np.maximum(centre - spread, 0), centre + spread, color=LABEL_COLOURS[label], alpha=0.22,
                linewidth=0,
            )  # fmt: skip
    for panel in panels:
        panel.set_xlim(0, 1)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("relative position in the sentence")
        panel.set_ylabel(activation_caption(traces.features, "mean activation", ",\n"))
    _close(
        figure,
        traces,
        panels[0].get_legend_handles_labels(),
        "Bands: 95% intervals of the mean (1.96 standard errors over sentences); all splits.",
    )
    return figure


def distributions_figure(traces: Traces, labels: Sequence[int]) -> Figure:
    """Largest activation in each sentence by label, train beside held-out, one panel a feature."""
    figure, panels = _panels(traces, "Largest activation in each sentence, by label", row_height=3.0)
    store = traces.store
    rng = np.random.default_rng(0)
    for column, panel in enumerate(panels):
        for held_out, shift, colour, marker in (
            (False, -0.2, TRAIN_COLOUR, "o"),
            (True, 0.2, HELD_OUT_COLOUR, "^"),
        ):
            for place, label in enumerate(labels):
                values = traces.peaks[(store.labels == label) & (store.held_out == held_out), column]
                if not len(values):
                    continue
                x = place + shift + rng.uniform(-0.14, 0.14, len(values))
                panel.scatter(
                    x, values, s=14, marker=marker, color=colour, linewidths=0, clip_on=False,
                    alpha=float(np.clip(12 / np.sqrt(len(values)) / 2, 0.15, 0.6)),
                )  # fmt: skip
                ends = [place + shift - 0.18, place + shift + 0.18]
                panel.plot(ends, [values.mean()] * 2, color="black", linewidth=2, zorder=5)
        panel.set_xticks(range(len(labels)), [f"{label}" for label in labels])
        panel.set_xlim(-0.6, len(labels) - 0.4)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("label")
        panel.set_ylabel(activation_caption(traces.features, "largest activation", ",\n"))
    handles = [
        panels[0].scatter([], [], s=28, marker="o", color=TRAIN_COLOUR),
        panels[0].scatter([], [], s=28, marker="^", color=HELD_OUT_COLOUR),
        panels[0].plot([], [], color="black", linewidth=2)[0],
    ]
    counts = [int((np.isin(store.labels, labels) & (store.held_out == side)).sum()) for side in (False, True)]
    names = [f"train (n={counts[0]})", f"held-out (n={counts[1]})", "mean"]
    note = "A point is a sentence. Features were ranked on train: trust what held-out sentences repeat."
    _close(figure, traces, (handles, names), note)
    return figure


def heatmap_image(traces: Traces, labels: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """The first feature over sentences x token positions.

    Returns:
        float32 [n_sentences, n_positions], by label and within a label by falling peak; NaN behind a
        sentence's end and on attention sinks. So many positions as 98% of the sentences have at most,
        since a few long ones would leave the rest no room. And the number of rows of each label.
    """
    store = traces.store
    by_label = [np.flatnonzero(store.labels == label) for label in labels]
    order = [s for rows in by_label for s in rows[np.argsort(-traces.peaks[rows, 0], kind="stable")]]
    width = int(np.percentile(store.n_tokens[order], HEATMAP_LENGTH_PERCENTILE, method="higher"))
    image = np.full((len(order), width), np.nan, dtype=np.float32)
    for row, sentence in enumerate(order):
        values = traces.sentence(int(sentence))[:width, 0]
        sinks = traces.sinks[traces.tokens_of(int(sentence)), 0][:width]
        image[row, : len(values)] = np.where(sinks, np.nan, values)
    return image, [len(rows) for rows in by_label]


def heatmap_figure(traces: Traces, labels: Sequence[int]) -> Figure:
    """Heat map of the first feature: a row a sentence, a column a token position."""
    image, sizes = heatmap_image(traces, labels)
    figure = Figure(figsize=(10, 7))
    axes = figure.add_axes((0.11, 0.13, 0.78, 0.76))
    active = image[image > 0]
    # A single extreme token would leave all others dark.
    top = float(np.percentile(active, HEATMAP_VALUE_PERCENTILE)) if len(active) else 1.0
    colours = axes.imshow(image, aspect="auto", cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
    axes.set_facecolor("#e8e8e8")
    ends = np.cumsum(sizes)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="white", linewidth=2)
    axes.set_yticks(
        ends - np.array(sizes) / 2 - 0.5, [f"label {a}\n(n={n})" for a, n in zip(labels, sizes, strict=True)]
    )
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("token position")
    label = activation_caption(traces.features[:1])
    figure.colorbar(colours, cax=figure.add_axes((0.905, 0.13, 0.018, 0.76)), label=label, extend="max")
    plain_text(
        figure, 1.1, 6.88, f"{feature_label(traces.features[0])}: activation by token",
        fontsize=12, fontweight="bold", va="top",
    )  # fmt: skip
    grey = "grey lies behind its end" + (", or is an attention sink" if traces.sinks[:, 0].any() else "")
    note = f"A row is a sentence, within a label by falling peak; {grey}."
    longest = int(traces.store.n_tokens[np.isin(traces.store.labels, labels)].max())
    if longest > image.shape[1]:
        note += f" Cut at {image.shape[1]} tokens (the longest: {longest})."
    plain_text(figure, 1.1, 6.58, note, fontsize=9, va="top", color="#333333")
    footer(figure, source_line(traces.store))
    return figure


def _panels(traces: Traces, title: str, row_height: float) -> tuple[Figure, list]:
    n_panels = min(MAX_PANELS, len(traces.features))
    n_columns = min(3, n_panels)
    n_rows = -(-n_panels // n_columns)
    # At least the width that the note above the panels needs.
    width, height = max(4.2 * n_columns, 8.4), row_height * n_rows + 1.43
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    figure.subplots_adjust(
        left=0.7 / width, right=1 - 0.2 / width, bottom=0.75 / height, top=1 - 1.38 / height,
        wspace=0.28, hspace=0.9 / (row_height - 0.65),
    )  # fmt: skip
    panels = list(grid.flat)
    for panel in panels[n_panels:]:
        panel.remove()
    for panel, feature in zip(panels, traces.features, strict=False):
        label = feature_label(feature)
        size = min(10.0, 10 * _TITLE_LENGTH / len(label))  # a long name stays within its panel
        panel.set_title(label, fontsize=size, loc="left", parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    plain_text(figure, 0.12, height - 0.12, title, fontsize=12, fontweight="bold", va="top")
    return figure, panels[:n_panels]


def _close(figure: Figure, traces: Traces, legend: tuple, note: str) -> None:
    width, height = figure.get_size_inches()
    form = key_form(feature.key for feature in traces.features)
    note += f"\nAbove each panel: rank, {form}, score on train (held-out)."
    plain_text(figure, 0.12, height - 0.4, note, fontsize=9, va="top", color="#333333")
    figure.legend(
        *legend, loc="upper left", bbox_to_anchor=(0.04 / width, 1 - 0.72 / height), ncols=len(legend[1]),
        fontsize=9, frameon=False,
    )  # fmt: skip
    footer(figure, source_line(traces.store))
