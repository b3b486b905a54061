"""The classifier dataset: one NPZ with inputs, targets, split and groups, and a JSON description inside.

Written by generate_datasets.py, read by stage 5. README.md of this stage describes every array.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz, write_npz
from pipeline_common.json_shape import NATURAL, JsonFormat
from s1_compute_all_features.feature_store import EMBEDDINGS, SINKS_SHAPE, FeatureStore

NORMALIZATIONS = ("standardize", "minmax", "none")
EMBEDDING_INPUTS = "embeddings"
HIDDEN_INPUTS = "hidden states"
SAE_ACTIVATIONS = "SAE activations"
"""The kinds of inputs; those of an SAE are stored sparse."""

DESCRIPTION_SHAPE = {
    "strategy": str,
    "input": {
        "kind": frozenset({EMBEDDING_INPUTS, HIDDEN_INPUTS, SAE_ACTIVATIONS}),
        "layers": [NATURAL],
        "saes?": [{"name": str, "d_sae": NATURAL, "fingerprint": str, "feature_ids": (None, [NATURAL])}],
    },
    "target": {"kind": frozenset({"label", "activation"})},
    "unit": frozenset({"token", "sentence"}),
    "pooling": (None, str),
    "notes": [str],
    "normalization": frozenset(NORMALIZATIONS),
    "model": str,
    "model_details?": {"dtype?": str},
    "extraction?": {
        "hidden_states": str,
        "tokens": (None, str),
        "sae_dtype": (None, str),
        "sinks?": SINKS_SHAPE,  # missing where attention sinks count like other tokens, as null says too
    },
    "store": {"name": str, "fingerprint": str},
}
"""What a reader of a dataset's description relies on (`pipeline_common.json_shape`)."""

FORMAT = JsonFormat(
    "classifier_dataset",
    2,
    "classifier dataset",
    DESCRIPTION_SHAPE,
    "make it again with generate_datasets.py",
)

_ROW_ARRAYS = ("y", "split", "sentence_index", "group", "n_tokens", "label")
_TOKEN_ARRAYS = ("token", "position")
_OTHER_ARRAYS = ("sentence", "normalization_shift", "normalization_scale")
_DENSE_INPUTS = ("X",)
_SPARSE_INPUTS = ("X_data", "X_indices", "X_indptr")
_KINDS = {"X": "f", "y": "f", "split": "U", "token": "U"}
"""NumPy's kinds of dtype; every other array of rows holds integers."""


@dataclass(frozen=True)
class ClassifierDataset:
    """What a classifier learns from and is tested on; a row is a sentence or a token.

    Attributes:
        X: float32 [n_rows, n_inputs], as the model has them, not normalised; SAE activations are stored
            sparse and read dense.
        y: float32 [n_rows], the target: the sentence's label, or the activation of a feature.
        held_out: bool [n_rows], True for the test split.
        sentence_index: int64 [n_rows], into ``sentence``.
        group: int64 [n_rows]; rows of one group belong on one side of any split.
        n_tokens: int64 [n_rows], tokens of the row's sentence.
        label: int64 [n_rows], the sentence's concept_strength_label, 0-3.
        sentence: str [n_sentences].
        token: str [n_rows], the token as `token_labels` names it; None where a row is a sentence.
        position: int64 [n_rows], the token's position in its sentence; None where a row is a sentence.
        normalization_shift: float64 [n_inputs], fitted on the train rows.
        normalization_scale: float64 [n_inputs]; normalised inputs are ``(X - shift) / scale``.
        metadata: the JSON description: strategy, model, layers, target, pooling, unit, store, ...
    """

    X: np.ndarray
    y: np.ndarray
    held_out: np.ndarray
    sentence_index: np.ndarray
    group: np.ndarray
    n_tokens: np.ndarray
    label: np.ndarray
    sentence: np.ndarray
    token: np.ndarray | None
    position: np.ndarray | None
    normalization_shift: np.ndarray
    normalization_scale: np.ndarray
    metadata: dict[str, Any]

    @property
    def target_is_label(self) -> bool:
        """Whether y is the concept's label; otherwise it is an activation."""
        return bool(self.metadata["target"]["kind"] == "label")


