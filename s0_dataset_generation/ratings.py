"""Ratings of sentences: how several become one label, how well they agree, and the sidecar CSV.

With an odd number of raters the label is the median rating. With an even number it is the middle
rating where the two middle ones are equal; where they differ, that is a tie, and the sentence gets no
label: the mean of the two may be a label that nobody gave. A sentence that some rater gave no rating
has no label either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline_common.files import write_csv
from s0_dataset_generation.labelled_sentences import LABELS, SENTENCE_COLUMN

INTENDED_LABEL_COLUMN = "intended_label"
JUDGED_LABEL_COLUMN = "judged_label"


@dataclass(frozen=True)
class RatedSentence:
    """A sentence and what its raters said.

    Attributes:
        sentence: the text.
        ratings: 0-3 by each rater, None where one gave no rating.
        intended: the label it was written for, None where that is not known.
    """

    sentence: str
    ratings: tuple[int | None, ...]
    intended: int | None = None

    @property
    def judged(self) -> int | None:
        """The median rating; None after a tie or with a rating missing."""
        given = self.given
        middle = len(given) // 2
        if len(given) < len(self.ratings) or given[middle] != given[-middle - 1]:
            return None
        return given[middle]

    @property
    def is_tie(self) -> bool:
        """Whether every rater gave a rating, and yet there is no median among them."""
        return len(self.given) == len(self.ratings) and self.judged is None

    @property
    def agreement(self) -> float | None:
        """The share of pairs of ratings that are equal; None with under two ratings."""
        pairs = list(combinations(self.given, 2))
        return sum(one == other for one, other in pairs) / len(pairs) if pairs else None

    @property
    def given(self) -> list[int]:
        """The ratings there are, ascending."""
        return sorted(rating for rating in self.ratings if rating is not None)


@dataclass(frozen=True)
class Agreement:
    """How often a sentence was judged to be what it was written to be, and raters said the same.

    Attributes:
        intended_by_judged: 4 x 4 counts, rows are intended labels.
        cohens_kappa: None where it is undefined, which is when all labels on both sides are one and the
            same, or nothing was compared.
        quadratic_weighted_kappa: likewise, with squared distances between labels as weights.
        rater_pairs_equal: share of pairs of ratings of one sentence that are equal; None with one rater.
    """

    intended_by_judged: list[list[int]]
    cohens_kappa: float | None
    quadratic_weighted_kappa: float | None
    rater_pairs_equal: float | None


def agreement_of(rated: Sequence[RatedSentence]) -> Agreement:
    """Agreement between intended and judged labels, and between raters.

    Args:
        rated: sentences; those without an intended or a judged label count for the raters alone.
    """
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    pairs = [(item.intended, item.judged) for item in rated if None not in (item.intended, item.judged)]
    intended, judged = [one for one, _ in pairs], [other for _, other in pairs]
    table = [[0] * len(LABELS) for _ in LABELS]
    plain = weighted = None
    if pairs:
        table = confusion_matrix(intended, judged, labels=LABELS).tolist()
    if len({*intended, *judged}) > 1:
        plain = float(cohen_kappa_score(intended, judged, labels=LABELS))
        weighted = float(cohen_kappa_score(intended, judged, labels=LABELS, weights="quadratic"))
    shares = [item.agreement for item in rated if item.agreement is not None]
    return Agreement(table, plain, weighted, sum(shares) / len(shares) if shares else None)


def agreement_text(rated: Sequence[RatedSentence]) -> str:
    """What there is of the cross table, the kappas and the raters' agreement, as lines for the terminal."""
    found = agreement_of(rated)
    lines = []
    if any(map(any, found.intended_by_judged)):
        lines.append("intended \\ judged" + "".join(f"{label:>6}" for label in LABELS))
        for label, row in zip(LABELS, found.intended_by_judged, strict=True):
            lines.append(f"{label:>17}" + "".join(f"{n:>6}" for n in row))
        lines.append(f"Cohen's kappa: {_shown(found.cohens_kappa)}")
        lines.append(f"quadratic-weighted kappa: {_shown(found.quadratic_weighted_kappa)}")
    if found.rater_pairs_equal is not None:
        n_ties = sum(item.is_tie for item in rated)
        lines.append(
            f"{len(rated[0].ratings)} raters: {found.rater_pairs_equal:.1%} of pairs of ratings are equal; "
            f"{n_ties} sentences without label because of a tie"
        )
    return "\n".join(lines)


def ratings_path(output: Path) -> Path:
    """Where the sidecar of a labelled CSV stands."""
    return output.with_name(f"{output.stem}_ratings.csv")


def write_ratings(path: Path, rated: Sequence[RatedSentence]) -> None:
    """Write the sidecar: sentence, intended label where known, each rating, judged label, agreement.

    Sentences with a judged label come first, in the order given, as they stand in the main CSV; then
    those without, whose cell is empty. A missing rating and an undefined agreement are empty cells too.
    """
    n_raters = len(rated[0].ratings) if rated else 0
    has_intended = any(item.intended is not None for item in rated)
    columns = [
        SENTENCE_COLUMN,
        *([INTENDED_LABEL_COLUMN] if has_intended else []),
        *(f"rating_{number}" for number in range(1, n_raters + 1)),
        JUDGED_LABEL_COLUMN,
        "agreement",
    ]
    rows: list[list[Any]] = [
        [
            item.sentence,
            *([item.intended] if has_intended else []),
            *item.ratings,
            item.judged,
            None if item.agreement is None else f"{item.agreement:.4g}",
        ]
        for item in sorted(rated, key=lambda item: item.judged is None)
    ]
    write_csv(path, columns, rows)


def _shown(kappa: float | None) -> str:
    return "undefined" if kappa is None else f"{kappa:.3f}"
