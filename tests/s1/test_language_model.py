"""Tokens, batches and blocks; test_architectures.py holds the states against each model's own."""

import numpy as np
import pytest
import torch

from pipeline_common.errors import UserError
from s1_compute_all_features.language_model import (
    LanguageModel,
    find_blocks,
    forward_states,
    length_sorted_batches,
    load_language_model,
)
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import CORPUS, small_tokenizer, tiny_gemma2

# Two orders of addition in float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def wrapped(model, tokenizer=None, n_layers=3) -> LanguageModel:
    return LanguageModel(
        model=model.eval(),
        tokenizer=tokenizer or small_tokenizer(),
        blocks=find_blocks(model, n_layers, "test"),
        d_model=16,
        max_tokens=256,
        description={},
    )


def test_the_last_layer_is_taken_before_the_final_norm():
    """Transformers' last hidden state is after the norm; a store of that would be another thing."""
    model = wrapped(tiny_gemma2().model)
    sentences = tokenise(model, CORPUS[:1], prepend_bos=True)
    states = forward_states(model, sentences, [2])[2]
    with torch.inference_mode():
        normed = model.model(input_ids=torch.from_numpy(sentences[0].ids)[None]).last_hidden_state[0]
        own = model.model.norm(states)
    kept = normed[torch.from_numpy(sentences[0].stored)]
    torch.testing.assert_close(own, kept, **TOLERANCE)
    assert (kept - states).abs().max() > 0.1


def test_special_tokens_go_in_and_stay_out():
    model = wrapped(tiny_gemma2().model)
    with_bos, without = (tokenise(model, CORPUS, prepend_bos=flag) for flag in (True, False))
    assert with_bos[0].ids[0] == model.tokenizer.bos_token_id
    assert without[0].ids[0] != model.tokenizer.bos_token_id
    assert with_bos[0].texts == without[0].texts
    assert "".join(with_bos[0].texts).strip() == CORPUS[0]
    one, other = (forward_states(model, [tokens[0]], [0])[0] for tokens in (with_bos, without))
    assert one.shape == other.shape
    assert (one - other).abs().max() > 1e-3


def test_batches_hold_every_sentence_once_within_the_limit():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, size=200).tolist()
    batches = list(length_sorted_batches(lengths, 256))
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 256 for batch in batches)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert list(length_sorted_batches([500, 3], 256)) == [[1], [0]]


def test_too_long_and_empty_sentences_are_named():
    model = wrapped(tiny_gemma2().model)
    with pytest.raises(UserError, match=r"sentence 1 has \d+ tokens, the model takes 256"):
        tokenise(model, ["fine", "word " * 400], prepend_bos=True)
    with pytest.raises(UserError, match=r"sentence 0 .* holds no token"):
        tokenise(model, ["<eos>"], prepend_bos=True)


def test_blocks_that_are_not_there_are_said():
    with pytest.raises(UserError, match="no list of 7 transformer blocks"):
        find_blocks(tiny_gemma2(), 7, "strange-model")


def test_a_model_that_cannot_be_had_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = ModelEntry(id=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"gpt2_small_configurations\.json.*fetch_demo_model\.py"):
        load_language_model(entry, tmp_path, "cpu", "float32")
