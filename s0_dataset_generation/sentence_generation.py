"""Sentences for a trait, written by a language model to a count per intended label."""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from concept_evaluation.splits import near_duplicate_pairs
from pipeline_common.errors import UserError
from pipeline_common.files import write_csv
from s0_dataset_generation.labelled_sentences import LABELS, SENTENCE_COLUMN, LabelledSentences
from s0_dataset_generation.llm_client import LLMClient, LLMRequest
from s0_dataset_generation.ratings import INTENDED_LABEL_COLUMN
from s0_dataset_generation.rubric import Trait, generation_messages
from s0_dataset_generation.sentence_briefs import sentence_briefs

MAX_ROUNDS = 6
AFTER_A_SHORTFALL = (
    "run the same command again to ask for more, or with --accept-shortfall to end with what there is"
)
MIN_WORDS, MAX_WORDS = 5, 35
MAX_CHARACTERS = 1_000
"""Of a sentence: no 35 words of any language are longer, but a model that repeats a letter is."""
ESTIMATED_TOKENS_PER_SENTENCE = 35


class WrittenSentence(BaseModel):
    """One item of a generation reply."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    id: str
    sentence: str


class SentenceGenerator:
    """Asks for batches of sentences of one label each until counts are met, and keeps those that are usable.

    A batch is numbered within its label, and its request depends on that number, the seed and the
    settings alone. So a killed run asks the same questions again, finds the answers in the client's
    journal, and ends where it would have ended.

    Args:
        client: asks and journals.
        trait: what to write about.
        seeds: labelled examples, which are never repeated in the result.
        batch_size: sentences per request at most.
        seed: of the sampling of briefs and examples.

    Attributes:
        accepted: sentences by intended label, in the order of their batches.
        rejected: reasons for which sentences were not accepted, and how often.
    """

    def __init__(
        self, client: LLMClient, trait: Trait, seeds: LabelledSentences, batch_size: int, seed: int
    ) -> None:
        self.accepted: dict[int, list[str]] = {label: [] for label in LABELS}
        self.rejected: Counter[str] = Counter()
        self._client = client
        self._trait = trait
        self._seed_sentences = list(seeds.sentences)
        self._seeds = seeds_by_label(seeds)
        self._batch_size = batch_size
        self._seed = seed
        self._next_batch = dict.fromkeys(LABELS, 0)

    def top_up(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Ask until there are as many accepted sentences as counted, in a bounded number of rounds.

        Rounds that the journal answers whole do not count, so that a run after a shortfall gets on.

        Args:
            counts: label to sentences wanted in all, earlier ones included.

        Returns:
            Label to sentences still missing, without the labels that miss none.
        """
        rounds = 0
        while (missing := self._missing(counts)) and rounds < MAX_ROUNDS:
            asked_before = self._client.n_asked
            requests, labels, batches = [], [], []
            for label, n_missing in missing.items():
                for briefs, request in self.batch_requests(label, n_missing):
                    requests.append(request)
                    labels.append(label)
                    batches.append([brief["id"] for brief in briefs])
            outcomes = self._client.ask(requests, "generating")
            candidates: list[tuple[int, str]] = []
            for label, ids, outcome in zip(labels, batches, outcomes, strict=True):
                candidates += [(label, sentence) for sentence in self._usable(ids, outcome.items)]
            self._accept(candidates, counts)
            rounds += self._client.n_asked > asked_before
        return self._missing(counts)

    def batch_requests(self, label: int, n_sentences: int) -> list[tuple[list[dict[str, str]], LLMRequest]]:
        """The next requests for that many sentences of a label, each with its briefs."""
        result = []
        for start in range(0, n_sentences, self._batch_size):
            batch = self._next_batch[label]
            self._next_batch[label] += 1
            briefs = sentence_briefs(label, min(self._batch_size, n_sentences - start), batch, self._seed)
            messages = generation_messages(self._trait, label, briefs, self._seeds, batch, self._seed)
            of_use = _of_use(frozenset(brief["id"] for brief in briefs))
            request = LLMRequest(messages, WrittenSentence, f"label {label} batch {batch}", of_use)
            result.append((briefs, request))
        return result

    def shuffled(self) -> tuple[list[str], list[int]]:
        """Accepted sentences and their intended labels, the labels mixed."""
        pairs = [(sentence, label) for label in LABELS for sentence in self.accepted[label]]
        random.Random(f"order {self._seed}").shuffle(pairs)
        return [sentence for sentence, _ in pairs], [label for _, label in pairs]

    def _missing(self, counts: Mapping[int, int]) -> dict[int, int]:
        missing = {label: counts.get(label, 0) - len(self.accepted[label]) for label in LABELS}
        return {label: n_missing for label, n_missing in missing.items() if n_missing > 0}

    def _usable(self, ids: Sequence[str], items: Sequence[Mapping[str, str]]) -> list[str]:
        """One sentence per id that was asked for, in the order asked, of a length that was asked for."""
        by_id: dict[str, str] = {}
        for item in items:
            if item["id"] not in ids:
                self.rejected["unknown id"] += 1
            elif item["id"] in by_id:
                self.rejected["repeated id"] += 1
            else:
                by_id[item["id"]] = clean_sentence(item["sentence"])
        sentences = [by_id[identifier] for identifier in ids if identifier in by_id]
        usable = [sentence for sentence in sentences if _has_length(sentence)]
        self.rejected["length"] += len(sentences) - len(usable)
        self.rejected["missing in the reply"] += len(ids) - len(sentences)
        return usable

    def _accept(self, candidates: Sequence[tuple[int, str]], counts: Mapping[int, int]) -> None:
        known = self._seed_sentences + [sentence for label in LABELS for sentence in self.accepted[label]]
        texts = known + [sentence for _, sentence in candidates]
        alike: dict[int, set[int]] = {}
        for first, second, _ in near_duplicate_pairs(texts):
            alike.setdefault(second, set()).add(first)
        kept = set(range(len(known)))
        seen = {duplicate_key(sentence) for sentence in known}
        for index, (label, sentence) in enumerate(candidates, start=len(known)):
            if duplicate_key(sentence) in seen:
                self.rejected["duplicate"] += 1
            elif alike.get(index, set()) & kept:
                self.rejected["near-duplicate"] += 1
            elif len(self.accepted[label]) < counts.get(label, 0):
                kept.add(index)
                seen.add(duplicate_key(sentence))
                self.accepted[label].append(sentence)


