import re

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s0_dataset_generation.labelled_sentences import (
    assign_split,
    read_labelled_sentences,
    read_unlabelled_sentences,
    write_labelled_sentences,
)


def test_round_trip_keeps_text_labels_and_further_columns(tmp_path):
    sentences = ['He said "no", twice.', "Zoë, naïve?", "two\nlines"]
    path = tmp_path / "folder" / "data.csv"
    write_labelled_sentences(path, sentences, [0, 3, 1], {"source": ["a", "", "c"]})
    data = read_labelled_sentences(path)
    assert data.sentences == sentences
    assert data.labels.tolist() == [0, 3, 1]
    assert data.further_columns == {"source": ["a", "", "c"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty file"),
        ("sentence,concept_strength_label\n", "no sentences"),
        (
            "sentence,label\na,1\n",
            "column 'concept_strength_label' is missing; the header has sentence, label",
        ),
        ("sentence,concept_strength_label\na,1\nb,4\n", "line 3: concept_strength_label is '4'"),
        ("sentence,concept_strength_label\na,1.0\n", "line 2: concept_strength_label is '1.0'"),
        ("sentence,concept_strength_label\na,\n", "line 2: concept_strength_label is ''"),
        ("sentence,concept_strength_label\n  ,1\n", "line 2: the sentence is blank"),
        ("sentence,concept_strength_label\na,1\nb,1\n", "every sentence has label 1"),
        ("sentence,concept_strength_label\na,b,1\n", "line 2: 3 cells where the header has 2"),
        ("sentence,sentence,concept_strength_label\n", "'sentence' stands twice"),
    ],
)
def test_bad_files_are_named_with_line_and_remedy(tmp_path, content, message):
    path = tmp_path / "data.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_labelled_sentences(path)
    assert str(path) in str(caught.value)


def test_sentences_need_no_labels_where_none_are_asked_for(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("source,sentence,concept_strength_label\na,One.,\nb,Two.,7\n", encoding="utf-8")
    data = read_unlabelled_sentences(path)
    assert data.sentences == ["One.", "Two."]
    assert len(data.labels) == 0
    assert data.further_columns == {"source": ["a", "b"], "concept_strength_label": ["", "7"]}
    path.write_text("text\nOne.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"column 'sentence' is missing.*a CSV of sentences needs sentence"):
        read_unlabelled_sentences(path)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_labelled_sentences(tmp_path / "none.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes("sentence,concept_strength_label\nZo\xeb,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read_labelled_sentences(path)


def test_labels_0_and_3_alone_are_enough_and_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("\ufeffsentence,concept_strength_label\r\na,0\r\nb,3\r\n", encoding="utf-8")
    assert read_labelled_sentences(path).labels.tolist() == [0, 3]


def test_split_is_stratified_and_keeps_near_duplicates_together(tmp_path):
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnop"), 8)) for _ in range(400)]
    sentences = [" ".join(draw.choice(words, 8)) for _ in range(80)]
    sentences += [f"{sentence} again" for sentence in sentences[:20]]
    labels = np.arange(100) % 4
    path = tmp_path / "data.csv"
    write_labelled_sentences(path, sentences, labels)
    split = assign_split(read_labelled_sentences(path))
    assert np.array_equal(split.held_out[:20], split.held_out[80:])
    assert np.array_equal(split.groups[:20], split.groups[80:])
    assert 15 <= split.held_out.sum() <= 25
    assert all(3 <= (labels[split.held_out] == label).sum() <= 7 for label in range(4))
    assert np.array_equal(split.held_out, assign_split(read_labelled_sentences(path)).held_out)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("He lied.,3\nIt rained.,0\nHe lied.,1\n", ["1 sentence stands .* different labels.*'He lied.'.*"]),
        (
            "a,1\nb,2\nB,3\n",
            ["different labels; the first is 'b': line 3 \\(label 2\\), line 4 \\(label 3\\); keep"],
        ),
        (
            '"a b",1\n"a  B ",1\nc,0\n',
            ["the same label; the first is 'a b': line 2 .*, line 3 .*; each line counts"],
        ),
        (
            "a,1\na,1\nb,0\nb,3\nb,3\n",
            ["1 sentence stands .*different.*'b': line 4", "1 sentence stands .*same.*'a': line 2"],
        ),
        ("a,0\n" * 6 + "a,1\n", [r"'a': line 2 \(label 0\), .*, line 5 \(label 0\), \.\.\.; keep"]),
        ("a,0\na b,1\n", []),
    ],
)
def test_a_sentence_that_stands_twice_is_told_with_its_lines_and_used_as_it_stands(
    tmp_path, caplog, rows, told
):
    path = tmp_path / "data.csv"
    path.write_text(f"sentence,concept_strength_label\n{rows}", encoding="utf-8")
    data = read_labelled_sentences(path)
    assert len(data.sentences) == rows.count("\n")
    assert len(caplog.messages) == len(told)
    for message, pattern in zip(caplog.messages, told, strict=True):
        assert message.startswith(f"warning: {path}: ")
        assert re.search(pattern, message)


def test_what_is_told_of_a_sentence_holds_no_control_characters(tmp_path, caplog):
    path = tmp_path / "data.csv"
    path.write_text('sentence,concept_strength_label\n"\x1b[2Jx\ry",0\n"\x1b[2Jx\ry",3\n', encoding="utf-8")
    read_labelled_sentences(path)
    (message,) = caplog.messages
    assert message.isprintable()
