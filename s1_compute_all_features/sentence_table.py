"""The sentences of a feature store, read and held against its manifest (NumPy only).

Part of feature_store.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv, sha256_of_file
from s1_compute_all_features.store_checks import integers
from s1_compute_all_features.store_layout import SENTENCE_COLUMNS, SENTENCES


@dataclass(frozen=True)
class SentenceTable:
    """The content of ``sentences.csv``.

    Attributes:
        sentences: the texts.
        labels: int64 [n_sentences], 0-3; None in a store without labels.
        held_out: bool [n_sentences], True for the test split.
        groups: int64 [n_sentences].
        n_tokens: int64 [n_sentences], stored tokens per sentence.
        further_columns: the input's other columns, as text.
    """

    sentences: list[str]
    labels: np.ndarray | None
    held_out: np.ndarray
    groups: np.ndarray
    n_tokens: np.ndarray
    further_columns: dict[str, list[str]]


def read_sentence_table(store: Path, manifest: Mapping[str, Any]) -> SentenceTable:
    """The sentences of a complete store.

    Args:
        store: the folder.
        manifest: of the store.

    Raises:
        UserError: missing or damaged, or not as many sentences and tokens as the manifest counts.
    """
    path = store / SENTENCES
    header, rows = read_csv(path, "store's sentence table")
    expected = manifest.get("sentences_sha256")
    if expected is not None and sha256_of_file(path) != expected:
        raise UserError(
            f"{path}: damaged or changed since the store was finished; extract_sae_features.py --verify "
            "mends it"
        )
    if tuple(header[: len(SENTENCE_COLUMNS)]) != SENTENCE_COLUMNS:
        raise UserError(
            f"{path}: expected the columns {', '.join(SENTENCE_COLUMNS)} first; make the store again"
        )
    columns = {name: [cells[index] for _, cells in rows] for index, name in enumerate(header)}
    columns.pop("sentence_index")
    sentences = columns.pop("sentence")
    labels = columns.pop("concept_strength_label")
    groups = integers(path, "group", columns.pop("group"), 0)
    n_tokens = integers(path, "n_tokens", columns.pop("n_tokens"), 1)
    splits = columns.pop("split")
    if odd := set(splits) - {"train", "test"}:
        raise UserError(
            f"{path}: column split holds {min(odd)!r}, neither train nor test; make the store again"
        )
    ends = np.cumsum([block["n_sentences"] for block in manifest["blocks"]])
    counted = np.cumsum([block["n_tokens"] for block in manifest["blocks"]])
    if not rows or len(rows) != sum(block["n_sentences"] for block in manifest["blocks"]):
        raise UserError(f"{path}: {len(rows)} sentences, the manifest counts others; make the store again")
    if not np.array_equal(np.cumsum(n_tokens)[ends - 1], counted):
        raise UserError(f"{path}: n_tokens does not add up to what the manifest counts; make the store again")
    return SentenceTable(
        sentences,
        integers(path, "concept_strength_label", labels, 0, 3) if any(labels) else None,
        np.array([split == "test" for split in splits], dtype=bool),
        groups,
        n_tokens,
        columns,
    )
