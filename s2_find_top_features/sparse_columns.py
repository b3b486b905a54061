"""Sparse activations sorted by feature and value, the form in which ranks and quantiles are cheap.

Activations are non-negative and mostly zero. Only the values above zero are stored; the kernels that read
them account for the zeros in closed form. n is the number of sentences looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

_VALUE_BITS = 31  # a float32 above zero, read as an integer, keeps its order and has no sign bit
_WORD_BITS = 64


@dataclass(frozen=True)
class SparseColumns:
    """The stored values of [n, n_features] activations, sorted by feature and, within it, by value.

    Attributes:
        feature: int32 [n_values], ascending.
        value: float64 [n_values], above zero, ascending within a feature.
        row: int32 [n_values], the sentence; ascending among equal values of a feature.
        n: number of sentences.
        n_features: number of features.
    """

    feature: np.ndarray
    value: np.ndarray
    row: np.ndarray
    n: int
    n_features: int

    @classmethod
    def from_csr(
        cls,
        data: np.ndarray,
        indices: np.ndarray,
        indptr: np.ndarray,
        shape: tuple[int, int],
        keep: np.ndarray | None = None,
        features: tuple[int, int] | None = None,
    ) -> "SparseColumns":
        """From compressed sparse rows (SciPy's csr layout) of float32 values above zero.

        Args:
            data: float32 [n_values].
            indices: [n_values], the feature of each value.
            indptr: [n + 1].
            shape: (n, n_features).
            keep: bool [n], the sentences to take, renumbered; None takes all.
            features: first and last + 1 of the features to take, renumbered; None takes all.
        """
        row = np.repeat(np.arange(shape[0], dtype=np.int32), np.diff(indptr))
        n, n_features = shape
        if features is not None and features != (0, n_features):
            first, end = features
            taken = np.flatnonzero((indices >= first) & (indices < end))
            data, indices, row, n_features = data[taken], indices[taken] - first, row[taken], end - first
        if keep is not None:
            kept = np.flatnonzero(keep[row])
            data, indices = data[kept], indices[kept]
            row = (np.cumsum(keep, dtype=np.int32) - 1)[row[kept]]
            n = int(keep.sum())
        return cls(*_sorted(data, indices, row, n, n_features), n, n_features)

    @classmethod
    def from_dense(cls, activations: np.ndarray) -> "SparseColumns":
        """From float32 [n_features, n], one feature a row, no value below zero."""
        feature, row = np.nonzero(activations)
        n_features, n = activations.shape
        return cls(*_sorted(activations[feature, row], feature, row, n, n_features), n, n_features)

    @classmethod
    def joined(cls, parts: Sequence["SparseColumns"]) -> "SparseColumns":
        """The features of several, which look at the same sentences, one after the other."""
        firsts = np.cumsum([0, *(part.n_features for part in parts)], dtype=np.int32)
        return cls(
            np.concatenate([part.feature + first for part, first in zip(parts, firsts[:-1], strict=True)]),
            np.concatenate([part.value for part in parts]),
            np.concatenate([part.row for part in parts]),
            parts[0].n,
            int(firsts[-1]),
        )

    def subset(self, keep: np.ndarray) -> "SparseColumns":
        """The sentences for which ``keep`` (bool [n]) is True, renumbered; the sorting stays."""
        kept = np.flatnonzero(keep[self.row])
        number = np.cumsum(keep, dtype=np.int32) - 1
        return SparseColumns(
            self.feature[kept], self.value[kept], number[self.row[kept]], int(keep.sum()), self.n_features
        )

    def resample(self, times: np.ndarray) -> "SparseColumns":
        """Sentence s taken ``times[s]`` times (int [n]), as rows ``np.repeat(np.arange(n), times)``."""
        copies = times[self.row]
        taken = np.repeat(np.arange(len(self.row)), copies)
        copy = np.arange(len(taken)) - np.repeat(np.cumsum(copies) - copies, copies)
        first_row = np.cumsum(times) - times
        return SparseColumns(
            self.feature[taken],
            self.value[taken],
            (first_row[self.row[taken]] + copy).astype(np.int32),
            int(times.sum()),
            self.n_features,
        )

    def select(self, wanted: np.ndarray) -> "SparseColumns":
        """The features for which ``wanted`` (bool [n_features]) is True, renumbered."""
        kept = np.flatnonzero(wanted[self.feature])
        number = np.cumsum(wanted, dtype=np.int32) - 1
        return SparseColumns(
            number[self.feature[kept]], self.value[kept], self.row[kept], self.n, int(wanted.sum())
        )

    def runs(self, n_values: int) -> list[tuple[int, int]]:
        """Runs of features, each of about so many stored values, or of one feature: (first, last + 1)."""
        return feature_runs(self.n_active, n_values)

    def between(self, first: int, end: int) -> "SparseColumns":
        """The features from ``first`` to ``end`` - 1, renumbered."""
        values = slice(int(self.starts[first]), int(self.starts[end]))
        feature = self.feature[values] - np.int32(first)
        return SparseColumns(feature, self.value[values], self.row[values], self.n, end - first)

    @cached_property
    def n_active(self) -> np.ndarray:
        """Number of sentences on which each feature is active: int64 [n_features]."""
        return np.bincount(self.feature, minlength=self.n_features)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each feature's values start: int64 [n_features + 1]."""
        return np.concatenate([[0], np.cumsum(self.n_active)])

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Sum of a weight per stored value over each feature: [n_features]."""
        return segment_sums(weights, self.n_active)

    @cached_property
    def ties(self) -> tuple[np.ndarray, np.ndarray]:
        """First index and length, int64 [n_runs], of every run of equal values within a feature."""
        if not len(self.value):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        changes = (self.feature[1:] != self.feature[:-1]) | (self.value[1:] != self.value[:-1])
        first = np.flatnonzero(np.concatenate([[True], changes]))
        return first, np.diff(np.concatenate([first, [len(self.value)]]))

    @cached_property
    def excess_rank(self) -> np.ndarray:
        """Mid-rank of each stored value minus the mid-rank of its feature's zeros: float64 [n_values].

        Ranks count from 1; z zeros share the rank (z + 1) / 2, or would, were there any. Every excess is a
        multiple of one half.
        """
        first, length = self.ties
        feature = self.feature[first]
        offset = (self.n - self.n_active + 1) / 2 - self.starts[:-1]
        return np.repeat(first + (length - 1) / 2 + offset[feature], length)

    @cached_property
    def rank_variance(self) -> np.ndarray:
        """N times the variance of each feature's mid-ranks: float64 [n_features].

        (n^3 - n - sum over ties of (t^3 - t)) / 12, the zeros being one tie; 0 for a constant feature.
        """
        first, length = self.ties
        tied = length > 1
        cubes = np.bincount(
            self.feature[first[tied]],
            weights=length[tied].astype(np.float64) ** 3 - length[tied],
            minlength=self.n_features,
        )
        n_zero = (self.n - self.n_active).astype(np.float64)
        return (float(self.n) ** 3 - self.n - cubes - (n_zero**3 - n_zero)) / 12


def feature_runs(lengths: np.ndarray, n_values: int) -> list[tuple[int, int]]:
    """Runs of features of about so many stored values each, or of one feature: (first, last + 1).

    Args:
        lengths: int [n_features], stored values of each.
        n_values: of a run.
    """
    starts = np.cumsum(lengths) - lengths
    edges = np.flatnonzero(np.diff(starts // n_values)) + 1
    return list(pairwise([0, *edges.tolist(), len(lengths)]))


def segment_sums(weights: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums over consecutive segments of the given lengths (int [n_segments]); 0 for an empty one."""
    sums = np.zeros(len(lengths), dtype=weights.dtype)
    filled = lengths > 0
    if filled.any():
        starts = np.cumsum(lengths) - lengths
        sums[filled] = np.add.reduceat(weights, starts[filled])
    return sums


def _sorted(
    data: np.ndarray, feature: np.ndarray, row: np.ndarray, n: int, n_features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Feature, value and row in the order of `SparseColumns`.

    Feature, value and row are packed into one 64-bit integer and sorted as such, which is several times
    faster than sorting indices; where they do not fit, the indices are sorted.
    """
    row_bits = max(n - 1, 0).bit_length()
    if max(n_features - 1, 0).bit_length() + _VALUE_BITS + row_bits > _WORD_BITS:
        order = np.lexsort((row, data, feature))
        return feature[order].astype(np.int32), data[order].astype(np.float64), row[order].astype(np.int32)
    key = feature.astype(np.uint64)
    key <<= np.uint64(_VALUE_BITS)
    key |= np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    key <<= np.uint64(row_bits)
    key |= row.astype(np.uint64)
    key.sort()
    sorted_row = (key & np.uint64((1 << row_bits) - 1)).astype(np.int32)
    key >>= np.uint64(row_bits)
    value = (key & np.uint64((1 << _VALUE_BITS) - 1)).astype(np.uint32).view(np.float32)
    key >>= np.uint64(_VALUE_BITS)
    return key.astype(np.int32), value.astype(np.float64), sorted_row
