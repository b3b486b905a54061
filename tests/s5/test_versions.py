"""Versions: made whole or not at all, immutable, verified, and gone on from."""

import importlib.metadata
import json
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
import skops.io

from pipeline_common.files import sha256_of_file
from s4_classifier_data_prep.classifier_dataset import write_dataset
from s5_classifier_training.framework import checkpoint, compare, new_experiment, train
from s5_classifier_training.framework.experiment_folder import problems_of, sealed, versions
from tests.s5.conftest import RIDGE, synthetic_dataset


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
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555
    assert content["trained_with"]["scikit-learn"] == importlib.metadata.version("scikit-learn")
    assert content["seed"] == 0
    assert content["git_commit"] is None or len(content["git_commit"].removesuffix("-dirty")) == 40
    results = json.loads((folder / "results.json").read_text())
    skops.io.load(folder / "model.skops", trusted=results["model_types"])


def test_versions_are_numbered_on_past_gaps_and_killed_processes(experiment):
    assert _checkpoint(experiment, "a") == 0
    (experiment / "v7_by_hand").mkdir()
    (experiment / ".v9_unfinished").mkdir()
    assert _checkpoint(experiment, "b") == 0
    assert (experiment / "v10_b").is_dir()


AT_ONCE = """
import sys, time
from pathlib import Path
from s5_classifier_training.framework import checkpoint
experiment, name = Path(sys.argv[1]), sys.argv[2]
(experiment / f"ready_{name}").touch()
while not (experiment / "go").exists():
    time.sleep(0.001)
raise SystemExit(checkpoint.main([str(experiment), "--name", name, "--message", "at once"]))
"""


