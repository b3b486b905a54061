"""One dataset per strategy, read from a feature store."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from pipeline_common.errors import UserError
from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore, StoredSae
from s4_classifier_data_prep.classifier_dataset import ClassifierDataset

TARGET_POOLING = "max"
INPUT_POOLING = "mean"

_ROWS_AT_ONCE = 1024


def hidden_to_concept(
    store: FeatureStore, layers: Sequence[int], pooling: str, normalize: str
) -> ClassifierDataset:
    """Hidden states of one or several layers against the sentence's label; a row is a sentence.

    Args:
        store: the feature store.
        layers: whose pooled hidden states are put side by side, in this order.
        pooling: how a sentence's tokens become one vector.
        normalize: one of `NORMALIZATIONS`.

    Raises:
        UserError: the store does not hold a layer.
    """
    d_model = store.manifest["model"]["d_model"]
    inputs = np.empty((len(store.sentences), d_model * len(layers)), dtype=np.float32)
    for place, layer in enumerate(layers):
        inputs[:, place * d_model : (place + 1) * d_model] = store.pooled_hidden_states(layer, pooling)
    description = {
        "strategy": "hidden-to-concept",
        "input": {"kind": "hidden states", "layers": list(layers)},
        "target": {"kind": "label"},
        "unit": "sentence",
        "pooling": pooling,
        "notes": [],
    }
    return _assemble(store, inputs, store.labels.astype(np.float32), description, normalize)


def states_to_feature(
    store: FeatureStore,
    input_layer: int | None,
    sae: StoredSae,
    feature_id: int,
    unit: str,
    pooling: str,
    normalize: str,
) -> ClassifierDataset:
    """Embeddings or one layer's hidden states against the activation of one SAE feature.

    Args:
        store: the feature store.
        input_layer: whose hidden states are the input; None for the embeddings.
        sae: whose feature is predicted.
        feature_id: the feature.
        unit: ``token`` for a row per token, ``sentence`` for a row per sentence.
        pooling: of the inputs where a row is a sentence; the activation is pooled by maximum.
        normalize: one of `NORMALIZATIONS`.

    Raises:
        UserError: the layer or feature is not in the store, or the feature never fires on the train
            sentences, so that there is nothing to learn.
    """
    target = store.feature_activations(sae, [feature_id])[:, 0]
    if unit == "sentence":
        target = np.maximum.reduceat(target, store.starts[:-1])
    _refuse_silent_feature(store, sae, feature_id, target, unit)
    source: int | str = EMBEDDINGS if input_layer is None else input_layer
    by_token = unit == "token"
    inputs = store.hidden_states(source) if by_token else store.pooled_hidden_states(source, pooling)
    description = {
        "strategy": "embedding-to-feature" if input_layer is None else "hidden-to-feature",
        "input": {"kind": "embeddings", "layers": []}
        if input_layer is None
        else {"kind": "hidden states", "layers": [input_layer]},
        "target": {
            "kind": "activation",
            "sae": sae.name,
            "layer": sae.layer,
            "average_l0": sae.average_l0,
            "feature_id": feature_id,
            "pooling": None if by_token else TARGET_POOLING,
        },
        "unit": unit,
        "pooling": None if by_token else pooling,
        "notes": _encoder_note(sae, input_layer),
    }
    return _assemble(store, inputs, target, description, normalize)


def fit_normalization(inputs: np.ndarray, rows: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale of each input, from some rows only; normalised is ``(inputs - shift) / scale``.

    Args:
        inputs: float32 [n_rows, n_inputs].
        rows: bool [n_rows], the rows to learn from.
        method: ``standardize`` (mean 0, standard deviation 1), ``minmax`` (0 to 1) or ``none``.

    Returns:
        shift and scale, float64 [n_inputs] each. An input that does not vary has scale 1.
    """
    n_inputs = inputs.shape[1]
    if method == "none":
        return np.zeros(n_inputs), np.ones(n_inputs)
    scaler = StandardScaler() if method == "standardize" else MinMaxScaler()
    chosen = np.flatnonzero(rows)
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        # In strips and in float64: no second copy of the inputs, and the sums keep their digits.
        scaler.partial_fit(inputs[chosen[start : start + _ROWS_AT_ONCE]].astype(np.float64))
    if method == "standardize":
        return scaler.mean_, scaler.scale_
    return scaler.data_min_, 1 / scaler.scale_


def _assemble(
    store: FeatureStore, inputs: np.ndarray, target: np.ndarray, description: dict[str, Any], normalize: str
) -> ClassifierDataset:
    by_token = description["unit"] == "token"
    sentence_index = store.tokens.sentence_index if by_token else np.arange(len(store.sentences))
    sentence_index = sentence_index.astype(np.int64)
    held_out = store.held_out[sentence_index]
    shift, scale = fit_normalization(inputs, ~held_out, normalize)
    metadata = {
        **description,
        "normalization": normalize,
        "model": store.model_id,
        "demonstration": store.demonstration,
        "store": {"name": store.path.resolve().name, "fingerprint": store.fingerprint},
        "input_file": store.manifest["input"],
        "n_train_rows": int((~held_out).sum()),
        "n_test_rows": int(held_out.sum()),
        "library_versions": library_versions(["numpy", "scikit-learn"]),
    }
    return ClassifierDataset(
        X=inputs,
        y=target.astype(np.float32),
        held_out=held_out,
        sentence_index=sentence_index,
        group=store.groups[sentence_index],
        n_tokens=store.n_tokens[sentence_index],
        label=store.labels[sentence_index],
        sentence=np.array(store.sentences),
        token=store.tokens.text if by_token else None,
        position=store.tokens.position.astype(np.int64) if by_token else None,
        normalization_shift=shift,
        normalization_scale=scale,
        metadata=metadata,
    )


def _refuse_silent_feature(
    store: FeatureStore, sae: StoredSae, feature_id: int, target: np.ndarray, unit: str
) -> None:
    train = ~store.held_out
    fires = target > 0
    if unit == "token":
        train = train[store.tokens.sentence_index]
    if not fires[train].any():
        where = "only on held-out sentences" if fires.any() else "on no sentence of the store"
        raise UserError(
            f"{store.path}: feature {feature_id} of SAE {sae.name} fires {where}, "
            "so there is nothing to learn; choose a feature from the ranked_features.csv of stage 2"
        )


def _encoder_note(sae: StoredSae, input_layer: int | None) -> list[str]:
    """A note where the inputs are the very states that the SAE's encoder reads."""
    site = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", sae.hook)
    if site is None or input_layer is None:
        return []
    encoder_layer = int(site[1]) - (site[2] == "pre")
    if input_layer != encoder_layer:
        return []
    return [
        f"the inputs are the hidden states that SAE {sae.name} reads, so a good fit only recovers its "
        "encoder; take an earlier layer with --input-layer to ask whether the feature is there before"
    ]
