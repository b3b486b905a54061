"""Every SAE of sae-lens's registry: where it reads, what it is called, or why it is refused. Off line."""

import re
from collections import Counter

import pytest
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from transformer_lens.loading_from_pretrained import get_official_model_name

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.registry import Selection, build_from_registry
from s1_compute_all_features.saes.registry_models import MODELS
from s1_compute_all_features.saes.sites import AMBIGUOUS, site_of
from tests.s1.registry_replay import CACHED, said_by_sae_lens

REGISTRY = get_pretrained_saes_directory()
MODELS_IN_DOUBT = {
    "gemma-scope-9b-it-res": "google/gemma-2-9b-it",
    "llama_scope_r1_distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
"""Releases for which registry and loader name two models: --model has to say which."""

IN_9B = "gemma-scope-9b-pt-res"
PAGES_OF_OTHERS = {
    (IN_9B, "layer_2/width_16k/average_l0_8"): ("gemma-2-9b/20-gemmascope-res-131k__l0-10", ""),
    (IN_9B, "layer_20/width_131k/average_l0_114"): (
        "gemma-2-9b/20-gemmascope-res-131k__l0-12",
        "gemma-2-9b/20-gemmascope-res-131k",  # its canonical page
    ),
    ("pythia-70m-deduped-res-sm", "blocks.0.hook_resid_pre"): ("pythia-70m-deduped/e-att-sm", ""),
}
"""Neuronpedia ids of the registry that name another layer, width, l0 or site than their SAE's; and what
stands in their place."""


def expected_site(release, sae_id):
    """Where sae-lens says that an SAE reads: by Hugging Face's name of the place, else TransformerLens'."""
    said = said_by_sae_lens(release, sae_id)
    hook = said.get("hf_hook_name") or said["hook_name"]
    if hook == "hook_embed":
        return None
    if not said["hook_name"].endswith(AMBIGUOUS):
        assert site_of(said["hook_name"]) == site_of(hook)
    return site_of(hook)


def page_in_registry(release, sae_id):
    entry = REGISTRY[release]
    if own := entry.neuronpedia_id.get(sae_id):
        return own
    canonical = REGISTRY.get(f"{release}-canonical")
    path = entry.saes_map[sae_id]
    same = [other for other, place in canonical.saes_map.items() if place == path] if canonical else []
    return (canonical.neuronpedia_id.get(same[0]) if same else None) or ""


def check_release(release, selection=None):
    """Build a release, and compare site and page of every SAE with what sae-lens says."""
    built = build_from_registry(release, selection, MODELS_IN_DOUBT.get(release))
    for entry in built.configurations.saes:
        assert entry.site == expected_site(release, entry.sae_id), (release, entry.sae_id)
        listed = page_in_registry(release, entry.sae_id)
        if (release, entry.sae_id) in PAGES_OF_OTHERS:
            wrong, instead = PAGES_OF_OTHERS[release, entry.sae_id]
            assert listed == wrong
            assert any(wrong in note for note in built.notes)
            listed = instead
        assert entry.neuronpedia_id == listed
        assert re.fullmatch(r"layer_\d\d[A-Za-z0-9_.-]*", entry.name)
    names = [entry.name for entry in built.configurations.saes]
    assert len(set(names)) == len(names)
    for sae_id in (sae_id for ids in built.left_out.values() for sae_id in ids):
        assert expected_site(release, sae_id) is None
    return built


def test_all_entries_of_the_registry_are_built_or_refused_with_a_reason(replay):
    by_loader, left_out = Counter(), Counter()
    n_entries = sum(len(entry.saes_map) for entry in REGISTRY.values())
    for release, entry in REGISTRY.items():
        built = check_release(release)
        n_left_out = sum(map(len, built.left_out.values()))
        assert len(built.configurations.saes) + n_left_out == len(entry.saes_map)
        loader = entry.conversion_func or "sae_lens"
        by_loader.update((loader, sae.hook.split(".", 2)[2]) for sae in built.configurations.saes)
        left_out.update({reason: len(ids) for reason, ids in built.left_out.items()})
    assert (len(REGISTRY), n_entries) == (170, 13_857)
    assert sum(by_loader.values()) >= 0.95 * n_entries
    assert left_out == {"it reads the token embeddings, which carry no context": 8}
    assert by_loader == BUILT


BUILT = {
    ("connor_rob_hook_z", "attn.hook_z"): 12,
    ("deepseek_r1", "hook_resid_post"): 1,
    ("dictionary_learning_1", "hook_resid_post"): 838,
    ("gemma_2", "attn.hook_z"): 888,
    ("gemma_2", "hook_mlp_out"): 888,
    ("gemma_2", "hook_resid_post"): 1_049,
    ("gemma_2_transcoder", "ln2.hook_normalized"): 26,
    ("gemma_3", "attn.hook_z"): 1_580,
    ("gemma_3", "hook_mlp_out"): 1_604,
    ("gemma_3", "hook_resid_post"): 2_024,
    ("gemma_3", "mlp.hook_in"): 3_576,
    ("goodfire", "hook_resid_post"): 2,
    ("llama_scope", "hook_attn_out"): 64,
    ("llama_scope", "hook_mlp_out"): 64,
    ("llama_scope", "hook_resid_post"): 64,
    ("llama_scope_r1_distill", "hook_resid_post"): 96,
    ("mntss_clt_layer_transcoder", "hook_resid_mid"): 26,
    ("mwhanna_transcoder", "mlp.hook_in"): 208,
    ("qwen_scope", "hook_resid_post"): 544,
    ("sae_lens", "hook_attn_out"): 30,
    ("sae_lens", "hook_mlp_out"): 42,
    ("sae_lens", "hook_resid_mid"): 24,
    ("sae_lens", "hook_resid_post"): 154,
    ("sae_lens", "hook_resid_pre"): 42,
    ("temporal", "hook_resid_post"): 3,
}
"""SAEs by loader and site. That of mntss is the sample's; Llama Scope's are what its letters stand for."""


@pytest.mark.parametrize("cached", [CACHED, frozenset()], ids=["cached", "not cached"])
def test_one_entry_of_each_release_reads_where_sae_lens_says(replay, cached):
    replay.cached = cached
    for release, entry in REGISTRY.items():
        first = next(sae_id for sae_id in entry.saes_map if not sae_id.startswith("embedding/"))
        built = check_release(release, Selection(ids=first))
        assert [sae.sae_id for sae in built.configurations.saes] == [first]


def test_the_hub_is_asked_only_for_what_is_not_known_without(replay):
    for release in (
        "gemma-scope-2-1b-pt-att",
        "sae_bench_pythia70m_sweep_topk_ctx128_0730",
        "gpt2-small-hook-z-kk",
    ):
        build_from_registry(release)
    assert replay.asked == []
    build_from_registry("llama_scope_lxa_8x", Selection(layers=[3, 4]))
    build_from_registry("pythia-70m-deduped-mlp-sm", Selection(layers=[2]))
    assert replay.asked == [
        ("fnlp/Llama3_1-8B-Base-LXA-8x", "Llama3_1-8B-Base-L3A-8x/hyperparams.json"),
        ("fnlp/Llama3_1-8B-Base-LXA-8x", "Llama3_1-8B-Base-L4A-8x/hyperparams.json"),
        ("ctigges/pythia-70m-deduped__mlp-sm_processed", "2-mlp-sm/cfg.json"),
    ]


@pytest.mark.parametrize("release", MODELS_IN_DOUBT)
def test_a_model_that_registry_and_loader_name_differently_is_asked_for(replay, release):
    with pytest.raises(
        UserError, match=r"registry says that the model is .*, the loader of .* says .*--model"
    ):
        build_from_registry(release)


def test_names_of_models_are_those_of_transformer_lens():
    def bare(name):
        return name.rsplit("/", 1)[-1]

    assert {entry.model for entry in REGISTRY.values() if "/" not in entry.model} == set(MODELS)
    assert {name: bare(model) for name, model in MODELS.items()} == {
        name: bare(get_official_model_name(name)) for name in MODELS
    }


@pytest.mark.parametrize(
    ("release", "selection", "names"),
    [
        ("gemma-scope-2b-pt-res", Selection(width="16k", layers=[5]), ["layer_05_l0_18", "layer_05_l0_34"]),
        (
            "gemma-scope-2b-pt-res",
            Selection(layers=[5], l0=70),
            ["layer_05_width_65k_l0_53"],
        ),
        ("gemma-scope-2-1b-pt-res", Selection(width="16k", layers=[7]), ["layer_07_width_16k_l0_small"]),
        (
            "gemma-scope-2-1b-pt-res",
            Selection(width="262k", ids="*seed*"),
            ["layer_07_width_262k_l0_medium_seed_1"],
        ),
        ("gpt2-small-res-jb-feature-splitting", None, ["layer_08_width_768", "layer_08_width_1536"]),
        (
            "pythia-70m-deduped-res-sm",
            None,
            ["layer_00_resid_post", "layer_00_resid_pre", "layer_01_resid_post"],
        ),
        (
            "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109",
            None,
            ["layer_05_trainer_0", "layer_05_trainer_0_step_0"],
        ),
        ("llama_scope_r1_distill", None, ["layer_00_400m_slimpajama_400m_openr1_math"]),
        ("gemma-scope-2-270m-pt-transcoders", None, ["layer_09", "layer_15"]),
        ("mistral-7b-res-wg", None, ["layer_08", "layer_16", "layer_24"]),
    ],
)
def test_names_tell_saes_apart(replay, release, selection, names):
    built = build_from_registry(release, selection, "some/model")
    found = [sae.name for sae in built.configurations.saes]
    assert all(name in (None, is_there) for name, is_there in zip(names, found, strict=False)), found[:5]


@pytest.mark.parametrize(
    ("release", "weights_format"),
    [
        ("gemma-scope-2b-pt-att", "gemma_scope"),
        ("gemma-scope-2b-pt-transcoders", "gemma_scope"),
        ("gemma-scope-2-270m-pt-transcoders", "gemma_scope_2"),
        ("gpt2-small-res-jb", "sae_lens"),
        ("gpt2-small-mlp-out-v5-32k", "sae_lens"),  # overrides its dataset, which changes nothing
        ("mistral-7b-res-wg", "registry"),  # overrides normalize_activations, which cfg.json does not have
        ("gpt2-small-mlp-tm", "registry"),  # has factors that sae-lens folds into the weights
        ("llama_scope_lxm_8x", "registry"),
    ],
)
def test_weights_are_read_here_only_where_the_files_hold_all(replay, release, weights_format):
    assert build_from_registry(release, model_id="some/model").configurations.weights_format == weights_format


def test_the_model_is_as_the_saes_were_trained(replay):
    def model(release):
        return build_from_registry(release).configurations.model

    assert (model("pythia-70m-deduped-res-sm").prepend_bos, model("gpt2-small-res-jb").prepend_bos) == (
        False,
        True,
    )
    assert model("gpt2-small-mlp-tm").center_residual
    assert not model("gemma-2-2b-res-matryoshka-dc").center_residual
    assert model("pythia-70m-deduped-res-sm").id == "EleutherAI/pythia-70m-deduped"


PYTHIA = "ctigges/pythia-70m-deduped__res-sm_processed"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "5-res-sm/cfg.json",
            '{"hook_name": "blocks.4.hook_resid_post"}',
            "the id says .* its cfg.json says",
        ),
        ("5-res-sm/cfg.json", '{"hook_name": "blocks.5.hook_q"}', "names no site"),
        ("5-res-sm/cfg.json", '{"hook_head_index": 3}', "attention head 3 alone"),
        ("5-res-sm/cfg.json", '{"model_from_pretrained_kwargs": {"fold_ln": true}}', "loaded with .*fold_ln"),
        ("5-res-sm/cfg.json", "[]", "holds no object"),
        ("5-res-sm/cfg.json", "{", "cannot be read"),
        ("5-res-sm/cfg.json", '{"model_name": "gpt2-small"}', "the loader of .* says gpt2-small"),
    ],
)
def test_a_file_that_says_something_else_is_refused(replay, file, content, message):
    replay.changed[PYTHIA, file] = content
    with pytest.raises(UserError, match=message):
        build_from_registry("pythia-70m-deduped-res-sm", Selection(ids="blocks.5.*"))


