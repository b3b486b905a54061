"""The minimal pairs in the box: what their page says of them, and that they are apart from the datasets."""

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from concept_evaluation.splits import near_duplicate_pairs
from s0_dataset_generation.dataset_audit import LIMITED_SHORTCUTS, MAX_SHORTCUT_AUROC, audit, broken_limits
from s0_dataset_generation.labelled_sentences import assign_split, normal_form, read_labelled_sentences
from s0_dataset_generation.sentence_generation import MAX_WORDS, MIN_WORDS
from s0_dataset_generation.trait_words import TRAIT_WORDS
from tests.s0.test_shipped_datasets import STAGE, TRAITS

PAGE = (STAGE / "minimal_pairs" / "README.md").read_text(encoding="utf-8")


def read(folder, trait):
    return read_labelled_sentences(STAGE / folder / f"{trait}.csv", 4)


@pytest.mark.parametrize("trait", TRAITS)
def test_counts_and_pairs_are_as_the_page_says(trait):
    data = read("minimal_pairs", trait)
    assert list(data.further_columns) == ["group", "second_rating"]
    assert np.bincount(data.labels).tolist() == [75, 75, 75, 75]
    members = {}
    for group, label in zip(data.further_columns["group"], data.labels.tolist(), strict=True):
        members.setdefault(group, []).append(label)
    alone = Counter(members.pop(""))
    assert Counter(tuple(sorted(labels)) for labels in members.values()) == {(1, 3): 45, (2, 3): 15}
    assert alone == {3: 15, 1: 30, 2: 60, 0: 75}
    for number in ("| 90 |", "| 30 |", "| 15 |", "| 60 |", "| 75 |"):
        assert number in PAGE


@pytest.mark.parametrize("trait", TRAITS)
def test_the_second_rating_agrees_as_the_page_says(trait):
    data = read("minimal_pairs", trait)
    second = np.array([int(value) for value in data.further_columns["second_rating"]])
    kappas = [cohen_kappa_score(data.labels, second, weights=weights) for weights in (None, "quadratic")]
    apart = int((np.abs(data.labels - second) > 1).sum())
    row = f"| {trait} | {int((data.labels == second).sum())} | {kappas[0]:.3f} | {kappas[1]:.3f} | {apart} |"
    assert row in PAGE


@pytest.mark.parametrize("trait", TRAITS)
def test_both_of_a_pair_are_on_one_side_and_no_limit_breaks_beside_the_dataset(trait):
    own, dataset = read("minimal_pairs", trait), read("expanded_data", trait)
    for sentence in own.sentences:
        assert MIN_WORDS <= len(re.findall(r"\S+", sentence)) <= MAX_WORDS
    texts = [*map(normal_form, own.sentences), *map(normal_form, dataset.sentences)]
    assert len(set(texts)) == len(texts)
    pairs = near_duplicate_pairs([*dataset.sentences, *own.sentences])
    assert all(min(pair[:2]) >= len(dataset.sentences) for pair in pairs)  # among themselves alone
    split, groups = assign_split(own), np.array(own.further_columns["group"])
    for group in set(groups) - {""}:
        assert len(set(split.held_out[groups == group])) == 1
    findings = audit(
        [*dataset.sentences, *own.sentences],
        np.concatenate([dataset.labels, own.labels]),
        TRAIT_WORDS[trait],
        [*[""] * len(dataset.sentences), *own.further_columns["group"]],
    )
    assert broken_limits(findings) == []
    assert all(findings["shortcut_auroc"][name] <= MAX_SHORTCUT_AUROC for name in LIMITED_SHORTCUTS)
