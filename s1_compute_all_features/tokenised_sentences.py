"""Sentences as the model reads them, a million of which fit in memory (NumPy only)."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True)
class TokenisedSentence:
    """A sentence as the model reads it.

    Attributes:
        ids: int64, special tokens included.
        stored: bool, False for special tokens: they go into the model and stay out of the store.
        texts: the stored tokens as text.
        positions: int64, place of each stored token among the sentence's non-special ones.
    """

    ids: np.ndarray
    stored: np.ndarray
    texts: list[str]
    positions: np.ndarray


class TokenisedSentences(Sequence[TokenisedSentence]):
    """Sentences in a few flat arrays, 9 bytes a token in place of a hundred; each is made when asked for."""

    def __init__(self, sentences: Iterable[TokenisedSentence]) -> None:
        """Take in sentences, one at a time."""
        ids, stored, positions = array("i"), bytearray(), array("i")
        ends, stored_ends = array("q", [0]), array("q", [0])
        self._texts: dict[int, str] = {}
        for sentence in sentences:
            ids.frombytes(sentence.ids.astype(np.intc).tobytes())
            stored += sentence.stored.tobytes()
            positions.frombytes(sentence.positions.astype(np.intc).tobytes())
            ends.append(len(ids))
            stored_ends.append(len(positions))
            self._texts.update(zip(sentence.ids[sentence.stored].tolist(), sentence.texts, strict=True))
        self._ids, self._stored = np.frombuffer(ids, np.intc), np.frombuffer(stored, bool)
        self._positions = np.frombuffer(positions, np.intc)
        self._ends, self._stored_ends = ends, stored_ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> TokenisedSentence: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenisedSentence]: ...

    def __getitem__(self, index: int | slice) -> TokenisedSentence | list[TokenisedSentence]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # from the end where negative; IndexError beyond it
        tokens = slice(self._ends[place], self._ends[place + 1])
        ids, stored = self._ids[tokens].astype(np.int64), self._stored[tokens]
        return TokenisedSentence(
            ids=ids,
            stored=stored,
            texts=[self._texts[token] for token in ids[stored].tolist()],
            positions=self._positions[self._stored_ends[place] : self._stored_ends[place + 1]].astype(
                np.int64
            ),
        )
