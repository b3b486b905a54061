"""Every kernel against SciPy, scikit-learn or NumPy on the dense copy."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from s2_find_top_features import feature_metrics
from s2_find_top_features.feature_metrics import SparseColumns
from tests.synthetic_store import to_sparse

RELATIVE = 1e-9  # the kernels work in float64 on the same values as the oracles


def random_case(seed: int = 0, n: int = 60, n_features: int = 40, density: float = 0.3):
    """Sparse activations with ties, an all-zero, an all-active and a constant column; labels 0-3."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, size=(n, n_features)) * (rng.random((n, n_features)) < density)
    dense = dense.astype(np.float32)
    dense[:, 0] = 0
    dense[:, 1] = rng.exponential(size=n) + 0.1
    dense[:, 2] = 1.5
    dense[:, 3] = 0
    dense[7, 3] = 2.0
    return dense, rng.integers(0, 4, size=n)


def columns_of(dense: np.ndarray) -> SparseColumns:
    sparse = to_sparse(dense)
    return SparseColumns.from_csr(sparse.data, sparse.indices, sparse.indptr, sparse.shape)


def per_feature(dense: np.ndarray, oracle) -> np.ndarray:
    return np.array([oracle(dense[:, feature].astype(np.float64)) for feature in range(dense.shape[1])])


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_correlations_equal_scipy(density):
    dense, labels = random_case(density=density)
    columns = columns_of(dense)
    expected = per_feature(dense, lambda x: stats.pearsonr(x, labels).statistic)
    np.testing.assert_allclose(feature_metrics.pearson(columns, labels), expected, rtol=RELATIVE, atol=1e-14)
    expected = per_feature(dense, lambda x: stats.spearmanr(x, labels).statistic)
    np.testing.assert_allclose(feature_metrics.spearman(columns, labels), expected, rtol=RELATIVE, atol=1e-14)


def test_constant_features_have_no_correlation():
    dense, labels = random_case()
    columns = columns_of(dense)
    for kernel in (feature_metrics.pearson, feature_metrics.spearman):
        assert np.isnan(kernel(columns, labels)[[0, 2]]).all()
        assert not np.isnan(kernel(columns, labels)[[1, 3]]).any()


def test_zeros_share_a_mid_rank():
    """Without mid-ranks the order of the tied zeros in the file would decide the correlation."""
    dense = np.zeros((6, 1), dtype=np.float32)
    dense[5, 0] = 1.0
    labels = np.array([3, 2, 1, 0, 0, 3])
    shuffled = np.array([0, 3, 2, 1, 0, 3])
    first = feature_metrics.spearman(columns_of(dense), labels)
    second = feature_metrics.spearman(columns_of(dense), shuffled)
    assert first == pytest.approx(second)
    assert first[0] == pytest.approx(stats.spearmanr(dense[:, 0], labels).statistic)


@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_auroc_equals_scikit_learn(density):
    dense, labels = random_case(density=density)
    expected = per_feature(dense, lambda x: roc_auc_score(labels == 3, x))
    np.testing.assert_allclose(feature_metrics.auroc(columns_of(dense), labels == 3), expected, rtol=RELATIVE)


def test_auroc_without_one_class_does_not_exist():
    dense, _ = random_case()
    assert np.isnan(feature_metrics.auroc(columns_of(dense), np.zeros(len(dense), dtype=bool))).all()


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 1.0])
def test_quantile_equals_numpy(q):
    dense, _ = random_case()
    expected = np.quantile(dense.astype(np.float64), q, axis=0)
    np.testing.assert_allclose(feature_metrics.quantile(columns_of(dense), q), expected, rtol=RELATIVE)


def test_trend_equals_a_count_of_pairs():
    dense, labels = random_case(n=25)

    def count(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if labels[i] < labels[j]]
        return np.mean([1.0 if x[i] < x[j] else 0.5 if x[i] == x[j] else 0.0 for i, j in pairs])

    np.testing.assert_allclose(
        feature_metrics.trend(columns_of(dense), labels), per_feature(dense, count), rtol=RELATIVE
    )


