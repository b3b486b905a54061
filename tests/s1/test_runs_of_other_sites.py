"""From sentences to a ranking with one SAE at every kind of site, against hooks that are written out here."""

import json

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.saes.sites import HOOKS, MLP_OUT
from s2_find_top_features.analyze_features import main as analyze
from s2_find_top_features.ranked_features import read_results
from tests.fake_hub import small_tokenizer
from tests.s1.conftest import arguments
from tests.test_pipeline_end_to_end import subset_of_shipped_csv

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCK, D_MODEL, D_HEADS, D_SAE = 1, 16, 32, 48
LARGE = ["--block-tokens", "1000", "--batch-tokens", "400"]


def tiny_model():
    """Gemma-2 whose heads side by side are wider than its residual stream, with gains that are not one."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=400,
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=D_HEADS // 4,
        query_pre_attn_scalar=8,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def save_jumprelu(folder, d_in, hook):
    sae_class, config_class = get_sae_class("jumprelu")
    config = config_class(d_in=d_in, d_sae=D_SAE)
    config.metadata.hook_name, config.metadata.prepend_bos = hook, True
    sae = sae_class(config)
    with torch.no_grad():
        for value in sae.parameters():
            value.copy_(torch.randn(value.shape))
        sae.threshold.copy_(torch.rand(D_SAE) * 3)
    sae.save_model(folder)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    tiny_model().save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    torch.manual_seed(5)
    saes = []
    for number, (kind, name) in enumerate(HOOKS.items()):
        hook = f"blocks.{BLOCK}.{name}"
        save_jumprelu(folder / "saes" / kind, D_HEADS if name == "attn.hook_z" else D_MODEL, hook)
        saes.append(
            {
                "name": kind,
                "layer": BLOCK,
                "average_l0": 10 + number,
                "hook": hook,
                "sae_id": kind,
                "path": kind,
                "neuronpedia_id": "",
            }
        )
    content = {
        "format_version": 1,
        "description": "an SAE at every kind of site",
        "model": {"id": "model"},
        "release": "",
        "repo_id": "",
        "sae_root": "saes",
        "weights_format": "sae_lens",
        "saes": saes,
    }
    (folder / "sites.json").write_text(json.dumps(content))
    return folder / "sites.json"


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    return subset_of_shipped_csv(tmp_path_factory.mktemp("csv") / "data.csv", (0, 1, 2, 3), per_label=8)


@pytest.fixture(scope="module")
def finished(csv, configuration, tmp_path_factory):
    """The store of all SAEs, for reading only."""
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("finished") / "store"
    assert main(arguments(csv, folder, configuration, "--check-reconstruction", *LARGE)) == 0
    torch.set_num_threads(before)
    return folder


def states_by_hand(model, ids):
    """What stands at every site of one block for one sentence: [n_tokens, width] by kind of site."""
    block, seen = model.model.layers[BLOCK], {}

    def output_of(module, key):
        return module.register_forward_hook(
            lambda _, inputs, output: seen.update({key: output[0] if isinstance(output, tuple) else output})
        )

    def input_of(module, key):
        return module.register_forward_pre_hook(lambda _, inputs: seen.update({key: inputs[0]}))

    input_of(block, "resid_pre")
    input_of(block.self_attn.o_proj, "hook_z")
    output_of(block.post_attention_layernorm, "attn_out")
    input_of(block.pre_feedforward_layernorm, "resid_mid")
    output_of(block.pre_feedforward_layernorm, "mlp_in")
    output_of(block.post_feedforward_layernorm, "mlp_out")
    output_of(block, "resid_post")
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]))
    middle = seen["resid_mid"]
    seen["mlp_normalized"] = middle / (middle.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return {kind: values[0] for kind, values in seen.items()}


def test_activations_are_those_of_the_states_at_each_site(finished, configuration):
    store = FeatureStore(finished, keep_sinks=True)
    assert [sae.name for sae in store.saes] == list(HOOKS)
    model = Gemma2ForCausalLM.from_pretrained(configuration.parent / "model", attn_implementation="eager")
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(configuration.parent / "model")
    stored = {sae.name: store.activations(sae).to_dense() for sae in store.saes}
    saes = {name: SAE.load_from_disk(configuration.parent / "saes" / name) for name in stored}
    for index in range(0, len(store.sentences), 4):
        ids = tokenizer(store.sentences[index])["input_ids"]
        states = states_by_hand(model, ids)
        assert set(states) == set(HOOKS)
        rows = slice(store.starts[index], store.starts[index + 1])
        for name, sae in saes.items():
            with torch.inference_mode():
                expected = sae.encode(states[name][1:]).numpy()  # without BOS
                p = (states[name][1:] - sae.b_dec) @ sae.W_enc + sae.b_enc
            clear = ((p - sae.threshold).abs() > 1e-3).numpy()  # batches differ by float32 rounding
            assert clear.mean() > 0.99
            np.testing.assert_allclose(
                stored[name][rows][clear], expected[clear], rtol=1e-3, atol=1e-3, err_msg=name
            )
            assert 0.05 < (expected > 0).mean() < 0.95


def test_a_ranking_reads_every_site(finished, tmp_path):
    assert analyze(["--input", str(finished), "--output", str(tmp_path / "results"), "--top-n", "20"]) == 0
    ranked = read_results(tmp_path / "results")
    assert {feature.layer for feature in ranked.features} == {BLOCK}


def test_random_directions_are_left_out_where_no_states_are_stored(csv, configuration, tmp_path, capsys):
    assert main(arguments(csv, tmp_path / "store", configuration, "--saes", MLP_OUT, *LARGE)) == 0
    results = tmp_path / "results"
    assert analyze(["--input", str(tmp_path / "store"), "--output", str(results), "--top-n", "5"]) == 0
    message = "blocks.1.hook_mlp_out, which the best feature's SAE reads, is not stored: no random directions"
    assert f"note: {message}" in capsys.readouterr().out


def test_what_an_extended_store_has_is_what_one_run_gives(finished, csv, configuration, tmp_path):
    for names in ("hook_z,mlp_out", "resid_pre,mlp_in"):
        more = ["--saes", names, "--extend", "--layers", "1", *LARGE]
        assert main(arguments(csv, tmp_path / "store", configuration, *more)) == 0
    one, other = FeatureStore(finished), FeatureStore(tmp_path / "store")
    assert [sae.name for sae in other.saes] == ["resid_pre", "hook_z", "mlp_in", "mlp_out"]
    for sae in other.saes:
        got, expected = other.activations(sae), one.activations(one.find_sae(BLOCK, sae.average_l0))
        np.testing.assert_array_equal(got.to_dense(), expected.to_dense())


def test_an_sae_of_another_width_is_refused(csv, configuration, tmp_path, capsys):
    content = json.loads(configuration.read_text())
    content["saes"] = [{**content["saes"][0], "name": "wide", "path": "hook_z"}]
    content["saes"][0]["hook"] = "blocks.1.attn.hook_z"
    content["sae_root"] = str(configuration.parent / "saes")
    content["model"]["id"] = str(configuration.parent / "model")
    save_jumprelu(tmp_path / "saes" / "hook_z", D_MODEL, "blocks.1.attn.hook_z")
    (tmp_path / "wide.json").write_text(json.dumps(content))
    more = ["--sae-root", str(tmp_path / "saes")]
    assert main(arguments(csv, tmp_path / "store", tmp_path / "wide.json", *more)) == 1
    error = capsys.readouterr().err
    assert "SAE wide reads vectors of 16, those of the model at blocks.1.attn.hook_z have 32" in error
