from pathlib import Path

import numpy as np
import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import METRICS, RankedFeature, read_results, write_results
from s3_feature_activation_graphs.feature_traces import Traces, load_traces
from tests.s3.report_inputs import full_summary, mark_as_before
from tests.synthetic_store import write_synthetic_store


def write_ranking(folder: Path, store_folder: Path, keys: list[tuple[int, int, int]]) -> Path:
    """Results that rank (layer, l0, feature_id) in this order, scores falling from 0.9."""
    features = [
        RankedFeature(
            rank=rank,
            sae_name=f"layer_{layer:02d}_l0_{l0}",
            layer=layer,
            average_l0=l0,
            feature_id=feature_id,
            passes_filters=rank < 3,
            train=dict.fromkeys(METRICS) | {"interpretability_score": 1 - rank / 10},
            held_out=dict.fromkeys(METRICS),
            neuronpedia_url="",
        )
        for rank, (layer, l0, feature_id) in enumerate(keys, start=1)
    ]
    write_results(folder, features, [], full_summary(FeatureStore(store_folder)))
    return folder


KEYS = [(1, 24, 3), (0, 8, 3), (0, 8, 60), (1, 8, 7), (0, 24, 11)]


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_store(tmp_path_factory.mktemp("s3") / "lies_features", n_sentences=40)


@pytest.fixture(scope="session")
def results_folder(store_folder: Path) -> Path:
    return write_ranking(store_folder.parent / "results", store_folder, KEYS)


@pytest.fixture(scope="session")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with labels 0 and 3 only, and its results; both as before the key `demonstration` went."""
    folder = tmp_path_factory.mktemp("s3_two_labels")
    store = write_synthetic_store(folder / "lies_features", n_sentences=12, labels=np.arange(12) % 2 * 3)
    mark_as_before(store)
    return store, write_ranking(folder / "results", store, KEYS[:2])


@pytest.fixture
def traces(store_folder: Path, results_folder: Path) -> Traces:
    return load_traces(FeatureStore(store_folder), read_results(results_folder), 5, [])
