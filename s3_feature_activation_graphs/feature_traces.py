"""The features to draw, their activation on every token, and which sentences to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import (
    NEURONPEDIA_SCALE,
    FeatureKey,
    FeatureStore,
    StoredSae,
    feature_key,
    pool_dense,
)
from s2_find_top_features.ranked_features import RankedResults

SORT_ORDERS = ("activation", "index")
MAX_FEATURES = 30
"""So many lines can be told apart in one picture."""
MAX_PIXELS = 30_000
"""Longest side of a picture; the renderer's own limit is twice that."""

SCORE = "interpretability_score"


@dataclass(frozen=True)
class DrawnFeature:
    """One line of the plots.

    Attributes:
        sae: the SAE that it belongs to.
        feature_id: index of the latent in the SAE.
        rank: in the results of stage 2; None for a feature picked by hand that is not ranked there.
        score: interpretability score on train; None where there is none.
        held_out_score: the same on the held-out split.
        passes_filters: on train; None for a feature that is not ranked.
        needs_name: its key names the SAE, because layer and l0 take no single SAE of the store.
        decoder_norm: what its stored activations were multiplied by for the plots; 1 where all norms of the
            SAE are near 1, None where they are not known.
        as_stored: its norm is not known while others drawn beside it are in Neuronpedia's scale.
    """

    sae: StoredSae
    feature_id: int
    rank: int | None = None
    score: float | None = None
    held_out_score: float | None = None
    passes_filters: bool | None = None
    needs_name: bool = False
    decoder_norm: float | None = None
    as_stored: bool = False

    @property
    def key(self) -> str:
        """The feature's key, in the form that `RankedFeature.key` has."""
        sae = self.sae
        return repr(feature_key(sae.name, sae.layer, sae.average_l0, self.feature_id, self.needs_name))


@dataclass(frozen=True)
class Traces:
    """What is drawn: features over the tokens of a store.

    Attributes:
        store: the feature store.
        features: in the order of the legend, best first.
        activations: float32 [n_tokens, n_features], never negative; 0 on attention sinks that are left out;
            in Neuronpedia's scale where the features' `decoder_norm` is known.
    """

    store: FeatureStore
    features: list[DrawnFeature]
    activations: np.ndarray

    def sentence(self, sentence: int) -> np.ndarray:
        """Activations of one sentence: float32 [its n_tokens, n_features]."""
        return self.activations[self.tokens_of(sentence)]

    def tokens_of(self, sentence: int) -> slice:
        """Where a sentence stands among the store's tokens."""
        return slice(int(self.store.starts[sentence]), int(self.store.starts[sentence + 1]))

    @cached_property
    def sinks(self) -> np.ndarray:
        """Where a token is left out, as an attention sink of the SAE's layer: bool [n_tokens, n_features]."""
        sinks = np.zeros((int(self.store.starts[-1]), len(self.features)), dtype=bool)
        for layer, columns in self._columns_by_layer.items():
            sinks[:, columns] = self.store.sinks(layer)[:, None]
        return sinks

    @property
    def _columns_by_layer(self) -> dict[int, list[int]]:
        """Columns by the layer that their SAE reads: a sink is one of a layer."""
        columns: dict[int, list[int]] = {}
        for column, feature in enumerate(self.features):
            columns.setdefault(feature.sae.sink_layer, []).append(column)
        return columns

    def pooled(self, pooling: str) -> np.ndarray:
        """The features on every sentence: float32 [n_sentences, n_features]."""
        store = self.store
        pooled = np.empty((len(store.sentences), len(self.features)), dtype=np.float32)
        for layer, columns in self._columns_by_layer.items():
            values, sinks = self.activations[:, columns], store.sinks(layer)
            pooled[:, columns] = pool_dense(values, store.starts, store.content, pooling, sinks)
        return pooled

    @cached_property
    def peaks(self) -> np.ndarray:
        """Largest activation in each sentence (max pooling): float32 [n_sentences, n_features]."""
        return np.maximum.reduceat(self.activations, self.store.starts[:-1])


