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

FORMAT = "classifier_dataset"
FORMAT_VERSION = 1
NORMALIZATIONS = ("standardize", "minmax", "none")

_ROW_ARRAYS = ("X", "y", "split", "sentence_index", "group", "n_tokens", "label")
_TOKEN_ARRAYS = ("token", "position")
_OTHER_ARRAYS = ("sentence", "normalization_shift", "normalization_scale")


@dataclass(frozen=True)
class ClassifierDataset:
    """What a classifier learns from and is tested on; a row is a sentence or a token.

    Attributes:
        X: float32 [n_rows, n_inputs], as the model has them, not normalised.
        y: float32 [n_rows], the target: the sentence's label, or the activation of a feature.
        held_out: bool [n_rows], True for the test split.
        sentence_index: int64 [n_rows], into ``sentence``.
        group: int64 [n_rows]; rows of one group belong on one side of any split.
        n_tokens: int64 [n_rows], tokens of the row's sentence.
        label: int64 [n_rows], the sentence's concept_strength_label, 0-3.
        sentence: str [n_sentences].
        token: str [n_rows], the token's text; None where a row is a sentence.
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
    names = (*_ROW_ARRAYS, *_OTHER_ARRAYS, *(_TOKEN_ARRAYS if dataset.token is not None else ()))
    description = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataset.metadata}
    arrays = {name: getattr(dataset, name) for name in names if name != "split"}
    arrays["split"] = np.where(dataset.held_out, "test", "train")
    arrays["metadata"] = np.array(json.dumps(description, ensure_ascii=False, allow_nan=False))
    write_npz(path, arrays)


def read_dataset(path: Path) -> ClassifierDataset:
    """Read a dataset.

    Raises:
        UserError: the file is missing, damaged, no classifier dataset, one of another format version, or
            holds values that are not finite.
    """
    what = "classifier dataset made by generate_datasets.py"
    metadata = _read_metadata(path, what)
    by_token = metadata.get("unit") == "token"
    names = (*_ROW_ARRAYS, *_OTHER_ARRAYS, *(_TOKEN_ARRAYS if by_token else ()))
    arrays = read_npz(path, names, what)
    n_rows = len(arrays["y"])
    for name in (*_ROW_ARRAYS, *(_TOKEN_ARRAYS if by_token else ())):
        if len(arrays[name]) != n_rows:
            raise UserError(
                f"{path}: array {name!r} has {len(arrays[name])} rows, y has {n_rows}; make it again"
            )
    for name in ("X", "y"):
        # A sum is finite only where every summand is, and needs no second array of X's size.
        if not np.isfinite(np.sum(arrays[name], dtype=np.float64)):
            raise UserError(f"{path}: array {name!r} holds NaN or infinity; make the feature store again")
    held_out = arrays.pop("split") == "test"
    fields: dict[str, Any] = {"token": None, "position": None, **arrays}
    return ClassifierDataset(**fields, held_out=held_out, metadata=metadata)


def _read_metadata(path: Path, what: str) -> dict[str, Any]:
    text = str(read_npz(path, ("metadata",), what)["metadata"])
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a {what}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: classifier dataset format {metadata.get('format_version')}, this program reads format "
            f"{FORMAT_VERSION}; make it again with generate_datasets.py"
        )
    return metadata
