"""An experiment's folder: where its files are, which experiments and versions exist, and its results."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import is_changed, read_json, sealed, sha256_of_file
from pipeline_common.json_shape import NATURAL, JsonFormat
from s4_classifier_data_prep.classifier_dataset import DESCRIPTION_SHAPE

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

_NUMBER = (None, float)
_SCORES = {str: {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}}
RESULTS_FORMAT = JsonFormat(
    "classifier_results",
    1,
    "results",
    {
        **dict.fromkeys(("experiment", "main_score", "best"), str),
        **dict.fromkeys(("seed", "n_folds", "n_train", "n_test", "n_inputs"), NATURAL),
        "cv_mean": float,
        "cv_std": _NUMBER,
        "labels": (None, [range(4)]),
        "test": _SCORES,
        "estimators": [{"title": str, "cv_mean": _NUMBER, "cv_std": _NUMBER}],
        "baselines": {str: {"cv_mean": _NUMBER, "cv_std": _NUMBER, "test": _SCORES}},
        "warnings": [str],
        "dataset": {"file": str, "sha256": str, **DESCRIPTION_SHAPE},
        "files": {str: str},
        "model_types": [str],
        "library_versions": {str: str},
    },
    "run train.py again",
)
VERSION_FORMAT = JsonFormat(
    "classifier_version",
    2,
    "version made by checkpoint.py",
    {"experiment": str, "dataset": {"sha256": str}, "checksums": {str: str}},
    "take another version",
)

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

    def goes_by(self, name: str) -> bool:
        """Whether it is meant by a folder's name, ``vN`` or N."""
        return name in (self.folder.name, f"v{self.number}", str(self.number))


def shipped_experiments() -> list[str]:
    """Names of the experiment folders that stand inside stage 5."""
    return sorted(folder.name for folder in EXPERIMENTS.iterdir() if (folder / WORKING / CONFIG).is_file())


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Experiments by name, or all of them; read by `chosen_experiments`."""
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help="a folder inside s5_classifier_training, by name, or the path of an experiment's folder",
    )
    parser.add_argument("--all", action="store_true", help="every experiment inside s5_classifier_training")


def chosen_experiments(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Path]:
    """The folders that `add_experiment_arguments` asked for.

    Raises:
        UserError: one is not there.
    """
    if arguments.all == bool(arguments.experiments):
        parser.error("name one or more experiments, or give --all")
    names = shipped_experiments() if arguments.all else arguments.experiments
    return [find_experiment(name) for name in names]


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
    results = RESULTS_FORMAT.check(path, read_json(path, "classifier results"))
    _refuse_inconsistent(path, results)
    if is_changed(results):
        raise UserError(f"{path}: damaged or changed since train.py wrote it; run train.py again")
    return results


def _refuse_inconsistent(path: Path, results: dict[str, Any]) -> None:
    """Stop where results name a score that was not taken, or a file that no experiment writes."""
    scores, main_score = results["test"], results["main_score"]
    if main_score not in scores:
        raise UserError(f"{path}: main_score: {main_score!r} is none of the test scores; run train.py again")
    for name, baseline in results["baselines"].items():
        if baseline["test"].keys() != scores.keys():
            raise UserError(f"{path}: baselines.{name}.test: other scores than test; run train.py again")
    foreign = sorted(set(results["files"]) - {*INPUTS, *OUTPUTS})
    if foreign:
        raise UserError(
            f"{path}: files: {foreign[0]!r} is none that an experiment consists of; run train.py again"
        )


def version_number(name: str) -> int | None:
    """N of a folder named ``vN_name``; None for any other name."""
    match = _VERSION_NAME.fullmatch(name)
    return int(match[1]) if match else None


def versions(experiment: Path) -> tuple[list[Version], list[str]]:
    """The versions of an experiment by number, and what looks like one and is none, with the reason."""
    found, odd = [], []
    for folder in sorted(experiment.iterdir()):
        if version_number(folder.name) is None or not folder.is_dir():
            continue
        try:
            found.append(read_version(folder))
        except UserError as error:
            odd.append(str(error))
    return sorted(found, key=lambda version: version.number), odd


def read_version(folder: Path) -> Version:
    """The version in a folder.

    Raises:
        UserError: it holds none, or one of another format version.
    """
    content = VERSION_FORMAT.check(folder / VERSION, read_json(folder / VERSION, VERSION_FORMAT.what))
    number = version_number(folder.resolve().name)
    if number is None:
        raise UserError(f"{folder}: expected a version's folder, whose name is vN_NAME; take another version")
    foreign = set(content["checksums"]) - {*INPUTS, *OUTPUTS}
    if foreign:
        raise UserError(
            f"{folder / VERSION}: checksums: {min(foreign)!r} is no file of an experiment; "
            "take another version"
        )
    return Version(folder, number, content)


def find_version(experiment: Path, text: str) -> Version:
    """A version by its folder's name, ``vN`` or N.

    Raises:
        UserError: there is none such; the message names those there are.
    """
    existing, odd = versions(experiment)
    for version in existing:
        if version.goes_by(text):
            return version
    names = ", ".join(version.folder.name for version in existing) or "none; make one with checkpoint.py"
    passed_over = f"; passed over: {'; '.join(odd)}" if odd else ""
    raise UserError(f"{experiment}: no version {text}; there are {names}{passed_over}")


def find_checkpoint(text: str) -> Version:
    """A version by ``EXPERIMENT/vN``, by the path of its folder, or by ``vN`` where one experiment has it.

    Args:
        text: EXPERIMENT is a folder inside stage 5 or a path; vN is whatever `find_version` takes.

    Raises:
        UserError: there is none such, or several experiments inside stage 5 have it.
    """
    if (Path(text) / VERSION).is_file():
        return read_version(Path(text))
    experiment, _, name = text.rstrip("/").rpartition("/")
    if experiment:
        return find_version(find_experiment(experiment), name)
    found = [
        version
        for folder in shipped_experiments()
        for version in versions(EXPERIMENTS / folder)[0]
        if version.goes_by(name)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{version.folder.parent.name}/{version.folder.name}" for version in found)
    raise UserError(
        f"{text}: {f'several experiments have it: {names}' if found else 'no experiment has this version'}; "
        "give EXPERIMENT/vN, or the path of a version's folder"
    )


def altered_files(folder: Path, checksums: dict[str, str]) -> list[str]:
    """Files that are missing or whose content is not what the checksums (name to SHA-256) say."""
    return [
        name
        for name, digest in checksums.items()
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest
    ]


def problems_of(version: Version) -> list[str]:
    """In what a version differs from what checkpoint.py made, one entry per file; empty where it does not."""
    checksums: dict[str, str] = version.content["checksums"]
    known = {VERSION, *checksums}
    return [
        *([] if sealed(version.content) == version.content else [f"{VERSION} was changed"]),
        *(f"{name} is missing or was changed" for name in altered_files(version.folder, checksums)),
        *(
            f"{path.name} does not belong to it"
            for path in sorted(version.folder.iterdir())
            if path.name not in known
        ),
    ]


def refuse_altered(version: Version) -> None:
    """Stop where a version is not what checkpoint.py made.

    Raises:
        UserError: naming the first difference.
    """
    problems = problems_of(version)
    if problems:
        raise UserError(
            f"{version.folder}: not as checkpoint.py made it: {problems[0]}; take another version, "
            "or train again"
        )
