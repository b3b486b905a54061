"""Label sentences 0-3 for a trait with a language model that does not see what they were written to be."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging
from pipeline_common.errors import UserError, exit_codes
from s0_dataset_generation.generation_arguments import (
    add_trait_arguments,
    journal_beside,
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
        description="Label sentences 0-3 for a trait with a language model. Only the sentences are sent,\n"
        "never an intended label. A sentence that gets no label is never given one by default: the run\n"
        "says so and ends with exit code 1.\n\n"
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
    parser.add_argument("--keep-temp", action="store_true", help="keep the reply journal after success")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output-file")
    add_llm_arguments(parser)
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Read, label, write, report."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s0_dataset_generation")
    trait = resolve_trait(arguments, parser)

    from s0_dataset_generation.labelled_sentences import write_labelled_sentences
    from s0_dataset_generation.sentence_labelling import (
        ESTIMATED_TOKENS_PER_LABEL,
        agreement_text,
        label_sentences,
        labelling_requests,
        read_sentences,
    )

    sentences, intended = read_sentences(arguments.input_file)
    settings = resolve_settings(arguments, needs_key=not arguments.dry_run)
    if arguments.dry_run:
        requests = labelling_requests(trait, sentences, arguments.batch_size, arguments.seed)
        print_requests(requests, len(sentences) * ESTIMATED_TOKENS_PER_LABEL)
        return 0
    refuse_existing(arguments.output_file, arguments.overwrite, "--output-file")
    journal = ReplyJournal(journal_beside(arguments.output_file))
    client = LLMClient(settings, journal)
    watch = Stopwatch()
    _log.info(resolved_settings_line(arguments, settings))
    labels = label_sentences(client, trait, sentences, arguments.batch_size, arguments.seed)
    _log.info(client.usage_line())
    given = [label for label in labels if label is not None]
    if len(given) < len(sentences):
        raise UserError(
            f"{arguments.input_file}: {len(sentences) - len(given)} of {len(sentences)} sentences got "
            f"no label, the first is {sentences[labels.index(None)][:80]!r}; replies are kept in "
            f"{journal.path}; run the same command again to go on"
        )
    write_labelled_sentences(arguments.output_file, sentences, given)
    if not arguments.keep_temp:
        journal.path.unlink(missing_ok=True)
    if intended is not None:
        print(agreement_text(intended, given))
    _log.info("%d sentences in %.1f s", len(sentences), watch.seconds)
    print(arguments.output_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
