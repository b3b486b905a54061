"""Sites of every architecture: a block's parts add up to its output, and what is not known is refused."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_common.errors import UserError
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.language_model import BLOCK_INPUT, forward_states
from s1_compute_all_features.models.block_sites import (
    BLOCKS,
    refuse_missing_sites,
    watch_site,
    width_at,
)
from s1_compute_all_features.sae_configurations import STAGE_FOLDER, read_sae_configurations
from s1_compute_all_features.saes.sites import (
    ATTN_OUT,
    DESCRIPTIONS,
    HOOK_Z,
    HOOKS,
    MLP_IN,
    MLP_NORMALIZED,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    Site,
    site_of,
)
from tests.s1.conftest import arguments
from tests.s1.test_architectures import N_LAYERS, TOLERANCE
from tests.s1.tiny_models import ENCODERS, MODELS, build, language_model, sentences_of

pytestmark = pytest.mark.usefixtures("one_thread")

INNER = [kind for kind in HOOKS if kind not in (RESID_PRE, RESID_POST)]
PARALLEL = ("gpt_neox", "gptj", "phi")
LAYERS = [BLOCK_INPUT, *range(N_LAYERS)]
# The same numbers by products of other shapes: float32 sums of some tens of terms.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def offered(name):
    """The kinds that an architecture has."""
    missing = {RESID_MID} if name in PARALLEL else {MLP_NORMALIZED} if name == "olmo" else set()
    return [kind for kind in INNER if kind not in missing]


def sites_of(name):
    return [Site(block, kind) for block in range(N_LAYERS) for kind in offered(name)]


@pytest.fixture(scope="module")
def passes():
    """Per architecture the model, its sentences, and all states of one pass; made when asked for."""
    made = {}

    def pass_of(name):
        if name not in made:
            model = language_model(build(name))
            sentences = sentences_of(model)
            made[name] = (model, sentences, forward_states(model, sentences, LAYERS, sites_of(name)))
        return made[name]

    return pass_of


def apply(model, block, name, states):
    """A module of a block on the tokens of [n_tokens, width]; itself where there is none of that name."""
    if name is None:
        return states
    with torch.inference_mode():
        output = model.blocks[block].get_submodule(name)(states[None])
    return (output[0] if isinstance(output, tuple) else output)[0]


def test_the_readme_lists_every_site_and_architecture():
    readme = (STAGE_FOLDER / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Sites") : readme.index("## Configurations")]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `blocks.N.")]
    assert {row[0].removeprefix("| ") for row in rows} == {f"`blocks.N.{name}`" for name in HOOKS.values()}
    for hook, what, others in rows:
        site = site_of(hook.strip("| `").replace("N", "7"))
        assert what.startswith(DESCRIPTIONS[site.kind].split(",")[0])
        for other in re.findall(r"`(.*?)`", others):
            assert site_of(other.replace("N", "7")) == site
    (architectures,) = re.findall(r"The other sites are read in (.*?), as the text", section)
    assert re.findall(r"`(\w+)`", architectures) == list(BLOCKS)


def test_every_architecture_of_the_table_is_tested():
    assert {name.split()[0] for name in MODELS} == set(BLOCKS)
    for name in MODELS:
        assert build(name).config.model_type == name.split()[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_a_block_add_up(name, passes):
    _, _, states = passes(name)
    for block in range(N_LAYERS):
        before, after = states[block - 1], states[block]
        attention, mlp = states[Site(block, ATTN_OUT)], states[Site(block, MLP_OUT)]
        torch.testing.assert_close(before + attention + mlp, after, **CLOSE)
        if name not in PARALLEL:
            torch.testing.assert_close(before + attention, states[Site(block, RESID_MID)], **CLOSE)
            torch.testing.assert_close(states[Site(block, RESID_MID)] + mlp, after, **CLOSE)
        # Each part is there: nothing adds up because something is nothing.
        assert min(part.abs().max() for part in (before, attention, mlp)) > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_each_part_comes_from_what_stands_in_front_of_it(name, passes):
    model, _, states = passes(name)
    names = BLOCKS[name.split()[0]]
    for block in range(N_LAYERS):
        at = {kind: states[Site(block, kind)] for kind in offered(name)}
        projected = apply(model, block, names.projection, at[HOOK_Z])
        added = apply(model, block, names.attention_norm_after, projected)
        torch.testing.assert_close(at[ATTN_OUT], added, **CLOSE)
        returned = apply(model, block, names.mlp, at[MLP_IN])
        torch.testing.assert_close(at[MLP_OUT], apply(model, block, names.mlp_norm_after, returned), **CLOSE)
        read = states[block - 1] if name in PARALLEL else at[RESID_MID]
        torch.testing.assert_close(at[MLP_IN], apply(model, block, names.mlp_norm, read), **CLOSE)
        if MLP_NORMALIZED in at:
            norm = model.blocks[block].get_submodule(names.mlp_norm)
            gain = norm.weight.detach() + (1 if name.startswith("gemma") else 0)
            bias = norm.bias.detach() if getattr(norm, "bias", None) is not None else 0
            torch.testing.assert_close(at[MLP_NORMALIZED] * gain + bias, at[MLP_IN], **CLOSE)
            assert (at[MLP_NORMALIZED] - at[MLP_IN]).abs().max() > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing_at_any_site(name, passes):
    model, sentences, states = passes(name)
    starts = np.cumsum([0] + [len(sentence.texts) for sentence in sentences])
    for index, sentence in enumerate(sentences):
        alone = forward_states(model, [sentence], [], sites_of(name))
        for site in sites_of(name):
            rows = states[site][starts[index] : starts[index + 1]]
            torch.testing.assert_close(rows, alone[site], **TOLERANCE, msg=f"{name} {site.hook}")


@pytest.mark.parametrize("name", MODELS)
def test_reading_changes_nothing_and_leaves_no_hook(name, passes):
    model, sentences, states = passes(name)
    without = forward_states(model, sentences, LAYERS)
    for layer in LAYERS:
        assert torch.equal(without[layer], states[layer])
    hooks = [m for m in model.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


@pytest.mark.parametrize("name", MODELS)
def test_widths_are_known_before_the_pass(name, passes):
    model, _, states = passes(name)
    for site in sites_of(name):
        assert width_at(model, site) == states[site].shape[1]
    assert width_at(model, Site(1, RESID_POST)) == model.d_model


def test_heads_side_by_side_may_be_wider_than_the_stream():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = language_model(transformers.LlamaForCausalLM(config).eval())
    site = Site(0, HOOK_Z)
    states = forward_states(model, sentences_of(model), [], [site])
    assert states[site].shape[1] == width_at(model, site) == 32


def test_wrong_names_would_be_noticed(monkeypatch):
    """The control: Gemma 2 read by the names of Llama's blocks does not add up."""
    monkeypatch.setitem(BLOCKS, "gemma2", BLOCKS["llama"])
    model = language_model(build("gemma2"))
    sites = [Site(1, kind) for kind in (ATTN_OUT, RESID_MID, MLP_OUT)]
    states = forward_states(model, sentences_of(model), [0, 1], sites)
    attention, middle, mlp = (states[site] for site in sites)
    for one, other in ((states[0] + attention, middle), (middle + mlp, states[1])):
        assert (one - other).abs().max() > 0.1


