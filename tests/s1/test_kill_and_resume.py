"""kill -9 at any moment, then --resume: the store is that of a run that was never killed, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.s1.killed_runs import AT_LEAST, PHASES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_bytes(tiny_configuration, tmp_path, record_property):
    command = [sys.executable, "-m", "tests.s1.killed_runs", str(tmp_path), str(tiny_configuration), "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    record_property("kills", result)
    print(result)
    assert result["kills"] >= AT_LEAST
    assert {phase: result["hits"].get(phase, 0) for phase in PHASES if not result["hits"].get(phase)} == {}
    assert result["finished"] >= 3
