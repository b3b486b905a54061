"""A tiny random model of every architecture whose blocks are known, with every gain and bias random too."""

from functools import partial

import torch
import transformers

from s1_compute_all_features.language_model import LanguageModel, find_blocks
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import CORPUS, small_tokenizer, tiny_gemma2, tiny_gpt2
from tests.s1.test_architectures import N_LAYERS, WINDOWS, decoder, tiny_bert, tiny_distilbert


def named(name, **more):
    """A decoder with a configuration in the words of Llama."""
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    return decoder(config, getattr(transformers, f"{name}ForCausalLM"), **more)


def gpt_like(name, **more):
    """A decoder with a configuration in the words of GPT-2 or in those of GPT-NeoX."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")
    return model(getattr(transformers, f"{name}Config")(vocab_size=400, initializer_range=0.3, **more))


NEOX = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}

MODELS = {
    "gemma": partial(named, "Gemma"),
    "gemma2": tiny_gemma2,
    "gemma3_text": partial(named, "Gemma3", query_pre_attn_scalar=8, **WINDOWS),
    "gpt2": partial(tiny_gpt2, n_layers=N_LAYERS),
    "gpt_neo": partial(
        gpt_like,
        "GPTNeo",
        hidden_size=16,
        num_layers=N_LAYERS,
        num_heads=2,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=5,
        max_position_embeddings=256,
    ),
    "gpt_neox": partial(gpt_like, "GPTNeoX", **NEOX),
    "gpt_neox in sequence": partial(gpt_like, "GPTNeoX", use_parallel_residual=False, **NEOX),
    "gpt_oss": partial(named, "GptOss", **EXPERTS, **WINDOWS),
    "gptj": partial(gpt_like, "GPTJ", n_embd=16, n_layer=N_LAYERS, n_head=2, n_positions=256, rotary_dim=4),
    "llama": partial(named, "Llama"),
    "mistral": partial(named, "Mistral", sliding_window=5),
    "mixtral": partial(named, "Mixtral", **EXPERTS),
    "olmo": partial(named, "Olmo"),
    "phi": partial(gpt_like, "Phi", **NEOX),
    "phi3": partial(named, "Phi3", pad_token_id=0),
    "qwen2": partial(named, "Qwen2"),
    "qwen3": partial(named, "Qwen3"),
    "qwen3_moe": partial(
        named,
        "Qwen3Moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        mlp_only_layers=[1],
    ),
    "smollm3": partial(named, "SmolLM3", pad_token_id=0),
}
"""What the test calls it, which begins with its ``model_type``, to what builds it."""

ENCODERS = {"bert": tiny_bert, "distilbert": tiny_distilbert}


def build(name):
    """The model with its head; gains and biases are moved away from the ones and zeros they begin with."""
    whole = {**MODELS, **ENCODERS}[name]().eval()
    whole.set_attn_implementation("eager")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    return whole


def language_model(whole):
    """A model as the extraction holds it."""
    config = whole.config.get_text_config()
    return LanguageModel(
        model=whole.base_model,
        tokenizer=small_tokenizer(),
        blocks=find_blocks(whole.base_model, config.num_hidden_layers, "tiny"),
        d_model=config.hidden_size,
        max_tokens=256,
        description={"id": "tiny"},
    )


def sentences_of(model):
    """Sentences of several lengths, so that a batch of them is padded."""
    sentences = tokenise(model, CORPUS, prepend_bos=True)
    assert len({len(sentence.ids) for sentence in sentences}) > 1
    return sentences
