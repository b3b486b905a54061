"""The whole run: which stages run in which order, with what arguments, and what is told at the end."""

import importlib
import json
import re

import pytest
import yaml

import run_pipeline as rp

ALL = [
    "s0 audit_dataset.py",
    "s0 visualize_labels.py",
    "s1 extract_sae_features.py",
    "s2 analyze_features.py",
    "s3 visualize_activations.py",
    *["s4 generate_datasets.py"] * 4,
    "s5 framework/train.py",
    "s5 framework/compare.py",
    "s5 framework/sweep_layers.py",
    "s3 build_report.py",
]
STEP_OF = [0, 0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 6, 7]
"""Which of the steps that run_pipeline counts as one a script of `ALL` belongs to."""


def test_the_stages_run_in_order_and_are_skipped_the_second_time(stages, command, capsys):
    assert rp.main(command) == 0
    assert stages.scripts() == ALL
    capsys.readouterr()
    assert rp.main(command) == 0
    assert stages.scripts() == []
    assert capsys.readouterr().out.count("complete and current, skipped") == 8


def test_the_commands_name_the_files_of_the_stage_before(stages, command):
    assert rp.main(command) == 0
    assert {name: " ".join(arguments) for _, name, *arguments in stages.commands[2:5]} == {
        "extract_sae_features.py": "--input ../s0_dataset_generation/expanded_data/caring.csv "
        "--output caring_tiny_features --config tiny_configurations.json --resume",
        "analyze_features.py": "--input ../s1_compute_all_features/caring_tiny_features "
        "--output results/caring_tiny_results",
        "visualize_activations.py": "--s2-results ../s2_find_top_features/results/caring_tiny_results "
        "--s1-data ../s1_compute_all_features/caring_tiny_features --output plots_caring_tiny --top-n 10",
    }
    d1, d2, d3, d4 = (" ".join(arguments) for _, _, *arguments in stages.commands[5:9])
    target = "--target-sae layer_01_l0_24 --target-feature 3"  # the best feature of s2
    files = "--input ../s1_compute_all_features/caring_tiny_features --output generated_datasets/caring_tiny_"
    assert d1 == f"--strategy embedding-to-feature {target} {files}d1_embedding_to_feature.npz"
    assert d2 == f"--strategy hidden-to-feature {target} --input-layer 0 {files}d2_hidden_to_feature.npz"
    assert d3 == f"--strategy hidden-to-concept --layers 0-1 {files}d3_hidden_to_concept.npz"
    assert d4 == f"--strategy sae-to-concept --target-sae layer_01_l0_24 {files}d4_sae_to_concept.npz"
    assert [" ".join(arguments) for _, _, *arguments in stages.commands[9:]] == [
        *[" ".join(f"runs/caring_tiny/{name}" for name in rp.EXPERIMENTS)] * 2,
        "--input ../s1_compute_all_features/caring_tiny_features --output runs/caring_tiny/layer_sweep",
        "--s2-results ../s2_find_top_features/results/caring_tiny_results "
        "--s1-data ../s1_compute_all_features/caring_tiny_features --output reports/caring_tiny.html "
        "--layer-sweep ../s5_classifier_training/runs/caring_tiny/layer_sweep/layer_sweep.csv "
        "--audit ../s0_dataset_generation/audits/caring_audit.json --text reports/caring_tiny.txt",
    ]


def test_the_experiments_are_copies_that_point_at_the_datasets(stages, command):
    assert rp.main(command) == 0
    for name in rp.EXPERIMENTS:
        working = rp.S5 / "runs" / "caring_tiny" / name / "working"
        assert (working / "config.yaml").read_text() == "estimators: []\n"
        dataset = working / yaml.safe_load((working / "dataset.config").read_text())["dataset"]
        assert dataset.resolve() == rp.S4 / "generated_datasets" / f"caring_tiny_{name}.npz"
        assert dataset.is_file()
        assert (rp.S5 / name / "working" / "dataset.config").read_text() == "dataset: shipped.npz\n"


