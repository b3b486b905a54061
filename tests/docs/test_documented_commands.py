"""Every shell command of every document is run, or stands in a list with the reason why it is not."""

import os
import time

import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import read_results
from tests.copied_project import in_shell
from tests.docs.markdown_commands import commands_of, documented_commands, documents
from tests.docs.small_world import (
    NOT_RUN,
    READERS_FILES,
    S0,
    SUBSTITUTIONS,
    as_run,
    build_world,
    cut_the_datasets,
)
from tests.fake_llm_server import fake_llm_server
from tests.source_rules import ROOT

COMMANDS = documented_commands()
RUN = [command for command in COMMANDS if command.last_line not in NOT_RUN]


def test_commands_are_found_in_blocks_and_in_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.markdown_commands.ROOT", tmp_path)
    document = tmp_path / "s3_x" / "USAGE.md"
    document.parent.mkdir()
    document.write_text(
        "Say `make test` or `--quick`.\n\n```\nA=$(awk 1 f)\nuv run python a.py $A \\\n    --b\n"
        "cd s4_y && uv run python c.py   what it does\n```\n\n```\ntree/   with --contrast\n```\n"
        "```yaml\nmake: no\n```\nThen `pip install -e .`\n"
    )
    found = [(command.line, command.folder, command.text) for command in commands_of(document)]
    assert found == [
        (1, "s3_x", "make test"),
        (5, "s3_x", "A=$(awk 1 f)\nuv run python a.py $A --b"),
        (7, "s4_y", "A=$(awk 1 f)\nuv run python c.py"),
        (16, "s3_x", "pip install -e ."),
    ]
    document.write_text("```\nuv run python a.py\nobscure-program --x\n```\n")
    with pytest.raises(AssertionError, match=r"s3_x/USAGE\.md:3: no command that is known here"):
        commands_of(document)


def test_the_documents_are_all_there():
    names = {str(path.relative_to(ROOT)) for path in documents()}
    stages = [path.name for path in ROOT.glob("s[0-5]_*")]
    assert len(stages) == 6
    assert names >= {f"{stage}/{name}" for stage in stages for name in ("README.md", "USAGE.md")}
    assert names >= {"README.md", "CONTRIBUTING.md", "benchmarks/README.md"}
    assert len(RUN) > 40


def test_what_is_not_run_or_altered_still_stands_in_a_document():
    lines = {command.last_line for command in COMMANDS}
    assert set(NOT_RUN) - lines == set()
    assert all(any(text in command.text for command in RUN) for text in SUBSTITUTIONS)
    names = [name.rsplit("/", 1)[1] for name in READERS_FILES]
    assert all(any(name in command.text for command in RUN) for name in names)


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_documents(tiny_configuration, tmp_path):
    """One reader, one copy of the project: stage by stage, then the documents of the whole."""
    failures, times = [], []
    with fake_llm_server() as server:
        project, environment = build_world(tmp_path, tiny_configuration, server.base_url)
        last_of_s0 = max(index for index, command in enumerate(RUN) if command.folder == S0)
        for index, command in enumerate(RUN):
            start = time.monotonic(), os.times().children_user
            done = in_shell(as_run(command.text), project / command.folder, environment)
            times.append((os.times().children_user - start[1], time.monotonic() - start[0], command.place))
            if done.returncode or "Traceback" in done.stderr:
                failures.append(
                    f"{command.place}: {command.text}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
                )
            if index == last_of_s0:
                cut_the_datasets(project)
    for processor, clock, place in sorted(times, reverse=True):
        print(f"{processor:6.1f} s of processor, {clock:6.1f} s of clock  {place}")
    assert not failures, "\n\n".join(failures)

    # GPT-2 has gone through all stages, at the width that its files have: nothing in the code knows 768.
    store = FeatureStore(project / "s1_compute_all_features" / "dishonesty_gpt2_small_features")
    assert (len(store.saes), store.manifest["model"]["d_model"]) == (13, 16)
    best = read_results(project / "s2_find_top_features" / "results" / "dishonesty_gpt2_small_results")
    assert best.features[0].neuronpedia_url.startswith("https://www.neuronpedia.org/gpt2-small/")
    reports = project / "s3_feature_activation_graphs" / "reports"
    assert {path.stem for path in reports.iterdir()} >= {
        "dishonesty",
        "index",
        "caring",
        "dishonesty_gpt2_small",
    }
