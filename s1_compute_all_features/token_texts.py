"""What the texts of stored tokens tell: which are words, and how one is named to a reader (NumPy only)."""

import numpy as np


def is_content(token_texts: np.ndarray) -> np.ndarray:
    """Whether each token holds a letter or digit: bool [n_tokens]. Punctuation and space do not.

    A token that shows nothing is a piece of the character behind it, and counts as the token that shows
    that character.

    Args:
        token_texts: str [n_tokens], from a `TokenTable`.
    """
    texts = np.asarray(token_texts, dtype=str)
    content = np.array([any(map(str.isalnum, text)) for text in texts.tolist()], dtype=bool)
    return content[_shown_by(texts)]


def token_labels(token_texts: np.ndarray) -> np.ndarray:
    """How each token is named to a reader: by its text, or as a piece of the character that it belongs to.

    >>> token_labels(np.array([" so", "", "", "…"])).tolist()
    [' so', '… 1/3', '… 2/3', '…']

    Args:
        token_texts: str [n_tokens], of whole sentences.

    Returns:
        str [n_tokens]; empty nowhere but where no text follows.
    """
    texts = np.asarray(token_texts, dtype=str)
    pieces = np.flatnonzero(texts == "")
    if not len(pieces):
        return texts
    shown_by = _shown_by(texts)[pieces].tolist()
    first_of = dict(zip(reversed(shown_by), reversed(pieces.tolist()), strict=True))
    labels = texts.astype(object)
    for piece, last in zip(pieces.tolist(), shown_by, strict=True):
        whole, first = str(texts[last]), first_of[last]
        if whole:
            labels[piece] = f"{whole.lstrip()[:1] or whole} {piece - first + 1}/{last - first + 1}"
    return labels.astype(str)


def _shown_by(texts: np.ndarray) -> np.ndarray:
    """Place of the token that shows each token's character: int64 [n_tokens], its own but for a piece."""
    places = np.where(texts == "", len(texts) - 1, np.arange(len(texts)))
    return np.minimum.accumulate(places[::-1])[::-1]
