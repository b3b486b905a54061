"""The feature store: one folder per dataset with every token's embedding, hidden states and SAE activations.

Layout, written here and read here (README.md of this stage describes every file):

    manifest.json   sentences.csv   run_log.json
    block_0000/tokens.npz embeddings.npz hidden_layer_00.npz ... sae_NAME.npz ... checksums.json

A file that carries its final name is complete: every write is a temporary sibling that is renamed.
`checksums.json` closes a block, ``"complete": true`` in the manifest closes the store. NumPy only.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import (
    read_csv,
    read_json,
    read_npz,
    sha256_of_file,
    write_csv,
    write_json,
    write_npz,
)
from s1_compute_all_features.pooling import (
    POOLINGS,
    SparseActivations,
    concatenate_rows,
    is_content,
    pool_dense,
    pool_sparse,
)

__all__ = [
    "EMBEDDINGS",
    "FORMAT_VERSION",
    "POOLINGS",
    "BlockWriter",
    "FeatureStore",
    "SparseActivations",
    "StoredSae",
    "TokenTable",
    "is_content",
    "pool_dense",
]

FORMAT = "feature_store"
FORMAT_VERSION = 1
EMBEDDINGS = "embeddings"
HIDDEN_STATES = ("all", "pooled", "none")
MANIFEST = "manifest.json"
SENTENCES = "sentences.csv"
CHECKSUMS = "checksums.json"
SENTENCE_COLUMNS = ("sentence_index", "sentence", "concept_strength_label", "split", "group", "n_tokens")
TOKEN_ARRAYS = ("token_id", "sentence_index", "position", "is_final", "text")

_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class StoredSae:
    """One SAE whose activations a store holds.

    Attributes:
        name: unique in the store, used in file names.
        layer: the layer that its publisher counts it to.
        average_l0: published mean number of active latents per token; None where none is published.
        d_sae: number of features.
        hook: the site that it reads, as TransformerLens names it.
        release: sae-lens release, empty for a local SAE.
        sae_id: its id within the release.
        neuronpedia_id: e.g. ``gemma-2-2b/12-gemmascope-res-16k``; empty where Neuronpedia has no page.
        fingerprint: of the weights that were used: a hub revision or a digest of the local file.
    """

    name: str
    layer: int
    average_l0: int | None
    d_sae: int
    hook: str
    release: str
    sae_id: str
    neuronpedia_id: str
    fingerprint: str

    @property
    def input_layer(self) -> int:
        """The stored hidden layer that it reads; -1 for the input of block 0, which is not stored."""
        return input_layer_of(self.hook)


@dataclass(frozen=True)
class TokenTable:
    """The stored tokens, in sentence order.

    Attributes:
        token_id: int32 [n_tokens].
        sentence_index: int32 [n_tokens].
        position: int32 [n_tokens], 0 for a sentence's first stored token.
        is_final: bool [n_tokens], True for a sentence's last stored token.
        text: str [n_tokens], the token as text, its leading space included.
    """

    token_id: np.ndarray
    sentence_index: np.ndarray
    position: np.ndarray
    is_final: np.ndarray
    text: np.ndarray


def input_layer_of(hook: str) -> int:
    """The block after which a residual-stream hook reads; -1 for the input of block 0.

    >>> input_layer_of("blocks.5.hook_resid_post"), input_layer_of("blocks.5.hook_resid_pre")
    (5, 4)

    Raises:
        ValueError: another kind of hook.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    if match is None:
        raise ValueError(f"hook {hook!r} is not a residual-stream hook; SAEs of other sites cannot be run")
    return int(match[1]) - (match[2] == "pre")


def block_folder(store: Path, block: int) -> Path:
    """Folder of a block, e.g. ``block_0003``."""
    return store / f"block_{block:04d}"


def hidden_file_name(layer: int | str) -> str:
    """File name of a layer's hidden states, or of the embeddings."""
    return f"{EMBEDDINGS}.npz" if layer == EMBEDDINGS else f"hidden_layer_{layer:02d}.npz"


def sae_file_name(name: str) -> str:
    """File name of an SAE's activations."""
    return f"sae_{name}.npz"


def block_file_names(
    layers: Iterable[int], sae_names: Iterable[str], hidden_states: str = "all"
) -> list[str]:
    """Every file of a complete block but its checksums.

    Args:
        layers: whose hidden states are stored.
        sae_names: whose activations are stored.
        hidden_states: one of `HIDDEN_STATES`; ``none`` leaves embeddings and layers out.
    """
    states = [hidden_file_name(EMBEDDINGS), *(hidden_file_name(layer) for layer in layers)]
    if hidden_states == "none":
        states = []
    return ["tokens.npz", *states, *(sae_file_name(name) for name in sae_names)]


