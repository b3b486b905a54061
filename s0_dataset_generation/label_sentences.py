"""Label sentences 0-3 for a trait with a language model that does not see what they were written to be."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging
from pipeline_common.errors import UserError, exit_codes, on_interrupt
from s0_dataset_generation.generation_arguments import (
    AFTER_INTERRUPT,
    add_output_arguments,
    add_rater_argument,
    add_trait_arguments,
    journal_beside,
    print_requests,
    refuse_existing,
    resolve_trait,
    resolved_settings_line,
)
from s0_dataset_generation.llm_client import LLMClient, add_llm_arguments, resolve_settings
from s0_dataset_generation.reply_journal import ReplyJournal
from s0_dataset_generation.rubric import Trait

if TYPE_CHECKING:
    from s0_dataset_generation.ratings import RatedSentence

_log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Label sentences 0-3 for a trait with a language model. Only the sentences are sent,\n"
        "never an intended label. A sentence that gets no label is never given one by default: the run\n"
        "says so and ends with exit code 1. The ratings go to a second CSV beside the output.\n\n"
        "example:\n"
        "  label_sentences.py --trait Dishonesty --input-file unlabelled.csv --output-file labelled.csv",
        formatter_class=HelpFormatter,
    )
    add_trait_arguments(parser)
    parser.add_argument(
        "--input-file",
        type=Path,
        required=True,
        help="CSV with a column sentence; a column intended_label is compared with the labels at the end",
    )
    parser.add_argument(
        "--output-file", type=Path, required=True, help="CSV to write: sentence,concept_strength_label"
    )
    add_output_arguments(parser, "the reply journal", "--output-file")
    add_rater_argument(parser)
    add_llm_arguments(parser)
    return parser


@exit_codes
@on_interrupt(AFTER_INTERRUPT)
def main(argv: Sequence[str] | None = None) -> int:
    """Read, label, write, report."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s0_dataset_generation")
    trait = resolve_trait(arguments, parser)

    from s0_dataset_generation.labelled_sentences import write_labelled_sentences
    from s0_dataset_generation.ratings import agreement_text, ratings_path, write_ratings
    from s0_dataset_generation.sentence_labelling import (
        ESTIMATED_TOKENS_PER_LABEL,
        labelling_requests,
        read_sentences,
    )

    sentences, intended = read_sentences(arguments.input_file)
    settings = resolve_settings(arguments, needs_key=not arguments.dry_run)
    if arguments.dry_run:
        plan = (arguments.batch_size, arguments.seed, arguments.raters)
        requests = labelling_requests(trait, sentences, *plan)
        print_requests(requests, len(sentences) * arguments.raters * ESTIMATED_TOKENS_PER_LABEL)
        return 0
    output, sidecar = arguments.output_file, ratings_path(arguments.output_file)
    claim_output(output, sidecar)
    journal = journal_beside(output)
    refuse_existing(output, arguments.overwrite, "--output-file", [sidecar], journal)
    watch = Stopwatch()
    _log.info(resolved_settings_line(arguments, settings))
    client = LLMClient(settings, ReplyJournal(journal))
    rated = _rate(client, trait, sentences, intended, arguments)
    labelled = [(item.sentence, item.judged) for item in rated if item.judged is not None]
    write_ratings(sidecar, rated)
    write_labelled_sentences(output, [sentence for sentence, _ in labelled], [label for _, label in labelled])
    if not arguments.keep_temp:
        journal.unlink(missing_ok=True)
    if text := agreement_text(rated):
        print(text)
    _log.info("%d sentences in %.1f s", len(labelled), watch.seconds)
    print(f"{output}\n{sidecar}")
    return 0


def _rate(
    client: LLMClient,
    trait: Trait,
    sentences: Sequence[str],
    intended: Sequence[int] | None,
    arguments: argparse.Namespace,
) -> "list[RatedSentence]":
    from s0_dataset_generation.ratings import RatedSentence
    from s0_dataset_generation.sentence_labelling import rate_sentences

    try:
        ratings = rate_sentences(
            client, trait, sentences, arguments.batch_size, arguments.seed, arguments.raters
        )
    finally:
        _log.info(client.usage_line())
    rated = [
        RatedSentence(sentence, given, intended[index] if intended else None)
        for index, (sentence, given) in enumerate(zip(sentences, ratings, strict=True))
    ]
    unrated = [item.sentence for item in rated if None in item.ratings]
    if unrated:
        raise UserError(
            f"{arguments.input_file}: {len(unrated)} of {len(sentences)} sentences got no label, the first "
            f"is {unrated[0][:80]!r}; replies are kept in {client.journal.path}; run the same command again "
            "to go on"
        )
    if all(item.is_tie for item in rated):
        raise UserError(
            f"{arguments.input_file}: the raters tied on every sentence; use an odd number of --raters"
        )
    return rated


if __name__ == "__main__":
    raise SystemExit(main())
