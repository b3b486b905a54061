"""Models and SAEs of random weights under their real ids, in the layout of a Hugging Face hub cache.

They are tiny: they test that the code finds, reads and runs them, and prove nothing about real weights.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from s1_compute_all_features.sae_configurations import SaeConfigurations

REVISION = "0123456789abcdef0123456789abcdef01234567"
CORPUS = [
    "She told the clerk that the watch was new, although it was not.",
    "He counted the coins twice and gave back the one too many.",
    'The rain fell all night. "Nobody came," said the gardener.',
    "I wrote the report in an hour; the numbers I made up.",
]


def snapshot(cache: Path, repo_id: str) -> Path:
    """The snapshot folder of a repository in a hub cache, its ``main`` pointing there."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)
    folder = repository / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def small_tokenizer(bos: str = "<bos>", prepend: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with ``prepend`` it puts the BOS token in front, as Gemma's does."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        CORPUS, vocab_size=400, special_tokens=["<pad>", "<eos>", bos], show_progress=False
    )
    if prepend:
        bpe.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token=bos
    )


def tiny_gemma2(n_layers: int = 3, d_model: int = 16, vocabulary: int = 400) -> Gemma2ForCausalLM:
    """Random weights of the Gemma-2 architecture, large enough that softcapping matters."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=d_model // 2,
        query_pre_attn_scalar=d_model // 2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return Gemma2ForCausalLM(config).eval()


def tiny_gpt2(n_layers: int = 12, d_model: int = 16, vocabulary: int = 400) -> GPT2LMHeadModel:
    """Random weights of the GPT-2 architecture, with a residual stream whose mean is not zero."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=2,
        n_positions=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


def write_fake_gemma(
    cache: Path, repo_id: str = "google/gemma-2-2b", n_layers: int = 26, d_model: int = 16
) -> None:
    """Gemma-2-2B's place in the cache, filled with a tiny random Gemma-2."""
    folder = snapshot(cache, repo_id)
    tiny_gemma2(n_layers, d_model).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)


def write_fake_gemma_scope(
    cache: Path, configurations: SaeConfigurations, d_model: int = 16, d_sae: int = 64
) -> None:
    """Every SAE of a Gemma Scope configuration in its place, as ``params.npz``."""
    folder = snapshot(cache, configurations.repo_id)
    for number, entry in enumerate(configurations.saes):
        write_params(folder / entry.path, d_model, d_sae, seed=number)


def write_params(folder: Path, d_model: int, d_sae: int, seed: int) -> None:
    """A random JumpReLU SAE in Gemma Scope's file layout."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "params.npz",
        W_enc=rng.normal(size=(d_model, d_sae)).astype(np.float32),
        W_dec=rng.normal(size=(d_sae, d_model)).astype(np.float32),
        b_enc=rng.normal(size=d_sae).astype(np.float32),
        b_dec=rng.normal(size=d_model).astype(np.float32),
        threshold=rng.uniform(0.5, 3.0, size=d_sae).astype(np.float32),
    )


def write_fake_gpt2(cache: Path, d_model: int = 16) -> None:
    """GPT-2's place in the cache; its tokenizer does not put a BOS token in front."""
    folder = snapshot(cache, "openai-community/gpt2")
    tiny_gpt2(d_model=d_model).save_pretrained(folder)
    tokenizer = small_tokenizer(bos="<|endoftext|>", prepend=False)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)


