"""A run that is stopped keeps its pictures, and the same command goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline_common.errors import UserError
from s3_feature_activation_graphs import sentence_workers
from s3_feature_activation_graphs.picture_run import PictureRun
from s3_feature_activation_graphs.sentence_plot import SentencePlotter
from s3_feature_activation_graphs.visualize_activations import main

FAST = ["--dpi", "30", "--figsize", "6", "4", "--max-sentences", "12", "--features", "1:24:3,0:8:60"]


@pytest.fixture(autouse=True)
def without_overviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own and would take most of the time here."""
    monkeypatch.setattr(PictureRun, "overviews", {})


@pytest.fixture
def inputs(store_folder: Path, results_folder: Path) -> list[str]:
    return ["--s2-results", str(results_folder), "--s1-data", str(store_folder), *FAST]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the sentences that are drawn, in order."""
    indices: list[int] = []
    pixels = SentencePlotter.pixels

    def counted(self, sentence):
        indices.append(sentence.index)
        return pixels(self, sentence)

    monkeypatch.setattr(SentencePlotter, "pixels", counted)
    return indices


def stop_after(n_pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = SentencePlotter.save
    left = [n_pictures]

    def stopped(self, sentence, folder):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        save(self, sentence, folder)

    monkeypatch.setattr(SentencePlotter, "save", stopped)


def test_the_same_command_goes_on_where_it_was_stopped(
    inputs: list[str], tmp_path: Path, drawn: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plots"
    assert main([*inputs, "--output", str(tmp_path / "whole")]) == 0
    drawn.clear()
    with pytest.MonkeyPatch.context() as patch:
        stop_after(5, patch)
        assert main([*inputs, "--output", str(output)]) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert not output.exists()
    (unfinished,) = tmp_path.glob(".plots.*.tmp")
    assert len(list(unfinished.rglob("sentence_*.png"))) == 5
    first = drawn.copy()
    # What a kill in the middle of a write leaves.
    (unfinished / "label_0" / ".sentence_000000.1.tmp.png").write_bytes(b"half")
    drawn.clear()
    assert main([*inputs, "--output", str(output)]) == 0
    assert len(drawn) == 7
    assert set(first).isdisjoint(drawn)
    assert content_of(output) == content_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "whole"]


@pytest.mark.parametrize(
    "changed", [["--max-token-len", "4"], ["--free-y"], ["--features", "0:8:3"], ["--labels", "0-2"]]
)
def test_pictures_of_other_settings_are_not_taken_over(
    inputs: list[str], tmp_path: Path, drawn: list[int], changed: list[str]
) -> None:
    output = tmp_path / "plots"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(5, patch)
        assert main([*inputs, "--output", str(output)]) == 130
    drawn.clear()
    assert main([*inputs, "--output", str(output), *changed]) == 0
    assert len(drawn) == 12
    # The leftovers of the other settings are gone.
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]


def test_pictures_that_other_code_drew_are_not_taken_over(
    inputs: list[str], tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(5, patch)
        assert main([*inputs, "--output", str(tmp_path / "plots")]) == 130
    drawn.clear()
    monkeypatch.setattr("s3_feature_activation_graphs.picture_run.sha256_of_file", lambda path: "edited")
    assert main([*inputs, "--output", str(tmp_path / "plots")]) == 0
    assert len(drawn) == 12


def test_a_stopped_run_leaves_the_old_plots_as_they_were(inputs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "plots"
    assert main([*inputs, "--output", str(output)]) == 0
    before = content_of(output)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch)
        assert main([*inputs, "--output", str(output), "--free-y", "--overwrite"]) == 130
    assert content_of(output) == before
    assert main([*inputs, "--output", str(output), "--free-y", "--overwrite"]) == 0
    assert content_of(output).keys() == before.keys()
    assert content_of(output) != before


def test_several_processes_draw_what_one_draws(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*inputs, "--output", str(tmp_path / "one"), "--workers", "1"]) == 0
    monkeypatch.setattr(sentence_workers, "LEAST_PER_WORKER", 6)
    monkeypatch.setattr(SentencePlotter, "save", None)  # this process must leave it to the workers
    assert main([*inputs, "--output", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_a_killed_worker_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_workers, "_start_worker", _die)
    with pytest.raises(UserError, match=r"a worker process was killed.*fewer --workers"):
        list(sentence_workers._by_workers(print, [[]], 1))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_leaves_no_half_written_picture_and_no_process(
    inputs: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys; from s3_feature_activation_graphs import sentence_workers, visualize_activations as v\n"
        "if __name__ == '__main__':\n"
        "    sentence_workers.LEAST_PER_WORKER = 2\n    v.main(sys.argv[1:])\n"
    )
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), *inputs, "--output", str(tmp_path / "plots")]
    command += ["--max-sentences", "40", "--workers", "2"]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".plots.*.tmp/label_*/sentence_*.png")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.kill()
    # The workers hold the other end of the pipe: it closes when the last of them is gone.
    run.communicate(timeout=30)
    assert not (tmp_path / "plots").exists()
    pictures = list(tmp_path.glob(".plots.*.tmp/label_*/sentence_*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
