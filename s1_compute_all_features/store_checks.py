"""Whether the arrays of a store's files are what the store's manifest and sentence table say (NumPy only).

Part of feature_store.py. An array that does not fit is told by its name, never read as if it did.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.attention_sinks import first_lost_sentence

_TOKEN_KINDS = {"token_id": "iu", "sentence_index": "iu", "position": "iu", "is_final": "b", "text": "U"}
"""NumPy's kinds of dtype that each array of ``tokens.npz`` may have."""


def check_activations(path: Path, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> None:
    """Compressed sparse rows of this shape, with finite activations of at least 0.

    Args:
        path: the file, for the message.
        arrays: ``data`` [n_active], ``indices`` [n_active], ``indptr`` [n_tokens + 1] and ``shape`` [2].
        shape: (n_tokens, d_sae) of the block.

    Raises:
        UserError: naming the array.
    """
    data, indices, indptr = arrays["data"], arrays["indices"], arrays["indptr"]
    if arrays["shape"].shape != (2,) or tuple(arrays["shape"]) != shape:
        _refuse(path, f"does not hold {shape[0]} tokens x {shape[1]} features as the manifest says")
    if indptr.dtype.kind not in "iu" or indptr.shape != (shape[0] + 1,):
        _refuse(path, f"'indptr' does not hold where each of {shape[0]} tokens begins")
    if indptr[0] != 0 or (np.diff(indptr.astype(np.int64)) < 0).any():
        _refuse(path, "'indptr' does not start at 0 and rise")
    n_active = int(indptr[-1])
    if indices.dtype.kind not in "iu" or indices.shape != (n_active,):
        _refuse(path, f"'indices' is not {n_active} feature ids")
    if n_active and not (indices.min() >= 0 and indices.max() < shape[1]):
        _refuse(path, f"'indices' holds a feature outside 0 to {shape[1] - 1}")
    if data.dtype.kind != "f" or data.shape != (n_active,):
        _refuse(path, f"'data' is not {n_active} activations")
    if n_active and not (data.min() >= 0 and np.isfinite(data.max())):  # a NaN is the minimum and the maximum
        _refuse(path, "'data' holds an activation that is negative or not finite")


def check_tokens(path: Path, arrays: Mapping[str, np.ndarray], sentence_of_token: np.ndarray) -> None:
    """The token table of a block.

    Args:
        path: the file, for the message.
        arrays: those of ``tokens.npz``.
        sentence_of_token: int64 [n_tokens], as the sentence table has it.

    Raises:
        UserError: naming the array.
    """
    for name, kinds in _TOKEN_KINDS.items():
        array = arrays[name]
        if array.dtype.kind not in kinds or array.shape != sentence_of_token.shape:
            _refuse(
                path,
                f"{name!r} holds {array.dtype} of shape {array.shape}, not a value for each of "
                f"{len(sentence_of_token)} tokens",
            )
    if not np.array_equal(arrays["sentence_index"], sentence_of_token):
        _refuse(path, "'sentence_index' is not what the sentence table says")


def check_states(path: Path, states: np.ndarray, shape: tuple[int, int]) -> None:
    """Hidden states of a block: floating-point numbers [n_tokens, d_model], which ``shape`` gives.

    Raises:
        UserError: they are not.
    """
    if states.dtype.kind != "f" or states.shape != shape:
        _refuse(path, f"{states.dtype} of shape {states.shape}, the manifest says numbers of shape {shape}")


def check_decoder_norms(path: Path, norms: np.ndarray, d_sae: int) -> None:
    """Norms of an SAE's decoder rows: finite floating-point numbers above 0, [d_sae].

    A norm of 0 would silence a feature; the writer has none below 1e-8.

    Raises:
        UserError: they are not.
    """
    if norms.dtype.kind != "f" or norms.shape != (d_sae,):
        _refuse(path, f"'decoder_norms' holds {norms.dtype} of shape {norms.shape}, not {d_sae} numbers")
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        _refuse(path, "'decoder_norms' holds a norm that is not finite or not above 0")


def check_sinks(path: Path, places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Which tokens of a block are sinks: bool [n_tokens].

    Args:
        path: the file, for the message.
        places: int [n_sinks], ascending, as the file has them.
        starts: int64 [n_sentences + 1], token ranges of the block's sentences, from 0.

    Raises:
        UserError: they are no such places, or leave nothing of a sentence.
    """
    n_tokens = int(starts[-1])
    if places.dtype.kind not in "iu" or places.ndim != 1:
        _refuse(path, f"'sinks' holds {places.dtype} of shape {places.shape}, not places of tokens")
    if len(places) and (places[0] < 0 or places[-1] >= n_tokens or (np.diff(places.astype(int)) <= 0).any()):
        _refuse(path, f"'sinks' does not rise within 0 to {n_tokens - 1}")
    sinks = np.zeros(n_tokens, dtype=bool)
    sinks[places] = True
    if first_lost_sentence(starts, sinks) is not None:
        _refuse(path, "'sinks' leaves no token of a sentence")
    return sinks


def integers(path: Path, name: str, cells: list[str], lowest: int, highest: int | None = None) -> np.ndarray:
    """A column of the sentence table as int64 [n_sentences].

    Args:
        path: the table, for the message.
        name: of the column.
        cells: as text.
        lowest: the smallest value that may occur.
        highest: the largest; None for no limit.

    Raises:
        UserError: a cell is no integer, or out of range.
    """
    try:
        values = np.array([int(cell) for cell in cells], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: column {name}: {error}; make the store again") from None
    wrong = values[(values < lowest) | (values > (np.inf if highest is None else highest))]
    if len(wrong):
        _refuse(path, f"column {name} holds {wrong[0]}")
    return values


def _refuse(path: Path, reason: str) -> None:
    raise UserError(
        f"{path}: {reason}; mend it with extract_sae_features.py --verify, or make the store again"
    )
