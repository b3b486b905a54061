"""A labelled dataset for a trait, from a few seed sentences: generate, label blind, report."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging
from pipeline_common.errors import exit_codes, on_interrupt
from s0_dataset_generation.generation_arguments import (
    AFTER_INTERRUPT,
    add_count_arguments,
    add_output_arguments,
    add_rater_argument,
    add_trait_arguments,
    label_counts,
    print_requests,
    refuse_existing,
    resolve_trait,
    resolved_settings_line,
    trait_file_name,
)
from s0_dataset_generation.llm_client import LLMClient, add_llm_arguments, resolve_settings
from s0_dataset_generation.reply_journal import ReplyJournal

DEFAULT_OUTPUT_DIR = Path(__file__).parent / "expanded_data"

_log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Make a labelled dataset for a trait from seed sentences: a language model writes\n"
        "sentences to a count per label, then labels them without seeing which label they were written for.\n"
        "The label in the result is the one that was given. A killed or incomplete run goes on where\n"
        "it stopped when the same command is run again.\n\n"
        "example:\n"
        "  expand_dataset.py --trait Dishonesty --seed-file initial_hendrycks_data/dishonesty.csv \\\n"
        "    --label3-count 300 --label2-count 250 --label1-count 150 --label0-count 100",
        formatter_class=HelpFormatter,
    )
    add_trait_arguments(parser)
    add_count_arguments(parser)
    parser.add_argument("--output-dir", type=Path, default=DEFAULT_OUTPUT_DIR, help="folder of the result")
    parser.add_argument(
        "--output-name",
        help="name of the result without .csv (default: the trait; with _generated where that exists)",
    )
    add_output_arguments(parser, "the unlabelled sentences and the reply journal", "result of that name")
    add_rater_argument(parser)
    add_llm_arguments(parser)
    return parser


@exit_codes
@on_interrupt(AFTER_INTERRUPT)
def main(argv: Sequence[str] | None = None) -> int:
    """Generate, label, write, report."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s0_dataset_generation")
    counts = label_counts(arguments, parser)
    trait = resolve_trait(arguments, parser)
    output = _output_path(arguments, parser)

    from s0_dataset_generation.dataset_expansion import (
        Expansion,
        expansion_paths,
        intermediate_paths,
        write_expansion,
    )
    from s0_dataset_generation.labelled_sentences import read_labelled_sentences
    from s0_dataset_generation.sentence_generation import ESTIMATED_TOKENS_PER_SENTENCE

    seeds = read_labelled_sentences(arguments.seed_file, n_distinct_labels=1)
    settings = resolve_settings(arguments, needs_key=not arguments.dry_run)
    temporary = output.with_name(f"{output.stem}_temp")
    if not arguments.dry_run:
        claim_output(*expansion_paths(output), *intermediate_paths(temporary))
    client = LLMClient(settings, ReplyJournal(temporary / "journal.jsonl"))
    expansion = Expansion(
        client, trait, seeds, arguments.batch_size, arguments.raters, arguments.seed, temporary
    )
    if arguments.dry_run:
        n_tokens = sum(counts.values()) * ESTIMATED_TOKENS_PER_SENTENCE
        print_requests(expansion.first_requests(counts), n_tokens)
        print(expansion.labelling_estimate(counts))
        return 0
    refuse_existing(
        output, arguments.overwrite, "--output-name", expansion_paths(output), client.journal.path
    )
    watch = Stopwatch()
    _log.info(resolved_settings_line(arguments, settings))
    try:
        expansion.run(counts, arguments.accept_shortfall)
    finally:
        _log.info(client.usage_line())
    written = write_expansion(expansion, output)
    if not arguments.keep_temp:
        expansion.remove_temporary()
    print(expansion.report())
    _log.info("%d sentences in %.1f s", len(expansion.labelled), watch.seconds)
    for path in written:
        print(path)
    return 0


def _output_path(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Path:
    """Where the result goes; beside a dataset of that name that has no provenance file, so is not ours."""
    from s0_dataset_generation.dataset_expansion import expansion_paths

    if arguments.output_name is not None:
        name = arguments.output_name.removesuffix(".csv")
        if not name or Path(name).name != name:
            parser.error(
                f"--output-name {arguments.output_name!r}: expected a name; --output-dir names the folder"
            )
        return arguments.output_dir / f"{name}.csv"
    name = trait_file_name(arguments.trait)
    output: Path = arguments.output_dir / f"{name}.csv"
    if output.exists() and not expansion_paths(output)[-1].exists():
        _log.info("%s exists and is kept: the result goes to %s_generated.csv beside it", output, name)
        output = output.with_name(f"{name}_generated.csv")
    return output


if __name__ == "__main__":
    raise SystemExit(main())
