"""Every site against TransformerLens under its own names, on the same weights.

Twice: against its `TransformerBridge`, which puts its hooks into the modules of transformers and knows all of
the architectures, and against its `HookedTransformer`, a forward pass of its own. The latter is made by hand
here, since ``from_pretrained`` asks the hub for a configuration.
"""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.language_model import BLOCK_INPUT, forward_states
from s1_compute_all_features.saes.sites import (
    HOOKS,
    MLP_IN,
    MLP_NORMALIZED,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    Site,
)
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import small_tokenizer, write_params
from tests.s1.conftest import arguments
from tests.s1.test_architectures import N_LAYERS
from tests.s1.test_block_sites import sites_of
from tests.s1.tiny_models import MODELS, build, language_model, sentences_of

pytestmark = pytest.mark.usefixtures("one_thread")

# Two programs add in different orders; measured 2e-6 relative.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
LAYER_NORM = {"act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-5}
RMS_NORM = {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "eps": 1e-6}
ROTARY = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False, "rotary_dim": 8}
CONFIGURATIONS = {
    "gpt2": LAYER_NORM,
    "gpt_neox": {**LAYER_NORM, **ROTARY, "act_fn": "gelu", "rotary_dim": 2, "parallel_attn_mlp": True},
    "gpt_neox in sequence": {**LAYER_NORM, **ROTARY, "act_fn": "gelu", "rotary_dim": 2},
    "llama": {**RMS_NORM, **ROTARY, "act_fn": "silu", "n_key_value_heads": 1},
    "gemma2": {
        **RMS_NORM,
        **ROTARY,
        "act_fn": "gelu_pytorch_tanh",
        "n_key_value_heads": 1,
        "attn_scale": 8**0.5,
        "attn_scores_soft_cap": 50.0,
        "output_logits_soft_cap": 30.0,
        "use_normalization_before_and_after": True,
        "original_architecture": "Gemma2ForCausalLM",
    },
}


