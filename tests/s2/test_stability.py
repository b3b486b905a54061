"""Stability against ranking every feature in every bootstrap, and the bounds that spare most of that."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from concept_evaluation.bootstrap import group_resamples
from concept_evaluation.splits import group_folds
from s2_find_top_features import bootstrap_bounds, stability
from s2_find_top_features.bootstrap_bounds import Bootstraps, outlook
from s2_find_top_features.feature_metrics import LabelledColumns
from s2_find_top_features.ranked_features import METRICS
from s2_find_top_features.scoring import Split, Thresholds, score_features
from s2_find_top_features.sparse_columns import SparseColumns
from s2_find_top_features.stability import BootstrapTops
from tests.s2.planted_store import noise, plant
from tests.s2.test_ranking import SETTINGS

N_FEATURES = 60
N_SAES = 3
N_BOOTSTRAPS = 8
STRICT, OPEN = Thresholds(0.1, 0.2, 0.2), Thresholds(-1, 0, 1)
LABEL_SETS = {"all": (0, 1, 2, 3), "ends": (0, 3), "no 0": (1, 2, 3), "rare 3": (0,) * 25 + (1, 3)}


def features_of(seed: int, labels: np.ndarray) -> np.ndarray:
    """Noise of any density, planted features, and every kind that could upset a bound."""
    rng = np.random.default_rng(seed)
    n = len(labels)
    dense = np.concatenate(
        [noise(rng, n, N_FEATURES // 4, density) for density in (0.03, 0.2, 0.7, 1)], axis=1
    )
    dense[:, :4] = np.stack([plant(rng, labels, 0.4, density) for density in (0.1, 0.4, 0.8, 1)], axis=1)
    dense[:, 4] = 0
    dense[:, 5] = 1.5
    dense[:, 6] = labels > 1  # ties on either side
    dense[:, 7] = 4096 + rng.integers(0, 3, size=n) / 1024  # sums of squares lose its variance
    dense[:, 8] = np.where(rng.random(n) < 0.5, 2.0, 0.0)
    dense[3, 9], dense[4:, 9] = 1.0, 0
    dense[:, 10] = dense[:, 1]
    dense[:, 11] = plant(rng, 3 - labels, 0.4, 1.0)
    return dense.astype(np.float32)


def case(name: str = "all", n: int = 80, seed: int = 0) -> tuple[Split, list[SparseColumns]]:
    """A train split with pairs of near-duplicates, and the train columns of three SAEs."""
    labels = np.resize(LABEL_SETS[name], n)
    groups = np.arange(n)
    groups[1::8] = groups[::8]
    fold = np.zeros(n, dtype=np.int64)
    for k, (_, judged) in enumerate(group_folds(labels, groups, 5, 0)):
        fold[judged] = k
    nothing = np.empty(0, dtype=np.int64)
    split = Split(np.ones(n, dtype=bool), labels, groups, fold, nothing, nothing)
    dense = [features_of(seed + k, labels) for k in range(N_SAES)]
    return split, [SparseColumns.from_dense(np.ascontiguousarray(one.T)) for one in dense]


def draws_of(split: Split) -> np.ndarray:
    n = len(split.labels)
    drawn = group_resamples(split.groups, N_BOOTSTRAPS, SETTINGS.seed)
    return np.stack([np.bincount(rows, minlength=n) for rows in drawn], axis=1)


def scored(columns: SparseColumns, split: Split, times: np.ndarray, rank_by: str, thresholds: Thresholds):
    """Order of all features in one bootstrap, every sentence as often as it was drawn."""
    data = LabelledColumns(columns.resample(times), np.repeat(split.labels, times))
    return score_features(data, np.repeat(split.fold, times), rank_by, thresholds)


@pytest.fixture(autouse=True)
def _fewer_bootstraps(monkeypatch):
    monkeypatch.setattr(stability, "N_BOOTSTRAPS", N_BOOTSTRAPS)


def shares(split: Split, saes: list[SparseColumns], settings) -> np.ndarray:
    tops = BootstrapTops(split, settings)
    for position, columns in enumerate(saes):
        tops.add(position, 0, columns, tops.outlook(columns))
    sae, feature_id = np.divmod(np.arange(N_SAES * N_FEATURES), N_FEATURES)
    return tops.share(SimpleNamespace(sae=sae, feature_id=feature_id))


@pytest.mark.parametrize("labels", LABEL_SETS)
@pytest.mark.parametrize("rank_by", METRICS)
def test_stability_is_that_of_ranking_every_feature_in_every_bootstrap(rank_by, labels, monkeypatch):
    split, saes = case(labels)
    monkeypatch.setattr(stability, "_VALUES_WAITING", 2000)  # several rounds
    monkeypatch.setattr(stability, "_VALUES_AT_ONCE", 500)  # of several portions
    whole = SparseColumns.joined(saes)
    for thresholds in (STRICT, OPEN):
        settings = replace(SETTINGS, rank_by=rank_by, thresholds=thresholds, top_n=5)
        counts = np.zeros(whole.n_features)
        for times in draws_of(split).T:
            order = scored(whole, split, times, rank_by, thresholds).order
            best = np.lexsort((order[:, 1], order[:, 0]))[: settings.top_n]
            counts[best[np.isfinite(order[best, 1])]] += 1
        np.testing.assert_array_equal(shares(split, saes, settings), counts / N_BOOTSTRAPS)


@pytest.mark.parametrize("labels", LABEL_SETS)
@pytest.mark.parametrize("rank_by", METRICS)
def test_no_feature_does_better_than_its_outlook(rank_by, labels, monkeypatch):
    monkeypatch.setattr(bootstrap_bounds, "_FEATURES_AT_ONCE", 25)
    for seed in range(2):
        split, saes = case(labels, n=60 + 40 * seed, seed=10 * seed)
        draws = draws_of(split)
        bootstraps = Bootstraps(draws.astype(np.float64), split.labels, split.fold)
        bounds = outlook(LabelledColumns(saes[0], split.labels), bootstraps, rank_by, STRICT)
        for bootstrap, times in enumerate(draws.T):
            exact = scored(saes[0], split, times, rank_by, STRICT)
            assert (bounds.may_pass[:, bootstrap] >= exact.passing).all()
            rankable = np.isfinite(exact.order[:, 1])
            assert (bounds.score[rankable, bootstrap] <= exact.order[rankable, 1]).all()


@pytest.mark.parametrize("rank_by", ["interpretability_score", "spearman", "auroc_3_vs_0", "fpr"])
def test_the_bounds_spare_nearly_all_features(rank_by, monkeypatch):
    """Sparse noise, three SAEs: a bound that lets everything through would be right and useless."""
    rng = np.random.default_rng(0)
    split, _ = case(n=400)
    saes = [SparseColumns.from_dense(noise(rng, 1000, 400, 0.06)) for _ in range(3)]
    n_scored = []
    right = stability.score_features

    def counting(data, *arguments):
        n_scored.append(data.columns.n_features)
        return right(data, *arguments)

    monkeypatch.setattr(stability, "score_features", counting)
    monkeypatch.setattr(stability, "_VALUES_WAITING", 2000)
    monkeypatch.setattr(stability, "_VALUES_AT_ONCE", 500)
    shares(split, saes, replace(SETTINGS, rank_by=rank_by, top_n=5))
    limit = 0.4 if rank_by == "fpr" else 0.05  # an FPR of 0 is common: the first SAE is scored whole
    assert 0 < sum(n_scored) < limit * 3000 * N_BOOTSTRAPS


def test_dense_features_are_bounded_by_the_depth_of_the_threshold():
    """Without it the bound of a feature that is always active would be a TPR of 1."""
    rng = np.random.default_rng(0)
    split, _ = case(n=400)
    columns = SparseColumns.from_dense(noise(rng, 200, 400, 1.0))
    bootstraps = Bootstraps(draws_of(split).astype(np.float64), split.labels, split.fold)
    bounds = outlook(LabelledColumns(columns, split.labels), bootstraps, "tpr", OPEN)
    assert (bounds.score > -0.5).mean() > 0.98


def test_stability_knows_noise_from_a_planted_feature():
    rng = np.random.default_rng(0)
    split, _ = case(n=240)
    dense = noise(rng, 240, 2000)
    dense[:, 77] = plant(rng, split.labels, 2.0, 1.0)
    columns = SparseColumns.from_dense(np.ascontiguousarray(dense.T))
    tops = BootstrapTops(split, replace(SETTINGS, top_n=3))
    tops.add(0, 0, columns, tops.outlook(columns))
    share = tops.share(SimpleNamespace(sae=np.zeros(2000, dtype=int), feature_id=np.arange(2000)))
    assert share[77] == 1.0
    assert share.sum() == pytest.approx(3)
    assert np.sort(share)[-2] < 0.7
