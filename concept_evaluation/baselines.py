"""What a classifier has to beat: models that read nothing of the language model.

Each baseline is an unfitted scikit-learn estimator and the inputs it reads, so that it goes through the
same folds, test rows and scores as the classifier that it stands beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

Task = Literal["classification", "regression"]

MAX_ITER = 1000
BAG_OF_WORDS_C = 10.0
BAG_OF_WORDS_ALPHA = 1.0


@dataclass(frozen=True)
class Baseline:
    """An unfitted model and what it reads.

    Attributes:
        name: ``majority`` or ``mean``, ``sentence_length``, ``bag_of_words``, ``token_identity``.
        estimator: follows scikit-learn's protocol.
        inputs: [n_rows, ...], aligned with the classifier's rows.
    """

    name: str
    estimator: Any
    inputs: np.ndarray


def majority(task: Task, n_rows: int) -> Baseline:
    """The most frequent label, with the label shares as probabilities; for regression the mean."""
    nothing = np.zeros((n_rows, 1), dtype=np.float32)
    if task == "classification":
        return Baseline("majority", DummyClassifier(strategy="prior"), nothing)
    return Baseline("mean", DummyRegressor(strategy="mean"), nothing)


def sentence_length(task: Task, n_tokens: np.ndarray) -> Baseline:
    """A linear model of the number of tokens and its logarithm.

    Args:
        task: what is predicted.
        n_tokens: int [n_rows], at least 1.
    """
    lengths = np.stack([n_tokens, np.log(n_tokens)], axis=1).astype(np.float64)
    return Baseline("sentence_length", make_pipeline(StandardScaler(), _linear(task, 1.0, 1.0)), lengths)


def bag_of_words(task: Task, sentences: Sequence[str]) -> Baseline:
    """A linear model of TF-IDF weighted words; vocabulary and weights come from the training rows alone.

    Args:
        task: what is predicted.
        sentences: [n_rows] texts.
    """
    # Words of one letter count and so does punctuation: it tells labels apart in some datasets.
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    model: Pipeline = make_pipeline(words, _linear(task, BAG_OF_WORDS_C, BAG_OF_WORDS_ALPHA))
    return Baseline("bag_of_words", model, np.array(list(sentences), dtype=object))


def token_identity(tokens: Sequence[str] | np.ndarray) -> Baseline:
    """The target's mean over the training rows of the same token, shrunk towards the rest.

    For a regression with one row per token. A token that training did not see gets the intercept.
    An input that depends on nothing but the token, as an embedding does, cannot do better than this
    except on tokens that training did not see.

    Args:
        tokens: [n_rows] token texts.
    """
    column = np.array([str(token) for token in tokens], dtype=object)[:, None]
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge(alpha=1.0))
    return Baseline("token_identity", model, column)


def _linear(task: Task, C: float, alpha: float) -> LogisticRegression | Ridge:
    return LogisticRegression(C=C, max_iter=MAX_ITER) if task == "classification" else Ridge(alpha=alpha)
