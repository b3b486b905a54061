"""The part of a model that reads the text, how much it reads, and the models that are refused."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    ElectraConfig,
    ElectraForMaskedLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS
from s1_compute_all_features.language_model import BLOCK_INPUT, forward_states, load_language_model
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import CORPUS, small_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = [BLOCK_INPUT, 0, 1, 2]
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TEXT = {
    **SMALL,
    "vocab_size": 400,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
# As many layers as the text part has, so that a wrong list of blocks would be taken for the right one.
VISION = {**SMALL, "image_size": 28, "patch_size": 14}


def load(folder, model=None, with_head=False):
    if model is not None:
        model.eval().save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
    return load_language_model(ModelEntry(id=str(folder)), folder, "cpu", "float32", with_head)


def gemma3():
    """A wrapper as google/gemma-3-4b-pt is one, and its language model by itself."""
    torch.manual_seed(0)
    kinds = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    text = {**TEXT, **kinds, "sliding_window": 5, "query_pre_attn_scalar": 8}
    ids = {"image_token_index": 399, "boi_token_index": 397, "eoi_token_index": 398}
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **ids)
    whole = Gemma3ForConditionalGeneration(config)
    alone = Gemma3ForCausalLM(config.text_config)
    return whole, alone


def llava():
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**VISION)
    config = LlavaConfig(
        text_config={**TEXT, "model_type": "llama"}, vision_config=vision, image_token_index=399
    )
    whole = LlavaForConditionalGeneration(config)
    return whole, LlamaForCausalLM(config.text_config)


@pytest.mark.parametrize(("build", "with_head"), [(gemma3, False), (gemma3, True), (llava, False)])
def test_of_a_model_for_pictures_the_language_model_is_read(build, with_head, tmp_path):
    whole, alone = build()
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    wrapped = load(tmp_path / "whole", whole, with_head)
    by_itself = load(tmp_path / "alone", alone, with_head)
    for key in ("architecture", "d_model", "n_layers"):
        assert wrapped.description[key] == by_itself.description[key]
    assert (wrapped.d_model, wrapped.n_layers, wrapped.max_tokens) == (16, 3, 256)
    assert wrapped.model.config._attn_implementation == "eager"
    assert not any("vision" in name for name, _ in wrapped.model.named_modules())
    sentences = tokenise(wrapped, CORPUS, prepend_bos=True)
    states, expected = (forward_states(model, sentences, LAYERS) for model in (wrapped, by_itself))
    assert set(states) == {EMBEDDINGS, *LAYERS}
    for layer, values in expected.items():
        assert torch.equal(states[layer], values)
    assert (states[2] - states[1]).abs().max() > 0.01  # the blocks do something
    if with_head:
        ids = torch.from_numpy(sentences[0].ids)[None]
        with torch.inference_mode():
            logits, own = (
                model.with_head(input_ids=ids, use_cache=False).logits for model in (wrapped, by_itself)
            )
        torch.testing.assert_close(logits, own)


def test_what_a_picture_needs_may_be_missing_and_the_text_part_may_not(tmp_path):
    from safetensors.torch import load_file, save_file

    load(tmp_path, gemma3()[0])
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    assert any(name.startswith("language_model.model.") for name in weights)  # as the hub's files have it

    def keep(part):
        save_file({n: v for n, v in weights.items() if part not in n}, path, metadata={"format": "pt"})

    keep("vision_tower.encoder.layers.0.")
    assert load(tmp_path).n_layers == 3
    keep("language_model.model.layers.1.mlp")
    with pytest.raises(UserError, match=r"3 of \d+ weights .*language_model\.layers\.1\.mlp\.gate_proj"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (T5ForConditionalGeneration, "t5"),
        (BartForConditionalGeneration, "bart"),
    ],
)
def test_an_encoder_decoder_is_refused_in_a_line(model, kind, tmp_path):
    configs = {
        "t5": T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        "bart": BartConfig(
            vocab_size=400,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
        ),
    }
    with pytest.raises(UserError, match=rf": {kind} is an encoder-decoder, .* take a decoder") as refusal:
        load(tmp_path, model(configs[kind]))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "config"), [(ElectraForMaskedLM, ElectraConfig), (AlbertForMaskedLM, AlbertConfig)]
)
def test_embeddings_that_are_projected_are_refused(model, config, tmp_path):
    torch.manual_seed(0)
    # ALBERT runs one block many times; with one layer its blocks can be told.
    settings = config(**{**SMALL, "num_hidden_layers": 1}, vocab_size=400, embedding_size=8)
    with pytest.raises(UserError, match="its embeddings have 8 dimensions, its residual stream 16"):
        load(tmp_path, model(settings))


@pytest.mark.parametrize("padding", [0, 1])
def test_roberta_takes_fewer_tokens_than_it_has_positions(padding, tmp_path):
    torch.manual_seed(0)
    config = RobertaConfig(**SMALL, vocab_size=400, max_position_embeddings=42, pad_token_id=padding)
    model = load(tmp_path, RobertaForMaskedLM(config))
    longest = 42 - padding - 1
    assert model.max_tokens == longest

    def of_length(n_tokens):
        return " ".join(["a"] * (n_tokens - 1))  # a token each, behind the BOS token

    fits = tokenise(model, [of_length(longest), "a a"], True)
    assert [len(sentence.ids) for sentence in fits] == [longest, 3]
    assert forward_states(model, fits, [2])[2].shape == (longest + 1, 16)
    message = rf"sentence 0 has {longest + 1} tokens, the model takes {longest}; shorten it"
    with pytest.raises(UserError, match=message):
        tokenise(model, [of_length(longest + 1)], True)
