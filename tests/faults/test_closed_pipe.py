"""`script | head`: quiet, and what is on the disk afterwards is whole or not there."""

import io
import os
import subprocess
import sys

import pytest

from tests.faults.stages import STAGES, contents, hidden, is_done, quietly, script, start_over


@pytest.fixture
def closed_pipe(monkeypatch):
    """Standard output goes to a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield


def test_nobody_reads_the_output(stage, world, undisturbed, tmp_path, closed_pipe, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    command = start_over(stage, world, tmp_path / "out")
    code = stage.module.main(command)
    assert code in (0, 141)
    for sign in ("Traceback", "BrokenPipe", "error"):
        assert sign not in errors.getvalue()
    assert is_done(stage, tmp_path / "out")  # every script prints its result when it is there
    assert contents(stage, tmp_path / "out") == undisturbed.of(stage)[0]
    assert hidden(tmp_path / "out") == []


@pytest.mark.slow
def test_in_a_shell(world, tmp_path):
    stage = next(stage for stage in STAGES if stage.name == "s4")
    command = start_over(stage, world, tmp_path / "out")
    line = " ".join(f"'{word}'" for word in [*script(stage), *command])
    run = subprocess.run(["bash", "-c", f"{line} 2>/dev/null | head -1"], capture_output=True, text=True)
    assert run.returncode == 0
    assert len(run.stdout.splitlines()) == 1
    assert run.stderr == ""
    assert quietly(stage, [*command, "--overwrite"]) == (0, "")
