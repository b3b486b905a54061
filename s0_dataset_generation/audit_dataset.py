"""Audit labelled CSVs: duplicates, balance, vocabulary, and whether a shortcut tells the labels apart."""

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging, settings_line
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import write_json
from pipeline_common.provenance import library_versions

if TYPE_CHECKING:
    from s0_dataset_generation.labelled_sentences import LabelledSentences

FORMAT_VERSION = 2
DEFAULT_OUTPUT_DIR = Path(__file__).parent / "audits"

_log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Audit labelled CSVs: exact and near duplicates, counts, length, punctuation and the\n"
        "trait's usual words by label, first words, vocabulary, and shortcut tests - cross-validated\n"
        "classifiers of label 3 against 0 that see only length and punctuation, function words, or the\n"
        "first two words, and should be near chance (AUROC 0.5). Prints a table and writes a JSON and a PNG\n"
        "per CSV.\n\n"
        "example:\n  audit_dataset.py expanded_data/dishonesty.csv --strict",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "csv", type=Path, nargs="+", metavar="CSV", help="labelled CSV: sentence,concept_strength_label"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=DEFAULT_OUTPUT_DIR,
        help="folder for <CSV name>_audit.json and .png",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 where a limit is broken, naming each"
    )
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Read all, audit each, compare them, report."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    twice = [stem for stem, n in Counter(path.stem for path in arguments.csv).items() if n > 1]
    if twice:
        parser.error(f"two CSVs are named {twice[0]!r} and would share an output; audit them one at a time")
    configure_logging("s0_dataset_generation")
    _log.info(settings_line(arguments))
    watch = Stopwatch()

    from s0_dataset_generation.dataset_audit import audit, broken_limits, shared_sentences
    from s0_dataset_generation.labelled_sentences import GROUP_COLUMN, read_labelled_sentences
    from s0_dataset_generation.trait_words import TRAIT_WORDS

    datasets = [read_labelled_sentences(path, n_distinct_labels=1) for path in arguments.csv]
    broken: list[str] = []
    for data in datasets:
        words = TRAIT_WORDS.get(data.path.stem.split("_")[0])
        findings = audit(data.sentences, data.labels, words, data.further_columns.get(GROUP_COLUMN))
        limits = broken_limits(findings)
        broken += [f"{data.path}: {limit}" for limit in limits]
        print(findings_table(data.path.name, findings, data.sentences, limits))
        _write(arguments.output_dir, data, findings, limits)
    shared = shared_sentences({data.path.name: data.sentences for data in datasets})
    for sentence, names in shared:
        print(f"in {' and '.join(names)}: {sentence}")
    if shared:
        broken.append(f"{len(shared)} sentences stand in more than one file (limit 0)")
    _log.info("%d files audited in %.1f s", len(datasets), watch.seconds)
    if arguments.strict and broken:
        raise UserError(f"{len(broken)} limits broken: {'; '.join(broken)}")
    return 0


def _write(
    folder: Path, data: "LabelledSentences", findings: Mapping[str, Any], limits: Sequence[str]
) -> None:
    from s0_dataset_generation.dataset_audit import LIMITED_SHORTCUTS, MAX_SHORTCUT_AUROC
    from s0_dataset_generation.dataset_plots import plot_audit

    stem = folder / f"{data.path.stem}_audit"
    claim_output(stem.with_suffix(".json"), stem.with_suffix(".png"))
    origin = {
        "format_version": FORMAT_VERSION,
        "input": data.path.name,
        "input_sha256": data.sha256,
        "versions": library_versions(["numpy", "scikit-learn", "scipy"]),
    }
    write_json(stem.with_suffix(".json"), {**origin, **findings, "broken_limits": list(limits)})
    limits_drawn = dict.fromkeys(LIMITED_SHORTCUTS, MAX_SHORTCUT_AUROC)
    title = f"{data.path.stem}: {len(data.sentences)} sentences"
    plot_audit(stem.with_suffix(".png"), title, data.sentences, data.labels, findings, limits_drawn)
    print(f"{stem.with_suffix('.json')}\n{stem.with_suffix('.png')}")


def findings_table(
    name: str, findings: Mapping[str, Any], sentences: Sequence[str], limits: Sequence[str]
) -> str:
    """The findings on one file as lines for the terminal.

    Args:
        name: of the file.
        findings: of `dataset_audit.audit`.
        sentences: of the file, to show some of those that are alike; all are in the JSON.
        limits: of `dataset_audit.broken_limits`.
    """
    counts, words, marks, used = (
        findings[key] for key in ("label_counts", "words", "punctuation_per_sentence", "trait_word_share")
    )
    lines = [
        f"{name}: {findings['n_sentences']} sentences",
        "label   sentences   words min/median/max   commas   quotes   trait's words",
    ]
    for label, n_sentences in counts.items():
        lengths = "-" if not n_sentences else "{min:g}/{median:g}/{max:g}".format(**words[label])
        commas, quotes = (f"{marks[label][mark]:.2f}" if n_sentences else "-" for mark in ',"')
        share = "-" if used[label] is None else f"{used[label]:.0%}"
        lines.append(f"{label:>5}{n_sentences:>12}{lengths:>23}{commas:>9}{quotes:>9}{share:>16}")
    if findings["implied_share"] is not None:
        lines.append(f"implied, none of the words {findings['implied_share']:.1%}")
    lines.append(f"distinct words             {findings['distinct_words']}")
    lines.append(f"exact duplicates           {len(findings['exact_duplicates'])}")
    lines.append(f"with a close neighbour     {findings['neighbour_share']:.1%}")
    if findings["given_groups"]:
        lines.append(f"pairs and other groups     {findings['given_groups']}")
    lines += [
        f"  {len(cluster)} alike: {' | '.join(sentences[i] for i in cluster[:3])}"
        for cluster in findings["neighbour_clusters"][:5]
    ]
    first_words = list(findings["first_words"].items())[:6]
    lines.append("first words                " + ", ".join(f"{word} {n}" for word, n in first_words))
    opening, share = next(iter(findings["openings"].items()))
    lines.append(f"commonest opening          {opening!r} {share:.1%}")
    lines.append("AUROC of label 3 vs 0 by")
    for shortcut, auroc in findings["shortcut_auroc"].items():
        lines.append(f"  {shortcut:<25}{'not enough sentences' if auroc is None else f'{auroc:.3f}'}")
    lines += [f"limit broken: {limit}" for limit in limits]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
