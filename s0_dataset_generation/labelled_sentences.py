"""Labelled sentences: the CSV that stage 0 writes, its checks, and the split that everyone keeps to."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from concept_evaluation.splits import similarity_groups, train_test_split_by_group
from pipeline_common.errors import UserError
from pipeline_common.files import read_csv, sha256_of_file, write_csv

SENTENCE_COLUMN = "sentence"
LABEL_COLUMN = "concept_strength_label"
GROUP_COLUMN = "group"
FIXED_SPLIT_COLUMN = "fixed_split"
"""Side of the split that a sentence keeps whatever else is added to its file: `FIXED_SPLITS`, or empty."""
FIXED_SPLITS = ("train", "test")
LABELS = (0, 1, 2, 3)
SPLIT_SEED = 0
LARGE_GROUP_FRACTION = 0.05
_LINES_SHOWN, _CHARACTERS_SHOWN = 4, 80

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledSentences:
    """The content of a labelled CSV, in file order.

    Attributes:
        path: the file it was read from.
        sha256: of the file's bytes.
        sentences: the texts, exactly as in the file.
        labels: int64 [n_sentences], 0-3; empty where the file was read without labels.
        further_columns: every other column of the file, as text.
    """

    path: Path
    sha256: str
    sentences: list[str]
    labels: np.ndarray
    further_columns: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Which sentences are held out, once and for every stage.

    Attributes:
        held_out: bool [n_sentences].
        groups: int64 [n_sentences]; sentences of one group are never on both sides.
        large_groups: (group, number of sentences) of groups over 5% of the data.
        seed: of the shuffle.
    """

    held_out: np.ndarray
    groups: np.ndarray
    large_groups: list[tuple[int, int]]
    seed: int


def read_labelled_sentences(path: Path, n_distinct_labels: int = 2) -> LabelledSentences:
    """Read and check a labelled CSV.

    A sentence that stands there more than once, but for case and spaces, is used as it stands, and told in
    the log: several people may have labelled it. With two labels it contradicts itself.

    Args:
        path: a UTF-8 CSV with the columns ``sentence`` and ``concept_strength_label``; further
            columns are kept.
        n_distinct_labels: how many of the labels 0-3 must occur at least.

    Raises:
        UserError: the file is missing, not UTF-8, empty, lacks a column, holds a blank sentence, a
            label that is not one of 0-3, a ``fixed_split`` that is no side, or too few distinct labels. The
            message names the line.
    """
    header, rows = _read_rows(path, (SENTENCE_COLUMN, LABEL_COLUMN))
    label_cell = header.index(LABEL_COLUMN)
    for line, cells in rows:
        if not re.fullmatch(r"\s*[0-3]\s*", cells[label_cell], flags=re.ASCII):
            raise UserError(
                f"{path}: line {line}: {LABEL_COLUMN} is {cells[label_cell]!r}; expected an integer "
                "from 0 to 3"
            )
    labels = np.array([int(cells[label_cell]) for _, cells in rows], dtype=np.int64)
    if len(np.unique(labels)) < n_distinct_labels:
        raise UserError(
            f"{path}: every sentence has label {labels[0]}; at least {n_distinct_labels} different "
            "labels are needed to compare"
        )
    _check_fixed_splits(path, header, rows)
    _tell_of_repeated_sentences(path, header, rows, labels)
    return _sentences(path, header, rows, labels, (SENTENCE_COLUMN, LABEL_COLUMN))


def read_unlabelled_sentences(path: Path) -> LabelledSentences:
    """Read and check a CSV that needs no labels.

    Args:
        path: a UTF-8 CSV with the column ``sentence``; every other one is kept as a further column.

    Returns:
        Sentences whose ``labels`` are an empty array.

    Raises:
        UserError: the file is missing, not UTF-8, empty, lacks the column, or holds a blank sentence.
    """
    header, rows = _read_rows(path, (SENTENCE_COLUMN,))
    return _sentences(path, header, rows, np.empty(0, dtype=np.int64), (SENTENCE_COLUMN,))


