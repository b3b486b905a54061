"""Labels from a language model, blind to what a sentence was written to be."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv
from s0_dataset_generation.labelled_sentences import LABELS, SENTENCE_COLUMN
from s0_dataset_generation.llm_client import LLMClient, LLMRequest
from s0_dataset_generation.ratings import INTENDED_LABEL_COLUMN
from s0_dataset_generation.rubric import Trait, labelling_messages, sentence_id

MAX_ROUNDS = 6
ESTIMATED_TOKENS_PER_LABEL = 24


def _integer_meant(value: object) -> object:
    # "3" and 3.0 can mean nothing else. True equals 1, but is no label that was given, and 2.5 is none.
    if isinstance(value, str) and value in map(str, LABELS):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not int:
        raise ValueError("not an integer")
    return value


class GivenLabel(BaseModel):
    """One item of a labelling reply."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    id: str
    label: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_integer_meant)]


def rate_sentences(
    client: LLMClient, trait: Trait, sentences: Sequence[str], batch_size: int, seed: int, n_raters: int = 1
) -> list[tuple[int | None, ...]]:
    """The ratings that the model gave to each sentence.

    Every rater goes through all sentences, in a shuffled order of its own, with ids made from their
    text. What comes back without a label, or with two different ones, is asked again in smaller
    batches, so that one text that the model refuses does not take others with it. Rounds that the
    journal answers whole do not count.

    Args:
        client: asks and journals.
        trait: what is judged.
        sentences: different texts.
        batch_size: sentences per request at most.
        seed: of the shuffles.
        n_raters: how many times each sentence is rated.

    Returns:
        Per sentence one rating by each rater; None where the model gave none in a bounded number of
        rounds.
    """
    orders = [_shuffled_by_id(sentences, seed, rater) for rater in range(n_raters)]
    given: list[dict[str, int]] = [{} for _ in range(n_raters)]
    rounds = attempt = 0
    while rounds < MAX_ROUNDS:
        pending = [
            [name for name in order if name not in ratings]
            for order, ratings in zip(orders, given, strict=True)
        ]
        batches = [
            (rater, batch)
            for rater, names in enumerate(pending)
            for batch in _batches(names, max(1, batch_size >> attempt))
        ]
        if not batches:
            break
        asked_before = client.n_asked
        requests = [_request(trait, orders[rater], batch, rater, attempt) for rater, batch in batches]
        for (rater, batch), outcome in zip(batches, client.ask(requests, "labelling"), strict=True):
            given[rater] |= _labels_in_agreement(batch, outcome.items)
        attempt += 1
        rounds += client.n_asked > asked_before
    return [tuple(ratings.get(sentence_id(sentence)) for ratings in given) for sentence in sentences]


def labelling_requests(
    trait: Trait, sentences: Sequence[str], batch_size: int, seed: int, n_raters: int = 1
) -> list[LLMRequest]:
    """The requests of the first round of `rate_sentences`, for a dry run."""
    orders = [_shuffled_by_id(sentences, seed, rater) for rater in range(n_raters)]
    return [
        _request(trait, order, batch, rater, 0)
        for rater, order in enumerate(orders)
        for batch in _batches(list(order), batch_size)
    ]


def _shuffled_by_id(sentences: Sequence[str], seed: int, rater: int) -> dict[str, str]:
    shuffled = list(sentences)
    random.Random(f"labelling {seed} rater {rater}").shuffle(shuffled)
    return {sentence_id(sentence): sentence for sentence in shuffled}


def _batches(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _request(
    trait: Trait, order: Mapping[str, str], names: Sequence[str], rater: int, attempt: int
) -> LLMRequest:
    messages = labelling_messages(trait, {name: order[name] for name in names})
    asked = frozenset(names)
    return LLMRequest(
        messages, GivenLabel, f"rater {rater} attempt {attempt}", lambda item: item.get("id") in asked
    )


def _labels_in_agreement(names: Sequence[str], items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Labels of the sentences that were asked about, without those that got two different ones."""
    labels: dict[str, set[int]] = {}
    for item in items:
        labels.setdefault(item["id"], set()).add(item["label"])
    return {name: min(labels[name]) for name in names if len(labels.get(name, ())) == 1}


def read_sentences(path: Path) -> tuple[list[str], list[int] | None]:
    """Sentences to label from a CSV with a ``sentence`` column, and their intended labels where it has them.

    Raises:
        UserError: the file is no CSV, lacks the column, is empty, or holds a blank or repeated
            sentence, or an intended label that is not one of 0-3.
    """
    header, rows = read_csv(path, "CSV of sentences")
    if SENTENCE_COLUMN not in header:
        raise UserError(
            f"{path}: column {SENTENCE_COLUMN!r} is missing; the header has {', '.join(header)}; rename the "
            "column that holds the texts"
        )
    if not rows:
        raise UserError(f"{path}: no sentences; expected at least one row below the header")
    cell = header.index(SENTENCE_COLUMN)
    line_of: dict[str, int] = {}
    for line, cells in rows:
        if not cells[cell].strip():
            raise UserError(f"{path}: line {line}: the sentence is blank; fill it in or delete the row")
        if cells[cell] in line_of:
            raise UserError(
                f"{path}: line {line}: the same sentence as in line {line_of[cells[cell]]}; delete one"
            )
        line_of[cells[cell]] = line
    if INTENDED_LABEL_COLUMN not in header:
        return list(line_of), None
    intended_cell = header.index(INTENDED_LABEL_COLUMN)
    for line, cells in rows:
        if cells[intended_cell].strip() not in map(str, LABELS):
            raise UserError(
                f"{path}: line {line}: {INTENDED_LABEL_COLUMN} is {cells[intended_cell]!r}; expected an "
                "integer from 0 to 3"
            )
    return list(line_of), [int(cells[intended_cell]) for _, cells in rows]
