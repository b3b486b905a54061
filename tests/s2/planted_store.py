"""A feature store from pooled activations that a test chooses, written through the real writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s1_compute_all_features.feature_store import (
    EMBEDDINGS,
    BlockWriter,
    StoredSae,
    block_file_names,
    sae_as_json,
)
from tests.synthetic_store import a_model, to_sparse, token_table, write_tables


def write_planted_store(
    folder: Path,
    activations: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    sentences: Sequence[str] | None = None,
    states: Mapping[int, np.ndarray] | None = None,
    neuronpedia_ids: Sequence[str] | None = None,
    manifest: Mapping[str, object] | None = None,
    input_name: str = "planted.csv",
) -> Path:
    """Two tokens a sentence: the first carries the activations, the second is a silent full stop.

    Args:
        folder: where to write.
        activations: per SAE float [n_sentences, d_sae]; under max pooling they come back as they are.
        labels: [n_sentences].
        groups: every sentence on its own by default.
        held_out: every fifth sentence of a label by default.
        sentences: distinct texts by default.
        states: layer to hidden states of the first token, [n_sentences, d_model]; the full stop's are 0.
        neuronpedia_ids: one per SAE, none by default.
        manifest: further entries of the manifest.
        input_name: of the labelled CSV.
    """
    n = len(labels)
    states = states or {}
    layers = sorted(states)
    saes = [
        StoredSae(
            name=f"sae_{k}",
            layer=k,
            average_l0=8,
            d_sae=dense.shape[1],
            hook=f"blocks.{k}.hook_resid_post",
            release="",
            sae_id="",
            neuronpedia_id=neuronpedia_ids[k] if neuronpedia_ids else "",
            fingerprint=f"weights {k}",
        )
        for k, dense in enumerate(activations)
    ]

    def per_token(values: np.ndarray) -> np.ndarray:
        return np.stack([values, np.zeros_like(values)], axis=1).reshape(2 * n, -1).astype(np.float32)

    writer = BlockWriter(folder, 0)
    n_tokens = np.full(n, 2)
    writer.write_tokens(token_table(n_tokens, np.tile([" word", "."], n)))
    for layer, values in {EMBEDDINGS: np.zeros((n, 1)), **states}.items():
        writer.write_states(layer, per_token(values))
    for sae, dense in zip(saes, activations, strict=True):
        writer.write_activations(sae.name, to_sparse(per_token(dense)))
    digest = writer.close(block_file_names(layers, [sae.name for sae in saes]))
    d_model = next(iter(states.values())).shape[1] if states else 1
    return write_tables(
        folder,
        labels,
        n_tokens,
        [{"n_sentences": n, "n_tokens": 2 * n, "sha256": digest}],
        {
            "model": a_model(d_model),
            "saes": [sae_as_json(sae) for sae in saes],
            "layers": layers,
            **(manifest or {}),
        },
        input_name=input_name,
        sentences=sentences or [f"sentence number {s}" for s in range(n)],
        held_out=held_out,
        groups=groups,
    )


def noise(rng: np.random.Generator, n: int, d_sae: int, density: float = 0.1) -> np.ndarray:
    """Activations that know nothing of the labels: float32 [n, d_sae]."""
    return (rng.exponential(size=(n, d_sae)) * (rng.random((n, d_sae)) < density)).astype(np.float32)


def plant(
    rng: np.random.Generator, labels: np.ndarray, effect: float, density: float, spread: float = 1.0
) -> np.ndarray:
    """One feature, float32 [n]: where it fires, 1 + effect x label + noise, and never below 0.05."""
    values = 1 + effect * labels + spread * rng.normal(size=len(labels))
    fires = rng.random(len(labels)) < density
    return (np.maximum(values, 0.05) * fires).astype(np.float32)
