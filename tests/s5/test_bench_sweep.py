"""The benchmark measures what it says, on a store small enough for a test."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from s5_classifier_training.framework.trait_stores import open_traits

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_sweep.py"


@pytest.fixture
def bench(monkeypatch):
    specification = importlib.util.spec_from_file_location("bench_sweep", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    small = {
        "N_SENTENCES": 80,
        "N_TOKENS": 3,
        "N_LAYERS": 6,
        "N_LAYERS_QUICK": 4,
        "D_MODEL": 60,
        "N_FACTORS": 30,
    }
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_it_prints_and_writes_every_figure(bench, tmp_path, capsys):
    assert bench.main(["--quick", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {"ratio_vs_sklearn_loop", "seconds_full"}
    assert all(value > 0 for value in figures.values())
    printed = capsys.readouterr().out
    assert "from 1 of 5 folds of one layer" in printed
    assert "for 6 layers, from 4 layers" in printed
    assert "load average" in printed


def test_other_probabilities_stop_it(bench, tmp_path, monkeypatch):
    bench.write_store(tmp_path / "store", np.random.default_rng(0))
    (trait,) = open_traits([tmp_path / "store"])
    vectors, nested = bench.vectors_of_train(trait)
    assert bench.check(vectors, nested, [0.01]) < bench.TOLERANCE
    right = bench.plain_model
    monkeypatch.setattr(bench, "plain_model", lambda C, **solver: right(2 * C, **solver))
    with pytest.raises(AssertionError, match="probabilities differ"):
        bench.check(vectors, nested, [0.01])


def test_every_third_layer_is_a_link(bench, tmp_path):
    bench.write_store(tmp_path / "store", np.random.default_rng(0))
    (trait,) = open_traits([tmp_path / "store"])
    layers = [trait.vectors(layer, "mean") for layer in trait.layers]
    np.testing.assert_array_equal(layers[0], layers[3])
    np.testing.assert_array_equal(layers[2], layers[5])
    assert (layers[0] != layers[1]).any()
