"""Go on from a version: restore it into the experiment's working folder."""

import argparse
import logging
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, configure_logging
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import atomic_path, sha256_of_file, write_text
from s5_classifier_training.framework.experiment_folder import (
    CONFIG,
    INPUTS,
    NOTES,
    OUTPUTS,
    RESULTS,
    WORKING,
    Version,
    find_experiment,
    find_version,
    refuse_altered,
    versions,
)

log = logging.getLogger(__name__)

DESCRIPTION = """\
Restore working/ from a version and start the next entry of working/experiment_notes.md.

Refuses where working/ holds a configuration or results that are in no version, unless --overwrite is given.

example:
  python framework/new_experiment.py d3_hidden_to_concept --from v1_logistic \\
      --note "try weaker regularisation"
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="name inside s5_classifier_training, or a path"
    )
    parser.add_argument("--from", dest="version", required=True, metavar="VERSION", help="vN_name, vN or N")
    parser.add_argument("--note", required=True, help="what is to be tried; goes into experiment_notes.md")
    parser.add_argument("--overwrite", action="store_true", help="drop what is in no version")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Restore the version that the command line names."""
    arguments = build_parser().parse_args(argv)
    configure_logging("s5_classifier_training")
    experiment = find_experiment(arguments.experiment)
    version = find_version(experiment, arguments.version)
    claim_output(experiment / WORKING, marker=CONFIG)
    if not arguments.overwrite:
        refuse_to_lose(experiment)
    restore(experiment, version)
    add_note(experiment / WORKING / NOTES, version, arguments.note)
    warn_of_other_dataset(experiment / WORKING, version)
    print(
        f"{experiment / WORKING}: restored from {version.folder.name}; change {INPUTS[0]}, then run train.py"
    )
    return 0


def refuse_to_lose(experiment: Path) -> None:
    """Stop where a file in ``working/`` is in no version.

    Raises:
        UserError: naming the file.
    """
    kept = {digest for version in versions(experiment)[0] for digest in version.content["checksums"].values()}
    for name in (RESULTS, *INPUTS):
        path = experiment / WORKING / name
        if path.is_file() and sha256_of_file(path) not in kept:
            raise UserError(
                f"{path}: is in no version and would be lost; keep it with checkpoint.py, or add --overwrite"
            )


def restore(experiment: Path, version: Version) -> None:
    """Make ``working/`` hold what the version holds; the results, which vouch for the rest, come last.

    Raises:
        UserError: a file of the version is missing or was changed.
    """
    refuse_altered(version)
    checksums: dict[str, str] = version.content["checksums"]
    working = experiment / WORKING
    for name in reversed(OUTPUTS):
        (working / name).unlink(missing_ok=True)
    for name in sorted(checksums, key=lambda name: name == RESULTS):
        with atomic_path(working / name) as temporary:
            shutil.copyfile(version.folder / name, temporary)


def warn_of_other_dataset(working: Path, version: Version) -> None:
    """Say so where training again would not read the dataset that the version was trained on."""
    from s5_classifier_training.framework.config import load_dataset_path

    try:
        path = load_dataset_path(working)
    except UserError as error:
        log.warning(f"warning: {error}")
        return
    if sha256_of_file(path) != version.content["dataset"]["sha256"]:
        log.warning(
            f"warning: {path} is not the dataset that {version.folder.name} was trained on; a training will "
            "not repeat its results"
        )


def add_note(path: Path, version: Version, note: str) -> None:
    """Append an entry to the notes, made where they are missing."""
    before = path.read_text(encoding="utf-8").rstrip() + "\n" if path.is_file() else "# Notes\n"
    day = datetime.now(UTC).date().isoformat()
    write_text(path, f"{before}\n## {day}, from {version.folder.name}\n\n{note.strip()}\n")


if __name__ == "__main__":
    raise SystemExit(main())
