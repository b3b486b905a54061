"""predict.py gives for old sentences what the checkpoint's own test gave, and extracts no more."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest

from s4_classifier_data_prep.classifier_dataset import read_dataset
from s4_classifier_data_prep.generate_datasets import main as generate_datasets
from s5_classifier_training.framework import checkpoint, experiment_folder, predict, prediction, train
from s5_classifier_training.framework.evaluation import predict as predict_rows
from s5_classifier_training.framework.experiment_folder import find_checkpoint, read_results
from s5_classifier_training.framework.model_file import load_model
from s5_classifier_training.framework.prediction import NewSentences

LOGISTIC = "estimators:\n  - name: logistic\n    params: {C: 0.1}\n"
RIDGE = "estimators:\n  - name: ridge\n"


def write_csv(path, rows, header=("sentence", "concept_strength_label")):
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def read_rows(path):
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Sixty sentences of random words, no two alike."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    rows = []
    for number in range(60):
        words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(rng.integers(4, 9))]
        rows.append((" ".join(words).capitalize() + ".", number % 4))
    return write_csv(tmp_path_factory.mktemp("labelled") / "old.csv", rows)


@pytest.fixture(scope="module")
def store(labelled, tiny_configuration, tmp_path_factory):
    from s1_compute_all_features.extract_sae_features import main

    path = tmp_path_factory.mktemp("store") / "features"
    argv = ["--input", str(labelled), "--output", str(path), "--config", str(tiny_configuration)]
    assert main([*argv, "--device", "cpu"]) == 0
    return path


def make_version(folder, store, strategy, config=LOGISTIC):
    """Makes a dataset, trains on it, and keeps a version; returns its folder."""
    dataset = folder / "d3_test.npz"
    assert generate_datasets([*strategy, "--input", str(store), "--output", str(dataset)]) == 0
    working = folder / "d3_test" / "working"
    working.mkdir(parents=True)
    (working / "config.yaml").write_text("n_folds: 2\n" + config)
    (working / "dataset.config").write_text(f"dataset: {json.dumps(str(dataset))}\n")
    assert train.main([str(working.parent)]) == 0
    assert checkpoint.main([str(working.parent), "--name", "first", "--message", "why"]) == 0
    return working.parent / "v1_first"


@pytest.fixture(scope="module")
def made_once(store, tmp_path_factory):
    """For the tests that work on copies."""
    return make_version(
        tmp_path_factory.mktemp("version"), store, ["--strategy", "hidden-to-concept", "--layers", "0-1"]
    )


@pytest.fixture
def version(made_once, tmp_path):
    shutil.copytree(made_once.parent, tmp_path / "d3_test")
    return tmp_path / "d3_test" / made_once.name


@pytest.fixture
def commands(monkeypatch):
    """Runs stage 1 in this process, where torch is loaded already, and keeps its command lines."""
    from s1_compute_all_features.extract_sae_features import main

    seen = []

    def run(argv):
        seen.append(argv)
        return main(argv)

    monkeypatch.setattr(prediction, "run_extraction", run)
    return seen


def arguments(version, csv, output, configuration, *more):
    paths = ["--input", str(csv), "--output", str(output), "--config", str(configuration)]
    return ["--checkpoint", str(version), *paths, "--device", "cpu", *more]


def flags_of(command):
    return dict(itertools.pairwise(command))


SAE = ["--strategy", "sae-to-concept", "--layers", "1-2", "--target-l0", "24"]
TARGET = ["--target-layer", "2", "--target-l0", "24", "--target-feature"]


@pytest.mark.parametrize(
    ("strategy", "config", "needs"),
    [
        (
            ["--strategy", "hidden-to-concept", "--layers", "0,2"],
            LOGISTIC,
            {"--layers": "0,2", "--saes": "none", "--hidden-states": "all"},
        ),
        (
            ["--strategy", "hidden-to-concept", "--layer", "1", "--pooling", "last-content"],
            "estimators:\n  - name: linear_svm\n    params: {C: 0.01}\n",
            {"--layers": "1", "--saes": "none"},
        ),
        (
            [*SAE, "--normalize", "minmax"],
            "estimators:\n  - name: logistic\n    top_k: 5\n",
            {"--layers": "1,2", "--saes": "layer_01_l0_24,layer_02_l0_24", "--hidden-states": "none"},
        ),
        (["--strategy", "embedding-to-feature", *TARGET], RIDGE, {"--layers": "none", "--saes": "none"}),
        (
            ["--strategy", "hidden-to-feature", "--unit", "sentence", "--input-layer", "1", *TARGET],
            RIDGE,
            {"--layers": "1", "--saes": "none"},
        ),
    ],
)
def test_old_sentences_get_the_answers_that_the_checkpoint_holds(
    strategy, config, needs, labelled, store, tiny_configuration, commands, tmp_path, monkeypatch, capsys
):
    from s1_compute_all_features.feature_store import FeatureStore

    if "--target-feature" in strategy:
        reader = FeatureStore(store)
        fires = reader.feature_activations(reader.find_sae(2, 24), range(64)) > 0
        strategy = [
            *strategy,
            str(fires[~reader.held_out[reader.tokens.sentence_index]].sum(axis=0).argmax()),
        ]
    version = make_version(tmp_path, store, strategy, config)
    answers_given, original = [], prediction.answer

    def answer(*given):
        answers_given.append(original(*given))
        return answers_given[-1]

    monkeypatch.setattr(prediction, "answer", answer)
    output = tmp_path / "out" / "predictions.csv"
    assert predict.main(arguments(version, labelled, output, tiny_configuration)) == 0
    assert ("so the labels have nothing to score" in capsys.readouterr().out) == (
        "--target-feature" in strategy
    )
    (command,) = commands
    assert needs.items() <= flags_of(command).items()

    stored = [row for row in read_rows(version / "predictions.csv") if row["split"] == "test"]
    found = read_rows(output)
    dataset = read_dataset(tmp_path / "d3_test.npz")
    assert len(found) == len(dataset.X)
    answers = [name for name in found[0] if name == "predicted" or name.startswith("probability")]
    assert [name for name in stored[0] if name == "predicted" or name.startswith("probability")] == answers
    place = {(row["sentence_index"], row.get("position")): row for row in found}
    assert len(stored) == int(dataset.held_out.sum()) > 5
    for row in stored:
        same = place[row["sentence_index"], row.get("position")]
        assert {name: same[name] for name in answers} == {name: row[name] for name in answers}
        assert same["sentence"] == row["sentence"]
        assert same.get("token") == row.get("token")
    assert list(output.parent.iterdir()) == [output]  # nothing is left of the feature store

    (answered,) = answers_given
    model = load_model(version, read_results(version))
    expected = predict_rows(model, dataset.X, answered.predictions.labels)
    np.testing.assert_array_equal(answered.predictions.predicted, expected.predicted)
    if expected.probabilities is not None:
        np.testing.assert_array_equal(answered.predictions.probabilities, expected.probabilities)


def test_new_sentences_need_no_labels(version, tiny_configuration, commands, tmp_path, capsys):
    new = write_csv(tmp_path / "new.csv", [('Zoë, "naïve"?', "a"), ("One.", "b")], ("sentence", "source"))
    capsys.readouterr()
    assert predict.main(arguments(version, new, tmp_path / "out.csv", tiny_configuration)) == 0
    rows = read_rows(tmp_path / "out.csv")
    assert list(rows[0]) == [
        "sentence_index",
        "sentence",
        "predicted",
        *(f"probability_{n}" for n in range(4)),
    ]
    assert [row["sentence"] for row in rows] == ['Zoë, "naïve"?', "One."]
    for row in rows:
        probabilities = [float(row[f"probability_{label}"]) for label in range(4)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert int(row["predicted"]) == int(np.argmax(probabilities))
    output = capsys.readouterr().out
    assert "2 sentences predicted by d3_test v1_first (logistic C=0.1)" in output
    assert "predicted labels: 0: " in output
    assert "accuracy" not in output


def test_labels_are_scored_where_there_are_any(
    version, labelled, tiny_configuration, commands, tmp_path, capsys
):
    rows = [(row["sentence"], row["concept_strength_label"]) for row in read_rows(labelled)]
    partly = write_csv(tmp_path / "partly.csv", [*rows[:30], *((text, "") for text, _ in rows[30:])])
    capsys.readouterr()
    assert predict.main(arguments(version, partly, tmp_path / "out.csv", tiny_configuration)) == 0
    found = read_rows(tmp_path / "out.csv")
    assert [row["concept_strength_label"] for row in found] == [label for _, label in rows[:30]] + [""] * 30
    right = np.mean([row["predicted"] == row["concept_strength_label"] for row in found[:30]])
    output = capsys.readouterr().out
    assert f"on the labelled sentences: accuracy {right:.3f} [" in output
    assert "note: 48 of the sentences were trained on, so these scores are no test" in output
    fresh = write_csv(tmp_path / "fresh.csv", [("Quite another sentence.", 0), ("One more.", 3)])
    assert predict.main(arguments(version, fresh, tmp_path / "fresh_out.csv", tiny_configuration)) == 0
    assert "trained on" not in capsys.readouterr().out


def test_a_label_that_the_model_does_not_know_is_always_missed():
    known = prediction.Predictions(
        np.array([0.0, 3, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 3])
    )
    answered = prediction.Answered(known, np.arange(3), None, None)
    scores = prediction.scores_of(NewSentences(["a", "b", "c"], [0, 3, 1]), answered, seed=0)
    assert scores["accuracy"]["value"] == pytest.approx(2 / 3)
    assert scores["log_loss"]["value"] > 10
    assert prediction.scores_of(NewSentences(["a", "b", "c"], [None] * 3), answered, seed=0) is None
    assert prediction.scores_of(NewSentences(["a", "b", "c"], None), answered, seed=0) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nOne.\n", "column 'sentence' is missing; the header has text"),
        ("sentence\n", "no sentences; expected at least one row"),
        ("sentence,source\n ,x\n", "line 2: the sentence is blank"),
        ("sentence,concept_strength_label\nOne.,4\n", "line 2: concept_strength_label is '4'"),
    ],
)
def test_a_bad_input_is_told_before_anything_runs(
    content, message, version, tiny_configuration, commands, tmp_path, capsys
):
    (tmp_path / "new.csv").write_text(content)
    command = arguments(version, tmp_path / "new.csv", tmp_path / "out.csv", tiny_configuration)
    assert predict.main(command) == 1
    assert message in capsys.readouterr().err
    assert commands == []
    assert not (tmp_path / "out.csv").exists()


def test_a_tampered_checkpoint_predicts_nothing(
    version, labelled, tiny_configuration, commands, tmp_path, capsys
):
    path = version / "model.skops"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    assert predict.main(arguments(version, labelled, tmp_path / "out.csv", tiny_configuration)) == 1
    assert "not as checkpoint.py made it: model.skops is missing or was changed" in capsys.readouterr().err
    assert commands == []


def test_an_existing_output_is_replaced_on_request_only(
    version, labelled, tiny_configuration, commands, tmp_path, capsys
):
    output = tmp_path / "out.csv"
    output.write_text("mine")
    command = arguments(version, labelled, output, tiny_configuration)
    assert predict.main(command) == 1
    assert "already exists" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert predict.main([*command, "--overwrite"]) == 0
    assert len(read_rows(output)) == 60


def test_other_weights_than_the_checkpoints_are_refused(
    version, labelled, tiny_configuration, commands, tmp_path, capsys, caplog
):
    from tests.fake_hub import small_tokenizer, tiny_gemma2

    model = tiny_gemma2()
    model.model.embed_tokens.weight.data.mul_(-1)
    content = json.loads(tiny_configuration.read_text())
    model.save_pretrained(tmp_path / "model")
    small_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "other.json").write_text(json.dumps({**content, "sae_root": ""}))
    output = tmp_path / "out.csv"
    assert predict.main(arguments(version, labelled, output, tmp_path / "other.json")) == 1
    assert "the model's revision is" in capsys.readouterr().err
    assert not output.exists()
    chosen = arguments(version, labelled, output, tiny_configuration, "--model", str(tmp_path / "model"))
    assert predict.main(chosen) == 0
    assert "make sure that the weights are the same" in caplog.text


def test_a_failed_extraction_is_told_and_leaves_nothing(
    version, labelled, tiny_configuration, commands, tmp_path, capsys
):
    output = tmp_path / "out" / "out.csv"
    command = arguments(version, labelled, output, tiny_configuration, "--model", str(tmp_path / "none"))
    assert predict.main(command) == 1
    error = capsys.readouterr().err
    assert "none cannot be loaded" in error
    assert "extract_sae_features.py ended with exit code 1; its message stands above" in error
    assert list(output.parent.iterdir()) == []


def test_the_configuration_is_found_by_model_and_saes(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "EXTRACTION", tmp_path)
    (tmp_path / "demo").mkdir()
    for name, model, saes in (("a", "one", "xy"), ("demo/b", "two", "x"), ("c", "two", "xy")):
        content = {"model": {"id": model}, "saes": [{"name": sae} for sae in saes]}
        (tmp_path / f"{name}_configurations.json").write_text(json.dumps(content))

    def metadata(model, *saes):
        return {"model": model, "input": {"saes": [{"name": sae} for sae in saes]}}

    assert prediction.find_configuration(metadata("one", "x")).name == "a_configurations.json"
    assert prediction.find_configuration(metadata("two", "y")).name == "c_configurations.json"
    with pytest.raises(prediction.UserError, match="names the checkpoint's model three; give the one"):
        prediction.find_configuration(metadata("three"))
    with pytest.raises(prediction.UserError, match="model two and its SAEs; give the one"):
        prediction.find_configuration(metadata("two", "z"))


def test_a_checkpoint_is_found_by_every_name_of_it(version, tmp_path, monkeypatch):
    experiment = version.parent
    for text in ("v1", "1", "v1_first"):
        assert find_checkpoint(f"{experiment}/{text}").folder == version
    assert find_checkpoint(str(version)).folder == version
    monkeypatch.setattr(experiment_folder, "EXPERIMENTS", tmp_path)
    assert find_checkpoint("v1").folder == version
    assert find_checkpoint("d3_test/v1").folder == version
    with pytest.raises(prediction.UserError, match="v2: no experiment has this version; give EXPERIMENT/vN"):
        find_checkpoint("v2")
    shutil.copytree(experiment, tmp_path / "d4_test")
    with pytest.raises(
        prediction.UserError, match="several experiments have it: d3_test/v1_first, d4_test/v1"
    ):
        find_checkpoint("v1")


def test_a_dataset_of_an_earlier_format_cannot_be_predicted(version):
    metadata = read_results(version)["dataset"]
    prediction.refuse_without_recipe(metadata)
    del metadata["model_details"]
    with pytest.raises(prediction.UserError, match="does not say how its inputs were made; make it again"):
        prediction.refuse_without_recipe(metadata)


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same(version, labelled, tiny_configuration, tmp_path):
    assert predict.main(arguments(version, labelled, tmp_path / "out.csv", tiny_configuration)) == 0
    stored = {
        row["sentence_index"]: row for row in read_rows(version / "predictions.csv") if row["split"] == "test"
    }
    found = {row["sentence_index"]: row for row in read_rows(tmp_path / "out.csv")}
    for index, row in stored.items():
        assert [row[f"probability_{n}"] for n in range(4)] == [
            found[index][f"probability_{n}"] for n in range(4)
        ]
