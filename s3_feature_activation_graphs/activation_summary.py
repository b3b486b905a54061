"""Where features peak and start within sentences, which tokens carry them, and what kind that makes them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import NEURONPEDIA_SCALE, FeatureStore, token_labels
from s3_feature_activation_graphs.feature_traces import Traces, scale_words

FORMAT = "activation_summary"
FORMAT_VERSION = 2
LIBRARIES = ("matplotlib", "numpy")

MIN_ACTIVE_SENTENCES = 5
EARLY_BELOW = 1 / 3
LATE_FROM = 2 / 3
KEYWORD_SHARE = 0.5
N_PEAK_TOKENS = 10
_SENTENCES_AT_ONCE = 1024

EARLY, CONTEXTUAL, LATE, RARE = "early/keyword", "contextual", "late/sentence-level", "rarely active"
KINDS = (EARLY, CONTEXTUAL, LATE, RARE)
KIND_RULE = (
    f"{RARE}: active in fewer than {MIN_ACTIVE_SENTENCES} sentences; "
    f"otherwise {LATE}: median relative peak position of 2/3 or more; "
    f"otherwise {EARLY}: median relative peak position below 1/3, or the peak token alone holds half or more "
    f"of the sentence's activation (median); otherwise {CONTEXTUAL}"
)


@dataclass(frozen=True)
class SentencePeaks:
    """Peak and onset of every feature in every sentence.

    Attributes:
        value: float32 [n_sentences, n_features], the largest activation; 0 where it never fires.
        position: int64 [n_sentences, n_features], the first token with that value, from 0; -1 where
            the feature never fires.
        onset: int64 [n_sentences, n_features], the first token above 0; -1 where it never fires.
        share: float64 [n_sentences, n_features], peak over the sum of the sentence's activations, so
            1 where a single token fires; 0 where none does.
    """

    value: np.ndarray
    position: np.ndarray
    onset: np.ndarray
    share: np.ndarray


def sentence_peaks(activations: np.ndarray, starts: np.ndarray) -> SentencePeaks:
    """Find peaks and onsets.

    Args:
        activations: float32 [n_tokens, n_features], none negative.
        starts: int64 [n_sentences + 1], sentence s is tokens ``starts[s]:starts[s + 1]``; none is empty.
    """
    n_sentences, n_features = len(starts) - 1, activations.shape[1]
    peaks = SentencePeaks(
        *(
            np.empty((n_sentences, n_features), dtype)
            for dtype in (np.float32, np.int64, np.int64, np.float64)
        )
    )
    # In strips: what stands between activations and peaks is several times the activations.
    for first in range(0, n_sentences, _SENTENCES_AT_ONCE):
        ends = starts[first : first + _SENTENCES_AT_ONCE + 1]
        strip = _strip_peaks(activations[ends[0] : ends[-1]], ends - ends[0])
        for name, values in vars(strip).items():
            getattr(peaks, name)[first : first + _SENTENCES_AT_ONCE] = values
    return peaks


def _strip_peaks(activations: np.ndarray, starts: np.ndarray) -> SentencePeaks:
    first = starts[:-1]
    value = np.maximum.reduceat(activations, first)
    sentence = np.repeat(np.arange(len(first)), np.diff(starts))
    position = (np.arange(len(activations)) - first[sentence])[:, None]
    never = len(activations)
    at_peak = np.minimum.reduceat(np.where(activations == value[sentence], position, never), first)
    onset = np.minimum.reduceat(np.where(activations > 0, position, never), first)
    fires = value > 0
    total = np.add.reduceat(activations.astype(np.float64), first)
    share = np.divide(value, total, out=np.zeros_like(total), where=fires)
    return SentencePeaks(value, np.where(fires, at_peak, -1), np.where(fires, onset, -1), share)


def relative_position(position: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Where the middle of a token lies in its sentence, from 0 (start) to 1 (end), whatever its length.

    Both arrays and the result are [n_sentences].
    """
    return (position + 0.5) / n_tokens


