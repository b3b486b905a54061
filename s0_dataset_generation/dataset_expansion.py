"""From seed sentences to a labelled dataset: generation, blind labelling and topping up, in turn."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import write_json
from pipeline_common.provenance import library_versions
from s0_dataset_generation.labelled_sentences import LABELS, LabelledSentences, write_labelled_sentences
from s0_dataset_generation.llm_client import LLMClient, LLMRequest
from s0_dataset_generation.ratings import (
    RatedSentence,
    agreement_of,
    agreement_text,
    ratings_path,
    write_ratings,
)
from s0_dataset_generation.rubric import Trait, labelling_messages
from s0_dataset_generation.sentence_generation import (
    AFTER_A_SHORTFALL,
    ESTIMATED_TOKENS_PER_SENTENCE,
    SentenceGenerator,
    require_counts,
    write_generated_sentences,
)
from s0_dataset_generation.sentence_labelling import (
    ESTIMATED_TOKENS_PER_LABEL,
    GivenLabel,
    rate_sentences,
)

FORMAT_VERSION = 3
MAX_ROUNDS = 6

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
        n_raters: how many times each sentence is rated.
        seed: of every random choice.
        temporary: folder for intermediate files.

    Attributes:
        rated: all sentences that were rated, in random order.
        counts: label to sentences that were asked for; empty before `run`.
    """

    def __init__(
        self,
        client: LLMClient,
        trait: Trait,
        seeds: LabelledSentences,
        batch_size: int,
        n_raters: int,
        seed: int,
        temporary: Path,
    ) -> None:
        self.client, self.trait, self.seeds, self.seed, self.n_raters = client, trait, seeds, seed, n_raters
        self.rated: list[RatedSentence] = []
        self._batch_size = batch_size
        self._temporary = temporary
        self._generator = SentenceGenerator(client, trait, seeds, batch_size, seed)
        self.counts: dict[int, int] = {}

    @property
    def labelled(self) -> list[tuple[str, int]]:
        """Sentence and judged label of those that have one: the dataset."""
        return [(item.sentence, item.judged) for item in self.rated if item.judged is not None]

    @property
    def dropped(self) -> list[RatedSentence]:
        """Those without a judged label."""
        return [item for item in self.rated if item.judged is None]

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
        n_ratings = sum(counts.values()) * self.n_raters
        n_requests = math.ceil(sum(counts.values()) / self._batch_size) * self.n_raters
        frame = LLMRequest(labelling_messages(self.trait, {}), GivenLabel, "estimate")
        prompt_tokens = n_requests * frame.estimated_prompt_tokens + n_ratings * ESTIMATED_TOKENS_PER_SENTENCE
        return (
            f"then, to label the sentences: {n_requests} requests, about {prompt_tokens:,} prompt and "
            f"{n_ratings * ESTIMATED_TOKENS_PER_LABEL:,} completion tokens"
        )

    def run(self, counts: Mapping[int, int], accept_shortfall: bool = False) -> None:
        """Generate and label until there are as many labelled sentences as counted.

        A sentence that gets no label, or a tie between its raters, is replaced by another one of the
        same intended label. Rounds that the journal answers whole do not count, so that a run after
        a shortfall gets on.

        Args:
            counts: label to sentences wanted.
            accept_shortfall: end with fewer after a bounded number of rounds.

        Raises:
            UserError: the counts were not met in a bounded number of rounds; what was obtained is in
                the temporary folder, and the message says where.
        """
        self.counts = dict(counts)
        kept = f"what was obtained is kept in {self._temporary}"
        ratings: dict[str, tuple[int | None, ...]] = {}
        lost: Counter[int | None] = Counter()
        rounds = 0
        while rounds < MAX_ROUNDS:
            asked_before = self.client.n_asked
            missing = self._generator.top_up({label: counts[label] + lost[label] for label in counts})
            sentences, intended = self._generator.shuffled()
            write_generated_sentences(self._temporary / _UNLABELLED, sentences, intended)
            if not (accept_shortfall and sentences):
                require_counts(missing, self._generator.rejected, kept)
            new = [sentence for sentence in sentences if sentence not in ratings]
            given = rate_sentences(self.client, self.trait, new, self._batch_size, self.seed, self.n_raters)
            ratings |= dict(zip(new, given, strict=True))
            self.rated = [
                RatedSentence(sentence, ratings[sentence], label)
                for sentence, label in zip(sentences, intended, strict=True)
            ]
            write_ratings(self._temporary / _RATINGS, self.rated)
            lost = Counter(item.intended for item in self.dropped)
            reached = Counter(item.intended for item in self.rated if item.judged is not None)
            if (missing and self.labelled) or all(reached[label] >= counts[label] for label in counts):
                return
            rounds += self.client.n_asked > asked_before
        if accept_shortfall and self.labelled:
            return
        n_ties = sum(item.is_tie for item in self.dropped)
        raise UserError(
            f"{len(self.dropped)} sentences got no label, {n_ties} of them because of a tie, the first is "
            f"{self.dropped[0].sentence[:80]!r}; {kept}; {AFTER_A_SHORTFALL}"
        )

    def remove_temporary(self) -> None:
        """Delete the intermediate files, and their folder unless something else stands in it."""
        for path in (*intermediate_paths(self._temporary), self.client.journal.path):
            path.unlink(missing_ok=True)
        if not any(self._temporary.iterdir()):
            self._temporary.rmdir()

    def report(self) -> str:
        """How many sentences each label got, and how judged and intended labels agree."""
        judged = Counter(label for _, label in self.labelled)
        counts = ", ".join(f"label {label}: {judged[label]}" for label in LABELS)
        n_missing = sum(self.counts.values()) - len(self.labelled)
        short = f"; {n_missing} fewer than asked for" if n_missing > 0 else ""
        return f"{agreement_text(self.rated)}\n{len(self.labelled)} sentences; {counts}{short}"