def test_a_config_that_the_user_edited_is_kept_and_trained_on(stages, command):
    assert rp.main(command) == 0
    stages.scripts()
    edited = rp.S5 / "runs" / "caring_tiny" / "d3_hidden_to_concept" / "working" / "config.yaml"
    edited.write_text("estimators: [ridge]\n")
    assert rp.main(command) == 0
    assert stages.scripts() == ALL[9:11]
    assert edited.read_text() == "estimators: [ridge]\n"


def test_a_changed_dataset_runs_everything_again(stages, command):
    assert rp.main(command) == 0
    stages.commands = []
    (rp.S0 / "expanded_data" / "caring.csv").write_text("sentence,concept_strength_label\nnewer,0\n")
    assert rp.main(command) == 0
    replaced = [command[1] for command in stages.commands if command[-1] == "--overwrite"]
    assert replaced == [script.split()[1] for script in [*ALL[2:9], *ALL[11:]]]
    assert stages.scripts() == ALL


def test_a_stage_whose_result_came_out_the_same_runs_nothing_after_it(stages, command):
    assert rp.main(command) == 0
    stages.scripts()
    (rp.S1 / "extract_sae_features.py").write_text("# a comment")
    assert rp.main(command) == 0
    assert stages.scripts() == ["s1 extract_sae_features.py"]


def test_a_lost_output_is_made_again_with_what_depends_on_it(stages, command):
    assert rp.main(command) == 0
    stages.scripts()
    (rp.S3 / "plots_caring_tiny" / "summary_statistics.json").unlink()
    (rp.S4 / "generated_datasets" / "caring_tiny_d1_embedding_to_feature.npz").unlink()
    assert rp.main(command) == 0
    assert stages.scripts() == ALL[4:11]  # sweep and report read neither of the two


@pytest.mark.parametrize("position", range(len(ALL)))
def test_the_run_stops_at_the_first_failure_and_goes_on_from_there(position, stages, command, capsys):
    stages.failing = ALL[position].split()[1]
    first = next(index for index, script in enumerate(ALL) if stages.failing in script)
    assert rp.main(command) == 1
    assert capsys.readouterr().err.endswith(f"{stages.failing} ended with exit code 1\n")
    assert stages.scripts() == ALL[: first + 1]
    stages.failing = None
    assert rp.main(command) == 0
    assert stages.scripts() == ALL[STEP_OF.index(STEP_OF[first]) :]


def test_configurations_and_names_never_mix(stages, command, project):
    assert rp.main(command) == 0
    stages.scripts()
    assert rp.main([*command, "--name", "other"]) == 0
    assert stages.scripts() == ALL
    assert rp.main(["--trait", "caring"]) == 0
    assert stages.scripts() == ALL
    assert {path.name for path in rp.S1.glob("*_features")} == {
        "caring_tiny_features",
        "other_features",
        "caring_features",
    }
    assert rp.main(command) == 0
    assert stages.scripts() == []


def test_default_names(project):
    csv = project / "my sentences.csv"
    assert rp.default_name(csv, rp.GEMMA_SCOPE) == "my sentences"
    assert rp.default_name(csv, project / "gpt2_small_configurations.json") == "my sentences_gpt2_small"
    assert rp.default_name(csv, project / "mine.json") == "my sentences_mine"
    assert rp.default_name(csv, project / rp.GEMMA_SCOPE.name) != rp.default_name(csv, rp.GEMMA_SCOPE)


def test_any_csv_is_an_input_even_with_an_awkward_name(stages, project, command):
    csv = project / "elsewhere" / "a: b #c.csv"
    csv.parent.mkdir()
    csv.write_text("sentence,concept_strength_label\nx,0\n")
    assert rp.main(["--input", str(csv), *command[2:]]) == 0
    assert stages.scripts() == ALL
    working = rp.S5 / "runs" / "a: b #c_tiny" / "d1_embedding_to_feature" / "working"
    assert (working / yaml.safe_load((working / "dataset.config").read_text())["dataset"]).is_file()


