"""The 0-3 rubric, the known traits, and the prompts built from them.

The scale is adapted from the 0-3 scale with which Anthropic's "Scaling Monosemanticity" (Templeton et
al., 2024) had a model judge how well a feature's description fits a text: 0 irrelevant, 1 vaguely
related, 2 only loosely related, 3 clearly identifies the text. Here it judges how clearly a sentence
shows a trait, and the trait's opposite is label 1 at most.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RUBRIC = {
    0: "irrelevant: nothing to do with the trait or with its opposite",
    1: "vaguely related but not shown: the trait's words without the trait, the trait denied or merely "
    "talked about, or the trait's opposite being shown",
    2: "loosely related: the trait is hinted at, weak, partial, mixed, contemplated or ambiguous, and a "
    "reader leans to 'somewhat'",
    3: "clearly shown: somebody or something in the text plainly shows the trait",
}

DEFINITIONS = {
    "dishonesty": "deceiving others on purpose: lying, cheating, faking, concealing or misleading; "
    "the opposite is honesty",
    "aggression": "meaning to hurt, threaten, intimidate or dominate others by word or deed; the opposite "
    "is gentleness and kindness",
    "caring": "attending to the needs and feelings of others and acting for their good; the opposite is "
    "indifference and neglect",
    "bravery": "facing danger, pain or disapproval for the sake of something worthwhile; the opposite is "
    "cowardice",
    "unfairness": "treating people unequally or by double standards without a good reason: favouritism, "
    "bias, undeserved blame or credit; the opposite is fairness",
}

EXAMPLES_OF_THE_LABEL = 4


@dataclass(frozen=True)
class Trait:
    """A trait and what it means.

    Attributes:
        name: as the user wrote it, "Dishonesty".
        definition: one phrase.
    """

    name: str
    definition: str


def find_trait(name: str, definition: str | None = None) -> Trait:
    """The trait of that name; one without a known or given definition is defined by its name alone."""
    known = DEFINITIONS.get(name.strip().lower())
    plain = "what an ordinary reader calls by this name; the opposite is what they would call its opposite"
    return Trait(name.strip(), definition or known or plain)


def generation_messages(
    trait: Trait,
    label: int,
    briefs: Sequence[Mapping[str, str]],
    seeds: Mapping[int, Sequence[str]],
    batch_index: int,
    seed: int,
) -> list[dict[str, str]]:
    """The chat messages that ask for one batch of sentences of one label.

    Args:
        trait: what the sentences are about.
        label: 0-3, the intended one.
        briefs: from `sentence_briefs`.
        seeds: seed sentences by label; a few are shown, drawn anew for each batch.
        batch_index: number of the batch within its label.
        seed: of the run.
    """
    draw = random.Random(f"seeds {seed} {label} {batch_index}")
    examples = []
    for example_label in sorted(seeds):
        n_wanted = EXAMPLES_OF_THE_LABEL if example_label == label else 1
        drawn = draw.sample(list(seeds[example_label]), min(n_wanted, len(seeds[example_label])))
        examples += [f"label {example_label}: {sentence}" for sentence in drawn]
    text = [
        _trait_and_rubric(trait),
        f"Write {len(briefs)} texts of label {label}, {RUBRIC[label]}.",
        "Each is a situation of its own, concrete and self-contained. Texts of all labels must look alike "
        "but for the trait: as long, as lively, as full of people, motives, feelings, negations and "
        "contrasts. Do not mention labels, and do not repeat an example or retell it.",
        "Examples:\n" + "\n".join(examples),
        'One text for each of these briefs; "words" is its length, "relation" how it relates to the trait:\n'
        + _json_lines(briefs),
        'Reply with JSON only: {"items": [{"id": "s1", "sentence": "..."}, ...]}, one item per brief, with '
        "its id.",
    ]
    return _messages(
        "You write short English texts for a research dataset. You follow the briefs exactly "
        "and invent varied, natural, concrete situations with names from many cultures.",
        text,
    )


def labelling_messages(trait: Trait, sentences: Mapping[str, str]) -> list[dict[str, str]]:
    """The chat messages that ask for the labels of some sentences, blind to any intended label.

    Args:
        trait: what is judged.
        sentences: id to sentence.
    """
    items = [{"id": identifier, "sentence": sentence} for identifier, sentence in sentences.items()]
    text = [
        _trait_and_rubric(trait),
        "Label each of these texts by itself:\n" + _json_lines(items),
        'Reply with JSON only: {"items": [{"id": "...", "label": 0}, ...]}, one item per text, with its id '
        "copied exactly.",
    ]
    return _messages(
        "You are a careful annotator. You judge only what a text shows, by the rubric, not what its words "
        "remind you of.",
        text,
    )


def sentence_id(sentence: str) -> str:
    """An id that belongs to the sentence, not to its place in a list.

    A labeller that drops a sentence and numbers the rest afresh then matches nothing, where running
    numbers would shift every label by one.
    """
    # 48 bits: for two of 10,000 sentences to share an id, one chance in five million.
    return "t" + hashlib.sha256(sentence.encode()).hexdigest()[:12]


def _trait_and_rubric(trait: Trait) -> str:
    scale = "\n".join(f"{label} = {meaning}" for label, meaning in RUBRIC.items())
    return (
        f"Trait: {trait.name}: {trait.definition}.\nLabels, by how clearly a text shows the trait:\n{scale}"
    )


def _json_lines(items: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in items)


def _messages(system: str, paragraphs: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(paragraphs)}]
