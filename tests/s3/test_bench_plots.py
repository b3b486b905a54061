"""The benchmark measures what it says, on few sentences."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_plots.py"


@pytest.fixture
def bench(monkeypatch):
    specification = importlib.util.spec_from_file_location("bench_plots", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for name, value in {"N_SENTENCES_QUICK": 12, "N_ALONE_QUICK": 4, "N_PLAIN_QUICK": 2, "DPI": 40}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_it_checks_the_pixels_and_writes_every_figure(bench, tmp_path, capsys):
    assert bench.main(["--quick", "--json", str(tmp_path / "figures.json"), "--workers", "1"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"ratio_vs_plain_loop", "seconds_per_1000_plots"} <= set(figures)
    assert all(value > 0 for value in figures.values())
    loop, several = figures["seconds_per_1000_plots_plain_loop"], figures["seconds_per_1000_plots"]
    assert figures["ratio_vs_plain_loop"] == pytest.approx(loop / several)
    printed = capsys.readouterr().out
    assert "the same pixels in 6 pictures" in printed
    assert "load average" in printed


def test_another_picture_stops_it(bench, tmp_path, monkeypatch):
    sentences, features = bench.make_sentences(2, np.random.default_rng(0)), bench.make_features()
    style, _ = bench.fitted_style(
        sentences, figsize=(14.0, 6.0), dpi=40, max_token_len=15, y_max=20.0, source=""
    )
    bench.check(sentences, features, style, tmp_path)
    monkeypatch.setattr(bench, "LEGEND_TITLE", "another title")
    with pytest.raises(AssertionError, match="another picture"):
        bench.check(sentences, features, style, tmp_path)
