"""A table over experiments and their versions: every score beside its baselines."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, configure_logging
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import sha256_of_file, write_csv, write_text
from s5_classifier_training.framework.comparison import Entry, Standing, compare_with_best, n_tests
from s5_classifier_training.framework.experiment_folder import (
    RESULTS,
    WORKING,
    add_experiment_arguments,
    chosen_experiments,
    problems_of,
    read_results,
    versions,
)
from s5_classifier_training.framework.metrics import with_interval
from s5_classifier_training.framework.tables import as_markdown, as_text, named_model, number

log = logging.getLogger(__name__)

TABLE_NAME = "comparison"
WORDS_BASELINES = ("bag_of_words", "token_identity")
COLUMNS = (
    "experiment",
    "version",
    "best estimator",
    "score",
    "cv_mean +- std",
    "test [95% interval]",
    "majority/mean",
    "length",
    "words/token",
    "shuffled",
    "test - best's [95% interval]",
    "p (Holm)",
)

DESCRIPTION = """\
Print the results of experiments side by side, each with the baselines that it has to beat.

The score is accuracy for a classification and R2 for a regression. The four baseline columns are test
scores: majority label or mean, sentence length, bag of words (token identity where a row is a token), and
the best estimator trained on shuffled labels. The last two columns hold each result against the one with
the highest cv_mean among those with the same test sentences: the difference of their test scores, and the
p value of a paired bootstrap test over groups, corrected for the number of tests. --output also writes
comparison.csv and comparison.md.

example:
  python framework/compare.py --all --versions
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    add_experiment_arguments(parser)
    parser.add_argument("--versions", action="store_true", help="also the versions made by checkpoint.py")
    parser.add_argument(
        "--detailed", action="store_true", help="also every test score, estimator and warning"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write comparison.csv and comparison.md here"
    )
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison that the command line asks for."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s5_classifier_training")
    entries = collect(chosen_experiments(arguments, parser), with_versions=arguments.versions)
    if not entries:
        raise UserError("no results yet: run train.py on one of the experiments first")
    with tqdm(total=n_tests(entries), desc="paired tests", unit="test", disable=None, leave=False) as bar:
        standings, messages = compare_with_best(entries, bar.update)
    rows = [summary_row(entry, standing) for entry, standing in zip(entries, standings, strict=True)]
    remarks = [*messages, *notes([entry.results for entry in entries])]
    print("\n".join([as_text(COLUMNS, rows), *(f"note: {remark}" for remark in remarks)]))
    if arguments.detailed:
        for entry in entries:
            print("\n" + details(entry))
    if arguments.output is not None:
        claim_output(*(arguments.output / f"{TABLE_NAME}{suffix}" for suffix in (".csv", ".md")))
        write_csv(arguments.output / f"{TABLE_NAME}.csv", *score_table(entries, standings))
        markdown = as_markdown(COLUMNS, rows) + "\n" + "".join(f"- {remark}\n" for remark in remarks)
        write_text(arguments.output / f"{TABLE_NAME}.md", markdown)
        log.info(f"wrote {TABLE_NAME}.csv and {TABLE_NAME}.md to {arguments.output}")
    return 0


def collect(folders: Sequence[Path], with_versions: bool) -> list[Entry]:
    """Everything that has results; the rest is named in the log, a version that was altered among it."""
    entries = []
    for folder in folders:
        existing, odd = versions(folder) if with_versions else ([], [])
        sound = []
        for version in existing:
            problems = problems_of(version)
            if problems:
                odd.append(f"{version.folder}: {problems[0]}")
            else:
                sound.append(version)
        places = [version.folder for version in sound]
        working = folder / WORKING
        kept = {version.content["checksums"].get(RESULTS): version.folder.name for version in sound}
        same = kept.get(sha256_of_file(working / RESULTS)) if (working / RESULTS).is_file() else None
        if same is None:
            places.insert(0, working)
        else:
            log.info(f"{working}: the same as {same}, shown once")
        for place in places:
            try:
                results = read_results(place)
            except UserError as error:
                odd.append(str(error))
                continue
            if results is None:
                odd.append(f"{place}: no results; run train.py {folder.name} first")
            else:
                entries.append(Entry(folder.name, place.name, place, results))
        for reason in odd:
            log.warning(f"passed over: {reason}")
    return entries


