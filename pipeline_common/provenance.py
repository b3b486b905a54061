"""Where a result comes from: versions of the libraries that made it."""

import importlib.metadata
import platform
from collections.abc import Iterable


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of the named distributions, of this project and of Python.

    Args:
        names: distribution names as pip knows them.

    Returns:
        Name to version, sorted by name; "not installed" where there is none.
    """
    versions = {"python": platform.python_version()}
    for name in {*names, "sae-concept-features"}:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return dict(sorted(versions.items()))
