"""Rows of Hendrycks' ETHICS CSVs as labelled sentences for a trait: labels 3 and 0.

*Virtue* rows say of a text and a word for a trait whether a character in the text shows it. A text for
which a name of our trait was judged to fit gets label 3; one for which such names were offered and none
fits gets label 0, unless a name of the trait's opposite fits it, since the opposite is not label 0.

*Commonsense* rows say of a text whether its narrator does something clearly wrong, and name no trait. A
text that uses one of the trait's words gets label 3 where the verdict is the one that the trait implies;
a text that is not wrong and uses no word of the trait or its opposite gets label 0. That is a selection by
words, and it has to be read before it is relied on.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv
from s0_dataset_generation.sentence_generation import clean_sentence, duplicate_key
from s0_dataset_generation.trait_words import TraitWords, word_pattern

VIRTUE, COMMONSENSE = "virtue", "commonsense"

_TEXT_COLUMNS = {VIRTUE: "scenario", COMMONSENSE: "input"}
_LABEL_COLUMN = "label"
_SEPARATOR = "[SEP]"


@dataclass
class Judgements:
    """Everything that the rows of one file say about one text.

    Attributes:
        text: on one line.
        fits: of virtue rows, the words that were judged to fit.
        denied: of virtue rows, the words that were judged not to.
        verdicts: of commonsense rows, True for wrong.
    """

    text: str
    fits: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    verdicts: set[bool] = field(default_factory=set)


def read_ethics(path: Path) -> tuple[str, list[Judgements]]:
    """Which part of ETHICS a file is, and its texts, repeated ones merged, in the order of the file.

    Raises:
        UserError: the file is not a virtue or commonsense CSV, or a row is not as it should be.
    """
    header, rows = read_csv(path, "CSV of ETHICS")
    kind = next((kind for kind, column in _TEXT_COLUMNS.items() if column in header), None)
    if kind is None or _LABEL_COLUMN not in header:
        raise UserError(
            f"{path}: the header has {', '.join(header)}; expected label,scenario (virtue) or label,input "
            "(commonsense) as in the CSVs of ETHICS"
        )
    label_cell, text_cell = header.index(_LABEL_COLUMN), header.index(_TEXT_COLUMNS[kind])
    merged: dict[str, Judgements] = {}
    for line, cells in rows:
        if cells[label_cell].strip() not in ("0", "1"):
            raise UserError(f"{path}: line {line}: label is {cells[label_cell]!r}; expected 0 or 1")
        text, separator, word = cells[text_cell].rpartition(_SEPARATOR)
        if kind == VIRTUE and not (separator and word.strip()):
            raise UserError(f"{path}: line {line}: expected 'text [SEP] trait', found no trait")
        text = clean_sentence(text if kind == VIRTUE else cells[text_cell])
        if not text:
            raise UserError(f"{path}: line {line}: the text is blank; delete the row")
        entry = merged.setdefault(duplicate_key(text), Judgements(text))
        is_one = cells[label_cell].strip() == "1"
        if kind == VIRTUE:
            (entry.fits if is_one else entry.denied).add(word.strip())
        else:
            entry.verdicts.add(is_one)
    return kind, list(merged.values())


def trait_labels(
    kind: str, texts: Iterable[Judgements], words: TraitWords, max_words: int
) -> tuple[list[tuple[str, int]], Counter[str]]:
    """Texts with label 3 or 0, and why others were left out.

    Args:
        kind: `VIRTUE` or `COMMONSENSE`.
        texts: of `read_ethics`.
        words: of the trait.
        max_words: longer texts are left out.

    Returns:
        (text, label) in the order given, and reasons with how many texts were left out for each.
    """
    decide = _virtue_label if kind == VIRTUE else _commonsense_label
    own_words = words.names if kind == VIRTUE else (*words.names, *words.usual)
    shown, opposite = word_pattern(own_words), word_pattern(words.opposite)
    labelled: list[tuple[str, int]] = []
    left_out: Counter[str] = Counter()
    for entry in texts:
        if len(entry.text.split()) > max_words:
            left_out[f"over {max_words} words"] += 1
            continue
        label = decide(entry, shown, opposite, words.is_wrong)
        if isinstance(label, int):
            labelled.append((entry.text, label))
        else:
            left_out[label] += 1
    return labelled, left_out


def _virtue_label(
    entry: Judgements, shown: re.Pattern[str], opposite: re.Pattern[str], is_wrong: bool
) -> int | str:
    fits, denied, opposite_fits = (
        any(map(pattern.search, words))
        for pattern, words in ((shown, entry.fits), (shown, entry.denied), (opposite, entry.fits))
    )
    if not fits and not denied:
        return "not judged for the trait"
    if fits and (denied or opposite_fits):
        return "judged both ways"
    if opposite_fits:
        return "the opposite is shown"
    return 3 if fits else 0


def _commonsense_label(
    entry: Judgements, shown: re.Pattern[str], opposite: re.Pattern[str], is_wrong: bool
) -> int | str:
    if len(entry.verdicts) > 1:
        return "judged both ways"
    used, opposite_used = (pattern.search(entry.text) is not None for pattern in (shown, opposite))
    wrong = True in entry.verdicts
    if used and not opposite_used and wrong == is_wrong:
        return 3
    if used or opposite_used:
        return "the words are used, but the verdict does not settle it"
    return "wrong, with none of the words" if wrong else 0