def test_saes_that_need_different_models_are_refused(replay):
    replay.changed[PYTHIA, "5-res-sm/cfg.json"] = '{"prepend_bos": true}'
    with pytest.raises(
        UserError, match=r"need different models: .*prepend_bos=False.*prepend_bos=True.*--layers"
    ):
        build_from_registry("pythia-70m-deduped-res-sm")


@pytest.mark.parametrize(
    ("release", "chosen", "repo_id", "file", "content", "message"),
    [
        (
            "gemma-scope-2-1b-pt-res",
            "layer_7_width_16k_l0_small",
            "google/gemma-scope-2-1b-pt",
            "resid_post/layer_7_width_16k_l0_small/config.json",
            '{"hf_hook_point_in": "model.layers.7.self_attn.o_proj.input"}',
            "the folder says .*hook_resid_post, hf_hook_point_in of its config.json says .*hook_z",
        ),
        (
            "llama_scope_lxa_8x",
            "l7a_8x",
            "fnlp/Llama3_1-8B-Base-LXA-8x",
            "Llama3_1-8B-Base-L7A-8x/hyperparams.json",
            '{"hook_point_in": "blocks.7.hook_resid_mid"}',
            "hook_point_in of hyperparams.json says .*resid_mid, the letter in its path says .*attn_out",
        ),
        (
            "qwen2.5-7b-instruct-andyrdt",
            "resid_post_layer_7_*",
            "andyrdt/saes-qwen2.5-7b-instruct",
            "resid_post_layer_7/trainer_1/config.json",
            '{"trainer": {"layer": 8}}',
            "the path says .*blocks.7.hook_resid_post, trainer.layer of its config.json says .*blocks.8",
        ),
    ],
)
def test_two_sources_that_disagree_are_refused(replay, release, chosen, repo_id, file, content, message):
    replay.changed[repo_id, file] = content
    with pytest.raises(UserError, match=message) as error:
        build_from_registry(release, Selection(ids=chosen))
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_line_that_names_the_file(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"L5R-8x/hyperparams\.json of the hub repository fnlp/.* cannot be had"
    ):
        build_from_registry("llama_scope_lxr_8x", Selection(layers=[5]))
    built = build_from_registry("pythia-70m-deduped-mlp-sm")
    assert built.configurations.model.prepend_bos
    assert any(
        "cfg.json of 6 SAEs cannot be had" in note and "extraction checks" in note for note in built.notes
    )
    with pytest.raises(UserError, match=r"no SAE is left; SAE embedding/.*: it reads the token embeddings"):
        build_from_registry("gemma-scope-2b-pt-res", Selection(ids="embedding/*"))


