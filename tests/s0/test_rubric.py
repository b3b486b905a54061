from collections import Counter

from s0_dataset_generation.rubric import (
    RUBRIC,
    find_trait,
    generation_messages,
    labelling_messages,
    sentence_id,
)
from s0_dataset_generation.sentence_briefs import LENGTH_BANDS, SETTINGS, TOPICS, sentence_briefs


def test_briefs_differ_between_labels_in_their_relation_alone():
    def without_relation(label):
        return [
            {key: value for key, value in brief.items() if key != "relation"}
            for brief in sentence_briefs(label, 20, 3, seed=1)
        ]

    assert without_relation(0) == without_relation(1) == without_relation(2) == without_relation(3)
    relations = [{brief["relation"] for brief in sentence_briefs(label, 20, 3, seed=1)} for label in RUBRIC]
    assert all(relations)
    assert len(set.union(*relations)) == sum(map(len, relations))


def test_length_bands_are_asked_for_equally_often():
    bands = Counter(brief["words"] for batch in range(4) for brief in sentence_briefs(2, 10, batch, seed=0))
    assert bands == dict.fromkeys(LENGTH_BANDS, 8)


def test_settings_and_topics_are_drawn_widely():
    briefs = [brief for batch in range(10) for brief in sentence_briefs(1, 20, batch, seed=0)]
    assert len({brief["setting"] for brief in briefs}) > 0.9 * len(SETTINGS)
    assert len({brief["topic"] for brief in briefs}) > 0.9 * len(TOPICS)
    assert len({(brief["setting"], brief["topic"]) for brief in briefs}) > 170


def test_briefs_are_seeded_and_change_from_batch_to_batch():
    assert sentence_briefs(1, 9, 0, seed=5) == sentence_briefs(1, 9, 0, seed=5)
    assert sentence_briefs(1, 9, 0, seed=5) != sentence_briefs(1, 9, 0, seed=6)
    assert sentence_briefs(1, 9, 0, seed=5) != sentence_briefs(1, 9, 1, seed=5)


def test_hard_negatives_are_asked_for_at_label_1():
    relations = " ".join({brief["relation"] for brief in sentence_briefs(1, 3, 0, seed=0)})
    assert "opposite" in relations
    assert "words that are typical of the trait, but nobody and nothing shows it" in relations


def test_known_unknown_and_given_definitions():
    assert "deceiving" in find_trait("Dishonesty").definition
    assert find_trait(" Thrift ").name == "Thrift"
    assert "opposite" in find_trait("Thrift").definition
    assert find_trait("Dishonesty", "fibbing").definition == "fibbing"


def test_generation_prompt_holds_rubric_definition_and_seeds_that_change():
    seeds = {label: [f"seed {label} {i}" for i in range(20)] for label in RUBRIC}

    def prompt(batch):
        briefs = sentence_briefs(3, 5, batch, seed=0)
        messages = generation_messages(find_trait("Bravery"), 3, briefs, seeds, batch, seed=0)
        return messages[1]["content"]

    assert all(meaning in prompt(0) for meaning in RUBRIC.values())
    assert "facing danger" in prompt(0)
    examples = [
        [line for line in prompt(batch).splitlines() if line.startswith("label ")] for batch in (0, 1)
    ]
    assert Counter(line[6] for line in examples[0]) == {"0": 1, "1": 1, "2": 1, "3": 4}
    assert examples[0] != examples[1]


def test_labelling_prompt_holds_sentences_and_ids_of_their_own():
    sentence = 'He said "no".'
    prompt = labelling_messages(find_trait("Bravery"), {sentence_id(sentence): sentence})[1]["content"]
    assert '"sentence": "He said \\"no\\"."' in prompt
    assert sentence_id(sentence) in prompt
    assert sentence_id(sentence) != sentence_id("He said no.")
