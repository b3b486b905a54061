"""The benchmark measures what it says, on a store small enough for a test."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.analyze_features import main
from s2_find_top_features.ranked_features import read_results
from s2_find_top_features.scoring import Split

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_rank.py"


@pytest.fixture
def bench(monkeypatch):
    specification = importlib.util.spec_from_file_location("bench_rank", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "N_SENTENCES", 100)
    monkeypatch.setattr(module, "N_SAES", 4)
    monkeypatch.setattr(module, "N_FEATURES", 300)
    monkeypatch.setattr(module, "N_SAMPLED", 5)
    return module


def test_it_prints_and_writes_every_figure(bench, tmp_path, capsys):
    assert bench.main(["--quick", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {
        "ratio_vs_scipy_loop_sparse",
        "ratio_vs_scipy_loop_dense",
        "seconds_full",
        "peak_memory_bytes",
    }
    assert all(value > 0 for value in figures.values())
    assert figures["peak_memory_bytes"] > 2**24
    printed = capsys.readouterr().out
    assert "extrapolated from 5 features" in printed
    assert "load average" in printed


def test_probes_and_random_directions_are_part_of_the_last_run(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "N_SAES", 9)
    monkeypatch.setattr(bench, "N_LAYERS", 2)
    monkeypatch.setattr(bench, "D_MODEL", 16)

    def in_this_process(store, results):
        assert main(["--input", str(store), "--output", str(results), "--top-n", "5"]) == 0
        return 1.0, 1

    monkeypatch.setattr(bench, "whole_command", in_this_process)
    bench.write_store(tmp_path / "store", 9, 1, np.random.default_rng(0))
    figures = bench.whole_ranking(tmp_path, False, np.random.default_rng(0))
    assert set(figures) == {
        "seconds_full",
        "seconds_full_with_probes",
        "peak_memory_bytes",
        "peak_memory_bytes_of_15_saes",
    }
    assert set(read_results(tmp_path / "results").summary["baselines"]) == {"bag_of_words", "sentence_length"}
    with_states = read_results(tmp_path / "results_with_states").summary["baselines"]
    assert {"logistic_probe", "random_directions"} < set(with_states)
    assert "probes of 2 layers x 16" in capsys.readouterr().out


def test_a_wrong_metric_stops_it(bench, tmp_path, monkeypatch):
    bench.write_store(tmp_path / "store", 1, 1, np.random.default_rng(0))
    store = FeatureStore(tmp_path / "store")
    right = bench.loop_metrics

    def wrong(x, labels, fold):
        return right(x, labels, fold) | {"trend": 0.1}

    monkeypatch.setattr(bench, "loop_metrics", wrong)
    with pytest.raises(AssertionError, match="trend"):
        bench.compare(store, Split.of(store), "max", np.random.default_rng(0))


def test_the_store_is_as_dense_as_it_says(bench, tmp_path):
    bench.write_store(tmp_path / "store", 3, 2, np.random.default_rng(0))
    store = FeatureStore(tmp_path / "store")
    pooled = [store.pooled_activations(store.saes[0], pooling) for pooling in ("final", "max")]
    assert len(pooled[0].data) / 30_000 == pytest.approx(0.006, rel=0.2)
    assert len(pooled[1].data) / 30_000 == pytest.approx(0.06, rel=0.1)
    first, second, third = (store.activations(sae).data for sae in store.saes)
    np.testing.assert_array_equal(first, third)  # a hard link to the first
    assert len(first) != len(second) or (first != second).any()
