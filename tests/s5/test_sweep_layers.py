import csv
import functools
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from concept_evaluation.bootstrap import bootstrap_intervals
from concept_evaluation.metrics import log_loss
from s1_compute_all_features.feature_store import EMBEDDINGS
from s5_classifier_training.framework import layer_models, layer_sweep
from s5_classifier_training.framework.layer_models import LOGISTIC, NestedLogistic, nested_rows
from s5_classifier_training.framework.layer_sweep import SweepSettings, sweep
from s5_classifier_training.framework.metrics import scores_with_intervals
from s5_classifier_training.framework.sweep_layers import _source, emergence, main
from s5_classifier_training.framework.trait_stores import open_traits
from tests.s5.layer_store import random_sentences, write_layer_store

FIRST_COLUMNS = (
    "trait,layer,estimator,pooling,n_train,n_test,cv_auroc_mean,cv_auroc_std,test_auroc,test_auroc_low,"
    "test_auroc_high,cv_accuracy_mean,test_accuracy"
)
N = 120


@pytest.fixture(autouse=True)
def _few_sweep_resamples(monkeypatch):
    monkeypatch.setattr(
        layer_sweep, "bootstrap_intervals", functools.partial(bootstrap_intervals, n_resamples=40)
    )


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of BLAS cost more than matrices of this size do."""
    with threadpool_limits(1):
        yield


def signal(labels: np.ndarray, effect: float, d: int = 30, seed: int = 0) -> np.ndarray:
    """Vectors of which one direction carries the label, float64 [n_sentences, d]."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(labels), d))
    vectors[:, 0] += effect * labels
    return vectors


