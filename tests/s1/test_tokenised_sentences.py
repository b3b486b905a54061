"""Sentences in flat arrays are the sentences that went in, at a tenth of the memory."""

import tracemalloc

import numpy as np
import pytest

from s1_compute_all_features.tokenised_sentences import TokenisedSentence, TokenisedSentences


def some_sentences(rng, n):
    """Sentences with a special token in front, whose texts go by their ids."""
    for _ in range(n):
        ids = np.concatenate([[2], rng.integers(3, 50, rng.integers(1, 30))])
        stored = ids != 2
        positions = np.arange(stored.sum())
        yield TokenisedSentence(ids, stored, [f" w{token}" for token in ids[stored]], positions)


def assert_same(one, other):
    for name in ("ids", "stored", "positions"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype
        assert first.tolist() == second.tolist()
    assert one.texts == other.texts


def test_every_sentence_comes_back():
    expected = list(some_sentences(np.random.default_rng(0), 40))
    kept = TokenisedSentences(expected)
    assert len(kept) == 40
    for one, other in zip(kept, expected, strict=True):
        assert_same(one, other)
    assert_same(kept[-1], expected[-1])
    assert [len(one.ids) for one in kept[5:25:3]] == [len(one.ids) for one in expected[5:25:3]]
    with pytest.raises(IndexError):
        kept[40]
    assert len(TokenisedSentences([])) == 0


def test_a_sentence_of_which_only_the_last_token_is_stored():
    stored = np.array([False, False, False, True])
    one = TokenisedSentence(np.array([2, 5, 6, 7]), stored, [" end"], np.array([2]))
    (back,) = TokenisedSentences([one])
    assert_same(back, one)


def test_memory_is_a_few_bytes_a_token():
    tracemalloc.start()
    try:
        kept = TokenisedSentences(some_sentences(np.random.default_rng(0), 20_000))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    n_tokens = sum(len(one.ids) for one in kept)
    assert used < 20 * n_tokens  # 9 a token, 16 a sentence, and what arrays keep in reserve
