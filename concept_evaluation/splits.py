"""Splits that keep look-alike sentences on one side."""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# scikit-learn and SciPy take seconds to import, and every script reads its data through this module:
# they are imported where they are used, so that --help stays instant.

NEAR_DUPLICATE_COSINE = 0.6
TEST_FRACTION = 0.2

_N_BANDS = 64
_PRODUCTS_AT_ONCE = 2**21
_PAIRS_AT_ONCE = 2**15
_EDGES_AT_ONCE = 2**22
_MARGIN = 1e-5  # by which a bound is widened: norms are kept in float32


def near_duplicate_pairs(
    sentences: Sequence[str], threshold: float = NEAR_DUPLICATE_COSINE
) -> list[tuple[int, int, float]]:
    """Pairs of sentences that share most of their wording.

    Similarity is the cosine of TF-IDF vectors of character 5-grams within words. Where many sentences are
    alike, the list grows with the square of their number; `similarity_groups` does not.

    Args:
        sentences: the texts; a text without any 5-gram is similar to nothing.
        threshold: pairs with a cosine strictly above it are returned.

    Returns:
        (first index, second index, cosine), first < second, in ascending order.
    """
    vectors = _vectors(sentences)
    if vectors is None:
        return []
    pairs: list[tuple[int, int, float]] = []
    for first, second, cosine in _pairs_above(vectors, threshold):
        pairs += zip(first.tolist(), second.tolist(), cosine.tolist(), strict=True)
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
    n_sentences = len(sentences)
    first_of_group: dict[str, int] = {}
    given = [
        (first_of_group.setdefault(name, index), index)
        for index, name in enumerate(given_groups or [])
        if name
    ]
    edges = [np.array(given, dtype=np.int64).reshape(-1, 2)]
    vectors = _vectors(sentences)
    if vectors is not None:
        # Equal texts have equal vectors: one of them is compared for all, at a cosine of 1.
        first_of_text: dict[str, int] = {}
        same = np.array([first_of_text.setdefault(text, index) for index, text in enumerate(sentences)])
        alike = np.flatnonzero((same != np.arange(n_sentences)) & (np.diff(vectors.indptr) > 0))
        if threshold < 1:
            edges.append(np.stack([same[alike], alike], axis=1))
        distinct = np.array(list(first_of_text.values()))
        for first, second, _ in _pairs_above(vectors[distinct], threshold):
            edges.append(np.stack([distinct[first], distinct[second]], axis=1))
            if sum(map(len, edges)) > _EDGES_AT_ONCE:  # a tree joins what many pairs join
                component = _components(n_sentences, edges)
                _, first_index = np.unique(component, return_index=True)
                edges = [np.stack([first_index[component], np.arange(n_sentences)], axis=1)]
    _, first_index, group = np.unique(_components(n_sentences, edges), return_index=True, return_inverse=True)
    order_of_appearance = np.argsort(np.argsort(first_index))
    return order_of_appearance[group].astype(np.int64)


def _components(n_sentences: int, edges: list[np.ndarray]) -> np.ndarray:
    """Component of every sentence: int [n_sentences], from pairs int [n_pairs, 2]."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate(edges)
    graph = csr_matrix(
        (np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(n_sentences, n_sentences)
    )
    component: np.ndarray = connected_components(graph, directed=False)[1]
    return component


def _vectors(sentences: Sequence[str]) -> "csr_matrix | None":
    """Unit TF-IDF vectors of character 5-grams, [n_sentences, n_grams]; None where none can be alike."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(sentences) < 2:
        return None
    try:
        return TfidfVectorizer(analyzer="char_wb", ngram_range=(5, 5)).fit_transform(sentences)
    except ValueError:  # no sentence holds a 5-gram: an empty vocabulary
        return None


def _pairs_above(
    vectors: "csr_matrix", threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of rows with a cosine above the threshold, found without multiplying all with all.

    Features are put in bands from the rarest to the commonest. The rows of a pair share a feature first in
    some band; from there on, either row must have a norm above the threshold, or the product could not be.
    So it is enough to multiply the heads of the rows: the bands up to the last one with that norm behind
    it. Beyond the shorter of two heads the product is at most that of the norms left (Cauchy-Schwarz),
    which rules most pairs out; the rest are multiplied in full. This is the prefix filter of Bayardo, Ma
    and Srikant (2007), with the bound of Anastasiu and Karypis (2014).

    Args:
        vectors: float64 [n_rows, n_features], rows of norm 1 or 0, nothing below 0.
        threshold: see above.

    Yields:
        Row, a later row and their cosine, in strips of bounded size.
    """
    from scipy.sparse import csr_matrix

    n_rows, n_features = vectors.shape
    n_of_feature = np.bincount(vectors.indices, minlength=n_features)
    rarest_first = np.argsort(n_of_feature, kind="stable")
    band_of_feature = np.empty(n_features, dtype=np.int64)
    seen = np.cumsum(n_of_feature[rarest_first])
    band_of_feature[rarest_first] = (seen - 1) * _N_BANDS // seen[-1]
    row, band = np.repeat(np.arange(n_rows), np.diff(vectors.indptr)), band_of_feature[vectors.indices]
    squares = np.bincount(row * _N_BANDS + band, weights=vectors.data**2, minlength=n_rows * _N_BANDS)
    norm_from = np.zeros((n_rows, _N_BANDS + 1), dtype=np.float32)
    norm_from[:, :-1] = np.sqrt(np.cumsum(squares.reshape(n_rows, _N_BANDS)[:, ::-1], axis=1)[:, ::-1])
    n_bands = (norm_from[:, :-1] > threshold - _MARGIN).sum(axis=1)
    in_head = band < n_bands[row]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row[in_head], minlength=n_rows))])
    heads = csr_matrix((vectors.data[in_head], vectors.indices[in_head], indptr), shape=vectors.shape)
    of_feature = heads.T.tocsr()
    n_products = np.concatenate([[0], np.cumsum(np.diff(of_feature.indptr)[heads.indices])])[indptr]
    start = 0
    while start < n_rows:
        end = np.searchsorted(n_products, n_products[start] + _PRODUCTS_AT_ONCE, side="right") - 1
        end = max(int(end), start + 1)
        product = (heads[start:end] @ of_feature).tocoo()
        first, second = product.row + start, product.col
        n_common = np.minimum(n_bands[first], n_bands[second])
        left = norm_from[first, n_common] * norm_from[second, n_common]
        kept = np.flatnonzero((first < second) & (product.data + left > threshold - _MARGIN))
        for place in range(0, len(kept), _PAIRS_AT_ONCE):
            some = kept[place : place + _PAIRS_AT_ONCE]
            cosine = np.asarray(vectors[first[some]].multiply(vectors[second[some]]).sum(axis=1)).ravel()
            above = cosine > threshold
            yield first[some][above], second[some][above], cosine[above]
        start = end


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
