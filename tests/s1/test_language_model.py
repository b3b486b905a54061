"""Hidden states against the models' own, one sentence at a time and without padding."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS
from s1_compute_all_features.language_model import (
    BLOCK_INPUT,
    LanguageModel,
    find_blocks,
    forward_states,
    length_sorted_batches,
    load_language_model,
    tokenise,
)
from s1_compute_all_features.sae_configurations import ModelEntry
from tests.fake_hub import CORPUS, small_tokenizer, tiny_gemma2, tiny_gpt2

# Padding changes the order of additions in float32; measured 4e-6 relative on Gemma-2 of true size.
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


def small_llama():
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            attn_implementation="eager",
            initializer_range=0.3,
        )
    )


def small_bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            attn_implementation="eager",
            initializer_range=0.3,
        )
    )


MODELS = {
    "gemma2": lambda: tiny_gemma2().model,
    "gpt2": lambda: tiny_gpt2(n_layers=3).transformer,
    "llama": small_llama,
    "bert": small_bert,
}


@pytest.mark.parametrize("name", MODELS)
def test_states_equal_the_models_own_for_single_sentences(name):
    model = wrapped(MODELS[name]())
    model.model.set_attn_implementation("eager")
    sentences = tokenise(model, CORPUS, prepend_bos=True)
    batch = forward_states(model, sentences, [BLOCK_INPUT, 0, 1, 2])
    starts = np.cumsum([0] + [len(sentence.texts) for sentence in sentences])
    for index, sentence in enumerate(sentences):
        ids = torch.from_numpy(sentence.ids)[None]
        last_block = []
        handle = model.blocks[2].register_forward_hook(
            lambda module, arguments, output, seen=last_block: (
                seen.append(output[0] if isinstance(output, tuple) else output) or None
            )
        )
        with torch.inference_mode():
            own = model.model(input_ids=ids, output_hidden_states=True).hidden_states
            embedded = model.model.get_input_embeddings()(ids)
        handle.remove()
        expected = {EMBEDDINGS: embedded, BLOCK_INPUT: own[0], 0: own[1], 1: own[2], 2: last_block[0]}
        rows = slice(starts[index], starts[index + 1])
        for layer, states in expected.items():
            stored = states[0][torch.from_numpy(sentence.stored)]
            torch.testing.assert_close(batch[layer][rows], stored, **TOLERANCE)


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


def test_a_tokenizer_without_bos_gets_one():
    tokenizer = small_tokenizer(bos="<|endoftext|>", prepend=False)
    model = wrapped(tiny_gpt2(n_layers=3).transformer, tokenizer)
    sentence = tokenise(model, CORPUS[:1], prepend_bos=True)[0]
    assert sentence.ids[0] == tokenizer.bos_token_id
    assert not sentence.stored[0]
    assert sentence.stored[1:].all()


def test_token_texts_show_spaces_and_survive_split_characters():
    model = wrapped(tiny_gemma2().model)
    texts = tokenise(model, ["She told 漢字 a_b $5"], prepend_bos=True)[0].texts
    assert "".join(texts).startswith("She told ")
    assert any(text.startswith(" ") for text in texts)
    assert all(text and "\N{REPLACEMENT CHARACTER}" not in text for text in texts)


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
    with pytest.raises(UserError, match=r"gpt2_small_configurations\.json.*build_demo_model\.py"):
        load_language_model(entry, tmp_path, "cpu", "float32")
