import csv
import functools
import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from concept_evaluation.bootstrap import bootstrap_intervals
from s1_compute_all_features.feature_store import EMBEDDINGS
from s5_classifier_training.framework import layer_sweep
from s5_classifier_training.framework.cross_store import COLUMNS, transfer, unseen_sentences
from s5_classifier_training.framework.layer_models import LOGISTIC
from s5_classifier_training.framework.layer_sweep import SweepSettings, sweep
from s5_classifier_training.framework.trait_stores import open_traits
from s5_classifier_training.framework.transfer import main
from tests.s5.layer_store import random_sentences, write_layer_store

N = 100
LABELS = np.arange(N) % 4


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of BLAS cost more than matrices of this size do."""
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def _few_sweep_resamples(monkeypatch):
    monkeypatch.setattr(
        layer_sweep, "bootstrap_intervals", functools.partial(bootstrap_intervals, n_resamples=40)
    )


def along(direction: int, labels: np.ndarray = LABELS, effect: float = 2.0, seed: int = 0) -> np.ndarray:
    """Noise of 20 dimensions, of which one carries the label."""
    vectors = np.random.default_rng(seed).normal(size=(len(labels), 20))
    vectors[:, direction] += effect * labels
    return vectors


@pytest.fixture
def stores(tmp_path):
    """A trait, another source of it, and another trait; in the other ones layer 0 carries the label too."""
    learnt = along(3, seed=1)
    learnt[:, 5] = 1.0  # nothing can be learnt along the other trait's direction, not even by chance
    states = {
        "own": {0: along(3, effect=0), 1: learnt},
        "source": {0: along(3, effect=9, seed=2), 1: along(3, seed=3)},
        "other": {0: along(5, effect=9, seed=4), 1: along(5, seed=5)},
    }
    return {
        name: write_layer_store(tmp_path / name, LABELS, of_layers, input_name=f"{name}.csv")
        for name, of_layers in states.items()
    }


def run(stores, tmp_path, *arguments: str) -> list[dict[str, str]]:
    """Rows of transfer.csv."""
    output = tmp_path / "out"
    tests = [str(path) for name, path in stores.items() if name != "own"]
    command = ["--train", str(stores["own"]), "--test", *tests, "--output", str(output), "--folds", "4"]
    assert main([*command, *arguments]) == 0
    with (output / "transfer.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def value(rows, trait, score, estimator="logistic", end="value") -> float:
    (found,) = [
        row
        for row in rows
        if (row["test_trait"], row["score"], row["estimator"]) == (trait, score, estimator)
    ]
    return float(found[f"test_{end}"])


def test_what_is_learnt_holds_for_another_source_and_not_for_another_trait(stores, tmp_path, capsys):
    rows = run(stores, tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert {row["train_trait"] for row in rows} == {"own"}
    assert value(rows, "own", "auroc_3_vs_0") > 0.95
    assert value(rows, "source", "auroc_3_vs_0", end="low") > 0.95
    assert 0.3 < value(rows, "other", "auroc_3_vs_0") < 0.7
    assert 0.3 < value(rows, "source", "auroc_3_vs_0", "bag_of_words") < 0.7
    # The layer is chosen on train, where layer 0 shows nothing, although it would shine on the test stores.
    assert {row["layer"] for row in rows if row["estimator"] == "logistic"} == {"1"}
    kinds = {(row["test_trait"], row["test_sentences"], row["n_train"], row["n_test"]) for row in rows}
    assert kinds == {
        ("own", "held-out", "80", "20"), ("source", "all", "80", "100"), ("other", "all", "80", "100")
    }  # fmt: skip
    assert "trained on own" in capsys.readouterr().out

    description = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert description["classifiers"][0]["layer"] == 1
    assert [entry["n_test"] for entry in description["test"]] == [20, 100, 100]
    with (tmp_path / "out" / "transfer_predictions.csv").open(newline="") as handle:
        predictions = [
            row
            for row in csv.DictReader(handle)
            if (row["test_trait"], row["estimator"]) == ("source", "logistic")
        ]
    right = [row["predicted"] == row["concept_strength_label"] for row in predictions]
    assert len(right) == 100
    assert np.mean(right) == pytest.approx(value(rows, "source", "accuracy"))
    for row in predictions[:5]:
        assert sum(float(row[f"probability_{label}"]) for label in range(4)) == pytest.approx(1, abs=1e-4)


def test_own_held_out_sentences_get_the_answers_of_the_sweep(stores):
    own, source = open_traits([stores["own"], stores["source"]])
    settings = SweepSettings((LOGISTIC,), "mean", (1e-3, 1e-1), 4, 0, 1)
    rows, _ = sweep(own, [1], settings, lambda: None)
    sets = unseen_sentences(own, [source], held_out_only=True)
    tested, _ = transfer(own, sets, [1], settings, lambda: None)
    for row, classifier in zip(rows, tested, strict=True):
        assert (row["estimator"], row["C"]) == (classifier.estimator, classifier.C)
        assert row["cv_auroc_mean"] == classifier.cv_auroc
        answers = classifier.answers[0]
        assert row["test_accuracy"] == np.mean(answers.predicted == LABELS[own.test])
    assert [len(one.sentences) for one in sets] == [20, 20]


def test_sentences_that_train_holds_are_left_out(tmp_path):
    own = random_sentences(N, "own")
    held_out = np.arange(N) % 5 == 0
    train = write_layer_store(
        tmp_path / "own", LABELS, {0: along(3)}, sentences=own, held_out=held_out, input_name="own.csv"
    )
    # Two of train, one of train with another word, one held out there, and new ones.
    learnt = [own[1], own[2].upper().lower(), f"{own[3]} too", own[5]]
    theirs = [*learnt, *random_sentences(N - 4, "source")]
    source = write_layer_store(
        tmp_path / "source", LABELS, {0: along(3)}, sentences=theirs, input_name="source.csv"
    )
    sets = unseen_sentences(*(lambda first, *rest: (first, rest))(*open_traits([train, source])), False)
    assert sets[1].sentences.tolist() == list(range(3, N))
    assert sets[1].n_left_out == 3
    rows = run({"own": train, "source": source}, tmp_path)
    assert {(row["test_trait"], row["n_left_out"]) for row in rows} == {("own", "0"), ("source", "3")}


def test_stores_with_other_labels(stores, tmp_path):
    few = LABELS % 2 * 3
    stores["few"] = write_layer_store(
        tmp_path / "few", few, {0: along(3, few), 1: along(3, few, seed=7)}, input_name="few.csv"
    )
    rows = run(stores, tmp_path)
    assert value(rows, "few", "auroc_3_vs_0") > 0.95
    # And the other way round: labels 1 and 2 never stood in train.
    turned = {"own": stores["few"], "source": stores["source"]}
    rows = run(turned, tmp_path, "--overwrite", "--layers", "1", EMBEDDINGS)
    assert value(rows, "source", "auroc_3_vs_0") > 0.95
    assert value(rows, "source", "accuracy") < 0.6
    header = (tmp_path / "out" / "transfer_predictions.csv").read_text().splitlines()[0]
    assert header.endswith("probability_0,probability_1,probability_2,probability_3")


def test_a_score_without_a_value_is_an_empty_cell(stores, tmp_path):
    labels = LABELS % 2
    stores["mild"] = write_layer_store(
        tmp_path / "mild", labels, {0: along(3, labels), 1: along(3, labels)}, input_name="mild.csv"
    )
    rows = run(stores, tmp_path)
    (row,) = [
        row
        for row in rows
        if (row["test_trait"], row["score"], row["estimator"]) == ("mild", "auroc_3_vs_0", "logistic")
    ]
    assert [row[f"test_{end}"] for end in ("value", "low", "high")] == ["", "", ""]


def test_other_estimators_go_the_same_way(stores, tmp_path):
    rows = run(stores, tmp_path, "--estimators", "nearest_centroid", "--held-out-only")
    assert value(rows, "source", "auroc_3_vs_0", "nearest_centroid") > 0.95
    assert {(row["test_sentences"], row["n_test"]) for row in rows} == {("held-out", "20")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "another"}, "model id another, the train store"),
        ({"states": {0: np.ones((N, 7))}}, "model d_model 7, the train store"),
        ({"tokens": "final"}, "one of the stores holds all tokens and the other the final ones alone"),
        (
            {"sentences": random_sentences(N, "own")},
            "holds all 100, or nearly the same ones",
        ),
        ({"hidden_states": "none"}, "made with --hidden-states none"),
        ({"states": {0: along(3)}}, "layer 1 is not stored"),
    ],
)
def test_stores_that_do_not_fit_are_refused(tmp_path, capsys, changes, message):
    own = write_layer_store(
        tmp_path / "own", LABELS, {1: along(3)}, sentences=random_sentences(N, "own"),
        held_out=np.zeros(N, dtype=bool), input_name="own.csv",
    )  # fmt: skip
    states = changes.pop("states", {1: along(3)})
    other = write_layer_store(tmp_path / "other", LABELS, states, **changes)
    command = ["--train", str(own), "--test", str(other), "--output", str(tmp_path / "out")]
    assert main([*command, "--folds", "2", "--layers", "1"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
