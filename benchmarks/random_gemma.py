"""Gemma-2-2B's shape with random weights, sentences of random tokens, and SAEs to match."""

import os
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2Model

from s1_compute_all_features.language_model import LanguageModel, TokenisedSentence
from s1_compute_all_features.sae_configurations import SaeEntry

D_MODEL, D_SAE, N_LAYERS, N_SAES = 2304, 16384, 26, 135
L0 = 85
VOCABULARY = 20000


def random_model(n_layers: int, device: str = "cpu") -> LanguageModel:
    """Gemma-2-2B's layers with random weights."""
    torch.manual_seed(0)
    config = Gemma2Config(num_hidden_layers=n_layers, vocab_size=VOCABULARY, attn_implementation="eager")
    with torch.device("meta"):
        model = Gemma2Model(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    # Buffers that are not saved are left as garbage by to_empty.
    fresh = Gemma2Model(Gemma2Config(num_hidden_layers=1, vocab_size=10))
    model.embed_tokens.embed_scale = fresh.embed_tokens.embed_scale
    model.rotary_emb = fresh.rotary_emb
    model.eval().to(device)
    return LanguageModel(model, None, model.layers, D_MODEL, None, {})


def random_sentences(n_sentences: int) -> list[TokenisedSentence]:
    """Token ids of sentences of 15 to 25 tokens, no token twice, a BOS in front that is not stored."""
    rng = np.random.default_rng(0)
    fresh = rng.permutation(np.arange(10, VOCABULARY))
    sentences = []
    for length in rng.integers(15, 26, size=n_sentences):
        ids, fresh = np.concatenate([[2], fresh[:length]]), fresh[length:]
        sentences.append(
            TokenisedSentence(ids, np.arange(length + 1) > 0, [" word"] * length, np.arange(length))
        )
    return sentences


def write_random_saes(root: Path, states: torch.Tensor, n_saes: int) -> tuple[SaeEntry, ...]:
    """SAEs in Gemma Scope's layout whose thresholds leave about `L0` latents active per token."""
    W_enc = torch.randn(D_MODEL, D_SAE, generator=torch.Generator().manual_seed(0)) / D_MODEL**0.5
    n_above = max(1, round(len(states) * L0 / D_SAE))
    # Between two values, so that no token of the sample lies on a threshold.
    threshold = torch.topk(states @ W_enc, n_above + 1, dim=0).values[-2:].mean(dim=0).clamp(min=0)
    entries = []
    for index in range(n_saes):
        path = f"layer_0/width_16k/average_l0_{L0 + index}"
        (root / path).mkdir(parents=True)
        if entries:
            os.link(root / entries[0].path / "params.npz", root / path / "params.npz")
        else:
            np.savez(
                root / path / "params.npz",
                W_enc=W_enc.numpy(),
                W_dec=W_enc.T.numpy(),
                b_enc=np.zeros(D_SAE, dtype=np.float32),
                b_dec=np.zeros(D_MODEL, dtype=np.float32),
                threshold=threshold.numpy(),
            )
        entries.append(
            SaeEntry(
                name=f"layer_00_l0_{L0 + index}",
                layer=0,
                average_l0=L0 + index,
                hook="blocks.0.hook_resid_pre",
                sae_id=path,
                path=path,
                neuronpedia_id="",
            )
        )
    return tuple(entries)
