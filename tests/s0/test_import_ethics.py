"""The files here are made up in the shape of the ETHICS CSVs; no sentence of ETHICS is in this project."""

import csv
import json

import pytest

from s0_dataset_generation import import_ethics
from s0_dataset_generation.ethics_import import read_ethics
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from s0_dataset_generation.trait_words import TRAIT_WORDS, word_pattern

VIRTUE = [
    ("The tiler billed us for a wall he never touched.", {"dishonest": 1, "merry": 0, "Timid": 0}),
    ("The tiler  billed us for a wall he never touched.", {"deceitful": 1, "brave": 0}),
    ("Otto walked back with the extra coin.", {"honest": 1, "dishonest": 0, "cruel": 0}),
    ("Pia watered the beans before breakfast.", {"diligent": 1, "Untruthful": 0, "gloomy": 0}),
    ("Anouk jumped in after the dog.", {"brave": 1, "lazy": 0}),
    ("Some say he meant it, and some say not.", {"dishonest": 1, "deceptive": 0}),
    ("The clerk counted stamps all day.", {"dutiful": 1, "insincere": 0}),
    (" ".join(["Long"] * 40) + ".", {"dishonest": 1}),
]
COMMONSENSE = [
    ("I told my aunt that I had lied about the vase.", 0),
    ("I cheated at the pub quiz with my phone.", 1),
    ("I forged my father's name on the form.", 1),
    ("I kicked the neighbour's fence down.", 1),
    ("I planted two rows of leeks.", 0),
    ("I was honest with the buyer about the damp.", 0),
    ("I swept the yard and fed the hens.", 0),
    ("I faked a cough to skip the meeting.", 1),
    ("I faked a cough to skip the meeting.", 0),
]


