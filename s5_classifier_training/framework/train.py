"""Train and test an experiment's estimators: the command line of stage 5."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import atomic_path, sealed, sha256_of_file, write_csv, write_json
from pipeline_common.provenance import library_versions
from s5_classifier_training.framework.experiment_folder import (
    CONFIG,
    CONFUSION_PICTURE,
    INPUTS,
    MODEL,
    PREDICTIONS,
    REGRESSION_PICTURE,
    RESULTS,
    RESULTS_FORMAT,
    WORKING,
    add_experiment_arguments,
    chosen_experiments,
)
from s5_classifier_training.framework.tables import named_model

if TYPE_CHECKING:
    from s4_classifier_data_prep.classifier_dataset import ClassifierDataset
    from s5_classifier_training.framework.config import ExperimentConfig
    from s5_classifier_training.framework.experiment_run import Outcome

log = logging.getLogger(__name__)

DESCRIPTION = """\
Train the estimators of an experiment and test the best one.

Reads EXPERIMENT/working/config.yaml and dataset.config. The estimators are compared by cross-validation on
the train split, with groups kept whole; the best is fitted on all of train and tested once. Baselines go
through the same steps. Writes results.json, predictions.csv, a picture and model.skops into working/,
over those of an earlier training; checkpoint.py keeps a version.

example:
  python framework/train.py d3_hidden_to_concept
  python framework/train.py --all
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    add_experiment_arguments(parser)
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Train each experiment that the command line names."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s5_classifier_training")
    folders = chosen_experiments(arguments, parser)

    from s5_classifier_training.framework.config import load_dataset_path, load_experiment_config

    # A mistake in the last experiment is told before the first one trains.
    prepared = [
        (folder, load_experiment_config(folder / WORKING), load_dataset_path(folder / WORKING))
        for folder in folders
    ]
    for folder in dict.fromkeys(folders):
        claim_output(folder / WORKING, marker=CONFIG)
    for folder, config, dataset_path in prepared:
        try:
            train(folder, config, dataset_path)
        except UserError as error:
            raise UserError(f"{folder.name}: {error}") from None
    return 0


def train(folder: Path, config: "ExperimentConfig", dataset_path: Path) -> None:
    """Train one experiment, write its outputs into ``working/`` and print its tables.

    Args:
        folder: the experiment's.
        config: its ``config.yaml``.
        dataset_path: the NPZ that its ``dataset.config`` names.

    Raises:
        UserError: the dataset, or its combination with the configuration, is not usable.
    """
    # Imported after the cheap checks: scikit-learn takes longer than they do.
    from tqdm import tqdm

    from s4_classifier_data_prep.classifier_dataset import read_dataset
    from s5_classifier_training.framework import experiment_run

    watch = Stopwatch()
    working = folder / WORKING
    inputs = {name: sha256_of_file(working / name) for name in INPUTS}
    dataset = read_dataset(dataset_path)
    log.info(f"{folder.name}: settings: {config.model_dump(mode='json')}")
    log.info(f"{folder.name}: dataset {dataset_path}")
    n_steps = experiment_run.n_steps(config, dataset)
    with tqdm(total=n_steps, desc=folder.name, unit="fit", disable=None) as bar:
        outcome = experiment_run.run(dataset, config, bar.update)

    (working / RESULTS).unlink(missing_ok=True)  # while files change, nothing vouches for them
    model_types = _write_model(working / MODEL, outcome.model)
    write_csv(working / PREDICTIONS, *prediction_table(dataset, outcome))
    picture = _draw(working, folder.name, dataset, outcome)
    results = {
        **RESULTS_FORMAT.header,
        "experiment": folder.name,
        **outcome.results,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "dataset": {"file": dataset_path.name, "sha256": sha256_of_file(dataset_path), **dataset.metadata},
        "model_types": model_types,
        "files": inputs | {name: sha256_of_file(working / name) for name in (MODEL, PREDICTIONS, picture)},
        "library_versions": library_versions(["numpy", "scipy", "scikit-learn", "skops"]),
    }
    write_json(working / RESULTS, sealed(results))
    print(report(results))
    for warning in results["warnings"]:
        log.warning(f"warning: {warning}")
    log.info(f"{folder.name}: {len(results['files']) - 1} files in {working}, done in {watch.seconds:.1f} s")


