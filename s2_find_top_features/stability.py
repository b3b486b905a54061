"""How often a feature is among the best N of all features when train is drawn again."""

import numpy as np

from concept_evaluation.bootstrap import group_resamples
from s2_find_top_features.bootstrap_bounds import Bootstraps, Outlook, outlook
from s2_find_top_features.candidates import Candidates
from s2_find_top_features.feature_metrics import LabelledColumns
from s2_find_top_features.scoring import RankingSettings, Split, score_features
from s2_find_top_features.sparse_columns import SparseColumns
from s2_find_top_features.threads import in_threads

N_BOOTSTRAPS = 100

_VALUES_WAITING = 2**19
"""Stored values of contenders that wait to be scored: enough that 100 small calculations pay off."""

_VALUES_AT_ONCE = 2**18
"""Stored values of contenders that are scored at a time, however many sentences there are."""


class BootstrapTops:
    """The best N of all features in every bootstrap of train, while the SAEs go by.

    Groups are drawn whole. A feature is scored in a bootstrap, with the ranking's own kernels and filters,
    unless a bound shows that it comes after the N best of the features seen before. So the outcome is that
    of ranking every feature in every bootstrap.
    """

    def __init__(self, split: Split, settings: RankingSettings) -> None:
        """Draw the bootstraps.

        Args:
            split: the store's sentences by side.
            settings: of the ranking: metric, thresholds, N and seed.
        """
        n = len(split.labels)
        draws = group_resamples(split.groups, N_BOOTSTRAPS, settings.seed)
        times = np.stack([np.bincount(rows, minlength=n) for rows in draws], axis=1)
        self._bootstraps = Bootstraps(times.astype(np.float64), split.labels, split.fold)
        self._settings = settings
        nobody = np.empty(0, dtype=np.int64)
        # Of each bootstrap, best first: order [n, 2] as in `Candidates`, SAE and feature_id [n].
        self._tops = [(np.empty((0, 2)), nobody, nobody)] * N_BOOTSTRAPS
        self._waiting: list[tuple[int, np.ndarray, SparseColumns, np.ndarray]] = []

    def outlook(self, columns: SparseColumns) -> Outlook:
        """What an SAE's features may reach; safe to call from several threads.

        Args:
            columns: the SAE's activations on the train sentences.
        """
        data = LabelledColumns(columns, self._bootstraps.labels)
        return outlook(data, self._bootstraps, self._settings.rank_by, self._settings.thresholds)

    def add(self, sae: int, first: int, columns: SparseColumns, outlook: Outlook) -> None:
        """Let features of an SAE contend. SAEs come in store order, the features of each in theirs.

        Args:
            sae: position of the SAE in the store.
            first: feature_id of the first of them.
            columns: their activations on the train sentences.
            outlook: what `outlook` says of them.
        """
        contending = outlook.score < np.inf
        is_first = not any(len(order) for order, _, _ in self._tops)
        if is_first:  # the most hopeful come first and set the mark for the others
            n_best = 2 * self._settings.top_n
            hopeful = np.lexsort((outlook.score, ~outlook.may_pass), axis=0)[:n_best]
            chosen = np.zeros_like(contending)
            np.put_along_axis(chosen, hopeful, True, axis=0)
            self._wait(sae, first, columns, chosen & contending)
            self._score_waiting()
            contending &= ~chosen
        passes, score = self._mark()
        # Equal scores keep the store's order, so a later feature that only draws level stays out.
        behind = outlook.score > score if is_first else outlook.score >= score
        contending &= np.where(outlook.may_pass, passes & behind, passes | behind) == 0
        self._wait(sae, first, columns, contending)
        if sum(len(waiting.value) for _, _, waiting, _ in self._waiting) > _VALUES_WAITING:
            self._score_waiting()

    def share(self, chosen: Candidates) -> np.ndarray:
        """Share of the bootstraps in which each feature is among the best N: float64 [n]."""
        self._score_waiting()
        members = [set(zip(sae.tolist(), ids.tolist(), strict=True)) for _, sae, ids in self._tops]
        features = zip(chosen.sae.tolist(), chosen.feature_id.tolist(), strict=True)
        return np.array([np.mean([feature in of for of in members]) for feature in features])

    def _mark(self) -> tuple[np.ndarray, np.ndarray]:
        """What the last of the N best has, per bootstrap: whether it passes, and its score.

        Where there are fewer than N, a mark that everything beats.
        """
        n_best = self._settings.top_n
        last = [order[-1] if len(order) == n_best else (np.inf, np.inf) for order, _, _ in self._tops]
        marks = np.array(last)
        return marks[:, 0] == 0, marks[:, 1]

    def _wait(self, sae: int, first: int, columns: SparseColumns, contending: np.ndarray) -> None:
        chosen = np.asarray(contending.any(axis=1))
        if chosen.any():
            feature_ids = first + np.flatnonzero(chosen)
            self._waiting.append((sae, feature_ids, columns.select(chosen), contending[chosen]))

    def _score_waiting(self) -> None:
        if not self._waiting:
            return
        saes, ids, parts, contending = zip(*self._waiting, strict=True)
        self._waiting = []
        sae, feature_id = np.repeat(saes, [len(part) for part in ids]), np.concatenate(ids)
        columns, contends = SparseColumns.joined(parts), np.concatenate(contending)
        for first, end in columns.runs(_VALUES_AT_ONCE):
            run = slice(first, end)
            self._score(sae[run], feature_id[run], columns.between(first, end), contends[run])

    def _score(
        self, sae: np.ndarray, feature_id: np.ndarray, columns: SparseColumns, contends: np.ndarray
    ) -> None:
        bootstraps, settings = self._bootstraps, self._settings

        def top_of(bootstrap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            standing = self._tops[bootstrap]
            chosen = contends[:, bootstrap]
            if not chosen.any():
                return standing
            times = bootstraps.times[:, bootstrap].astype(np.int64)
            data = LabelledColumns(
                columns.select(chosen).resample(times), np.repeat(bootstraps.labels, times)
            )
            fold = np.repeat(bootstraps.fold, times)
            scored = score_features(data, fold, settings.rank_by, settings.thresholds).order
            order = np.concatenate([standing[0], scored])
            of_sae = np.concatenate([standing[1], sae[chosen]])
            ids = np.concatenate([standing[2], feature_id[chosen]])
            best = np.lexsort((ids, of_sae, order[:, 1], order[:, 0]))[: settings.top_n]
            best = best[np.isfinite(order[best, 1])]
            return order[best], of_sae[best], ids[best]

        self._tops = list(in_threads(top_of, range(N_BOOTSTRAPS), settings.n_workers))
