"""Every kernel against SciPy, scikit-learn or NumPy on the dense copy."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from s2_find_top_features import feature_metrics, sparse_columns
from s2_find_top_features.feature_metrics import LabelledColumns
from s2_find_top_features.sparse_columns import SparseColumns
from tests.synthetic_store import to_sparse

RELATIVE = 1e-9  # the kernels work in float64 on the same values as the oracles
ABSENT = [None, 0, 1, 2, 3]


def random_case(seed: int = 0, n: int = 60, n_features: int = 40, density: float = 0.3, absent=None):
    """Sparse activations with ties, an all-zero, an all-active and a constant column; labels 0-3."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, size=(n, n_features)) * (rng.random((n, n_features)) < density)
    dense = dense.astype(np.float32)
    dense[:, 0] = 0
    dense[:, 1] = rng.exponential(size=n) + 0.1
    dense[:, 2] = 1.5
    dense[:, 3] = 0
    dense[7, 3] = 2.0
    labels = rng.integers(0, 4, size=n)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % 4
    return dense, labels


def columns_of(dense: np.ndarray, keep: np.ndarray | None = None) -> SparseColumns:
    sparse = to_sparse(dense)
    return SparseColumns.from_csr(sparse.data, sparse.indices, sparse.indptr, sparse.shape, keep)


def labelled(dense: np.ndarray, labels: np.ndarray) -> LabelledColumns:
    return LabelledColumns(columns_of(dense), labels)


def per_feature(dense: np.ndarray, oracle) -> np.ndarray:
    return np.array([oracle(dense[:, feature].astype(np.float64)) for feature in range(dense.shape[1])])


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_correlations_equal_scipy(density, absent):
    dense, labels = random_case(density=density, absent=absent)
    data = labelled(dense, labels)
    for kernel, oracle in (
        (feature_metrics.pearson, stats.pearsonr),
        (feature_metrics.spearman, stats.spearmanr),
    ):
        expected = per_feature(dense, lambda x, oracle=oracle: oracle(x, labels).statistic)
        np.testing.assert_allclose(kernel(data), expected, rtol=RELATIVE, atol=1e-14)


def test_constant_features_and_constant_labels_have_no_correlation():
    dense, labels = random_case()
    for kernel in (feature_metrics.pearson, feature_metrics.spearman):
        assert np.isnan(kernel(labelled(dense, labels))[[0, 2]]).all()
        assert not np.isnan(kernel(labelled(dense, labels))[[1, 3]]).any()
        assert np.isnan(kernel(labelled(dense, np.full(len(labels), 3)))).all()


def test_zeros_share_a_mid_rank():
    """Without mid-ranks the order of the tied zeros in the file would decide the correlation."""
    dense = np.zeros((6, 1), dtype=np.float32)
    dense[5, 0] = 1.0
    labels = np.array([3, 2, 1, 0, 0, 3])
    first = feature_metrics.spearman(labelled(dense, labels))
    second = feature_metrics.spearman(labelled(dense, np.array([0, 3, 2, 1, 0, 3])))
    assert first == pytest.approx(second)
    assert first[0] == pytest.approx(stats.spearmanr(dense[:, 0], labels).statistic)


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_auroc_equals_scikit_learn(density, absent):
    dense, labels = random_case(density=density, absent=absent)
    data = labelled(dense, labels)
    ends = (labels == 0) | (labels == 3)
    if absent == 3:
        assert np.isnan(feature_metrics.auroc_3_vs_rest(data)).all()
        assert np.isnan(feature_metrics.auroc_3_vs_0(data)).all()
        return
    expected = per_feature(dense, lambda x: roc_auc_score(labels == 3, x))
    np.testing.assert_allclose(feature_metrics.auroc_3_vs_rest(data), expected, rtol=RELATIVE)
    if absent == 0:
        assert np.isnan(feature_metrics.auroc_3_vs_0(data)).all()
        return
    expected = per_feature(dense, lambda x: roc_auc_score(labels[ends] == 3, x[ends]))
    np.testing.assert_allclose(feature_metrics.auroc_3_vs_0(data), expected, rtol=RELATIVE)


@pytest.mark.parametrize("absent", ABSENT)
def test_trend_equals_a_count_of_pairs(absent):
    dense, labels = random_case(n=25, absent=absent)

    def count(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if labels[i] < labels[j]]
        return np.mean([1.0 if x[i] < x[j] else 0.5 if x[i] == x[j] else 0.0 for i, j in pairs])

    np.testing.assert_allclose(
        feature_metrics.trend(labelled(dense, labels)), per_feature(dense, count), rtol=RELATIVE
    )


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 1.0])
def test_quantile_equals_numpy(q):
    dense, _ = random_case()
    expected = np.quantile(dense.astype(np.float64), q, axis=0)
    np.testing.assert_allclose(feature_metrics.quantile(columns_of(dense), q), expected, rtol=RELATIVE)


def test_all_metrics_equal_dense_formulas():
    dense, labels = random_case(seed=3)
    nothing = np.zeros(dense.shape[1])
    metrics = feature_metrics.metrics_of_split(labelled(dense, labels), nothing, nothing)
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


