"""Hidden states of every kind of model against its own, one sentence at a time and without padding."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from s1_compute_all_features.feature_store import EMBEDDINGS
from s1_compute_all_features.language_model import (
    BLOCK_INPUT,
    forward_states,
    load_language_model,
)
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import CORPUS, small_tokenizer, tiny_gemma2, tiny_gpt2

pytestmark = pytest.mark.usefixtures("one_thread")

N_LAYERS = 3
# Padding changes the order of additions in float32; measured 4e-6 relative on Gemma-2 of true size.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def decoder(config_class, model_class, **more):
    """A tiny random decoder of one of the Llama-like architectures."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
        **more,
    )
    return model_class(config)


def tiny_gpt_neox():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
    )


def tiny_bert():
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
    )


def tiny_distilbert():
    torch.manual_seed(0)
    return DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=400,
            dim=16,
            hidden_dim=32,
            n_layers=N_LAYERS,
            n_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
    )


# Windows shorter than the sentences, and both kinds of attention, so that a wrong mask shows.
WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

MODELS = {
    # name: (model, its blocks and its last norm, as its authors name them)
    "gemma2": (tiny_gemma2, "model.layers", "model.norm"),
    "gemma3": (
        lambda: decoder(Gemma3TextConfig, Gemma3ForCausalLM, query_pre_attn_scalar=8, **WINDOWS),
        "model.layers",
        "model.norm",
    ),
    "gpt2": (lambda: tiny_gpt2(n_layers=N_LAYERS), "transformer.h", "transformer.ln_f"),
    "gpt_neox": (tiny_gpt_neox, "gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "llama": (lambda: decoder(LlamaConfig, LlamaForCausalLM), "model.layers", "model.norm"),
    "qwen2": (lambda: decoder(Qwen2Config, Qwen2ForCausalLM), "model.layers", "model.norm"),
    "qwen3": (lambda: decoder(Qwen3Config, Qwen3ForCausalLM), "model.layers", "model.norm"),
    "bert": (tiny_bert, "bert.encoder.layer", None),
    "distilbert": (tiny_distilbert, "distilbert.transformer.layer", None),
}
ENCODERS = ("bert", "distilbert")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with [CLS] in front and [SEP] behind, as BERT's own puts them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in CORPUS for word, _ in pieces.pre_tokenize_str(text)})
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate([*special, *words])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pieces
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    """Each architecture with its language-model head, as users have it on disk."""
    folders = {}
    for name, (build, _, _) in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        build().eval().save_pretrained(folders[name])
        tokenizer = bert_tokenizer() if name in ENCODERS else small_tokenizer()
        tokenizer.save_pretrained(folders[name])
    return folders


def load(folder):
    return load_language_model(ModelEntry(id=str(folder)), folder, "cpu", "float32")


def own_states(name, folder, ids):
    """What transformers says of one unpadded sentence: all layers by hooks on the blocks, by name."""
    build, blocks, norm = MODELS[name]
    whole = type(build()).from_pretrained(folder, attn_implementation="eager").eval()
    seen = {}

    def remember(key):
        def hook(module, arguments, output):
            seen[key] = output[0] if isinstance(output, tuple) else output

        return hook

    for layer, block in enumerate(whole.get_submodule(blocks)):
        block.register_forward_hook(remember(layer))
    with torch.inference_mode():
        output = whole(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True)
        hidden = output.hidden_states
        embedded = whole.get_input_embeddings()(torch.from_numpy(ids)[None])
        last = whole.get_submodule(norm)(seen[N_LAYERS - 1]) if norm else seen[N_LAYERS - 1]
    # The hooks agree with what the library calls hidden states; its last ones are after the norm.
    for layer in range(N_LAYERS - 1):
        torch.testing.assert_close(seen[layer], hidden[layer + 1])
    torch.testing.assert_close(last, hidden[-1])
    return {EMBEDDINGS: embedded[0], BLOCK_INPUT: hidden[0][0], **{k: v[0] for k, v in seen.items()}}


@pytest.mark.parametrize("name", MODELS)
def test_states_equal_the_models_own_for_single_unpadded_sentences(name, model_folders):
    model = load(model_folders[name])
    assert model.n_layers == N_LAYERS
    assert not hasattr(model.model, "lm_head")
    assert model.model.config._attn_implementation == "eager"
    sentences = tokenise(model, CORPUS, prepend_bos=True)
    assert len({len(sentence.ids) for sentence in sentences}) > 1  # so that some are padded
    batch = forward_states(model, sentences, [BLOCK_INPUT, *range(N_LAYERS)])
    starts = np.cumsum([0] + [len(sentence.texts) for sentence in sentences])
    for index, sentence in enumerate(sentences):
        expected = own_states(name, model_folders[name], sentence.ids)
        rows = slice(starts[index], starts[index + 1])
        assert set(batch) == set(expected)
        for layer, whole in expected.items():
            stored = whole[torch.from_numpy(sentence.stored)]
            torch.testing.assert_close(batch[layer][rows], stored, **TOLERANCE, msg=f"{name} layer {layer}")
    for layer in range(1, N_LAYERS):
        assert (batch[layer] - batch[layer - 1]).abs().max() > 0.01  # the blocks do something


@pytest.mark.parametrize("name", MODELS)
def test_the_pass_ends_at_the_last_asked_layer(name, model_folders):
    """Layers that nobody asked for cost nothing, and change nothing in those that were asked for."""
    model = load(model_folders[name])
    sentences = tokenise(model, CORPUS, prepend_bos=True)
    whole = forward_states(model, sentences, [BLOCK_INPUT, *range(N_LAYERS)])
    ran = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for layers, expected in (([], []), ([BLOCK_INPUT], []), ([0], [0]), ([1, 0], [0, 1])):
        ran.clear()
        states = forward_states(model, sentences, layers)
        assert ran == expected
        assert set(states) == {EMBEDDINGS, *layers}
        for layer, values in states.items():
            assert torch.equal(values, whole[layer])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_special_tokens_go_in_and_stay_out(name, model_folders):
    model = load(model_folders[name])
    sentence = tokenise(model, CORPUS[:1], prepend_bos=True)[0]
    assert sentence.ids[[0, -1]].tolist() == [2, 3]
    assert sentence.stored.tolist() == [False, *[True] * (len(sentence.ids) - 2), False]
    assert "".join(sentence.texts) == CORPUS[0]


def test_a_wrong_layer_would_be_noticed(model_folders):
    """The negative control: neighbouring layers are further apart than the tolerance."""
    model = load(model_folders["llama"])
    sentences = tokenise(model, CORPUS[:1], prepend_bos=True)
    expected = own_states("llama", model_folders["llama"], sentences[0].ids)
    got = forward_states(model, sentences, [0])[0]
    stored = torch.from_numpy(sentences[0].stored)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, expected[1][stored], **TOLERANCE)