def read_rows(folder) -> list[dict[str, str]]:
    with (folder / "layer_sweep.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def settings(**changes) -> SweepSettings:
    given = {
        "estimators": (LOGISTIC,),
        "pooling": "mean",
        "penalties": (1e-3, 1e-1),
        "n_folds": 4,
        "seed": 0,
        "n_workers": 1,
    }
    return SweepSettings(**{**given, **changes})


def swept(path, **changes):
    """Rows of every layer of one store, and the messages."""
    (trait,) = open_traits([path])
    return sweep(trait, trait.layers, settings(**changes), lambda: None)


def test_a_sweep_finds_the_layer_that_carries_the_label(tmp_path, capsys):
    labels = np.arange(2 * N) % 4  # so that 12 sentences of a label are held out
    store = write_layer_store(
        tmp_path / "kindness_features",
        labels,
        {0: signal(labels, 0), 1: signal(labels, 2, seed=1), 2: signal(labels, 2, seed=2)},
        input_name="kindness.csv",
    )
    output = tmp_path / "out" / "sweep"
    command = ["--input", str(store), "--output", str(output), "--folds", "4"]
    assert main(command) == 0
    assert (output / "layer_sweep.csv").read_text().startswith(FIRST_COLUMNS + ",")
    rows = read_rows(output)
    assert [(row["layer"], row["estimator"], row["pooling"]) for row in rows] == [
        (EMBEDDINGS, "logistic", "mean"),
        ("0", "logistic", "mean"),
        ("1", "logistic", "mean"),
        ("2", "logistic", "mean"),
        ("", "bag_of_words", ""),
        ("", "sentence_length", ""),
    ]
    assert {(row["trait"], row["n_train"], row["n_test"], row["n_folds"]) for row in rows} == {
        ("kindness", "192", "48", "4")
    }
    for row in rows[2:4]:
        assert float(row["cv_auroc_mean"]) > 0.95
        assert float(row["test_auroc"]) > 0.9
        assert float(row["minus_bag_of_words_low"]) > 0
    for row in (*rows[:2], *rows[4:]):
        assert 0.25 < float(row["cv_auroc_mean"]) < 0.75
    names = {path.name for path in output.iterdir()}
    assert names == {
        "layer_sweep.csv", "layer_sweep.json", "layer_sweep_kindness.png", "layer_sweep_all_traits.png",
    }  # fmt: skip
    description = json.loads((output / "layer_sweep.json").read_text())
    (of_logistic,) = description["traits"][0]["emergence"]
    assert of_logistic["best_layer"] in (1, 2)
    assert of_logistic["first_layer_as_good"] == 1
    assert "beats" in capsys.readouterr().out

    assert main(command) == 1
    assert "already exists" in capsys.readouterr().err
    before = (output / "layer_sweep.csv").read_bytes()
    assert main([*command, "--overwrite", "--workers", "3"]) == 0
    assert (output / "layer_sweep.csv").read_bytes() == before


def test_several_traits_models_and_estimators_in_one_call(tmp_path):
    labels = np.arange(N) % 4
    vectors = {layer: signal(labels, 1, d=8, seed=layer) for layer in range(3)}
    first = write_layer_store(tmp_path / "a", labels, vectors, input_name="caring.csv")
    second = write_layer_store(
        tmp_path / "b", labels % 2 * 3, {0: signal(labels, 1, d=5)}, input_name="bravery.csv",
        model="/home/ada/other", hidden_states="pooled",
    )  # fmt: skip
    command = ["--input", str(first), str(second), "--output", str(tmp_path / "sweep"), "--pooling", "max"]
    assert main([*command, "--estimators", "nearest_centroid", "ridge", "--layers", "0", EMBEDDINGS]) == 0
    rows = read_rows(tmp_path / "sweep")
    assert [(row["trait"], row["layer"], row["estimator"]) for row in rows if row["layer"]] == [
        (trait, layer, estimator)
        for trait in ("caring", "bravery")
        for estimator in ("nearest_centroid", "ridge")
        for layer in (EMBEDDINGS, "0")
    ]
    assert {(row["trait"], row["model"]) for row in rows} == {
        ("caring", "planted"),
        ("bravery", "/home/ada/other"),
    }
    pictures = {path.name for path in (tmp_path / "sweep").glob("*.png")}
    assert pictures == {f"layer_sweep_{name}.png" for name in ("caring", "bravery", "all_traits")}
    # In pictures a folder stands without the way to it.
    assert _source(open_traits([first, second])) == "Model: planted, other;"


@pytest.mark.parametrize("labels", [np.arange(80) % 4, np.arange(80) % 2 * 3])
def test_nested_cross_validation_is_that_of_a_loop_over_scikit_learns_pipelines(labels):
    vectors = signal(labels, 0.7, d=150).astype(np.float32) * np.geomspace(0.1, 30, 150)
    penalties = (1e-4, 1e-2, 1.0)
    nested, _ = nested_rows(labels, np.arange(80) // 2, np.unique(labels), 4, seed=0)
    validated = NestedLogistic(penalties).validate(vectors, nested)

    def answers(C, fitted, others):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=10_000, tol=1e-8))
        return model.fit(vectors[fitted], labels[fitted]).predict_proba(vectors[others])

    def loss(C, fitted, others):
        return log_loss(labels[others], answers(C, fitted, others), nested.rows.labels)

    expected = np.zeros((80, len(nested.rows.labels)))
    for (fitted, held_out), inner in zip(nested.rows.folds, nested.inner, strict=True):
        assert len(inner) == 3
        chosen = min(penalties, key=lambda C, inner=inner: np.mean([loss(C, *fold) for fold in inner]))
        expected[held_out] = answers(chosen, fitted, held_out)
    np.testing.assert_allclose(validated.out_of_fold.probabilities, expected, atol=2e-3)
    assert (
        min(penalties, key=lambda C: np.mean([loss(C, *fold) for fold in nested.rows.folds])) == validated.C
    )

    others = signal(labels, 0.7, d=150, seed=1).astype(np.float32)
    answered, converged = NestedLogistic(penalties).answer(vectors, nested, validated, others)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=validated.C, max_iter=10_000, tol=1e-8))
    exact = model.fit(vectors, labels).predict_proba(others)
    assert converged
    np.testing.assert_allclose(answered.probabilities, exact, atol=2e-3)


def test_folds_keep_groups_whole_inside_folds_too():
    labels, groups = np.arange(96) % 4, np.arange(96) // 3
    nested, _ = nested_rows(labels, groups, np.arange(4), 4, seed=0)
    for (fitted, held_out), inner in zip(nested.rows.folds, nested.inner, strict=True):
        for fit_on, judged in inner:
            assert set(fit_on) | set(judged) == set(fitted)
            assert set(groups[fit_on]) & set(groups[judged]) == set()
            assert set(groups[judged]) & set(groups[held_out]) == set()


def test_intervals_are_those_of_the_other_trainings(tmp_path, monkeypatch):
    labels, groups = np.arange(N) % 4, np.arange(N) // 2
    held_out = groups % 4 == 0
    store = write_layer_store(
        tmp_path / "s", labels, {0: signal(labels, 0.5)}, groups=groups, held_out=held_out
    )
    kept = []
    plain = layer_models.NestedLogistic.answer

    def answer(self, *arguments):
        kept.append(plain(self, *arguments))
        return kept[-1]

    monkeypatch.setattr(layer_models.NestedLogistic, "answer", answer)
    rows, _ = swept(store)
    for row, (predictions, _) in zip(rows[:2], kept, strict=True):
        expected = scores_with_intervals(labels[held_out], predictions, groups[held_out], seed=0)
        assert row["test_accuracy"] == expected["accuracy"]["value"]
        assert row["test_kappa"] == expected["quadratic_weighted_kappa"]["value"]
        found = [row[f"test_auroc{end}"] for end in ("", "_low", "_high")]
        assert found == [expected["auroc_3_vs_0"][end] for end in ("value", "low", "high")]


