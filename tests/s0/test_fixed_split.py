"""Sentences that keep their side of the split when a file grows, and groups that an audit does not count."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_common.errors import UserError
from s0_dataset_generation.audit_dataset import main as audit_dataset
from s0_dataset_generation.dataset_audit import neighbour_clusters
from s0_dataset_generation.labelled_sentences import assign_split, read_labelled_sentences


def sentence(index):
    """Texts that share no wording with one another."""
    rng = np.random.default_rng(index)
    return " ".join("".join(rng.choice(list("bcdfghklmnprstvz"), 7)) for _ in range(6)) + f" {index}"


def write(path, rows):
    header = ["sentence", "concept_strength_label", "group", "fixed_split"]
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def rows(n, fixed=lambda index: "", group=lambda index: ""):
    return [[sentence(index), index % 4, group(index), fixed(index)] for index in range(n)]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["", "train", "test"]), min_size=60, max_size=60), st.integers(0, 5))
def test_a_fixed_side_is_kept_and_the_others_are_split_by_themselves(tmp_path_factory, sides, seed):
    path = write(tmp_path_factory.mktemp("fixed") / "d.csv", rows(60, lambda index: sides[index]))
    data = read_labelled_sentences(path)
    split = assign_split(data, seed)
    given_side = np.array(sides)
    assert split.held_out[given_side == "test"].all()
    assert not split.held_out[given_side == "train"].any()
    free = given_side == ""
    if free.sum() > 10:
        assert 0.1 <= split.held_out[free].mean() <= 0.3
        alone = write(path.with_name("e.csv"), [row for row, own in zip(rows(60), free, strict=True) if own])
        np.testing.assert_array_equal(
            assign_split(read_labelled_sentences(alone), seed).held_out, split.held_out[free]
        )


def test_a_file_that_grows_keeps_its_split(tmp_path):
    first = assign_split(read_labelled_sentences(write(tmp_path / "a.csv", rows(80))))
    side = ["test" if held_out else "train" for held_out in first.held_out]
    grown = write(tmp_path / "b.csv", rows(160, lambda index: side[index] if index < 80 else ""))
    split = assign_split(read_labelled_sentences(grown))
    np.testing.assert_array_equal(split.held_out[:80], first.held_out)
    assert 12 <= split.held_out[80:].sum() <= 20


def test_near_duplicates_and_groups_follow_the_fixed_one(tmp_path):
    content = rows(
        60, lambda index: "test" if index == 3 else "", lambda index: "p" if index in (3, 40) else ""
    )
    content.append([sentence(3) + " again", 1, "", ""])
    split = assign_split(read_labelled_sentences(write(tmp_path / "a.csv", content)))
    assert split.held_out[[3, 40, 60]].all()


def test_what_cannot_be_is_refused(tmp_path):
    torn = rows(
        60,
        lambda index: {3: "test", 40: "train"}.get(index, ""),
        lambda index: "p" if index in (3, 40) else "",
    )
    with pytest.raises(
        UserError, match=r"fixed_split puts near-duplicates on both sides: .* in train, .* in test"
    ):
        assign_split(read_labelled_sentences(write(tmp_path / "a.csv", torn)))
    with pytest.raises(
        UserError, match="line 9: fixed_split is 'held out'; expected train or test, or nothing"
    ):
        read_labelled_sentences(
            write(tmp_path / "b.csv", rows(20, lambda index: "held out" if index == 7 else ""))
        )


def test_an_audit_does_not_count_the_two_of_a_pair_as_neighbours(tmp_path, capsys):
    text = "the gardener watered every rose before the first of the visitors came to the gate"
    sentences = [
        text,
        text + " today",
        text + " again",
        "something else altogether stands in this line",
        "and here",
    ]
    assert neighbour_clusters(sentences) == [[0, 1, 2]]
    assert neighbour_clusters(sentences, ["p", "p", "", "q", "q"]) == [[0, 1, 2]]  # the third is no member
    assert neighbour_clusters(sentences, ["p", "p", "p", "", ""]) == []
    path = write(
        tmp_path / "d.csv", [[text, 3, "p", ""], [text + " today", 1, "p", ""], [sentences[3], 0, "", ""]]
    )
    assert audit_dataset([str(path), "--output-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "with a close neighbour     0.0%" in out
    assert "pairs and other groups     1" in out