def test_a_trait_with_seeds_alone_is_expanded_first(stages, project, command):
    (rp.S0 / "initial_hendrycks_data").mkdir()
    (rp.S0 / "initial_hendrycks_data" / "physical_bravery.csv").write_text(
        "sentence,concept_strength_label\n"
    )
    command = ["--trait", "Physical-bravery", "--definition", "facing danger", *command[2:]]
    assert rp.main(command) == 0
    assert stages.commands[0][1] == "expand_dataset.py"
    assert stages.commands[0][-4:] == ["--definition", "facing danger", "--output-name", "physical_bravery"]
    assert stages.scripts() == ["s0 expand_dataset.py", *ALL]
    rp.main(command)
    assert "s0 expand_dataset.py" not in stages.scripts()


def test_the_end_is_what_was_found_and_where_everything_is(stages, command, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert rp.main(command) == 0
    found, places = capsys.readouterr().out.split("ranked features", 1)
    assert "what was found, caring_tiny" in found
    for place in (
        "s2_find_top_features/results/caring_tiny_results/ranked_features.csv",
        "s3_feature_activation_graphs/plots_caring_tiny",
        "s5_classifier_training/runs/caring_tiny/*/working/results.json",
        "s5_classifier_training/runs/caring_tiny/layer_sweep/layer_sweep.csv",
        "report              s3_feature_activation_graphs/reports/caring_tiny.html",
    ):
        assert place in places
    assert places.splitlines()[-1].startswith("in all ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--trait", "sloth"],
            r"sloth\.csv: no such file, and no seeds at .*sloth\.csv; there are .*caring.*; stage 0's",
        ),
        (["--input", "none.csv"], r"none\.csv: no such file$"),
        (["--input", "."], "no such file$"),
        (
            ["--trait", "caring", "--config", "none.json"],
            r"none\.json: no such file; expected an SAE configuration",
        ),
    ],
)
def test_what_is_missing_is_told_before_anything_runs(
    arguments, message, stages, project, monkeypatch, capsys
):
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    assert rp.main(arguments) == 1
    assert re.search(message, capsys.readouterr().err.strip())
    assert stages.commands == []
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--trait", "caring", "--input", "x.csv"],
        ["--input", "x.csv", "--definition", "what it means"],
        ["--trait", "caring", "bravery", "--definition", "what it means"],
        ["--trait", "caring", "--name", ""],
        ["--trait", "caring", "--name", ".."],
        ["--trait", "caring", "--name", "a/b"],
    ],
)
def test_wrong_usage(arguments, stages, capsys):
    with pytest.raises(SystemExit) as ended:
        rp.main(arguments)
    assert ended.value.code == 2
    assert stages.commands == []
    assert "usage:" in capsys.readouterr().err


def test_the_state_is_readable_and_relative(stages, command, project):
    assert rp.main(command) == 0
    state = json.loads((project / "pipeline_state" / "caring_tiny.json").read_text())
    assert list(state) == ["s0", "s1", "s2", "s3", "s4", "s5", "sweep", "report"]
    assert str(project) not in json.dumps(state)


def test_every_script_that_the_pipeline_calls_exists_and_takes_its_flags():
    paths = rp.Paths.of(rp.S0 / "expanded_data" / "caring.csv", rp.GEMMA_SCOPE, "caring")
    stages = [
        rp.data_stage(rp.Paths.of(rp.S0 / "expanded_data" / "none.csv", rp.GEMMA_SCOPE, "none"), "none"),
        rp.data_stage(paths, "caring"),
        rp.extraction_stage(paths),
        rp.ranking_stage(paths),
        rp.plotting_stage(paths),
        rp.ranking_stage(paths, [paths]),
        rp.sweep_stage([paths, paths]),
        rp.report_stage(paths),
        rp.index_stage([paths, paths], paths.report.with_name("all.html")),
    ]
    for stage in stages:
        for script, *arguments in stage.commands:
            module = importlib.import_module(
                f"{stage.folder.name}.{script.removesuffix('.py').replace('/', '.')}"
            )
            more = ["--resume"] if stage.resumes else ["--overwrite"] if "--output" in arguments else []
            assert module.build_parser().parse_args([*arguments, *more])
