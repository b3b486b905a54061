import tracemalloc

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from concept_evaluation import splits
from concept_evaluation.splits import (
    NEAR_DUPLICATE_COSINE,
    group_folds,
    near_duplicate_pairs,
    similarity_groups,
    train_test_split_by_group,
)

SOME_NOUNS = (
    "lantern harbour receipt gardener whisper promise ledger winter orchard signal copper station "
    "neighbour bottle candle engine window pocket ribbon thunder marble castle velvet pigeon"
)
WORDS = SOME_NOUNS.split()


def random_sentences(rng, n, n_copies):
    """Sentences of eight words, some of them copies of others with a word or two exchanged."""
    sentences = [" ".join(rng.choice(WORDS, 8)) for _ in range(n - n_copies)]
    for index in rng.integers(0, len(sentences), n_copies):
        words = sentences[index].split()
        for place in rng.integers(0, 8, rng.integers(0, 4)):
            words[place] = str(rng.choice(WORDS))
        sentences.append(" ".join(words))
    return [sentences[index] for index in rng.permutation(n)]


def dense_cosines(sentences):
    """Every cosine, from dense vectors that are normalised by hand."""
    vectors = (
        TfidfVectorizer(analyzer="char_wb", ngram_range=(5, 5), norm=None).fit_transform(sentences).toarray()
    )
    norms = np.linalg.norm(vectors, axis=1)
    return vectors @ vectors.T / np.outer(norms, norms)


