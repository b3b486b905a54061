"""One dataset per strategy, read from a feature store; sae_inputs.py makes that of sae-to-concept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from pipeline_common.errors import UserError
from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import FeatureStore, StoredSae, token_labels
from s4_classifier_data_prep.classifier_dataset import (
    EMBEDDING_INPUTS,
    HIDDEN_INPUTS,
    ClassifierDataset,
    inputs_of,
    token_rows,
)

TARGET_POOLING = "max"
INPUT_POOLING = "mean"

_STRIP_BYTES = 2**24


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
    description = {
        "strategy": "hidden-to-concept",
        "input": {"kind": HIDDEN_INPUTS, "layers": list(layers)},
        "target": {"kind": "label"},
        "unit": "sentence",
        "pooling": pooling,
        "notes": [],
    }
    return assemble(store, store.labels.astype(np.float32), description, normalize)


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
    activations = store.feature_activations(sae, [feature_id])[:, 0]
    # An attention sink reads as 0, so it never is the maximum.
    pooled = np.maximum.reduceat(activations, store.starts[:-1])
    _refuse_silent_feature(store, sae, feature_id, pooled)
    by_token = unit == "token"
    description = {
        "strategy": "embedding-to-feature" if input_layer is None else "hidden-to-feature",
        "input": {"kind": EMBEDDING_INPUTS, "layers": []}
        if input_layer is None
        else {"kind": HIDDEN_INPUTS, "layers": [input_layer]},
        "target": {
            "kind": "activation",
            "sae": sae.name,
            "layer": sae.layer,
            "average_l0": sae.average_l0,
            "feature_id": feature_id,
            "pooling": None if by_token else TARGET_POOLING,
            "fingerprint": sae.fingerprint,
        },
        "unit": unit,
        "pooling": None if by_token else pooling,
        "notes": _encoder_note(sae, input_layer),
    }
    target = activations[token_rows(store, description)] if by_token else pooled
    return assemble(store, target, description, normalize)


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
    n_at_once = max(_STRIP_BYTES // (8 * n_inputs), 1)
    for start in range(0, len(chosen), n_at_once):
        # In strips and in float64: no second copy of the inputs, and the sums keep their digits.
        scaler.partial_fit(inputs[chosen[start : start + n_at_once]].astype(np.float64))
    if method == "standardize":
        return scaler.mean_, scaler.scale_
    return scaler.data_min_, 1 / scaler.scale_


def assemble(
    store: FeatureStore, target: np.ndarray, description: dict[str, Any], normalize: str
) -> ClassifierDataset:
    """A dataset from its target and the description of its inputs, with the store's split, groups and origin.

    Args:
        store: the feature store.
        target: [n_rows]; a row is a token or a sentence, as the description's ``unit`` says.
        description: strategy, input, target, unit, pooling and notes.
        normalize: one of `NORMALIZATIONS`.

    Raises:
        UserError: the store does not hold the inputs, an input or target is NaN or infinite, or all inputs
            are 0 on the train rows.
    """
    inputs = inputs_of(store, description)
    for name, values in (("inputs", inputs), ("target", target)):
        # A sum is finite only where every summand is, and needs no second array of this size.
        if not np.isfinite(np.sum(values, dtype=np.float64)):
            raise UserError(
                f"{store.path}: the {name} hold NaN or infinity; check the store with "
                "extract_sae_features.py --verify, or extract it again with --dtype float32"
            )
    by_token = description["unit"] == "token"
    rows = token_rows(store, description) if by_token else np.arange(len(store.sentences))
    sentence_index = (store.tokens.sentence_index[rows] if by_token else rows).astype(np.int64)
    held_out = store.held_out[sentence_index]
    if not inputs[~held_out].any():
        raise UserError(
            f"{store.path}: all {inputs.shape[1]} inputs are 0 on every train row, so there is nothing to "
            "learn from; choose others"
        )
    shift, scale = fit_normalization(inputs, ~held_out, normalize)
    metadata = {
        **description,
        "layers": description["input"]["layers"],
        "normalization": normalize,
        **_origin(store),
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
        token=token_labels(store.tokens.text)[rows] if by_token else None,
        position=store.tokens.position[rows].astype(np.int64) if by_token else None,
        normalization_shift=shift,
        normalization_scale=scale,
        metadata=metadata,
    )


def _origin(store: FeatureStore) -> dict[str, Any]:
    """Model, store and extraction: what has to be the same where the classifier meets new text."""
    model, settings = store.manifest["model"], store.manifest.get("settings", {})
    return {
        "model": store.model_id,
        "model_revision": model.get("revision", ""),
        "model_details": model,
        "extraction": {
            "hidden_states": store.hidden_states_stored,
            **{key: settings.get(key) for key in ("tokens", "sae_dtype")},
            # New sentences are too few for medians of their own: they are judged by these.
            "sinks": store.manifest["sinks"] if store.leaves_out_sinks else None,
        },
        "store": {"name": store.path.resolve().name, "fingerprint": store.fingerprint},
        "input_file": store.manifest["input"],
    }


def _refuse_silent_feature(store: FeatureStore, sae: StoredSae, feature_id: int, pooled: np.ndarray) -> None:
    fires = pooled > 0
    if not fires[~store.held_out].any():
        where = "only on held-out sentences" if fires.any() else "on no sentence of the store"
        raise UserError(
            f"{store.path}: feature {feature_id} of SAE {sae.name} fires {where}, "
            "so there is nothing to learn; choose a feature from the ranked_features.csv of stage 2"
        )


def _encoder_note(sae: StoredSae, input_layer: int | None) -> list[str]:
    """A note where the inputs are the very states that the SAE's encoder reads."""
    if input_layer is None or input_layer != sae.input_layer:
        return []
    return [
        f"the inputs are the hidden states that SAE {sae.name} reads, so a good fit only recovers its "
        "encoder; take an earlier layer with --input-layer to ask whether the feature is there before"
    ]
