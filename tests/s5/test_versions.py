"""checkpoint.py, new_experiment.py and compare.py, which read what train.py wrote."""

import csv
import json
import os
import shutil
import stat
import threading

import pytest
import skops.io
from sklearn.preprocessing import FunctionTransformer

from pipeline_common.files import sha256_of_file
from s5_classifier_training.framework import checkpoint, compare, new_experiment, train
from tests.s5.conftest import RIDGE, synthetic_dataset


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """One training for the whole module; the tests work on copies."""
    from s4_classifier_data_prep.classifier_dataset import write_dataset

    root = tmp_path_factory.mktemp("versions")
    working = root / "d3_test" / "working"
    working.mkdir(parents=True)
    write_dataset(root / "d.npz", synthetic_dataset())
    (working / "dataset.config").write_text("dataset: ../../d.npz\n")
    (working / "config.yaml").write_text("estimators:\n  - name: logistic\n")
    assert train.main([str(working.parent)]) == 0
    return root


@pytest.fixture
def experiment(trained_once, tmp_path):
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "d3_test"


def _checkpoint(experiment, name="first"):
    return checkpoint.main([str(experiment), "--name", name, "--message", "why"])


def test_a_version_holds_everything_read_only_and_checksummed(experiment, capsys):
    assert _checkpoint(experiment) == 0
    folder = experiment / "v1_first"
    assert capsys.readouterr().out.strip() == str(folder)
    content = json.loads((folder / "version.json").read_text())
    assert (content["number"], content["message"]) == (1, "why")
    assert content["dataset"]["sha256"] == sha256_of_file(experiment.parent / "d.npz")
    names = {
        "config.yaml",
        "dataset.config",
        "results.json",
        "predictions.csv",
        "confusion_matrix.png",
        "model.skops",
    }
    assert set(content["checksums"]) == names
    for name, digest in content["checksums"].items():
        assert sha256_of_file(folder / name) == digest == sha256_of_file(experiment / "working" / name)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    results = json.loads((folder / "results.json").read_text())
    skops.io.load(folder / "model.skops", trusted=results["model_types"])


def test_versions_are_numbered_on_past_gaps_and_killed_processes(experiment):
    assert _checkpoint(experiment, "a") == 0
    (experiment / "v7_by_hand").mkdir()
    (experiment / ".v9_unfinished").mkdir()
    assert _checkpoint(experiment, "b") == 0
    assert (experiment / "v10_b").is_dir()


def test_checkpoints_at_once_get_numbers_of_their_own(experiment):
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda name=f"t{n}": codes.append(_checkpoint(experiment, name)))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6
    numbers = sorted(int(folder.name.split("_")[0][1:]) for folder in experiment.glob("v*_t*"))
    assert len(numbers) == len(set(numbers)) == 6


def test_a_failure_in_the_middle_leaves_no_version(experiment, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        _checkpoint(experiment)
    assert [path.name for path in experiment.iterdir()] == ["working"]


@pytest.mark.parametrize("name", ["config.yaml", "model.skops", "predictions.csv"])
def test_files_that_changed_since_the_training_are_refused(experiment, capsys, name):
    with (experiment / "working" / name).open("ab") as handle:
        handle.write(b"\n")
    assert _checkpoint(experiment) == 1
    assert f"{name}: changed since the training" in capsys.readouterr().err
    assert [path.name for path in experiment.iterdir()] == ["working"]


def test_a_checkpoint_needs_results(experiment, capsys):
    (experiment / "working" / "results.json").unlink()
    assert _checkpoint(experiment) == 1
    assert "no results.json; run train.py d3_test first" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "a b", "", ".hidden"])
def test_names_that_are_no_folder_names_are_wrong_usage(experiment, name):
    with pytest.raises(SystemExit) as ended:
        _checkpoint(experiment, name)
    assert ended.value.code == 2


