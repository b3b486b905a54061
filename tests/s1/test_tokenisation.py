"""Special tokens, and what each stored token shows, with every kind of tokenizer."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import is_content, token_labels
from s1_compute_all_features.language_model import LanguageModel
from s1_compute_all_features.pooling import pooled_token
from s1_compute_all_features.tokenisation import special_ids, tokenise, warn_of_special_tokens
from tests.fake_hub import CORPUS, small_tokenizer, tiny_gemma2
from tests.s1.tokenizers import KINDS, byte_fallback, byte_level, unigram, word_piece

TOKENIZERS = {name: build() for name, build in KINDS.items()}


def reads(tokenizer, max_tokens=None) -> LanguageModel:
    model = tiny_gemma2(n_layers=1).model
    return LanguageModel(model, tokenizer, None, 16, max_tokens, {"id": "test"})


MODELS = {name: reads(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def shown(tokenizer, text, prepend_bos=None):
    """What the stored tokens of one sentence show."""
    prepend = tokenizer.bos_token_id is not None if prepend_bos is None else prepend_bos
    return tokenise(reads(tokenizer), [text], prepend)[0].texts


TEXTS = st.text(
    st.one_of(
        st.sampled_from(
            " the to cat.,\u201c\u201d\u2018\u2026\u00e9\u0301\U0001f600\u6f22\u5b57\u3002\u200d\n\ufffd"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_the_tokens_together_show_the_sentence(name, text):
    sentence = tokenise(MODELS[name], [text], TOKENIZERS[name].bos_token_id is not None)[0]
    assert "".join(sentence.texts) == text
    assert sentence.texts[-1]
    assert len(sentence.texts) == sentence.stored.sum()


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (byte_fallback(), "to the \U0001f600 the", ["to", " the", " ", "", "", "", "\U0001f600", " the"]),
        (byte_fallback(True), "\u201cto\u201d", ["", "", "", "\u201c", "to", "", "", "\u201d"]),
        (unigram(), "the \u2026", ["the", " ", "", "", "\u2026"]),
        (
            word_piece(),
            "He  lied, to the caf\u00e9.",
            ["He", "  lie", "d", ",", " to", " the", " caf\u00e9", "."],
        ),
        (word_piece(), "The m\u00e4rz to", ["The", " [UNK]", " to"]),  # the model did not read that word
    ],
)
def test_what_each_token_shows(tokenizer, text, expected):
    assert shown(tokenizer, text) == expected


def test_a_token_that_ends_within_a_character_leaves_it_to_the_next():
    tokenizer = byte_level()
    raw = [token.replace("\u0120", " ") for token in tokenizer.tokenize("so \u2018")]
    assert any(
        len(token) > 1 and token.startswith(" ") for token in raw[1:-1]
    )  # a space and a byte of the quote
    texts = shown(tokenizer, "so \u2018")
    assert "".join(texts) == "so \u2018"
    assert texts[-1] == " \u2018"
    assert set(texts[texts.index("so") + 1 if "so" in texts else 2 : -1]) <= {""}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("end", ["\u201d", "\U0001f600", "\u3002", "\u2026", ".", "\u6f22"])
def test_the_last_content_token_is_no_half_of_a_sign(name, end):
    texts = np.array(shown(TOKENIZERS[name], f"the cat{end}"))
    content = is_content(texts)
    (chosen,) = pooled_token(np.array([0, len(texts)]), content, "last-content")
    assert texts[chosen][-1] == (end if end.isalnum() else "t")
    # Every piece of a sign counts as the whole sign does.
    pieces = [place for place, text in enumerate(texts) if text == ""]
    of_end = [place for place in pieces if place > chosen or end.isalnum()]
    assert set(content[of_end].tolist()) <= {end.isalnum()}


def test_pieces_are_named_by_their_character():
    texts = np.array(["We", " ", "", "", "", "\U0001f600", "", " \u201c", "x"])
    names = [f"\U0001f600 {number}/4" for number in (1, 2, 3)]
    assert token_labels(texts).tolist() == ["We", " ", *names, "\U0001f600", "\u201c 1/2", " \u201c", "x"]
    assert token_labels(np.array(["a", ""])).tolist() == ["a", ""]
    assert is_content(texts).tolist() == [True, *[False] * 7, True]
    assert is_content(np.array(["", "", "\u6f22"])).all()
    assert not len(is_content(np.array([], dtype=str)))


class Slow(PreTrainedTokenizer):
    """A tokenizer without spans, written in Python: a token a byte."""

    def __init__(self, **more):
        super().__init__(bos_token="<bos>", eos_token="<eos>", **more)

    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {**{f"<0x{byte:02X}>": byte for byte in range(256)}, **self.added_tokens_encoder}

    def _tokenize(self, text, **_):
        return [f"<0x{byte:02X}>" for byte in text.encode()]

    def _convert_token_to_id(self, token):
        return int(token[3:-1], 16)

    def _convert_id_to_token(self, index):
        return f"<0x{index:02X}>"

    def convert_tokens_to_string(self, tokens):
        return bytes(int(token[3:-1], 16) for token in tokens).decode(errors="replace")


def test_a_tokenizer_that_tells_no_spans_shows_whole_characters_too():
    tokenizer = Slow()
    assert not tokenizer.is_fast
    assert shown(tokenizer, "a \u201c\U0001f600\ufffdz") == [
        *["a", " ", "", "", "\u201c", "", "", "", "\U0001f600"],
        *["", "", "", "\ufffdz"],  # the sign of a broken character is taken for one
    ]


# Special tokens.


@pytest.mark.parametrize("tokenizer", [small_tokenizer(), small_tokenizer(prepend=False), byte_fallback()])
@pytest.mark.parametrize("text", [CORPUS[0], f"<bos>{CORPUS[0]}", f"<bos><bos>{CORPUS[0]}"])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_exactly_one_bos_or_none_stands_in_front(tokenizer, text, prepend_bos):
    model = reads(tokenizer)
    sentences = tokenise(model, [text, "to"], prepend_bos)
    plain = tokenise(model, [CORPUS[0]], prepend_bos)[0]
    assert sentences[0].ids.tolist() == plain.ids.tolist()
    assert sentences[0].texts == plain.texts
    assert sentences[0].ids.tolist().count(tokenizer.bos_token_id) == prepend_bos
    assert sentences.n_with_opening == text.startswith("<bos>")
    assert sentences.n_with_special == 0


def test_a_name_behind_a_space_may_be_a_second_bos():
    """Some tokenizers take the space before a special token for a part of it."""
    from tokenizers import AddedToken

    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"bos_token": AddedToken("<bos>", lstrip=True, special=True)})
    sentences = tokenise(reads(tokenizer), [" <bos>He"], True)
    assert tokenizer(" <bos>He")["input_ids"][:2] == [2, 2]
    assert sentences[0].ids.tolist().count(2) == 1
    assert "".join(sentences[0].texts) == "He"
    assert sentences.n_with_opening == 1


def test_special_tokens_in_a_text_are_read_and_not_stored():
    tokenizer = small_tokenizer()
    sentences = tokenise(reads(tokenizer), ["He <eos>lied<pad>.", "He lied."], True)
    assert [int(token) for token in sentences[0].ids[~sentences[0].stored]] == [2, 1, 0]
    assert "".join(sentences[0].texts) == "He lied."
    assert (sentences.n_with_opening, sentences.n_with_special) == (0, 1)


def test_what_became_of_special_tokens_is_told(caplog):
    tokenizer = small_tokenizer()
    texts = ["<bos>He lied.", "He <eos>lied.", "He lied."]
    for put, message in ((True, "the model reads one in front"), (False, '"prepend_bos": false')):
        caplog.clear()
        warn_of_special_tokens("d.csv", tokenise(reads(tokenizer), texts, put), tokenizer, put)
        assert any(message in line and "1 sentence" in line for line in caplog.messages)
        assert any("<eos>" in line and "not stored" in line for line in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        warn_of_special_tokens("d.csv", tokenise(reads(tokenizer), texts[2:], True), tokenizer, True)
    assert caplog.messages == []


def test_a_tokenizer_without_bos_is_told():
    tokenizer = byte_level()
    tokenizer.bos_token = None
    with pytest.raises(
        UserError, match=r'model test: .* no BOS token .* set "prepend_bos": false in the conf'
    ):
        tokenise(reads(tokenizer), ["He lied."], True)
    sentence = tokenise(reads(tokenizer), ["He lied."], False)[0]
    assert sentence.stored.all()


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("text", ["He lied.", "[CLS] He lied."])
def test_a_tokenizer_that_begins_with_cls_keeps_it(prepend_bos, text):
    sentence = tokenise(reads(word_piece()), [text], prepend_bos)[0]
    assert sentence.ids[[0, -1]].tolist() == [2, 3]
    assert sentence.ids.tolist().count(2) == 1
    assert "".join(sentence.texts).strip() == "He lied."


def test_unknown_words_are_stored():
    tokenizer = word_piece()
    assert tokenizer.unk_token_id not in special_ids(tokenizer)
    assert special_ids(tokenizer) == {0, 2, 3, 4}
    assert tokenise(reads(tokenizer), ["xyz"], True)[0].texts == ["[UNK]"]


def test_only_the_last_token_is_stored_where_that_is_asked_for():
    sentence = tokenise(reads(byte_fallback()), ["to the \U0001f600"], True, final_only=True)[0]
    assert (sentence.texts, sentence.positions.tolist()) == (["\U0001f600"], [6])
    assert sentence.stored.tolist() == [False] * 7 + [True]


def test_a_tokenizer_of_another_model_is_told():
    tokenizer = byte_level()
    tokenizer.add_tokens([f"word{number}" for number in range(200)])
    with pytest.raises(
        UserError, match=r"makes a token \d{3} of sentence 1 .* end at 399; give it the tokenizer"
    ):
        tokenise(reads(tokenizer), ["fine", "word199"], True)