def write_rows(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


@pytest.fixture
def virtue_file(tmp_path):
    rows = [(label, f"{text} [SEP] {word}") for text, words in VIRTUE for word, label in words.items()]
    return write_rows(tmp_path / "virtue_test.csv", ["label", "scenario"], rows)


@pytest.fixture
def commonsense_file(tmp_path):
    rows = [(label, text, "True", "False") for text, label in COMMONSENSE]
    return write_rows(tmp_path / "cm_test.csv", ["label", "input", "is_short", "edited"], rows)


def run(source, trait, *further):
    target = source.with_name("out.csv")
    arguments = ["--input-file", str(source), "--trait", trait, "--output-file", str(target), *further]
    return import_ethics.main(arguments), target


def content(target):
    data = read_labelled_sentences(target)
    return dict(zip(data.sentences, data.labels.tolist(), strict=True))


def test_virtue_rows_become_3_where_the_trait_fits_and_0_where_it_was_denied(virtue_file, capsys):
    code, target = run(virtue_file, "Dishonesty")
    assert code == 0
    assert content(target) == {
        "The tiler billed us for a wall he never touched.": 3,
        "Pia watered the beans before breakfast.": 0,
        "The clerk counted stamps all day.": 0,
    }
    output = capsys.readouterr().out
    assert "virtue: 7 different texts; label 3: 1, label 0: 2" in output
    assert (
        "judged both ways: 1; not judged for the trait: 1; over 35 words: 1; the opposite is shown: 1"
        in output
    )
    provenance = json.loads(target.with_name("out_provenance.json").read_text())
    assert provenance["n_sentences"] == {"3": 1, "0": 2}
    assert provenance["left_out"]["the opposite is shown"] == 1
    assert len(provenance["input_sha256"]) == 64


def test_commonsense_rows_are_chosen_by_words_and_verdict(commonsense_file, capsys):
    code, target = run(commonsense_file, "dishonesty")
    assert code == 0
    assert content(target) == {
        "I cheated at the pub quiz with my phone.": 3,
        "I forged my father's name on the form.": 3,
        "I planted two rows of leeks.": 0,
        "I swept the yard and fed the hens.": 0,
    }
    output = capsys.readouterr().out
    assert "commonsense: 8 different texts" in output
    assert "judged both ways: 1" in output
    assert "the words are used, but the verdict does not settle it: 2" in output
    assert "wrong, with none of the words: 1" in output


def test_a_good_trait_is_shown_by_deeds_that_are_not_wrong(tmp_path):
    rows = [
        (0, "I helped the boy find his shoe."),
        (1, "I helped the thief find the safe."),
        (0, "I sneezed."),
    ]
    code, target = run(write_rows(tmp_path / "cm.csv", ["label", "input"], rows), "Caring")
    assert code == 0
    assert content(target) == {"I helped the boy find his shoe.": 3, "I sneezed.": 0}


def test_words_of_ones_own_and_a_draw_that_the_seed_repeats(tmp_path):
    rows = [(int(i < 12), f"Text number {i} tells about somebody. [SEP] thrifty") for i in range(40)]
    source = write_rows(tmp_path / "virtue.csv", ["label", "scenario"], rows)
    own = ["--words", "thrift*, frugal", "--per-label", "5", "--overwrite"]
    drawn = []
    for seed in ("0", "0", "1"):
        code, target = run(source, "Thrift", *own, "--seed", seed)
        assert code == 0
        drawn.append(content(target))
    assert sorted(drawn[0].values()) == [0] * 5 + [3] * 5
    assert drawn[0] == drawn[1] != drawn[2]
    assert list(drawn[0]) == sorted(drawn[0], key=lambda text: int(text.split()[2]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence,label\nx,1\n", "the header has sentence, label; expected label,scenario"),
        ("scenario\nx [SEP] y\n", "the header has scenario; expected label,scenario"),
        ("label,scenario\n1,A dog barked.\n", "line 2: expected 'text [SEP] trait', found no trait"),
        ("label,scenario\n1,A dog barked. [SEP] \n", "line 2: expected 'text [SEP] trait', found no trait"),
        ("label,scenario\n1, [SEP] loud\n", "line 2: the text is blank"),
        ("label,scenario\n2,A dog barked. [SEP] loud\n", "line 2: label is '2'; expected 0 or 1"),
        ("label,scenario\n1,A dog barked. [SEP] lying\n", "1 texts of label 3 and 0 of label 0"),
        ("label,scenario\n", "0 texts of label 3 and 0 of label 0"),
    ],
)
def test_bad_files_are_one_line_and_write_nothing(tmp_path, capsys, content, message):
    source = tmp_path / "bad.csv"
    source.write_text(content)
    code, target = run(source, "Dishonesty")
    assert code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {source}: ")
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]
    assert not target.exists()


def test_nothing_is_replaced_unasked(virtue_file, capsys):
    assert run(virtue_file, "Dishonesty")[0] == 0
    assert run(virtue_file, "Dishonesty")[0] == 1
    assert (
        "out.csv: already exists; choose another --output-file, or add --overwrite" in capsys.readouterr().err
    )
    assert run(virtue_file, "Dishonesty", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--trait", "Thrift"], "no words are built in for it; name them with --words"),
        (["--words", "thrift*"], "--words for a commonsense file needs --verdict as well"),
        (["--words", " , "], "--words names no word"),
    ],
)
def test_wrong_usage_is_exit_2(commonsense_file, further, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(commonsense_file, "Dishonesty", *further)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_repeated_texts_are_merged_with_all_that_was_said_about_them(virtue_file):
    kind, texts = read_ethics(virtue_file)
    assert kind == "virtue"
    assert len(texts) == 7
    assert texts[0].fits == {"dishonest", "deceitful"}
    assert texts[0].denied == {"merry", "Timid", "brave"}


def test_word_patterns_are_whole_words():
    found = word_pattern(("lie", "cheat*", "one-sided", "look* away")).findall
    assert found("A LIE; he cheated, believe me, one-sided. Earlier she looks away.") == [
        "LIE",
        "cheated",
        "one-sided",
        "looks away",
    ]
    assert word_pattern(()).search("anything") is None
    for words in TRAIT_WORDS.values():
        assert not set(words.names) & set(words.opposite)
        assert words.names
        assert words.opposite
        assert words.usual
