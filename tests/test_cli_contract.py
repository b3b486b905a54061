"""What holds for every script's command line, whatever the script does."""

import argparse
import ast
import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline_common.command_line import HelpFormatter
from pipeline_common.errors import UserError
from tests.source_rules import ROOT, is_script, modules_of_the_project

SOURCES = modules_of_the_project()
SCRIPTS = sorted(module for module, source in SOURCES.items() if is_script(source))
SLOW_LIBRARIES = {
    "torch", "transformers", "sae_lens", "sklearn", "matplotlib", "scipy", "pandas", "openai"
}  # fmt: skip

COUNTS = "--label0-count --label1-count --label2-count --label3-count "
KNOWN_FLAGS = {
    "s0_dataset_generation.expand_dataset": COUNTS
    + "--trait --seed-file --output-dir --output-name --keep-temp --model --base-url",
    "s0_dataset_generation.generate_sentences": COUNTS + "--trait --seed-file --output-file --batch-size",
    "s0_dataset_generation.label_sentences": "--trait --input-file --output-file --batch-size",
    "s0_dataset_generation.visualize_labels": "CSV",
    "s1_compute_all_features.extract_sae_features": "--input --output --config --resume",
    "s1_compute_all_features.fetch_demo_model": "--gguf --from-hub --output --overwrite",
    "s2_find_top_features.analyze_features": "--input --output --min-pearson --min-tpr --max-fpr --top-n "
    "--display-only --display-top",
    "s3_feature_activation_graphs.visualize_activations": "--s2-results --s1-data --output --top-n "
    "--max-sentences --labels --dpi --figsize --max-token-len",
    "s3_feature_activation_graphs.build_report": "--s2-results --s1-data --output --top-n --max-sentences "
    "--layer-sweep --index --seed --overwrite",
    "s4_classifier_data_prep.generate_datasets": "--strategy --input --output --target-layer --target-l0 "
    "--target-sae --target-feature --input-layer --layer --layers --normalize",
    "s5_classifier_training.framework.train": "EXPERIMENT",
    "s5_classifier_training.framework.checkpoint": "EXPERIMENT --name --message --verify",
    "s5_classifier_training.framework.compare": "EXPERIMENT --all --detailed --versions",
    "s5_classifier_training.framework.new_experiment": "EXPERIMENT --from --note",
    "s5_classifier_training.framework.predict": "--checkpoint --input --output --model --config",
    "s5_classifier_training.framework.sweep_layers": "--input",
    "run_pipeline": "--trait --input --config",
}


def parser_of(script: str) -> argparse.ArgumentParser:
    return importlib.import_module(script).build_parser()


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def enough_arguments(parser: argparse.ArgumentParser) -> list[str]:
    """The shortest command line that the parser takes: every required argument with a value of its type."""
    one_of_each = [group._group_actions[0] for group in parser._mutually_exclusive_groups if group.required]
    command: list[str] = []
    for action in [*one_of_each, *(action for action in options_of(parser) if action.required)]:
        value = next(iter(action.choices)) if action.choices else "1"
        command += [*action.option_strings[:1], value]
    return command


def run_with_import_times(script: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)


def imported_libraries(run: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level names of what a run imported, from Python's own report on stderr."""
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in run.stderr.splitlines() if "|" in line}


def test_a_slow_import_is_seen(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text("import argparse\n\ndef f():\n    import scipy.sparse\n\nf()\n")
    assert imported_libraries(run_with_import_times(script, tmp_path)) >= {"argparse", "scipy"}


def test_the_search_finds_the_scripts():
    assert set(KNOWN_FLAGS) <= set(SCRIPTS)
    assert {"s0_dataset_generation.audit_dataset", "s1_compute_all_features.fetch_demo_model"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches_and_imports_nothing_slow(script, tmp_path):
    path = ROOT / f"{script.replace('.', '/')}.py"
    start = time.monotonic()
    run = run_with_import_times(path, tmp_path, "--help")
    seconds = time.monotonic() - start
    assert run.returncode == 0
    assert imported_libraries(run) & SLOW_LIBRARIES == set()
    assert seconds < 5  # about 0.4 s on an idle machine; torch alone takes longer than 5 s on a slow one
    assert list(tmp_path.iterdir()) == []
    example = rf"^ +(uv run )?(python )?(\S*/)?{re.escape(path.name)}( |$)"
    assert re.search(example, run.stdout, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_argument_and_shows_its_default(script):
    parser = parser_of(script)
    assert parser.formatter_class is HelpFormatter
    assert parser.description
    formatter = parser._get_formatter()
    for action in options_of(parser):
        text = formatter._expand_help(action)
        assert text, f"{action.dest} has no help"
        if action.default not in (None, False, []) and not action.required and action.option_strings:
            assert "default" in text, f"{action.dest}: {text}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_usage_exits_2_before_anything_is_done(script, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(script)
    command = enough_arguments(module.build_parser())
    assert module.build_parser().parse_args(command)
    with pytest.raises(SystemExit) as ended:
        module.main([*command, "--no-such-flag"])
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith("error: unrecognized arguments: --no-such-flag")
    if command:
        with pytest.raises(SystemExit) as ended:
            module.main([])
        assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_user_error_is_one_line_and_exit_1(script, capsys, monkeypatch):
    module = importlib.import_module(script)

    def fail() -> None:
        raise UserError("file.csv: line 3: expected 0-3,\n  found 7; mend the line")

    monkeypatch.setattr(module, "build_parser", fail)
    assert module.main([]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: file.csv: line 3: expected 0-3, found 7; mend the line\n"
    assert captured.out == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_exit_code_reaches_the_shell(script):
    (guard,) = [
        node
        for node in ast.parse(SOURCES[script]).body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node)
    ]
    assert [ast.unparse(node) for node in guard.body] == ["raise SystemExit(main())"]


@pytest.mark.parametrize("script", sorted(KNOWN_FLAGS))
def test_flags_that_users_know_exist(script):
    actions = options_of(parser_of(script))
    names = {name for action in actions for name in action.option_strings or [action.metavar or action.dest]}
    assert set(KNOWN_FLAGS[script].split()) - names == set()


def test_values_that_users_know_exist():
    choices = {
        action.dest: action.choices
        for action in options_of(parser_of("s4_classifier_data_prep.generate_datasets"))
    }
    assert {"embedding-to-feature", "hidden-to-feature", "hidden-to-concept"} <= set(choices["strategy"])
    assert set(choices["normalize"]) == {"standardize", "minmax", "none"}
