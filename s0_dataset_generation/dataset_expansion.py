"""From seed sentences to a labelled dataset: generation, blind labelling and topping up, in turn."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import write_csv, write_json
from pipeline_common.provenance import library_versions
from s0_dataset_generation.labelled_sentences import (
    LABELS,
    SENTENCE_COLUMN,
    LabelledSentences,
    write_labelled_sentences,
)
from s0_dataset_generation.llm_client import LLMClient, LLMRequest
from s0_dataset_generation.rubric import Trait, labelling_messages
from s0_dataset_generation.sentence_generation import (
    ESTIMATED_TOKENS_PER_SENTENCE,
    INTENDED_LABEL_COLUMN,
    SentenceGenerator,
    require_counts,
    write_generated_sentences,
)
from s0_dataset_generation.sentence_labelling import (
    ESTIMATED_TOKENS_PER_LABEL,
    GivenLabel,
    agreement_report,
    agreement_text,
    label_sentences,
)

FORMAT_VERSION = 1
MAX_ROUNDS = 6
JUDGED_LABEL_COLUMN = "judged_label"

_UNLABELLED, _RATINGS = "unlabelled.csv", "ratings.csv"


class Expansion:
    """One dataset in the making.

    Counts are per intended label: that is what can be asked for. The label a sentence ends with is
    the judged one, whatever was intended.

    Args:
        client: asks and journals.
        trait: what the dataset is about.
        seeds: labelled examples.
        batch_size: sentences per request at most.
        seed: of every random choice.
        temporary: folder for intermediate files.

    Attributes:
        sentences: the labelled sentences, in random order.
        intended: their intended labels.
        judged: their labels as the model gave them.
        unlabelled: (sentence, intended label) of those that got no label and were replaced.
    """

    def __init__(
        self,
        client: LLMClient,
        trait: Trait,
        seeds: LabelledSentences,
        batch_size: int,
        seed: int,
        temporary: Path,
    ) -> None:
        self.client, self.trait, self.seeds, self.seed = client, trait, seeds, seed
        self.sentences: list[str] = []
        self.intended: list[int] = []
        self.judged: list[int] = []
        self.unlabelled: list[tuple[str, int]] = []
        self._batch_size = batch_size
        self._temporary = temporary
        self._generator = SentenceGenerator(client, trait, seeds, batch_size, seed)

    def first_requests(self, counts: Mapping[int, int]) -> list[LLMRequest]:
        """What the first round of generation would ask."""
        return [
            request
            for label, n_sentences in counts.items()
            for _, request in self._generator.batch_requests(label, n_sentences)
        ]

    @property
    def rejected(self) -> Mapping[str, int]:
        """Reasons for which written sentences were not taken, and how often."""
        return self._generator.rejected

    def labelling_estimate(self, counts: Mapping[int, int]) -> str:
        """What labelling the sentences will take, roughly, before there are any."""
        n_sentences = sum(counts.values())
        n_requests = math.ceil(n_sentences / self._batch_size)
        frame = LLMRequest(labelling_messages(self.trait, {}), GivenLabel, "estimate")
        prompt_tokens = (
            n_requests * frame.estimated_prompt_tokens + n_sentences * ESTIMATED_TOKENS_PER_SENTENCE
        )
        return (
            f"then, to label the sentences: {n_requests} requests, about {prompt_tokens:,} prompt and "
            f"{n_sentences * ESTIMATED_TOKENS_PER_LABEL:,} completion tokens"
        )

    def run(self, counts: Mapping[int, int]) -> None:
        """Generate and label until there are as many labelled sentences as counted.

        A sentence that gets no label is replaced by another one of the same intended label.

        Raises:
            UserError: the counts were not met in a bounded number of rounds; what was obtained is in
                the temporary folder, and the message says where.
        """
        kept = f"what was obtained is kept in {self._temporary}"
        labels: dict[str, int | None] = {}
        lost: Counter[int] = Counter()
        for _ in range(MAX_ROUNDS):
            missing = self._generator.top_up({label: counts[label] + lost[label] for label in counts})
            sentences, intended = self._generator.shuffled()
            write_generated_sentences(self._temporary / _UNLABELLED, sentences, intended)
            require_counts(missing, self._generator.rejected, kept)
            new = [sentence for sentence in sentences if sentence not in labels]
            given = label_sentences(self.client, self.trait, new, self._batch_size, self.seed)
            labels |= dict(zip(new, given, strict=True))
            self._take(sentences, intended, labels)
            write_ratings(self._temporary / _RATINGS, self)
            lost = Counter(label for _, label in self.unlabelled)
            if all(self.intended.count(label) >= counts[label] for label in counts):
                return
        raise UserError(
            f"{len(self.unlabelled)} sentences got no label, the first is {self.unlabelled[0][0][:80]!r}; "
            f"{kept}; run the same command again to go on"
        )

    def remove_temporary(self) -> None:
        """Delete the intermediate files, and their folder unless something else stands in it."""
        for path in (self._temporary / _UNLABELLED, self._temporary / _RATINGS, self.client.journal.path):
            path.unlink(missing_ok=True)
        if not any(self._temporary.iterdir()):
            self._temporary.rmdir()

    def report(self) -> str:
        """How many sentences each label got, and how judged and intended labels agree."""
        counts = ", ".join(f"label {label}: {self.judged.count(label)}" for label in LABELS)
        return f"{agreement_text(self.intended, self.judged)}\n{len(self.judged)} sentences; {counts}"

    def _take(self, sentences: list[str], intended: list[int], labels: Mapping[str, int | None]) -> None:
        triples = [
            (sentence, label, labels[sentence]) for sentence, label in zip(sentences, intended, strict=True)
        ]
        self.sentences = [sentence for sentence, _, judged in triples if judged is not None]
        self.intended = [label for _, label, judged in triples if judged is not None]
        self.judged = [judged for _, _, judged in triples if judged is not None]
        self.unlabelled = [(sentence, label) for sentence, label, judged in triples if judged is None]


def write_ratings(path: Path, expansion: Expansion) -> None:
    """Write the sidecar: ``sentence,intended_label,judged_label``, the last empty where none was given."""
    rows: list[tuple[str, int, int | None]] = [
        *zip(expansion.sentences, expansion.intended, expansion.judged, strict=True),
        *((sentence, label, None) for sentence, label in expansion.unlabelled),
    ]
    write_csv(path, [SENTENCE_COLUMN, INTENDED_LABEL_COLUMN, JUDGED_LABEL_COLUMN], rows)


def write_expansion(expansion: Expansion, output: Path) -> list[Path]:
    """Write the sidecars, then the dataset itself.

    Returns:
        The paths written: the dataset, the ratings, the provenance.
    """
    ratings = output.with_name(f"{output.stem}_ratings.csv")
    provenance = output.with_name(f"{output.stem}_provenance.json")
    write_ratings(ratings, expansion)
    write_json(provenance, _provenance(expansion))
    write_labelled_sentences(output, expansion.sentences, expansion.judged)
    return [output, ratings, provenance]


def _provenance(expansion: Expansion) -> dict[str, Any]:
    table, kappa = agreement_report(expansion.intended, expansion.judged)
    client = expansion.client
    return {
        "format_version": FORMAT_VERSION,
        "trait": expansion.trait.name,
        "definition": expansion.trait.definition,
        "model": client.settings.model,
        "endpoint": client.settings.endpoint,
        "seed": expansion.seed,
        "seed_file": expansion.seeds.path.name,
        "seed_file_sha256": expansion.seeds.sha256,
        "n_sentences": len(expansion.sentences),
        "n_unlabelled": len(expansion.unlabelled),
        "intended_by_judged": table,
        "quadratic_weighted_kappa": kappa,
        "rejected_sentences": {reason: n for reason, n in sorted(expansion.rejected.items()) if n},
        "failed_replies": dict(sorted(client.failures.items())),
        "prompt_tokens_of_this_run": client.prompt_tokens,
        "completion_tokens_of_this_run": client.completion_tokens,
        "versions": library_versions(["openai", "pydantic", "scikit-learn"]),
    }
