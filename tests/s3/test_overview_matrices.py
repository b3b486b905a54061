from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from s1_compute_all_features.feature_store import FeatureStore, StoredSae
from s2_find_top_features.ranked_features import read_results
from s3_feature_activation_graphs.feature_traces import DrawnFeature, Traces, ranked_features
from s3_feature_activation_graphs.overview_matrices import (
    best_of_each_sae,
    coactivation_figure,
    layer_map_figure,
    saes_by_layer,
    share_active_with,
)
from tests.shared_l0 import write_shared_store
from tests.synthetic_store import write_synthetic_store


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def nothing_is_cut(figure: Figure) -> bool:
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_tightbbox() for axes in figure.axes]
    return all(
        box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes
    )


def test_the_map_has_the_best_score_of_every_sae(store_folder: Path, results_folder: Path) -> None:
    store = FeatureStore(store_folder)
    ranked = ranked_features(store, read_results(results_folder))
    assert [(f.key, f.score) for f in best_of_each_sae(ranked).values()] == [
        ("1:24:3", 0.9),
        ("0:8:3", 0.8),
        ("1:8:7", pytest.approx(0.6)),
        ("0:24:11", 0.5),
    ]
    figure = layer_map_figure(store, ranked)
    assert nothing_is_cut(figure)
    # Layer by layer, from the lowest l0; the ranking of the fixture has no held-out scores.
    train = ["l0 8\n0.80", "l0 24\n0.50", "l0 8\n0.60", "l0 24\n0.90"]
    assert texts_of(figure) == train + ["l0 8", "l0 24"] * 2


def test_an_sae_without_a_ranked_feature_has_an_empty_cell(store_folder: Path, results_folder: Path) -> None:
    store = FeatureStore(store_folder)
    ranked = ranked_features(store, read_results(results_folder))[:1]
    figure = layer_map_figure(store, ranked)
    assert texts_of(figure)[:4] == ["l0 8", "l0 24", "l0 8", "l0 24\n0.90"]
    assert any("Framed: rank 1, 1:24:3" in text.get_text() for text in figure.texts)


def test_the_map_bears_135_saes_and_one_without_an_l0(tmp_path: Path) -> None:
    store = FeatureStore(write_synthetic_store(tmp_path / "store", n_sentences=8))
    store.saes = [
        StoredSae(f"{layer}_{k}", layer, 500 - 80 * k, 16_384, "", "", "", "", "")
        for layer in range(26)
        for k in range(6 if layer in (2, 4, 13, 14, 23) else 5)
    ]
    assert len(store.saes) == 135
    assert [sae.average_l0 for sae in saes_by_layer(store.saes)[25]] == [180, 260, 340, 420, 500]
    ranked = [DrawnFeature(store.saes[7], 16_383, 1, 0.7, -0.1, True)]
    figure = layer_map_figure(store, ranked)
    assert len(texts_of(figure)) == 2 * 135
    assert nothing_is_cut(figure)
    store.saes = [StoredSae("only", 3, None, 64, "", "", "", "", "")]
    figure = layer_map_figure(store, [DrawnFeature(store.saes[0], 1, 1, 0.5, None, True)])
    assert texts_of(figure) == ["0.50"]
    assert nothing_is_cut(figure)


def test_saes_of_equal_layer_and_l0_are_numbered_and_named(tmp_path: Path) -> None:
    store = FeatureStore(write_shared_store(tmp_path / "store", n_sentences=8))
    ranked = [DrawnFeature(sae, 3, rank, 0.9 - rank / 10, None) for rank, sae in enumerate(store.saes, 1)]
    figure = layer_map_figure(store, ranked)
    assert nothing_is_cut(figure)
    train = ["l0 8\n0.80", "l0 72 (1)\n0.70", "l0 72 (2)\n0.60", "(1)\n0.50", "(2)\n0.40"]
    assert texts_of(figure)[:5] == train
    (told,) = (text.get_text() for text in figure.texts if "SAEs by number" in text.get_text())
    assert told.replace("\n", " ") == (
        "SAEs by number: layer 0: (1) layer_0_width_32_l0_72, (2) layer_0_width_64_l0_72; "
        "layer 1: (1) layer_1-a, (2) layer_1-b"
    )


def test_long_names_find_room_beside_the_other_matrix(tmp_path: Path) -> None:
    store = FeatureStore(write_shared_store(tmp_path / "store", n_sentences=8))
    features = [DrawnFeature(sae, 3, needs_name=store.needs_name(sae)) for sae in store.saes]
    traces = Traces(store, features, np.ones((int(store.starts[-1]), len(features)), np.float32))
    figure = coactivation_figure(traces, [0, 1, 2, 3])
    assert nothing_is_cut(figure)
    assert "layer_0_width_64_l0_72:3" in [text.get_text() for text in figure.axes[0].get_xticklabels()]


def test_shares_agree_with_a_loop_and_a_silent_feature_has_none() -> None:
    active = np.random.default_rng(0).random((50, 4)) < 0.3
    active[:, 3] = False
    shares = share_active_with(active)
    for row in range(3):
        for column in range(4):
            both = sum(bool(a[row] and a[column]) for a in active)
            assert shares[row, column] == pytest.approx(both / active[:, row].sum())
    assert np.isnan(shares[3]).all()
    assert shares[4] == pytest.approx(active.mean(axis=0))


def test_independent_features_show_the_last_row() -> None:
    active = np.random.default_rng(1).random((20_000, 2)) < (0.2, 0.6)
    shares = share_active_with(active)
    assert shares[0, 1] == pytest.approx(shares[2, 1], abs=0.03)  # about 4 standard errors of 4,000 draws


def test_co_activation_counts_tokens_and_sentences_of_the_labels(traces: Traces) -> None:
    figure = coactivation_figure(traces, [0, 3])
    wanted = np.isin(traces.store.labels, [0, 3])
    n_tokens = int(traces.store.n_tokens[wanted].sum())
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes[:2]]
    assert rows[0][-1] == f"any  {n_tokens:,}"
    assert rows[1][-1] == "20"
    assert rows[1][0] == str(int((traces.peaks[wanted, 0] > 0).sum()))
    assert rows[0][0].startswith("1:24:3  ")
    both = (traces.peaks[wanted, 0] > 0) & (traces.peaks[wanted, 1] > 0)
    expected = both.sum() / (traces.peaks[wanted, 0] > 0).sum()
    assert figure.axes[1].texts[0].get_text() == f"{expected:.2f}"


@pytest.mark.parametrize("n_features", [2, 5, 30])
def test_co_activation_of_few_and_many_features_is_not_cut(traces: Traces, n_features: int) -> None:
    sae = StoredSae("", 25, 340, 16_384, "blocks.25.hook_resid_post", "", "", "", "")
    features = [DrawnFeature(sae, 16_300 + i, i + 1, 0.5, 0.5, True) for i in range(n_features)]
    repeated = Traces(
        traces.store, features, np.resize(traces.activations, (len(traces.activations), n_features))
    )
    assert nothing_is_cut(coactivation_figure(repeated, [0, 1, 2, 3]))
