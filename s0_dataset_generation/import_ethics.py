"""Turn a local copy of an ETHICS CSV into a seed or evaluation file for a trait, with labels 3 and 0."""

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import sha256_of_file, write_json
from pipeline_common.provenance import library_versions
from s0_dataset_generation.generation_arguments import refuse_existing
from s0_dataset_generation.trait_words import TRAIT_WORDS, TraitWords

FORMAT_VERSION = 1

_log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Turn a local copy of a CSV of ETHICS (Hendrycks et al., 2021; virtue or commonsense)\n"
        "into a labelled CSV for a trait: 3 where the trait is shown, 0 where it is not. Repeated texts are\n"
        "merged. The file is not part of this project; get it from its authors.\n\n"
        "example:\n"
        "  import_ethics.py --input-file virtue_test.csv --trait Dishonesty \\\n"
        "    --output-file dishonesty_ethics.csv --per-label 10",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--input-file", type=Path, required=True, help="virtue (label,scenario) or commonsense (label,input)"
    )
    parser.add_argument("--trait", required=True, help="the trait, any word or phrase, such as Dishonesty")
    parser.add_argument(
        "--output-file", type=Path, required=True, help="CSV to write: sentence,concept_strength_label"
    )
    parser.add_argument(
        "--per-label", type=positive_int, help="sentences of each label at most, drawn by --seed"
    )
    parser.add_argument("--max-words", type=positive_int, default=35, help="leave longer texts out")
    parser.add_argument(
        "--words",
        help="words for the trait, comma-separated, * for any ending (default: built in for shipped traits)",
    )
    parser.add_argument(
        "--opposite-words", help="likewise for the trait's opposite, whose texts are no label 0"
    )
    parser.add_argument(
        "--verdict",
        choices=("wrong", "not-wrong"),
        help="commonsense: the verdict on deeds that show the trait (default: as for --words)",
    )
    parser.add_argument("--seed", type=count, default=0, help="of the draw")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output-file")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Read, select, write, report."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s0_dataset_generation")
    words = _trait_words(arguments, parser)
    watch = Stopwatch()
    _log.info(settings_line(arguments))

    from s0_dataset_generation.ethics_import import COMMONSENSE, read_ethics, trait_labels
    from s0_dataset_generation.labelled_sentences import write_labelled_sentences

    output: Path = arguments.output_file
    provenance = output.with_name(f"{output.stem}_provenance.json")
    claim_output(output, provenance)
    refuse_existing(output, arguments.overwrite, "--output-file", [provenance])
    kind, texts = read_ethics(arguments.input_file)
    if kind == COMMONSENSE and arguments.words and not arguments.verdict:
        parser.error("--words for a commonsense file needs --verdict as well")
    labelled, left_out = trait_labels(kind, texts, words, arguments.max_words)
    chosen = _draw(labelled, arguments.per_label, arguments.seed)
    counts = {label: sum(own == label for _, own in chosen) for label in (3, 0)}
    if not all(counts.values()):
        raise UserError(
            f"{arguments.input_file}: {counts[3]} texts of label 3 and {counts[0]} of label 0 for "
            f"{arguments.trait!r}; both are needed: widen --words or --max-words, or use a larger file"
        )
    write_json(
        provenance,
        {
            "format_version": FORMAT_VERSION,
            "trait": arguments.trait.strip(),
            "input": arguments.input_file.name,
            "input_sha256": sha256_of_file(arguments.input_file),
            "kind": kind,
            "words": asdict(words),
            "max_words": arguments.max_words,
            "per_label": arguments.per_label,
            "seed": arguments.seed,
            "n_different_texts": len(texts),
            "n_sentences": {str(label): n for label, n in counts.items()},
            "left_out": dict(sorted(left_out.items())),
            "versions": library_versions([]),
        },
    )
    write_labelled_sentences(output, [text for text, _ in chosen], [label for _, label in chosen])
    reasons = "; ".join(f"{reason}: {n}" for reason, n in sorted(left_out.items())) or "none"
    print(f"{kind}: {len(texts)} different texts; label 3: {counts[3]}, label 0: {counts[0]}")
    print(f"left out: {reasons}")
    _log.info("%d sentences in %.1f s", len(chosen), watch.seconds)
    print(f"{output}\n{provenance}")
    return 0


def _trait_words(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> TraitWords:
    known = TRAIT_WORDS.get(arguments.trait.strip().lower())
    if known is None and arguments.words is None:
        parser.error(
            f"--trait {arguments.trait!r}: no words are built in for it; name them with --words "
            f"(built in: {', '.join(TRAIT_WORDS)})"
        )
    if arguments.words is not None and not _split(arguments.words):
        parser.error("--words names no word; expected a list such as 'thrift*,frugal'")
    words = known if known and not arguments.words else TraitWords(_split(arguments.words), ())
    if arguments.opposite_words:
        words = replace(words, opposite=_split(arguments.opposite_words))
    if arguments.verdict:
        words = replace(words, is_wrong=arguments.verdict == "wrong")
    return words


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _draw(labelled: Sequence[tuple[str, int]], per_label: int | None, seed: int) -> list[tuple[str, int]]:
    """At most that many of each label, in the order of the file."""
    draw = random.Random(f"ethics {seed}")
    chosen: set[int] = set()
    for label in (3, 0):
        places = [index for index, (_, own) in enumerate(labelled) if own == label]
        chosen.update(places if per_label is None else draw.sample(places, min(per_label, len(places))))
    return [labelled[index] for index in sorted(chosen)]


if __name__ == "__main__":
    raise SystemExit(main())
