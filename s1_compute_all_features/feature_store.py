"""The feature store: one folder per dataset with every token's embedding, hidden states and SAE activations.

Layout, written here and read here (README.md of this stage describes every file):

    manifest.json   sentences.csv   run_log.json
    block_0000/tokens.npz embeddings.npz hidden_layer_00.npz ... sae_NAME.npz ... checksums.json

A file that carries its final name is complete: every write is a temporary sibling that is renamed.
`checksums.json` closes a block, ``"complete": true`` in the manifest closes the store. NumPy only.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz, sha256_of_file
from s1_compute_all_features.activation_scale import NEURONPEDIA_SCALE, read_decoder_norms, scale_of
from s1_compute_all_features.attention_sinks import SINKS_SHAPE
from s1_compute_all_features.block_writer import BlockWriter
from s1_compute_all_features.feature_keys import FeatureKey, feature_key, find_sae, key_form, needs_name
from s1_compute_all_features.pooling import (
    POOLINGS,
    SparseActivations,
    concatenate_rows,
    pool_dense,
    pool_sparse,
)
from s1_compute_all_features.sentence_table import read_sentence_table
from s1_compute_all_features.several_stores import distinct_names
from s1_compute_all_features.store_checks import (
    check_activations,
    check_sinks,
    check_states,
    check_tokens,
)
from s1_compute_all_features.store_layout import (
    EMBEDDINGS,
    HIDDEN_STATES,
    MANIFEST,
    NEURONPEDIA_ID,
    SENTENCE_COLUMNS,
    SENTENCES,
    SINKS,
    TOKEN_ARRAYS,
    StoredSae,
    TokenTable,
    block_file_names,
    block_folder,
    hidden_file_name,
    model_name,
    pooled_name,
    read_manifest,
    sae_as_json,
    sae_file_name,
    sink_files,
    write_manifest,
    write_sentences,
)
from s1_compute_all_features.token_texts import is_content, token_labels

__all__ = [
    "EMBEDDINGS",
    "HIDDEN_STATES",
    "MANIFEST",
    "NEURONPEDIA_ID",
    "NEURONPEDIA_SCALE",
    "POOLINGS",
    "SENTENCES",
    "SENTENCE_COLUMNS",
    "SINKS_SHAPE",
    "BlockWriter",
    "FeatureKey",
    "FeatureStore",
    "SparseActivations",
    "StoredSae",
    "TokenTable",
    "block_file_names",
    "distinct_names",
    "feature_key",
    "hidden_file_name",
    "is_content",
    "key_form",
    "model_name",
    "read_manifest",
    "sae_as_json",
    "sae_file_name",
    "sink_files",
    "token_labels",
    "write_manifest",
    "write_sentences",
]


class FeatureStore:
    """Reads a complete feature store.

    Attention sinks are left out unless they are asked for: of every pooling, and of the activations of
    tokens, where they read as 0. The hidden states of tokens are those of all tokens; `sinks` tells which
    of them to leave out.

    Attributes:
        path: the folder.
        keep_sinks: attention sinks are read as any other token.
        manifest: the content of ``manifest.json``.
        saes: the SAEs whose activations are stored, in store order.
        layers: the layers whose hidden states are stored, ascending.
        sentences: the texts.
        held_out: bool [n_sentences], True for the test split.
        groups: int64 [n_sentences]; sentences of one group are on one side of the split.
        n_tokens: int64 [n_sentences], stored tokens per sentence.
        further_columns: the input's other columns, as text.
    """

    def __init__(self, path: Path, keep_sinks: bool = False) -> None:
        """Open a store.

        Args:
            path: the folder.
            keep_sinks: read attention sinks as any other token.

        Raises:
            UserError: not a feature store, another format version, or unfinished; or sinks are to be kept of
                a store whose pooled hidden states leave them out.
        """
        self.path, self.keep_sinks = path, keep_sinks
        self.manifest = read_manifest(path)
        if keep_sinks and self.tells_sinks and self.hidden_states_stored == "pooled":
            raise UserError(
                f"{path}: its pooled hidden states leave attention sinks out for good; read it without "
                "--keep-sinks, or extract it again with --keep-sinks"
            )
        if not self.manifest.get("complete"):
            raise UserError(
                f"{path}: the extraction did not finish; run extract_sae_features.py again with --resume"
            )
        try:
            self.saes = [StoredSae(**entry) for entry in self.manifest["saes"]]
            self.layers: list[int] = self.manifest["layers"]
            self._blocks: list[dict[str, int]] = self.manifest["blocks"]
        except TypeError as error:
            raise UserError(f"{path / MANIFEST}: damaged ({error}); make the store again") from None
        table = read_sentence_table(path, self.manifest)
        self.sentences, self._labels, self.held_out = table.sentences, table.labels, table.held_out
        self.groups, self.n_tokens, self.further_columns = table.groups, table.n_tokens, table.further_columns

    @cached_property
    def labels(self) -> np.ndarray:
        """Int64 [n_sentences], 0-3.

        Raises:
            UserError: the store was made without labels.
        """
        if self._labels is None:
            raise UserError(
                f"{self.path}: made with --unlabelled, so it has no labels; extract a labelled CSV without it"
            )
        return self._labels

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds the checksums of everything in the store."""
        return sha256_of_file(self.path / MANIFEST)

    @property
    def hidden_states_stored(self) -> str:
        """``all``, ``pooled`` (per sentence, every pooling) or ``none``."""
        return str(self.manifest.get("hidden_states", "all"))

    @property
    def tells_sinks(self) -> bool:
        """Whether the extraction looked for attention sinks; format 1 did not."""
        return self.manifest.get("sinks") is not None

    @property
    def leaves_out_sinks(self) -> bool:
        """Whether attention sinks are left out of what is read here."""
        return self.tells_sinks and not self.keep_sinks

    @property
    def trait(self) -> str:
        """The labelled CSV's name without its ending, which names the trait."""
        return Path(self.manifest["input"]["file"]).stem

    @property
    def model_id(self) -> str:
        """The language model, as the configuration names it."""
        return str(self.manifest["model"]["id"])

    @property
    def model_name(self) -> str:
        """The language model for people: its id, or the name of its folder."""
        return model_name(self.manifest["model"])

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [n_sentences + 1]: sentence s is the stored tokens ``starts[s]:starts[s + 1]``."""
        return np.concatenate([[0], np.cumsum(self.n_tokens)]).astype(np.int64)

    @cached_property
    def tokens(self) -> TokenTable:
        """All stored tokens."""
        blocks = list(self._token_blocks())
        return TokenTable(*(np.concatenate([block[name] for block in blocks]) for name in TOKEN_ARRAYS))

    @cached_property
    def content(self) -> np.ndarray:
        """Bool [n_tokens]: the token holds a letter or digit. The texts are in memory block by block."""
        return np.concatenate([is_content(block["text"]) for block in self._token_blocks()])

    def _token_blocks(self) -> Iterator[dict[str, np.ndarray]]:
        for block, (_, tokens) in enumerate(self._block_ranges):
            arrays = self._read(block, "tokens.npz", TOKEN_ARRAYS)
            sentences = np.searchsorted(self.starts, np.arange(tokens.start, tokens.stop), side="right") - 1
            check_tokens(block_folder(self.path, block) / "tokens.npz", arrays, sentences)
            yield arrays

    def find_sae(
        self, layer: int | None = None, average_l0: int | None = None, name: str | None = None
    ) -> StoredSae:
        """The SAE of a layer, by its l0 where the layer has several; or the SAE of that name.

        Raises:
            UserError: none such, or several; the message lists what exists and how to take one.
        """
        return find_sae(self.path, self.saes, layer, average_l0, name)

    def needs_name(self, sae: StoredSae) -> bool:
        """Whether the keys of an SAE's features name it, because layer and l0 take no single SAE."""
        return needs_name(self.saes, sae)

    def sinks(self, layer: int | str) -> np.ndarray:
        """Which tokens are left out as attention sinks: bool [n_tokens].

        Args:
            layer: a stored one, or an SAE's ``sink_layer``; `EMBEDDINGS` have no sinks.

        Raises:
            UserError: the store does not tell of that layer.
        """
        sinks = np.zeros(int(self.starts[-1]), dtype=bool)
        if layer == EMBEDDINGS or not self.leaves_out_sinks:
            return sinks
        saes = [(sae.name, sae.sink_layer) for sae in self.saes]
        files = sink_files(self.layers, saes, self.hidden_states_stored)
        if layer not in files:
            raise UserError(f"{self.path}: tells no sinks of layer {layer}; there are {_listed([*files])}")
        for block, (_, tokens) in enumerate(self._block_ranges):
            of_block = self._block_sinks(block, files[int(layer)])
            assert of_block is not None
            sinks[tokens] = of_block
        return sinks

    def activations(self, sae: StoredSae) -> SparseActivations:
        """Activations of every stored token: [n_tokens, d_sae]; nothing where one is left out as a sink."""
        return concatenate_rows([self._heard(block, sae) for block in range(len(self._blocks))])

    def _heard(self, block: int, sae: StoredSae) -> SparseActivations:
        activations, sinks = self._block_activations(block, sae)
        return activations if sinks is None else activations.silenced(sinks)

    def pooled_activations(self, sae: StoredSae, pooling: str = "max") -> SparseActivations:
        """Activations of every sentence: [n_sentences, d_sae]."""
        return concatenate_rows(list(self.pooled_blocks(sae, pooling)))

    def pooled_blocks(self, sae: StoredSae, pooling: str = "max") -> Iterator[SparseActivations]:
        """Activations of the sentences of one block after the other: [n_sentences of it, d_sae].

        For those who keep only some of it: one block is in memory, whatever the store holds.
        """
        for block, (starts, tokens) in enumerate(self._block_ranges):
            activations, sinks = self._block_activations(block, sae)
            yield pool_sparse(activations, starts - starts[0], self.content[tokens], pooling, sinks)

    def feature_activations(self, sae: StoredSae, feature_ids: Sequence[int]) -> np.ndarray:
        """Some features on every stored token, 0 where it is left out: float32 [n_tokens, n_features].

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
        return np.concatenate([self._heard(block, sae).columns(wanted) for block in blocks])

    def decoder_norms(self, sae: StoredSae) -> np.ndarray | None:
        """Norms of an SAE's decoder rows: float32 [d_sae].

        Returns:
            None where they are not known, as in stores of format 1 and 2, and for an SAE whose rows cannot be
            scaled to norm 1 without changing which features are active.
        """
        return read_decoder_norms(self.path, sae.name, sae.d_sae)

    def neuronpedia_scale(self, sae: StoredSae) -> np.ndarray | None:
        """What takes activations of an SAE to Neuronpedia's scale: float32 [d_sae], all 1 where it is theirs.

        None where it is not known; activations are then shown as they are stored.
        """
        return scale_of(self.decoder_norms(sae))

    def hidden_states(self, layer: int | str) -> np.ndarray:
        """Residual stream after a layer's block, or `EMBEDDINGS`, sinks too: float32 [n_tokens, d_model].

        Raises:
            UserError: the store does not hold that layer, or not per token.
        """
        if self.hidden_states_stored != "all":
            raise UserError(
                f"{self.path}: made with --hidden-states {self.hidden_states_stored}, so it has no hidden "
                "states per token; extract again with --hidden-states all"
            )
        self._check_layer(layer)
        states = np.empty((int(self.starts[-1]), self.manifest["model"]["d_model"]), dtype=np.float32)
        for block, (_, tokens) in enumerate(self._block_ranges):
            states[tokens] = self._block_states(block, layer)[0]
        return states

    def pooled_hidden_states(self, layer: int | str, pooling: str = "mean") -> np.ndarray:
        """One vector per sentence: float32 [n_sentences, d_model].

        Raises:
            UserError: the store does not hold that layer.
        """
        if self.hidden_states_stored == "pooled":
            self._check_layer(layer)
            name, array = hidden_file_name(layer), pooled_name(pooling)
            pooled = []
            for block, counts in enumerate(self._blocks):
                states = self._read(block, name, (array,))[array]
                shape = (counts["n_sentences"], self.manifest["model"]["d_model"])
                check_states(block_folder(self.path, block) / name, states, shape)
                pooled.append(states)
            return np.concatenate(pooled).astype(np.float32)
        parts = []
        for block, (starts, tokens) in enumerate(self._block_ranges):
            states, sinks = self._block_states(block, layer)
            parts.append(pool_dense(states, starts - starts[0], self.content[tokens], pooling, sinks))
        return np.concatenate(parts)

    @cached_property
    def _block_ranges(self) -> list[tuple[np.ndarray, slice]]:
        """Per block: the starts of its sentences (one more than it has), and its slice of the tokens."""
        ranges, first = [], 0
        for block in self._blocks:
            starts = self.starts[first : first + block["n_sentences"] + 1]
            ranges.append((starts, slice(int(starts[0]), int(starts[-1]))))
            first += block["n_sentences"]
        return ranges

    def _block_activations(self, block: int, sae: StoredSae) -> tuple[SparseActivations, np.ndarray | None]:
        """Activations of a block as they are stored, and its sinks as `_block_sinks` has them."""
        name = sae_file_name(sae.name)
        arrays = self._read(block, name, ("data", "indices", "indptr", "shape"))
        expected = (self._blocks[block]["n_tokens"], sae.d_sae)
        check_activations(block_folder(self.path, block) / name, arrays, expected)
        activations = SparseActivations(arrays["data"], arrays["indices"], arrays["indptr"], expected)
        return activations, self._block_sinks(block, name)

    def _block_sinks(self, block: int, name: str) -> np.ndarray | None:
        """The sinks that a file tells: bool [n_tokens of the block]; None where none is left out."""
        if not self.leaves_out_sinks:
            return None
        starts, _ = self._block_ranges[block]
        places = self._read(block, name, (SINKS,))[SINKS]
        return check_sinks(block_folder(self.path, block) / name, places, starts - starts[0])

    def _check_layer(self, layer: int | str) -> None:
        if self.hidden_states_stored == "none":
            raise UserError(f"{self.path}: made with --hidden-states none; extract again with all or pooled")
        if layer != EMBEDDINGS and layer not in self.layers:
            raise UserError(
                f"{self.path}: layer {layer} is not stored; there are layers {_listed(self.layers)}"
            )

    def _block_states(self, block: int, layer: int | str) -> tuple[np.ndarray, np.ndarray | None]:
        """A layer's states of a block as stored, float16 or float32 [n_tokens, d_model], and its sinks."""
        self._check_layer(layer)
        name = hidden_file_name(layer)
        states = self._read(block, name, ("states",))["states"]
        expected = (self._blocks[block]["n_tokens"], self.manifest["model"]["d_model"])
        check_states(block_folder(self.path, block) / name, states, expected)
        return states, None if layer == EMBEDDINGS else self._block_sinks(block, name)

    def _read(self, block: int, name: str, arrays: Sequence[str]) -> dict[str, np.ndarray]:
        return read_npz(block_folder(self.path, block) / name, arrays, "feature store file")


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values) or "none"