def intermediate_paths(temporary: Path) -> list[Path]:
    """What a run writes into its temporary folder, beside the reply journal."""
    return [temporary / _UNLABELLED, temporary / _RATINGS]


def expansion_paths(output: Path) -> list[Path]:
    """What `write_expansion` writes: the dataset, the ratings, the provenance."""
    return [output, ratings_path(output), output.with_name(f"{output.stem}_provenance.json")]


def write_expansion(expansion: Expansion, output: Path) -> list[Path]:
    """Write the sidecars, then the dataset itself.

    Returns:
        The paths written.
    """
    dataset, ratings, provenance = expansion_paths(output)
    write_ratings(ratings, expansion.rated)
    write_json(provenance, _provenance(expansion))
    write_labelled_sentences(
        dataset, [sentence for sentence, _ in expansion.labelled], [label for _, label in expansion.labelled]
    )
    return [dataset, ratings, provenance]


def _provenance(expansion: Expansion) -> dict[str, Any]:
    agreement = agreement_of(expansion.rated)
    client = expansion.client
    n_ties = sum(item.is_tie for item in expansion.dropped)
    return {
        "format_version": FORMAT_VERSION,
        "trait": expansion.trait.name,
        "definition": expansion.trait.definition,
        "model": client.settings.model,
        "endpoint": client.settings.endpoint,
        "seed": expansion.seed,
        "seed_file": expansion.seeds.path.name,
        "seed_file_sha256": expansion.seeds.sha256,
        "raters": expansion.n_raters,
        "counts_asked_for": {str(label): n for label, n in sorted(expansion.counts.items())},
        "n_sentences": len(expansion.labelled),
        "n_ties": n_ties,
        "n_unlabelled": len(expansion.dropped) - n_ties,
        "intended_by_judged": agreement.intended_by_judged,
        "cohens_kappa": agreement.cohens_kappa,
        "quadratic_weighted_kappa": agreement.quadratic_weighted_kappa,
        "rater_pairs_equal": agreement.rater_pairs_equal,
        "rejected_sentences": {reason: n for reason, n in sorted(expansion.rejected.items()) if n},
        "failed_replies": dict(sorted(client.failures.items())),
        "prompt_tokens_of_this_run": client.prompt_tokens,
        "completion_tokens_of_this_run": client.completion_tokens,
        "versions": library_versions(["openai", "pydantic", "scikit-learn"]),
    }