def test_held_out_vectors_have_no_part_in_cross_validation(tmp_path):
    labels = np.arange(N) % 4
    held_out = np.arange(N) % 5 == 0
    plain = signal(labels, 0.5)
    # A signal that only held-out sentences have, at a scale that would upset any shared scaler.
    leaking = plain.copy()
    leaking[held_out] = signal(labels, 1000, seed=5)[held_out]
    rows = {}
    for name, vectors in {"plain": plain, "leaking": leaking}.items():
        store = write_layer_store(tmp_path / name, labels, {0: vectors}, held_out=held_out)
        rows[name] = swept(store)[0][1]
    columns = ("cv_auroc_mean", "cv_auroc_std", "cv_accuracy_mean", "cv_kappa_mean", "C")
    assert [rows["plain"][name] for name in columns] == [rows["leaking"][name] for name in columns]
    assert rows["plain"]["test_auroc"] != rows["leaking"]["test_auroc"]

    # The same signal in train sentences would show: the test can fail.
    store = write_layer_store(tmp_path / "shown", labels, {0: signal(labels, 1000)}, held_out=held_out)
    assert swept(store)[0][1]["cv_auroc_mean"] == 1.0


def test_near_duplicates_teach_nothing_where_they_are_one_group(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.permutation(np.arange(50) % 2 * 3), 2)
    vectors = np.repeat(rng.normal(size=(50, 200)), 2, axis=0)  # no signal; each vector stands there twice
    held_out, pairs = np.arange(100) >= 90, np.arange(100) // 2
    grouped = write_layer_store(tmp_path / "grouped", labels, {0: vectors}, groups=pairs, held_out=held_out)
    leaking = write_layer_store(tmp_path / "leaking", labels, {0: vectors}, held_out=held_out)
    assert swept(leaking)[0][1]["cv_auroc_mean"] > 0.75  # twins on both sides: memory looks like skill
    assert swept(grouped)[0][1]["cv_auroc_mean"] < 0.65


def test_stores_of_pooled_states_and_of_all_tokens_give_one_answer(tmp_path):
    labels = np.arange(N) % 4
    rows = []
    for kind in ("all", "pooled"):
        store = write_layer_store(
            tmp_path / kind / "store",
            labels,
            {0: signal(labels, 1), 3: signal(labels, 2)},
            hidden_states=kind,
        )
        rows.append(swept(store, pooling="last-content")[0])
    assert rows[0] == rows[1]
    assert [row["layer"] for row in rows[0]][:3] == [EMBEDDINGS, 0, 3]


def test_a_store_of_final_tokens_has_no_baseline_of_length(tmp_path):
    labels = np.arange(N) % 4
    store = write_layer_store(tmp_path / "s", labels, {0: signal(labels, 1)}, tokens="final")
    rows, messages = swept(store)
    assert [row["estimator"] for row in rows] == ["logistic", "logistic", "bag_of_words"]
    assert any("final token" in message for message in messages)


def test_without_label_3_accuracy_remains_and_the_picture_says_so(tmp_path):
    labels = np.arange(N) % 3
    store = write_layer_store(tmp_path / "s", labels, {0: signal(labels, 2)})
    rows, messages = swept(store)
    assert rows[1]["cv_auroc_mean"] is None
    assert rows[1]["test_auroc"] is None
    assert rows[1]["test_auroc_low"] is None
    assert rows[1]["test_accuracy"] > 0.6
    assert any("label 3" in message for message in messages)
    assert main(["--input", str(store), "--output", str(tmp_path / "out"), "--folds", "3"]) == 0
    assert read_rows(tmp_path / "out")[1]["test_auroc"] == ""
    assert (tmp_path / "out" / "layer_sweep_planted.png").stat().st_size > 5000


def test_a_dozen_sentences_are_enough_to_run(tmp_path):
    labels = np.arange(12) % 4
    store = write_layer_store(tmp_path / "s", labels, {0: signal(labels, 3)})
    rows, messages = swept(store)
    assert rows[1]["n_train"], rows[1]["n_test"] == (8, 4)
    assert rows[1]["n_folds"] == 2
    assert rows[1]["minus_bag_of_words_low"] is None  # one held-out sentence of a label beats nothing
    assert any("2 folds instead of 4" in message for message in messages)