@pytest.mark.parametrize("version", ["v1_first", "v1", "1"])
def test_a_version_is_restored_with_a_note(experiment, version):
    assert _checkpoint(experiment) == 0
    before = {path.name: path.read_bytes() for path in (experiment / "working").iterdir()}
    for path in (experiment / "working").glob("*.png"):
        path.unlink()
    assert new_experiment.main([str(experiment), "--from", version, "--note", "weaker penalty"]) == 0
    after = {path.name: path.read_bytes() for path in (experiment / "working").iterdir()}
    notes = after.pop("experiment_notes.md").decode()
    assert after == before
    assert "from v1_first\n\nweaker penalty\n" in notes
    assert (experiment / "working" / "config.yaml").stat().st_mode & stat.S_IWUSR
    assert train.main([str(experiment)]) == 0


def test_notes_are_kept_and_added_to(experiment):
    (experiment / "working" / "experiment_notes.md").write_text("# Notes\n\nmine\n")
    assert _checkpoint(experiment) == 0
    for note in ("one", "two"):
        assert new_experiment.main([str(experiment), "--from", "1", "--note", note]) == 0
    text = (experiment / "working" / "experiment_notes.md").read_text()
    assert text.index("mine") < text.index("one") < text.index("two")


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_what_is_in_no_version_is_not_lost(experiment, capsys, name):
    assert _checkpoint(experiment) == 0
    path = experiment / "working" / name
    path.write_text(path.read_text() + "\n")
    argv = [str(experiment), "--from", "v1", "--note", "x"]
    assert new_experiment.main(argv) == 1
    assert f"{name}: is in no version and would be lost" in capsys.readouterr().err
    assert path.read_text().endswith("\n\n")
    assert new_experiment.main([*argv, "--overwrite"]) == 0
    assert not path.read_text().endswith("\n\n")


def test_a_picture_of_another_task_does_not_stay(experiment):
    assert _checkpoint(experiment) == 0
    (experiment / "working" / "config.yaml").write_text("task: regression\n" + RIDGE)
    assert train.main([str(experiment)]) == 0
    assert new_experiment.main([str(experiment), "--from", "v1", "--note", "x", "--overwrite"]) == 0
    assert [path.name for path in (experiment / "working").glob("*.png")] == ["confusion_matrix.png"]


def test_a_tampered_version_is_not_restored(experiment, capsys):
    assert _checkpoint(experiment) == 0
    path = experiment / "v1_first" / "model.skops"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    assert new_experiment.main([str(experiment), "--from", "v1", "--note", "x"]) == 1
    assert "model.skops: missing or changed since the version was made" in capsys.readouterr().err


def test_an_unknown_version_names_those_there_are(experiment, capsys):
    assert new_experiment.main([str(experiment), "--from", "v4", "--note", "x"]) == 1
    assert "no version v4; there are none; make one with checkpoint.py" in capsys.readouterr().err
    assert _checkpoint(experiment) == 0
    assert new_experiment.main([str(experiment), "--from", "v4", "--note", "x"]) == 1
    assert "no version v4; there are v1_first" in capsys.readouterr().err


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
    markdown = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert len({line.count("|") for line in markdown}) == 1


def test_compare_says_when_the_data_differ(experiment, make_experiment, capsys):
    dataset = synthetic_dataset(target="activation", demonstration=True)
    dataset.metadata["store"] = {"name": "other", "fingerprint": "1" * 64}
    other = make_experiment("d2_test", dataset, RIDGE)
    assert train.main([str(other)]) == 0
    capsys.readouterr()
    assert compare.main([str(experiment), str(other)]) == 0
    output = capsys.readouterr().out
    for note in ("different feature stores", "accuracy and R2", "demonstration model"):
        assert note in output


@pytest.mark.parametrize("argv", [[], ["--all", "d3_hidden_to_concept"]])
def test_compare_needs_names_or_all(argv):
    with pytest.raises(SystemExit) as ended:
        compare.main(argv)
    assert ended.value.code == 2


def test_results_of_another_format_version(experiment, capsys):
    path = experiment / "working" / "results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 0}))
    assert _checkpoint(experiment) == 1
    assert "results format 0, this program reads format 1; run train.py again" in capsys.readouterr().err


def test_a_model_file_with_foreign_types_is_not_loaded(experiment):
    results = json.loads((experiment / "working" / "results.json").read_text())
    path = experiment / "working" / "model.skops"
    skops.io.dump(FunctionTransformer(os.system), path)
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException):
        skops.io.load(path, trusted=results["model_types"])
