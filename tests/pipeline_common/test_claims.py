import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline_common import claims
from pipeline_common.claims import claim_output
from pipeline_common.errors import UserError, exit_codes

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from pipeline_common.claims import claim_output
from pipeline_common.errors import exit_codes

@exit_codes
def main(argv=None):
    claim_output(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
    return 0

raise SystemExit(main())
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def claiming(*outputs, then=lambda: None, **more):
    """A script that claims outputs, does something and ends."""

    @exit_codes
    def main(argv=None):
        claim_output(*outputs, **more)
        then()
        return 0

    return main


def start_holder(output):
    command = [sys.executable, "-c", HOLDER, str(output)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    line = holder.stdout.readline()
    return holder, line == "held\n"


def test_the_claim_ends_with_main_and_leaves_nothing(tmp_path):
    output, seen = tmp_path / "new" / "folder" / "out", []
    main = claiming(output, then=lambda: seen.append(names_in(output.parent)))
    assert main([]) == 0
    assert seen == [[".out.lock"]]
    assert names_in(tmp_path) == []
    assert main([]) == 0


def test_a_folder_in_which_something_was_made_stays(tmp_path):
    output = tmp_path / "new" / "out.csv"
    assert claiming(output, then=lambda: output.write_text("a"))([]) == 0
    assert names_in(tmp_path / "new") == ["out.csv"]


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), ValueError("ours")])
def test_the_claim_ends_with_an_error_too(error, tmp_path):
    def fail():
        raise error

    with contextlib.suppress(ValueError):
        claiming(tmp_path / "out", then=fail)([])
    assert names_in(tmp_path) == []
    assert claims._held == set()


def test_another_process_is_refused_until_the_holder_dies(tmp_path, capsys):
    output = tmp_path / "out"
    holder, held = start_holder(output)
    assert held
    main = claiming(output)
    assert main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {output}: another run is writing here (process {holder.pid} on ")
    assert told.endswith("); wait until it has ended, or choose another output\n")
    assert claiming(tmp_path / "other")([]) == 0
    holder.kill()
    holder.wait()
    assert names_in(tmp_path) == [".out.lock"]  # nobody could tidy up; it is no obstacle
    assert main([]) == 0
    assert names_in(tmp_path) == []


def test_the_same_output_under_another_name_is_the_same(tmp_path, capsys):
    holder, held = start_holder(tmp_path / "out")
    assert held
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("link/out", "link/./out", "./out"):
        assert claiming(tmp_path / name)([]) == 1
    holder.communicate()
    assert claiming(tmp_path / "link" / "out")([]) == 0


def test_one_process_claims_once(tmp_path, capsys):
    output = tmp_path / "out"
    assert claiming(output, then=lambda: claim_output(output))([]) == 1
    assert "another run is writing here" in capsys.readouterr().err
    assert names_in(tmp_path) == []


MANY_CLAIMS = """
import os, sys, time
from pathlib import Path
from pipeline_common.claims import claim_output
from pipeline_common.errors import exit_codes

@exit_codes
def main(argv=None):
    claim_output(Path(sys.argv[1]))
    os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))  # fails where another is inside too
    time.sleep(0.01)
    os.unlink(sys.argv[1])
    return 0

codes = [main() for _ in range(200)]
print(codes.count(0), codes.count(1))
"""


@pytest.mark.slow
def test_of_many_at_once_exactly_one_gets_it_every_time(tmp_path):
    """Each holder ends at once, so that locks are taken while the file of the last one is being deleted."""
    start = [sys.executable, "-c", MANY_CLAIMS, str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(start, cwd=ROOT, **pipes) for _ in range(4)]
    told = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, told
    counts = [[int(word) for word in out.split()] for out, _ in told]
    assert all(sum(both) == 200 for both in counts)
    assert sum(lost for _, lost in counts) > 0
    assert names_in(tmp_path) == []


def test_what_killed_runs_left_goes(tmp_path):
    ours = [".out.77.tmp", ".out.1234567.tmp", ".table.9.tmp.csv"]
    others = [
        ".out.0123456789abcdef.tmp",  # an unfinished folder, which is gone on with
        ".out.1234567890123456.tmp",
        ".other.77.tmp",
        ".out.txt",
        "out.77.tmp",
        ".table.9.tmp.json",
        ".out_2.77.tmp",
    ]
    for name in [*ours, *others]:
        (tmp_path / name).mkdir() if name.endswith("tmp") else (tmp_path / name).write_text("half")
    (tmp_path / ".out.77.tmp" / "half.csv").write_text("half")
    assert claiming(tmp_path / "out", tmp_path / "table.csv")([]) == 0
    assert names_in(tmp_path) == sorted(others)


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_our_own_folder_is_looked_into(is_ours, tmp_path):
    inner = tmp_path / "out" / "block_0000"
    inner.mkdir(parents=True)
    (inner / ".tokens.77.tmp.npz").write_text("half")
    (inner / ".notes.tmp").write_text("somebody's")
    if is_ours:
        (tmp_path / "out" / "manifest.json").write_text("{}")
    assert claiming(tmp_path / "out", marker="manifest.json")([]) == 0
    assert (inner / ".tokens.77.tmp.npz").exists() != is_ours
    assert (inner / ".notes.tmp").exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert claiming(tmp_path / "out")([]) == 0
    assert "this file system has no locks (No locks available); start no second run" in caplog.text
    assert names_in(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path, capsys):
    (tmp_path / "file").write_text("a")
    assert claiming(tmp_path / "file" / "out")([]) == 1
    assert "a file stands where a folder should be" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "a"


def test_the_lock_is_not_waited_for(tmp_path):
    holder, held = start_holder(tmp_path / "out")
    assert held
    start = time.monotonic()
    assert claiming(tmp_path / "out")([]) == 1
    assert time.monotonic() - start < 5  # milliseconds; a lock that waits would wait for ever
    holder.communicate()
    assert os.listdir(tmp_path) == []
