"""What an SAE's files say, looked at before the forward pass; what is not understood is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pipeline_common.errors import UserError
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.sae_encoder import load_encoder
from s1_compute_all_features.sae_weights import locate_sae
from tests.fake_hub import write_params
from tests.s1.conftest import arguments
from tests.s1.test_sae_encoder import D_MODEL, D_SAE, configurations, entry, sae_lens_folder, states


def change_cfg(folder, **changes):
    path = folder / "cfg.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if key == "metadata" and isinstance(value, dict):
            content[key].update(value)
        elif value is ...:
            content.pop(key)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def change_weights(folder, **changes):
    """Replace, add, or (where the value is None) remove tensors."""
    path = folder / "sae_weights.safetensors"
    tensors = {name: array for name, array in {**load_file(path), **changes}.items() if array is not None}
    save_file(tensors, path)


def locate(root, hook="blocks.0.hook_resid_post", **changes):
    entries = entry(hook=hook)
    return locate_sae(configurations(saes=(entries,), **changes), entries, root, root)


ONES = np.ones(D_SAE, dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": ...}, "the architecture is missing"),
        ({"architecture": "crosscoder"}, "the architecture 'crosscoder' is unknown here"),
        ({"architecture": ["standard"]}, r"the architecture \['standard'\] is no name"),
        ({"architecture": "batchtopk"}, "that of a training checkpoint"),
        ({"metadata": None}, "metadata is None"),
        ({"k": 4}, "k = 4 does not go with the architecture standard"),
        ({"d_in": "16"}, "d_in is '16'"),
        ({"d_sae": True}, "d_sae is True"),
        ({"d_in": D_MODEL + 1}, r"W_enc has the shape \(16, 64\), expected \(17, 64\)"),
        ({"normalize_activations": "zscore"}, "normalize_activations is 'zscore'"),
        (
            {"normalize_activations": "covariance_whitening"},
            "whitened by a matrix that its files do not hold",
        ),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
        ({"metadata": {"hook_name": "blocks.0.hook_embed"}}, "'blocks.0.hook_embed' names no site"),
        ({"metadata": {"hook_name": 7}}, "cfg.json"),
        (
            {"metadata": {"hf_hook_name": "model.layers.0.input"}},
            "hook_name says .*hook_resid_post', hf_hook_name 'model.layers.0.input': two places",
        ),
        ({"metadata": {"hook_head_index": 3}}, "it reads head 3 alone"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "trained with center_residual True, the configuration says False",
        ),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"refactor_factored_attn_matrices": True}}},
            "refactor_factored_attn_matrices = True, which is not understood",
        ),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(changes, message, tmp_path):
    change_cfg(sae_lens_folder(tmp_path / "layer_0"), **changes)
    with pytest.raises(UserError, match=message) as error:
        locate(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": ONES}, "threshold not known to the architecture standard"),
        ({"k": ONES[:1]}, "k not known to the architecture standard"),
        ({"log_threshold": ONES}, "log_threshold not known to the architecture standard"),
        ({"b_enc": None}, "b_enc missing"),
        ({"b_dec": np.ones(D_MODEL + 1, dtype=np.float32)}, r"b_dec has the shape \(17,\), expected \(16,\)"),
        ({"W_dec": np.ones((D_MODEL, D_SAE), dtype=np.float32)}, r"W_dec has the shape \(16, 64\)"),
        ({"b_enc": ONES.astype(np.int32)}, "b_enc holds I32, not floating-point numbers"),
        ({"scaling_factor": 2 * ONES}, "scaling_factor is not 1 everywhere"),
    ],
)
def test_weights_of_another_architecture_are_refused(changes, message, tmp_path):
    change_weights(sae_lens_folder(tmp_path / "layer_0"), **changes)
    with pytest.raises(UserError, match=message) as error:
        locate(tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_a_jumprelu_in_training_is_refused(tmp_path):
    folder = sae_lens_folder(tmp_path / "layer_0", "jumprelu")
    change_weights(folder, threshold=None, log_threshold=ONES)
    with pytest.raises(UserError, match="threshold missing, which the architecture jumprelu has"):
        locate(tmp_path)


def test_a_scaling_factor_of_ones_is_left_out_as_sae_lens_does(tmp_path):
    folder = sae_lens_folder(tmp_path / "layer_0")
    before = load_encoder(locate(tmp_path), configurations(), "cpu").encode(states()).to_dense()
    change_weights(folder, scaling_factor=ONES)
    after = load_encoder(locate(tmp_path), configurations(), "cpu").encode(states()).to_dense()
    np.testing.assert_array_equal(after, before)


def test_an_activation_function_that_sae_lens_would_drop_is_refused(tmp_path):
    folder = sae_lens_folder(tmp_path / "layer_0")
    old = {"hook_point": "blocks.0.hook_resid_post", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32"}
    for more, shown in [
        ({"activation_fn": "tanh-relu"}, "'tanh-relu'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "signed": True}}, "signed"),
    ]:
        (folder / "cfg.json").write_text(json.dumps({**old, **more}))
        with pytest.raises(UserError, match=f"activation function is .*{shown}"):
            locate(tmp_path)


@pytest.mark.parametrize(
    ("said", "hook"),
    [
        ({"hook_name": "model.layers.0"}, "blocks.0.hook_resid_post"),
        ({"hook_name": "transformer.h.0"}, "model.layers.0.output"),
        (
            {
                "hook_name": "blocks.0.hook_mlp_in",
                "hf_hook_name": "model.layers.0.pre_feedforward_layernorm.output",
            },
            "blocks.0.mlp.hook_in",
        ),
    ],
)
def test_a_site_under_another_name_is_the_same_site(said, hook, tmp_path):
    change_cfg(sae_lens_folder(tmp_path / "layer_0"), metadata=said)
    located = locate(tmp_path, hook)
    assert located.spec.site == located.entry.site


def test_centred_weights_are_held_against_the_configuration(tmp_path):
    said = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    change_cfg(sae_lens_folder(tmp_path / "layer_0"), metadata=said)
    located = locate(tmp_path, model=ModelEntry(id="m", center_residual=True))
    assert located.spec.centred


@pytest.mark.parametrize("key", ["k", "apply_b_dec_to_input"])
def test_the_fingerprint_covers_what_the_configuration_says(key, tmp_path):
    folder = sae_lens_folder(tmp_path / "layer_0", "topk", k=12)
    before = locate(tmp_path).fingerprint
    content = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(dict(reversed(content.items())), indent=4))
    assert locate(tmp_path).fingerprint == before  # only written otherwise
    change_cfg(folder, **{key: {"k": 5, "apply_b_dec_to_input": False}[key]})
    assert locate(tmp_path).fingerprint != before


@pytest.mark.parametrize("flag", ["--resume", "--extend", "--verify"])
def test_a_store_is_not_gone_on_with_under_another_k(
    flag, labelled_csv, tiny_configuration, tmp_path, capsys
):
    content = json.loads(tiny_configuration.read_text())
    folder = sae_lens_folder(tmp_path / "saes" / "layer_0", "topk", k=12)
    one = {**content["saes"][0], "path": "layer_0"}
    changed = {**content, "saes": [one], "weights_format": "sae_lens", "sae_root": "saes", "repo_id": ""}
    shutil.copytree(tiny_configuration.parent / content["model"]["id"], tmp_path / content["model"]["id"])
    configuration = tmp_path / "one.json"
    configuration.write_text(json.dumps(changed))
    command = arguments(labelled_csv, tmp_path / "store", configuration)
    assert main(command) == 0
    change_cfg(folder, k=5)
    capsys.readouterr()
    assert main([*command, flag]) == 1
    error = capsys.readouterr().err
    assert "its weights or its cfg.json" in error
    assert "already complete" not in error


# Gemma Scope, first and second generation


@pytest.mark.parametrize(
    ("repository", "hook"),
    [
        ("res", "blocks.5.hook_resid_post"),
        ("mlp", "blocks.5.hook_mlp_out"),
        ("att", "blocks.5.attn.hook_z"),
        ("transcoders", "blocks.5.ln2.hook_normalized"),
    ],
)
def test_a_gemma_scope_repository_tells_where_its_saes_read(repository, hook, tmp_path):
    path = "layer_5/width_16k/average_l0_68"
    write_params(tmp_path / path, D_MODEL, D_SAE, seed=5)
    name = f"google/gemma-scope-2b-pt-{repository}"
    good = entry(hook=hook, path=path)
    located = locate_sae(configurations(repo_id=name, saes=(good,)), good, tmp_path, tmp_path)
    assert located.spec.is_transcoder == (repository == "transcoders")
    for other in {"blocks.5.hook_resid_mid", "blocks.6.hook_resid_post"}:
        bad = entry(hook=other, path=path)
        with pytest.raises(UserError, match=rf"reads {hook}, the configuration says {other}"):
            locate_sae(configurations(repo_id=name, saes=(bad,)), bad, tmp_path, tmp_path)


def write_params_2(folder, skip=False, seed=7, **config):
    """A random SAE or transcoder in the layout of Gemma Scope 2."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = {
        "w_enc": rng.normal(size=(D_MODEL, D_SAE)),
        "w_dec": rng.normal(size=(D_SAE, D_MODEL)),
        "b_enc": rng.normal(size=D_SAE),
        "b_dec": rng.normal(size=D_MODEL),
        "threshold": rng.uniform(0, 3, size=D_SAE),
        **({"affine_skip_connection": rng.normal(size=(D_MODEL, D_MODEL))} if skip else {}),
    }
    save_file(
        {name: array.astype(np.float32) for name, array in tensors.items()}, folder / "params.safetensors"
    )
    if config:
        content = {"architecture": "jump_relu", "model_name": "google/gemma-3-270m", **config}
        (folder / "config.json").write_text(json.dumps(content))
    return tensors


