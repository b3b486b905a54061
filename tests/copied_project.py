"""A copy of the project in which a test does what a user does, in a shell."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from tests.source_rules import ROOT

UV = """\
#!/bin/sh
[ "$1" = run ] || { echo "only uv run stands here" >&2; exit 64; }
shift
exec "$@"
"""


def copy_of_the_project(folder: Path) -> Path:
    """The files of the project as git knows them, in a folder that a test may fill."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment_of_a_user(folder: Path, project: Path, **more: str) -> dict[str, str]:
    """An environment off line in which ``uv run`` is this Python's and the project is the copy."""
    (folder / "bin").mkdir()
    shim = folder / "bin" / "uv"
    shim.write_text(UV)
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    places = [folder / "bin", Path(sys.executable).parent]
    return {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, places), os.environ["PATH"]]),
        "PYTHONPATH": str(project),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def in_shell(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command line by bash in a folder."""
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
