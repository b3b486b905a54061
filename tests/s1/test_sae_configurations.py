"""The shipped configuration files against sae-lens's registry, and files that are wrong."""

import json

import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.sae_configurations import (
    GEMMA_SCOPE,
    GPT2_SMALL,
    build_from_registry,
    configurations_as_json,
    main,
    read_sae_configurations,
    select_saes,
)


@pytest.mark.parametrize(
    ("path", "release", "model", "width"),
    [
        (GEMMA_SCOPE, "gemma-scope-2b-pt-res", "google/gemma-2-2b", "16k"),
        (GPT2_SMALL, "gpt2-small-res-jb", "openai-community/gpt2", None),
    ],
)
def test_the_shipped_files_are_what_the_registry_says(path, release, model, width):
    assert read_sae_configurations(path) == build_from_registry(release, model, width)


def test_gemma_scope_has_135_saes_and_38_pages():
    saes = read_sae_configurations(GEMMA_SCOPE).saes
    pages = {sae.sae_id: sae.neuronpedia_id for sae in saes if sae.neuronpedia_id}
    assert len(saes) == 135
    assert len(pages) == 38
    assert sum("__l0-" not in page for page in pages.values()) == 26
    assert pages["layer_12/width_16k/average_l0_82"] == "gemma-2-2b/12-gemmascope-res-16k"
    assert pages["layer_12/width_16k/average_l0_176"] == "gemma-2-2b/12-gemmascope-res-16k__l0-176"
    assert {sae.layer for sae in saes} == set(range(26))
    assert all(sae.site.stream_layer == sae.layer for sae in saes)


def test_gpt2_hooks_read_the_block_before():
    saes = {sae.sae_id: sae for sae in read_sae_configurations(GPT2_SMALL).saes}
    assert saes["blocks.0.hook_resid_pre"].site.stream_layer == -1
    assert saes["blocks.7.hook_resid_pre"].site.stream_layer == 6
    assert saes["blocks.11.hook_resid_post"].site.stream_layer == 11
    assert saes["blocks.11.hook_resid_post"].layer == 12  # as Neuronpedia counts it: gpt2-small/12-res-jb
    assert read_sae_configurations(GPT2_SMALL).model.center_residual


def altered(tmp_path, change):
    content = json.loads(GPT2_SMALL.read_text())
    change(content)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(colour="red"), "colour: unknown key"),
        (lambda c: c["model"].update(width=3), "model.width: unknown key"),
        (lambda c: c["saes"][0].update(layer=-1), "saes.0.layer"),
        (lambda c: c["saes"][0].pop("hook"), "saes.0.hook: Field required"),
        (lambda c: c["saes"][0].update(hook="blocks.0.attn.hook_q"), "names no site"),
        (lambda c: c["saes"][0].update(name="../../etc"), "saes.0.name"),
        (lambda c: c["saes"][1].update(name="layer_00"), "two SAEs have the same name 'layer_00'"),
        (lambda c: c.update(saes={}), "saes"),
        (lambda c: c.update(format_version=7), "format_version"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path, change, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        read_sae_configurations(altered(tmp_path, change))


def test_a_file_that_is_not_json_names_the_line(tmp_path):
    (tmp_path / "c.json").write_text('{"model":\n oops}')
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        read_sae_configurations(tmp_path / "c.json")


def test_the_script_builds_the_shipped_file(tmp_path, capsys):
    output = tmp_path / "gpt2.json"
    arguments = [
        "--release",
        "gpt2-small-res-jb",
        "--model",
        "openai-community/gpt2",
        "--output",
        str(output),
    ]
    assert main(arguments) == 0
    assert output.read_text() == GPT2_SMALL.read_text()
    assert main(arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["--release", "no-such", "--model", "m", "--output", str(tmp_path / "x.json")]) == 1
    assert "not in sae-lens's registry" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_configuration_without_saes_is_one(tmp_path):
    content = json.loads(GPT2_SMALL.read_text())
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({**content, "saes": []}))
    bare = read_sae_configurations(path)
    for choice in ({}, {"names": []}, {"layers": [3]}, {"max_l0": 5}, {"nearest_l0": 5}):
        assert select_saes(bare, **choice).saes == ()
    with pytest.raises(UserError, match="the configuration has no SAE layer_00; it has none at all"):
        select_saes(bare, names=["layer_00"])


@pytest.mark.parametrize("l0", [72, None])
def test_several_saes_of_a_layer_may_share_their_l0(tmp_path, l0):
    """Widths, trainers or sites of one layer; only the names tell them apart."""
    content = configurations_as_json(read_sae_configurations(GPT2_SMALL))
    for sae in content["saes"]:
        sae.update(layer=3, average_l0=l0)
    (tmp_path / "c.json").write_text(json.dumps(content))
    saes = read_sae_configurations(tmp_path / "c.json").saes
    assert len(saes) == len({sae.name for sae in saes}) == len(content["saes"])


def test_a_configuration_of_before_is_read(tmp_path):
    content = json.loads(GPT2_SMALL.read_text())
    content["model"] = {**content["model"], "demonstration": True}
    del content["model"]["weights"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_sae_configurations(tmp_path / "old.json") == read_sae_configurations(GPT2_SMALL)
    assert (
        "demonstration" not in configurations_as_json(read_sae_configurations(tmp_path / "old.json"))["model"]
    )