GEMMA_2 = {"weights_format": "gemma_scope_2"}


def test_gemma_scope_2_encodes_as_the_formula_says(tmp_path):
    path = "resid_post/layer_0_width_16k_l0_small"
    tensors = write_params_2(tmp_path / path, hf_hook_point_in="model.layers.0.output")
    one = entry(path=path)
    located = locate_sae(configurations(**GEMMA_2), one, tmp_path, tmp_path)
    assert located.spec.architecture == "jumprelu"
    got = load_encoder(located, configurations(), "cpu").encode(states()).to_dense()
    p = states().numpy() @ tensors["w_enc"] + tensors["b_enc"]
    np.testing.assert_allclose(got, np.maximum(p, 0) * (p > tensors["threshold"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_of_gemma_scope_2_read_the_input_of_the_mlp(skip, tmp_path):
    path = "transcoder_all/layer_3_width_16k_l0_big" + ("_affine" if skip else "")
    said = "model.layers.3.pre_feedforward_layernorm.output"
    write_params_2(tmp_path / path, skip, hf_hook_point_in=said, affine_connection=skip)
    one = entry(hook="blocks.3.mlp.hook_in", path=path)
    spec = locate_sae(configurations(**GEMMA_2), one, tmp_path, tmp_path).spec
    assert spec.architecture == ("jumprelu_skip_transcoder" if skip else "jumprelu_transcoder")


@pytest.mark.parametrize(
    ("path", "config", "hook", "message"),
    [
        (
            "resid_post/layer_3_width_16k_l0_big",
            {},
            "blocks.3.hook_mlp_out",
            "trained with hook 'blocks.3.hook_resid_post'",
        ),
        ("mlp_out_all/layer_3_width_16k_l0_big", {}, "blocks.4.hook_mlp_out", "hook 'blocks.3.hook_mlp_out'"),
        (
            "resid_post/layer_3_width_16k_l0_big",
            {"hf_hook_point_in": "model.layers.4.output"},
            "blocks.3.hook_resid_post",
            "hf_hook_point_in says blocks.4.hook_resid_post, the folder",
        ),
        (
            "resid_post/layer_3_width_16k_l0_big",
            {"architecture": "topk"},
            "blocks.3.hook_resid_post",
            "the architecture is 'topk', expected jump_relu",
        ),
        (
            "transcoder/layer_3_width_16k_l0_big",
            {"affine_connection": True},
            "blocks.3.mlp.hook_in",
            "affine_connection is True, but the weights lack affine_skip_connection",
        ),
    ],
)
def test_gemma_scope_2_that_contradicts_itself_is_refused(path, config, hook, message, tmp_path):
    write_params_2(tmp_path / path, **config)
    one = entry(hook=hook, path=path)
    with pytest.raises(UserError, match=message):
        locate_sae(configurations(**GEMMA_2), one, tmp_path, tmp_path)


def test_every_sae_is_looked_at_before_the_forward_pass(
    labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys
):
    """The last of them is wrong: nothing is computed."""
    from s1_compute_all_features import language_model

    content = json.loads(tiny_configuration.read_text())
    root = tmp_path / "saes"
    for number, sae in enumerate(content["saes"]):
        write_params(root / sae["path"], D_MODEL, D_SAE, seed=number)
    write_params(tmp_path / "wide", D_MODEL + 1, D_SAE, seed=1)
    shutil.copy(tmp_path / "wide" / "params.npz", root / content["saes"][-1]["path"] / "params.npz")
    monkeypatch.setattr(language_model, "padded", None)  # no batch is ever made
    command = arguments(labelled_csv, tmp_path / "store", tiny_configuration)
    assert main([*command, "--sae-root", str(root)]) == 1
    error = capsys.readouterr().err
    assert f"SAE {content['saes'][-1]['name']} reads vectors of {D_MODEL + 1}" in error
    assert not (tmp_path / "store").exists()


def test_the_values_of_a_registry_sae_are_its_fingerprint(tmp_path):
    from s1_compute_all_features.fingerprints import fingerprint_of_tensors

    one = {"W_enc": torch.ones(2, 3, dtype=torch.bfloat16), "b_enc": torch.zeros(3)}
    assert fingerprint_of_tensors(one) == fingerprint_of_tensors(dict(reversed(one.items())))
    for name in one:
        changed = {**one, name: one[name].clone()}
        changed[name].view(-1)[0] += 1
        assert fingerprint_of_tensors(changed) != fingerprint_of_tensors(one)
