import json
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from s0_dataset_generation import audit_dataset, visualize_labels
from s0_dataset_generation.dataset_audit import (
    MAX_SHORTCUT_AUROC,
    SHORTCUTS,
    audit,
    broken_limits,
    exact_duplicates,
    neighbour_clusters,
    shared_sentences,
    shortcut_auroc,
)
from s0_dataset_generation.function_words import FUNCTION_WORDS
from s0_dataset_generation.labelled_sentences import write_labelled_sentences
from s0_dataset_generation.trait_words import TRAIT_WORDS

LETTERS = "abcdefghijklmnoprstuvw"


def random_sentences(n_sentences, seed=0, n_words=12):
    """Sentences of nonsense words, so that nothing tells labels apart."""
    draw = np.random.default_rng(seed)
    vocabulary = ["".join(draw.choice(list(LETTERS), 7)) for _ in range(2500)]
    return [" ".join(draw.choice(vocabulary, n_words)).capitalize() + "." for _ in range(n_sentences)]


@pytest.fixture(scope="module")
def clean():
    return random_sentences(400), np.arange(400) % 4


def test_a_clean_dataset_breaks_no_limit(clean):
    assert broken_limits(audit(*clean)) == []


@pytest.mark.parametrize("name", list(SHORTCUTS))
def test_shortcuts_are_near_chance_without_one(clean, name):
    # 100 against 100: the standard error of an AUROC at chance is 0.04; pooled folds pull below 0.5.
    assert 0.35 < shortcut_auroc(*clean, SHORTCUTS[name]) < 0.62


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("length and punctuation", lambda text: text.replace(".", "!")),
        ("length and punctuation", lambda text: text + " Zqrst xuvwq mnbvc."),
        ("function words", lambda text: "Although " + text),
        ("first two words", lambda text: "Suddenly " + text),
        ("bag of words", lambda text: text.replace(".", " wickedly.")),
    ],
)
def test_each_shortcut_test_finds_its_leak(clean, name, leak):
    sentences, labels = clean
    leaking = [leak(text) if label == 3 else text for text, label in zip(sentences, labels, strict=True)]
    assert shortcut_auroc(leaking, labels, SHORTCUTS[name]) > 0.95


def test_function_words_alone_count_for_the_function_word_test(clean):
    sentences, labels = clean
    leaking = [
        f"Murderous {text}" if label == 3 else text for text, label in zip(sentences, labels, strict=True)
    ]
    assert shortcut_auroc(leaking, labels, SHORTCUTS["function words"]) == 0.5
    assert len(FUNCTION_WORDS) >= 80
    assert {"she", "not", "would"} <= FUNCTION_WORDS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I didn't say she'd won't", {"i": 1, "n't": 2, "did": 1, "she": 1, "'d": 1, "wo": 1}),
        ("Isn\u2019t he? They\u2019re not.", {"is": 1, "n't": 1, "he": 1, "they": 1, "'re": 1, "not": 1}),
        ("Thirteen cats sat; nothing.", {"nothing": 1}),
    ],
)
def test_contractions_count_as_their_parts(text, words):
    counts = SHORTCUTS["function words"]([text])[0].toarray()[0]
    assert {word: n for word, n in zip(sorted(FUNCTION_WORDS), counts, strict=True) if n} == words


