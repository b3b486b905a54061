"""A feature store whose sentence vectors a test chooses, layer by layer, written through the real writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s1_compute_all_features.feature_store import EMBEDDINGS, BlockWriter, block_file_names, is_content
from tests.synthetic_store import a_model, token_table, write_tables


def write_layer_store(
    folder: Path,
    labels: np.ndarray,
    states: Mapping[int | str, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    sentences: Sequence[str] | None = None,
    hidden_states: str = "all",
    tokens: str = "all",
    model: str = "planted",
    input_name: str = "planted.csv",
) -> Path:
    """Two to four equal tokens a sentence, so that every pooling gives the vectors that were put in.

    Args:
        folder: where to write.
        labels: [n_sentences].
        states: layer or `EMBEDDINGS` to [n_sentences, d_model]; the embeddings are 0 where not given.
        groups: every sentence on its own by default.
        held_out: every fifth sentence of a label by default.
        sentences: of random letters by default, others in a folder of another name.
        hidden_states: ``all``, ``pooled`` or ``none``.
        tokens: ``all``, or ``final`` as the extraction's setting is called.
        model: its id.
        input_name: of the labelled CSV.
    """
    n = len(labels)
    layers = sorted(layer for layer in states if isinstance(layer, int))
    d_model = next(iter(states.values())).shape[1]
    states = {EMBEDDINGS: np.zeros((n, d_model)), **states}
    n_tokens = np.ones(n, dtype=np.int64) if tokens == "final" else 2 + np.arange(n) % 3
    starts = np.concatenate([[0], np.cumsum(n_tokens)])
    sentence = np.repeat(np.arange(n), n_tokens)
    text = np.array([" word"] * len(sentence))
    writer = BlockWriter(folder, 0)
    writer.write_tokens(token_table(n_tokens, text))
    for layer, values in states.items() if hidden_states != "none" else ():
        of_tokens = values[sentence].astype(np.float32)
        if hidden_states == "pooled":
            writer.write_pooled_states(layer, of_tokens, starts, is_content(text))
        else:
            writer.write_states(layer, of_tokens)
    digest = writer.close(block_file_names(layers, [], hidden_states))
    return write_tables(
        folder,
        labels,
        n_tokens,
        [{"n_sentences": n, "n_tokens": len(sentence), "sha256": digest}],
        {
            "model": a_model(d_model, model),
            "saes": [],
            "layers": layers,
            "hidden_states": hidden_states,
            "settings": {"tokens": tokens},
        },
        input_name=input_name,
        sentences=sentences or random_sentences(n, folder.name),
        held_out=held_out,
        groups=groups,
    )


def random_sentences(n: int, seed: str) -> list[str]:
    """Three words of random letters each: texts that resemble no other."""
    rng = np.random.default_rng(list(seed.encode()))
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=(n, 3, 8))
    return [" ".join("".join(word) for word in words) for words in letters]
