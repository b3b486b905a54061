"""What to call several feature stores beside one another; part of feature_store.py."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline_common.errors import UserError

if TYPE_CHECKING:
    from s1_compute_all_features.feature_store import FeatureStore


def distinct_names(stores: "Sequence[FeatureStore]") -> list[str]:
    """What to call stores beside one another: their traits, or their folders' names where two share a trait.

    Raises:
        UserError: two cannot be told apart by either.
    """
    names = [store.trait for store in stores]
    if len(set(names)) < len(names):
        names = [store.path.resolve().name for store in stores]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two of the stores are called {twice}; name each store once, or rename a folder")
    return names