def test_all_metrics_equal_dense_formulas():
    dense, labels = random_case(seed=3)
    nothing = np.zeros(dense.shape[1])
    metrics = feature_metrics.metrics_of_split(columns_of(dense), labels, nothing, nothing)
    x = dense.astype(np.float64)
    means = np.stack([x[labels == label].mean(axis=0) for label in range(4)])
    for label in range(4):
        np.testing.assert_allclose(metrics[f"mean_{label}"], means[label], rtol=RELATIVE)
    with np.errstate(invalid="ignore", divide="ignore"):
        separation = (means[3] - means[0]) / x.std(axis=0)
    separation[x.std(axis=0) == 0] = np.nan
    np.testing.assert_allclose(metrics["separation"], separation, rtol=RELATIVE, atol=1e-14)
    np.testing.assert_array_equal(metrics["monotonicity"], (np.diff(means, axis=0) >= 0).all(axis=0))
    np.testing.assert_allclose(metrics["density"], (x > 0).mean(axis=0), rtol=RELATIVE)
    np.testing.assert_allclose(
        metrics["interpretability_score"],
        0.4 * metrics["pearson"] + 0.3 * separation,
        rtol=RELATIVE,
        atol=1e-14,
    )


def test_an_absent_label_leaves_its_metrics_empty():
    dense, labels = random_case()
    labels[labels == 2] = 1
    nothing = np.zeros(dense.shape[1])
    metrics = feature_metrics.metrics_of_split(columns_of(dense), labels, nothing, nothing)
    assert np.isnan(metrics["mean_2"]).all()
    assert np.isnan(metrics["monotonicity"]).all()
    assert not np.isnan(metrics["auroc_3_vs_0"]).any()
    assert not np.isnan(metrics["trend"]).any()


def test_rates_equal_a_loop_over_folds():
    dense, labels = random_case(n=80)
    rng = np.random.default_rng(1)
    fold = rng.integers(0, 4, size=len(labels))
    folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(4)]
    tpr, fpr = feature_metrics.crossfitted_rates(columns_of(dense), labels, folds)
    fired = np.zeros(dense.shape, dtype=bool)
    for fitting, judged in folds:
        threshold = np.quantile(dense[fitting][labels[fitting] == 0].astype(np.float64), 0.95, axis=0)
        fired[judged] = dense[judged] > threshold
    np.testing.assert_allclose(tpr, fired[labels == 3].mean(axis=0), rtol=RELATIVE)
    np.testing.assert_allclose(fpr, fired[labels == 0].mean(axis=0), rtol=RELATIVE)


def test_the_crossfitted_fpr_is_not_five_percent_by_construction():
    """Continuous noise: at its own 95th percentile the FPR would be 5% for every feature alike."""
    rng = np.random.default_rng(0)
    dense = rng.exponential(size=(100, 200)).astype(np.float32)
    labels = np.zeros(100, dtype=int)
    folds = [(np.arange(100) % 5 != k, np.arange(100) % 5 == k) for k in range(5)]
    columns = columns_of(dense)
    _, crossfitted = feature_metrics.crossfitted_rates(
        columns, labels, [(np.flatnonzero(a), np.flatnonzero(b)) for a, b in folds]
    )
    _, in_sample = feature_metrics.rates(columns, labels, feature_metrics.quantile(columns, 0.95))
    assert np.unique(in_sample).tolist() == [0.05]
    assert len(np.unique(crossfitted)) > 3
    assert crossfitted.mean() > 0.05


def test_a_subset_equals_the_metrics_of_those_rows():
    dense, labels = random_case()
    keep = np.arange(len(labels)) % 3 != 0
    part = columns_of(dense).subset(keep)
    np.testing.assert_allclose(
        feature_metrics.spearman(part, labels[keep]),
        feature_metrics.spearman(columns_of(dense[keep]), labels[keep]),
        rtol=RELATIVE,
    )
