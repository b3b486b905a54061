"""The shipped configuration files against sae-lens's registry, and files that are wrong."""

import json
import re

import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.sae_configurations import (
    GEMMA_SCOPE,
    GPT2_SMALL,
    STAGE_FOLDER,
    configurations_as_json,
    main,
    read_sae_configurations,
    select_saes,
)

SHIPPED = {
    # file: the command line that makes it
    GEMMA_SCOPE.name: "--release gemma-scope-2b-pt-res --width 16k",
    GPT2_SMALL.name: "--release gpt2-small-res-jb",
    "pythia_70m_configurations.json": "--release pythia-70m-deduped-res-sm",
    "gemma_scope_2_270m_configurations.json": "--release gemma-scope-2-270m-pt-res --width 16k",
    "gemma_scope_2_4b_configurations.json": "--release gemma-scope-2-4b-pt-res --width 16k",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_what_its_command_writes(name, replay, tmp_path):
    table = (STAGE_FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}`.*`{SHIPPED[name]}` \|$", table, re.MULTILINE)
    assert main([*SHIPPED[name].split(), "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_text() == (STAGE_FOLDER / name).read_text()


def test_every_shipped_file_can_be_read():
    files = {path.name for path in STAGE_FOLDER.glob("*_configurations.json")}
    assert files == {*SHIPPED, "smollm2_configurations.json"}
    assert all(read_sae_configurations(STAGE_FOLDER / name).saes for name in files)


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


def test_the_script_says_what_it_wrote_and_what_it_left_out(tmp_path, capsys, caplog, replay):
    output = tmp_path / "a.json"
    arguments = ["--release", "gemma-scope-9b-pt-res", "--ids", "*/average_l0_1?", "--output", str(output)]
    assert main(arguments) == 0
    assert "residual-stream SAEs of gemma-scope-9b-pt-res for google/gemma-2-9b" in capsys.readouterr().out
    assert "left out: 1 SAEs (embedding/width_4k/average_l0_14): it reads the token embeddings" in caplog.text
    assert main(arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["--release", "no-such", "--output", str(tmp_path / "x.json")]) == 1
    assert "not in sae-lens's registry; --list-releases shows" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_mlp_saes_are_not_taken_for_those_of_the_residual_stream(tmp_path, capsys):
    output = tmp_path / "mlp.json"
    arguments = ["--release", "gemma-scope-2b-pt-mlp-canonical", "--width", "16k", "--output", str(output)]
    assert main(arguments) == 0
    written = read_sae_configurations(output)
    assert [sae.hook for sae in written.saes] == [f"blocks.{layer}.hook_mlp_out" for layer in range(26)]
    assert [sae.name for sae in written.saes[:2]] == ["layer_00_l0_119", "layer_01_l0_105"]
    assert "26 MLP-output SAEs of" in capsys.readouterr().out


def test_releases_are_listed_for_all_models_or_one(capsys, replay):
    assert main(["--list-releases"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 171
    assert lines[0].split() == ["release", "model", "SAEs", "sites", "widths"]
    assert main(["--list-releases", "--model", "EleutherAI/pythia-70m-deduped"]) == 0
    listed = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in listed[:2]] == [
        "pythia-70m-deduped-att-sm",
        "pythia-70m-deduped-mlp-sm",
    ]
    assert main(["--list-releases", "--model", "no/such"]) == 1
    assert "no release is for the model 'no/such'; there are some for" in capsys.readouterr().err
    assert main(["--list-releases", "--model", "meta-llama/Llama-3.1-8B"]) == 0
    assert "as hyperparams.json on the hub says" in capsys.readouterr().out
    assert replay.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "one of the arguments --release --list-releases is required"),
        ("--release a", "--release needs --output"),
        ("--release a --list-releases", "not allowed with"),
        ("--list-releases --width 16k", "--list-releases goes with --model alone; leave out --width"),
        ("--list-releases --output a.json", "leave out --output"),
        ("--release a --output b --l0 tiny", "'tiny' is not an integer, nor small, medium, big"),
        ("--release a --output b --l0 0", "0 is not at least 1"),
        ("--release a --output b --layers 5-3", "runs backwards"),
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_two_saes_of_a_layer_may_have_the_same_l0(tmp_path):
    def change(content):
        content["saes"][1].update(layer=0, average_l0=10)

    assert read_sae_configurations(altered(tmp_path, change)).saes[1].layer == 0


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


def test_an_sae_without_a_published_l0_is_nearest_to_nothing(tmp_path):
    def change(content):
        content["saes"] = content["saes"][:4]
        for sae, (layer, l0) in zip(content["saes"], [(0, None), (0, 40), (0, 60), (1, None)], strict=True):
            sae.update(layer=layer, average_l0=l0, hook="blocks.0.hook_resid_post")

    configurations = read_sae_configurations(altered(tmp_path, change))
    assert [sae.average_l0 for sae in select_saes(configurations, nearest_l0=1).saes] == [40]
    assert [sae.average_l0 for sae in select_saes(configurations, nearest_l0=50).saes] == [40]
    with pytest.raises(UserError, match=r"has the layers .* and l0 from 40 upwards"):
        select_saes(configurations, layers=[1], nearest_l0=50)
    unknown = configurations.model_copy(update={"saes": configurations.saes[:1]})
    with pytest.raises(UserError, match="and no published l0"):
        select_saes(unknown, max_l0=9)