@pytest.mark.parametrize("products_at_once", [1, 100, 1000, 2**21])
def test_near_duplicate_pairs_are_those_of_dense_cosines(products_at_once, monkeypatch):
    monkeypatch.setattr(splits, "_PRODUCTS_AT_ONCE", products_at_once)
    sentences = random_sentences(np.random.default_rng(0), 100, 40)
    cosines = dense_cosines(sentences)
    expected = {
        (i, j): cosines[i, j]
        for i in range(100)
        for j in range(i + 1, 100)
        if cosines[i, j] > NEAR_DUPLICATE_COSINE
    }
    assert len(expected) >= 20
    assert any(i // 40 != j // 40 for i, j in expected)  # pairs reach over the boundary of a strip
    pairs = near_duplicate_pairs(sentences)
    assert [(first, second) for first, second, _ in pairs] == sorted(expected)
    assert [cosine for *_, cosine in pairs] == pytest.approx(
        [expected[key] for key in sorted(expected)], abs=1e-12
    )


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("n_bands", [1, 3, 64])
def test_no_pair_is_ruled_out_wrongly(threshold, n_bands, monkeypatch):
    monkeypatch.setattr(splits, "_N_BANDS", n_bands)
    sentences = random_sentences(np.random.default_rng(2), 120, 50)
    cosines = np.triu(dense_cosines(sentences), 1)
    pairs = near_duplicate_pairs(sentences, threshold)
    assert [(i, j) for i, j, _ in pairs] == [tuple(pair) for pair in np.argwhere(cosines > threshold)]


def test_memory_does_not_grow_with_the_number_of_pairs_looked_at(monkeypatch):
    # Few words and many sentences: every sentence shares 5-grams with most others.
    monkeypatch.setattr(splits, "_PRODUCTS_AT_ONCE", 2**14)
    monkeypatch.setattr(splits, "_PAIRS_AT_ONCE", 2**9)
    monkeypatch.setattr(splits, "_EDGES_AT_ONCE", 2**12)
    rng = np.random.default_rng(3)
    per_sentence = []
    similarity_groups(random_sentences(rng, 100, 0))  # imports scikit-learn
    for n in (500, 2000):
        sentences = random_sentences(rng, n, n // 2)
        tracemalloc.start()
        try:
            groups = similarity_groups(sentences)
            per_sentence.append(tracemalloc.get_traced_memory()[1] / n)
        finally:
            tracemalloc.stop()
        assert len(np.unique(groups)) < n
    assert per_sentence[1] < 1.3 * per_sentence[0]


def test_many_equal_texts_are_one_group_without_comparing_them_all():
    sentences = ["The lantern fell into the harbour."] * 3000 + ["Rain all night, then frost.", "ab", "ab"]
    groups = similarity_groups(sentences)
    assert groups.tolist() == [0] * 3000 + [1, 2, 2]


def test_the_threshold_is_strict_and_a_lower_one_finds_more():
    sentences = random_sentences(np.random.default_rng(1), 60, 30)
    (_, _, cosine), *_ = pairs = near_duplicate_pairs(sentences, 0.3)
    assert len(pairs) > len(near_duplicate_pairs(sentences, 0.6))
    assert cosine not in [value for *_, value in near_duplicate_pairs(sentences, cosine)]
    assert near_duplicate_pairs(sentences, 1.1) == []


def test_equal_sentences_are_pairs_and_blank_ones_are_like_nothing():
    pair = (0, 2, pytest.approx(1.0))
    assert near_duplicate_pairs(["The lantern fell.", "", "The lantern fell.", " "]) == [pair]
    assert near_duplicate_pairs(["ab", "cd", "ab"]) == [pair]
    assert near_duplicate_pairs(["", " ", ""]) == []
    assert near_duplicate_pairs(["The lantern fell."]) == near_duplicate_pairs([]) == []


def groups_by_walking(n, edges):
    """Connected components, one sentence at a time, numbered by their first sentence."""
    group = [-1] * n
    for start in range(n):
        waiting = [start] if group[start] < 0 else []
        number = max(group) + 1
        while waiting:
            index = waiting.pop()
            if group[index] < 0:
                group[index] = number
                waiting += [b if a == index else a for a, b in edges if index in (a, b)]
    return group


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_connected_components(seed):
    rng = np.random.default_rng(seed)
    sentences = random_sentences(rng, 80, 45)
    given = [str(name) if name < 6 else "" for name in rng.integers(0, 30, 80)]
    edges = [(first, second) for first, second, _ in near_duplicate_pairs(sentences)]
    alone = similarity_groups(sentences)
    assert alone.dtype == np.int64
    assert alone.tolist() == groups_by_walking(80, edges)
    edges += [(a, b) for a in range(80) for b in range(a) if given[a] and given[a] == given[b]]
    joined = similarity_groups(sentences, given)
    assert joined.tolist() == groups_by_walking(80, edges)
    assert joined.max() < alone.max() < 79


def test_a_chain_is_one_group_although_its_ends_differ():
    a = "lantern harbour receipt gardener whisper promise"
    b = "lantern harbour receipt gardener winter orchard"
    c = "copper station receipt gardener winter orchard"
    cosines = dense_cosines([a, b, c])
    threshold = (cosines[0, 2] + min(cosines[0, 1], cosines[1, 2])) / 2
    assert cosines[0, 2] < threshold < min(cosines[0, 1], cosines[1, 2])
    assert [pair[:2] for pair in near_duplicate_pairs([a, b, c], threshold)] == [(0, 1), (1, 2)]
    assert similarity_groups([a, c, b], threshold=threshold).tolist() == [0, 0, 0]


def test_given_groups_join_and_empty_names_do_not():
    sentences = [
        "The lantern fell.",
        "Nobody came to the harbour.",
        "A pigeon slept.",
        "Rain all night, then frost.",
    ]
    assert similarity_groups(sentences).tolist() == [0, 1, 2, 3]
    assert similarity_groups(sentences, ["x", "", "x", ""]).tolist() == [0, 1, 0, 2]
    # a near-duplicate of one member belongs to the whole given group
    assert similarity_groups([*sentences, sentences[1]], ["x", "", "x", "", "x"]).tolist() == [0, 0, 0, 1, 0]


def random_labels_and_groups(rng):
    n = int(rng.integers(20, 120))
    labels = rng.choice(rng.choice(4, size=rng.integers(2, 5), replace=False), n)
    groups = rng.integers(0, rng.integers(6, n), n)
    return labels, groups


@pytest.mark.parametrize("seed", range(40))
def test_no_group_stands_on_both_sides(seed):
    labels, groups = random_labels_and_groups(np.random.default_rng(seed))
    held_out = train_test_split_by_group(labels, groups, seed=0)
    assert held_out.shape == labels.shape
    assert held_out.dtype == bool
    assert 0 < held_out.sum() < len(labels)
    assert not set(groups[held_out]) & set(groups[~held_out])
    tested = []
    for train, test in group_folds(labels, groups, 5, seed=seed):
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(len(labels)))
        assert list(test) == sorted(test)
        tested += list(test)
    assert sorted(tested) == list(range(len(labels)))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("labels_there", [(0, 1, 2, 3), (0, 3), (1, 2)])
def test_each_label_is_held_out_by_a_fifth(seed, labels_there):
    rng = np.random.default_rng(seed)
    counts = rng.integers(15, 90, len(labels_there))
    labels = rng.permutation(np.repeat(labels_there, counts))
    groups = np.arange(len(labels))
    groups[rng.choice(len(labels), 10, replace=False)] = groups[0]  # and one larger group
    groups = np.unique(groups, return_inverse=True)[1]
    held_out = train_test_split_by_group(labels, groups, seed=0)
    with_large_group = np.bincount(groups)[groups] > 1
    for label, n in zip(labels_there, counts, strict=True):
        in_group = int((with_large_group & (labels == label)).sum())
        # Whole sentences, and the members of the one large group come or stay together.
        assert abs(held_out[labels == label].sum() - n / 5) <= 2 + in_group
    alone = train_test_split_by_group(labels, np.arange(len(labels)), seed=0)
    for label, n in zip(labels_there, counts, strict=True):
        assert abs(alone[labels == label].sum() - n / 5) <= 2


def test_the_seed_alone_decides():
    labels, groups = random_labels_and_groups(np.random.default_rng(3))
    first = train_test_split_by_group(labels, groups, seed=0)
    assert np.array_equal(first, train_test_split_by_group(labels.copy(), groups.copy(), seed=0))
    assert any(
        not np.array_equal(first, train_test_split_by_group(labels, groups, seed=seed))
        for seed in range(1, 5)
    )
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert np.array_equal(first, train_test_split_by_group(labels, groups, seed=0))


def test_folds_hold_every_label_where_there_are_enough():
    labels = np.repeat([0, 3], [50, 10])
    for _, test in group_folds(labels, np.arange(60), 5, seed=0):
        assert np.bincount(labels[test], minlength=4).tolist() == [10, 0, 0, 2]


@pytest.mark.filterwarnings("error")
def test_labels_with_fewer_members_than_folds():
    labels = np.array([0] * 20 + [3] * 2)
    folds = list(group_folds(labels, np.arange(22), 5, seed=0))
    assert len(folds) == 5
    assert sum((labels[test] == 3).sum() for _, test in folds) == 2
    each_different = np.arange(8)
    assert len(list(group_folds(each_different, np.arange(8), 5, seed=0))) == 5


def test_fewer_groups_than_folds_give_as_many_folds_as_groups():
    labels = np.array([0, 3, 0, 3, 0, 3])
    folds = list(group_folds(labels, np.array([0, 0, 1, 1, 2, 2]), 5, seed=0))
    assert len(folds) == 3
    assert all(len(test) == 2 for _, test in folds)


def test_one_group_cannot_be_split():
    labels = np.array([0, 3, 0, 3])
    for split in (
        train_test_split_by_group,
        lambda labels, groups, seed: list(group_folds(labels, groups, 5, seed)),
    ):
        with pytest.raises(ValueError, match="all sentences belong to one group, so none can be held out"):
            split(labels, np.zeros(4, dtype=int), 0)