def ids(release, **selection):
    return [sae.sae_id for sae in build_from_registry(release, Selection(**selection)).configurations.saes]


def test_a_selection_takes_part_of_a_release(replay):
    release = "gemma-scope-2-270m-pt-res"
    assert ids(release, layers=[5], width="16k", l0="medium") == ["layer_5_width_16k_l0_medium"]
    assert ids(release, layers=[5], width="16k", l0=100) == ["layer_5_width_16k_l0_big"]
    nearest = ids(release, layers=[9], l0=20)
    assert sorted(sae_id.split("_")[3] for sae_id in nearest) == ["16k", "1m", "262k", "65k"]
    assert "layer_9_width_16k_l0_small" in nearest
    transcoders = ids("gemma-scope-2-270m-it-transcoders", layers=[5], width="16k", l0=20)
    assert sorted(sae_id.rsplit("l0_")[1] for sae_id in transcoders) == ["small", "small_affine"]
    assert ids("gpt2-small-res-jb", layers=[12]) == ["blocks.11.hook_resid_post"]
    assert ids("gpt2-small-res-jb-feature-splitting", width="768") == ["blocks.8.hook_resid_pre_768"]
    assert len(ids("gemma-scope-2b-pt-transcoders", ids="layer_1?/*")) == 10


@pytest.mark.parametrize(
    ("release", "selection", "message"),
    [
        ("gemma-scope-2-270m-pt-res", {"width": "8k"}, "the widths 16k, 1m, 262k, 65k, l0 from 18 to 150"),
        ("gemma-scope-2-270m-pt-res", {"layers": [3]}, "have the layers 5, 9, 12, 15"),
        (
            "gpt2-small-res-jb",
            {"l0": "small"},
            "no width in their ids, l0 from 10 to 70, and ids such as blocks.0",
        ),
        ("pythia-70m-deduped-mlp-sm", {"l0": 20}, "no published l0"),
        ("gpt2-small-res-jb", {"ids": "layer*"}, "ids such as blocks.0.hook_resid_pre"),
    ],
)
def test_a_selection_that_leaves_nothing_says_what_there_is(replay, release, selection, message):
    with pytest.raises(UserError, match=message):
        build_from_registry(release, Selection(**selection))


@pytest.mark.parametrize(
    ("table", "held"), [("loaders", "**170** | **13,857**"), ("releases", "`gpt2-small-res-jb` | 13 |")]
)
def test_the_tables_in_the_document_are_the_registry_of_today(table, held):
    from docs.update_registry_table import DOCUMENT, between, content_of

    found = between(table).search(DOCUMENT.read_text(encoding="utf-8"))
    assert found
    assert found[0] == found[1] + content_of(table) + found[2]
    assert held in found[0]


@pytest.mark.parametrize("release", ["qwen-scope-3-1.7b-base-w32k-l50", "mwhanna-qwen3-4b-transcoders"])
def test_a_model_without_a_bos_token_gets_none_whatever_the_loader_says(release):
    built = build_from_registry(release)
    assert built.configurations.model.prepend_bos is False
    assert any("has no BOS token" in note for note in built.notes)
