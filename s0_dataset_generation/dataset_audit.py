"""What a labelled dataset gives away: duplicates, imbalances and shortcuts. Texts in, numbers out.

A shortcut is a way to tell the labels apart without reading for the trait. Each shortcut test is a
logistic classifier of label 3 against label 0 that sees one such property; near 0.5 is good.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from concept_evaluation.splits import similarity_groups
from s0_dataset_generation.function_words import FUNCTION_WORDS, TOKEN_PATTERN
from s0_dataset_generation.labelled_sentences import LABELS, normal_form
from s0_dataset_generation.trait_words import TraitWords, word_pattern

NEIGHBOUR_COSINE = 0.5
N_FOLDS = 5
PUNCTUATION = ".,;:!?'\"-—"
OPENING_WORDS = 3

# Limits of --strict.
MAX_NEIGHBOUR_SHARE = 0.05
MAX_OPENING_SHARE = 0.02
MAX_SHORTCUT_AUROC = 0.65
MAX_MEDIAN_RATIO = 1.25
MIN_DISTINCT_WORDS = 1600

LIMITED_SHORTCUTS = ("length and punctuation", "function words")


def audit(
    sentences: Sequence[str],
    labels: np.ndarray,
    trait_words: TraitWords | None = None,
    given_groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All findings on one dataset, ready for JSON.

    Args:
        sentences: the texts, at least one.
        labels: int [n_sentences], 0-3.
        trait_words: of the dataset's trait, where they are known.
        given_groups: the file's own ``group`` column: members of a group, such as the two of a minimal
            pair, are alike on purpose and stay on one side of the split, so they are no neighbours of one
            another.

    Returns:
        Counts, duplicates, lengths, openings, vocabulary, trait words and shortcut AUROCs. What cannot
        be measured is None: the median of a label without sentences, an AUROC with too few.
    """
    texts_of = {
        str(label): [text for text, own in zip(sentences, labels, strict=True) if own == label]
        for label in LABELS
    }
    n_words = np.array([len(sentence.split()) for sentence in sentences])
    openings = Counter(" ".join(_words(sentence)[:OPENING_WORDS]) for sentence in sentences)
    first_words = Counter(words[0] for sentence in sentences if (words := _words(sentence)))
    clusters = neighbour_clusters(sentences, given_groups)
    return {
        "n_sentences": len(sentences),
        "label_counts": {str(label): int((labels == label).sum()) for label in LABELS},
        "exact_duplicates": exact_duplicates(sentences),
        "neighbour_share": sum(map(len, clusters)) / len(sentences),
        "neighbour_clusters": clusters,
        "given_groups": len({group for group in given_groups or () if group}),
        "words": {str(label): _distribution(n_words[labels == label]) for label in LABELS},
        "punctuation_per_sentence": {label: _punctuation(texts) for label, texts in texts_of.items()},
        "trait_word_share": {
            label: trait_word_share(texts, trait_words) for label, texts in texts_of.items()
        },
        "implied_share": implied_share(sentences, labels, trait_words),
        "first_words": dict(first_words.most_common(10)),
        "openings": {opening: n / len(sentences) for opening, n in openings.most_common(10)},
        "distinct_words": len({word for sentence in sentences for word in _words(sentence)}),
        "shortcut_auroc": {
            name: shortcut_auroc(sentences, labels, features) for name, features in SHORTCUTS.items()
        },
    }


def broken_limits(findings: Mapping[str, Any]) -> list[str]:
    """Which limits of ``--strict`` the findings break, a line each."""
    broken = []
    if findings["exact_duplicates"]:
        broken.append(f"{len(findings['exact_duplicates'])} sentences occur more than once (limit 0)")
    if findings["neighbour_share"] > MAX_NEIGHBOUR_SHARE:
        broken.append(
            f"{findings['neighbour_share']:.1%} of sentences have a neighbour above cosine "
            f"{NEIGHBOUR_COSINE} (limit {MAX_NEIGHBOUR_SHARE:.0%})"
        )
    for opening, share in findings["openings"].items():
        # One sentence is more than 2% of a small dataset and no repetition.
        if share > MAX_OPENING_SHARE and share * findings["n_sentences"] > 1.5:
            broken.append(f"{share:.1%} of sentences begin with {opening!r} (limit {MAX_OPENING_SHARE:.0%})")
    for name in LIMITED_SHORTCUTS:
        auroc = findings["shortcut_auroc"][name]
        if auroc is None:
            broken.append(f"shortcut test on {name}: not enough sentences of labels 0 and 3 to measure it")
        elif auroc > MAX_SHORTCUT_AUROC:
            broken.append(f"{name} tell label 3 from 0 with AUROC {auroc:.3f} (limit {MAX_SHORTCUT_AUROC})")
    medians = [words["median"] for words in findings["words"].values() if words["median"] is not None]
    if max(medians) > MAX_MEDIAN_RATIO * min(medians):
        broken.append(
            f"median lengths of the labels go from {min(medians):g} to {max(medians):g} words (limit: within "
            f"{MAX_MEDIAN_RATIO - 1:.0%} of one another)"
        )
    if findings["distinct_words"] < MIN_DISTINCT_WORDS:
        broken.append(f"{findings['distinct_words']} distinct words (limit at least {MIN_DISTINCT_WORDS})")
    return broken


def exact_duplicates(sentences: Sequence[str]) -> list[list[int]]:
    """Indices of sentences that are the same but for case and spaces, a list per repeated sentence."""
    places: dict[str, list[int]] = {}
    for index, sentence in enumerate(sentences):
        places.setdefault(normal_form(sentence), []).append(index)
    return [indices for indices in places.values() if len(indices) > 1]


