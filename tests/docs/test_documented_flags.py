"""Flags that the documents name exist, and every flag of a script is named where its stage is documented."""

import argparse
import importlib
import re

import pytest

from tests.docs.markdown_commands import documented_commands, documents, flags_in, stage_of
from tests.source_rules import ROOT, is_script, modules_of_the_project

FOREIGN_FLAGS = {
    "--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint",  # torchrun
    "--nodes", "--ntasks-per-node",  # srun
    "--group",  # pip
}  # fmt: skip
SCRIPTS = sorted(name for name, source in modules_of_the_project().items() if is_script(source))
BENCHMARKS = [f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("bench_*.py"))]
COMMANDS = [command for command in documented_commands() if re.search(r"\S+\.py", command.last_line)]
DOCUMENTS = [path for path in documents() if flags_in(path.read_text(encoding="utf-8"))]


def flags_of(script: str) -> set[str]:
    parser: argparse.ArgumentParser = importlib.import_module(script).build_parser()
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def script_of(command) -> str:
    """The module that a documented command runs."""
    path = re.search(r"\S+\.py", command.last_line)[0]
    return ".".join((ROOT / command.folder / path).resolve().relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_a_documented_command_names_flags_that_its_script_has(command):
    script = script_of(command)
    assert script in (*SCRIPTS, *BENCHMARKS)
    own = flags_in(command.text) - FOREIGN_FLAGS
    assert own - flags_of(script) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_flag_named_anywhere_in_a_document_exists(document):
    existing = FOREIGN_FLAGS | {"--help"}.union(*map(flags_of, (*SCRIPTS, *BENCHMARKS)))
    assert flags_in(document.read_text(encoding="utf-8")) - existing == set()


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "run_pipeline"])
def test_every_flag_of_a_script_stands_in_its_stages_usage(script):
    stage = script.split(".")[0]
    (usage,) = [path for path in documents() if stage_of(path) == stage and path.name == "USAGE.md"]
    named = flags_in(usage.read_text(encoding="utf-8"))
    if "--label0-count" in flags_of(script):
        named |= {"--label1-count", "--label2-count"}  # written as a range
    assert flags_of(script) - named - {"--help"} == set()
