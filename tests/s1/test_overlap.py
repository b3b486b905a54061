import numpy as np
import pytest

from concept_evaluation.splits import near_duplicate_pairs
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from s1_compute_all_features.saes.overlap import OverlapFilter, _runs, _windows, words_of
from tests.source_rules import ROOT

SHIPPED = sorted((ROOT / "s0_dataset_generation" / "expanded_data").glob("*.csv"))
HELD_OUT = [
    "She told the clerk that the watch was new, although she knew it had been mended twice.",
    "Nobody came to the reading. The author read all the same.",
]


@pytest.mark.parametrize(
    ("paragraph", "is_repeated"),
    [
        (HELD_OUT[0], True),
        (f"It rained. {HELD_OUT[0]} Then she left.", True),
        (f'He said: "{HELD_OUT[1].upper()}"', True),
        # A few words changed: word for word it is not there.
        (
            "So she told the clerk that the clock was new, although she knew it had been mended once.",
            True,
        ),
        ("Nobody came to the reading! And the author read all the same. Then it rained for a week.", True),
        ("She told the clerk that she would be back before noon.", False),
        ("The clerk knew that she had mended the watch twice, although it was told to be new.", False),
        ("It rained for a week, and then the river came up over the road.", False),
    ],
)
def test_repeated_sentences_are_found(paragraph, is_repeated):
    paragraphs = ["Something else stands here, of a garden.", paragraph, "And a third thing follows it here."]
    assert OverlapFilter(HELD_OUT).repeated(paragraphs) == ({1} if is_repeated else set())


def test_the_cheap_search_finds_what_comparing_all_with_all_finds():
    shipped = [text for path in SHIPPED for text in read_labelled_sentences(path).sentences]
    sentences, others = shipped[::40], sorted(set(" ".join(shipped[1::40]).split()))
    rng = np.random.default_rng(0)
    paragraphs = []
    for sentence in sentences:
        # From hardly changed to hardly the same: some of these are near-duplicates, some are not.
        words = sentence.split()
        for place in rng.permutation(len(words))[: rng.integers(1, len(words))]:
            words[place] = str(rng.choice(others))
        paragraphs.append(f"It was late. {' '.join(words)} They went home.")
    windows = [(index, window) for index, text in enumerate(paragraphs) for window in _windows(text)]
    n_sentences = len(sentences)
    cosines = np.zeros(len(paragraphs))
    for first, second, cosine in near_duplicate_pairs([*sentences, *(text for _, text in windows)], 0.4):
        if first < n_sentences <= second:
            index = windows[second - n_sentences][0]
            cosines[index] = max(cosines[index], cosine)
    runs = {run for sentence in sentences for run in _runs(words_of(sentence))}
    has_run = np.array([not runs.isdisjoint(_runs(words_of(paragraph))) for paragraph in paragraphs])
    found = np.isin(np.arange(len(paragraphs)), list(OverlapFilter(sentences).repeated(paragraphs)))
    assert 10 < (cosines > 0.6).sum() < 45
    assert found[has_run & (cosines > 0.6)].all()
    assert cosines[found].min() > 0.5
    # What shares no three words in a row is not looked at; such near-duplicates are rare.
    assert (~has_run & (cosines > 0.6)).sum() <= 2


def test_every_shipped_sentence_is_found_where_it_is_planted():
    sentences = [text for path in SHIPPED for text in read_labelled_sentences(path).sentences]
    assert len(sentences) > 1000
    paragraphs = [f"It was late in the year. {sentence} They went home again." for sentence in sentences]
    assert OverlapFilter(sentences).repeated(paragraphs) == set(range(len(sentences)))
