"""Write sentences for a trait with a language model, to a count per intended label."""

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
    add_trait_arguments,
    journal_beside,
    label_counts,
    print_requests,
    refuse_existing,
    resolve_trait,
    resolved_settings_line,
)
from s0_dataset_generation.llm_client import LLMClient, add_llm_arguments, resolve_settings
from s0_dataset_generation.reply_journal import ReplyJournal

_log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Write sentences for a trait with a language model. The result is not labelled yet:\n"
        "label_sentences.py does that, and expand_dataset.py does both.\n\n"
        "example:\n"
        "  generate_sentences.py --trait Dishonesty --seed-file initial_hendrycks_data/dishonesty.csv \\\n"
        "    --output-file unlabelled.csv \\\n"
        "    --label3-count 40 --label2-count 40 --label1-count 40 --label0-count 40",
        formatter_class=HelpFormatter,
    )
    add_trait_arguments(parser)
    add_count_arguments(parser)
    parser.add_argument(
        "--output-file", type=Path, required=True, help="CSV to write: sentence,intended_label"
    )
    add_output_arguments(parser, "the reply journal", "--output-file")
    add_llm_arguments(parser)
    return parser


@exit_codes
@on_interrupt(AFTER_INTERRUPT)
def main(argv: Sequence[str] | None = None) -> int:
    """Generate, check, write."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s0_dataset_generation")
    counts = label_counts(arguments, parser)
    trait = resolve_trait(arguments, parser)

    from s0_dataset_generation.labelled_sentences import read_labelled_sentences
    from s0_dataset_generation.sentence_generation import (
        ESTIMATED_TOKENS_PER_SENTENCE,
        SentenceGenerator,
        require_counts,
        write_generated_sentences,
    )

    seeds = read_labelled_sentences(arguments.seed_file, n_distinct_labels=1)
    settings = resolve_settings(arguments, needs_key=not arguments.dry_run)
    if not arguments.dry_run:
        claim_output(arguments.output_file)
    journal = ReplyJournal(journal_beside(arguments.output_file))
    client = LLMClient(settings, journal)
    generator = SentenceGenerator(client, trait, seeds, arguments.batch_size, arguments.seed)
    if arguments.dry_run:
        requests = [
            request for label, n in counts.items() for _, request in generator.batch_requests(label, n)
        ]
        print_requests(requests, sum(counts.values()) * ESTIMATED_TOKENS_PER_SENTENCE)
        return 0
    refuse_existing(arguments.output_file, arguments.overwrite, "--output-file")
    watch = Stopwatch()
    _log.info(resolved_settings_line(arguments, settings))
    try:
        missing = generator.top_up(counts)
    finally:
        _log.info(client.usage_line())
    sentences, intended = generator.shuffled()
    if not (arguments.accept_shortfall and sentences):
        require_counts(missing, generator.rejected, f"replies are kept in {journal.path}")
    write_generated_sentences(arguments.output_file, sentences, intended)
    if not arguments.keep_temp:
        journal.path.unlink(missing_ok=True)
    _log.info("%d sentences in %.1f s", len(sentences), watch.seconds)
    print(arguments.output_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
