"""Small feature stores with planted features, written through the real writer: no model involved."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s1_compute_all_features.feature_store import (
    EMBEDDINGS,
    BlockWriter,
    SparseActivations,
    StoredSae,
    TokenTable,
    block_file_names,
    sae_as_json,
    write_manifest,
    write_sentences,
)

WORDS = np.array([" the", " cat", " sold", " a", " broken", " watch", " and", " lied", " about", " it"])


def to_sparse(dense: np.ndarray) -> SparseActivations:
    """CSR of a dense [n_tokens, d_sae] array."""
    rows, columns = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(len(dense) + 1)).astype(np.int64)
    return SparseActivations(
        dense[rows, columns].astype(np.float32), columns.astype(np.uint16), indptr, dense.shape
    )


def token_table(n_tokens: np.ndarray, text: np.ndarray) -> TokenTable:
    """The tokens of sentences of so many tokens each, with these texts."""
    starts = np.concatenate([[0], np.cumsum(n_tokens)])
    sentence = np.repeat(np.arange(len(n_tokens)), n_tokens)
    return TokenTable(
        token_id=np.zeros(len(sentence), dtype=np.int32),
        sentence_index=sentence.astype(np.int32),
        position=(np.arange(len(sentence)) - starts[sentence]).astype(np.int32),
        is_final=np.isin(np.arange(len(sentence)), starts[1:] - 1),
        text=text,
    )


def write_tables(
    folder: Path,
    labels: np.ndarray,
    n_tokens: np.ndarray,
    blocks: list[dict[str, object]],
    manifest: Mapping[str, object],
    *,
    input_name: str,
    sentences: Sequence[str],
    held_out: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    further_columns: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """The sentences and the manifest of a complete store.

    Args:
        folder: the store.
        labels: [n_sentences].
        n_tokens: int [n_sentences].
        blocks: the manifest's entries of blocks.
        manifest: ``model``, ``saes``, ``layers`` and whatever a test adds.
        input_name: of the labelled CSV.
        sentences: the texts.
        held_out: every fifth sentence of a label by default.
        groups: every sentence on its own by default.
        further_columns: of the labelled CSV.
    """
    if held_out is None:
        held_out = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            held_out[np.flatnonzero(labels == label)[::5]] = True
    columns = {
        "sentence_index": range(len(labels)),
        "sentence": sentences,
        "concept_strength_label": labels.tolist(),
        "split": ["test" if out else "train" for out in held_out],
        "group": range(len(labels)) if groups is None else groups.tolist(),
        "n_tokens": n_tokens.tolist(),
    }
    write_sentences(folder, {**columns, **(further_columns or {})})
    closing = {"input": {"file": input_name, "sha256": "0" * 64}, "blocks": blocks}
    write_manifest(folder, {"complete": True, **closing, **manifest})
    return folder


def a_model(d_model: int, name: str = "planted") -> dict[str, object]:
    """A manifest's entry of a model that is none."""
    return {"id": name, "revision": "", "d_model": d_model}


