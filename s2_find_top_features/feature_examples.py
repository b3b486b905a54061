"""Top sentences per label for each ranked feature, with the token that carries the peak marked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from s1_compute_all_features.feature_store import NEURONPEDIA_SCALE, FeatureStore, token_labels
from s2_find_top_features.ranked_features import RankedFeature


def collect_examples(
    store: FeatureStore, features: Sequence[RankedFeature], per_label: int
) -> list[dict[str, Any]]:
    """Examples of every feature, in ranking order.

    Args:
        store: the feature store.
        features: the ranked features.
        per_label: sentences per label; only sentences on which the feature is active are examples.

    Returns:
        Per feature its identity and, under ``examples``, label to a list of sentences by descending
        maximum activation (ties: file order): sentence_index, split, sentence, max_activation, position
        of the peak, ``token`` as `token_labels` names it, and ``marked``: the tokens in order with the peak
        in ``>>`` and ``<<``. A token that the store leaves out as an attention sink reads as 0 and never is
        the peak. Where the norms of the SAE's decoder rows are not 1, activations are in Neuronpedia's
        scale, which ``activation_scale`` and ``decoder_norm`` say.
    """
    saes = {sae.name: sae for sae in store.saes}
    collected: dict[int, dict[str, Any]] = {}
    for name in dict.fromkeys(feature.sae_name for feature in features):
        of_sae = [feature for feature in features if feature.sae_name == name]
        columns = store.feature_activations(saes[name], [feature.feature_id for feature in of_sae])
        scale = store.neuronpedia_scale(saes[name])
        for feature, activations in zip(of_sae, columns.T, strict=True):
            norm = 1.0 if scale is None else float(scale[feature.feature_id])
            said = {"activation_scale": NEURONPEDIA_SCALE, "decoder_norm": norm}
            collected[feature.rank] = {
                "rank": feature.rank,
                "key": feature.key,
                "sae_name": name,
                "layer": feature.layer,
                "average_l0": feature.average_l0,
                "feature_id": feature.feature_id,
                "neuronpedia_url": feature.neuronpedia_url,
                **({} if scale is None or (scale == 1).all() else said),
                "examples": _examples_by_label(store, activations * np.float32(norm), per_label),
            }
    return [collected[feature.rank] for feature in features]


def _examples_by_label(
    store: FeatureStore, activations: np.ndarray, per_label: int
) -> dict[str, list[dict[str, Any]]]:
    peaks = np.maximum.reduceat(activations, store.starts[:-1])
    by_label = {}
    for label in np.unique(store.labels)[::-1]:
        active = np.flatnonzero((store.labels == label) & (peaks > 0))
        top = active[np.argsort(-peaks[active], kind="stable")][:per_label]
        by_label[str(label)] = [_example(store, activations, int(sentence)) for sentence in top]
    return by_label


def _example(store: FeatureStore, activations: np.ndarray, sentence: int) -> dict[str, Any]:
    tokens = slice(int(store.starts[sentence]), int(store.starts[sentence + 1]))
    texts = [str(text) for text in store.tokens.text[tokens]]
    position = int(np.argmax(activations[tokens]))
    marked = [*texts]
    # A piece of a character shows nothing itself: the character that it belongs to is marked.
    shown = next((place for place in range(position, len(texts)) if texts[place]), position)
    space = texts[shown][: len(texts[shown]) - len(texts[shown].lstrip())]
    marked[shown] = f"{space}>>{texts[shown].lstrip()}<<"
    return {
        "sentence_index": sentence,
        "split": "test" if store.held_out[sentence] else "train",
        "sentence": store.sentences[sentence],
        "max_activation": float(activations[tokens][position]),
        "position": position,
        "token": str(token_labels(store.tokens.text[tokens])[position]),
        "marked": "".join(marked).strip(),
    }