def write_fake_gpt2_saes(
    cache: Path, repo_id: str, paths: Iterable[str], d_model: int = 16, d_sae: int = 48
) -> None:
    """ReLU SAEs in the layout that sae-lens wrote before its version 6, as gpt2-small-res-jb has it."""
    folder = snapshot(cache, repo_id)
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        (folder / path).mkdir(parents=True, exist_ok=True)
        weights = {
            "W_enc": rng.normal(size=(d_model, d_sae)),
            "W_dec": rng.normal(size=(d_sae, d_model)),
            "b_enc": rng.normal(size=d_sae) - 2,
            "b_dec": rng.normal(size=d_model),
        }
        save_file(
            {name: array.astype(np.float32) for name, array in weights.items()},
            folder / path / "sae_weights.safetensors",
        )
        (folder / path / "cfg.json").write_text(
            json.dumps(
                {
                    "model_name": "gpt2-small",
                    "hook_point": path,
                    "hook_point_layer": int(path.split(".")[1]),
                    "hook_point_head_index": None,
                    "dataset_path": "Skylion007/openwebtext",
                    "context_size": 128,
                    "d_in": d_model,
                    "d_sae": d_sae,
                    "device": "mps",
                    "dtype": "torch.float32",
                    "seed": 42,
                }
            )
        )


def tiny_gpt_neox(n_layers: int = 6, d_model: int = 16, vocabulary: int = 400) -> GPTNeoXForCausalLM:
    """Random weights of the GPT-NeoX architecture, which Pythia has."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return GPTNeoXForCausalLM(config).eval()


def write_fake_pythia(cache: Path, repo_id: str = "EleutherAI/pythia-70m-deduped") -> None:
    """Pythia-70m's place in the cache; its tokenizer does not put a BOS token in front."""
    folder = snapshot(cache, repo_id)
    tiny_gpt_neox().save_pretrained(folder)
    small_tokenizer(bos="<|endoftext|>", prepend=False).save_pretrained(folder)


def write_relu_sae(folder: Path, cfg: str, d_model: int = 16, d_sae: int = 48, seed: int = 0) -> None:
    """A ReLU SAE in sae-lens's own format, beside the cfg.json that is given; its sizes are put in."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model), "b_enc": (d_sae,), "b_dec": (d_model,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    sizes = {"d_in": d_model, "d_sae": d_sae}
    (folder / "cfg.json").write_text(json.dumps({**json.loads(cfg), **sizes}))


def write_gemma_scope_2_sae(
    folder: Path, config: str, d_model: int = 16, d_sae: int = 64, seed: int = 0
) -> None:
    """A random JumpReLU SAE in Gemma Scope 2's file layout, beside the config.json that is given."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        "w_enc": rng.normal(size=(d_model, d_sae)),
        "w_dec": rng.normal(size=(d_sae, d_model)),
        "b_enc": rng.normal(size=d_sae),
        "b_dec": rng.normal(size=d_model),
        "threshold": rng.uniform(0.5, 3.0, size=d_sae),
    }
    save_file(
        {name: array.astype(np.float32) for name, array in weights.items()}, folder / "params.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({**json.loads(config), "width": d_sae}))


def tiny_gemma3(
    n_layers: int, has_pictures: bool, d_model: int = 16, vocabulary: int = 400
) -> torch.nn.Module:
    """Random weights of the Gemma-3 architecture; with pictures in the wrapper that holds them from 4b on."""
    torch.manual_seed(0)
    small = {"hidden_size": d_model, "intermediate_size": 2 * d_model, "num_attention_heads": 2}
    text = Gemma3TextConfig(
        **small,
        vocab_size=vocabulary,
        num_hidden_layers=n_layers,
        num_key_value_heads=1,
        head_dim=d_model // 2,
        query_pre_attn_scalar=d_model // 2,
        max_position_embeddings=256,
        sliding_window=8,
        initializer_range=0.3,
    )
    if not has_pictures:
        return Gemma3ForCausalLM(text).eval()
    vision = {**small, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
    ids = {"image_token_index": 399, "boi_token_index": 397, "eoi_token_index": 398}
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4, **ids)
    return Gemma3ForConditionalGeneration(config).eval()


def write_fake_gemma3(cache: Path, repo_id: str, n_layers: int, has_pictures: bool) -> None:
    """A Gemma 3's place in the cache."""
    folder = snapshot(cache, repo_id)
    tiny_gemma3(n_layers, has_pictures).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
