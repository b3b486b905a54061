"""Does a feature carry this trait, or any trait? The top features read on other traits' sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from concept_evaluation.metrics import auroc
from pipeline_common.errors import UserError
from pipeline_common.files import atomic_path, write_csv
from s1_compute_all_features.feature_store import FeatureStore, StoredSae, distinct_names, feature_key
from s2_find_top_features.ranked_features import RankedFeature
from s2_find_top_features.ranking import rank_features
from s2_find_top_features.scoring import RankingSettings
from s2_find_top_features.specificity_table import SPECIFICITY, SPECIFICITY_COLUMNS
from s2_find_top_features.threads import in_threads

MATRIX = "specificity_matrix.csv"
MATRIX_PICTURE = "specificity_matrix.png"


@dataclass(frozen=True)
class Trait:
    """One trait's store.

    Attributes:
        name: of the trait, from the name of the labelled CSV.
        store: its feature store.
    """

    name: str
    store: FeatureStore


@dataclass(frozen=True)
class BestFeature:
    """The train rank 1 of a trait.

    Attributes:
        trait: whose best feature it is.
        sae: the SAE, as that trait's store has it.
        feature_id: index of the latent.
    """

    trait: Trait
    sae: StoredSae
    feature_id: int

    @property
    def label(self) -> str:
        """Trait and key, for tables and pictures."""
        sae, by_name = self.sae, self.trait.store.needs_name(self.sae)
        key = feature_key(sae.name, sae.layer, sae.average_l0, self.feature_id, by_name)
        return f"{self.trait.name} {key!r}"


def open_traits(store: FeatureStore, others: Sequence[Path]) -> list[Trait]:
    """The own trait first, then the others.

    Raises:
        UserError: a store is not readable, is named twice, has another model or other SAEs than the first,
            or one of the two counts attention sinks and the other does not.
    """
    stores = [store, *(FeatureStore(path, store.keep_sinks) for path in others)]
    for other in stores[1:]:
        if other.manifest["model"]["id"] != store.manifest["model"]["id"]:
            raise UserError(
                f"{other.path}: made with the model {other.model_id}, the ranked store with "
                f"{store.model_id}; features can only be compared within one model"
            )
        if other.leaves_out_sinks != store.leaves_out_sinks:
            raise UserError(
                f"{other.path}: of this store and {store.path} one was made without a look for attention "
                "sinks; make both alike, or add --keep-sinks"
            )
        prints = {sae.name: sae.fingerprint for sae in other.saes}
        for sae in store.saes:
            if prints.get(sae.name) != sae.fingerprint:
                raise UserError(
                    f"{other.path}: SAE {sae.name} is missing or has other weights than in {store.path}; "
                    "make both stores with one configuration"
                )
    return [Trait(name, one) for name, one in zip(distinct_names(stores), stores, strict=True)]


def write_specificity(
    folder: Path,
    features: Sequence[RankedFeature],
    activations: np.ndarray,
    traits: Sequence[Trait],
    settings: RankingSettings,
    on_trait: Callable[[], object] = lambda: None,
) -> None:
    """Write `SPECIFICITY`: each top feature on every other trait.

    Args:
        folder: the results folder.
        features: the top features.
        activations: float32 [n_features, n_sentences], their pooled activations on the own sentences.
        traits: the own one first.
        settings: of the ranking.
        on_trait: called after each other trait.
    """
    own = traits[0].store
    saes = {sae.name: sae for sae in own.saes}
    own_3 = own.held_out & (own.labels == 3)
    own_0 = own.held_out & (own.labels == 0)
    rows: list[list[Any]] = []
    for trait in traits[1:]:
        wanted = [(saes[feature.sae_name], feature.feature_id) for feature in features]
        of_other = _pooled(trait.store, wanted, settings)
        judged, n_left_out = judged_sentences(trait.store, own)
        other_3, other_0 = (judged & (trait.store.labels == label) for label in (3, 0))
        for feature, mine, theirs in zip(features, activations, of_other, strict=True):
            rows.append(
                [
                    feature.rank,
                    feature.sae_name,
                    feature.layer,
                    feature.average_l0,
                    feature.feature_id,
                    trait.name,
                    _auroc(mine[own_3], mine[own_0]),
                    _auroc(theirs[other_3], theirs[other_0]),
                    _auroc(mine[own_3], theirs[other_3]),
                    int(own_3.sum()),
                    int(other_3.sum()),
                    int(other_0.sum()),
                    n_left_out,
                ]
            )
        on_trait()
    rows.sort(key=lambda row: row[0])
    write_csv(folder / SPECIFICITY, SPECIFICITY_COLUMNS, rows)


def best_features(
    first: RankedFeature,
    traits: Sequence[Trait],
    settings: RankingSettings,
    on_trait: Callable[[], object] = lambda: None,
) -> list[BestFeature]:
    """Train rank 1 of every trait: the given one for the first, the others ranked by the same settings.

    A trait on whose train labels the metric does not exist is refused by the ranking.
    """
    own = next(sae for sae in traits[0].store.saes if sae.name == first.sae_name)
    best = [BestFeature(traits[0], own, first.feature_id)]
    alone = replace(settings, top_n=1, n_permutations=0)
    for trait in traits[1:]:
        top = rank_features(trait.store, alone).top
        best.append(BestFeature(trait, trait.store.saes[int(top.sae[0])], int(top.feature_id[0])))
        on_trait()
    return best


def write_matrix(
    folder: Path, best: Sequence[BestFeature], settings: RankingSettings
) -> dict[str, dict[str, float | None]]:
    """Write `MATRIX` and its picture: held-out AUROC, 3 against 0, of every best feature on every trait.

    Returns:
        The same: best feature to trait to AUROC; None where the trait lacks a label on held-out.
    """
    traits = [feature.trait for feature in best]
    matrix: list[list[float | None]] = [[] for _ in best]
    for trait in traits:
        activations = _pooled(trait.store, [(feature.sae, feature.feature_id) for feature in best], settings)
        for row, feature, of_trait in zip(matrix, best, activations, strict=True):
            judged, _ = judged_sentences(trait.store, feature.trait.store)
            labels = trait.store.labels
            row.append(_auroc(of_trait[judged & (labels == 3)], of_trait[judged & (labels == 0)]))
    rows = [[feature.label, *values] for feature, values in zip(best, matrix, strict=True)]
    write_csv(folder / MATRIX, ["best_feature_of", *(trait.name for trait in traits)], rows)
    _draw(folder / MATRIX_PICTURE, best, matrix)
    names = [trait.name for trait in traits]
    return {
        feature.label: dict(zip(names, values, strict=True))
        for feature, values in zip(best, matrix, strict=True)
    }


def judged_sentences(store: FeatureStore, chosen_on: FeatureStore) -> tuple[np.ndarray, int]:
    """Held-out sentences of a store that a feature chosen on another store's train has never seen.

    Returns:
        bool [n_sentences], and how many held-out sentences are left out because their text stands in the
        other store's train split.
    """
    seen = {
        _plain(text)
        for text, held_out in zip(chosen_on.sentences, chosen_on.held_out, strict=True)
        if not held_out
    }
    unseen = np.array([_plain(text) not in seen for text in store.sentences], dtype=bool)
    return store.held_out & unseen, int((store.held_out & ~unseen).sum())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _pooled(
    store: FeatureStore, wanted: Sequence[tuple[StoredSae, int]], settings: RankingSettings
) -> np.ndarray:
    """Pooled activations of features, each SAE read once: float32 [n_features, n_sentences]."""
    by_name = {sae.name: sae for sae in store.saes}
    names = list(dict.fromkeys(sae.name for sae, _ in wanted))
    _ = store.content  # read once, before several threads ask for it
    pooled = np.zeros((len(wanted), len(store.labels)), dtype=np.float32)

    def columns_of(name: str) -> np.ndarray:
        ids = np.array([feature_id for sae, feature_id in wanted if sae.name == name])
        return store.pooled_activations(by_name[name], settings.pooling).columns(ids).T

    for name, columns in zip(names, in_threads(columns_of, names, settings.n_workers), strict=True):
        pooled[[place for place, (sae, _) in enumerate(wanted) if sae.name == name]] = columns
    return pooled


def _auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    scores = np.concatenate([positive, negative])
    return auroc(scores, np.arange(len(scores)) < len(positive)) if len(scores) else None


def _draw(path: Path, best: Sequence[BestFeature], matrix: Sequence[Sequence[float | None]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = np.array([[np.nan if value is None else value for value in row] for row in matrix])
    side = 2.6 + 1.05 * len(best)
    figure, axes = pyplot.subplots(figsize=(side + 1.6, side), layout="constrained")
    image = axes.imshow(values, vmin=0, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(best)), [feature.trait.name for feature in best], rotation=30, ha="right")
    axes.set_yticks(range(len(best)), [feature.label for feature in best])
    axes.set_xlabel("sentences of")
    axes.set_ylabel("best feature of")
    for (row, column), value in np.ndenumerate(values):
        text = "none" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if abs(value - 0.5) > 0.3 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_title("Held-out AUROC, label 3 against label 0", fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