def test_a_feature_that_hardly_varies_keeps_its_variance():
    """Sum of squares minus n times the squared mean would lose every digit here."""
    dense, labels = random_case()
    dense[:, 4] = 4096 + np.random.default_rng(0).integers(0, 3, size=len(dense)) / 1024
    expected = stats.pearsonr(dense[:, 4].astype(np.float64), labels).statistic
    assert feature_metrics.pearson(labelled(dense, labels))[4] == pytest.approx(expected, rel=RELATIVE)


def test_an_absent_label_leaves_its_metrics_empty():
    dense, labels = random_case(absent=2)
    nothing = np.zeros(dense.shape[1])
    metrics = feature_metrics.metrics_of_split(labelled(dense, labels), nothing, nothing)
    assert np.isnan(metrics["mean_2"]).all()
    assert np.isnan(metrics["monotonicity"]).all()
    assert not np.isnan(metrics["auroc_3_vs_0"]).any()
    assert not np.isnan(metrics["trend"]).any()


def test_no_sentences_have_no_metrics():
    dense, labels = random_case()
    none = np.zeros(len(labels), dtype=bool)
    data = LabelledColumns(columns_of(dense, none), labels[none])
    metrics = feature_metrics.metrics_of_split(data, *feature_metrics.rates(data, np.zeros(dense.shape[1])))
    assert all(np.isnan(values).all() for values in metrics.values())


def test_rates_equal_a_loop_over_folds():
    dense, labels = random_case(n=80)
    fold = np.random.default_rng(1).integers(0, 4, size=len(labels))
    tpr, fpr = feature_metrics.crossfitted_rates(labelled(dense, labels), fold)
    fired = np.zeros(dense.shape, dtype=bool)
    for k in range(4):
        fitting = (fold != k) & (labels == 0)
        threshold = np.quantile(dense[fitting].astype(np.float64), 0.95, axis=0)
        fired[fold == k] = dense[fold == k] > threshold
    np.testing.assert_allclose(tpr, fired[labels == 3].mean(axis=0), rtol=RELATIVE)
    np.testing.assert_allclose(fpr, fired[labels == 0].mean(axis=0), rtol=RELATIVE)


def test_the_crossfitted_fpr_is_not_five_percent_by_construction():
    """Continuous noise: at its own 95th percentile the FPR would be 5% for every feature alike."""
    rng = np.random.default_rng(0)
    dense = rng.exponential(size=(100, 200)).astype(np.float32)
    data = labelled(dense, np.zeros(100, dtype=int))
    _, crossfitted = feature_metrics.crossfitted_rates(data, np.arange(100) % 5)
    _, in_sample = feature_metrics.rates(data, feature_metrics.firing_threshold(data))
    assert np.unique(in_sample).tolist() == [0.05]
    assert len(np.unique(crossfitted)) > 3
    assert crossfitted.mean() > 0.05


def all_metrics(data: LabelledColumns, fold: np.ndarray) -> np.ndarray:
    metrics = feature_metrics.metrics_of_split(data, *feature_metrics.crossfitted_rates(data, fold))
    return np.stack(list(metrics.values()))


def test_subsets_resamples_and_selections_equal_the_dense_ones():
    dense, labels = random_case()
    fold = np.arange(len(labels)) % 3
    keep = np.arange(len(labels)) % 4 != 0
    times = np.random.default_rng(0).integers(0, 3, size=len(labels))
    rows = np.repeat(np.arange(len(labels)), times)
    wanted = np.arange(dense.shape[1]) % 2 == 0
    columns = columns_of(dense)
    for part, taken, chosen in (
        (columns.subset(keep), np.flatnonzero(keep), slice(None)),
        (columns_of(dense, keep), np.flatnonzero(keep), slice(None)),
        (columns.resample(times), rows, slice(None)),
        (columns.select(wanted), np.arange(len(labels)), wanted),
        (SparseColumns.from_dense(dense.T), np.arange(len(labels)), slice(None)),
    ):
        np.testing.assert_allclose(
            all_metrics(LabelledColumns(part, labels[taken]), fold[taken]),
            all_metrics(labelled(dense[taken][:, chosen], labels[taken]), fold[taken]),
            rtol=RELATIVE,
            atol=1e-14,
        )


def test_the_slow_order_is_the_packed_one(monkeypatch):
    dense, _ = random_case(density=0.6)
    packed = columns_of(dense)
    monkeypatch.setattr(sparse_columns, "_WORD_BITS", 0)
    slow = columns_of(dense)
    for name in ("feature", "value", "row"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(slow, name))
        assert getattr(packed, name).dtype == getattr(slow, name).dtype


def test_chunks_of_features_equal_the_whole():
    dense, labels = random_case(n_features=50)
    fold = np.arange(len(labels)) % 5
    whole = all_metrics(labelled(dense, labels), fold)
    chunks = [all_metrics(labelled(dense[:, first : first + 7], labels), fold) for first in range(0, 50, 7)]
    np.testing.assert_array_equal(whole, np.concatenate(chunks, axis=1))
