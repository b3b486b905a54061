"""The best features so far, with what later steps need of them, so that no SAE is read twice."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Features on their way to a ranking, best first.

    Attributes:
        order: float64 [n, 2], smaller is better, the first column counts most.
        sae: int64 [n], position of the SAE in the store; breaks ties.
        feature_id: int64 [n]; breaks the remaining ties.
        passes: bool [n], reached the thresholds on train.
        train: metrics on train, name to float64 [n], NaN where one does not exist.
        statistic: float64 [n], |Spearman| as the null has it; NaN where not tested.
        activations: float32 [n, n_sentences], pooled, of all sentences.
    """

    order: np.ndarray
    sae: np.ndarray
    feature_id: np.ndarray
    passes: np.ndarray
    train: dict[str, np.ndarray]
    statistic: np.ndarray
    activations: np.ndarray

    def __len__(self) -> int:
        return len(self.sae)

    def take(self, places: np.ndarray) -> "Candidates":
        """Those at the given places, int [n_taken], in that order."""
        return Candidates(
            self.order[places],
            self.sae[places],
            self.feature_id[places],
            self.passes[places],
            {name: values[places] for name, values in self.train.items()},
            self.statistic[places],
            self.activations[places],
        )

    def followed_by(self, other: "Candidates") -> "Candidates":
        """These and then the others, as they are."""
        return Candidates(
            np.concatenate([self.order, other.order]),
            np.concatenate([self.sae, other.sae]),
            np.concatenate([self.feature_id, other.feature_id]),
            np.concatenate([self.passes, other.passes]),
            {name: np.concatenate([values, other.train[name]]) for name, values in self.train.items()},
            np.concatenate([self.statistic, other.statistic]),
            np.concatenate([self.activations, other.activations]),
        )

    def merged(self, other: "Candidates", n_kept: int) -> "Candidates":
        """The best of both, best first."""
        both = self.followed_by(other)
        best = np.lexsort((both.feature_id, both.sae, both.order[:, 1], both.order[:, 0]))
        return both.take(best[:n_kept])
