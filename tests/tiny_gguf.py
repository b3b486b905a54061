"""A Llama of random weights as a GGUF file, small enough to be read in a second."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

from tests.fake_hub import small_tokenizer

D_MODEL, D_MLP, N_HEADS, N_KEY_VALUE_HEADS, N_LAYERS = 64, 96, 2, 1, 2
SPECIAL_TOKENS = 3


def write_tiny_gguf(path: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write the file; returns the weights as transformers names them, dequantised."""
    rng = np.random.default_rng(seed)
    bpe = json.loads(small_tokenizer(prepend=False).backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(256)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_block_count(N_LAYERS)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(D_MODEL // N_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * SPECIAL_TOKENS + [gguf.TokenType.NORMAL] * (
        len(tokens) - SPECIAL_TOKENS
    ))  # fmt: skip
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    expected = {}

    def add(name: str, transformers_name: str, *shape: int, n_heads: int = 0) -> None:
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q4_1
        stored = quantize(rng.normal(1 if len(shape) == 1 else 0, 0.3, shape).astype(np.float32), kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        values = dequantize(stored, kind)
        if n_heads:  # llama.cpp interleaves the halves that the rotary embedding turns
            values = values.reshape(n_heads, shape[0] // n_heads // 2, 2, shape[1]).swapaxes(1, 2)
        expected[transformers_name] = torch.from_numpy(values.reshape(shape).copy())

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), D_MODEL)
    add("output_norm.weight", "model.norm.weight", D_MODEL)
    d_head = D_MODEL // N_HEADS
    for layer in range(N_LAYERS):
        here, there = f"blk.{layer}", f"model.layers.{layer}"
        add(f"{here}.attn_norm.weight", f"{there}.input_layernorm.weight", D_MODEL)
        add(f"{here}.ffn_norm.weight", f"{there}.post_attention_layernorm.weight", D_MODEL)
        for part, n_heads in (("q", N_HEADS), ("k", N_KEY_VALUE_HEADS)):
            name = f"{there}.self_attn.{part}_proj.weight"
            add(f"{here}.attn_{part}.weight", name, n_heads * d_head, D_MODEL, n_heads=n_heads)
        add(f"{here}.attn_v.weight", f"{there}.self_attn.v_proj.weight", N_KEY_VALUE_HEADS * d_head, D_MODEL)
        add(f"{here}.attn_output.weight", f"{there}.self_attn.o_proj.weight", D_MODEL, D_MODEL)
        add(f"{here}.ffn_gate.weight", f"{there}.mlp.gate_proj.weight", D_MLP, D_MODEL)
        add(f"{here}.ffn_up.weight", f"{there}.mlp.up_proj.weight", D_MLP, D_MODEL)
        add(f"{here}.ffn_down.weight", f"{there}.mlp.down_proj.weight", D_MODEL, D_MLP)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
