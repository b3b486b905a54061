"""A model whose files do not hold all that is read of it is refused by name, never run on random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline_common.errors import UserError
from s1_compute_all_features.language_model import forward_states, load_language_model
from s1_compute_all_features.models.text_writing import load_writer
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import CORPUS, small_tokenizer, tiny_gpt2

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=256,
            initializer_range=0.3,
            **more,
        )
    )


def written(folder, model, change=None, shard="200GB", **config):
    """A model's folder whose weights or settings were changed after it was saved."""
    model.save_pretrained(folder, max_shard_size=shard)
    small_tokenizer().save_pretrained(folder)
    if change is not None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def load(folder, with_head=False):
    return load_language_model(ModelEntry(id=str(folder)), folder, "cpu", "float32", with_head)


def without(part):
    return lambda weights: {name: values for name, values in weights.items() if part not in name}


def renamed(old, new):
    return lambda weights: {name.replace(old, new, 1): values for name, values in weights.items()}


def prefixed(prefix):
    return lambda weights: {f"{prefix}{name}": values for name, values in weights.items()}


NOT_WHOLE = {
    "compiled": (prefixed("_orig_mod."), r'carry "_orig_mod\.".*torch\.compile.*save the model'),
    "with PEFT": (prefixed("base_model.model."), r'carry "base_model\.model\.".*merge_and_unload'),
    "in parallel": (prefixed("module."), r'carry "module\.".*DataParallel'),
    "in a class of its own": (prefixed("lm."), r'carry "lm\.".*save the model without it'),
    "one block compiled": (renamed("layers.1.", "layers.1._orig_mod."), r'layers\.1\..*carry "_orig_mod\."'),
    "without a layer": (without("layers.1."), r"9 of .*layers\.1\.self_attn\.q_proj\.weight.* 6 more; fetch"),
    "without the embeddings": (without("embed_tokens"), r"1 of .*random: \S*embed_tokens\.weight"),
    "without a norm": (without("layers.2.input_layernorm"), r"layers\.2\.input_layernorm\.weight"),
    "with names of its own": (renamed("self_attn", "attn"), r"no place for \(.*attn\.k_proj\.weight"),
}


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("case", NOT_WHOLE)
def test_missing_weights_are_named(case, with_head, tmp_path, capfd):
    change, message = NOT_WHOLE[case]
    folder = written(tmp_path, tiny_llama(), change)
    with pytest.raises(UserError, match=message) as refusal:
        load(folder, with_head)
    assert "\n" not in str(refusal.value)
    assert "LOAD REPORT" not in capfd.readouterr().err  # the line says it all


def test_a_config_of_more_layers_than_there_are_weights_is_refused(tmp_path):
    folder = written(tmp_path, tiny_llama(), num_hidden_layers=5)
    with pytest.raises(UserError, match=r"18 of \d+ weights .*layers\.3\..*config\.json that belongs"):
        load(folder)


def test_weights_of_another_shape_are_named_with_both(tmp_path):
    folder = written(tmp_path, tiny_llama(), vocab_size=500)
    with pytest.raises(UserError, match=r"embed_tokens\.weight \[400, 16\] instead of \[500, 16\]; give it"):
        load(folder)


def test_a_missing_head_matters_to_those_who_use_it(tmp_path):
    folder = written(tmp_path, tiny_llama(), without("lm_head"))
    assert load(folder).n_layers == 3
    with pytest.raises(UserError, match=r"1 of 30 weights .*random: lm_head\.weight"):
        load(folder, with_head=True)


def test_a_tied_head_is_not_missing(tmp_path):
    model = load(written(tmp_path, tiny_llama(tie_word_embeddings=True)), with_head=True).with_head
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_missing_shard_and_a_shard_that_lacks_weights_are_refused(tmp_path):
    folder = written(tmp_path, tiny_llama(), shard="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    weights = load_file(shards[0])
    gone = next(iter(weights))
    save_file({name: values for name, values in weights.items() if name != gone}, shards[0], {"format": "pt"})
    with pytest.raises(UserError, match=rf"random: {gone.removeprefix('model.')}; fetch or save"):
        load(folder)
    shards[0].unlink()
    with pytest.raises(UserError, match=r"cannot be loaded.*check the path") as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("leaf", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "mlp.lora_A.weight"])
def test_weights_of_a_block_that_would_be_left_out_are_refused(leaf, tmp_path):
    name = f"model.layers.0.{leaf}"
    folder = written(tmp_path, tiny_llama(), lambda weights: {**weights, name: torch.ones(16)})
    with pytest.raises(UserError, match=rf"has no place for: {name}; give it the config\.json"):
        load(folder)


def test_the_masks_of_old_checkpoints_are_no_weights(tmp_path):
    """The hub's GPT-2 has them, as a bias of the attention."""
    mask = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "transformer.h.0.attn.masked_bias": torch.ones(1),
    }
    assert load(written(tmp_path, tiny_gpt2(3), lambda weights: {**weights, **mask})).n_layers == 3


def test_blocks_beyond_those_of_the_config_are_told(tmp_path, caplog):
    model = load(written(tmp_path / "less", tiny_llama(), num_hidden_layers=2))
    assert "more than the 2 blocks that its config.json names (model.layers.2." in caplog.text
    whole = load(written(tmp_path / "whole", tiny_llama()))
    states = [forward_states(one, tokenise(one, CORPUS, True), [1])[1] for one in (model, whole)]
    assert torch.equal(*states)


def test_an_adapter_that_would_not_be_applied_is_refused(tmp_path):
    folder = written(tmp_path, tiny_llama())
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"an adapter lies beside it \(adapter_config\.json\).*merge"):
        load(folder)


def test_a_model_that_writes_text_is_whole_too(tmp_path):
    with pytest.raises(UserError, match=r'carry "_orig_mod\."'):
        load_writer(written(tmp_path, tiny_llama(), prefixed("_orig_mod.")), "float32")