def prediction_table(
    dataset: "ClassifierDataset", outcome: "Outcome"
) -> tuple[list[str], Iterator[list[Any]]]:
    """Columns and rows of ``predictions.csv``: out-of-fold answers for train rows, then the test rows."""
    import numpy as np

    fold_of_row = np.zeros(len(outcome.rows.y), dtype=np.int64)
    for number, (_, held_out_rows) in enumerate(outcome.rows.folds, start=1):
        fold_of_row[held_out_rows] = number
    labels = outcome.test.labels
    of_token = (
        []
        if dataset.token is None or dataset.position is None
        else list(zip(dataset.position, dataset.token, strict=True))
    )
    columns = [
        *("split", "fold", "sentence_index", "group"),
        *(("position", "token") if of_token else ()),
        *("sentence", "concept_strength_label", "target", "predicted"),
        *([] if labels is None else [f"probability_{label}" for label in labels]),
    ]

    def rows() -> Iterator[list[Any]]:
        train, test = np.flatnonzero(~dataset.held_out), np.flatnonzero(dataset.held_out)
        for chosen, predictions, split in (
            (train, outcome.out_of_fold, "train"),
            (test, outcome.test, "test"),
        ):
            for place, row in enumerate(chosen):
                sentence_index = int(dataset.sentence_index[row])
                probabilities = [] if predictions.probabilities is None else predictions.probabilities[place]
                values = (dataset.y[row], predictions.predicted[place], *probabilities)
                yield [
                    *(split, fold_of_row[place] if split == "train" else None),
                    *(sentence_index, dataset.group[row]),
                    *(of_token[row] if of_token else ()),
                    *(dataset.sentence[sentence_index], dataset.label[row]),
                    *(f"{value:.6g}" if np.isfinite(value) else None for value in values),
                ]

    return columns, rows()


def _write_model(path: Path, model: Any) -> list[str]:
    """Save the fitted pipeline and return the types beyond skops's trusted ones that it consists of."""
    import skops.io

    with atomic_path(path) as temporary:
        skops.io.dump(model, temporary)
    return sorted(skops.io.get_untrusted_types(file=path))


def _draw(working: Path, name: str, dataset: "ClassifierDataset", outcome: "Outcome") -> str:
    """Draw the task's picture of the test rows, remove the other task's, and return the name."""
    from concept_evaluation.metrics import confusion_matrix
    from s5_classifier_training.framework.pictures import draw_confusion_matrix, draw_predicted_vs_true

    results = outcome.results
    kind = "sentences" if dataset.token is None else "tokens"
    score = results["test"][results["main_score"]]["value"]
    title = f"{name}: {results['best']}\n{results['n_test']:,} held-out {kind}, {results['main_score']} "
    title += "-" if score is None else f"{score:.3f}"
    footer = f"model: {named_model(dataset.metadata)}"
    if outcome.test.labels is None:
        (working / CONFUSION_PICTURE).unlink(missing_ok=True)
        target = dataset.y[dataset.held_out]
        draw_predicted_vs_true(working / REGRESSION_PICTURE, target, outcome.test.predicted, title, footer)
        return REGRESSION_PICTURE
    (working / REGRESSION_PICTURE).unlink(missing_ok=True)
    labels = outcome.test.labels
    confusion = confusion_matrix(dataset.label[dataset.held_out], outcome.test.predicted, labels)
    draw_confusion_matrix(working / CONFUSION_PICTURE, confusion, labels.tolist(), title, footer)
    return CONFUSION_PICTURE


def report(results: dict[str, Any]) -> str:
    """What a training prints: the estimators and baselines side by side, then the best one's test scores."""
    from s5_classifier_training.framework.metrics import with_interval
    from s5_classifier_training.framework.tables import as_text, number

    main_score, unit = results["main_score"], results["dataset"]["unit"]
    rows = []
    for entry in results["estimators"]:
        best = entry["title"] == results["best"]
        rows.append(
            [
                entry["title"] + (" (best)" if best else ""),
                f"{number(entry['cv_mean'])} +- {number(entry['cv_std'])}",
                with_interval(results["test"][main_score]) if best else "-",
                number(results[f"train_{main_score}"]) if best else "-",
            ]
        )
    for name, entry in results["baselines"].items():
        cross_validated = f"{number(entry['cv_mean'])} +- {number(entry['cv_std'])}"
        rows.append([f"baseline {name}", cross_validated, with_interval(entry["test"][main_score]), "-"])
    header = [
        "",
        f"cv_mean +- cv_std ({main_score})",
        f"test_{main_score} [95% interval]",
        f"train_{main_score}",
    ]
    others = ", ".join(
        f"{name} {with_interval(entry)}" for name, entry in results["test"].items() if name != main_score
    )
    return (
        f"{results['experiment']}: {results['dataset']['strategy']}, {results['task']}, "
        f"{results['n_train']:,} train and {results['n_test']:,} test {unit}s "
        f"x {results['n_inputs']:,} inputs, {results['n_folds']} folds\n"
        f"{as_text(header, rows)}\ntest of {results['best']}: {others}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
