"""The dataset of sae-to-concept: activations of SAE features against the label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import sha256_of_file
from s1_compute_all_features.feature_store import FeatureStore, StoredSae
from s2_find_top_features.ranked_features import RankedFeature, read_ranked_features
from s4_classifier_data_prep.classifier_dataset import SAE_ACTIVATIONS, ClassifierDataset
from s4_classifier_data_prep.load_sentence_data import assemble

ACTIVATION_POOLING = "max"


def ranked_to_concept(
    store: FeatureStore, ranked_csv: Path, top_k: int | None, pooling: str, normalize: str
) -> ClassifierDataset:
    """The best features of a ranking against the sentence's label; a row is a sentence.

    Args:
        store: the feature store.
        ranked_csv: ``ranked_features.csv`` or ``falling_features.csv`` of stage 2.
        top_k: how many of its features, best first; None for all of them.
        pooling: how a sentence's tokens become one activation.
        normalize: one of `NORMALIZATIONS`.

    Raises:
        UserError: the ranking is too short or names what the store does not hold, or none of the features
            fires on a train sentence.
    """
    ranked = read_ranked_features(ranked_csv)
    if not ranked or len(ranked) < (top_k or 1):
        raise UserError(
            f"{ranked_csv}: ranks {len(ranked)} features, --top-k asks for {top_k or 'at least 1'}; "
            "lower it, or rank more with analyze_features.py --top-n"
        )
    chosen = ranked[:top_k]
    features = {
        sae: sorted({feature.feature_id for feature in chosen if feature.sae_name == sae.name})
        for sae in _saes_of(store, ranked_csv, chosen)
    }
    source = {
        "file": ranked_csv.name,
        "sha256": sha256_of_file(ranked_csv),
        "n_ranked": len(ranked),
        "top_k": len(chosen),
    }
    notes = [
        "the features are the best of a ranking that has seen the labels of every train sentence, so "
        "cv_mean is optimistic even where a fold chooses among them again; the test score is not"
    ]
    return _dataset(store, features, source, notes, pooling, normalize)


def saes_to_concept(
    store: FeatureStore, saes: Sequence[StoredSae], pooling: str, normalize: str
) -> ClassifierDataset:
    """Every feature of one or several SAEs against the sentence's label; a row is a sentence.

    No label has a part in which features are there, so that a choice inside each fold is unbiased.

    Args:
        store: the feature store.
        saes: whose features are taken.
        pooling: how a sentence's tokens become one activation.
        normalize: one of `NORMALIZATIONS`.

    Raises:
        UserError: none of the features fires on a train sentence.
    """
    return _dataset(store, dict.fromkeys(saes), None, [], pooling, normalize)


def _saes_of(store: FeatureStore, path: Path, features: Sequence[RankedFeature]) -> list[StoredSae]:
    """The SAEs that the features belong to, in store order."""
    stored = {sae.name: sae for sae in store.saes}
    for feature in features:
        sae = stored.get(feature.sae_name)
        if sae is None or not 0 <= feature.feature_id < sae.d_sae:
            raise UserError(
                f"{path}: rank {feature.rank}: {store.path} has no feature {feature.feature_id} of SAE "
                f"{feature.sae_name}; give the ranking of a store with the same SAEs"
            )
    wanted = {feature.sae_name for feature in features}
    return [sae for sae in store.saes if sae.name in wanted]


def _dataset(
    store: FeatureStore,
    features: Mapping[StoredSae, list[int] | None],
    source: dict[str, Any] | None,
    notes: list[str],
    pooling: str,
    normalize: str,
) -> ClassifierDataset:
    """The dataset of some features of each SAE, or of all of them where there is no list."""
    description = {
        "strategy": "sae-to-concept",
        "input": {
            "kind": SAE_ACTIVATIONS,
            "layers": sorted({sae.layer for sae in features}),
            "saes": [
                {
                    "name": sae.name,
                    "layer": sae.layer,
                    "average_l0": sae.average_l0,
                    "d_sae": sae.d_sae,
                    "fingerprint": sae.fingerprint,
                    "feature_ids": ids,
                }
                for sae, ids in features.items()
            ],
            "ranking": source,
        },
        "target": {"kind": "label"},
        "unit": "sentence",
        "pooling": pooling,
        "notes": notes,
    }
    return assemble(store, store.labels.astype(np.float32), description, normalize)
