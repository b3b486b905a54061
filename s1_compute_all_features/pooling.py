"""Sparse token activations, and how a sentence's tokens become one value (NumPy only)."""

from dataclasses import dataclass

import numpy as np

from s1_compute_all_features.attention_sinks import starts_without

POOLINGS = ("max", "mean", "final", "last-content")

_SENTENCES_AT_ONCE = 64


@dataclass(frozen=True)
class SparseActivations:
    """Non-negative activations in compressed sparse row form, as SciPy's ``csr_matrix`` has it.

    Attributes:
        data: float32 [n_active], the values above zero, row by row.
        indices: feature_id of each value, ascending within a row; uint16 where d_sae allows.
        indptr: int64 [n_rows + 1], row r is ``data[indptr[r]:indptr[r + 1]]``.
        shape: (n_rows, d_sae); a row is a token or a sentence.
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    @property
    def mean_l0(self) -> float | None:
        """Mean number of active features per row; None without rows."""
        return len(self.data) / self.shape[0] if self.shape[0] else None

    def columns(self, feature_ids: np.ndarray) -> np.ndarray:
        """Dense copy of some columns: float32 [n_rows, n_features], in the order asked for."""
        distinct, place = np.unique(feature_ids, return_inverse=True)
        column_of = np.full(self.shape[1], -1, dtype=np.int64)
        column_of[distinct] = np.arange(len(distinct))
        column = column_of[self.indices]
        wanted = np.flatnonzero(column >= 0)
        rows = np.searchsorted(self.indptr, wanted, side="right") - 1
        dense = np.zeros((self.shape[0], len(distinct)), dtype=np.float32)
        dense[rows, column[wanted]] = self.data[wanted]
        return dense[:, place]

    def to_dense(self) -> np.ndarray:
        """All of it as float32 [n_rows, d_sae]; for small ones and for tests."""
        dense = np.zeros(self.shape, dtype=np.float32)
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        dense[rows, self.indices] = self.data
        return dense

    def take_rows(self, rows: np.ndarray) -> "SparseActivations":
        """The given rows, int [n_taken], in the given order."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - self.indptr[rows], lengths)
        return SparseActivations(
            self.data[positions], self.indices[positions], indptr, (len(rows), self.shape[1])
        )

    def silenced(self, rows: np.ndarray) -> "SparseActivations":
        """The same rows, of which those where ``rows``, bool [n_rows], is True hold nothing."""
        if not rows.any():
            return self
        lengths = np.diff(self.indptr)
        kept = np.repeat(~rows, lengths)
        indptr = np.concatenate([[0], np.cumsum(np.where(rows, 0, lengths))]).astype(np.int64)
        return SparseActivations(self.data[kept], self.indices[kept], indptr, self.shape)