def test_the_text_part_of_a_model_that_sees(tmp_path):
    """Gemma 3 from 4b on: the architecture and the blocks are those of the text model within."""
    import transformers

    text = build("gemma3_text")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    whole = transformers.Gemma3Model(config).eval()
    whole.set_attn_implementation("eager")
    whole.language_model.load_state_dict(text.base_model.state_dict())
    seeing, plain = language_model(whole), language_model(text)
    sentences, sites = sentences_of(plain), sites_of("gemma3_text")
    got, expected = (forward_states(model, sentences, [], sites) for model in (seeing, plain))
    for site in sites:
        torch.testing.assert_close(got[site], expected[site], **CLOSE)


# What is refused.


def refused(model, site):
    """The message, which names the site and what would stand there."""
    with pytest.raises(UserError) as error:
        watch_site(model, site, print)
    assert str(error.value).startswith(f"{site.hook}, {DESCRIPTIONS[site.kind]}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_architecture_outside_the_table_is_refused(name, kind):
    model = language_model(build(name))
    assert f"it is a {name}, and what stands in a block is known of gemma, " in refused(model, Site(1, kind))


@pytest.mark.parametrize("name", PARALLEL)
def test_nothing_stands_between_parallel_parts(name):
    message = refused(language_model(build(name)), Site(1, RESID_MID))
    assert "its attention and its MLP both read the block's input" in message


def test_a_norm_that_hides_its_eps_is_refused():
    message = refused(language_model(build("olmo")), Site(0, MLP_NORMALIZED))
    assert "its post_attention_layernorm, a OlmoLayerNorm, does not tell its eps" in message


@pytest.mark.parametrize(
    ("name", "gone", "kind"),
    [
        ("gpt2", "attn.c_proj", HOOK_Z),
        ("gemma2", "post_attention_layernorm", ATTN_OUT),
        ("llama", "self_attn", ATTN_OUT),
        ("gemma3_text", "pre_feedforward_layernorm", RESID_MID),
        ("gpt_neox", "mlp", MLP_IN),
        ("gemma2", "post_feedforward_layernorm", MLP_OUT),
    ],
)
def test_a_module_that_is_missing_or_another_is_refused(name, gone, kind):
    model = language_model(build(name))
    parent, _, child = gone.rpartition(".")
    owner = model.blocks[1].get_submodule(parent)
    setattr(owner, child, nn.Identity())
    assert f"its {gone} is a Identity, expected a " in refused(model, Site(1, kind))
    delattr(owner, child)
    assert f"block 1 has no {gone}" in refused(model, Site(1, kind))
    watch_site(model, Site(0, kind), print).remove()


def test_a_projection_of_another_width_is_refused():
    model = language_model(build("llama"))
    model.blocks[1].self_attn.o_proj = nn.Linear(16, 8)
    assert "its self_attn.o_proj gives 8 values, not 16" in refused(model, Site(1, HOOK_Z))


def test_values_of_another_shape_are_refused():
    """A module that lays all tokens of a batch in one row would mix the sentences up."""

    class FlatMLP(nn.Module):
        def forward(self, states):
            return states.reshape(-1, states.shape[-1])

    model = language_model(build("llama"))
    sentences = sentences_of(model)[:1]
    model.blocks[1].mlp = FlatMLP()
    with pytest.raises(UserError, match=r"hook_mlp_out.*FlatMLP has values of the shape \(\d+, 16\) there"):
        forward_states(model, sentences, [], [Site(1, MLP_OUT)])


def configuration_with(tiny_configuration, tmp_path, hook, **of_model):
    content = json.loads(tiny_configuration.read_text())
    content["sae_root"] = str(tiny_configuration.parent / "saes")
    content["model"].update(id=str(tiny_configuration.parent / "model"), **of_model)
    content["saes"][1]["hook"] = hook
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    return path


def test_a_missing_site_stops_the_run_before_it_begins(
    tiny_configuration, labelled_csv, tmp_path, capsys, monkeypatch
):
    path = configuration_with(tiny_configuration, tmp_path, "blocks.1.hook_mlp_out")
    build("bert").save_pretrained(tmp_path / "bert")
    language_model(build("bert")).tokenizer.save_pretrained(tmp_path / "bert")
    command = arguments(labelled_csv, tmp_path / "store", path, "--model", str(tmp_path / "bert"))
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert (
        "SAE layer_00_l0_24 reads blocks.1.hook_mlp_out, what the MLP adds to the residual stream: " in error
    )
    assert "BertModel does not offer it (it is a bert, " in error
    assert not (tmp_path / "store").exists()


def test_centring_is_refused_where_the_mean_counts(tiny_configuration, labelled_csv, tmp_path, capsys):
    hook = "blocks.0.hook_resid_post"
    path = configuration_with(tiny_configuration, tmp_path, hook, center_residual=True)
    assert main(arguments(labelled_csv, tmp_path / "store", path)) == 1
    error = capsys.readouterr().err
    assert "center_residual: the model " in error
    assert "has no LayerNorm but Gemma2RMSNorm, which heeds the mean" in error
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", [*MODELS, *ENCODERS])
def test_centring_needs_a_layer_norm(name, tiny_configuration, tmp_path):
    path = configuration_with(tiny_configuration, tmp_path, "blocks.0.hook_resid_pre", center_residual=True)
    configurations, model = read_sae_configurations(path), language_model(build(name))
    if name.split()[0] in ("gpt2", "gpt_neo", "gpt_neox", "gptj", "olmo", "phi"):
        refuse_missing_sites(model, configurations)
        return
    with pytest.raises(UserError, match=r"center_residual: the model tiny (is a|has no LayerNorm but)"):
        refuse_missing_sites(model, configurations)
    without = configurations.model_copy(update={"saes": ()})
    refuse_missing_sites(model, without)  # nothing would be centred
