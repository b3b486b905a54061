from pathlib import Path

import pytest

from pipeline_common.errors import UserError
from s5_classifier_training.framework.config import load_dataset_path, load_experiment_config
from s5_classifier_training.framework.experiment_folder import (
    EXPERIMENTS,
    find_experiment,
    shipped_experiments,
)

VALID = "task: auto\nseed: 3\nn_folds: 4\nestimators:\n  - name: ridge\n    params: {alpha: 10}\n"


def test_a_valid_file_is_read_and_frozen(tmp_path):
    (tmp_path / "config.yaml").write_text(VALID)
    config = load_experiment_config(tmp_path)
    assert (config.task, config.seed, config.n_folds) == ("auto", 3, 4)
    assert config.estimators[0].title == "ridge alpha=10"
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "folds: 5\n", r"config\.yaml: folds: unknown key; the keys here are task, seed, n_folds"),
        (VALID + "C: 0.1\n", r"C: unknown key; .* an estimator's own parameters stand under its params"),
        (VALID + "    alpha: 3\n", r"\.0\.alpha: unknown key; .* name, params, top_k, search; an est"),
        (VALID + "    seed: 3\n", r"estimators\.0\.seed: misplaced key; it belongs at the top of"),
        (VALID + "params: {C: 1}\n", r"params: misplaced key; it belongs in an entry of estimators"),
        (VALID + "dataset: d.npz\n", r"dataset: misplaced key; it belongs in dataset\.config"),
        (VALID.replace("10", "1e-3"), r"params\.alpha.*: 1e-3 is text to YAML; write it as 0\.001"),
        (VALID + "    search: {alpha: [1, 2]}\n", r"estimators\.0: alpha is both set and searched; keep one"),
        (VALID + "    top_k: 5\n    search: {top_k: [1, 2]}\n", r"top_k is both set and searched"),
        (VALID + "    search: {tol: []}\n", r"search\.tol: .*at least 1 item"),
        (VALID + "    search: {top_k: [0, 5]}\n", r"search: top_k takes whole numbers from 1, found"),
        (VALID + "    top_k: 0\n", r"top_k: .*greater than or equal to 1, found 0"),
        ("task: auto\n", r"estimators: this key is missing"),
        ("estimators: []\n", r"estimators: .*at least 1 item"),
        ("estimators:\n  - params: {C: 1}\n", r"estimators\.0\.name: this key is missing"),
        ("estimators:\n  - name: xgboost\n", r"\.0\.name: 'xgboost' is none of logistic, ordinal, ridge"),
        (VALID.replace("auto", "guess"), r"task: .*'classification'.*found 'guess'"),
        (VALID.replace("n_folds: 4", "n_folds: 1"), r"n_folds: .*greater than or equal to 2, found 1"),
        (VALID.replace("seed: 3", "seed: x"), r"seed: .*valid integer.*found 'x'"),
        (
            VALID + "  - name: ridge\n    params: {alpha: 10}\n",
            r"estimators: 'ridge alpha=10' stands there twice",
        ),
        ("- a\n- b\n", r"expected keys and values such as task: \.\.\."),
        ("task: [auto\n", r"config\.yaml: not valid YAML"),
        ("", r"expected keys and values"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_experiment_config(tmp_path)


def test_yaml_never_builds_objects(tmp_path):
    (tmp_path / "config.yaml").write_text("task: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_experiment_config(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: no such file"):
        load_experiment_config(tmp_path)


def test_the_dataset_is_relative_to_its_file(tmp_path, monkeypatch):
    working = tmp_path / "e" / "working"
    working.mkdir(parents=True)
    (tmp_path / "d.npz").write_text("")
    (working / "dataset.config").write_text("dataset: ../../d.npz\n")
    monkeypatch.chdir("/")
    assert load_dataset_path(working) == (tmp_path / "d.npz").resolve()


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path):
    (tmp_path / "dataset.config").write_text("dataset: d.npz\nmade_by: generate_datasets.py --strategy x\n")
    with pytest.raises(
        UserError, match=r"d\.npz does not exist; make it .* with: generate_datasets.py --str"
    ):
        load_dataset_path(tmp_path)


def test_a_key_of_the_other_file_is_misplaced(tmp_path):
    (tmp_path / "dataset.config").write_text("dataset: d.npz\nn_folds: 5\n")
    with pytest.raises(UserError, match=r"n_folds: misplaced key; it belongs at the top of config\.yaml"):
        load_dataset_path(tmp_path)


def test_a_title_tells_what_is_set_and_what_is_searched(tmp_path):
    text = "estimators:\n  - name: logistic\n    top_k: 5\n    search: {C: [0.1, 1.0]}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert load_experiment_config(tmp_path).estimators[0].title == "logistic top_k=5 C of [0.1, 1.0]"


@pytest.mark.parametrize(
    "name",
    ["d1_embedding_to_feature", "d2_hidden_to_feature", "d3_hidden_to_concept", "d4_sae_to_concept"],
)
def test_shipped_experiments_are_valid_and_say_how_their_dataset_is_made(name, tmp_path):
    assert name in shipped_experiments()
    working = EXPERIMENTS / name / "working"
    load_experiment_config(working)
    (tmp_path / "dataset.config").write_text((working / "dataset.config").read_text())
    strategy = name.split("_", 1)[1].replace("_", "-")
    with pytest.raises(UserError, match=f"--strategy {strategy}"):
        load_dataset_path(tmp_path)


def test_the_quick_starts_dataset_is_that_of_d3():
    text = (EXPERIMENTS / "d3_hidden_to_concept" / "working" / "dataset.config").read_text()
    assert "s4_classifier_data_prep/generated_datasets/dishonesty_h0-5_to_concept.npz" in text


def test_an_experiment_is_found_by_name_and_by_path(tmp_path, monkeypatch, make_experiment):
    folder = make_experiment()
    assert find_experiment("d3_hidden_to_concept") == EXPERIMENTS / "d3_hidden_to_concept"
    assert find_experiment("d3_hidden_to_concept/") == EXPERIMENTS / "d3_hidden_to_concept"
    assert find_experiment(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert find_experiment(folder.name) == folder


def test_an_unknown_experiment_names_those_there_are():
    with pytest.raises(UserError, match=r"d9: no such experiment .* there are d1_embedding_to_feature, d2"):
        find_experiment(str(Path("d9")))