def write_synthetic_store(
    folder: Path,
    *,
    n_sentences: int = 80,
    labels: np.ndarray | None = None,
    layers: tuple[int, ...] = (0, 1),
    l0s: tuple[int, ...] = (8, 24),
    d_sae: int = 64,
    d_model: int = 16,
    n_blocks: int = 2,
    planted_feature: int = 3,
    effect: float = 2.0,
    density: float = 0.05,
    seed: int = 0,
    input_name: str = "synthetic.csv",
    tokens_per_sentence: tuple[int, int] = (4, 8),
    words: np.ndarray = WORDS,
    sink_layers: tuple[int, ...] | None = None,
    saes: Sequence[StoredSae] | None = None,
    decoder_norms: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a store in which `planted_feature` of every SAE grows with the label.

    Hidden states carry the label along their first axis, more of it in later layers; everything else
    is noise. The last token of every sentence is a full stop. At ``sink_layers`` the tokens of
    `planted_sinks` have states and activations far above all others; None for a store that tells no sinks.
    ``saes`` stand in place of one for each of ``layers`` and ``l0s``; ``decoder_norms`` are those of some,
    by name.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n_sentences) % 4 if labels is None else labels
    shortest, longest = tokens_per_sentence
    n_tokens = rng.integers(shortest, longest + 1, size=n_sentences)
    sentence_of_token = np.repeat(np.arange(n_sentences), n_tokens)
    starts = np.concatenate([[0], np.cumsum(n_tokens)])
    text = rng.choice(words, size=starts[-1])
    text[starts[1:] - 1] = "."
    tokens = token_table(n_tokens, text)
    tokens.token_id[:] = rng.integers(0, 1000, starts[-1])
    if saes is None:
        saes = [synthetic_sae(layer, l0, d_sae) for layer in layers for l0 in l0s]
    states = {
        layer: rng.normal(size=(starts[-1], d_model)).astype(np.float32) for layer in (EMBEDDINGS, *layers)
    }
    for depth, layer in enumerate(layers, start=1):
        states[layer][:, 0] += depth * 0.5 * labels[sentence_of_token]
    activations = {}
    for sae in saes:
        dense = rng.exponential(size=(starts[-1], sae.d_sae)) * (
            rng.random((starts[-1], sae.d_sae)) < density
        )
        mid = starts[:-1] + n_tokens // 2
        dense[mid, planted_feature] += np.maximum(effect * labels + rng.normal(size=n_sentences), 0)
        activations[sae.name] = dense.astype(np.float32)
    sinks = planted_sinks(n_tokens)
    for layer in sink_layers or ():
        states[layer][sinks] *= SINK_SIZE
        for sae in saes:
            if sae.layer == layer:
                activations[sae.name][sinks] += SINK_SIZE
    told = {layer: sinks & (layer in sink_layers) for layer in layers} if sink_layers is not None else {}

    boundaries = np.linspace(0, n_sentences, n_blocks + 1).astype(int)
    blocks = []
    for block, (first, last) in enumerate(itertools.pairwise(boundaries)):
        rows = slice(starts[first], starts[last])
        writer = BlockWriter(folder, block)
        writer.write_tokens(TokenTable(**{name: value[rows] for name, value in vars(tokens).items()}))
        for layer, values in states.items():
            writer.write_states(layer, values[rows], told[layer][rows] if layer in told else None)
        for sae in saes:
            of_layer = told[sae.layer][rows] if told else None
            norms = (decoder_norms or {}).get(sae.name) if block == 0 else None
            writer.write_activations(sae.name, to_sparse(activations[sae.name][rows]), of_layer, norms)
        digest = writer.close(block_file_names(layers, [sae.name for sae in saes]))
        n_block_tokens = int(starts[last] - starts[first])
        blocks.append({"n_sentences": int(last - first), "n_tokens": n_block_tokens, "sha256": digest})

    return write_tables(
        folder,
        labels,
        n_tokens,
        blocks,
        {
            "model": a_model(d_model, "synthetic"),
            "saes": [sae_as_json(sae) for sae in saes],
            "layers": list(layers),
            **({} if sink_layers is None else _told_sinks(layers, sink_layers, sinks, starts)),
        },
        input_name=input_name,
        sentences=["".join(text[starts[s] : starts[s + 1]]).strip() + f" ({s})" for s in range(n_sentences)],
        further_columns={"source": [f"row {s}" for s in range(n_sentences)]},
    )


SINK_SIZE = 1000.0


def planted_sinks(n_tokens: np.ndarray) -> np.ndarray:
    """Bool [n_tokens]: first token of every 3rd sentence, last of every 4th, last but one of every 5th.

    Sentences have four tokens at least, so that each keeps one.
    """
    starts = np.concatenate([[0], np.cumsum(n_tokens)])
    sinks = np.zeros(starts[-1], dtype=bool)
    sinks[starts[:-1][::3]] = True
    sinks[starts[1:][::4] - 1] = True
    sinks[starts[1:][::5] - 2] = True
    return sinks


def _told_sinks(
    layers: tuple[int, ...], sink_layers: tuple[int, ...], sinks: np.ndarray, starts: np.ndarray
) -> dict[str, object]:
    found = {"n_tokens": int(sinks.sum()), "n_first_tokens": int(sinks[starts[:-1]].sum())}
    return {
        "sinks": {"factor": 10.0, "median_norms": {str(layer): 4.0 for layer in layers}},
        "sinks_found": {str(layer): found for layer in sink_layers},
    }


def synthetic_sae(layer: int, l0: int, d_sae: int) -> StoredSae:
    """An SAE by name alone."""
    return StoredSae(
        name=f"layer_{layer:02d}_l0_{l0}",
        layer=layer,
        average_l0=l0,
        d_sae=d_sae,
        hook=f"blocks.{layer}.hook_resid_post",
        release="",
        sae_id=f"layer_{layer}/width_{d_sae}/average_l0_{l0}",
        neuronpedia_id="",
        fingerprint="synthetic",
    )
