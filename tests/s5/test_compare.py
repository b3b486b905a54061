"""compare.py: the table, what it passes over, and what it writes."""

import csv
import json
import shutil

import pytest

from s5_classifier_training.framework import checkpoint, compare, train
from tests.s5.conftest import RIDGE, synthetic_dataset


def _checkpoint(experiment, name="first"):
    return checkpoint.main([str(experiment), "--name", name, "--message", "why"])


def test_compare_shows_scores_beside_baselines(experiment, capsys):
    assert compare.main([str(experiment)]) == 0
    header, row = capsys.readouterr().out.splitlines()[:2]
    for column in ("cv_mean", "test [95% interval]", "majority/mean", "length", "words/token", "shuffled"):
        assert column in header
    results = json.loads((experiment / "working" / "results.json").read_text())
    for name in results["baselines"]:
        assert f"{results['baselines'][name]['test_accuracy']:.3f}" in row
    assert f"{results['cv_mean']:.3f} +- " in row
    assert f"[{results['test']['accuracy']['low']:.3f}, {results['test']['accuracy']['high']:.3f}]" in row


def test_compare_passes_over_folders_that_are_no_versions(experiment, capsys, caplog):
    assert _checkpoint(experiment) == 0
    (experiment / "v2_empty").mkdir()
    (experiment / "v3_broken").mkdir()
    (experiment / "v3_broken" / "version.json").write_text("{")
    (experiment / "v4_file").write_text("")
    (experiment / "vacation").mkdir()
    assert compare.main([str(experiment), "--versions"]) == 0
    output = capsys.readouterr().out
    assert "v1_first" in output
    assert "v2_empty" not in output
    assert caplog.text.count("passed over") == 2


def test_compare_shows_once_what_working_and_a_version_share(experiment, capsys, caplog):
    """A copy is no rival, and would weaken the correction for the number of tests."""
    caplog.set_level("INFO")
    assert _checkpoint(experiment) == 0
    capsys.readouterr()
    assert compare.main([str(experiment), "--versions"]) == 0
    rows = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("d3_test")]
    assert rows == ["v1_first"]
    assert "working: the same as v1_first, shown once" in caplog.text
    assert compare.main([str(experiment)]) == 0
    assert "d3_test     working" in capsys.readouterr().out


def test_compare_passes_over_an_untrained_experiment_but_not_in_silence(experiment, tmp_path, capsys, caplog):
    other = tmp_path / "other"
    (other / "working").mkdir(parents=True)
    shutil.copy(experiment / "working" / "config.yaml", other / "working")
    assert compare.main([str(experiment), str(other)]) == 0
    assert "run train.py other first" in caplog.text
    assert compare.main([str(other)]) == 1
    assert "no results yet" in capsys.readouterr().err


def test_compare_details_every_score_and_warning(experiment, capsys):
    assert compare.main([str(experiment), "--detailed"]) == 0
    output = capsys.readouterr().out
    results = json.loads((experiment / "working" / "results.json").read_text())
    for text in (*results["test"], *results["baselines"], *results["warnings"]):
        assert text in output


def test_compare_writes_csv_and_markdown(experiment, tmp_path):
    assert compare.main([str(experiment), "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "comparison.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    results = json.loads((experiment / "working" / "results.json").read_text())
    assert len(rows) == len(results["test"]) * (1 + len(results["baselines"]))
    best = next(row for row in rows if row["model"] == results["best"] and row["score"] == "accuracy")
    assert float(best["test_value"]) == results["test_accuracy"]
    assert float(best["cv_mean"]) == results["cv_mean"]
    table, remarks = (tmp_path / "out" / "comparison.md").read_text().split("\n\n")
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert remarks.startswith("- d3_test working: no other of these has the score accuracy")


def test_compare_says_when_the_data_differ(experiment, make_experiment, capsys):
    dataset = synthetic_dataset(target="activation")
    dataset.metadata["demonstration"] = True  # a key of before, which is gone
    dataset.metadata["store"] = {"name": "other", "fingerprint": "1" * 64}
    dataset.metadata["model"] = "../models/gemma"
    dataset.metadata["model_details"] = {"id": "../models/gemma", "revision": "0" * 64}
    other = make_experiment("d2_test", dataset, RIDGE)
    assert train.main([str(other)]) == 0
    capsys.readouterr()
    assert compare.main([str(experiment), str(other)]) == 0
    output = capsys.readouterr().out
    for note in ("different feature stores", "accuracy and r2"):
        assert note in output
    assert "demonstration" not in output
    assert compare.main([str(other), "--detailed"]) == 0
    assert "(gemma), " in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--all", "d3_hidden_to_concept"]])
def test_compare_needs_names_or_all(argv):
    with pytest.raises(SystemExit) as ended:
        compare.main(argv)
    assert ended.value.code == 2
