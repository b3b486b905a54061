"""Tokens and activations of the report's heat maps, packed small enough for one file."""

import itertools
from typing import Any

import numpy as np

from s3_feature_activation_graphs.feature_traces import Traces

TOP_KEPT = 20
"""So many of each feature's strongest sentences per label stay, where the report cannot carry all."""

SIGNIFICANT_DIGITS = 3


def random_order(labels: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """The sentences of each label in an order that has nothing to do with activations.

    Args:
        labels: int64 [n_sentences].
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    return {int(label): order[labels[order] == label] for label in np.unique(labels)}


def carried_sentences(
    pooled: np.ndarray, labels: np.ndarray, max_sentences: int, order: dict[int, np.ndarray]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Which sentences the report carries.

    Args:
        pooled: float32 [n_sentences, n_features].
        labels: int64 [n_sentences].
        max_sentences: beyond so many, a random share of each label and the top `TOP_KEPT` sentences per
            feature and label; 0 for no limit.
        order: from `random_order`.

    Returns:
        Sentence indices, ascending; and per label those that count as random, in random order.
    """
    if not max_sentences or len(labels) <= max_sentences:
        return np.arange(len(labels)), order
    quota = max(max_sentences // len(order), 1)
    drawn = {label: of_label[:quota] for label, of_label in order.items()}
    kept = list(drawn.values())
    for label in order:
        of_label = np.flatnonzero(labels == label)
        top = np.argsort(-pooled[of_label], axis=0, kind="stable")[:TOP_KEPT]
        kept.append(of_label[np.unique(top)])
    return np.unique(np.concatenate(kept)), drawn


def heat_map_data(
    traces: Traces, pooled: np.ndarray, max_sentences: int, seed: int, ids: list[str]
) -> dict[str, Any]:
    """What the page's script draws heat maps from.

    Activations are rounded to `SIGNIFICANT_DIGITS` and stored where they are not zero: ``gaps`` are the
    distances from one stored token to the next, counted through the tokens of all carried sentences. So are
    attention sinks, ``sinks``, once for each layer; a feature names its layer by ``reads``.

    Args:
        traces: the features.
        pooled: float32 [n_sentences, n_features], which decides what is top.
        max_sentences: see `carried_sentences`.
        seed: of the random sentences.
        ids: HTML id of each feature.
    """
    store = traces.store
    order = random_order(store.labels, seed)
    carried, drawn = carried_sentences(pooled, store.labels, max_sentences, order)
    place = {int(sentence): index for index, sentence in enumerate(carried)}
    rows = np.concatenate([np.arange(store.starts[s], store.starts[s + 1]) for s in carried])
    vocabulary, token_ids = np.unique(store.tokens.text[rows], return_inverse=True)
    bounds = np.concatenate([[0], np.cumsum(store.n_tokens[carried])])
    texts = [store.sentences[sentence] for sentence in carried]
    shown = ["".join(vocabulary[token_ids[first:last]]) for first, last in itertools.pairwise(bounds)]
    return {
        "vocabulary": vocabulary.tolist(),
        "tokens": token_ids.tolist(),
        "lengths": store.n_tokens[carried].tolist(),
        "index": carried.tolist(),
        "labels": store.labels[carried].tolist(),
        "held_out": store.held_out[carried].astype(int).tolist(),
        # The text stands beside its tokens only where they do not spell it.
        "texts": [
            None if text.split() == tokens.split() else text
            for text, tokens in zip(texts, shown, strict=True)
        ],
        "random": {label: [place[int(s)] for s in of_label] for label, of_label in drawn.items()},
        "sinks": {
            str(feature.sae.sink_layer): _gaps(traces.sinks[rows, column])
            for column, feature in enumerate(traces.features)
        },
        "top_limit": None if len(carried) == len(store.labels) else TOP_KEPT,
        "features": [
            {
                "id": ids[column],
                "reads": str(traces.features[column].sae.sink_layer),
                "max": _rounded(traces.peaks[:, column].max(initial=0.0)),
                "pooled": [_rounded(value) for value in pooled[carried, column]],
                **_sparse(traces.activations[rows, column]),
            }
            for column in range(len(traces.features))
        ],
    }


def _sparse(values: np.ndarray) -> dict[str, list[Any]]:
    return {"gaps": _gaps(values), "values": [_rounded(value) for value in values[np.flatnonzero(values)]]}


def _gaps(values: np.ndarray) -> list[int]:
    gaps: list[int] = np.diff(np.flatnonzero(values), prepend=0).tolist()
    return gaps


def _rounded(value: float) -> float | int:
    """To significant digits, and an integer where that is shorter."""
    number = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return int(number) if number.is_integer() else number
