"""Debian packages fetched and unpacked by the ordinary tools, without installing anything."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_common.errors import UserError

_TOOLS = ("apt-get", "dpkg-deb")


@dataclass(frozen=True)
class UnpackedPackage:
    """The files of one package.

    Attributes:
        name: of the package.
        version: of the package.
        root: the folder that stands for the root of the file system.
    """

    name: str
    version: str
    root: Path


def check_tools() -> None:
    """See that packages can be fetched here.

    Raises:
        UserError: apt-get or dpkg-deb is missing.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not found; the texts come as Debian packages, so run this on Debian "
            "or in a container of it, or have a model write alone (--sources without a name)"
        )


def fetch_package(names: Sequence[str], folder: Path) -> UnpackedPackage:
    """Download the first of the packages that there is, and unpack it below ``folder``.

    Args:
        names: of one package in several releases of Debian, in order of preference.
        folder: temporary; the package file is deleted after unpacking.

    Raises:
        UserError: none of them can be downloaded or unpacked.
    """
    problems = []
    for name in names:
        work = folder / name
        work.mkdir(parents=True, exist_ok=True)
        # apt drops root's rights for a download, and then cannot write into a folder of root's.
        fetched = _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name], work)
        packages = sorted(work.glob("*.deb"))
        if fetched.returncode != 0 or not packages:
            problems.append(_last_line(fetched) or f"{name}: nothing came")
            continue
        root = work / "root"
        unpacked = _run(["dpkg-deb", "-x", str(packages[0]), str(root)], work)
        version = _run(["dpkg-deb", "-f", str(packages[0]), "Version"], work)
        if unpacked.returncode != 0 or version.returncode != 0:
            raise UserError(f"{packages[0].name}: cannot be unpacked: {_last_line(unpacked)}; run again")
        packages[0].unlink()
        return UnpackedPackage(name=name, version=version.stdout.strip(), root=root)
    raise UserError(
        f"package {' or '.join(names)} cannot be downloaded: {problems[-1]}; run `apt-get update` first, and "
        "see that this machine reaches a Debian mirror"
    )


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _last_line(process: subprocess.CompletedProcess[str]) -> str:
    lines = process.stderr.strip().splitlines()
    return lines[-1].removeprefix("E: ") if lines else ""