def write_dataset(path: Path, dataset: ClassifierDataset) -> None:
    """Write a dataset, atomically; equal datasets give equal bytes."""
    by_token = dataset.token is not None
    names = (*_ROW_ARRAYS, *_OTHER_ARRAYS, *(_TOKEN_ARRAYS if by_token else ()))
    description = {**FORMAT.header, **dataset.metadata}
    inputs = _sparse(dataset.X) if _is_sparse(dataset.metadata) else {"X": dataset.X}
    arrays = inputs | {name: getattr(dataset, name) for name in names if name != "split"}
    arrays["split"] = np.where(dataset.held_out, "test", "train")
    arrays["metadata"] = np.array(json.dumps(description, ensure_ascii=False, allow_nan=False))
    write_npz(path, arrays)


def read_dataset(path: Path) -> ClassifierDataset:
    """Read a dataset.

    Raises:
        UserError: the file is missing, damaged, no classifier dataset, one of another format version, or
            holds values that are not finite, a target that is not what its description says, or a group on
            both sides of the split.
    """
    what = "classifier dataset made by generate_datasets.py"
    metadata = _read_metadata(path, what)
    row_names = (*_ROW_ARRAYS, *(_TOKEN_ARRAYS if metadata.get("unit") == "token" else ()))
    input_names = _SPARSE_INPUTS if _is_sparse(metadata) else _DENSE_INPUTS
    arrays = read_npz(path, (*input_names, *row_names, *_OTHER_ARRAYS), what)
    if _is_sparse(metadata):
        parts = [arrays.pop(name) for name in _SPARSE_INPUTS]
        arrays["X"] = _dense(path, *parts, n_inputs=len(arrays["normalization_scale"]))
    _check(path, arrays, ("X", *row_names))
    held_out = arrays.pop("split") == "test"
    fields: dict[str, Any] = {"token": None, "position": None, **arrays}
    dataset = ClassifierDataset(**fields, held_out=held_out, metadata=metadata)
    straddling = np.intersect1d(dataset.group[held_out], dataset.group[~held_out])
    if len(straddling):
        raise UserError(
            f"{path}: group {straddling[0]} has train rows and test rows, so the test would repeat what was "
            "learned; make it again from the feature store"
        )
    if dataset.target_is_label and not np.array_equal(dataset.y, dataset.label):
        raise UserError(
            f"{path}: the target is said to be the label, but y holds other values; make it again"
        )
    return dataset


def inputs_of(store: FeatureStore, metadata: dict[str, Any]) -> np.ndarray:
    """The inputs that a dataset's description asks for, from this or another store of the same model.

    Args:
        store: the feature store.
        metadata: a dataset's; ``input``, ``unit`` and ``pooling`` are read.

    Returns:
        float32 [n_rows, n_inputs], a row per sentence, or per token of `token_rows`. Columns as in the
        dataset: layer by layer, or SAE by SAE with the features of each ascending.

    Raises:
        UserError: the store does not hold a layer, an SAE or a feature.
    """
    source, pooling = metadata["input"], metadata["pooling"]
    if source["kind"] == SAE_ACTIVATIONS:
        return _activations(store, source["saes"], pooling)
    layers: list[int | str] = [EMBEDDINGS] if source["kind"] == EMBEDDING_INPUTS else source["layers"]
    if metadata["unit"] == "token":
        states, rows = store.hidden_states(layers[0]), token_rows(store, metadata)
        return states if len(rows) == len(states) else states[rows]
    d_model = store.manifest["model"]["d_model"]
    inputs = np.empty((len(store.sentences), d_model * len(layers)), dtype=np.float32)
    for place, layer in enumerate(layers):
        inputs[:, place * d_model : (place + 1) * d_model] = store.pooled_hidden_states(layer, pooling)
    return inputs


def token_rows(store: FeatureStore, metadata: dict[str, Any]) -> np.ndarray:
    """The tokens that are rows of a dataset of tokens: int64 [n_rows], ascending.

    All but attention sinks, which have an input or a target that tells nothing: those of the layer that is
    the input, and those that the target's SAE leaves out. Where the store lacks that SAE, as one of
    new text does, the input's alone.

    Args:
        store: the feature store.
        metadata: a dataset's; ``input`` and ``target`` are read.
    """
    read_by_target = [sae.sink_layer for sae in store.saes if sae.name == metadata["target"].get("sae")]
    sinks = np.zeros(int(store.starts[-1]), dtype=bool)
    for layer in {*metadata["input"]["layers"], *read_by_target}:
        sinks |= store.sinks(layer)
    return np.flatnonzero(~sinks)


