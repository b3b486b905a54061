import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from s1_compute_all_features.feature_store import FeatureStore
from s3_feature_activation_graphs import visualize_activations
from s3_feature_activation_graphs.visualize_activations import main
from tests.s3.conftest import KEYS, write_ranking
from tests.synthetic_store import write_synthetic_store

SCRIPT = Path(visualize_activations.__file__)
FAST = ["--dpi", "30", "--figsize", "6", "4"]


@pytest.fixture
def inputs(store_folder: Path, results_folder: Path) -> list[str]:
    return ["--s2-results", str(results_folder), "--s1-data", str(store_folder), *FAST]


def test_a_run_writes_pictures_by_label_overviews_and_a_summary(
    inputs: list[str], store_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plots"
    assert main([*inputs, "--output", str(output), "--top-n", "3", "--max-sentences", "8"]) == 0
    document = json.loads((output / "summary_statistics.json").read_text(encoding="utf-8"))
    assert document["format"] == "activation_summary"
    assert document["format_version"] == 2
    assert document["store"]["fingerprint"] == FeatureStore(store_folder).fingerprint
    assert document["settings"]["features"] == ["1:24:3", "0:8:3", "0:8:60"]
    written = sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))
    assert written == sorted(document["files"])
    assert len(written) == 5 + 8
    store = FeatureStore(store_folder)
    for file in document["files"][5:]:
        label, sentence = file.removesuffix(".png").split("/sentence_")
        assert label == f"label_{store.labels[int(sentence)]}"
        assert len(sentence) == 6
        with Image.open(output / file) as picture:
            picture.verify()
    assert "1:24:3" in (output / "summary_statistics.txt").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert str(output) in printed


def test_labels_come_before_the_limit(inputs: list[str], tmp_path: Path) -> None:
    arguments = ["--labels", "3", "1", "--max-sentences", "3", "--sort-by", "index", "--features", "1:8:9"]
    assert main([*inputs, "--output", str(tmp_path / "plots"), *arguments]) == 0
    document = json.loads((tmp_path / "plots" / "summary_statistics.json").read_text(encoding="utf-8"))
    # The co-activation of a single feature would be empty.
    assert document["files"][:4] == [
        "overview_trajectories.png",
        "overview_distributions.png",
        "overview_heatmap.png",
        "overview_layer_map.png",
    ]
    assert document["files"][4:] == [
        "label_1/sentence_000001.png",
        "label_1/sentence_000005.png",
        "label_3/sentence_000003.png",
    ]
    assert document["n_sentences"] == 20


def test_two_runs_write_the_same_bytes(inputs: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([*inputs, "--output", str(tmp_path / name), "--max-sentences", "2"]) == 0
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_plots_are_replaced_only_when_told(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*inputs, "--output", str(tmp_path / "plots"), "--max-sentences", "2", "--labels"]
    assert main([*arguments, "0"]) == 0
    assert main([*arguments, "3"]) == 1
    assert (
        "already exists; choose another --output for the plots, or add --overwrite" in capsys.readouterr().err
    )
    assert main([*arguments, "3", "--overwrite"]) == 0
    # Nothing of the earlier run is left among the new pictures.
    assert not (tmp_path / "plots" / "label_0").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]


def test_overwrite_never_deletes_what_another_program_wrote(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main([*inputs, "--output", str(tmp_path), "--overwrite"]) == 1
    assert "holds something else than plots" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_store_of_before_with_two_labels_is_drawn(two_labels: tuple[Path, Path], tmp_path: Path) -> None:
    store, results = two_labels
    arguments = ["--s1-data", str(store), "--s2-results", str(results), "--output", str(tmp_path / "plots")]
    # Labels 0 and 3 only are a valid dataset.
    assert main([*arguments, *FAST, "--free-y", "--max-token-len", "3"]) == 0
    assert "demonstration" not in (tmp_path / "plots" / "summary_statistics.json").read_text()
    assert sorted(path.name for path in (tmp_path / "plots").glob("label_*")) == ["label_0", "label_3"]


def test_results_of_another_store_are_refused_before_anything_is_written(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_synthetic_store(tmp_path / "other", n_sentences=8, seed=5)
    assert main([*inputs, "--s1-data", str(other), "--output", str(tmp_path / "plots")]) == 1
    assert "run analyze_features.py again on this store" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--s2-results", "nowhere"], "nowhere: no summary.json"),
        (["--s1-data", "nowhere"], "nowhere: no such folder"),
        (["--features", "9:8:1"], "no SAE of layer 9"),
        (["--labels", "7"], "no sentence has label 7; there are the labels 0, 1, 2, 3"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*inputs, "--output", str(tmp_path / "plots"), *arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-n", "31"], "at most 30 lines can be told apart"),
        (["--top-n", "0"], "0 is not at least 1"),
        (["--top-n", "4", "--features", "0:8:1"], "not allowed with argument"),
        (["--features", "0:8:"], "is not layer:l0:feature_id"),
        (["--features", ",".join(f"0:8:{i}" for i in range(31))], "31 features; at most 30"),
        (["--figsize", "0", "5"], "0 is not between 1 and 100"),
        (["--figsize", "nan", "5"], "nan is not between 1 and 100"),
        (["--dpi", "9000"], "9000 is not between 30 and 600"),
        (["--labels", "a"], "neither a number nor a range"),
        (["--max-sentences", "-1"], "-1 is not at least 0"),
        (["--workers", "0"], "0 is not at least 1"),
        (["--figsize", "100", "5", "--dpi", "600"], "a side of 60,000 pixels; at most 30,000 can be drawn"),
    ],
)
def test_wrong_usage_ends_with_2(
    inputs: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*inputs, *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_the_quick_start_line_runs_from_the_stage_s_folder(tmp_path: Path) -> None:
    stage = tmp_path / "s3_feature_activation_graphs"
    stage.mkdir()
    store = write_synthetic_store(tmp_path / "s1_compute_all_features" / "dishonesty_features", n_sentences=8)
    write_ranking(tmp_path / "s2_find_top_features" / "results" / "dishonesty_results", store, KEYS)
    line = (
        "--s2-results ../s2_find_top_features/results/dishonesty_results "
        "--s1-data ../s1_compute_all_features/dishonesty_features --output ./plots --top-n 10"
    )
    # No display: the pictures must not need one.
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *line.split()],
        cwd=stage,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert len(list((stage / "plots").rglob("sentence_*.png"))) == 8
    assert "Warning" not in run.stderr


def test_help_does_not_wait_for_matplotlib() -> None:
    code = (
        "import sys; from s3_feature_activation_graphs import visualize_activations as v; v.build_parser(); "
    )
    code += "sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