def _of_use(ids: frozenset[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether an item of a reply to a batch of these ids is a sentence that was asked for."""
    return lambda item: item.get("id") in ids and _has_length(clean_sentence(str(item.get("sentence"))))


def _has_length(sentence: str) -> bool:
    return MIN_WORDS <= len(sentence.split()) <= MAX_WORDS and len(sentence) <= MAX_CHARACTERS


def seeds_by_label(seeds: LabelledSentences) -> dict[int, list[str]]:
    """Seed sentences by their label."""
    labels = seeds.labels.tolist()
    return {
        label: [sentence for sentence, own in zip(seeds.sentences, labels, strict=True) if own == label]
        for label in LABELS
    }


def clean_sentence(text: str) -> str:
    """The text on one line, without list numbers and control characters."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"^\d{1,3}[.)]\s+", "", " ".join(printable.split()))


def duplicate_key(sentence: str) -> str:
    """Equal for sentences that differ in case and spaces alone."""
    return "".join(sentence.casefold().split())


def shortfall_line(missing: Mapping[int, int], rejected: Mapping[str, int]) -> str:
    """What is missing and why, for a message."""
    wanted = ", ".join(f"{n_missing} of label {label}" for label, n_missing in missing.items())
    reasons = ", ".join(f"{reason} x{n}" for reason, n in sorted(rejected.items()) if n) or "none"
    return f"sentences are missing: {wanted}; rejected: {reasons}"


def write_generated_sentences(path: Path, sentences: Sequence[str], intended: Sequence[int]) -> None:
    """Write the unlabelled CSV: ``sentence,intended_label``."""
    write_csv(path, [SENTENCE_COLUMN, INTENDED_LABEL_COLUMN], zip(sentences, intended, strict=True))


def require_counts(missing: Mapping[int, int], rejected: Mapping[str, int], kept: str) -> None:
    """Stop where sentences are missing.

    Raises:
        UserError: some count was not met; ``kept`` says where the rest is.
    """
    if missing:
        raise UserError(f"{shortfall_line(missing, rejected)}; {kept}; {AFTER_A_SHORTFALL}")
