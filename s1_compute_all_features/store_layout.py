"""What a feature store consists of: files, their names, the manifest, and who is in it.

Part of feature_store.py, through which the other stages import it. NumPy only.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import is_changed, read_json, sealed, write_csv, write_json
from pipeline_common.json_shape import FILE_NAME, NATURAL, POSITIVE, JsonFormat
from s1_compute_all_features.attention_sinks import SINKS_SHAPE, SinkRule
from s1_compute_all_features.saes.sites import Site, site_of

EMBEDDINGS = "embeddings"
HIDDEN_STATES = ("all", "pooled", "none")
MANIFEST = "manifest.json"
SENTENCES = "sentences.csv"
CHECKSUMS = "checksums.json"
HALVED = "out_of_memory.json"
SENTENCE_COLUMNS = ("sentence_index", "sentence", "concept_strength_label", "split", "group", "n_tokens")
SINKS = "sinks"
"""Array of a layer's or SAE's file: places of the block's attention sinks among its tokens, ascending."""
DECODER_NORMS = "decoder_norms"
"""Array of an SAE's file in the first block: what takes its activations to Neuronpedia's scale."""
TOKEN_ARRAYS = ("token_id", "sentence_index", "position", "is_final", "text")

NEURONPEDIA_ID = r"|[^/\s]+/\S+"
"""``model/source``, or empty."""
FORMAT = JsonFormat(
    "feature_store",
    3,
    "feature store",
    {
        "complete": bool,
        "model": {"id": str, "d_model": POSITIVE},
        "saes": [
            {
                "name": FILE_NAME,
                "layer": NATURAL,
                "average_l0": (None, NATURAL),
                "d_sae": POSITIVE,
                "hook": str,
                "release": str,
                "sae_id": str,
                "neuronpedia_id": re.compile(NEURONPEDIA_ID),
                "fingerprint": str,
            }
        ],
        "layers": [NATURAL],
        "hidden_states?": frozenset(HIDDEN_STATES),
        "input": {"file": re.compile(r"[^/\0]+")},
        "settings?": dict,
        "sinks?": SINKS_SHAPE,
        "sinks_found?": {str: {"n_tokens": NATURAL, "n_first_tokens": NATURAL}},
        "blocks": [{"n_sentences": POSITIVE, "n_tokens": POSITIVE}],
    },
    "make the store again with extract_sae_features.py",
    older_versions=(1, 2),  # 1 has no sinks: every token counts; neither has the decoders' norms
)
"""What a reader relies on; the names become parts of file names."""


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
    def site(self) -> Site:
        """The place in the model that it reads."""
        return site_of(self.hook)

    @property
    def input_layer(self) -> int | None:
        """The hidden layer that it reads: -1 for the input of block 0; None for another site."""
        return self.site.stream_layer

    @property
    def sink_layer(self) -> int:
        """The hidden layer whose attention sinks are left out of its activations."""
        return self.site.sink_layer


@dataclass(frozen=True)
class TokenTable:
    """The stored tokens, in sentence order.

    Attributes:
        token_id: int32 [n_tokens].
        sentence_index: int32 [n_tokens].
        position: int32 [n_tokens], 0 for a sentence's first stored token.
        is_final: bool [n_tokens], True for a sentence's last stored token.
        text: str [n_tokens], the token's part of the sentence, its leading space included. Of a character
            in several tokens the last one shows it, those before are empty.
    """

    token_id: np.ndarray
    sentence_index: np.ndarray
    position: np.ndarray
    is_final: np.ndarray
    text: np.ndarray


def model_name(model: Mapping[str, Any]) -> str:
    """A manifest's model as pages and pictures name it: a hub id whole, a folder without the way to it.

    >>> model_name({"id": "google/gemma-2-2b", "revision": "c5ebcd40d208330abc697524c919956e692655cf"})
    'google/gemma-2-2b'
    >>> model_name({"id": "/home/ada/models/gemma", "revision": 64 * "0"})
    'gemma'
    """
    name = str(model["id"])
    # The revision of a folder is the SHA-256 of its files, 64 digits; a commit of the hub has 40.
    is_folder = len(str(model.get("revision") or "")) == 64 or Path(name).is_absolute()
    return (re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name) if is_folder else name


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


def sink_files(layers: Iterable[int], saes: Iterable[tuple[str, int]], hidden_states: str) -> dict[int, str]:
    """The layers of which a store tells the sinks, ascending, and a file of every block that tells them.

    Args:
        layers: whose hidden states are stored.
        saes: name and sink layer of each SAE.
        hidden_states: one of `HIDDEN_STATES`.
    """
    files = {} if hidden_states == "none" else {layer: hidden_file_name(layer) for layer in layers}
    for name, layer in saes:
        files.setdefault(layer, sae_file_name(name))
    return dict(sorted(files.items()))


def pooled_name(pooling: str) -> str:
    """Array of a pooled hidden-state file, e.g. ``pooled_last_content``."""
    return f"pooled_{pooling.replace('-', '_')}"


def write_sentences(store: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write ``sentences.csv``: `SENTENCE_COLUMNS` first, then further columns, one value a sentence.

    A further column that bears one of the store's own names is kept as ``input_NAME``.
    """
    write_csv(store / SENTENCES, list(columns), zip(*columns.values(), strict=True))


def write_manifest(store: Path, content: Mapping[str, Any], seal: bool = False) -> None:
    """Write ``manifest.json`` with the format's name and version in front.

    Args:
        store: the folder.
        content: of the manifest.
        seal: add its own digest, so that a change of it is found; for a finished store.
    """
    manifest = {**FORMAT.header, **content}
    write_json(store / MANIFEST, sealed(manifest) if seal else manifest)


def record_medians(store: Path, sinks: SinkRule) -> None:
    """Fix the median norms that decide which tokens are sinks in an unfinished store's manifest.

    Before any file that they decide on is written: a run that is killed and resumed, or extended later,
    finds them here.
    """
    write_manifest(store, {**read_manifest(store), "sinks": sinks.as_json()})


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a store, complete or not.

    Raises:
        UserError: the folder is not a feature store, or one of another format version, or the manifest was
            changed since the store was finished, or a key is not what it should be.
    """
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; expected a feature store made by extract_sae_features.py")
    if not (store / MANIFEST).is_file():
        raise UserError(
            f"{store}: not a feature store ({MANIFEST} is missing); make one with extract_sae_features.py"
        )
    manifest = FORMAT.check(store / MANIFEST, read_json(store / MANIFEST, "feature store manifest"))
    if is_changed(manifest):
        raise UserError(
            f"{store / MANIFEST}: damaged or changed since the store was finished; restore it, or make the "
            "store again with extract_sae_features.py"
        )
    return manifest


def sae_as_json(sae: StoredSae) -> dict[str, Any]:
    """A manifest entry; `StoredSae` takes it back by keyword."""
    return asdict(sae)
