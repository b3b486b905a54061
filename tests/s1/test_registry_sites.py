"""Where an SAE reads, for entries as a later registry may have them: understood, or refused with reason."""

import json

import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.registry_entries import RegisteredSae
from s1_compute_all_features.saes.registry_files import HubFiles
from s1_compute_all_features.saes.registry_names import l0_of, names_of
from s1_compute_all_features.saes.registry_sites import training_of


class Files(HubFiles):
    """The hub, holding the same file under every name, or nothing."""

    def __init__(self, content=None):
        super().__init__(looks=False)
        self.content = content

    def cached(self, repo_id, name):
        return self.content


def sae(loader, path, sae_id="layer_3", repo_id="a/b", **more):
    return RegisteredSae("release", repo_id, loader, sae_id, path, **more)


@pytest.mark.parametrize(
    ("entry", "content", "hook"),
    [
        (sae("sparsify", "layers.3"), None, "blocks.3.hook_resid_post"),
        (sae("gemma_3", "clt/width_262k_l0_big/params_layer_3"), None, "blocks.3.mlp.hook_in"),
        (sae("gemma_3", "attn_out/layer_3_width_16k_l0_big"), None, "blocks.3.attn.hook_z"),
        (
            sae("gemma_3", "transcoder_all/layer_3_width_16k_l0_big_affine"),
            {"hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output"},
            "blocks.3.mlp.hook_in",
        ),
        (
            sae("llama_scope", "Llama3_1-8B-Base-L3TC-8x"),
            {"hook_point_in": "blocks.3.ln2.hook_normalized"},
            "blocks.3.ln2.hook_normalized",
        ),
        (
            sae("sae_lens", "some_folder"),
            {"hook_point": "blocks.3.hook_resid_mid"},
            "blocks.3.hook_resid_mid",
        ),
        (
            sae("sae_lens", "f"),
            {"sae_lens_version": "6.1.0", "metadata": {"hook_name": "model.layers.3"}},
            "blocks.3.hook_resid_post",
        ),
        (
            sae("mntss_clt_layer_transcoder", "3"),
            {"feature_input_hook": "mlp.hook_in", "model_name": "m"},
            "blocks.3.mlp.hook_in",
        ),
        (sae("sae_lens", "f", "blocks.3.hook_z__trainer_1"), None, "blocks.3.attn.hook_z"),
    ],
)
def test_the_site_is_read(entry, content, hook):
    assert training_of(entry, Files(content)).site.hook == hook


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        (sae("a_new_loader", "x"), None, "loader 'a_new_loader' is not known here"),
        (sae("gemma_3", "resid_pre/layer_3_width_16k_l0_big"), None, "folder 'resid_pre' is none of those"),
        (sae("gemma_3", "resid_post/3_width_16k"), None, "path '3_width_16k' is of no form"),
        (sae("gemma_2", "layer_3/width_16k/average_l0_5"), None, "repository 'a/b' is of no form"),
        (sae("goodfire", "x.pt"), None, "sae-lens's loader goodfire says: Unsupported"),
        (sae("sparsify", "embed_tokens"), None, "token embeddings, which carry no context"),
        (sae("sae_lens", "f"), {"hook_name": "hook_embed"}, "token embeddings, which carry no context"),
        (sae("sae_lens", "f"), {"hook_name": "blocks.3.hook_mlp_in"}, "means the residual stream to some"),
        (sae("sae_lens", "f"), {}, "nothing says where it reads"),
        (sae("sae_lens", "f"), None, "cfg.json of the hub repository a/b cannot be had"),
        (sae("sae_lens", "f", "blocks.3.attn.hook_q"), None, "names no site"),
        (sae("llama_scope", "L3R-8x"), {}, "its hyperparams.json has no hook_point_in"),
        (
            sae("dictionary_learning_1", "resid_post_layer_3/trainer_0"),
            {"trainer": {}},
            "no trainer with a layer",
        ),
        (sae("dictionary_learning_1", "mlp_out_layer_3/trainer_0"), None, "is of no form"),
        (sae("mntss_clt_layer_transcoder", "3"), {"model_name": "m"}, "nothing says where it reads"),
        (
            sae("temporal", "layer_3/temporal", overrides={"hook_name": "blocks.4.hook_resid_post"}),
            None,
            "the path says .*blocks.3.*config_overrides says .*blocks.4",
        ),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(entry, content, message):
    with pytest.raises(UserError, match=message) as error:
        training_of(entry, Files(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("l0", "path", "expected"),
    [
        (0.0, "x", None),
        (float("nan"), "x", None),
        (-3.0, "x", None),
        (1e9, "x", None),
        (61.5, "x", 62),
        (61.5, "layer_1/width_16k/average_l0_7", 7),
    ],
)
def test_a_published_l0_is_of_the_path_else_of_the_registry(l0, path, expected):
    assert l0_of(sae("gemma_2", path, l0=l0)) == expected


def test_two_saes_of_the_same_name_are_refused():
    twice = [sae("sae_lens", path, sae_id) for path, sae_id in (("a", "layer_3_x"), ("b", "layer_3/x"))]
    with pytest.raises(UserError, match="layer_3_x and layer_3/x would both be named layer_03_x"):
        names_of(twice, None)


def test_a_damaged_file_in_the_cache_names_itself(tmp_path, monkeypatch):
    import huggingface_hub

    path = tmp_path / "config.yaml"
    path.write_text("a: [")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    with pytest.raises(UserError, match=r"config\.yaml of a/b cannot be read") as error:
        HubFiles().cached("a/b", "config.yaml")
    assert "\n" not in str(error.value)
    path.write_text(json.dumps({"b": 1}))
    assert HubFiles().cached("a/b", "config.yaml") == {"b": 1}