def _read_rows(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    what = "labelled CSV" if LABEL_COLUMN in needed else "CSV of sentences"
    header, rows = read_csv(path, what)
    for column in needed:
        if column not in header:
            raise UserError(
                f"{path}: column {column!r} is missing; the header has {', '.join(header)}; "
                f"a {what} needs {','.join(needed)}"
            )
    if not rows:
        raise UserError(f"{path}: no sentences; expected at least one row below the header")
    sentence_cell = header.index(SENTENCE_COLUMN)
    for line, cells in rows:
        if not cells[sentence_cell].strip():
            raise UserError(f"{path}: line {line}: the sentence is blank; fill it in or delete the row")
    return header, rows


def _check_fixed_splits(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> None:
    if FIXED_SPLIT_COLUMN not in header:
        return
    cell = header.index(FIXED_SPLIT_COLUMN)
    for line, cells in rows:
        if cells[cell] not in (*FIXED_SPLITS, ""):
            raise UserError(
                f"{path}: line {line}: {FIXED_SPLIT_COLUMN} is {cells[cell]!r}; expected "
                f"{' or '.join(FIXED_SPLITS)}, or nothing"
            )


def normal_form(sentence: str) -> str:
    """Equal for sentences that differ in case and spaces alone."""
    return " ".join(sentence.casefold().split())


def _tell_of_repeated_sentences(
    path: Path, header: list[str], rows: list[tuple[int, list[str]]], labels: np.ndarray
) -> None:
    cell = header.index(SENTENCE_COLUMN)
    places: dict[str, list[int]] = {}
    for index, (_, cells) in enumerate(rows):
        places.setdefault(normal_form(cells[cell]), []).append(index)
    contradicting: list[list[int]] = []
    alike: list[list[int]] = []
    for indices in places.values():
        if len(indices) > 1:
            (alike if len(set(labels[indices].tolist())) == 1 else contradicting).append(indices)
    for found, what, remedy in (
        (contradicting, "different labels", "keep the line with the right label"),
        (alike, "the same label", "each line counts; keep one"),
    ):
        if found:
            first = found[0]
            lines = [f"line {rows[index][0]} (label {labels[index]})" for index in first[:_LINES_SHOWN]]
            _log.warning(
                "warning: %s: %s there more than once with %s; the first is %r: %s%s; %s",
                path,
                "1 sentence stands" if len(found) == 1 else f"{len(found)} sentences stand",
                what,
                rows[first[0]][1][cell][:_CHARACTERS_SHOWN],
                ", ".join(lines),
                ", ..." if len(first) > _LINES_SHOWN else "",
                remedy,
            )


def _sentences(
    path: Path,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    labels: np.ndarray,
    read: tuple[str, ...],
) -> LabelledSentences:
    return LabelledSentences(
        path=path,
        sha256=sha256_of_file(path),
        sentences=[cells[header.index(SENTENCE_COLUMN)] for _, cells in rows],
        labels=labels,
        further_columns={
            name: [cells[index] for _, cells in rows] for index, name in enumerate(header) if name not in read
        },
    )


def write_labelled_sentences(
    path: Path,
    sentences: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    further_columns: Mapping[str, Sequence[object]] | None = None,
) -> None:
    """Write a labelled CSV atomically: the two columns, then any further ones.

    Args:
        path: the file; its folder is made where missing.
        sentences: the texts.
        labels: [n_sentences], integers from 0 to 3.
        further_columns: name to values, one per sentence.
    """
    further = dict(further_columns or {})
    write_csv(
        path,
        [SENTENCE_COLUMN, LABEL_COLUMN, *further],
        zip(sentences, (int(label) for label in labels), *further.values(), strict=True),
    )


def assign_split(data: LabelledSentences, seed: int = SPLIT_SEED) -> Split:
    """The 80/20 split of a dataset: stratified by label, with near-duplicates kept together.

    A group is a connected component of sentences with a character-5-gram TF-IDF cosine above 0.6,
    joined with the file's own ``group`` column where it has one. Where the file has a column
    ``fixed_split``, the groups of the sentences that have a side there keep it, and the others are split
    80/20 by themselves: sentences that once were held out stay so when the file grows. The result depends
    on the sentences, their labels, these columns and the seed, on nothing else.

    Raises:
        UserError: all sentences belong to one group, or a group has sentences of both fixed sides.
    """
    groups = similarity_groups(data.sentences, data.further_columns.get(GROUP_COLUMN))
    held_out, is_open = _fixed_sides(data, groups)
    try:
        if is_open.any():
            held_out[is_open] = train_test_split_by_group(data.labels[is_open], groups[is_open], seed)
    except ValueError as error:
        raise UserError(
            f"{data.path}: {error}; add sentences that are not near-duplicates of one another"
        ) from None
    sizes = np.bincount(groups)
    large = np.flatnonzero(sizes > LARGE_GROUP_FRACTION * len(groups))
    # In a dataset of under 20 sentences a single sentence is more than 5%: no finding.
    return Split(
        held_out, groups, [(int(group), int(sizes[group])) for group in large if sizes[group] > 1], seed
    )


def _fixed_sides(data: LabelledSentences, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Held out by ``fixed_split``, and neither held out nor kept in train by it: bool [n_sentences] each."""
    sides = np.array(data.further_columns.get(FIXED_SPLIT_COLUMN, [""] * len(groups)), dtype="U5")
    of_side = {side: np.isin(groups, groups[sides == side]) for side in FIXED_SPLITS}
    torn = np.flatnonzero(of_side["train"] & of_side["test"])
    if len(torn):
        first, second = (
            int(np.flatnonzero((groups == groups[torn[0]]) & (sides == side))[0]) for side in FIXED_SPLITS
        )
        raise UserError(
            f"{data.path}: {FIXED_SPLIT_COLUMN} puts near-duplicates on both sides: "
            f"{data.sentences[first]!r} in train, {data.sentences[second]!r} in test; give both the same"
        )
    return of_side["test"].copy(), ~(of_side["train"] | of_side["test"])
