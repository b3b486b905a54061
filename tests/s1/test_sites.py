"""Names of sites: what is understood, and what is refused."""

import pytest

from s1_compute_all_features.saes.sites import DESCRIPTIONS, HOOKS, Site, site_of


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("block", [0, 7, 25])
def test_a_site_is_read_back_from_its_hook(kind, block):
    assert site_of(Site(block, kind).hook) == Site(block, kind)
    assert DESCRIPTIONS[kind]


@pytest.mark.parametrize(
    ("hook", "stream", "sinks"),
    [
        ("blocks.5.hook_resid_post", 5, 5),
        ("blocks.5.hook_resid_pre", 4, 4),
        ("blocks.0.hook_resid_pre", -1, -1),
        ("blocks.5.hook_resid_mid", None, 5),
        ("blocks.0.attn.hook_z", None, 0),
        ("blocks.5.hook_mlp_out", None, 5),
    ],
)
def test_layers_of_a_site(hook, stream, sinks):
    site = site_of(hook)
    assert (site.stream_layer, site.sink_layer) == (stream, sinks)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers.12.output", "blocks.12.hook_resid_post"),
        ("model.language_model.layers.3.input", "blocks.3.hook_resid_pre"),
        ("transformer.h.11", "blocks.11.hook_resid_post"),
        ("gpt_neox.layers.0", "blocks.0.hook_resid_post"),
        ("layers.4", "blocks.4.hook_resid_post"),
        ("model.layers.7.self_attn.o_proj.input", "blocks.7.attn.hook_z"),
        ("model.layers.7.pre_feedforward_layernorm.output", "blocks.7.mlp.hook_in"),
        ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.hook_mlp_out"),
        ("blocks.3.hook_z", "blocks.3.attn.hook_z"),
    ],
)
def test_other_names_of_a_site(name, hook):
    assert site_of(name).hook == hook


@pytest.mark.parametrize(
    "name",
    [
        "",
        "hook_embed",
        "blocks.3.hook_q",
        "blocks.x.hook_resid_post",
        "blocks.3.hook_resid_post.x",
        "model.layers.3.mlp",
        "model.layers.3.post_attention_layernorm.output",
        "model.layers.3.self_attn",
        "model.norm",
        " blocks.3.hook_resid_post",
        "blocks.\N{ARABIC-INDIC DIGIT THREE}.hook_resid_post",
    ],
)
def test_a_name_outside_the_tables_is_refused(name):
    with pytest.raises(ValueError, match="names no site that is known here"):
        site_of(name)


def test_a_name_with_two_meanings_is_refused():
    with pytest.raises(ValueError, match=r"blocks\.3\.hook_mlp_in.*means the residual stream to some"):
        site_of("blocks.3.hook_mlp_in")
