import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import skops.io
from sklearn.metrics import accuracy_score

from s4_classifier_data_prep.classifier_dataset import read_dataset
from s4_classifier_data_prep.generate_datasets import main as generate_datasets
from s5_classifier_training.framework import experiment_folder
from s5_classifier_training.framework.experiment_folder import EXPERIMENTS
from s5_classifier_training.framework.train import main
from tests.s5.conftest import LOGISTIC, RIDGE, synthetic_dataset
from tests.synthetic_store import write_synthetic_store


def _results(folder):
    return json.loads((folder / "working" / "results.json").read_text())


def _predictions(folder):
    with (folder / "working" / "predictions.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_a_classification_writes_results_predictions_picture_and_model(make_experiment, capsys):
    folder = make_experiment()
    assert main([str(folder)]) == 0
    results = _results(folder)
    assert results["task"] == "classification"
    assert results["best"] == "logistic C=0.1"
    assert results["cv_mean"] > 0.5
    assert results["test_accuracy"] > 0.5
    assert set(results["baselines"]) == {"majority", "sentence_length", "bag_of_words", "shuffled_labels"}
    assert set(results["test"]) == {
        "accuracy",
        "macro_f1",
        "quadratic_weighted_kappa",
        "mae",
        "spearman",
        "auroc_3_vs_0",
        "log_loss",
        "brier_score",
        "expected_calibration_error",
    }
    for score in results["test"].values():
        assert score["low"] <= score["value"] <= score["high"]
    assert {"config.yaml", "dataset.config", "model.skops", "predictions.csv", "confusion_matrix.png"} == set(
        results["files"]
    )
    output = capsys.readouterr().out
    for name in ("majority", "sentence_length", "bag_of_words", "shuffled_labels"):
        assert f"baseline {name}" in output
    assert not list((folder / "working").glob(".*"))


def test_test_scores_and_model_agree_with_the_predictions(make_experiment):
    dataset = synthetic_dataset()
    folder = make_experiment(dataset=dataset)
    assert main([str(folder)]) == 0
    rows = _predictions(folder)
    test = [row for row in rows if row["split"] == "test"]
    target = [int(row["target"]) for row in test]
    predicted = [int(row["predicted"]) for row in test]
    assert accuracy_score(target, predicted) == pytest.approx(_results(folder)["test_accuracy"])
    assert [int(row["sentence_index"]) for row in test] == np.flatnonzero(dataset.held_out).tolist()
    model = skops.io.load(folder / "working" / "model.skops", trusted=_results(folder)["model_types"])
    assert model.predict(dataset.X[dataset.held_out]).tolist() == predicted


def test_out_of_fold_predictions_give_the_fold_scores(make_experiment):
    folder = make_experiment()
    assert main([str(folder)]) == 0
    train = [row for row in _predictions(folder) if row["split"] == "train"]
    for fold, score in enumerate(_results(folder)["estimators"][0]["fold_scores"], start=1):
        of_fold = [row for row in train if row["fold"] == str(fold)]
        assert np.mean([row["target"] == row["predicted"] for row in of_fold]) == pytest.approx(score)


def test_the_test_split_has_no_influence_on_training(make_experiment):
    dataset = synthetic_dataset()
    inputs, target = dataset.X.copy(), dataset.y.copy()
    # A signal that only the test rows carry, and other labels there.
    inputs[dataset.held_out] = np.random.default_rng(9).normal(loc=50, size=inputs[dataset.held_out].shape)
    label = np.where(dataset.held_out, 3 - dataset.label, dataset.label)
    target[dataset.held_out] = label[dataset.held_out]
    first = make_experiment("first", dataset)
    second = make_experiment("second", replace(dataset, X=inputs, y=target, label=label))
    assert main([str(first), str(second)]) == 0
    for key in ("cv_mean", "cv_std", "train_accuracy", "best", "estimators"):
        assert _results(first)[key] == _results(second)[key]
    assert _results(first)["test_accuracy"] != _results(second)["test_accuracy"]
    of_train = [
        [row for row in _predictions(folder) if row["split"] == "train"] for folder in (first, second)
    ]
    assert of_train[0] == of_train[1]


def test_two_trainings_give_the_same_numbers(make_experiment):
    folder = make_experiment()
    assert main([str(folder)]) == 0
    first, table = _results(folder), _predictions(folder)
    assert main([str(folder)]) == 0
    second = _results(folder)
    for results in (first, second):
        results.pop("files")  # the model's archive carries the time it was written
        results.pop("sha256")
    assert (second, _predictions(folder)) == (first, table)


def test_the_best_of_several_is_chosen_on_train_and_tested_alone(make_experiment, capsys):
    config = (
        "estimators:\n  - name: logistic\n    params: {C: 1.0e-12}\n  - name: logistic\n    params: {C: 1}\n"
    )
    folder = make_experiment(config=config)
    assert main([str(folder)]) == 0
    results = _results(folder)
    scores = {entry["title"]: entry["cv_mean"] for entry in results["estimators"]}
    assert results["best"] == max(scores, key=scores.get) == "logistic C=1"
    assert not [key for entry in results["estimators"] for key in entry if key.startswith("test")]
    assert "logistic C=1 (best)" in capsys.readouterr().out


@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_a_regression(make_experiment, unit):
    dataset = synthetic_dataset(target="activation", unit=unit)
    folder = make_experiment(dataset=dataset, config=RIDGE)
    assert main([str(folder)]) == 0
    results = _results(folder)
    assert results["task"] == "regression"
    assert set(results["test"]) == {"r2", "mae", "spearman"}
    assert results["test_r2"] > 0.8
    words = "token_identity" if unit == "token" else "bag_of_words"
    assert set(results["baselines"]) == {"mean", "sentence_length", words, "shuffled_labels"}
    assert "predicted_vs_true.png" in results["files"]
    assert ("token" in _predictions(folder)[0]) == (unit == "token")


def test_another_task_replaces_the_other_tasks_picture(make_experiment):
    folder = make_experiment()
    assert main([str(folder)]) == 0
    (folder / "working" / "config.yaml").write_text("task: regression\n" + RIDGE)
    assert main([str(folder)]) == 0
    assert [path.name for path in (folder / "working").glob("*.png")] == ["predicted_vs_true.png"]
    assert _results(folder)["task"] == "regression"


def test_activations_are_no_labels(make_experiment, capsys):
    dataset = synthetic_dataset(target="activation", unit="token")
    folder = make_experiment(dataset=dataset, config="task: classification\n" + LOGISTIC)
    assert main([str(folder)]) == 1
    assert (
        "task: classification, but the dataset's target is a feature's activation" in capsys.readouterr().err
    )
    assert not (folder / "working" / "results.json").exists()


def test_a_classifier_is_refused_for_activations(make_experiment, capsys):
    folder = make_experiment(dataset=synthetic_dataset(target="activation"))
    assert main([str(folder)]) == 1
    assert "logistic only classifies" in capsys.readouterr().err


def test_labels_0_and_3_alone_from_store_to_results(make_experiment, tmp_path):
    store = write_synthetic_store(tmp_path / "store", n_sentences=40, labels=np.array([0, 3] * 20))
    output = tmp_path / "d.npz"
    argv = [
        "--strategy",
        "hidden-to-concept",
        "--layers",
        "0-1",
        "--input",
        str(store),
        "--output",
        str(output),
    ]
    assert generate_datasets(argv) == 0
    folder = make_experiment(dataset=read_dataset(output))
    assert main([str(folder)]) == 0
    results = _results(folder)
    assert results["labels"] == [0, 3]
    assert results["test"]["auroc_3_vs_0"]["value"] is not None
    assert {"probability_0", "probability_3"} <= set(_predictions(folder)[0])


def test_without_label_3_its_auroc_has_no_value(make_experiment):
    folder = make_experiment(dataset=synthetic_dataset(labels=np.arange(60) % 2))
    assert main([str(folder)]) == 0
    assert _results(folder)["test"]["auroc_3_vs_0"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("n_labels", [2, 4])
def test_twelve_sentences(make_experiment, caplog, n_labels):
    labels = np.arange(12) % n_labels * (3 // (n_labels - 1))
    folder = make_experiment(dataset=synthetic_dataset(labels=labels))
    assert main([str(folder)]) == 0
    assert _results(folder)["n_folds"] < 5
    assert "folds instead of 5" in caplog.text


def test_constant_columns_and_more_inputs_than_sentences(make_experiment):
    dataset = synthetic_dataset(n_sentences=40, n_inputs=500)
    dataset.X[:, 1:20] = 7
    folder = make_experiment(dataset=dataset)
    assert main([str(folder)]) == 0
    assert _results(folder)["test"]["log_loss"]["value"] is not None


def test_nothing_to_learn_is_at_chance(make_experiment):
    folder = make_experiment(dataset=synthetic_dataset(effect=0.0, n_sentences=200))
    assert main([str(folder)]) == 0
    results = _results(folder)
    assert results["cv_mean"] < 0.4
    assert results["baselines"]["shuffled_labels"]["cv_mean"] < 0.4


def test_cv_mean_outside_the_test_interval_is_said(make_experiment, caplog):
    dataset = synthetic_dataset(n_sentences=200)
    inputs = dataset.X.copy()
    inputs[dataset.held_out, 0] *= -1
    folder = make_experiment(dataset=replace(dataset, X=inputs))
    assert main([str(folder)]) == 0
    error = caplog.text
    assert "lies outside the test interval" in error
    assert "baseline majority is at least as good on test" in error


def test_fits_that_do_not_converge_are_said(make_experiment, caplog):
    folder = make_experiment(config="estimators:\n  - name: logistic\n    params: {max_iter: 1}\n")
    assert main([str(folder)]) == 0
    assert "logistic max_iter=1: 6 fits did not converge" in caplog.text


def test_the_notes_of_the_dataset_are_said(make_experiment, caplog):
    dataset = synthetic_dataset()
    dataset.metadata["notes"].append("a note of stage 4")
    folder = make_experiment(dataset=dataset)
    assert main([str(folder)]) == 0
    assert "a note of stage 4" in caplog.text


def test_a_missing_dataset(make_experiment, capsys, tmp_path):
    folder = make_experiment()
    (tmp_path / "data" / "d3_test.npz").unlink()
    assert main([str(folder)]) == 1
    assert (
        "does not exist; make it in s4_classifier_data_prep with: generate_datasets.py"
        in capsys.readouterr().err
    )


def test_an_unknown_experiment_stops_before_any_training(make_experiment, capsys):
    folder = make_experiment()
    assert main([str(folder), "d9"]) == 1
    assert "d9: no such experiment" in capsys.readouterr().err
    assert not (folder / "working" / "results.json").exists()


@pytest.mark.parametrize("argv", [[], ["--all", "d3_hidden_to_concept"]])
def test_no_experiment_is_wrong_usage_and_so_is_all_with_names(argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


def test_all_trains_every_experiment_of_the_stage(make_experiment, monkeypatch):
    first = make_experiment("first")
    second = make_experiment("second", synthetic_dataset(target="activation"), RIDGE)
    monkeypatch.setattr(experiment_folder, "EXPERIMENTS", first.parent)
    assert main(["--all"]) == 0
    assert _results(first)["task"] == "classification"
    assert _results(second)["task"] == "regression"


def test_a_mistake_in_one_experiment_is_told_before_another_trains(make_experiment, capsys):
    good = make_experiment("good")
    bad = make_experiment("bad", config="estimators:\n  - name: logistic\nalpha: 1\n")
    assert main([str(good), str(bad)]) == 1
    assert "alpha: unknown key" in capsys.readouterr().err
    assert not (good / "working" / "results.json").exists()


def test_sparse_features_chosen_and_searched_in_each_fold(make_experiment, tmp_path, capsys):
    store = write_synthetic_store(tmp_path / "store", n_sentences=60, density=0.3)
    output = tmp_path / "d.npz"
    argv = ["--strategy", "sae-to-concept", "--layers", "0-1", "--target-l0", "8"]
    assert generate_datasets([*argv, "--input", str(store), "--output", str(output)]) == 0
    shipped = EXPERIMENTS / "d4_sae_to_concept" / "working" / "config.yaml"
    folder = make_experiment(dataset=read_dataset(output), config=shipped.read_text())
    assert main([str(folder)]) == 0
    results = _results(folder)
    assert [entry["top_k"] for entry in results["estimators"]] == [1, 5, 20, 100]
    assert all(len(entry["chosen"]) == 5 for entry in results["estimators"])
    assert results["cv_mean"] > 0.4  # the planted feature of each SAE grows with the label
    assert "top_k=100" in capsys.readouterr().out
    model = skops.io.load(folder / "working" / "model.skops", trusted=results["model_types"])
    predicted = [row["predicted"] for row in _predictions(folder) if row["split"] == "test"]
    dataset = read_dataset(output)
    assert [str(label) for label in model.predict(dataset.X[dataset.held_out])] == predicted


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("d1_embedding_to_feature", ["--target-layer", "1", "--target-l0", "8", "--target-feature", "3"]),
        ("d2_hidden_to_feature", ["--target-layer", "1", "--target-l0", "8", "--target-feature", "3"]),
        ("d3_hidden_to_concept", ["--layers", "0-1"]),
    ],
)
def test_shipped_configurations_run_as_they_are(make_experiment, tmp_path, name, strategy):
    store = write_synthetic_store(tmp_path / "store", n_sentences=60)
    question = name.split("_", 1)[1].replace("_", "-")
    argv = ["--strategy", question, *strategy, "--input", str(store), "--output", str(tmp_path / "d.npz")]
    assert generate_datasets(argv) == 0
    shipped = EXPERIMENTS / name / "working" / "config.yaml"
    folder = make_experiment(dataset=read_dataset(tmp_path / "d.npz"), config=shipped.read_text())
    assert main([str(folder)]) == 0
    assert _results(folder)["cv_mean"] is not None


def test_an_ordinal_task_is_shown_with_its_own_score(make_experiment, capsys):
    folder = make_experiment(config="task: ordinal\nestimators:\n  - name: ordinal\n")
    assert main([str(folder)]) == 0
    assert "test_quadratic_weighted_kappa [95% interval]" in capsys.readouterr().out
    assert (folder / "working" / "confusion_matrix.png").is_file()
