"""Feature stores as traits: their names, their layers and one vector per sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore, distinct_names

Layer = int | str
"""A layer's number, or `EMBEDDINGS`."""


@dataclass(frozen=True)
class Trait:
    """One trait's store.

    Attributes:
        name: of the trait: the labelled CSV's name without its ending, or the store folder's name where
            two stores come from CSVs of one name.
        store: its feature store.
    """

    name: str
    store: FeatureStore

    @property
    def train(self) -> np.ndarray:
        """int64 [n_train], indices of the train sentences."""
        return np.flatnonzero(~self.store.held_out)

    @property
    def test(self) -> np.ndarray:
        """int64 [n_test], indices of the held-out sentences."""
        return np.flatnonzero(self.store.held_out)

    @property
    def layers(self) -> list[Layer]:
        """The embeddings, then the stored layers, ascending."""
        return [EMBEDDINGS, *self.store.layers]

    @property
    def every_token_stored(self) -> bool:
        """Whether the store holds all tokens of a sentence, and not only the last."""
        return bool(self.store.manifest.get("settings", {}).get("tokens", "all") == "all")

    def vectors(self, layer: Layer, pooling: str) -> np.ndarray:
        """One vector per sentence: float32 [n_sentences, d_model].

        Raises:
            UserError: the store does not hold the layer, or it holds NaN or infinity.
        """
        pooled = self.store.pooled_hidden_states(layer, pooling)
        # A sum is finite only where every summand is.
        if not np.isfinite(pooled.sum(dtype=np.float64)):
            raise UserError(
                f"{self.store.path}: {_named(layer)} holds NaN or infinity; extract the store again"
            )
        return pooled


def open_traits(paths: Sequence[Path], keep_sinks: bool = False) -> list[Trait]:
    """Open stores that hold hidden states, and name their traits.

    Args:
        paths: the stores.
        keep_sinks: count attention sinks like any other token.

    Raises:
        UserError: a store is not readable or holds no hidden states, its train sentences have a single
            label, two stores cannot be told apart by name, or one counts attention sinks and another does
            not.
    """
    stores = [FeatureStore(path, keep_sinks) for path in paths]
    for store in stores:
        if store.leaves_out_sinks != stores[0].leaves_out_sinks:
            raise UserError(
                f"{store.path}: of this store and {stores[0].path} one was made without a look for attention "
                "sinks; make both alike, or add --keep-sinks"
            )
        if store.hidden_states_stored == "none":
            raise UserError(
                f"{store.path}: made with --hidden-states none, so there are no layers to read; extract "
                "again with --hidden-states all or pooled"
            )
    return [Trait(name, store) for name, store in zip(distinct_names(stores), stores, strict=True)]


def refuse_single_label(trait: Trait) -> None:
    """Stop where there is nothing to learn.

    Raises:
        UserError: the train sentences have fewer than two labels.
    """
    labels = np.unique(trait.store.labels[trait.train])
    if len(labels) < 2:
        found = f"only label {labels[0]}" if len(labels) else "no sentences"
        raise UserError(
            f"{trait.store.path}: the train split has {found}; a classifier needs two labels; add sentences"
        )


def _named(layer: Layer) -> str:
    return EMBEDDINGS if layer == EMBEDDINGS else f"hidden layer {layer}"
