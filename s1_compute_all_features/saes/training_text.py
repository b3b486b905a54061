"""Text to train SAEs on: documents from files, cut into pieces that the model reads one at a time."""

import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_common.errors import UserError
from s0_dataset_generation.labelled_sentences import read_unlabelled_sentences
from s1_compute_all_features.tokenisation import special_ids
from s1_compute_all_features.tokenised_sentences import TokenisedSentence

if TYPE_CHECKING:
    from s1_compute_all_features.language_model import LanguageModel

logger = logging.getLogger(__name__)

_DOCUMENTS_AT_ONCE = 1000
_SHORTEST_PIECE = 2


class Pieces(Sequence[TokenisedSentence]):
    """Pieces of documents in one flat array, 4 bytes a token; each is made when it is asked for.

    Attributes:
        n_tokens: int64 [n_pieces], without the BOS token.
    """

    def __init__(self, bos: int | None) -> None:
        """Begin without a piece.

        Args:
            bos: token that goes in front of each piece and is never stored; None for none.
        """
        self._bos = bos
        self._ids, self._ends = array("i"), array("q", [0])

    def add(self, ids: Sequence[int]) -> None:
        """Append a piece."""
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    @property
    def n_tokens(self) -> np.ndarray:
        """Tokens of each piece: int64 [n_pieces]."""
        return np.diff(np.frombuffer(self._ends, np.int64))

    @property
    def total(self) -> int:
        """Tokens of all pieces."""
        return len(self._ids)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> TokenisedSentence:  # type: ignore[override]
        own = np.array(self._ids[self._ends[index] : self._ends[index + 1]], dtype=np.int64)
        stored = np.ones(len(own), dtype=bool)
        positions = np.arange(len(own))
        if self._bos is None:
            return TokenisedSentence(own, stored, [], positions)
        return TokenisedSentence(np.r_[self._bos, own], np.r_[False, stored], [], positions)


@dataclass(frozen=True)
class TrainingText:
    """What the SAEs are trained on, and what they are measured on.

    Attributes:
        train: pieces to train on.
        held_out: pieces of other documents, which training never sees.
        n_documents: documents read, repeated ones left out.
        n_repeated: documents left out because the same text came before.
    """

    train: Pieces
    held_out: Pieces
    n_documents: int
    n_repeated: int


def read_training_text(
    model: "LanguageModel",
    paths: Sequence[Path],
    prepend_bos: bool,
    context: int,
    n_tokens: int,
    n_held_out: int,
    seed: int,
) -> TrainingText:
    """Read documents until there are enough tokens, or no more text.

    The files are read side by side, each as far as the others, so that whatever is taken is a mixture of
    all. Which documents are held out is drawn from the seed, document by document.

    Args:
        model: whose tokenizer cuts the text.
        paths: text files, a document a line, and CSVs with a column ``sentence``.
        prepend_bos: put the model's BOS token in front of each piece.
        context: the most tokens of a piece, BOS included; a longer document becomes several pieces.
        n_tokens: tokens to train on.
        n_held_out: tokens to measure on.
        seed: of the draw.

    Raises:
        UserError: a file cannot be read, the model has no BOS token to put in front, or there is not
            enough text for both parts.
    """
    bos = model.tokenizer.bos_token_id if prepend_bos else None
    if prepend_bos and bos is None:
        raise UserError(
            f"model {model.description['id']}: its tokenizer has no BOS token to put in front; set "
            "prepend_bos to false in the configuration, or give --no-bos"
        )
    longest = context - (bos is not None)
    text = {True: Pieces(bos), False: Pieces(bos)}
    wanted = {True: n_held_out, False: n_tokens}
    draw = np.random.default_rng(seed)
    share = n_held_out / (n_held_out + n_tokens)
    seen: set[int] = set()
    n_repeated = n_with_special = 0
    documents = _side_by_side(paths)
    while any(text[part].total < wanted[part] for part in text) and (
        strip := list(islice(documents, _DOCUMENTS_AT_ONCE))
    ):
        new = [document for document in dict.fromkeys(strip) if hash(document) not in seen]
        seen.update(map(hash, new))
        n_repeated += len(strip) - len(new)
        held_out = draw.random(len(new)) < share
        ids_of_strip, n_of_strip = _token_ids(model, new)
        n_with_special += n_of_strip
        for ids, part in zip(ids_of_strip, held_out.tolist(), strict=True):
            for start in range(0, len(ids), longest):
                piece = ids[start : start + longest]
                if len(piece) >= _SHORTEST_PIECE and text[part].total < wanted[part]:
                    text[part].add(piece)
    _warn_of_special_tokens(n_with_special)
    if not text[True].total or not text[False].total:
        raise UserError(
            f"--texts: {len(seen)} documents, too few to train on one part and measure on another; give more "
            "text, or a smaller --held-out-tokens"
        )
    return TrainingText(text[False], text[True], len(seen), n_repeated)


def _token_ids(model: "LanguageModel", documents: Sequence[str]) -> tuple[list[list[int]], int]:
    """Token ids of each document, and of how many the text names special tokens, which are left out."""
    if not documents:
        return [], 0
    encoded = model.tokenizer(list(documents), add_special_tokens=False, verbose=False)
    special = special_ids(model.tokenizer)
    whole: list[list[int]] = encoded["input_ids"]
    ids = [[token for token in one if token not in special] for one in whole]
    return ids, sum(len(kept) < len(one) for kept, one in zip(ids, whole, strict=True))


def _warn_of_special_tokens(n_documents: int) -> None:
    if n_documents:
        logger.warning(
            "warning: %d documents hold special tokens in their text; those are left out", n_documents
        )


def documents_as_ids(model: "LanguageModel", path: Path) -> Iterator[list[int]]:
    """Token ids of every document of a file, special tokens left out.

    Raises:
        UserError: the file cannot be read.
    """
    documents = _side_by_side([path])
    n_with_special = 0
    while strip := list(islice(documents, _DOCUMENTS_AT_ONCE)):
        ids, n_of_strip = _token_ids(model, strip)
        n_with_special += n_of_strip
        yield from ids
    _warn_of_special_tokens(n_with_special)


def _side_by_side(paths: Sequence[Path]) -> Iterator[str]:
    """The documents of all files, always from the one that is read least far, in share of its size."""
    readers = [(path, _documents(path)) for path in paths]
    shares = [0.0] * len(readers)
    going = set(range(len(readers)))
    while going:
        at = min(going, key=lambda index: (shares[index], index))
        path, documents = readers[at]
        try:
            document, shares[at] = next(documents)
        except StopIteration:
            going.discard(at)
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
        if document:
            yield document


def _documents(path: Path) -> Iterator[tuple[str, float]]:
    """The documents of a file, each with the share of the file that is read with it."""
    if path.suffix.lower() == ".csv":
        sentences = read_unlabelled_sentences(path).sentences
        for number, sentence in enumerate(sentences, start=1):
            yield sentence, number / len(sentences)
        return
    size = max(path.stat().st_size, 1)
    n_read = 0
    with path.open(encoding="utf-8-sig", newline="") as handle:
        for line in handle:
            n_read += len(line.encode())
            yield line.strip(), n_read / size
