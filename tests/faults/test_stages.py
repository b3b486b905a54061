"""The same fault in every stage: nothing is lost that was complete, nothing wrong looks right, and the same
command goes on to the result of a run that was never disturbed."""

import errno
import os
import re
import signal

import pytest

from tests.faults.stages import STAGES, Stage, at_write, contents, hidden, is_done, quietly, start_over

UNFINISHED = re.compile(r"\.(\w+)\.[0-9a-f]{16}\.tmp")
GOES_ON = {"s3", "s5 sweep"}
"""Stages that keep an unfinished folder under a hidden name."""

GROWS = {"manifest.json", "unlabelled.csv", "ratings.csv", "journal.jsonl"}
"""Files that a run writes more than once."""


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAULTS = {
    "disk full": (no_space, 1, r"^error: .* cannot be written \(No space left on device\); make room there"),
    "ctrl-c": (lambda: signal.raise_signal(signal.SIGINT), 130, r"^interrupted: .*the same command"),
    "sigterm": (lambda: signal.raise_signal(signal.SIGTERM), 143, r"^terminated: .*the same command"),
}


def check_what_is_left(stage: Stage, folder, whole) -> None:
    """No result, nothing half-written: what has a final name has the bytes that it will have at the end."""
    assert not is_done(stage, folder)
    assert len(hidden(folder)) <= (stage.name in GOES_ON)
    for name, data in contents(stage, folder).items():
        final = UNFINISHED.sub(r"\1", name)
        if final.split("/")[-1] not in GROWS:
            assert whole[final] == data, name


def check_fault(stage: Stage, world, undisturbed, folder, fault: str, write: int) -> None:
    action, code, message = FAULTS[fault]
    whole, n_writes = undisturbed.of(stage)
    assert write < n_writes
    command = start_over(stage, world, folder)
    with at_write(write, action):
        found, told = quietly(stage, command)
    assert found == code, told
    assert re.search(message, told), told
    check_what_is_left(stage, folder, whole)
    assert quietly(stage, [*command, *stage.resume]) == (0, "")
    assert contents(stage, folder) == whole
    assert hidden(folder) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_middle_of_a_run(stage, fault, world, undisturbed, tmp_path):
    check_fault(stage, world, undisturbed, tmp_path / "out", fault, undisturbed.of(stage)[1] // 2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_the_first_and_the_last_write(stage, fault, world, undisturbed, tmp_path):
    n_writes = undisturbed.of(stage)[1]
    for write in sorted({0, n_writes - 1}):
        check_fault(stage, world, undisturbed, tmp_path / str(write), fault, write)


@pytest.mark.parametrize(
    "stage", [stage for stage in STAGES if stage.keeps_old], ids=lambda stage: stage.name
)
@pytest.mark.parametrize("write", [pytest.param("first", marks=pytest.mark.slow), "last"])
def test_a_fault_leaves_the_old_result_as_it_was(stage, write, world, undisturbed, tmp_path):
    n_writes = undisturbed.of(stage)[1]
    command = start_over(stage, world, tmp_path / "out")
    assert quietly(stage, command) == (0, "")
    before = contents(stage, tmp_path / "out")
    with at_write(0 if write == "first" else n_writes - 1, no_space):
        code, told = quietly(stage, [*command, "--overwrite"])
    assert (code, "No space left" in told) == (1, True)
    after = contents(stage, tmp_path / "out")
    assert {name: after[name] for name in after if not name.startswith(".")} == before
    assert quietly(stage, [*command, "--overwrite"]) == (0, "")
    assert contents(stage, tmp_path / "out") == before
