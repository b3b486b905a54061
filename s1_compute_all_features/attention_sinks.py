"""Attention sinks: tokens that a model parks its attention on, told by the norm of their residual stream.

A model sends attention that it has no use for to a token that is always there, most often the first one
(Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453), and marks
that token with activations many times the usual ones (Sun et al. 2024, "Massive Activations in Large
Language Models", arXiv 2402.17762). Its residual stream says nothing of the word that stands there, and its
size drowns the other tokens in every maximum and mean. NumPy only.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SINK_FACTOR = 10.0
"""A sink's norm is above so many times the median of its layer."""

SINKS_SHAPE = (None, {"factor": float, "median_norms": {str: float}})
"""The manifest's entry, for `pipeline_common.json_shape`; null where sinks count as any other token."""


@dataclass(frozen=True)
class SinkRule:
    """Which tokens of a store are sinks.

    Attributes:
        factor: a sink's norm is above so many times the median.
        median_norms: layer to the median norm of its tokens. Grows when the store's first block has been
            computed, and an entry never changes: whatever computes a block later masks the same tokens.
    """

    factor: float = SINK_FACTOR
    median_norms: dict[int, float] = field(default_factory=dict)

    def lacking(self, layers: Iterable[int]) -> list[int]:
        """The layers without a median so far."""
        return [layer for layer in layers if layer not in self.median_norms]

    def as_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        medians = {str(layer): median for layer, median in sorted(self.median_norms.items())}
        return {"factor": self.factor, "median_norms": medians}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "SinkRule":
        """What `as_json` gave.

        Raises:
            ValueError: a layer is no integer, or a number is not finite.
        """
        numbers = [entry["factor"], *entry["median_norms"].values()]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("factor and median norms are not all finite")
        return cls(
            float(entry["factor"]),
            {int(layer): float(median) for layer, median in entry["median_norms"].items()},
        )


def median_norms(norms: Mapping[int, np.ndarray]) -> dict[int, float]:
    """The median norm of each layer's tokens.

    Args:
        norms: layer to float [n_tokens], at least one token.
    """
    return {layer: float(np.median(of_layer.astype(np.float64))) for layer, of_layer in norms.items()}


def sink_mask(norms: np.ndarray, median: float, factor: float = SINK_FACTOR) -> np.ndarray:
    """Which tokens are sinks: bool [n_tokens], True where the norm is above ``factor`` times the median.

    None where the median is 0: then most of the layer is silent, and any token stands out.

    Args:
        norms: float [n_tokens], of the residual stream of each token at one layer.
        median: of that layer.
        factor: see `SINK_FACTOR`.
    """
    return (norms.astype(np.float64) > factor * median) & (median > 0)


def starts_without(starts: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """Where each sentence begins among the tokens that are left: int64 [n_sentences + 1].

    Args:
        starts: int64 [n_sentences + 1], sentence s is tokens ``starts[s]:starts[s + 1]``.
        sinks: bool [n_tokens].
    """
    return np.concatenate([[0], np.cumsum(~sinks)]).astype(np.int64)[starts]


def first_lost_sentence(starts: np.ndarray, sinks: np.ndarray) -> int | None:
    """The first sentence of which every token is a sink; None where each keeps one.

    Args:
        starts: int64 [n_sentences + 1], token ranges of the sentences.
        sinks: bool [n_tokens].
    """
    lost = np.flatnonzero(np.diff(starts_without(starts, sinks)) == 0)
    return int(lost[0]) if len(lost) else None