def concatenate_rows(parts: list[SparseActivations]) -> SparseActivations:
    """Several blocks of rows as one, in the given order; all have the same d_sae."""
    offsets = np.cumsum([0, *(len(part.data) for part in parts)])
    indptr = [part.indptr[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return SparseActivations(
        data=np.concatenate([part.data for part in parts]),
        indices=np.concatenate([part.indices for part in parts]),
        indptr=np.concatenate([*indptr, offsets[-1:]]).astype(np.int64),
        shape=(sum(part.shape[0] for part in parts), parts[0].shape[1]),
    )


def pooled_token(starts: np.ndarray, content: np.ndarray, pooling: str) -> np.ndarray:
    """Index of the one token that stands for each sentence under ``final`` or ``last-content``.

    Args:
        starts: int64 [n_sentences + 1], sentence s is tokens ``starts[s]:starts[s + 1]``.
        content: bool [n_tokens], from `is_content`.
        pooling: ``final``, or ``last-content``, which is the final token where a sentence has no
            content token at all.

    Returns:
        int64 [n_sentences].
    """
    final = starts[1:] - 1
    if pooling == "final":
        return final
    last_content = np.maximum.accumulate(np.where(content, np.arange(len(content)), -1))[final]
    return np.where(last_content >= starts[:-1], last_content, final)


def pool_sparse(
    tokens: SparseActivations,
    starts: np.ndarray,
    content: np.ndarray,
    pooling: str,
    sinks: np.ndarray | None = None,
) -> SparseActivations:
    """One row per sentence from one row per token.

    Args:
        tokens: [n_tokens, d_sae].
        starts: int64 [n_sentences + 1], token ranges of the sentences; none is empty.
        content: bool [n_tokens], from `is_content`.
        pooling: one of `POOLINGS`. A feature that is not stored for a token is 0 there, and counts
            as 0 in ``max`` and in ``mean``.
        sinks: bool [n_tokens], tokens that are left out as if the sentences did not have them; every
            sentence keeps one at least. None for no such token.

    Returns:
        [n_sentences, d_sae], features ascending within a sentence.
    """
    if sinks is not None and sinks.any():
        kept = np.flatnonzero(~sinks)
        tokens, content, starts = tokens.take_rows(kept), content[kept], starts_without(starts, sinks)
    if pooling in ("final", "last-content"):
        return tokens.take_rows(pooled_token(starts, content, pooling))
    n_sentences, d_sae = len(starts) - 1, tokens.shape[1]
    n_tokens = np.diff(starts)
    first_key = np.arange(n_sentences + 1) * d_sae
    n_values = np.diff(tokens.indptr[starts])
    key, order = _sorted_keys(np.repeat(first_key[:-1], n_values) + tokens.indices, n_sentences * d_sae)
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.empty(0, dtype=np.int64)
    key = key[first]
    indptr = np.searchsorted(key, first_key).astype(np.int64)
    n_active = np.diff(indptr)
    if not len(key):
        data = np.empty(0, dtype=np.float32)
    elif pooling == "max":
        data = np.maximum.reduceat(tokens.data[order], first)
    else:
        total = np.add.reduceat(tokens.data[order].astype(np.float64), first)
        data = (total / np.repeat(n_tokens, n_active)).astype(np.float32)
    feature = (key - np.repeat(first_key[:-1], n_active)).astype(tokens.indices.dtype)
    return SparseActivations(data, feature, indptr, (n_sentences, d_sae))


def _sorted_keys(key: np.ndarray, n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys (int64, 0 to n_keys - 1) in ascending order, and the stable order that sorts them.

    Key and place are packed into one integer and sorted as such, which is several times faster than a
    stable argsort; where they do not fit, the argsort does it.
    """
    place_bits = len(key).bit_length()
    if n_keys.bit_length() + place_bits > 63:
        order = np.argsort(key, kind="stable")
        return key[order], order
    packed = key << place_bits
    packed |= np.arange(len(key))
    packed.sort()
    return packed >> place_bits, packed & ((1 << place_bits) - 1)


def pool_dense(
    tokens: np.ndarray,
    starts: np.ndarray,
    content: np.ndarray,
    pooling: str,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """One vector per sentence from one vector per token.

    Args:
        tokens: float [n_tokens, d_model].
        starts: int64 [n_sentences + 1], token ranges of the sentences; none is empty.
        content: bool [n_tokens], from `is_content`.
        pooling: one of `POOLINGS`.
        sinks: bool [n_tokens], as in `pool_sparse`.

    Returns:
        float32 [n_sentences, d_model].
    """
    kept = None
    if sinks is not None and sinks.any():
        kept = np.flatnonzero(~sinks)
        content, starts = content[kept], starts_without(starts, sinks)
    if pooling in ("final", "last-content"):
        chosen = pooled_token(starts, content, pooling)
        return tokens[chosen if kept is None else kept[chosen]].astype(np.float32)
    pooled = np.empty((len(starts) - 1, tokens.shape[1]), dtype=np.float32)
    for first in range(0, len(pooled), _SENTENCES_AT_ONCE):
        # In strips: a copy of a whole block in float64 would be the largest thing in memory.
        ends = starts[first : first + _SENTENCES_AT_ONCE + 1]
        there = slice(ends[0], ends[-1])
        strip, inside = tokens[there if kept is None else kept[there]], ends[:-1] - ends[0]
        if pooling == "max":
            values = np.maximum.reduceat(strip.astype(np.float32), inside)
        else:
            values = np.add.reduceat(strip.astype(np.float64), inside) / np.diff(ends)[:, None]
        pooled[first : first + _SENTENCES_AT_ONCE] = values
    return pooled
