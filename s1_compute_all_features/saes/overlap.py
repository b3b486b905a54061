"""Which paragraphs repeat a sentence of a data set, found without comparing all with all."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from concept_evaluation.splits import near_duplicate_pairs

RUN_OF_WORDS = 3
SHARED_WORDS = 0.25
"""Texts are measured only where they share a run of so many words, and so large a part of all their words.
A near-duplicate without three words in a row from the sentence is therefore not seen."""
COSINE = 0.55
"""Below the project's 0.6 for near-duplicates: the measure weighs by rarity among the texts at hand, so a
cosine moves a little with the candidates. To leave out a paragraph too many does no harm."""
WINDOW = 3
"""A labelled sentence can be up to this many grammatical sentences long."""
_AT_ONCE = 1000
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words_of("It's late, Tom!")
    ["it's", 'late', 'tom']
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every run of `RUN_OF_WORDS` words; the whole text where it has fewer."""
    if len(words) <= RUN_OF_WORDS:
        yield tuple(words)
    else:
        yield from zip(*(words[start:] for start in range(RUN_OF_WORDS)), strict=False)


class OverlapFilter:
    """Finds paragraphs that contain a sentence of a data set, or a near-duplicate of one."""

    def __init__(self, sentences: Sequence[str]) -> None:
        """Index the sentences by their runs of words.

        Args:
            sentences: of the data sets. One of fewer than `RUN_OF_WORDS` words is found only where it is the
                whole paragraph.
        """
        self.sentences = list(sentences)
        self.words = [words_of(sentence) for sentence in sentences]
        self.holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, words in enumerate(self.words):
            for run in set(_runs(words)):
                self.holders[run].append(index)

    def repeated(self, paragraphs: Sequence[str]) -> set[int]:
        """Indices of the paragraphs that repeat a sentence, word for word or nearly."""
        found: set[int] = set()
        candidates: list[tuple[int, str]] = []
        for index, paragraph in enumerate(paragraphs):
            words = words_of(paragraph)
            near = self._holders(words)
            text = f" {' '.join(words)} "
            if any(f" {' '.join(self.words[sentence])} " in text for sentence in near):
                found.add(index)
            elif near:
                candidates += [(index, window) for window in _windows(paragraph) if self._is_close(window)]
        for start in range(0, len(candidates), _AT_ONCE):
            found |= self._measured(candidates[start : start + _AT_ONCE])
        return found

    def _holders(self, words: Sequence[str]) -> set[int]:
        return {index for run in _runs(words) for index in self.holders.get(run, ())}

    def _is_close(self, text: str) -> bool:
        words = words_of(text)
        own = set(words)
        return any(
            len(own.intersection(self.words[index])) >= SHARED_WORDS * len(own.union(self.words[index]))
            for index in self._holders(words)
        )

    def _measured(self, candidates: Sequence[tuple[int, str]]) -> set[int]:
        """Of candidates (paragraph's index, text), the paragraphs whose text is a near-duplicate."""
        n_sentences = len(self.sentences)
        pairs = near_duplicate_pairs([*self.sentences, *(text for _, text in candidates)], COSINE)
        return {
            candidates[second - n_sentences][0]
            for first, second, _cosine in pairs
            if first < n_sentences <= second
        }


def _windows(paragraph: str) -> Iterator[str]:
    """Every sentence of a paragraph, and every two to `WINDOW` adjacent ones."""
    parts = _SENTENCE_END.split(paragraph)
    for length in range(1, min(WINDOW, len(parts)) + 1):
        for start in range(len(parts) - length + 1):
            yield " ".join(parts[start : start + length])
