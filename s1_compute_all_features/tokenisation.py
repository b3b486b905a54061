"""From sentences to the token ids that the model reads, and to what each stored token shows."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.tokenised_sentences import TokenisedSentence, TokenisedSentences

if TYPE_CHECKING:
    from s1_compute_all_features.language_model import LanguageModel

logger = logging.getLogger(__name__)

_SENTENCES_AT_ONCE = 1000
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_PIECES = 4
"""Tokens of one character at most: UTF-8 has no longer ones."""


@dataclass(frozen=True)
class Opening:
    """The special token that begins a text.

    Attributes:
        token_id: of the BOS token, or of the CLS token where the tokenizer begins with that; None for none.
        token: its text.
        is_put: whether it goes in front of every sentence.
        by_tokenizer: whether the tokenizer puts it there by itself.
    """

    token_id: int | None
    token: str
    is_put: bool
    by_tokenizer: bool


def opening_of(tokenizer: Any, prepend_bos: bool, what: str) -> Opening:
    """What begins every sentence.

    Args:
        tokenizer: of transformers.
        prepend_bos: put the BOS token in front. A CLS token that a tokenizer begins with stays in any case.
        what: the model, for the message.

    Raises:
        UserError: the tokenizer has neither.
    """
    first = tokenizer("a")["input_ids"][:1]
    bos, cls = tokenizer.bos_token_id, tokenizer.cls_token_id
    if cls is not None and cls != bos and first == [cls]:
        return Opening(cls, tokenizer.cls_token, True, True)
    if bos is not None:
        return Opening(bos, tokenizer.bos_token, prepend_bos, first == [bos])
    if prepend_bos:
        raise UserError(
            f"{what}: its tokenizer has no BOS token to put in front of a text; set "
            '"prepend_bos": false in the configuration (or give --no-bos with train_saes.py --model)'
        )
    return Opening(None, "", False, False)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of all special tokens; that of unknown words only where it serves as another one too."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    special = added | set(tokenizer.all_special_ids)
    others = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )
    if tokenizer.unk_token_id not in others:
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def tokenise(
    model: "LanguageModel", sentences: Sequence[str], prepend_bos: bool, final_only: bool = False
) -> TokenisedSentences:
    """Token ids of every sentence, with and without its special tokens.

    Exactly one BOS token stands in front, or none, whether the tokenizer puts one there, the sentence
    begins with its name, or both. The names of other special tokens in a sentence are what the tokenizer
    makes of them: where that is the special token, the model reads it and it is not stored.

    Args:
        model: the model.
        sentences: the texts.
        prepend_bos: put the BOS token in front where the tokenizer does not; False takes it away.
        final_only: store each sentence's last token only; the model reads them all.

    Raises:
        UserError: a sentence has no token but special ones, more than the model takes, or one that the model
            does not know; or the tokenizer has no BOS token to put in front.
    """
    what = f"model {model.description.get('id', '')}".rstrip()
    reader = _Reader(model, opening_of(model.tokenizer, prepend_bos, what), what)
    # In strips: what the tokenizer returns of a sentence takes many times its text.
    strips = range(0, len(sentences), _SENTENCES_AT_ONCE)
    return TokenisedSentences(
        _final(tokenised) if final_only else tokenised
        for first in strips
        for tokenised in reader.strip(sentences, first)
    )


def warn_of_special_tokens(name: str, sentences: TokenisedSentences, tokenizer: Any, put: bool) -> None:
    """Say how many sentences hold the names of special tokens, and what became of those.

    Args:
        name: of the sentences' file.
        sentences: tokenised.
        tokenizer: that tokenised them.
        put: whether a BOS token goes in front.
    """
    if sentences.n_with_opening:
        logger.warning(
            "warning: %s: %d sentences begin with the token %s themselves; %s",
            name,
            sentences.n_with_opening,
            tokenizer.bos_token or tokenizer.cls_token,
            "the model reads one in front of them, as of all others"
            if put
            else 'it is taken away, as the configuration says "prepend_bos": false',
        )
    if sentences.n_with_special:
        logger.warning(
            "warning: %s: %d sentences hold special tokens in their text (such as %s); the model reads them "
            "as such, and they are not stored",
            name,
            sentences.n_with_special,
            tokenizer.eos_token or tokenizer.sep_token or tokenizer.bos_token,
        )


def _final(sentence: TokenisedSentence) -> TokenisedSentence:
    """The sentence of which only the last token is stored."""
    stored = np.arange(len(sentence.ids)) == np.flatnonzero(sentence.stored)[-1]
    return TokenisedSentence(
        sentence.ids,
        stored,
        sentence.texts[-1:],
        sentence.positions[-1:],
        sentence.with_opening,
        sentence.with_special,
    )


class _Reader:
    """Tokenises the sentences of one model."""

    def __init__(self, model: "LanguageModel", opening: Opening, what: str) -> None:
        self._model, self._tokenizer, self._opening, self._what = model, model.tokenizer, opening, what
        self._special = special_ids(model.tokenizer)
        self._n_known = model.model.get_input_embeddings().weight.shape[0]

    def strip(self, sentences: Sequence[str], first: int) -> Iterator[TokenisedSentence]:
        """The sentences from ``first`` on, `_SENTENCES_AT_ONCE` at most."""
        strip = sentences[first : first + _SENTENCES_AT_ONCE]
        texts = [self._without_opening(sentence) for sentence in strip]
        encoded = self._tokenizer(
            texts,
            add_special_tokens=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=self._tokenizer.is_fast,
            verbose=False,
        )
        spans = encoded["offset_mapping"] if self._tokenizer.is_fast else [None] * len(texts)
        parts = zip(strip, texts, encoded["input_ids"], encoded["special_tokens_mask"], spans, strict=True)
        for index, (sentence, text, ids, added, span) in enumerate(parts, start=first):
            yield self._tokenised(index, sentence, text, ids, added, span)

    def _without_opening(self, sentence: str) -> str:
        """The sentence without the name of the token that begins a text, as often as it stands in front."""
        while self._opening.token and sentence.startswith(self._opening.token):
            sentence = sentence.removeprefix(self._opening.token)
        return sentence

    def _tokenised(
        self,
        index: int,
        sentence: str,
        text: str,
        ids: list[int],
        added: list[int],
        spans: list[tuple[int, int]] | None,
    ) -> TokenisedSentence:
        opening = self._opening
        # A tokenizer that ignores spaces in front of the name finds more of them than stand at the start.
        n_front = next((place for place, token in enumerate(ids) if token != opening.token_id), len(ids))
        own = n_front > opening.by_tokenizer or len(text) < len(sentence)
        is_special = [flag or token in self._special for token, flag in zip(ids, added, strict=True)]
        texts = texts_of(self._tokenizer, text, ids, is_special, spans)
        ids, is_special, added = ids[n_front:], is_special[n_front:], added[n_front:]
        in_text = any(special and not flag for special, flag in zip(is_special, added, strict=True))
        if opening.is_put and opening.token_id is not None:
            ids, is_special = [opening.token_id, *ids], [1, *is_special]
        stored = ~np.array(is_special, dtype=bool)
        self._check(index, sentence, ids, stored)
        return TokenisedSentence(
            np.array(ids, dtype=np.int64), stored, texts, np.arange(stored.sum()), own, in_text
        )

    def _check(self, index: int, sentence: str, ids: Sequence[int], stored: np.ndarray) -> None:
        longest = self._model.max_tokens
        if not stored.any():
            raise UserError(f"sentence {index} ({sentence!r}) holds no token but special ones; remove it")
        if longest is not None and len(ids) > longest:
            raise UserError(
                f"sentence {index} has {len(ids)} tokens, the model takes {longest}; shorten it "
                f"({sentence[:60]!r}...)"
            )
        if max(ids) >= self._n_known:
            raise UserError(
                f"{self._what}: its tokenizer makes a token {max(ids)} of sentence {index} "
                f"({sentence[:60]!r}), but its embeddings end at {self._n_known - 1}; give it the tokenizer "
                "that belongs to it"
            )


def texts_of(
    tokenizer: Any,
    text: str,
    ids: Sequence[int],
    is_special: Sequence[int],
    spans: Sequence[tuple[int, int]] | None,
) -> list[str]:
    """What each token that is not special shows: its part of the sentence.

    Where a character is several tokens (the bytes of an emoji, of a curly quote), the last one of them
    shows it, and those before show nothing. What the tokenizer passes over, such as the spaces between
    words, is shown by the token behind. So the tokens together show the sentence. Words that the tokenizer
    does not know are an exception: their token shows its own name.

    Args:
        tokenizer: of transformers.
        text: the sentence.
        ids: its tokens.
        is_special: true for those that are left out.
        spans: where each token stands in the sentence, first and last character (exclusive); a special
            token that the tokenizer added has an empty one. None where the tokenizer does not tell.

    Returns:
        One text for each token that is not special; never an empty one for the last.
    """
    shown = None if spans is None else _by_spans(tokenizer, text, ids, is_special, spans)
    if shown is None:
        plain = [token for token, special in zip(ids, is_special, strict=True) if not special]
        shown = _by_decoding(tokenizer, plain)
    if shown and not shown[-1]:
        shown[-1] = _REPLACEMENT
    return shown


def _by_spans(
    tokenizer: Any,
    text: str,
    ids: Sequence[int],
    is_special: Sequence[int],
    spans: Sequence[tuple[int, int]],
) -> list[str] | None:
    """`texts_of` where the tokenizer tells the spans; None where it tells none but empty ones."""
    places = [
        place for place, span in enumerate(spans) if not is_special[place] or span[1] > span[0]
    ]  # a special token of the text has its place there, one that was added has none
    shown: list[str] = []
    done = 0
    for place, following in zip(places, [*places[1:], None], strict=True):
        end = spans[place][1]
        if following is not None:
            overlaps = spans[following][0] < end
            end = min(end, spans[following][0])
            if overlaps and not text[done:end].strip():
                end = done  # a space before a character in pieces goes with it
        end = max(end, done)
        if not is_special[place]:
            is_unknown = ids[place] == tokenizer.unk_token_id and end > done
            own = text[done:end]
            space = own[: len(own) - len(own.lstrip())]
            shown.append(space + tokenizer.unk_token if is_unknown else own)
        done = end
    return shown if any(shown) or not shown else None


def _by_decoding(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """`texts_of` where the tokenizer does not tell the spans: what it decodes, whole characters at a time."""
    shown, pieces = [], list[int]()
    for token in ids:
        pieces.append(token)
        text = str(tokenizer.decode(pieces, clean_up_tokenization_spaces=False))
        if _REPLACEMENT in text and len(pieces) < _MOST_PIECES:
            shown.append("")
            continue
        raw = str(tokenizer.convert_ids_to_tokens(pieces[0]))
        if raw.startswith(("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")):
            text = text if text[:1].isspace() else f" {text}"
        shown.append(text or raw)
        pieces = []
    return shown