def hooked_transformer(name, whole):
    """TransformerLens' model of the same weights, nothing folded or centred."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions as conversions

    convert = {
        "gpt2": conversions.convert_gpt2_weights,
        "gpt_neox": conversions.convert_neox_weights,
        "llama": conversions.convert_llama_weights,
        "gemma2": conversions.convert_gemma_weights,
    }[name.split()[0]]
    config = HookedTransformerConfig(
        n_layers=N_LAYERS,
        d_model=16,
        d_head=8,
        n_heads=2,
        d_mlp=64 if name == "gpt2" else 32,
        n_ctx=256,
        d_vocab=400,
        device="cpu",
        **CONFIGURATIONS[name],
    )
    hooked = HookedTransformer(config)
    with torch.no_grad():
        hooked.load_state_dict(convert(whole, config), strict=False)
    return hooked.eval()


def cached(hooked, sentences):
    """By hook, what TransformerLens caches of the stored tokens; ``mlp.hook_in`` by gain and bias."""
    rows = {}
    for sentence in sentences:
        with torch.inference_mode():
            _, cache = hooked.run_with_cache(torch.from_numpy(sentence.ids)[None])
            gained = {
                Site(number, MLP_IN).hook: cache[Site(number, MLP_NORMALIZED).hook] * block.ln2.w
                + getattr(block.ln2, "b", 0)
                for number, block in enumerate(hooked.blocks)
            }
        for key, values in {**cache, **gained}.items():
            if values.ndim >= 3 and values.shape[:2] == (1, len(sentence.ids)):
                rows.setdefault(key, []).append(values[0].flatten(1)[torch.from_numpy(sentence.stored)])
    return {key: torch.cat(parts) for key, parts in rows.items()}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_site_has_the_values_of_its_hook(name):
    whole = build(name)
    model = language_model(whole)
    sentences = sentences_of(model)
    missing = {RESID_MID} if name == "gpt_neox" else set()
    sites = [Site(block, kind) for block in range(N_LAYERS) for kind in HOOKS if kind not in missing]
    inner = [site for site in sites if site.kind not in (RESID_PRE, RESID_POST)]
    states = forward_states(model, sentences, [BLOCK_INPUT, *range(N_LAYERS)], inner)
    expected = cached(hooked_transformer(name, whole), sentences)
    for site in sites:
        torch.testing.assert_close(
            states[site.place], expected[site.hook], **CLOSE, msg=f"{name} {site.hook}"
        )
    # The control: no site has the values of another one.
    values = [states[site] for site in inner if site.block == 1]
    for one, first in enumerate(values):
        for second in values[one + 1 :]:
            assert first.shape != second.shape or (first - second).abs().max() > 0.01
    assert ("blocks.0.hook_resid_mid" in expected) == (RESID_MID not in missing)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_has_the_values_of_the_bridge(name, tmp_path, monkeypatch):
    import huggingface_hub
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    whole = build(name)
    whole.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), tokenizer=tokenizer, device="cpu")
    model = language_model(whole)
    sentence = sentences_of(model)[0]
    sites = sites_of(name)
    states = forward_states(model, [sentence], [], sites)
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(torch.from_numpy(sentence.ids)[None])
    for site in sites:
        hook = site.hook
        if name in ("gptj", "phi"):  # one norm for attention and MLP, which the bridge has once
            hook = hook.replace("ln2", "ln1")
        expected = cache[hook][0].flatten(1)[torch.from_numpy(sentence.stored)]
        torch.testing.assert_close(states[site], expected, **CLOSE, msg=f"{name} {site.hook}")


@pytest.fixture(scope="module")
def centred(tmp_path_factory):
    """GPT-2 and a JumpReLU SAE at every site of block 1, trained on centred writing weights."""
    folder = tmp_path_factory.mktemp("centred")
    whole = build("gpt2")
    with torch.no_grad():  # a mean over d_model at every site, so that it shows who centres
        for block in whole.transformer.h:
            block.attn.c_proj.bias += 2
            block.mlp.c_proj.bias += 1
    whole.save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    saes = []
    for number, (kind, hook) in enumerate(HOOKS.items()):
        write_params(folder / kind, d_model=16, d_sae=32, seed=number)
        saes.append(
            {
                "name": kind,
                "layer": 1,
                "average_l0": number,
                "hook": f"blocks.1.{hook}",
                "sae_id": kind,
                "path": kind,
                "neuronpedia_id": "",
            }
        )
    content = {
        "format_version": 1,
        "description": "",
        "model": {"id": "model", "center_residual": True},
        "release": "",
        "repo_id": "",
        "sae_root": ".",
        "weights_format": "gemma_scope",
        "saes": saes,
    }
    (folder / "centred.json").write_text(json.dumps(content))
    return folder


def test_centred_saes_read_what_they_were_trained_on(centred, labelled_csv, tmp_path):
    """Activations equal those on the states of TransformerLens' model with centred writing weights."""
    from transformer_lens.weight_processing import ProcessWeights

    assert main(arguments(labelled_csv, tmp_path / "store", centred / "centred.json", "--keep-sinks")) == 0
    store = FeatureStore(tmp_path / "store")
    whole = GPT2LMHeadModel.from_pretrained(centred / "model").eval()
    hooked = hooked_transformer("gpt2", whole)
    plain = dict(hooked.state_dict())
    model = language_model(whole)
    sentences = tokenise(model, store.sentences, prepend_bos=True)
    uncentred = cached(hooked, sentences)
    hooked.load_state_dict(ProcessWeights.center_writing_weights(plain, hooked.cfg))
    expected = cached(hooked, sentences)
    differ = []
    for sae in store.saes:
        got = store.activations(sae).to_dense()
        for states, right in ((expected[sae.hook], True), (uncentred[sae.hook], False)):
            with np.load(centred / sae.name / "params.npz") as weights:
                p = states.numpy().astype(np.float64) @ weights["W_enc"] + weights["b_enc"]
                clear = np.abs(p - weights["threshold"]) > 1e-3  # float32 decides those the same way
                activations = p * (p > weights["threshold"])
            same = np.allclose(got[clear], activations[clear], rtol=1e-3, atol=1e-3)
            if right:
                assert same, sae.hook
            elif not same:
                differ.append(sae.name)
    # Centring changes what is written to the stream, and nothing that is read from it through a LayerNorm.
    assert differ == [sae.name for sae in store.saes if sae.site.is_written]
    assert len(differ) == 5
