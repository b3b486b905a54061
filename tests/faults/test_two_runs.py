"""Two runs on one output: the second is refused at once, and disturbs nothing."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.stages import STAGES, contents, hidden, quietly, script, start_over

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from pipeline_common.claims import claim_output
claim_output(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start a process that holds an output, until the test ends."""
    started = []

    def start(output: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(output)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(holder)
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in started:
        holder.communicate()


def test_the_second_run_is_refused_and_goes_when_the_first_is_killed(
    stage, world, undisturbed, hold, tmp_path
):
    folder = tmp_path / "out"
    command = start_over(stage, world, folder)
    holder = hold(folder / stage.output)
    before = contents(stage, folder)
    code, told = quietly(stage, command)
    assert code == 1
    assert re.fullmatch(
        rf"error: {re.escape(str(folder / stage.output))}: another run is writing here "
        rf"\(process {holder.pid} on \S+\); wait until it has ended, or choose another output",
        told,
    )
    assert contents(stage, folder) == before
    holder.kill()
    holder.wait()
    lock = Path(stage.output).name
    assert f".{lock}.lock" in hidden(folder)  # the file stays, the lock does not
    assert quietly(stage, command) == (0, "")
    assert contents(stage, folder) == undisturbed.of(stage)[0]
    assert hidden(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s1", "s3"])
def test_of_two_scripts_that_start_together_one_does_it_all(name, world, tmp_path):
    stage = next(stage for stage in STAGES if stage.name == name)
    command = start_over(stage, world, tmp_path / "out")
    runs = [
        subprocess.Popen(
            [*script(stage), *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = [run.communicate(timeout=120)[1].splitlines()[-1] for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 1]
    assert re.search("another run is writing here|already", told[codes.index(1)])
    alone = start_over(stage, world, tmp_path / "alone")
    assert subprocess.run([*script(stage), *alone], capture_output=True, timeout=120).returncode == 0
    assert contents(stage, tmp_path / "out") == contents(stage, tmp_path / "alone")


def test_a_holder_that_ends_leaves_nothing(hold, tmp_path):
    holder = hold(tmp_path / "new" / "folder" / "out")
    assert hidden(tmp_path) == [".out.lock"]
    holder.communicate()
    assert time.monotonic()  # the process is gone
    assert holder.returncode == 0
