"""Real processes, ended by a signal in the middle of a write; then the same command once more."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.stages import STAGES, Stage, contents, hidden, quietly, start_over
from tests.faults.test_stages import UNFINISHED, check_what_is_left

ROOT = Path(__file__).resolve().parents[2]


def end_by(number: signal.Signals, stage: Stage, world, folder: Path, write: int):
    start_over(stage, world, folder)
    where = [str(world.folder), world.base_url, str(world.configuration)]
    command = [sys.executable, "-m", "tests.faults.killed", stage.name, str(folder), *where, str(write)]
    run = subprocess.run([*command, str(int(number))], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert "Traceback" not in run.stderr, run.stderr[-3000:]
    return run


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(stage, world, undisturbed, tmp_path):
    whole, n_writes = undisturbed.of(stage)
    run = end_by(signal.SIGKILL, stage, world, tmp_path / "out", n_writes // 2)
    assert run.returncode == -signal.SIGKILL
    left = hidden(tmp_path / "out")
    assert any(".tmp" in name for name in left) or "journal" in str(contents(stage, tmp_path / "out"))
    assert any(name.endswith(".lock") for name in left)
    for name, data in contents(stage, tmp_path / "out").items():
        final = UNFINISHED.sub(r"\1", name)
        if final in whole and not final.endswith("manifest.json"):
            assert whole[final] == data, name
    command = [*stage.arguments(world, tmp_path / "out"), *stage.resume]
    assert quietly(stage, command) == (0, "")
    assert contents(stage, tmp_path / "out") == whole
    assert hidden(tmp_path / "out") == []  # neither lock nor temporary file of the killed run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "code", "word"),
    [
        ("s0", signal.SIGINT, 130, "interrupted"),
        ("s1", signal.SIGINT, 130, "interrupted"),
        ("s2", signal.SIGTERM, 143, "terminated"),
        ("s5", signal.SIGTERM, 143, "terminated"),
    ],
)
def test_the_exit_code_and_the_line(name, number, code, word, world, undisturbed, tmp_path):
    stage = next(stage for stage in STAGES if stage.name == name)
    whole, n_writes = undisturbed.of(stage)
    run = end_by(number, stage, world, tmp_path / "out", n_writes // 2)
    assert run.returncode == code
    assert sum(line.startswith(f"{word}: ") for line in run.stderr.splitlines()) == 1
    assert run.stderr.splitlines()[-1].startswith(f"{word}: ")
    check_what_is_left(stage, tmp_path / "out", whole)
    command = [*stage.arguments(world, tmp_path / "out"), *stage.resume]
    assert quietly(stage, command) == (0, "")
    assert contents(stage, tmp_path / "out") == whole
