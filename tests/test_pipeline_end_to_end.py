"""The whole chain as a user runs it: small and fast, and the README's Quick start word by word."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from s1_compute_all_features.extract_sae_features import main as extract
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.sae_configurations import GEMMA_SCOPE, read_sae_configurations
from s2_find_top_features.analyze_features import main as analyze
from s2_find_top_features.ranked_features import read_results
from s3_feature_activation_graphs.visualize_activations import main as visualize
from s4_classifier_data_prep.generate_datasets import main as generate_datasets
from s5_classifier_training.framework.train import main as train
from tests.copied_project import copy_of_the_project, environment_of_a_user, in_shell
from tests.fake_llm_server import fake_llm_server

ROOT = Path(__file__).resolve().parent.parent
QUICK_START = """\
cd s0_dataset_generation && uv run python expand_dataset.py --trait "Dishonesty" --seed-file initial_hendrycks_data/dishonesty.csv --label3-count 300 --label2-count 250 --label1-count 150 --label0-count 100
cd s1_compute_all_features && uv run python extract_sae_features.py --input ../s0_dataset_generation/expanded_data/dishonesty.csv --output ./dishonesty_features
cd s2_find_top_features && uv run python analyze_features.py --input ../s1_compute_all_features/dishonesty_features --output ./results/dishonesty_results
cd s3_feature_activation_graphs && uv run python visualize_activations.py --s2-results ../s2_find_top_features/results/dishonesty_results --s1-data ../s1_compute_all_features/dishonesty_features --output ./plots --top-n 10
cd s4_classifier_data_prep && uv run python generate_datasets.py --strategy hidden-to-concept --input ../s1_compute_all_features/dishonesty_features --layers 0-5 --output generated_datasets/dishonesty_h0-5_to_concept.npz
cd s5_classifier_training && uv run python framework/train.py d3_hidden_to_concept
"""  # noqa: E501


def subset_of_shipped_csv(path: Path, labels: tuple[int, ...], per_label: int) -> Path:
    """Some sentences of the shipped dishonesty data, with a further column."""
    shipped = ROOT / "s0_dataset_generation" / "expanded_data" / "dishonesty.csv"
    with shipped.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["sentence", "concept_strength_label", "source"])
        for label in labels:
            of_label = [row["sentence"] for row in rows if row["concept_strength_label"] == str(label)]
            writer.writerows((sentence, label, f"row {i}") for i, sentence in enumerate(of_label[:per_label]))
    return path


@pytest.mark.parametrize("labels", [(0, 1, 2, 3), (0, 3)])
def test_every_stage_reads_the_last_ones_files(labels, tiny_configuration, tmp_path):
    data = subset_of_shipped_csv(tmp_path / "dishonesty.csv", labels, per_label=20)
    store, results, plots = tmp_path / "store", tmp_path / "results", tmp_path / "plots"
    config = ["--config", str(tiny_configuration), "--device", "cpu"]
    assert extract(["--input", str(data), "--output", str(store), *config]) == 0
    assert analyze(["--input", str(store), "--output", str(results), "--top-n", "8"]) == 0
    pictures = ["--top-n", "3", "--max-sentences", "4", "--dpi", "40"]
    where = ["--s2-results", str(results), "--s1-data", str(store), "--output", str(plots)]
    assert visualize([*where, *pictures]) == 0

    ranked = read_results(results)
    absent = [label for label in range(4) if label not in labels]
    for feature in ranked.features:
        assert all(feature.train[f"mean_{label}"] is None for label in absent)
        assert all(feature.train[f"mean_{label}"] is not None for label in labels)
    assert FeatureStore(store).further_columns["source"][0] == "row 0"
    assert len(list(plots.glob("label_*/sentence_*.png"))) == 4
    assert (plots / "summary_statistics.txt").is_file()

    best = ranked.features[0]
    target = ["--target-layer", str(best.layer), "--target-l0", str(best.average_l0)]
    target += ["--target-feature", str(best.feature_id)]
    for name, strategy in {
        "d1_embedding_to_feature": ["--strategy", "embedding-to-feature", *target],
        "d2_hidden_to_feature": ["--strategy", "hidden-to-feature", *target, "--input-layer", "0"],
        "d3_hidden_to_concept": ["--strategy", "hidden-to-concept", "--layers", "0-2"],
    }.items():
        dataset = tmp_path / f"{name}.npz"
        assert generate_datasets([*strategy, "--input", str(store), "--output", str(dataset)]) == 0
        working = tmp_path / name / "working"
        shutil.copytree(ROOT / "s5_classifier_training" / name / "working", working)
        (working / "dataset.config").write_text(f"dataset: {dataset}\n")
        assert train([str(tmp_path / name)]) == 0
        assert json.loads((working / "results.json").read_text())
        with np.load(dataset, allow_pickle=False) as archive:
            split = archive["split"]
            of_sentence = FeatureStore(store).held_out[archive["sentence_index"]]
        assert np.array_equal(split == "test", of_sentence)


def test_the_readme_shows_the_quick_start_word_by_word():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert QUICK_START in re.findall(r"```(?:bash|sh)?\n(.*?)```", readme, re.DOTALL)


@pytest.mark.slow
def test_the_quick_start_runs_word_by_word(tmp_path):
    """Against a tiny random Gemma-2 and 135 random SAEs under the real ids, and a loopback LLM."""
    from tests.fake_hub import write_fake_gemma, write_fake_gemma_scope

    project = copy_of_the_project(tmp_path / "project")
    write_fake_gemma(tmp_path / "hub")
    write_fake_gemma_scope(tmp_path / "hub", read_sae_configurations(GEMMA_SCOPE))
    shipped = project / "s0_dataset_generation" / "expanded_data" / "dishonesty.csv"
    before = shipped.read_bytes()
    with fake_llm_server() as server:
        environment = environment_of_a_user(
            tmp_path,
            project,
            HF_HUB_CACHE=str(tmp_path / "hub"),
            OPENAI_BASE_URL=server.base_url,
            OPENAI_API_KEY="a-key-for-loopback",
        )
        for line in QUICK_START.splitlines():
            done = in_shell(line, project, environment)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            if "expand_dataset" in line:
                assert "dishonesty_generated.csv" in done.stdout + done.stderr
    assert shipped.read_bytes() == before
    generated = list(csv.DictReader(shipped.with_name("dishonesty_generated.csv").open(encoding="utf-8")))
    assert len(generated) == 800
    store = FeatureStore(project / "s1_compute_all_features" / "dishonesty_features")
    assert len(store.saes) == 135
    assert len(store.layers) == 26
    ranked = read_results(project / "s2_find_top_features" / "results" / "dishonesty_results")
    assert any(feature.neuronpedia_url for feature in ranked.features)
    assert list((project / "s3_feature_activation_graphs" / "plots").glob("label_3/sentence_0*.png"))
    dataset = project / "s4_classifier_data_prep" / "generated_datasets" / "dishonesty_h0-5_to_concept.npz"
    assert dataset.is_file()
    working = project / "s5_classifier_training" / "d3_hidden_to_concept" / "working"
    assert json.loads((working / "results.json").read_text())


@pytest.mark.slow
def test_without_weights_the_second_line_says_how_to_get_them(tmp_path):
    project = copy_of_the_project(tmp_path / "project")
    environment = environment_of_a_user(tmp_path, project, HF_HUB_CACHE=str(tmp_path / "empty"))
    done = in_shell(QUICK_START.splitlines()[1], project, environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    for word in ("HF_TOKEN", "licence", "gpt2_small_configurations.json", "fetch_demo_model.py"):
        assert word in last
    assert "Traceback" not in done.stderr
    assert not (project / "s1_compute_all_features" / "dishonesty_features").exists()