def kind_of(n_active: int, median_peak: float | None, median_share: float | None) -> str:
    """A feature's kind, by `KIND_RULE`.

    Args:
        n_active: sentences in which it fires.
        median_peak: median relative position of its peak over those sentences; None without any.
        median_share: median share of the peak token in the sentence's activation; None without any.
    """
    if n_active < MIN_ACTIVE_SENTENCES or median_peak is None or median_share is None:
        return RARE
    return kind_of_peak(median_peak, median_share)


def kind_of_peak(relative_position: float, share: float) -> str:
    """The part of `KIND_RULE` that a single sentence can answer.

    Args:
        relative_position: of the peak, or the median over sentences.
        share: of the peak token in the sentence's activation, or the median over sentences.
    """
    if relative_position >= LATE_FROM:
        return LATE
    if relative_position < EARLY_BELOW or share >= KEYWORD_SHARE:
        return EARLY
    return CONTEXTUAL


def summarise(traces: Traces, labels: Sequence[int]) -> list[dict[str, Any]]:
    """Describe every feature over all sentences with the given labels, drawn or not.

    Returns:
        One JSON-ready entry a feature, in the order of `traces.features`; README.md explains the keys.
        None stands where no sentence, or no active one, is there to measure.
    """
    peaks = sentence_peaks(traces.activations, traces.store.starts)
    considered = np.isin(traces.store.labels, labels)
    return [_describe(traces, peaks, column, considered, labels) for column in range(len(traces.features))]


def _describe(
    traces: Traces, peaks: SentencePeaks, column: int, considered: np.ndarray, labels: Sequence[int]
) -> dict[str, Any]:
    store, feature = traces.store, traces.features[column]
    value = peaks.value[:, column]
    active = np.flatnonzero(considered & (value > 0))
    peak, onset = peaks.position[active, column], peaks.onset[active, column]
    relative_peak = relative_position(peak, store.n_tokens[active])
    relative_onset = relative_position(onset, store.n_tokens[active])
    share = peaks.share[active, column]
    by_kind = Counter(map(kind_of_peak, relative_peak.tolist(), share.tolist()))
    carriers = Counter(token_labels(store.tokens.text)[store.starts[active] + peak].tolist())
    scaled = bool(scale_words(traces.features))
    return {
        "key": feature.key,
        **({"decoder_norm": feature.decoder_norm} if scaled else {}),
        "rank": feature.rank,
        "sae_name": feature.sae.name,
        "layer": feature.sae.layer,
        "average_l0": feature.sae.average_l0,
        "feature_id": feature.feature_id,
        "score": feature.score,
        "held_out_score": feature.held_out_score,
        "passes_filters": feature.passes_filters,
        "kind": kind_of(len(active), _median(relative_peak), _median(share)),
        "n_sentences": int(considered.sum()),
        "n_active_sentences": len(active),
        "sentences_by_kind": {kind: by_kind[kind] for kind in (EARLY, CONTEXTUAL, LATE)},
        "peak_position": _centre(peak),
        "peak_relative_position": _centre(relative_peak),
        "onset_position": _centre(onset),
        "onset_relative_position": _centre(relative_onset),
        "median_peak_share": _median(share),
        "peak_value_by_label": [
            _peak_values(label, split, value[(store.labels == label) & (store.held_out == held_out)])
            for label in labels
            for split, held_out in (("train", False), ("test", True))
        ],
        # Counter keeps the order of first occurrence among equal counts, so this is deterministic.
        "peak_tokens": [
            {"token": token, "n_sentences": count} for token, count in carriers.most_common(N_PEAK_TOKENS)
        ],
    }


def _peak_values(label: int, split: str, values: np.ndarray) -> dict[str, Any]:
    return {
        "label": int(label),
        "split": split,
        "n_sentences": len(values),
        "n_active_sentences": int((values > 0).sum()),
        "mean": float(values.mean()) if len(values) else None,
        "max": float(values.max()) if len(values) else None,
    }


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _centre(values: np.ndarray) -> dict[str, float | None]:
    return {"mean": float(values.mean()) if len(values) else None, "median": _median(values)}


def source_line(store: FeatureStore) -> str:
    """Model and store, for the foot of a figure."""
    return f"{store.model_name}  |  {store.path.resolve().name}"


