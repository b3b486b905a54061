"""Writes the blocks of a feature store, file by file, each of them atomically (NumPy only)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline_common.files import read_json, sha256_of_file, write_json, write_npz
from s1_compute_all_features.pooling import POOLINGS, SparseActivations, pool_dense
from s1_compute_all_features.store_layout import (
    CHECKSUMS,
    DECODER_NORMS,
    HALVED,
    SINKS,
    TOKEN_ARRAYS,
    TokenTable,
    block_folder,
    hidden_file_name,
    pooled_name,
    sae_file_name,
)

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class BlockWriter:
    """Writes one block, file by file, each of them atomically."""

    def __init__(self, store: Path, block: int) -> None:
        self.folder = block_folder(store, block)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Which of the named files are not there yet."""
        return [name for name in names if not (self.folder / name).exists()]

    def remove_damaged(self, digest: str | None) -> list[str]:
        """Delete every file whose checksum is not the recorded one; returns their names.

        Args:
            digest: of the checksums, as the manifest holds it; None where the block was never closed.
                Where the checksums themselves are not what they were, no file can be trusted.
        """
        path = self.folder / CHECKSUMS
        if digest is not None and not (path.is_file() and sha256_of_file(path) == digest):
            names = [file.name for file in self.folder.glob("*.npz")]
            for name in [*names, CHECKSUMS]:
                (self.folder / name).unlink(missing_ok=True)
            return [*names, CHECKSUMS]
        recorded = self._checksums()
        damaged = [
            name
            for name, checksum in recorded.items()
            if not (self.folder / name).is_file() or sha256_of_file(self.folder / name) != checksum
        ]
        for name in damaged:
            (self.folder / name).unlink(missing_ok=True)
            del recorded[name]
        if damaged:
            write_json(self.folder / CHECKSUMS, recorded)
        return damaged

    def _checksums(self) -> dict[str, str]:
        path = self.folder / CHECKSUMS
        recorded: dict[str, str] = read_json(path, "list of checksums") if path.exists() else {}
        return recorded

    @property
    def batches_halved(self) -> bool:
        """Whether memory ran out in the block, in this run or an earlier one."""
        return (self.folder / HALVED).is_file()

    def note_halving(self) -> None:
        """Put down that memory ran out in the block, before anything is written that may differ by it."""
        if not self.batches_halved:
            write_json(self.folder / HALVED, {"batches_halved": True})

    def write_tokens(self, tokens: TokenTable) -> None:
        """Write the block's tokens; sentence_index counts over the whole store."""
        write_npz(self.folder / "tokens.npz", {name: getattr(tokens, name) for name in TOKEN_ARRAYS})

    def write_states(self, layer: int | str, states: np.ndarray, sinks: np.ndarray | None = None) -> None:
        """Write a layer's hidden states or the embeddings: as float16, as float32 where a value overflows.

        Args:
            layer: the layer, or `EMBEDDINGS`.
            states: float [n_tokens, d_model].
            sinks: bool [n_tokens], the layer's sinks; None for a file that does not tell, such as that of
                the embeddings.
        """
        largest = float(np.abs(states).max(initial=0.0))
        dtype = np.float16 if largest <= _FLOAT16_MAX else np.float32
        arrays = {"states": states.astype(dtype), **_sink_array(sinks)}
        write_npz(self.folder / hidden_file_name(layer), arrays)

    def write_pooled_states(
        self,
        layer: int | str,
        states: np.ndarray,
        starts: np.ndarray,
        content: np.ndarray,
        sinks: np.ndarray | None = None,
    ) -> None:
        """Write one vector per sentence under each of `POOLINGS` instead of one per token.

        Args:
            layer: the layer, or `EMBEDDINGS`.
            states: float32 [n_tokens, d_model].
            starts: int64 [n_sentences + 1], token ranges of the block's sentences.
            content: bool [n_tokens], from `is_content`.
            sinks: as in `write_states`; they are left out.
        """
        arrays = {}
        for pooling in POOLINGS:
            pooled = pool_dense(states, starts, content, pooling, sinks)
            overflows = np.abs(pooled).max(initial=0.0) > _FLOAT16_MAX
            arrays[pooled_name(pooling)] = pooled.astype(np.float32 if overflows else np.float16)
        write_npz(self.folder / hidden_file_name(layer), {**arrays, **_sink_array(sinks)})

    def write_activations(
        self,
        name: str,
        activations: SparseActivations,
        sinks: np.ndarray | None = None,
        decoder_norms: np.ndarray | None = None,
    ) -> None:
        """Write an SAE's activations of the block's tokens, those of sinks too.

        Args:
            name: of the SAE.
            activations: [n_tokens, d_sae].
            sinks: bool [n_tokens], of the layer that it reads; None for a file that does not tell.
            decoder_norms: float32 [d_sae], in a store's first block; None elsewhere, and where the SAE has
                none that its activations could be scaled by.
        """
        norms = {} if decoder_norms is None else {DECODER_NORMS: decoder_norms.astype(np.float32)}
        write_npz(
            self.folder / sae_file_name(name),
            {
                "data": activations.data,
                "indices": activations.indices,
                "indptr": activations.indptr,
                "shape": np.array(activations.shape, dtype=np.int64),
                **_sink_array(sinks),
                **norms,
            },
        )

    def close(self, names: Sequence[str]) -> str:
        """Write the checksums of the named files and return the digest of that list."""
        recorded = self._checksums()
        if list(recorded) != list(names):
            write_json(
                self.folder / CHECKSUMS,
                {name: recorded.get(name) or sha256_of_file(self.folder / name) for name in names},
            )
        return sha256_of_file(self.folder / CHECKSUMS)


def _sink_array(sinks: np.ndarray | None) -> dict[str, np.ndarray]:
    """The array that tells a file's sinks: they are few, so their places in the block."""
    return {} if sinks is None else {SINKS: np.flatnonzero(sinks).astype(np.int32)}
