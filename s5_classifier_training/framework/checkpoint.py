"""Keep the trained state of an experiment as an unchanging version, and verify versions."""

import argparse
import contextlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline_common.command_line import HelpFormatter, configure_logging
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import atomic_path, sealed, sha256_of_file, write_json
from pipeline_common.provenance import library_versions
from s5_classifier_training.framework.experiment_folder import (
    EXPERIMENTS,
    RESULTS,
    VERSION,
    VERSION_FORMAT,
    WORKING,
    altered_files,
    find_experiment,
    find_version,
    problems_of,
    read_results,
    version_number,
    versions,
)

log = logging.getLogger(__name__)

DESCRIPTION = """\
Copy the trained state of an experiment into EXPERIMENT/vN_NAME/, N being the next free number.

The version holds the configuration, results, predictions, picture and model, and version.json with their
checksums, the dataset's fingerprint, the library versions, the git commit and the message. It is
read-only, and it appears whole or not at all. --verify holds versions against their checksums.

example:
  python framework/checkpoint.py d3_hidden_to_concept --name logistic --message "first run on layers 0-5"
  python framework/checkpoint.py d3_hidden_to_concept --verify
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="name inside s5_classifier_training, or a path"
    )
    parser.add_argument("--name", type=version_name, help="of the new version: letters, digits, - and _")
    parser.add_argument("--message", help="what is worth remembering about it")
    parser.add_argument(
        "--verify",
        nargs="*",
        metavar="VERSION",
        help="make nothing, but check these versions (vN_name, vN or N), or all where none is named",
    )
    return parser


def version_name(text: str) -> str:
    """A name that is safe as a part of a folder's name on every system.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be up to 100 letters, digits, - and _")
    return text


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Make the version that the command line asks for and print its folder, or verify versions."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    given = [arguments.name is not None, arguments.message is not None]
    if arguments.verify is not None and any(given):
        parser.error("--verify makes no version, so it takes neither --name nor --message")
    if arguments.verify is None and not all(given):
        parser.error("a new version needs --name and --message")
    configure_logging("s5_classifier_training")
    experiment = find_experiment(arguments.experiment)
    if arguments.verify is None:
        print(make_version(experiment, arguments.name, arguments.message))
    else:
        verify(experiment, arguments.verify)
    return 0


def make_version(experiment: Path, name: str, message: str) -> Path:
    """Copy ``working/`` into a new version.

    Args:
        experiment: the experiment's folder.
        name: of the version; the folder is ``vN_name``.
        message: kept in ``version.json``.

    Returns:
        The version's folder.

    Raises:
        UserError: there are no results, or a file changed since the training that the results speak of.
    """
    working = experiment / WORKING
    results = read_results(working)
    if results is None:
        raise UserError(f"{working}: no {RESULTS}; run train.py {experiment.name} first")
    altered = altered_files(working, results["files"])
    if altered:
        raise UserError(
            f"{working / altered[0]}: changed since the training that {RESULTS} speaks of; "
            f"run train.py {experiment.name} again, then make the version"
        )
    with _reserved_number(experiment) as (number, unfinished):
        checksums = {}
        for file in (*results["files"], RESULTS):
            with atomic_path(unfinished / file) as temporary:
                shutil.copyfile(working / file, temporary)
            checksums[file] = sha256_of_file(unfinished / file)
        if any(checksums[file] != digest for file, digest in results["files"].items()):
            raise UserError(f"{working}: a training is writing here; make the version when it is done")
        write_json(unfinished / VERSION, _description(experiment, number, name, message, results, checksums))
        for path in unfinished.iterdir():
            path.chmod(0o444)
        unfinished.chmod(0o555)
        folder = experiment / f"v{number}_{name}"
        os.rename(unfinished, folder)
    log.info(f"{len(checksums) + 1} files in {folder}")
    return folder


@contextlib.contextmanager
def _reserved_number(experiment: Path) -> Iterator[tuple[int, Path]]:
    """Yield the next free number and a hidden folder that reserves it, to be renamed; an error removes it.

    mkdir either makes the folder or fails, so two processes never hold one number. The folder of a
    process that was killed keeps its number taken: numbers may have gaps, never a second use.
    """
    number = 0
    while True:
        taken = [version_number(path.name.removeprefix(".")) or 0 for path in experiment.iterdir()]
        number = max(number, 0, *taken) + 1
        unfinished = experiment / f".v{number}_unfinished"
        try:
            unfinished.mkdir()
        except FileExistsError:
            continue
        # Between the listing and mkdir another process may have finished under this very number.
        if any(version_number(path.name) == number for path in experiment.iterdir()):
            unfinished.rmdir()
            continue
        break
    try:
        yield number, unfinished
    except BaseException:
        # Only here: after the rename the hidden name may already be another process's reservation.
        unfinished.chmod(0o755)
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def verify(experiment: Path, names: Sequence[str]) -> None:
    """Hold versions against what they were when they were made, and print a line for each.

    Args:
        experiment: the experiment's folder.
        names: the versions, as `find_version` takes them; none for all of them.

    Raises:
        UserError: there is none such, or one of them is missing a file, was changed, or holds a foreign one.
    """
    existing, odd = versions(experiment)
    chosen = [find_version(experiment, name) for name in names] if names else existing
    if not chosen and not odd:
        raise UserError(f"{experiment}: no versions; make one with checkpoint.py")
    reasons = [] if names else odd
    for reason in reasons:
        print(reason)
    n_wrong = len(reasons)
    for version in chosen:
        problems = problems_of(version)
        n_wrong += bool(problems)
        print(f"{version.folder.name}: {'; '.join(problems) or 'as it was made'}")
    if n_wrong:
        raise UserError(
            f"{experiment}: {n_wrong} of these versions are not as they were made; restore them from a "
            "backup, or train again"
        )


def _description(
    experiment: Path, number: int, name: str, message: str, results: dict[str, Any], checksums: dict[str, str]
) -> dict[str, Any]:
    content = {
        **VERSION_FORMAT.header,
        "experiment": experiment.name,
        "number": number,
        "name": name,
        "message": message,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "seed": results["seed"],
        "dataset": {key: results["dataset"][key] for key in ("file", "sha256", "store")},
        "trained_with": results["library_versions"],
        "checkpointed_with": library_versions(["scikit-learn", "skops"]),
        "checksums": checksums,
    }
    return sealed(content)


def git_commit() -> str | None:
    """The commit that this code stands at, with ``-dirty`` where tracked files differ; None outside git."""
    command = ["git", "-C", str(EXPERIMENTS), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


if __name__ == "__main__":
    raise SystemExit(main())
