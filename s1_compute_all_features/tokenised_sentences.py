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
        with_opening: its text begins with the name of the token that begins every text (BOS).
        with_special: its text holds other special tokens.
    """

    ids: np.ndarray
    stored: np.ndarray
    texts: list[str]
    positions: np.ndarray
    with_opening: bool = False
    with_special: bool = False


class TokenisedSentences(Sequence[TokenisedSentence]):
    """Sentences in a few flat arrays, 13 bytes a token in place of a hundred; each is made when asked for.

    Attributes:
        n_with_opening: sentences of which `TokenisedSentence.with_opening` is true.
        n_with_special: sentences of which `TokenisedSentence.with_special` is true.
    """

    def __init__(self, sentences: Iterable[TokenisedSentence]) -> None:
        """Take in sentences, one at a time."""
        ids, stored, positions, texts = array("i"), bytearray(), array("i"), array("i")
        ends, stored_ends = array("q", [0]), array("q", [0])
        number_of_text: dict[str, int] = {}
        flags = bytearray()
        for sentence in sentences:
            ids.frombytes(sentence.ids.astype(np.intc).tobytes())
            stored += sentence.stored.tobytes()
            positions.frombytes(sentence.positions.astype(np.intc).tobytes())
            ends.append(len(ids))
            stored_ends.append(len(positions))
            # One token shows different texts where it is a piece of different characters.
            texts.extend(number_of_text.setdefault(text, len(number_of_text)) for text in sentence.texts)
            flags.append(sentence.with_opening + 2 * sentence.with_special)
        self._ids, self._stored = np.frombuffer(ids, np.intc), np.frombuffer(stored, bool)
        self._positions, self._numbers = np.frombuffer(positions, np.intc), texts
        self._ends, self._stored_ends = ends, stored_ends
        self._texts, self._flags = list(number_of_text), flags
        self.n_with_opening = sum(flag & 1 for flag in flags)
        self.n_with_special = sum(flag >> 1 for flag in flags)

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
        kept = slice(self._stored_ends[place], self._stored_ends[place + 1])
        return TokenisedSentence(
            ids=self._ids[tokens].astype(np.int64),
            stored=self._stored[tokens],
            texts=[self._texts[number] for number in self._numbers[kept]],
            positions=self._positions[kept].astype(np.int64),
            with_opening=bool(self._flags[place] & 1),
            with_special=bool(self._flags[place] >> 1),
        )
