"""A disk that is full or may not be written: one line, and the same command goes on when it is mended."""

import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from tests.faults.stages import STAGES, contents, hidden, is_done, quietly, start_over
from tests.faults.test_stages import GROWS, check_what_is_left

Usage = namedtuple("Usage", "total used free")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("share", [0.5, pytest.param(0.9, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_in_the_middle(stage, share, world, undisturbed, disk, monkeypatch):
    """Stage 1 looks how much is free before it starts; here something else has taken it meanwhile."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    whole, _ = undisturbed.of(stage)
    command = start_over(stage, world, disk.folder / "out")
    needed = sum(len(data or b"") for data in whole.values())
    # At least a page: size=0 is a tmpfs without a limit.
    disk.change(f"size={disk.used_bytes() + max(1, int(share * needed) // 4096) * 4096}")
    code, told = quietly(stage, command)
    assert code == 1
    assert "cannot be written (No space left on device); make room there" in told
    check_what_is_left(stage, disk.folder / "out", whole)
    disk.change("size=16m")
    assert quietly(stage, [*command, *stage.resume]) == (0, "")
    assert contents(stage, disk.folder / "out") == whole
    assert hidden(disk.folder / "out") == []


def test_an_output_that_cannot_be_written(stage, world, disk):
    folder = disk.folder / "out"
    command = start_over(stage, world, folder)
    before = contents(stage, folder)
    disk.change("ro")
    code, told = quietly(stage, command)
    disk.change("rw")
    assert code == 1
    assert told.startswith("error: ")
    assert "cannot be written (Read-only file system); choose an output that can be written" in told
    assert contents(stage, folder) == before
    assert hidden(folder) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission(stage, world, tmp_path):
    folder = tmp_path / "out"
    command = start_over(stage, world, folder)
    for place in (folder, folder / "experiment"):
        if place.exists():
            place.chmod(0o555)
    code, told = quietly(stage, command)
    for place in (folder, folder / "experiment"):
        if place.exists():
            place.chmod(0o755)
    assert code == 1
    assert "cannot be written (Permission denied)" in told


def test_a_limit_on_the_size_of_files(world, tmp_path):
    """The portable disk full: nothing has to be mounted, and it is the kernel that refuses."""
    stage = next(stage for stage in STAGES if stage.name == "s4")
    command = start_over(stage, world, tmp_path / "out")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    start = [sys.executable, str(Path(stage.module.__file__)), *command]
    # Python would cut its own compiled files short as well, and they would stay so.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(start, preexec_fn=limit, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 1
    assert "cannot be written (File too large)" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert hidden(tmp_path / "out") == []
    assert not is_done(stage, tmp_path / "out")
    assert quietly(stage, command) == (0, "")


@pytest.mark.slow
def test_output_that_is_redirected_to_a_full_disk(world, tmp_path):
    """What is printed cannot be kept; the result that was asked for is there, and the exit code tells."""
    stage = next(stage for stage in STAGES if stage.name == "s4")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = start_over(stage, world, tmp_path / "out")
    with open("/dev/full", "w") as full:
        start = [sys.executable, str(Path(stage.module.__file__)), *command]
        run = subprocess.run(start, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.returncode == 1
    told = "error: the output: cannot be written (No space left on device); make room there"
    assert run.stderr.splitlines()[-1].startswith(told)
    assert "Traceback" not in run.stderr
    assert is_done(stage, tmp_path / "out")


def test_the_stages_that_go_on_are_those_that_keep_something(stage, world, undisturbed, disk):
    """The negative control of `check_what_is_left`: a half-written file would be seen."""
    if stage.name not in {"s1", "s3"}:
        pytest.skip("a stage that keeps nothing, or too little for a disk that is counted in pages")
    whole, _ = undisturbed.of(stage)
    command = start_over(stage, world, disk.folder / "out")
    disk.change(f"size={disk.used_bytes() + sum(len(data or b'') for data in whole.values()) * 3 // 5}")
    assert quietly(stage, command)[0] == 1
    kept = [path for path in (disk.folder / "out").rglob("[!.]*.*") if path.name not in GROWS]
    assert kept
    disk.change("size=16m")
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    with pytest.raises(AssertionError):
        check_what_is_left(stage, disk.folder / "out", whole)
