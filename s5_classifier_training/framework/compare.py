"""A table over experiments and their versions: every score beside its baselines."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_common.command_line import HelpFormatter, configure_logging
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import write_csv, write_text
from s5_classifier_training.framework.experiment_folder import (
    EXPERIMENTS,
    WORKING,
    find_experiment,
    read_results,
    shipped_experiments,
    versions,
)
from s5_classifier_training.framework.tables import as_markdown, as_text, number

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
)

DESCRIPTION = """\
Print the results of experiments side by side, each with the baselines that it has to beat.

The score is accuracy for a classification and R2 for a regression. The four baseline columns are test
scores: majority label or mean, sentence length, bag of words (token identity where a row is a token), and
the best estimator trained on shuffled labels. --output also writes comparison.csv and comparison.md.

example:
  python framework/compare.py --all --versions
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="names inside s5_classifier_training, or paths"
    )
    parser.add_argument("--all", action="store_true", help="every experiment inside s5_classifier_training")
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
    if arguments.all == bool(arguments.experiments):
        parser.error("name one or more experiments, or give --all")
    configure_logging("s5_classifier_training")
    if arguments.all:
        folders = [EXPERIMENTS / name for name in shipped_experiments()]
    else:
        folders = [find_experiment(name) for name in arguments.experiments]
    entries = collect(folders, with_versions=arguments.versions)
    if not entries:
        raise UserError("no results yet: run train.py on one of the experiments first")
    rows = [summary_row(name, version, results) for name, version, results in entries]
    print(as_text(COLUMNS, rows))
    for note in notes([results for _, _, results in entries]):
        print(note)
    if arguments.detailed:
        for name, version, results in entries:
            print("\n" + details(name, version, results))
    if arguments.output is not None:
        write_csv(arguments.output / f"{TABLE_NAME}.csv", *score_table(entries))
        write_text(arguments.output / f"{TABLE_NAME}.md", as_markdown(COLUMNS, rows))
        log.info(f"wrote {TABLE_NAME}.csv and {TABLE_NAME}.md to {arguments.output}")
    return 0


Entry = tuple[str, str, dict[str, Any]]


def collect(folders: Sequence[Path], with_versions: bool) -> list[Entry]:
    """(experiment, version, results) of everything that has results; the rest is named in the log."""
    entries = []
    for folder in folders:
        existing, odd = versions(folder) if with_versions else ([], [])
        for place in (folder / WORKING, *(version.folder for version in existing)):
            try:
                results = read_results(place)
            except UserError as error:
                odd.append(str(error))
                continue
            if results is None:
                odd.append(f"{place}: no results; run train.py {folder.name} first")
            else:
                entries.append((folder.name, place.name, results))
        for reason in odd:
            log.warning(f"passed over: {reason}")
    return entries


def summary_row(name: str, version: str, results: dict[str, Any]) -> list[str]:
    """One line of the printed table."""
    from s5_classifier_training.framework.metrics import with_interval

    main_score, baselines = results["main_score"], results["baselines"]
    words = next((key for key in WORDS_BASELINES if key in baselines), None)
    shown = ["majority" if "majority" in baselines else "mean", "sentence_length", words, "shuffled_labels"]
    return [
        name,
        version,
        results["best"],
        main_score,
        f"{number(results['cv_mean'])} +- {number(results['cv_std'])}",
        with_interval(results["test"][main_score]),
        *(number(baselines[key][f"test_{main_score}"]) if key in baselines else "-" for key in shown),
    ]


def notes(all_results: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the table has to know: different data, a demonstration model."""
    found = []
    if len({results["dataset"]["store"]["fingerprint"] for results in all_results}) > 1:
        found.append("note: these come from different feature stores; their test sentences may differ")
    if len({results["main_score"] for results in all_results}) > 1:
        found.append("note: accuracy and R2 answer different questions and cannot be ranked together")
    if any(results["dataset"]["demonstration"] for results in all_results):
        found.append("note: some were made with the demonstration model, which says nothing about a real one")
    return found


def details(name: str, version: str, results: dict[str, Any]) -> str:
    """Every score of one entry: test, baselines, estimators, dataset and warnings."""
    from s5_classifier_training.framework.metrics import with_interval

    baselines, dataset = results["baselines"], results["dataset"]
    rows = [
        [score, with_interval(value), *(with_interval(entry["test"][score]) for entry in baselines.values())]
        for score, value in results["test"].items()
    ]
    estimators = [
        [entry["title"], number(entry["cv_mean"]), number(entry["cv_std"])] for entry in results["estimators"]
    ]
    return "\n".join(
        [
            f"{name} {version}: {dataset['strategy']} from {dataset['file']} ({dataset['model']}), "
            f"{results['n_train']:,} train and {results['n_test']:,} test {dataset['unit']}s, "
            f"{results['n_inputs']:,} inputs, {results['n_folds']} folds, seed {results['seed']}",
            as_text(["test score", results["best"], *baselines], rows),
            as_text(["estimator", "cv_mean", "cv_std"], estimators),
            *(f"warning: {warning}" for warning in results["warnings"]),
        ]
    )


def score_table(entries: Sequence[Entry]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the CSV: one row per experiment, version, model and test score."""
    columns = ["experiment", "version", "strategy", "dataset", "model", "score", "cv_mean", "cv_std"]
    columns += ["test_value", "test_low", "test_high"]
    rows = []
    for name, version, results in entries:
        models = {
            results["best"]: results,
            **{f"baseline {key}": b for key, b in results["baselines"].items()},
        }
        for model, found in models.items():
            for score, test in found["test"].items():
                is_main = score == results["main_score"]
                cross_validated = (found["cv_mean"], found["cv_std"]) if is_main else (None, None)
                rows.append(
                    [
                        *(
                            name,
                            version,
                            results["dataset"]["strategy"],
                            results["dataset"]["file"],
                            model,
                            score,
                        ),
                        *cross_validated,
                        *(test["value"], test["low"], test["high"]),
                    ]
                )
    return columns, rows


if __name__ == "__main__":
    raise SystemExit(main())