def test_processes_at_once_get_numbers_of_their_own(experiment):
    names = [f"p{number}" for number in range(5)]
    processes = [subprocess.Popen([sys.executable, "-c", AT_ONCE, str(experiment), name]) for name in names]
    deadline = time.monotonic() + 120
    while not all((experiment / f"ready_{name}").exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (experiment / "go").touch()
    assert [process.wait(timeout=120) for process in processes] == [0] * 5
    made, odd = versions(experiment)
    assert odd == []
    assert [version.number for version in made] == [1, 2, 3, 4, 5]
    assert sorted(version.folder.name.split("_")[1] for version in made) == names
    assert [problems_of(version) for version in made] == [[]] * 5
    assert not list(experiment.glob(".v*"))


def test_many_reservations_at_once_get_numbers_of_their_own(tmp_path):
    """The reservation alone, in threads and many rounds, so that its narrow windows are hit."""
    n_rounds = 30

    def reserve() -> None:
        with checkpoint._reserved_number(tmp_path) as (number, unfinished):
            unfinished.rename(tmp_path / f"v{number}_x")
            numbers.append(number)

    numbers: list[int] = []
    for _ in range(n_rounds):
        threads = [threading.Thread(target=reserve) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers) == list(range(1, 6 * n_rounds + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"v{n}_x" for n in numbers)


def test_a_failure_in_the_middle_leaves_no_version(experiment, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        _checkpoint(experiment)
    assert [path.name for path in experiment.iterdir()] == ["working"]


KILLED = """
import os, signal, sys
from s5_classifier_training.framework import checkpoint
owner, name, calls = {place!r}.split(".") + [int(sys.argv[2])]
module = getattr(checkpoint, owner)
original, done = getattr(module, name), []
def dies(*arguments):
    if len(done) == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(arguments)
    return original(*arguments)
setattr(module, name, dies)
checkpoint.main([sys.argv[1], "--name", "killed", "--message", "why"])
"""


@pytest.mark.parametrize(("place", "calls"), [("shutil.copyfile", 2), ("os.rename", 0)])
def test_a_process_killed_in_the_middle_leaves_no_version(experiment, place, calls, capsys):
    before = {path.name: path.read_bytes() for path in (experiment / "working").iterdir()}
    command = [sys.executable, "-c", KILLED.format(place=place), str(experiment), str(calls)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert versions(experiment) == ([], [])
    assert [path.name for path in experiment.iterdir() if not path.name.startswith(".")] == ["working"]
    assert {path.name: path.read_bytes() for path in (experiment / "working").iterdir()} == before
    assert compare.main([str(experiment), "--versions"]) == 0
    assert _checkpoint(experiment) == 0
    assert (experiment / "v2_first").is_dir()
    assert checkpoint.main([str(experiment), "--verify"]) == 0


def test_verify_speaks_of_one_of_several_and_of_all_versions(experiment, capsys):
    for name in ("a", "b", "c"):
        assert _checkpoint(experiment, name) == 0
    capsys.readouterr()
    for asked, told in (
        ([], ["v1_a", "v2_b", "v3_c"]),
        (["v2"], ["v2_b"]),
        (["3", "v1_a"], ["v3_c", "v1_a"]),
    ):
        assert checkpoint.main([str(experiment), "--verify", *asked]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{name}: as it was made" for name in told]


def _change(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")


def _edit_message(folder):
    path = folder / "version.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"why"', '"better"'))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda folder: _change(folder / "model.skops"), "model.skops is missing or was changed"),
        (lambda folder: _change(folder / "results.json"), "results.json is missing or was changed"),
        (lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv is missing or was changed"),
        (_edit_message, "version.json was changed"),
        (lambda folder: (folder / "more.txt").write_text("x"), "more.txt does not belong to it"),
    ],
)
def test_a_tampered_version_is_found_and_used_by_nobody(experiment, capsys, caplog, tamper, message):
    for name in ("a", "b"):
        assert _checkpoint(experiment, name) == 0
    (experiment / "v1_a").chmod(0o755)
    tamper(experiment / "v1_a")
    capsys.readouterr()
    assert checkpoint.main([str(experiment), "--verify"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"v1_a: {message}", "v2_b: as it was made"]
    assert "1 of these versions are not as they were made" in captured.err
    assert checkpoint.main([str(experiment), "--verify", "v2"]) == 0
    assert new_experiment.main([str(experiment), "--from", "v1", "--note", "x"]) == 1
    assert f"v1_a: not as checkpoint.py made it: {message}" in capsys.readouterr().err
    assert compare.main([str(experiment), "--versions"]) == 0
    assert f"passed over: {experiment / 'v1_a'}: {message}" in caplog.text
    assert "v1_a" not in capsys.readouterr().out


def test_verify_names_what_is_no_version(experiment, capsys):
    assert checkpoint.main([str(experiment), "--verify"]) == 1
    assert "no versions; make one with checkpoint.py" in capsys.readouterr().err
    assert _checkpoint(experiment) == 0
    (experiment / "v2_empty").mkdir()
    assert checkpoint.main([str(experiment), "--verify"]) == 1
    assert "v2_empty/version.json: no such file" in capsys.readouterr().out
    assert checkpoint.main([str(experiment), "--verify", "v1"]) == 0
    assert checkpoint.main([str(experiment), "--verify", "v7"]) == 1
    assert "no version v7; there are v1_first" in capsys.readouterr().err


def test_a_version_that_names_files_elsewhere_is_none(experiment, capsys):
    """A folder from somebody else must not write outside of working/."""
    assert _checkpoint(experiment) == 0
    path = experiment / "v1_first" / "version.json"
    content = json.loads(path.read_text())
    content["checksums"]["../../stolen"] = "0" * 64
    path.chmod(0o644)
    path.write_text(json.dumps(sealed(content)))
    assert new_experiment.main([str(experiment), "--from", "v1", "--note", "x"]) == 1
    assert "no version v1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--name", "a"],
        ["--message", "b"],
        [],
        ["--verify", "--name", "a"],
        ["--verify", "v1", "--message", "b"],
    ],
)
def test_a_version_needs_name_and_message_and_verify_neither(experiment, argv):
    with pytest.raises(SystemExit) as ended:
        checkpoint.main([str(experiment), *argv])
    assert ended.value.code == 2


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


def test_another_dataset_than_the_versions_is_told(experiment, caplog):
    assert _checkpoint(experiment) == 0
    argv = [str(experiment), "--from", "v1", "--note", "x"]
    assert new_experiment.main(argv) == 0
    assert "warning" not in caplog.text
    write_dataset(experiment.parent / "d.npz", synthetic_dataset(seed=1))
    assert new_experiment.main(argv) == 0
    assert "d.npz is not the dataset that v1_first was trained on" in caplog.text
    (experiment.parent / "d.npz").unlink()
    assert new_experiment.main(argv) == 0
    assert "d.npz does not exist; make it" in caplog.text


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


def test_an_unknown_version_names_those_there_are(experiment, capsys):
    assert new_experiment.main([str(experiment), "--from", "v4", "--note", "x"]) == 1
    assert "no version v4; there are none; make one with checkpoint.py" in capsys.readouterr().err
    assert _checkpoint(experiment) == 0
    assert new_experiment.main([str(experiment), "--from", "v4", "--note", "x"]) == 1
    assert "no version v4; there are v1_first" in capsys.readouterr().err


def test_results_of_another_format_version(experiment, capsys):
    path = experiment / "working" / "results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 0}))
    assert _checkpoint(experiment) == 1
    assert "results format 0, this program reads format 1; run train.py again" in capsys.readouterr().err
