"""Gather general English text to train sparse autoencoders on."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.claims import claim_output
from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    count,
    positive_int,
    settings_line,
)
from pipeline_common.errors import exit_codes, on_interrupt
from s1_compute_all_features.saes.general_texts import SOURCES

logger = logging.getLogger(__name__)

DATASETS = Path(__file__).resolve().parent.parent / "s0_dataset_generation" / "expanded_data"


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    names = [source.name for source in SOURCES]
    parser = argparse.ArgumentParser(
        description="Gather general English text to train SAEs on: novels, handbooks and the stories of\n"
        "games out of Debian packages, and text that a language model writes itself. One text file\n"
        "per source, one paragraph a line, beside sources.json with licences and checksums. Paragraphs\n"
        "that repeat a sentence of the data sets are left out.\n\n"
        "  uv run python gather_texts.py --output texts\n"
        "  uv run python gather_texts.py --output texts --model MODEL_FOLDER --written-tokens 400000",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the texts; a run goes on in it")
    parser.add_argument(
        "--sources",
        nargs="*",
        choices=names,
        default=names,
        metavar="SOURCE",
        help="which texts to fetch; without a name after the flag, none",
    )
    parser.add_argument(
        "--datasets",
        type=Path,
        nargs="+",
        default=None,
        metavar="CSV",
        help="labelled CSVs whose sentences must not be in the texts (default: all that are shipped)",
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="causal language model that writes")
    parser.add_argument(
        "--written-tokens", type=count, default=0, help="tokens that the model writes, openings included"
    )
    parser.add_argument("--seed", type=count, default=0, help="of the written text")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the model while it writes; bfloat16 is the faster where the processor has it",
    )
    parser.add_argument(
        "--processes",
        type=positive_int,
        default=2,
        help="that write side by side, one core each; the text does not depend on it",
    )
    parser.add_argument("--overwrite", action="store_true", help="gather again what is there already")
    return parser


@exit_codes
@on_interrupt("what is gathered and written is kept; the same command goes on")
def main(argv: Sequence[str] | None = None) -> int:
    """Gather the texts; exit code 0, or 1 with one line on stderr."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if bool(arguments.written_tokens) != (arguments.model is not None):
        parser.error("--model and --written-tokens go together: who writes, and how much")
    configure_logging("s1_compute_all_features")
    logger.info("%s", settings_line(arguments))

    from s1_compute_all_features.models.text_writing import Sampling
    from s1_compute_all_features.saes.text_collection import SOURCES_FILE, TextCollection, gather
    from s1_compute_all_features.saes.written_text import write_text_of_model

    watch = Stopwatch()
    claim_output(arguments.output, marker=SOURCES_FILE)
    datasets = arguments.datasets or sorted(DATASETS.glob("*.csv"))
    collection = TextCollection(arguments.output, datasets, arguments.overwrite)
    gather([source for source in SOURCES if source.name in arguments.sources], collection)
    if arguments.model is not None:
        sampling = Sampling(seed=arguments.seed, dtype=arguments.dtype)
        write_text_of_model(
            collection, arguments.model, sampling, arguments.written_tokens, arguments.processes
        )
    n_words = sum(record["n_words"] for record in collection.records.values())
    print(f"{arguments.output}: {len(collection.records)} texts, {n_words} words, in {watch.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