def _activations(store: FeatureStore, entries: list[dict[str, Any]], pooling: str) -> np.ndarray:
    stored = {sae.name: sae for sae in store.saes}
    chosen = []
    for entry in entries:
        sae, ids = stored.get(entry["name"]), entry["feature_ids"]
        if sae is None or sae.d_sae <= max(ids or [entry["d_sae"] - 1]):
            raise UserError(
                f"{store.path}: does not hold all the features of SAE {entry['name']} that are asked for"
            )
        chosen.append((sae, np.arange(sae.d_sae) if ids is None else np.array(ids)))
    ends = np.cumsum([len(ids) for _, ids in chosen])
    inputs = np.empty((len(store.sentences), int(ends[-1])), dtype=np.float32)
    for (sae, ids), end in zip(chosen, ends, strict=True):
        first = 0
        for block in store.pooled_blocks(sae, pooling):
            inputs[first : first + block.shape[0], end - len(ids) : end] = block.columns(ids)
            first += block.shape[0]
    return inputs


def _is_sparse(metadata: dict[str, Any]) -> bool:
    return bool(metadata["input"]["kind"] == SAE_ACTIVATIONS)


def _sparse(inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Compressed sparse rows of float32 [n_rows, n_inputs]."""
    rows, columns = np.nonzero(inputs)
    indptr = np.searchsorted(rows, np.arange(len(inputs) + 1)).astype(np.int64)
    return {"X_data": inputs[rows, columns], "X_indices": columns.astype(np.int32), "X_indptr": indptr}


def _dense(
    path: Path, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, *, n_inputs: int
) -> np.ndarray:
    """What `_sparse` was given: float32 [n_rows, n_inputs]."""
    sound = (
        data.dtype.kind == "f"
        and all(array.ndim == 1 for array in (data, indices, indptr))
        and all(array.dtype.kind in "iu" for array in (indices, indptr))
        and indptr[:1].tolist() == [0]
        and (np.diff(indptr.astype(np.int64)) >= 0).all()
        and len(data) == len(indices) == indptr[-1]
        and indices.min(initial=0) >= 0
        and indices.max(initial=0) < n_inputs
    )
    if not sound:
        raise UserError(f"{path}: the sparse inputs do not fit together; make it again")
    inputs = np.zeros((len(indptr) - 1, n_inputs), dtype=np.float32)
    inputs[np.repeat(np.arange(len(inputs)), np.diff(indptr)), indices] = data
    return inputs


def _check(path: Path, arrays: dict[str, np.ndarray], row_names: tuple[str, ...]) -> None:
    n_rows = arrays["y"].size
    for name in row_names:
        array = arrays[name]
        if array.dtype.kind not in _KINDS.get(name, "iu") or array.ndim != (2 if name == "X" else 1):
            raise UserError(
                f"{path}: array {name!r} holds {array.dtype} of shape {array.shape}; make it again"
            )
        if len(array) != n_rows:
            raise UserError(f"{path}: array {name!r} has {len(array)} rows, y has {n_rows}; make it again")
    for name, allowed in (
        ("split", np.isin(arrays["split"], ("train", "test"))),
        ("label", np.isin(arrays["label"], range(4))),
        ("sentence_index", np.isin(arrays["sentence_index"], range(arrays["sentence"].size))),
    ):
        if not allowed.all():
            raise UserError(f"{path}: array {name!r} holds {arrays[name][~allowed][0]}; make it again")
    for name in ("X", "y"):
        # A sum is finite only where every summand is, and needs no second array of X's size.
        if not np.isfinite(np.sum(arrays[name], dtype=np.float64)):
            raise UserError(f"{path}: array {name!r} holds NaN or infinity; make the feature store again")


def _read_metadata(path: Path, what: str) -> dict[str, Any]:
    text = str(read_npz(path, ("metadata",), what)["metadata"])
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    return FORMAT.check(path, metadata)