def test_shares_of_the_traits_words_by_label(tmp_path, capsys):
    sentences = ["A tap drips.", "She told the truth.", "He lied.", "It was a FAKE, he said."]
    findings = audit(sentences, np.array([0, 3, 3, 3]), TRAIT_WORDS["dishonesty"])
    assert findings["trait_word_share"] == {"0": 0.0, "1": None, "2": None, "3": 1.0}
    assert findings["implied_share"] == 0
    path = tmp_path / "dishonesty_mine.csv"
    write_labelled_sentences(path, sentences, [0, 3, 3, 0])
    assert audit_dataset.main([str(path), "--output-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\n    0 .* 50%\n", out)
    assert re.search(r"\nimplied, .* 0\.0%\n", out)
    other = path.rename(tmp_path / "thrift.csv")
    assert audit_dataset.main([str(other), "--output-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\n    0 .* -\n", out)
    assert "implied" not in out
    report = json.loads((tmp_path / "thrift_audit.json").read_text())
    assert set(report["trait_word_share"].values()) == {None}
    assert report["implied_share"] is None


def test_implied_are_sentences_of_labels_2_and_3_without_the_words(tmp_path, capsys):
    sentences = [
        "A tap drips.",
        "They talked of nothing but soup.",
        "He LIED.",
        "The invoice was for a horse that nobody had seen.",
        "She told the truth, once.",
        "He wound the mileage back.",
        "It was forged, and they smiled.",
    ]
    labels = [0, 1, 2, 2, 2, 3, 3]
    path = tmp_path / "dishonesty_mine.csv"
    write_labelled_sentences(path, sentences, labels)
    assert audit_dataset.main([str(path), "--output-dir", str(tmp_path)]) == 0
    assert "\nimplied, none of the words 28.6%\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "dishonesty_mine_audit.json").read_text())
    assert report["implied_share"] == pytest.approx(2 / 7)


def test_shortcut_auroc_is_that_of_scores_from_folds_that_never_saw_the_sentence():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    sentences = random_sentences(60, seed=4)
    sentences = [text if i % 3 else f"He {text}" for i, text in enumerate(sentences)]
    labels = np.array([0, 3] * 30)
    columns = sorted(FUNCTION_WORDS)
    counts = np.array(
        [[text.lower().replace(".", "").split().count(word) for word in columns] for text in sentences]
    )
    scores = np.zeros(60)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(counts, labels):
        model = LogisticRegression(C=1, max_iter=2000).fit(counts[train], labels[train])
        scores[test] = model.predict_proba(counts[test])[:, 1]
    expected = roc_auc_score(labels == 3, scores)
    assert shortcut_auroc(sentences, labels, SHORTCUTS["function words"]) == pytest.approx(expected, abs=1e-9)


def only(label, change):
    """Applies the change to the sentences of one label."""
    return lambda texts, labels: (
        [change(text) if own == label else text for text, own in zip(texts, labels, strict=True)],
        labels,
    )


def with_neighbours(texts, labels):
    return [*texts[:370], *(f"{text} Yes." for text in texts[:30])], labels


def with_openings(texts, labels):
    return [*(f"Once more the {text}" for text in texts[:9]), *texts[9:]], labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda texts, labels: ([*texts[:-1], texts[0].upper()], labels), "1 sentences occur more than once"),
        (with_neighbours, "15.0% of sentences have a neighbour above cosine 0.5"),
        (with_openings, "begin with 'once more the'"),
        (only(3, lambda text: text.replace(".", "!")), "length and punctuation tell label 3 from 0"),
        (only(0, lambda text: f"Not {text}"), "function words tell label 3 from 0"),
        (only(1, lambda text: f"{text} {text}"), "median lengths of the labels go from 12 to 24"),
        (lambda texts, labels: (texts[:100], labels[:100]), "distinct words (limit at least 1600)"),
        (
            lambda texts, labels: (texts, np.where(labels == 3, 2, labels)),
            "function words: not enough sentences of labels 0 and 3",
        ),
    ],
    ids=[
        "duplicate",
        "neighbours",
        "opening",
        "punctuation",
        "function words",
        "median",
        "vocabulary",
        "no label 3",
    ],
)
def test_each_limit_is_named_when_it_is_broken(clean, change, message):
    sentences, labels = change(list(clean[0]), clean[1])
    assert any(message in limit for limit in broken_limits(audit(sentences, labels)))


def test_the_limit_itself_is_allowed(clean):
    findings = audit(*clean)
    findings["shortcut_auroc"]["function words"] = MAX_SHORTCUT_AUROC
    findings["neighbour_share"] = 0.05
    findings["distinct_words"] = 1600
    assert broken_limits(findings) == []