def load_traces(
    store: FeatureStore, results: RankedResults, top_n: int, keys: Sequence[FeatureKey]
) -> Traces:
    """Read the activations of the features to draw.

    Args:
        store: the store that the results were made from.
        results: of stage 2.
        top_n: draw so many of the best ranked ones, where no keys are given.
        keys: draw these, in this order; a feature named twice counts once.

    Raises:
        UserError: the results were made from another store or hold no feature, or a key is not in
            the store.
    """
    made_from = results.summary.get("store", {}).get("fingerprint")
    if made_from != store.fingerprint:
        raise UserError(
            f"{store.path}: the results were made from another store (fingerprint {str(made_from)[:12]}, "
            f"this one is {store.fingerprint[:12]}); run analyze_features.py again on this store"
        )
    features = ranked_features(store, results)
    picked = dict.fromkeys(_picked(store, features, key) for key in keys)
    features = list(picked) if keys else features[:top_n]
    if not features:
        raise UserError(
            "the results hold no ranked feature; run analyze_features.py with wider filters, "
            "or name features with --features"
        )
    activations = np.empty((int(store.starts[-1]), len(features)), dtype=np.float32)
    for sae in dict.fromkeys(feature.sae for feature in features):
        columns = [column for column, feature in enumerate(features) if feature.sae == sae]
        feature_ids = [features[column].feature_id for column in columns]
        values, scale = store.feature_activations(sae, feature_ids), store.neuronpedia_scale(sae)
        activations[:, columns] = values if scale is None else values * scale[feature_ids]
        for column in columns:
            norm = None if scale is None else float(scale[features[column].feature_id])
            features[column] = replace(features[column], decoder_norm=norm)
    if any(map(is_rescaled, features)):
        features = [replace(feature, as_stored=feature.decoder_norm is None) for feature in features]
    return Traces(store, features, activations)


def is_rescaled(feature: DrawnFeature) -> bool:
    """Whether its activations are others than those of the store."""
    return feature.decoder_norm not in (None, 1.0)


def scale_words(features: Sequence[DrawnFeature]) -> str:
    """The scale of some features' activations, for a caption; empty where they are those of the store."""
    if not any(map(is_rescaled, features)):
        return ""
    return NEURONPEDIA_SCALE + (" (* as stored)" if any(feature.as_stored for feature in features) else "")


def activation_caption(
    features: Sequence[DrawnFeature], name: str = "activation", between: str = ", "
) -> str:
    """What an axis or a colour bar says that shows activations of some features."""
    words = scale_words(features)
    return f"{name}{between}{words}" if words else name


def ranked_features(store: FeatureStore, results: RankedResults) -> list[DrawnFeature]:
    """Every feature of the results, best first.

    Raises:
        UserError: the store lacks the SAE of one.
    """
    saes = {sae.name: sae for sae in store.saes}
    drawn = []
    for feature in results.features:
        if feature.sae_name not in saes:
            raise UserError(
                f"{store.path}: the results rank features of SAE {feature.sae_name!r}, which is not there; "
                "run analyze_features.py again"
            )
        drawn.append(
            DrawnFeature(
                saes[feature.sae_name],
                feature.feature_id,
                feature.rank,
                feature.train[SCORE],
                feature.held_out[SCORE],
                feature.passes_filters,
                feature.needs_name,
            )
        )
    return drawn


def _picked(store: FeatureStore, ranked: Sequence[DrawnFeature], key: FeatureKey) -> DrawnFeature:
    sae = store.find_sae(key.layer, key.average_l0, key.sae_name)
    for feature in ranked:
        if feature.sae == sae and feature.feature_id == key.feature_id:
            return feature
    return DrawnFeature(sae, key.feature_id, needs_name=store.needs_name(sae))


def check_labels(store: FeatureStore, wanted: Sequence[int] | None) -> list[int]:
    """The labels to draw, ascending: the wanted ones, or all that the store has.

    Raises:
        UserError: no sentence has a wanted label.
    """
    existing = np.unique(store.labels).tolist()
    for label in wanted or []:
        if label not in existing:
            listed = ", ".join(str(value) for value in existing)
            raise UserError(f"{store.path}: no sentence has label {label}; there are the labels {listed}")
    return sorted(set(wanted)) if wanted else existing


def choose_sentences(traces: Traces, labels: Sequence[int], max_sentences: int, sort_by: str) -> list[int]:
    """Which sentences are drawn: label by label, those with the largest activation or the first ones.

    The labels take turns, so that each gets the same share of `max_sentences`; what a label cannot
    use goes to the others.

    Args:
        traces: the features; the first one counts for ``activation``.
        labels: draw only these.
        max_sentences: how many in all; 0 for no limit.
        sort_by: ``activation``, by the first feature's peak, largest first, ties in file order; or
            ``index``, file order.

    Returns:
        Sentence indices, by label, within a label in the order asked for.
    """
    turns = []
    for label in labels:
        of_label = np.flatnonzero(traces.store.labels == label)
        if sort_by == "activation":
            of_label = of_label[np.argsort(-traces.peaks[of_label, 0], kind="stable")]
        turns += [(turn, label, int(sentence)) for turn, sentence in enumerate(of_label)]
    chosen = sorted(turns)[: max_sentences or None]
    return [sentence for _, _, sentence in sorted(chosen, key=lambda one: (one[1], one[0]))]