class BlockWriter:
    """Writes one block, file by file, each of them atomically."""

    def __init__(self, store: Path, block: int) -> None:
        self.folder = block_folder(store, block)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Which of the named files are not there yet."""
        return [name for name in names if not (self.folder / name).exists()]

    def remove_damaged(self) -> list[str]:
        """Delete every file whose checksum is not the recorded one; returns their names."""
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

    def write_tokens(self, tokens: TokenTable) -> None:
        """Write the block's tokens; sentence_index counts over the whole store."""
        write_npz(self.folder / "tokens.npz", {name: getattr(tokens, name) for name in TOKEN_ARRAYS})

    def write_states(self, layer: int | str, states: np.ndarray) -> None:
        """Write a layer's hidden states (or the embeddings), float [n_tokens, d_model].

        Stored as float16, as float32 where a value would overflow.
        """
        largest = float(np.abs(states).max(initial=0.0))
        dtype = np.float16 if largest <= _FLOAT16_MAX else np.float32
        write_npz(self.folder / hidden_file_name(layer), {"states": states.astype(dtype)})

    def write_pooled_states(
        self, layer: int | str, states: np.ndarray, starts: np.ndarray, content: np.ndarray
    ) -> None:
        """Write one vector per sentence under each of `POOLINGS` instead of one per token.

        Args:
            layer: the layer, or `EMBEDDINGS`.
            states: float32 [n_tokens, d_model].
            starts: int64 [n_sentences + 1], token ranges of the block's sentences.
            content: bool [n_tokens], from `is_content`.
        """
        arrays = {}
        for pooling in POOLINGS:
            pooled = pool_dense(states, starts, content, pooling)
            overflows = np.abs(pooled).max(initial=0.0) > _FLOAT16_MAX
            arrays[_pooled_name(pooling)] = pooled.astype(np.float32 if overflows else np.float16)
        write_npz(self.folder / hidden_file_name(layer), arrays)

    def write_activations(self, name: str, activations: SparseActivations) -> None:
        """Write an SAE's activations of the block's tokens."""
        write_npz(
            self.folder / sae_file_name(name),
            {
                "data": activations.data,
                "indices": activations.indices,
                "indptr": activations.indptr,
                "shape": np.array(activations.shape, dtype=np.int64),
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


def write_sentences(store: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write ``sentences.csv``: `SENTENCE_COLUMNS` first, then further columns, one value a sentence.

    A further column that bears one of the store's own names is kept as ``input_NAME``.
    """
    write_csv(store / SENTENCES, list(columns), zip(*columns.values(), strict=True))


def write_manifest(store: Path, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` with the format's name and version in front."""
    write_json(store / MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, **content})


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a store, complete or not.

    Raises:
        UserError: the folder is not a feature store, or one of another format version.
    """
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; expected a feature store made by extract_sae_features.py")
    if not (store / MANIFEST).is_file():
        raise UserError(
            f"{store}: not a feature store ({MANIFEST} is missing); make one with extract_sae_features.py"
        )
    manifest = read_json(store / MANIFEST, "feature store manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{store / MANIFEST}: not the manifest of a feature store")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{store}: feature store format {manifest.get('format_version')}, this program reads format "
            f"{FORMAT_VERSION}; make the store again with extract_sae_features.py"
        )
    return manifest


class FeatureStore:
    """Reads a complete feature store.

    Attributes:
        path: the folder.
        manifest: the content of ``manifest.json``.
        saes: the SAEs whose activations are stored, in store order.
        layers: the layers whose hidden states are stored, ascending.
        sentences: the texts.
        labels: int64 [n_sentences], 0-3.
        held_out: bool [n_sentences], True for the test split.
        groups: int64 [n_sentences]; sentences of one group are on one side of the split.
        n_tokens: int64 [n_sentences], stored tokens per sentence.
        further_columns: the input's other columns, as text.
    """

    def __init__(self, path: Path) -> None:
        """Open a store.

        Raises:
            UserError: not a feature store, another format version, or unfinished.
        """
        self.path = path
        self.manifest = read_manifest(path)
        if not self.manifest.get("complete"):
            raise UserError(
                f"{path}: the extraction did not finish; run extract_sae_features.py again with --resume"
            )
        try:
            self.saes = [StoredSae(**entry) for entry in self.manifest["saes"]]
            self.layers: list[int] = self.manifest["layers"]
            self._blocks: list[dict[str, int]] = self.manifest["blocks"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path / MANIFEST}: damaged ({error}); make the store again") from None
        self._read_sentences()

    def _read_sentences(self) -> None:
        path = self.path / SENTENCES
        header, rows = read_csv(path, "store's sentence table")
        if tuple(header[: len(SENTENCE_COLUMNS)]) != SENTENCE_COLUMNS:
            raise UserError(
                f"{path}: expected the columns {', '.join(SENTENCE_COLUMNS)} first; make the store again"
            )
        columns = {name: [cells[index] for _, cells in rows] for index, name in enumerate(header)}
        if len(rows) != sum(block["n_sentences"] for block in self._blocks):
            raise UserError(
                f"{path}: {len(rows)} sentences, the manifest counts others; make the store again"
            )
        self.sentences = columns.pop("sentence")
        try:
            columns.pop("sentence_index")
            self.labels = np.array(columns.pop("concept_strength_label"), dtype=np.int64)
            self.groups = np.array(columns.pop("group"), dtype=np.int64)
            self.n_tokens = np.array(columns.pop("n_tokens"), dtype=np.int64)
        except ValueError as error:
            raise UserError(f"{path}: a number was expected ({error}); make the store again") from None
        self.held_out = np.array([split == "test" for split in columns.pop("split")], dtype=bool)
        self.further_columns = columns

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds the checksums of everything in the store."""
        return sha256_of_file(self.path / MANIFEST)

    @property
    def hidden_states_stored(self) -> str:
        """``all``, ``pooled`` (per sentence, every pooling) or ``none``."""
        return str(self.manifest.get("hidden_states", "all"))

    @property
    def model_id(self) -> str:
        """The language model, as the configuration names it."""
        return str(self.manifest["model"]["id"])

    @property
    def demonstration(self) -> bool:
        """Whether the model is the embedded demonstration model, which proves nothing about traits."""
        return bool(self.manifest["model"]["demonstration"])

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [n_sentences + 1]: sentence s is the stored tokens ``starts[s]:starts[s + 1]``."""
        return np.concatenate([[0], np.cumsum(self.n_tokens)]).astype(np.int64)

    @cached_property
    def tokens(self) -> TokenTable:
        """All stored tokens."""
        blocks = [self._read(block, "tokens.npz", TOKEN_ARRAYS) for block in range(len(self._blocks))]
        return TokenTable(*(np.concatenate([block[name] for block in blocks]) for name in TOKEN_ARRAYS))

    @cached_property
    def content(self) -> np.ndarray:
        """Bool [n_tokens]: the token holds a letter or digit."""
        return is_content(self.tokens.text)

    def find_sae(self, layer: int, average_l0: int | None = None) -> StoredSae:
        """The SAE of a layer, by its l0 where the layer has several.

        Raises:
            UserError: none such, or several and no l0 given; the message lists what exists.
        """
        of_layer = [sae for sae in self.saes if sae.layer == layer]
        if not of_layer:
            layers = sorted({sae.layer for sae in self.saes})
            raise UserError(f"{self.path}: no SAE of layer {layer}; layers with SAEs: {_listed(layers)}")
        found = [sae for sae in of_layer if average_l0 is None or sae.average_l0 == average_l0]
        if len(found) == 1:
            return found[0]
        existing = _listed([sae.average_l0 for sae in of_layer])
        if not found:
            raise UserError(
                f"{self.path}: layer {layer} has no SAE with l0 {average_l0}; there are l0 {existing}"
            )
        raise UserError(f"{self.path}: layer {layer} has several SAEs; choose one of l0 {existing}")

    def activations(self, sae: StoredSae) -> SparseActivations:
        """Activations of every stored token: [n_tokens, d_sae]."""
        return concatenate_rows([self._block_activations(block, sae) for block in range(len(self._blocks))])

    def pooled_activations(self, sae: StoredSae, pooling: str = "max") -> SparseActivations:
        """Activations of every sentence: [n_sentences, d_sae]; block by block, so memory stays small."""
        parts = []
        for block, (starts, tokens) in enumerate(self._block_ranges()):
            activations = self._block_activations(block, sae)
            parts.append(pool_sparse(activations, starts - starts[0], self.content[tokens], pooling))
        return concatenate_rows(parts)

    def feature_activations(self, sae: StoredSae, feature_ids: Sequence[int]) -> np.ndarray:
        """Some features on every stored token: float32 [n_tokens, n_features].

        Raises:
            UserError: a feature_id that the SAE does not have.
        """
        for feature_id in feature_ids:
            if not 0 <= feature_id < sae.d_sae:
                raise UserError(
                    f"{self.path}: SAE {sae.name} has the features 0 to {sae.d_sae - 1}, not {feature_id}"
                )
        wanted = np.asarray(feature_ids)
        blocks = range(len(self._blocks))
        return np.concatenate([self._block_activations(block, sae).columns(wanted) for block in blocks])

    def hidden_states(self, layer: int | str) -> np.ndarray:
        """Residual stream after a layer's block, or `EMBEDDINGS`: float32 [n_tokens, d_model].

        Raises:
            UserError: the store does not hold that layer, or not per token.
        """
        if self.hidden_states_stored != "all":
            raise UserError(
                f"{self.path}: made with --hidden-states {self.hidden_states_stored}, so it has no hidden "
                "states per token; extract again with --hidden-states all"
            )
        return np.concatenate([self._block_states(block, layer) for block in range(len(self._blocks))])

    def pooled_hidden_states(self, layer: int | str, pooling: str = "mean") -> np.ndarray:
        """One vector per sentence: float32 [n_sentences, d_model].

        Raises:
            UserError: the store does not hold that layer.
        """
        if self.hidden_states_stored == "pooled":
            self._check_layer(layer)
            name, array = hidden_file_name(layer), _pooled_name(pooling)
            blocks = range(len(self._blocks))
            return np.concatenate([self._read(block, name, (array,))[array] for block in blocks]).astype(
                np.float32
            )
        parts = []
        for block, (starts, tokens) in enumerate(self._block_ranges()):
            states = self._block_states(block, layer)
            parts.append(pool_dense(states, starts - starts[0], self.content[tokens], pooling))
        return np.concatenate(parts)

    def _block_ranges(self) -> list[tuple[np.ndarray, slice]]:
        """Per block: the starts of its sentences (one more than it has), and its slice of the tokens."""
        ranges, first = [], 0
        for block in self._blocks:
            starts = self.starts[first : first + block["n_sentences"] + 1]
            ranges.append((starts, slice(int(starts[0]), int(starts[-1]))))
            first += block["n_sentences"]
        return ranges

    def _block_activations(self, block: int, sae: StoredSae) -> SparseActivations:
        name = sae_file_name(sae.name)
        arrays = self._read(block, name, ("data", "indices", "indptr", "shape"))
        data, indices, indptr = arrays["data"], arrays["indices"], arrays["indptr"]
        expected = (self._blocks[block]["n_tokens"], sae.d_sae)
        sound = (
            tuple(arrays["shape"]) == expected
            and len(indptr) == expected[0] + 1
            and len(data) == len(indices) == indptr[-1]
        )
        if not sound:
            raise UserError(
                f"{block_folder(self.path, block) / name}: does not hold {expected[0]} tokens x "
                f"{expected[1]} "
                "features as the manifest says; make the store again"
            )
        return SparseActivations(data, indices, indptr, expected)

    def _check_layer(self, layer: int | str) -> None:
        if self.hidden_states_stored == "none":
            raise UserError(f"{self.path}: made with --hidden-states none; extract again with all or pooled")
        if layer != EMBEDDINGS and layer not in self.layers:
            raise UserError(
                f"{self.path}: layer {layer} is not stored; there are layers {_listed(self.layers)}"
            )

    def _block_states(self, block: int, layer: int | str) -> np.ndarray:
        self._check_layer(layer)
        name = hidden_file_name(layer)
        states = self._read(block, name, ("states",))["states"]
        expected = (self._blocks[block]["n_tokens"], self.manifest["model"]["d_model"])
        if states.shape != expected:
            raise UserError(
                f"{block_folder(self.path, block) / name}: shape {states.shape}, the manifest says "
                f"{expected}; "
                "make the store again"
            )
        return states.astype(np.float32)

    def _read(self, block: int, name: str, arrays: Sequence[str]) -> dict[str, np.ndarray]:
        return read_npz(block_folder(self.path, block) / name, arrays, "feature store file")


def _pooled_name(pooling: str) -> str:
    return f"pooled_{pooling.replace('-', '_')}"


def sae_as_json(sae: StoredSae) -> dict[str, Any]:
    """A manifest entry; `StoredSae` takes it back by keyword."""
    return asdict(sae)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values) or "none"
