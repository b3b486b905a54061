"""Splits that keep look-alike sentences on one side."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

# scikit-learn and SciPy take seconds to import, and every script reads its data through this module:
# they are imported where they are used, so that --help stays instant.

NEAR_DUPLICATE_COSINE = 0.6
TEST_FRACTION = 0.2

_ROWS_AT_ONCE = 1000


def near_duplicate_pairs(
    sentences: Sequence[str], threshold: float = NEAR_DUPLICATE_COSINE
) -> list[tuple[int, int, float]]:
    """Pairs of sentences that share most of their wording.

    Similarity is the cosine of TF-IDF vectors of character 5-grams within words, computed in strips
    of rows, so that memory does not grow with the square of the data.

    Args:
        sentences: the texts; a text without any 5-gram is similar to nothing.
        threshold: pairs with a cosine strictly above it are returned.

    Returns:
        (first index, second index, cosine), first < second, in ascending order.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(sentences) < 2:
        return []
    try:
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(5, 5)).fit_transform(sentences)
    except ValueError:  # no sentence holds a 5-gram: an empty vocabulary
        return []
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, vectors.shape[0], _ROWS_AT_ONCE):
        similarity = (vectors[start : start + _ROWS_AT_ONCE] @ vectors.T).tocoo()
        first = similarity.row + start
        keep = (similarity.data > threshold) & (first < similarity.col)
        pairs += zip(
            first[keep].tolist(), similarity.col[keep].tolist(), similarity.data[keep].tolist(), strict=True
        )
    return sorted(pairs)


def similarity_groups(
    sentences: Sequence[str],
    given_groups: Sequence[str] | None = None,
    threshold: float = NEAR_DUPLICATE_COSINE,
) -> np.ndarray:
    """Group index of every sentence: connected components of near-duplicates and of given groups.

    Args:
        sentences: the texts.
        given_groups: group names that the data brings along, joined with the similarity groups; an
            empty name belongs to no group.
        threshold: cosine above which two sentences belong together (`near_duplicate_pairs`).

    Returns:
        int64 [n_sentences], groups numbered in the order of their first sentence.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    n_sentences = len(sentences)
    edges = [(first, second) for first, second, _ in near_duplicate_pairs(sentences, threshold)]
    first_of_group: dict[str, int] = {}
    for index, name in enumerate(given_groups or []):
        if name:
            edges.append((first_of_group.setdefault(name, index), index))
    rows = [first for first, _ in edges]
    columns = [second for _, second in edges]
    graph = csr_matrix((np.ones(len(edges)), (rows, columns)), shape=(n_sentences, n_sentences))
    _, component = connected_components(graph, directed=False)
    _, first_index, group = np.unique(component, return_index=True, return_inverse=True)
    order_of_appearance = np.argsort(np.argsort(first_index))
    return order_of_appearance[group].astype(np.int64)


def group_folds(
    labels: np.ndarray, groups: np.ndarray, n_folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds in which no group stands on both sides.

    Args:
        labels: [n_sentences], discrete.
        groups: [n_sentences] group indices.
        n_folds: folds wanted; at most the number of groups is given.
        seed: of the shuffle.

    Yields:
        (train indices, test indices), ascending.

    Raises:
        ValueError: fewer than two groups, so that nothing can be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(n_folds, len(np.unique(groups)))
    if n_folds < 2:
        raise ValueError("all sentences belong to one group, so none can be held out")
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    # scikit-learn refuses when every label has fewer members than folds; one label for all does not
    # change which groups stay together, only the stratification that cannot be had.
    _, counts = np.unique(labels, return_counts=True)
    stratify = labels if counts.max() >= n_folds else np.zeros_like(labels)
    with warnings.catch_warnings():  # of a label with fewer members than folds: it goes where it can
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(splitter.split(np.zeros(len(labels)), stratify, groups))
    yield from folds


def train_test_split_by_group(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The 80/20 split: one fold of five, stratified by label, groups kept whole.

    Args:
        labels: [n_sentences] of int.
        groups: [n_sentences] group indices.
        seed: of the shuffle.

    Returns:
        bool [n_sentences], True where the sentence is held out.

    Raises:
        ValueError: fewer than two groups.
    """
    _, held_out = next(group_folds(labels, groups, round(1 / TEST_FRACTION), seed))
    mask = np.zeros(len(labels), dtype=bool)
    mask[held_out] = True
    return mask