def test_folds_whose_training_part_has_one_label_are_left_out(tmp_path):
    labels = np.array([0] * 30 + [3] * 10)
    groups = np.concatenate([np.arange(30), np.full(10, 99)])  # all of label 3 is one group
    store = write_layer_store(
        tmp_path / "s", labels, {0: signal(labels, 3)}, groups=groups, held_out=np.arange(40) < 3
    )
    rows, _ = swept(store)
    assert rows[1]["n_folds"] == 1
    assert rows[1]["cv_auroc_mean"] is None  # the fold that is left holds label 0 alone
    assert rows[1]["cv_auroc_std"] is None
    assert rows[1]["test_auroc"] is None
    assert rows[1]["C"] is not None


def test_without_held_out_sentences_the_test_columns_are_empty(tmp_path):
    labels = np.arange(40) % 4
    store = write_layer_store(
        tmp_path / "s", labels, {0: signal(labels, 2)}, held_out=np.zeros(40, dtype=bool)
    )
    rows, messages = swept(store)
    for row in rows:
        assert {row[name] for name in row if name.startswith("test_")} == {None}
        assert row["cv_auroc_mean"] is not None
    assert any("no held-out" in message for message in messages)


def test_constant_inputs_are_at_chance(tmp_path):
    labels = np.arange(N) % 4
    store = write_layer_store(tmp_path / "s", labels, {0: np.full((N, 6), 7.0)})
    rows, _ = swept(store)
    assert [row["test_auroc"] for row in rows[:2]] == [0.5, 0.5]
    assert [row["cv_auroc_mean"] for row in rows[:2]] == [0.5, 0.5]


def test_one_penalty_is_taken_without_inner_folds(tmp_path, monkeypatch):
    labels = np.arange(40) % 4
    nested, _ = nested_rows(labels, np.arange(40), np.arange(4), 4, seed=0)
    calls = []
    plain = layer_models.fit_logistic_path

    def counted(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(layer_models, "fit_logistic_path", counted)
    assert NestedLogistic([0.01]).validate(signal(labels, 1), nested).C == 0.01
    assert len(calls) == 4


def test_the_first_layer_within_a_standard_error_is_as_good():
    def row(layer, mean, std=0.1, estimator="logistic"):
        return {
            "layer": layer, "estimator": estimator, "cv_auroc_mean": mean, "cv_auroc_std": std, "n_folds": 4,
        }  # fmt: skip

    rows = [row(EMBEDDINGS, 0.6), row(0, 0.84), row(1, 0.86), row(2, 0.9), row(3, 0.88)]
    rows += [row(0, None, None, "ridge"), row(None, 0.99, 0.1, "bag_of_words")]
    assert emergence(rows) == [
        {"estimator": "logistic", "best_layer": 2, "first_layer_as_good": 1},
        {"estimator": "ridge", "best_layer": None, "first_layer_as_good": None},
    ]


def test_two_stores_of_one_csv_go_by_their_folders(tmp_path):
    labels = np.arange(40) % 4
    stores = [write_layer_store(tmp_path / name, labels, {0: signal(labels, 1)}) for name in ("a", "b")]
    assert [trait.name for trait in open_traits(stores)] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"hidden_states": "none"}, [], "made with --hidden-states none"),
        ({}, ["--layers", "0", "7"], "layer 7 is not stored; there are embeddings, 0"),
        ({"labels": np.zeros(40, dtype=int)}, [], "the train split has only label 0"),
        ({"groups": np.zeros(40, dtype=int)}, [], "cross-validation is impossible"),
        ({"bad": np.nan}, [], "hidden layer 0 holds NaN or infinity"),
        ({"bad": np.inf}, [], "hidden layer 0 holds NaN or infinity"),
        ({"twice": True}, [], "two of the stores are called store"),
    ],
)
def test_what_cannot_be_swept_is_told_in_a_line(tmp_path, capsys, changes, arguments, message):
    labels = changes.pop("labels", np.arange(40) % 4)
    vectors = signal(np.arange(40) % 4, 1)
    vectors[3, 2] = changes.pop("bad", 0.0)
    stores = [str(tmp_path / "store")] * (2 if changes.pop("twice", False) else 1)
    write_layer_store(tmp_path / "store", labels, {0: vectors}, **changes)
    assert main(["--input", *stores, "--output", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--penalties", "0"], "0 is not above 0"),
        (["--penalties", "inf"], "inf is not above 0"),
        (["--penalties", "strong"], "'strong' is not a number"),
        (["--folds", "1"], "1 is not at least 2"),
        (["--layers", "last"], "'last' is neither a layer's number nor embeddings"),
        (["--estimators", "oracle"], "invalid choice: 'oracle'"),
    ],
)
def test_wrong_usage_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--input", "store", *arguments])
    assert message in capsys.readouterr().err


def test_random_sentences_resemble_none_of_another_store():
    assert set(random_sentences(50, "a")) & set(random_sentences(50, "b")) == set()