def test_duplicates_and_clusters_against_known_ones():
    sentences = ["A  dog barked.", "Rain.", "a dog Barked.", "Nobody answered the telephone in the hall."]
    sentences.append("Nobody answered the telephone in the halls.")
    assert exact_duplicates(sentences) == [[0, 2]]
    assert neighbour_clusters(sentences) == [[0, 2], [3, 4]]
    assert shared_sentences({"a": ["One.", "Two."], "b": ["two. ", "Three."]}) == [("Two.", ["a", "b"])]


@pytest.mark.parametrize("n_sentences", [1, 4, 9])
def test_small_datasets_say_not_enough_and_do_not_crash(n_sentences, tmp_path, capsys):
    path = tmp_path / "small.csv"
    write_labelled_sentences(path, ["Ja.", *random_sentences(n_sentences)[1:]], np.arange(n_sentences) % 4)
    arguments = [str(path), "--output-dir", str(tmp_path)]
    assert audit_dataset.main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("not enough sentences\n") == 4
    report = json.loads((tmp_path / "small_audit.json").read_text())
    assert report["shortcut_auroc"] == dict.fromkeys(SHORTCUTS)
    assert report["format_version"] == 2
    assert (tmp_path / "small_audit.png").read_bytes().startswith(b"\x89PNG")
    assert audit_dataset.main([*arguments, "--strict"]) == 1


def test_labels_0_and_3_alone_have_empty_medians(clean):
    sentences, labels = clean
    findings = audit(sentences, np.where(labels < 2, 0, 3))
    assert findings["label_counts"] == {"0": 200, "1": 0, "2": 0, "3": 200}
    assert findings["words"]["1"]["median"] is None
    assert broken_limits(findings) == []


def test_strict_passes_a_clean_file_and_names_a_sentence_in_two_files(clean, tmp_path, capsys):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    write_labelled_sentences(one, *clean)
    other = random_sentences(400, seed=9)
    write_labelled_sentences(two, other, clean[1])
    arguments = [str(one), str(two), "--output-dir", str(tmp_path / "audits"), "--strict"]
    assert audit_dataset.main(arguments) == 0
    assert {path.name for path in (tmp_path / "audits").iterdir()} == {
        "one_audit.json",
        "one_audit.png",
        "two_audit.json",
        "two_audit.png",
    }
    write_labelled_sentences(two, [clean[0][0], *other[1:]], clean[1])
    capsys.readouterr()
    assert audit_dataset.main(arguments) == 1
    captured = capsys.readouterr()
    assert f"in one.csv and two.csv: {clean[0][0]}" in captured.out
    assert "1 limits broken: 1 sentences stand in more than one file" in captured.err


def test_two_files_of_one_name_are_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        audit_dataset.main(["a/x.csv", "b/x.csv"])
    assert caught.value.code == 2
    assert "two CSVs are named 'x'" in capsys.readouterr().err


def test_a_bad_file_stops_before_anything_is_written(clean, tmp_path, capsys):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    write_labelled_sentences(good, *clean)
    bad.write_text("sentence,concept_strength_label\nA.,7\n")
    assert audit_dataset.main([str(good), str(bad), "--output-dir", str(tmp_path / "audits")]) == 1
    assert "bad.csv: line 2: concept_strength_label is '7'" in capsys.readouterr().err
    assert not (tmp_path / "audits").exists()


def test_visualize_labels_prints_the_path_of_a_picture(clean, tmp_path, capsys):
    path, picture = tmp_path / "data.csv", tmp_path / "new" / "labels.png"
    write_labelled_sentences(path, *clean)
    assert visualize_labels.main([str(path), "--output", str(picture)]) == 0
    assert capsys.readouterr().out.strip() == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    first = picture.read_bytes()
    assert visualize_labels.main([str(path), "--output", str(picture)]) == 0
    assert picture.read_bytes() == first
    with pytest.raises(SystemExit):
        visualize_labels.main([str(path), "--output", "labels.pdf"])