def summary_row(entry: Entry, standing: Standing | None) -> list[str]:
    """One line of the printed table."""
    results = entry.results
    main_score, baselines = results["main_score"], results["baselines"]
    words = next((key for key in WORDS_BASELINES if key in baselines), None)
    shown = ["majority" if "majority" in baselines else "mean", "sentence_length", words, "shuffled_labels"]
    return [
        entry.name,
        entry.version,
        results["best"],
        main_score,
        f"{number(results['cv_mean'])} +- {number(results['cv_std'])}",
        with_interval(results["test"][main_score]),
        *(number(baselines[key]["test"][main_score]["value"]) if key in baselines else "-" for key in shown),
        *_standing_cells(standing),
    ]


def _standing_cells(standing: Standing | None) -> tuple[str, str]:
    if standing is None:
        return "", ""
    if standing.comparison is None:
        return "best", ""
    found = standing.comparison
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", f"{standing.adjusted_p:.4f}"


def notes(all_results: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the table has to know: different data, different scores."""
    found = []
    if len({results["dataset"]["store"]["fingerprint"] for results in all_results}) > 1:
        found.append("these come from different feature stores; their test sentences may differ")
    main_scores = sorted({results["main_score"] for results in all_results})
    if len(main_scores) > 1:
        found.append(f"{' and '.join(main_scores)} answer different questions and cannot be ranked together")
    return found


def details(entry: Entry) -> str:
    """Every score of one entry: test, baselines, estimators, dataset and warnings."""
    results = entry.results
    baselines, dataset = results["baselines"], results["dataset"]
    rows = [
        [score, with_interval(value), *(with_interval(rival["test"][score]) for rival in baselines.values())]
        for score, value in results["test"].items()
    ]
    estimators = [
        [found["title"], number(found["cv_mean"]), number(found["cv_std"])] for found in results["estimators"]
    ]
    return "\n".join(
        [
            f"{entry.title}: {dataset['strategy']} from {dataset['file']} ({named_model(dataset)}), "
            f"{results['n_train']:,} train and {results['n_test']:,} test {dataset['unit']}s, "
            f"{results['n_inputs']:,} inputs, {results['n_folds']} folds, seed {results['seed']}",
            as_text(["test score", results["best"], *baselines], rows),
            as_text(["estimator", "cv_mean", "cv_std"], estimators),
            *(f"warning: {warning}" for warning in results["warnings"]),
        ]
    )


def score_table(
    entries: Sequence[Entry], standings: Sequence[Standing | None]
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the CSV: one row per experiment, version, model and test score.

    The last columns belong to the main score of the best model alone.
    """
    columns = ["experiment", "version", "strategy", "dataset", "model", "score", "cv_mean", "cv_std"]
    columns += ["test_value", "test_low", "test_high"]
    columns += ["compared_with", "difference", "difference_low", "difference_high", "p_value", "p_holm"]
    rows = []
    for entry, standing in zip(entries, standings, strict=True):
        results, dataset = entry.results, entry.results["dataset"]
        models = {
            results["best"]: results,
            **{f"baseline {key}": b for key, b in results["baselines"].items()},
        }
        for model, found in models.items():
            for score, test in found["test"].items():
                is_main = score == results["main_score"]
                cross_validated = (found["cv_mean"], found["cv_std"]) if is_main else (None, None)
                compared = _standing_values(standing if is_main and found is results else None)
                rows.append(
                    [
                        *(entry.name, entry.version, dataset["strategy"], dataset["file"], model, score),
                        *cross_validated,
                        *(test["value"], test["low"], test["high"]),
                        *compared,
                    ]
                )
    return columns, rows


def _standing_values(standing: Standing | None) -> tuple[Any, ...]:
    if standing is None or standing.comparison is None:
        return (None,) * 6
    found = standing.comparison
    values = (found.difference, found.low, found.high, found.p_value, standing.adjusted_p)
    return (standing.best.title, *values)


if __name__ == "__main__":
    raise SystemExit(main())