def summary_document(
    traces: Traces, labels: Sequence[int], settings: Mapping[str, Any], files: Sequence[str]
) -> dict[str, Any]:
    """Content of ``summary_statistics.json``.

    Args:
        traces: the drawn features.
        labels: the labels that are considered.
        settings: of the pictures.
        files: the pictures, relative to the output folder.
    """
    store = traces.store
    features = summarise(traces, labels)
    scale = scale_words(traces.features)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "store": {
            "name": store.path.resolve().name,
            "fingerprint": store.fingerprint,
            "model": store.model_name,
        },
        "settings": {"labels": list(labels), **settings},
        **({"activation_scale": scale} if scale else {}),
        "library_versions": library_versions(LIBRARIES),
        "kind_rule": KIND_RULE,
        "n_sentences": int(np.isin(store.labels, labels).sum()),
        "n_plots": sum(file.startswith("label_") for file in files),
        "features_by_kind": {kind: sum(f["kind"] == kind for f in features) for kind in KINDS},
        "features": features,
        "files": list(files),
    }


def as_text(document: dict[str, Any]) -> str:
    """The summary as a text to read, from the content of ``summary_statistics.json``."""
    store, settings = document["store"], document["settings"]
    lines = [
        "Where in a sentence the features fire",
        "",
        f"store {store['name']}, model {store['model']}",
        f"labels {', '.join(map(str, settings['labels']))}: {document['n_sentences']} sentences, "
        f"{document['n_plots']} of them drawn",
        "Positions count tokens from 0; relative positions run from 0 (start) to 1 (end of the sentence).",
        "Positions are over the sentences in which the feature fires; peak values over all of them.",
        *_scale_lines(document),
        f"Kinds. {document['kind_rule']}.",
        "",
        f"{len(document['features'])} features: {_counts(document['features_by_kind'])}",
    ]
    for feature in document["features"]:
        lines += ["", *_feature_lines(feature)]
    return "\n".join(lines) + "\n"


def _scale_lines(document: dict[str, Any]) -> list[str]:
    """What the text says of activations that are not those of the store."""
    if "activation_scale" not in document:
        return []
    as_stored = [f["key"] for f in document["features"] if f.get("decoder_norm", 1) is None]
    line = f"Activations are {NEURONPEDIA_SCALE}: the store's, times the norm of the feature's decoder row."
    return [line, *([f"As stored, the norm not being known: {', '.join(as_stored)}."] if as_stored else [])]


def _feature_lines(feature: dict[str, Any]) -> list[str]:
    rank = "not ranked" if feature["rank"] is None else f"rank {feature['rank']}"
    if feature["passes_filters"] is False:
        rank += ", below the filters of the ranking"
    scores = f"score {number(feature['score'])}, held-out {number(feature['held_out_score'])}"
    lines = [
        f"{feature['key']}  {rank}  {scores}  {feature['kind']}",
        f"  fires in {feature['n_active_sentences']} of {feature['n_sentences']} sentences; "
        f"the peak token holds {number(feature['median_peak_share'])} of a sentence's activation (median)",
    ]
    lines.append(f"  sentences by the kind of their own peak: {_counts(feature['sentences_by_kind'])}")
    for name in ("peak", "onset"):
        absolute, relative = feature[f"{name}_position"], feature[f"{name}_relative_position"]
        lines.append(
            f"  {name:<6} token {number(absolute['median'], 1)} (mean {number(absolute['mean'], 1)}), "
            f"relative {number(relative['median'])} (mean {number(relative['mean'])})"
        )
    for entry in feature["peak_value_by_label"]:
        split = "train" if entry["split"] == "train" else "held-out"
        lines.append(
            f"  label {entry['label']} {split:<8}  mean peak {number(entry['mean'], 3):>8}  "
            f"max {number(entry['max'], 3):>8}  "
            f"fires in {entry['n_active_sentences']} of {entry['n_sentences']}"
        )
    tokens = [f"{entry['token']!r} {entry['n_sentences']}" for entry in feature["peak_tokens"]]
    return [*lines, f"  peak tokens (sentences): {', '.join(tokens) or 'none'}"]


def _counts(by_kind: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in by_kind.items())


def number(value: float | None, digits: int = 2) -> str:
    """A number to read, or a dash where it does not exist."""
    return "-" if value is None else f"{value:.{digits}f}"