def neighbour_clusters(
    sentences: Sequence[str], given_groups: Sequence[str] | None = None
) -> list[list[int]]:
    """Indices of sentences joined by a cosine above 0.5, the largest clusters first.

    A cluster of members of one given group alone is left out.
    """
    groups = similarity_groups(sentences, threshold=NEIGHBOUR_COSINE)
    if given_groups is not None:
        # What lies in clusters of one group counts as alone.
        names = np.array(given_groups, dtype=object)
        for number in np.unique(groups):
            alike = np.flatnonzero(groups == number)
            if names[alike[0]] and len(set(names[alike])) == 1:
                groups[alike[1:]] = groups.max() + 1 + np.arange(len(alike) - 1)
        _, groups = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    clusters = [cluster.tolist() for cluster in members if len(cluster) > 1]
    return sorted(clusters, key=lambda cluster: (-len(cluster), cluster))


def shared_sentences(datasets: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Sentences that stand in more than one dataset, with the names of those datasets."""
    homes: dict[str, tuple[str, list[str]]] = {}
    for name, sentences in datasets.items():
        for sentence in sentences:
            _, names = homes.setdefault(normal_form(sentence), (sentence, []))
            if name not in names:
                names.append(name)
    return [(sentence, names) for sentence, names in homes.values() if len(names) > 1]


def trait_word_share(sentences: Sequence[str], words: TraitWords | None) -> float | None:
    """Share of sentences with any word that usually goes with the trait or its opposite.

    Label 1 should have many, or nothing keeps a detector from reading the words alone; labels 2 and 3
    should often do without. None where the words are not known or there is no sentence.
    """
    if words is None or not sentences:
        return None
    pattern = _any_word(words)
    return sum(pattern.search(text) is not None for text in sentences) / len(sentences)


def implied_share(sentences: Sequence[str], labels: np.ndarray, words: TraitWords | None) -> float | None:
    """Share of all sentences that show the trait, at least somewhat, and use none of its usual words.

    Those are the sentences of labels 2 and 3 (``labels`` is int [n_sentences]) without any word of the trait
    or its opposite. None where the words are not known.
    """
    if words is None:
        return None
    pattern = _any_word(words)
    shown = [text for text, label in zip(sentences, labels, strict=True) if label >= 2]
    return sum(pattern.search(text) is None for text in shown) / len(sentences)


def _any_word(words: TraitWords) -> re.Pattern[str]:
    return word_pattern((*words.names, *words.usual, *words.opposite))


Scores = tuple[Any, Any]


def length_and_punctuation(sentences: Sequence[str]) -> Scores:
    """Characters, words, each punctuation mark and sentence ends, counted."""
    rows = [
        [
            len(text),
            len(text.split()),
            *(text.count(mark) for mark in PUNCTUATION),
            len(re.findall("[.!?]", text)),
        ]
        for text in sentences
    ]
    return np.array(rows, dtype=float), make_pipeline(StandardScaler(), _logistic(1))


def function_words(sentences: Sequence[str]) -> Scores:
    """Function words, counted."""
    counter = CountVectorizer(vocabulary=sorted(FUNCTION_WORDS), token_pattern=TOKEN_PATTERN)
    return counter.transform([text.replace("\u2019", "'") for text in sentences]), _logistic(1)


def first_two_words(sentences: Sequence[str]) -> Scores:
    """The first two words, as a set."""
    return _counts([" ".join(text.split()[:2]) for text in sentences]), _logistic(1)


def bag_of_words(sentences: Sequence[str]) -> Scores:
    """All words by TF-IDF: what a detector has to beat, not a shortcut."""
    # The vectoriser is part of the classifier, so that its weights come from training folds alone.
    vectoriser = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    return np.array(sentences, dtype=object), make_pipeline(vectoriser, _logistic(10))


SHORTCUTS: dict[str, Callable[[Sequence[str]], Scores]] = {
    "length and punctuation": length_and_punctuation,
    "function words": function_words,
    "first two words": first_two_words,
    "bag of words": bag_of_words,
}


def shortcut_auroc(
    sentences: Sequence[str], labels: np.ndarray, features: Callable[[Sequence[str]], Scores]
) -> float | None:
    """AUROC of label 3 against 0 by one kind of feature, in stratified 5-fold cross-validation.

    Args:
        sentences: the texts.
        labels: int [n_sentences].
        features: texts to a feature matrix and the classifier for it.

    Returns:
        The AUROC of all held-out scores together; None with under 5 sentences of either label.
    """
    used = np.flatnonzero((labels == 0) | (labels == 3))
    is_shown = (labels[used] == 3).astype(int)
    if len(used) == 0 or min(is_shown.sum(), len(used) - is_shown.sum()) < N_FOLDS:
        return None
    values, classifier = features([sentences[index] for index in used.tolist()])
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0)
    # On problems this small, threads of the linear algebra library wait for one another most of the time.
    with threadpool_limits(1):
        scores = cross_val_predict(classifier, values, is_shown, cv=folds, method="predict_proba")
    return float(roc_auc_score(is_shown, scores[:, 1]))


def _logistic(inverse_penalty: float) -> LogisticRegression:
    return LogisticRegression(C=inverse_penalty, max_iter=2000)


def _counts(texts: Sequence[str]) -> csr_matrix:
    return CountVectorizer(token_pattern=r"\S+").fit_transform(texts)


def _words(sentence: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", sentence.lower())


def _distribution(values: np.ndarray) -> dict[str, float | None]:
    if len(values) == 0:
        return {"min": None, "median": None, "max": None}
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def _punctuation(sentences: Sequence[str]) -> dict[str, float] | None:
    if not sentences:
        return None
    return {mark: sum(text.count(mark) for text in sentences) / len(sentences) for mark in PUNCTUATION}
