"""Which of several results differ from the best one: paired tests on the test rows that they share."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concept_evaluation import metrics
from concept_evaluation.comparisons import PairedComparison, holm, paired_bootstrap
from pipeline_common.errors import UserError
from pipeline_common.files import read_csv
from s5_classifier_training.framework.experiment_folder import PREDICTIONS

_COLUMNS = ("split", "group", "sentence", "target", "predicted")


@dataclass(frozen=True)
class Entry:
    """One result of the table.

    Attributes:
        name: of the experiment.
        version: the version's folder name, or ``working``.
        folder: that holds its files.
        results: content of its ``results.json``.
    """

    name: str
    version: str
    folder: Path
    results: dict[str, Any]

    @property
    def title(self) -> str:
        """Experiment and version."""
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Answers:
    """What one result predicted for its test rows, in file order.

    Attributes:
        rows: (sentence, position or "", target) of each row, which tells one test set from another.
        target: float64 [n_rows].
        predicted: float64 [n_rows].
        group: [n_rows], as text.
    """

    rows: tuple[tuple[str, str, str], ...]
    target: np.ndarray
    predicted: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class Standing:
    """How a result stands against the best one.

    Attributes:
        best: the result with the highest cv_mean among those with the same test rows and main score.
        comparison: this result's main score on test minus the best's; None for the best itself.
        adjusted_p: Holm's, over the results that were held against the same best.
    """

    best: Entry
    comparison: PairedComparison | None
    adjusted_p: float | None


def read_answers(folder: Path) -> Answers:
    """The test rows of a ``predictions.csv``.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    path = folder / PREDICTIONS
    header, rows = read_csv(path, "predictions of train.py")
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; run train.py again")
    place = {column: header.index(column) for column in header}
    tested = [cells for _, cells in rows if cells[place["split"]] == "test"]
    try:
        target, predicted = (
            np.array([float(cells[place[column]]) for cells in tested]) for column in ("target", "predicted")
        )
    except ValueError as error:
        raise UserError(f"{path}: a number was expected ({error}); run train.py again") from None
    position = place.get("position")
    return Answers(
        rows=tuple(
            (
                cells[place["sentence"]],
                "" if position is None else cells[position],
                cells[place["target"]],
            )
            for cells in tested
        ),
        target=target,
        predicted=predicted,
        group=np.array([cells[place["group"]] for cells in tested]),
    )


def compare_with_best(
    entries: Sequence[Entry], advance: Callable[[], object]
) -> tuple[list[Standing | None], list[str]]:
    """Hold every result against the best by cv_mean of those that were tested on the same rows.

    Results can be paired where main score, test rows and targets are the same. Each such family has a best
    result and a Holm correction of its own.

    Args:
        entries: the results.
        advance: called after each test.

    Returns:
        A standing per result, None where it has none, and messages that say what was held against what, and
        why a result was not.
    """
    families, answers, messages = _families(entries)
    standings: list[Standing | None] = [None] * len(entries)
    for (main_score, rows), family in families.items():
        best = max(family, key=lambda index: entries[index].results["cv_mean"])
        if len(family) == 1:
            messages.append(
                f"{entries[best].title}: no other of these has the score {main_score} on the same test "
                "sentences, so it has no p value"
            )
            continue
        rivals = [index for index in family if index != best]
        standings[best] = Standing(entries[best], None, None)
        found = {}
        for index in rivals:
            found[index] = _test(entries[best], answers[best], answers[index])
            advance()
        tested = [index for index in rivals if found[index] is not None]
        adjusted = holm([comparison.p_value for comparison in found.values() if comparison is not None])
        for index, p_value in zip(tested, adjusted, strict=True):
            standings[index] = Standing(entries[best], found[index], p_value)
        messages += [
            f"{entries[index].title}: no paired test: {main_score} has no value in too many resamples"
            for index in rivals
            if index not in tested
        ]
        messages.append(
            f"difference and p: test {main_score} minus that of {entries[best].title}, which has the highest "
            f"cv_mean of {len(family)} with the same {len(rows):,} test rows; paired bootstrap over groups, "
            f"p by Holm over {len(tested)}"
        )
    return standings, messages


def _families(entries: Sequence[Entry]) -> tuple[dict[Any, list[int]], dict[int, Answers], list[str]]:
    """Places of the results by main score and test rows, their answers, and why some have none."""
    families: dict[Any, list[int]] = defaultdict(list)
    answers: dict[int, Answers] = {}
    messages = []
    for index, entry in enumerate(entries):
        try:
            answers[index] = read_answers(entry.folder)
        except UserError as error:
            messages.append(f"{entry.title}: no paired test: {error}")
            continue
        families[entry.results["main_score"], answers[index].rows].append(index)
    return families, answers, messages


def n_tests(entries: Sequence[Entry]) -> int:
    """How often `compare_with_best` calls ``advance`` at most."""
    return max(0, len(entries) - 1)


def _test(best: Entry, best_answers: Answers, answers: Answers) -> PairedComparison | None:
    return paired_bootstrap(
        answers.predicted,
        best_answers.predicted,
        main_score_of(best.results),
        best_answers.target,
        best_answers.group,
        seed=best.results["seed"],
    )


def main_score_of(results: dict[str, Any]) -> Callable[[np.ndarray, np.ndarray], float | None]:
    """The main score of a result as a function of targets and predictions, both [n_rows]."""

    def kappa(target: np.ndarray, predicted: np.ndarray) -> float | None:
        labels = np.array(results["labels"])
        confusion = metrics.confusion_matrix(target, predicted, labels)
        return metrics.quadratic_weighted_kappa(confusion, labels)

    return {"accuracy": metrics.accuracy, "r2": metrics.r2, "quadratic_weighted_kappa": kappa}[
        results["main_score"]
    ]
