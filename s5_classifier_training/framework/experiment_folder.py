"""An experiment's folder: where its files are, which experiments and versions exist, and its results."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, sha256_of_file

EXPERIMENTS = Path(__file__).resolve().parent.parent
WORKING = "working"
CONFIG = "config.yaml"
DATASET_CONFIG = "dataset.config"
NOTES = "experiment_notes.md"
RESULTS = "results.json"
PREDICTIONS = "predictions.csv"
MODEL = "model.skops"
CONFUSION_PICTURE = "confusion_matrix.png"
REGRESSION_PICTURE = "predicted_vs_true.png"
VERSION = "version.json"

INPUTS = (CONFIG, DATASET_CONFIG)
OUTPUTS = (MODEL, PREDICTIONS, CONFUSION_PICTURE, REGRESSION_PICTURE, RESULTS)
"""What a training may leave in working/; the results, which vouch for the others, come last."""

RESULTS_FORMAT = "classifier_results"
RESULTS_FORMAT_VERSION = 1
VERSION_FORMAT = "classifier_version"
VERSION_FORMAT_VERSION = 1

_VERSION_NAME = re.compile(r"v(\d+)_(.+)")


@dataclass(frozen=True)
class Version:
    """A checkpointed version.

    Attributes:
        folder: ``vN_name``.
        number: N.
        content: of its ``version.json``.
    """

    folder: Path
    number: int
    content: dict[str, Any]


def shipped_experiments() -> list[str]:
    """Names of the experiment folders that stand inside stage 5."""
    return sorted(folder.name for folder in EXPERIMENTS.iterdir() if (folder / WORKING / CONFIG).is_file())


def find_experiment(text: str) -> Path:
    """The folder of an experiment.

    Args:
        text: the name of a folder inside stage 5, or the path of a folder elsewhere.

    Raises:
        UserError: neither holds ``working/config.yaml``; the message names the experiments there are.
    """
    for folder in (EXPERIMENTS / text, Path(text)):
        if (folder / WORKING / CONFIG).is_file():
            return folder.resolve()
    existing = ", ".join(shipped_experiments()) or "none"
    raise UserError(
        f"{text}: no such experiment ({WORKING}/{CONFIG} is missing); there are {existing}; "
        "or give the path of an experiment's folder"
    )


def read_results(folder: Path) -> dict[str, Any] | None:
    """The ``results.json`` in a working folder or a version; None where there is none.

    Raises:
        UserError: the file is damaged or of another format version.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    results = read_json(path, "classifier results")
    if not isinstance(results, dict) or results.get("format") != RESULTS_FORMAT:
        raise UserError(f"{path}: not the results of train.py")
    if results.get("format_version") != RESULTS_FORMAT_VERSION:
        raise UserError(
            f"{path}: results format {results.get('format_version')}, this program reads format "
            f"{RESULTS_FORMAT_VERSION}; run train.py again"
        )
    return results


def version_number(name: str) -> int | None:
    """N of a folder named ``vN_name``; None for any other name."""
    match = _VERSION_NAME.fullmatch(name)
    return int(match[1]) if match else None


def versions(experiment: Path) -> tuple[list[Version], list[str]]:
    """The versions of an experiment by number, and what looks like one and is none, with the reason."""
    found, odd = [], []
    for folder in sorted(experiment.iterdir()):
        number = version_number(folder.name)
        if number is None or not folder.is_dir():
            continue
        try:
            content = read_json(folder / VERSION, "version made by checkpoint.py")
        except UserError as error:
            odd.append(str(error))
            continue
        known = isinstance(content, dict) and content.get("format") == VERSION_FORMAT
        if known and content.get("format_version") == VERSION_FORMAT_VERSION and "checksums" in content:
            found.append(Version(folder, number, content))
        else:
            odd.append(f"{folder / VERSION}: not a version that this program reads")
    return sorted(found, key=lambda version: version.number), odd


def find_version(experiment: Path, text: str) -> Version:
    """A version by its folder's name, ``vN`` or N.

    Raises:
        UserError: there is none such; the message names those there are.
    """
    existing, _ = versions(experiment)
    for version in existing:
        if text in (version.folder.name, f"v{version.number}", str(version.number)):
            return version
    names = ", ".join(version.folder.name for version in existing) or "none; make one with checkpoint.py"
    raise UserError(f"{experiment}: no version {text}; there are {names}")


def altered_files(folder: Path, checksums: dict[str, str]) -> list[str]:
    """Files that are missing or whose content is not what the checksums (name to SHA-256) say."""
    return [
        name
        for name, digest in checksums.items()
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest
    ]
